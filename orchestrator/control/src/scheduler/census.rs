//! Counts of pods by what rules between pods ask about, kept as pods come and go.
//!
//! Pods with equal namespace and labels are one *group*. A *matcher* is a question about pods
//! (who is meant); each knows its answer per node, and per value of every topology key asked
//! for. A *term* is a rule that running pods hold against, or for, others: the same, with the
//! roles exchanged. So a pod's coming and going costs as many steps as there are rules about
//! it, and a decision reads its answers without looking at pods.

use std::collections::BTreeMap;

use super::needs::{Needs, PodTerm, Who};
use super::topology::{KeyId, NodeId, Topology, ValueId};

/// A group's place in the table.
pub(super) type GroupId = usize;
/// A matcher's place in the table.
pub(super) type MatcherId = usize;
/// A counter's place in the table.
pub(super) type CounterId = usize;
/// A held term's place in the table.
pub(super) type TermId = usize;

/// What rules can tell pods apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupKey {
    pub(super) namespace: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) controller: String,
    pub(super) deleting: bool,
}

impl GroupKey {
    /// The group of pods with these needs.
    pub(super) fn of(needs: &Needs, deleting: bool) -> Self {
        Self {
            namespace: needs.namespace.clone(),
            labels: needs.labels.clone(),
            controller: needs.controller.clone(),
            deleting,
        }
    }
}

#[derive(Debug, Default)]
struct Group {
    /// Pods per node.
    nodes: BTreeMap<NodeId, i64>,
    matchers: Vec<MatcherId>,
    /// Held terms that are about these pods.
    terms: Vec<TermId>,
}

#[derive(Debug)]
struct Matcher {
    /// All must match.
    who: Vec<Who>,
    per_node: Vec<i64>,
    total: i64,
    counters: Vec<CounterId>,
}

/// The answers of a matcher by value of a key.
#[derive(Debug)]
struct Counter {
    key: KeyId,
    per_value: Vec<i64>,
}

/// What a held term does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holding {
    /// Keeps others away.
    Away,
    /// Wishes others near, or by a negative weight away.
    Wish,
    /// Must be near others: they are welcome.
    Near,
}

#[derive(Debug)]
struct Term {
    who: Who,
    key: KeyId,
    holding: Holding,
    per_value: Vec<i64>,
    /// Pods that hold it.
    holders: i64,
}

/// Labels of namespaces by name.
pub(super) type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// All counts.
#[derive(Debug, Default)]
pub(super) struct Census {
    ids: BTreeMap<GroupKey, GroupId>,
    groups: Vec<(GroupKey, Group)>,
    matcher_ids: BTreeMap<Vec<Who>, MatcherId>,
    matchers: Vec<Matcher>,
    counter_ids: BTreeMap<(MatcherId, KeyId), CounterId>,
    counters: Vec<Counter>,
    term_ids: BTreeMap<(PodTerm, Holding), TermId>,
    terms: Vec<Term>,
}

impl Who {
    /// Is a pod of this group meant?
    pub(super) fn means(&self, pod: &GroupKey, namespaces: &Namespaces) -> bool {
        if self.lasting && pod.deleting {
            return false;
        }
        if self.controller.as_ref().is_some_and(|uid| *uid != pod.controller) {
            return false;
        }
        let here = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                namespaces.get(&pod.namespace).is_some_and(|labels| selector.matches(labels))
            });
        here && self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
    }
}

fn bump(counts: &mut Vec<i64>, at: usize, by: i64) {
    if counts.len() <= at {
        counts.resize(at + 1, 0);
    }
    if let Some(count) = counts.get_mut(at) {
        *count += by;
    }
}

impl Census {
    /// The group of a pod, new when it must be.
    pub(super) fn group(&mut self, key: &GroupKey, namespaces: &Namespaces) -> GroupId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let id = self.groups.len();
        let means_all = |who: &[Who]| who.iter().all(|one| one.means(key, namespaces));
        let matchers = self.matchers.iter().enumerate();
        let matchers = matchers.filter(|(_, one)| means_all(&one.who)).map(|(id, _)| id).collect();
        let terms = self.terms.iter().enumerate();
        let terms =
            terms.filter(|(_, one)| one.who.means(key, namespaces)).map(|(id, _)| id).collect();
        self.groups.push((key.clone(), Group { nodes: BTreeMap::new(), matchers, terms }));
        self.ids.insert(key.clone(), id);
        id
    }

    /// Counts a pod of a group onto, or by -1 off, a node.
    pub(super) fn count(&mut self, topology: &Topology, group: GroupId, node: NodeId, by: i64) {
        let Some((_, group)) = self.groups.get_mut(group) else { return };
        let here = group.nodes.entry(node).or_default();
        *here += by;
        if *here == 0 {
            group.nodes.remove(&node);
        }
        for matcher in &group.matchers {
            let Some(matcher) = self.matchers.get_mut(*matcher) else { continue };
            bump(&mut matcher.per_node, node, by);
            matcher.total += by;
            for counter in &matcher.counters {
                let Some(counter) = self.counters.get_mut(*counter) else { continue };
                if let Some(value) = topology.value(counter.key, node) {
                    bump(&mut counter.per_value, value, by);
                }
            }
        }
    }

    /// The matcher of a question.
    pub(super) fn matcher(&mut self, who: &[Who], namespaces: &Namespaces) -> MatcherId {
        if let Some(id) = self.matcher_ids.get(who) {
            return *id;
        }
        let id = self.matchers.len();
        let mut made =
            Matcher { who: who.to_vec(), per_node: Vec::new(), total: 0, counters: Vec::new() };
        for (key, group) in &mut self.groups {
            if who.iter().all(|one| one.means(key, namespaces)) {
                group.matchers.push(id);
                for (node, count) in &group.nodes {
                    bump(&mut made.per_node, *node, *count);
                    made.total += count;
                }
            }
        }
        self.matchers.push(made);
        self.matcher_ids.insert(who.to_vec(), id);
        id
    }

    /// The counter of a question by a key.
    pub(super) fn counter(
        &mut self,
        topology: &Topology,
        matcher: MatcherId,
        key: KeyId,
    ) -> CounterId {
        if let Some(id) = self.counter_ids.get(&(matcher, key)) {
            return *id;
        }
        let id = self.counters.len();
        let mut per_value = Vec::new();
        if let Some(matcher) = self.matchers.get_mut(matcher) {
            matcher.counters.push(id);
            for (node, count) in matcher.per_node.iter().enumerate() {
                if let Some(value) = topology.value(key, node) {
                    bump(&mut per_value, value, *count);
                }
            }
        }
        self.counters.push(Counter { key, per_value });
        self.counter_ids.insert((matcher, key), id);
        id
    }

    /// The held term, new when it must be.
    pub(super) fn term(
        &mut self,
        term: &PodTerm,
        key: KeyId,
        holding: Holding,
        namespaces: &Namespaces,
    ) -> TermId {
        let name = (term.clone(), holding);
        if let Some(id) = self.term_ids.get(&name) {
            return *id;
        }
        let id = self.terms.len();
        for (key, group) in &mut self.groups {
            if term.who.means(key, namespaces) {
                group.terms.push(id);
            }
        }
        let who = term.who.clone();
        self.terms.push(Term { who, key, holding, per_value: Vec::new(), holders: 0 });
        self.term_ids.insert(name, id);
        id
    }

    /// Counts one holder of a term onto, or by -1 off, a node.
    pub(super) fn hold(
        &mut self,
        topology: &Topology,
        (term, weight): (TermId, i64),
        node: NodeId,
        by: i64,
    ) {
        let Some(term) = self.terms.get_mut(term) else { return };
        term.holders += by;
        if let Some(value) = topology.value(term.key, node) {
            bump(&mut term.per_value, value, by * weight);
        }
    }

    /// Pods a matcher means, in all.
    pub(super) fn total(&self, matcher: MatcherId) -> i64 {
        self.matchers.get(matcher).map_or(0, |one| one.total)
    }

    /// Pods a matcher means, per node; nodes beyond the end have none.
    pub(super) fn per_node(&self, matcher: MatcherId) -> &[i64] {
        self.matchers.get(matcher).map_or(&[], |one| &one.per_node)
    }

    /// Pods per value of a counter; values beyond the end have none.
    pub(super) fn per_value(&self, counter: CounterId) -> &[i64] {
        self.counters.get(counter).map_or(&[], |one| &one.per_value)
    }

    /// Terms about a group that somebody holds: key, what it does, weight per value.
    pub(super) fn terms_about(
        &self,
        group: GroupId,
    ) -> impl Iterator<Item = (KeyId, Holding, &[i64])> {
        let terms = self.groups.get(group).map_or(&[][..], |(_, group)| &group.terms);
        terms.iter().filter_map(|id| {
            let term = self.terms.get(*id)?;
            (term.holders > 0).then_some((term.key, term.holding, term.per_value.as_slice()))
        })
    }

    /// How much memory was ever given out, for the decision to begin anew.
    pub(super) fn size(&self) -> usize {
        self.groups.len() + self.matchers.len() + self.terms.len()
    }
}

/// The count at a value.
pub(super) fn at(counts: &[i64], value: ValueId) -> i64 {
    counts.get(value).copied().unwrap_or(0)
}
