//! Hands for JSON objects: the few moves that `serde_json` leaves to indexing.

use serde_json::{Map, Value};

/// Sets a field of an object; what is no object stays as it is.
pub(crate) fn put(object: &mut Value, field: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

/// Sets a field, or removes it.
pub(crate) fn put_in(fields: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => fields.insert(field.to_owned(), value),
        None => fields.remove(field),
    };
}
