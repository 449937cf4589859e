//! Topology spread constraints: how evenly pods lie over the domains of a label.

use std::collections::BTreeMap;

use objects::LabelSelector;
use objects::pod::{Pod, TopologySpreadConstraint};
use objects::selector::Selector;

use super::cluster::{Cluster, NodeRow};
use super::filter::matches_node;

/// One constraint with its counts.
pub(super) struct Spread {
    key: String,
    max_skew: i64,
    /// Does the pod count towards its own constraint?
    own: i64,
    /// Matching pods per value of the key, over the nodes that count.
    pub(super) counts: BTreeMap<String, i64>,
    least: i64,
}

impl Spread {
    fn of(
        cluster: &Cluster<'_>,
        pod: &Pod,
        rule: &TopologySpreadConstraint,
        keys: &[&str],
    ) -> Self {
        let selector = selector(pod, rule);
        let matches = |other: &Pod| {
            other.metadata.namespace == pod.metadata.namespace
                && !other.metadata.is_deleting()
                && selector.as_ref().is_some_and(|one| one.matches(&other.metadata.labels))
        };
        let mut counts = BTreeMap::new();
        for row in &cluster.nodes {
            let Some(value) = row.label(&rule.topology_key) else { continue };
            // Nodes without one of the keys, or that the pod may not use, are no domains.
            let usable =
                rule.node_affinity_policy.as_deref() == Some("Ignore") || matches_node(pod, row);
            if !usable || keys.iter().any(|key| row.label(key).is_none()) {
                continue;
            }
            let here = row.pods.iter().filter(|other| matches(other)).count();
            *counts.entry(value.to_owned()).or_default() += i64::try_from(here).unwrap_or(0);
        }
        let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
        let enough = rule.min_domains.is_none_or(|wanted| domains >= wanted);
        let least = if enough { counts.values().copied().min().unwrap_or(0) } else { 0 };
        let own = selector.is_some_and(|one| one.matches(&pod.metadata.labels));
        Self {
            key: rule.topology_key.clone(),
            max_skew: rule.max_skew.max(1),
            own: i64::from(own),
            counts,
            least,
        }
    }

    /// Matching pods in the domain of a node.
    pub(super) fn count(&self, row: &NodeRow) -> Option<i64> {
        row.label(&self.key).map(|value| self.counts.get(value).copied().unwrap_or(0))
    }
}

/// The rule's selector, with the pod's own values of `matchLabelKeys`.
fn selector(pod: &Pod, rule: &TopologySpreadConstraint) -> Option<Selector> {
    let mut wanted: LabelSelector = rule.label_selector.clone()?;
    for key in &rule.match_label_keys {
        if let Some(value) = pod.metadata.label(key) {
            wanted.match_labels.insert(key.clone(), value.to_owned());
        }
    }
    wanted.compile()
}

fn rules<'a>(
    pod: &'a Pod,
    when: &'static str,
) -> impl Iterator<Item = &'a TopologySpreadConstraint> {
    let all = pod.spec.topology_spread_constraints.iter();
    all.filter(move |rule| {
        let soft = rule.when_unsatisfiable == "ScheduleAnyway";
        soft == (when == "ScheduleAnyway")
    })
}

/// The wishes of a pod about spreading, for scoring.
pub(super) fn wishes(cluster: &Cluster<'_>, pod: &Pod) -> Vec<Spread> {
    rules(pod, "ScheduleAnyway").map(|rule| Spread::of(cluster, pod, rule, &[])).collect()
}

/// The hard constraints of a pod.
pub(super) struct SpreadRules(Vec<Spread>);

impl SpreadRules {
    pub(super) fn of(cluster: &Cluster<'_>, pod: &Pod) -> Self {
        let keys: Vec<&str> =
            rules(pod, "DoNotSchedule").map(|rule| rule.topology_key.as_str()).collect();
        let all = rules(pod, "DoNotSchedule");
        Self(all.map(|rule| Spread::of(cluster, pod, rule, &keys)).collect())
    }

    pub(super) fn refuses(&self, node: &NodeRow) -> Option<&'static str> {
        for rule in &self.0 {
            let Some(count) = rule.count(node) else {
                return Some(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            if count + rule.own - rule.least > rule.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }
}
