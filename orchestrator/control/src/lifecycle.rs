//! Life and death of nodes: who is silent, what that means for pods.
//!
//! A node is alive as long as its lease or status moves, by *our* clock: clocks of machines
//! that just booted may be wrong. Silence makes `Ready` Unknown, taints the node, and after
//! each pod's own patience deletes its pods, so that others take their place. How many nodes may
//! lose their pods at a time is `zone`'s to say; when no node at all is ready, none does: then it
//! is us, or the network, that is broken.

mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::node::{Node, Taint};
use objects::pod::Pod;
use objects::time::Time;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::view::{Key, View};
use crate::wake::Touch;

pub use zone::{Verdicts, ZoneFigures};

/// Taint of nodes that say they are not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of nodes that say nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of nodes that take no new pods.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taint an operator sets when a node is surely off.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Taints of nodes that run short of something, or have no network yet, by the condition that says
/// so.
const PRESSURES: [(&str, &str); 4] = [
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];
/// The namespace of node heartbeats.
const LEASES: &str = "kube-node-lease";
/// How long a node is new.
const NEW: SignedDuration = SignedDuration::from_mins(5);
/// How much longer than its grace a pod may take to vanish from a silent node.
const SLACK: SignedDuration = SignedDuration::from_secs(5);
/// The conditions that are unknown when the node is silent.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The node whose heartbeat a lease is.
#[must_use]
pub fn node_of_lease(_view: &View, touch: &Touch) -> Vec<Key> {
    if touch.key.namespace == LEASES { vec![Key::new("", &touch.key.name)] } else { Vec::new() }
}

/// Remembers when each node last gave a sign of life, by our own clock.
#[derive(Debug, Default)]
pub struct Heartbeats {
    signs: BTreeMap<String, Sign>,
    seen: Arc<BTreeMap<String, Timestamp>>,
    zones: zone::Zones,
    /// When no node at all was ready last.
    dark: Option<Timestamp>,
}

/// What changes when a node is alive.
type Sign = (Option<Timestamp>, Option<Timestamp>);

impl Heartbeats {
    /// Takes note of what moved since the last look and tells the view; returns the nodes that
    /// must be looked at because of others.
    ///
    /// A node seen for the first time counts as alive now: after a restart of ours every node
    /// gets its full grace. `changed` are the nodes to look at; `None` means all of them.
    pub fn observe(
        &mut self,
        view: &mut View,
        changed: Option<&[Key]>,
        now: Timestamp,
    ) -> BTreeSet<Key> {
        match changed {
            Some(keys) => keys.iter().for_each(|key| self.hear(view, &key.name, now)),
            None => {
                let gone = |name: &String| view.nodes.get("", name).is_none();
                let lost: Vec<String> =
                    self.seen.keys().filter(|name| gone(name)).cloned().collect();
                for name in view.nodes.iter().map(|node| &node.metadata.name).chain(&lost) {
                    self.hear(view, name, now);
                }
            }
        }
        let was_dark = self.zones.verdicts().all_dark;
        let concerned = self.zones.turn(&view.settings.zones, now);
        view.verdicts = self.zones.verdicts();
        if view.verdicts.all_dark {
            self.dark = Some(now);
        } else if was_dark {
            // Those who come back last have their full grace to do so.
            Arc::make_mut(&mut self.seen).values_mut().for_each(|at| *at = now);
        }
        view.heartbeats = Arc::clone(&self.seen);
        view.dark = self.dark;
        concerned
    }

    /// Every failure zone in numbers.
    #[must_use]
    pub fn zones(&self) -> Vec<ZoneFigures> {
        self.zones.figures()
    }

    fn hear(&mut self, view: &View, name: &str, now: Timestamp) {
        let node = view.nodes.get("", name);
        self.zones.note(name, node.map(|node| &**node), now);
        let seen = Arc::make_mut(&mut self.seen);
        let Some(node) = node else {
            self.signs.remove(name);
            seen.remove(name);
            return;
        };
        let sign = sign(view, node);
        if self.signs.get(name) != Some(&sign) {
            self.signs.insert(name.to_owned(), sign);
            seen.insert(name.to_owned(), now);
        }
    }
}

fn sign(view: &View, node: &Node) -> Sign {
    let lease = view.leases.get(LEASES, &node.metadata.name);
    let renewed = lease.and_then(|lease| lease.spec.renew_time).map(|at| at.0);
    let ready = find_condition(&node.status.conditions, "Ready");
    (renewed, ready.and_then(|one| one.last_heartbeat_time).map(|at| at.0))
}

/// Plans the steps for one node and its pods.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(node) = view.nodes.get("", &key.name) else { return steps };
    if node.metadata.is_deleting() {
        return steps;
    }
    tell_new(node, now, &mut steps);
    let silent = silence(view, node, now, &mut steps);
    // A silent node's status is ours to write; taints follow in the round that sees it.
    if silent && tell_silence(node, now, &mut steps) {
        return steps;
    }
    taint(view, node, now, &mut steps);
    let health = Health::of(node);
    if health == Health::Unknown {
        tell_pods(view, node, now, &mut steps);
    }
    evict(view, node, health, now, &mut steps);
    steps
}

/// What a node's condition `Ready` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ready,
    NotReady,
    Unknown,
}

impl Health {
    fn of(node: &Node) -> Self {
        match find_condition(&node.status.conditions, "Ready").map(|one| one.status.as_str()) {
            Some("True") => Self::Ready,
            Some("Unknown") => Self::Unknown,
            _ => Self::NotReady,
        }
    }
}

/// Says that a node has come.
fn tell_new(node: &Node, now: Timestamp, steps: &mut Steps) {
    let born = node.metadata.creation_timestamp.map_or(now, |at| at.0);
    if now.duration_since(born) < NEW {
        let name = &node.metadata.name;
        let message = format!("Node {name} event: Registered Node {name} in Controller");
        steps.tell(Note::normal(&Target::of(node), "RegisteredNode", message));
    }
}

/// Says that a node is not what it was.
fn not_ready(node: &Node) -> Note {
    let message = format!("Node {} status is now: NodeNotReady", node.metadata.name);
    Note::normal(&Target::of(node), "NodeNotReady", message)
}

fn seconds(duration: std::time::Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// Has the node been silent for too long? If not yet, asks to look again when it would be.
fn silence(view: &View, node: &Node, now: Timestamp, steps: &mut Steps) -> bool {
    let Some(last) = view.heartbeats.get(&node.metadata.name) else { return false };
    let due = last.checked_add(seconds(view.settings.node_monitor_grace_period));
    match due {
        Ok(due) if now >= due => true,
        Ok(due) => {
            steps.look_again(due);
            false
        }
        Err(_) => false,
    }
}

/// Writes `Unknown` into the conditions of a silent node; `false` when it stands there already.
fn tell_silence(node: &Node, now: Timestamp, steps: &mut Steps) -> bool {
    let mut conditions = node.status.conditions.clone();
    let mut changed = false;
    for kind in CONDITIONS {
        let had = conditions.iter_mut().find(|one| one.kind == kind);
        if had.as_ref().is_some_and(|one| one.status == "Unknown") {
            continue;
        }
        let unknown = |before: Option<&Condition>| Condition {
            kind: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: if before.is_some() { "NodeStatusUnknown" } else { "NodeStatusNeverUpdated" }
                .to_owned(),
            message: "The node has stopped posting its status.".to_owned(),
            last_heartbeat_time: before.and_then(|one| one.last_heartbeat_time),
            last_transition_time: Some(Time::from(now)),
            ..Condition::default()
        };
        changed = true;
        match had {
            Some(had) => *had = unknown(Some(had)),
            None => conditions.push(unknown(None)),
        }
    }
    if changed {
        let step = Action::patch_status(Target::of(node), json!({ "conditions": conditions }));
        steps.push(step.telling(not_ready(node)));
    }
    changed
}

/// Keeps the taints that follow from conditions; others are the operator's.
///
/// The one that costs pods comes when it is the node's turn, stays as long as the node is not
/// ready, and goes from all nodes while none is.
fn taint(view: &View, node: &Node, now: Timestamp, steps: &mut Steps) {
    let health = Health::of(node);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    if health != Health::Ready {
        let key = if health == Health::Unknown { UNREACHABLE } else { NOT_READY };
        wanted.push((key, "NoSchedule"));
        let (name, verdicts) = (&node.metadata.name, &view.verdicts);
        if zone::is_given_up(node) || verdicts.given_up.contains(name) {
            wanted.extend((!verdicts.all_dark).then_some((key, "NoExecute")));
        } else if let Some(turn) = verdicts.turns.get(name) {
            steps.look_again(*turn);
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    for (condition, taint) in PRESSURES {
        if objects::condition::is_condition_true(&node.status.conditions, condition) {
            wanted.push((taint, "NoSchedule"));
        }
    }
    let mut ours = vec![NOT_READY, UNREACHABLE, UNSCHEDULABLE];
    ours.extend(PRESSURES.map(|(_, taint)| taint));
    let is =
        |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> = node.spec.taints.clone();
    taints.retain(|taint| {
        !ours.contains(&taint.key.as_str()) || wanted.iter().any(|one| is(taint, *one))
    });
    for one in wanted {
        if !taints.iter().any(|taint| is(taint, one)) {
            taints.push(Taint {
                key: one.0.to_owned(),
                effect: one.1.to_owned(),
                time_added: Some(Time::from(now)),
                ..Taint::default()
            });
        }
    }
    if taints != node.spec.taints {
        let fell = health == Health::NotReady
            && !node.spec.taints.iter().any(|taint| ours.contains(&taint.key.as_str()))
            && was_ready(node);
        let taints = if taints.is_empty() { Value::Null } else { json!(taints) };
        let body = json!({"spec": {"taints": taints}});
        let step = Action::patch(Target::of(node), body);
        steps.push(if fell { step.telling(not_ready(node)) } else { step });
    }
}

/// Has a node that is not ready been so before? Every node begins without being ready.
fn was_ready(node: &Node) -> bool {
    let born = node.metadata.creation_timestamp.map(|at| at.0);
    let turned = find_condition(&node.status.conditions, "Ready")
        .and_then(|one| one.last_transition_time)
        .map(|at| at.0);
    born.zip(turned).is_some_and(|(born, turned)| turned.duration_since(born) > SLACK)
}

/// Pods of a silent node are not ready: nobody should be sent to them.
fn tell_pods(view: &View, node: &Node, now: Timestamp, steps: &mut Steps) {
    for pod in view.pods_on(&node.metadata.name) {
        if !pod.is_ready() || pod.is_finished() {
            continue;
        }
        let mut conditions = pod.status.conditions.clone();
        for condition in conditions.iter_mut().filter(|one| one.kind == "Ready") {
            condition.status = "False".to_owned();
            condition.reason = "NodeNotReady".to_owned();
            condition.last_transition_time = Some(Time::from(now));
        }
        let target = Target::of(&**pod);
        let note = Note::warning(&target, "NodeNotReady", "Node is not ready");
        let step = Action::patch_status(target, json!({ "conditions": conditions }));
        steps.push(step.telling(note));
    }
}

/// Deletes pods that do not bear the node's state any longer.
fn evict(view: &View, node: &Node, health: Health, now: Timestamp, steps: &mut Steps) {
    // A node that has just come back still carries the taint of its silence, and so do all when
    // suddenly none is ready.
    let stale = |taint: &Taint| {
        let ours = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
        ours && (health == Health::Ready || view.verdicts.all_dark)
    };
    let taints = node.spec.taints.iter();
    let taints: Vec<&Taint> =
        taints.filter(|taint| taint.effect == "NoExecute" && !stale(taint)).collect();
    if taints.is_empty() && health != Health::Unknown {
        return;
    }
    for pod in view.pods_on(&node.metadata.name) {
        if pod.metadata.is_deleting() {
            remove_dead(pod, node, health, now, steps);
            continue;
        }
        if pod.is_finished() {
            continue;
        }
        match patience(view, pod, &taints) {
            Patience::For(since, limit) => {
                let due = since.checked_add(limit).unwrap_or(Timestamp::MAX);
                if now >= due {
                    steps.push(eviction(pod, now));
                } else {
                    steps.look_again(due);
                }
            }
            Patience::Forever => (),
        }
    }
}

/// Says in the pod's status why it goes, and in the round that has seen that deletes it.
fn eviction(pod: &Arc<Pod>, now: Timestamp) -> Action {
    let target = Target::of(&**pod);
    if let Some(conditions) = disrupted(
        pod,
        "DeletionByTaintManager",
        "Taint manager: deleting due to NoExecute taint",
        now,
    ) {
        return Action::patch_status(target, json!({ "conditions": conditions }));
    }
    let (ns, name) = (&pod.metadata.namespace, &pod.metadata.name);
    let message = format!("Marking for deletion Pod {ns}/{name}");
    let note = Some(Box::new(Note::normal(&target, "TaintManagerEviction", message)));
    Action::Delete { target, grace_seconds: None, note }
}

/// A pod's conditions with the one by which jobs know that it is not the pod's own failure; `None`
/// when it stands there already.
pub(crate) fn disrupted(
    pod: &Pod,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let kind = "DisruptionTarget";
    if objects::condition::is_condition_true(&pod.status.conditions, kind) {
        return None;
    }
    let mut conditions = pod.status.conditions.clone();
    set_condition(&mut conditions, Condition::new(kind, true, reason, message), now);
    Some(conditions)
}

/// How long a pod stays on a tainted node.
#[derive(Debug, PartialEq)]
enum Patience {
    Forever,
    For(Timestamp, SignedDuration),
}

/// The shortest patience over all taints.
///
/// Spec: upstream's taint eviction; a pod that says nothing about silence or unreadiness
/// stays for `pod_eviction_timeout`.
fn patience(view: &View, pod: &Pod, taints: &[&Taint]) -> Patience {
    let mut shortest: Option<(Timestamp, SignedDuration)> = None;
    for taint in taints {
        let since = taint.time_added.map_or(Timestamp::UNIX_EPOCH, |at| at.0);
        // After a time without any ready node everyone's patience begins anew, so that those
        // who come back last are not punished.
        let since = view.dark.map_or(since, |dark| since.max(dark));
        let bearing: Vec<_> =
            pod.spec.tolerations.iter().filter(|one| one.tolerates(taint)).collect();
        let limit = if bearing.is_empty() {
            if [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) {
                seconds(view.settings.pod_eviction_timeout)
            } else {
                SignedDuration::ZERO
            }
        } else {
            // Several tolerations of one taint: the least patient counts.
            let limits = bearing.iter().filter_map(|one| one.toleration_seconds);
            match limits.min() {
                Some(limit) => SignedDuration::from_secs(limit.max(0)),
                None => continue,
            }
        };
        let due = |(since, limit): (Timestamp, SignedDuration)| since.saturating_add(limit).ok();
        if shortest.is_none_or(|had| due((since, limit)) < due(had)) {
            shortest = Some((since, limit));
        }
    }
    shortest.map_or(Patience::Forever, |(since, limit)| Patience::For(since, limit))
}

/// Removes a deleted pod whose node will not confirm that it stopped.
///
/// Not pods with claims: two writers on one volume would tear it, so those wait until the
/// node comes back, is deleted, or an operator declares it out of service.
fn remove_dead(pod: &Arc<Pod>, node: &Node, health: Health, now: Timestamp, steps: &mut Steps) {
    let declared = node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE);
    let claims = pod.spec.volumes.iter().any(|one| one.persistent_volume_claim.is_some());
    let lost = health == Health::Unknown || (declared && health == Health::NotReady);
    if !lost || (claims && !declared) {
        return;
    }
    let ends = pod.metadata.deletion_timestamp.map_or(now, |at| at.0);
    let due = ends.saturating_add(SLACK).unwrap_or(Timestamp::MAX);
    if now >= due {
        steps.push(Action::remove_pod(pod));
    } else {
        steps.look_again(due);
    }
}

#[cfg(test)]
mod tests;
