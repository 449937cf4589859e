//! `index.json`: which images there are, under which names.
//!
//! A tag that moves on leaves its old image listed without a tag, for pods may name it by digest.

use std::io;
use std::path::Path;

use api::registry::{At, Digest, Manifest};
use serde_json::{Value, json};

/// Where tools look for an image's whole name.
const NAME: &str = "io.containerd.image.name";
/// Where the specification puts the tag.
const TAG: &str = "org.opencontainers.image.ref.name";
const REPOSITORY: &str = "muster.dev/repository";
const ADDED: &str = "muster.dev/added";
const SIZE: &str = "muster.dev/size-bytes";
const PLATFORMS: &str = "muster.dev/platforms";

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Registry and repository.
    pub(super) name: String,
    /// The tag; `None` once it points elsewhere.
    pub(super) tag: Option<String>,
    pub(super) digest: Digest,
    pub(super) media_type: String,
    /// Bytes of the manifest.
    pub(super) manifest_bytes: u64,
    /// Bytes of configuration and layers.
    pub(super) size_bytes: u64,
    /// `linux/amd64` and the like.
    pub(super) platforms: Vec<String>,
    /// When it came.
    pub(super) added: String,
}

/// All images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) entries: Vec<Entry>,
}

impl Entry {
    /// The image as `GET /muster/v1/images` shows it.
    pub(super) fn to_value(&self) -> Value {
        json!({
            "name": self.name, "tag": self.tag, "digest": self.digest,
            "mediaType": self.media_type, "sizeBytes": self.size_bytes,
            "platforms": self.platforms, "added": self.added,
        })
    }

    fn render(&self) -> Value {
        let mut notes = json!({
            REPOSITORY: self.name, ADDED: self.added, SIZE: self.size_bytes.to_string(),
            PLATFORMS: self.platforms.join(","),
        });
        if let (Some(tag), Some(notes)) = (&self.tag, notes.as_object_mut()) {
            notes.insert(NAME.to_owned(), json!(format!("{}:{tag}", self.name)));
            notes.insert(TAG.to_owned(), json!(tag));
        }
        json!({
            "mediaType": self.media_type, "digest": self.digest, "size": self.manifest_bytes,
            "annotations": notes,
        })
    }

    fn read(value: &Value) -> Option<Self> {
        let note = |key: &str| value.get("annotations")?.get(key)?.as_str();
        Some(Self {
            name: note(REPOSITORY)?.to_owned(),
            tag: note(TAG).map(str::to_owned),
            digest: Digest::parse(value.get("digest")?.as_str()?).ok()?,
            media_type: value.get("mediaType")?.as_str()?.to_owned(),
            manifest_bytes: value.get("size")?.as_u64()?,
            size_bytes: note(SIZE).and_then(|size| size.parse().ok()).unwrap_or_default(),
            platforms: note(PLATFORMS)
                .unwrap_or_default()
                .split(',')
                .filter(|platform| !platform.is_empty())
                .map(str::to_owned)
                .collect(),
            added: note(ADDED).unwrap_or_default().to_owned(),
        })
    }

    fn is_at(&self, name: &str, at: &At) -> bool {
        self.name == name
            && match at {
                At::Tag(tag) => self.tag.as_ref() == Some(tag),
                At::Digest(digest) => self.digest == *digest,
            }
    }
}

impl Index {
    /// Reads what is there. An index that cannot be read is set aside: images can be added again,
    /// and the control plane must start.
    pub(super) fn load(dir: &Path) -> io::Result<Self> {
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let path = dir.join("index.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(err) => return Err(err),
        };
        if let Some(index) = Self::parse(&bytes) {
            return Ok(index);
        }
        tracing::error!(path = %path.display(), "the index of images is damaged and set aside");
        std::fs::rename(&path, dir.join("index.json.damaged"))?;
        Ok(Self::default())
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let list = value.get("manifests")?.as_array()?;
        let entries: Option<Vec<Entry>> = list.iter().map(Entry::read).collect();
        Some(Self { entries: entries? })
    }

    pub(super) fn render(&self) -> String {
        let manifests: Vec<Value> = self.entries.iter().map(Entry::render).collect();
        json!({ "schemaVersion": 2, "manifests": manifests }).to_string()
    }

    /// The image a tag points at.
    pub(super) fn tagged(&self, name: &str, tag: &str) -> Option<Digest> {
        let at = At::Tag(tag.to_owned());
        self.entries.iter().find(|entry| entry.is_at(name, &at)).map(|entry| entry.digest.clone())
    }

    pub(super) fn has(&self, name: &str, at: &At) -> bool {
        self.entries.iter().any(|entry| entry.is_at(name, at))
    }

    /// Lists an image. Its tag moves to it; the images of an index are listed with the index.
    pub(super) fn add(&mut self, entry: Entry, manifest: &Manifest) {
        let parts = manifest.parts();
        self.entries.retain(|old| {
            let is_same = old.digest == entry.digest && (old.tag == entry.tag || old.tag.is_none());
            let is_part = old.tag.is_none() && parts.iter().any(|part| part.digest == old.digest);
            old.name != entry.name || !(is_same || is_part)
        });
        for old in &mut self.entries {
            if old.name == entry.name && old.tag.is_some() && old.tag == entry.tag {
                old.tag = None;
            }
        }
        self.entries.push(entry);
        // Without a tag is listed only what has no tag at all.
        let tagged: Vec<(String, Digest)> = self
            .entries
            .iter()
            .filter(|entry| entry.tag.is_some())
            .map(|entry| (entry.name.clone(), entry.digest.clone()))
            .collect();
        self.entries.retain(|entry| {
            let is_tagged =
                tagged.iter().any(|(name, digest)| *name == entry.name && *digest == entry.digest);
            entry.tag.is_some() || !is_tagged
        });
        self.entries.sort_by(|one, other| {
            (&one.name, &one.tag, &one.digest).cmp(&(&other.name, &other.tag, &other.digest))
        });
    }

    /// Takes an image, or all tags of a digest, off the list.
    pub(super) fn forget(&mut self, name: &str, at: &At) {
        self.entries.retain(|entry| !entry.is_at(name, at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: &str) -> Digest {
        Digest::parse(&format!("sha256:{}", letter.repeat(64))).unwrap()
    }

    fn entry(tag: Option<&str>, letter: &str) -> Entry {
        Entry {
            name: "docker.io/library/a".to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest(letter),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            manifest_bytes: 7,
            size_bytes: 70,
            platforms: vec!["linux/amd64".to_owned()],
            added: "2026-11-21T12:00:00Z".to_owned(),
        }
    }

    fn shown(index: &Index) -> Vec<String> {
        let show = |entry: &Entry| {
            format!("{} {}", entry.tag.as_deref().unwrap_or("-"), &entry.digest.hex()[..1])
        };
        index.entries.iter().map(show).collect()
    }

    #[test]
    fn a_tag_that_moves_leaves_its_image_listed() {
        let image = Manifest::Image { media_type: String::new(), parts: Vec::new() };
        let mut index = Index::default();
        index.add(entry(Some("1"), "a"), &image);
        index.add(entry(Some("1"), "a"), &image);
        assert_eq!(shown(&index), ["1 a"]);
        index.add(entry(Some("1"), "b"), &image);
        index.add(entry(Some("2"), "b"), &image);
        assert_eq!(shown(&index), ["- a", "1 b", "2 b"]);
        index.add(entry(None, "b"), &image);
        index.add(entry(Some("1"), "a"), &image);
        assert_eq!(shown(&index), ["1 a", "2 b"]);
        assert_eq!(Index::parse(index.render().as_bytes()), Some(index.clone()));
        index.forget("docker.io/library/a", &At::Digest(digest("b")));
        assert_eq!(shown(&index), ["1 a"]);
        assert!(!index.has("docker.io/library/a", &At::Tag("2".to_owned())));
    }

    #[test]
    fn images_of_an_index_are_listed_with_it() {
        let image = Manifest::Image { media_type: String::new(), parts: Vec::new() };
        let mut index = Index::default();
        index.add(entry(None, "a"), &image);
        index.add(entry(None, "b"), &image);
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":7}}]}}"#,
            digest("a")
        );
        index.add(entry(Some("1"), "c"), &Manifest::parse(text.as_bytes()).unwrap());
        assert_eq!(shown(&index), ["- b", "1 c"]);
    }

    #[test]
    fn any_index_is_read_or_set_aside() {
        bolero::check!().with_iterations(5_000).for_each(|bytes: &[u8]| {
            if let Some(index) = Index::parse(bytes) {
                assert_eq!(Index::parse(index.render().as_bytes()), Some(index));
            }
        });
    }
}
