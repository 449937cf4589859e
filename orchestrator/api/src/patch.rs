//! Patches: JSON patch, merge patch, strategic merge patch.

mod strategic;

use objects::{Kind, Status};
use serde_json::Value;

use crate::{decode, json, prepare::Body, request::Request, schema::builtin};

/// As much a JSON patch may copy.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// As many operations a JSON patch may have.
const OPERATIONS_MAX: usize = 10_000;

/// Applies a patch to an object of a known kind; the result has the kind's shape.
pub(crate) fn apply_patch(
    request: &Request,
    body: &Body<'_>,
    seen: &Value,
) -> Result<(Value, Vec<String>), Status> {
    let merges = ["application/json-patch+json", "application/merge-patch+json"];
    if request.custom.is_some() && !merges.contains(&body.media_type()) {
        return Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, \
             application/apply-patch+yaml",
        ));
    }
    let mut doubled = Vec::new();
    let patched = match body.media_type() {
        "application/strategic-merge-patch+json" => {
            let (patch, twice) = decode::decode_doubled(body)?;
            doubled = twice;
            if !patch.is_object() {
                return Err(Status::bad_request("the patch is not an object"));
            }
            let (group, version) = (request.served.group, request.served.version);
            strategic(request.kind, group, version, &unversioned(seen), &patch)?
        }
        "application/json-patch+json" => {
            // Its tests may ask for the version; what they leave as it was is no wish.
            let patched = apply_plain_patch(body, seen)?;
            let place = "/metadata/resourceVersion";
            if patched.pointer(place) == seen.pointer(place) {
                unversioned(&patched)
            } else {
                patched
            }
        }
        _ => {
            let patched = apply_plain_patch(body, &unversioned(seen))?;
            doubled = decode::decode_doubled(body)?.1;
            patched
        }
    };
    let decoded = decode::conform_patched(request, patched, &doubled, body.bytes)?;
    Ok((decoded.value, decoded.warnings))
}

/// An object that does not say which version it is: a patch that names none fits any.
pub(crate) fn unversioned(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
    }
    object
}

fn strategic(
    kind: &Kind,
    group: &str,
    version: &str,
    seen: &Value,
    patch: &Value,
) -> Result<Value, Status> {
    let Some(root) = builtin().root(group, version, kind.kind) else {
        return Err(Status::unsupported_media_type(
            "strategic merge patch is not supported for this kind",
        ));
    };
    strategic::merge(builtin(), root, seen, patch)
        .map_err(|err| Status::bad_request(format!("the patch does not fit: {err}")))
}

/// Applies a patch that needs no schema.
pub(crate) fn apply_plain_patch(body: &Body<'_>, seen: &Value) -> Result<Value, Status> {
    let patch = decode::decode_any(body)?;
    let mut patched = seen.clone();
    match body.media_type() {
        "application/json-patch+json" => {
            if patch.as_array().is_some_and(|all| all.len() > OPERATIONS_MAX) {
                return Err(Status::too_large(format!(
                    "a JSON patch may have {OPERATIONS_MAX} operations at most"
                )));
            }
            let operations: json_patch::Patch = serde_json::from_value(patch).map_err(|err| {
                Status::bad_request(format!("the JSON patch is malformed: {err}"))
            })?;
            apply_operations(&mut patched, &operations)?;
        }
        // `scale` has no lists to merge, so its strategic patches are merge patches.
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            json_patch::merge(&mut patched, &patch);
        }
        _ => {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, application/apply-patch+yaml",
            ));
        }
    }
    Ok(patched)
}

/// Applies a JSON patch step by step, and stops what copies itself over and over.
fn apply_operations(patched: &mut Value, patch: &json_patch::Patch) -> Result<(), Status> {
    let mut copied: usize = 0;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            let source = patched.pointer(copy.from.as_str());
            copied = copied.saturating_add(source.map_or(0, json::size));
            if copied > COPIED_BYTES_MAX {
                return Err(Status::too_large(format!(
                    "the copies of a JSON patch may take {COPIED_BYTES_MAX} bytes at most"
                )));
            }
        }
        if is_absent(patched, operation) {
            continue;
        }
        json_patch::patch(patched, std::slice::from_ref(operation)).map_err(|err| {
            let why =
                format!("the server rejected our request due to an error in our request: {err}");
            Status::failure(422, "Invalid", why)
        })?;
    }
    Ok(())
}

/// Is it a test for null of a member that is not there? Upstream lets it pass, and clients count
/// on it: kube-rs tests that there are no finalizers before it adds the first.
fn is_absent(object: &Value, operation: &json_patch::PatchOperation) -> bool {
    let json_patch::PatchOperation::Test(test) = operation else { return false };
    let Some((holder, member)) = test.path.as_str().rsplit_once('/') else { return false };
    let member = member.replace("~1", "/").replace("~0", "~");
    let holder = object.pointer(holder).and_then(Value::as_object);
    test.value.is_null() && holder.is_some_and(|holder| !holder.contains_key(&member))
}

#[cfg(test)]
mod tests;
