//! Pods with lasting names and lasting claims.
//!
//! Spec: upstream's stateful set controller: ordered or parallel, rolling updates from the
//! last pod down to `partition` with `maxUnavailable`, or on delete; claims by template and
//! what becomes of them; history as `ControllerRevision`s.

mod claim;
mod pod;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use objects::int_or_string::Rounding;
use objects::kind;
use objects::pod::Pod;
use objects::workload::{StatefulSet, StatefulSetStatus};
use serde_json::json;

use crate::action::{Action, Note, Steps, Target};
use crate::family::{self, History, REVISION_LABEL};
use crate::view::{Key, View};
use crate::wake::Touch;

/// Old revisions kept for going back, unless the set says.
const HISTORY: i64 = 10;

/// The sets whose pod names the name of a claim ends with.
#[must_use]
pub fn sets_of_claim(view: &View, touch: &Touch) -> Vec<Key> {
    let name = &touch.key.name;
    let ends = |set: &&Arc<StatefulSet>| name.contains(&format!("-{}-", set.metadata.name));
    let sets = view.stateful_sets.inside(&touch.key.namespace).filter(ends);
    sets.map(|set| Key::of(&set.metadata)).collect()
}

/// A stateful set with its pods by number.
struct Crew<'a> {
    view: &'a View,
    set: &'a StatefulSet,
    history: History,
    /// The revision that pods below the update's border are of.
    current: String,
    pods: BTreeMap<i64, &'a Arc<Pod>>,
    now: Timestamp,
}

/// Plans the steps for one stateful set.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(set) = view.stateful_sets.get(&key.namespace, &key.name) else { return steps };
    let Some(selector) = family::selector(set.spec.selector.as_ref()) else { return steps };
    if set.metadata.is_deleting() {
        return steps;
    }
    let fits = |pod: &Pod| pod::number(set, &pod.metadata.name).is_some();
    let pods = family::claim(view, &set.metadata, &kind::STATEFUL_SET, &selector, fits, &mut steps);
    let history =
        History::of(view, &set.metadata, &kind::STATEFUL_SET, &set.spec.template, &mut steps);
    let pods: BTreeMap<i64, &Arc<Pod>> = pods
        .into_iter()
        .filter_map(|pod| Some((pod::number(set, &pod.metadata.name)?, pod)))
        .collect();
    let current = crew_revision(set, &history);
    let crew = Crew { view, set, history, current, pods, now };
    crew.keep_claims(&mut steps);
    if crew.fill(&mut steps) && crew.shrink(&mut steps) {
        crew.update(&mut steps);
    }
    let mut live: Vec<&str> =
        crew.pods.values().filter_map(|pod| pod.metadata.label(REVISION_LABEL)).collect();
    live.push(&crew.current);
    crew.history.forget(set.spec.revision_history_limit.unwrap_or(HISTORY), &live, &mut steps);
    crew.tell(&mut steps);
    steps
}

/// The revision before the update; that of the update when there is no other.
fn crew_revision(set: &StatefulSet, history: &History) -> String {
    let full = &set.status.current_revision;
    let hash = full.strip_prefix(&format!("{}-", set.metadata.name)).unwrap_or_default();
    if history.template(hash).is_some() { hash.to_owned() } else { history.update.clone() }
}

impl Crew<'_> {
    fn start(&self) -> i64 {
        self.set.spec.ordinals.as_ref().map_or(0, |one| one.start)
    }

    fn end(&self) -> i64 {
        self.start().saturating_add(self.set.spec.replicas.unwrap_or(1).max(0))
    }

    fn is_ordered(&self) -> bool {
        self.set.spec.pod_management_policy != "Parallel"
    }

    fn is_wanted(&self, number: i64) -> bool {
        (self.start()..self.end()).contains(&number)
    }

    /// Running, ready, and for long enough.
    fn is_available(&self, pod: &Pod, steps: &mut Steps) -> bool {
        pod.status.phase == "Running"
            && family::is_available(pod, self.set.spec.min_ready_seconds, self.now, steps)
    }

    /// The first pod whose update is asked for.
    fn partition(&self) -> i64 {
        let update = self.set.spec.update_strategy.rolling_update.as_ref();
        let partition = update.and_then(|one| one.partition).unwrap_or(0);
        self.start().saturating_add(partition)
    }

    /// The revision a pod that does not exist yet is made of.
    fn revision_of(&self, number: i64) -> &str {
        let rolling = self.set.spec.update_strategy.kind != "OnDelete";
        let border = self.partition();
        if rolling && number < border { &self.current } else { &self.history.update }
    }

    /// Makes what is missing; `false` when an ordered set must wait.
    fn fill(&self, steps: &mut Steps) -> bool {
        for number in self.start()..self.end() {
            let Some(pod) = self.pods.get(&number) else {
                if !self.make(number, steps) || self.is_ordered() {
                    return false;
                }
                continue;
            };
            if pod.is_finished() {
                if !pod.metadata.is_deleting() {
                    self.restart(pod, steps);
                }
                if self.is_ordered() {
                    return false;
                }
                continue;
            }
            // Also of the pod that others wait for: it may wait itself, for a claim that is gone.
            self.keep_identity(number, pod, steps);
            if self.is_ordered() && (pod.metadata.is_deleting() || !self.is_available(pod, steps)) {
                return false;
            }
        }
        true
    }

    /// A pod that ended is made again under its name.
    fn restart(&self, pod: &Arc<Pod>, steps: &mut Steps) {
        let (ns, name) = (&pod.metadata.namespace, &pod.metadata.name);
        let about = Target::of(self.set);
        let note = if pod.status.phase == "Failed" {
            let message = format!(
                "StatefulSet {ns}/{} is recreating failed Pod {name}",
                self.set.metadata.name
            );
            Note::warning(&about, "RecreatingFailedPod", message)
        } else {
            let message = format!(
                "StatefulSet {ns}/{} is recreating terminated Pod {name}",
                self.set.metadata.name
            );
            Note::normal(&about, "RecreatingTerminatedPod", message)
        };
        steps.push(Action::delete(Target::of(&**pod)).telling(note));
    }

    /// Deletes what is too much, last first; `false` when an ordered set must wait.
    fn shrink(&self, steps: &mut Steps) -> bool {
        let surplus = self.pods.iter().rev().filter(|(number, _)| !self.is_wanted(**number));
        let unhealthy = |pod: &Pod| pod.metadata.is_deleting() || !pod.is_ready();
        let first = self.pods.values().find(|pod| unhealthy(pod));
        let mut any = false;
        for (_, pod) in surplus {
            any = true;
            if pod.metadata.is_deleting() {
                if self.is_ordered() {
                    return false;
                }
                continue;
            }
            let is_first = first.is_some_and(|one| one.metadata.name == pod.metadata.name);
            // One that has ended will never be well again, so nothing waits for it.
            let may_go = pod.is_finished() || is_first || self.is_available(pod, steps);
            if self.is_ordered() && !may_go {
                return false;
            }
            self.delete(pod, steps);
            if self.is_ordered() {
                return false;
            }
        }
        !any
    }

    fn delete(&self, pod: &Arc<Pod>, steps: &mut Steps) {
        let (name, set) = (&pod.metadata.name, &self.set.metadata.name);
        let message = format!("delete Pod {name} in StatefulSet {set} successful");
        let note = Note::normal(&Target::of(self.set), "SuccessfulDelete", message);
        steps.push(Action::delete(Target::of(&**pod)).telling(note));
    }

    /// Deletes pods of other revisions, last first, as many as may be missing at a time.
    fn update(&self, steps: &mut Steps) {
        let strategy = &self.set.spec.update_strategy;
        if strategy.kind == "OnDelete" {
            return;
        }
        let replicas = self.set.spec.replicas.unwrap_or(1).max(0);
        let most = strategy.rolling_update.as_ref().and_then(|one| one.max_unavailable.as_ref());
        let most = most.and_then(|one| one.resolve(replicas, Rounding::Up)).unwrap_or(1).max(1);
        let mut missing = 0;
        for number in self.start()..self.end() {
            let up = self
                .pods
                .get(&number)
                .is_some_and(|pod| !pod.metadata.is_deleting() && self.is_available(pod, steps));
            missing += i64::from(!up);
        }
        for (number, pod) in self.pods.iter().rev() {
            if *number < self.partition() || !self.is_wanted(*number) || pod.metadata.is_deleting()
            {
                continue;
            }
            if pod.metadata.label(REVISION_LABEL) == Some(&self.history.update) {
                continue;
            }
            // One that serves nobody may always be replaced.
            let serves = self.is_available(pod, steps);
            if serves && missing >= most {
                return;
            }
            missing += i64::from(serves);
            self.delete(pod, steps);
        }
    }

    fn tell(&self, steps: &mut Steps) {
        let set = self.set;
        let mut wanted = StatefulSetStatus {
            observed_generation: set.metadata.generation,
            replicas: Some(0),
            collision_count: set.status.collision_count,
            conditions: set.status.conditions.clone(),
            extra: set.status.extra.clone(),
            ..StatefulSetStatus::default()
        };
        let mut replicas = 0;
        for pod in self.pods.values() {
            replicas += 1;
            let running = pod.status.phase == "Running" && pod.is_ready();
            wanted.ready_replicas += i64::from(running);
            wanted.available_replicas += i64::from(self.is_available(pod, steps));
            let is = |hash: &str| pod.metadata.label(REVISION_LABEL) == Some(hash);
            if !pod.metadata.is_deleting() {
                wanted.current_replicas += i64::from(is(&self.current));
                wanted.updated_replicas += i64::from(is(&self.history.update));
            }
        }
        wanted.replicas = Some(replicas);
        let full = |hash: &str| format!("{}-{hash}", set.metadata.name);
        wanted.current_revision = full(&self.current);
        wanted.update_revision = full(&self.history.update);
        let complete = set.spec.update_strategy.kind != "OnDelete"
            && wanted.updated_replicas == replicas
            && wanted.ready_replicas == replicas
            && replicas == set.spec.replicas.unwrap_or(1);
        if complete {
            wanted.current_replicas = wanted.updated_replicas;
            wanted.current_revision.clone_from(&wanted.update_revision);
        }
        if wanted == set.status {
            return;
        }
        let status = json!({
            "observedGeneration": wanted.observed_generation,
            "replicas": replicas,
            "readyReplicas": wanted.ready_replicas,
            "availableReplicas": wanted.available_replicas,
            "currentReplicas": wanted.current_replicas,
            "updatedReplicas": wanted.updated_replicas,
            "currentRevision": wanted.current_revision,
            "updateRevision": wanted.update_revision,
        });
        steps.push(Action::patch_status(Target::of(set), status));
    }
}

#[cfg(test)]
mod tests;
