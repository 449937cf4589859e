//! Conditions: named observations in a status, each True, False or Unknown.

use jiff::Timestamp;

use crate::{time::Time, view::views};

views! {
    /// One condition of a status; the fields are the union of what the kinds use.
    pub struct Condition {
        #[serde(rename = "type")]
        pub kind: String,
        pub status: String,
        pub observed_generation: i64,
        pub last_heartbeat_time: Option<Time>,
        pub last_probe_time: Option<Time>,
        pub last_update_time: Option<Time>,
        pub last_transition_time: Option<Time>,
        pub reason: String,
        pub message: String,
    }
}

impl Condition {
    /// A condition without times; [`set_condition`] adds them.
    #[must_use]
    pub fn new(kind: &str, status: bool, reason: &str, message: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            status: if status { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..Self::default()
        }
    }

    /// Is the condition's status `True`?
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// Finds a condition by its type.
#[must_use]
pub fn find_condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// Is the condition present and `True`?
#[must_use]
pub fn is_condition_true(conditions: &[Condition], kind: &str) -> bool {
    find_condition(conditions, kind).is_some_and(Condition::is_true)
}

/// Sets a condition and tells whether anything but a heartbeat changed.
///
/// `lastTransitionTime` becomes `now` when the status differs from the one before, and is
/// kept otherwise.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    mut wanted: Condition,
    now: Timestamp,
) -> bool {
    let Some(have) = conditions.iter_mut().find(|have| have.kind == wanted.kind) else {
        wanted.last_transition_time.get_or_insert(Time::from(now));
        conditions.push(wanted);
        return true;
    };
    let same = have.status == wanted.status
        && have.reason == wanted.reason
        && have.message == wanted.message
        && have.observed_generation == wanted.observed_generation;
    if have.status == wanted.status && have.last_transition_time.is_some() {
        wanted.last_transition_time = have.last_transition_time;
    } else {
        wanted.last_transition_time.get_or_insert(Time::from(now));
    }
    *have = wanted;
    !same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_time_changes_only_with_the_status() {
        let early: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let late: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut all = Vec::new();
        assert!(set_condition(&mut all, Condition::new("Ready", false, "Starting", ""), early));
        assert!(!set_condition(&mut all, Condition::new("Ready", false, "Starting", ""), late));
        assert_eq!(all[0].last_transition_time, Some(Time(early)));
        assert!(set_condition(&mut all, Condition::new("Ready", true, "Up", ""), late));
        assert_eq!(all[0].last_transition_time, Some(Time(late)));
        assert!(is_condition_true(&all, "Ready"));
    }
}
