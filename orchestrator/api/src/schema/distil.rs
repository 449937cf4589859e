//! From upstream's JSON Schema definitions to the lines of the table.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Write as _,
};

use objects::kind::KINDS;
use serde_json::{Map, Value};
use thiserror::Error;

/// Whole objects that are no stored kinds: bodies of requests and answers.
const OTHER_ROOTS: &[(&str, &str, &str)] = &[
    ("", "v1", "Binding"),
    ("autoscaling", "v1", "Scale"),
    ("policy", "v1", "Eviction"),
    ("policy", "v1beta1", "Eviction"),
    ("authentication.k8s.io", "v1", "SelfSubjectReview"),
    ("authentication.k8s.io", "v1", "TokenRequest"),
    ("authentication.k8s.io", "v1", "TokenReview"),
    ("authorization.k8s.io", "v1", "LocalSubjectAccessReview"),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview"),
    ("authorization.k8s.io", "v1", "SubjectAccessReview"),
];

/// Versions upstream no longer defines, with the version whose shape they have; older clients
/// still speak them.
const RETIRED: &[(&str, &str, &str, &str)] = &[
    ("batch", "v1beta1", "CronJob", "v1"),
    ("policy", "v1beta1", "PodDisruptionBudget", "v1"),
    ("policy", "v1beta1", "Eviction", "v1"),
];

/// Whole objects found by name, for they are registered in every group.
const BY_NAME: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", "DeleteOptions"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Status", "Status"),
];

/// Upstream's definitions are not what they were.
#[derive(Debug, Error)]
pub enum DistilError {
    /// The input holds no `$defs`.
    #[error("the input holds no `$defs`")]
    NoDefinitions,
    /// A kind we serve is not defined.
    #[error("{0} is not defined")]
    Missing(String),
    /// A field's type is none we know.
    #[error("the type of {0} is none we know: {1}")]
    Unknown(String, String),
}

/// Distils the definitions (`_definitions.json`) to the lines of the table: the kinds that are
/// served and what they refer to.
///
/// # Errors
///
/// When a kind is missing or a type is unknown: the table's language must then grow.
pub fn distil(definitions: &Value) -> Result<String, DistilError> {
    let defs =
        definitions.get("$defs").and_then(Value::as_object).ok_or(DistilError::NoDefinitions)?;
    // Whole objects first: one that another refers to must still get its kind.
    let mut open: VecDeque<(String, String)> = VecDeque::new();
    let ours = KINDS.iter().filter(|kind| kind.group != "muster.dev");
    let own = ours.clone().map(|kind| (kind.group, kind.version, kind.kind));
    let aliases = ours.flat_map(|kind| {
        kind.aliases.iter().map(move |alias| (alias.group, alias.version, kind.kind))
    });
    for (group, version, kind) in own.chain(aliases).chain(OTHER_ROOTS.iter().copied()) {
        let heir = RETIRED.iter().find(|row| (row.0, row.1, row.2) == (group, version, kind));
        if let Some((.., heir)) = heir {
            let heir = root(group, heir, kind);
            let served = open.iter_mut().find(|(_, roots)| *roots == heir);
            let missing = || DistilError::Missing(format!("{group}/{version} {kind}"));
            served.ok_or_else(missing)?.1.push_str(&root(group, version, kind));
            continue;
        }
        let name = find(defs, group, version, kind)
            .ok_or_else(|| DistilError::Missing(format!("{group}/{version} {kind}")))?;
        open.push_back((name.to_owned(), root(group, version, kind)));
    }
    for (name, kind) in BY_NAME {
        open.push_back(((*name).to_owned(), format!(" /v1/{kind}")));
    }
    let mut done = BTreeSet::new();
    let mut types = Vec::new();
    while let Some((name, root)) = open.pop_front() {
        if !done.insert(name.clone()) {
            continue;
        }
        let def = defs.get(&name).ok_or_else(|| DistilError::Missing(name.clone()))?;
        let mut text = format!("= {name}{root}{}\n", atomic(def));
        let required: Vec<&str> = list(def, "required").collect();
        let none = Map::new();
        let fields = def.get("properties").and_then(Value::as_object).unwrap_or(&none);
        for (field, shape) in fields {
            let must = if required.contains(&field.as_str()) { "!" } else { "" };
            let node = node(&format!("{name}.{field}"), shape, &mut open)?;
            let attributes = format!("{}{}", atomic(shape), strategies(shape));
            let _infallible = writeln!(text, "{field}{must} {node}{attributes}");
        }
        types.push(text);
    }
    types.sort();
    Ok(types.concat())
}

/// The words that make a type a whole object.
fn root(group: &str, version: &str, kind: &str) -> String {
    format!(" {group}/{version}/{kind}")
}

fn find<'a>(
    defs: &'a Map<String, Value>,
    group: &str,
    version: &str,
    kind: &str,
) -> Option<&'a str> {
    let is = |gvk: &Value| {
        let text = |key: &str| gvk.get(key).and_then(Value::as_str).unwrap_or("");
        (text("group"), text("version"), text("kind")) == (group, version, kind)
    };
    defs.iter()
        .find(|(_, def)| {
            let gvks = def.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
            gvks.is_some_and(|gvks| gvks.len() == 1 && gvks.iter().any(is))
        })
        .map(|(name, _)| name.as_str())
}

fn list<'a>(shape: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    shape.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn text<'a>(shape: &'a Value, key: &str) -> &'a str {
    shape.get(key).and_then(Value::as_str).unwrap_or("")
}

fn atomic(shape: &Value) -> &'static str {
    if text(shape, "x-kubernetes-map-type") == "atomic" { " atomic" } else { "" }
}

fn strategies(shape: &Value) -> String {
    let mut said = String::new();
    match text(shape, "x-kubernetes-list-type") {
        "set" => said.push_str(" set"),
        "map" => {
            let keys: Vec<&str> = list(shape, "x-kubernetes-list-map-keys").collect();
            said = format!(" map={}", keys.join(","));
        }
        _ => {}
    }
    for strategy in text(shape, "x-kubernetes-patch-strategy").split(',') {
        match strategy {
            "merge" => match text(shape, "x-kubernetes-patch-merge-key") {
                "" => said.push_str(" merge"),
                key => said = format!("{said} merge={key}"),
            },
            "" => {}
            other => said = format!("{said} {other}"),
        }
    }
    said
}

/// The word for a field's type; types it refers to are put on the list.
fn node(
    place: &str,
    shape: &Value,
    open: &mut VecDeque<(String, String)>,
) -> Result<String, DistilError> {
    if let Some(name) = text(shape, "$ref").strip_prefix("#/$defs/") {
        let short = name.rsplit('.').next().unwrap_or("");
        return Ok(match short {
            "Time" => "time".to_owned(),
            "MicroTime" => "microtime".to_owned(),
            "Quantity" => "quantity".to_owned(),
            "IntOrString" => "int-or-string".to_owned(),
            // What JSON says in several shapes no one type describes.
            "FieldsV1" | "RawExtension" | "JSON" => "any".to_owned(),
            name if name.starts_with("JSONSchemaPropsOr") => "any".to_owned(),
            _ => {
                open.push_back((name.to_owned(), String::new()));
                format!("@{name}")
            }
        });
    }
    let types = shape.get("type");
    let named = |value: &Value| value.as_str().filter(|one| *one != "null").map(str::to_owned);
    let first = match types {
        Some(Value::Array(all)) => all.iter().find_map(named),
        Some(one) => named(one),
        None => None,
    };
    let inner = |key: &str, open: &mut VecDeque<(String, String)>| match shape.get(key) {
        Some(inner) => node(place, inner, open).map(Some),
        None => Ok(None),
    };
    Ok(match (first.as_deref().unwrap_or(""), text(shape, "format")) {
        ("string", "byte") => "byte".to_owned(),
        ("string", "date-time") => "time".to_owned(),
        ("string", "") => "string".to_owned(),
        ("boolean", _) => "boolean".to_owned(),
        ("integer", "int32") => "int32".to_owned(),
        ("integer", "int64") => "int64".to_owned(),
        ("integer", "") => "integer".to_owned(),
        ("number", _) => "number".to_owned(),
        ("array", _) => match inner("items", open)? {
            Some(item) => format!("[{item}"),
            None => "[any".to_owned(),
        },
        ("object", _) => match inner("additionalProperties", open)? {
            Some(item) => format!("{{{item}"),
            None => "any".to_owned(),
        },
        _ => return Err(DistilError::Unknown(place.to_owned(), shape.to_string())),
    })
}
