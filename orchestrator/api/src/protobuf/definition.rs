//! What is special about CustomResourceDefinitions on the wire: schemas that are one thing or
//! another, and fields whose zero means something.
//!
//! *Limits*: read only; definitions are answered as JSON, which every client accepts.

use serde_json::{Map, Value, json};

use super::{Payload, ProtobufError, Reader, fields, numbers};
use crate::schema::{Field, Type};

/// Fields of a schema that are pointers in Go: what is written was said.
const POINTERS: &[&str] = &[
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "optionalOldSelf",
    "x-kubernetes-preserve-unknown-fields",
];

impl Reader {
    /// Reads a field that follows a rule of its own; whether there was one.
    pub(super) fn definition_field(
        &self,
        shape: &'static Type,
        field: &'static Field,
        payload: Payload<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<bool, ProtobufError> {
        let value = match (shape.name.rsplit('.').next(), field.name) {
            (Some("JSONSchemaProps"), "items" | "additionalProperties" | "additionalItems") => {
                let Payload::Bytes(bytes) = payload else {
                    return Err(ProtobufError::Type(field.name));
                };
                self.union(shape, field.name, bytes, depth)?
            }
            (Some("JSONSchemaProps" | "ValidationRule"), name) if POINTERS.contains(&name) => {
                self.value(name, &field.node, payload, depth)?
            }
            (Some("CustomResourceSubresources"), "status") => json!({}),
            _ => return Ok(false),
        };
        object.insert(field.name.to_owned(), value);
        Ok(true)
    }

    /// A schema, several, or a yes or no.
    fn union(
        &self,
        shape: &'static Type,
        name: &'static str,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        let numbers = numbers(shape.name).ok_or(ProtobufError::Type(name))?;
        let schema = |bytes: &[u8]| -> Result<Value, ProtobufError> {
            let mut inner = Map::new();
            self.message(shape, numbers, bytes, &mut inner, depth + 1)?;
            Ok(Value::Object(inner))
        };
        let (mut allows, mut one, mut many) = (false, None, Vec::new());
        for field in fields(bytes) {
            match (field?, name) {
                ((1, Payload::Varint(flag)), _) => allows = flag != 0,
                ((1, Payload::Bytes(inner)), "items") => one = Some(schema(inner)?),
                ((2, Payload::Bytes(inner)), "items") => many.push(schema(inner)?),
                ((2, Payload::Bytes(inner)), _) => one = Some(schema(inner)?),
                _ => {}
            }
        }
        Ok(match one {
            Some(one) => one,
            None if name == "items" => Value::Array(many),
            None => json!(allows),
        })
    }
}
