//! What pods share, and raw disks: an NFS export, a Ceph file system and a Ceph image without a
//! file system. Pods of two nodes see each other's records, a node is lost with all three, and
//! the NFS server is lost under a pod that writes.
//!
//! The servers are real: NFS-Ganesha and Ceph of Debian, on the seed. A record counts as kept when
//! `fsync` has come back in the pod.
//!
//! *Limits*: version 4 of NFS; the Ceph file system loses neither monitor nor metadata server.

mod keeper;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::keeper::{Keeper, Kind};
use super::story::{Story, UP_LIMIT_SECONDS};
use super::workloads::{LIMIT, Site};
use crate::ceph::{self, Ceph, Size};
use crate::ganesha::{self, Ganesha};
use crate::host;
use crate::wait::{Seen, await_until};

const SIZE: Size = Size { monitors: 1, stores: 1 };
/// Until a silent node counts as lost.
const MISSED_LIMIT: Duration = Duration::from_secs(240);
/// A key that the cluster never gave to anybody.
const STRANGE_KEY: &str = "AQBJRlVnAAAAABAAmWm4hmTTBN2SMFmVOcg0tA==";
/// The nodes of the first rack, and one of the other.
const NODE: &str = "a-worker";
const NEXT: &str = "a-master";
const OTHER: &str = "b-worker";

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    let resume = story.options().resume;
    if !resume {
        let packages = [&ceph::PACKAGES[..], &ceph::FILES_PACKAGES, &ganesha::PACKAGES].concat();
        let missing = host::missing_packages(&packages);
        if !missing.is_empty() {
            story.say(format_args!("installing {}", missing.join(" ")))?;
            host::install_packages(&packages)?;
        }
        story.build_rig().context("building the racks")?;
    }
    let site = Site::of(story)?;
    let (cluster, export) = (story.dir().join("ceph"), story.dir().join("nfs"));
    let (ceph, nfs) = if resume {
        (Ceph::resume(&site.rig, &cluster, SIZE)?, Ganesha::resume(&site.rig, &export)?)
    } else {
        let ceph = Ceph::start(&site.rig, &cluster, SIZE).context("starting Ceph")?;
        ceph.start_files().context("starting a file system")?;
        let nfs = Ganesha::start(&site.rig, &export).context("starting an NFS server")?;
        story.ok("a Ceph with a file system and an NFS server run on the seed")?;
        story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)?;
        (ceph, nfs)
    };
    site.apply("volumes", &volumes(&ceph, &nfs)?)?;
    let mut raw = Keeper::deploy(&site, Kind::Raw)?;
    raw_disk_moves(&site, &mut raw)?;
    let mut shared = Keeper::deploy(&site, Kind::Nfs)?;
    two_nodes_see_each_other(&site, &mut shared)?;
    founder_is_done(&site)?;
    let mut files = Keeper::deploy(&site, Kind::CephFs)?;
    two_nodes_see_each_other(&site, &mut files)?;
    causes_are_told(&site, &ceph, &nfs)?;
    node_is_lost(&site, &mut [&mut raw, &mut shared, &mut files])?;
    server_is_lost(&site, &nfs, &mut shared)
}

fn volumes(ceph: &Ceph<'_>, nfs: &Ganesha<'_>) -> Result<String> {
    let text = include_str!("shares/volumes.yaml")
        .replace("@NFS@", &nfs.address().to_string())
        .replace("@EXPORT@", ganesha::EXPORT)
        .replace("@TEAM_KEY@", &ceph.files_key("team", "/team")?)
        .replace("@ADMIN_KEY@", &ceph.admin_key()?)
        .replace("@STRANGE_KEY@", STRANGE_KEY)
        .replace("@KEY@", &ceph.key()?)
        .replace("@POOL@", ceph::POOL)
        .replace("@USER@", ceph::USER)
        .replace("@MONITORS@", &monitors(ceph, "\""))
        .replace("@CLASS_MONITORS@", &monitors(ceph, ""));
    Ok(text)
}

fn monitors(ceph: &Ceph<'_>, quote: &str) -> String {
    let all: Vec<String> =
        ceph.monitors().iter().map(|one| format!("{quote}{one}:6789{quote}")).collect();
    all.join(",")
}

/// A disk without a file system goes to another node with what was written on it.
fn raw_disk_moves(site: &Site, raw: &mut Keeper) -> Result<()> {
    raw.keep(site, 5)?;
    let device = site.exec(&raw.pod, &["sh", "-c", "test -b /dev/data && echo a block device"])?;
    ensure!(device.trim() == "a block device", "/dev/data is {device:?}");
    site.kubectl.run(&["cordon", NODE])?;
    site.kubectl.run(&["delete", "pod", &raw.pod, "--wait=false"])?;
    raw.is_on(site, NEXT)?;
    raw.has_all(site)?;
    raw.keep(site, 3)?;
    site.kubectl.run(&["uncordon", NODE])?;
    site.kubectl.run(&["cordon", NEXT])?;
    site.kubectl.run(&["delete", "pod", &raw.pod, "--wait=false"])?;
    raw.is_on(site, NODE)?;
    raw.has_all(site)?;
    site.kubectl.run(&["uncordon", NEXT])?;
    site.story
        .ok("a raw disk is a block device in its pod, and goes to another node and back whole")
}

/// A pod of another rack reads what is kept, and is read.
fn two_nodes_see_each_other(site: &Site, keeper: &mut Keeper) -> Result<()> {
    keeper.keep(site, 5)?;
    let other = other(site, keeper.kind.name(), keeper.kind.source())?;
    let from = keeper.pod.clone();
    keeper.await_all(site, &other)?;
    keeper.keep_by(site, &other, 5)?;
    keeper.await_all(site, &from)?;
    site.story.ok(format_args!(
        "{}: pods of {} and {OTHER} keep records and see each other's",
        keeper.kind.name(),
        keeper.node,
    ))
}

/// The directory of the team is there.
fn founder_is_done(site: &Site) -> Result<()> {
    let done =
        |pod: &Value| pod.pointer("/status/phase").and_then(Value::as_str) == Some("Succeeded");
    site.await_object("the directory of the team", &["get", "pod", "founder"], done).map(drop)
}

/// Makes a pod on the node of the other rack and waits until it is ready; gives its name.
fn other(site: &Site, name: &str, source: &str) -> Result<String> {
    let name = format!("{name}-other");
    make(site, &name, source)?;
    let selector = format!("app={name}");
    site.kubectl.await_pods(&selector, 1, LIMIT, |_| true).with_context(|| {
        let said = site.kubectl.run(&["describe", "pod", &name]);
        said.unwrap_or_else(|err| format!("{err:#}"))
    })?;
    Ok(name)
}

fn make(site: &Site, name: &str, source: &str) -> Result<()> {
    let text = include_str!("shares/other.yaml")
        .replace("@NAME@", name)
        .replace("@NODE@", OTHER)
        .replace("@SOURCE@", source);
    site.apply(name, &text)
}

/// Who asks for what cannot be had reads why in the events of the pod.
fn causes_are_told(site: &Site, ceph: &Ceph<'_>, nfs: &Ganesha<'_>) -> Result<()> {
    let (server, monitors) = (nfs.address(), monitors(ceph, "\""));
    // A machine that is there and serves no files.
    let router = site.rig.plan().racks.first().context("a rack")?.gateway;
    let cases = [
        (
            "no-export",
            format!("nfs: {{ server: \"{server}\", path: /nowhere }}"),
            "the server has no such export",
        ),
        (
            "no-server",
            format!("nfs: {{ server: \"{}\", path: /share }}", router),
            "does not answer: Connection refused",
        ),
        (
            "no-key",
            format!(
                "cephfs: {{ monitors: [{monitors}], path: /team, user: team, \
                 secretRef: {{ name: stranger }} }}"
            ),
            "the cluster does not let this user in: see the user and its key",
        ),
    ];
    for (name, source, cause) in &cases {
        make(site, name, source)?;
        is_told(site, name, cause)?;
        site.delete(&["pod", name])?;
    }
    site.story.ok("a wrong path, a missing server and a wrong key are told by their pods' events")
}

/// An event of the pod says that it has no volume, and why.
fn is_told(site: &Site, name: &str, cause: &str) -> Result<()> {
    let selector = format!("involvedObject.name={name},reason=FailedMount");
    await_until(&format!("{name} to be told {cause:?}"), LIMIT, || {
        let said = site.kubectl.json(&["get", "events", "--field-selector", &selector])?;
        let items = said.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let words = |one: &Value| one.get("message").and_then(Value::as_str).map(str::to_owned);
        let all: Vec<String> = items.iter().filter_map(words).collect();
        let told = all.iter().any(|one| one.contains(cause));
        Ok(if told { Seen::There(()) } else { Seen::NotYet(format!("{all:?}")) })
    })
}

/// The power of the node with all keepers is cut: everything that was acknowledged is there.
fn node_is_lost(site: &Site, keepers: &mut [&mut Keeper]) -> Result<()> {
    for keeper in keepers.iter_mut() {
        keeper.keep(site, 5)?;
        ensure!(keeper.node == NODE, "{} is on {}", keeper.pod, keeper.node);
    }
    site.rig.power_cut(NODE)?;
    site.story.say(format_args!("the power of {NODE} is cut"))?;
    site.kubectl.await_node(NODE, "to be missed", MISSED_LIMIT, |ready| ready != "True")?;
    for keeper in keepers.iter_mut() {
        keeper.is_on(site, NEXT)?;
        keeper.has_all(site)?;
        keeper.keep(site, 3)?;
        let (kind, count) = (keeper.kind.name(), keeper.records.len());
        site.story.ok(format_args!("{kind}: on {NEXT} all {count} records are there"))?;
    }
    Ok(())
}

/// The NFS server dies under a pod that writes: the pod can be deleted, a new one says what it
/// waits for, and those that stay go on when the server is back.
fn server_is_lost(site: &Site, nfs: &Ganesha<'_>, keeper: &mut Keeper) -> Result<()> {
    let busy = format!("{}-other", keeper.kind.name());
    let write =
        "while :; do dd if=/dev/zero of=/data/busy bs=64k count=16 conv=notrunc,fsync; done";
    let begin = format!("({write}) >/dev/null 2>&1 &");
    site.exec(&busy, &["sh", "-c", &begin])?;
    await_until("the busy pod to write", LIMIT, || {
        let size = site.exec(&busy, &["sh", "-c", "wc -c </data/busy"])?;
        Ok(if size.trim() == "1048576" { Seen::There(()) } else { Seen::NotYet(size) })
    })?;
    nfs.kill();
    site.story.say("the NFS server is killed")?;
    site.delete(&["pod", &busy])?;
    site.story.ok("a pod that writes to a dead server can be deleted")?;
    make(site, "late", keeper.kind.source())?;
    is_told(site, "late", "does not answer: Connection refused")?;
    nfs.restart()?;
    site.kubectl.await_pods("app=late", 1, LIMIT, |_| true)?;
    keeper.await_all(site, "late")?;
    let before = keeper.pod.clone();
    keeper.keep(site, 3)?;
    keeper.await_all(site, "late")?;
    ensure!(keeper.pod == before, "{before} became {}", keeper.pod);
    site.story.ok("the server is back: who waited has the volume, who stayed goes on writing")
}
