//! A storage driver that is not ours: directories of this host, as the interface's own example
//! has them. It notes every call, and refuses what comes in a wrong order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use csi::message::*;
use csi::{Service, Status, serve};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

const NAME: &str = "hostpath.example";

/// The driver's own directory and what it was asked.
struct Hostpath {
    dir: PathBuf,
    endpoint: PathBuf,
    /// It mounts for a pod's group by itself.
    groups: bool,
    calls: Mutex<Vec<String>>,
    staged: Mutex<BTreeMap<String, String>>,
}

impl Hostpath {
    fn new(dir: &Path, groups: bool) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            endpoint: dir.join("csi.sock"),
            groups,
            calls: Mutex::default(),
            staged: Mutex::default(),
        })
    }

    /// Begins to answer, and to be found by the node's agent.
    fn serve(self: &Arc<Self>, node: &Node, stop: &CancellationToken) -> JoinSet<()> {
        let registry = node.containerd.dir().join("data/plugins_registry");
        std::fs::create_dir_all(&registry).unwrap();
        let mut tasks = JoinSet::new();
        for socket in [&self.endpoint, &registry.join("hostpath.sock")] {
            let listener = UnixListener::bind(socket).unwrap();
            let serving = serve(stop.clone(), listener, Arc::clone(self));
            tasks.spawn(async move { serving.await.unwrap() });
        }
        tasks
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn volume(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), Status> {
    let done = Command::new(program).args(arguments).output();
    let done = done.map_err(|err| Status::internal(err.to_string()))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() { Ok(()) } else { Err(Status::internal(said)) }
}

impl Service for Hostpath {
    async fn get_info(&self, _: Empty) -> Result<PluginInfo, Status> {
        Ok(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        })
    }

    async fn notify_registration_status(&self, told: RegistrationStatus) -> Result<Empty, Status> {
        self.note(format!("registered {} {}", told.plugin_registered, told.error));
        Ok(Empty {})
    }

    async fn node_get_info(&self, _: Empty) -> Result<NodeGetInfoResponse, Status> {
        let segments = [("topology.hostpath.example/node".to_owned(), "w1".to_owned())].into();
        Ok(NodeGetInfoResponse {
            node_id: "host-w1".into(),
            max_volumes_per_node: 5,
            accessible_topology: Some(Topology { segments }),
        })
    }

    async fn node_get_capabilities(&self, _: Empty) -> Result<GetCapabilitiesResponse, Status> {
        let mut kinds = vec![capability::NODE_STAGE_UNSTAGE_VOLUME];
        kinds.extend(self.groups.then_some(capability::NODE_VOLUME_MOUNT_GROUP));
        let one = |kind| RpcCapability { rpc: Some(Kind { r#type: kind }) };
        Ok(GetCapabilitiesResponse { capabilities: kinds.into_iter().map(one).collect() })
    }

    async fn node_stage_volume(&self, asked: NodeStageVolumeRequest) -> Result<Empty, Status> {
        let slot = asked.publish_context.get("slot").cloned().unwrap_or_default();
        let secret = asked.secrets.get("word").cloned().unwrap_or_default();
        let kind = asked.volume_context.get("kind").cloned().unwrap_or_default();
        self.note(format!("stage {} slot={slot} word={secret} kind={kind}", asked.volume_id));
        if !Path::new(&asked.staging_target_path).is_dir() {
            return Err(Status::failed_precondition("no staging directory"));
        }
        let mut staged = self.staged.lock().unwrap();
        staged.insert(asked.volume_id, asked.staging_target_path);
        Ok(Empty {})
    }

    async fn node_publish_volume(&self, asked: NodePublishVolumeRequest) -> Result<Empty, Status> {
        let id = &asked.volume_id;
        let told = |key: &str| {
            let found = asked.volume_context.get(&format!("csi.storage.k8s.io/{key}"));
            found.cloned().unwrap_or_default()
        };
        let pod = told("pod.name");
        if told("ephemeral") == "true" {
            let capability = asked.volume_capability.and_then(|one| one.mount);
            let group = capability.map(|mount| mount.volume_mount_group).unwrap_or_default();
            let (account, tokens) = (told("serviceAccount.name"), told("serviceAccount.tokens"));
            self.note(format!("inline for {pod} of {account} group={group} tokens={tokens}"));
            let target = Path::new(&asked.target_path);
            if target.exists() {
                return Ok(Empty {});
            }
            for dir in [&*self.volume(id), target] {
                std::fs::create_dir_all(dir).map_err(|err| Status::internal(err.to_string()))?;
            }
            return run("mount", &[Path::new("--bind"), &self.volume(id), target])
                .map(|()| Empty {});
        }
        self.note(format!("publish {id} for {pod} ro={}", asked.readonly));
        if self.staged.lock().unwrap().get(id) != Some(&asked.staging_target_path) {
            return Err(Status::failed_precondition("it is not staged"));
        }
        let target = Path::new(&asked.target_path);
        std::fs::create_dir_all(target).map_err(|err| Status::internal(err.to_string()))?;
        run("mount", &[Path::new("--bind"), &self.volume(id), target]).map(|()| Empty {})
    }

    async fn node_unpublish_volume(
        &self,
        asked: NodeUnpublishVolumeRequest,
    ) -> Result<Empty, Status> {
        self.note(format!("unpublish {}", asked.volume_id));
        let target = Path::new(&asked.target_path);
        if target.exists() {
            run("umount", &[target])?;
            std::fs::remove_dir(target).map_err(|err| Status::internal(err.to_string()))?;
        }
        Ok(Empty {})
    }

    async fn node_unstage_volume(&self, asked: NodeUnstageVolumeRequest) -> Result<Empty, Status> {
        self.note(format!("unstage {}", asked.volume_id));
        self.staged.lock().unwrap().remove(&asked.volume_id);
        Ok(Empty {})
    }
}

const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/w1";

/// Waits until the API has an object that looks as wanted.
async fn await_object(node: &Node, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let limit = Instant::now() + LIMIT;
    loop {
        let found = node.api.get(path);
        if let Some(found) = found.as_ref().filter(|found| wanted(found)) {
            return found.clone();
        }
        assert!(Instant::now() < limit, "{path} never came there; last seen: {found:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn put_volume(node: &Node) {
    let claim = json!({"metadata": {"name": "data", "namespace": "default", "uid": "claim-1"},
        "spec": {"volumeName": "pv-1"}, "status": {"phase": "Bound"}});
    node.api.put("/api/v1/namespaces/default/persistentvolumeclaims/data", claim);
    let source = json!({"driver": NAME, "volumeHandle": "vol-7", "fsType": "ext4",
        "volumeAttributes": {"kind": "fast"},
        "nodeStageSecretRef": {"name": "word", "namespace": "default"}});
    let spec =
        json!({"accessModes": ["ReadWriteOnce"], "claimRef": {"uid": "claim-1"}, "csi": source});
    let volume = json!({"metadata": {"name": "pv-1"}, "spec": spec});
    node.api.put("/api/v1/persistentvolumes/pv-1", volume);
    // "please", as secrets keep it.
    let secret =
        json!({"metadata": {"name": "word", "namespace": "default"}, "data": {"word": "cGxlYXNl"}});
    node.api.put("/api/v1/namespaces/default/secrets/word", secret);
    let wishes = json!({"metadata": {"name": NAME},
        "spec": {"attachRequired": true, "podInfoOnMount": true, "fsGroupPolicy": "File"}});
    node.api.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"), wishes);
}

fn attachment_path() -> String {
    use sha2::{Digest, Sha256};
    let name = hex::encode(Sha256::digest(format!("vol-7{NAME}w1").as_bytes()));
    format!("/apis/storage.k8s.io/v1/volumeattachments/csi-{name}")
}

/// A driver registers, and a pod gets its volume: attached, staged, published, and all of it
/// taken back when the pod goes, though the agent was killed meanwhile. Then the driver leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_is_not_ours_brings_volumes_and_takes_them_away() {
    let Some(mut node) = Node::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("vol-7")).unwrap();
    let driver = Hostpath::new(dir.path(), false);
    let stop = CancellationToken::new();
    let mut tasks = driver.serve(&node, &stop);
    let registry = node.containerd.dir().join("data/plugins_registry");
    let listed = await_object(&node, CSI_NODE, |one| one["spec"]["drivers"][0].is_object()).await;
    let wanted = json!({"name": NAME, "nodeID": "host-w1", "allocatable": {"count": 5},
        "topologyKeys": ["topology.hostpath.example/node"]});
    assert_eq!(listed["spec"]["drivers"], json!([wanted]));
    let own = |one: &Value| one["metadata"]["labels"]["topology.hostpath.example/node"] == "w1";
    await_object(&node, "/api/v1/nodes/w1", own).await;

    put_volume(&node);
    let mut spec = one("echo written > /data/file && sync; sleep 1000");
    spec["securityContext"] = json!({"fsGroup": 4242});
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
    node.create("reader", spec);
    // It is in use from before it is attached, and nothing is asked until then.
    let in_use = |one: &Value| {
        one["status"]["volumesInUse"] == json!([format!("kubernetes.io/csi/{NAME}^vol-7")])
    };
    await_object(&node, "/api/v1/nodes/w1", in_use).await;
    assert_eq!(driver.calls(), ["registered true "]);
    let status = json!({"attached": true, "attachmentMetadata": {"slot": "3"}});
    let attachment =
        json!({"metadata": {"name": "x"}, "spec": {"nodeName": "w1"}, "status": status});
    node.api.put(&attachment_path(), attachment);
    node.await_pod("reader", is_ready).await;
    let asked = ["stage vol-7 slot=3 word=please kind=fast", "publish vol-7 for reader ro=false"];
    assert_eq!(driver.calls()[1..], asked);
    let file = dir.path().join("vol-7/file");
    let limit = Instant::now() + LIMIT;
    while !std::fs::read(&file).is_ok_and(|bytes| bytes == b"written\n") {
        assert!(Instant::now() < limit, "the pod did not write to the driver's directory");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(dir.path().join("vol-7")).unwrap().gid(), 4242);

    node.kill_agent().await;
    node.start_agent();
    let twice =
        |one: &Value| one["metadata"]["resourceVersion"] != listed["metadata"]["resourceVersion"];
    await_object(&node, CSI_NODE, twice).await;
    node.api.delete_gracefully(&path("reader"), 1);
    node.await_gone("reader").await;
    let after: Vec<String> =
        driver.calls().into_iter().filter(|call| call.starts_with("un")).collect();
    assert_eq!(after, ["unpublish vol-7", "unstage vol-7"]);
    await_object(&node, "/api/v1/nodes/w1", |one| one["status"]["volumesInUse"] == json!([])).await;
    assert_eq!(std::fs::read(&file).unwrap(), b"written\n");

    std::fs::remove_file(registry.join("hostpath.sock")).unwrap();
    await_object(&node, CSI_NODE, |one| one["spec"]["drivers"] == json!([])).await;
    node.kill_agent().await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}

/// A volume that lives with its pod: nothing is attached or staged, the driver is told of the pod
/// and given its token, mounts for its group, and is asked again when the agent comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drivers_volume_lives_with_its_pod() {
    let Some(mut node) = Node::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let driver = Hostpath::new(dir.path(), true);
    let stop = CancellationToken::new();
    let mut tasks = driver.serve(&node, &stop);
    await_object(&node, CSI_NODE, |one| one["spec"]["drivers"][0].is_object()).await;
    let wishes = json!({"metadata": {"name": NAME}, "spec": {"attachRequired": true,
        "podInfoOnMount": true, "fsGroupPolicy": "File", "requiresRepublish": true,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "tokenRequests": [{"audience": "vault", "expirationSeconds": 600}]}});
    node.api.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"), wishes);
    let mut spec = one("echo written > /data/file && sync; sleep 1000");
    spec["serviceAccountName"] = json!("builder");
    spec["automountServiceAccountToken"] = json!(false);
    spec["securityContext"] = json!({"fsGroup": 4242});
    spec["volumes"] = json!([{"name": "v", "csi": {"driver": NAME}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
    node.create("inline", spec);
    node.await_pod("inline", is_ready).await;
    let tokens = json!({"vault": {"token": "builder for \"vault\"",
        "expirationTimestamp": "2099-01-01T00:00:00Z"}});
    let expected = format!("inline for inline of builder group=4242 tokens={tokens}");
    assert_eq!(driver.calls(), ["registered true ", &*expected]);
    node.kill_agent().await;
    node.start_agent();
    let limit = Instant::now() + LIMIT;
    while driver.calls().iter().filter(|call| **call == expected).count() < 2 {
        assert!(Instant::now() < limit, "it is not asked again: {:#?}", driver.calls());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.api.delete_gracefully(&path("inline"), 1);
    node.await_gone("inline").await;
    let after: Vec<String> =
        driver.calls().into_iter().filter(|one| one.starts_with("un")).collect();
    assert!(after.len() == 1 && after[0].starts_with("unpublish csi-"), "{after:?}");
    node.kill_agent().await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}
