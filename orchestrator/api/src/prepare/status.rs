//! Who may write which half of an object, and what a new object's status says.

use objects::field::Fields as _;
use objects::{Kind, Status, Time, field::str_at, kind};
use serde_json::{Map, Value, json};

use super::{Context, metadata::meta_mut};
use crate::{custom::remember_stored, json::put_in, request::Request, service::family};

/// Takes from a new object what its creator may not say, and adds what the server knows.
pub(super) fn reset_on_create(kind: &Kind, object: &mut Value, context: &Context<'_>) {
    let Some(fields) = object.as_object_mut() else { return };
    // A node describes itself when it registers; so upstream keeps that status.
    if kind.has_status && *kind != kind::NODE {
        fields.remove("status");
    }
    match kind.kind {
        "Namespace" => {
            fields.insert("status".to_owned(), json!({"phase": "Active"}));
            let spec = child(fields, "spec");
            spec.insert("finalizers".to_owned(), json!(["kubernetes"]));
            let name = str_at(object, "metadata.name").unwrap_or("").to_owned();
            if let Some(meta) = meta_mut(object) {
                child(meta, "labels").insert("kubernetes.io/metadata.name".to_owned(), json!(name));
            }
        }
        "CertificateSigningRequest" => {
            let spec = child(fields, "spec");
            for gone in ["uid", "extra"] {
                spec.remove(gone);
            }
            spec.insert("username".to_owned(), json!(context.user.name));
            if context.user.groups.is_empty() {
                spec.remove("groups");
            } else {
                spec.insert("groups".to_owned(), json!(context.user.groups));
            }
            if !context.user.uid.is_empty() {
                spec.insert("uid".to_owned(), json!(context.user.uid));
            }
            if !context.user.extra.is_empty() {
                spec.insert("extra".to_owned(), json!(context.user.extra));
            }
            fields.insert("status".to_owned(), json!({}));
        }
        "PersistentVolume" => {
            let now = Time::from(context.now).to_string();
            let status = json!({"phase": "Pending", "lastPhaseTransitionTime": now});
            fields.insert("status".to_owned(), status);
        }
        "PersistentVolumeClaim" => {
            fields.insert("status".to_owned(), json!({"phase": "Pending"}));
        }
        "Service" => {
            fields.insert("status".to_owned(), json!({"loadBalancer": {}}));
        }
        "ReplicaSet" | "ReplicationController" | "StatefulSet" => {
            fields.insert("status".to_owned(), json!({"replicas": 0}));
        }
        "Deployment" => {
            fields.insert("status".to_owned(), json!({}));
        }
        "DaemonSet" => {
            let none = json!({
                "currentNumberScheduled": 0, "numberMisscheduled": 0,
                "desiredNumberScheduled": 0, "numberReady": 0,
            });
            fields.insert("status".to_owned(), none);
        }
        "Job" => job_selector(fields),
        "CustomResourceDefinition" => definition_status(fields),
        "Pod" => {}
        _ if kind.has_status && *kind != kind::NODE && kind.group != "muster.dev" => {
            fields.insert("status".to_owned(), empty_status(kind));
        }
        _ => {}
    }
}

/// A status that says nothing yet: what upstream always writes of it.
fn empty_status(kind: &Kind) -> Value {
    match kind.kind {
        "PodDisruptionBudget" => json!({
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
        }),
        "HorizontalPodAutoscaler" => json!({"desiredReplicas": 0, "currentMetrics": null}),
        "Ingress" => json!({"loadBalancer": {}}),
        "VolumeAttachment" => json!({"attached": false}),
        _ => json!({}),
    }
}

/// The versions objects of a definition have ever been stored in: at first one.
fn definition_status(fields: &mut Map<String, Value>) {
    let versions = fields.get("spec").and_then(|spec| spec.get("versions")?.as_array());
    let stored: Vec<Value> = versions
        .into_iter()
        .flatten()
        .filter(|version| version.get("storage") == Some(&json!(true)))
        .filter_map(|version| version.get("name").cloned())
        .collect();
    let status = json!({
        "conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored,
    });
    fields.insert("status".to_owned(), status);
}

/// A job finds its pods by its own uid, unless its user says how.
fn job_selector(fields: &mut Map<String, Value>) {
    fields.insert("status".to_owned(), json!({}));
    let text = |key: &str| -> Value {
        let found = fields.get("metadata").and_then(|meta| meta.get(key));
        found.cloned().unwrap_or_else(|| json!(""))
    };
    let (uid, name) = (text("uid"), text("name"));
    let spec = child(fields, "spec");
    if spec.get("manualSelector") == Some(&json!(true)) {
        return;
    }
    let template = child(spec, "template");
    let labels = child(child(template, "metadata"), "labels");
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        labels.entry(key).or_insert_with(|| value.clone());
    }
    let selector = spec.entry("selector").or_insert_with(|| json!({}));
    if let Some(selector) = selector.as_object_mut() {
        child(selector, "matchLabels").insert("batch.kubernetes.io/controller-uid".to_owned(), uid);
    }
}

/// What built-in admission adds to a new object behind its defaults.
pub(super) fn admit_new(kind: &Kind, object: &mut Value) {
    if *kind == kind::POD {
        let class = crate::defaults::qos_class(object.get("spec").unwrap_or(&Value::Null));
        let status = json!({"phase": "Pending", "qosClass": class});
        if let Some(fields) = object.as_object_mut() {
            fields.insert("status".to_owned(), status);
            crate::defaults::admit_pod(child(fields, "spec"));
        }
    }
    let spec = object.get_mut("spec").and_then(Value::as_object_mut);
    if let Some(spec) = spec.filter(|_| *kind == kind::SERVICE) {
        family::link(spec);
    }
}

/// What built-in admission adds on an update.
pub(super) fn admit_update(kind: &Kind, old: &Value, new: &mut Value) {
    if *kind == kind::SERVICE {
        keep_assigned(old, new);
    }
    if *kind == kind::NAMESPACE {
        let name = str_at(new, "metadata.name").unwrap_or("").to_owned();
        if let Some(meta) = meta_mut(new) {
            child(meta, "labels").insert("kubernetes.io/metadata.name".to_owned(), json!(name));
        }
    }
}

/// A service keeps the address and node ports it was given when an update does not name them.
fn keep_assigned(old: &Value, new: &mut Value) {
    let kind_of = |object: &Value| str_at(object, "spec.type").unwrap_or("").to_owned();
    let (before, after) = (kind_of(old), kind_of(new));
    drop_foreign(&before, &after, old, new);
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if before == "ExternalName" || after == "ExternalName" {
        if after != "ExternalName" {
            family::link(spec);
        }
        return;
    }
    family::keep(old, spec);
    let with_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if !with_ports(&before) || !with_ports(&after) {
        return;
    }
    let had = old.field("spec.ports").and_then(Value::as_array);
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        let same = had.into_iter().flatten().find(|one| {
            one.get("port") == port.get("port") && one.get("protocol") == port.get("protocol")
        });
        if let Some(number) = same.and_then(|one| one.get("nodePort")) {
            port.entry("nodePort").or_insert_with(|| number.clone());
        }
    }
}

/// What a service of one type had and one of another cannot have goes, unless it was asked for.
fn drop_foreign(before: &str, after: &str, old: &Value, new: &mut Value) {
    let same = |field: &str, new: &Map<String, Value>| {
        new.get(field) == old.get("spec").and_then(|all| all.get(field))
    };
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if before != "ExternalName" && after == "ExternalName" && same("clusterIP", spec) {
        for field in ["clusterIP", "clusterIPs", "internalTrafficPolicy"] {
            spec.remove(field);
        }
    }
    if before != "ExternalName" && after == "ExternalName" {
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(field, spec) {
                spec.remove(field);
            }
        }
    }
    let with_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if with_ports(before) && !with_ports(after) {
        let ports = |spec: Option<&Value>| -> Vec<Option<Value>> {
            let all = spec.and_then(Value::as_array).into_iter().flatten();
            all.map(|port| port.get("nodePort").cloned()).collect()
        };
        if ports(spec.get("ports")) == ports(old.field("spec.ports")) {
            let all = spec.get_mut("ports").and_then(Value::as_array_mut);
            for port in all.into_iter().flatten().filter_map(Value::as_object_mut) {
                port.remove("nodePort");
            }
        }
        spec.remove("externalTrafficPolicy");
    }
    if before == "LoadBalancer" && after != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "healthCheckNodePort", "loadBalancerClass"] {
            if same(field, spec) {
                spec.remove(field);
            }
        }
    }
}

/// Keeps of `new` only what the request may change.
pub(super) fn separate(
    request: &Request,
    old: &Value,
    new: &mut Value,
    context: &Context<'_>,
) -> Result<(), Status> {
    match request.subresource.as_str() {
        "" => {
            if request.kind.has_status {
                keep(old, new, "status");
            }
            keep_fixed(request.kind, old, new);
            if *request.kind == kind::NAMESPACE {
                // Only `/finalize` lets go of a namespace.
                let finalizers = old.field("spec.finalizers").cloned();
                if let (Some(fields), Some(held)) = (new.as_object_mut(), finalizers) {
                    child(fields, "spec").insert("finalizers".to_owned(), held);
                }
            }
            if *request.kind == kind::CERTIFICATE_SIGNING_REQUEST {
                keep(old, new, "spec");
            }
            if *request.kind == kind::CUSTOM_RESOURCE_DEFINITION {
                // Nothing is ever stored in a version that is not written down.
                let spec = new.clone();
                if let Some(fields) = new.as_object_mut() {
                    remember_stored(&spec, child(fields, "status"));
                }
            }
        }
        "status" => {
            let status = new.get("status").cloned();
            let conditions = old.field("status.conditions").cloned();
            let metadata = new.get("metadata").cloned().unwrap_or_default();
            let managed = metadata.get("managedFields").cloned();
            *new = old.clone();
            set(new, "status", status);
            if takes_metadata(request) {
                let before = old.get("metadata").unwrap_or(&Value::Null);
                set(new, "metadata", Some(metadata_of_status(request.kind, before, metadata)));
            }
            if *request.kind == kind::CERTIFICATE_SIGNING_REQUEST {
                keep_decisions(new, conditions);
            }
            if let Some(meta) = meta_mut(new) {
                meta.remove("resourceVersion");
                put_in(meta, "managedFields", managed);
            }
        }
        "approval" => approve(old, new, context),
        "finalize" => {
            let finalizers = new.field("spec.finalizers").cloned();
            *new = old.clone();
            if let Some(meta) = meta_mut(new) {
                meta.remove("resourceVersion");
            }
            if let Some(fields) = new.as_object_mut() {
                put_in(child(fields, "spec"), "finalizers", finalizers);
            }
        }
        "ephemeralcontainers" => {
            let passing = new.field("spec.ephemeralContainers").cloned();
            *new = unversioned(old);
            if let Some(fields) = new.as_object_mut() {
                put_in(child(fields, "spec"), "ephemeralContainers", passing);
            }
        }
        "resize" => resize(old, new),
        _ => {
            return Err(Status::method_not_allowed(
                "the server does not allow this method on the requested resource",
            ));
        }
    }
    Ok(())
}

/// Takes the decisions on a signing request, and its metadata.
fn approve(old: &Value, new: &mut Value, context: &Context<'_>) {
    let conditions = new.field("status.conditions").cloned();
    let metadata = new.get("metadata").cloned();
    *new = old.clone();
    set(new, "metadata", metadata);
    if let Some(meta) = meta_mut(new) {
        meta.remove("resourceVersion");
    }
    if let Some(fields) = new.as_object_mut() {
        put_in(child(fields, "status"), "conditions", conditions);
    }
    stamp_conditions(new, context);
}

/// Does `/status` write metadata too? Where upstream does not let it, and of custom resources, the
/// status alone is taken.
pub(crate) fn takes_metadata(request: &Request) -> bool {
    let apart = [
        "APIService",
        "CustomResourceDefinition",
        "FlowSchema",
        "MutatingAdmissionPolicy",
        "PriorityLevelConfiguration",
        "ResourceClaim",
        "ValidatingAdmissionPolicy",
        "VolumeAttachment",
    ];
    request.custom.is_none()
        && request.kind.group != "muster.dev"
        && !apart.contains(&request.kind.kind)
}

/// Metadata as `/status` may leave it: who owns a pod and what a deployment is called for stay.
fn metadata_of_status(kind: &Kind, before: &Value, mut metadata: Value) -> Value {
    let kept = match kind.kind {
        "Deployment" => "labels",
        "Pod" => "ownerReferences",
        _ => return metadata,
    };
    if let Some(fields) = metadata.as_object_mut() {
        put_in(fields, kept, before.get(kept).cloned());
    }
    metadata
}

/// The stored object without the version it was read in.
fn unversioned(old: &Value) -> Value {
    let mut new = old.clone();
    if let Some(meta) = meta_mut(&mut new) {
        meta.remove("resourceVersion");
    }
    new
}

/// Only what containers get is taken from a resize.
fn resize(old: &Value, new: &mut Value) {
    let mut sized = unversioned(old);
    for list in ["containers", "initContainers"] {
        let path = format!("/spec/{list}");
        let wanted = new.pointer(&path).and_then(Value::as_array).cloned().unwrap_or_default();
        let containers = sized.pointer_mut(&path).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let same = wanted.iter().find(|one| one.get("name") == container.get("name"));
            for field in ["resources", "resizePolicy"] {
                if let Some(same) = same {
                    put_in(container, field, same.get(field).cloned());
                }
            }
        }
    }
    *new = sized;
}

/// Approval is `/approval`'s to say: `/status` keeps the decisions there are.
fn keep_decisions(new: &mut Value, before: Option<Value>) {
    let decision =
        |condition: &Value| matches!(str_at(condition, "type"), Some("Approved" | "Denied"));
    let mut kept: Vec<Value> =
        before.as_ref().and_then(Value::as_array).into_iter().flatten().cloned().collect();
    kept.retain(decision);
    let mut all: Vec<Value> = new
        .field("status.conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|condition| !decision(condition))
        .cloned()
        .collect();
    kept.append(&mut all);
    let all = if kept.is_empty() { None } else { Some(Value::Array(kept)) };
    if let Some(fields) = new.as_object_mut() {
        put_in(child(fields, "status"), "conditions", all);
    }
}

/// Gives conditions without times the time of the request.
fn stamp_conditions(object: &mut Value, context: &Context<'_>) {
    let now = json!(Time::from(context.now).to_string());
    let conditions = object.field_mut("status.conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        for key in ["lastUpdateTime", "lastTransitionTime"] {
            condition.entry(key).or_insert_with(|| now.clone());
        }
        condition.entry("status").or_insert_with(|| json!("True"));
    }
}

/// Puts back what old clients leave out of an update and only the server says.
fn keep_fixed(kind: &Kind, old: &Value, new: &mut Value) {
    if *kind != kind::JOB || old.field("spec.manualSelector") == Some(&json!(true)) {
        return;
    }
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let (None, Some(had)) = (spec.get("selector"), old.field("spec.selector")) {
        spec.insert("selector".to_owned(), had.clone());
    }
}

/// Puts a field back as it was.
fn keep(old: &Value, new: &mut Value, field: &str) {
    set(new, field, old.get(field).cloned());
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(fields) = object.as_object_mut() {
        put_in(fields, field, value);
    }
}

/// An object inside an object, made when missing.
pub(super) fn child<'a>(
    fields: &'a mut Map<String, Value>,
    key: &str,
) -> &'a mut Map<String, Value> {
    let value = fields.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    #[expect(clippy::expect_used, reason = "made an object two lines above")]
    value.as_object_mut().expect("an object")
}
