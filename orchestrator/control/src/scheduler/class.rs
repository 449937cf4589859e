//! Answers about nodes that are kept: pods of one kind ask the same, and most nodes have not
//! changed since the last of them asked.
//!
//! Only answers of plugins whose scope is the node are in here. A class knows up to which
//! change of the table it has read, and asks anew about the nodes that changed since.

use std::sync::Arc;

use super::config::Profile;
use super::framework::{Cycle, Interest, Plugin, Point, Refusal, Scope};
use super::snapshot::{Kind, Questions};
use super::topology::NodeId;

/// The score of a node that cannot take the pod.
pub(super) const INFEASIBLE: i64 = i64::MIN;
/// The code of a node without objections.
pub(super) const FEASIBLE: usize = 0;
/// The code of a place without a node.
pub(super) const EMPTY: usize = 1;
/// The code of the first refusal.
pub(super) const FIRST: usize = 2;

/// What a node is told that the pod does not name.
const UNNAMED: Refusal =
    Refusal::lasting("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");

/// A node-scoped plugin whose scores are normalised over the feasible nodes.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) plugin: Arc<dyn Plugin>,
    pub(super) weight: i64,
    pub(super) scores: Vec<i64>,
    /// Nodes with a score that is not zero: without any, there is nothing to compare.
    pub(super) marked: usize,
}

/// What is known of a kind of pod under a profile.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) kind: Arc<Kind>,
    pub(super) profile: usize,
    pub(super) questions: Questions,
    /// Per node: no objection, no node, or the number of a refusal.
    pub(super) codes: Vec<usize>,
    /// Per node: the sum of the scores that need no normalising.
    pub(super) fixed: Vec<i64>,
    pub(super) raws: Vec<Raw>,
    pub(super) refusals: Vec<Refusal>,
    seen: Option<usize>,
    epoch: u64,
    /// When it was used last, to forget the oldest.
    pub(super) used: u64,
}

impl Class {
    pub(super) fn new(kind: &Arc<Kind>, profile: usize, questions: Questions) -> Self {
        Self {
            kind: Arc::clone(kind),
            profile,
            questions,
            codes: Vec::new(),
            fixed: Vec::new(),
            raws: Vec::new(),
            refusals: Vec::new(),
            seen: None,
            epoch: 0,
            used: 0,
        }
    }

    /// Reads what changed since the last time; `active` are the filters with an interest.
    pub(super) fn refresh(
        &mut self,
        cycle: &mut Cycle<'_>,
        profile: &Profile,
        active: &[&Arc<dyn Plugin>],
    ) {
        let table = &cycle.snapshot.table;
        let fresh = self.epoch == table.epoch && self.codes.len() == table.places();
        let changed = self.seen.filter(|_| fresh).and_then(|seen| table.since(seen));
        let changed: Vec<NodeId> = match changed {
            Some(changed) => {
                let mut changed = changed.to_vec();
                changed.sort_unstable();
                changed.dedup();
                changed
            }
            None => {
                self.begin(cycle, profile);
                self.refuse_unnamed(cycle, active)
            }
        };
        let scorers: Vec<(Arc<dyn Plugin>, i64)> = profile
            .at(Point::Score)
            .iter()
            .filter(|one| one.plugin.scope() == Scope::Node && !one.plugin.normalizes())
            .filter(|one| one.plugin.pre_score(cycle, &[]) == Interest::Ask)
            .map(|one| (Arc::clone(&one.plugin), one.weight))
            .collect();
        for node in changed {
            self.ask(cycle, active, &scorers, node);
        }
        self.seen = Some(cycle.snapshot.table.now());
        self.epoch = cycle.snapshot.table.epoch;
    }

    /// Refuses every node but those that the pod names, without asking; what is left to ask.
    fn refuse_unnamed(&mut self, cycle: &Cycle<'_>, active: &[&Arc<dyn Plugin>]) -> Vec<NodeId> {
        let table = &cycle.snapshot.table;
        let asked = active.iter().any(|plugin| plugin.name() == UNNAMED.plugin);
        let Some(names) = self.kind.needs.named_nodes().filter(|_| asked) else {
            return (0..table.places()).collect();
        };
        let named: Vec<NodeId> = names.into_iter().filter_map(|name| table.find(name)).collect();
        let code = number(&mut self.refusals, UNNAMED);
        for (node, place) in self.codes.iter_mut().enumerate() {
            *place = if table.get(node).is_some() { code } else { EMPTY };
        }
        named
    }

    fn begin(&mut self, cycle: &mut Cycle<'_>, profile: &Profile) {
        let places = cycle.snapshot.table.places();
        self.codes = vec![EMPTY; places];
        self.fixed = vec![INFEASIBLE; places];
        self.refusals.clear();
        self.raws.clear();
        for one in profile.at(Point::Score) {
            let ours = one.plugin.scope() == Scope::Node && one.plugin.normalizes();
            if ours && one.plugin.pre_score(cycle, &[]) == Interest::Ask {
                let (plugin, weight) = (Arc::clone(&one.plugin), one.weight);
                self.raws.push(Raw { plugin, weight, scores: vec![0; places], marked: 0 });
            }
        }
    }

    fn ask(
        &mut self,
        cycle: &Cycle<'_>,
        active: &[&Arc<dyn Plugin>],
        scorers: &[(Arc<dyn Plugin>, i64)],
        node: NodeId,
    ) {
        let code = if cycle.snapshot.table.get(node).is_none() {
            EMPTY
        } else {
            let refused = active.iter().find_map(|plugin| plugin.filter(cycle, node).err());
            refused.map_or(FEASIBLE, |refusal| number(&mut self.refusals, refusal))
        };
        let mut sum = INFEASIBLE;
        if code == FEASIBLE {
            sum = scorers.iter().map(|(plugin, weight)| weight * plugin.score(cycle, node)).sum();
        }
        for raw in &mut self.raws {
            let score = if code == FEASIBLE { raw.plugin.score(cycle, node) } else { 0 };
            let Some(place) = raw.scores.get_mut(node) else { continue };
            raw.marked = raw.marked + usize::from(score != 0) - usize::from(*place != 0);
            *place = score;
        }
        if let Some(place) = self.codes.get_mut(node) {
            *place = code;
        }
        if let Some(place) = self.fixed.get_mut(node) {
            *place = sum;
        }
    }
}

/// The number of a refusal among others.
pub(super) fn number(all: &mut Vec<Refusal>, refusal: Refusal) -> usize {
    let at = all.iter().position(|one| *one == refusal).unwrap_or_else(|| {
        all.push(refusal);
        all.len() - 1
    });
    at + FIRST
}
