//! The marks Kubernetes puts beside OpenAPI (`x-kubernetes-…`), and what stands inside junctors.

use objects::{Cause, field::str_at};
use serde_json::{Map, Value, json};

/// Keywords that make no sense inside `allOf`, `anyOf`, `oneOf` and `not`.
const NOT_IN_JUNCTORS: &[&str] = &[
    "additionalProperties",
    "default",
    "description",
    "nullable",
    "title",
    "type",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

pub(super) fn check_marks(fields: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let flag = |key: &str| fields.get(key) == Some(&json!(true));
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("");
    if flag("x-kubernetes-embedded-resource") {
        if kind != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            causes.push(Cause::invalid(format!("{path}.type"), &json!(kind), why));
        }
        let preserve = flag("x-kubernetes-preserve-unknown-fields");
        if fields.get("properties").is_none() && !preserve {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                       x-kubernetes-preserve-unknown-fields";
            causes.push(Cause::required(format!("{path}.properties"), why));
        }
    }
    if flag("x-kubernetes-int-or-string") && !kind.is_empty() {
        let why = "must be empty if x-kubernetes-int-or-string is true";
        causes.push(Cause::forbidden(format!("{path}.type"), why));
    }
    if fields.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
        let why = "must be true or undefined";
        causes.push(Cause::invalid(
            format!("{path}.x-kubernetes-preserve-unknown-fields"),
            &json!(false),
            why,
        ));
    }
    if let Some(said) = fields.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if kind != "object" {
            let why = "must be object if x-kubernetes-map-type is specified";
            causes.push(Cause::invalid(format!("{path}.type"), &json!(kind), why));
        }
        if !matches!(said, "atomic" | "granular") {
            let path = format!("{path}.x-kubernetes-map-type");
            causes.push(Cause::unsupported(path, &json!(said), &["atomic", "granular"]));
        }
    }
    let known = ["", "object", "array", "string", "integer", "number", "boolean"];
    if !known.contains(&kind) {
        causes.push(Cause::unsupported(format!("{path}.type"), &json!(kind), &known));
    }
}

pub(super) fn check_list_type(fields: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let keys = fields.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    let place = format!("{path}.x-kubernetes-list-type");
    let Some(said) = fields.get("x-kubernetes-list-type").and_then(Value::as_str) else {
        if keys.is_some() {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            causes.push(Cause::required(place, why));
        }
        return;
    };
    if fields.get("type").and_then(Value::as_str) != Some("array") {
        let why = "must be array if x-kubernetes-list-type is specified";
        let kind = fields.get("type").cloned().unwrap_or_else(|| json!(""));
        causes.push(Cause::invalid(format!("{path}.type"), &kind, why));
    }
    if !matches!(said, "atomic" | "set" | "map") {
        causes.push(Cause::unsupported(place, &json!(said), &["atomic", "set", "map"]));
        return;
    }
    if said != "map" {
        if keys.is_some() {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            causes.push(Cause::invalid(place, &json!(said), why));
        }
        return;
    }
    let place = format!("{path}.x-kubernetes-list-map-keys");
    let Some(keys) = keys.filter(|keys| !keys.is_empty()) else {
        let why = "must not be empty if x-kubernetes-list-type is map";
        causes.push(Cause::required(place, why));
        return;
    };
    let items = fields.get("items").unwrap_or(&Value::Null);
    if str_at(items, "type") != Some("object") {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        let kind = items.get("type").cloned().unwrap_or_else(|| json!(""));
        causes.push(Cause::invalid(format!("{path}.items.type"), &kind, why));
    }
    let required = items.get("required").and_then(Value::as_array);
    for (at, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or("");
        let property = items.get("properties").and_then(|all| all.get(name));
        let Some(property) = property else {
            let why = "entries must all be names of item properties";
            causes.push(Cause::invalid(format!("{place}[{at}]"), key, why));
            continue;
        };
        let must = required.is_some_and(|all| all.contains(key));
        if !must && property.get("default").is_none() {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default \
                       or be a required property";
            causes.push(Cause::required(format!("{path}.items.properties[{name}].default"), why));
        }
    }
}

pub(super) fn check_metadata(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let kind = str_at(schema, "type").unwrap_or("");
    if kind != "object" {
        let why = "must be object";
        causes.push(Cause::invalid(format!("{path}.type"), &json!(kind), why));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for name in properties.into_iter().flatten().map(|(name, _)| name) {
        if !matches!(name.as_str(), "name" | "generateName") {
            let why = "must not specify anything other than name and generateName, but metadata \
                       is implicitly specified";
            causes.push(Cause::forbidden(path, why));
        }
    }
}

pub(super) fn check_junctor(
    schema: &Value,
    path: &str,
    int_or_string: bool,
    causes: &mut Vec<Cause>,
) {
    let Some(fields) = schema.as_object() else { return };
    for key in NOT_IN_JUNCTORS {
        let type_of_union = *key == "type" && int_or_string;
        if fields.contains_key(*key) && !type_of_union {
            let why = "must be empty to be structural";
            causes.push(Cause::forbidden(format!("{path}.{key}"), why));
        }
    }
    let properties = fields.get("properties").and_then(Value::as_object);
    for (name, inner) in properties.into_iter().flatten() {
        check_junctor(inner, &format!("{path}.properties[{name}]"), false, causes);
    }
    if let Some(inner) = fields.get("items") {
        check_junctor(inner, &format!("{path}.items"), false, causes);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        let all = fields.get(key).and_then(Value::as_array).into_iter().flatten();
        for (at, inner) in all.enumerate() {
            check_junctor(inner, &format!("{path}.{key}[{at}]"), int_or_string, causes);
        }
    }
}
