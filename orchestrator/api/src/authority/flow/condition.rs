//! What a flow schema's status says: whether the level it sends requests to is there.
//!
//! Spec: upstream's condition `Dangling` and its words.

use objects::field::Fields as _;
use objects::{Time, field::str_at};
use serde_json::{Value, json};

/// The condition's type.
const DANGLING: &str = "Dangling";

/// The schema with what its status should say; `None` when it says so already.
#[must_use]
pub fn plan_condition(schema: &Value, level_exists: bool, now: Time) -> Option<Value> {
    let level = str_at(schema, "spec.priorityLevelConfiguration.name").unwrap_or_default();
    let (status, reason, end) = if level_exists {
        ("False", "Found", "and it exists")
    } else {
        ("True", "NotFound", "but there is no such object")
    };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}"
    );
    let conditions = schema.field("status.conditions").and_then(Value::as_array);
    let mut conditions = conditions.cloned().unwrap_or_default();
    let at = conditions.iter().position(|one| str_at(one, "type") == Some(DANGLING));
    let before = at.and_then(|at| conditions.get(at)).cloned().unwrap_or_default();
    let says = |path: &str| str_at(&before, path).unwrap_or_default();
    if says("status") == status && says("reason") == reason && says("message") == message {
        return None;
    }
    let since = match before.get("lastTransitionTime") {
        Some(since) if says("status") == status => since.clone(),
        _ => json!(now),
    };
    let wanted = json!({"type": DANGLING, "status": status, "lastTransitionTime": since,
        "reason": reason, "message": message});
    match at.and_then(|at| conditions.get_mut(at)) {
        Some(place) => *place = wanted,
        None => conditions.push(wanted),
    }
    let mut planned = schema.clone();
    planned.as_object_mut()?.insert("status".to_owned(), json!({"conditions": conditions}));
    Some(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_says_whether_its_level_is_there() {
        let [early, late] = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]
            .map(|text| Time::from(text.parse::<jiff::Timestamp>().unwrap()));
        let schema = json!({"spec": {"priorityLevelConfiguration": {"name": "slow"}},
            "status": {"conditions": [{"type": "Other", "status": "True"}]}});
        let lost = plan_condition(&schema, false, early).unwrap();
        let said = &lost["status"]["conditions"];
        assert_eq!(said[0]["type"], "Other");
        assert_eq!(
            said[1],
            json!({"type": "Dangling", "status": "True", "reason": "NotFound",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "message": "This FlowSchema references the PriorityLevelConfiguration object \
                            named \"slow\" but there is no such object"})
        );
        assert_eq!(plan_condition(&lost, false, late), None);
        let found = plan_condition(&lost, true, late).unwrap();
        let said = &found["status"]["conditions"][1];
        assert_eq!((&said["status"], &said["reason"]), (&json!("False"), &json!("Found")));
        assert_eq!(said["lastTransitionTime"], "2026-01-02T00:00:00Z");
        assert!(said["message"].as_str().unwrap().ends_with("named \"slow\" and it exists"));
        assert_eq!(plan_condition(&found, true, early), None);
    }
}
