//! From a body and the stored object to what is to be stored.
//!
//! The API server's part is small: read the stored object, call one of the `prepare_` functions,
//! write [`Prepared::object`] with a compare-and-set on the revision it read, and answer with
//! [`answer`] of what the store holds then. When the compare-and-set fails it reads and calls
//! again, unless [`Prepared::conditional`] says that the client named the version it had seen.
//!
//! `metadata.resourceVersion` is never stored: it is the store's revision and is put in on the
//! way out.

mod body;
mod delete;
mod eviction;
mod extension;
mod metadata;
mod status;
mod subresource;

use jiff::Timestamp;
use objects::field::Fields as _;
use objects::{
    Cause, Kind, Status,
    kind::{self, GroupVersion},
};
use serde_json::Value;

pub use body::Body;
pub(crate) use body::Decoded;
pub use delete::{is_dry_run, prepare_delete};
pub use eviction::decide_eviction;
pub(crate) use status::takes_metadata;
pub use subresource::{prepare_binding, render_scale};

use crate::{
    admission::{self, Admission, View},
    apply,
    authority::{User, check_node_write},
    convert, list, patch,
    request::{Options, Request},
};

/// The largest object, as upstream's store has it.
const OBJECT_BYTES_MAX: usize = 3 * 512 * 1024;

/// What a decision depends on besides the request and the stored object.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The time of the request.
    pub now: Timestamp,
    /// A fresh uid, used when an object is created.
    pub uid: String,
    /// Random letters for a generated name, at least five of `bcdfghjklmnpqrstvwxz2456789`.
    pub name_suffix: String,
    /// Who asks.
    pub user: &'a User,
    /// The `User-Agent` header; the field manager's name when the client gives none.
    pub user_agent: &'a str,
    /// Other objects, as built-in admission looks at them.
    pub view: &'a dyn View,
}

/// What is to be done to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the request changes nothing. No new revision, no event.
    Nothing,
    /// The object is new.
    Create,
    /// The object is replaced.
    Update,
    /// The object goes; [`Prepared::object`] is its last state.
    Remove,
}

/// A verdict: what to store, and what to tell the client besides.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What to do.
    pub change: Change,
    /// The object as it is to be stored, without `resourceVersion`.
    pub object: Value,
    /// Did the client name the version it had seen? Then losing a race is its conflict (409);
    /// otherwise the API server tries again.
    pub conditional: bool,
    /// Warnings for the client, one `Warning` header each.
    pub warnings: Vec<String>,
}

/// Makes a new object from a body (POST, or PUT where that creates).
///
/// With [`Request::name`] set, that is the object's name.
///
/// # Errors
///
/// 400 for what cannot be read, 415 for unknown media types, 422 for broken rules.
pub fn prepare_create(
    request: &Request,
    body: &Body<'_>,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let decoded = body::decode(request, body)?;
    let mut prepared = create_from(request, decoded.value, decoded.warnings, context)?;
    apply::track_update(request, None, &mut prepared.object, context);
    Ok(prepared)
}

/// The part of creation behind the decoder; server-side apply creates here too.
fn create_from(
    request: &Request,
    value: Value,
    mut warnings: Vec<String>,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let kind = request.kind;
    let mut object = convert::to_stored(request, value);
    extension::refuse_creation(request)?;
    metadata::stamp_new(request, &mut object, context)?;
    extension::reset_on_create(request, &mut object, context);
    extension::set_defaults(request, &mut object);
    let admission = Admission { request, context, old: None };
    admission::mutate(&admission, &mut object)?;
    status::admit_new(kind, &mut object);
    check_node_write(context.user, request, None, &object)?;
    check_size(&object)?;
    refuse(kind, &object, extension::validate(request, None, &object))?;
    admission::validate(&admission, &object, &mut warnings)?;
    Ok(Prepared { change: Change::Create, object, conditional: false, warnings })
}

/// Replaces an object or one of its subresources (PUT).
///
/// # Errors
///
/// 400 for what cannot be read, 409 when the client has seen another version or uid, 415 for
/// unknown media types, 422 for broken rules.
pub fn prepare_update(
    request: &Request,
    body: &Body<'_>,
    old: &Value,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    if request.subresource == "scale" {
        return subresource::update_scale(request, body, old, context);
    }
    let decoded = body::decode(request, body)?;
    let new = convert::to_stored(request, decoded.value);
    update_to(request, old, Wanted { object: new, applied: false }, decoded.warnings, context)
}

/// Changes parts of an object, or makes it (apply only), by the body's kind of patch.
///
/// `old` is `None` when there is no such object.
///
/// # Errors
///
/// 404 when there is nothing to patch, 400 for a patch that cannot be read or does not fit,
/// 409 for conflicts, 415 for unknown kinds of patch, 422 for broken rules.
pub fn prepare_patch(
    request: &Request,
    body: &Body<'_>,
    old: Option<&Value>,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let media = body.media_type();
    if media == "application/apply-patch+yaml" {
        return patch_by_apply(request, body, old, context);
    }
    let Some(old) = old else {
        return Err(Status::not_found(request.kind, &request.name));
    };
    if request.subresource == "scale" {
        return subresource::patch_scale(request, body, old, context);
    }
    // The patch is made for what the client sees: its version, with the resourceVersion.
    let seen = convert::to_served(request, old);
    let (patched, warnings) = patch::apply_patch(request, body, &seen)?;
    let new = convert::to_stored(request, patched);
    update_to(request, old, Wanted { object: new, applied: false }, warnings, context)
}

fn patch_by_apply(
    request: &Request,
    body: &Body<'_>,
    old: Option<&Value>,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    if request.options.field_manager.is_empty() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        list::refuse_options("PatchOptions", vec![cause])?;
    }
    let decoded = body::decode_apply(request, body)?;
    match old {
        None if request.is_main() => {
            let mut prepared =
                create_from(request, decoded.value.clone(), decoded.warnings, context)?;
            let applied = convert::to_stored(request, decoded.value);
            apply::track_applied_creation(request, &applied, &mut prepared.object, context);
            Ok(prepared)
        }
        None => Err(Status::not_found(request.kind, &request.name)),
        Some(old) => {
            let applied = convert::to_stored(request, decoded.value);
            let merged = apply::merge(request, old, &applied, context)?;
            let wanted = Wanted { object: merged, applied: true };
            update_to(request, old, wanted, decoded.warnings, context)
        }
    }
}

/// What an update wants, and whether an apply has already said who owns what.
struct Wanted {
    object: Value,
    applied: bool,
}

/// The part of an update behind the decoder: what of `wanted` counts, and what follows from it.
fn update_to(
    request: &Request,
    old: &Value,
    wanted: Wanted,
    mut warnings: Vec<String>,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let kind = request.kind;
    let mut new = wanted.object;
    let conditional = metadata::check_preconditions(request, old, &new)?;
    metadata::carry_over(request, old, &mut new, context);
    status::separate(request, old, &mut new, context)?;
    extension::set_defaults(request, &mut new);
    let admission = Admission { request, context, old: Some(old) };
    admission::mutate(&admission, &mut new)?;
    status::admit_update(kind, old, &mut new);
    check_node_write(context.user, request, Some(old), &new)?;
    if request.subresource != "status" {
        metadata::count_generation(kind, old, &mut new);
    }
    check_size(&new)?;
    refuse(kind, &new, extension::validate(request, Some(old), &new))?;
    admission::validate(&admission, &new, &mut warnings)?;
    if !wanted.applied {
        apply::track_update(request, Some(old), &mut new, context);
    }
    let change = if metadata::is_gone(kind, &new) {
        Change::Remove
    } else if metadata::is_same(old, &new) {
        new = old.clone();
        Change::Nothing
    } else {
        Change::Update
    };
    Ok(Prepared { change, object: new, conditional, warnings })
}

/// Takes in what mutating admission made of a prepared object: it is held against schema and rules
/// again, and what changed belongs to whoever asked.
///
/// # Errors
///
/// 422 when the changed object breaks rules.
pub fn readmit(
    request: &Request,
    prepared: Prepared,
    changed: Value,
    old: Option<&Value>,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let kind = request.kind;
    let before = prepared.object;
    let main = Request { options: Options::default(), ..request.clone() };
    // Admission answers in the stored version, whatever version the client speaks.
    let stored = GroupVersion { group: kind.group, version: kind.version };
    let main = Request { served: stored, ..main };
    let mut new = crate::decode::conform(&main, changed, &[])?.value;
    new = convert::to_stored(request, new);
    metadata::carry_over(request, &before, &mut new, context);
    extension::set_defaults(request, &mut new);
    // What came in has the built-in plugins' additions too, and is judged by them.
    let admission = Admission { request, context, old };
    admission::mutate(&admission, &mut new)?;
    if let Some(old) = old {
        if let (Some(meta), Some(generation)) =
            (metadata::meta_mut(&mut new), old.field("metadata.generation"))
        {
            meta.insert("generation".to_owned(), generation.clone());
        }
        if request.subresource != "status" {
            metadata::count_generation(kind, old, &mut new);
        }
    }
    check_size(&new)?;
    refuse(kind, &new, extension::validate(request, old, &new))?;
    let (mut told, mut warnings) = (prepared.warnings, Vec::new());
    admission::validate(&admission, &new, &mut warnings)?;
    told.extend(warnings.into_iter().filter(|warning| !told.contains(warning)).collect::<Vec<_>>());
    apply::track_update(request, Some(&before), &mut new, context);
    let change = match (old, prepared.change) {
        (Some(old), Change::Nothing | Change::Update) if metadata::is_same(old, &new) => {
            new = old.clone();
            Change::Nothing
        }
        (Some(_), Change::Nothing) => Change::Update,
        (_, change) => change,
    };
    let conditional = prepared.conditional;
    Ok(Prepared { change, object: new, conditional, warnings: told })
}

/// Lays an apply configuration over an object, lists by their keys.
#[must_use]
pub fn merge_configuration(request: &Request, object: &Value, applied: &Value) -> Value {
    apply::overlay(request, object, applied)
}

/// The answer to a request about one object: what the store holds, in the client's words.
#[must_use]
pub fn answer(request: &Request, stored: &Value) -> Value {
    match request.subresource.as_str() {
        "scale" => subresource::render_scale_of(request, stored),
        "binding" | "eviction" => success(201),
        _ => convert::to_served(request, stored),
    }
}

/// The answer to a deletion: the object where upstream shows it, a `Status` elsewhere.
#[must_use]
pub fn answer_deletion(request: &Request, change: Change, object: &Value) -> Value {
    let shows = request.custom.is_none()
        && matches!(request.kind.kind, "Pod" | "Service" | "Namespace" | "Node");
    if change != Change::Remove || shows {
        return convert::to_served(request, object);
    }
    let uid = objects::field::str_at(object, "metadata.uid").unwrap_or("");
    serde_json::to_value(Status::deleted(request.kind, &request.name, uid)).unwrap_or_default()
}

/// A bare success.
fn success(code: u16) -> Value {
    serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code,
    })
}

/// An object must not outgrow what stores and clients can carry.
fn check_size(object: &Value) -> Result<(), Status> {
    if crate::json::size(object) > OBJECT_BYTES_MAX {
        let why = format!("Request entity too large: limit is {OBJECT_BYTES_MAX}");
        return Err(Status::too_large(why));
    }
    Ok(())
}

/// 422 with all causes, or nothing.
fn refuse(kind: &Kind, object: &Value, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = objects::field::str_at(object, "metadata.name").unwrap_or("");
    Err(Status::invalid(kind, name, causes))
}

/// The manager's name: the option, or the first word of the user agent.
pub(crate) fn manager_name(options: &Options, context: &Context<'_>) -> String {
    if !options.field_manager.is_empty() {
        return options.field_manager.clone();
    }
    let agent = context.user_agent.split('/').next().unwrap_or("");
    if agent.is_empty() { "unknown".to_owned() } else { agent.chars().take(128).collect() }
}

/// Does the namespace of an object to be created admit it? `namespace` is the stored namespace,
/// `name` the object's.
///
/// # Errors
///
/// 404 when there is no such namespace, 403 when it is going away.
pub fn check_namespace(
    request: &Request,
    name: &str,
    namespace: Option<&Value>,
) -> Result<(), Status> {
    let Some(namespace) = namespace else {
        return Err(Status::not_found(&kind::NAMESPACE, &request.namespace));
    };
    if objects::field::value_at(namespace, "metadata.deletionTimestamp").is_some() {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            request.namespace
        );
        let mut status = Status::forbidden(request.kind, name, &why);
        if let Some(details) = status.details.as_mut() {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {} is being terminated", request.namespace),
                field: "metadata.namespace".to_owned(),
            });
        }
        return Err(status);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod every_kind;
#[cfg(test)]
mod tests;
