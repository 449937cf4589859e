//! OpenAPI documents, version 2 for old clients and version 3 for new ones, from the same walk.
//!
//! kubectl looks for three things: which parameters the PATCH of a kind takes (`dryRun`,
//! `fieldValidation`), which media types it takes, and how the kind is shaped.

use std::collections::BTreeSet;

use objects::Kind;
use serde_json::{Map, Value, json};

use super::discovery::{group_versions, kinds_in, root_path, subresource};
use super::entry::{Sink, info};
use crate::custom::Registry;
use crate::json::put;
use crate::schema::{Field, ListKind, Node, Scalar, Schema, Strategy, Type, about, builtin};

/// The kinds of patch.
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Types whose open fields are any JSON.
const ANY_JSON: &str = "io.k8s.apiextensions-apiserver.";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Query parameters: name, type.
const LIST_PARAMETERS: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("force", "boolean"),
];
const DELETE_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// Which dialect is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// The whole API in version 2.
pub(super) fn v2(registry: &Registry, sink: &mut dyn Sink) {
    let mut known = Map::new();
    let mut told = BTreeSet::new();
    let mut tell = |paths: Map<String, Value>, known: &mut Map<String, Value>| {
        paths.iter().for_each(|(path, item)| sink.path(path, item));
        for (name, shape) in known.iter_mut() {
            // The name stays, so that no group makes the type again.
            let shape = shape.take();
            if !shape.is_null() && told.insert(name.clone()) {
                sink.definition(name, &shape);
            }
        }
    };
    for (group, version) in group_versions(registry) {
        let mut paths = Map::new();
        add_group(registry, Dialect::V2, (group, version), &mut paths, &mut known);
        tell(paths, &mut known);
    }
    for remote in registry.remotes() {
        let mut paths = Map::new();
        crate::remote::merge_v2(remote, &mut paths, &mut known);
        tell(paths, &mut known);
    }
}

/// One group-version in version 3.
pub(super) fn v3(registry: &Registry, group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    add_group(registry, Dialect::V3, (group, version), &mut paths, &mut schemas);
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn add_group(
    registry: &Registry,
    dialect: Dialect,
    (group, version): (&str, &str),
    paths: &mut Map<String, Value>,
    schemas: &mut Map<String, Value>,
) {
    let mut wanted: Vec<&str> = vec![DELETE_OPTIONS, STATUS, LIST_META];
    for kind in kinds_in(registry, group, version) {
        if let Some(custom) = registry.custom(group, version, kind.plural) {
            let name = custom.definition_name();
            wanted.extend(["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]);
            if kind.has_subresource("scale") {
                wanted.push("io.k8s.api.autoscaling.v1.Scale");
            }
            add_kind(dialect, group, version, kind, &name, paths);
            schemas.insert(list_name(&name), list_schema(dialect, group, version, kind, &name));
            schemas.insert(name, custom.publish(dialect == Dialect::V2));
            continue;
        }
        let Some(root) = builtin().root(group, version, kind.kind) else { continue };
        wanted.push(root.name);
        add_kind(dialect, group, version, kind, root.name, paths);
        schemas.insert(list_name(root.name), list_schema(dialect, group, version, kind, root.name));
        for name in kind.subresources {
            let ((sub_group, sub_version, sub_kind), _) = subresource(kind, name);
            if let Some(shape) = builtin().root(sub_group, sub_version, sub_kind) {
                wanted.push(shape.name);
            }
        }
    }
    add_schemas(dialect, builtin(), wanted, schemas);
}

/// The name of the list of a kind.
fn list_name(name: &str) -> String {
    format!("{name}List")
}

fn reference(dialect: Dialect, name: &str) -> Value {
    match dialect {
        Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
        Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

/// A reference that other words may stand beside.
fn open_reference(dialect: Dialect, name: &str) -> Value {
    match dialect {
        Dialect::V2 => reference(dialect, name),
        Dialect::V3 => json!({"allOf": [reference(dialect, name)]}),
    }
}

fn list_schema(dialect: Dialect, group: &str, version: &str, kind: &Kind, name: &str) -> Value {
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": open_reference(dialect, LIST_META),
            "items": {"type": "array", "items": open_reference(dialect, name)},
        },
        "x-kubernetes-group-version-kind": [
            {"group": group, "version": version, "kind": crate::list::list_kind(kind)},
        ],
    })
}

/// Adds types and all they refer to.
fn add_schemas(
    dialect: Dialect,
    schema: &Schema,
    wanted: Vec<&str>,
    schemas: &mut Map<String, Value>,
) {
    let mut open: Vec<&Type> =
        schema.types().iter().filter(|one| wanted.contains(&one.name)).collect();
    let mut scalars = BTreeSet::new();
    while let Some(one) = open.pop() {
        if schemas.contains_key(one.name) {
            continue;
        }
        schemas.insert(one.name.to_owned(), render_type(dialect, schema, one));
        for field in &one.fields {
            let mut node = &field.node;
            while let Node::List(inner) | Node::Map(inner) = node {
                node = inner;
            }
            match node {
                Node::Object(id) => open.extend(schema.get(*id)),
                Node::Scalar(scalar) => scalars.extend(scalar_definition(dialect, *scalar)),
                Node::Any | Node::List(_) | Node::Map(_) => {}
            }
        }
    }
    for (name, text) in scalars {
        if let Ok(shape) = serde_json::from_str(text) {
            schemas.insert(name.to_owned(), shape);
        }
    }
}

fn render_type(dialect: Dialect, schema: &Schema, one: &Type) -> Value {
    let mut shape = json!({"type": "object"});
    let said = if one.about.is_empty() { about(one.name, "") } else { one.about };
    if !said.is_empty() {
        put(&mut shape, "description", json!(said));
    }
    let fields: Map<String, Value> = one
        .fields
        .iter()
        .map(|field| {
            let mut shape = render_field(dialect, schema, field);
            let said = about(one.name, field.name);
            if field.about.is_empty() && !said.is_empty() {
                put(&mut shape, "description", json!(said));
            }
            // What definitions say of defaults and examples is any JSON, not just objects.
            let any = matches!(field.node, Node::Any) && one.name.starts_with(ANY_JSON);
            if let Some(said) = shape.as_object_mut().filter(|_| any) {
                said.remove("type");
            } else if any_items(field) && one.name.starts_with(ANY_JSON) {
                put(&mut shape, "items", json!({}));
            }
            (field.name.to_owned(), shape)
        })
        .collect();
    if !fields.is_empty() {
        put(&mut shape, "properties", Value::Object(fields));
    }
    let required: Vec<&str> =
        one.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    if !required.is_empty() {
        put(&mut shape, "required", json!(required));
    }
    if one.atomic {
        put(&mut shape, "x-kubernetes-map-type", json!("atomic"));
    }
    if !one.gvks.is_empty() {
        let gvks = one.gvks.iter();
        let gvks: Vec<Value> = gvks
            .map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind}))
            .collect();
        put(&mut shape, "x-kubernetes-group-version-kind", json!(gvks));
    }
    shape
}

/// Is it a list of anything?
fn any_items(field: &Field) -> bool {
    matches!(&field.node, Node::List(inner) if matches!(**inner, Node::Any))
}

fn render_field(dialect: Dialect, schema: &Schema, field: &Field) -> Value {
    let mut shape = render_node(dialect, schema, &field.node);
    if !field.about.is_empty() {
        put(&mut shape, "description", json!(field.about));
    }
    match &field.list {
        ListKind::Set => put(&mut shape, "x-kubernetes-list-type", json!("set")),
        ListKind::Map(keys) => {
            put(&mut shape, "x-kubernetes-list-type", json!("map"));
            put(&mut shape, "x-kubernetes-list-map-keys", json!(keys));
        }
        ListKind::Atomic if matches!(field.node, Node::List(_)) => {
            put(&mut shape, "x-kubernetes-list-type", json!("atomic"));
        }
        ListKind::Atomic => {}
    }
    if field.atomic {
        put(&mut shape, "x-kubernetes-map-type", json!("atomic"));
    }
    let strategy = strategy_text(field.strategy);
    if !strategy.is_empty() {
        put(&mut shape, "x-kubernetes-patch-strategy", json!(strategy));
    }
    if let Some(key) = field.strategy.merge_key.filter(|key| !key.is_empty()) {
        put(&mut shape, "x-kubernetes-patch-merge-key", json!(key));
    }
    shape
}

fn strategy_text(strategy: Strategy) -> String {
    let mut words = Vec::new();
    if strategy.merge_key.is_some() {
        words.push("merge");
    }
    if strategy.retain_keys {
        words.push("retainKeys");
    }
    if strategy.replace {
        words.push("replace");
    }
    words.join(",")
}

fn render_node(dialect: Dialect, schema: &Schema, node: &Node) -> Value {
    match node {
        Node::Any => json!({"type": "object"}),
        Node::Scalar(scalar) => render_scalar(dialect, *scalar),
        Node::Object(id) => match schema.get(*id) {
            Some(one) => open_reference(dialect, one.name),
            None => json!({"type": "object"}),
        },
        Node::List(item) => json!({"type": "array", "items": render_node(dialect, schema, item)}),
        Node::Map(item) => json!({
            "type": "object", "additionalProperties": render_node(dialect, schema, item),
        }),
    }
}

fn render_scalar(dialect: Dialect, scalar: Scalar) -> Value {
    match scalar {
        Scalar::String => json!({"type": "string"}),
        Scalar::Byte => json!({"type": "string", "format": "byte"}),
        Scalar::Boolean => json!({"type": "boolean"}),
        Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
        Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
        Scalar::Integer => json!({"type": "integer"}),
        Scalar::Number => json!({"type": "number", "format": "double"}),
        named => match scalar_definition(dialect, named) {
            Some((name, _)) => open_reference(dialect, name),
            None => json!({"type": "string"}),
        },
    }
}

/// The definition of a scalar that has a name of its own.
fn scalar_definition(dialect: Dialect, scalar: Scalar) -> Option<(&'static str, &'static str)> {
    let v2 = dialect == Dialect::V2;
    Some(match scalar {
        Scalar::Time => (
            "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
            r#"{"type":"string","format":"date-time"}"#,
        ),
        Scalar::MicroTime => (
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
            r#"{"type":"string","format":"date-time"}"#,
        ),
        Scalar::Quantity if v2 => {
            ("io.k8s.apimachinery.pkg.api.resource.Quantity", r#"{"type":"string"}"#)
        }
        Scalar::Quantity => (
            "io.k8s.apimachinery.pkg.api.resource.Quantity",
            r#"{"oneOf":[{"type":"string"},{"type":"number"}]}"#,
        ),
        Scalar::IntOrString if v2 => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
            r#"{"type":"string","format":"int-or-string"}"#,
        ),
        Scalar::IntOrString => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
            r#"{"oneOf":[{"type":"integer"},{"type":"string"}],"format":"int-or-string"}"#,
        ),
        _ => return None,
    })
}

/// One operation to be written.
struct Operation<'a> {
    action: &'a str,
    id: String,
    gvk: Value,
    parameters: &'a [(&'a str, &'a str)],
    body: Option<(&'a str, &'a [&'a str])>,
    answer: String,
}

fn add_kind(
    dialect: Dialect,
    group: &str,
    version: &str,
    kind: &Kind,
    name: &str,
    paths: &mut Map<String, Value>,
) {
    let root = root_path(group, version);
    let gvk = json!({"group": group, "version": version, "kind": kind.kind});
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", kind.plural);
    let title = operation_title(group, version, kind);
    let list = list_name(name);
    let operation = |action: &'static str,
                     parameters: &'static [(&str, &str)],
                     body: Option<(&'static str, &'static [&'static str])>,
                     answer: &str| {
        let id = format!("{action}{title}");
        Operation { action, id, gvk: gvk.clone(), parameters, body, answer: answer.to_owned() }
    };
    let mut put = |path: &str, method: &str, operation: &Operation<'_>, body: Option<&str>| {
        add_operation(dialect, paths, path, method, operation, body);
    };
    put(&collection, "get", &operation("list", LIST_PARAMETERS, None, &list), None);
    put(
        &collection,
        "post",
        &operation("post", WRITE_PARAMETERS, Some(("", any_types())), name),
        Some(name),
    );
    if *kind != objects::kind::NAMESPACE {
        let all = operation("deletecollection", DELETE_PARAMETERS, None, STATUS);
        put(&collection, "delete", &all, None);
    }
    if kind.namespaced {
        let mut everywhere = operation("list", LIST_PARAMETERS, None, &list);
        everywhere.id.push_str("ForAllNamespaces");
        put(&format!("{root}/{}", kind.plural), "get", &everywhere, None);
    }
    let item = format!("{collection}/{{name}}");
    put(&item, "get", &operation("get", &[], None, name), None);
    put(
        &item,
        "put",
        &operation("put", WRITE_PARAMETERS, Some(("", any_types())), name),
        Some(name),
    );
    put(&item, "patch", &operation("patch", PATCH_PARAMETERS, Some(("", PATCHES)), name), None);
    put(&item, "delete", &operation("delete", DELETE_PARAMETERS, None, STATUS), None);
    for part in kind.subresources {
        add_subresource(dialect, (group, version, kind, name), part, &item, paths);
    }
}

fn any_types() -> &'static [&'static str] {
    &["application/json", "application/yaml"]
}

fn add_subresource(
    dialect: Dialect,
    (group, version, kind, name): (&str, &str, &Kind, &str),
    part: &str,
    item: &str,
    paths: &mut Map<String, Value>,
) {
    let ((sub_group, sub_version, sub_kind), verbs) = subresource(kind, part);
    let own = sub_version.is_empty();
    let gvk = if own {
        json!({"group": group, "version": version, "kind": kind.kind})
    } else {
        json!({"group": sub_group, "version": sub_version, "kind": sub_kind})
    };
    let shape = if own {
        name
    } else {
        builtin().root(sub_group, sub_version, sub_kind).map_or(name, |one| one.name)
    };
    let title = format!("{}{}", operation_title(group, version, kind), capital(part));
    for verb in verbs {
        let (method, action, parameters): (&str, &str, &[(&str, &str)]) = match *verb {
            "create" => ("post", "connect", WRITE_PARAMETERS),
            "update" => ("put", "put", WRITE_PARAMETERS),
            "patch" => ("patch", "patch", PATCH_PARAMETERS),
            _ => ("get", "get", &[]),
        };
        let body: Option<(&str, &[&str])> = match method {
            "get" => None,
            "patch" => Some(("", PATCHES)),
            _ => Some(("", any_types())),
        };
        let operation = Operation {
            action,
            id: format!("{action}{title}"),
            gvk: gvk.clone(),
            parameters,
            body,
            answer: shape.to_owned(),
        };
        let body = if method == "patch" { None } else { Some(shape) };
        add_operation(dialect, paths, &format!("{item}/{part}"), method, &operation, body);
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// `CoreV1NamespacedPod`: what identifies the operations of a kind.
fn operation_title(group: &str, version: &str, kind: &Kind) -> String {
    let group = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or("") };
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    format!("{}{}{scope}{}", capital(group), capital(version), kind.kind)
}

fn parameter(dialect: Dialect, place: &str, name: &str, kind: &str, required: bool) -> Value {
    let mut said = json!({"name": name, "in": place});
    if required {
        put(&mut said, "required", json!(true));
    }
    match dialect {
        Dialect::V2 => {
            put(&mut said, "type", json!(kind));
            put(&mut said, "uniqueItems", json!(true));
        }
        Dialect::V3 => put(&mut said, "schema", json!({"type": kind, "uniqueItems": true})),
    }
    said
}

fn add_operation(
    dialect: Dialect,
    paths: &mut Map<String, Value>,
    path: &str,
    method: &str,
    operation: &Operation<'_>,
    body: Option<&str>,
) {
    let mut parameters: Vec<Value> = Vec::new();
    for word in ["name", "namespace"] {
        if path.contains(&format!("{{{word}}}")) {
            parameters.push(parameter(dialect, "path", word, "string", true));
        }
    }
    for (name, kind) in operation.parameters {
        parameters.push(parameter(dialect, "query", name, kind, false));
    }
    let shape = body.map_or_else(|| json!({"type": "object"}), |name| reference(dialect, name));
    let mut said = json!({
        "operationId": operation.id,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operation.gvk,
    });
    let answer = reference(dialect, &operation.answer);
    match dialect {
        Dialect::V2 => {
            put(&mut said, "produces", json!(["application/json"]));
            if let Some((_, media)) = operation.body {
                put(&mut said, "consumes", json!(media));
                parameters.push(json!({
                    "name": "body", "in": "body", "required": true, "schema": shape,
                }));
            }
            put(&mut said, "responses", json!({"200": {"description": "OK", "schema": answer}}));
        }
        Dialect::V3 => {
            if let Some((_, media)) = operation.body {
                let content: Map<String, Value> = media
                    .iter()
                    .map(|media| ((*media).to_owned(), json!({"schema": shape})))
                    .collect();
                put(&mut said, "requestBody", json!({"content": content, "required": true}));
            }
            put(
                &mut said,
                "responses",
                json!({"200": {
                    "description": "OK", "content": {"application/json": {"schema": answer}},
                }}),
            );
        }
    }
    put(&mut said, "parameters", Value::Array(parameters));
    let entry = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    put(entry, method, said);
}
