//! The tree of a structural schema.
//!
//! What the definition's check let through is read here; a keyword that is not understood is none.

use std::{collections::BTreeMap, sync::Arc};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::rules::Rule;

/// Deeper schemas are cut off; requests are not nested deeper either.
const DEPTH_MAX: usize = 100;

/// A part of a schema: what may stand at a place of an object.
#[derive(Debug, Clone, Default)]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number` or `boolean`; empty when unsaid.
    pub(crate) kind: String,
    pub(crate) nullable: bool,
    pub(crate) int_or_string: bool,
    pub(crate) preserve: bool,
    pub(crate) embedded: bool,
    pub(crate) properties: BTreeMap<String, Structural>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<Box<Structural>>,
    pub(crate) default: Option<Value>,
    pub(crate) list: ListType,
    /// Is an object one value to server-side apply?
    pub(crate) atomic: bool,
    pub(crate) required: Vec<String>,
    pub(crate) allowed: Vec<Value>,
    pub(crate) format: String,
    pub(crate) pattern: Option<(String, Regex)>,
    pub(crate) limits: Limits,
    pub(crate) all_of: Vec<Structural>,
    pub(crate) any_of: Vec<Structural>,
    pub(crate) one_of: Vec<Structural>,
    pub(crate) not: Option<Box<Structural>>,
    pub(crate) rules: Vec<Value>,
    /// The rules compiled, once the schema is in use.
    pub(crate) compiled: Arc<Vec<Rule>>,
}

/// What `additionalProperties` says.
#[derive(Debug, Clone, Default)]
pub(crate) enum Additional {
    /// Nothing: only known properties.
    #[default]
    None,
    /// Anything.
    Open,
    /// Values of this shape.
    Schema(Box<Structural>),
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// Sizes and ranges.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,
    pub(crate) above: bool,
    pub(crate) below: bool,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) length_min: Option<u64>,
    pub(crate) length_max: Option<u64>,
    pub(crate) items_min: Option<u64>,
    pub(crate) items_max: Option<u64>,
    pub(crate) unique: bool,
    pub(crate) properties_min: Option<u64>,
    pub(crate) properties_max: Option<u64>,
}

impl Structural {
    /// Reads a schema.
    #[must_use]
    pub fn read(schema: &Value) -> Self {
        let empty = Map::new();
        read(schema.as_object().unwrap_or(&empty), 0)
    }

    /// Is there a default anywhere?
    pub(crate) fn has_defaults(&self) -> bool {
        self.default.is_some()
            || self.properties.values().any(Self::has_defaults)
            || self.items.as_ref().is_some_and(|items| items.has_defaults())
            || matches!(&self.additional, Additional::Schema(inner) if inner.has_defaults())
    }

    /// The shape of values whose names nobody knows.
    pub(crate) fn additional_schema(&self) -> Option<&Self> {
        match &self.additional {
            Additional::Schema(inner) => Some(inner),
            Additional::None | Additional::Open => None,
        }
    }

    /// The same, to be completed.
    pub(crate) fn additional_schema_mut(&mut self) -> Option<&mut Self> {
        match &mut self.additional {
            Additional::Schema(inner) => Some(inner),
            Additional::None | Additional::Open => None,
        }
    }

    /// Are unknown fields kept here?
    pub(crate) fn keeps_unknown(&self) -> bool {
        self.preserve || matches!(self.additional, Additional::Open)
    }
}

fn read(schema: &Map<String, Value>, depth: usize) -> Structural {
    let flag = |key: &str| schema.get(key) == Some(&json!(true));
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let inner = |value: &Value| {
        let depth = depth.saturating_add(1);
        value.as_object().filter(|_| depth < DEPTH_MAX).map(|schema| read(schema, depth))
    };
    let list = |key: &str| -> Vec<Structural> {
        let all = schema.get(key).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(inner).collect()
    };
    let texts = |key: &str| -> Vec<String> {
        let all = schema.get(key).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = match schema.get("additionalProperties") {
        Some(Value::Bool(true)) => Additional::Open,
        Some(value) => {
            inner(value).map_or(Additional::None, |one| Additional::Schema(Box::new(one)))
        }
        None => Additional::None,
    };
    Structural {
        kind: text("type"),
        nullable: flag("nullable"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        preserve: flag("x-kubernetes-preserve-unknown-fields"),
        embedded: flag("x-kubernetes-embedded-resource"),
        properties: properties
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), inner(value)?)))
            .collect(),
        additional,
        items: schema.get("items").and_then(inner).map(Box::new),
        default: schema.get("default").cloned(),
        list: match text("x-kubernetes-list-type").as_str() {
            "set" => ListType::Set,
            "map" => ListType::Map(texts("x-kubernetes-list-map-keys")),
            _ => ListType::Atomic,
        },
        atomic: text("x-kubernetes-map-type") == "atomic",
        required: texts("required"),
        allowed: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        format: text("format"),
        pattern: schema
            .get("pattern")
            .and_then(Value::as_str)
            .and_then(|pattern| Some((pattern.to_owned(), Regex::new(pattern).ok()?))),
        limits: limits(schema),
        all_of: list("allOf"),
        any_of: list("anyOf"),
        one_of: list("oneOf"),
        not: schema.get("not").and_then(inner).map(Box::new),
        rules: schema
            .get("x-kubernetes-validations")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default(),
        compiled: Arc::default(),
    }
}

fn limits(schema: &Map<String, Value>) -> Limits {
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let count = |key: &str| schema.get(key).and_then(Value::as_u64);
    let flag = |key: &str| schema.get(key) == Some(&json!(true));
    Limits {
        minimum: number("minimum"),
        maximum: number("maximum"),
        above: flag("exclusiveMinimum"),
        below: flag("exclusiveMaximum"),
        multiple_of: number("multipleOf"),
        length_min: count("minLength"),
        length_max: count("maxLength"),
        items_min: count("minItems"),
        items_max: count("maxItems"),
        unique: flag("uniqueItems"),
        properties_min: count("minProperties"),
        properties_max: count("maxProperties"),
    }
}
