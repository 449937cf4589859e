//! Rules that no write may break, whatever the writers saw or forgot.

use std::collections::{BTreeMap, BTreeSet};

use objects::Kind;
use objects::kind;
use serde_json::Value;

use crate::server::{Server, has_ended, is_deleting, number, text};

/// How views begin after a fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restarts {
    /// With what is true now, as our API server lists.
    Fresh,
    /// With what was true some time ago: time travel. Counts may then be passed for a moment.
    Old,
}

/// What the rules must remember.
pub(crate) struct Rules {
    pub(crate) restarts: Restarts,
    pub(crate) broken: Vec<String>,
    /// The most pods a maker was ever to have, by uid.
    most: BTreeMap<String, i64>,
    /// Pods that succeeded, by the uid of their maker.
    succeeded: BTreeMap<String, BTreeSet<String>>,
    /// Pods that failed, or were asked to go, by the uid of their maker.
    lost: BTreeMap<String, BTreeSet<String>>,
}

impl Rules {
    pub(crate) const fn new(restarts: Restarts) -> Self {
        Self {
            restarts,
            broken: Vec::new(),
            most: BTreeMap::new(),
            succeeded: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }
}

/// Half processors and places of a node.
fn room(node: &Value) -> usize {
    text(node, "/status/allocatable/pods").parse().unwrap_or(0)
}

/// Is a pod in the way of others on its node?
fn counts(pod: &Value, node: &str) -> bool {
    text(pod, "/spec/nodeName") == node && !has_ended(pod)
}

/// Pods keep their node, nodes keep their network, makers' sizes are remembered.
pub(crate) fn on_write(
    rules: &mut Rules,
    kind: &Kind,
    before: Option<&Value>,
    after: Option<&Value>,
) {
    if let Some(pod) = after.or(before).filter(|_| *kind == kind::POD) {
        note_end(rules, pod, after.is_none());
    }
    let Some(after) = after else { return };
    if *kind == kind::JOB {
        count_ends(rules, after);
    }
    let name = text(after, "/metadata/name");
    let once = match kind.kind {
        "Pod" => "/spec/nodeName",
        "Node" => "/spec/podCIDR",
        _ => "",
    };
    let had = before.filter(|_| !once.is_empty()).map_or("", |before| text(before, once));
    if !had.is_empty() && had != text(after, once) {
        rules.broken.push(format!("{} {name} had {once} {had} and lost it", kind.kind));
    }
    let size = match kind.kind {
        "ReplicaSet" | "StatefulSet" => number(after, "/spec/replicas"),
        "Job" => number(after, "/spec/parallelism"),
        _ => return,
    };
    let most = rules.most.entry(text(after, "/metadata/uid").to_owned()).or_default();
    *most = size.unwrap_or(1).max(*most);
}

/// Remembers how a pod ended.
fn note_end(rules: &mut Rules, pod: &Value, gone: bool) {
    let owner = text(pod, "/metadata/ownerReferences/0/uid").to_owned();
    let uid = text(pod, "/metadata/uid").to_owned();
    match text(pod, "/status/phase") {
        "Succeeded" => _ = rules.succeeded.entry(owner).or_default().insert(uid),
        "Failed" => _ = rules.lost.entry(owner).or_default().insert(uid),
        _ if gone || is_deleting(pod) => _ = rules.lost.entry(owner).or_default().insert(uid),
        _ => (),
    }
}

/// A job never counts an end that was none, nor one twice.
fn count_ends(rules: &mut Rules, job: &Value) {
    let (uid, name) = (text(job, "/metadata/uid"), text(job, "/metadata/name"));
    for (pointer, ends) in
        [("/status/succeeded", &rules.succeeded), ("/status/failed", &rules.lost)]
    {
        let count = number(job, pointer).unwrap_or(0);
        let ends = ends.get(uid).map_or(0, BTreeSet::len);
        if i64::try_from(ends).is_ok_and(|ends| count > ends) {
            rules.broken.push(format!("job {name} counts {count} in {pointer} of {ends} pods"));
            return;
        }
    }
}

/// A maker never has more live pods than it was ever to have.
pub(crate) fn on_create(server: &mut Server, kind: &Kind, pod: &Value) {
    if kind.kind != "Pod" || server.rules.restarts == Restarts::Old {
        return;
    }
    let owner = text(pod, "/metadata/ownerReferences/0/uid").to_owned();
    let alive = |one: &&Value| {
        text(one, "/metadata/ownerReferences/0/uid") == owner
            && !is_deleting(one)
            && !has_ended(one)
    };
    let Some(most) = server.rules.most.get(&owner).copied() else { return };
    let count = server.all(&kind::POD).filter(alive).count();
    if i64::try_from(count).is_ok_and(|count| count >= most) {
        let name = text(pod, "/metadata/name");
        server.rules.broken.push(format!("pod {name} is one more than {most} of its maker"));
    }
}

/// A pod is bound once, to a node with room, where its constraints hold.
pub(crate) fn on_bind(server: &mut Server, pod: &Value, node: &str) {
    let name = text(pod, "/metadata/name").to_owned();
    let had = text(pod, "/spec/nodeName");
    if !had.is_empty() {
        let why = format!("pod {name} is on {had} and was bound again, to {node}");
        server.rules.broken.push(why);
        return;
    }
    // A node that went in between is nobody's fault: the pod will be collected.
    let Some(place) = server.get(&kind::NODE, "", node) else { return };
    let there = server.all(&kind::POD).filter(|one| counts(one, node));
    let (ns, app) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/labels/app"));
    let (mut used, mut twins) = (0, 0);
    for one in there {
        used += 1;
        let twin = text(one, "/metadata/namespace") == ns
            && text(one, "/metadata/labels/app") == app
            && app == "spread";
        twins += usize::from(twin);
    }
    let mut why = Vec::new();
    if used >= room(place) {
        why.push(format!("pod {name} was bound to {node}, which is full with {used}"));
    }
    if twins > 0 {
        why.push(format!("pod {name} was bound to {node} beside one it keeps away from"));
    }
    let wanted = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
    for (label, value) in wanted.into_iter().flatten() {
        if place.pointer("/metadata/labels").and_then(|all| all.get(label)) != Some(value) {
            why.push(format!("pod {name} was bound to {node}, which has not {label}={value}"));
        }
    }
    server.rules.broken.extend(why);
}

/// No two nodes share a network, no two services an address; nodes are upgraded one by one.
pub(crate) fn on_state(server: &mut Server, changed: &'static Kind) {
    if *changed == kind::NODE {
        let marked =
            |one: &&Value| !text(one, "/metadata/annotations/muster.dev~1upgrade").is_empty();
        let count = server.all(&kind::NODE).filter(marked).count();
        if count > 1 {
            server.rules.broken.push(format!("{count} nodes are being upgraded at a time"));
        }
    }
    let pointer = match changed.kind {
        "Node" => "/spec/podCIDR",
        "Service" if server.rules.restarts == Restarts::Fresh => {
            "/status/loadBalancer/ingress/0/ip"
        }
        _ => return,
    };
    if let Some(twice) = shared(server, changed, pointer) {
        server.rules.broken.push(format!("two of {} have {twice}", changed.plural));
    }
}

/// A value that two objects of a kind share.
pub(crate) fn shared(server: &Server, kind: &Kind, pointer: &str) -> Option<String> {
    let mut taken = BTreeSet::new();
    let mut values = server.all(kind).map(|one| text(one, pointer));
    values.find(|value| !value.is_empty() && !taken.insert(*value)).map(str::to_owned)
}
