//! Empties nodes for maintenance, and gives them back.
//!
//! An operator annotates a node with [`WANTED`]: `drain`, or `force`, which also ends pods that
//! nobody will make anew. The node is closed to new pods; its router takes back what it announced
//! and says so ([`objects::node::ROUTES`]); then its pods are evicted as their budgets allow, and
//! when none is left but those that belong to the node itself [`STATE`] says `ready`. Traffic
//! leaves before those who answer it do. Taking the annotation off opens the node again, unless it
//! was closed before. Spec: `kubectl drain`, done by the cluster.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::node::{Node, ROUTES, ROUTES_ANNOUNCED};
use objects::pod::Pod;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::view::{Key, View};
use crate::wake::Touch;

/// Annotation by which an operator wants a node empty: `drain` or `force`.
pub const WANTED: &str = "muster.dev/maintenance";
/// Annotation that says how far that has come: `draining`, `blocked` or `ready`.
pub const STATE: &str = "muster.dev/maintenance-state";
/// Annotation: since when the node is being emptied.
const SINCE: &str = "muster.dev/maintenance-since";
/// How long pods stay for the sake of a router that does not say it is done: a router takes a
/// second or three, and one that is dead announces nothing any more.
const ROUTER_WAIT: SignedDuration = SignedDuration::from_secs(30);
/// Annotation: we closed the node, so we open it again.
const CLOSED: &str = "muster.dev/closed-for-maintenance";
/// When an eviction that a budget refused is asked for again.
const PATIENCE: SignedDuration = SignedDuration::from_secs(5);
/// Pods that a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The node, when anything but its health changed.
#[must_use]
pub fn of_node(_view: &View, touch: &Touch) -> Vec<Key> {
    let mut sides = touch.typed::<Node>();
    if let (Some(before), Some(after)) = (sides.next(), sides.next())
        && before.metadata.annotations == after.metadata.annotations
        && before.spec.unschedulable == after.spec.unschedulable
    {
        return Vec::new();
    }
    vec![touch.key.clone()]
}

/// The nodes of a pod, as far as they are wanted empty.
#[must_use]
pub fn of_pod(view: &View, touch: &Touch) -> Vec<Key> {
    let wanted = |name: &String| {
        let node = view.nodes.get("", name);
        node.is_some_and(|node| node.metadata.annotation(WANTED).is_some())
    };
    let names = touch.typed::<Pod>().map(|pod| pod.spec.node_name.clone()).filter(wanted);
    let mut keys: Vec<Key> = names.map(|name| Key::new("", &name)).collect();
    keys.dedup();
    keys
}

/// Plans the steps for one node.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(node) = view.nodes.get("", &key.name) else { return steps };
    if node.metadata.is_deleting() {
        return steps;
    }
    let wanted = node.metadata.annotation(WANTED);
    let Some(wanted) = wanted.filter(|one| ["drain", "force"].contains(one)) else {
        give_back(node, &mut steps);
        return steps;
    };
    if !node.spec.unschedulable || node.metadata.annotation(STATE).is_none() {
        close(node, now, &mut steps);
        return steps;
    }
    if let Some(until) = waits_for_router(node, now) {
        steps.look_again(until);
        return steps;
    }
    let guests: Vec<&Arc<Pod>> =
        view.pods_on(&key.name).filter(|pod| !belongs_to_node(view, pod)).collect();
    let lost = |pod: &&&Arc<Pod>| pod.metadata.controller().is_none() && wanted != "force";
    let bare = guests.iter().find(lost).filter(|pod| !pod.metadata.is_deleting());
    let state = match (guests.is_empty(), bare) {
        (true, _) => "ready",
        (false, Some(_)) => "blocked",
        (false, None) => "draining",
    };
    tell(node, state, bare.map(|pod| &***pod), &mut steps);
    for pod in &guests {
        if pod.metadata.is_deleting() || lost(&pod) {
            continue;
        }
        let target = Target::of(&***pod);
        let message = format!("Evicted from node {} for maintenance", key.name);
        let note = Some(Box::new(Note::normal(&target, "Evicted", message)));
        steps.push(Action::Evict { target, note });
    }
    if !guests.is_empty() {
        steps.look_again(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    steps
}

/// Keeps new pods away, and asks the router to take back its routes.
fn close(node: &Node, now: Timestamp, steps: &mut Steps) {
    let target = Target::of(node);
    let mut body =
        json!({"metadata": {"annotations": {STATE: "draining", SINCE: now.to_string()}}});
    if !node.spec.unschedulable
        && let Some(fields) = body.as_object_mut()
    {
        fields.insert("spec".to_owned(), json!({"unschedulable": true}));
        if let Some(annotations) = body.pointer_mut("/metadata/annotations") {
            annotations[CLOSED] = json!("true");
        }
    }
    let message = format!("Node {} is being emptied for maintenance", node.metadata.name);
    let note = Note::normal(&target, "Draining", message);
    steps.push(Action::patch(target, body).telling(note));
}

/// Until when to wait for the node's router at most; `None` when there is nothing to wait for.
fn waits_for_router(node: &Node, now: Timestamp) -> Option<Timestamp> {
    let announces = node.metadata.annotation(ROUTES) == Some(ROUTES_ANNOUNCED);
    let since: Timestamp = node.metadata.annotation(SINCE)?.parse().ok()?;
    let until = since.saturating_add(ROUTER_WAIT).ok()?;
    (announces && now < until).then_some(until)
}

/// Pods that go with their node: daemons, what the node runs by itself, and what has ended.
fn belongs_to_node(view: &View, pod: &Pod) -> bool {
    let daemon = pod.metadata.controller().filter(|one| one.kind == "DaemonSet");
    let kept = daemon
        .is_some_and(|one| view.daemon_sets.get(&pod.metadata.namespace, &one.name).is_some());
    kept || pod.is_finished() || pod.metadata.annotation(MIRROR).is_some()
}

fn tell(node: &Node, state: &'static str, bare: Option<&Pod>, steps: &mut Steps) {
    if node.metadata.annotation(STATE) == Some(state) {
        return;
    }
    let target = Target::of(node);
    let name = &node.metadata.name;
    let note = match (state, bare) {
        ("ready", _) => {
            Note::normal(&target, "ReadyForMaintenance", format!("Node {name} is empty"))
        }
        ("blocked", Some(pod)) => {
            let pod = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
            let message =
                format!("Pod {pod} has no controller and would be lost; {WANTED}=force ends it");
            Note::warning(&target, "DrainBlocked", message)
        }
        _ => Note::normal(
            &target,
            "Draining",
            format!("Node {name} is being emptied for maintenance"),
        ),
    };
    let body = json!({"metadata": {"annotations": {STATE: state}}});
    steps.push(Action::patch(target, body).telling(note));
}

fn give_back(node: &Node, steps: &mut Steps) {
    let closed = node.metadata.annotation(CLOSED).is_some();
    if !closed && node.metadata.annotation(STATE).is_none() {
        return;
    }
    let mut body = json!({"metadata": {"annotations": {STATE: null, CLOSED: null, SINCE: null}}});
    if closed
        && node.spec.unschedulable
        && let Some(fields) = body.as_object_mut()
    {
        fields.insert("spec".to_owned(), json!({"unschedulable": Value::Null}));
    }
    let target = Target::of(node);
    let message = format!("Node {} is back from maintenance", node.metadata.name);
    let note = Note::normal(&target, "MaintenanceEnded", message);
    steps.push(Action::patch(target, body).telling(note));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::kind;

    fn pod(name: &str, owner: Option<&str>) -> Value {
        let owners: Vec<Value> = owner
            .map(|kind| json!({"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true}))
            .into_iter()
            .collect();
        json!({
            "metadata": {"name": name, "namespace": "n", "ownerReferences": owners},
            "spec": {"nodeName": "a", "containers": []},
        })
    }

    /// The state of node `a` with these pods, and who is asked to go.
    #[track_caller]
    fn check(wanted: &str, pods: &[(&str, Option<&str>)], state: &str, evicted: &[&str]) {
        let mut world = World::default();
        world.add_node("a", "r1");
        world.add(
            &kind::DAEMON_SET,
            json!({"metadata": {"name": "o", "namespace": "n"}, "spec": {}}),
        );
        for (name, owner) in pods {
            world.add(&kind::POD, pod(name, *owner));
        }
        let notes = json!({"metadata": {"annotations": {WANTED: wanted, STATE: "draining"}}, "spec": {"unschedulable": true}});
        world.change(&kind::NODE, "", "a", &notes);
        let view = world.view();
        let steps = reconcile(&view, &Key::new("", "a"), world.now);
        let mut told = "draining";
        let mut asked = Vec::new();
        for step in &steps.actions {
            match step {
                Action::Evict { target, .. } => asked.push(target.name.as_str()),
                Action::Patch { body, .. } => {
                    told = body["metadata"]["annotations"][STATE].as_str().unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((told, asked.as_slice()), (state, evicted));
    }

    #[test]
    fn guests_are_asked_to_go_and_daemons_stay() {
        check("drain", &[], "ready", &[]);
        check("drain", &[("d", Some("DaemonSet"))], "ready", &[]);
        check("drain", &[("d", Some("DaemonSet")), ("w", Some("ReplicaSet"))], "draining", &["w"]);
        check("drain", &[("bare", None), ("w", Some("ReplicaSet"))], "blocked", &["w"]);
        check("force", &[("bare", None)], "draining", &["bare"]);
    }

    #[test]
    fn pods_stay_until_the_router_has_let_go() {
        let mut world = World::default();
        world.add_node("a", "r1");
        world.add(&kind::POD, pod("w", Some("ReplicaSet")));
        let wanted = json!({"metadata": {"annotations": {WANTED: "drain", ROUTES: "announced"}}});
        world.change(&kind::NODE, "", "a", &wanted);
        let key = Key::new("", "a");
        let first = reconcile(&world.view(), &key, world.now);
        let Action::Patch { body, .. } = &first.actions[0] else { panic!("{first:?}") };
        world.change(&kind::NODE, "", "a", &body.clone());
        let later = |world: &mut World, seconds| {
            let now = world.now + SignedDuration::from_secs(seconds);
            reconcile(&world.view(), &key, now).actions.len()
        };
        assert_eq!((later(&mut world, 0), later(&mut world, 29)), (0, 0), "the router is not done");
        assert_eq!(later(&mut world, 30), 1, "a dead router holds nobody up for ever");
        let done = json!({"metadata": {"annotations": {ROUTES: "withdrawn"}}});
        world.change(&kind::NODE, "", "a", &done);
        assert_eq!(later(&mut world, 1), 1, "the router is done");
    }

    #[test]
    fn a_node_is_closed_first_and_opened_again_if_we_closed_it() {
        let mut world = World::default();
        for name in ["a", "b"] {
            world.add_node(name, "r1");
            let wanted = json!({"metadata": {"annotations": {WANTED: "drain"}}});
            world.change(&kind::NODE, "", name, &wanted);
        }
        world.change(&kind::NODE, "", "b", &json!({"spec": {"unschedulable": true}}));
        world.settle(&[]);
        let state = |world: &World| -> Vec<(bool, Option<String>)> {
            let all = world.all::<Node>();
            let state = |node: &Node| node.metadata.annotation(STATE).map(str::to_owned);
            all.iter().map(|node| (node.spec.unschedulable, state(node))).collect()
        };
        assert_eq!(state(&world), [(true, Some("ready".into())), (true, Some("ready".into()))]);
        for name in ["a", "b"] {
            let over = json!({"metadata": {"annotations": {WANTED: null}}});
            world.change(&kind::NODE, "", name, &over);
        }
        world.settle(&[]);
        assert_eq!(state(&world), [(false, None), (true, None)]);
        assert!(world.told.iter().any(|one| one.starts_with("ReadyForMaintenance")));
    }
}
