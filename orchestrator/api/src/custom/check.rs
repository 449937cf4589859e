//! What a CustomResourceDefinition must keep, and what it may leave unsaid.
//!
//! Paths and sentences are upstream's, for people search for them.

mod marks;

use std::collections::BTreeSet;

use marks::{check_junctor, check_list_type, check_marks, check_metadata};
use objects::field::Fields as _;
use objects::{
    Cause,
    field::{str_at, value_at},
    name::{check_dns_1035_label, check_dns_subdomain},
};
use serde_json::{Map, Value, json};

use super::column::is_path;

/// Keywords structural schemas may not have.
const FORBIDDEN: &[(&str, &str)] = &[
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("id", "id is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("$ref", "$ref is not supported"),
    ("additionalItems", "additionalItems is not supported"),
];

/// Fills in what a definition leaves unsaid.
pub fn default_definition(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or("").to_owned();
        if !kind.is_empty() {
            let unsaid = |names: &Map<String, Value>, key: &str| {
                names.get(key).and_then(Value::as_str).is_none_or(str::is_empty)
            };
            if unsaid(names, "singular") {
                names.insert("singular".to_owned(), json!(kind.to_lowercase()));
            }
            if unsaid(names, "listKind") {
                names.insert("listKind".to_owned(), json!(format!("{kind}List")));
            }
        }
    }
    let conversion = spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    if let Some(service) =
        conversion.field_mut("webhook.clientConfig.service").and_then(Value::as_object_mut)
    {
        service.entry("port").or_insert_with(|| json!(443));
    }
}

/// Checks a definition; `old` is the stored one on an update.
#[must_use]
pub fn check_definition(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let text = |path: &str| str_at(object, path).unwrap_or("");
    let (group, plural) = (text("spec.group"), text("spec.names.plural"));
    if text("metadata.name") != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &json!(text("metadata.name")), why));
    }
    check_group(object, group, &mut causes);
    match text("spec.scope") {
        "" => causes.push(Cause::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => {
            let allowed = &["Cluster", "Namespaced"];
            causes.push(Cause::unsupported("spec.scope", &json!(other), allowed));
        }
    }
    check_names(object, "spec.names", &mut causes);
    check_versions(object, &mut causes);
    check_conversion(object, &mut causes);
    if let Some(old) = old {
        check_unchanged(object, old, &mut causes);
    }
    causes
}

fn check_group(object: &Value, group: &str, causes: &mut Vec<Cause>) {
    if group.is_empty() {
        causes.push(Cause::required("spec.group", ""));
    } else if let Err(why) = check_dns_subdomain(group) {
        causes.push(Cause::invalid("spec.group", &json!(group), why));
    } else if !group.contains('.') {
        let why = "should be a domain with at least one dot";
        causes.push(Cause::invalid("spec.group", &json!(group), why));
    }
    let guarded = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|end| group == *end || group.ends_with(&format!(".{end}")));
    let approval = object.pointer("/metadata/annotations/api-approved.kubernetes.io");
    let path = "metadata.annotations[api-approved.kubernetes.io]";
    match approval.and_then(Value::as_str) {
        _ if !guarded => {}
        None | Some("") => causes.push(Cause::required(
            path,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see \
             https://github.com/kubernetes/enhancements/pull/1111",
        )),
        Some(said) if said.starts_with("unapproved") || said.starts_with("https://") => {}
        Some(said) => {
            let why = "protected groups must have approval annotation \
                       \"api-approved.kubernetes.io\" with either a URL or a reason starting with \
                       \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111";
            causes.push(Cause::invalid(path, &json!(said), why));
        }
    }
}

fn check_names(object: &Value, base: &str, causes: &mut Vec<Cause>) {
    let text = |key: &str| str_at(object, &format!("{base}.{key}")).unwrap_or("");
    for key in ["plural", "singular", "kind", "listKind"] {
        let (path, said) = (format!("{base}.{key}"), text(key));
        if said.is_empty() {
            causes.push(Cause::required(path, ""));
        } else if let Err(why) = check_dns_1035_label(&said.to_lowercase()) {
            let why = if key.ends_with("ind") {
                format!("may have mixed case, but should otherwise match: {why}")
            } else {
                why.to_owned()
            };
            causes.push(Cause::invalid(path, &json!(said), &why));
        } else if !key.ends_with("ind") && said != said.to_lowercase() {
            causes.push(Cause::invalid(path, &json!(said), "must be lower case"));
        }
    }
    if text("kind") == text("listKind") && !text("kind").is_empty() {
        let why = "kind and listKind may not be the same";
        causes.push(Cause::invalid(format!("{base}.listKind"), &json!(text("listKind")), why));
    }
    for key in ["shortNames", "categories"] {
        let path = format!("{base}.{key}");
        let all = value_at(object, &path).and_then(Value::as_array).into_iter().flatten();
        for (at, one) in all.enumerate() {
            if let Err(why) = check_dns_1035_label(one.as_str().unwrap_or("")) {
                causes.push(Cause::invalid(format!("{path}[{at}]"), one, why));
            }
        }
    }
}

fn check_versions(object: &Value, causes: &mut Vec<Cause>) {
    let empty = Vec::new();
    let versions = value_at(object, "spec.versions").and_then(Value::as_array).unwrap_or(&empty);
    let mut names = BTreeSet::new();
    let same = versions.windows(2).all(|pair| match pair {
        [a, b] => value_at(a, "schema") == value_at(b, "schema"),
        _ => true,
    });
    for (at, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{at}]");
        let name = str_at(version, "name").unwrap_or("");
        if let Err(why) = check_dns_1035_label(name) {
            causes.push(Cause::invalid(format!("{path}.name"), &json!(name), why));
        } else if !names.insert(name) {
            let why = "must contain unique version names";
            causes.push(Cause::invalid("spec.versions", &json!(name), why));
        }
        let deprecated = version.get("deprecated") == Some(&json!(true));
        if version.get("deprecationWarning").is_some() && !deprecated {
            let why = "can only be set for deprecated versions";
            causes.push(Cause::invalid(
                format!("{path}.deprecationWarning"),
                version.get("deprecationWarning").unwrap_or(&Value::Null),
                why,
            ));
        }
        check_subresources(version, &path, causes);
        check_paths(version, &path, causes);
        // Upstream keeps a schema that all versions share in one place, and so are its paths.
        let place = if same { "spec.validation".to_owned() } else { format!("{path}.schema") };
        if at > 0 && same {
            continue;
        }
        match value_at(version, "schema.openAPIV3Schema") {
            None => {
                let path = format!("{path}.schema.openAPIV3Schema");
                causes.push(Cause::required(path, "schemas are required"));
            }
            Some(schema) => check_schema(schema, &format!("{place}.openAPIV3Schema"), causes),
        }
    }
    let stored = versions.iter().filter(|one| one.get("storage") == Some(&json!(true))).count();
    if stored != 1 {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &json!(names), why));
    }
    let recorded = value_at(object, "status.storedVersions").and_then(Value::as_array);
    for (at, one) in recorded.into_iter().flatten().enumerate() {
        if !names.contains(one.as_str().unwrap_or("")) {
            let why = format!(
                "missing from spec.versions; {} was previously a storage version, \
                and must remain in spec.versions until a storage migration ensures no data remains \
                persisted in it and removes it from status.storedVersions",
                one
            );
            causes.push(Cause::invalid(format!("status.storedVersions[{at}]"), one, &why));
        }
    }
}

fn check_subresources(version: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(scale) = value_at(version, "subresources.scale") else { return };
    let path = format!("{path}.subresources.scale");
    for (key, root, must) in [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", "", false),
    ] {
        let said = str_at(scale, key).unwrap_or("");
        let path = format!("{path}.{key}");
        if said.is_empty() {
            if must {
                causes.push(Cause::required(path, ""));
            }
        } else if !is_path(said) || said.contains('[') {
            let why = "should be a json path without array notation";
            causes.push(Cause::invalid(path, &json!(said), why));
        } else if !said.starts_with(root) {
            let why = format!("should be a json path under {}", root.trim_end_matches('.'));
            causes.push(Cause::invalid(path, &json!(said), &why));
        }
    }
}

/// Printer columns and selectable fields.
fn check_paths(version: &Value, path: &str, causes: &mut Vec<Cause>) {
    let list = |key: &str| version.get(key).and_then(Value::as_array).into_iter().flatten();
    for (at, column) in list("additionalPrinterColumns").enumerate() {
        let path = format!("{path}.additionalPrinterColumns[{at}]");
        let text = |key: &str| str_at(column, key).unwrap_or("");
        if text("name").is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        }
        let kinds = ["integer", "number", "string", "boolean", "date"];
        if !kinds.contains(&text("type")) {
            let why = "must be one of boolean,date,integer,number,string";
            causes.push(Cause::invalid(format!("{path}.type"), &json!(text("type")), why));
        }
        if text("jsonPath").is_empty() {
            causes.push(Cause::required(format!("{path}.jsonPath"), ""));
        } else if !is_path(text("jsonPath")) {
            let why = "illegal JSON path";
            causes.push(Cause::invalid(format!("{path}.jsonPath"), &json!(text("jsonPath")), why));
        }
    }
    for (at, one) in list("selectableFields").enumerate() {
        let path = format!("{path}.selectableFields[{at}].jsonPath");
        let said = str_at(one, "jsonPath").unwrap_or("");
        if said.is_empty() {
            causes.push(Cause::required(path, ""));
            continue;
        }
        let schema = value_at(version, "schema.openAPIV3Schema").unwrap_or(&Value::Null);
        let mut found = Some(schema);
        for word in said.trim_start_matches('.').split('.') {
            found = found.and_then(|one| one.get("properties")).and_then(|all| all.get(word));
        }
        let kind = found.and_then(|one| str_at(one, "type")).unwrap_or("");
        if said.starts_with(".metadata") {
            let why = "must not point to fields in metadata";
            causes.push(Cause::invalid(path, &json!(said), why));
        } else if !matches!(kind, "string" | "integer" | "boolean") {
            let why = "must point to a field of type string, boolean or integer. Enum string \
                       fields and strings with formats are allowed.";
            causes.push(Cause::invalid(path, &json!(said), why));
        }
    }
}

fn check_conversion(object: &Value, causes: &mut Vec<Cause>) {
    let path = "spec.conversion.strategy";
    let webhook = value_at(object, "spec.conversion.webhook");
    match str_at(object, path).unwrap_or("") {
        "None" if webhook.is_some() => {
            let why = "should not be set when strategy is not set to Webhook";
            causes.push(Cause::forbidden("spec.conversion.webhook", why));
        }
        "None" => {}
        "Webhook" => {
            let path = "spec.conversion.webhook";
            let Some(webhook) = webhook else {
                let why = "required when strategy is set to Webhook";
                causes.push(Cause::required(format!("{path}.clientConfig"), why));
                return;
            };
            let has = |key: &str| webhook.pointer(&format!("/clientConfig/{key}")).is_some();
            if has("url") == has("service") {
                let why = "exactly one of url or service is required";
                causes.push(Cause::required(format!("{path}.clientConfig"), why));
            }
            let versions = webhook.get("conversionReviewVersions").and_then(Value::as_array);
            let known = |one: &Value| matches!(one.as_str(), Some("v1" | "v1beta1"));
            let path = format!("{path}.conversionReviewVersions");
            match versions {
                None => causes.push(Cause::required(path, "")),
                Some(all) if !all.iter().any(known) => {
                    let why = "must include at least one of v1, v1beta1";
                    causes.push(Cause::invalid(path, &json!(all), why));
                }
                Some(_) => {}
            }
        }
        "" => causes.push(Cause::required(path, "")),
        other => {
            causes.push(Cause::unsupported(path, &json!(other), &["None", "Webhook"]));
        }
    }
}

/// What an established definition may not change.
fn check_unchanged(object: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let conditions = value_at(old, "status.conditions").and_then(Value::as_array);
    let established = conditions.into_iter().flatten().any(|one| {
        str_at(one, "type") == Some("Established") && str_at(one, "status") == Some("True")
    });
    let mut fixed = vec!["spec.group", "spec.names.plural"];
    if established {
        fixed.extend(["spec.scope", "spec.names.kind"]);
    }
    for path in fixed {
        if str_at(object, path) != str_at(old, path) {
            let said = json!(str_at(object, path).unwrap_or(""));
            causes.push(Cause::invalid(path, &said, "field is immutable"));
        }
    }
}

/// Checks a whole schema.
fn check_schema(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    match str_at(schema, "type").unwrap_or("") {
        "object" => {}
        "" => causes.push(Cause::required(format!("{path}.type"), "must not be empty at the root")),
        other => {
            let why = "must be object at the root";
            causes.push(Cause::invalid(format!("{path}.type"), &json!(other), why));
        }
    }
    if schema.get("nullable") == Some(&json!(true)) {
        let why = "nullable cannot be true at the root";
        causes.push(Cause::forbidden(format!("{path}.nullable"), why));
    }
    if schema.get("default").is_some() {
        let why = "must not be set";
        causes.push(Cause::forbidden(format!("{path}.default"), why));
    }
    check_part(schema, path, Level::Root, causes);
    super::rules::check(schema, path, causes);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

fn check_part(schema: &Value, path: &str, level: Level, causes: &mut Vec<Cause>) {
    let Some(fields) = schema.as_object() else { return };
    let flag = |key: &str| fields.get(key) == Some(&json!(true));
    let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or("");
    for (key, why) in FORBIDDEN {
        if fields.contains_key(*key) {
            causes.push(Cause::forbidden(format!("{path}.{key}"), why));
        }
    }
    if flag("uniqueItems") {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(Cause::forbidden(format!("{path}.uniqueItems"), why));
    }
    if let Some(pattern) = fields.get("pattern").and_then(Value::as_str)
        && let Err(err) = regex::Regex::new(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {err}");
        causes.push(Cause::invalid(format!("{path}.pattern"), &json!(pattern), &why));
    }
    let free = flag("x-kubernetes-preserve-unknown-fields") || flag("x-kubernetes-int-or-string");
    let kind = text("type");
    if kind.is_empty() && level != Level::Root && !free {
        let why = match level {
            Level::Item => "must not be empty for specified array items",
            Level::Field | Level::Root => "must not be empty for specified object fields",
        };
        causes.push(Cause::required(format!("{path}.type"), why));
    }
    check_marks(fields, path, causes);
    check_list_type(fields, path, causes);
    if let Some(properties) = fields.get("properties").and_then(Value::as_object) {
        for (name, inner) in properties {
            let path = format!("{path}.properties[{name}]");
            if level == Level::Root && name == "metadata" {
                check_metadata(inner, &path, causes);
            } else {
                check_part(inner, &path, Level::Field, causes);
            }
        }
    }
    check_below(fields, path, causes);
    check_default(schema, path, causes);
}

/// Checks what stands below a part: values, items, junctors.
fn check_below(fields: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let flag = |key: &str| fields.get(key) == Some(&json!(true));
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("");
    match fields.get("additionalProperties") {
        Some(Value::Bool(false)) => {
            let why = "must not be used";
            causes.push(Cause::forbidden(format!("{path}.additionalProperties"), why));
        }
        Some(inner) => {
            if fields
                .get("properties")
                .and_then(Value::as_object)
                .is_some_and(|all| !all.is_empty())
            {
                let why = "additionalProperties and properties are mutual exclusive";
                causes.push(Cause::forbidden(format!("{path}.additionalProperties"), why));
            }
            check_part(inner, &format!("{path}.additionalProperties"), Level::Field, causes);
        }
        None => {}
    }
    match fields.get("items") {
        Some(Value::Array(_)) => {
            let why = "items must be a schema object and not an array";
            causes.push(Cause::forbidden(format!("{path}.items"), why));
        }
        Some(inner) => check_part(inner, &format!("{path}.items"), Level::Item, causes),
        None if kind == "array" => {
            causes.push(Cause::required(format!("{path}.items"), "must be specified"));
        }
        None => {}
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        let all = fields.get(key).and_then(Value::as_array).into_iter().flatten();
        for (at, inner) in all.enumerate() {
            let int_or_string = flag("x-kubernetes-int-or-string");
            check_junctor(inner, &format!("{path}.{key}[{at}]"), int_or_string, causes);
        }
    }
    if let Some(inner) = fields.get("not") {
        check_junctor(inner, &format!("{path}.not"), false, causes);
    }
}

/// A default must be an object of the schema itself.
fn check_default(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(default) = schema.get("default") else { return };
    let shape = super::Structural::read(schema);
    let mut pruned = default.clone();
    let gone = super::shape::prune(&shape, &mut pruned);
    if !gone.is_empty() {
        let why = "must not have unknown fields";
        causes.push(Cause::invalid(format!("{path}.default"), default, why));
        return;
    }
    for mut cause in super::validate::validate_part(&shape, default, &format!("{path}.default")) {
        if cause.field.is_empty() {
            cause.field = format!("{path}.default");
        }
        causes.push(cause);
    }
}
