//! Rolls out replica sets: one per pod template, the newest growing while the others shrink.
//!
//! Spec: upstream's deployment controller: hash label, revision annotations (so that
//! `kubectl rollout undo` works), conditions. Differs: the steps of a round are all planned
//! from one view, so a new set and the shrinking of old ones may come in different rounds.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use objects::kind;
use objects::meta::OwnerReference;
use objects::pod::PodTemplateSpec;
use objects::workload::{Deployment, ReplicaSet};
use serde_json::{Map, Value, json};

use crate::action::{Action, Note, Steps, Target, encode};
use crate::hash;
use crate::rollout::{self, DESIRED, Limits, MAXIMUM, asked};
use crate::view::{Key, View};
use crate::wake::Touch;

/// Label that tells the sets of a deployment apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Annotation that counts rollouts.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation that lists the earlier revisions of a set that came back.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What kubectl notes for itself; it belongs to the deployment alone.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Old sets kept for going back, unless the deployment says.
const HISTORY: i64 = 10;

/// The deployments whose replica set controls, or controlled, a pod that came or went.
///
/// Only recreating waits for pods themselves; everything else is in the sets' counts.
#[must_use]
pub fn of_pod(view: &View, touch: &Touch) -> Vec<Key> {
    if touch.after.is_some() && !touch.came_or_went() {
        return Vec::new();
    }
    let namespace = &touch.key.namespace;
    let sets = touch.sides().filter_map(|side| side.meta().controller());
    let sets = sets.filter_map(|owner| view.replica_sets.get(namespace, &owner.name));
    let owners = sets.filter_map(|set| set.metadata.controller());
    owners.map(|owner| Key::new(namespace, &owner.name)).collect()
}

/// A deployment with its replica sets.
struct Family<'a> {
    deployment: &'a Deployment,
    /// The set of the current template, when there is one.
    new: Option<Arc<ReplicaSet>>,
    /// The others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
    limits: Limits,
}

/// Plans the steps for one deployment.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(deployment) = view.deployments.get(&key.namespace, &key.name) else {
        return steps;
    };
    let selector = deployment.spec.selector.as_ref().and_then(objects::LabelSelector::compile);
    let Some(selector) = selector.filter(|one| !one.is_empty()) else { return steps };
    if deployment.metadata.is_deleting() {
        return steps;
    }
    let sets = claim(view, deployment, &selector, &mut steps);
    if !steps.actions.is_empty() {
        // Who belongs to whom is settled first: one of those may be the set we would make.
        return steps;
    }
    let family = Family::of(deployment, sets);
    if deployment.spec.paused {
        family.scale(&mut steps);
    } else if let Some(sizes) = family.scaling() {
        for (set, size) in family.live().iter().zip(sizes) {
            family.resize(set, size, &mut steps);
        }
    } else {
        family.number(&mut steps);
        if rollout::is_recreate(deployment) {
            family.recreate(view, &mut steps);
        } else {
            family.roll(view, &mut steps);
        }
        family.forget(&mut steps);
    }
    status::tell(&family, now, &mut steps);
    steps
}

/// Returns the deployment's sets, oldest first; adopts free ones that match.
fn claim(
    view: &View,
    deployment: &Deployment,
    selector: &objects::Selector,
    steps: &mut Steps,
) -> Vec<Arc<ReplicaSet>> {
    let mut sets = Vec::new();
    for set in view.replica_sets.inside(&deployment.metadata.namespace) {
        let matches = selector.matches(&set.metadata.labels);
        if set.metadata.is_controlled_by(&deployment.metadata.uid) {
            if matches {
                sets.push(Arc::clone(set));
            } else {
                let kept = set.metadata.owner_references.iter();
                let kept: Vec<_> = kept.filter(|one| one.uid != deployment.metadata.uid).collect();
                let body = json!({"metadata": {"ownerReferences": kept}});
                steps.push(Action::patch(Target::of(&**set), body));
            }
        } else if matches && set.metadata.controller().is_none() && !set.metadata.is_deleting() {
            let mut owners = set.metadata.owner_references.clone();
            owners.push(OwnerReference::controlled_by(deployment));
            let body = json!({"metadata": {"ownerReferences": owners}});
            steps.push(Action::patch(Target::of(&**set), body));
        }
    }
    sets.sort_by_key(|set| (set.metadata.creation_timestamp, set.metadata.name.clone()));
    sets
}

/// A template without the label that we added.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut bare = template.clone();
    bare.metadata.labels.remove(HASH_LABEL);
    bare
}

/// The revision of a set; 0 when it has none.
fn revision(set: &ReplicaSet) -> i64 {
    set.metadata.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl<'a> Family<'a> {
    fn of(deployment: &'a Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Self {
        let wanted = bare(&deployment.spec.template);
        let place = sets.iter().position(|set| bare(&set.spec.template) == wanted);
        let new = place.map(|place| sets.remove(place));
        Self { deployment, new, old: sets, limits: Limits::of(deployment) }
    }

    /// Sets that have pods, the new one first, then the newest.
    fn live(&self) -> Vec<Arc<ReplicaSet>> {
        let all = self.new.iter().chain(self.old.iter().rev());
        let mut live: Vec<_> = all.filter(|set| asked(set) > 0).cloned().collect();
        live.sort_by_key(|set| std::cmp::Reverse(asked(set)));
        live
    }

    /// New sizes when `replicas` changed in the middle of a rollout.
    fn scaling(&self) -> Option<Vec<i64>> {
        rollout::spread_scaling(&self.limits, &self.live())
    }

    /// While paused only the size may change: that of the one live set, or all in proportion.
    fn scale(&self, steps: &mut Steps) {
        let live = self.live();
        if let Some(sizes) = self.scaling() {
            for (set, size) in live.iter().zip(sizes) {
                self.resize(set, size, steps);
            }
            return;
        }
        let only = if live.len() > 1 { None } else { live.first().or(self.new.as_ref()) };
        if let Some(set) = only {
            self.resize(set, self.limits.replicas, steps);
        }
    }

    /// Gives the new set the highest revision, and the deployment the same.
    fn number(&self, steps: &mut Steps) {
        let newest = self.old.iter().map(|set| revision(set)).max().unwrap_or(0);
        let wanted = match &self.new {
            Some(new) if revision(new) > newest => revision(new),
            _ => newest + 1,
        };
        let text = wanted.to_string();
        if self.deployment.metadata.annotation(REVISION) != Some(&text) {
            let body = json!({"metadata": {"annotations": {REVISION: text}}});
            steps.push(Action::patch(Target::of(self.deployment), body));
        }
    }

    /// The revision the new set must carry.
    fn new_revision(&self) -> i64 {
        let newest = self.old.iter().map(|set| revision(set)).max().unwrap_or(0);
        self.new.as_ref().map_or(0, |new| revision(new)).max(newest + 1)
    }

    fn roll(&self, view: &View, steps: &mut Steps) {
        let others = rollout::asked_of_all(&self.old);
        let Some(new) = &self.new else {
            self.create(view, rollout::next_of_new(&self.limits, 0, others), steps);
            return;
        };
        let size = rollout::next_of_new(&self.limits, asked(new), others);
        self.resize(new, size, steps);
        if size != asked(new) {
            // What the old sets may lose depends on what the new one then has.
            return;
        }
        let sizes = rollout::next_of_old(&self.limits, &self.old, Some(new));
        for (set, size) in self.old.iter().zip(sizes) {
            self.resize(set, size, steps);
        }
    }

    fn recreate(&self, view: &View, steps: &mut Steps) {
        if rollout::asked_of_all(&self.old) > 0 {
            for set in &self.old {
                self.resize(set, 0, steps);
            }
            return;
        }
        // Every old pod must really have stopped, also those that are stopping.
        let running =
            |set: &Arc<ReplicaSet>| view.pods_of(&set.metadata.uid).any(|pod| !pod.is_finished());
        if self.old.iter().any(running) {
            return;
        }
        match &self.new {
            Some(new) => self.resize(new, self.limits.replicas, steps),
            None => self.create(view, self.limits.replicas, steps),
        }
    }

    /// Deletes old sets beyond the history.
    fn forget(&self, steps: &mut Steps) {
        let keep = self.deployment.spec.revision_history_limit.unwrap_or(HISTORY);
        let mut empty: Vec<_> = self
            .old
            .iter()
            .filter(|set| {
                asked(set) == 0
                    && set.status.replicas.unwrap_or(0) == 0
                    && set.status.observed_generation >= set.metadata.generation
                    && !set.metadata.is_deleting()
            })
            .collect();
        empty.sort_by_key(|set| revision(set));
        let surplus = empty.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
        for set in empty.into_iter().take(surplus) {
            steps.push(Action::delete(Target::of(&**set)));
        }
    }

    /// Brings size and annotations of a set up to date in one write.
    fn resize(&self, set: &Arc<ReplicaSet>, size: i64, steps: &mut Steps) {
        let is_new = self.new.as_ref().is_some_and(|new| new.metadata.uid == set.metadata.uid);
        let mut changed = Map::new();
        let mut want = |name: &str, value: String| {
            if set.metadata.annotation(name) != Some(&value) {
                changed.insert(name.to_owned(), Value::String(value));
            }
        };
        if is_new && !self.deployment.spec.paused {
            let wanted = self.new_revision();
            for (name, value) in self.inherited() {
                want(&name, value);
            }
            want(REVISION, wanted.to_string());
            let had = revision(set);
            if had > 0 && had != wanted {
                let before = set.metadata.annotation(REVISION_HISTORY);
                want(
                    REVISION_HISTORY,
                    before.map_or_else(|| had.to_string(), |text| format!("{text},{had}")),
                );
            }
        }
        if size > 0 || asked(set) > 0 {
            want(DESIRED, self.limits.replicas.to_string());
            want(MAXIMUM, self.limits.most().to_string());
        }
        let resized = size != asked(set);
        let seconds = self.deployment.spec.min_ready_seconds;
        let slower = is_new && set.spec.min_ready_seconds != seconds;
        if !resized && !slower && changed.is_empty() {
            return;
        }
        let mut spec = Map::new();
        if resized {
            spec.insert("replicas".to_owned(), size.into());
        }
        if slower {
            spec.insert("minReadySeconds".to_owned(), seconds.into());
        }
        let mut body = json!({"metadata": {"annotations": changed}});
        if let Some(body) = body.as_object_mut().filter(|_| !spec.is_empty()) {
            body.insert("spec".to_owned(), Value::Object(spec));
        }
        let step = Action::patch(Target::of(&**set), body);
        if !resized {
            steps.push(step);
            return;
        }
        let way = if size > asked(set) { "up" } else { "down" };
        let (name, from) = (&set.metadata.name, asked(set));
        let message = format!("Scaled {way} replica set {name} from {from} to {size}");
        let about = Target::of(self.deployment);
        steps.push(step.telling(Note::normal(&about, "ScalingReplicaSet", message)));
    }

    /// Annotations a set takes over from its deployment.
    fn inherited(&self) -> BTreeMap<String, String> {
        let own = [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAXIMUM];
        let all = self.deployment.metadata.annotations.iter();
        all.filter(|(name, _)| !own.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn create(&self, view: &View, size: i64, steps: &mut Steps) {
        let deployment = self.deployment;
        let namespace = &deployment.metadata.namespace;
        let Some(hash) = self.free_hash(view) else { return };
        // Names of pods get a hyphen and five letters more.
        let stem: String = deployment.metadata.name.chars().take(46).collect();
        let name = format!("{stem}-{hash}");
        let mut template = deployment.spec.template.clone();
        template.metadata.labels.insert(HASH_LABEL.to_owned(), hash.clone());
        let mut selector = deployment.spec.selector.clone().unwrap_or_default();
        selector.match_labels.insert(HASH_LABEL.to_owned(), hash);
        let mut annotations = self.inherited();
        annotations.insert(REVISION.to_owned(), self.new_revision().to_string());
        annotations.insert(DESIRED.to_owned(), self.limits.replicas.to_string());
        annotations.insert(MAXIMUM.to_owned(), self.limits.most().to_string());
        let object = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": template.metadata.labels,
                "annotations": annotations,
                "ownerReferences": [OwnerReference::controlled_by(deployment)],
            },
            "spec": {
                "replicas": size,
                "minReadySeconds": deployment.spec.min_ready_seconds,
                "selector": selector,
                "template": encode(&template),
            },
        });
        let message = format!("Scaled up replica set {name} from 0 to {size}: ");
        let note = Note::normal(&Target::of(deployment), "ScalingReplicaSet", message);
        steps.push(Action::Create {
            kind: &kind::REPLICA_SET,
            namespace: namespace.clone(),
            object: Box::new(object),
            note: Some(Box::new(note)),
        });
    }

    /// The hash of the template, salted until no other set has the name.
    fn free_hash(&self, view: &View) -> Option<String> {
        let bytes = serde_json::to_vec(&bare(&self.deployment.spec.template)).ok()?;
        let stem: String = self.deployment.metadata.name.chars().take(46).collect();
        let taken = |hash: &String| {
            let name = format!("{stem}-{hash}");
            view.replica_sets.get(&self.deployment.metadata.namespace, &name).is_some()
        };
        (0..100).map(|salt| hash::short(&bytes, salt)).find(|hash| !taken(hash))
    }
}

#[cfg(test)]
mod tests;
