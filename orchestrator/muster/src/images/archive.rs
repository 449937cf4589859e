//! Archives of images: OCI layouts and what `docker save` writes, packed or not.
//!
//! Nothing is unpacked but the archive itself, and that only when it is compressed: layers are
//! read where they lie. Names of members are keys and never paths of this host.
//!
//! Spec: OCI image layout 1.0; the archive of `docker save`, whose layers are named by a
//! `manifest.json` of its own and become an OCI manifest here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use api::registry::{Digest, MANIFEST_BYTES_MAX, Manifest, ManifestError, media_type};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Members of an archive; real ones have a few hundred.
const MEMBERS_MAX: usize = 100_000;
/// Links of links.
const LINKS_MAX: usize = 8;
/// An index of an index is the deepest there is.
const DEPTH_MAX: usize = 3;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, 0x37, 0x7a, 0x58];

/// Why an archive cannot be used.
#[derive(Debug, Error)]
pub(super) enum ArchiveError {
    #[error("cannot be read")]
    Read(#[from] io::Error),
    #[error("packed with xz, which is not known here; unpack it first with `xz -d`")]
    Xz,
    #[error("has more than {MEMBERS_MAX} members")]
    TooMany,
    #[error("ends early: {0} is not complete")]
    CutOff(String),
    #[error("is no archive of images: it has neither an index.json nor a manifest.json")]
    NoImages,
    #[error("lacks {0}")]
    Lacks(String),
    #[error("is damaged: {name} is not what its digest says")]
    Damaged { name: String },
    #[error("{name} cannot be read")]
    Json {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{name} is no manifest")]
    Manifest {
        name: String,
        #[source]
        source: ManifestError,
    },
    #[error("{0} is longer than such a document may be")]
    TooLong(String),
    #[error("its indexes lie too deep in one another")]
    TooDeep,
}

/// Where a member's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Member {
    Bytes { offset: u64, size: u64 },
    Link(String),
}

/// A blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    offset: u64,
}

/// An image, or an index of images under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// What the archive calls it.
    pub(super) names: Vec<String>,
    /// Configurations and layers.
    pub(super) blobs: Vec<Blob>,
    /// Manifests, each after those it names; the last is the image's own.
    pub(super) manifests: Vec<(Digest, Bytes)>,
}

impl Image {
    /// The digest of the image's own manifest.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.manifests.last().map(|(digest, _)| digest)
    }
}

/// An open archive.
#[derive(Debug)]
pub(super) struct Archive<F> {
    file: F,
    members: BTreeMap<String, Member>,
}

impl Archive<File> {
    /// Opens an archive; what is packed is unpacked into a file without a name.
    pub(super) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let mut file = File::open(path)?;
        let mut magic = [0; 4];
        let mut head = file.try_clone()?;
        let got = read_some(&mut head, &mut magic)?;
        file.seek(SeekFrom::Start(0))?;
        let magic = magic.get(..got).unwrap_or_default();
        let mut unpacked = if magic.starts_with(GZIP) {
            unpack(flate2::read::MultiGzDecoder::new(io::BufReader::new(file)))?
        } else if magic.starts_with(ZSTD) {
            unpack(zstd::stream::read::Decoder::new(file)?)?
        } else if magic.starts_with(XZ) {
            return Err(ArchiveError::Xz);
        } else {
            file
        };
        unpacked.seek(SeekFrom::Start(0))?;
        Self::read(unpacked)
    }
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest)? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

fn unpack(mut packed: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut packed, &mut file)?;
    Ok(file)
}

#[derive(Deserialize)]
struct Layout {
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: Digest,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl<F: Read + Seek> Archive<F> {
    /// Looks at every member's head.
    pub(super) fn read(mut file: F) -> Result<Self, ArchiveError> {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let mut members = BTreeMap::new();
        let mut tar = tar::Archive::new(&mut file);
        for entry in tar.entries_with_seek()? {
            let entry = entry?;
            let Some(name) = clean(&String::from_utf8_lossy(&entry.path_bytes())) else { continue };
            let kind = entry.header().entry_type();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            let target =
                entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            let member = match target {
                Some(target) if kind.is_hard_link() => clean(&target).map(Member::Link),
                Some(target) if kind.is_symlink() => {
                    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                    clean(&format!("{above}/{target}")).map(Member::Link)
                }
                _ if kind.is_file() => {
                    if offset.checked_add(size).is_none_or(|end| end > length) {
                        return Err(ArchiveError::CutOff(name));
                    }
                    Some(Member::Bytes { offset, size })
                }
                _ => None,
            };
            members.extend(member.map(|member| (name, member)));
            if members.len() > MEMBERS_MAX {
                return Err(ArchiveError::TooMany);
            }
        }
        Ok(Self { file, members })
    }

    /// The images in it.
    pub(super) fn images(&mut self) -> Result<Vec<Image>, ArchiveError> {
        if self.find("index.json").is_some() && self.find("oci-layout").is_some() {
            return self.layout_images();
        }
        if self.find("manifest.json").is_some() {
            return self.saved_images();
        }
        Err(ArchiveError::NoImages)
    }

    /// Reads a blob from its first byte.
    pub(super) fn reader(&mut self, blob: &Blob) -> io::Result<io::Take<&mut F>> {
        self.part(blob.offset, blob.size_bytes)
    }

    fn part(&mut self, offset: u64, size: u64) -> io::Result<io::Take<&mut F>> {
        self.file.seek(SeekFrom::Start(offset))?;
        Ok((&mut self.file).take(size))
    }

    /// Where a member is, links followed.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name;
        for _ in 0..LINKS_MAX {
            match self.members.get(name)? {
                Member::Bytes { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    /// Reads a document.
    fn document(&mut self, name: &str) -> Result<Bytes, ArchiveError> {
        let found = self.find(&clean(name).unwrap_or_default());
        let (offset, size) = found.ok_or_else(|| ArchiveError::Lacks(name.to_owned()))?;
        if size > MANIFEST_BYTES_MAX as u64 {
            return Err(ArchiveError::TooLong(name.to_owned()));
        }
        let mut bytes = Vec::new();
        self.part(offset, size)?.read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    fn layout_images(&mut self) -> Result<Vec<Image>, ArchiveError> {
        let layout: Layout = decode("index.json", &self.document("index.json")?)?;
        let mut images: Vec<Image> = Vec::new();
        for listed in layout.manifests {
            let names = named(&listed.annotations);
            // One image under several names is listed once for each.
            if let Some(known) =
                images.iter_mut().find(|image| image.digest() == Some(&listed.digest))
            {
                known.names.extend(names);
                continue;
            }
            let mut image = Image { names, blobs: Vec::new(), manifests: Vec::new() };
            self.gather(&listed.digest, &mut image, 0)?;
            images.push(image);
        }
        Ok(images)
    }

    /// Collects a manifest and all below it that the archive has.
    fn gather(
        &mut self,
        digest: &Digest,
        image: &mut Image,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        if depth > DEPTH_MAX {
            return Err(ArchiveError::TooDeep);
        }
        let name = place(digest);
        let bytes = self.document(&name)?;
        if hash(&bytes) != *digest {
            return Err(ArchiveError::Damaged { name });
        }
        let manifest = Manifest::parse(&bytes)
            .map_err(|source| ArchiveError::Manifest { name: name.clone(), source })?;
        let mut children = 0;
        for part in manifest.parts() {
            let found = self.find(&place(&part.digest));
            match (&manifest, found) {
                (Manifest::Index { .. }, Some(_)) => {
                    self.gather(&part.digest, image, depth + 1)?;
                    children += 1;
                }
                // An archive may hold one platform of many.
                (Manifest::Index { .. }, None) => {}
                (Manifest::Image { .. }, Some((offset, size_bytes))) => {
                    let blob = Blob { digest: part.digest.clone(), size_bytes, offset };
                    if !image.blobs.iter().any(|known| known.digest == blob.digest) {
                        image.blobs.push(blob);
                    }
                }
                (Manifest::Image { .. }, None) if part.is_optional => {}
                (Manifest::Image { .. }, None) => {
                    return Err(ArchiveError::Lacks(place(&part.digest)));
                }
            }
        }
        if let (Manifest::Index { images, .. }, 0) = (&manifest, children) {
            let first = images.first().map_or_else(|| name.clone(), |one| place(&one.digest));
            return Err(ArchiveError::Lacks(first));
        }
        image.manifests.push((digest.clone(), bytes));
        Ok(())
    }

    fn saved_images(&mut self) -> Result<Vec<Image>, ArchiveError> {
        let saved: Vec<Saved> = decode("manifest.json", &self.document("manifest.json")?)?;
        saved.into_iter().map(|saved| self.saved_image(saved)).collect()
    }

    fn saved_image(&mut self, saved: Saved) -> Result<Image, ArchiveError> {
        let bytes = self.document(&saved.config)?;
        let config: Config = decode(&saved.config, &bytes)?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != saved.layers.len() {
            return Err(ArchiveError::Lacks("some of the layers its configuration names".into()));
        }
        let missing = |name: &str| ArchiveError::Lacks(name.to_owned());
        let place = clean(&saved.config).and_then(|name| self.find(&name));
        let (offset, size_bytes) = place.ok_or_else(|| missing(&saved.config))?;
        let mut blobs = vec![Blob { digest: hash(&bytes), size_bytes, offset }];
        let mut layers = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(diff_ids) {
            let place = clean(name).and_then(|name| self.find(&name));
            let (offset, size_bytes) = place.ok_or_else(|| missing(name))?;
            let (digest, kind) = self
                .layer((offset, size_bytes), &diff_id)?
                .ok_or_else(|| ArchiveError::Damaged { name: name.clone() })?;
            layers.push(json!({"mediaType": kind, "digest": digest, "size": size_bytes}));
            blobs.push(Blob { digest, size_bytes, offset });
        }
        let config = blobs.first().map(|blob| {
            json!({"mediaType": media_type::CONFIG, "digest": blob.digest, "size": blob.size_bytes})
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::IMAGE, "config": config, "layers": layers,
        });
        blobs.sort_by(|one, other| one.digest.cmp(&other.digest));
        blobs.dedup_by(|one, other| one.digest == other.digest);
        let manifest = Bytes::from(manifest.to_string());
        let manifests = vec![(hash(&manifest), manifest)];
        Ok(Image { names: saved.repo_tags.unwrap_or_default(), blobs, manifests })
    }

    /// Digest and type of a layer; `None` when it is not the one the configuration means.
    fn layer(
        &mut self,
        (offset, size): (u64, u64),
        diff_id: &Digest,
    ) -> Result<Option<(Digest, &'static str)>, ArchiveError> {
        let mut magic = [0; 2];
        let got = read_some(&mut self.part(offset, size)?, &mut magic)?;
        let digest = hash_all(self.part(offset, size)?)?;
        if magic.get(..got) != Some(GZIP) {
            return Ok((digest == *diff_id).then_some((digest, media_type::LAYER)));
        }
        let inner = flate2::read::MultiGzDecoder::new(io::BufReader::new(self.part(offset, size)?));
        let inner = hash_all(inner)?;
        Ok((inner == *diff_id).then_some((digest, media_type::LAYER_GZIP)))
    }
}

/// A member's name without `.`, `..` and slashes at its ends; `None` for one that leads outside.
fn clean(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// What tools call an image in a layout: its whole name, or a tag alone, which says too little.
fn named(notes: &BTreeMap<String, String>) -> Vec<String> {
    let whole = notes.get("io.containerd.image.name");
    let other = notes.get("org.opencontainers.image.ref.name").filter(|name| name.contains('/'));
    whole.or(other).into_iter().cloned().collect()
}

fn place(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn decode<T: for<'de> Deserialize<'de>>(name: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
    // Some writers end their documents with a zero byte or a line's end.
    let value: Value = serde_json::from_slice(bytes.trim_ascii())
        .map_err(|source| ArchiveError::Json { name: name.to_owned(), source })?;
    T::deserialize(value).map_err(|source| ArchiveError::Json { name: name.to_owned(), source })
}

fn hash(bytes: &[u8]) -> Digest {
    Digest::of_raw(&Sha256::digest(bytes).into())
}

fn hash_all(mut reader: impl Read) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(Digest::of_raw(&hash.finalize().into())),
            got => hash.update(buffer.get(..got).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests;
