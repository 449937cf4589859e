//! Reviews of access: who may do what, asked and answered as objects.
//!
//! Spec: authorization.k8s.io/v1 and authentication.k8s.io/v1.

use std::collections::BTreeMap;

use objects::{Cause, FieldSelector, Status, field::str_at, status::Details};
use serde_json::{Map, Value, json};

use super::rbac::Rule;
use super::{Attributes, Decision, User};

/// Reads what an access review asks about.
///
/// # Errors
///
/// 422 when it names both a resource and a path, or neither.
pub fn parse_attributes(kind: &str, spec: &Value) -> Result<Attributes, Status> {
    let resource = spec.get("resourceAttributes").filter(|one| one.is_object());
    let path = spec.get("nonResourceAttributes").filter(|one| one.is_object());
    let text = |from: &Value, key: &str| str_at(from, key).unwrap_or("").to_owned();
    match (resource, path) {
        (Some(resource), None) => Ok(Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
            fields: field_selector(resource),
        }),
        (None, Some(path)) => Ok(Attributes {
            verb: text(path, "verb"),
            path: match text(path, "path") {
                // An empty path would be taken for a resource.
                none if none.is_empty() => "/".to_owned(),
                path => path,
            },
            ..Attributes::default()
        }),
        (both, _) => {
            let why = match both {
                Some(_) => "cannot be specified in combination with resourceAttributes",
                None => {
                    "exactly one of nonResourceAttributes or resourceAttributes must be specified"
                }
            };
            let field = if both.is_some() {
                "spec.nonResourceAttributes"
            } else {
                "spec.resourceAttributes"
            };
            let shown = spec.get("nonResourceAttributes").cloned().unwrap_or(Value::Null);
            Err(invalid(kind, Cause::invalid(field, &shown, why)))
        }
    }
}

/// Fields that must be equal; other requirements narrow nothing here.
fn field_selector(resource: &Value) -> FieldSelector {
    let selector = resource.get("fieldSelector").unwrap_or(&Value::Null);
    let raw = str_at(selector, "rawSelector").unwrap_or("");
    if !raw.is_empty() {
        return FieldSelector::parse(raw).unwrap_or_default();
    }
    let requirements = selector.get("requirements").and_then(Value::as_array);
    let terms: Vec<String> = requirements
        .into_iter()
        .flatten()
        .filter(|one| str_at(one, "operator") == Some("In"))
        .filter_map(|one| {
            let values = one.get("values")?.as_array()?;
            let [value] = values.as_slice() else { return None };
            Some(format!("{}={}", str_at(one, "key")?, value.as_str()?))
        })
        .collect();
    FieldSelector::parse(&terms.join(",")).unwrap_or_default()
}

/// Reads whom a SubjectAccessReview asks about.
///
/// # Errors
///
/// 422 when it names neither a user nor a group.
pub fn parse_subject(kind: &str, spec: &Value) -> Result<User, Status> {
    let texts = |value: Option<&Value>| -> Vec<String> {
        let list = value.and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut extra = BTreeMap::new();
    for (key, values) in spec.get("extra").and_then(Value::as_object).into_iter().flatten() {
        extra.insert(key.to_ascii_lowercase(), texts(Some(values)));
    }
    let text = |key: &str| str_at(spec, key).unwrap_or("").to_owned();
    let user =
        User { name: text("user"), uid: text("uid"), groups: texts(spec.get("groups")), extra };
    if user.name.is_empty() && user.groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(kind, Cause::invalid("spec.user", &json!(""), why)));
    }
    Ok(user)
}

/// 422 about a review.
#[must_use]
pub fn invalid(kind: &str, cause: Cause) -> Status {
    let group = match kind {
        "TokenReview" | "SelfSubjectReview" => "authentication.k8s.io",
        _ => "authorization.k8s.io",
    };
    let message = format!("{kind}.{group} \"\" is invalid: {}: {}", cause.field, cause.message);
    Status::failure(422, "Invalid", message).with(Details {
        group: group.to_owned(),
        kind: kind.to_owned(),
        causes: vec![cause],
        ..Details::default()
    })
}

/// The status of an access review.
#[must_use]
pub fn access_status(decision: &Decision) -> Value {
    let mut status = json!({ "allowed": decision.allowed });
    if let (false, Some(fields)) = (decision.reason.is_empty(), status.as_object_mut()) {
        fields.insert("reason".to_owned(), json!(decision.reason));
    }
    status
}

/// The status of a review of one's own rules.
///
/// `node` says that more is granted than rules can tell.
#[must_use]
pub fn rules_status(rules: &[Rule], broken: &[String], node: bool) -> Value {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if rule.urls.is_empty() {
            let mut one = json!({
                "verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources,
            });
            if let (false, Some(fields)) = (rule.names.is_empty(), one.as_object_mut()) {
                fields.insert("resourceNames".to_owned(), json!(rule.names));
            }
            resources.push(one);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    let mut errors: Vec<String> = broken.to_vec();
    if node {
        errors.push("node authorizer does not support user rule resolution".to_owned());
    }
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": !errors.is_empty(),
    });
    if let (false, Some(fields)) = (errors.is_empty(), status.as_object_mut()) {
        fields.insert("evaluationError".to_owned(), json!(errors.join(", ")));
    }
    status
}

/// A user as reviews and audit events show it.
#[must_use]
pub fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    for (key, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            info.insert(key.to_owned(), json!(text));
        }
    }
    if !user.groups.is_empty() {
        info.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".to_owned(), json!(user.extra));
    }
    Value::Object(info)
}
