//! Patches: JSON patch, merge patch, strategic merge patch.

use objects::Status;
use serde_json::Value;

use crate::{decode, prepare::Body, request::Request};

/// Applies a patch to an object of a known kind.
pub(crate) fn apply_patch(
    _request: &Request,
    body: &Body<'_>,
    seen: &Value,
) -> Result<(Value, Vec<String>), Status> {
    Ok((apply_plain_patch(body, seen)?, Vec::new()))
}

/// Applies a patch that needs no schema.
pub(crate) fn apply_plain_patch(body: &Body<'_>, seen: &Value) -> Result<Value, Status> {
    let mut out = seen.clone();
    json_patch::merge(&mut out, &decode::decode_any(body)?);
    Ok(out)
}
