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

/// About how many bytes a value takes as JSON; never less than half of it.
pub(crate) fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.len().saturating_add(2),
        Value::Array(items) => {
            items.iter().fold(2, |sum, item| sum.saturating_add(size(item)).saturating_add(1))
        }
        Value::Object(fields) => fields.iter().fold(2, |sum, (key, inner)| {
            sum.saturating_add(key.len()).saturating_add(size(inner)).saturating_add(4)
        }),
    }
}
