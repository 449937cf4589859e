//! What the scheduler knows of the cluster, kept up to date step by step.
//!
//! Everything goes in and out through here, so that the table of nodes, the topology and the
//! counts of pods always agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use objects::node::Node;
use objects::pod::Pod;
use objects::policy::PodDisruptionBudget;

use super::census::{Census, CounterId, GroupId, GroupKey, Holding, MatcherId, Namespaces, TermId};
use super::crush::CrushMap;
use super::needs::{Needs, SpreadRule, Who};
use super::resource::Names;
use super::table::{PodId, Table};
use super::topology::{KeyId, NodeId, Topology};
use super::volume::Volumes;
use crate::membership::ZONE;

/// Groups and rules that may be remembered without pods before everything is counted anew.
const SLACK: usize = 16_384;

/// Needs that pods have in common.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) needs: Needs,
    group: GroupId,
    /// Rules that such pods hold towards others, with their weights.
    held: Vec<(TermId, i64)>,
}

/// A pod that counts on a node.
#[derive(Debug, Clone)]
pub(super) struct Lodger {
    pub(super) pod: Arc<Pod>,
    pub(super) kind: Arc<Kind>,
    node_name: String,
    node: Option<NodeId>,
    /// The pod's, within reach: preemption asks for that of every pod.
    priority: i64,
}

impl Lodger {
    pub(super) fn priority(&self) -> i64 {
        self.priority
    }
}

/// The questions a pod's rules ask, as places in the counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Questions {
    pub(super) group: GroupId,
    /// Who must be near: all terms at once, and a counter per term's key.
    pub(super) near: Option<(MatcherId, Vec<(KeyId, CounterId)>)>,
    /// Does the pod itself match its terms?
    pub(super) near_itself: bool,
    pub(super) far: Vec<(KeyId, CounterId)>,
    pub(super) wishes: Vec<(i64, KeyId, CounterId)>,
    pub(super) spread: Vec<SpreadQuestion>,
    /// Pods of the same controller: by node, and by rack.
    pub(super) siblings: Option<(MatcherId, KeyId, CounterId)>,
}

/// A spread constraint with its places.
#[derive(Debug, Clone)]
pub(super) struct SpreadQuestion {
    pub(super) rule: SpreadRule,
    pub(super) key: KeyId,
    pub(super) matcher: MatcherId,
    pub(super) counter: CounterId,
}

/// The cluster.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) names: Names,
    pub(super) table: Table,
    pub(super) topology: Topology,
    pub(super) census: Census,
    pub(super) volumes: Volumes,
    pub(super) crush: Option<CrushMap>,
    pub(super) budgets: BTreeMap<(String, String), Arc<PodDisruptionBudget>>,
    namespaces: Namespaces,
    kinds: BTreeMap<u64, Vec<Arc<Kind>>>,
    kinds_count: usize,
    lodgers: Vec<Option<Lodger>>,
    free: Vec<PodId>,
    by_uid: BTreeMap<String, PodId>,
    /// Pods by the name of a node that is not there.
    homeless: BTreeMap<String, BTreeSet<PodId>>,
    /// Raised whenever places in the counts lose their meaning.
    pub(super) generation: u64,
}

impl Snapshot {
    /// The kind of a pod: the same for all that ask the same.
    pub(super) fn kind(&mut self, pod: &Pod) -> Arc<Kind> {
        let mut needs = Needs::of(&mut self.names, pod);
        // Where a pod is says nothing about what it asks.
        needs.node_name = String::new();
        let print = needs.fingerprint();
        let known = self.kinds.get(&print).into_iter().flatten().find(|kind| kind.needs == needs);
        if let Some(kind) = known {
            return Arc::clone(kind);
        }
        let group = self.census.group(&GroupKey::of(&needs, false), &self.namespaces);
        let held = self.held(&needs);
        let kind = Arc::new(Kind { needs, group, held });
        self.kinds.entry(print).or_default().push(Arc::clone(&kind));
        self.kinds_count += 1;
        kind
    }

    fn held(&mut self, needs: &Needs) -> Vec<(TermId, i64)> {
        let away = needs.anti_affinity.iter().map(|term| (term, Holding::Away, 1));
        let near = needs.affinity.iter().map(|term| (term, Holding::Near, 1));
        let wish = needs.wishes.iter().map(|(weight, term)| (term, Holding::Wish, *weight));
        let all: Vec<_> = away.chain(near).chain(wish).collect();
        let mut held = Vec::new();
        for (term, holding, weight) in all {
            let key = self.key(&term.key);
            held.push((self.census.term(term, key, holding, &self.namespaces), weight));
        }
        held
    }

    /// The number of a topology key.
    pub(super) fn key(&mut self, key: &str) -> KeyId {
        let nodes = self.table.iter().map(|(id, one)| (id, &one.node.metadata.labels));
        self.topology.key(key, nodes)
    }

    fn counter(&mut self, who: &[Who], key: KeyId) -> (MatcherId, CounterId) {
        let matcher = self.census.matcher(who, &self.namespaces);
        (matcher, self.census.counter(&self.topology, matcher, key))
    }

    /// Finds the places where the answers to a kind's questions are.
    pub(super) fn questions(&mut self, kind: &Kind, spread: &[SpreadRule]) -> Questions {
        let needs = &kind.needs;
        let mut questions = Questions { group: kind.group, ..Questions::default() };
        if !needs.affinity.is_empty() {
            let who: Vec<Who> = needs.affinity.iter().map(|term| term.who.clone()).collect();
            let matcher = self.census.matcher(&who, &self.namespaces);
            let mut keys = Vec::new();
            for term in &needs.affinity {
                let key = self.key(&term.key);
                keys.push((key, self.census.counter(&self.topology, matcher, key)));
            }
            let own = GroupKey::of(needs, false);
            questions.near_itself = who.iter().all(|one| one.means(&own, &self.namespaces));
            questions.near = Some((matcher, keys));
        }
        for term in &needs.anti_affinity {
            let key = self.key(&term.key);
            questions.far.push((key, self.counter(std::slice::from_ref(&term.who), key).1));
        }
        for (weight, term) in &needs.wishes {
            let key = self.key(&term.key);
            let counter = self.counter(std::slice::from_ref(&term.who), key).1;
            questions.wishes.push((*weight, key, counter));
        }
        for rule in spread {
            let key = self.key(&rule.key);
            let (matcher, counter) = self.counter(std::slice::from_ref(&rule.who), key);
            questions.spread.push(SpreadQuestion { rule: rule.clone(), key, matcher, counter });
        }
        if !needs.controller.is_empty() {
            let key = self.key(ZONE);
            let (matcher, counter) = self.counter(&[siblings(needs)], key);
            questions.siblings = Some((matcher, key, counter));
        }
        questions
    }

    /// Is a pod of this group meant?
    pub(super) fn means(&self, who: &Who, pod: &GroupKey) -> bool {
        who.means(pod, &self.namespaces)
    }

    /// A pod on a node.
    pub(super) fn lodger(&self, id: PodId) -> Option<&Lodger> {
        self.lodgers.get(id)?.as_ref()
    }

    /// Where a pod counts: its place, and the name of its node.
    pub(super) fn place_of(&self, uid: &str) -> Option<(PodId, &str)> {
        let id = *self.by_uid.get(uid)?;
        Some((id, &self.lodger(id)?.node_name))
    }

    /// The pods of a node.
    pub(super) fn lodgers(&self, node: NodeId) -> impl Iterator<Item = (PodId, &Lodger)> {
        self.table.pods(node).iter().filter_map(|id| Some((*id, self.lodger(*id)?)))
    }

    /// Counts a pod onto a node, which need not exist yet.
    pub(super) fn add_pod(&mut self, pod: &Arc<Pod>, kind: &Arc<Kind>, node_name: &str) -> PodId {
        self.remove_pod(&pod.metadata.uid);
        let id = self.free.pop().unwrap_or_else(|| {
            self.lodgers.push(None);
            self.lodgers.len() - 1
        });
        let lodger = Lodger {
            pod: Arc::clone(pod),
            kind: Arc::clone(kind),
            node_name: node_name.to_owned(),
            node: None,
            priority: pod.spec.priority.unwrap_or(0),
        };
        if let Some(place) = self.lodgers.get_mut(id) {
            *place = Some(lodger);
        }
        self.by_uid.insert(pod.metadata.uid.clone(), id);
        match self.table.find(node_name) {
            Some(node) => self.settle(id, node),
            None => {
                self.homeless.entry(node_name.to_owned()).or_default().insert(id);
            }
        }
        for claim in &kind.needs.claims {
            let key = (kind.needs.namespace.clone(), claim.name.clone());
            *self.volumes.users.entry(key).or_default() += 1;
        }
        id
    }

    /// Counts a pod off its node for good.
    pub(super) fn remove_pod(&mut self, uid: &str) -> Option<Lodger> {
        let id = self.by_uid.remove(uid)?;
        self.lift(id);
        let lodger = self.lodgers.get_mut(id)?.take()?;
        self.free.push(id);
        if let Some(waiting) = self.homeless.get_mut(&lodger.node_name) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.homeless.remove(&lodger.node_name);
            }
        }
        for claim in &lodger.kind.needs.claims {
            let key = (lodger.kind.needs.namespace.clone(), claim.name.clone());
            if let Some(users) = self.volumes.users.get_mut(&key) {
                *users -= 1;
                if *users <= 0 {
                    self.volumes.users.remove(&key);
                }
            }
        }
        Some(lodger)
    }

    /// Notes a pod's newer state; where it is does not change.
    pub(super) fn renew_pod(&mut self, id: PodId, pod: &Arc<Pod>) {
        let Some(Some(lodger)) = self.lodgers.get_mut(id) else { return };
        lodger.priority = pod.spec.priority.unwrap_or(0);
        lodger.pod = Arc::clone(pod);
    }

    /// Counts a pod onto a node; the pod has its place already.
    pub(super) fn settle(&mut self, id: PodId, node: NodeId) {
        self.move_pod(id, node, 1);
    }

    /// Counts a pod off its node; the pod keeps its place.
    pub(super) fn lift(&mut self, id: PodId) {
        if let Some(node) = self.lodger(id).and_then(|lodger| lodger.node) {
            self.move_pod(id, node, -1);
        }
    }

    fn move_pod(&mut self, id: PodId, node: NodeId, by: i64) {
        let Some(Some(lodger)) = self.lodgers.get_mut(id) else { return };
        let kind = Arc::clone(&lodger.kind);
        let deleting = lodger.pod.metadata.is_deleting();
        lodger.node = (by > 0).then_some(node);
        if by > 0 {
            self.table.add(node, id, &kind.needs);
        } else {
            self.table.subtract(node, id, &kind.needs);
        }
        let group = if deleting {
            self.census.group(&GroupKey::of(&kind.needs, true), &self.namespaces)
        } else {
            kind.group
        };
        self.census.count(&self.topology, group, node, by);
        for held in &kind.held {
            self.census.hold(&self.topology, *held, node, by);
        }
    }

    /// Puts a node in, or in place of its older state.
    pub(super) fn put_node(&mut self, node: &Arc<Node>) {
        let old = self.table.find(&node.metadata.name);
        let labels = old.and_then(|id| Some(&self.table.get(id)?.node.metadata.labels));
        let moved = labels.is_some_and(|labels| *labels != node.metadata.labels);
        // Pods are counted by the labels of their node: off by the old ones, on by the new.
        let pods: Vec<PodId> = match old {
            Some(id) if moved => self.table.pods(id).to_vec(),
            Some(_) => Vec::new(),
            None => {
                let waiting = self.homeless.remove(&node.metadata.name).unwrap_or_default();
                waiting.into_iter().collect()
            }
        };
        pods.iter().for_each(|pod| self.lift(*pod));
        let id = self.table.put(&mut self.names, node);
        if moved || old.is_none() {
            self.topology.set(id, Some(&node.metadata.labels));
        }
        pods.iter().for_each(|pod| self.settle(*pod, id));
    }

    /// Takes a node out; its pods wait for it.
    pub(super) fn remove_node(&mut self, name: &str) {
        let Some(id) = self.table.find(name) else { return };
        let pods = self.table.pods(id).to_vec();
        pods.iter().for_each(|pod| self.lift(*pod));
        if !pods.is_empty() {
            self.homeless.entry(name.to_owned()).or_default().extend(pods);
        }
        self.topology.set(id, None);
        self.table.remove(id);
    }

    /// Notes a namespace's labels; `None` when it is gone.
    pub(super) fn put_namespace(&mut self, name: &str, labels: Option<&BTreeMap<String, String>>) {
        if self.namespaces.get(name) == labels {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        // Rules may mean other pods now.
        self.count_anew();
    }

    /// Forgets groups and rules without pods once there are many of them.
    pub(super) fn tidy(&mut self) {
        if self.census.size() + self.kinds_count > 4 * self.by_uid.len() + SLACK {
            self.count_anew();
        }
    }

    fn count_anew(&mut self) {
        self.generation += 1;
        let placed: Vec<Lodger> =
            self.by_uid.values().filter_map(|id| self.lodger(*id).cloned()).collect();
        for lodger in &placed {
            self.remove_pod(&lodger.pod.metadata.uid);
        }
        self.census = Census::default();
        self.kinds.clear();
        self.kinds_count = 0;
        for lodger in placed {
            let kind = self.kind(&lodger.pod);
            self.add_pod(&lodger.pod, &kind, &lodger.node_name);
        }
    }
}

/// Pods of the same controller, all of them.
fn siblings(needs: &Needs) -> Who {
    Who {
        namespaces: [needs.namespace.clone()].into(),
        selector: Some(objects::Selector::default()),
        controller: Some(needs.controller.clone()),
        lasting: true,
        ..Who::default()
    }
}
