//! Metadata that the server alone writes: uid, times, generation, and what a client may not
//! change.

use objects::field::Fields as _;
use objects::{Cause, Kind, Status, Time, field::str_at, kind};
use serde_json::{Map, Value, json};

use super::Context;
use crate::request::Request;

/// The longest base of a generated name: five letters must still fit.
const GENERATED_BASE_MAX: usize = 58;

/// Metadata that a client cannot set or change.
const SERVER_FIELDS: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
];

/// Lists and maps that are left out when nothing is in them, as upstream writes objects: clients
/// test that there are none.
const LEFT_OUT: &[&str] = &["annotations", "finalizers", "labels", "ownerReferences"];

fn leave_out_empty(meta: &mut Map<String, Value>) {
    for field in LEFT_OUT {
        let empty = match meta.get(*field) {
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(members)) => members.is_empty(),
            _ => false,
        };
        if empty {
            meta.remove(*field);
        }
    }
}

/// The metadata of an object, made when missing.
pub(super) fn meta_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let fields = object.as_object_mut()?;
    let meta = fields.entry("metadata").or_insert_with(|| json!({}));
    if !meta.is_object() {
        *meta = json!({});
    }
    meta.as_object_mut()
}

/// Names a new object and marks its birth.
pub(super) fn stamp_new(
    request: &Request,
    object: &mut Value,
    context: &Context<'_>,
) -> Result<(), Status> {
    let kind = request.kind;
    check_namespace_of(request, object)?;
    let Some(meta) = meta_mut(object) else {
        return Err(Status::bad_request("the body is not an object"));
    };
    if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|rv| !rv.is_empty())
        && request.name.is_empty()
    {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for field in SERVER_FIELDS {
        meta.remove(*field);
    }
    meta.remove("resourceVersion");
    leave_out_empty(meta);
    let text = |key: &str| meta.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (name, base) = (text("name"), text("generateName"));
    if name.is_empty() && !request.name.is_empty() {
        meta.insert("name".to_owned(), json!(request.name));
    } else if !request.name.is_empty() && name != request.name {
        return Err(name_mismatch(&name, &request.name));
    } else if name.is_empty() && !base.is_empty() {
        let suffix: String = context.name_suffix.chars().take(5).collect();
        let base: String = base.chars().take(GENERATED_BASE_MAX).collect();
        meta.insert("name".to_owned(), json!(format!("{base}{suffix}")));
    } else if name.is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Status::invalid(kind, "", vec![cause]));
    }
    if kind.namespaced {
        meta.insert("namespace".to_owned(), json!(request.namespace));
    } else {
        meta.remove("namespace");
    }
    meta.insert("uid".to_owned(), json!(context.uid));
    meta.insert("creationTimestamp".to_owned(), json!(Time::from(context.now).to_string()));
    if kind.has_generation {
        meta.insert("generation".to_owned(), json!(1));
    }
    Ok(())
}

fn check_namespace_of(request: &Request, object: &Value) -> Result<(), Status> {
    let namespace = str_at(object, "metadata.namespace").unwrap_or("");
    if request.kind.namespaced && !namespace.is_empty() && namespace != request.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

fn name_mismatch(found: &str, wanted: &str) -> Status {
    Status::bad_request(format!(
        "the name of the object ({found}) does not match the name on the URL ({wanted})"
    ))
}

/// Checks that the client means this object, in the version it has seen.
///
/// Tells whether the client named a version.
pub(super) fn check_preconditions(
    request: &Request,
    old: &Value,
    new: &Value,
) -> Result<bool, Status> {
    let kind = request.kind;
    check_namespace_of(request, new)?;
    let name = str_at(new, "metadata.name").unwrap_or("");
    if !name.is_empty() && name != request.name {
        return Err(name_mismatch(name, &request.name));
    }
    let uid = str_at(new, "metadata.uid").unwrap_or("");
    let old_uid = str_at(old, "metadata.uid").unwrap_or("");
    if !uid.is_empty() && uid != old_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
        );
        return Err(Status::conflict(kind, &request.name, &why));
    }
    let version = str_at(new, "metadata.resourceVersion").unwrap_or("");
    if version.is_empty() || version == "0" {
        return Ok(false);
    }
    if version != str_at(old, "metadata.resourceVersion").unwrap_or("") {
        return Err(Status::stale(kind, &request.name));
    }
    Ok(true)
}

/// Puts the server's own metadata back from the stored object.
pub(super) fn carry_over(request: &Request, old: &Value, new: &mut Value, _context: &Context<'_>) {
    let Some(meta) = meta_mut(new) else { return };
    for field in SERVER_FIELDS.iter().chain(&["name", "namespace", "generateName"]) {
        match old.get("metadata").and_then(|all| all.get(field)) {
            Some(value) => meta.insert((*field).to_owned(), value.clone()),
            None => meta.remove(*field),
        };
    }
    meta.remove("resourceVersion");
    leave_out_empty(meta);
    if !request.kind.namespaced {
        meta.remove("namespace");
    }
}

/// Raises `metadata.generation` when what is wanted of the object changed.
pub(super) fn count_generation(kind: &Kind, old: &Value, new: &mut Value) {
    if !kind.has_generation {
        return;
    }
    let without: &[&str] = if kind.has_status { &["metadata", "status"] } else { &["metadata"] };
    let changed = !same_but(old, new, without);
    let annotations = |object: &Value| object.field("metadata.annotations").cloned();
    // A deployment carries its annotations on to its replica sets.
    let changed = changed || (*kind == kind::DEPLOYMENT && annotations(old) != annotations(new));
    let before = objects::field::int_at(old, "metadata.generation").unwrap_or(0);
    let Some(meta) = meta_mut(new) else { return };
    if changed {
        meta.insert("generation".to_owned(), json!(before.saturating_add(1)));
    }
}

/// Is an object that is being deleted held by nothing any more?
pub(super) fn is_gone(kind: &Kind, object: &Value) -> bool {
    let list_empty =
        |path: &str| object.field(path).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let waits = objects::field::int_at(object, "metadata.deletionGracePeriodSeconds")
        .is_some_and(|seconds| seconds > 0);
    object.field("metadata.deletionTimestamp").is_some()
        && !waits
        && list_empty("metadata.finalizers")
        && (*kind != kind::NAMESPACE || list_empty("spec.finalizers"))
}

/// Are two states of an object the same, but for versions and the times of managed fields?
pub(super) fn is_same(old: &Value, new: &Value) -> bool {
    same_but(old, new, &["metadata"]) && same_metadata(old.get("metadata"), new.get("metadata"))
}

fn same_metadata(old: Option<&Value>, new: Option<&Value>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return old == new };
    let managers = |meta: &Value| -> Vec<Value> {
        let managed = meta.get("managedFields").and_then(Value::as_array);
        let entries = managed.into_iter().flatten().cloned();
        let timeless = entries.map(|mut entry| {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
            entry
        });
        timeless.collect()
    };
    same_but(old, new, &["resourceVersion", "managedFields"])
        && (old.get("managedFields") == new.get("managedFields") || managers(old) == managers(new))
}

/// Are all members the same but for these?
fn same_but(old: &Value, new: &Value, but: &[&str]) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return old == new };
    let counted = |members: &Map<String, Value>| {
        members.len() - but.iter().filter(|name| members.contains_key(**name)).count()
    };
    counted(old) == counted(new)
        && old
            .iter()
            .filter(|(name, _)| !but.contains(&name.as_str()))
            .all(|(name, value)| new.get(name) == Some(value))
}
