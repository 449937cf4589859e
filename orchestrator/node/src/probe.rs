//! When a container is asked how it is, and what follows from its answers.
//!
//! Pure timing: the agent asks what is [due](ProbeState::due), runs it, and tells the outcome.
//!
//! Spec: upstream's probes. Until the startup probe has succeeded the other two rest. Without
//! a readiness probe a running container is ready; without a startup probe it is started.

use jiff::{SignedDuration, Timestamp};
use objects::pod::{Container, Probe};

/// Which question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Has it come up?
    Startup,
    /// Must it be restarted?
    Liveness,
    /// Can it take traffic?
    Readiness,
}

/// All questions, in the order they are asked.
pub const KINDS: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];

/// How one running container has answered so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeState {
    startup: Track,
    liveness: Track,
    readiness: Track,
}

/// The answers to one question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Track {
    /// When to ask next; `None` is "at the initial delay".
    next: Option<Timestamp>,
    /// The last answer and how often it came in a row.
    row: Option<(bool, i64)>,
    /// What the row was long enough to decide.
    decided: Option<bool>,
}

/// The probe a container has for a question.
#[must_use]
pub fn probe_of(container: &Container, kind: Kind) -> Option<&Probe> {
    let probe = match kind {
        Kind::Startup => container.startup_probe.as_ref(),
        Kind::Liveness => container.liveness_probe.as_ref(),
        Kind::Readiness => container.readiness_probe.as_ref(),
    };
    let is_asked = |p: &&Probe| {
        p.exec.is_some() || p.http_get.is_some() || p.tcp_socket.is_some() || p.grpc.is_some()
    };
    probe.filter(is_asked)
}

/// Tells whether a container is asked anything at all.
#[must_use]
pub fn has_probes(container: &Container) -> bool {
    KINDS.iter().any(|kind| probe_of(container, *kind).is_some())
}

/// How long an answer may take, in seconds.
#[must_use]
pub fn timeout_seconds(probe: &Probe) -> i64 {
    or_default(probe.timeout_seconds, 1)
}

fn or_default(given: i64, default: i64) -> i64 {
    if given > 0 { given } else { default }
}

impl ProbeState {
    /// The questions whose time has come.
    #[must_use]
    pub fn due(&self, container: &Container, started: Timestamp, now: Timestamp) -> Vec<Kind> {
        let open = KINDS.into_iter().filter(|kind| self.asks(container, *kind));
        open.filter(|kind| self.next(container, *kind, started) <= now).collect()
    }

    /// When the next question is due; `None` when nothing will be asked.
    #[must_use]
    pub fn deadline(&self, container: &Container, started: Timestamp) -> Option<Timestamp> {
        let open = KINDS.into_iter().filter(|kind| self.asks(container, *kind));
        open.map(|kind| self.next(container, kind, started)).min()
    }

    /// Takes an answer, given at `now`; tells whether it decided something new.
    pub fn record(
        &mut self,
        container: &Container,
        kind: Kind,
        good: bool,
        now: Timestamp,
    ) -> bool {
        let Some(probe) = probe_of(container, kind) else { return false };
        let track = self.track_mut(kind);
        let length = match track.row {
            Some((last, length)) if last == good => length.saturating_add(1),
            _ => 1,
        };
        track.row = Some((good, length));
        let period = or_default(probe.period_seconds, 10);
        track.next = now.checked_add(SignedDuration::from_secs(period)).ok();
        let needed = if good {
            or_default(probe.success_threshold, 1)
        } else {
            or_default(probe.failure_threshold, 3)
        };
        let decides = length >= needed && track.decided != Some(good);
        if decides {
            track.decided = Some(good);
        }
        decides
    }

    /// Takes over what an earlier life of the agent had found: up and ready.
    ///
    /// The questions go on; only the first answer is not waited for, so that a restart of the
    /// agent does not take a pod out of its services.
    pub fn believe(&mut self) {
        self.startup.decided = Some(true);
        self.readiness.decided = Some(true);
    }

    /// Tells whether the container has come up.
    #[must_use]
    pub fn is_started(&self, container: &Container) -> bool {
        probe_of(container, Kind::Startup).is_none() || self.startup.decided == Some(true)
    }

    /// Tells whether the container can take traffic.
    #[must_use]
    pub fn is_ready(&self, container: &Container) -> bool {
        self.is_started(container)
            && (probe_of(container, Kind::Readiness).is_none()
                || self.readiness.decided == Some(true))
    }

    /// The probe that says the container must be restarted, if one does.
    #[must_use]
    pub fn condemned<'a>(&self, container: &'a Container) -> Option<(Kind, &'a Probe)> {
        [Kind::Startup, Kind::Liveness]
            .into_iter()
            .find(|kind| self.track(*kind).decided == Some(false))
            .and_then(|kind| Some((kind, probe_of(container, kind)?)))
    }

    fn asks(&self, container: &Container, kind: Kind) -> bool {
        let open = match kind {
            Kind::Startup => self.startup.decided.is_none(),
            Kind::Liveness | Kind::Readiness => self.is_started(container),
        };
        open && probe_of(container, kind).is_some()
    }

    fn next(&self, container: &Container, kind: Kind, started: Timestamp) -> Timestamp {
        let delay = probe_of(container, kind).map_or(0, |probe| probe.initial_delay_seconds.max(0));
        let first = started.checked_add(SignedDuration::from_secs(delay)).unwrap_or(started);
        self.track(kind).next.unwrap_or(first)
    }

    fn track(&self, kind: Kind) -> &Track {
        match kind {
            Kind::Startup => &self.startup,
            Kind::Liveness => &self.liveness,
            Kind::Readiness => &self.readiness,
        }
    }

    fn track_mut(&mut self, kind: Kind) -> &mut Track {
        match kind {
            Kind::Startup => &mut self.startup,
            Kind::Liveness => &mut self.liveness,
            Kind::Readiness => &mut self.readiness,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    /// Answers are `+` and `-`, one per period of 2 s; the output is the state after each.
    #[track_caller]
    fn check(kind: Kind, answers: &str, expected: &str) {
        let probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": 2, "initialDelaySeconds": 5});
        let name = match kind {
            Kind::Startup => "startupProbe",
            Kind::Liveness => "livenessProbe",
            Kind::Readiness => "readinessProbe",
        };
        let container = container(json!({"name": "a", name: probe}));
        let mut state = ProbeState::default();
        let mut seen = String::new();
        for (index, answer) in answers.chars().enumerate() {
            let now = at(105 + 2 * i64::try_from(index).unwrap());
            if state.due(&container, at(100), now).is_empty() {
                seen.push('.');
                continue;
            }
            assert!(state.due(&container, at(100), at(now.as_second() - 1)).is_empty());
            state.record(&container, kind, answer == '+', now);
            seen.push(match (state.condemned(&container).is_some(), state.is_ready(&container)) {
                (true, _) => 'x',
                (false, true) => 'r',
                (false, false) => 'w',
            });
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn thresholds_decide() {
        check(Kind::Readiness, "-+--+---+", "wrrrrrrwr");
        check(Kind::Liveness, "+--+---", "rrrrrrx");
        check(Kind::Startup, "--+++", "wwr..");
        check(Kind::Startup, "---+", "wwx.");
    }

    #[test]
    fn a_container_without_probes_is_ready_at_once() {
        let container = container(json!({"name": "a"}));
        let state = ProbeState::default();
        assert!(state.is_ready(&container) && state.deadline(&container, at(1)).is_none());
    }

    #[test]
    fn others_rest_until_the_startup_probe_succeeds() {
        let container = container(json!({"name": "a",
            "startupProbe": {"exec": {"command": ["x"]}},
            "livenessProbe": {"exec": {"command": ["x"]}}}));
        let mut state = ProbeState::default();
        assert_eq!(state.due(&container, at(0), at(50)), [Kind::Startup]);
        state.record(&container, Kind::Startup, true, at(50));
        assert_eq!(state.due(&container, at(0), at(51)), [Kind::Liveness]);
    }
}
