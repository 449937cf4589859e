//! Affinity between pods: near whom a pod must be, and far from whom.

use serde_json::Value;

use crate::scheduler::census::{GroupKey, Holding, at};
use crate::scheduler::framework::{BEST, Change, Cycle, Interest, Plugin, Point, Refusal, Scope};
use crate::scheduler::needs::PodTerm;
use crate::scheduler::snapshot::{Kind, Snapshot};
use crate::scheduler::topology::NodeId;

/// `podAffinity` and `podAntiAffinity`, required and preferred, of both sides.
#[derive(Debug)]
pub(super) struct InterPodAffinity {
    /// What a running pod's required affinity weighs in favour of those it asks for.
    hard_weight: i64,
    /// Are the wishes of running pods left out?
    ignore_wishes: bool,
}

impl InterPodAffinity {
    /// Reads `hardPodAffinityWeight` and `ignorePreferredTermsOfExistingPods`.
    pub(super) fn new(args: &Value) -> Self {
        let ignore = args.get("ignorePreferredTermsOfExistingPods").and_then(Value::as_bool);
        Self {
            hard_weight: args.get("hardPodAffinityWeight").and_then(Value::as_i64).unwrap_or(1),
            ignore_wishes: ignore.unwrap_or(false),
        }
    }

    /// What the terms of running pods about this one weigh at a node.
    fn welcome(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let topology = &cycle.snapshot.topology;
        let terms = cycle.snapshot.census.terms_about(cycle.questions.group);
        let each = terms.filter_map(|(key, holding, counts)| {
            let weight = match holding {
                Holding::Away => return None,
                Holding::Wish => i64::from(!self.ignore_wishes),
                Holding::Near => self.hard_weight,
            };
            Some(weight * at(counts, topology.value(key, node)?))
        });
        each.sum()
    }
}

/// Does nobody anywhere match the terms, so that the first of a group may begin?
fn nobody(cycle: &Cycle<'_>) -> bool {
    let Some((matcher, keys)) = &cycle.questions.near else { return false };
    let census = &cycle.snapshot.census;
    census.total(*matcher) == 0
        || keys.iter().all(|(_, counter)| census.per_value(*counter).iter().all(|n| *n == 0))
}

/// Are the pods it must be near to here?
fn is_near(cycle: &Cycle<'_>, node: NodeId) -> bool {
    let Some((_, keys)) = &cycle.questions.near else { return true };
    let (census, topology) = (&cycle.snapshot.census, &cycle.snapshot.topology);
    let mut all = true;
    for (key, counter) in keys {
        let Some(value) = topology.value(*key, node) else { return false };
        all &= at(census.per_value(*counter), value) > 0;
    }
    all || (cycle.questions.near_itself && nobody(cycle))
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score, Point::NormalizeScore]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        let questions = cycle.questions;
        let mut terms = cycle.snapshot.census.terms_about(questions.group);
        let unwelcome = terms.any(|(_, holding, _)| holding == Holding::Away);
        let asks = questions.near.is_some() || !questions.far.is_empty() || unwelcome;
        Ok(if asks { Interest::Ask } else { Interest::Skip })
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let (census, topology) = (&cycle.snapshot.census, &cycle.snapshot.topology);
        if !is_near(cycle, node) {
            return Err(Refusal::lasting(self.name(), "node(s) didn't match pod affinity rules"));
        }
        for (key, counter) in &cycle.questions.far {
            if topology.value(*key, node).is_some_and(|v| at(census.per_value(*counter), v) > 0) {
                let reason = "node(s) didn't match pod anti-affinity rules";
                return Err(Refusal::curable(self.name(), reason));
            }
        }
        for (key, holding, counts) in census.terms_about(cycle.questions.group) {
            let here = || topology.value(key, node).is_some_and(|value| at(counts, value) > 0);
            if holding == Holding::Away && here() {
                let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
                return Err(Refusal::curable(self.name(), reason));
            }
        }
        Ok(())
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        let mut terms = cycle.snapshot.census.terms_about(cycle.questions.group);
        let held = terms.any(|(_, holding, _)| holding != Holding::Away);
        if held || !cycle.questions.wishes.is_empty() { Interest::Ask } else { Interest::Skip }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let (census, topology) = (&cycle.snapshot.census, &cycle.snapshot.topology);
        let own = cycle.questions.wishes.iter().filter_map(|(weight, key, counter)| {
            let value = topology.value(*key, node)?;
            Some(weight * at(census.per_value(*counter), value))
        });
        own.sum::<i64>() + self.welcome(cycle, node)
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], scores: &mut [i64]) {
        let least = scores.iter().copied().min().unwrap_or(0);
        let span = scores.iter().copied().max().unwrap_or(0) - least;
        for score in scores {
            *score = if span == 0 { 0 } else { (*score - least) * BEST / span };
        }
    }

    fn may_help(&self, snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        let means = |terms: &[PodTerm], pod: &objects::pod::Pod| {
            let group = GroupKey {
                namespace: pod.metadata.namespace.clone(),
                labels: pod.metadata.labels.clone(),
                controller: String::new(),
                deleting: false,
            };
            terms.iter().any(|term| snapshot.means(&term.who, &group))
        };
        match change {
            Change::PodPlaced(pod) => means(&kind.needs.affinity, pod),
            // Whether the pod that went kept this one away is not worth finding out twice.
            Change::PodGone(pod) => {
                means(&kind.needs.anti_affinity, pod) || crate::scheduler::holds_away(pod)
            }
            Change::NodeAdded(_) | Change::NodeChanged(_) | Change::Namespace => true,
            Change::Storage => false,
        }
    }
}
