//! Images that nodes can only have from the master: the racks have no way to a registry.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::scenario::archive;
use crate::scenario::workloads::{LIMIT, Site};

const NAME: &str = "lab.example/carried:1";
/// Debian's busybox-static, which needs no libraries.
const BUSYBOX: &str = "/usr/bin/busybox";

/// An image is added from an archive, listed, and run on nodes of both racks.
pub(super) fn pods_run_what_only_the_master_has(site: &Site) -> Result<()> {
    let archive = site.story.dir().join("carried.tar");
    write_archive(&archive).context("making an image")?;
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path that is no UTF-8");
    let (archive, dir) = (path(&archive)?, path(site.story.dir())?);
    let said = site.story.muster_output(&["images", "add", &archive, "--dir", &dir])?;
    ensure!(said.contains(NAME), "muster images add says {said}");
    let list = site.story.muster_output(&["images", "list", "--output", "json", "--dir", &dir])?;
    let list: Value = serde_json::from_str(&list).context("reading the list of images")?;
    let first = list.pointer("/images/0/name").and_then(Value::as_str);
    ensure!(first == Some("lab.example/carried"), "muster images list says {list}");
    site.apply("carried", include_str!("carried.yaml"))?;
    let pods = site.kubectl.await_pods("app=carried", 2, LIMIT, |_| true)?;
    for pod in &pods {
        let log = site.kubectl.run(&["logs", &pod.name])?;
        ensure!(log.trim() == "carried in by hand", "{} says {log:?}", pod.name);
    }
    let pulled = site.kubectl.run(&["get", "events", "--field-selector", "reason=Pulled"])?;
    ensure!(pulled.contains(NAME), "no event tells of the pull: {pulled}");
    site.story
        .ok("nodes without a way out run an image that `muster images add` put on the master")?;
    site.delete(&["pod/carried-a", "pod/carried-b"])
}

/// Writes an image as `docker save` does: a shell and a word.
fn write_archive(path: &Path) -> Result<()> {
    let busybox = std::fs::read(BUSYBOX)
        .with_context(|| format!("reading {BUSYBOX} (Debian package busybox-static)"))?;
    let mut layer = tar::Builder::new(Vec::new());
    archive::add(&mut layer, "bin/busybox", &busybox)?;
    archive::add(&mut layer, "word", b"carried in by hand\n")?;
    for name in ["sh", "cat", "sleep"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    let config = json!({
        "Cmd": ["sh", "-c", "cat /word; trap exit TERM; while :; do sleep 1; done"],
        "Env": ["PATH=/bin"],
    });
    archive::write(path, NAME, &layer.into_inner()?, &config)
}
