//! Gives pods their nodes.
//!
//! One pod at a time, highest priority first: filter the nodes that can take it, score those,
//! bind it to the best, and count it there before the next one is looked at. Why a pod cannot
//! be placed is one sentence with counts per reason, in upstream's words.
//!
//! *Limits*: no preemption, no volumes, one profile.

mod affinity;
mod cluster;
mod filter;
mod score;
mod spread;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use objects::condition::{Condition, find_condition, set_condition};
use objects::pod::Pod;
use serde_json::json;

use crate::action::{Action, Note, Steps, Target};
use crate::hash;
use crate::view::View;

use cluster::Cluster;

/// Plans bindings and reasons for every pod that waits.
#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let waiting = waiting(view);
    if waiting.is_empty() {
        return steps;
    }
    let mut cluster = Cluster::of(view);
    for pod in waiting {
        if !pod.spec.scheduling_gates.is_empty() {
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            tell(pod, "SchedulingGated", message, now, &mut steps);
            continue;
        }
        match place(&cluster, pod) {
            Ok(node) => {
                cluster.assume(pod, node);
                if let Some(node) = cluster.nodes.get(node) {
                    let node = node.node.metadata.name.clone();
                    steps.push(Action::Bind { target: Target::of(&**pod), node });
                }
            }
            Err(message) => tell(pod, "Unschedulable", &message, now, &mut steps),
        }
    }
    steps
}

/// Pods that want a node from us, in the order they get one.
fn waiting(view: &View) -> Vec<&Arc<Pod>> {
    let ours = |name: &str| name.is_empty() || name == view.settings.scheduler_name;
    let mut pods: Vec<_> = view
        .pods
        .iter()
        .filter(|pod| {
            !pod.is_bound()
                && !pod.is_finished()
                && !pod.metadata.is_deleting()
                && ours(&pod.spec.scheduler_name)
                && !view.assumed.contains_key(&pod.metadata.uid)
        })
        .collect();
    pods.sort_by_key(|pod| {
        let priority = pod.spec.priority.unwrap_or(0);
        (std::cmp::Reverse(priority), pod.metadata.creation_timestamp)
    });
    pods
}

/// Chooses the node for one pod, as its place in the table.
///
/// # Errors
///
/// The sentence that says why there is none.
fn place(cluster: &Cluster<'_>, pod: &Pod) -> Result<usize, String> {
    if cluster.nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let asks = filter::Asks::of(cluster, pod);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut feasible = Vec::new();
    for (place, node) in cluster.nodes.iter().enumerate() {
        match asks.refuses(node) {
            refusals if refusals.is_empty() => feasible.push(place),
            refusals => {
                for reason in refusals {
                    *reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    let scores = score::all(cluster, pod, &feasible);
    // Equal nodes take turns by pod, the same way every time.
    let turn = |place: usize| {
        let name = cluster.nodes.get(place).map_or("", |node| &node.node.metadata.name);
        hash::number(pod.metadata.uid.as_bytes(), hash::number(name.as_bytes(), 0))
    };
    let best = feasible.iter().zip(scores).max_by_key(|(place, score)| (*score, turn(**place)));
    match best {
        Some((place, _)) => Ok(*place),
        None => Err(sentence(cluster.nodes.len(), &reasons)),
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
fn sentence(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// Writes the reason into the pod's condition, once per reason.
fn tell(pod: &Arc<Pod>, reason: &'static str, message: &str, now: Timestamp, steps: &mut Steps) {
    let had = find_condition(&pod.status.conditions, "PodScheduled");
    let same =
        |one: &Condition| one.status == "False" && one.reason == reason && one.message == message;
    if had.is_some_and(same) {
        return;
    }
    let mut conditions = pod.status.conditions.clone();
    set_condition(&mut conditions, Condition::new("PodScheduled", false, reason, message), now);
    let target = Target::of(&**pod);
    let note =
        (reason == "Unschedulable").then(|| Note::warning(&target, "FailedScheduling", message));
    let step = Action::patch_status(target, json!({ "conditions": conditions }));
    steps.push(match note {
        Some(note) => step.telling(note),
        None => step,
    });
}

#[cfg(test)]
mod tests;
