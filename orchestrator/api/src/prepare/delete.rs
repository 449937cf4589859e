//! Deletion: at once, after a grace period, or when the last finalizer lets go.

use jiff::SignedDuration;
use objects::field::Fields as _;
use objects::{
    Cause, Kind, Status, Time,
    field::{int_at, str_at},
    kind,
};
use serde_json::{Value, json};

use super::{
    Body, Change, Context, Prepared,
    metadata::{is_gone, meta_mut},
    status::child,
};
use crate::{custom, decode, list::refuse_options, request::Request};

/// Namespaces without which there is no cluster.
const IMMORTAL: &[&str] = &["default", "kube-public", "kube-system"];

/// What a client may say about a deletion, in the query or in a `DeleteOptions` body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct DeleteOptions {
    grace_period_seconds: Option<i64>,
    propagation_policy: String,
    uid: String,
    resource_version: String,
}

/// Deletes an object, or marks it as going.
///
/// Pods that are bound to a node get their grace period; the agent ends it by deleting with
/// grace 0. Objects with finalizers are marked and go with the last of them.
///
/// # Errors
///
/// 400 for options that cannot be read, 409 when a precondition does not hold.
pub fn prepare_delete(
    request: &Request,
    body: &Body<'_>,
    old: &Value,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let options = read_options(request, body)?;
    check(request, &options, old)?;
    if *request.kind == kind::NAMESPACE && IMMORTAL.contains(&request.name.as_str()) {
        let why = "this namespace may not be deleted";
        return Err(Status::forbidden(request.kind, &request.name, why));
    }
    let mut new = old.clone();
    if let Some(meta) = meta_mut(&mut new) {
        meta.remove("resourceVersion");
    }
    add_propagation_finalizer(&options, &mut new);
    let grace = grace_seconds(request.kind, &options, old);
    mark(request.kind, old, &mut new, grace, context);
    if *request.kind == kind::CUSTOM_RESOURCE_DEFINITION
        && old.field("metadata.deletionTimestamp").is_none()
    {
        custom::release_names(&mut new, Time::from(context.now));
    }
    let change = if is_gone(request.kind, &new) {
        Change::Remove
    } else if super::metadata::is_same(old, &new) {
        Change::Nothing
    } else {
        Change::Update
    };
    if change == Change::Nothing {
        new = old.clone();
    }
    let conditional = !options.resource_version.is_empty();
    Ok(Prepared { change, object: new, conditional, warnings: Vec::new() })
}

/// Does the body of a deletion ask to only try it?
///
/// # Errors
///
/// 400 for options that cannot be read.
pub fn is_dry_run(body: &Body<'_>) -> Result<bool, Status> {
    if body.bytes.is_empty() {
        return Ok(false);
    }
    let said = decode::decode_any(body)?;
    let stages = said.get("dryRun").and_then(Value::as_array);
    match stages.into_iter().flatten().find(|stage| *stage != "All") {
        Some(_) => {
            let cause = Cause::unsupported("dryRun", &json!(stages), &["All"]);
            refuse_options("DeleteOptions", vec![cause]).map(|()| false)
        }
        None => Ok(stages.is_some_and(|stages| !stages.is_empty())),
    }
}

fn read_options(request: &Request, body: &Body<'_>) -> Result<DeleteOptions, Status> {
    let mut options = DeleteOptions {
        grace_period_seconds: request.options.grace_period_seconds,
        propagation_policy: request.options.propagation_policy.clone(),
        ..DeleteOptions::default()
    };
    let mut causes = Vec::new();
    if !body.bytes.is_empty() {
        let said = decode::decode_any(body)?;
        let text = |path: &str| str_at(&said, path).unwrap_or("").to_owned();
        if let Some(seconds) = int_at(&said, "gracePeriodSeconds") {
            options.grace_period_seconds = Some(seconds);
        }
        if let Some(policy) = str_at(&said, "propagationPolicy") {
            if said.get("orphanDependents").is_some_and(Value::is_boolean) {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                causes.push(Cause::invalid("propagationPolicy", &json!(policy), why));
            }
            policy.clone_into(&mut options.propagation_policy);
        } else if said.get("orphanDependents").and_then(Value::as_bool) == Some(true) {
            "Orphan".clone_into(&mut options.propagation_policy);
        }
        options.uid = text("preconditions.uid");
        options.resource_version = text("preconditions.resourceVersion");
    }
    let policy = options.propagation_policy.as_str();
    if !matches!(policy, "" | "Orphan" | "Background" | "Foreground") {
        let known = ["Foreground", "Background", "Orphan", "nil"];
        causes.push(Cause::unsupported("propagationPolicy", &json!(policy), &known));
    }
    refuse_options("DeleteOptions", causes)?;
    Ok(options)
}

fn check(request: &Request, options: &DeleteOptions, old: &Value) -> Result<(), Status> {
    for (what, wanted, path) in [
        ("UID", &options.uid, "metadata.uid"),
        ("ResourceVersion", &options.resource_version, "metadata.resourceVersion"),
    ] {
        let have = str_at(old, path).unwrap_or("");
        if !wanted.is_empty() && wanted != have {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: \
                 {have}"
            );
            return Err(Status::conflict(request.kind, &request.name, &why));
        }
    }
    Ok(())
}

/// `Orphan` and `Foreground` are promises the garbage collector keeps; it sees them by finalizer.
fn add_propagation_finalizer(options: &DeleteOptions, new: &mut Value) {
    let finalizer = match options.propagation_policy.as_str() {
        "Orphan" => "orphan",
        "Foreground" => "foregroundDeletion",
        _ => return,
    };
    let Some(meta) = meta_mut(new) else { return };
    let list = meta.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|have| have == finalizer)
    {
        list.push(json!(finalizer));
    }
}

/// How many seconds an object gets to end; 0 for all but bound pods that may still run.
fn grace_seconds(kind: &Kind, options: &DeleteOptions, old: &Value) -> i64 {
    if *kind != kind::POD {
        return 0;
    }
    let unbound = str_at(old, "spec.nodeName").unwrap_or("").is_empty();
    let finished = matches!(str_at(old, "status.phase"), Some("Succeeded" | "Failed"));
    if unbound || finished {
        return 0;
    }
    let own = int_at(old, "spec.terminationGracePeriodSeconds").unwrap_or(30);
    // Negative values mean one second, as upstream reads them.
    let wanted = options.grace_period_seconds.unwrap_or(own);
    if wanted < 0 { 1 } else { wanted }
}

/// Writes deletion time and grace, never later than what was promised before.
fn mark(kind: &Kind, old: &Value, new: &mut Value, grace: i64, context: &Context<'_>) {
    let before = int_at(old, "metadata.deletionGracePeriodSeconds");
    let deleting = old.field("metadata.deletionTimestamp").is_some();
    let shorter = before.is_none_or(|before| grace < before);
    let generation = int_at(old, "metadata.generation").unwrap_or(0);
    let Some(meta) = meta_mut(new) else { return };
    if !deleting || (shorter && *kind == kind::POD) {
        let until =
            context.now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(context.now);
        meta.insert("deletionTimestamp".to_owned(), json!(Time::from(until).to_string()));
        meta.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
        if kind.has_generation && !deleting {
            meta.insert("generation".to_owned(), json!(generation.saturating_add(1)));
        }
    }
    if *kind == kind::NAMESPACE
        && let Some(fields) = new.as_object_mut()
    {
        child(fields, "status").insert("phase".to_owned(), json!("Terminating"));
        // Upstream leaves the grace period of a namespace unsaid.
        child(fields, "metadata").remove("deletionGracePeriodSeconds");
    }
}
