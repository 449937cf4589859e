//! The one observe → plan → apply loop.
//!
//! Level-triggered: a wake-up carries no data, so one too many or one too few does no harm.
//! A panic inside a plan is a bug of ours in one place; it is reported and that loop waits
//! longer, but neither the process nor other loops end.

use std::fmt::Debug;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::backoff::Backoff;
use crate::telemetry::report;

/// What a round decided.
#[derive(Debug)]
pub struct Plan<A> {
    /// Steps in order.
    pub actions: Vec<A>,
    /// When to look again even if nothing wakes the loop; `None` means at the slow beat. Zero means
    /// that more is to be done already: then no wake-ups are gathered first.
    pub again_after: Option<Duration>,
}

impl<A> Plan<A> {
    /// A plan of steps without an appointment.
    #[must_use]
    pub const fn of(actions: Vec<A>) -> Self {
        Self { actions, again_after: None }
    }
}

/// What a loop is about: how to look, decide and act.
pub trait World: Send {
    /// What a look yields.
    type Seen: Send;
    /// One step.
    type Action: Debug + Send + Sync;
    /// What may go wrong outside.
    type Error: std::error::Error + Send;

    /// Names the loop in logs.
    fn name(&self) -> &str;

    /// Looks at the world.
    fn observe(&mut self) -> impl Future<Output = Result<Self::Seen, Self::Error>> + Send;

    /// Decides; pure apart from its own notes.
    fn plan(&mut self, seen: &Self::Seen) -> Plan<Self::Action>;

    /// Does one step; must be idempotent. A failed step does not stop the following ones.
    fn apply(
        &mut self,
        action: &Self::Action,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Does the steps of a round, one after the other, and counts failures.
    fn apply_all(&mut self, actions: Vec<Self::Action>) -> impl Future<Output = usize> + Send {
        async move {
            let mut failures = 0;
            for action in &actions {
                if let Err(err) = self.apply(action).await {
                    failures += 1;
                    warn!(
                        controller = self.name(),
                        ?action,
                        err = report(&err),
                        "step failed; the next round retries"
                    );
                }
            }
            failures
        }
    }
}

/// The rhythm of a loop.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Full round even when nothing woke the loop.
    pub resync: Duration,
    /// Wait after a wake-up, so that a burst becomes one round; with zero, what comes during a
    /// round becomes the next one.
    pub settle: Duration,
    /// Waits after failed rounds.
    pub backoff: Backoff,
}

impl Default for Pace {
    /// A full round every 5 minutes, bursts of 5 ms gathered.
    fn default() -> Self {
        Self {
            resync: Duration::from_secs(300),
            settle: Duration::from_millis(5),
            backoff: Backoff::default(),
        }
    }
}

/// Observes, plans and applies on every wake-up, until `stop`.
///
/// `wakes` are changes worth looking at, usually [`crate::Cache::changes`].
///
/// Cancel safety: `stop` is honoured between rounds; a round is never cut short.
pub async fn drive<W: World>(
    stop: CancellationToken,
    mut wakes: Vec<watch::Receiver<u64>>,
    mut world: W,
    mut pace: Pace,
) {
    while !stop.is_cancelled() {
        for wake in &mut wakes {
            wake.mark_unchanged();
        }
        let wait = match round(&mut world).await {
            Ok(again) => {
                pace.backoff.reset();
                again.unwrap_or(pace.resync).min(pace.resync)
            }
            Err(RoundFailed) => {
                // After a failure wake-ups do not shorten the wait: they may be its echo.
                let pause = pace.backoff.step();
                tokio::select! { biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
        };
        if wait.is_zero() {
            // Others get their turn, but nobody is waited for.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! { biased;
            () = stop.cancelled() => return,
            // Even the shortest sleep lasts until the timer's next tick.
            () = any_change(&mut wakes) => if !pace.settle.is_zero() {
                let _gathered = stop.run_until_cancelled(tokio::time::sleep(pace.settle)).await;
            },
            () = tokio::time::sleep(wait) => (),
        }
    }
}

/// A round that should be tried again sooner than the slow beat. Already reported.
struct RoundFailed;

async fn round<W: World>(world: &mut W) -> Result<Option<Duration>, RoundFailed> {
    let seen = world.observe().await.map_err(|err| {
        warn!(
            controller = world.name(),
            err = report(&err),
            "cannot observe; the next round retries"
        );
        RoundFailed
    })?;
    let plan = catch_unwind(AssertUnwindSafe(|| world.plan(&seen))).map_err(|_| {
        // The panic hook has already printed message and place.
        error!(controller = world.name(), "planning panicked; this is a bug, retrying slowly");
        RoundFailed
    })?;
    drop(seen);
    if plan.actions.is_empty() {
        return Ok(plan.again_after);
    }
    debug!(controller = world.name(), actions = plan.actions.len(), "round");
    if world.apply_all(plan.actions).await > 0 { Err(RoundFailed) } else { Ok(plan.again_after) }
}

/// Waits for any receiver; those whose sender is gone are dropped so that they cannot spin us.
async fn any_change(wakes: &mut Vec<watch::Receiver<u64>>) {
    loop {
        if wakes.is_empty() {
            return std::future::pending().await;
        }
        let (changed, index, _) =
            select_all(wakes.iter_mut().map(|wake| Box::pin(wake.changed()))).await;
        if changed.is_ok() {
            return;
        }
        wakes.swap_remove(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up to a goal, one step a round; panics once on the way.
    struct Counter {
        goal: watch::Receiver<u64>,
        count: watch::Sender<u64>,
        fell: bool,
    }

    impl World for Counter {
        type Seen = u64;
        type Action = u64;
        type Error = std::fmt::Error;

        fn name(&self) -> &str {
            "counter"
        }

        async fn observe(&mut self) -> Result<u64, std::fmt::Error> {
            Ok(*self.goal.borrow())
        }

        fn plan(&mut self, goal: &u64) -> Plan<u64> {
            let count = *self.count.borrow();
            if count == 2 && !self.fell {
                self.fell = true;
                panic!("on purpose");
            }
            let step = (count < *goal).then_some(count + 1);
            Plan { actions: step.into_iter().collect(), again_after: step.map(|_| Duration::ZERO) }
        }

        async fn apply(&mut self, action: &u64) -> Result<(), std::fmt::Error> {
            self.count.send_replace(*action);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_panicking_plan_is_retried_and_the_goal_reached() {
        let stop = CancellationToken::new();
        let (want, goal) = watch::channel(0);
        let (count, mut reached) = watch::channel(0);
        let world = Counter { goal: goal.clone(), count, fell: false };
        let millis = Duration::from_millis;
        let pace = Pace { backoff: Backoff::new(millis(1), millis(2)), ..Pace::default() };
        let mut tasks: crate::Supervisor = crate::Supervisor::new(stop.clone());
        tasks.spawn("loop", drive(stop.clone(), vec![goal], world, pace));
        want.send_replace(4);
        reached.wait_for(|count| *count == 4).await.unwrap();
        stop.cancel();
        tasks.join().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_left_to_do_is_not_held_up_by_gathering() {
        let stop = CancellationToken::new();
        let (_want, goal) = watch::channel(4);
        let (count, mut reached) = watch::channel(0);
        // Each step wakes the loop, which would then gather for longer than anybody waits.
        let wakes = vec![goal.clone(), reached.clone()];
        let world = Counter { goal, count, fell: true };
        let pace = Pace { settle: Duration::from_secs(3600), ..Pace::default() };
        let mut tasks: crate::Supervisor = crate::Supervisor::new(stop.clone());
        tasks.spawn("loop", drive(stop.clone(), wakes, world, pace));
        reached.wait_for(|count| *count == 4).await.unwrap();
        stop.cancel();
        tasks.join().await.unwrap();
    }
}
