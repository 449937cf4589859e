//! What autoscalers must know that is in no object: what pods use, what was decided before.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::autoscaler;
use crate::view::View;

/// What containers of a pod use, by container name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// When it was measured.
    pub at: Option<Timestamp>,
    /// Over how many seconds.
    pub window_seconds: i64,
    /// By container and resource: CPU in thousandths, everything else in units.
    pub containers: BTreeMap<String, BTreeMap<String, i64>>,
}

/// What pods use and what autoscalers decided before.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// By namespace and pod.
    pub usage: BTreeMap<(String, String), Usage>,
    /// What the metrics asked for during the last hour, by the autoscaler's uid.
    pub recommendations: BTreeMap<String, Vec<(Timestamp, i64)>>,
}

/// The longest window an autoscaler may have.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);

/// What the metrics asked for before; kept from look to look.
#[derive(Debug, Default)]
pub struct Recommendations(BTreeMap<String, Vec<(Timestamp, i64)>>);

impl Recommendations {
    /// Adds what the metrics ask for now, and tells the view what they asked for before.
    pub fn observe(&mut self, view: &mut View, now: Timestamp) {
        let before = self.0.clone();
        self.0.retain(|uid, _| view.autoscalers.iter().any(|one| one.metadata.uid == *uid));
        let border = now.checked_sub(MEMORY).unwrap_or(now);
        for scaler in view.autoscalers.iter() {
            let all = self.0.entry(scaler.metadata.uid.clone()).or_default();
            all.retain(|(at, _)| *at > border);
            // Looks come more often than new measurements.
            let due = all.last().is_none_or(|(at, _)| now.duration_since(*at).as_secs() >= 15);
            if due && let Some(size) = autoscaler::recommend(view, scaler) {
                all.push((now, size));
            }
        }
        let usage = view.observed.usage.clone();
        view.observed = std::sync::Arc::new(Observed { usage, recommendations: before });
    }
}
