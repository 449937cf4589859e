//! The twelve points at which plugins have their say, under upstream's names.
//!
//! A cycle goes through PreFilter, Filter, (PostFilter when nothing is left), PreScore, Score,
//! NormalizeScore, Reserve, Permit; then binding through PreBind, Bind, PostBind. QueueSort
//! orders the queue before. A plugin whose answer about a node depends on that node and the
//! pod's kind alone says so ([`Scope::Node`]): its answers are kept until the node changes.

use std::cmp::Reverse;
use std::fmt::Debug;
use std::sync::Arc;

use objects::pod::Pod;

use super::cycle::{Attempt, Cure};
use super::queue::{Arrival, Rank};
use super::snapshot::{Kind, Questions, Snapshot};
use super::topology::NodeId;
use super::volume::{PodClaims, Provision};
use crate::action::Action;

/// The best score of one plugin.
pub(super) const BEST: i64 = 100;

/// A point of the framework.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    NormalizeScore,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

/// The points by their names in the configuration, where `multiPoint` means all of them.
pub(super) const POINTS: &[(&str, Point)] = &[
    ("queueSort", Point::QueueSort),
    ("preFilter", Point::PreFilter),
    ("filter", Point::Filter),
    ("postFilter", Point::PostFilter),
    ("preScore", Point::PreScore),
    ("score", Point::Score),
    ("normalizeScore", Point::NormalizeScore),
    ("reserve", Point::Reserve),
    ("permit", Point::Permit),
    ("preBind", Point::PreBind),
    ("bind", Point::Bind),
    ("postBind", Point::PostBind),
];

/// Whether another plugin's or pod's doing can change an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Only a change of the node can.
    Node,
    /// Pods elsewhere can.
    Cluster,
}

/// Whether a plugin has anything to say about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// Ask it about each node.
    Ask,
    /// It has none.
    Skip,
}

/// Why a node, or every node, cannot take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) plugin: &'static str,
    pub(super) reason: Reason,
    /// Could it help that other pods go away?
    pub(super) curable: bool,
}

/// One reason, or all that a node's resources give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// A sentence that is always the same.
    Fixed(&'static str),
    /// Sentences with names in them.
    Told(Vec<String>),
}

impl Refusal {
    /// Other pods' going away may help.
    pub(super) const fn curable(plugin: &'static str, reason: &'static str) -> Self {
        Self { plugin, reason: Reason::Fixed(reason), curable: true }
    }

    /// Nothing on this node will help.
    pub(super) const fn lasting(plugin: &'static str, reason: &'static str) -> Self {
        Self { plugin, reason: Reason::Fixed(reason), curable: false }
    }

    /// A sentence of its own; nothing on this node will help.
    pub(super) fn told(plugin: &'static str, reason: String) -> Self {
        Self { plugin, reason: Reason::Told(vec![reason]), curable: false }
    }

    /// The sentences.
    pub(super) fn reasons(&self) -> Vec<&str> {
        match &self.reason {
            Reason::Fixed(one) => vec![one],
            Reason::Told(all) => all.iter().map(String::as_str).collect(),
        }
    }
}

/// What plugins remember between the points of one cycle.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Per hard spread constraint: the least count of its domains.
    pub(super) least: Vec<i64>,
    /// Per hard spread constraint: counts of its own, where not all nodes are domains.
    pub(super) domains: Vec<Option<Vec<i64>>>,
    /// Per wished spread constraint: counts over the feasible nodes, and its weight.
    pub(super) wished: Vec<(Vec<i64>, i64)>,
    /// The pod's claims.
    pub(super) claims: PodClaims,
    /// Shares of a pod's data by host and rack name.
    pub(super) data: Vec<String>,
}

/// One pod's way through the points.
#[derive(Debug)]
pub(super) struct Cycle<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) pod: &'a Pod,
    pub(super) kind: &'a Kind,
    pub(super) questions: &'a Questions,
    pub(super) notes: Notes,
}

/// What a plugin at Permit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// Bind.
    Allow,
    /// Not yet: what is reserved stays so until the pod's volumes are bound.
    Wait,
}

/// What was reserved for a pod on its node.
#[derive(Debug, Clone)]
pub(super) struct Reserved {
    pub(super) pod: Arc<Pod>,
    pub(super) node: String,
    pub(super) volumes: Vec<(Arc<objects::storage::PersistentVolumeClaim>, Provision)>,
}

/// What happened, for plugins to say whether it may help a pod they refused.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// A node is new.
    NodeAdded(NodeId),
    /// A node's own description changed.
    NodeChanged(NodeId),
    /// A pod is on a node that was not, or its labels changed.
    PodPlaced(Arc<Pod>),
    /// A pod is no longer on its node.
    PodGone(Arc<Pod>),
    /// A namespace's labels changed.
    Namespace,
    /// Claims, volumes, classes or limits changed.
    Storage,
}

/// One way of looking at pods and nodes.
///
/// Every point has a default that says nothing.
pub(super) trait Plugin: Debug + Send + Sync {
    /// Its name in configurations.
    fn name(&self) -> &'static str;

    /// The points it has a say at.
    fn points(&self) -> &'static [Point];

    /// What its answers about nodes depend on.
    fn scope(&self) -> Scope {
        Scope::Node
    }

    /// QueueSort: a pod's rank among those that wait, the least first.
    fn queue_sort(&self, _pod: &Pod, arrival: Arrival) -> Rank {
        Rank { priority: Reverse(0), arrival }
    }

    /// PreFilter: looks at the pod alone, or refuses it everywhere.
    fn pre_filter(&self, _cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        Ok(Interest::Ask)
    }

    /// Filter: can the node take the pod?
    fn filter(&self, _cycle: &Cycle<'_>, _node: NodeId) -> Result<(), Refusal> {
        Ok(())
    }

    /// PostFilter: what could be done for a pod that fits nowhere.
    ///
    /// # Errors
    ///
    /// The sentence that says why nothing can; empty when there is nothing to say.
    fn post_filter(&self, _attempt: &mut Attempt<'_>) -> Result<Cure, String> {
        Err(String::new())
    }

    /// PreScore: gathers what scores need.
    fn pre_score(&self, _cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        Interest::Ask
    }

    /// Score: how good a node is, up to [`BEST`] unless normalised afterwards.
    fn score(&self, _cycle: &Cycle<'_>, _node: NodeId) -> i64 {
        0
    }

    /// Are scores brought into their range only when all are known?
    fn normalizes(&self) -> bool {
        false
    }

    /// NormalizeScore: brings the scores of the feasible nodes into their range.
    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], _scores: &mut [i64]) {}

    /// Reserve: sets aside what the pod will use; a refusal undoes the cycle.
    fn reserve(
        &self,
        _snapshot: &mut Snapshot,
        _reserved: &mut Reserved,
        _kind: &Kind,
    ) -> Result<(), Refusal> {
        Ok(())
    }

    /// Takes what Reserve did back; must bear being called without it.
    fn unreserve(&self, _snapshot: &mut Snapshot, _reserved: &Reserved) {}

    /// Permit: may binding begin?
    fn permit(&self, _snapshot: &Snapshot, _reserved: &Reserved) -> Permit {
        Permit::Allow
    }

    /// PreBind: steps to carry out before.
    fn pre_bind(&self, _reserved: &Reserved) -> Vec<Action> {
        Vec::new()
    }

    /// Bind: the step itself; the first plugin that has one decides.
    fn bind(&self, _reserved: &Reserved) -> Option<Action> {
        None
    }

    /// PostBind: what to tell once it is done.
    fn post_bind(&self, _reserved: &Reserved) -> Option<crate::action::Note> {
        None
    }

    /// Queueing hint: may a pod this plugin refused fit after this?
    fn may_help(&self, _snapshot: &Snapshot, _kind: &Kind, _change: &Change) -> bool {
        true
    }
}

/// Brings counts of good things into 0…100 by the largest.
pub(super) fn more_is_better(scores: &mut [i64]) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if most == 0 { 0 } else { *score * BEST / most };
    }
}

/// Brings counts of bad things into 0…100 by the largest.
pub(super) fn fewer_is_better(scores: &mut [i64]) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if most == 0 { BEST } else { BEST - *score * BEST / most };
    }
}
