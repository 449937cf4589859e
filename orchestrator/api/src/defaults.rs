//! What a field says when the client says nothing.

use objects::Kind;
use serde_json::{Map, Value};

/// Fills in defaults.
pub(crate) fn set_defaults(_kind: &Kind, _object: &mut Value) {}

/// The quality-of-service class of a pod.
pub(crate) fn qos_class(_spec: &Value) -> &'static str {
    "BestEffort"
}

/// What built-in admission adds to a new pod.
pub(crate) fn admit_pod(_spec: &mut Map<String, Value>) {}
