//! What may not change once it is there.

use objects::Kind;
use serde_json::{Value, json};

use super::{Check, items, text};

/// Fields of a pod's spec that may change.
const POD_MAY_CHANGE: &[&str] =
    &["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"];
/// Fields of a stateful set's spec that may change.
const STATEFUL_SET_MAY_CHANGE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) fn check(check: &mut Check, kind: &Kind, old: &Value, new: &Value) {
    match kind.kind {
        "Pod" => pod(check, old, new),
        "Service" => service(check, old, new),
        "Deployment" | "ReplicaSet" | "DaemonSet" => same(check, "spec.selector", old, new),
        "StatefulSet" => stateful_set(check, old, new),
        "ConfigMap" | "Secret" => data(check, kind, old, new),
        "Node" => node(check, old, new),
        "EndpointSlice" => same(check, "addressType", old, new),
        "RoleBinding" | "ClusterRoleBinding" => same(check, "roleRef", old, new),
        "PersistentVolumeClaim" => claim(check, old, new),
        _ => {}
    }
}

fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    objects::field::value_at(object, path)
}

/// A field that may not change.
fn same(check: &mut Check, path: &str, old: &Value, new: &Value) {
    let wanted = at(new, path);
    if at(old, path) != wanted {
        check.invalid(path, wanted.unwrap_or(&Value::Null), "field is immutable");
    }
}

fn pod(check: &mut Check, old: &Value, new: &Value) {
    let fixed = |object: &Value| -> Value {
        let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
        if let Some(fields) = spec.as_object_mut() {
            for field in POD_MAY_CHANGE {
                fields.remove(*field);
            }
            for list in ["containers", "initContainers"] {
                let containers = fields.get_mut(list).and_then(Value::as_array_mut);
                for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                    container.remove("image");
                }
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        check.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` \
             (only additions to existing tolerations), `spec.terminationGracePeriodSeconds`",
        );
    }
    let (before, after) = (items(old, "spec.tolerations"), items(new, "spec.tolerations"));
    let bare = |toleration: &Value| -> Value {
        let mut toleration = toleration.clone();
        if let Some(fields) = toleration.as_object_mut() {
            fields.remove("tolerationSeconds");
        }
        toleration
    };
    if !before.iter().all(|had| after.iter().any(|have| bare(had) == bare(have))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        check.forbidden("spec.tolerations", why);
    }
}

fn service(check: &mut Check, old: &Value, new: &Value) {
    let (before, after) = (text(old, "spec.clusterIP"), text(new, "spec.clusterIP"));
    let outside = |object: &Value| text(object, "spec.type") == "ExternalName";
    if !before.is_empty() && !outside(old) && !outside(new) && before != after {
        check.invalid("spec.clusterIPs[0]", &json!([after]), "may not change once set");
    }
}

fn stateful_set(check: &mut Check, old: &Value, new: &Value) {
    let fixed = |object: &Value| -> Value {
        let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
        if let Some(fields) = spec.as_object_mut() {
            for field in STATEFUL_SET_MAY_CHANGE {
                fields.remove(*field);
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        let why = format!(
            "updates to statefulset spec for fields other than '{}' are forbidden",
            STATEFUL_SET_MAY_CHANGE.join("', '")
        );
        check.forbidden("spec", &why);
    }
}

fn data(check: &mut Check, kind: &Kind, old: &Value, new: &Value) {
    if kind.kind == "Secret" {
        same(check, "type", old, new);
    }
    if at(old, "immutable") != Some(&Value::Bool(true)) {
        return;
    }
    for field in ["immutable", "data", "binaryData"] {
        if at(old, field) != at(new, field) {
            check.forbidden(field, "field is immutable when `immutable` is set");
        }
    }
}

fn node(check: &mut Check, old: &Value, new: &Value) {
    for (path, what) in [("spec.podCIDRs", "podCIDRs"), ("spec.providerID", "providerID")] {
        let before = at(old, path);
        let unset = before.is_none_or(|v| v == &json!("") || v == &json!([]));
        if !unset && before != at(new, path) {
            let why = format!("node updates may not change {what} except from \"\" to valid");
            check.forbidden(path, &why);
        }
    }
}

fn claim(check: &mut Check, old: &Value, new: &Value) {
    let fixed = |object: &Value| -> Value {
        let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
        if let Some(fields) = spec.as_object_mut() {
            for field in ["resources", "volumeName", "volumeAttributesClassName"] {
                fields.remove(field);
            }
        }
        spec
    };
    let moved = !text(old, "spec.volumeName").is_empty()
        && text(old, "spec.volumeName") != text(new, "spec.volumeName");
    if moved || fixed(old) != fixed(new) {
        let why = "spec is immutable after creation except resources.requests and \
                   volumeAttributesClassName for bound claims";
        check.forbidden("spec", why);
    }
}
