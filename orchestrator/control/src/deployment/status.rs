//! What a deployment tells about itself: counts and conditions.

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::time::Time;
use objects::workload::DeploymentStatus;
use serde_json::json;

use super::Family;
use crate::action::{Action, Steps, Target};
use crate::replica_set::REPLICA_FAILURE;
use crate::rollout;

/// Seconds a rollout may stand still when the deployment does not say; upstream's default.
const DEADLINE: i64 = 600;

/// Plans the write of the status, when it would change.
pub(super) fn tell(family: &Family<'_>, now: Timestamp, steps: &mut Steps) {
    let deployment = family.deployment;
    let mut wanted = counts(family);
    let available = wanted.available_replicas >= family.limits.fewest();
    let condition = if available {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let mut conditions = deployment.status.conditions.clone();
    set(&mut conditions, Condition::new("Available", available, condition.0, condition.1), now);
    progress(family, &wanted, &mut conditions, now, steps);
    let mut sets = family.new.iter().chain(&family.old);
    match sets.find_map(|set| find_condition(&set.status.conditions, REPLICA_FAILURE)) {
        Some(had) => {
            set(&mut conditions, Condition::new(&had.kind, true, &had.reason, &had.message), now);
        }
        None => conditions.retain(|one| one.kind != REPLICA_FAILURE),
    }
    wanted.conditions = conditions;
    if wanted == deployment.status {
        return;
    }
    let status = json!({
        "observedGeneration": wanted.observed_generation,
        "replicas": wanted.replicas,
        "updatedReplicas": wanted.updated_replicas,
        "readyReplicas": wanted.ready_replicas,
        "availableReplicas": wanted.available_replicas,
        "unavailableReplicas": wanted.unavailable_replicas,
        "terminatingReplicas": wanted.terminating_replicas,
        "conditions": wanted.conditions,
    });
    steps.push(Action::patch_status(Target::of(deployment), status));
}

fn counts(family: &Family<'_>) -> DeploymentStatus {
    let all = || family.old.iter().chain(&family.new);
    let replicas: i64 = all().filter_map(|set| set.status.replicas).sum();
    let available = all().map(|set| set.status.available_replicas).sum();
    let leaving: i64 = all().filter_map(|set| set.status.terminating_replicas).sum();
    // Sets may ask for pods that do not exist yet; those are unavailable too.
    let asked: i64 = all().map(|set| rollout::asked(set)).sum();
    DeploymentStatus {
        observed_generation: family.deployment.metadata.generation,
        replicas,
        updated_replicas: family.new.as_ref().and_then(|set| set.status.replicas).unwrap_or(0),
        ready_replicas: all().map(|set| set.status.ready_replicas).sum(),
        available_replicas: available,
        unavailable_replicas: (asked - available).max(0),
        terminating_replicas: Some(leaving),
        ..family.deployment.status.clone()
    }
}

/// Is everything new, available, and nothing old left?
fn complete(family: &Family<'_>, status: &DeploymentStatus) -> bool {
    let replicas = family.limits.replicas;
    status.updated_replicas == replicas
        && status.replicas == replicas
        && status.available_replicas == replicas
        && status.observed_generation >= family.deployment.metadata.generation
        && family.new.is_some()
}

/// Keeps the condition `Progressing`.
fn progress(
    family: &Family<'_>,
    status: &DeploymentStatus,
    conditions: &mut Vec<Condition>,
    now: Timestamp,
    steps: &mut Steps,
) {
    let deployment = family.deployment;
    let deadline = deployment.spec.progress_deadline_seconds.unwrap_or(DEADLINE);
    let before = find_condition(conditions, "Progressing").cloned();
    let reason = before.as_ref().map_or("", |one| one.reason.as_str());
    if deployment.spec.paused {
        if reason != "DeploymentPaused" {
            let paused = Condition {
                status: "Unknown".to_owned(),
                ..Condition::new("Progressing", true, "DeploymentPaused", "Deployment is paused")
            };
            set(conditions, paused, now);
        }
        return;
    }
    let Some(new) = &family.new else {
        // The round that sees the new set says more.
        return;
    };
    let name = &new.metadata.name;
    let finished = complete(family, status);
    if finished {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        if reason != "NewReplicaSetAvailable" || before.is_none_or(|one| one.message != message) {
            let done = Condition::new("Progressing", true, "NewReplicaSetAvailable", &message);
            set(conditions, done, now);
        }
        return;
    }
    let had = &deployment.status;
    let moved = status.updated_replicas > had.updated_replicas
        || status.ready_replicas > had.ready_replicas
        || status.available_replicas > had.available_replicas
        || status.replicas - status.updated_replicas < had.replicas - had.updated_replicas
        || status.observed_generation > had.observed_generation;
    // A finished rollout that lost a pod is not a rollout again.
    let fresh = matches!(reason, "" | "DeploymentPaused");
    if moved || fresh {
        if reason == "NewReplicaSetAvailable"
            && status.observed_generation == had.observed_generation
        {
            return;
        }
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        let moving = Condition {
            last_update_time: Some(Time::from(now)),
            ..Condition::new("Progressing", true, "ReplicaSetUpdated", &message)
        };
        set(conditions, moving, now);
        return;
    }
    if matches!(reason, "NewReplicaSetAvailable" | "ProgressDeadlineExceeded") {
        return;
    }
    let since = before.and_then(|one| one.last_update_time.or(one.last_transition_time));
    let due = since.and_then(|at| at.0.checked_add(SignedDuration::from_secs(deadline)).ok());
    match due {
        Some(due) if now < due => steps.look_again(due),
        _ => {
            let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
            let late = Condition::new("Progressing", false, "ProgressDeadlineExceeded", &message);
            set(conditions, late, now);
        }
    }
}

/// Sets a condition; `lastUpdateTime` moves only when something is said that was not said before.
fn set(conditions: &mut Vec<Condition>, mut wanted: Condition, now: Timestamp) {
    let before = find_condition(conditions, &wanted.kind);
    let same = before.is_some_and(|had| {
        had.status == wanted.status && had.reason == wanted.reason && had.message == wanted.message
    });
    if wanted.last_update_time.is_none() {
        let had = before.and_then(|had| had.last_update_time).filter(|_| same);
        wanted.last_update_time = Some(had.unwrap_or_else(|| Time::from(now)));
    }
    set_condition(conditions, wanted, now);
}
