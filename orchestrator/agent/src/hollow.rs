//! Nodes that are not there: thousands of them in one process, for tests of scale.
//!
//! Each has its object, its lease and its status like a real one, and takes pods; a pod bound to
//! it is Running and Ready as soon as the API has told, and gone as soon as it is deleted. The
//! API server is a real one and sees what real nodes would make it do, with one difference: the
//! pods of all nodes come by one watch, because what is tested is the control plane, not the
//! number of sockets of one process.
//!
//! *Limits*: containers never end by themselves, and there is nothing behind the agent's port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use node::machine::{Facts, Ids, Versions, compute_node_status, render_node};
use node::settings::Settings;
use objects::meta::Object as _;
use objects::node::NodeStatus;
use runtime::cache::{Cache, CacheParams, Changes, Key};
use runtime::client::{DeleteParams, Patch};
use runtime::{Client, ClientConfig, ClientError, Supervisor, report, resource};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Requests on their way at a time.
const REQUESTS: usize = 64;
/// How often each lease is renewed; upstream's.
const LEASE_BEAT: Duration = Duration::from_secs(10);
/// Leases are renewed in so many portions of the beat, that they do not come all at once.
const PORTIONS: u32 = 100;
/// The time a lease promises, in seconds; upstream's.
const LEASE_SECONDS: i64 = 40;
/// The namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// How long a change that failed waits for the next try.
const RETRY: Duration = Duration::from_millis(500);

/// What the hollow nodes are like.
#[derive(Debug, Clone)]
pub struct HollowConfig {
    /// How to reach the API, and as whom; it must be allowed to act for every node.
    pub client: ClientConfig,
    /// How many nodes.
    pub nodes: u32,
    /// What their names begin with; a number follows.
    pub prefix: String,
    /// Cores of each.
    pub cpus: i64,
    /// Memory of each, in bytes.
    pub memory_bytes: i64,
}

impl HollowConfig {
    /// So many nodes of 32 cores and 128 GiB, called `hollow-NUMBER`.
    #[must_use]
    pub fn new(client: ClientConfig, nodes: u32) -> Self {
        let prefix = "hollow-".to_owned();
        Self { client, nodes, prefix, cpus: 32, memory_bytes: 128 << 30 }
    }
}

/// Why the hollow nodes ended.
#[derive(Debug, Error)]
pub enum HollowError {
    /// No client can be made.
    #[error("cannot make an API client")]
    Client(#[source] Box<ClientError>),
    /// A task ended unexpectedly.
    #[error("the tasks of the hollow nodes failed")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is kept of a pod: thousands are held.
#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    uid: String,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    name: String,
    #[serde(default)]
    image: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

/// What is to be done about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is bound and not told to run.
    Run,
    /// It is to go.
    Remove,
}

struct Hollow {
    client: Client,
    config: HollowConfig,
}

/// Registers the nodes and acts for them until `stop`.
///
/// # Errors
///
/// When no client can be made or a task panics; everything that may heal is retried inside.
pub async fn run(stop: CancellationToken, config: HollowConfig) -> Result<(), HollowError> {
    let client =
        Client::new(config.client.clone()).map_err(|err| HollowError::Client(Box::new(err)))?;
    let params = CacheParams::fields("spec.nodeName!=");
    let (pods, reflector) = Cache::<Pod>::new(client.clone(), resource::PODS, params);
    let hollow = Arc::new(Hollow { client, config });
    let mut tasks: Supervisor<HollowError> = Supervisor::new(stop.clone());
    tasks.spawn("pods", reflector.run(stop.clone()));
    let (signal, this) = (stop.clone(), Arc::clone(&hollow));
    tasks.spawn("nodes", async move {
        tokio::select! { biased;
            () = signal.cancelled() => (),
            () = this.keep_nodes() => (),
        }
    });
    tasks.spawn("run", async move {
        tokio::select! { biased;
            () = stop.cancelled() => (),
            () = hollow.keep_pods(pods) => (),
        }
    });
    tasks.join().await.map_err(|err| HollowError::Task(Box::new(err)))
}

impl Hollow {
    fn name(&self, number: u32) -> String {
        format!("{}{number}", self.config.prefix)
    }

    /// The number of one of our nodes.
    fn number(&self, name: &str) -> Option<u32> {
        let number = name.strip_prefix(&self.config.prefix)?.parse().ok()?;
        (number < self.config.nodes).then_some(number)
    }

    /// Registers every node, then renews the leases, a portion at a time.
    async fn keep_nodes(&self) {
        let mut missing: Vec<u32> = (0..self.config.nodes).collect();
        while !missing.is_empty() {
            let tries = missing.into_iter().map(|number| async move {
                let failed = self.register(number).await.err();
                failed.map(|err| (number, report(&err)))
            });
            let failed: Vec<_> = stream::iter(tries)
                .buffer_unordered(REQUESTS)
                .filter_map(std::future::ready)
                .collect()
                .await;
            if let Some((_, err)) = failed.first() {
                warn!(count = failed.len(), err, "nodes could not be registered; retrying");
                tokio::time::sleep(RETRY).await;
            }
            missing = failed.into_iter().map(|(number, _)| number).collect();
        }
        info!(nodes = self.config.nodes, "hollow nodes are registered");
        let mut beat = tokio::time::interval(LEASE_BEAT / PORTIONS);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for portion in (0..PORTIONS).cycle() {
            beat.tick().await;
            let ours = (0..self.config.nodes).filter(|number| number % PORTIONS == portion);
            let renewals = ours.map(|number| async move {
                if let Err(err) = self.renew(number).await {
                    debug!(number, err = report(&err), "lease not renewed; the next beat retries");
                }
            });
            stream::iter(renewals).buffer_unordered(REQUESTS).collect::<Vec<()>>().await;
        }
    }

    async fn register(&self, number: u32) -> Result<(), ClientError> {
        let facts = self.facts(number);
        let object = render_node(&facts).encode();
        let object = object.map_err(|source| ClientError::Encode { source })?;
        match self.client.create(&resource::NODES, None, &object).await {
            Err(err) if !err.is_already_exists() => return Err(err),
            _ => {}
        }
        let status = compute_node_status(&NodeStatus::default(), &facts, Timestamp::now());
        let patch = Patch::merge(json!({"status": status})).on("status");
        self.client.patch(&resource::NODES, None, &facts.name, &patch).await?;
        self.renew(number).await
    }

    async fn renew(&self, number: u32) -> Result<(), ClientError> {
        let name = self.name(number);
        let now = objects::MicroTime::from(Timestamp::now());
        let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now});
        let patch = Patch::merge(json!({"spec": spec}));
        match self.client.patch(&resource::LEASES, Some(LEASES), &name, &patch).await {
            Err(err) if err.is_not_found() => {}
            other => return other.map(drop),
        }
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": LEASES}, "spec": spec});
        self.client.create(&resource::LEASES, Some(LEASES), &lease).await.map(drop)
    }

    fn facts(&self, number: u32) -> Facts {
        Facts {
            name: self.name(number),
            address: IpAddr::V4(node_address(number)),
            port: node::machine::AGENT_PORT,
            labels: BTreeMap::from([("muster.dev/hollow".to_owned(), "true".to_owned())]),
            cpus: self.config.cpus,
            memory_bytes: self.config.memory_bytes,
            disk_bytes: 1 << 40,
            held: Settings::default().held(self.config.memory_bytes, 1 << 40),
            devices: std::collections::BTreeMap::new(),
            pods_max: node::machine::PODS_MAX,
            pressures: BTreeSet::new(),
            ids: Ids { machine: format!("{number:032x}"), ..Ids::default() },
            versions: Versions {
                kernel: "hollow".to_owned(),
                os: "hollow".to_owned(),
                runtime: "hollow://1".to_owned(),
                agent: crate::facts::VERSION.to_owned(),
            },
            runtime_problems: Vec::new(),
            handlers: Vec::new(),
            images: Vec::new(),
        }
    }

    /// Follows the pods; what failed is tried again with the next changes, or after a pause.
    async fn keep_pods(&self, pods: Cache<Pod>) {
        pods.wait_synced().await;
        let mut changes = pods.changes();
        let mut cursor = 0;
        let mut again: BTreeSet<Key> = BTreeSet::new();
        loop {
            // Marked as seen before the look, so that nothing slips between.
            let _revision = *changes.borrow_and_update();
            let mut keys = std::mem::take(&mut again);
            match pods.changes_since(&mut cursor) {
                Changes::These(changes) => keys.extend(changes.into_iter().map(|c| c.key)),
                Changes::Everything(all) => keys.extend(all.keys().cloned()),
            }
            let now = pods.snapshot();
            let wanted = keys.into_iter().filter_map(|key| {
                let pod = Arc::clone(now.get(&key)?);
                self.number(&pod.spec.node_name)?;
                Some((step(&pod)?, key, pod))
            });
            let steps = wanted.map(|(step, key, pod)| async move {
                let failed = self.take(step, &key, &pod).await.err()?;
                debug!(name = key.name, err = report(&failed), "a pod could not be told");
                Some(key)
            });
            again = stream::iter(steps)
                .buffer_unordered(REQUESTS)
                .filter_map(std::future::ready)
                .collect()
                .await;
            let pause = if again.is_empty() { LEASE_BEAT } else { RETRY };
            tokio::select! {
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn take(&self, step: Step, key: &Key, pod: &Pod) -> Result<(), ClientError> {
        let namespace = Some(key.namespace.as_str());
        let done = match step {
            Step::Run => {
                let number = self.number(&pod.spec.node_name).unwrap_or_default();
                let status = running(pod, node_address(number), Timestamp::now());
                let patch = Patch::merge(json!({"metadata": {"uid": pod.metadata.uid},
                    "status": status}));
                self.client.patch(&resource::PODS, namespace, &key.name, &patch.on("status")).await
            }
            Step::Remove => {
                let params = DeleteParams::uid(&pod.metadata.uid).grace(0);
                self.client.delete(&resource::PODS, namespace, &key.name, &params).await
            }
        };
        match done {
            // Gone, or another pod of the same name: that one has a change of its own.
            Err(err) if err.is_not_found() || err.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }
}

fn step(pod: &Pod) -> Option<Step> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Step::Remove);
    }
    matches!(pod.status.phase.as_str(), "" | "Pending").then_some(Step::Run)
}

/// The status of a pod that runs.
fn running(pod: &Pod, host: Ipv4Addr, now: Timestamp) -> Value {
    let now = objects::Time::from(now);
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let running = |container: &Container| {
        json!({"name": container.name, "image": container.image, "imageID": "hollow",
            "containerID": format!("hollow://{}-{}", pod.metadata.uid, container.name),
            "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": now}}})
    };
    let ended = |container: &Container| {
        json!({"name": container.name, "image": container.image, "imageID": "hollow",
            "containerID": format!("hollow://{}-{}", pod.metadata.uid, container.name),
            "ready": true, "started": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now,
                "finishedAt": now}}})
    };
    let ip = pod_address(&pod.metadata.uid).to_string();
    let conditions =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({
        "phase": "Running", "startTime": now, "hostIP": host, "hostIPs": [{"ip": host}],
        "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": conditions.map(condition),
        "containerStatuses": pod.spec.containers.iter().map(running).collect::<Vec<_>>(),
        "initContainerStatuses": pod.spec.init_containers.iter().map(ended).collect::<Vec<_>>(),
    })
}

/// An address out of 10.0.0.0/9 for a node.
fn node_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001_u32.saturating_add(number & 0x007f_ffff))
}

/// An address out of 10.128.0.0/9 for a pod; it is only told, so two may share one.
fn pod_address(uid: &str) -> Ipv4Addr {
    let sum = uid
        .bytes()
        .fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ipv4Addr::from(0x0a80_0000 | (sum & 0x007f_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_bound_pod_is_run_once_and_a_deleted_one_removed() {
        let check = |metadata: Value, phase: &str, expected| {
            let pod = pod(json!({"metadata": metadata, "status": {"phase": phase}}));
            assert_eq!(step(&pod), expected);
        };
        check(json!({"uid": "u"}), "Pending", Some(Step::Run));
        check(json!({"uid": "u"}), "", Some(Step::Run));
        check(json!({"uid": "u"}), "Running", None);
        check(json!({"uid": "u"}), "Succeeded", None);
        check(json!({"uid": "u", "deletionTimestamp": "t"}), "Running", Some(Step::Remove));
    }

    #[test]
    fn every_container_of_a_running_pod_is_ready() {
        let pod = pod(json!({"metadata": {"uid": "u"}, "spec": {"nodeName": "hollow-3",
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}}));
        let status = running(&pod, node_address(3), Timestamp::UNIX_EPOCH);
        let real: objects::pod::PodStatus = serde_json::from_value(status).unwrap();
        assert_eq!((real.phase.as_str(), real.host_ip.as_str()), ("Running", "10.0.0.4"));
        assert!(real.container_statuses.iter().all(|c| c.ready == Some(true)));
        assert_eq!((real.container_statuses.len(), real.init_container_statuses.len()), (2, 1));
        assert!(objects::condition::is_condition_true(&real.conditions, "Ready"));
    }
}
