//! The walk that brings a value into the shape the schema says.

use base64::{DecodeError, Engine as _, engine::general_purpose::STANDARD};
use objects::{MicroTime, Quantity, Time, time::parse_time};
use serde_json::{Value, json};
use thiserror::Error;

use super::Place;
use crate::schema::{Field, Node, Scalar, Schema, Type};

/// A value of another type than the schema says.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum WrongType {
    #[error("json: cannot unmarshal {found} into Go struct field {place} of type {wanted}")]
    Type { place: String, found: &'static str, wanted: &'static str },
    #[error(
        "quantities must match the regular expression \
         '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]+)?$'"
    )]
    Quantity,
    #[error("illegal base64 data at input byte {at}")]
    Base64 { at: usize },
    #[error("parsing time {text:?} as \"{layout}\": cannot parse {text:?} as \"2006\"")]
    Time { text: String, layout: &'static str },
}

/// Shapes a whole object; returns the paths of fields the schema does not know, now dropped.
pub(super) fn walk(
    schema: &Schema,
    root: &Type,
    value: &mut Value,
) -> Result<Vec<String>, WrongType> {
    let mut walker = Walker { schema, unknown: Vec::new(), root: root.name };
    walker.object(root, value, Place::ROOT)?;
    Ok(walker.unknown)
}

struct Walker<'a> {
    schema: &'a Schema,
    unknown: Vec<String>,
    root: &'static str,
}

impl Walker<'_> {
    fn object(
        &mut self,
        shape: &Type,
        value: &mut Value,
        path: Place<'_>,
    ) -> Result<(), WrongType> {
        let found = kind_of(value);
        let Some(fields) = value.as_object_mut() else {
            return Err(self.wrong(path, found, "object"));
        };
        let mut dropped = Vec::new();
        for (name, value) in fields.iter_mut() {
            match shape.field(name) {
                Some(field) => {
                    if value.is_null() {
                        // A null says nothing, so it is as if it were not there.
                        dropped.push(name.clone());
                    } else {
                        self.field(field, value, Place::Field(&path, name))?;
                    }
                }
                None => {
                    self.unknown.push(Place::Field(&path, name).to_string());
                    dropped.push(name.clone());
                }
            }
        }
        for name in dropped {
            fields.remove(&name);
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        value: &mut Value,
        path: Place<'_>,
    ) -> Result<(), WrongType> {
        self.node(&field.node, value, path)
    }

    fn node(&mut self, node: &Node, value: &mut Value, path: Place<'_>) -> Result<(), WrongType> {
        match node {
            Node::Any => Ok(()),
            Node::Scalar(scalar) => {
                if fits(*scalar, value) {
                    return Ok(());
                }
                match shape_scalar(*scalar, value) {
                    Some(shaped) => {
                        *value = shaped;
                        Ok(())
                    }
                    None => Err(self.wrong_scalar(path, *scalar, value)),
                }
            }
            Node::Object(id) => match self.schema.get(*id) {
                Some(_) if value.is_null() => {
                    *value = json!({});
                    Ok(())
                }
                Some(shape) => self.object(shape, value, path),
                None => Ok(()),
            },
            Node::List(item) => {
                let found = kind_of(value);
                let Some(items) = value.as_array_mut() else {
                    return Err(self.wrong(path, found, "list"));
                };
                for (at, value) in items.iter_mut().enumerate() {
                    self.node(item, value, Place::Item(&path, at))?;
                }
                Ok(())
            }
            Node::Map(item) => {
                let found = kind_of(value);
                let Some(fields) = value.as_object_mut() else {
                    return Err(self.wrong(path, found, "map"));
                };
                for (key, value) in fields.iter_mut() {
                    self.node(item, value, Place::Field(&path, key))?;
                }
                Ok(())
            }
        }
    }

    fn wrong(&self, path: Place<'_>, found: &'static str, wanted: &'static str) -> WrongType {
        let root = self.root.rsplit('.').next().unwrap_or(self.root);
        let path = path.to_string();
        let place = if path.is_empty() { root.to_owned() } else { format!("{root}.{path}") };
        WrongType::Type { place, found, wanted }
    }

    /// What is wrong with a single value; texts that stand for something else have words of their
    /// own.
    fn wrong_scalar(&self, path: Place<'_>, scalar: Scalar, value: &Value) -> WrongType {
        let time = |text: &String, layout| WrongType::Time { text: text.clone(), layout };
        match (scalar, value) {
            (Scalar::Quantity, Value::String(_)) => WrongType::Quantity,
            (Scalar::Byte, Value::String(text)) => {
                let at = match STANDARD.decode(text) {
                    Err(
                        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _),
                    ) => at,
                    _ => text.len(),
                };
                WrongType::Base64 { at }
            }
            (Scalar::Time, Value::String(text)) => time(text, "2006-01-02T15:04:05Z07:00"),
            (Scalar::MicroTime, Value::String(text)) => {
                time(text, "2006-01-02T15:04:05.000000Z07:00")
            }
            _ => self.wrong(path, kind_of(value), scalar_name(scalar)),
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn scalar_name(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::String => "string",
        Scalar::Byte => "base64 text",
        Scalar::Boolean => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 | Scalar::Integer => "int64",
        Scalar::Number => "float64",
        Scalar::Time | Scalar::MicroTime => "time",
        Scalar::Quantity => "quantity",
        Scalar::IntOrString => "intstr.IntOrString",
    }
}

/// Is the value in its one form already? Most are; `false` means that it must be looked at.
fn fits(scalar: Scalar, value: &Value) -> bool {
    match (scalar, value) {
        (Scalar::String | Scalar::IntOrString, Value::String(_))
        | (Scalar::Boolean, Value::Bool(_))
        | (Scalar::Number, Value::Number(_)) => true,
        (Scalar::Int32, Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
        }
        (Scalar::Int64 | Scalar::Integer, Value::Number(number)) => number.is_i64(),
        _ => false,
    }
}

/// The one form of a value; `None` when it is of another type. A null is the type's zero.
fn shape_scalar(scalar: Scalar, value: &Value) -> Option<Value> {
    match scalar {
        Scalar::String => match value {
            Value::String(_) => Some(value.clone()),
            Value::Null => Some(json!("")),
            _ => None,
        },
        Scalar::Byte => match value {
            Value::String(text) => STANDARD.decode(text).ok().map(|_| value.clone()),
            Value::Null => Some(json!("")),
            _ => None,
        },
        Scalar::Boolean => match value {
            Value::Bool(_) => Some(value.clone()),
            Value::Null => Some(json!(false)),
            _ => None,
        },
        Scalar::Int32 => whole(value).filter(|n| i32::try_from(*n).is_ok()).map(Value::from),
        Scalar::Int64 | Scalar::Integer => whole(value).map(Value::from),
        Scalar::Number => match value {
            Value::Number(_) => Some(value.clone()),
            _ => None,
        },
        Scalar::Time => match value {
            Value::String(text) => parse_time(text).map(|at| json!(Time::from(at).to_string())),
            _ => None,
        },
        Scalar::MicroTime => match value {
            Value::String(text) => {
                parse_time(text).map(|at| json!(MicroTime::from(at).to_string()))
            }
            _ => None,
        },
        Scalar::Quantity => match value {
            Value::String(text) => text.parse::<Quantity>().ok().map(|q| json!(q.to_string())),
            Value::Number(number) => {
                number.to_string().parse::<Quantity>().ok().map(|q| json!(q.to_string()))
            }
            Value::Null => Some(json!("0")),
            _ => None,
        },
        Scalar::IntOrString => match value {
            Value::String(_) => Some(value.clone()),
            _ => whole(value).filter(|n| i32::try_from(*n).is_ok()).map(Value::from),
        },
    }
}

/// A whole number, also when it is written `3.0`.
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::Number(number) => number.as_i64().or_else(|| {
            let text = number.to_string();
            text.strip_suffix(".0")?.parse().ok()
        }),
        _ => None,
    }
}
