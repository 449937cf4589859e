//! Names, labels, annotations, owners.

use objects::field::Fields as _;
use objects::{Kind, name};
use serde_json::{Value, json};

use super::{Check, items, text};

/// All annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

pub(super) fn check(check: &mut Check, kind: &Kind, object: &Value) {
    let rule: fn(&str) -> Result<(), &'static str> = match kind.kind {
        "Namespace" | "Machine" | "Rack" => name::check_dns_label,
        "Service" => name::check_dns_1035_label,
        "APIService" | "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding"
        | "IPAddress" => name::check_path_segment,
        _ => name::check_dns_subdomain,
    };
    check.name("metadata.name", text(object, "metadata.name"), rule);
    labels(check, "metadata.labels", object.field("metadata.labels"));
    annotations(check, "metadata.annotations", object.field("metadata.annotations"));
    for (at, finalizer) in items(object, "metadata.finalizers").iter().enumerate() {
        let path = format!("metadata.finalizers[{at}]");
        check.rule(&path, finalizer.as_str().unwrap_or(""), name::check_label_key);
    }
    for (at, owner) in items(object, "metadata.ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                let path = format!("metadata.ownerReferences[{at}].{field}");
                check.invalid(path, &json!(""), "must not be empty");
            }
        }
    }
}

/// Labels and their values.
pub(super) fn labels(check: &mut Check, path: &str, value: Option<&Value>) {
    for (key, value) in value.and_then(Value::as_object).into_iter().flatten() {
        check.rule(path, key, name::check_label_key);
        check.rule(path, value.as_str().unwrap_or(""), name::check_label_value);
    }
}

/// Annotations and how much they may be.
pub(super) fn annotations(check: &mut Check, path: &str, value: Option<&Value>) {
    let mut size: usize = 0;
    for (key, value) in value.and_then(Value::as_object).into_iter().flatten() {
        let length = key.len().saturating_add(value.as_str().map_or(0, str::len));
        size = size.saturating_add(length);
        if let Err(why) = name::check_label_key(&key.to_ascii_lowercase()) {
            check.invalid(path, &json!(key), why);
        }
    }
    if size > ANNOTATIONS_BYTES_MAX {
        check.causes.push(objects::Cause {
            reason: "FieldValueTooLong".to_owned(),
            message: format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"),
            field: path.to_owned(),
        });
    }
}

/// A label selector: keys, operators, values.
pub(super) fn selector(check: &mut Check, path: &str, selector: &Value) {
    labels(check, &format!("{path}.matchLabels"), selector.get("matchLabels"));
    for (at, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let place = format!("{path}.matchExpressions[{at}]");
        check.name(&format!("{place}.key"), text(expression, "key"), name::check_label_key);
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => check.required(
                format!("{place}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => check.forbidden(
                format!("{place}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Exists" | "DoesNotExist" => {}
            other => check.invalid(
                format!("{place}.operator"),
                &json!(other),
                "not a valid selector operator",
            ),
        }
    }
}
