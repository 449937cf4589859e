//! Bringing an object into the shape of a structural schema: metadata, pruning, defaults.

use serde_json::{Map, Value};

use super::structural::{Additional, Structural};

/// Drops what the schema does not know; returns the paths of what went.
///
/// `root` says that the object is a whole one, with version, kind and metadata.
pub(crate) fn prune(shape: &Structural, value: &mut Value) -> Vec<String> {
    let mut gone = Vec::new();
    prune_at(shape, value, "", true, &mut gone);
    gone
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn prune_at(
    shape: &Structural,
    value: &mut Value,
    path: &str,
    whole: bool,
    gone: &mut Vec<String>,
) {
    match value {
        Value::Array(items) => {
            let Some(inner) = &shape.items else { return };
            for (at, item) in items.iter_mut().enumerate() {
                prune_at(inner, item, &format!("{path}[{at}]"), inner.embedded, gone);
            }
        }
        Value::Object(fields) => {
            let mut dropped = Vec::new();
            for (name, value) in fields.iter_mut() {
                if whole && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                let path = join(path, name);
                if let Some(inner) = shape.properties.get(name) {
                    prune_at(inner, value, &path, inner.embedded, gone);
                } else if let Additional::Schema(inner) = &shape.additional {
                    prune_at(inner, value, &path, inner.embedded, gone);
                } else if !shape.keeps_unknown() {
                    gone.push(path);
                    dropped.push(name.clone());
                }
            }
            for name in dropped {
                fields.remove(&name);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fills in defaults; a null that may not stand there gives way to one.
pub(crate) fn fill_defaults(shape: &Structural, value: &mut Value) {
    match value {
        Value::Array(items) => {
            let Some(inner) = &shape.items else { return };
            items.iter_mut().for_each(|item| fill_defaults(inner, item));
        }
        Value::Object(fields) => {
            for (name, inner) in &shape.properties {
                fill_property(fields, name, inner);
            }
            if let Additional::Schema(inner) = &shape.additional {
                for (name, value) in fields.iter_mut() {
                    if !shape.properties.contains_key(name) {
                        if value.is_null()
                            && !inner.nullable
                            && let Some(default) = &inner.default
                        {
                            *value = default.clone();
                        }
                        fill_defaults(inner, value);
                    }
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn fill_property(fields: &mut Map<String, Value>, name: &str, inner: &Structural) {
    match fields.get_mut(name) {
        Some(Value::Null) if !inner.nullable => match &inner.default {
            Some(default) => {
                fields.insert(name.to_owned(), default.clone());
            }
            // A null that may not stand there and has no default is left to validation, except
            // that one the client did not mean is dropped, as upstream does for typed readers.
            None => return,
        },
        Some(_) => {}
        None => match &inner.default {
            Some(default) => {
                fields.insert(name.to_owned(), default.clone());
            }
            None => return,
        },
    }
    if let Some(value) = fields.get_mut(name) {
        fill_defaults(inner, value);
    }
}

/// The metadata of embedded resources, with their paths.
pub(crate) fn embedded<'v>(
    shape: &Structural,
    value: &'v mut Value,
    path: &str,
    found: &mut Vec<(String, &'v mut Value)>,
) {
    match value {
        Value::Array(items) => {
            let Some(inner) = &shape.items else { return };
            for (at, item) in items.iter_mut().enumerate() {
                embedded(inner, item, &format!("{path}[{at}]"), found);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let path = join(path, name);
                if shape.embedded && name == "metadata" {
                    found.push((path, value));
                } else if let Some(inner) = shape.properties.get(name) {
                    embedded(inner, value, &path, found);
                } else if let Additional::Schema(inner) = &shape.additional {
                    embedded(inner, value, &path, found);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
