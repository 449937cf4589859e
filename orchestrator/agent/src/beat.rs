//! The node's own object: registered once, renewed as a lease, told about when it changes.
//!
//! Every round renews the lease and reads the runtime's state; the status is written when it
//! differs, and at a slow beat even when it does not. A node that somebody deleted registers
//! again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::plan::{Machine, Role};
use jiff::Timestamp;
use node::machine::{Facts, compute_node_status, differs, labels, render_node, shall_restart};
use objects::lease::{Lease, LeaseSpec};
use objects::meta::Object;
use objects::node::Node;
use objects::{MicroTime, ObjectMeta};
use runtime::client::Patch;
use runtime::{ClientError, report, resource};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Shared, facts, started};

/// The time the lease promises, in seconds; upstream's.
const LEASE_SECONDS: i64 = 40;
/// How often the lease is renewed.
const LEASE_BEAT: Duration = Duration::from_secs(8);
/// How often a round is made.
const BEAT: Duration = Duration::from_secs(4);
/// How often the runtime is looked at between, while the node is not ready: a whole rack waits
/// for it.
const UNREADY_BEAT: Duration = Duration::from_millis(250);
/// How often the status is written although nothing changed.
const STATUS_BEAT: Duration = Duration::from_secs(300);
/// The namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";

/// What the beat remembers between rounds.
struct Beat {
    shared: Arc<Shared>,
    labels: BTreeMap<String, String>,
    leased: Option<Instant>,
    told: Option<Instant>,
    /// The node's object as it came back from our last word.
    written: Option<Node>,
    ready: bool,
}

/// Registers the node and keeps it alive until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    let labels = BTreeMap::new();
    let mut beat = Beat { shared, labels, leased: None, told: None, written: None, ready: false };
    tokio::select! { biased;
        () = stop.cancelled() => (),
        () = beat.keep() => (),
        never = started::tell_late() => match never {},
    }
}

impl Beat {
    async fn keep(&mut self) {
        loop {
            if let Err(err) = self.round().await {
                let node = &self.shared.node.name;
                warn!(node, err = report(&err), "cannot tell the API about this node; retrying");
            }
            self.pause().await;
        }
    }

    /// Waits for the next round; not so long when the node becomes ready meanwhile.
    async fn pause(&self) {
        let end = Instant::now() + BEAT;
        if self.ready {
            tokio::select! { biased;
                () = self.shared.hurry.notified() => {}
                () = tokio::time::sleep_until(end) => {}
            }
            return;
        }
        while Instant::now() < end {
            tokio::time::sleep(UNREADY_BEAT).await;
            if facts::reasons(&self.shared).await.is_empty() {
                return;
            }
        }
        tokio::time::sleep_until(end).await;
    }

    async fn round(&mut self) -> Result<(), ClientError> {
        if self.labels.is_empty() {
            self.labels = self.observe_labels().await;
        }
        let facts = facts::observe(&self.shared, self.labels.clone()).await;
        let node = self.register(&facts).await?;
        self.tell(&node, &facts).await?;
        if self.leased.is_none_or(|at| at.elapsed() >= LEASE_BEAT) {
            self.renew(&node).await?;
            self.leased = Some(Instant::now());
        }
        // A machine that runs anything else than our image is not ours to restart.
        if facts.versions.os.starts_with("Muster ") && shall_restart(&node, &facts.ids.boot) {
            restart(&facts.name).await;
        }
        // After a boot the object still names clients of the boot before; somebody may wait.
        crate::remote::tell_clients(&self.shared).await
    }

    /// Labels that follow from the plan: the rack is the zone, the role is shown by kubectl.
    async fn observe_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let name = &self.shared.node.name;
        let machine = self.shared.client.get(&resource::MACHINES, None, name).await;
        let spec = machine.ok().and_then(|mut value| value.get_mut("spec").map(Value::take));
        let Some(machine) = spec.and_then(|spec| serde_json::from_value::<Machine>(spec).ok())
        else {
            return BTreeMap::new();
        };
        labels.insert("topology.kubernetes.io/zone".to_owned(), machine.rack);
        let role = match machine.role {
            Role::Master => "node-role.kubernetes.io/control-plane",
            Role::Worker => "node-role.kubernetes.io/worker",
        };
        labels.insert(role.to_owned(), String::new());
        labels
    }

    /// The node's object, made when it is not there, with our labels on it.
    async fn register(&mut self, facts: &Facts) -> Result<Node, ClientError> {
        let client = &self.shared.client;
        let found = match self.latest() {
            Some(known) => Ok(known),
            None => client.get(&resource::NODES, None, &facts.name).await.and_then(decode),
        };
        let node = match found {
            Ok(found) => found,
            Err(err) if err.is_not_found() => {
                let object =
                    render_node(facts).encode().map_err(|source| ClientError::Encode { source })?;
                let made = client.create(&resource::NODES, None, &object).await?;
                info!(node = facts.name, "registered");
                decode(made)?
            }
            Err(err) => return Err(err),
        };
        let wanted = labels(facts);
        let missing: BTreeMap<_, _> = wanted
            .into_iter()
            .filter(|(key, value)| node.metadata.labels.get(key) != Some(value))
            .collect();
        if missing.is_empty() {
            return Ok(node);
        }
        let patch = Patch::merge(json!({"metadata": {"labels": missing}}));
        let node = decode(client.patch(&resource::NODES, None, &facts.name, &patch).await?)?;
        self.written = Some(node.clone());
        Ok(node)
    }

    /// The node's object as it is known: the watch may be behind our own last word. `None` while
    /// it is not known, or was deleted.
    fn latest(&self) -> Option<Node> {
        let seen = self.shared.nodes.get("", &self.shared.node.name)?;
        let newer = |written: &&Node| {
            written.metadata.uid == seen.metadata.uid
                && written.metadata.revision() > seen.metadata.revision()
        };
        Some(self.written.as_ref().filter(newer).cloned().unwrap_or_else(|| Node::clone(&seen)))
    }

    async fn tell(&mut self, node: &Node, facts: &Facts) -> Result<(), ClientError> {
        let mut status = compute_node_status(&node.status, facts, Timestamp::now());
        let in_use = crate::remote::in_use(&self.shared);
        if !in_use.is_empty() || status.extra.contains_key("volumesInUse") {
            status.extra.insert("volumesInUse".to_owned(), json!(in_use));
        }
        let ready = facts.runtime_problems.is_empty();
        if ready != self.ready {
            info!(node = facts.name, ready, problems = ?facts.runtime_problems, "node readiness changed");
        }
        let due = self.told.is_none_or(|at| at.elapsed() >= STATUS_BEAT);
        if due || differs(&node.status, &status) {
            let patch = Patch::merge(json!({"status": status})).on("status");
            let answer =
                self.shared.client.patch(&resource::NODES, None, &facts.name, &patch).await?;
            self.written = Some(decode(answer)?);
            self.told = Some(Instant::now());
        }
        if ready && !self.ready {
            started::tell();
        }
        self.ready = ready;
        Ok(())
    }

    /// Renews the lease; it belongs to the node and goes with it.
    async fn renew(&self, node: &Node) -> Result<(), ClientError> {
        let name = &self.shared.node.name;
        let now = Some(MicroTime::from(Timestamp::now()));
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: now,
            ..LeaseSpec::default()
        };
        let client = &self.shared.client;
        let patch = Patch::merge(json!({"spec": spec}));
        match client.patch(&resource::LEASES, Some(LEASES), name, &patch).await {
            Err(err) if err.is_not_found() => {}
            other => return other.map(drop),
        }
        let mut lease = Lease::blank();
        lease.metadata = ObjectMeta::in_namespace(LEASES, name);
        lease.metadata.owner_references = vec![objects::OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid: node.metadata.uid.clone(),
            ..objects::OwnerReference::default()
        }];
        lease.spec = spec;
        let object = lease.encode().map_err(|source| ClientError::Encode { source })?;
        client.create(&resource::LEASES, Some(LEASES), &object).await.map(drop)
    }
}

/// Ends this boot; the boot server says what the next one runs. Asked again at the next beat if it
/// comes to nothing.
async fn restart(node: &str) {
    info!(node, "the node is empty and shall restart");
    match tokio::process::Command::new("systemctl").arg("reboot").status().await {
        Ok(status) if status.success() => (),
        Ok(status) => warn!(node, %status, "the machine does not restart"),
        Err(err) => warn!(node, err = report(&err), "the machine does not restart"),
    }
}

fn decode(value: Value) -> Result<Node, ClientError> {
    serde_json::from_value(value)
        .map_err(|source| ClientError::Decode { path: "a node".to_owned(), source })
}
