//! Affinity between pods: near whom a pod must be, and far from whom.

use std::collections::{BTreeMap, BTreeSet};

use objects::pod::{Pod, PodAffinityTerm, PodSpec};
use objects::selector::Selector;

use super::cluster::{Cluster, NodeRow};
use crate::view::View;

/// A place: a label and its value.
type Place = (String, String);

/// One compiled term.
struct Term {
    key: String,
    selector: Option<Selector>,
    namespaces: BTreeSet<String>,
}

impl Term {
    /// `owner` is the pod the term belongs to.
    fn of(view: &View, owner: &Pod, term: &PodAffinityTerm) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().cloned().collect();
        match &term.namespace_selector {
            Some(selector) => {
                let all = view.namespaces.iter();
                let found = all.filter(|one| selector.matches(&one.metadata.labels));
                namespaces.extend(found.map(|one| one.metadata.name.clone()));
            }
            None if namespaces.is_empty() => {
                namespaces.insert(owner.metadata.namespace.clone());
            }
            None => (),
        }
        let selector = term.label_selector.as_ref().and_then(objects::LabelSelector::compile);
        Self { key: term.topology_key.clone(), selector, namespaces }
    }

    fn matches(&self, pod: &Pod) -> bool {
        self.namespaces.contains(&pod.metadata.namespace)
            && self.selector.as_ref().is_some_and(|one| one.matches(&pod.metadata.labels))
    }
}

fn required_affinity(spec: &PodSpec) -> &[PodAffinityTerm] {
    let affinity = spec.affinity.as_ref().and_then(|one| one.pod_affinity.as_ref());
    affinity.map_or(&[], |one| &one.required_during_scheduling_ignored_during_execution)
}

fn required_anti_affinity(spec: &PodSpec) -> &[PodAffinityTerm] {
    let affinity = spec.affinity.as_ref().and_then(|one| one.pod_anti_affinity.as_ref());
    affinity.map_or(&[], |one| &one.required_during_scheduling_ignored_during_execution)
}

/// Must some pods stay away from this one?
pub(super) fn has_required_anti_affinity(spec: &PodSpec) -> bool {
    !required_anti_affinity(spec).is_empty()
}

/// The hard rules between a pod and those already running.
pub(super) struct PodRules {
    /// Keys of the affinity terms with the places where a match of all terms runs.
    near: Vec<(String, BTreeSet<String>)>,
    /// No pod matches anywhere, but the pod matches its own terms: the first of a group.
    first_of_group: bool,
    /// Places that hold a pod of which this one must stay away.
    far: BTreeSet<Place>,
    /// Places that hold a pod that wants this one away.
    unwelcome: BTreeSet<Place>,
}

impl PodRules {
    pub(super) fn of(cluster: &Cluster<'_>, pod: &Pod) -> Self {
        let compile = |terms: &[PodAffinityTerm]| -> Vec<Term> {
            terms.iter().map(|term| Term::of(cluster.view, pod, term)).collect()
        };
        let near_terms = compile(required_affinity(&pod.spec));
        let far_terms = compile(required_anti_affinity(&pod.spec));
        let mut near: Vec<(String, BTreeSet<String>)> =
            near_terms.iter().map(|term| (term.key.clone(), BTreeSet::new())).collect();
        let mut far = BTreeSet::new();
        let mut unwelcome = BTreeSet::new();
        if near_terms.is_empty() && far_terms.is_empty() && !cluster.any_anti_affinity {
            return Self { near, first_of_group: false, far, unwelcome };
        }
        for row in &cluster.nodes {
            for other in &row.pods {
                if !near_terms.is_empty() && near_terms.iter().all(|term| term.matches(other)) {
                    for (key, values) in &mut near {
                        values.extend(row.label(key).map(str::to_owned));
                    }
                }
                let hits = far_terms.iter().filter(|term| term.matches(other));
                far.extend(hits.filter_map(|term| place(row, &term.key)));
                for term in required_anti_affinity(&other.spec) {
                    if Term::of(cluster.view, other, term).matches(pod) {
                        unwelcome.extend(place(row, &term.topology_key));
                    }
                }
            }
        }
        let nobody = near.iter().all(|(_, values)| values.is_empty());
        let first_of_group = nobody && near_terms.iter().all(|term| term.matches(pod));
        Self { near, first_of_group, far, unwelcome }
    }

    pub(super) fn refuses(&self, node: &NodeRow) -> Option<&'static str> {
        let holds = |places: &BTreeSet<Place>| {
            places.iter().any(|(key, value)| node.label(key) == Some(value))
        };
        let near = self.near.iter().all(|(key, values)| {
            node.label(key).is_some_and(|value| self.first_of_group || values.contains(value))
        });
        if !near {
            return Some("node(s) didn't match pod affinity rules");
        }
        if holds(&self.far) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        if holds(&self.unwelcome) {
            return Some("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        None
    }
}

fn place(row: &NodeRow, key: &str) -> Option<Place> {
    row.label(key).map(|value| (key.to_owned(), value.to_owned()))
}

/// Adds up a pod's preferred affinity and anti-affinity per place.
pub(super) fn preferences(cluster: &Cluster<'_>, pod: &Pod) -> BTreeMap<Place, i64> {
    let mut sums = BTreeMap::new();
    let Some(affinity) = &pod.spec.affinity else { return sums };
    let both = [(&affinity.pod_affinity, 1), (&affinity.pod_anti_affinity, -1)];
    for (wishes, sign) in both {
        let wishes =
            wishes.iter().flat_map(|one| &one.preferred_during_scheduling_ignored_during_execution);
        for wish in wishes {
            let term = Term::of(cluster.view, pod, &wish.pod_affinity_term);
            for row in &cluster.nodes {
                let Some(place) = place(row, &term.key) else { continue };
                let hits = row.pods.iter().filter(|other| term.matches(other)).count();
                let hits = i64::try_from(hits).unwrap_or(0);
                *sums.entry(place).or_default() += sign * wish.weight * hits;
            }
        }
    }
    sums
}
