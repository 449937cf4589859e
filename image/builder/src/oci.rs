//! Container images as OCI archives, for the two images that every node brings along.
//!
//! Layers are not compressed: the root is, and unpacking twice costs time at boot.
//!
//! Spec: OCI image format 1.0 (layout, manifest, config).

use std::process::Command;

use layout::manifest::FileEntry;
use serde_json::{Value, json};

use crate::tree::Tree;
use crate::{BuildError, tool};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// One archive with both images; importing costs most per archive.
///
/// `muster.dev/pause:1` is the image whose one process holds a pod's namespaces,
/// `muster.dev/busybox:1` a small system to try things with.
pub(crate) fn archive(pause: Vec<u8>, busybox: Vec<u8>, epoch: u32) -> Result<Vec<u8>, BuildError> {
    let config = json!({ "Entrypoint": ["/pause"], "User": "65535:65535" });
    let mut layer = Tree::default();
    layer.file("pause", 0o755, pause);
    let mut tree = Tree::default();
    let mut shown = vec![add(&mut tree, "muster.dev/pause:1", &layer, &config, epoch)?];
    let config = json!({
        "Cmd": ["sh"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    });
    let layer = busybox_layer(busybox)?;
    shown.push(add(&mut tree, "muster.dev/busybox:1", &layer, &config, epoch)?);
    tree.file("oci-layout", 0o644, text(&json!({ "imageLayoutVersion": "1.0.0" })));
    tree.file("index.json", 0o644, text(&json!({ "schemaVersion": 2, "manifests": shown })));
    tree.add_parents();
    let mut out = Vec::new();
    tree.write_tar(&mut out, epoch).map_err(BuildError::run("tar"))?;
    Ok(out)
}

fn busybox_layer(binary: Vec<u8>) -> Result<Tree, BuildError> {
    let mut layer = Tree::default();
    for applet in applets(&binary)? {
        layer.link(&format!("usr/bin/{applet}"), "busybox");
    }
    layer.file("usr/bin/busybox", 0o755, binary);
    layer.link("bin", "usr/bin");
    layer.link("sbin", "usr/bin");
    layer.directory("tmp", 0o1777);
    layer.directory("root", 0o700);
    layer.directory("etc", 0o755);
    layer.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    layer.text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    layer.add_parents();
    Ok(layer)
}

/// Asks the binary which programs are in it; it is static and runs on any host of its kind.
fn applets(binary: &[u8]) -> Result<Vec<String>, BuildError> {
    let dir = tempfile::tempdir().map_err(BuildError::run("busybox"))?;
    let path = dir.path().join("busybox");
    std::fs::write(&path, binary).map_err(BuildError::write(&path))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).map_err(BuildError::write(&path))?;
    let text = tool::output(Command::new(&path).arg("--list"))?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}

/// Adds the blobs of one image and returns what the index says of it.
fn add(
    tree: &mut Tree,
    name: &str,
    layer: &Tree,
    config: &Value,
    epoch: u32,
) -> Result<Value, BuildError> {
    let mut layer_bytes = Vec::new();
    layer.write_tar(&mut layer_bytes, epoch).map_err(BuildError::run("tar"))?;
    let layer_entry = FileEntry::of(&layer_bytes);
    let config_bytes = text(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer_entry.sha256)] },
        "history": [{ "created_by": "muster image build" }],
    }));
    let config_entry = FileEntry::of(&config_bytes);
    let manifest_bytes = text(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config_entry),
        "layers": [descriptor(LAYER_TYPE, &layer_entry)],
    }));
    let manifest_entry = FileEntry::of(&manifest_bytes);
    let mut shown = descriptor(MANIFEST_TYPE, &manifest_entry);
    if let Some(fields) = shown.as_object_mut() {
        let tag = name.rsplit(':').next().unwrap_or_default();
        let names = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": tag,
        });
        fields.insert("annotations".to_owned(), names);
    }
    for (entry, bytes) in
        [(layer_entry, layer_bytes), (config_entry, config_bytes), (manifest_entry, manifest_bytes)]
    {
        tree.file(&format!("blobs/sha256/{}", entry.sha256), 0o644, bytes);
    }
    Ok(shown)
}

fn descriptor(media_type: &str, entry: &FileEntry) -> Value {
    let digest = format!("sha256:{}", entry.sha256);
    json!({ "mediaType": media_type, "digest": digest, "size": entry.size_bytes })
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_in_the_index_and_all_its_blobs_are_there() {
        let mut layer = Tree::default();
        layer.file("pause", 0o755, *b"\x7fELF");
        let (mut tree, mut again) = (Tree::default(), Tree::default());
        let shown = add(&mut tree, "muster.dev/pause:1", &layer, &json!({}), 1).unwrap();
        assert_eq!(add(&mut again, "muster.dev/pause:1", &layer, &json!({}), 1).unwrap(), shown);
        assert_eq!(again, tree);
        assert_eq!(shown["annotations"]["io.containerd.image.name"], "muster.dev/pause:1");
        let digest = shown["digest"].as_str().unwrap().replace(':', "/");
        let manifest: Value =
            serde_json::from_slice(tree.bytes(&format!("blobs/{digest}")).unwrap()).unwrap();
        for part in [&manifest["config"], &manifest["layers"][0]] {
            let digest = part["digest"].as_str().unwrap().replace(':', "/");
            let blob = tree.bytes(&format!("blobs/{digest}")).unwrap();
            assert_eq!(part["size"], blob.len());
        }
    }
}
