//! What may not change once it is there.

use objects::Kind;
use objects::field::Fields as _;
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
        "RoleBinding" | "ClusterRoleBinding" => {
            if at(old, "roleRef") != at(new, "roleRef") {
                let wanted = at(new, "roleRef").unwrap_or(&Value::Null);
                check.invalid("roleRef", wanted, "cannot change roleRef");
            }
        }
        "PersistentVolumeClaim" => claim(check, old, new),
        _ => rarer(check, kind, old, new),
    }
}

fn rarer(check: &mut Check, kind: &Kind, old: &Value, new: &Value) {
    match kind.kind {
        "Job" => job(check, old, new),
        "PersistentVolume" => volume(check, old, new),
        "StorageClass" => {
            for field in ["parameters", "provisioner", "reclaimPolicy"] {
                if at(old, field) != at(new, field) {
                    check.forbidden(field, &format!("updates to {field} are forbidden."));
                }
            }
            same(check, "volumeBindingMode", old, new);
        }
        "VolumeAttributesClass" => {
            same(check, "driverName", old, new);
            same(check, "parameters", old, new);
        }
        "VolumeAttachment" | "ResourceClaim" | "ResourceClaimTemplate" => {
            same(check, "spec", old, new);
        }
        "CSIDriver" => same(check, "spec.attachRequired", old, new),
        "ResourceSlice" => {
            for field in ["driver", "pool.name", "nodeName", "nodeSelector", "allNodes"] {
                same(check, &format!("spec.{field}"), old, new);
            }
        }
        "PriorityClass" => {
            if at(old, "value") != at(new, "value") {
                check.forbidden("value", "may not be changed in an update.");
            }
            same(check, "preemptionPolicy", old, new);
        }
        "RuntimeClass" => same(check, "handler", old, new),
        "IngressClass" => same(check, "spec.controller", old, new),
        "IPAddress" => same(check, "spec.parentRef", old, new),
        "ServiceCIDR" => {
            // A second family may be added; what is there stays.
            let (before, after) = (items(old, "spec.cidrs"), items(new, "spec.cidrs"));
            if !after.starts_with(before) {
                check.invalid("spec.cidrs", &json!(after), "field is immutable");
            }
        }
        "ControllerRevision" => same(check, "data", old, new),
        "ResourceQuota" => {
            let scopes = |object: &Value| items(object, "spec.scopes").to_vec();
            if scopes(old) != scopes(new) {
                check.invalid("spec.scopes", &json!(scopes(new)), "field is immutable");
            }
        }
        _ => {}
    }
}

/// A job's template may change where its pods go while it is held back; the rest is fixed.
fn job(check: &mut Check, old: &Value, new: &Value) {
    for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
        same(check, &format!("spec.{field}"), old, new);
    }
    let number =
        |object: &Value, field: &str| at(object, &format!("spec.{field}")).and_then(Value::as_i64);
    if number(old, "completions") != number(new, "completions") {
        let indexed = text(new, "spec.completionMode") == "Indexed";
        // An indexed job grows and shrinks as a whole.
        if !indexed || number(new, "completions") != number(new, "parallelism") {
            same(check, "spec.completions", old, new);
        }
    }
    let held = at(old, "spec.suspend") == Some(&Value::Bool(true));
    let template = |object: &Value| -> Value {
        let mut template = at(object, "spec.template").cloned().unwrap_or(Value::Null);
        if held {
            if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
                for free in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                    spec.remove(free);
                }
            }
            if let Some(fields) = template.as_object_mut() {
                fields.remove("metadata");
            }
        }
        template
    };
    if template(old) != template(new) {
        let wanted = at(new, "spec.template").unwrap_or(&Value::Null);
        check.invalid("spec.template", wanted, "field is immutable");
    }
}

fn volume(check: &mut Check, old: &Value, new: &Value) {
    let source = |object: &Value| -> Vec<(String, Value)> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let all = super::storage::sources(spec).into_iter();
        all.map(|(field, value)| (field.clone(), value.clone())).collect()
    };
    if source(old) != source(new) {
        let why = "spec.persistentvolumesource is immutable after creation";
        check.forbidden("spec.persistentvolumesource", why);
    }
    same(check, "spec.volumeMode", old, new);
    if at(old, "spec.nodeAffinity").is_some() {
        same(check, "spec.nodeAffinity", old, new);
    }
}

/// Passing containers come and never change.
pub(super) fn check_ephemeral(check: &mut Check, old: &Value, new: &Value) {
    let path = "spec.ephemeralContainers";
    let (before, after) = (items(old, path), items(new, path));
    for had in before {
        let name = text(had, "name");
        match after.iter().find(|one| text(one, "name") == name) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                check.forbidden(path, &why);
            }
            Some(one) if one != had => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                check.forbidden(path, &why);
            }
            Some(_) => {}
        }
    }
    let mut names = std::collections::BTreeSet::new();
    for list in ["containers", "initContainers"] {
        for one in items(new, &format!("spec.{list}")) {
            names.insert(text(one, "name").to_owned());
        }
    }
    for (number, one) in after.iter().enumerate() {
        let place = format!("{path}[{number}]");
        let name = text(one, "name");
        check.name(&format!("{place}.name"), name, objects::name::check_dns_label);
        check.once(&format!("{place}.name"), name, &mut names);
        if text(one, "image").is_empty() {
            check.required(format!("{place}.image"), "");
        }
        for field in
            ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"]
        {
            let set = one.get(field).is_some_and(|v| v != &json!({}) && v != &json!([]));
            if set {
                let why = "cannot be set for an Ephemeral Container";
                check.forbidden(format!("{place}.{field}"), why);
            }
        }
    }
}

/// Running pods may be given more or less; how well they are served stays.
pub(super) fn check_resize(check: &mut Check, old: &Value, new: &Value) {
    let spec = |object: &Value| object.get("spec").cloned().unwrap_or(Value::Null);
    let (before, after) = (spec(old), spec(new));
    super::pod::check_spec(check, "spec", &after);
    if crate::defaults::qos_class(&before) != crate::defaults::qos_class(&after) {
        check.invalid("spec", &json!(""), "Pod QOS Class may not change as a result of resizing");
    }
    for (number, container) in items(new, "spec.containers").iter().enumerate() {
        for half in ["requests", "limits"] {
            let had = items(old, "spec.containers").get(number);
            let all = |one: Option<&Value>| -> Value {
                let mut all =
                    one.and_then(|one| one.get("resources").and_then(|all| all.get(half))).cloned();
                if let Some(fields) = all.as_mut().and_then(Value::as_object_mut) {
                    fields.remove("cpu");
                    fields.remove("memory");
                }
                all.filter(|all| all != &json!({})).unwrap_or(Value::Null)
            };
            if all(had) != all(Some(container)) {
                let path = format!("spec.containers[{number}].resources.{half}");
                check.forbidden(path, "only cpu and memory resources are mutable");
            }
        }
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
            "pod updates may not change fields other than \
             `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
             tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
             previously negative)",
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

/// The first address and family of a service are its for good, and so is the second as long as
/// it has two.
///
/// Spec: upstream's rules of upgrades and downgrades between one family and two.
fn service(check: &mut Check, old: &Value, new: &Value) {
    let outside = |object: &Value| text(object, "spec.type") == "ExternalName";
    let headless = |object: &Value| text(object, "spec.clusterIP") == "None";
    if outside(old) || outside(new) || headless(old) && headless(new) {
        return;
    }
    let mut fixed = |field: &str, of_first: bool| {
        let (before, after) = (items(old, field), items(new, field));
        let most = if before.len() == after.len() { before.len() } else { 1 };
        for (at, (had, has)) in before.iter().zip(after).take(most).enumerate() {
            if had != has {
                let at = if of_first { 0 } else { at };
                check.invalid(format!("{field}[{at}]"), &json!(after), "may not change once set");
            }
        }
    };
    fixed("spec.clusterIPs", false);
    if headless(old) == headless(new) {
        // Upstream names the first whichever it is.
        fixed("spec.ipFamilies", true);
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
        let (last, rest) = STATEFUL_SET_MAY_CHANGE.split_last().unwrap_or((&"", &[]));
        let why = format!(
            "updates to statefulset spec for fields other than '{}' and '{last}' are forbidden",
            rest.join("', '")
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
    // A class that is the default one now may be given to a claim from before.
    let beta = "/metadata/annotations/volume.beta.kubernetes.io~1storage-class";
    let classless = old.field("spec.storageClassName").is_none() && old.pointer(beta).is_none();
    let fixed = |object: &Value| -> Value {
        let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
        if let Some(fields) = spec.as_object_mut() {
            for field in ["resources", "volumeName", "volumeAttributesClassName"] {
                fields.remove(field);
            }
            if classless {
                fields.remove("storageClassName");
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
