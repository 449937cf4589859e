//! The agent with a real containerd and an API in memory; skipped only where containerd cannot run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test program"
)]

#[path = "pods/amounts.rs"]
mod amounts;
#[path = "pods/conformance.rs"]
mod conformance;
#[path = "../../cri/tests/support/mod.rs"]
mod containerd;
#[path = "pods/devices.rs"]
mod devices;
#[path = "pods/driver.rs"]
mod driver;
#[path = "pods/manifests.rs"]
mod manifests;
#[path = "pods/ready.rs"]
mod ready;
#[path = "pods/shutdown.rs"]
mod shutdown;
#[path = "pods/slices.rs"]
mod slices;
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::{Config, Imports, Joined, NodeInfo, Settings};
use containerd::{BUSYBOX, Containerd};
use cri::Runtime;
use cri::message::{ListContainersRequest, ListPodSandboxRequest};
use runtime::pki::{Authority, Sans, Subject, Usage};
use runtime::{Client, ClientConfig, Identity};
use serde_json::{Value, json};
use support::Api;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Longer than any back-off on a host that has other work, too.
const LIMIT: Duration = Duration::from_secs(180);

/// Settings under which the machine that tests run on is never short of anything.
fn roomy() -> Settings {
    let value = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100});
    Settings::decode(&value).unwrap()
}

/// A node of one containerd and one API.
struct Node {
    api: Api,
    containerd: Containerd,
    authority: Authority,
    agent: JoinSet<()>,
    /// Where control groups of pods are made; `None` leaves that to the runtime.
    cgroups: Option<PathBuf>,
    /// Cancelled when the agent's process is asked to stop.
    asked: CancellationToken,
    /// What the agent is told of the node's services.
    served: agent::Served,
}

impl Node {
    async fn start() -> Option<Self> {
        let containerd = Containerd::start()?;
        let authority = Authority::generate("test", DAY).unwrap();
        let mut node = Self {
            api: Api::start().await,
            containerd,
            authority,
            agent: JoinSet::new(),
            cgroups: None,
            asked: CancellationToken::new(),
            served: agent::Served::default(),
        };
        node.start_agent();
        Some(node)
    }

    fn identity(&self, subject: &Subject) -> Identity {
        let sans = Sans { names: Vec::new(), addresses: vec!["127.0.0.1".parse().unwrap()] };
        let made = self.authority.issue(subject, &sans, Usage::Both, DAY).unwrap();
        let key_pem = made.key_pem.expose().as_bytes().to_vec();
        Identity { cert_pem: made.cert_pem.into_bytes(), key_pem }
    }

    fn start_agent(&mut self) {
        self.start_agent_with(roomy());
    }

    fn start_agent_with(&mut self, settings: Settings) {
        let server = format!("http://{}", self.api.address);
        self.start_agent_at(&server, settings);
    }

    fn start_agent_at(&mut self, server: &str, settings: Settings) {
        let dir = self.containerd.dir().to_owned();
        self.asked = CancellationToken::new();
        let config = Config {
            asked: self.asked.clone(),
            machine_state: dir.join("systemctl"),
            cgroups: self.cgroups.clone().unwrap_or_else(|| dir.join("none")),
            pki_dir: dir.join("pki"),
            cri_socket: self.containerd.socket(),
            data_dir: dir.join("data"),
            log_dir: dir.join("logs"),
            image_dir: dir.join("none"),
            device_dir: Some(dir.join("plugins")),
            listen: "127.0.0.1:0".parse().unwrap(),
            console: None,
            settings,
            served: self.served.clone(),
            ..Config::default()
        };
        let server = server.to_owned();
        let node: NodeInfo = serde_json::from_value(json!({"name": "w1", "mac": "02:00:00:00:00:01",
            "address": "127.0.0.1", "api": server, "caFingerprint": "", "boot": "http://127.0.0.1:1"}))
        .unwrap();
        let identity = self.identity(&Subject::new("system:node:w1", &["system:nodes"]));
        let ca_pem = self.authority.cert_pem().as_bytes().to_vec();
        let client_config = ClientConfig { server, ca_pem, identity: Some(identity), token: None };
        let joined = Joined { client_config, node, imports: Imports::default() };
        self.agent.spawn(async move {
            let ended = agent::run_joined(CancellationToken::new(), config, joined).await;
            println!("agent ended: {ended:?}");
        });
    }

    /// Ends the agent as a kill does: nothing of it is awaited.
    async fn kill_agent(&mut self) {
        self.agent.shutdown().await;
    }

    fn create(&self, name: &str, spec: Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}});
        self.api.put(&path(name), pod);
    }

    /// Waits until the pod looks as wanted, and gives it.
    async fn await_pod(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let limit = Instant::now() + LIMIT;
        loop {
            let pod = self.api.get(&path(name));
            if let Some(pod) = pod.as_ref().filter(|pod| wanted(pod)) {
                return pod.clone();
            }
            let status = pod.map(|pod| pod["status"].clone());
            assert!(Instant::now() < limit, "{name} never came there; last seen: {status:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn await_gone(&self, name: &str) {
        let runtime = Runtime::at(&self.containerd.socket()).unwrap();
        let limit = Instant::now() + LIMIT;
        loop {
            let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
            // A runtime that has just come back says so for a moment.
            if sandboxes.as_ref().is_err_and(cri::CallError::is_unavailable) {
                assert!(Instant::now() < limit, "the runtime never came back");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            let sandboxes = sandboxes.unwrap().items;
            let uid = format!("uid-{name}");
            let left = sandboxes.iter().any(|s| s.metadata.as_ref().is_some_and(|m| m.uid == uid));
            if !left && self.api.get(&path(name)).is_none() {
                return;
            }
            assert!(Instant::now() < limit, "{name} is still there: {sandboxes:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn count(&self, name: &str) -> usize {
        self.containers(name).await.len()
    }

    /// The states of a pod's containers in the runtime.
    async fn containers(&self, name: &str) -> Vec<i32> {
        let runtime = Runtime::at(&self.containerd.socket()).unwrap();
        let all = loop {
            match runtime.list_containers(ListContainersRequest::default()).await {
                Ok(all) => break all,
                Err(err) => assert!(err.is_unavailable(), "{err:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let key = "io.kubernetes.pod.name";
        let ours = all.containers.iter().filter(|c| c.labels.get(key).is_some_and(|n| n == name));
        ours.map(|container| container.state).collect()
    }

    async fn await_count(&self, name: &str, wanted: usize) {
        let limit = Instant::now() + LIMIT;
        loop {
            let count = self.count(name).await;
            if count == wanted {
                return;
            }
            assert!(Instant::now() < limit, "{name} has {count} containers, not {wanted}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn await_running(&self, name: &str, wanted: usize) {
        let limit = Instant::now() + LIMIT;
        loop {
            let states = self.containers(name).await;
            if states.iter().filter(|state| **state == 1).count() == wanted {
                return;
            }
            assert!(Instant::now() < limit, "{name} has containers {states:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the pod has said a whole line, and gives what it said.
    async fn await_line(&self, name: &str) -> String {
        let limit = Instant::now() + LIMIT;
        loop {
            let log = self.log(name, "").await;
            if log.ends_with('\n') {
                return log;
            }
            assert!(Instant::now() < limit, "{name} never ended its line; last seen: {log:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn await_log(&self, name: &str, wanted: &str) {
        let limit = Instant::now() + LIMIT;
        loop {
            let log = self.log(name, "").await;
            if log == wanted {
                return;
            }
            assert!(Instant::now() < limit, "{name} never said {wanted:?}; last seen: {log:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads a log from the agent as the API server does.
    async fn log(&self, name: &str, query: &str) -> String {
        let node = self.api.get("/api/v1/nodes/w1").unwrap();
        let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
        let client = Client::new(ClientConfig {
            server: format!("https://127.0.0.1:{port}"),
            ca_pem: self.authority.cert_pem().as_bytes().to_vec(),
            identity: Some(self.identity(&Subject::new("muster:apiserver", &[]))),
            token: None,
        })
        .unwrap();
        let path = format!("/containerLogs/default/{name}/main?{query}");
        String::from_utf8(client.raw_get(&path).await.unwrap().body.to_vec()).unwrap()
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn one(script: &str) -> Value {
    json!({"nodeName": "w1", "terminationGracePeriodSeconds": 1, "containers":
        [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]}]})
}

fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn is_ready(pod: &Value) -> bool {
    first(pod)["ready"] == json!(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_live_on_while_their_agent_and_runtime_are_killed() {
    let Some(mut node) = Node::start().await else { return };
    node.api.put("/api/v1/namespaces/default/configmaps/m", json!({"data": {"color": "red"}}));
    let mut spec = one("cat /cm/color; echo; echo $NAME; sleep 1000");
    spec["containers"][0]["env"] =
        json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "cm", "mountPath": "/cm"}]);
    spec["volumes"] = json!([{"name": "cm", "configMap": {"name": "m"}}]);
    node.create("plain", spec);
    node.create("orphan", one("sleep 1000"));
    let before = node.await_pod("plain", is_ready).await;
    node.await_pod("orphan", is_ready).await;
    assert_eq!(before["status"]["phase"], "Running");
    assert!(before["status"]["podIP"].as_str().unwrap().starts_with("10.99.0."));
    // A running container has not said everything yet.
    node.await_log("plain", "red\nplain\n").await;
    assert_eq!(node.log("plain", "tailLines=1").await, "plain\n");

    // While the agent is away one pod is removed by force and another one is asked for.
    node.kill_agent().await;
    assert_eq!(node.count("plain").await, 1);
    node.api.remove(&path("orphan"));
    node.create("late", one("exit 0"));
    node.start_agent();
    node.await_gone("orphan").await;
    node.await_pod("late", |pod| first(pod)["restartCount"].as_i64() > Some(0)).await;
    let after = node.await_pod("plain", is_ready).await;
    assert_eq!(first(&after)["containerID"], first(&before)["containerID"]);
    assert_eq!(first(&after)["restartCount"], 0);

    // The runtime goes away under the agent; the container does not notice.
    node.containerd.restart();
    let after = node.await_pod("plain", is_ready).await;
    assert_eq!(first(&after)["containerID"], first(&before)["containerID"]);
    assert_eq!(node.count("plain").await, 1);

    for name in ["plain", "late"] {
        node.api.delete_gracefully(&path(name), 1);
        node.await_gone(name).await;
    }
    node.kill_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_are_told_with_their_reasons() {
    let Some(mut node) = Node::start().await else { return };
    let mut never = one("echo last words > /dev/termination-log; exit 3");
    never["restartPolicy"] = json!("Never");
    node.create("failed", never);
    let mut done = one("echo done");
    done["restartPolicy"] = json!("OnFailure");
    done["initContainers"] = json!([{"name": "first", "image": BUSYBOX, "command": ["true"]}]);
    node.create("done", done);
    let mut absent = one("true");
    absent["containers"][0]["image"] = json!("muster.dev/none:1");
    absent["containers"][0]["imagePullPolicy"] = json!("Never");
    node.create("absent", absent);
    node.create("crash", one("exit 1"));

    // The kernel kills what takes the memory; the shell outlives it by what a runtime needs to
    // hear of that (containerd's shim asks a cgroup v1 that is gone in vain).
    let mut greedy = one("dd if=/dev/zero of=/dev/null bs=256M count=1; c=$?; sleep 1; exit $c");
    greedy["restartPolicy"] = json!("Never");
    greedy["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    node.create("greedy", greedy);
    let mut root = one("true");
    root["securityContext"] = json!({"runAsNonRoot": true});
    node.create("root", root);
    let mut sysctl = one("true");
    sysctl["securityContext"] = json!({"sysctls": [{"name": "kernel.sem", "value": "1"}]});
    node.create("sysctl", sysctl);
    let mut users = one("sleep 1000");
    users["hostUsers"] = json!(false);
    node.create("users", users);
    let mut class = one("sleep 1000");
    class["runtimeClassName"] = json!("plain");
    node.create("class", class);

    let failed = node.await_pod("failed", |pod| pod["status"]["phase"] == "Failed").await;
    let ended = &first(&failed)["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
    assert_eq!(ended["message"], "last words\n");
    let greedy = node.await_pod("greedy", |pod| pod["status"]["phase"] == "Failed").await;
    let ended = &first(&greedy)["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")));
    let root = node
        .await_pod("root", |pod| {
            first(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    let words = first(&root)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(words.starts_with("container has runAsNonRoot and image will run as root"), "{words}");
    let sysctl = node.await_pod("sysctl", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(sysctl["status"]["reason"], "SysctlForbidden");
    // A runtime that does not say it can keep users apart is not believed to.
    let handlers = node.api.get("/api/v1/nodes/w1").unwrap()["status"]["runtimeHandlers"].clone();
    if handlers.is_null() {
        node.await_pod("users", |pod| {
            let words = first(pod)["state"]["waiting"]["message"].as_str();
            words == Some("Failed to create pod sandbox: the handler \"\" is not known")
        })
        .await;
    }
    // The pod waits for its class, and the class names the runtime's own word.
    node.await_pod("class", |pod| {
        let words = first(pod)["state"]["waiting"]["message"].as_str();
        words.is_some_and(|words| words.contains("RuntimeClass \"plain\" not found"))
    })
    .await;
    node.api.put("/apis/node.k8s.io/v1/runtimeclasses/plain", json!({"handler": "runc"}));
    node.await_pod("class", is_ready).await;
    node.await_pod("done", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(node.log("done", "follow=true").await, "done\n");
    let reason = |pod: &Value| first(pod)["state"]["waiting"]["reason"].clone();
    node.await_pod("absent", |pod| reason(pod) == "ErrImageNeverPull").await;
    let crash = node.await_pod("crash", |pod| reason(pod) == "CrashLoopBackOff").await;
    assert_eq!(first(&crash)["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(crash["status"]["phase"], "Running");
    node.kill_agent().await;
}

/// A claim leads to a directory of the node: the pod waits until it is bound, sees parts of it,
/// not what a link in it points at, writes as its group, and leaves everything there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_brings_its_volume_and_what_is_written_stays() {
    let Some(mut node) = Node::start().await else { return };
    let disk = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", disk.path().join("escape")).unwrap();
    let claim = "/api/v1/namespaces/default/persistentvolumeclaims/data";
    let pending = json!({"metadata": {"name": "data", "namespace": "default", "uid": "claim-1"},
        "spec": {"volumeName": "pv-1"}, "status": {"phase": "Pending"}});
    node.api.put(claim, pending.clone());
    node.api.put(
        "/api/v1/persistentvolumes/pv-1",
        json!({"metadata": {"name": "pv-1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "claimRef": {"uid": "claim-1"},
            "local": {"path": disk.path()}}}),
    );
    let with_claim = |script: &str, part: &str| {
        let mut spec = one(script);
        spec["securityContext"] = json!({"fsGroup": 4242});
        spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        spec["containers"][0]["volumeMounts"] = json!([
            {"name": "v", "mountPath": "/all"}, {"name": "v", "mountPath": "/part", "subPath": part}]);
        spec
    };
    node.create(
        "writer",
        with_claim("echo kept > /part/file; cat /all/a/b/file; sleep 1000", "a/b"),
    );
    node.create("thief", with_claim("cat /part/passwd", "escape"));
    node.await_pod("writer", |pod| pod["status"]["phase"] == "Pending").await;
    let mut bound = pending;
    bound["status"]["phase"] = json!("Bound");
    node.api.put(claim, bound);
    node.await_pod("writer", is_ready).await;
    node.await_log("writer", "kept\n").await;
    let thief = node
        .await_pod("thief", |pod| {
            first(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    let message = first(&thief)["state"]["waiting"]["message"].to_string();
    assert!(message.contains("cannot reach escape inside of the volume"), "{message}");
    let place = "data/pods/uid-writer/volumes/kubernetes.io~local-volume/pv-1/a/b/file";
    assert_eq!(std::fs::read_to_string(node.containerd.dir().join(place)).unwrap(), "kept\n");
    let group = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(disk.path()).unwrap());
    assert_eq!(group, 4242);
    for name in ["writer", "thief"] {
        node.api.delete_gracefully(&path(name), 1);
        node.await_gone(name).await;
    }
    assert_eq!(std::fs::read_to_string(disk.path().join("a/b/file")).unwrap(), "kept\n");
    node.kill_agent().await;
}

/// How far a pod's life has come, as the runtime shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Asked,
    Sandbox,
    Container,
    Running,
    Ending,
}

/// What is killed the hard way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Runtime,
    Both,
}

impl Node {
    /// What the runtime has of a pod: ready sandboxes, containers, running containers.
    async fn inventory(&self, name: &str) -> Option<(usize, usize, usize)> {
        let runtime = Runtime::at(&self.containerd.socket()).unwrap();
        let sandboxes =
            runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.ok()?.items;
        let all = runtime.list_containers(ListContainersRequest::default()).await.ok()?.containers;
        let uid = format!("uid-{name}");
        let ours = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get("io.kubernetes.pod.uid") == Some(&uid)
        };
        let ready = sandboxes.iter().filter(|s| ours(&s.labels) && s.state == 0).count();
        let containers: Vec<_> = all.iter().filter(|c| ours(&c.labels)).collect();
        let running = containers.iter().filter(|c| c.state == 1).count();
        Some((ready, containers.len(), running))
    }

    /// The same, once the runtime answers again.
    async fn await_inventory(&self, name: &str) -> (usize, usize, usize) {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Some(seen) = self.inventory(name).await {
                return seen;
            }
            assert!(Instant::now() < limit, "the runtime never came back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a pod has come so far, or further.
    async fn await_phase(&self, name: &str, phase: Phase) {
        let limit = Instant::now() + LIMIT;
        loop {
            let seen = self.inventory(name).await;
            let come = match seen {
                Some((_, _, 1..)) => Phase::Running,
                Some((_, 1.., _)) => Phase::Container,
                Some((1.., _, _)) => Phase::Sandbox,
                _ => Phase::Asked,
            };
            if come >= phase.min(Phase::Running) {
                return;
            }
            assert!(Instant::now() < limit, "{name} never came to {phase:?}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn strike(&mut self, victim: Victim) {
        if victim != Victim::Runtime {
            self.kill_agent().await;
        }
        if victim != Victim::Agent {
            self.containerd.restart();
        }
        if victim != Victim::Runtime {
            self.start_agent();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pod_is_lost_or_doubled_wherever_its_life_is_cut() {
    let Some(mut node) = Node::start().await else { return };
    for victim in [Victim::Agent, Victim::Runtime, Victim::Both] {
        for phase in [Phase::Asked, Phase::Sandbox, Phase::Container, Phase::Running, Phase::Ending]
        {
            let name = format!("cut-{victim:?}-{phase:?}").to_lowercase();
            // It ends a moment after it is told to.
            node.create(
                &name,
                one("trap 'sleep 0.3; exit 0' TERM; while true; do sleep 0.1; done"),
            );
            node.await_phase(&name, phase).await;
            if phase == Phase::Ending {
                node.await_pod(&name, is_ready).await;
                node.api.delete_gracefully(&path(&name), 2);
                node.strike(victim).await;
                node.await_gone(&name).await;
                continue;
            }
            node.strike(victim).await;
            let pod = node.await_pod(&name, is_ready).await;
            assert_eq!(pod["status"]["phase"], "Running", "{name}");
            let (sandboxes, _, running) = node.await_inventory(&name).await;
            assert_eq!((sandboxes, running), (1, 1), "{name}: {:#}", pod["status"]);
            node.api.delete_gracefully(&path(&name), 1);
            node.await_gone(&name).await;
        }
    }
    node.kill_agent().await;
}

/// A pod whose first container waits for a gate on the node.
fn gated(dir: &std::path::Path) -> Value {
    let mut spec = one("sleep 1000");
    spec["initContainers"] = json!([{"name": "first", "image": BUSYBOX,
        "command": ["sh", "-c", "until test -e /gate/open; do sleep 0.1; done"],
        "volumeMounts": [{"name": "gate", "mountPath": "/gate"}]}]);
    spec["volumes"] = json!([{"name": "gate", "hostPath": {"path": dir}}]);
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_in_its_init_phase_goes_on_whoever_is_killed() {
    let Some(mut node) = Node::start().await else { return };
    for victim in [Victim::Agent, Victim::Runtime, Victim::Both] {
        let name = format!("init-{victim:?}").to_lowercase();
        let gate = node.containerd.dir().join(&name);
        std::fs::create_dir(&gate).unwrap();
        node.create(&name, gated(&gate));
        let before = node
            .await_pod(&name, |pod| {
                pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
            })
            .await;
        node.strike(victim).await;
        assert_eq!(node.await_inventory(&name).await, (1, 1, 1), "{name}");
        std::fs::write(gate.join("open"), "").unwrap();
        let after = node.await_pod(&name, is_ready).await;
        let first = |pod: &Value| pod["status"]["initContainerStatuses"][0].clone();
        assert_eq!(first(&after)["containerID"], first(&before)["containerID"], "{name}");
        assert_eq!(first(&after)["restartCount"], 0, "{name}");
        assert_eq!(first(&after)["state"]["terminated"]["exitCode"], 0, "{name}");
        assert_eq!(node.await_inventory(&name).await.0, 1, "{name}");
        node.api.delete_gracefully(&path(&name), 1);
        node.await_gone(&name).await;
    }
    node.kill_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_runs_short_makes_room() {
    let Some(mut node) = Node::start().await else { return };
    let archive = node.containerd.dir().join("old.tar");
    std::fs::write(&archive, containerd::image("example.org/old:1", &["/bin/true"])).unwrap();
    node.containerd.import(&archive);
    let asking = |priority: i64, resources: Value| {
        let mut spec = one("sleep 1000");
        spec["priority"] = json!(priority);
        spec["containers"][0]["resources"] = resources;
        spec
    };
    let much = json!({"requests": {"memory": "1Gi"}});
    node.create("burstable", asking(0, much));
    node.create("best-effort", asking(0, json!({})));
    node.create("system", asking(2_000_001_000, json!({})));
    let mut scratch = one("dd if=/dev/zero of=/s/f bs=1M count=3; sleep 1000");
    scratch["volumes"] = json!([{"name": "s", "emptyDir": {"sizeLimit": "1Mi"}}]);
    scratch["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    node.create("scratch", scratch);
    for name in ["burstable", "best-effort", "system", "scratch"] {
        node.await_pod(name, is_ready).await;
    }
    let file = node.containerd.dir().join("data/pods/uid-scratch/volumes/s/f");
    let limit = Instant::now() + Duration::from_secs(20);
    while std::fs::metadata(&file).map_or(0, |meta| meta.len()) < 3 << 20 {
        assert!(Instant::now() < limit, "the pod never filled its volume");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // No machine has so much memory, nor so empty a disk.
    node.kill_agent().await;
    let short = json!({"evictionHard": {"memory.available": "1Pi"}, "imageMinimumGCAge": "0s",
        "imageGCHighThresholdPercent": 1, "imageGCLowThresholdPercent": 0});
    node.start_agent_with(Settings::decode(&short).unwrap());
    let ended = |pod: &Value| pod["status"]["phase"] == "Failed";
    let first = node.await_pod("best-effort", ended).await;
    assert_eq!(first["status"]["reason"], "Evicted");
    let words = first["status"]["message"].as_str().unwrap();
    let start = "The node was low on resource: memory. Threshold quantity: 1Pi, available: ";
    assert!(words.starts_with(start), "{words}");
    let has = |pod: &Value, kind: &str| {
        let all = pod["status"]["conditions"].as_array().unwrap();
        all.iter().any(|one| one["type"] == kind && one["status"] == "True")
    };
    assert!(has(&first, "DisruptionTarget"));
    // What asked for its memory comes later, and one at a time.
    assert!(is_ready(&node.api.get(&path("burstable")).unwrap()));
    let scratch = node.await_pod("scratch", ended).await;
    assert_eq!(
        scratch["status"]["message"],
        "Usage of EmptyDir volume \"s\" exceeds the limit \"1Mi\". "
    );
    node.create("refused", one("sleep 1000"));
    let refused = node.await_pod("refused", ended).await;
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: The node had condition: [MemoryPressure]. "
    );
    assert_eq!(node.count("refused").await, 0);
    let limit = Instant::now() + LIMIT;
    loop {
        let told = node.api.get("/api/v1/nodes/w1").is_some_and(|it| has(&it, "MemoryPressure"));
        let images = containerd_images(&node.containerd).await;
        let gone = !images.iter().any(|name| name.contains("example.org/old"));
        if told && gone {
            assert!(images.iter().any(|name| name == BUSYBOX), "{images:?}");
            break;
        }
        assert!(Instant::now() < limit, "told: {told}; images: {images:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_ready(&node.api.get(&path("system")).unwrap()));
    node.kill_agent().await;
}

async fn containerd_images(containerd: &Containerd) -> Vec<String> {
    let runtime = Runtime::at(&containerd.socket()).unwrap();
    let images = runtime.list_images(cri::message::ListImagesRequest::default()).await.unwrap();
    images.images.into_iter().flat_map(|image| image.repo_tags).collect()
}
