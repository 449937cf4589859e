//! Plugins that look at one node and its own pods.

use serde_json::Value;

use crate::scheduler::framework::{
    Change, Cycle, Interest, Plugin, Point, Refusal, fewer_is_better, more_is_better,
};
use crate::scheduler::needs::{HostPort, NodeTerm, any_term};
use crate::scheduler::snapshot::{Kind, Snapshot};
use crate::scheduler::table::UNSCHEDULABLE;
use crate::scheduler::topology::NodeId;

/// The node a change is about, if it is about one.
fn node_of(change: &Change) -> Option<NodeId> {
    match change {
        Change::NodeAdded(node) | Change::NodeChanged(node) => Some(*node),
        Change::PodPlaced(_) | Change::PodGone(_) | Change::Namespace | Change::Storage => None,
    }
}

/// Keeps pods off nodes that their operator closed.
#[derive(Debug)]
pub(super) struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let Some(found) = cycle.snapshot.table.get(node) else { return Ok(()) };
        if !found.node.spec.unschedulable {
            return Ok(());
        }
        let taint = objects::node::Taint {
            key: UNSCHEDULABLE.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..objects::node::Taint::default()
        };
        if cycle.kind.needs.bears(&taint) {
            return Ok(());
        }
        Err(Refusal::lasting(self.name(), "node(s) were unschedulable"))
    }

    fn may_help(&self, snapshot: &Snapshot, _kind: &Kind, change: &Change) -> bool {
        let found = node_of(change).and_then(|node| snapshot.table.get(node));
        found.is_some_and(|found| !found.node.spec.unschedulable)
    }
}

/// Keeps a pod that names its node off every other.
#[derive(Debug)]
pub(super) struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let wanted = &cycle.kind.needs.node_name;
        if wanted.is_empty() || cycle.snapshot.table.name(node) == wanted {
            return Ok(());
        }
        Err(Refusal::lasting(self.name(), "node(s) didn't match the requested node name"))
    }

    fn may_help(&self, snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        node_of(change).is_some_and(|node| snapshot.table.name(node) == kind.needs.node_name)
    }
}

/// Keeps pods off nodes whose taints they do not bear.
#[derive(Debug)]
pub(super) struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter, Point::PreScore, Point::Score, Point::NormalizeScore]
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let Some(found) = cycle.snapshot.table.get(node) else { return Ok(()) };
        match found.hard.iter().find(|taint| !cycle.kind.needs.bears(taint)) {
            None => Ok(()),
            Some(taint) => {
                let (key, value) = (&taint.key, &taint.value);
                let reason = format!("node(s) had untolerated taint {{{key}: {value}}}");
                Err(Refusal::told(self.name(), reason))
            }
        }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let Some(found) = cycle.snapshot.table.get(node) else { return 0 };
        let count = found.mild.iter().filter(|taint| !cycle.kind.needs.bears(taint)).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], scores: &mut [i64]) {
        fewer_is_better(scores);
    }

    fn may_help(&self, snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        let found = node_of(change).and_then(|node| snapshot.table.get(node));
        found.is_some_and(|found| found.hard.iter().all(|taint| kind.needs.bears(taint)))
    }
}

/// Asks for nodes by their labels: `nodeSelector`, required and preferred node affinity.
#[derive(Debug)]
pub(super) struct NodeAffinity {
    /// Asked of every pod of the profile.
    added_required: Option<Vec<NodeTerm>>,
    added_preferred: Vec<(i64, NodeTerm)>,
}

impl NodeAffinity {
    /// Reads `addedAffinity`.
    pub(super) fn new(args: &Value) -> Self {
        let added = args.get("addedAffinity").cloned().unwrap_or_default();
        let added: objects::pod::NodeAffinity = serde_json::from_value(added).unwrap_or_default();
        let required = added.required_during_scheduling_ignored_during_execution;
        let preferred = added.preferred_during_scheduling_ignored_during_execution;
        Self {
            added_required: required
                .map(|one| one.node_selector_terms.iter().map(NodeTerm::of).collect()),
            added_preferred: preferred
                .iter()
                .map(|wish| (wish.weight, NodeTerm::of(&wish.preference)))
                .collect(),
        }
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score, Point::NormalizeScore]
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        let needs = &cycle.kind.needs;
        let asks =
            !needs.selector.is_empty() || needs.required.is_some() || self.added_required.is_some();
        Ok(if asks { Interest::Ask } else { Interest::Skip })
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let Some(found) = cycle.snapshot.table.get(node) else { return Ok(()) };
        let (name, labels) = (&found.node.metadata.name, &found.node.metadata.labels);
        if self.added_required.as_ref().is_some_and(|terms| !any_term(terms, name, labels)) {
            let reason = "node(s) didn't match scheduler-enforced node affinity";
            return Err(Refusal::lasting(self.name(), reason));
        }
        if cycle.kind.needs.wants_node(name, labels) {
            return Ok(());
        }
        Err(Refusal::lasting(self.name(), "node(s) didn't match Pod's node affinity/selector"))
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        if self.added_preferred.is_empty() && cycle.kind.needs.preferred.is_empty() {
            Interest::Skip
        } else {
            Interest::Ask
        }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let Some(found) = cycle.snapshot.table.get(node) else { return 0 };
        let (name, labels) = (&found.node.metadata.name, &found.node.metadata.labels);
        let wishes = self.added_preferred.iter().chain(&cycle.kind.needs.preferred);
        let granted = wishes.filter(|(_, term)| term.matches(name, labels));
        granted.map(|(weight, _)| weight).sum()
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], scores: &mut [i64]) {
        more_is_better(scores);
    }

    fn may_help(&self, snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        let found = node_of(change).and_then(|node| snapshot.table.get(node));
        found.is_some_and(|found| {
            kind.needs.wants_node(&found.node.metadata.name, &found.node.metadata.labels)
        })
    }
}

/// Keeps pods that want the same port of the host apart.
#[derive(Debug)]
pub(super) struct NodePorts;

/// Do two ports of one node get in each other's way?
pub(super) fn ports_clash(one: &HostPort, other: &HostPort) -> bool {
    let any = "0.0.0.0";
    one.0 == other.0 && one.2 == other.2 && (one.1 == other.1 || one.1 == any || other.1 == any)
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        Ok(if cycle.kind.needs.ports.is_empty() { Interest::Skip } else { Interest::Ask })
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let taken = cycle.snapshot.table.ports(node);
        let mut wanted = cycle.kind.needs.ports.iter();
        if wanted.any(|port| taken.iter().any(|other| ports_clash(port, other))) {
            let reason = "node(s) didn't have free ports for the requested pod ports";
            return Err(Refusal::curable(self.name(), reason));
        }
        Ok(())
    }

    fn may_help(&self, _snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) => true,
            Change::PodGone(pod) => {
                let ports = pod.spec.containers.iter().flat_map(|one| &one.ports);
                let mut freed = ports.map(|port| port.host_port.unwrap_or(port.container_port));
                freed.any(|number| kind.needs.ports.iter().any(|port| port.2 == number))
            }
            Change::NodeChanged(_) | Change::PodPlaced(_) | Change::Namespace | Change::Storage => {
                false
            }
        }
    }
}
