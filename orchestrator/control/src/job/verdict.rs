//! Whether a job is over, and why.

use jiff::{SignedDuration, Timestamp};
use objects::batch::JobStatus;
use objects::condition::{Condition, find_condition};

use super::count::Counted;
use super::{Work, index, policy};
use crate::action::Steps;

/// Failures borne when the job does not say; upstream's default.
const BACKOFF_LIMIT: i64 = 6;
/// The same when each index has its own limit: then the sum is not limited.
const NO_LIMIT: i64 = 2_147_483_647;

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruling {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Ruling {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.to_owned(), message: message.into() }
    }

    fn success(reason: &str, message: impl Into<String>) -> Self {
        Self { success: true, reason: reason.to_owned(), message: message.into() }
    }

    fn of(condition: &Condition, success: bool) -> Self {
        let (reason, message) = (condition.reason.clone(), condition.message.clone());
        Self { success, reason, message }
    }

    /// The reason as an event's word.
    pub(super) fn word(&self) -> &'static str {
        match self.reason.as_str() {
            "DeadlineExceeded" => "DeadlineExceeded",
            "PodFailurePolicy" => "PodFailurePolicy",
            "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
            "FailedIndexes" => "FailedIndexes",
            _ => "BackoffLimitExceeded",
        }
    }
}

/// Says how the job ends, if it does now; asks to look again when a deadline will decide.
pub(super) fn judge(
    work: &Work<'_>,
    status: &JobStatus,
    counted: &Counted,
    steps: &mut Steps,
) -> Option<Ruling> {
    // What was once said is not taken back.
    let said = |kind: &str| find_condition(&status.conditions, kind).filter(|one| one.is_true());
    if let Some(condition) = said("FailureTarget") {
        return Some(Ruling::of(condition, false));
    }
    if let Some(condition) = said("SuccessCriteriaMet") {
        return Some(Ruling::of(condition, true));
    }
    failed_by_policy(work)
        .or_else(|| failed_by_limits(work, counted))
        .or_else(|| failed_by_deadline(work, status, steps))
        .or_else(|| succeeded(work, counted))
}

fn failed_by_policy(work: &Work<'_>) -> Option<Ruling> {
    let failed = work.pods.iter().filter(|pod| pod.status.phase == "Failed");
    let mut hits = failed.filter_map(|pod| policy::matched(work, pod));
    let hit = hits.find(|one| one.action == "FailJob")?;
    Some(Ruling::failure("PodFailurePolicy", hit.message))
}

fn failed_by_limits(work: &Work<'_>, counted: &Counted) -> Option<Ruling> {
    let spec = &work.job.spec;
    let default = if spec.backoff_limit_per_index.is_some() { NO_LIMIT } else { BACKOFF_LIMIT };
    let limit = spec.backoff_limit.unwrap_or(default);
    let exceeded =
        || Ruling::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    if counted.failed > limit {
        return Some(exceeded());
    }
    if spec.template.spec.restart_policy == "OnFailure" {
        let restarts: i64 = work
            .active()
            .flat_map(|pod| {
                let status = &pod.status;
                status.container_statuses.iter().chain(&status.init_container_statuses)
            })
            .filter_map(|one| one.restart_count)
            .sum();
        if (limit == 0 && restarts > 0) || (limit > 0 && restarts >= limit) {
            return Some(exceeded());
        }
    }
    let given_up = i64::try_from(counted.given_up.len()).unwrap_or(i64::MAX);
    if spec.max_failed_indexes.is_some_and(|most| given_up > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Ruling::failure("MaxFailedIndexesExceeded", message));
    }
    let completed = i64::try_from(counted.completed.len()).unwrap_or(i64::MAX);
    let all = work.job.is_indexed() && completed + given_up >= spec.completions.unwrap_or(0);
    (all && given_up > 0).then(|| Ruling::failure("FailedIndexes", "Job has failed indexes"))
}

fn failed_by_deadline(work: &Work<'_>, status: &JobStatus, steps: &mut Steps) -> Option<Ruling> {
    let limit = work.job.spec.active_deadline_seconds?;
    let start = status.start_time.filter(|_| !work.is_suspended());
    let start = start.map_or(work.now, |at| at.0);
    let due = start.saturating_add(SignedDuration::from_secs(limit)).unwrap_or(Timestamp::MAX);
    if work.now >= due && status.start_time.is_some() && !work.is_suspended() {
        let message = "Job was active longer than specified deadline";
        return Some(Ruling::failure("DeadlineExceeded", message));
    }
    if !work.is_suspended() {
        steps.look_again(due);
    }
    None
}

fn succeeded(work: &Work<'_>, counted: &Counted) -> Option<Ruling> {
    if let Some(rule) = by_success_policy(work, counted) {
        let message = format!("Matched rules at index {rule}");
        return Some(Ruling::success("SuccessPolicy", message));
    }
    let done = match work.job.spec.completions {
        Some(wanted) => counted.succeeded >= wanted,
        // Any success ends a job of a work queue, once the other workers have ended too.
        None => counted.succeeded > 0 && work.active().next().is_none(),
    };
    let message = "Reached expected number of succeeded pods";
    done.then(|| Ruling::success("CompletionsReached", message))
}

fn by_success_policy(work: &Work<'_>, counted: &Counted) -> Option<usize> {
    let rules = &work.job.spec.success_policy.as_ref()?.rules;
    let most = work.job.spec.completions.unwrap_or(0);
    rules.iter().position(|rule| {
        let count = |all: usize| i64::try_from(all).unwrap_or(i64::MAX);
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = index::parse(text, most);
                let met = wanted.intersection(&counted.completed).count();
                let enough = rule.succeeded_count.unwrap_or_else(|| count(wanted.len()));
                count(met) >= enough
            }
            None => {
                rule.succeeded_count.is_some_and(|enough| count(counted.completed.len()) >= enough)
            }
        }
    })
}
