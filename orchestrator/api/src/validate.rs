//! Rules an object must keep.

use objects::{Cause, Kind};
use serde_json::Value;

pub(crate) fn validate_create(_kind: &Kind, _object: &Value) -> Vec<Cause> {
    Vec::new()
}

pub(crate) fn validate_update(_kind: &Kind, _sub: &str, _old: &Value, _new: &Value) -> Vec<Cause> {
    Vec::new()
}

pub(crate) fn warnings(_kind: &Kind, _object: &Value) -> Vec<String> {
    Vec::new()
}
