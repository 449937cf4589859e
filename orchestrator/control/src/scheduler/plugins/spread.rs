//! Topology spread constraints: how evenly pods lie over the domains of a label.

use crate::membership::ZONE;
use crate::scheduler::census::at;
use crate::scheduler::framework::{BEST, Change, Cycle, Interest, Plugin, Point, Refusal, Scope};
use crate::scheduler::snapshot::{Kind, Snapshot, SpreadQuestion};
use crate::scheduler::topology::NodeId;

/// Wishes of every pod with a controller that says nothing itself: key and skew; upstream's.
pub(in crate::scheduler) const DEFAULTS: &[(&str, i64)] =
    &[("kubernetes.io/hostname", 3), (ZONE, 5)];

/// `topologySpreadConstraints`.
///
/// The default constraints find a pod's like by its controller, where upstream merges the
/// selectors of the services and controllers that select it.
#[derive(Debug)]
pub(super) struct PodTopologySpread;

/// Is a node a domain for this rule, as far as the pod's own wishes about nodes say?
fn counts_for(cycle: &Cycle<'_>, rule: &SpreadQuestion, node: NodeId) -> bool {
    let Some(found) = cycle.snapshot.table.get(node) else { return false };
    let (name, labels) = (&found.node.metadata.name, &found.node.metadata.labels);
    let needs = &cycle.kind.needs;
    (!rule.rule.honor_affinity || needs.wants_node(name, labels))
        && (!rule.rule.honor_taints || found.hard.iter().all(|taint| needs.bears(taint)))
}

/// Are all nodes domains, so that the counts kept by value can be used as they are?
fn plain(cycle: &Cycle<'_>, rule: &SpreadQuestion, keys: &[usize]) -> bool {
    let needs = &cycle.kind.needs;
    let free = needs.selector.is_empty() && needs.required.is_none();
    let everywhere = |key: &usize| {
        let column = cycle.snapshot.topology.column(*key);
        column.is_some_and(|one| one.nodes().iter().sum::<usize>() == cycle.snapshot.table.len())
    };
    (free || !rule.rule.honor_affinity) && !rule.rule.honor_taints && keys.iter().all(everywhere)
}

/// Counts per value over the nodes that are domains; `None` marks a value that is none.
fn domains(cycle: &Cycle<'_>, rule: &SpreadQuestion, keys: &[usize]) -> Vec<Option<i64>> {
    let topology = &cycle.snapshot.topology;
    let Some(column) = topology.column(rule.key) else { return Vec::new() };
    if plain(cycle, rule, keys) {
        let counts = cycle.snapshot.census.per_value(rule.counter);
        let each = column.nodes().iter().enumerate();
        return each.map(|(value, nodes)| (*nodes > 0).then(|| at(counts, value))).collect();
    }
    let per_node = cycle.snapshot.census.per_node(rule.matcher);
    let mut counts = vec![None; column.len()];
    for (node, _) in cycle.snapshot.table.iter() {
        let Some(value) = column.of(node) else { continue };
        let complete = keys.iter().all(|key| topology.value(*key, node).is_some());
        if complete
            && counts_for(cycle, rule, node)
            && let Some(count) = counts.get_mut(value)
        {
            *count = Some(count.unwrap_or(0) + at(per_node, node));
        }
    }
    counts
}

fn rules(questions: &[SpreadQuestion], hard: bool) -> impl Iterator<Item = &SpreadQuestion> {
    questions.iter().filter(move |rule| rule.rule.hard == hard)
}

/// A logarithm in thousandths, straight between powers of two: exact enough to weigh by, and
/// the same on every machine.
fn logarithm(number: usize) -> i64 {
    let number = u64::try_from(number).unwrap_or(u64::MAX).max(1);
    let whole = number.ilog2();
    let power = 1_u64 << whole;
    let rest = (number - power).saturating_mul(1000) / power;
    let bits = u64::from(whole) * 1000 + rest;
    i64::try_from(bits * 693 / 1000).unwrap_or(i64::MAX)
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score, Point::NormalizeScore]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        let questions = &cycle.questions.spread;
        let keys: Vec<usize> = rules(questions, true).map(|rule| rule.key).collect();
        let (mut least, mut all) = (Vec::new(), Vec::new());
        for rule in rules(questions, true) {
            let counts = domains(cycle, rule, &keys);
            let found = counts.iter().flatten();
            let number = i64::try_from(found.clone().count()).unwrap_or(i64::MAX);
            let enough = rule.rule.min_domains.is_none_or(|wanted| number >= wanted);
            least.push(if enough { found.copied().min().unwrap_or(0) } else { 0 });
            all.push(Some(counts.into_iter().map(|count| count.unwrap_or(0)).collect()));
        }
        cycle.notes.least = least;
        cycle.notes.domains = all;
        Ok(if keys.is_empty() { Interest::Skip } else { Interest::Ask })
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let notes = cycle.notes.least.iter().zip(&cycle.notes.domains);
        for (rule, (least, counts)) in rules(&cycle.questions.spread, true).zip(notes) {
            let Some(value) = cycle.snapshot.topology.value(rule.key, node) else {
                let reason =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Refusal::lasting(self.name(), reason));
            };
            let here = counts.as_ref().map_or(0, |counts| at(counts, value));
            if here + i64::from(rule.rule.own) - least > rule.rule.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Refusal::curable(self.name(), reason));
            }
        }
        Ok(())
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, feasible: &[NodeId]) -> Interest {
        let soft: Vec<&SpreadQuestion> = rules(&cycle.questions.spread, false).collect();
        if soft.is_empty() {
            return Interest::Skip;
        }
        // Defaults do not ask that nodes have all keys.
        let own = !cycle.kind.needs.spread.is_empty();
        let keys: Vec<usize> =
            if own { soft.iter().map(|rule| rule.key).collect() } else { Vec::new() };
        let mut wished = Vec::new();
        for rule in soft {
            let counts = domains(cycle, rule, &keys);
            let mut seen = vec![false; counts.len()];
            for node in feasible {
                if let Some(value) = cycle.snapshot.topology.value(rule.key, *node)
                    && let Some(place) = seen.get_mut(value)
                {
                    *place = true;
                }
            }
            let values = seen.into_iter().filter(|seen| *seen).count();
            let counts = counts.into_iter().map(|count| count.unwrap_or(0)).collect();
            wished.push((counts, logarithm(values + 2)));
        }
        cycle.notes.wished = wished;
        Interest::Ask
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let own = !cycle.kind.needs.spread.is_empty();
        let mut sum = 0_i64;
        let rules = rules(&cycle.questions.spread, false).zip(&cycle.notes.wished);
        for (rule, (counts, weight)) in rules {
            let Some(value) = cycle.snapshot.topology.value(rule.key, node) else {
                // Such a node is no choice for who asked; for the defaults it just has nobody.
                if own {
                    return -1;
                }
                continue;
            };
            let skew = (rule.rule.max_skew - 1).saturating_mul(1000);
            sum =
                sum.saturating_add(at(counts, value).saturating_mul(*weight)).saturating_add(skew);
        }
        sum
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], scores: &mut [i64]) {
        let known = scores.iter().copied().filter(|score| *score >= 0);
        let least = known.clone().min().unwrap_or(0);
        let most = known.max().unwrap_or(0);
        for score in scores {
            *score = match *score {
                score if score < 0 => 0,
                _ if most == 0 => BEST,
                score => BEST.saturating_mul(most + least - score) / most,
            };
        }
    }

    fn may_help(&self, _snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        let concerns = |pod: &objects::pod::Pod| pod.metadata.namespace == kind.needs.namespace;
        match change {
            // Another pod in the least domain lets the others grow, and one gone makes room.
            Change::PodPlaced(pod) | Change::PodGone(pod) => concerns(pod),
            Change::NodeAdded(_) | Change::NodeChanged(_) => true,
            Change::Namespace | Change::Storage => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::logarithm;

    #[test]
    fn the_logarithm_grows_and_is_near_enough() {
        assert_eq!(logarithm(1), 0);
        assert_eq!(logarithm(2), 693);
        assert_eq!(logarithm(8), 2079);
        // The true ones are 4605 and 8517.
        assert!((logarithm(100) - 4605_i64).abs() < 65);
        assert!((logarithm(5000) - 8517_i64).abs() < 65);
        assert!((1..5000).all(|number| logarithm(number) <= logarithm(number + 1)));
    }
}
