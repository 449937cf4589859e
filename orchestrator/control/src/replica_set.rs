//! Keeps a number of equal pods: replica sets and replication controllers.
//!
//! Spec: upstream's replica set controller; differs in that there are no expectations,
//! because the view is waited for after every write.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::kind::{self, Kind};
use objects::meta::{LabelSelector, OwnerReference};
use objects::pod::Pod;
use objects::selector::Selector;
use objects::workload::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus, ReplicationController};
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target, encode};
use crate::view::{Key, View};

/// Pods made or deleted in one round: a typing mistake in `replicas` must not flood the API.
const BURST: usize = 500;
/// The condition that says why pods are missing.
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Plans the steps for one replica set.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let found = view.replica_sets.get(&key.namespace, &key.name);
    found.map_or_else(Steps::none, |set| keep(view, set, &kind::REPLICA_SET, now))
}

/// Plans the steps for one replication controller.
#[must_use]
pub fn reconcile_replication_controller(view: &View, key: &Key, now: Timestamp) -> Steps {
    let found = view.replication_controllers.get(&key.namespace, &key.name);
    let read = found.map(|one| as_replica_set(one));
    read.map_or_else(Steps::none, |set| keep(view, &set, &kind::REPLICATION_CONTROLLER, now))
}

/// Reads a replication controller as a replica set: only the selector is written differently.
fn as_replica_set(one: &ReplicationController) -> ReplicaSet {
    let labels = if one.spec.selector.is_empty() {
        &one.spec.template.metadata.labels
    } else {
        &one.spec.selector
    };
    ReplicaSet {
        metadata: one.metadata.clone(),
        spec: ReplicaSetSpec {
            replicas: one.spec.replicas,
            min_ready_seconds: one.spec.min_ready_seconds,
            selector: Some(LabelSelector::from_labels(labels.clone())),
            template: one.spec.template.clone(),
            ..ReplicaSetSpec::default()
        },
        status: one.status.clone(),
        ..ReplicaSet::blank()
    }
}

fn keep(view: &View, set: &ReplicaSet, kind: &'static Kind, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(selector) = set.spec.selector.as_ref().and_then(objects::LabelSelector::compile)
    else {
        return steps;
    };
    // The API refuses it; an empty selector would adopt the whole namespace.
    if selector.is_empty() {
        return steps;
    }
    let target = Target::of_kind(kind, &set.metadata);
    let owner = owner_reference(set, kind);
    let mut active = claim(view, set, &selector, &owner, &mut steps);
    let leaving = active.iter().filter(|pod| !pod.is_finished() && pod.metadata.is_deleting());
    // Replication controllers do not tell.
    let leaving = (*kind == kind::REPLICA_SET).then(|| leaving.count());
    active.retain(|pod| !pod.is_finished() && !pod.metadata.is_deleting());
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    let refused = view.refused.get(&Key::of(&set.metadata)).map(String::as_str);
    if !set.metadata.is_deleting() {
        // One that was refused is asked for alone, until the server takes it.
        let burst = if refused.is_some() { 1 } else { BURST };
        for _ in active.len()..wanted.min(active.len().saturating_add(burst)) {
            steps.push(create_pod(set, &owner, &target));
        }
        let surplus = active.len().saturating_sub(wanted).min(BURST);
        for pod in rank_for_deletion(&active, now).into_iter().take(surplus) {
            let message = format!("Deleted pod: {}", pod.metadata.name);
            steps.push(Action::Delete {
                target: Target::of(&**pod),
                grace_seconds: None,
                note: Some(Box::new(Note::normal(&target, "SuccessfulDelete", message))),
            });
        }
    }
    let conditions = conditions(set, refused.filter(|_| active.len() < wanted), now);
    tell_status(set, (&active, leaving), conditions, now, target, &mut steps);
    steps
}

/// The reference by which pods name their set.
fn owner_reference(set: &ReplicaSet, kind: &Kind) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        name: set.metadata.name.clone(),
        uid: set.metadata.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    }
}

/// Returns the set's pods; adopts those that match and are free, lets go of those that no
/// longer match.
fn claim<'a>(
    view: &'a View,
    set: &ReplicaSet,
    selector: &Selector,
    owner: &OwnerReference,
    steps: &mut Steps,
) -> Vec<&'a Arc<Pod>> {
    let mut members = Vec::new();
    for pod in view.pods_of(&set.metadata.uid) {
        if pod.metadata.namespace != set.metadata.namespace {
            continue;
        }
        if selector.matches(&pod.metadata.labels) {
            members.push(pod);
        } else if !pod.metadata.is_deleting() {
            let kept = pod.metadata.owner_references.iter();
            let kept: Vec<_> = kept.filter(|one| one.uid != set.metadata.uid).collect();
            let body = json!({"metadata": {"ownerReferences": kept}});
            steps.push(Action::patch(Target::of(&**pod), body));
        }
    }
    if set.metadata.is_deleting() {
        return members;
    }
    for pod in view.orphans(&set.metadata.namespace) {
        let free = !pod.metadata.is_deleting() && !pod.is_finished();
        if free && selector.matches(&pod.metadata.labels) {
            let mut owners = pod.metadata.owner_references.clone();
            owners.push(owner.clone());
            let body = json!({"metadata": {"ownerReferences": owners}});
            steps.push(Action::patch(Target::of(&**pod), body));
            members.push(pod);
        }
    }
    members
}

fn create_pod(set: &ReplicaSet, owner: &OwnerReference, target: &Target) -> Action {
    let template = &set.spec.template;
    // Generated names leave room for their five letters.
    let stem: String = set.metadata.name.chars().take(57).collect();
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{stem}-"),
            "namespace": set.metadata.namespace,
            "labels": template.metadata.labels,
            "annotations": template.metadata.annotations,
            "finalizers": template.metadata.finalizers,
            "ownerReferences": [owner],
        },
        "spec": encode(&template.spec),
    });
    Action::Create {
        kind: &kind::POD,
        namespace: set.metadata.namespace.clone(),
        object: Box::new(object),
        note: Some(Box::new(Note::normal(target, "SuccessfulCreate", "Created pod: "))),
    }
}

/// Orders pods so that those whose loss hurts least come first.
///
/// Spec: upstream `ActivePodsWithRanks`: without a node, not running, not ready, cheap by
/// annotation, doubled up on a node, ready for a shorter time, restarted more often, newer.
fn rank_for_deletion<'a>(active: &[&'a Arc<Pod>], now: Timestamp) -> Vec<&'a Arc<Pod>> {
    let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in active {
        *per_node.entry(&pod.spec.node_name).or_default() += 1;
    }
    let mut ranked: Vec<&Arc<Pod>> = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let phase = match pod.status.phase.as_str() {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        };
        let doubled = per_node.get(pod.spec.node_name.as_str()).copied().unwrap_or(0);
        let restarts: i64 =
            pod.status.container_statuses.iter().filter_map(|one| one.restart_count).sum();
        let created = pod.metadata.creation_timestamp.map_or(now, |at| at.0);
        (
            (pod.is_bound(), phase, pod.is_ready(), deletion_cost(pod)),
            (Reverse(doubled), Reverse(ready_since(pod).unwrap_or(now)), Reverse(restarts)),
            (Reverse(created), pod.metadata.name.clone()),
        )
    });
    ranked
}

fn deletion_cost(pod: &Pod) -> i64 {
    let cost = pod.metadata.annotation("controller.kubernetes.io/pod-deletion-cost");
    cost.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = find_condition(&pod.status.conditions, "Ready").filter(|one| one.is_true())?;
    ready.last_transition_time.map(|at| at.0)
}

/// When a pod counts, or will count, as available; `None` while it is not ready.
pub(crate) fn available_from(pod: &Pod, min_ready_seconds: i64) -> Option<Timestamp> {
    if !pod.is_ready() {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    ready_since(pod)?.checked_add(SignedDuration::from_secs(min_ready_seconds)).ok()
}

/// The set's conditions, with the one that says why it cannot have its pods.
fn conditions(set: &ReplicaSet, refused: Option<&str>, now: Timestamp) -> Vec<Condition> {
    let mut conditions = set.status.conditions.clone();
    match refused {
        Some(why) => {
            let failure = Condition::new(REPLICA_FAILURE, true, "FailedCreate", why);
            set_condition(&mut conditions, failure, now);
        }
        None => conditions.retain(|one| one.kind != REPLICA_FAILURE),
    }
    conditions
}

fn tell_status(
    set: &ReplicaSet,
    (active, leaving): (&[&Arc<Pod>], Option<usize>),
    conditions: Vec<Condition>,
    now: Timestamp,
    target: Target,
    steps: &mut Steps,
) {
    let (mut labeled, mut ready, mut available) = (0, 0, 0);
    let template = &set.spec.template.metadata.labels;
    for pod in active {
        let has = |(name, value): (&String, &String)| pod.metadata.label(name) == Some(value);
        labeled += i64::from(template.iter().all(has));
        ready += i64::from(pod.is_ready());
        match available_from(pod, set.spec.min_ready_seconds) {
            Some(at) if at <= now => available += 1,
            Some(at) => steps.look_again(at),
            None => (),
        }
    }
    let wanted = ReplicaSetStatus {
        replicas: Some(i64::try_from(active.len()).unwrap_or(i64::MAX)),
        fully_labeled_replicas: labeled,
        ready_replicas: ready,
        available_replicas: available,
        terminating_replicas: leaving.and_then(|count| i64::try_from(count).ok()),
        observed_generation: set.metadata.generation,
        conditions,
        ..set.status.clone()
    };
    if wanted != set.status {
        steps.push(Action::patch_status(target, status_body(&wanted)));
    }
}

/// The counts, zeros included: a merge patch keeps what it does not name.
fn status_body(status: &ReplicaSetStatus) -> Value {
    let mut body = json!({
        "replicas": status.replicas.unwrap_or(0),
        "fullyLabeledReplicas": status.fully_labeled_replicas,
        "readyReplicas": status.ready_replicas,
        "availableReplicas": status.available_replicas,
        "observedGeneration": status.observed_generation,
        "conditions": status.conditions,
    });
    if let (Some(leaving), Some(fields)) = (status.terminating_replicas, body.as_object_mut()) {
        fields.insert("terminatingReplicas".to_owned(), leaving.into());
    }
    body
}

#[cfg(test)]
mod tests;
