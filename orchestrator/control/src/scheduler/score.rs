//! Which of the possible nodes is best: each point of view gives 0 to 100, weighted and added.

use objects::pod::Pod;

use super::affinity;
use super::cluster::{Cluster, NodeRow, load};
use super::filter::term_matches;
use super::spread;
use crate::membership::ZONE;

/// The best score of one point of view.
const BEST: i64 = 100;

/// Weights, upstream's where upstream has the same.
const LEAST_ALLOCATED: i64 = 1;
const BALANCED: i64 = 1;
const TAINTS: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const POD_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
/// Equal pods lie apart by default: first over racks, then over nodes.
const OWN_RACK: i64 = 2;
const OWN_NODE: i64 = 3;

/// Scores the nodes at `places`, in that order.
pub(super) fn all(cluster: &Cluster<'_>, pod: &Pod, places: &[usize]) -> Vec<i64> {
    let rows: Vec<&NodeRow> = places.iter().filter_map(|place| cluster.nodes.get(*place)).collect();
    if rows.len() < 2 {
        return vec![0; rows.len()];
    }
    let mut totals = vec![0; rows.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    let asked = load(&pod.spec);
    add(LEAST_ALLOCATED, rows.iter().map(|row| least_allocated(row, asked)).collect());
    add(BALANCED, rows.iter().map(|row| balanced(row, asked)).collect());
    add(TAINTS, fewer_is_better(rows.iter().map(|row| mild_taints(pod, row)).collect()));
    add(NODE_AFFINITY, more_is_better(rows.iter().map(|row| node_wishes(pod, row)).collect()));
    let near = affinity::preferences(cluster, pod);
    if !near.is_empty() {
        let sum = |row: &&NodeRow| {
            let hits = near.iter().filter(|((key, value), _)| row.label(key) == Some(value));
            hits.map(|(_, weight)| weight).sum()
        };
        add(POD_AFFINITY, more_is_better(rows.iter().map(sum).collect()));
    }
    let wishes = spread::wishes(cluster, pod);
    for wish in &wishes {
        let worst = wish.counts.values().copied().max().unwrap_or(0).saturating_add(1);
        let counts = rows.iter().map(|row| wish.count(row).unwrap_or(worst)).collect();
        add(SPREAD, fewer_is_better(counts));
    }
    if pod.spec.topology_spread_constraints.is_empty() {
        let siblings: Vec<i64> = rows.iter().map(|row| siblings_on(row, pod)).collect();
        add(
            OWN_RACK,
            fewer_is_better(rows.iter().map(|row| siblings_in_rack(cluster, row, pod)).collect()),
        );
        add(OWN_NODE, fewer_is_better(siblings));
    }
    totals
}

/// Spreads scores so that the fewest gets 100 and the most 0; all equal get 100.
fn fewer_is_better(counts: Vec<i64>) -> Vec<i64> {
    let (least, most) = bounds(&counts);
    let span = most - least;
    let score = |count| if span == 0 { BEST } else { (most - count) * BEST / span };
    counts.into_iter().map(score).collect()
}

fn more_is_better(counts: Vec<i64>) -> Vec<i64> {
    let (least, most) = bounds(&counts);
    let span = most - least;
    let score = |count| if span == 0 { BEST } else { (count - least) * BEST / span };
    counts.into_iter().map(score).collect()
}

fn bounds(counts: &[i64]) -> (i64, i64) {
    let least = counts.iter().copied().min().unwrap_or(0);
    (least, counts.iter().copied().max().unwrap_or(0))
}

fn capacity(row: &NodeRow) -> (i64, i64) {
    let get = |name: &str| row.capacity.get(name).copied().unwrap_or(0);
    (get("cpu"), get("memory"))
}

fn least_allocated(row: &NodeRow, asked: (i64, i64)) -> i64 {
    let free = |capacity: i64, taken: i64| {
        if capacity == 0 || taken > capacity { 0 } else { (capacity - taken) * BEST / capacity }
    };
    let (cpu, memory) = capacity(row);
    i64::midpoint(free(cpu, row.load.0 + asked.0), free(memory, row.load.1 + asked.1))
}

/// 100 when CPU and memory are used in the same proportion.
fn balanced(row: &NodeRow, asked: (i64, i64)) -> i64 {
    let used = |capacity: i64, taken: i64| {
        if capacity == 0 { BEST } else { (taken.saturating_mul(BEST) / capacity).min(BEST) }
    };
    let (cpu, memory) = capacity(row);
    let (cpu, memory) = (used(cpu, row.load.0 + asked.0), used(memory, row.load.1 + asked.1));
    BEST - (cpu - memory).abs() / 2
}

/// Taints that discourage without forbidding.
fn mild_taints(pod: &Pod, row: &NodeRow) -> i64 {
    let mild = row.node.spec.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let borne =
        |taint: &&objects::node::Taint| pod.spec.tolerations.iter().any(|one| one.tolerates(taint));
    i64::try_from(mild.filter(|taint| !borne(taint)).count()).unwrap_or(i64::MAX)
}

fn node_wishes(pod: &Pod, row: &NodeRow) -> i64 {
    let affinity = pod.spec.affinity.as_ref().and_then(|one| one.node_affinity.as_ref());
    let wishes =
        affinity.map_or(&[][..], |one| &one.preferred_during_scheduling_ignored_during_execution);
    let granted = wishes.iter().filter(|wish| term_matches(&wish.preference, row));
    granted.map(|wish| wish.weight).sum()
}

/// Pods of the same controller on a node; a pod of its own has no siblings.
fn siblings_on(row: &NodeRow, pod: &Pod) -> i64 {
    let Some(owner) = pod.metadata.controller() else { return 0 };
    let same = |other: &&std::sync::Arc<Pod>| {
        other.metadata.is_controlled_by(&owner.uid) && !other.metadata.is_deleting()
    };
    i64::try_from(row.pods.iter().filter(same).count()).unwrap_or(i64::MAX)
}

/// The same over a node's rack; without a rack the node stands for itself.
fn siblings_in_rack(cluster: &Cluster<'_>, row: &NodeRow, pod: &Pod) -> i64 {
    let Some(rack) = row.label(ZONE) else { return siblings_on(row, pod) };
    let others = cluster.nodes.iter().filter(|other| other.label(ZONE) == Some(rack));
    others.map(|other| siblings_on(other, pod)).sum()
}
