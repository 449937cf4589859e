use std::io::{Cursor, Write as _};

use super::*;

/// A tar archive in memory.
#[derive(Default)]
struct Tar(Vec<(String, Vec<u8>)>);

impl Tar {
    fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.push((name.to_owned(), bytes.into()));
        self
    }

    fn blob(self, bytes: &[u8]) -> Self {
        let name = place(&hash(bytes));
        self.with(&name, bytes)
    }

    fn bytes(self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            match name.strip_suffix(" ->") {
                Some(name) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    let target = String::from_utf8(bytes).unwrap();
                    tar.append_link(&mut header, name, target).unwrap();
                }
                None => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
                }
            }
        }
        tar.into_inner().unwrap()
    }

    fn images(self) -> Result<Vec<Image>, ArchiveError> {
        Archive::read(Cursor::new(self.bytes()))?.images()
    }
}

fn part(bytes: &[u8]) -> Value {
    json!({"digest": hash(bytes), "size": bytes.len()})
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<Value> = layers.iter().map(|layer| part(layer)).collect();
    json!({"schemaVersion": 2, "config": part(config), "layers": layers}).to_string().into_bytes()
}

fn layout(listed: &[(&[u8], &str)]) -> Tar {
    let manifests: Vec<Value> = listed
        .iter()
        .map(|(bytes, name)| {
            let mut shown = part(bytes);
            shown["annotations"] = json!({"io.containerd.image.name": name});
            shown
        })
        .collect();
    Tar::default()
        .with("./oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .with("./index.json", json!({"schemaVersion": 2, "manifests": manifests}).to_string())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[track_caller]
fn refused(tar: Tar, why: &str) {
    let err = tar.images().unwrap_err();
    let text = runtime::report(&err);
    assert!(text.contains(why), "{text:?} does not say {why:?}");
}

#[test]
fn a_layout_names_its_images() {
    let image = manifest(b"config", &[b"one", b"two"]);
    let tar = layout(&[(&image, "a.example/x:1"), (&image, "a.example/x:2")]);
    let tar = tar.blob(b"config").blob(b"one").blob(b"two").blob(&image);
    let mut archive = Archive::read(Cursor::new(tar.bytes())).unwrap();
    let images = archive.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].names, ["a.example/x:1", "a.example/x:2"]);
    assert_eq!(images[0].digest(), Some(&hash(&image)));
    let mut read = Vec::new();
    for blob in &images[0].blobs {
        let mut bytes = String::new();
        archive.reader(blob).unwrap().read_to_string(&mut bytes).unwrap();
        read.push(bytes);
    }
    assert_eq!(read, ["config", "one", "two"]);
}

#[test]
fn of_many_platforms_those_come_that_are_there() {
    let (here, absent) = (manifest(b"c1", &[b"l1"]), manifest(b"c2", &[b"l2"]));
    let index = json!({"schemaVersion": 2, "manifests": [part(&absent), part(&here)]});
    let index = index.to_string().into_bytes();
    let tar = || layout(&[(&index, "a.example/x:1")]).blob(&index);
    let images = tar().blob(b"c1").blob(b"l1").blob(&here).images().unwrap();
    let manifests: Vec<&Digest> = images[0].manifests.iter().map(|(digest, _)| digest).collect();
    assert_eq!(manifests, [&hash(&here), &hash(&index)]);
    refused(tar(), "lacks blobs/sha256/");
}

#[test]
fn what_docker_saves_becomes_an_image() {
    let (one, two) = (b"layer one".as_slice(), b"layer two".as_slice());
    let packed = gzip(two);
    let config = json!({"rootfs": {"diff_ids": [hash(one), hash(two), hash(one)]}}).to_string();
    let saved = |tags: &Value| {
        json!([{"Config": "c.json", "RepoTags": tags, "Layers": ["a/layer.tar", "b/layer.tar",
            "c/layer.tar"]}])
        .to_string()
    };
    let tar = || {
        Tar::default()
            .with("c.json", config.clone())
            .with("a/layer.tar", one)
            .with("c/layer.tar ->", "../a/layer.tar")
    };
    let tags = json!(["x:1", "y:2"]);
    let whole = tar().with("b/layer.tar", packed.clone()).with("manifest.json", saved(&tags));
    let images = whole.images().unwrap();
    assert_eq!(images[0].names, ["x:1", "y:2"]);
    let found = Manifest::parse(&images[0].manifests[0].1).unwrap();
    let kinds: Vec<_> = found.parts().iter().map(|part| part.media_type.as_str()).collect();
    use media_type::{CONFIG, LAYER, LAYER_GZIP};
    assert_eq!(kinds, [CONFIG, LAYER, LAYER_GZIP, LAYER]);
    let digests: Vec<_> = found.parts().iter().map(|part| part.digest.clone()).collect();
    assert_eq!(digests, [hash(config.as_bytes()), hash(one), hash(&packed), hash(one)]);
    assert_eq!(images[0].blobs.len(), 3);

    let untagged = tar().with("b/layer.tar", two).with("manifest.json", saved(&Value::Null));
    assert!(untagged.images().unwrap()[0].names.is_empty());
    let other = tar().with("b/layer.tar", "another").with("manifest.json", saved(&tags));
    refused(other, "b/layer.tar is not what its digest says");
    refused(tar().with("manifest.json", saved(&tags)), "lacks b/layer.tar");
}

#[test]
fn broken_archives_say_what_is_wrong() {
    refused(Tar::default().with("hello", "world"), "neither an index.json nor a manifest.json");
    let image = manifest(b"config", &[b"one"]);
    let named = || layout(&[(&image, "a:1")]);
    refused(named(), "lacks blobs/sha256/");
    refused(named().blob(&image).blob(b"config"), "lacks blobs/sha256/");
    refused(named().with(&place(&hash(&image)), "{}"), "is damaged");
    refused(Tar::default().with("manifest.json", "{"), "manifest.json cannot be read");
    let outside = json!([{"Config": "../../etc/passwd", "Layers": []}]).to_string();
    refused(Tar::default().with("manifest.json", outside), "lacks ../../etc/passwd");
    let mut cut = named().blob(&image).blob(&[7; 4096]).bytes();
    cut.truncate(cut.len() - 4096);
    let err = Archive::read(Cursor::new(cut)).unwrap_err();
    assert!(err.to_string().contains("ends early"), "{err}");
}

#[test]
fn packed_archives_are_unpacked() {
    let image = manifest(b"config", &[b"one"]);
    let tar = layout(&[(&image, "a:1")]).blob(&image).blob(b"config").blob(b"one").bytes();
    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    for bytes in [tar.clone(), gzip(&tar), zstd] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let images = Archive::open(file.path()).unwrap().images().unwrap();
        assert_eq!(images[0].names, ["a:1"]);
    }
}

#[test]
fn any_bytes_are_an_archive_or_refused() {
    let image = manifest(b"config", &[b"one"]);
    let whole = layout(&[(&image, "a:1")]).blob(&image).blob(b"config").blob(b"one").bytes();
    bolero::check!().with_iterations(3_000).for_each(|bytes: &[u8]| {
        // Some bytes alone are never an archive; within a good one they reach every reader.
        let mut spoilt = whole.clone();
        for pair in bytes.chunks_exact(3) {
            let at = (usize::from(pair[0]) << 8 | usize::from(pair[1])) % spoilt.len();
            spoilt[at] = pair[2];
        }
        for bytes in [bytes, spoilt.as_slice()] {
            if let Ok(mut archive) = Archive::read(Cursor::new(bytes)) {
                let _outcome = archive.images();
            }
            let _outcome = decode::<Vec<Saved>>("x", bytes).is_ok();
        }
    });
}
