//! Four numbers per controller: rounds, actions, failures, age of the oldest unconverged key.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The numbers of one controller.
#[derive(Debug, Default)]
pub struct Meter {
    rounds: AtomicU64,
    actions: AtomicU64,
    failures: AtomicU64,
    oldest: Mutex<Option<Instant>>,
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
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
