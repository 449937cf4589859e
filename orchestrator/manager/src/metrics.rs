//! Four numbers per controller: rounds, actions, failures, age of the oldest unconverged key; and
//! of the scheduler and of failure zones what upstream's dashboards look at, under upstream's
//! names.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control::lifecycle::ZoneFigures;
use control::scheduler::Pending;

/// Upper bounds of the times of decisions, in seconds; upstream's, as far as they are of use here.
const BUCKETS: [f64; 12] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256];

/// How a decision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A node was found.
    Scheduled,
    /// None was.
    Unschedulable,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
        }
    }
}

/// The numbers of decisions that ended in one way.
#[derive(Debug, Default)]
struct Attempts {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// The numbers of the scheduler.
#[derive(Debug, Default)]
pub(crate) struct SchedulerMeter {
    attempts: Mutex<[Attempts; 2]>,
    pending: Mutex<Pending>,
    errors: AtomicU64,
}

impl SchedulerMeter {
    pub(crate) fn decided(&self, verdict: Verdict, took: Duration) {
        let mut all = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let [scheduled, refused] = &mut *all;
        let one = if verdict == Verdict::Scheduled { scheduled } else { refused };
        let seconds = took.as_secs_f64();
        one.count += 1;
        one.seconds += seconds;
        for (count, bound) in one.buckets.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
    }

    /// A binding failed.
    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes who waits.
    pub(crate) fn wait(&self, pending: Pending) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = pending;
    }

    fn render(&self) -> String {
        let mut text = "# TYPE scheduler_pending_pods gauge\n".to_owned();
        let pending = *self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, count) in [
            ("active", pending.active),
            ("backoff", pending.backing_off),
            ("unschedulable", pending.resting),
            ("gated", pending.gated),
        ] {
            text += &format!("scheduler_pending_pods{{queue=\"{queue}\"}} {count}\n");
        }
        let all = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let ways = [Verdict::Scheduled, Verdict::Unschedulable];
        text += "# TYPE scheduler_schedule_attempts_total counter\n";
        for (way, one) in ways.iter().zip(&*all) {
            let name = "scheduler_schedule_attempts_total";
            text += &format!("{name}{{result=\"{}\"}} {}\n", way.word(), one.count);
        }
        let errors = self.errors.load(Ordering::Relaxed);
        text += &format!("scheduler_schedule_attempts_total{{result=\"error\"}} {errors}\n");
        let name = "scheduler_scheduling_attempt_duration_seconds";
        text += &format!("# TYPE {name} histogram\n");
        for (way, one) in ways.iter().zip(&*all) {
            let label = format!("result=\"{}\"", way.word());
            for (count, bound) in one.buckets.iter().zip(BUCKETS) {
                text += &format!("{name}_bucket{{{label},le=\"{bound}\"}} {count}\n");
            }
            text += &format!("{name}_bucket{{{label},le=\"+Inf\"}} {}\n", one.count);
            text += &format!("{name}_sum{{{label}}} {}\n", one.seconds);
            text += &format!("{name}_count{{{label}}} {}\n", one.count);
        }
        text
    }
}

/// The numbers of one controller.
#[derive(Debug, Default)]
pub struct Meter {
    rounds: AtomicU64,
    actions: AtomicU64,
    failures: AtomicU64,
    oldest: Mutex<Option<Instant>>,
    zones: Mutex<Vec<ZoneFigures>>,
}

impl Meter {
    pub(crate) fn round(&self, actions: usize, oldest: Option<Instant>) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        self.actions.fetch_add(u64::try_from(actions).unwrap_or(0), Ordering::Relaxed);
        *self.oldest.lock().unwrap_or_else(PoisonError::into_inner) = oldest;
    }

    pub(crate) fn failed(&self, count: u64) {
        self.failures.fetch_add(count, Ordering::Relaxed);
    }

    /// Notes how failure zones are.
    pub(crate) fn count_zones(&self, zones: Vec<ZoneFigures>) {
        *self.zones.lock().unwrap_or_else(PoisonError::into_inner) = zones;
    }

    /// Spec: the metrics of upstream's node lifecycle controller.
    fn render_zones(&self) -> String {
        let zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let health = |zone: &ZoneFigures| {
            let well = zone.nodes.saturating_sub(zone.unready);
            (100 * well).checked_div(zone.nodes).unwrap_or(100)
        };
        let mut text = String::new();
        let mut row = |name: &str, kind: &str, number: &dyn Fn(&ZoneFigures) -> String| {
            let name = format!("node_collector_{name}");
            text += &format!("# TYPE {name} {kind}\n");
            for zone in &*zones {
                text += &format!("{name}{{zone=\"{}\"}} {}\n", zone.zone, number(zone));
            }
        };
        if !zones.is_empty() {
            row("zone_size", "gauge", &|zone| zone.nodes.to_string());
            row("zone_health", "gauge", &|zone| health(zone).to_string());
            row("unhealthy_nodes_in_zone", "gauge", &|zone| zone.unready.to_string());
            row("evictions_total", "counter", &|zone| zone.evictions.to_string());
        }
        text
    }

    /// Rounds, actions, failures so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (read(&self.rounds), read(&self.actions), read(&self.failures))
    }

    /// Seconds since the oldest key that is not as wanted was noticed; 0 when all are.
    #[must_use]
    pub fn oldest_seconds(&self) -> f64 {
        let oldest = self.oldest.lock().unwrap_or_else(PoisonError::into_inner);
        oldest.map_or(0.0, |at| at.elapsed().as_secs_f64())
    }
}

/// The numbers of every controller; a clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) scheduler: Arc<SchedulerMeter>,
    meters: Arc<Mutex<BTreeMap<&'static str, Arc<Meter>>>>,
}

impl Metrics {
    /// The numbers of one controller.
    #[must_use]
    pub fn of(&self, controller: &'static str) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(meters.entry(controller).or_default())
    }

    /// Writes them in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        let meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (what, kind) in [
            ("rounds_total", "counter"),
            ("actions_total", "counter"),
            ("failures_total", "counter"),
            ("oldest_unconverged_seconds", "gauge"),
        ] {
            text += &format!("# TYPE muster_controller_{what} {kind}\n");
            for (name, meter) in meters.iter() {
                let (rounds, actions, failures) = meter.counts();
                let number = match what {
                    "rounds_total" => rounds.to_string(),
                    "actions_total" => actions.to_string(),
                    "failures_total" => failures.to_string(),
                    _ => format!("{:.3}", meter.oldest_seconds()),
                };
                text += &format!("muster_controller_{what}{{controller=\"{name}\"}} {number}\n");
            }
        }
        text.extend(meters.values().map(|meter| meter.render_zones()));
        text += &self.scheduler.render();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_is_measured_under_upstreams_names() {
        let metrics = Metrics::default();
        metrics.scheduler.decided(Verdict::Scheduled, Duration::from_micros(700));
        metrics.scheduler.decided(Verdict::Unschedulable, Duration::from_secs(1));
        metrics.scheduler.wait(Pending { resting: 3, ..Pending::default() });
        let text = metrics.render();
        for line in [
            "scheduler_pending_pods{queue=\"unschedulable\"} 3",
            "scheduler_schedule_attempts_total{result=\"scheduled\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"scheduled\",le=\"0.0005\"} 0",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"scheduled\",le=\"0.001\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{result=\"unschedulable\",le=\"0.256\"} 0",
            "scheduler_scheduling_attempt_duration_seconds_count{result=\"unschedulable\"} 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn failure_zones_are_told_under_upstreams_names() {
        let metrics = Metrics::default();
        let zone = "rack-1".to_owned();
        let figures = ZoneFigures { zone, nodes: 8, unready: 2, evictions: 5 };
        metrics.of("node-controller").count_zones(vec![figures]);
        let text = metrics.render();
        for (name, number) in [
            ("zone_size", 8),
            ("zone_health", 75),
            ("unhealthy_nodes_in_zone", 2),
            ("evictions_total", 5),
        ] {
            let line = format!("node_collector_{name}{{zone=\"rack-1\"}} {number}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }

    #[test]
    fn the_numbers_of_each_controller_are_told() {
        let metrics = Metrics::default();
        metrics.of("a").round(3, None);
        metrics.of("a").failed(1);
        metrics.of("b").round(0, Some(Instant::now()));
        let text = metrics.render();
        assert!(text.contains("muster_controller_actions_total{controller=\"a\"} 3\n"), "{text}");
        assert!(text.contains("muster_controller_failures_total{controller=\"a\"} 1\n"), "{text}");
        assert!(text.contains("muster_controller_rounds_total{controller=\"b\"} 1\n"), "{text}");
    }
}
