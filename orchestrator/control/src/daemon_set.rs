//! One pod on every node that fits.
//!
//! Spec: upstream's daemon set controller: pods are pinned by node affinity and bound by the
//! scheduler; rolling updates by `maxUnavailable` or `maxSurge`, or on delete; history as
//! `ControllerRevision`s. Differs: a failed pod is replaced when it is a quarter of a minute
//! old, instead of after a growing wait that would have to be remembered.

mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::kind;
use objects::node::Node;
use objects::pod::{Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement};
use objects::pod::{NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration};
use objects::workload::{DaemonSet, DaemonSetStatus};
use serde_json::json;

use crate::action::{Action, Note, Steps, Target};
use crate::family::{self, History, REVISION_LABEL};
use crate::lifecycle::{NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use crate::placement;
use crate::view::{Key, View};
use crate::wake::{Touch, node_matters};

/// Pods made or deleted in one round.
const BURST: usize = 500;
/// Old revisions kept for going back, unless the set says.
const HISTORY: i64 = 10;
/// How old a failed pod must be before it is replaced.
const PATIENCE: SignedDuration = SignedDuration::from_secs(15);

/// Every daemon set, when a node changed in a way that decides who belongs there.
#[must_use]
pub fn sets_of_node(view: &View, touch: &Touch) -> Vec<Key> {
    if node_matters(touch) { view.daemon_sets.keys() } else { Vec::new() }
}

/// Should a node have a pod, and may one that is there stay?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Belongs {
    run: bool,
    stay: bool,
}

/// A daemon set with its pods, node by node.
struct Fleet<'a> {
    set: &'a DaemonSet,
    /// The template with the tolerations every daemon has.
    template: PodTemplateSpec,
    /// The hash of the newest revision.
    hash: String,
    nodes: BTreeMap<&'a str, (Belongs, Vec<&'a Arc<Pod>>)>,
    /// Pods pinned to nodes that are gone.
    strays: Vec<&'a Arc<Pod>>,
}

/// Plans the steps for one daemon set.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(set) = view.daemon_sets.get(&key.namespace, &key.name) else { return steps };
    let Some(selector) = family::selector(set.spec.selector.as_ref()) else { return steps };
    if set.metadata.is_deleting() {
        return steps;
    }
    let pods =
        family::claim(view, &set.metadata, &kind::DAEMON_SET, &selector, |_| true, &mut steps);
    let history =
        History::of(view, &set.metadata, &kind::DAEMON_SET, &set.spec.template, &mut steps);
    let fleet = Fleet::of(view, set, history.update.clone(), pods);
    fleet.manage(now, &mut steps);
    if set.spec.update_strategy.kind != "OnDelete" {
        update::roll(&fleet, now, &mut steps);
    }
    let live: Vec<&str> =
        fleet.pods().filter_map(|pod| pod.metadata.label(REVISION_LABEL)).collect();
    history.forget(set.spec.revision_history_limit.unwrap_or(HISTORY), &live, &mut steps);
    fleet.tell(now, &mut steps);
    steps
}

/// The node a pod is on, or is pinned to.
fn node_of(pod: &Pod) -> Option<&str> {
    if pod.is_bound() {
        return Some(&pod.spec.node_name);
    }
    let affinity = pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| &term.match_fields);
    let mut named = fields.filter(|one| one.key == "metadata.name" && one.operator == "In");
    named.next()?.values.first().map(String::as_str)
}

/// What every daemon bears, so that it runs where ordinary pods may not.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let bear = |key: &str, effect: &str| Toleration {
        key: key.to_owned(),
        operator: "Exists".to_owned(),
        effect: effect.to_owned(),
        ..Toleration::default()
    };
    let mut wanted = vec![
        bear(NOT_READY, "NoExecute"),
        bear(UNREACHABLE, "NoExecute"),
        bear("node.kubernetes.io/disk-pressure", "NoSchedule"),
        bear("node.kubernetes.io/memory-pressure", "NoSchedule"),
        bear("node.kubernetes.io/pid-pressure", "NoSchedule"),
        bear(UNSCHEDULABLE, "NoSchedule"),
    ];
    if spec.host_network {
        wanted.push(bear("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let mut all = spec.tolerations.clone();
    for one in wanted {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn belongs(spec: &PodSpec, node: &Node) -> Belongs {
    if !placement::may_run_on(spec, node) {
        return Belongs { run: false, stay: false };
    }
    let refuses =
        |effects: &[&str]| placement::untolerated(node, &spec.tolerations, effects).is_some();
    Belongs { run: !refuses(&["NoSchedule", "NoExecute"]), stay: !refuses(&["NoExecute"]) }
}

/// The template's spec, pinned to one node.
fn pinned(spec: &PodSpec, node: &str) -> PodSpec {
    let mut spec = spec.clone();
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: vec![node.to_owned()],
        ..NodeSelectorRequirement::default()
    };
    let term = NodeSelectorTerm { match_fields: vec![field], ..NodeSelectorTerm::default() };
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let affinity = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    // What the template asks for was checked when the node was chosen.
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term], ..NodeSelector::default() });
    spec
}

impl<'a> Fleet<'a> {
    fn of(view: &'a View, set: &'a DaemonSet, hash: String, pods: Vec<&'a Arc<Pod>>) -> Self {
        let mut template = set.spec.template.clone();
        template.spec.tolerations = tolerations(&template.spec);
        let mut nodes: BTreeMap<&str, (Belongs, Vec<&Arc<Pod>>)> = view
            .nodes
            .iter()
            .map(|node| {
                let belongs = belongs(&template.spec, node);
                (node.metadata.name.as_str(), (belongs, Vec::new()))
            })
            .collect();
        let mut strays = Vec::new();
        for pod in pods {
            match node_of(pod).and_then(|name| nodes.get_mut(name)) {
                Some((_, here)) => here.push(pod),
                None => strays.push(pod),
            }
        }
        for (_, here) in nodes.values_mut() {
            here.sort_by_key(|pod| (pod.metadata.creation_timestamp, pod.metadata.name.clone()));
        }
        Self { set, template, hash, nodes, strays }
    }

    fn pods(&self) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.nodes.values().flat_map(|(_, pods)| pods).copied()
    }

    fn is_new(&self, pod: &Pod) -> bool {
        pod.metadata.label(REVISION_LABEL) == Some(&self.hash)
    }

    fn surges(&self) -> bool {
        self.limits().1 > 0
    }

    /// Makes pods where they are missing, deletes them where they do not belong.
    fn manage(&self, now: Timestamp, steps: &mut Steps) {
        let mut room = BURST;
        for pod in &self.strays {
            // Its node is gone: nobody else would end it while it waits to be bound.
            if !pod.is_bound() && !pod.metadata.is_deleting() {
                self.delete(pod, steps);
            }
        }
        for (node, (belongs, pods)) in &self.nodes {
            if room == 0 {
                return;
            }
            let living: Vec<&Arc<Pod>> =
                pods.iter().copied().filter(|pod| !pod.metadata.is_deleting()).collect();
            if !belongs.stay {
                living.iter().for_each(|pod| self.delete(pod, steps));
                continue;
            }
            let (finished, running): (Vec<_>, Vec<_>) =
                living.into_iter().partition(|pod| pod.is_finished());
            for pod in finished {
                self.replace_finished(pod, node, now, steps);
            }
            if belongs.run && pods.is_empty() {
                steps.push(self.create(node));
                room -= 1;
            }
            self.thin_out(&running, steps);
        }
    }

    /// Of several pods on a node the oldest stays; while surging, one old and one new.
    fn thin_out(&self, running: &[&'a Arc<Pod>], steps: &mut Steps) {
        let parts: [Vec<&Arc<Pod>>; 2] = if self.surges() {
            let (new, old) = running.iter().copied().partition(|pod| self.is_new(pod));
            [new, old]
        } else {
            [running.to_vec(), Vec::new()]
        };
        for part in parts {
            for pod in part.into_iter().skip(1) {
                self.delete(pod, steps);
            }
        }
    }

    fn replace_finished(&self, pod: &Arc<Pod>, node: &str, now: Timestamp, steps: &mut Steps) {
        let born = pod.metadata.creation_timestamp.map_or(now, |at| at.0);
        let due = born.saturating_add(PATIENCE).unwrap_or(now);
        if now < due {
            steps.look_again(due);
            return;
        }
        let (ns, name) = (&pod.metadata.namespace, &pod.metadata.name);
        let about = Target::of(self.set);
        let note = if pod.status.phase == "Failed" {
            let message =
                format!("Found failed daemon pod {ns}/{name} on node {node}, will try to kill it");
            Note::warning(&about, "FailedDaemonPod", message)
        } else {
            let message = format!(
                "Found succeeded daemon pod {ns}/{name} on node {node}, will try to delete it"
            );
            Note::normal(&about, "SucceededDaemonPod", message)
        };
        steps.push(Action::delete(Target::of(&**pod)).telling(note));
    }

    fn delete(&self, pod: &Arc<Pod>, steps: &mut Steps) {
        let message = format!("Deleted pod: {}", pod.metadata.name);
        let note = Note::normal(&Target::of(self.set), "SuccessfulDelete", message);
        steps.push(Action::delete(Target::of(&**pod)).telling(note));
    }

    fn create(&self, node: &str) -> Action {
        let template =
            PodTemplateSpec { spec: pinned(&self.template.spec, node), ..self.template.clone() };
        let mut object = family::pod_of(&template, &self.set.metadata, &kind::DAEMON_SET);
        if let Some(meta) = object.get_mut("metadata").and_then(|one| one.as_object_mut()) {
            let labels = family::with_label(&template.metadata.labels, REVISION_LABEL, &self.hash);
            let stem: String = self.set.metadata.name.chars().take(57).collect();
            meta.insert("labels".to_owned(), json!(labels));
            meta.insert("generateName".to_owned(), json!(format!("{stem}-")));
        }
        let note = Note::normal(&Target::of(self.set), "SuccessfulCreate", "Created pod: ");
        Action::create(&kind::POD, &self.set.metadata.namespace, object).telling(note)
    }

    fn tell(&self, now: Timestamp, steps: &mut Steps) {
        let set = self.set;
        let mut wanted = DaemonSetStatus {
            observed_generation: set.metadata.generation,
            collision_count: set.status.collision_count,
            conditions: set.status.conditions.clone(),
            extra: set.status.extra.clone(),
            ..DaemonSetStatus::default()
        };
        for (belongs, pods) in self.nodes.values() {
            if !belongs.run {
                wanted.number_misscheduled += i64::from(!pods.is_empty());
                continue;
            }
            wanted.desired_number_scheduled += 1;
            let Some(oldest) = pods.first() else { continue };
            wanted.current_number_scheduled += 1;
            let ready = pods.iter().any(|pod| pod.is_ready());
            let mut available = false;
            for pod in pods {
                available |= family::is_available(pod, set.spec.min_ready_seconds, now, steps);
            }
            wanted.number_ready += i64::from(ready);
            wanted.number_available += i64::from(available);
            // While surging the newer of the two tells how far the rollout is.
            let shown = pods.iter().find(|pod| self.is_new(pod)).unwrap_or(oldest);
            wanted.updated_number_scheduled += i64::from(self.is_new(shown));
        }
        wanted.number_unavailable = wanted.desired_number_scheduled - wanted.number_available;
        if wanted == set.status {
            return;
        }
        let status = json!({
            "observedGeneration": wanted.observed_generation,
            "desiredNumberScheduled": wanted.desired_number_scheduled,
            "currentNumberScheduled": wanted.current_number_scheduled,
            "numberMisscheduled": wanted.number_misscheduled,
            "numberReady": wanted.number_ready,
            "numberAvailable": wanted.number_available,
            "numberUnavailable": wanted.number_unavailable,
            "updatedNumberScheduled": wanted.updated_number_scheduled,
        });
        steps.push(Action::patch_status(Target::of(set), status));
    }
}

#[cfg(test)]
mod tests;
