//! Deletes jobs some time after they ended, if they say so.

use jiff::{SignedDuration, Timestamp};

use crate::action::{Action, Propagation, Steps, Target};
use crate::view::{Key, View};

/// Plans the step for one job.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(job) = view.jobs.get(&key.namespace, &key.name) else { return steps };
    let Some(seconds) = job.spec.ttl_seconds_after_finished else { return steps };
    let Some(end) = job.finished().filter(|_| !job.metadata.is_deleting()) else { return steps };
    let Some(at) = end.last_transition_time else { return steps };
    let due = at.0.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    if now < due {
        steps.look_again(due);
        return steps;
    }
    let (target, absent) = (Target::of(&**job), Vec::new());
    steps.push(Action::Collect { target, absent, propagation: Propagation::Foreground });
    steps
}
