//! Failure policies: what the end of a pod means.

use objects::batch::PodFailurePolicyRule;
use objects::condition::find_condition;
use objects::pod::{ContainerStatus, Pod};

use super::Work;

/// Annotation: how often an index failed before this pod.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation: how many of those did not count.
pub(super) const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// A rule that matched, with what to say about it.
pub(super) struct Matched<'a> {
    pub(super) action: &'a str,
    pub(super) message: String,
}

/// The first rule that matches a failed pod.
pub(super) fn matched<'a>(work: &'a Work<'_>, pod: &Pod) -> Option<Matched<'a>> {
    let rules = &work.job.spec.pod_failure_policy.as_ref()?.rules;
    rules.iter().enumerate().find_map(|(at, rule)| matches(rule, at, pod))
}

fn matches<'a>(rule: &'a PodFailurePolicyRule, at: usize, pod: &Pod) -> Option<Matched<'a>> {
    let (ns, name) = (&pod.metadata.namespace, &pod.metadata.name);
    let action = rule.action.as_str();
    if let Some(codes) = &rule.on_exit_codes {
        let ended = |one: &ContainerStatus| {
            let code = one.state.terminated.as_ref()?.exit_code.unwrap_or(0);
            let named = codes.container_name.as_ref().is_none_or(|wanted| *wanted == one.name);
            let listed = codes.values.contains(&code) == (codes.operator == "In");
            (named && listed && code != 0).then(|| (one.name.clone(), code))
        };
        let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
        let (container, code) = all.filter_map(ended).next()?;
        let message = format!(
            "Container {container} for pod {ns}/{name} failed with exit code {code} matching \
             {action} rule at index {at}"
        );
        return Some(Matched { action, message });
    }
    let hit = rule.on_pod_conditions.iter().find(|wanted| {
        let status = if wanted.status.is_empty() { "True" } else { &wanted.status };
        find_condition(&pod.status.conditions, &wanted.kind).is_some_and(|one| one.status == status)
    })?;
    let kind = &hit.kind;
    let message =
        format!("Pod {ns}/{name} has condition {kind} matching {action} rule at index {at}");
    Some(Matched { action, message })
}

/// Does this failure not count?
pub(super) fn is_ignored(work: &Work<'_>, pod: &Pod) -> bool {
    matched(work, pod).is_some_and(|one| one.action == "Ignore")
}

/// How often the index of a pod failed before it.
pub(super) fn failures_before(pod: &Pod) -> i64 {
    pod.metadata.annotation(FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Does this failure end its index?
pub(super) fn gives_up(work: &Work<'_>, pod: &Pod) -> bool {
    let Some(limit) = work.job.spec.backoff_limit_per_index else { return false };
    matched(work, pod).is_some_and(|one| one.action == "FailIndex") || failures_before(pod) >= limit
}
