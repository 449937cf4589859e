//! Turns ended pods into numbers, each exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use objects::batch::{JobStatus, UncountedTerminatedPods};
use objects::pod::Pod;

use super::{Work, index, is_tracked, policy, release};
use crate::action::Steps;

/// What a job has reached, pods that are not numbers yet included.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) succeeded: i64,
    pub(super) failed: i64,
    /// Indexes that are done.
    pub(super) completed: BTreeSet<i64>,
    /// Indexes that are given up.
    pub(super) given_up: BTreeSet<i64>,
    /// Are there ended pods that are not numbers yet?
    pub(super) is_open: bool,
}

/// Is a pod that has not ended, but never will by itself, to be counted as failed?
fn is_lost(work: &Work<'_>, pod: &Pod) -> bool {
    // A pod deleted before it had a node never gets an end of its own; one whose node
    // confirms does, and replacing may wait for that.
    pod.metadata.is_deleting()
        && !pod.is_finished()
        && (!pod.is_bound() || !work.replaces_only_ended())
}

/// Counts, writes the counts into the status, and lets counted pods go.
pub(super) fn count(work: &Work<'_>, status: &mut JobStatus, steps: &mut Steps) -> Counted {
    let job = work.job;
    let indexes = job.spec.completions.unwrap_or(0);
    let noted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut completed = index::parse(&status.completed_indexes, indexes);
    let given = status.failed_indexes.as_deref().unwrap_or_default();
    let mut given_up = index::parse(given, indexes);
    let by_uid: BTreeMap<&str, &Arc<Pod>> =
        work.pods.iter().map(|pod| (pod.metadata.uid.as_str(), *pod)).collect();
    // Third step: what carries no finalizer any more becomes a number.
    let held = |uid: &String| by_uid.get(uid.as_str()).is_some_and(|pod| is_tracked(pod));
    let (succeeded, done): (Vec<_>, Vec<_>) = noted.succeeded.iter().cloned().partition(held);
    let (failed, lost): (Vec<_>, Vec<_>) = noted.failed.iter().cloned().partition(held);
    let mut open = UncountedTerminatedPods { succeeded, failed, ..Default::default() };
    let number = |all: &[String]| i64::try_from(all.len()).unwrap_or(i64::MAX);
    if !job.is_indexed() {
        status.succeeded += number(&done);
    }
    status.failed += number(&lost);
    for pod in work.pods.iter().filter(|pod| is_tracked(pod)) {
        let uid = &pod.metadata.uid;
        let seen = noted.succeeded.contains(uid) || noted.failed.contains(uid);
        let at = index::of(pod).filter(|at| (0..indexes).contains(at));
        if seen {
            // Second step: it stands in the status, so the finalizer may go.
            release(pod, steps);
        } else if pod.status.phase == "Succeeded" {
            match at {
                // The list of indexes is itself the count.
                Some(at) if job.is_indexed() => {
                    if !completed.insert(at) && was_completed(status, at, indexes) {
                        release(pod, steps);
                    }
                }
                _ if job.is_indexed() => release(pod, steps),
                // First step: note it.
                _ => open.succeeded.push(uid.clone()),
            }
        } else if pod.status.phase == "Failed" || is_lost(work, pod) {
            if policy::is_ignored(work, pod) {
                release(pod, steps);
                continue;
            }
            open.failed.push(uid.clone());
            if let Some(at) = at
                && policy::gives_up(work, pod)
            {
                given_up.insert(at);
            }
        }
    }
    given_up.retain(|at| !completed.contains(at));
    if job.is_indexed() {
        status.succeeded = i64::try_from(completed.len()).unwrap_or(i64::MAX);
        status.completed_indexes = index::render(&completed);
        if job.spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(index::render(&given_up));
        }
    }
    let counted = Counted {
        succeeded: status.succeeded + number(&open.succeeded),
        failed: status.failed + number(&open.failed),
        completed,
        given_up,
        is_open: !open.succeeded.is_empty() || !open.failed.is_empty() || holds_ended(work),
    };
    status.uncounted_terminated_pods = Some(open);
    counted
}

/// Did the index stand in the status before this round?
fn was_completed(status: &JobStatus, at: i64, most: i64) -> bool {
    index::parse(&status.completed_indexes, most).contains(&at)
}

fn holds_ended(work: &Work<'_>) -> bool {
    work.pods.iter().any(|pod| pod.is_finished() && is_tracked(pod))
}
