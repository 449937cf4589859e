//! Runs pods until enough of them succeeded.
//!
//! Spec: upstream's job controller: counted by the finalizer `batch.kubernetes.io/job-tracking`
//! so that no ended pod is counted twice or missed; indexed jobs; failure and success
//! policies; suspending. A pod that ended is first noted in `uncountedTerminatedPods`, then
//! loses the finalizer, then becomes a number: each in the round that has seen the one before.
//! Waits after failures follow from the ended pods themselves, so nothing is remembered.

mod count;
mod index;
mod pods;
mod policy;
mod ttl;
mod verdict;

use std::sync::Arc;

use jiff::Timestamp;
use objects::batch::{Job, JobStatus};
use objects::condition::{Condition, find_condition};
use objects::kind;
use objects::pod::Pod;
use objects::time::Time;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target, encode};
use crate::family;
use crate::view::{Key, View};
use crate::wake::Touch;

pub use ttl::reconcile as reconcile_ttl;

/// Finalizer of pods that are not counted yet.
pub(crate) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The name of the key for pods that were let go by their job.
const NOBODY: &str = "";
/// The only value of `managedBy` that is us.
const MANAGER: &str = "kubernetes.io/job-controller";

/// The jobs a pod belongs or belonged to, and those it might.
#[must_use]
pub fn of_pod(view: &View, touch: &Touch) -> Vec<Key> {
    let mut keys = Vec::new();
    for side in touch.sides() {
        match side.meta().controller() {
            Some(owner) if owner.kind == "Job" => {
                keys.push(Key::new(&touch.key.namespace, &owner.name));
            }
            Some(_) => (),
            None => {
                keys.extend(view.jobs.keys_inside(&touch.key.namespace));
                keys.push(Key::new(&touch.key.namespace, NOBODY));
            }
        }
    }
    keys.dedup();
    keys
}

/// The jobs, and those that pods still name; with the key of what belongs to no job any more.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    let mut keys = view.jobs.keys();
    for pod in view.pods.iter().filter(|pod| is_tracked(pod)) {
        let owner = pod.metadata.controller().filter(|one| one.kind == "Job");
        let name = owner.map_or(NOBODY, |one| one.name.as_str());
        keys.push(Key::new(&pod.metadata.namespace, name));
    }
    keys.sort();
    keys.dedup();
    keys
}

/// A job with its pods.
pub(super) struct Work<'a> {
    pub(super) job: &'a Job,
    pub(super) pods: Vec<&'a Arc<Pod>>,
    pub(super) now: Timestamp,
}

impl<'a> Work<'a> {
    /// Pods that run or will.
    pub(super) fn active(&self) -> impl Iterator<Item = &'a Arc<Pod>> {
        let all = self.pods.iter().copied();
        all.filter(|pod| !pod.is_finished() && !pod.metadata.is_deleting())
    }

    /// Pods on their way out that have not ended.
    pub(super) fn terminating(&self) -> i64 {
        let all = self.pods.iter();
        let count = all.filter(|pod| !pod.is_finished() && pod.metadata.is_deleting()).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.job.spec.suspend == Some(true)
    }

    /// Is a pod replaced only once it has really ended?
    pub(super) fn replaces_only_ended(&self) -> bool {
        let said = self.job.spec.pod_replacement_policy.as_deref();
        said.map_or(self.job.spec.pod_failure_policy.is_some(), |one| one == "Failed")
    }
}

/// Plans the steps for one job.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(job) = view.jobs.get(&key.namespace, &key.name) else {
        release_orphans(view, key, &mut steps);
        return steps;
    };
    if job.spec.managed_by.as_deref().is_some_and(|by| by != MANAGER) {
        return steps;
    }
    let Some(selector) = family::selector(job.spec.selector.as_ref()) else { return steps };
    // Of an earlier job of this name.
    release_others(view, job, &mut steps);
    let pods = family::claim(
        view,
        &job.metadata,
        &kind::JOB,
        &selector,
        |pod| !pod.is_finished(),
        &mut steps,
    );
    let work = Work { job, pods, now };
    if job.metadata.is_deleting() || job.finished().is_some() {
        work.release_all(&mut steps);
        return steps;
    }
    if !steps.actions.is_empty() {
        // Who belongs to the job is settled first.
        return steps;
    }
    work.go_on(&mut steps);
    steps
}

/// Pods of a job that is gone, or that let them go, need not be counted by anybody.
fn release_orphans(view: &View, key: &Key, steps: &mut Steps) {
    for pod in view.pods.inside(&key.namespace) {
        let free = match pod.metadata.controller() {
            Some(owner) => owner.kind == "Job" && owner.name == key.name,
            None => key.name == NOBODY && !may_be_adopted(view, pod),
        };
        if free {
            release(pod, steps);
        }
    }
}

/// Pods of an earlier job of the same name need not be counted either.
fn release_others(view: &View, job: &Job, steps: &mut Steps) {
    for pod in view.pods.inside(&job.metadata.namespace) {
        let owner = pod.metadata.controller().filter(|one| one.kind == "Job");
        let other = |one: &objects::OwnerReference| {
            one.name == job.metadata.name && one.uid != job.metadata.uid
        };
        if owner.is_some_and(other) {
            release(pod, steps);
        }
    }
}

/// Will a job take a pod that nobody controls?
fn may_be_adopted(view: &View, pod: &Pod) -> bool {
    let takes = |job: &Arc<Job>| {
        let selector = family::selector(job.spec.selector.as_ref());
        let open = !job.metadata.is_deleting() && job.finished().is_none();
        open && selector.is_some_and(|one| one.matches(&pod.metadata.labels))
    };
    let free = !pod.is_finished() && !pod.metadata.is_deleting();
    free && view.jobs.inside(&pod.metadata.namespace).any(takes)
}

/// Takes the finalizer off a pod.
pub(super) fn release(pod: &Arc<Pod>, steps: &mut Steps) {
    if is_tracked(pod) {
        let kept = pod.metadata.finalizers.iter();
        let kept: Vec<_> = kept.filter(|one| *one != TRACKING).collect();
        let body = json!({"metadata": {"finalizers": kept}});
        steps.push(Action::patch(Target::of(&**pod), body));
    }
}

/// Does the finalizer still hold the pod?
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().any(|one| one == TRACKING)
}

impl Work<'_> {
    fn release_all(&self, steps: &mut Steps) {
        for pod in &self.pods {
            release(pod, steps);
        }
        if self.job.finished().is_some() {
            for pod in self.active() {
                steps.push(Action::delete(Target::of(&**pod)));
            }
        }
    }

    fn go_on(&self, steps: &mut Steps) {
        let mut status = self.job.status.clone();
        let counted = count::count(self, &mut status, steps);
        let ruling = verdict::judge(self, &status, &counted, steps);
        let mut conditions = status.conditions.clone();
        let mut notes = Vec::new();
        if let Some(ruling) = &ruling {
            self.end(ruling, &counted, &mut status, &mut conditions, &mut notes, steps);
        } else if self.is_suspended() {
            self.suspend(&mut status, &mut conditions, &mut notes, steps);
        } else {
            self.resume(&mut status, &mut conditions, &mut notes);
            pods::manage(self, &status, &counted, steps);
        }
        let active = i64::try_from(self.active().count()).unwrap_or(i64::MAX);
        let ready = self.active().filter(|pod| pod.is_ready()).count();
        status.active = active;
        status.ready = Some(i64::try_from(ready).unwrap_or(i64::MAX));
        status.terminating = Some(self.terminating());
        if status.conditions.iter().any(|one| one.kind == "Complete" || one.kind == "Failed") {
            status.active = 0;
            status.ready = Some(0);
        }
        status.conditions = conditions;
        if status == self.job.status {
            return;
        }
        let target = Target::of(self.job);
        let step = Action::patch_status(target, render(&status));
        steps.push(match notes.into_iter().next() {
            Some(note) => step.telling(note),
            None => step,
        });
    }

    /// Ends the job: first the interim condition, then, once no pod runs, the last one.
    fn end(
        &self,
        ruling: &verdict::Ruling,
        counted: &count::Counted,
        status: &mut JobStatus,
        conditions: &mut Vec<Condition>,
        notes: &mut Vec<Note>,
        steps: &mut Steps,
    ) {
        let interim = if ruling.success { "SuccessCriteriaMet" } else { "FailureTarget" };
        let mut say = |kind: &str| self.say(conditions, kind, &ruling.reason, &ruling.message);
        if find_condition(&self.job.status.conditions, interim).is_none() {
            say(interim);
        }
        for pod in self.active() {
            steps.push(Action::delete(Target::of(&**pod)));
        }
        let running = self.pods.iter().any(|pod| !pod.is_finished());
        let settled = find_condition(&self.job.status.conditions, interim).is_some();
        // Every ended pod must be a number first.
        if running || !settled || counted.is_open {
            return;
        }
        let about = Target::of(self.job);
        if ruling.success {
            self.say(conditions, "Complete", &ruling.reason, &ruling.message);
            status.completion_time = Some(Time::from(self.now));
            notes.push(Note::normal(&about, "Completed", "Job completed"));
        } else {
            self.say(conditions, "Failed", &ruling.reason, &ruling.message);
            // Reasons are few and known; events want constant ones.
            notes.push(Note::warning(&about, ruling.word(), ruling.message.clone()));
        }
        status.active = 0;
        status.ready = Some(0);
    }

    fn say(&self, conditions: &mut Vec<Condition>, kind: &str, reason: &str, message: &str) {
        let at = Some(Time::from(self.now));
        let said = Condition {
            last_probe_time: at,
            last_transition_time: at,
            ..Condition::new(kind, true, reason, message)
        };
        conditions.retain(|one| one.kind != kind);
        conditions.push(said);
    }

    fn suspend(
        &self,
        status: &mut JobStatus,
        conditions: &mut Vec<Condition>,
        notes: &mut Vec<Note>,
        steps: &mut Steps,
    ) {
        for pod in self.active() {
            steps.push(Action::delete(Target::of(&**pod)));
        }
        let told = find_condition(conditions, "Suspended").is_some_and(Condition::is_true);
        if !told {
            self.say(conditions, "Suspended", "JobSuspended", "Job suspended");
            notes.push(Note::normal(&Target::of(self.job), "Suspended", "Job suspended"));
        }
        // A deadline counts from when the job goes on.
        status.start_time = None;
    }

    fn resume(
        &self,
        status: &mut JobStatus,
        conditions: &mut Vec<Condition>,
        notes: &mut Vec<Note>,
    ) {
        let told = find_condition(conditions, "Suspended").is_some_and(Condition::is_true);
        if told {
            self.say(conditions, "Suspended", "JobResumed", "Job resumed");
            if let Some(last) = conditions.last_mut() {
                "False".clone_into(&mut last.status);
            }
            notes.push(Note::normal(&Target::of(self.job), "Resumed", "Job resumed"));
        }
        if status.start_time.is_none() {
            status.start_time = Some(Time::from(self.now));
        }
    }
}

/// The status as a merge patch: what went is said to be gone.
fn render(status: &JobStatus) -> Value {
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    json!({
        "conditions": status.conditions,
        "startTime": status.start_time,
        "completionTime": status.completion_time,
        "active": status.active,
        "ready": status.ready,
        "terminating": status.terminating,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "completedIndexes": Some(&status.completed_indexes).filter(|one| !one.is_empty()),
        "failedIndexes": status.failed_indexes,
        "uncountedTerminatedPods": {
            "succeeded": encode(&uncounted.succeeded), "failed": encode(&uncounted.failed),
        },
    })
}

#[cfg(test)]
mod tests;
