//! Server-side apply: who owns which field, and what an apply changes.
//!
//! Each write by another verb makes its manager the owner of what it changed; an apply owns what
//! it says. An apply that would change a field of another manager is a conflict unless forced;
//! what a manager no longer applies goes when nobody else owns it. Owners are kept in
//! `metadata.managedFields` in upstream's form.
//!
//! *Limits*: merged lists keep the live order and grow at the end; versions of a kind are one
//! (events aside).
//!
//! Spec: upstream's server-side apply; structured merge and diff v4, `FieldsV1`.

mod owners;
mod set;
mod walk;

use objects::field::Fields as _;
use objects::{Cause, Status, Time, status::Details};
use owners::{Manager, Managers};
use serde_json::{Value, json};
use set::Set;
use walk::Walker;

use crate::{
    json::{put, put_in},
    prepare::{Context, manager_name},
    request::Request,
    schema::{Schema, Type, builtin},
};

/// The manager of fields that were there before anybody was recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The tool whose client-side applies may become server-side ones.
const CLIENT_APPLIER: &str = "kubectl";
/// Where it notes what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Fields nobody owns: they name the object, or only the server writes them.
const UNOWNED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:deletionGracePeriodSeconds"],
    &["f:metadata", "f:deletionTimestamp"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
];

/// Records who owns what a create, update or patch changed.
pub(crate) fn track_update(
    request: &Request,
    old: Option<&Value>,
    new: &mut Value,
    context: &Context<'_>,
) {
    let Some((schema, root)) = root(request) else { return };
    let mut managers = managers_of_update(old, new);
    let empty = json!({});
    let diff = Walker::new(schema).compare(root, old.unwrap_or(&empty), new);
    let gained = ours(request, diff.added.union(&diff.modified));
    for manager in managers.iter_mut() {
        manager.fields.subtract(&gained);
        manager.fields.subtract(&diff.removed);
    }
    if !gained.is_empty() {
        let now = Time::from(context.now);
        let subresource = tracked_subresource(request);
        managers
            .entry(&name_of(request, context), "Update", &request.api_version(), subresource, now)
            .gain(&gained, now);
    }
    managers.tidy();
    store(new, &managers);
}

/// The owners an update starts from: those the client says, else those that were.
///
/// Clients read an object with its owners and send both back; kubectl moves owners on purpose
/// when it goes from client-side to server-side apply. `[{}]` asks to forget them all.
fn managers_of_update(old: Option<&Value>, new: &Value) -> Managers {
    if new.field("metadata.managedFields") == Some(&json!([{}])) {
        return Managers::default();
    }
    let said = Managers::decode(new);
    match old {
        Some(old) if said.is_empty() => Managers::decode(old),
        Some(_) => said,
        None => Managers::default(),
    }
}

/// Records an object that was made by an apply: the manager owns what it said, no more.
pub(crate) fn track_applied_creation(
    request: &Request,
    applied: &Value,
    new: &mut Value,
    context: &Context<'_>,
) {
    let Some((schema, root)) = root(request) else { return };
    let said = ours(request, Walker::new(schema).fields(root, applied));
    let mut managers = Managers::default();
    let now = Time::from(context.now);
    let name = name_of(request, context);
    let version = request.api_version();
    managers.entry(&name, "Apply", &version, tracked_subresource(request), now).gain(&said, now);
    store(new, &managers);
}

/// Merges what is applied into the stored object, owners included.
///
/// # Errors
///
/// 400 for a configuration that names owners itself, 409 for conflicts.
pub(crate) fn merge(
    request: &Request,
    old: &Value,
    applied: &Value,
    context: &Context<'_>,
) -> Result<Value, Status> {
    if applied.field("metadata.managedFields").is_some() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let Some((schema, root)) = root(request) else {
        return Err(Status::unsupported_media_type("apply is not supported for this kind"));
    };
    let walker = Walker::new(schema);
    walker.check_keys(root, applied).map_err(|why| Status::bad_request(why.to_string()))?;
    let now = Time::from(context.now);
    let mut managers = Managers::decode(old);
    if managers.is_empty() {
        let all = ours(request, walker.fields(root, old));
        managers
            .entry(BEFORE_FIRST_APPLY, "Update", &request.api_version(), "", now)
            .gain(&all, now);
    }
    let name = name_of(request, context);
    let version = request.api_version();
    let subresource = tracked_subresource(request);
    let said = ours(request, walker.fields(root, applied));
    let own = managers.entry(&name, "Apply", &version, subresource, now);
    let before = std::mem::take(&mut own.fields);
    let mut merged = walker.merge(root, old, applied);
    // What holds fields goes with the last of them: a probe without a field is no probe.
    let dropped = before.closure().difference(&said.closure());
    prune(&walker, root, &mut merged, &dropped, &managers);
    let diff = walker.compare(root, old, &merged);
    let changed = ours(request, diff.added.union(&diff.modified));
    let conflicts = conflicts(&managers, &changed);
    if !request.options.force {
        refuse(&name, conflicts, || said_by_client_apply(&walker, root, old))?;
    }
    for manager in managers.iter_mut() {
        manager.fields.subtract(&changed);
        manager.fields.subtract(&diff.removed);
    }
    let own = managers.entry(&name, "Apply", &version, subresource, now);
    if before != said {
        own.time = now.to_string();
    }
    own.fields = said;
    managers.tidy();
    note_for_client_apply(&name, old, applied, &mut merged);
    unversion(&mut merged, applied);
    store(&mut merged, &managers);
    Ok(merged)
}

/// What is applied laid over an object, without a word about owners.
pub(crate) fn overlay(request: &Request, object: &Value, applied: &Value) -> Value {
    match root(request) {
        Some((schema, root)) => Walker::new(schema).merge(root, object, applied),
        None => {
            let mut merged = object.clone();
            json_patch::merge(&mut merged, applied);
            merged
        }
    }
}

/// The table that knows the kind, and its type there.
fn root(request: &Request) -> Option<(&Schema, &Type)> {
    if let Some(custom) = &request.custom {
        let (schema, root) = custom.schema();
        return schema.get(root).map(|root| (schema, root));
    }
    let kind = request.kind;
    builtin().root(kind.group, kind.version, kind.kind).map(|root| (builtin(), root))
}

fn name_of(request: &Request, context: &Context<'_>) -> String {
    manager_name(&request.options, context)
}

fn tracked_subresource(request: &Request) -> &str {
    // A binding writes the pod itself; the others are halves of their own.
    if request.subresource == "binding" { "" } else { &request.subresource }
}

/// What of a set this request can own: not names, and of halves only its own.
fn ours(request: &Request, set: Set) -> Set {
    let status = request.subresource == "status";
    let metadata = status && crate::prepare::takes_metadata(request);
    set.retain(|path| {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        if UNOWNED.contains(&words.as_slice()) {
            return false;
        }
        match (words.first(), request.kind.has_status) {
            (Some(&"f:status"), true) => {
                status || !matches!(request.subresource.as_str(), "" | "finalize" | "scale")
            }
            (Some(&"f:metadata"), true) => !status || metadata,
            _ => !status,
        }
    })
}

/// Removes what the manager applied before and no longer does, unless another owns it.
fn prune(walker: &Walker<'_>, root: &Type, merged: &mut Value, dropped: &Set, others: &Managers) {
    // Parents come first: an item is found by its keys, so they must not go before it does.
    for path in dropped.iter() {
        let held = others.iter().any(|manager| manager.fields.holds(&path));
        if !held {
            walker.remove(root, merged, &path);
        }
    }
}

/// The fields of other managers that would change.
fn conflicts<'a>(managers: &'a Managers, changed: &Set) -> Vec<(&'a Manager, Set)> {
    managers
        .iter()
        .map(|manager| (manager, manager.fields.intersection(changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect()
}

/// Refuses an apply that would change what others own, but for what the same tool may take over.
fn refuse(
    name: &str,
    mut conflicts: Vec<(&Manager, Set)>,
    said: impl FnOnce() -> Set,
) -> Result<(), Status> {
    if name == CLIENT_APPLIER && !conflicts.is_empty() {
        let said = said();
        for (_, fields) in &mut conflicts {
            fields.subtract(&said);
        }
        conflicts.retain(|(_, fields)| !fields.is_empty());
    }
    if conflicts.is_empty() { Ok(()) } else { Err(conflict(&conflicts)) }
}

fn conflict(conflicts: &[(&Manager, Set)]) -> Status {
    let mut causes = Vec::new();
    let mut parts = Vec::new();
    for (manager, fields) in conflicts {
        let title = title(manager);
        let paths: Vec<String> = fields.iter().map(|path| set::render_path(&path)).collect();
        parts.push(format!("conflicts with {title}:\n- {}", paths.join("\n- ")));
        causes.extend(paths.into_iter().map(|field| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {title}"),
            field,
        }));
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), parts.join("\n")),
    };
    Status::failure(409, "Conflict", message).with(Details { causes, ..Details::default() })
}

/// A manager as people are told of it; one by update also by when it last wrote.
fn title(manager: &Manager) -> String {
    let mut title = format!("{:?}", manager.name);
    if !manager.subresource.is_empty() {
        title += &format!(" with subresource {:?}", manager.subresource);
    }
    if manager.operation == "Update" {
        title += &format!(" using {}", manager.api_version);
        if !manager.time.is_empty() {
            title += &format!(" at {}", manager.time);
        }
    }
    title
}

/// The fields that client-side apply said last and that still are as it said: an apply from the
/// server's side by the same tool may take them without a conflict.
fn said_by_client_apply(walker: &Walker<'_>, root: &Type, old: &Value) -> Set {
    let annotation = old.get("metadata").and_then(|meta| meta.get("annotations"));
    let last = annotation.and_then(|all| all.get(LAST_APPLIED)).and_then(Value::as_str);
    let Some(last) = last.and_then(|last| serde_json::from_str::<Value>(last).ok()) else {
        return Set::default();
    };
    let mut said = walker.fields(root, &last);
    let diff = walker.compare(root, &last, old);
    said.subtract(&diff.modified);
    said.subtract(&diff.removed);
    said
}

/// Keeps the note of client-side apply true when the same tool applies from the server's side.
fn note_for_client_apply(name: &str, old: &Value, applied: &Value, merged: &mut Value) {
    let has = |object: &Value| {
        object.field("metadata.annotations").is_some_and(|all| all.get(LAST_APPLIED).is_some())
    };
    if name != CLIENT_APPLIER || !has(old) || has(applied) {
        return;
    }
    let Ok(mut note) = serde_json::to_string(applied) else { return };
    note.push('\n');
    if let Some(all) = merged.field_mut("metadata.annotations") {
        put(all, LAST_APPLIED, json!(note));
    }
}

/// The stored version is no wish of the client's; only what it applied itself is.
fn unversion(merged: &mut Value, applied: &Value) {
    let wanted = applied.field("metadata.resourceVersion").cloned();
    if let Some(meta) = merged.get_mut("metadata").and_then(Value::as_object_mut) {
        put_in(meta, "resourceVersion", wanted);
    }
}

fn store(object: &mut Value, managers: &Managers) {
    let encoded = managers.encode();
    if let Some(meta) = object.get_mut("metadata") {
        match encoded {
            Value::Array(list) if list.is_empty() => {
                if let Some(meta) = meta.as_object_mut() {
                    meta.remove("managedFields");
                }
            }
            list => put(meta, "managedFields", list),
        }
    }
}

#[cfg(test)]
mod tests;
