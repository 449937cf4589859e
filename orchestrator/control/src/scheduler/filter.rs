//! Which nodes can take a pod at all.

use objects::node::Taint;
use objects::pod::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use super::affinity::PodRules;
use super::cluster::{Amounts, Cluster, HostPort, NodeRow, host_ports, ports_clash, requests};
use super::spread::SpreadRules;
use crate::lifecycle::{NOT_READY, UNSCHEDULABLE};

/// Everything a pod asks of its node, worked out once per pod.
pub(super) struct Asks<'a> {
    pod: &'a Pod,
    requests: Amounts,
    ports: Vec<HostPort>,
    spread: SpreadRules,
    pods: PodRules,
}

impl<'a> Asks<'a> {
    pub(super) fn of(cluster: &Cluster<'_>, pod: &'a Pod) -> Self {
        Self {
            pod,
            requests: requests(&pod.spec),
            ports: host_ports(&pod.spec).collect(),
            spread: SpreadRules::of(cluster, pod),
            pods: PodRules::of(cluster, pod),
        }
    }

    /// Returns why the node cannot take the pod; empty when it can.
    ///
    /// Like upstream, the first filter that refuses speaks; only resources name all of theirs.
    pub(super) fn refuses(&self, node: &NodeRow) -> Vec<String> {
        if let Some(taint) = untolerated(self.pod, node) {
            if taint.key == UNSCHEDULABLE {
                return vec!["node(s) were unschedulable".to_owned()];
            }
            let (key, value) = (&taint.key, &taint.value);
            return vec![format!("node(s) had untolerated taint {{{key}: {value}}}")];
        }
        if !matches_node(self.pod, node) {
            return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
        }
        let taken = |port| node.ports.iter().any(|other| ports_clash(port, other));
        if self.ports.iter().any(taken) {
            let reason = "node(s) didn't have free ports for the requested pod ports";
            return vec![reason.to_owned()];
        }
        let short = self.shortages(node);
        if !short.is_empty() {
            return short;
        }
        let refusal = self.spread.refuses(node).or_else(|| self.pods.refuses(node));
        refusal.map(str::to_owned).into_iter().collect()
    }

    fn shortages(&self, node: &NodeRow) -> Vec<String> {
        let mut reasons = Vec::new();
        if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.pods_max {
            reasons.push("Too many pods".to_owned());
        }
        for (name, amount) in self.requests.iter().filter(|(_, amount)| **amount > 0) {
            let has = node.capacity.get(name).copied().unwrap_or(0);
            let taken = node.taken.get(name).copied().unwrap_or(0);
            if amount.saturating_add(taken) > has {
                reasons.push(format!("Insufficient {name}"));
            }
        }
        reasons
    }
}

/// The first taint that keeps the pod away.
///
/// A node that is not ready counts as tainted even before its taint is written.
fn untolerated(pod: &Pod, row: &NodeRow) -> Option<Taint> {
    let keeps_away = |taint: &Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let implied = |key: &str| Taint {
        key: key.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let unschedulable = row.node.spec.unschedulable.then(|| implied(UNSCHEDULABLE));
    let not_ready = (!row.node.is_ready()).then(|| implied(NOT_READY));
    let taints = unschedulable.into_iter().chain(row.node.spec.taints.iter().cloned());
    let mut taints = taints.chain(not_ready).filter(keeps_away);
    taints.find(|taint| !pod.spec.tolerations.iter().any(|one| one.tolerates(taint)))
}

/// Do `nodeSelector` and required node affinity both accept the node?
pub(super) fn matches_node(pod: &Pod, row: &NodeRow) -> bool {
    let mut wanted = pod.spec.node_selector.iter();
    if !wanted.all(|(key, value)| row.label(key) == Some(value)) {
        return false;
    }
    let affinity = pod.spec.affinity.as_ref().and_then(|one| one.node_affinity.as_ref());
    let required =
        affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| term_matches(term, row))
    })
}

/// Do all requirements of a term hold? An empty term matches nothing.
pub(super) fn term_matches(term: &NodeSelectorTerm, row: &NodeRow) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let field = |key: &str| (key == "metadata.name").then_some(row.node.metadata.name.as_str());
    term.match_expressions.iter().all(|one| requirement_holds(one, row.label(&one.key)))
        && term.match_fields.iter().all(|one| requirement_holds(one, field(&one.key)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| requirement.values.iter().any(|one| one == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || {
        let bound = requirement.values.first().and_then(|one| number(one))?;
        Some((value.and_then(number)?, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, bound)| value > bound),
        "Lt" => compared().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}
