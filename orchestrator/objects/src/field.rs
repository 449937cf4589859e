//! Fields of an object's JSON by dotted path.

use serde_json::Value;

/// Finds `spec.nodeName` in an object; `None` when a step is missing.
#[must_use]
pub fn value_at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, step| value.get(step))
}

/// Fields by dotted path, as methods of a value.
///
/// [`Value::pointer`] makes two copies of every step of its path; who asks for a field of each
/// object that passes by asks here.
pub trait Fields {
    /// The value at a path such as `spec.nodeName`; `None` when a step is missing.
    fn field(&self, path: &str) -> Option<&Value>;

    /// The value at a path, to be changed; `None` when a step is missing.
    fn field_mut(&mut self, path: &str) -> Option<&mut Value>;
}

impl Fields for Value {
    fn field(&self, path: &str) -> Option<&Value> {
        value_at(self, path)
    }

    fn field_mut(&mut self, path: &str) -> Option<&mut Value> {
        path.split('.').try_fold(self, |value, step| value.get_mut(step))
    }
}

/// The text of a scalar field; numbers and booleans are written out.
#[must_use]
pub fn text_at(object: &Value, path: &str) -> Option<String> {
    match value_at(object, path)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The string at a path; `None` when it is missing or not a string.
#[must_use]
pub fn str_at<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    value_at(object, path)?.as_str()
}

/// The number at a path; `None` when it is missing or not a whole number.
#[must_use]
pub fn int_at(object: &Value, path: &str) -> Option<i64> {
    value_at(object, path)?.as_i64()
}
