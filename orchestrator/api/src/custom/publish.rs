//! The schema of a version as others read it: the arena of server-side apply, and OpenAPI.

use objects::field::Fields as _;
use objects::{Kind, intern::intern};
use serde_json::{Map, Value, json};

use super::structural::{Additional, ListType, Structural};
use crate::{
    json::put,
    schema::{Field, ListKind, Node, Scalar, Schema, Strategy, Type, TypeId, builtin},
};

/// The type of metadata in the built-in table.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Keywords that OpenAPI version 2 does not have; old kubectl would trip over them.
const NOT_IN_V2: &[&str] = &["nullable", "oneOf", "anyOf", "not", "default"];

/// What the fields every object has are.
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an \
    object. Servers convert recognized schemas to the latest internal value, and may reject \
    unrecognized values.";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. \
    Servers infer it from the endpoint the client submits requests to; it cannot be updated.";
const METADATA: &str = "Standard object's metadata.";

/// The arena server-side apply walks for a version.
pub(super) fn arena(structural: &Structural, kind: &Kind) -> (Schema, TypeId) {
    let mut schema = Schema::open();
    let metadata = copy(&mut schema, OBJECT_META);
    let mut root = object(&mut schema, structural, metadata);
    root.name = intern(kind.kind);
    let mut set = |name: &'static str, node: Node| {
        root.fields.retain(|field| field.name != name);
        root.fields.push(field(name, node, ListKind::Atomic, false));
    };
    set("apiVersion", Node::Scalar(Scalar::String));
    set("kind", Node::Scalar(Scalar::String));
    if let Some(metadata) = metadata {
        set("metadata", Node::Object(metadata));
    }
    root.fields.sort_by_key(|field| field.name);
    let root = schema.add(root);
    (schema, root)
}

/// Copies a built-in type and all it refers to.
fn copy(schema: &mut Schema, name: &'static str) -> Option<TypeId> {
    if let Some(known) = schema.named(name) {
        return Some(known);
    }
    let source = builtin().get(builtin().named(name)?)?;
    let mut made = source.clone();
    made.fields.clear();
    made.gvks.clear();
    // The place is taken first, so that types may refer to each other.
    let id = schema.add(made);
    let mut fields = source.fields.clone();
    for field in &mut fields {
        translate(schema, &mut field.node);
    }
    if let Some(made) = schema.get_mut(id) {
        made.fields = fields;
    }
    Some(id)
}

fn translate(schema: &mut Schema, node: &mut Node) {
    match node {
        Node::Object(id) => {
            let name = builtin().get(*id).map(|one| one.name);
            *node = name.and_then(|name| copy(schema, name)).map_or(Node::Any, Node::Object);
        }
        Node::List(inner) | Node::Map(inner) => translate(schema, inner),
        Node::Scalar(_) | Node::Any => {}
    }
}

fn field(name: &'static str, node: Node, list: ListKind, atomic: bool) -> Field {
    Field { name, about: "", required: false, node, list, atomic, strategy: Strategy::default() }
}

fn object(schema: &mut Schema, shape: &Structural, metadata: Option<TypeId>) -> Type {
    let mut fields = Vec::new();
    for (name, inner) in &shape.properties {
        let node = node(schema, inner, metadata);
        let list = match &inner.list {
            ListType::Atomic => ListKind::Atomic,
            ListType::Set => ListKind::Set,
            ListType::Map(keys) => ListKind::Map(keys.iter().map(|key| intern(key)).collect()),
        };
        fields.push(field(intern(name), node, list, inner.atomic));
    }
    if let (true, Some(metadata)) = (shape.embedded, metadata) {
        fields.retain(|field| field.name != "metadata");
        fields.push(field("metadata", Node::Object(metadata), ListKind::Atomic, false));
    }
    fields.sort_by_key(|field| field.name);
    let mut made = Type::blank();
    made.atomic = shape.atomic;
    made.fields = fields;
    made
}

fn node(schema: &mut Schema, shape: &Structural, metadata: Option<TypeId>) -> Node {
    if shape.int_or_string {
        return Node::Scalar(Scalar::IntOrString);
    }
    match shape.kind.as_str() {
        "array" => {
            let items = shape.items.as_deref();
            Node::List(Box::new(items.map_or(Node::Any, |one| node(schema, one, metadata))))
        }
        "object" => match &shape.additional {
            Additional::Schema(inner) => Node::Map(Box::new(node(schema, inner, metadata))),
            Additional::Open => Node::Map(Box::new(Node::Any)),
            Additional::None if shape.properties.is_empty() && !shape.embedded => {
                Node::Map(Box::new(Node::Any))
            }
            Additional::None => {
                let made = object(schema, shape, metadata);
                Node::Object(schema.add(made))
            }
        },
        "string" => Node::Scalar(Scalar::String),
        "boolean" => Node::Scalar(Scalar::Boolean),
        "integer" => Node::Scalar(Scalar::Integer),
        "number" => Node::Scalar(Scalar::Number),
        _ => Node::Any,
    }
}

/// The schema as OpenAPI version 3 says it: what every object has beside what the definition says.
pub(super) fn openapi(source: &Value, kind: &Kind, version: &str) -> Value {
    let mut shape = source.clone();
    let preserve = source.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
    if preserve && source.get("properties").is_none() {
        // Nothing is known of it, so nothing may be held against it either.
        let mut bare = Map::new();
        for key in ["description", "x-kubernetes-preserve-unknown-fields"] {
            if let Some(value) = source.get(key) {
                bare.insert(key.to_owned(), value.clone());
            }
        }
        shape = Value::Object(bare);
    }
    put(&mut shape, "type", json!("object"));
    let properties = shape
        .as_object_mut()
        .map(|shape| shape.entry("properties").or_insert_with(|| json!({})))
        .and_then(Value::as_object_mut);
    if let Some(properties) = properties {
        properties
            .insert("apiVersion".to_owned(), json!({"type": "string", "description": API_VERSION}));
        properties.insert("kind".to_owned(), json!({"type": "string", "description": KIND}));
        let reference = json!({
            "allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}],
            "description": METADATA,
        });
        properties.insert("metadata".to_owned(), reference);
    }
    put(
        &mut shape,
        "x-kubernetes-group-version-kind",
        json!([{"group": kind.group, "version": version, "kind": kind.kind}]),
    );
    shape
}

/// The schema in a dialect of OpenAPI.
pub(super) fn dialect(published: &Value, v2: bool) -> Value {
    let mut shape = published.clone();
    if v2 {
        to_v2(&mut shape);
        if let Some(metadata) = shape.field_mut("properties.metadata") {
            *metadata = json!({
                "$ref": format!("#/definitions/{OBJECT_META}"), "description": METADATA,
            });
        }
    }
    shape
}

fn to_v2(shape: &mut Value) {
    let Some(fields) = shape.as_object_mut() else { return };
    let free = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true))
        || fields.get("x-kubernetes-int-or-string") == Some(&json!(true))
        || fields.get("nullable") == Some(&json!(true));
    let is_root = fields.contains_key("x-kubernetes-group-version-kind");
    if free && !is_root {
        // Version 2 cannot say "this or something else", so it says nothing.
        for key in ["type", "items", "properties", "additionalProperties", "format"] {
            fields.remove(key);
        }
    }
    for key in NOT_IN_V2 {
        fields.remove(*key);
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(to_v2);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(key) {
            to_v2(inner);
        }
    }
    if let Some(all) = fields.get_mut("allOf").and_then(Value::as_array_mut) {
        all.iter_mut().for_each(to_v2);
    }
}
