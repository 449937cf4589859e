//! Container images as `docker save` writes them, for `muster images add`.

use std::fs::File;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Writes an image of one layer; `config` is what a container of it runs.
pub(super) fn write(path: &Path, name: &str, layer: &[u8], config: &Value) -> Result<()> {
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(layer)));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    });
    let list = json!([{"Config": "c.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(File::create(path)?);
    add(&mut archive, "c.json", config.to_string().as_bytes())?;
    add(&mut archive, "layer.tar", layer)?;
    add(&mut archive, "manifest.json", list.to_string().as_bytes())?;
    archive.into_inner()?;
    Ok(())
}

/// Adds a file that can be run.
pub(super) fn add<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    bytes: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(bytes.len())?);
    header.set_mode(0o755);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}
