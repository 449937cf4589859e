//! What autoscalers must remember; the decisions follow.

use std::collections::BTreeMap;

use jiff::Timestamp;

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
}
