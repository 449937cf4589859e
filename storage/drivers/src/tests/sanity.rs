//! What csi-sanity expects of a driver, step by step, told to ours over its socket: with images in
//! memory, and with a real Ceph, where volumes become disks, too.
//!
//! Spec: CSI 1.12; the expectations of kubernetes-csi/csi-test 5 (identity, controller, node).

use std::future::Future;
use std::path::{Path, PathBuf};

use csi::message::*;
use csi::{CallError, Client, Code};

use super::cluster::{Ceph, is_installed};
use super::{Rig, config, rig, volume, writer};
use crate::images::Real;
use crate::{Driver, NAME};

const SIZE: i64 = 64 << 20;
const GROWN: i64 = 96 << 20;
/// What no volume, no snapshot and no node is called.
const FAKE: &str = "fake-vol-id-0123456789";
/// The longest name there is.
const LONGEST: usize = 128;
/// How often what may be repeated is.
const TIMES: usize = 2;

type Said<T> = Result<T, CallError>;

/// A driver, and all that did not go as expected.
struct Sanity {
    client: Client,
    /// Where targets and staging paths are; `None`: there are no disks here.
    paths: Option<PathBuf>,
    wrong: Vec<String>,
}

impl Sanity {
    async fn refuses<T>(&mut self, what: &str, code: Code, call: impl Future<Output = Said<T>>) {
        match call.await {
            Err(err) if err.code == code => {}
            Err(err) => self.wrong.push(format!("{what}: {:?}, not {code:?}: {err}", err.code)),
            Ok(_) => self.wrong.push(format!("{what}: done, not {code:?}")),
        }
    }

    async fn volume(&self, name: &str) -> Volume {
        let made = self.client.create_volume(volume(name, SIZE)).await;
        made.unwrap_or_else(|err| panic!("{name}: {err}")).volume.unwrap()
    }

    async fn snapshot(&self, name: &str, source: &Volume) -> Snapshot {
        let made = self.client.create_snapshot(snapshot_of(name, &source.volume_id)).await;
        made.unwrap_or_else(|err| panic!("{name}: {err}")).snapshot.unwrap()
    }

    async fn delete(&self, id: &str) {
        let request = DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
        self.client.delete_volume(request).await.unwrap_or_else(|err| panic!("{id}: {err}"));
    }

    async fn delete_snapshot(&self, id: &str) {
        let request = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.client.delete_snapshot(request).await.unwrap_or_else(|err| panic!("{id}: {err}"));
    }

    async fn volumes(&self) -> usize {
        self.client.list_volumes(ListVolumesRequest::default()).await.unwrap().entries.len()
    }

    async fn snapshots(&self, request: ListSnapshotsRequest) -> Vec<String> {
        let found = self.client.list_snapshots(request).await.unwrap().entries;
        found.into_iter().map(|one| one.snapshot.unwrap().snapshot_id).collect()
    }
}

fn long(prefix: &str) -> String {
    format!("{prefix}{}", "a".repeat(LONGEST - prefix.len()))
}

fn snapshot_of(name: &str, source: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        name: name.into(),
        source_volume_id: source.into(),
        ..Default::default()
    }
}

fn from_snapshot(id: &str) -> Option<VolumeContentSource> {
    let snapshot = Some(SnapshotSource { snapshot_id: id.into() });
    Some(VolumeContentSource { snapshot, volume: None })
}

fn from_volume(id: &str) -> Option<VolumeContentSource> {
    let volume = Some(VolumeSource { volume_id: id.into() });
    Some(VolumeContentSource { snapshot: None, volume })
}

fn give(volume: &str, node: &str) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        volume_capability: Some(writer()),
        ..Default::default()
    }
}

fn grow(volume: &str, bytes: i64) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: volume.into(),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capability: Some(writer()),
        ..Default::default()
    }
}

async fn identity(it: &mut Sanity) {
    let client = it.client.clone();
    let info = client.get_plugin_info(Empty {}).await.unwrap();
    assert_eq!(info.name, NAME);
    let last = |c: char| c.is_ascii_alphabetic();
    assert!(info.name.len() <= 63 && info.name.starts_with(last) && info.name.ends_with(last));
    assert!(client.probe(Empty {}).await.unwrap().ready.unwrap().value);
    let can = client.get_plugin_capabilities(Empty {}).await.unwrap().capabilities;
    let known = |one: &PluginCapability| match (&one.service, &one.volume_expansion) {
        (Some(kind), None) => (1..=4).contains(&kind.r#type),
        (None, Some(kind)) => (1..=2).contains(&kind.r#type),
        _ => false,
    };
    assert!(can.iter().all(known), "{can:?}");
    let can = client.controller_get_capabilities(Empty {}).await.unwrap().capabilities;
    assert!(can.iter().all(|one| (1..=15).contains(&one.rpc.as_ref().unwrap().r#type)));
    let can = client.node_get_capabilities(Empty {}).await.unwrap().capabilities;
    assert!(can.iter().all(|one| (1..=6).contains(&one.rpc.as_ref().unwrap().r#type)));
    let room = client.get_capacity(GetCapacityRequest::default()).await.unwrap();
    assert!(room.available_capacity >= 0, "nothing where nobody counts");
    let node = client.node_get_info(Empty {}).await.unwrap();
    assert!(!node.node_id.is_empty() && node.max_volumes_per_node >= 0);
    assert!(node.accessible_topology.is_some(), "it says that places matter");
}

async fn volumes_are_refused(it: &mut Sanity) {
    let client = it.client.clone();
    let invalid = Code::InvalidArgument;
    it.refuses("create without a name", invalid, client.create_volume(volume("", SIZE))).await;
    let none = CreateVolumeRequest { volume_capabilities: Vec::new(), ..volume("none", SIZE) };
    it.refuses("create without capabilities", invalid, client.create_volume(none)).await;
    for (what, source) in [("snapshot", from_snapshot(FAKE)), ("volume", from_volume(FAKE))] {
        let copy = CreateVolumeRequest { volume_content_source: source, ..volume("copy", SIZE) };
        it.refuses(what, Code::NotFound, client.create_volume(copy)).await;
    }
    let ids = [("", invalid), (FAKE, Code::NotFound)];
    for (id, code) in ids {
        let ask = ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: vec![writer()],
            ..Default::default()
        };
        it.refuses("validate", code, client.validate_volume_capabilities(ask)).await;
        let ask = ControllerGetVolumeRequest { volume_id: id.into() };
        it.refuses("get a volume", code, client.controller_get_volume(ask)).await;
        let ask = GetSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        it.refuses("get a snapshot", code, client.get_snapshot(ask)).await;
        it.refuses("publish", code, client.controller_publish_volume(give(id, "node/w1"))).await;
        it.refuses("grow", code, client.controller_expand_volume(grow(id, GROWN))).await;
        it.refuses("snapshot", code, client.create_snapshot(snapshot_of("s", id))).await;
    }
    let without = ControllerExpandVolumeRequest::default();
    it.refuses("grow by nothing", invalid, client.controller_expand_volume(without)).await;
    let unnamed = snapshot_of("", "testId");
    it.refuses("snapshot without a name", invalid, client.create_snapshot(unnamed)).await;
    let nobody = give(FAKE, "");
    it.refuses("publish to nobody", invalid, client.controller_publish_volume(nobody)).await;
    let how = ControllerPublishVolumeRequest { volume_capability: None, ..give(FAKE, "node/w1") };
    it.refuses("publish anyhow", invalid, client.controller_publish_volume(how)).await;
    let nothing = ControllerUnpublishVolumeRequest::default();
    it.refuses("unpublish nothing", invalid, client.controller_unpublish_volume(nothing)).await;
    let nothing = DeleteVolumeRequest::default();
    it.refuses("delete nothing", invalid, client.delete_volume(nothing)).await;
    let nothing = DeleteSnapshotRequest::default();
    it.refuses("delete no snapshot", invalid, client.delete_snapshot(nothing)).await;
    for token in ["invalid-token", "-1", "1000"] {
        let list = ListVolumesRequest { starting_token: token.into(), ..Default::default() };
        it.refuses("volumes from nowhere", Code::Aborted, client.list_volumes(list)).await;
        let list = ListSnapshotsRequest { starting_token: token.into(), ..Default::default() };
        it.refuses("snapshots from nowhere", Code::Aborted, client.list_snapshots(list)).await;
    }
    it.delete("fake-vol-id").await;
    it.delete_snapshot("reallyfakesnapshotid").await;
}

async fn volumes_are_made(it: &mut Sanity) {
    let client = it.client.clone();
    let before = it.volumes().await;
    let made = it.volume("sanity").await;
    assert!(made.capacity_bytes >= SIZE);
    assert_eq!(it.volumes().await, before + 1);
    assert_eq!(it.volume("sanity").await, made, "asked twice, made once");
    it.delete(&made.volume_id).await;
    it.delete(&made.volume_id).await;
    assert_eq!(it.volumes().await, before);

    let exactly = |bytes| {
        let range = CapacityRange { required_bytes: bytes, limit_bytes: bytes };
        CreateVolumeRequest { capacity_range: Some(range), ..volume("exact", 0) }
    };
    let made = client.create_volume(exactly(SIZE)).await.unwrap().volume.unwrap();
    assert_eq!(made.capacity_bytes, SIZE);
    let other = client.create_volume(exactly(2 * SIZE));
    it.refuses("the same with another size", Code::AlreadyExists, other).await;
    let ask = |volume_capabilities| ValidateVolumeCapabilitiesRequest {
        volume_id: made.volume_id.clone(),
        volume_capabilities,
        ..Default::default()
    };
    let call = client.validate_volume_capabilities(ask(Vec::new()));
    it.refuses("validate nothing", Code::InvalidArgument, call).await;
    let said = client.validate_volume_capabilities(ask(vec![writer()])).await.unwrap();
    assert_eq!(said.confirmed.unwrap().volume_capabilities, [writer()]);
    let grown = client.controller_expand_volume(grow(&made.volume_id, GROWN)).await.unwrap();
    assert_eq!(grown.capacity_bytes, GROWN);
    it.delete(&made.volume_id).await;

    let made = it.volume(&long("sanity-longest-")).await;
    assert_eq!(it.volume(&long("sanity-longest-")).await.volume_id, made.volume_id);
    it.delete(&made.volume_id).await;
}

async fn volumes_are_published(it: &mut Sanity) {
    let client = it.client.clone();
    let made = it.volume("published").await;
    let node = client.node_get_info(Empty {}).await.unwrap().node_id;
    let stranger = client.controller_publish_volume(give(&made.volume_id, FAKE));
    it.refuses("publish to a stranger", Code::NotFound, stranger).await;
    for _ in 0..TIMES {
        client.controller_publish_volume(give(&made.volume_id, &node)).await.unwrap();
    }
    let otherwise =
        ControllerPublishVolumeRequest { readonly: true, ..give(&made.volume_id, &node) };
    let call = client.controller_publish_volume(otherwise);
    it.refuses("publish otherwise", Code::AlreadyExists, call).await;
    let ask = ControllerGetVolumeRequest { volume_id: made.volume_id.clone() };
    let seen = client.controller_get_volume(ask).await.unwrap().status.unwrap();
    assert_eq!(seen.published_node_ids, [&*node]);
    assert!(!seen.volume_condition.unwrap().abnormal);
    for _ in 0..TIMES {
        let back = ControllerUnpublishVolumeRequest {
            volume_id: made.volume_id.clone(),
            node_id: node.clone(),
            ..Default::default()
        };
        client.controller_unpublish_volume(back).await.unwrap();
    }
    it.delete(&made.volume_id).await;
}

async fn snapshots_are_made(it: &mut Sanity) {
    let client = it.client.clone();
    let all = ListSnapshotsRequest::default;
    assert!(it.snapshots(all()).await.is_empty());
    let a = it.volume("source-a").await;
    let b = it.volume("source-b").await;
    let first = it.snapshot("first", &a).await;
    assert!(first.ready_to_use && first.creation_time.as_ref().unwrap().seconds > 1_700_000_000);
    assert_eq!((&first.source_volume_id, first.size_bytes), (&a.volume_id, SIZE));
    assert_eq!(it.snapshot("first", &a).await, first, "asked twice, made once");
    let other = client.create_snapshot(snapshot_of("first", &b.volume_id));
    it.refuses("the same of another volume", Code::AlreadyExists, other).await;
    let longest = it.snapshot(&long("snapshot-longest-"), &b).await;
    assert_eq!(it.snapshot(&long("snapshot-longest-"), &b).await, longest);
    let ask = GetSnapshotRequest { snapshot_id: first.snapshot_id.clone(), ..Default::default() };
    assert_eq!(client.get_snapshot(ask).await.unwrap().snapshot.unwrap(), first);

    let by_id = |id: &str| ListSnapshotsRequest { snapshot_id: id.into(), ..all() };
    let by_source = |id: &str| ListSnapshotsRequest { source_volume_id: id.into(), ..all() };
    assert_eq!(it.snapshots(by_id(&first.snapshot_id)).await, [&*first.snapshot_id]);
    assert_eq!(it.snapshots(by_source(&b.volume_id)).await, [&*longest.snapshot_id]);
    for nothing in [by_id("none-exist-id"), by_source(FAKE), by_id("nopool/i@s")] {
        assert!(it.snapshots(nothing).await.is_empty());
    }
    let more = [it.snapshot("s3", &a).await, it.snapshot("s4", &b).await];
    let page = |max_entries, token: &str| ListSnapshotsRequest {
        max_entries,
        starting_token: token.into(),
        ..all()
    };
    let found = client.list_snapshots(page(3, "")).await.unwrap();
    assert_eq!(found.entries.len(), 3);
    assert_eq!(it.snapshots(page(0, &found.next_token)).await.len(), 1);
    for one in [&first, &longest].into_iter().chain(&more) {
        it.delete_snapshot(&one.snapshot_id).await;
        it.delete_snapshot(&one.snapshot_id).await;
    }
    assert!(it.snapshots(all()).await.is_empty());
    it.delete(&a.volume_id).await;
    it.delete(&b.volume_id).await;
}

/// Copies outlive what they were made of, in whatever order things go.
async fn volumes_are_copied(it: &mut Sanity) {
    let client = it.client.clone();
    let source = it.volume("original").await;
    let snap = it.snapshot("moment", &source).await;
    let ask = |name: &str, from| CreateVolumeRequest {
        volume_content_source: from,
        ..volume(name, SIZE)
    };
    let smaller = CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: SIZE / 2, limit_bytes: SIZE / 2 }),
        ..ask("smaller", from_snapshot(&snap.snapshot_id))
    };
    it.refuses("a smaller copy", Code::OutOfRange, client.create_volume(smaller)).await;
    let restore = ask("restored", from_snapshot(&snap.snapshot_id));
    let restored = client.create_volume(restore.clone()).await.unwrap().volume.unwrap();
    assert_eq!(restored.content_source, from_snapshot(&snap.snapshot_id));
    let copy = ask("copied", from_volume(&source.volume_id));
    let copied = client.create_volume(copy.clone()).await.unwrap().volume.unwrap();
    assert_eq!(copied.content_source, from_volume(&source.volume_id));
    let whole = DeleteVolumeRequest { volume_id: source.volume_id.clone(), ..Default::default() };
    let kept = client.delete_volume(whole);
    it.refuses("delete what has a snapshot", Code::FailedPrecondition, kept).await;
    it.delete_snapshot(&snap.snapshot_id).await;
    let again = client.create_volume(restore).await.unwrap().volume.unwrap();
    assert_eq!(again, restored, "where it came from is not forgotten with the snapshot");
    it.delete(&source.volume_id).await;
    let again = client.create_volume(copy).await.unwrap().volume.unwrap();
    assert_eq!(again, copied);
    it.delete(&copied.volume_id).await;
    it.delete(&restored.volume_id).await;
    assert_eq!(it.volumes().await, 0);
}

async fn nodes_refuse(it: &mut Sanity) {
    let client = it.client.clone();
    let (invalid, path) = (Code::InvalidArgument, "/none/target".to_owned());
    let stage = |volume_id: &str, at: &str, volume_capability| NodeStageVolumeRequest {
        volume_id: volume_id.into(),
        staging_target_path: at.into(),
        volume_capability,
        ..Default::default()
    };
    let cases = [
        ("stage nothing", stage("", "/none", Some(writer()))),
        ("stage nowhere", stage(FAKE, "", Some(writer()))),
        ("stage anyhow", stage(FAKE, "/none", None)),
    ];
    for (what, request) in cases {
        it.refuses(what, invalid, client.node_stage_volume(request)).await;
    }
    for (volume_id, at) in [("", "/none"), (FAKE, "")] {
        let (volume_id, at) = (volume_id.to_owned(), at.to_owned());
        let request = NodeUnstageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: at.clone(),
        };
        it.refuses("unstage", invalid, client.node_unstage_volume(request)).await;
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: at.clone() };
        it.refuses("unpublish", invalid, client.node_unpublish_volume(request)).await;
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id.clone(),
            volume_path: at.clone(),
            ..Default::default()
        };
        it.refuses("stats", invalid, client.node_get_volume_stats(request)).await;
        let request = NodeExpandVolumeRequest { volume_id, volume_path: at, ..Default::default() };
        it.refuses("grow", invalid, client.node_expand_volume(request)).await;
    }
    let publish = |volume_id: &str, target: &str| NodePublishVolumeRequest {
        volume_id: volume_id.into(),
        target_path: target.into(),
        ..Default::default()
    };
    for request in [publish("", ""), publish(FAKE, ""), publish(FAKE, &path)] {
        it.refuses("publish", invalid, client.node_publish_volume(request)).await;
    }
    let request = NodeGetVolumeStatsRequest {
        volume_id: FAKE.into(),
        volume_path: "some/path".into(),
        ..Default::default()
    };
    it.refuses("stats of nothing", Code::NotFound, client.node_get_volume_stats(request)).await;
    let request = NodeExpandVolumeRequest {
        volume_id: FAKE.into(),
        volume_path: "some/path".into(),
        ..Default::default()
    };
    it.refuses("grow nothing", Code::NotFound, client.node_expand_volume(request)).await;
}

/// A volume of one node, with the paths it is used at.
struct Used {
    volume: Volume,
    node: String,
    staging: String,
    target: String,
    capability: VolumeCapability,
}

impl Used {
    fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            staging_target_path: self.staging.clone(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume.volume_context.clone(),
            ..Default::default()
        }
    }

    fn publish(&self, target: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            staging_target_path: self.staging.clone(),
            target_path: target.into(),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        }
    }

    fn hide(&self) -> NodeUnpublishVolumeRequest {
        let (volume_id, target_path) = (self.volume.volume_id.clone(), self.target.clone());
        NodeUnpublishVolumeRequest { volume_id, target_path }
    }

    fn stats(&self, path: &str) -> NodeGetVolumeStatsRequest {
        let (volume_id, volume_path) = (self.volume.volume_id.clone(), path.into());
        NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() }
    }

    async fn go(self, it: &Sanity) {
        for _ in 0..TIMES {
            it.client.node_unpublish_volume(self.hide()).await.unwrap();
        }
        assert!(!Path::new(&self.target).exists(), "what was made is taken away");
        for _ in 0..TIMES {
            let unstage = NodeUnstageVolumeRequest {
                volume_id: self.volume.volume_id.clone(),
                staging_target_path: self.staging.clone(),
            };
            it.client.node_unstage_volume(unstage).await.unwrap();
        }
        let back = ControllerUnpublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            node_id: self.node.clone(),
            ..Default::default()
        };
        it.client.controller_unpublish_volume(back).await.unwrap();
        it.delete(&self.volume.volume_id).await;
        // It is empty, or this fails.
        std::fs::remove_dir(&self.staging).unwrap();
    }
}

/// Brings a volume to this node, each step several times.
async fn uses(it: &Sanity, paths: &Path, name: &str, capability: VolumeCapability) -> Used {
    let request =
        CreateVolumeRequest { volume_capabilities: vec![capability.clone()], ..volume(name, SIZE) };
    let volume = it.client.create_volume(request).await.unwrap().volume.unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let used = Used {
        volume,
        node: it.client.node_get_info(Empty {}).await.unwrap().node_id,
        staging: text(paths.join(format!("{name}-staging"))),
        target: text(paths.join("pods").join(name)),
        capability,
    };
    std::fs::create_dir(&used.staging).unwrap();
    let asked = ControllerPublishVolumeRequest {
        volume_capability: Some(used.capability.clone()),
        ..give(&used.volume.volume_id, &used.node)
    };
    it.client.controller_publish_volume(asked).await.unwrap();
    for _ in 0..TIMES {
        it.client.node_stage_volume(used.stage()).await.unwrap();
    }
    for _ in 0..TIMES {
        it.client.node_publish_volume(used.publish(&used.target)).await.unwrap();
    }
    used
}

async fn volumes_are_used(it: &mut Sanity) {
    let Some(paths) = it.paths.clone() else { return };
    let client = it.client.clone();
    let used = uses(it, &paths, "mounted", writer()).await;
    std::fs::write(Path::new(&used.target).join("word"), "written").unwrap();
    let stats = client.node_get_volume_stats(used.stats(&used.target)).await.unwrap();
    assert!(!stats.volume_condition.unwrap().abnormal);
    let total = stats.usage[0].total;
    assert!(total > SIZE / 2 && total <= SIZE && stats.usage.len() == 2, "{:?}", stats.usage);
    let elsewhere = client.node_get_volume_stats(used.stats("some/path"));
    it.refuses("stats of another path", Code::NotFound, elsewhere).await;
    let careful = NodePublishVolumeRequest { readonly: true, ..used.publish(&used.target) };
    let call = client.node_publish_volume(careful);
    it.refuses("publish otherwise", Code::AlreadyExists, call).await;
    used.go(it).await;

    let made = it.volume("grown").await;
    client.controller_expand_volume(grow(&made.volume_id, GROWN)).await.unwrap();
    let used = uses(it, &paths, "grown", writer()).await;
    let request = |path: &str| NodeExpandVolumeRequest {
        volume_id: made.volume_id.clone(),
        volume_path: path.into(),
        capacity_range: Some(CapacityRange { required_bytes: GROWN, limit_bytes: 0 }),
        ..Default::default()
    };
    client.node_expand_volume(request(&used.target)).await.unwrap();
    let elsewhere = client.node_expand_volume(request("some/path"));
    it.refuses("grow at another path", Code::NotFound, elsewhere).await;
    let stats = client.node_get_volume_stats(used.stats(&used.target)).await.unwrap();
    assert!(stats.usage[0].total > SIZE, "{:?}", stats.usage);
    used.go(it).await;

    let alone = VolumeCapability {
        access_mode: Some(AccessMode { mode: access::SINGLE_NODE_SINGLE_WRITER }),
        ..writer()
    };
    let used = uses(it, &paths, "alone", alone).await;
    let other = client.node_publish_volume(used.publish(&format!("{}-other", used.target)));
    it.refuses("a second writer", Code::FailedPrecondition, other).await;
    used.go(it).await;

    let block = VolumeCapability { block: Some(Empty {}), mount: None, ..writer() };
    let used = uses(it, &paths, "raw", block).await;
    std::fs::write(&used.target, [7; 4096]).unwrap();
    assert_eq!(i64::try_from(std::fs::read(&used.target).unwrap().len()).unwrap(), SIZE);
    let stats = client.node_get_volume_stats(used.stats(&used.target)).await.unwrap();
    assert_eq!((stats.usage[0].total, stats.usage.len()), (SIZE, 1));
    used.go(it).await;
}

/// Takes away what a failed test leaves in the kernel.
struct Undo(PathBuf);

impl Drop for Undo {
    fn drop(&mut self) {
        for mount in kernel::disk::mounts().iter().rev() {
            if mount.target.starts_with(&self.0) {
                drop(kernel::mount::unmount(&mount.target));
            }
        }
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let file = entry.path().join("loop/backing_file");
            if std::fs::read_to_string(file).is_ok_and(|text| Path::new(&text).starts_with(&self.0))
            {
                drop(kernel::loopback::detach(&Path::new("/dev").join(entry.file_name())));
            }
        }
    }
}

async fn all(client: Client, paths: Option<PathBuf>) {
    let it = &mut Sanity { client, paths, wrong: Vec::new() };
    identity(it).await;
    volumes_are_refused(it).await;
    volumes_are_made(it).await;
    volumes_are_published(it).await;
    snapshots_are_made(it).await;
    volumes_are_copied(it).await;
    nodes_refuse(it).await;
    volumes_are_used(it).await;
    assert!(it.wrong.is_empty(), "{:#?}", it.wrong);
}

#[tokio::test]
async fn images_in_memory_are_served_as_csi_sanity_expects() {
    let Rig { client, _dir, _tasks } = rig();
    all(client, None).await;
}

/// Where the kernel has no `rbd` and there is no `rbd-fuse`, the controller alone is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_a_real_ceph_are_served_as_csi_sanity_expects() {
    let Some(ceph) = Ceph::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let _undo = Undo(dir.path().to_owned());
    let socket = dir.path().join("csi.sock");
    let conf = Some(ceph.conf());
    let config = crate::Config { monitors: Vec::new(), conf: conf.clone(), ..config(&socket) };
    let user = Some(config.user.clone());
    let images = Real(ceph::Cluster { conf, user, ..Default::default() });
    let driver = std::sync::Arc::new(Driver::new(config, images));
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (stop, mut tasks) = (super::CancellationToken::new(), super::JoinSet::new());
    tasks.spawn(csi::serve(stop.clone(), listener, driver));
    let disks = nix::unistd::geteuid().is_root()
        && is_installed("rbd-fuse")
        && Path::new("/dev/loop-control").exists()
        && Path::new("/dev/fuse").exists();
    let paths = disks.then(|| dir.path().to_owned());
    all(Client::at(&socket).unwrap(), paths).await;
    assert_eq!(ceph.ask("rbd", &["trash", "ls", "rbd"]).unwrap(), "", "nothing is left over");
    assert_eq!(ceph.ask("rbd", &["ls", "rbd"]).unwrap().trim(), "first");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}
