//! How many pods of a group may be disrupted now.
//!
//! Spec: upstream's disruption controller: what is expected follows from the scale of the
//! pods' makers; a pod whose eviction was granted counts as gone for two minutes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, set_condition};
use objects::int_or_string::{IntOrString, Rounding};
use objects::kind::{self, Kind};
use objects::meta::OwnerReference;
use objects::pod::Pod;
use objects::policy::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use objects::time::Time;
use serde_json::{Map, Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::view::{Key, View};
use crate::wake::Touch;

/// How long a granted eviction is believed without the pod being deleted; upstream's.
const GRANTED: SignedDuration = SignedDuration::from_secs(120);

/// The budgets that select, or selected, a pod.
#[must_use]
pub fn of_pod(view: &View, touch: &Touch) -> Vec<Key> {
    let selects = |budget: &&Arc<PodDisruptionBudget>| {
        let selector = budget.spec.selector.as_ref().and_then(objects::LabelSelector::compile);
        selector.is_some_and(|one| touch.sides().any(|side| one.matches(&side.meta().labels)))
    };
    let all = view.budgets.inside(&touch.key.namespace).filter(selects);
    all.map(|budget| Key::of(&budget.metadata)).collect()
}

/// Plans the status of one budget.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(budget) = view.budgets.get(&key.namespace, &key.name) else { return steps };
    let selector = budget.spec.selector.as_ref().and_then(objects::LabelSelector::compile);
    let Some(selector) = selector else { return steps };
    let pods: Vec<&Arc<Pod>> = view
        .pods
        .inside(&key.namespace)
        .filter(|pod| !pod.is_finished() && selector.matches(&pod.metadata.labels))
        .collect();
    let mut wanted = budget.status.clone();
    wanted.observed_generation = budget.metadata.generation;
    wanted.disrupted_pods = still_granted(budget, &pods, now, &mut steps);
    let healthy = pods.iter().filter(|pod| {
        pod.is_ready()
            && !pod.metadata.is_deleting()
            && !wanted.disrupted_pods.contains_key(&pod.metadata.name)
    });
    let healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
    let target = Target::of(&**budget);
    if pods.is_empty() {
        steps.tell(Note::normal(&target, "NoPods", "No matching pods found"));
    }
    let condition = match expected(view, budget, &pods, &mut steps) {
        Ok((expected, desired)) => {
            let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
            wanted.expected_pods = Some(expected);
            wanted.desired_healthy = Some(desired);
            wanted.disruptions_allowed = Some(allowed);
            let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
            Condition::new("DisruptionAllowed", allowed > 0, reason, "")
        }
        Err(message) => {
            // Failing closed: nobody is disrupted by a budget that cannot be worked out.
            let told = format!("Failed to calculate the number of expected pods: {message}");
            steps.tell(Note::warning(&target, "CalculateExpectedPodCountFailed", told));
            wanted.disruptions_allowed = Some(0);
            wanted.expected_pods.get_or_insert(0);
            wanted.desired_healthy.get_or_insert(0);
            Condition::new("DisruptionAllowed", false, "SyncFailed", &message)
        }
    };
    wanted.current_healthy = Some(healthy);
    let generation = budget.metadata.generation;
    let condition = Condition { observed_generation: generation, ..condition };
    set_condition(&mut wanted.conditions, condition, now);
    if wanted != budget.status {
        let body = render(&budget.status, &wanted);
        steps.push(Action::patch_status(target, body));
    }
    steps
}

/// Evictions that were granted and may still come.
fn still_granted(
    budget: &PodDisruptionBudget,
    pods: &[&Arc<Pod>],
    now: Timestamp,
    steps: &mut Steps,
) -> BTreeMap<String, Time> {
    let mut kept = BTreeMap::new();
    for (name, at) in &budget.status.disrupted_pods {
        let there =
            pods.iter().any(|pod| pod.metadata.name == *name && !pod.metadata.is_deleting());
        let due = at.0.saturating_add(GRANTED).unwrap_or(Timestamp::MAX);
        if there && now < due {
            steps.look_again(due);
            kept.insert(name.clone(), *at);
        }
    }
    kept
}

/// How many pods there should be, and how many of them healthy.
fn expected(
    view: &View,
    budget: &PodDisruptionBudget,
    pods: &[&Arc<Pod>],
    steps: &mut Steps,
) -> Result<(i64, i64), String> {
    let count = i64::try_from(pods.len()).unwrap_or(i64::MAX);
    let share = |value: &IntOrString, total: i64| {
        value.resolve(total, Rounding::Up).ok_or_else(|| format!("{value} is no number"))
    };
    if let Some(most) = &budget.spec.max_unavailable {
        let expected = scale(view, budget, pods, steps)?;
        return Ok((expected, (expected - share(most, expected)?).max(0)));
    }
    match &budget.spec.min_available {
        Some(IntOrString::Int(fewest)) => Ok((count, *fewest)),
        Some(fewest) => {
            let expected = scale(view, budget, pods, steps)?;
            Ok((expected, share(fewest, expected)?))
        }
        None => Ok((count, 1)),
    }
}

/// The sum of what the pods' makers are asked to have.
///
/// Pods that nobody made count for nothing; upstream says so too, and advises a whole number.
fn scale(
    view: &View,
    budget: &PodDisruptionBudget,
    pods: &[&Arc<Pod>],
    steps: &mut Steps,
) -> Result<i64, String> {
    let mut makers: BTreeMap<&str, i64> = BTreeMap::new();
    if pods.iter().any(|pod| pod.metadata.controller().is_none()) {
        let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a \
                       result, the status of the PDB cannot be calculated correctly, which may \
                       result in undefined behavior. To account for these pods please set \
                       \".spec.minAvailable\" field of the PDB to an integer value.";
        steps.tell(Note::warning(&Target::of(budget), "UnmanagedPods", message));
    }
    for pod in pods {
        let ns = &pod.metadata.namespace;
        let Some(owner) = pod.metadata.controller() else { continue };
        // A deployment's sets are one maker, with its size, also in the middle of a rollout.
        let set = view.replica_sets.get(ns, &owner.name).filter(|_| owner.kind == "ReplicaSet");
        let above = set.and_then(|set| set.metadata.controller());
        if let Some(above) = above.filter(|one| one.kind == "Deployment")
            && let Some(found) = view.deployments.get(ns, &above.name)
            && found.metadata.uid == above.uid
        {
            makers.insert(&above.uid, found.spec.replicas.unwrap_or(1));
            continue;
        }
        let replicas = match owner.kind.as_str() {
            "ReplicaSet" => view.replica_sets.get(ns, &owner.name).map(|one| one.spec.replicas),
            "StatefulSet" => view.stateful_sets.get(ns, &owner.name).map(|one| one.spec.replicas),
            "ReplicationController" => {
                view.replication_controllers.get(ns, &owner.name).map(|one| one.spec.replicas)
            }
            _ => return Err(no_scale(owner)),
        };
        // A maker that is gone asks for none.
        makers.insert(&owner.uid, replicas.map_or(0, |one| one.unwrap_or(1)));
    }
    Ok(makers.values().sum())
}

/// Upstream's words for a maker that has no size to ask for.
fn no_scale(owner: &OwnerReference) -> String {
    let known = kind::by_gvk(&owner.api_version, &owner.kind);
    let resource = known.map_or_else(|| owner.kind.clone(), Kind::qualified_plural);
    format!("{resource} does not implement the scale subresource")
}

/// A merge patch; grants that ran out are said to be gone.
fn render(had: &PodDisruptionBudgetStatus, wanted: &PodDisruptionBudgetStatus) -> Value {
    let gone = had.disrupted_pods.keys().filter(|name| !wanted.disrupted_pods.contains_key(*name));
    let mut disrupted: Map<String, Value> = gone.map(|name| (name.clone(), Value::Null)).collect();
    disrupted.extend(wanted.disrupted_pods.iter().map(|(name, at)| (name.clone(), json!(at))));
    json!({
        "observedGeneration": wanted.observed_generation,
        "disruptedPods": disrupted,
        "disruptionsAllowed": wanted.disruptions_allowed,
        "currentHealthy": wanted.current_healthy,
        "desiredHealthy": wanted.desired_healthy,
        "expectedPods": wanted.expected_pods,
        "conditions": wanted.conditions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[track_caller]
    fn check(spec: Value, expected: (i64, i64, i64, &str)) {
        let mut world = World::default();
        world.add_node("a", "r1");
        world.add(
            &kind::REPLICA_SET,
            json!({
                "metadata": {"name": "web", "namespace": "n"},
                "spec": {
                    "replicas": 4, "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {}},
                },
            }),
        );
        world.settle(&[]);
        let name = world.all::<Pod>()[0].metadata.name.clone();
        // One is not ready, and its node is silent.
        let down = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        world.change(&kind::POD, "n", &name, &down);
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        world.add(
            &kind::POD_DISRUPTION_BUDGET,
            json!({
                "metadata": {"name": "b", "namespace": "n"}, "spec": spec,
            }),
        );
        world.settle(&["a"]);
        let status = world.all::<PodDisruptionBudget>()[0].status.clone();
        assert_eq!(status.current_healthy, Some(3));
        let condition = &status.conditions[0];
        let (count, desired, allowed, reason) = expected;
        assert_eq!(
            (
                status.expected_pods,
                status.desired_healthy,
                status.disruptions_allowed,
                condition.reason.as_str()
            ),
            (Some(count), Some(desired), Some(allowed), reason)
        );
    }

    #[test]
    fn makers_without_a_size_close_the_budget_and_pods_without_maker_count_for_nothing() {
        let told = |owner: Value, spec: Value| {
            let mut world = World::default();
            world.add_node("a", "r1");
            // Whom nobody owns the collector takes.
            let log = json!({"metadata": {"name": "log", "namespace": "n"}, "spec": {}});
            world.add(&kind::DAEMON_SET, log);
            let uid = &world.all::<objects::workload::DaemonSet>()[0].metadata.uid;
            let mut owner = owner;
            if let Some(owner) = owner.get_mut(0) {
                owner["uid"] = json!(uid);
            }
            let meta = json!({"name": "p", "namespace": "n", "labels": {"app": "web"},
                "ownerReferences": owner});
            world.add(&kind::POD, json!({"metadata": meta, "spec": {"nodeName": "a"}}));
            let mut spec = spec;
            spec["selector"] = json!({"matchLabels": {"app": "web"}});
            let meta = json!({"name": "b", "namespace": "n"});
            world.add(&kind::POD_DISRUPTION_BUDGET, json!({"metadata": meta, "spec": spec}));
            world.settle(&[]);
            let status = world.all::<PodDisruptionBudget>()[0].status.clone();
            let about = |line: &&String| !line.starts_with("RegisteredNode");
            let word = world.told.iter().find(about).cloned().unwrap_or_default();
            (status.conditions[0].reason.clone(), status.expected_pods, word)
        };
        let log = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "log",
            "controller": true}]);
        let (reason, _, word) = told(log, json!({"maxUnavailable": 1}));
        assert_eq!(reason, "SyncFailed");
        assert_eq!(
            word,
            "CalculateExpectedPodCountFailed Failed to calculate the number of expected pods: \
             daemonsets.apps does not implement the scale subresource"
        );
        let (reason, expected, word) = told(json!([]), json!({"minAvailable": "50%"}));
        assert_eq!((reason.as_str(), expected), ("InsufficientPods", Some(0)));
        assert!(word.starts_with("UnmanagedPods Pods selected by this"), "{word}");
        let (_, expected, word) = told(json!([]), json!({"minAvailable": 1}));
        assert_eq!((expected, word.as_str()), (Some(1), ""));
    }

    #[test]
    fn disruptions_are_allowed_as_far_as_the_group_bears_them() {
        check(json!({"minAvailable": 2}), (4, 2, 1, "SufficientPods"));
        check(json!({"minAvailable": "75%"}), (4, 3, 0, "InsufficientPods"));
        check(json!({"maxUnavailable": 2}), (4, 2, 1, "SufficientPods"));
        check(json!({"maxUnavailable": "25%"}), (4, 3, 0, "InsufficientPods"));
    }
}
