//! In which order pods end when their machine shuts down, and how long each may take.
//!
//! Pods end by priority, the least important first, so that what others need is there until they
//! are gone. The periods are added up; a period that is not used up makes the shutdown shorter.
//!
//! Spec: upstream's graceful node shutdown, with and without priorities.

use objects::pod::Pod;

use crate::names::grace_seconds;
use crate::seen::Verdict;
use crate::settings::Settings;

/// From this priority on a pod counts as critical.
const CRITICAL: i64 = 2_000_000_000;

/// Pods that end at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// How long they are waited for, in seconds.
    pub seconds: i64,
    /// Their uids, and the grace of each in seconds.
    pub pods: Vec<(String, i64)>,
}

/// Plans the phases; empty when a shutdown waits for nobody.
#[must_use]
pub fn plan_shutdown<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    settings: &Settings,
) -> Vec<Phase> {
    let mut groups = groups(settings);
    groups.sort_unstable();
    let mut phases: Vec<Phase> =
        groups.iter().map(|(_, seconds)| Phase { seconds: *seconds, pods: Vec::new() }).collect();
    for pod in pods {
        if pod.is_finished() {
            continue;
        }
        let priority = pod.spec.priority.unwrap_or(0);
        // One below all groups belongs to the lowest.
        let index = groups.iter().rposition(|(from, _)| *from <= priority).unwrap_or(0);
        if let Some(phase) = phases.get_mut(index) {
            let grace = grace_seconds(pod).min(phase.seconds);
            phase.pods.push((pod.metadata.uid.clone(), grace));
        }
    }
    phases
}

/// Tells whether pods end before their machine does.
#[must_use]
pub fn is_graceful(settings: &Settings) -> bool {
    !groups(settings).is_empty()
}

/// Why a pod ends.
#[must_use]
pub fn end(grace_seconds: i64) -> Verdict {
    Verdict {
        reason: "Terminated".to_owned(),
        message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
        grace_seconds: Some(grace_seconds),
    }
}

/// Why a pod that comes now is not taken.
#[must_use]
pub fn refuse() -> Verdict {
    Verdict {
        reason: "NodeShutdown".to_owned(),
        message: "Pod was rejected as the node is shutting down.".to_owned(),
        grace_seconds: None,
    }
}

/// From which priority on, and how long, in seconds.
fn groups(settings: &Settings) -> Vec<(i64, i64)> {
    if !settings.shutdown_phases.is_empty() {
        return settings.shutdown_phases.clone();
    }
    let (all, critical) = (settings.shutdown.as_secs(), settings.shutdown_critical.as_secs());
    if all <= 0 {
        return Vec::new();
    }
    vec![(i64::MIN, all.saturating_sub(critical)), (CRITICAL, critical)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod((uid, priority, grace): (&str, i64, i64)) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": uid},
            "spec": {"priority": priority, "terminationGracePeriodSeconds": grace}}))
        .unwrap()
    }

    #[track_caller]
    fn check(settings: &Value, expected: &str) {
        let pods = [("low", -5, 5), ("web", 0, 60), ("db", 1000, 60), ("dns", 2_000_001_000, 60)];
        let pods: Vec<Pod> = pods.into_iter().map(pod).collect();
        let phases = plan_shutdown(&pods, &Settings::decode(settings).unwrap());
        let one = |phase: &Phase| {
            let pods = phase.pods.iter().map(|(uid, grace)| format!("{uid} {grace}s"));
            format!("{}s: {}", phase.seconds, pods.collect::<Vec<_>>().join(", "))
        };
        assert_eq!(phases.iter().map(one).collect::<Vec<_>>().join(" | "), expected);
    }

    #[test]
    fn the_least_important_end_first() {
        check(&json!({}), "");
        check(
            &json!({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"}),
            "20s: low 5s, web 20s, db 20s | 10s: dns 10s",
        );
        check(
            &json!({"shutdownGracePeriodByPodPriority": [
                {"priority": 1000, "shutdownGracePeriodSeconds": 120},
                {"priority": 0, "shutdownGracePeriodSeconds": 10}]}),
            "10s: low 5s, web 10s | 120s: db 60s, dns 60s",
        );
    }
}
