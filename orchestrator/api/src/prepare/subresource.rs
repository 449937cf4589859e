//! `scale`, `binding`: parts of an object that speak another language.

use objects::field::Fields as _;
use objects::{Selector, Status, Time, field::str_at};
use serde_json::{Value, json};

use super::{Body, Change, Context, Prepared, Wanted, metadata, status::child, update_to};
use crate::{
    custom::path_value,
    decode,
    json::{put, put_in},
    patch,
    request::Request,
};

/// The `scale` of a workload (`autoscaling/v1`).
#[must_use]
pub fn render_scale(object: &Value) -> Value {
    let mut meta = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|all| all.get(key)) {
            meta.insert(key.to_owned(), value.clone());
        }
    }
    let wanted = object.field("spec.replicas").cloned().unwrap_or_else(|| json!(0));
    let actual = object.field("status.replicas").cloned().unwrap_or_else(|| json!(0));
    let mut status = json!({"replicas": actual});
    let selector = selector_text(object);
    if !selector.is_empty() {
        put(&mut status, "selector", json!(selector));
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": meta,
        "spec": {"replicas": wanted},
        "status": status,
    })
}

/// The `scale` of an object, where its kind keeps the numbers.
pub(super) fn render_scale_of(request: &Request, object: &Value) -> Value {
    let mut scale = render_scale(object);
    let Some(paths) = request.custom.as_ref().and_then(|custom| custom.scale()) else {
        return scale;
    };
    let number = |path: &str| {
        let found = path_value(object, path).filter(|value| value.is_number());
        found.cloned().unwrap_or_else(|| json!(0))
    };
    let mut status = json!({"replicas": number(&paths.status)});
    let selector = paths.selector.as_deref().and_then(|path| path_value(object, path));
    if let Some(selector) = selector.and_then(Value::as_str) {
        put(&mut status, "selector", json!(selector));
    }
    put(&mut scale, "spec", json!({"replicas": number(&paths.spec)}));
    put(&mut scale, "status", status);
    scale
}

/// Writes the wanted replicas to where the kind keeps them.
fn set_replicas(request: &Request, object: &mut Value, replicas: i64) {
    let path = request.custom.as_ref().and_then(|custom| custom.scale());
    let path = path.map_or("spec.replicas", |scale| scale.spec.trim_start_matches('.'));
    let mut words: Vec<&str> = path.split('.').collect();
    let Some(last) = words.pop() else { return };
    let Some(mut fields) = object.as_object_mut() else { return };
    for word in words {
        fields = child(fields, word);
    }
    fields.insert(last.to_owned(), json!(replicas));
}

/// The selector in the text form of query parameters.
fn selector_text(object: &Value) -> String {
    let Some(selector) = object.field("spec.selector") else { return String::new() };
    if selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none() {
        let labels = serde_json::from_value(selector.clone()).unwrap_or_default();
        return Selector::from_labels(&labels).to_string();
    }
    serde_json::from_value::<objects::LabelSelector>(selector.clone())
        .ok()
        .and_then(|selector| selector.compile())
        .map(|selector| selector.to_string())
        .unwrap_or_default()
}

/// PUT of a `Scale`.
pub(super) fn update_scale(
    request: &Request,
    body: &Body<'_>,
    old: &Value,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let decoded = decode::decode_any(body)?;
    to_replicas(request, &decoded, old, context)
}

/// PATCH of a `Scale`.
pub(super) fn patch_scale(
    request: &Request,
    body: &Body<'_>,
    old: &Value,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let seen = render_scale_of(request, old);
    let patched = if body.media_type() == "application/json-patch+json" {
        // Its tests may ask for the version.
        patch::unversioned(&patch::apply_plain_patch(body, &seen)?)
    } else {
        patch::apply_plain_patch(body, &patch::unversioned(&seen))?
    };
    to_replicas(request, &patched, old, context)
}

/// Carries the replicas of a `Scale` over to the object.
fn to_replicas(
    request: &Request,
    scale: &Value,
    old: &Value,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let replicas = match scale.field("spec.replicas") {
        None => 0,
        Some(value) => value.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| {
            Status::bad_request(
                "Scale in version \"v1\" cannot be handled: spec.replicas is not an int32",
            )
        })?,
    };
    if replicas < 0 {
        let cause = objects::Cause::invalid(
            "spec.replicas",
            &json!(replicas),
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid(request.kind, &request.name, vec![cause]));
    }
    let conditional = metadata::check_preconditions(request, old, scale)?;
    let mut new = old.clone();
    if let Some(fields) = new.as_object_mut() {
        // The stored version is what was read here; the client's own was checked above.
        child(fields, "metadata").remove("resourceVersion");
    }
    set_replicas(request, &mut new, replicas);
    // Who scales owns the replicas under the subresource's name; the rest is a plain update.
    crate::apply::track_update(request, Some(old), &mut new, context);
    let mut main = request.clone();
    main.subresource.clear();
    let mut prepared =
        update_to(&main, old, Wanted { object: new, applied: true }, Vec::new(), context)?;
    prepared.conditional = conditional;
    Ok(prepared)
}

/// Binds a pod to a node (POST of a `Binding`).
///
/// # Errors
///
/// 400 for a body that names no node, 409 when the pod is bound or being deleted.
pub fn prepare_binding(
    request: &Request,
    body: &Body<'_>,
    old: &Value,
    context: &Context<'_>,
) -> Result<Prepared, Status> {
    let binding = decode::decode_any(body)?;
    let node = str_at(&binding, "target.name").unwrap_or("").to_owned();
    if node.is_empty() {
        let cause = objects::Cause::required("target.name", "");
        return Err(Status::invalid(request.kind, &request.name, vec![cause]));
    }
    let uid = str_at(&binding, "metadata.uid").unwrap_or("");
    if !uid.is_empty() && Some(uid) != str_at(old, "metadata.uid") {
        return Err(Status::conflict(request.kind, &request.name, "the pod has another uid"));
    }
    if let Some(bound) = str_at(old, "spec.nodeName").filter(|bound| !bound.is_empty()) {
        let why = format!("pod {} is already assigned to node \"{bound}\"", request.name);
        return Err(Status::conflict(request.kind, &request.name, &why));
    }
    if old.field("metadata.deletionTimestamp").is_some() {
        let why = format!("pod {} is being deleted, cannot be assigned to a host", request.name);
        return Err(Status::conflict(request.kind, &request.name, &why));
    }
    let mut new = old.clone();
    let Some(fields) = new.as_object_mut() else {
        return Err(Status::internal("the stored pod is not an object"));
    };
    child(fields, "spec").insert("nodeName".to_owned(), json!(node));
    let meta = child(fields, "metadata");
    meta.remove("resourceVersion");
    if let Some(annotations) = binding.field("metadata.annotations").and_then(Value::as_object) {
        child(meta, "annotations").extend(annotations.clone());
    }
    let now = Time::from(context.now).to_string();
    let status = child(fields, "status");
    let mut conditions = match status.remove("conditions") {
        Some(Value::Array(conditions)) => conditions,
        _ => Vec::new(),
    };
    conditions.retain(|condition| str_at(condition, "type") != Some("PodScheduled"));
    conditions.push(json!({
        "type": "PodScheduled", "status": "True",
        "lastProbeTime": null, "lastTransitionTime": now,
    }));
    put_in(status, "conditions", Some(Value::Array(conditions)));
    crate::apply::track_update(request, Some(old), &mut new, context);
    Ok(Prepared { change: Change::Update, object: new, conditional: false, warnings: Vec::new() })
}
