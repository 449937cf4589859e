//! Server-side apply: who owns which field.

use objects::Status;
use serde_json::Value;

use crate::{prepare::Context, request::Request};

pub(crate) fn track_update(_r: &Request, _old: Option<&Value>, _new: &mut Value, _c: &Context<'_>) {
}

pub(crate) fn track_applied_creation(_r: &Request, _a: &Value, _new: &mut Value, _c: &Context<'_>) {
}

pub(crate) fn merge(
    _request: &Request,
    old: &Value,
    applied: &Value,
    _context: &Context<'_>,
) -> Result<Value, Status> {
    let mut out = old.clone();
    json_patch::merge(&mut out, applied);
    Ok(out)
}
