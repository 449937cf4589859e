//! What objects get by classes they name, or by the class that is the default.

use objects::field::Fields as _;
use objects::{Kind, Status, field::str_at, kind};
use serde_json::{Value, json};

use super::{
    Admission,
    amount::{amounts, render},
};
use crate::json::put;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The priority of a pod by its class, or by the default class.
pub(super) fn resolve_priority(admission: &Admission<'_>, pod: &mut Value) -> Result<(), Status> {
    let named = str_at(pod, "spec.priorityClassName").unwrap_or("").to_owned();
    let class = if named.is_empty() {
        let all = admission.view().list(&kind::PRIORITY_CLASS, "");
        // Of several defaults the lowest counts.
        all.into_iter()
            .filter(|class| class.get("globalDefault") == Some(&json!(true)))
            .min_by_key(|class| class.get("value").and_then(Value::as_i64))
    } else {
        let class = admission.view().get(&kind::PRIORITY_CLASS, "", &named);
        let why = format!("no PriorityClass with name {named} was found");
        Some(class.ok_or_else(|| admission.forbid(pod, &why))?)
    };
    let value = class.as_ref().and_then(|class| class.get("value")?.as_i64()).unwrap_or(0);
    let preempts = class.as_ref().and_then(|class| class.get("preemptionPolicy").cloned());
    let preempts = preempts.unwrap_or_else(|| json!("PreemptLowerPriority"));
    let said = |key: &str| pod.get("spec").and_then(|all| all.get(key)).cloned();
    if said("priority").is_some_and(|own| own != json!(value)) {
        let why = "the integer value of priority must not be provided in pod spec; priority \
                   admission controller computed it from the given PriorityClass name";
        return Err(admission.forbid(pod, why));
    }
    if said("preemptionPolicy").is_some_and(|own| own != preempts) {
        let why = format!(
            "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority \
             admission controller computed {} from the given PriorityClass name",
            said("preemptionPolicy").as_ref().and_then(Value::as_str).unwrap_or(""),
            preempts.as_str().unwrap_or("")
        );
        return Err(admission.forbid(pod, &why));
    }
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    if let Some(name) = class.as_ref().and_then(|class| str_at(class, "metadata.name")) {
        put(spec, "priorityClassName", json!(name));
    }
    put(spec, "priority", json!(value));
    put(spec, "preemptionPolicy", preempts);
    Ok(())
}

/// One class may be the default.
pub(super) fn check_default_priority(
    admission: &Admission<'_>,
    class: &Value,
) -> Result<(), Status> {
    if class.get("globalDefault") != Some(&json!(true)) {
        return Ok(());
    }
    let own = str_at(class, "metadata.name");
    let all = admission.view().list(&kind::PRIORITY_CLASS, "");
    let other = all.iter().find(|other| {
        other.get("globalDefault") == Some(&json!(true)) && str_at(other, "metadata.name") != own
    });
    match other.and_then(|other| str_at(other, "metadata.name")) {
        None => Ok(()),
        Some(other) => {
            let why = format!(
                "PriorityClass {other} is already marked as default. Only one default can exist"
            );
            Err(admission.forbid(class, &why))
        }
    }
}

/// Pods stay a while on a node that is not ready.
pub(super) fn add_tolerations(admission: &Admission<'_>, pod: &mut Value) {
    let Some(seconds) = admission.view().settings().toleration_seconds else { return };
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    for key in [NOT_READY, UNREACHABLE] {
        let covered = list.iter().any(|one| {
            let text = |field: &str| str_at(one, field).unwrap_or("");
            (text("key") == key || text("key").is_empty())
                && matches!(text("effect"), "" | "NoExecute")
        });
        if !covered {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}));
        }
    }
}

/// A new node takes no pods before it is known to be ready.
pub(super) fn taint_new_node(node: &mut Value) {
    let Some(fields) = node.as_object_mut() else { return };
    let spec = fields.entry("spec").or_insert_with(|| json!({}));
    let Some(spec) = spec.as_object_mut() else { return };
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    let Some(taints) = taints.as_array_mut() else { return };
    let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
    let there = taints.iter().any(|one| {
        str_at(one, "key") == Some(NOT_READY) && str_at(one, "effect") == Some("NoSchedule")
    });
    if !there {
        taints.push(taint);
    }
}

/// What a way to run containers costs, and where it works.
pub(super) fn add_overhead(admission: &Admission<'_>, pod: &mut Value) -> Result<(), Status> {
    let named = str_at(pod, "spec.runtimeClassName").unwrap_or("").to_owned();
    if named.is_empty() {
        let said = amounts(pod.field("spec.overhead"));
        if !said.is_empty() {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined \
                       Overhead";
            return Err(admission.forbid(pod, why));
        }
        return Ok(());
    }
    let Some(class) = admission.view().get(&kind::RUNTIME_CLASS, "", &named) else {
        let why = format!("pod rejected: RuntimeClass \"{named}\" not found");
        return Err(admission.forbid(pod, &why));
    };
    let fixed = amounts(class.field("overhead.podFixed"));
    let said = amounts(pod.field("spec.overhead"));
    if !said.is_empty() && said != fixed {
        let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
        return Err(admission.forbid(pod, why));
    }
    let wanted = class.field("scheduling.nodeSelector").and_then(Value::as_object).cloned();
    let own = pod.field("spec.nodeSelector").and_then(Value::as_object).cloned();
    let mut merged = own.unwrap_or_default();
    for (key, value) in wanted.into_iter().flatten() {
        if merged.get(&key).is_some_and(|had| *had != value) {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector\
                 [{key}] = {}",
                value.as_str().unwrap_or(""),
                merged.get(&key).and_then(Value::as_str).unwrap_or("")
            );
            return Err(admission.forbid(pod, &why));
        }
        merged.insert(key, value);
    }
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    if !fixed.is_empty() {
        put(spec, "overhead", render(&fixed));
    }
    if !merged.is_empty() {
        put(spec, "nodeSelector", Value::Object(merged));
    }
    let more = class.field("scheduling.tolerations").and_then(Value::as_array);
    if let (Some(more), Some(spec)) = (more, spec.as_object_mut()) {
        let list = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            let new: Vec<Value> = more.iter().filter(|one| !list.contains(one)).cloned().collect();
            list.extend(new);
        }
    }
    Ok(())
}

/// The class that is the default by annotation; of several the newest, then the first by name.
fn default_class(admission: &Admission<'_>, kind: &Kind, annotations: &[&str]) -> Vec<String> {
    let mut all: Vec<Value> = admission.view().list(kind, "");
    all.retain(|class| {
        let said = class.field("metadata.annotations");
        annotations.iter().any(|key| said.and_then(|all| all.get(*key)) == Some(&json!("true")))
    });
    let text = |class: &Value, path: &str| str_at(class, path).unwrap_or("").to_owned();
    all.sort_by(|a, b| {
        let born = "metadata.creationTimestamp";
        let newest = text(b, born).cmp(&text(a, born));
        newest.then_with(|| text(a, "metadata.name").cmp(&text(b, "metadata.name")))
    });
    all.iter().map(|class| text(class, "metadata.name")).collect()
}

/// A claim that names no class gets the default one.
pub(super) fn choose_storage_class(admission: &Admission<'_>, claim: &mut Value) {
    let beta = "volume.beta.kubernetes.io/storage-class";
    let old_way = claim.field("metadata.annotations").and_then(|all| all.get(beta)).is_some();
    if old_way || claim.field("spec.storageClassName").is_some() {
        return;
    }
    let marks = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    let classes = default_class(admission, &kind::STORAGE_CLASS, &marks);
    if let (Some(name), Some(spec)) = (classes.first(), claim.get_mut("spec")) {
        put(spec, "storageClassName", json!(name));
    }
}

/// An ingress that names no class gets the default one.
pub(super) fn choose_ingress_class(
    admission: &Admission<'_>,
    ingress: &mut Value,
) -> Result<(), Status> {
    let old = "kubernetes.io/ingress.class";
    let old_way = ingress.field("metadata.annotations").and_then(|all| all.get(old)).is_some();
    if old_way || ingress.field("spec.ingressClassName").is_some() {
        return Ok(());
    }
    let marks = ["ingressclass.kubernetes.io/is-default-class"];
    let classes = default_class(admission, &kind::INGRESS_CLASS, &marks);
    if let (Some(name), Some(spec)) = (classes.first(), ingress.get_mut("spec")) {
        put(spec, "ingressClassName", json!(name));
    }
    Ok(())
}

/// Holds an object for as long as it is in use.
pub(super) fn protect(admission: &Admission<'_>, object: &mut Value, finalizer: &str) {
    if !admission.view().settings().storage_protection {
        return;
    }
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let list = meta.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|one| one == finalizer)
    {
        list.push(json!(finalizer));
    }
}

/// Only claims whose class allows it grow.
pub(super) fn check_resize(admission: &Admission<'_>, claim: &Value) -> Result<(), Status> {
    let Some(old) = admission.old else { return Ok(()) };
    let size =
        |claim: &Value| amounts(claim.field("spec.resources.requests")).get("storage").copied();
    let grows = size(claim) > size(old) && str_at(old, "status.phase") == Some("Bound");
    let class = str_at(claim, "spec.storageClassName").unwrap_or("");
    let class = admission.view().get(&kind::STORAGE_CLASS, "", class);
    let allowed =
        class.is_some_and(|class| class.get("allowVolumeExpansion") == Some(&json!(true)));
    if grows && !allowed {
        let why = "only dynamically provisioned pvc can be resized and the storageclass that \
                   provisions the pvc must support resize";
        return Err(admission.forbid(claim, why));
    }
    Ok(())
}
