//! Walks over two objects at once, led by the schema: compare, merge, list, remove.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::set::{Path, Set};
use crate::schema::{Field, ListKind, Node, Schema, Type};

/// What changed between two objects.
#[derive(Debug, Default)]
pub(super) struct Diff {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

/// An item of a keyed list has none of its keys.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{place}: element {at}: associative list with keys has an element that omits key field")]
pub(super) struct MissingKey {
    place: String,
    at: usize,
}

/// How a value is taken apart.
#[derive(Debug, Clone, Copy)]
enum Shape<'a> {
    /// Not at all.
    Leaf,
    /// By known fields.
    Struct(&'a Type),
    /// By keys, all values alike.
    Map(&'a Node),
    /// By keys, and what is below them likewise: nobody has said what it is.
    Free,
    /// By value.
    Set,
    /// By these fields of the items.
    Keyed(&'a [&'static str], Option<&'a Type>),
}

pub(super) struct Walker<'a> {
    schema: &'a Schema,
}

/// A part of a value: the step to it, its shape, and the part.
type Part<'a, 'v> = (String, Shape<'a>, &'v Value);

impl<'a> Walker<'a> {
    pub(super) fn new(schema: &'a Schema) -> Self {
        Self { schema }
    }

    /// What changed from `old` to `new`.
    pub(super) fn compare(&self, root: &'a Type, old: &Value, new: &Value) -> Diff {
        let mut diff = Diff::default();
        self.compare_at(Shape::Struct(root), Some(old), Some(new), &mut Vec::new(), &mut diff);
        diff
    }

    fn compare_at(
        &self,
        shape: Shape<'a>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Path,
        diff: &mut Diff,
    ) {
        match (old, new) {
            (None, None) => return,
            (None, Some(_)) => diff.added.insert(path),
            (Some(_), None) => diff.removed.insert(path),
            (Some(old), Some(new)) if old == new => return,
            (Some(_), Some(_)) => {}
        }
        let (before, after) = (self.parts(shape, old), self.parts(shape, new));
        let (Some(before), Some(after)) = (before, after) else {
            if old.is_some() && new.is_some() {
                diff.modified.insert(path);
            }
            return;
        };
        let mut steps: BTreeMap<String, (Shape<'a>, Option<&Value>, Option<&Value>)> =
            BTreeMap::new();
        for (step, shape, value) in before {
            steps.insert(step, (shape, Some(value), None));
        }
        for (step, shape, value) in after {
            steps.entry(step).or_insert((shape, None, None)).2 = Some(value);
        }
        for (step, (shape, old, new)) in steps {
            path.push(step);
            self.compare_at(shape, old, new, path, diff);
            path.pop();
        }
    }

    /// The fields an applied configuration says.
    pub(super) fn fields(&self, root: &'a Type, value: &Value) -> Set {
        let mut set = Set::default();
        self.fields_at(Shape::Struct(root), value, &mut Vec::new(), &mut set);
        set
    }

    fn fields_at(&self, shape: Shape<'a>, value: &Value, path: &mut Path, set: &mut Set) {
        let Some(parts) = self.parts(shape, Some(value)) else {
            set.insert(path);
            return;
        };
        if parts.is_empty() {
            set.insert(path);
        }
        let named = matches!(shape, Shape::Struct(_));
        for (step, shape, value) in parts {
            path.push(step);
            if !named {
                set.insert(path);
            }
            self.fields_at(shape, value, path, set);
            path.pop();
        }
    }

    /// The stored object with what is applied over it.
    pub(super) fn merge(&self, root: &'a Type, old: &Value, applied: &Value) -> Value {
        self.merge_at(Shape::Struct(root), Some(old), applied)
    }

    fn merge_at(&self, shape: Shape<'a>, old: Option<&Value>, applied: &Value) -> Value {
        let Some(parts) = self.parts(shape, Some(applied)) else { return applied.clone() };
        let before = self.parts(shape, old).unwrap_or_default();
        if applied.is_array() {
            let mut items: Vec<(String, Value)> =
                before.iter().map(|(step, _, value)| (step.clone(), (*value).clone())).collect();
            for (step, shape, value) in parts {
                match items.iter_mut().find(|(have, _)| *have == step) {
                    Some((_, have)) => *have = self.merge_at(shape, Some(&have.clone()), value),
                    None => items.push((step, value.clone())),
                }
            }
            return Value::Array(items.into_iter().map(|(_, value)| value).collect());
        }
        let mut fields = old.and_then(Value::as_object).cloned().unwrap_or_default();
        for (step, shape, value) in parts {
            let name = step.strip_prefix("f:").unwrap_or(&step).to_owned();
            let merged = self.merge_at(shape, fields.get(&name), value);
            fields.insert(name, merged);
        }
        Value::Object(fields)
    }

    /// Removes the field at a path; what is not there is not missed.
    pub(super) fn remove(&self, root: &'a Type, value: &mut Value, path: &[String]) {
        self.remove_at(Shape::Struct(root), value, path);
    }

    fn remove_at(&self, shape: Shape<'a>, value: &mut Value, path: &[String]) {
        let Some((step, rest)) = path.split_first() else { return };
        if let Some(items) = value.as_array_mut() {
            let (keys, inner) = match shape {
                Shape::Keyed(keys, inner) => (keys, inner),
                Shape::Set => (&[] as &[&str], None),
                Shape::Leaf | Shape::Struct(_) | Shape::Map(_) | Shape::Free => return,
            };
            let at = items.iter().position(|item| item_step(keys, item).as_ref() == Some(step));
            let Some(at) = at else { return };
            if rest.is_empty() {
                items.remove(at);
            } else if let (Some(item), Some(inner)) = (items.get_mut(at), inner) {
                self.remove_at(Shape::Struct(inner), item, rest);
            }
            return;
        }
        let Some(fields) = value.as_object_mut() else { return };
        let name = step.strip_prefix("f:").unwrap_or(step);
        if rest.is_empty() {
            fields.remove(name);
            return;
        }
        let inner = match shape {
            Shape::Struct(one) => match one.field(name) {
                Some(field) => self.field_shape(field),
                None => self.unknown(),
            },
            Shape::Map(node) => self.node_shape(node),
            Shape::Free => Shape::Free,
            Shape::Leaf | Shape::Set | Shape::Keyed(..) => return,
        };
        if let Some(value) = fields.get_mut(name) {
            self.remove_at(inner, value, rest);
        }
    }

    /// Every item of a keyed list must have a key.
    pub(super) fn check_keys(&self, root: &'a Type, value: &Value) -> Result<(), MissingKey> {
        self.check_keys_at(Shape::Struct(root), value, "")
    }

    fn check_keys_at(
        &self,
        shape: Shape<'a>,
        value: &Value,
        place: &str,
    ) -> Result<(), MissingKey> {
        if let (Shape::Keyed(keys, _), Some(items)) = (shape, value.as_array())
            && let Some(at) = items.iter().position(|item| item_step(keys, item).is_none())
        {
            return Err(MissingKey { place: place.to_owned(), at });
        }
        for (step, shape, value) in self.parts(shape, Some(value)).unwrap_or_default() {
            let name = step.split_at_checked(2).map_or("", |(_, name)| name);
            self.check_keys_at(shape, value, &format!("{place}.{name}"))?;
        }
        Ok(())
    }

    /// Takes a value apart; `None` when it is one piece.
    fn parts<'v>(&self, shape: Shape<'a>, value: Option<&'v Value>) -> Option<Vec<Part<'a, 'v>>> {
        let Some(value) = value else {
            return if matches!(shape, Shape::Leaf) { None } else { Some(Vec::new()) };
        };
        match (shape, value) {
            (Shape::Struct(one), Value::Object(fields)) => Some(
                fields
                    .iter()
                    .map(|(name, value)| {
                        let shape = one.field(name).map_or(self.unknown(), |f| self.field_shape(f));
                        (format!("f:{name}"), shape, value)
                    })
                    .collect(),
            ),
            (Shape::Map(node), Value::Object(fields)) => Some(
                fields
                    .iter()
                    .map(|(name, value)| (format!("f:{name}"), self.node_shape(node), value))
                    .collect(),
            ),
            (Shape::Free, Value::Object(fields)) => Some(
                fields
                    .iter()
                    .map(|(name, value)| (format!("f:{name}"), Shape::Free, value))
                    .collect(),
            ),
            (Shape::Set, Value::Array(items)) => Some(
                items
                    .iter()
                    .filter_map(|item| Some((item_step(&[], item)?, Shape::Leaf, item)))
                    .collect(),
            ),
            (Shape::Keyed(keys, inner), Value::Array(items)) => Some(
                items
                    .iter()
                    .filter_map(|item| {
                        let shape = inner.map_or(Shape::Leaf, Shape::Struct);
                        Some((item_step(keys, item)?, shape, item))
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// How that is taken apart which the schema says nothing of.
    fn unknown(&self) -> Shape<'a> {
        if self.schema.is_open() { Shape::Free } else { Shape::Leaf }
    }

    fn field_shape(&self, field: &'a Field) -> Shape<'a> {
        if field.atomic {
            return Shape::Leaf;
        }
        match (&field.node, &field.list) {
            (Node::List(_), ListKind::Set) => Shape::Set,
            (Node::List(item), ListKind::Map(keys)) => match &**item {
                Node::Object(id) => Shape::Keyed(keys, self.schema.get(*id)),
                _ => Shape::Leaf,
            },
            (node, _) => self.node_shape(node),
        }
    }

    fn node_shape(&self, node: &'a Node) -> Shape<'a> {
        match node {
            Node::Object(id) => match self.schema.get(*id) {
                Some(one) if !one.atomic => Shape::Struct(one),
                _ => Shape::Leaf,
            },
            Node::Map(inner) => Shape::Map(inner),
            Node::Any => self.unknown(),
            Node::Scalar(_) | Node::List(_) => Shape::Leaf,
        }
    }
}

/// The step to a list's item: by its keys, or by its value when there are none.
fn item_step(keys: &[&str], item: &Value) -> Option<String> {
    if keys.is_empty() {
        return Some(format!("v:{item}"));
    }
    let mut found = Map::new();
    for key in keys {
        match item.get(*key) {
            Some(value) => {
                found.insert((*key).to_owned(), value.clone());
            }
            // The one key with a default: a port without a protocol is TCP.
            None if *key == "protocol" => {
                found.insert((*key).to_owned(), json!("TCP"));
            }
            None => {}
        }
    }
    let named = keys.iter().any(|key| *key != "protocol" && found.contains_key(*key));
    named.then(|| format!("k:{}", Value::Object(found)))
}
