//! Flows of UDP that lead nowhere: found and forgotten beside the proxy's loop.
//!
//! The kernel's table of flows is read bucket by bucket, full or not, which takes as long as
//! hundreds of changes to services; those must not wait for it. Here is at most one pass at a
//! time, on a thread where it holds nobody up. Reading comes first; which flows lead nowhere is
//! then judged by what is planned at that time, and those are forgotten.

use std::time::Duration;

use kernel::conntrack::{self, ConntrackError, Family, Flow};
use runtime::report;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Between two passes, so that endpoints that change all the time do not keep a processor busy.
const REST: Duration = Duration::from_millis(250);
/// The same after a pass that failed.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Passes over the kernel's table of flows.
pub(super) struct Sweep {
    /// Whether there may be flows that lead nowhere.
    wanted: bool,
    stage: Stage,
    /// Before this no pass begins.
    not_before: Option<Instant>,
    /// Counts what has ended, and so wakes the loop.
    ended: watch::Sender<u64>,
}

/// Where a pass is.
enum Stage {
    Resting,
    /// On a thread aside, to the end of which it says what was found.
    Reading(oneshot::Receiver<Result<Vec<Flow>, ConntrackError>>),
    Forgetting(oneshot::Receiver<Result<(), ConntrackError>>),
}

impl Sweep {
    /// Wants a pass: an earlier run of the agent may have left flows.
    pub(super) fn new() -> Self {
        let ended = watch::channel(0).0;
        Self { wanted: true, stage: Stage::Resting, not_before: None, ended }
    }

    /// Wakes when [`Self::go_on`] has something to do.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Wants a pass, also when one is under way: that may be past the flows in question.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether [`Self::go_on`] may have something to do; otherwise, when that will be so if nothing
    /// wakes the loop before.
    pub(super) fn is_due(&self) -> Result<(), Option<Duration>> {
        match self.stage {
            Stage::Reading(_) | Stage::Forgetting(_) => Ok(()),
            Stage::Resting if !self.wanted => Err(None),
            Stage::Resting => {
                let rest = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
                rest.filter(|rest| !rest.is_zero()).map_or(Ok(()), |rest| Err(Some(rest)))
            }
        }
    }

    /// Goes on with the pass that is under way, or begins the one that is wanted. Returns what was
    /// read, of which what leads nowhere is to be forgotten.
    pub(super) fn go_on(&mut self, families: Vec<Family>) -> Option<Vec<Flow>> {
        match std::mem::replace(&mut self.stage, Stage::Resting) {
            Stage::Reading(mut outcome) => match outcome.try_recv() {
                Err(TryRecvError::Empty) => self.stage = Stage::Reading(outcome),
                outcome => return self.end(outcome),
            },
            Stage::Forgetting(mut outcome) => match outcome.try_recv() {
                Err(TryRecvError::Empty) => self.stage = Stage::Forgetting(outcome),
                outcome => _ = self.end(outcome),
            },
            Stage::Resting if self.is_due().is_ok() => {
                self.wanted = false;
                self.stage = Stage::Reading(self.aside(move || read(families)));
            }
            Stage::Resting => (),
        }
        None
    }

    /// Forgets flows.
    pub(super) fn forget(&mut self, flows: Vec<Flow>) {
        if !flows.is_empty() {
            debug!(flows = flows.len(), "flows that lead nowhere are forgotten");
            self.stage = Stage::Forgetting(self.aside(move || conntrack::forget(&flows)));
        }
    }

    /// Takes what a thread came to, and rests; what failed is tried again.
    fn end<T>(&mut self, outcome: Result<Result<T, ConntrackError>, TryRecvError>) -> Option<T> {
        let failure = match outcome {
            Ok(Ok(value)) => {
                self.rest(REST);
                return Some(value);
            }
            Ok(Err(err)) => report(&err),
            // It panicked, or the runtime ends.
            Err(_) => "the thread ended early".to_owned(),
        };
        warn!(err = failure, "flows that lead nowhere cannot be forgotten; retrying");
        self.wanted = true;
        self.rest(REST_AFTER_FAILURE);
        None
    }

    fn rest(&mut self, rest: Duration) {
        self.not_before = Some(Instant::now() + rest);
        // The loop learns how long.
        drop(Bell(self.ended.clone()));
    }

    /// Runs what blocks where it holds nobody up, and wakes the loop when it is over.
    fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let bell = Bell(self.ended.clone());
        // Whoever waits is woken, and it does not matter when nobody does.
        drop(tokio::task::spawn_blocking(move || {
            // Also when the work panics; and not before what it came to is there.
            let _bell = bell;
            drop(sender.send(work()));
        }));
        receiver
    }
}

/// Wakes the loop when it goes.
struct Bell(watch::Sender<u64>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn read(families: Vec<Family>) -> Result<Vec<Flow>, ConntrackError> {
    let mut all = Vec::new();
    for family in families {
        all.extend(conntrack::flows(family)?);
    }
    Ok(all)
}
