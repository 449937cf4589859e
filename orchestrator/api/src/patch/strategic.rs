//! Strategic merge patch: a merge patch that knows which lists are really maps.
//!
//! Spec: upstream's strategic merge patch with its directives `$patch` (merge, replace, delete),
//! `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD` and `$retainKeys`. Which list is
//! merged by which key comes from the schema; where the schema says nothing, lists are replaced.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::schema::{Field, Node, Schema, Strategy, Type};

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";
const RETAIN: &str = "$retainKeys";
const DIRECTIVE: &str = "$patch";

/// The patch cannot be applied.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum MergeError {
    /// An item of a list that is merged by key has no such key.
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoKey { item: String, key: &'static str },
    /// `$patch` says something else than merge, replace or delete.
    #[error("unknown patch type found: {0}")]
    Directive(String),
    /// A directive's value has the wrong type.
    #[error("{0} must be a list")]
    NotAList(String),
}

/// Merges `patch` into an object of the type `root`.
pub(super) fn merge(
    schema: &Schema,
    root: &Type,
    seen: &Value,
    patch: &Value,
) -> Result<Value, MergeError> {
    let merger = Merger { schema };
    let (Some(old), Some(patch)) = (seen.as_object(), patch.as_object()) else {
        return Ok(patch.clone());
    };
    Ok(merger.objects(Some(root), old, patch)?.map_or(Value::Null, Value::Object))
}

/// The value of a `$patch` directive.
fn directive(patch: &Map<String, Value>) -> Result<&str, MergeError> {
    match patch.get(DIRECTIVE) {
        None => Ok("merge"),
        Some(Value::String(said)) if ["merge", "replace", "delete"].contains(&said.as_str()) => {
            Ok(said)
        }
        Some(other) => Err(MergeError::Directive(other.to_string())),
    }
}

struct Merger<'a> {
    schema: &'a Schema,
}

impl<'a> Merger<'a> {
    /// Merges two objects; `None` when the patch deletes the object.
    fn objects(
        &self,
        shape: Option<&'a Type>,
        old: &Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>, MergeError> {
        match directive(patch)? {
            "delete" => return Ok(None),
            "replace" => return Ok(Some(self.whole(patch))),
            _ => {}
        }
        let mut new = old.clone();
        self.retain_keys(patch, &mut new)?;
        for (name, value) in patch {
            if name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) {
                continue;
            }
            if let Some(name) = name.strip_prefix(DELETE_FROM) {
                delete_values(name, value, &mut new)?;
                continue;
            }
            let field = shape.and_then(|shape| shape.field(name));
            self.field(field, name, value, &mut new)?;
        }
        self.reorder(shape, patch, &mut new)?;
        Ok(Some(new))
    }

    fn field(
        &self,
        field: Option<&'a Field>,
        name: &str,
        value: &Value,
        new: &mut Map<String, Value>,
    ) -> Result<(), MergeError> {
        let strategy = field.map_or_else(Strategy::default, |field| field.strategy);
        match value {
            Value::Null => {
                new.remove(name);
            }
            Value::Object(inner) if !strategy.replace => {
                let old = new.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
                let shape = field.and_then(|field| self.type_of(&field.node));
                let merged = match field.map(|field| &field.node) {
                    Some(Node::Map(item)) => self.maps(item, &old, inner)?,
                    _ => self.objects(shape, &old, inner)?,
                };
                match merged {
                    Some(merged) => new.insert(name.to_owned(), Value::Object(merged)),
                    None => new.remove(name),
                };
            }
            Value::Array(items) => {
                let old = new.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
                let merged = match strategy.merge_key {
                    Some("") => merge_values(&old, items),
                    Some(key) => {
                        let shape = field.and_then(|field| self.type_of(&field.node));
                        self.lists(shape, key, &old, items)?
                    }
                    None => items.iter().map(|item| self.clean_value(item)).collect(),
                };
                new.insert(name.to_owned(), Value::Array(merged));
            }
            other => {
                new.insert(name.to_owned(), other.clone());
            }
        }
        Ok(())
    }

    /// What a patch that replaces leaves behind: itself, without directives.
    fn whole(&self, patch: &Map<String, Value>) -> Map<String, Value> {
        let mut whole = self.clean(patch);
        whole.remove(DIRECTIVE);
        whole
    }

    /// Merges two maps, whose values are all of one kind.
    fn maps(
        &self,
        item: &'a Node,
        old: &Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>, MergeError> {
        match directive(patch)? {
            "delete" => return Ok(None),
            "replace" => return Ok(Some(self.whole(patch))),
            _ => {}
        }
        let mut new = old.clone();
        for (key, value) in patch.iter().filter(|(key, _)| *key != DIRECTIVE) {
            match (value, new.get(key).and_then(Value::as_object)) {
                (Value::Null, _) => {
                    new.remove(key);
                }
                (Value::Object(inner), Some(before)) => {
                    match self.objects(self.type_of(item), before, inner)? {
                        Some(merged) => new.insert(key.clone(), Value::Object(merged)),
                        None => new.remove(key),
                    };
                }
                (value, _) => {
                    new.insert(key.clone(), self.clean_value(value));
                }
            }
        }
        Ok(Some(new))
    }

    /// Merges two lists whose items are told apart by `key`.
    fn lists(
        &self,
        shape: Option<&'a Type>,
        key: &'static str,
        old: &[Value],
        patch: &[Value],
    ) -> Result<Vec<Value>, MergeError> {
        let replaces = |item: &Value| {
            item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace")
                && item.get(key).is_none()
        };
        if patch.iter().any(replaces) {
            let kept = patch.iter().filter(|item| !replaces(item));
            return Ok(kept.map(|item| self.clean_value(item)).collect());
        }
        let mut new = old.to_vec();
        for item in patch {
            let Some(fields) = item.as_object() else {
                return Err(MergeError::NoKey { item: item.to_string(), key });
            };
            let Some(wanted) = fields.get(key) else {
                return Err(MergeError::NoKey { item: item.to_string(), key });
            };
            let same = |have: &Value| have.get(key) == Some(wanted);
            if directive(fields)? == "delete" {
                new.retain(|have| !same(have));
                continue;
            }
            let place = new.iter_mut().find(|have| same(have));
            match place {
                Some(have) => {
                    let before = have.as_object().cloned().unwrap_or_default();
                    if let Some(merged) = self.objects(shape, &before, fields)? {
                        *have = Value::Object(merged);
                    }
                }
                None => new.push(self.clean_value(item)),
            }
        }
        Ok(new)
    }

    /// Orders merged lists as `$setElementOrder` says; what it does not name keeps its place
    /// behind the item that stood before it.
    fn reorder(
        &self,
        shape: Option<&Type>,
        patch: &Map<String, Value>,
        new: &mut Map<String, Value>,
    ) -> Result<(), MergeError> {
        for (directive, order) in patch {
            let Some(name) = directive.strip_prefix(ORDER) else { continue };
            let Some(order) = order.as_array() else {
                return Err(MergeError::NotAList(directive.clone()));
            };
            let field = shape.and_then(|shape| shape.field(name));
            let key = field.and_then(|field| field.strategy.merge_key).unwrap_or("");
            let identity = |item: &Value| match key {
                "" => Some(item.clone()),
                key => item.get(key).cloned(),
            };
            let Some(items) = new.get_mut(name).and_then(Value::as_array_mut) else { continue };
            let rank = |item: &Value| {
                let own = identity(item);
                order.iter().position(|wanted| own.is_some() && identity(wanted) == own)
            };
            let mut ranked: Vec<Value> =
                items.iter().filter(|item| rank(item).is_some()).cloned().collect();
            ranked.sort_by_key(|item| rank(item));
            // Items that only the server has follow their old neighbours.
            let mut before: Option<Value> = None;
            let mut result = ranked;
            for item in items.iter() {
                if rank(item).is_none() {
                    let at = before
                        .as_ref()
                        .and_then(|before| result.iter().position(|have| have == before))
                        .map_or(0, |at| at.saturating_add(1));
                    result.insert(at.min(result.len()), item.clone());
                }
                before = Some(item.clone());
            }
            *items = result;
        }
        Ok(())
    }

    /// Drops the fields `$retainKeys` does not name.
    fn retain_keys(
        &self,
        patch: &Map<String, Value>,
        new: &mut Map<String, Value>,
    ) -> Result<(), MergeError> {
        let Some(keys) = patch.get(RETAIN) else { return Ok(()) };
        let Some(keys) = keys.as_array() else {
            return Err(MergeError::NotAList(RETAIN.to_owned()));
        };
        new.retain(|name, _| keys.iter().any(|key| key == name));
        Ok(())
    }

    /// The type of a field's objects, or of a list's or map's items.
    fn type_of(&self, node: &Node) -> Option<&'a Type> {
        match node {
            Node::Object(id) => self.schema.get(*id),
            Node::List(item) | Node::Map(item) => self.type_of(item),
            Node::Scalar(_) | Node::Any => None,
        }
    }

    /// A patch where there was nothing: its values without nulls and directives.
    fn clean(&self, patch: &Map<String, Value>) -> Map<String, Value> {
        patch
            .iter()
            .filter(|(name, value)| {
                !value.is_null()
                    && *name != DIRECTIVE
                    && *name != RETAIN
                    && !name.starts_with(ORDER)
                    && !name.starts_with(DELETE_FROM)
            })
            .map(|(name, value)| (name.clone(), self.clean_value(value)))
            .collect()
    }

    fn clean_value(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => Value::Object(self.clean(fields)),
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .filter(|item| item.get(DIRECTIVE).and_then(Value::as_str) != Some("delete"))
                    .map(|item| self.clean_value(item))
                    .collect(),
            ),
            other => other.clone(),
        }
    }
}

/// Adds the values that are not there yet.
fn merge_values(old: &[Value], patch: &[Value]) -> Vec<Value> {
    let mut new = old.to_vec();
    for item in patch {
        if !new.contains(item) {
            new.push(item.clone());
        }
    }
    new
}

fn delete_values(name: &str, gone: &Value, new: &mut Map<String, Value>) -> Result<(), MergeError> {
    let Some(gone) = gone.as_array() else {
        return Err(MergeError::NotAList(format!("{DELETE_FROM}{name}")));
    };
    if let Some(items) = new.get_mut(name).and_then(Value::as_array_mut) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}
