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
    /// By how much workloads were made to grow (or shrink) during the last hour, by the
    /// autoscaler's uid.
    pub changes: BTreeMap<String, Vec<(Timestamp, i64)>>,
}

/// The longest window an autoscaler may have.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);

/// What the metrics asked for before, and what came of it; kept from look to look.
#[derive(Debug, Default)]
pub struct Recommendations {
    asked: BTreeMap<String, Vec<(Timestamp, i64)>>,
    changes: BTreeMap<String, Vec<(Timestamp, i64)>>,
}

impl Recommendations {
    /// Adds what the metrics ask for now, and tells the view what they asked for before.
    pub fn observe(&mut self, view: &mut View, now: Timestamp) {
        let before = self.asked.clone();
        let lives = |uid: &String| view.autoscalers.iter().any(|one| one.metadata.uid == *uid);
        self.asked.retain(|uid, _| lives(uid));
        self.changes.retain(|uid, _| lives(uid));
        let border = now.checked_sub(MEMORY).unwrap_or(now);
        for scaler in view.autoscalers.iter() {
            let uid = &scaler.metadata.uid;
            let all = self.asked.entry(uid.clone()).or_default();
            all.retain(|(at, _)| *at > border);
            // Looks come more often than new measurements.
            let due = all.last().is_none_or(|(at, _)| now.duration_since(*at).as_secs() >= 15);
            if due && let Some(size) = autoscaler::recommend(view, scaler, now) {
                all.push((now, size));
            }
            // The round that resizes says so in the status: from what to what.
            let changes = self.changes.entry(uid.clone()).or_default();
            changes.retain(|(at, _)| *at > border);
            let status = &scaler.status;
            if let Some(at) = status.last_scale_time
                && at.0 > border
                && changes.last().is_none_or(|(had, _)| *had != at.0)
            {
                let from = status.current_replicas.unwrap_or(0);
                changes.push((at.0, status.desired_replicas.unwrap_or(from) - from));
            }
        }
        let usage = view.observed.usage.clone();
        let changes = self.changes.clone();
        view.observed = std::sync::Arc::new(Observed { usage, recommendations: before, changes });
    }
}
