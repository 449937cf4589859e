//! What a definition's status says: whether its names are free, and whether it is served.

use objects::{
    Time,
    field::{str_at, value_at},
};
use serde_json::{Map, Value, json};

/// Holds a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The conditions that are worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// The names nobody else of the group has, as `status.acceptedNames` says them.
    pub accepted: Value,
    /// The status to store; `None` when the stored one says it already.
    pub status: Option<Value>,
    /// Is the definition served?
    pub established: bool,
}

/// Plans the status of a definition; `others` are all definitions of the cluster.
///
/// Names go to who had them first: what another definition's status accepted is taken.
#[must_use]
pub fn plan_status(object: &Value, others: &[Value], now: Time) -> Conditions {
    let conflict = names_conflict(object, others);
    let old = object.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut status = old.as_object().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> =
        status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let was = conditions.iter().any(|one| {
        str_at(one, "type") == Some("Established") && str_at(one, "status") == Some("True")
    });
    let mut set = |kind: &str, good: bool, reason: &str, message: &str| {
        set_condition(&mut conditions, kind, good, reason, message, now);
    };
    let established = match &conflict {
        None => {
            set("NamesAccepted", true, "NoConflicts", "no conflicts found");
            let message = "the initial names have been accepted";
            set("Established", true, "InitialNamesAccepted", message);
            true
        }
        Some((reason, message)) => {
            set("NamesAccepted", false, reason, message);
            if !was {
                set("Established", false, "NotAccepted", "not all names are accepted");
            }
            was
        }
    };
    let accepted = match &conflict {
        None => value_at(object, "spec.names").cloned().unwrap_or_else(|| json!({})),
        Some(_) => status
            .get("acceptedNames")
            .cloned()
            .unwrap_or_else(|| json!({"kind": "", "plural": ""})),
    };
    status.insert("conditions".to_owned(), Value::Array(conditions));
    status.insert("acceptedNames".to_owned(), accepted.clone());
    remember_stored(object, &mut status);
    let status = Value::Object(status);
    Conditions { accepted, status: (status != old).then_some(status), established }
}

/// Adds the version objects are stored in now to those they ever were.
pub(crate) fn remember_stored(object: &Value, status: &mut Map<String, Value>) {
    let versions = value_at(object, "spec.versions").and_then(Value::as_array);
    let storage = versions
        .into_iter()
        .flatten()
        .find(|one| one.get("storage") == Some(&json!(true)))
        .and_then(|one| one.get("name"))
        .cloned();
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let (Some(stored), Some(storage)) = (stored.as_array_mut(), storage)
        && !stored.contains(&storage)
    {
        stored.push(storage);
    }
}

fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    good: bool,
    reason: &str,
    message: &str,
    now: Time,
) {
    let status = if good { "True" } else { "False" };
    let made = json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now.to_string(),
    });
    match conditions.iter_mut().find(|one| str_at(one, "type") == Some(kind)) {
        Some(old) => {
            let same =
                ["status", "reason", "message"].iter().all(|key| old.get(key) == made.get(key));
            if !same {
                let turned = old.get("status") != made.get("status");
                let before = old.get("lastTransitionTime").cloned();
                *old = made;
                if let (false, Some(before), Some(fields)) = (turned, before, old.as_object_mut()) {
                    fields.insert("lastTransitionTime".to_owned(), before);
                }
            }
        }
        None => conditions.push(made),
    }
}

/// The first name that another definition of the group has.
fn names_conflict(object: &Value, others: &[Value]) -> Option<(String, String)> {
    let group = str_at(object, "spec.group").unwrap_or("");
    let name = str_at(object, "metadata.name").unwrap_or("");
    let mut resources = Vec::new();
    let mut kinds = Vec::new();
    for other in others {
        if str_at(other, "spec.group") != Some(group)
            || str_at(other, "metadata.name") == Some(name)
        {
            continue;
        }
        let taken = |key: &str| str_at(other, &format!("status.acceptedNames.{key}"));
        resources.extend(["plural", "singular"].into_iter().filter_map(taken));
        kinds.extend(["kind", "listKind"].into_iter().filter_map(taken));
        let short = value_at(other, "status.acceptedNames.shortNames").and_then(Value::as_array);
        resources.extend(short.into_iter().flatten().filter_map(Value::as_str));
    }
    let wanted = |key: &str| str_at(object, &format!("spec.names.{key}"));
    let used = |name: &str| format!("\"{name}\" is already in use");
    for (key, reason) in [("plural", "PluralConflict"), ("singular", "SingularConflict")] {
        if let Some(name) = wanted(key).filter(|name| resources.contains(name)) {
            return Some((reason.to_owned(), used(name)));
        }
    }
    let short = value_at(object, "spec.names.shortNames").and_then(Value::as_array);
    for name in short.into_iter().flatten().filter_map(Value::as_str) {
        if resources.contains(&name) {
            return Some(("ShortNamesConflict".to_owned(), used(name)));
        }
    }
    for (key, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        if let Some(name) = wanted(key).filter(|name| kinds.contains(name)) {
            return Some((reason.to_owned(), used(name)));
        }
    }
    None
}

/// Marks a definition that is being deleted: it is held until its objects are gone.
pub fn release_names(object: &mut Value, now: Time) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|one| one == FINALIZER)
    {
        list.push(json!(FINALIZER));
    }
    let Some(fields) = object.as_object_mut() else { return };
    let status = fields.entry("status").or_insert_with(|| json!({}));
    let conditions = status
        .as_object_mut()
        .map(|status| status.entry("conditions").or_insert_with(|| json!([])))
        .and_then(Value::as_array_mut);
    if let Some(conditions) = conditions {
        let message = "CustomResource deletion is in progress";
        set_condition(conditions, "Terminating", true, "InstanceDeletionInProgress", message, now);
    }
}
