//! The driver over its socket, with a cluster in memory.

mod cluster;
mod sanity;

use super::*;
use crate::images::Secrets;
use ceph::{CephError, Done, Info, Parent, Place, Row, Snap};
use csi::message::*;
use csi::{Client, Code};
use tokio::task::JoinSet;

/// Images as the `rbd` program keeps them.
#[derive(Default)]
struct Memory {
    all: Mutex<BTreeMap<Place, Info>>,
    notes: Mutex<BTreeMap<(Place, String), String>>,
    /// Who writes to which image.
    clients: Arc<Mutex<BTreeSet<(Place, String)>>>,
    fenced: Arc<Mutex<BTreeSet<String>>>,
    /// What pools may still hold.
    rooms: BTreeMap<String, i64>,
}

impl Memory {
    fn insert(&self, at: &Place, info: Info) -> Done<()> {
        let mut all = self.all.lock().unwrap();
        if all.contains_key(at) {
            return Err(CephError::Exists(at.id()));
        }
        all.insert(at.clone(), info);
        Ok(())
    }

    fn get(&self, at: &Place) -> Done<Info> {
        self.all.lock().unwrap().get(at).cloned().ok_or(CephError::Missing(at.id()))
    }
}

impl Images for Memory {
    async fn create(&self, _: &Secrets, at: &Place, size: i64) -> Done<()> {
        self.insert(at, Info { size, parent: None })
    }
    async fn info(&self, _: &Secrets, at: &Place) -> Done<Info> {
        self.get(at)
    }
    async fn table(&self, _: &Secrets, pool: &str) -> Done<Vec<Row>> {
        let all = self.all.lock().unwrap();
        let rows = all.iter().filter(|(at, _)| at.pool == pool).map(|(at, info)| Row {
            image: at.image.clone(),
            snapshot: at.snap.clone(),
            size: info.size,
            parent: info.parent.clone(),
        });
        Ok(rows.collect())
    }
    async fn room(&self, _: &Secrets, pool: &str) -> Done<Option<i64>> {
        Ok(self.rooms.get(pool).copied())
    }
    async fn remove(&self, _: &Secrets, at: &Place) -> Done<()> {
        let mut all = self.all.lock().unwrap();
        if at.snap.is_none() && all.keys().any(|one| one.snap.is_some() && one.whole() == *at) {
            return Err(CephError::Busy(at.id()));
        }
        self.notes.lock().unwrap().retain(|(one, _), _| one != at);
        all.remove(at).map(drop).ok_or(CephError::Missing(at.id()))
    }
    async fn resize(&self, _: &Secrets, at: &Place, size: i64) -> Done<()> {
        let info = self.get(at)?;
        self.all.lock().unwrap().insert(at.clone(), Info { size, ..info });
        Ok(())
    }
    async fn snaps(&self, _: &Secrets, at: &Place) -> Done<Vec<Snap>> {
        self.get(at)?;
        let all = self.all.lock().unwrap();
        let snaps = all.iter().filter(|(one, _)| one.snap.is_some() && one.whole() == *at);
        let timestamp = "Sat Nov 21 10:00:00 2026".to_owned();
        Ok(snaps
            .map(|(one, info)| Snap {
                name: one.snap.clone().unwrap(),
                size: info.size,
                timestamp: timestamp.clone(),
            })
            .collect())
    }
    async fn snap(&self, _: &Secrets, at: &Place) -> Done<()> {
        let info = self.get(&at.whole())?;
        self.insert(at, info)
    }
    async fn clone_of(&self, _: &Secrets, from: &Place, to: &Place) -> Done<()> {
        let size = self.get(from)?.size;
        let parent =
            Parent { image: from.image.clone(), snapshot: from.snap.clone().unwrap_or_default() };
        self.insert(to, Info { size, parent: Some(parent) })
    }
    async fn note(&self, _: &Secrets, at: &Place, name: &str) -> Done<Option<String>> {
        Ok(self.notes.lock().unwrap().get(&(at.clone(), name.to_owned())).cloned())
    }
    async fn set_note(&self, _: &Secrets, at: &Place, name: &str, text: Option<&str>) -> Done<()> {
        let (mut notes, key) = (self.notes.lock().unwrap(), (at.clone(), name.to_owned()));
        match text {
            Some(text) => _ = notes.insert(key, text.to_owned()),
            None => _ = notes.remove(&key),
        }
        Ok(())
    }
    async fn clients(&self, _: &Secrets, at: &Place) -> Done<BTreeSet<String>> {
        let all = self.clients.lock().unwrap();
        Ok(all.iter().filter(|(one, _)| one == at).map(|(_, client)| client.clone()).collect())
    }
    async fn fence(&self, _: &Secrets, client: &str) -> Done<()> {
        self.fenced.lock().unwrap().insert(client.to_owned());
        Ok(())
    }
}

/// A driver at a socket; ends when dropped.
struct Rig {
    client: Client,
    _dir: tempfile::TempDir,
    _tasks: JoinSet<Result<(), csi::ServeError>>,
}

fn config(socket: &Path) -> Config {
    Config {
        socket: socket.to_owned(),
        node: "w1".into(),
        monitors: vec!["10.38.2.1".into()],
        pool: "rbd".into(),
        user: "admin".into(),
        conf: None,
        registry: None,
        topology: [("rack".to_owned(), "a".to_owned())].into(),
    }
}

fn rig() -> Rig {
    rig_of(Memory::default())
}

fn rig_of(images: Memory) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("csi.sock");
    let driver = Arc::new(Driver::new(config(&socket), images));
    let mut tasks = JoinSet::new();
    let listener = UnixListener::bind(&socket).unwrap();
    tasks.spawn(csi::serve(CancellationToken::new(), listener, driver));
    Rig { client: Client::at(&socket).unwrap(), _dir: dir, _tasks: tasks }
}

fn writer() -> VolumeCapability {
    VolumeCapability {
        mount: Some(MountVolume::default()),
        access_mode: Some(AccessMode { mode: access::SINGLE_NODE_WRITER }),
        block: None,
    }
}

fn volume(name: &str, size: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
        volume_capabilities: vec![writer()],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_volume_is_made_once_grown_and_deleted_once() {
    let rig = rig();
    let client = &rig.client;
    let made = client.create_volume(volume("pvc-1", 1)).await.unwrap().volume.unwrap();
    assert_eq!(made.capacity_bytes, 1 << 20);
    assert_eq!(made.volume_context["monitors"], "10.38.2.1");
    let again = client.create_volume(volume("pvc-1", 1)).await.unwrap().volume.unwrap();
    assert_eq!(again, made);
    let err = client.create_volume(volume("pvc-1", 1 << 30)).await.unwrap_err();
    assert_eq!(err.code, Code::AlreadyExists);

    let range = Some(CapacityRange { required_bytes: 2 << 20, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest {
        volume_id: made.volume_id.clone(),
        capacity_range: range,
        ..Default::default()
    };
    let grown = client.controller_expand_volume(grow.clone()).await.unwrap();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (2 << 20, true));
    let smaller = Some(CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 });
    let kept = ControllerExpandVolumeRequest { capacity_range: smaller, ..grow };
    assert_eq!(client.controller_expand_volume(kept).await.unwrap().capacity_bytes, 2 << 20);

    let delete = DeleteVolumeRequest { volume_id: made.volume_id, ..Default::default() };
    client.delete_volume(delete.clone()).await.unwrap();
    client.delete_volume(delete).await.unwrap();
    let absurd = DeleteVolumeRequest { volume_id: "--x".into(), ..Default::default() };
    client.delete_volume(absurd).await.unwrap();
    let listed = client.list_volumes(ListVolumesRequest::default()).await.unwrap();
    assert!(listed.entries.is_empty());
}

#[tokio::test]
async fn snapshots_and_clones_know_where_they_come_from() {
    let rig = rig();
    let client = &rig.client;
    let source = client.create_volume(volume("a", 1 << 20)).await.unwrap().volume.unwrap();
    let other = client.create_volume(volume("b", 1 << 20)).await.unwrap().volume.unwrap();
    let ask = |source: &Volume, name: &str| CreateSnapshotRequest {
        source_volume_id: source.volume_id.clone(),
        name: name.into(),
        ..Default::default()
    };
    let snap = client.create_snapshot(ask(&source, "s")).await.unwrap().snapshot.unwrap();
    assert!(snap.ready_to_use && snap.creation_time.as_ref().unwrap().seconds > 1_700_000_000);
    let again = client.create_snapshot(ask(&source, "s")).await.unwrap().snapshot.unwrap();
    assert_eq!(again, snap);
    let err = client.create_snapshot(ask(&other, "s")).await.unwrap_err();
    assert_eq!(err.code, Code::AlreadyExists);

    let snapshot = Some(SnapshotSource { snapshot_id: snap.snapshot_id.clone() });
    let from_snap = Some(VolumeContentSource { snapshot, volume: None });
    let clone =
        CreateVolumeRequest { volume_content_source: from_snap.clone(), ..volume("c", 3 << 20) };
    let made = client.create_volume(clone.clone()).await.unwrap().volume.unwrap();
    assert_eq!((made.capacity_bytes, &made.content_source), (3 << 20, &from_snap));
    assert_eq!(client.create_volume(clone).await.unwrap().volume.unwrap(), made);
    let taken = client.create_volume(volume("c", 3 << 20)).await.unwrap_err();
    assert_eq!(taken.code, Code::AlreadyExists);

    let whole = Some(VolumeSource { volume_id: source.volume_id.clone() });
    let from_volume = Some(VolumeContentSource { snapshot: None, volume: whole });
    let copy =
        CreateVolumeRequest { volume_content_source: from_volume.clone(), ..volume("d", 1 << 20) };
    let made = client.create_volume(copy).await.unwrap().volume.unwrap();
    assert_eq!(made.content_source, from_volume);

    let all = client.list_snapshots(ListSnapshotsRequest::default()).await.unwrap();
    assert_eq!(all.entries.len(), 1, "what was made for a copy is no snapshot of anyone");
    let of_other = ListSnapshotsRequest { source_volume_id: other.volume_id, ..Default::default() };
    assert!(client.list_snapshots(of_other).await.unwrap().entries.is_empty());
    let busy = DeleteVolumeRequest { volume_id: source.volume_id, ..Default::default() };
    let err = client.delete_volume(busy.clone()).await.unwrap_err();
    assert_eq!(err.code, Code::FailedPrecondition);
    let gone = DeleteSnapshotRequest { snapshot_id: snap.snapshot_id, ..Default::default() };
    client.delete_snapshot(gone.clone()).await.unwrap();
    client.delete_snapshot(gone).await.unwrap();
    client.delete_volume(busy).await.unwrap();
}

#[tokio::test]
async fn room_is_that_of_the_pool_volumes_would_be_made_in() {
    let rooms = [("rbd", 10 << 30), ("pa", 3 << 30)].map(|(pool, room)| (pool.to_owned(), room));
    let rig = rig_of(Memory { rooms: rooms.into(), ..Memory::default() });
    let client = &rig.client;
    let check = async |request: GetCapacityRequest, expected: i64| {
        let told = client.get_capacity(request).await.unwrap();
        assert_eq!(told.available_capacity, expected);
        assert_eq!(told.minimum_volume_size, Some(Int64Value { value: 1 << 20 }));
    };
    let class = |key: &str, value: &str| GetCapacityRequest {
        parameters: [(key.to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    check(GetCapacityRequest::default(), 10 << 30).await;
    check(class("pool", "pa"), 3 << 30).await;
    check(class("pool", "nobody-counts"), 0).await;

    let pools =
        r#"[{"poolName": "pa", "domainSegments": [{"domainLabel": "rack", "value": "a"}]}]"#;
    let at = |rack: &str| GetCapacityRequest {
        accessible_topology: Some(Topology {
            segments: [(crate::topology::label("rack"), rack.to_owned())].into(),
        }),
        ..class("topologyConstrainedPools", pools)
    };
    check(at("a"), 3 << 30).await;
    check(at("b"), 0).await;
    let bad = client.get_capacity(class("topologyConstrainedPools", "{")).await.unwrap_err();
    assert_eq!(bad.code, Code::InvalidArgument);

    let mode = Some(AccessMode { mode: access::MULTI_NODE_MULTI_WRITER });
    let many = VolumeCapability { access_mode: mode, ..writer() };
    let request = GetCapacityRequest { volume_capabilities: vec![many], ..Default::default() };
    check(request, 0).await;
}

/// A node that is lost does not unmap: its client may write no more before another node begins.
#[tokio::test]
async fn a_volume_is_taken_from_a_lost_node_by_a_fence() {
    let images = Memory::default();
    let (clients, fenced) = (Arc::clone(&images.clients), Arc::clone(&images.fenced));
    let rig = rig_of(images);
    let client = &rig.client;
    let made = client.create_volume(volume("a", 1)).await.unwrap().volume.unwrap();
    let give = |node: &str| ControllerPublishVolumeRequest {
        volume_id: made.volume_id.clone(),
        node_id: node.into(),
        volume_capability: Some(writer()),
        ..Default::default()
    };
    let take = |node: &str| ControllerUnpublishVolumeRequest {
        volume_id: made.volume_id.clone(),
        node_id: node.into(),
        ..Default::default()
    };
    let given = client.controller_publish_volume(give("node/a")).await.unwrap();
    assert_eq!(given.publish_context["readOnly"], "false");
    let at = Place::parse(&made.volume_id).unwrap();
    clients.lock().unwrap().insert((at.clone(), "10.0.0.7:0/77".into()));
    let err = client.controller_publish_volume(give("node/b")).await.unwrap_err();
    assert_eq!(err.code, Code::FailedPrecondition);
    let ask = ControllerGetVolumeRequest { volume_id: made.volume_id.clone() };
    let seen = client.controller_get_volume(ask.clone()).await.unwrap().status.unwrap();
    assert_eq!(seen.published_node_ids, ["node/a"]);
    let busy = DeleteVolumeRequest { volume_id: made.volume_id.clone(), ..Default::default() };
    let err = client.delete_volume(busy).await.unwrap_err();
    assert_eq!(err.code, Code::FailedPrecondition);
    assert!(fenced.lock().unwrap().is_empty());
    client.controller_unpublish_volume(take("node/b")).await.unwrap();
    assert!(fenced.lock().unwrap().is_empty(), "who never had it takes nothing from anyone");
    client.controller_unpublish_volume(take("node/a")).await.unwrap();
    assert_eq!(*fenced.lock().unwrap(), BTreeSet::from(["10.0.0.7:0/77".to_owned()]));
    client.controller_publish_volume(give("node/b")).await.unwrap();
    clients.lock().unwrap().clear();
    client.controller_unpublish_volume(take("")).await.unwrap();
    assert_eq!(fenced.lock().unwrap().len(), 1, "who unmapped before is not fenced");
    let seen = client.controller_get_volume(ask).await.unwrap().status.unwrap();
    assert!(seen.published_node_ids.is_empty());
}

/// A try that ended between the copy and its note is gone on with; one for another source is not.
#[tokio::test]
async fn a_copy_that_was_begun_is_finished() {
    let images = Memory::default();
    let whole = |name: &str| Place::parse(&format!("rbd/{name}")).unwrap();
    let to = whole(&crate::controller::named(IMAGE, "c"));
    let parent = Parent { image: "csi-vol-a".into(), snapshot: format!("for-{}", to.image) };
    for (at, size, parent) in [
        (whole("csi-vol-a"), 1 << 20, None),
        (whole("csi-vol-b"), 1 << 20, None),
        (whole("csi-vol-a").at(parent.snapshot.clone()), 1 << 20, None),
        (to.clone(), 1 << 20, Some(parent)),
    ] {
        images.insert(&at, Info { size, parent }).unwrap();
    }
    let rig = rig_of(images);
    let from = |id: &str| {
        let whole = Some(VolumeSource { volume_id: id.into() });
        let volume_content_source = Some(VolumeContentSource { snapshot: None, volume: whole });
        CreateVolumeRequest { volume_content_source, ..volume("c", 3 << 20) }
    };
    let err = rig.client.create_volume(from("rbd/csi-vol-b")).await.unwrap_err();
    assert_eq!(err.code, Code::AlreadyExists);
    let made = rig.client.create_volume(from("rbd/csi-vol-a")).await.unwrap().volume.unwrap();
    assert_eq!(made.capacity_bytes, 3 << 20);
    let gone = DeleteVolumeRequest { volume_id: "rbd/csi-vol-a".into(), ..Default::default() };
    rig.client.delete_volume(gone).await.unwrap();
}

#[tokio::test]
async fn lists_come_in_pages() {
    let rig = rig();
    for name in ["a", "b", "c"] {
        rig.client.create_volume(volume(name, 1)).await.unwrap();
    }
    let page = |max_entries, token: &str| {
        rig.client.list_volumes(ListVolumesRequest { max_entries, starting_token: token.into() })
    };
    let first = page(2, "").await.unwrap();
    let second = page(2, &first.next_token).await.unwrap();
    assert_eq!((first.entries.len(), second.entries.len()), (2, 1));
    assert_eq!(second.next_token, "");
    assert_eq!(page(0, "").await.unwrap().entries.len(), 3);
    for token in ["x", "-1", "4"] {
        assert_eq!(page(0, token).await.unwrap_err().code, Code::Aborted, "{token}");
    }
}

/// What a caller left out is named; what is not there is not found.
#[tokio::test]
async fn requests_that_cannot_be_meant_are_refused() {
    let rig = rig();
    let client = &rig.client;
    let code = |err: csi::CallError| err.code;
    let invalid = Code::InvalidArgument;
    assert_eq!(code(client.create_volume(volume("", 1)).await.unwrap_err()), invalid);
    let none = CreateVolumeRequest { volume_capabilities: Vec::new(), ..volume("a", 1) };
    assert_eq!(code(client.create_volume(none).await.unwrap_err()), invalid);
    let mut many = volume("a", 1);
    many.volume_capabilities[0].access_mode =
        Some(AccessMode { mode: access::MULTI_NODE_MULTI_WRITER });
    assert_eq!(code(client.create_volume(many).await.unwrap_err()), invalid);
    let mut narrow = volume("a", 1);
    narrow.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: 1000 });
    assert_eq!(code(client.create_volume(narrow).await.unwrap_err()), Code::OutOfRange);
    let absent = "rbd/csi-vol-none".to_owned();
    let ask = ValidateVolumeCapabilitiesRequest {
        volume_id: absent.clone(),
        volume_capabilities: vec![writer()],
        ..Default::default()
    };
    let err = client.validate_volume_capabilities(ask).await.unwrap_err();
    assert_eq!(code(err), Code::NotFound);

    let stage = NodeStageVolumeRequest::default();
    assert_eq!(code(client.node_stage_volume(stage).await.unwrap_err()), invalid);
    let publish = NodePublishVolumeRequest {
        volume_id: absent.clone(),
        target_path: "/none".into(),
        volume_capability: Some(writer()),
        ..Default::default()
    };
    assert_eq!(code(client.node_publish_volume(publish).await.unwrap_err()), invalid);
    let stats = NodeGetVolumeStatsRequest {
        volume_id: absent.clone(),
        volume_path: "/none/here".into(),
        ..Default::default()
    };
    assert_eq!(code(client.node_get_volume_stats(stats).await.unwrap_err()), Code::NotFound);
    // Taking away what was never there is done at once.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x").to_string_lossy().into_owned();
    let unstage =
        NodeUnstageVolumeRequest { volume_id: absent.clone(), staging_target_path: path.clone() };
    client.node_unstage_volume(unstage).await.unwrap();
    let unpublish = NodeUnpublishVolumeRequest { volume_id: absent, target_path: path };
    client.node_unpublish_volume(unpublish).await.unwrap();
}

#[tokio::test]
async fn the_driver_makes_itself_known_to_whoever_looks_into_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, registry) = (dir.path().join("csi.sock"), dir.path().join("registry"));
    fs::create_dir(&registry).unwrap();
    let config = Config { registry: Some(registry.clone()), ..config(&socket) };
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let door = registry.join(format!("{NAME}-reg.sock"));
    // What an earlier run left there is no hindrance.
    fs::write(&door, "").unwrap();
    tasks.spawn(run(stop.clone(), config));
    let client = Client::at(&door).unwrap();
    let info = loop {
        match client.get_info(Empty {}).await {
            Ok(info) => break info,
            Err(err) if err.is_uncertain() => tokio::task::yield_now().await,
            Err(err) => panic!("{err}"),
        }
    };
    assert_eq!((&*info.r#type, &*info.name), ("CSIPlugin", NAME));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let driver = Client::at(std::path::Path::new(&info.endpoint)).unwrap();
    assert_eq!(driver.node_get_info(Empty {}).await.unwrap().node_id, "node/w1");
    let told = RegistrationStatus { plugin_registered: true, error: String::new() };
    client.notify_registration_status(told).await.unwrap();
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert!(!door.exists() && !socket.exists(), "nothing is left that nobody answers");
}
