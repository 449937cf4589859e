//! Rules an object must keep beyond its shape.
//!
//! Paths and reasons are upstream's, since kubectl shows them and programs look at them; the
//! sentences are our own.
//!
//! *Limits*: what the rarer fields of pods may say (windows, ephemeral containers, resource
//! claims, probes over gRPC) is not checked beyond its shape.

mod batch;
mod cluster;
mod device;
mod metadata;
mod network;
mod pod;
mod policy;
mod service;
mod storage;
mod update;
mod workload;

use std::collections::BTreeSet;

use objects::field::Fields as _;
use objects::{Cause, Kind};
use serde_json::{Value, json};

/// Checks a new object, defaults filled in.
pub(crate) fn validate_create(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut check = Check::default();
    metadata::check(&mut check, kind, object);
    object_rules(&mut check, kind, object);
    check.causes
}

/// Checks the metadata of an object of any kind.
pub(crate) fn validate_metadata(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut check = Check::default();
    metadata::check(&mut check, kind, object);
    check.causes
}

/// Checks a changed object, defaults filled in.
pub(crate) fn validate_update(
    kind: &Kind,
    subresource: &str,
    old: &Value,
    new: &Value,
) -> Vec<Cause> {
    let mut check = Check::default();
    metadata::check(&mut check, kind, new);
    match subresource {
        "" => {
            object_rules(&mut check, kind, new);
            update::check(&mut check, kind, old, new);
        }
        "approval" => cluster::check_approval(&mut check, old, new),
        "ephemeralcontainers" => update::check_ephemeral(&mut check, old, new),
        "resize" => update::check_resize(&mut check, old, new),
        _ => {}
    }
    check.causes
}

fn object_rules(check: &mut Check, kind: &Kind, object: &Value) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    match kind.kind {
        "Pod" => pod::check_spec(check, "spec", spec),
        "Service" => service::check(check, spec),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            workload::check(check, kind, spec);
        }
        "ReplicationController" => workload::check_older(check, spec),
        "ConfigMap" | "Secret" => cluster::check_data(check, kind, object),
        "Node" => cluster::check_node(check, spec),
        "Event" => cluster::check_event(check, object),
        "EndpointSlice" => network::check_slice(check, object),
        "Endpoints" => network::check_endpoints(check, object),
        "CertificateSigningRequest" => cluster::check_csr(check, spec),
        "Lease" => cluster::check_lease(check, spec),
        "Machine" => cluster::check_machine(check, spec),
        "Rack" => cluster::check_rack(check, spec),
        _ => rarer_rules(check, kind, object, spec),
    }
}

fn rarer_rules(check: &mut Check, kind: &Kind, object: &Value, spec: &Value) {
    match kind.kind {
        "Job" => batch::check_job(check, spec),
        "CronJob" => batch::check_cron_job(check, object, spec),
        "HorizontalPodAutoscaler" => batch::check_autoscaler(check, spec),
        "PodDisruptionBudget" => batch::check_budget(check, spec),
        "PodTemplate" => {
            let pods = object.field("template.spec").unwrap_or(&Value::Null);
            pod::check_spec(check, "template.spec", pods);
        }
        "ControllerRevision" => {
            if object.get("data").is_none() {
                check.required("data", "data is mandatory");
            }
            check.not_negative("revision", object.get("revision"));
        }
        "PersistentVolume" => storage::check_volume(check, spec),
        "PersistentVolumeClaim" => storage::check_claim(check, spec),
        "StorageClass" => storage::check_class(check, object),
        "CSIStorageCapacity" => {
            let class = text(object, "storageClassName");
            check.rule("storageClassName", class, objects::name::check_dns_subdomain);
        }
        "DeviceClass" => device::check_class(check, spec),
        "ResourceClaim" => device::check_claim(check, "spec", spec),
        "ResourceClaimTemplate" => {
            device::check_claim(check, "spec.spec", spec.get("spec").unwrap_or(&Value::Null));
        }
        "ResourceSlice" => device::check_slice(check, spec),
        "VolumeAttachment" => storage::check_attachment(check, spec),
        "CSINode" => storage::check_node_drivers(check, spec),
        "CSIDriver" => storage::check_driver(check, spec),
        "VolumeAttributesClass" if text(object, "driverName").is_empty() => {
            check.required("driverName", "");
        }
        "Ingress" => network::check_ingress(check, spec),
        "IngressClass" => network::check_ingress_class(check, spec),
        "NetworkPolicy" => network::check_policy(check, spec),
        "ServiceCIDR" => network::check_service_cidr(check, spec),
        "IPAddress" => network::check_ip_address(check, object, spec),
        "APIService" => cluster::check_api_service(check, object, spec),
        "Role" | "ClusterRole" => policy::check_role(check, kind, object),
        "RoleBinding" | "ClusterRoleBinding" => policy::check_binding(check, kind, object),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            policy::check_webhooks(check, object);
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            policy::check_admission_policy(check, kind, spec);
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            policy::check_policy_binding(check, kind, spec);
        }
        "PriorityClass" => policy::check_priority(check, object),
        "RuntimeClass" => {
            check.name("handler", text(object, "handler"), objects::name::check_dns_label);
        }
        "LimitRange" => policy::check_limits(check, spec),
        "ResourceQuota" => policy::check_quota(check, spec),
        "FlowSchema" => policy::check_flow_schema(check, spec),
        "PriorityLevelConfiguration" => policy::check_priority_level(check, spec),
        _ => {}
    }
}

/// Checks what an event of events.k8s.io must say besides what one of the core group must.
pub(crate) fn validate_newer_event(object: &Value) -> Vec<Cause> {
    let mut check = Check::default();
    cluster::check_newer_event(&mut check, object);
    check.causes
}

/// Collects mistakes.
#[derive(Debug, Default)]
struct Check {
    causes: Vec<Cause>,
}

impl Check {
    fn required(&mut self, path: impl Into<String>, why: &str) {
        self.causes.push(Cause::required(path, why));
    }

    fn invalid(&mut self, path: impl Into<String>, value: &Value, why: &str) {
        self.causes.push(Cause::invalid(path, value, why));
    }

    fn forbidden(&mut self, path: impl Into<String>, why: &str) {
        self.causes.push(Cause::forbidden(path, why));
    }

    fn duplicate(&mut self, path: impl Into<String>, value: &Value) {
        self.causes.push(Cause::duplicate(path, value));
    }

    /// A text that must be there and keep a rule.
    fn name(&mut self, path: &str, text: &str, rule: fn(&str) -> Result<(), &'static str>) {
        if text.is_empty() {
            self.required(path, "");
        } else {
            self.rule(path, text, rule);
        }
    }

    /// A text that must keep a rule.
    fn rule(&mut self, path: &str, text: &str, rule: fn(&str) -> Result<(), &'static str>) {
        if let Err(why) = rule(text) {
            self.invalid(path, &json!(text), why);
        }
    }

    /// A text that must be one of some, where it is there.
    fn one_of(&mut self, path: &str, value: Option<&Value>, allowed: &[&str]) {
        if let Some(Value::String(text)) = value
            && !allowed.contains(&text.as_str())
        {
            self.causes.push(Cause::unsupported(path, &json!(text), allowed));
        }
    }

    /// A number that must lie in a range, where it is there.
    fn range(&mut self, path: &str, value: Option<&Value>, low: i64, high: i64) {
        let Some(number) = value.and_then(Value::as_i64) else { return };
        if number >= low && number <= high {
            return;
        }
        let why = if high == i64::MAX {
            format!("must be greater than or equal to {low}")
        } else {
            format!("must be between {low} and {high}, inclusive")
        };
        self.invalid(path, &json!(number), &why);
    }

    fn not_negative(&mut self, path: &str, value: Option<&Value>) {
        self.range(path, value, 0, i64::MAX);
    }

    /// A value that may stand once.
    fn once(&mut self, path: &str, text: &str, seen: &mut BTreeSet<String>) {
        if !text.is_empty() && !seen.insert(text.to_owned()) {
            self.duplicate(path, &json!(text));
        }
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    objects::field::str_at(value, path).unwrap_or("")
}

fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    objects::field::value_at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod rare_tests;
#[cfg(test)]
mod tests;
