//! Evictions: deletions of pods that disruption budgets may refuse.
//!
//! Spec: upstream's `pods/eviction`, policy/v1.

use jiff::Timestamp;
use objects::field::Fields as _;
use objects::{
    Cause, LabelSelector, Status, Time,
    field::{int_at, str_at},
    kind,
    status::Details,
};
use serde_json::{Value, json};

use super::status::child;

/// So many disrupted pods a budget may remember.
const DISRUPTED_MAX: usize = 2000;
/// What every refusal says.
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Decides whether a pod may be evicted.
///
/// `budgets` are those of the pod's namespace. The answer is the budget to be written before the
/// pod is deleted, with one disruption less to give; `None` when none is concerned.
///
/// # Errors
///
/// 429 with the cause `DisruptionBudget` when a budget refuses for now, 500 when several speak of
/// the pod, 403 for a budget whose status makes no sense.
pub fn decide_eviction(
    pod: &Value,
    budgets: &[Value],
    now: Timestamp,
) -> Result<Option<Value>, Status> {
    // What does not run is missed by nobody.
    let phase = str_at(pod, "status.phase").unwrap_or("");
    let going = pod.field("metadata.deletionTimestamp").is_some();
    if going || matches!(phase, "Succeeded" | "Failed" | "Pending") {
        return Ok(None);
    }
    let concerned: Vec<&Value> = budgets.iter().filter(|budget| selects(budget, pod)).collect();
    let budget = match concerned.as_slice() {
        [] => return Ok(None),
        [one] => *one,
        _ => {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction \
                       subresource does not support.";
            return Err(Status::failure(500, "", why));
        }
    };
    let count = |field: &str| int_at(budget, &format!("status.{field}")).unwrap_or(0);
    let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
    if !is_ready(pod) {
        // A pod that does not serve takes nothing away.
        let always = str_at(budget, "spec.unhealthyPodEvictionPolicy") == Some("AlwaysAllow");
        if always || (healthy >= desired && desired > 0) {
            return Ok(None);
        }
    }
    charge(pod, budget, now).map(Some)
}

fn charge(pod: &Value, budget: &Value, now: Timestamp) -> Result<Value, Status> {
    let name = str_at(budget, "metadata.name").unwrap_or("");
    let count = |field: &str| int_at(budget, &format!("status.{field}")).unwrap_or(0);
    let generation = int_at(budget, "metadata.generation").unwrap_or(0);
    if count("observedGeneration") < generation {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refusal(&why, 10));
    }
    let left = count("disruptionsAllowed");
    let forbidden = |why: &str| Status::forbidden(&kind::POD_DISRUPTION_BUDGET, name, why);
    if left < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    let disrupted = budget.field("status.disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|all| all.len() > DISRUPTED_MAX) {
        return Err(forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB \
                              controller",
        ));
    }
    if left == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            count("desiredHealthy"),
            count("currentHealthy")
        );
        return Err(refusal(&why, 0));
    }
    let mut budget = budget.clone();
    if let Some(fields) = budget.as_object_mut() {
        let status = child(fields, "status");
        let left = left.saturating_sub(1);
        status.insert("disruptionsAllowed".to_owned(), json!(left));
        let time = Time::from(now).to_string();
        let gone = str_at(pod, "metadata.name").unwrap_or("").to_owned();
        child(status, "disruptedPods").insert(gone, json!(time));
        if left == 0 {
            let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
            let allowed = conditions.into_iter().flatten().filter_map(Value::as_object_mut);
            for one in allowed.filter(|one| one.get("type") == Some(&json!("DisruptionAllowed"))) {
                one.insert("status".to_owned(), json!("False"));
                one.insert("reason".to_owned(), json!("InsufficientPods"));
                one.insert("lastTransitionTime".to_owned(), json!(time));
            }
        }
    }
    Ok(budget)
}

fn refusal(why: &str, retry_after_seconds: u32) -> Status {
    let cause = Cause {
        reason: "DisruptionBudget".to_owned(),
        message: why.to_owned(),
        field: String::new(),
    };
    Status::failure(429, "TooManyRequests", REFUSED).with(Details {
        causes: vec![cause],
        retry_after_seconds,
        ..Details::default()
    })
}

fn selects(budget: &Value, pod: &Value) -> bool {
    let Some(selector) = budget.field("spec.selector") else { return false };
    let labels = pod.field("metadata.labels").cloned().unwrap_or_else(|| json!({}));
    let selector = serde_json::from_value::<LabelSelector>(selector.clone());
    let labels = serde_json::from_value(labels);
    matches!((selector, labels), (Ok(selector), Ok(labels)) if selector.matches(&labels))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.field("status.conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|one| str_at(one, "type") == Some("Ready") && str_at(one, "status") == Some("True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, ready: &str) -> Value {
        json!({"metadata": {"name": "p", "labels": {"app": "x"}}, "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn budget(name: &str, allowed: i64) -> Value {
        json!({"metadata": {"name": name, "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "x"}}},
            "status": {"observedGeneration": 2, "disruptionsAllowed": allowed,
                "currentHealthy": 2, "desiredHealthy": 2}})
    }

    fn decide(pod: &Value, budgets: &[Value]) -> Result<Option<Value>, Status> {
        decide_eviction(pod, budgets, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_budget_gives_as_many_disruptions_as_it_has() {
        let running = pod("Running", "True");
        let charged = decide(&running, &[budget("b", 1)]).unwrap().unwrap();
        assert_eq!(charged["status"]["disruptionsAllowed"], 0);
        assert_eq!(charged["status"]["disruptedPods"]["p"], "2026-01-01T00:00:00Z");
        let refused = decide(&running, &[charged]).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (429, REFUSED));
        let cause = &refused.details.unwrap().causes[0];
        assert_eq!(cause.reason, "DisruptionBudget");
        assert_eq!(
            cause.message,
            "The disruption budget b needs 2 healthy pods and has 2 currently"
        );
    }

    #[test]
    fn pods_that_do_not_serve_are_not_protected() {
        for phase in ["Pending", "Succeeded", "Failed"] {
            assert_eq!(decide(&pod(phase, "False"), &[budget("b", 0)]), Ok(None), "{phase}");
        }
        assert_eq!(decide(&pod("Running", "False"), &[budget("b", 0)]), Ok(None));
        let other = json!({"spec": {"selector": {"matchLabels": {"app": "y"}}}});
        assert_eq!(decide(&pod("Running", "True"), &[other]), Ok(None));
    }

    #[test]
    fn budgets_that_are_unclear_refuse() {
        let running = pod("Running", "True");
        let two = [budget("a", 1), budget("b", 1)];
        assert_eq!(decide(&running, &two).unwrap_err().code, 500);
        let mut stale = budget("b", 1);
        stale["metadata"]["generation"] = json!(3);
        let refused = decide(&running, &[stale]).unwrap_err();
        assert_eq!((refused.code, refused.details.unwrap().retry_after_seconds), (429, 10));
    }
}
