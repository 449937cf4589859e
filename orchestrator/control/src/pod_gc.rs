//! Pods that nobody will ever finish: those of deleted nodes, and those deleted before they
//! got a node; and the oldest of those that ended, when there are too many.
//!
//! A pod that was said to go and did not is said to stay, as upstream's disruption controller does.

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::pod::Pod;
use serde_json::json;

use crate::action::{Action, Steps, Target, node_reference};
use crate::lifecycle::disrupted;
use crate::view::{Key, View};
use crate::wake::Touch;

/// The pods of a node that came or went.
#[must_use]
pub fn pods_of_node(view: &View, touch: &Touch) -> Vec<Key> {
    if !touch.came_or_went() {
        return Vec::new();
    }
    view.pods_on(&touch.key.name).map(|pod| Key::of(&pod.metadata)).collect()
}

/// The key of all pods that ended, taken together.
fn ended() -> Key {
    Key::new("", "")
}

/// How long a pod that is to go may take to begin; upstream's.
const STALE: SignedDuration = SignedDuration::from_mins(2);
/// Pods deleted in one round.
const BURST: usize = 500;

/// The pod; all that ended too, when it is one of them.
#[must_use]
pub fn of_pod(_view: &View, touch: &Touch) -> Vec<Key> {
    let mut keys = vec![touch.key.clone()];
    if touch.after.is_some() && touch.typed::<Pod>().any(Pod::is_finished) {
        keys.push(ended());
    }
    keys
}

/// Every pod, and all that ended.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    let mut keys = view.pods.keys();
    keys.push(ended());
    keys
}

/// Deletes the oldest of the pods that ended, when there are too many.
fn thin_out(view: &View) -> Steps {
    let most = view.settings.terminated_pods_max;
    let all = view.pods.iter();
    let mut all: Vec<_> =
        all.filter(|pod| pod.is_finished() && !pod.metadata.is_deleting()).collect();
    let surplus = all.len().saturating_sub(most);
    if most == 0 || surplus == 0 {
        return Steps::none();
    }
    all.sort_by_key(|pod| (pod.metadata.creation_timestamp, pod.metadata.name.clone()));
    let oldest = all.into_iter().take(surplus.min(BURST));
    oldest.map(|pod| Action::remove_pod(pod)).collect::<Vec<_>>().into()
}

/// Plans the step for one pod.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    if *key == ended() {
        return thin_out(view);
    }
    let Some(pod) = view.pods.get(&key.namespace, &key.name) else { return Steps::none() };
    if !pod.is_bound() {
        // One that is held by a finalizer goes when that does, and not before.
        if pod.metadata.is_deleting() && pod.metadata.finalizers.is_empty() {
            return vec![Action::remove_pod(pod)].into();
        }
        return Steps::none();
    }
    if view.nodes.get("", &pod.spec.node_name).is_some() {
        return stay(pod, now);
    }
    let (target, absent) = (Target::of(&**pod), vec![node_reference(&pod.spec.node_name)]);
    // Jobs must know that it is not the pod's own failure; it is deleted by the round that sees it.
    let why = disrupted(pod, "DeletionByPodGC", "PodGC: node no longer exists", now);
    if let Some(conditions) = why.filter(|_| !pod.is_finished()) {
        let body = Box::new(json!({"status": {"phase": "Failed", "conditions": conditions}}));
        return vec![Action::Release { target, absent, subresource: Some("status"), body }].into();
    }
    vec![Action::DeleteIfGone { target, absent, grace_seconds: Some(0) }].into()
}

/// Takes back that a pod is to go, when it has not gone for so long.
fn stay(pod: &Pod, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let said = find_condition(&pod.status.conditions, "DisruptionTarget");
    let Some(said) = said.filter(|one| one.is_true()) else { return steps };
    if pod.metadata.is_deleting() || pod.is_finished() {
        return steps;
    }
    let since = said.last_transition_time.map_or(now, |at| at.0);
    let due = since.saturating_add(STALE).unwrap_or(Timestamp::MAX);
    if now < due {
        steps.look_again(due);
        return steps;
    }
    let mut conditions = pod.status.conditions.clone();
    set_condition(&mut conditions, Condition::new(&said.kind, false, "", ""), now);
    let body = json!({ "conditions": conditions });
    steps.push(Action::patch_status(Target::of(pod), body));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Set;
    use objects::meta::ObjectMeta;
    use objects::node::Node;
    use std::sync::Arc;

    #[track_caller]
    fn check(node_name: &str, deleting: bool, expected: usize) {
        let mut pod = Pod { metadata: ObjectMeta::in_namespace("n", "p"), ..Pod::blank() };
        node_name.clone_into(&mut pod.spec.node_name);
        pod.metadata.deletion_timestamp = deleting.then(|| Timestamp::UNIX_EPOCH.into());
        let node = Node { metadata: ObjectMeta::named("here"), ..Node::blank() };
        let view = View {
            pods: Set::from_iter([Arc::new(pod)]),
            nodes: Set::from_iter([Arc::new(node)]),
            ..View::default()
        };
        let steps = reconcile(&view, &Key::new("n", "p"), Timestamp::UNIX_EPOCH);
        assert_eq!(steps.actions.len(), expected, "{steps:?}");
    }

    #[test]
    fn only_pods_without_a_future_go() {
        check("here", false, 0);
        check("here", true, 0);
        check("", false, 0);
        check("", true, 1);
        check("gone", false, 1);
        check("gone", true, 1);
    }

    #[test]
    fn who_loses_its_node_has_failed_without_fault_before_it_goes() {
        let mut pod = Pod { metadata: ObjectMeta::in_namespace("n", "p"), ..Pod::blank() };
        "gone".clone_into(&mut pod.spec.node_name);
        let plan = |pod: &Pod| {
            let view = View { pods: Set::from_iter([Arc::new(pod.clone())]), ..View::default() };
            reconcile(&view, &Key::new("n", "p"), Timestamp::UNIX_EPOCH).actions.remove(0)
        };
        let Action::Release { subresource, body, .. } = plan(&pod) else { panic!("not told why") };
        assert_eq!((subresource, &body["status"]["phase"]), (Some("status"), &json!("Failed")));
        assert_eq!(body["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        pod.status = serde_json::from_value(body["status"].clone()).unwrap();
        assert!(matches!(plan(&pod), Action::DeleteIfGone { grace_seconds: Some(0), .. }));
    }

    #[test]
    fn who_was_to_go_and_did_not_is_said_to_stay() {
        let start = Timestamp::UNIX_EPOCH;
        let mut pod = Pod { metadata: ObjectMeta::in_namespace("n", "p"), ..Pod::blank() };
        let said = Condition::new("DisruptionTarget", true, "PreemptionByScheduler", "");
        set_condition(&mut pod.status.conditions, said, start);
        let later = |seconds| start.saturating_add(SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(stay(&pod, later(60)).again_at, Some(later(120)));
        let steps = stay(&pod, later(120));
        let Action::Patch { body, .. } = &steps.actions[0] else { panic!("{steps:?}") };
        assert_eq!(body["status"]["conditions"][0]["status"], "False");
        pod.metadata.deletion_timestamp = Some(start.into());
        assert_eq!(stay(&pod, later(120)), Steps::none());
    }

    #[test]
    fn one_that_is_held_is_not_asked_to_go_again() {
        let mut pod = Pod { metadata: ObjectMeta::in_namespace("n", "p"), ..Pod::blank() };
        pod.metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH.into());
        pod.metadata.finalizers = vec!["foregroundDeletion".to_owned()];
        let view = View { pods: Set::from_iter([Arc::new(pod)]), ..View::default() };
        let steps = reconcile(&view, &Key::new("n", "p"), Timestamp::UNIX_EPOCH);
        assert_eq!(steps, Steps::none());
    }

    #[test]
    fn of_too_many_that_ended_the_oldest_go() {
        let pod = |number: i64, phase: &str| {
            let name = format!("p{number}");
            let mut pod = Pod { metadata: ObjectMeta::in_namespace("n", &name), ..Pod::blank() };
            pod.metadata.creation_timestamp =
                Some(Timestamp::from_second(100 - number).unwrap().into());
            phase.clone_into(&mut pod.status.phase);
            Arc::new(pod)
        };
        let phases = ["Succeeded", "Failed", "Running", "Succeeded"];
        let pods = (0..).zip(phases).map(|(number, phase)| pod(number, phase));
        let mut view = View { pods: pods.collect(), ..View::default() };
        let gone = |view: &View| -> Vec<String> {
            let steps = reconcile(view, &ended(), Timestamp::UNIX_EPOCH);
            steps.actions.iter().map(|one| one.target().unwrap().name.clone()).collect()
        };
        view.settings.terminated_pods_max = 3;
        assert_eq!(gone(&view), [""; 0]);
        view.settings.terminated_pods_max = 1;
        assert_eq!(gone(&view), ["p3", "p1"]);
        view.settings.terminated_pods_max = 0;
        assert_eq!(gone(&view), [""; 0]);
    }
}
