//! Makes room for important pods at the cost of less important ones.
//!
//! Nodes are tried one after the other: everybody less important leaves, and those who can stay
//! after all come back, those whose disruption budget would be broken first. The node chosen is
//! the one that costs least. Nothing is removed here: the cure is carried out elsewhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use objects::condition::find_condition;
use objects::pod::Pod;

use crate::scheduler::cycle::{Attempt, Cure, Nominations, Question, sentence, with_nominated};
use crate::scheduler::framework::{Plugin, Point, Refusal};
use crate::scheduler::resource::{CPU, MEMORY, ResourceId};
use crate::scheduler::snapshot::Snapshot;
use crate::scheduler::table::PodId;
use crate::scheduler::topology::NodeId;

/// Cures between which the cheapest is chosen. Upstream seeks at least as many, more in large
/// clusters; the search begins at another node each time, so what is cheap is found in turn.
const CURES: usize = 100;

/// Nodes that are looked at before all others. Most of them are cures.
const LIKELY: usize = 2 * CURES;

/// `DefaultPreemption`.
#[derive(Debug)]
pub(super) struct DefaultPreemption;

/// A node's price.
#[derive(Debug)]
struct Candidate {
    node: NodeId,
    victims: Vec<PodId>,
    violations: usize,
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PostFilter]
    }

    fn post_filter(&self, attempt: &mut Attempt<'_>) -> Result<Cure, String> {
        if attempt.pod.spec.preemption_policy.as_deref() == Some("Never") {
            return Err("preemption: not eligible due to preemptionPolicy=Never.".to_owned());
        }
        if waits_for_victims(attempt) {
            let reason = "not eligible due to a terminating pod on the nominated node.";
            return Err(format!("preemption: {reason}"));
        }
        let nodes = attempt.snapshot.table.len();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut candidates = Vec::new();
        let start = attempt.turn.checked_rem(attempt.curable.len()).unwrap_or(0);
        let (first, second) = attempt.curable.split_at(start);
        let order: Vec<NodeId> = second.iter().chain(first).copied().collect();
        // Where others hope too, or even everybody's leaving would not do, is looked at only when
        // there is nothing else; then the reasons are wanted.
        let room = Room::new(attempt);
        let likely = order.iter().filter(|node| room.is_likely(**node));
        let likely: Vec<NodeId> = likely.take(LIKELY).copied().collect();
        let mut try_all = |attempt: &mut Attempt<'_>, nodes: &[NodeId]| {
            for node in nodes {
                match price(attempt, *node) {
                    Ok(candidate) => candidates.push(candidate),
                    Err(refused) => {
                        for reason in refused {
                            *reasons.entry(reason).or_default() += 1;
                        }
                    }
                }
                if candidates.len() >= CURES {
                    break;
                }
            }
            candidates.is_empty()
        };
        if try_all(attempt, &likely) {
            let tried: BTreeSet<NodeId> = likely.into_iter().collect();
            let rest: Vec<NodeId> =
                order.iter().filter(|node| !tried.contains(*node)).copied().collect();
            try_all(attempt, &rest);
        }
        let Some(chosen) = cheapest(attempt.snapshot, candidates) else {
            let hopeless = nodes.saturating_sub(order.len());
            if hopeless > 0 {
                let reason = "Preemption is not helpful for scheduling";
                *reasons.entry(reason.to_owned()).or_default() += hopeless;
            }
            return Err(format!("preemption: {}", sentence(nodes, &reasons)));
        };
        Ok(Cure { node: chosen.node, victims: chosen.victims })
    }
}

/// What room a pod needs, asked of thousands of nodes.
struct Room<'a> {
    priority: i64,
    /// CPU and memory asked for; nothing when nobody counts them.
    asked: [(ResourceId, i64); 2],
    snapshot: &'a Snapshot,
    nominations: &'a Nominations,
    uid: &'a str,
}

impl<'a> Room<'a> {
    fn new(attempt: &'a Attempt<'_>) -> Self {
        let Attempt { snapshot, profile, pod, kind, nominations, .. } = attempt;
        let mut filters = profile.at(Point::Filter).iter();
        let counts = filters.any(|one| one.plugin.name() == "NodeResourcesFit");
        let asked = |resource| (resource, if counts { kind.needs.asks(resource) } else { 0 });
        let priority = pod.spec.priority.unwrap_or(0);
        let asked = [asked(CPU), asked(MEMORY)];
        Self { priority, asked, snapshot, nominations, uid: &pod.metadata.uid }
    }

    /// May less important pods' leaving help at all? Says so of all nodes where it does, unless
    /// others are promised them, and of few others; costs little.
    fn is_likely(&self, node: NodeId) -> bool {
        let table = &self.snapshot.table;
        let freed = |resource| {
            let lodgers = self.snapshot.lodgers(node).map(|(_, other)| other);
            let lesser = lodgers.filter(|other| other.priority() < self.priority);
            lesser.map(|other| other.kind.needs.asks(resource)).sum::<i64>()
        };
        let fits = |(resource, asked): (ResourceId, i64)| {
            let left = table.capacity(node, resource) - table.used(node, resource);
            asked == 0 || left >= asked || left + freed(resource) >= asked
        };
        self.asked.into_iter().all(fits) && !self.is_promised(node)
    }

    /// Is the node promised to others that are as important?
    fn is_promised(&self, node: NodeId) -> bool {
        let others = self.nominations.get(self.snapshot.table.name(node)).into_iter().flatten();
        others.into_iter().any(|(uid, other)| {
            uid != self.uid && other.spec.priority.unwrap_or(0) >= self.priority
        })
    }
}

/// Are pods leaving already, for this pod's sake, the node it was promised?
fn waits_for_victims(attempt: &Attempt<'_>) -> bool {
    let nominated = &attempt.pod.status.nominated_node_name;
    let Some(node) = attempt.snapshot.table.find(nominated) else { return false };
    if !attempt.curable.contains(&node) {
        return false;
    }
    let priority = attempt.pod.spec.priority.unwrap_or(0);
    attempt.snapshot.lodgers(node).any(|(_, other)| {
        other.pod.metadata.is_deleting()
            && other.priority() < priority
            && find_condition(&other.pod.status.conditions, "DisruptionTarget")
                .is_some_and(|one| one.status == "True" && one.reason == "PreemptionByScheduler")
    })
}

/// Important first, then those that started first.
fn importance(snapshot: &Snapshot, id: PodId) -> (Reverse<i64>, Option<Timestamp>) {
    let Some(lodger) = snapshot.lodger(id) else { return (Reverse(0), None) };
    (Reverse(lodger.priority()), started(&lodger.pod))
}

fn started(pod: &Pod) -> Option<Timestamp> {
    pod.status.start_time.or(pod.metadata.creation_timestamp).map(|time| time.0)
}

/// Finds out who must leave a node.
///
/// # Errors
///
/// Why nobody's leaving helps.
fn price(attempt: &mut Attempt<'_>, node: NodeId) -> Result<Candidate, Vec<String>> {
    let priority = attempt.pod.spec.priority.unwrap_or(0);
    let lesser = attempt.snapshot.lodgers(node).filter(|(_, other)| other.priority() < priority);
    let mut lesser: Vec<PodId> = lesser.map(|(id, _)| id).collect();
    if lesser.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    lesser.sort_by_key(|id| importance(attempt.snapshot, *id));
    let (profile, pod, kind) = (attempt.profile, attempt.pod, attempt.kind);
    let (questions, nominations) = (attempt.questions, attempt.nominations);
    with_nominated(attempt.snapshot, nominations, pod, node, |snapshot| {
        let mut question = Question::new((profile, pod, kind, questions), node, snapshot);
        let mut check = |snapshot: &Snapshot| question.ask(snapshot);
        let (breaking, free) = by_budget(snapshot, &lesser);
        lesser.iter().for_each(|id| snapshot.lift(*id));
        let mut victims = Vec::new();
        let mut violations = 0;
        let result = check(snapshot);
        if result.is_ok() {
            for (group, counts) in [(breaking, 1), (free, 0)] {
                for id in group {
                    snapshot.settle(id, node);
                    if check(snapshot).is_err() {
                        snapshot.lift(id);
                        victims.push(id);
                        violations += counts;
                    }
                }
            }
            victims.iter().for_each(|id| snapshot.settle(*id, node));
        } else {
            lesser.iter().for_each(|id| snapshot.settle(*id, node));
        }
        let told =
            |refusal: Refusal| refusal.reasons().into_iter().map(str::to_owned).collect::<Vec<_>>();
        result.map_err(told)?;
        victims.sort_by_key(|id| importance(snapshot, *id));
        Ok(Candidate { node, victims, violations })
    })
}

/// Parts pods into those whose leaving breaks a disruption budget, and the others.
fn by_budget(snapshot: &Snapshot, pods: &[PodId]) -> (Vec<PodId>, Vec<PodId>) {
    let mut allowed: BTreeMap<&(String, String), i64> = BTreeMap::new();
    let (mut breaking, mut free) = (Vec::new(), Vec::new());
    for id in pods {
        let Some(lodger) = snapshot.lodger(*id) else { continue };
        let meta = &lodger.pod.metadata;
        let mut breaks = false;
        for (key, budget) in &snapshot.budgets {
            let selector = budget.spec.selector.as_ref();
            let concerns = key.0 == meta.namespace
                && selector.is_some_and(|one| *one != objects::LabelSelector::default())
                && selector.is_some_and(|one| one.matches(&meta.labels))
                && !budget.status.disrupted_pods.contains_key(&meta.name);
            if concerns {
                let left = allowed
                    .entry(key)
                    .or_insert_with(|| budget.status.disruptions_allowed.unwrap_or(0));
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        if breaks { breaking.push(*id) } else { free.push(*id) }
    }
    (breaking, free)
}

/// The node that costs least: broken budgets, then the importance of the most important
/// victim, of all together, their number, and last how long the most important has run.
fn cheapest(snapshot: &Snapshot, candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|one| {
        let lodgers: Vec<_> = one.victims.iter().filter_map(|id| snapshot.lodger(*id)).collect();
        let priorities = lodgers.iter().map(|lodger| lodger.priority());
        let highest = priorities.clone().max().unwrap_or(i64::MIN);
        // Negative priorities must not make more victims cheaper.
        let sum: i64 = priorities.map(|priority| priority + (1 << 31)).sum();
        let top = lodgers.iter().filter(|lodger| lodger.priority() == highest);
        let earliest = top.filter_map(|lodger| started(&lodger.pod)).min();
        (one.violations, highest, sum, one.victims.len(), Reverse(earliest))
    })
}
