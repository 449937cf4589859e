//! The scheduler's loop: what happened goes in, decisions come out, bindings run beside it.
//!
//! The loop itself waits for nothing but news. A pod counts on its node from the decision on;
//! its binding is written by a task of its own, many at a time, so that the server can commit
//! them in groups.

mod clerk;
mod feed;
mod setup;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control::scheduler::{CRUSH_MAP, Config, Decision, Scheduler};
use jiff::Timestamp;
use objects::kind::{self, Kind};
use objects::meta::Object;
use runtime::cache::{Cache, CacheParams};
use runtime::supervise::TaskFailed;
use runtime::{Client, Resource, Supervisor};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::event;
use crate::hub;
use crate::metrics::{SchedulerMeter, Verdict};

pub(crate) use clerk::Clerk;
use clerk::Outcome;
use feed::Feed;
pub(crate) use feed::Feeds;
pub use setup::{SetupError, read_scheduler_config};

/// Our name in events.
const NAME: &str = "default-scheduler";
/// Bindings under way at a time: enough for groups, few enough to stop soon.
const AT_ONCE: usize = 96;
/// Decisions between two looks at the news: what has changed must not wait long.
const IN_A_ROW: usize = 32;
/// Longest wait without news, so that a clock that was set does not leave us asleep.
const BEAT: Duration = Duration::from_secs(60);

/// How long decisions took and how bindings went, for those who measure.
#[derive(Debug, Default)]
pub struct Stopwatch(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    decisions: Vec<Duration>,
    bound: usize,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Stopwatch {
    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decided(&self, begun: Instant) {
        let mut times = self.times();
        times.first.get_or_insert(begun);
        times.decisions.push(begun.elapsed());
    }

    fn bound_one(&self) {
        let mut times = self.times();
        times.bound += 1;
        times.last = Some(Instant::now());
    }

    /// Bindings that the server has acknowledged.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.times().bound
    }

    /// From the first decision to the last binding.
    #[must_use]
    pub fn span(&self) -> Duration {
        let times = self.times();
        let span = times.first.zip(times.last).map(|(first, last)| last.duration_since(first));
        span.unwrap_or_default()
    }

    /// Takes the times of the decisions so far.
    #[must_use]
    pub fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut self.times().decisions)
    }
}

/// The loop's parts.
pub(crate) struct Loop {
    pub(crate) feeds: Feeds,
    pub(crate) clerk: Clerk,
    pub(crate) scheduler: Scheduler,
    pub(crate) stopwatch: Option<Arc<Stopwatch>>,
    pub(crate) meter: Arc<SchedulerMeter>,
}

impl Loop {
    /// Schedules until `stop`; bindings under way are finished.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { feeds, clerk, mut scheduler, stopwatch, meter } = self;
        let mut feed = Feed::new(feeds);
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = feed.wait_synced() => (),
        }
        info!("views are complete; scheduling");
        let mut work: JoinSet<Outcome> = JoinSet::new();
        let watch = Watch { stopwatch: stopwatch.as_deref(), meter: &meter };
        while !stop.is_cancelled() {
            let now = Timestamp::now();
            for event in feed.events() {
                scheduler.apply(event, now);
            }
            while let Some(done) = work.try_join_next() {
                report(&mut scheduler, done, watch);
            }
            let more = decide(&mut scheduler, &clerk, &mut work, watch);
            meter.wait(scheduler.pending());
            if more && work.len() < AT_ONCE {
                // Readers and bindings get their turn even while there is more to decide.
                tokio::task::yield_now().await;
                continue;
            }
            let wait = scheduler.deadline().map_or(BEAT, |at| until(at).min(BEAT));
            let full = work.len() >= AT_ONCE;
            tokio::select! { biased;
                () = stop.cancelled() => break,
                Some(done) = work.join_next() => report(&mut scheduler, done, watch),
                () = feed.changed(), if !full => (),
                () = tokio::time::sleep(wait), if !more => (),
            }
        }
        while work.join_next().await.is_some() {}
    }
}

/// Those who measure.
#[derive(Clone, Copy)]
struct Watch<'a> {
    stopwatch: Option<&'a Stopwatch>,
    meter: &'a SchedulerMeter,
}

fn report(
    scheduler: &mut Scheduler,
    done: Result<Outcome, tokio::task::JoinError>,
    watch: Watch<'_>,
) {
    // A task that panicked leaves its pod assumed; the watch or the next start tells the truth.
    if let Ok(Outcome { uid: Some(uid), success }) = done {
        if let Some(stopwatch) = watch.stopwatch.filter(|_| success) {
            stopwatch.bound_one();
        }
        if !success {
            watch.meter.failed();
        }
        scheduler.bound(&uid, success, Timestamp::now());
    }
}

/// Never zero, so that a clock at rest cannot spin the loop.
fn until(at: Timestamp) -> Duration {
    let wait = Duration::try_from(Timestamp::now().duration_until(at)).unwrap_or_default();
    wait.max(Duration::from_millis(5))
}

/// Decides about some pods; `true` when more wait.
fn decide(
    scheduler: &mut Scheduler,
    clerk: &Clerk,
    work: &mut JoinSet<Outcome>,
    watch: Watch<'_>,
) -> bool {
    for _ in 0..IN_A_ROW {
        if work.len() >= AT_ONCE {
            return true;
        }
        let begun = Instant::now();
        let decision: Option<Decision> = scheduler.next(Timestamp::now());
        let Some(decision) = decision else { return false };
        let verdict = match decision {
            Decision::Bind { .. } | Decision::Prepare { .. } => Verdict::Scheduled,
            Decision::Tell(_) => Verdict::Unschedulable,
        };
        watch.meter.decided(verdict, begun.elapsed());
        if let Some(stopwatch) = watch.stopwatch {
            stopwatch.decided(begun);
        }
        work.spawn(clerk.clone().carry_out(decision));
    }
    true
}

/// Why the scheduler alone ended.
#[derive(Debug, thiserror::Error)]
#[error("the scheduler cannot go on")]
pub struct ScheduleError(#[source] Box<TaskFailed<std::convert::Infallible>>);

/// Runs the scheduler alone, with views of its own, until `stop`.
///
/// It uses nothing but public endpoints: any Kubernetes API server will do. The caller sees to
/// it that no other scheduler of the same name runs.
///
/// # Errors
///
/// When one of its tasks ends, which is a bug.
pub async fn schedule(
    stop: CancellationToken,
    client: Client,
    config: Config,
    stopwatch: Option<Arc<Stopwatch>>,
) -> Result<(), ScheduleError> {
    let mut tasks: Supervisor = Supervisor::new(stop.child_token());
    let Some(served) = hub::served(&stop, &client).await else { return Ok(()) };
    let wanted = crate::Choice::scheduler().kinds();
    let served = served.into_iter().filter(|kind| wanted.contains(kind)).collect();
    let served = hub::allowed(&client, served).await;
    let mut starter = Starter { client: &client, served: &served, tasks: &mut tasks };
    let feeds = Feeds {
        pods: starter.all(),
        nodes: starter.all(),
        namespaces: starter.all(),
        claims: starter.all(),
        volumes: starter.all(),
        classes: starter.all(),
        csi_nodes: starter.start(&kind::CSI_NODE, CacheParams::default()),
        budgets: starter.all(),
        config_maps: starter.start(
            &kind::CONFIG_MAP,
            CacheParams {
                namespace: Some(CRUSH_MAP.0.to_owned()),
                ..CacheParams::fields(format!("metadata.name={}", CRUSH_MAP.1))
            },
        ),
    };
    let (events, recorder) = event::channel(client.clone());
    let inner = tasks.stop();
    tasks.spawn("events", recorder.run(inner.clone()));
    let clerk = Clerk { client: client.briefly(), events: Some(events) };
    let (scheduler, meter) = (Scheduler::new(config, seed()), Arc::default());
    tasks.spawn("scheduler", Loop { feeds, clerk, scheduler, stopwatch, meter }.run(inner));
    tasks.join().await.map_err(|failed| ScheduleError(Box::new(failed)))
}

/// A different turn among equals at each start: two schedulers of one cluster, one after the
/// other, shall not favour the same nodes.
pub(crate) fn seed() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond() & i128::from(u64::MAX)).unwrap_or(1)
}

struct Starter<'a> {
    client: &'a Client,
    served: &'a BTreeSet<&'static Kind>,
    tasks: &'a mut Supervisor,
}

impl Starter<'_> {
    fn all<T: Object>(&mut self) -> Option<Cache<T>> {
        self.start(T::KIND, CacheParams::default())
    }

    fn start<T>(&mut self, kind: &'static Kind, params: CacheParams) -> Option<Cache<T>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        if !self.served.contains(kind) {
            return None;
        }
        let (cache, reflector) = Cache::new(self.client.clone(), Resource::from(kind), params);
        let stop = self.tasks.stop();
        self.tasks.spawn(format!("view of {}", kind.qualified_plural()), reflector.run(stop));
        Some(cache)
    }
}
