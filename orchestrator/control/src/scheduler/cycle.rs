//! One pod's way from the queue to a node, as far as nothing is changed by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use objects::pod::Pod;

use super::class::{Class, EMPTY, FEASIBLE, FIRST, INFEASIBLE, number};
use super::config::Profile;
use super::framework::{Cycle, Interest, Notes, Plugin, Point, Refusal, Scope};
use super::snapshot::{Kind, Questions, Snapshot};
use super::table::PodId;
use super::topology::NodeId;

/// Nodes promised to pods for whom others are being removed: pods by uid, by node name.
pub(super) type Nominations = BTreeMap<String, BTreeMap<String, Arc<Pod>>>;

/// What Filter left.
#[derive(Debug)]
pub(super) struct Filtered {
    /// Per node; `None` when the class's own codes are the answer.
    pub(super) codes: Option<Vec<usize>>,
    /// Refusals beyond the class's.
    pub(super) refusals: Vec<Refusal>,
    pub(super) notes: Notes,
}

/// A pod that fits nowhere, for PostFilter.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) snapshot: &'a mut Snapshot,
    pub(super) profile: &'a Profile,
    pub(super) pod: &'a Arc<Pod>,
    pub(super) kind: &'a Kind,
    pub(super) questions: &'a Questions,
    /// Nodes that others' going away may open.
    pub(super) curable: Vec<NodeId>,
    pub(super) nominations: &'a Nominations,
    /// Where among equals to begin.
    pub(super) turn: usize,
}

/// What PostFilter found: a node, and who must leave it.
#[derive(Debug)]
pub(super) struct Cure {
    pub(super) node: NodeId,
    pub(super) victims: Vec<PodId>,
}

/// PreFilter and Filter over all nodes.
///
/// # Errors
///
/// The refusal of the whole cluster.
pub(super) fn filter(
    snapshot: &Snapshot,
    class: &mut Class,
    profile: &Profile,
    pod: &Pod,
) -> Result<Filtered, Refusal> {
    let kind = Arc::clone(&class.kind);
    let questions = std::mem::take(&mut class.questions);
    let mut cycle =
        Cycle { snapshot, pod, kind: &kind, questions: &questions, notes: Notes::default() };
    let result = filter_in(&mut cycle, class, profile);
    let notes = cycle.notes;
    class.questions = questions;
    let (codes, refusals) = result?;
    Ok(Filtered { codes, refusals, notes })
}

type Answers = (Option<Vec<usize>>, Vec<Refusal>);

fn filter_in(
    cycle: &mut Cycle<'_>,
    class: &mut Class,
    profile: &Profile,
) -> Result<Answers, Refusal> {
    let active = pre_filter(cycle, profile)?;
    let (mut local, mut global) = (Vec::new(), Vec::new());
    for plugin in active {
        match plugin.scope() {
            Scope::Node => local.push(plugin),
            Scope::Cluster => global.push(plugin),
        }
    }
    class.refresh(cycle, profile, &local);
    if global.is_empty() {
        return Ok((None, Vec::new()));
    }
    let mut codes = class.codes.clone();
    let mut refusals = Vec::new();
    for (node, code) in codes.iter_mut().enumerate() {
        if *code == FEASIBLE
            && let Some(refusal) = global.iter().find_map(|one| one.filter(cycle, node).err())
        {
            *code = number(&mut refusals, refusal) + class.refusals.len();
        }
    }
    Ok((Some(codes), refusals))
}

/// Asks PreFilter; what is left are the plugins that want to be asked about nodes.
fn pre_filter<'p>(
    cycle: &mut Cycle<'_>,
    profile: &'p Profile,
) -> Result<Vec<&'p Arc<dyn Plugin>>, Refusal> {
    let mut active = Vec::new();
    for one in profile.at(Point::Filter) {
        if one.plugin.pre_filter(cycle)? == Interest::Ask {
            active.push(&one.plugin);
        }
    }
    Ok(active)
}

/// Can one node take the pod, as the snapshot is now?
///
/// # Errors
///
/// The first refusal.
pub(super) fn fits(
    snapshot: &Snapshot,
    profile: &Profile,
    pod: &Pod,
    kind: &Kind,
    questions: &Questions,
    node: NodeId,
) -> Result<(), Refusal> {
    let mut cycle = Cycle { snapshot, pod, kind, questions, notes: Notes::default() };
    let active = pre_filter(&mut cycle, profile)?;
    active.iter().try_for_each(|plugin| plugin.filter(&cycle, node))
}

/// Whether one node can take a pod, asked again and again while pods of that node come and go.
pub(super) struct Question<'a> {
    profile: &'a Profile,
    pod: &'a Pod,
    kind: &'a Kind,
    questions: &'a Questions,
    node: NodeId,
    /// Who is to be asked, when that cannot change.
    known: Option<(Vec<&'a Arc<dyn Plugin>>, Notes)>,
}

impl<'a> Question<'a> {
    /// A question about a node while all pods are on it that will ever be on it.
    ///
    /// If then nobody looks further than this node, nobody will with fewer pods on it.
    pub(super) fn new(
        (profile, pod, kind, questions): (&'a Profile, &'a Pod, &'a Kind, &'a Questions),
        node: NodeId,
        snapshot: &Snapshot,
    ) -> Self {
        let mut cycle = Cycle { snapshot, pod, kind, questions, notes: Notes::default() };
        let active = pre_filter(&mut cycle, profile).ok();
        let near = active.filter(|all| all.iter().all(|one| one.scope() == Scope::Node));
        let known = near.map(|active| (active, cycle.notes));
        Self { profile, pod, kind, questions, node, known }
    }

    /// Can the node take the pod, as the snapshot is now?
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub(super) fn ask(&mut self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let Self { profile, pod, kind, questions, node, .. } = *self;
        let Some((active, notes)) = self.known.take() else {
            return fits(snapshot, profile, pod, kind, questions, node);
        };
        let cycle = Cycle { snapshot, pod, kind, questions, notes };
        let answer = active.iter().try_for_each(|plugin| plugin.filter(&cycle, node));
        let Cycle { notes, .. } = cycle;
        self.known = Some((active, notes));
        answer
    }
}

/// Tries something with the pods nominated to a node in place, as far as they are not less
/// important than this one; nothing of it stays.
pub(super) fn with_nominated<T>(
    snapshot: &mut Snapshot,
    nominations: &Nominations,
    pod: &Pod,
    node: NodeId,
    then: impl FnOnce(&mut Snapshot) -> T,
) -> T {
    let name = snapshot.table.name(node).to_owned();
    let priority = pod.spec.priority.unwrap_or(0);
    let others = nominations.get(&name).into_iter().flatten();
    let others = others.filter(|(uid, other)| {
        **uid != pod.metadata.uid
            && other.spec.priority.unwrap_or(0) >= priority
            && snapshot.place_of(uid).is_none()
    });
    let others: Vec<Arc<Pod>> = others.map(|(_, other)| Arc::clone(other)).collect();
    snapshot.table.try_only(true);
    for other in &others {
        let kind = snapshot.kind(other);
        snapshot.add_pod(other, &kind, &name);
    }
    let result = then(snapshot);
    for other in &others {
        snapshot.remove_pod(&other.metadata.uid);
    }
    snapshot.table.try_only(false);
    result
}

/// PreScore, Score and NormalizeScore: the best of the nodes that Filter left.
pub(super) fn choose(
    snapshot: &Snapshot,
    class: &Class,
    profile: &Profile,
    pod: &Pod,
    filtered: Filtered,
    turn: u64,
) -> Option<NodeId> {
    let Filtered { codes, notes, .. } = filtered;
    let (kind, questions) = (&*class.kind, &class.questions);
    let mut cycle = Cycle { snapshot, pod, kind, questions, notes };
    let codes = codes.as_deref().unwrap_or(&class.codes);
    let mut feasible: Option<Vec<NodeId>> = None;
    let list = || {
        let all = codes.iter().enumerate().filter(|(_, code)| **code == FEASIBLE);
        all.map(|(node, _)| node).collect::<Vec<_>>()
    };
    let mut totals: Option<Vec<i64>> = None;
    let mut add = |nodes: &[NodeId], weight: i64, scores: &[i64]| {
        let totals = totals.get_or_insert_with(|| {
            nodes.iter().map(|node| class.fixed.get(*node).copied().unwrap_or(0)).collect()
        });
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    for raw in class.raws.iter().filter(|raw| raw.marked > 0) {
        let nodes = feasible.get_or_insert_with(list);
        let scores = nodes.iter().map(|node| raw.scores.get(*node).copied().unwrap_or(0));
        let mut scores: Vec<i64> = scores.collect();
        raw.plugin.normalize_score(&cycle, nodes, &mut scores);
        add(nodes, raw.weight, &scores);
    }
    for one in profile.at(Point::Score) {
        if one.plugin.scope() == Scope::Node {
            continue;
        }
        let nodes = feasible.get_or_insert_with(list);
        if nodes.len() < 2 || one.plugin.pre_score(&mut cycle, nodes) == Interest::Skip {
            continue;
        }
        let mut scores: Vec<i64> =
            nodes.iter().map(|node| one.plugin.score(&cycle, *node)).collect();
        if one.plugin.normalizes() {
            one.plugin.normalize_score(&cycle, nodes, &mut scores);
        }
        add(nodes, one.weight, &scores);
    }
    match (totals, feasible) {
        (Some(totals), Some(nodes)) => best(&totals, turn).and_then(|at| nodes.get(at).copied()),
        // Nobody compared anything beyond what is kept: the kept sums decide.
        _ if codes.len() == class.codes.len() && std::ptr::eq(codes, class.codes.as_slice()) => {
            best(&class.fixed, turn)
        }
        _ => {
            let nodes = list();
            let scores = nodes.iter().map(|node| class.fixed.get(*node).copied().unwrap_or(0));
            best(&scores.collect::<Vec<_>>(), turn).and_then(|at| nodes.get(at).copied())
        }
    }
}

/// The place of the greatest score; equal ones take turns.
fn best(scores: &[i64], turn: u64) -> Option<usize> {
    let most = scores.iter().copied().max().filter(|most| *most != INFEASIBLE)?;
    let equal = u64::try_from(scores.iter().filter(|score| **score == most).count()).ok()?;
    let chosen = usize::try_from(turn.checked_rem(equal)?).ok()?;
    let mut places = scores.iter().enumerate().filter(|(_, score)| **score == most);
    places.nth(chosen).map(|(place, _)| place)
}

/// Counts the reasons of all nodes.
pub(super) fn reasons(
    class: &Class,
    codes: &[usize],
    refusals: &[Refusal],
) -> BTreeMap<String, usize> {
    let mut numbers = vec![0_usize; FIRST + class.refusals.len() + refusals.len()];
    for code in codes {
        if let Some(number) = numbers.get_mut(*code) {
            *number += 1;
        }
    }
    let mut reasons = BTreeMap::new();
    let known = class.refusals.iter().chain(refusals);
    for (refusal, count) in known.zip(numbers.into_iter().skip(FIRST)).filter(|(_, n)| *n > 0) {
        for reason in refusal.reasons() {
            *reasons.entry(reason.to_owned()).or_default() += count;
        }
    }
    reasons
}

/// The refusal behind a code.
pub(super) fn refusal<'a>(
    class: &'a Class,
    refusals: &'a [Refusal],
    code: usize,
) -> Option<&'a Refusal> {
    if code == FEASIBLE || code == EMPTY {
        return None;
    }
    let at = code - FIRST;
    match at.checked_sub(class.refusals.len()) {
        None => class.refusals.get(at),
        Some(at) => refusals.get(at),
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
pub(super) fn sentence(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
