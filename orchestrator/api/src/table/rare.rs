//! Columns and rows of the kinds that are looked at less often.

mod columns;

use jiff::Timestamp;
use objects::field::Fields as _;
use objects::{
    field::{int_at, str_at, value_at},
    time,
};
use serde_json::{Value, json};

use self::columns::*;
use super::{
    Column, Layout,
    cells::{age, at, containers, count, items, labels, name, or_none, selector},
};

/// The layout of one of these kinds.
pub(super) fn layout(kind: &str) -> Option<Layout> {
    let (columns, cells): (&'static [Column], super::Cells) = match kind {
        "LimitRange" | "CustomResourceDefinition" => (CREATED, super::cells::role),
        "ResourceQuota" => (QUOTA, quota),
        "PodTemplate" => (TEMPLATE, template),
        "ControllerRevision" => (REVISION, revision),
        "Job" => (JOB, job),
        "CronJob" => (CRON_JOB, cron_job),
        "HorizontalPodAutoscaler" => (AUTOSCALER, autoscaler),
        "PodDisruptionBudget" => (BUDGET, budget),
        "Ingress" => (INGRESS, ingress),
        "IngressClass" => (INGRESS_CLASS, ingress_class),
        "NetworkPolicy" => (NETWORK_POLICY, network_policy),
        "ServiceCIDR" => (SERVICE_CIDR, service_cidr),
        "IPAddress" => (IP_ADDRESS, ip_address),
        "StorageClass" => (STORAGE_CLASS, storage_class),
        "VolumeAttachment" => (ATTACHMENT, attachment),
        "VolumeAttributesClass" => {
            (ATTRIBUTES_CLASS, |object, now| row(object, &["driverName"], now))
        }
        "CSIDriver" => (CSI_DRIVER, csi_driver),
        "CSINode" => (CSI_NODE, |object, now| counted(object, "spec.drivers", now)),
        "CSIStorageCapacity" => (CAPACITY, |object, _| {
            vec![
                json!(name(object)),
                json!(at(object, "storageClassName")),
                json!(at(object, "capacity")),
            ]
        }),
        "ResourceClaim" => (CLAIM, claim),
        "ResourceSlice" => (SLICE, slice),
        "FlowSchema" => (FLOW_SCHEMA, flow_schema),
        "PriorityLevelConfiguration" => (PRIORITY_LEVEL, priority_level),
        "PriorityClass" => (PRIORITY_CLASS, priority_class),
        "RuntimeClass" => (RUNTIME_CLASS, |object, now| row(object, &["handler"], now)),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            (WEBHOOKS, |object, now| counted(object, "webhooks", now))
        }
        "ValidatingAdmissionPolicy" => {
            (VALIDATING_POLICY, |object, now| policy(object, "spec.validations", now))
        }
        "MutatingAdmissionPolicy" => {
            (MUTATING_POLICY, |object, now| policy(object, "spec.mutations", now))
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            (POLICY_BINDING, policy_binding)
        }
        "APIService" => (API_SERVICE, api_service),
        _ => return None,
    };
    Some(Layout { columns, cells })
}

/// Name, some texts, age.
fn row(object: &Value, paths: &[&str], now: Timestamp) -> Vec<Value> {
    let mut cells = vec![json!(name(object))];
    cells.extend(paths.iter().map(|path| json!(at(object, path))));
    cells.push(json!(age(object, now)));
    cells
}

/// Name, how many, age.
fn counted(object: &Value, path: &str, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(items(object, path).len()), json!(age(object, now))]
}

/// A value in a word; `unset` where there is none.
fn word(object: &Value, path: &str, unset: &str) -> String {
    match value_at(object, path) {
        Some(Value::String(said)) if !said.is_empty() => said.clone(),
        None | Some(Value::Null | Value::String(_)) => unset.to_owned(),
        Some(other) => other.to_string(),
    }
}

fn flag(object: &Value, path: &str) -> bool {
    value_at(object, path).and_then(Value::as_bool).unwrap_or(false)
}

fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let hard = value_at(object, "status.hard").and_then(Value::as_object);
    for (resource, most) in hard.into_iter().flatten() {
        let used = object.field("status.used").and_then(|used| used.get(resource));
        let used = used.and_then(Value::as_str).unwrap_or("0");
        let said = format!("{resource}: {used}/{}", most.as_str().unwrap_or("0"));
        if resource.starts_with("limits.") { limits.push(said) } else { requests.push(said) }
    }
    vec![
        json!(name(object)),
        json!(requests.join(", ")),
        json!(limits.join(", ")),
        json!(age(object, now)),
    ]
}

fn template(object: &Value, _now: Timestamp) -> Vec<Value> {
    let all = |field: &str| -> String {
        let words: Vec<&str> =
            items(object, "template.spec.containers").iter().map(|one| at(one, field)).collect();
        words.join(",")
    };
    vec![
        json!(name(object)),
        json!(all("name")),
        json!(all("image")),
        json!(labels(object, "template.metadata.labels")),
    ]
}

fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = items(object, "metadata.ownerReferences")
        .iter()
        .find(|owner| owner.get("controller") == Some(&json!(true)));
    let controller = owner.map_or_else(
        || "<none>".to_owned(),
        |owner| {
            let kind = at(owner, "kind").to_ascii_lowercase();
            match at(owner, "apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", at(owner, "name")),
                None => format!("{kind}/{}", at(owner, "name")),
            }
        },
    );
    vec![
        json!(name(object)),
        json!(controller),
        json!(count(object, "revision")),
        json!(age(object, now)),
    ]
}

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let done = count(object, "status.succeeded");
    let completions = match int_at(object, "spec.completions") {
        Some(wanted) => format!("{done}/{wanted}"),
        None => match count(object, "spec.parallelism") {
            0 | 1 => format!("{done}/1"),
            many => format!("{done}/1 of {many}"),
        },
    };
    let since = str_at(object, "status.startTime").and_then(time::parse_time);
    let until = str_at(object, "status.completionTime").and_then(time::parse_time).unwrap_or(now);
    let duration = since
        .map(|since| super::cells::human_duration(time::seconds_between(since, until)))
        .unwrap_or_default();
    vec![
        json!(name(object)),
        json!(job_status(object)),
        json!(completions),
        json!(duration),
        json!(age(object, now)),
        json!(containers(object, "name")),
        json!(containers(object, "image")),
        json!(selector(object, "spec.selector")),
    ]
}

fn job_status(object: &Value) -> &'static str {
    let has = |kind: &str| {
        items(object, "status.conditions")
            .iter()
            .any(|one| at(one, "type") == kind && at(one, "status") == "True")
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if value_at(object, "metadata.deletionTimestamp").is_some() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let last = str_at(object, "status.lastScheduleTime").unwrap_or("");
    let last = if last.is_empty() { "<none>".to_owned() } else { super::cells::since(last, now) };
    let all = |field: &str| -> String {
        let path = "spec.jobTemplate.spec.template.spec.containers";
        let words: Vec<&str> = items(object, path).iter().map(|one| at(one, field)).collect();
        words.join(",")
    };
    vec![
        json!(name(object)),
        json!(at(object, "spec.schedule")),
        json!(or_none(at(object, "spec.timeZone"))),
        json!(if flag(object, "spec.suspend") { "True" } else { "False" }),
        json!(items(object, "status.active").len()),
        json!(last),
        json!(age(object, now)),
        json!(all("name")),
        json!(all("image")),
        json!(selector(object, "spec.jobTemplate.spec.selector")),
    ]
}

fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let current = items(object, "status.currentMetrics");
    let targets: Vec<String> = items(object, "spec.metrics")
        .iter()
        .enumerate()
        .map(|(index, metric)| metric_target(metric, current.get(index)))
        .collect();
    let targets = match targets.len() {
        0 => "<none>".to_owned(),
        many if many > 2 => {
            let shown: Vec<String> = targets.iter().take(2).cloned().collect();
            format!("{} + {} more...", shown.join(", "), many.saturating_sub(2))
        }
        _ => targets.join(", "),
    };
    let reference = format!(
        "{}/{}",
        at(object, "spec.scaleTargetRef.kind"),
        at(object, "spec.scaleTargetRef.name")
    );
    vec![
        json!(name(object)),
        json!(reference),
        json!(targets),
        json!(word(object, "spec.minReplicas", "<unset>")),
        json!(count(object, "spec.maxReplicas")),
        json!(count(object, "status.currentReplicas")),
        json!(age(object, now)),
    ]
}

/// `cpu: 12%/80%`: what is used of what is aimed at.
fn metric_target(metric: &Value, current: Option<&Value>) -> String {
    let source = match at(metric, "type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let path = |rest: &str| format!("{source}.{rest}");
    let figure = |value: Option<&Value>, half: &str| -> Option<String> {
        let value = value?;
        if let Some(percent) = int_at(value, &path(&format!("{half}.averageUtilization"))) {
            return Some(format!("{percent}%"));
        }
        let average = str_at(value, &path(&format!("{half}.averageValue")));
        average.or_else(|| str_at(value, &path(&format!("{half}.value")))).map(str::to_owned)
    };
    let used = figure(current, "current").unwrap_or_else(|| "<unknown>".to_owned());
    let aim = figure(Some(metric), "target").unwrap_or_else(|| "<auto>".to_owned());
    match at(metric, &path("name")) {
        "" => format!("{used}/{aim}"),
        resource => format!("{resource}: {used}/{aim}"),
    }
}

fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(word(object, "spec.minAvailable", "N/A")),
        json!(word(object, "spec.maxUnavailable", "N/A")),
        json!(count(object, "status.disruptionsAllowed")),
        json!(age(object, now)),
    ]
}

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut hosts: Vec<&str> = items(object, "spec.rules")
        .iter()
        .map(|rule| at(rule, "host"))
        .filter(|host| !host.is_empty())
        .collect();
    let more = hosts.len().saturating_sub(3);
    hosts.truncate(3);
    let hosts = match (hosts.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, 0) => hosts.join(","),
        (false, more) => format!("{} + {more} more...", hosts.join(",")),
    };
    let addresses: Vec<&str> = items(object, "status.loadBalancer.ingress")
        .iter()
        .map(|one| if at(one, "ip").is_empty() { at(one, "hostname") } else { at(one, "ip") })
        .collect();
    let ports = if items(object, "spec.tls").is_empty() { "80" } else { "80, 443" };
    vec![
        json!(name(object)),
        json!(or_none(at(object, "spec.ingressClassName"))),
        json!(hosts),
        json!(addresses.join(",")),
        json!(ports),
        json!(age(object, now)),
    ]
}

fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match value_at(object, "spec.parameters") {
        None => "<none>".to_owned(),
        Some(one) => {
            let kind = at(one, "kind");
            match at(one, "apiGroup") {
                "" => format!("{kind}/{}", at(one, "name")),
                group => format!("{kind}.{group}/{}", at(one, "name")),
            }
        }
    };
    vec![
        json!(name(object)),
        json!(at(object, "spec.controller")),
        json!(parameters),
        json!(age(object, now)),
    ]
}

fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let pods = selector(object, "spec.podSelector");
    vec![json!(name(object)), json!(pods), json!(age(object, now))]
}

fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let all: Vec<&str> = items(object, "spec.cidrs").iter().filter_map(Value::as_str).collect();
    vec![json!(name(object)), json!(all.join(",")), json!(age(object, now))]
}

fn ip_address(object: &Value, _now: Timestamp) -> Vec<Value> {
    let parts = ["group", "resource", "namespace", "name"];
    let said: Vec<&str> = parts
        .iter()
        .map(|part| str_at(object, &format!("spec.parentRef.{part}")).unwrap_or(""))
        .filter(|part| !part.is_empty())
        .collect();
    vec![json!(name(object)), json!(said.join("/"))]
}

fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let default = object.field("metadata.annotations").is_some_and(|all| {
        [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ]
        .iter()
        .any(|key| all.get(*key) == Some(&json!("true")))
    });
    let shown =
        if default { format!("{} (default)", name(object)) } else { name(object).to_owned() };
    vec![
        json!(shown),
        json!(at(object, "provisioner")),
        json!(word(object, "reclaimPolicy", "Delete")),
        json!(word(object, "volumeBindingMode", "Immediate")),
        json!(flag(object, "allowVolumeExpansion")),
        json!(age(object, now)),
    ]
}

fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(at(object, "spec.attacher")),
        json!(at(object, "spec.source.persistentVolumeName")),
        json!(at(object, "spec.nodeName")),
        json!(flag(object, "status.attached")),
        json!(age(object, now)),
    ]
}

fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let tokens: Vec<&str> =
        items(object, "spec.tokenRequests").iter().map(|one| at(one, "audience")).collect();
    let modes: Vec<&str> =
        items(object, "spec.volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    vec![
        json!(name(object)),
        json!(value_at(object, "spec.attachRequired").and_then(Value::as_bool).unwrap_or(true)),
        json!(flag(object, "spec.podInfoOnMount")),
        json!(flag(object, "spec.storageCapacity")),
        json!(if tokens.is_empty() { "<unset>".to_owned() } else { tokens.join(",") }),
        json!(flag(object, "spec.requiresRepublish")),
        json!(if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") }),
        json!(age(object, now)),
    ]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut states = Vec::new();
    if value_at(object, "metadata.deletionTimestamp").is_some() {
        states.push("deleted");
    }
    if value_at(object, "status.allocation").is_none() {
        states.push("pending");
    } else {
        states.push("allocated");
        if !items(object, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    vec![json!(name(object)), json!(states.join(",")), json!(age(object, now))]
}

fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(word(object, "spec.nodeName", "<unset>")),
        json!(at(object, "spec.driver")),
        json!(at(object, "spec.pool.name")),
        json!(age(object, now)),
    ]
}

fn flow_schema(object: &Value, now: Timestamp) -> Vec<Value> {
    let dangling =
        items(object, "status.conditions").iter().find(|one| at(one, "type") == "Dangling");
    vec![
        json!(name(object)),
        json!(at(object, "spec.priorityLevelConfiguration.name")),
        json!(count(object, "spec.matchingPrecedence")),
        json!(or_none(at(object, "spec.distinguisherMethod.type"))),
        json!(age(object, now)),
        json!(dangling.map_or("?", |one| at(one, "status"))),
    ]
}

fn priority_level(object: &Value, now: Timestamp) -> Vec<Value> {
    let queuing = "spec.limited.limitResponse.queuing";
    let figure = |path: &str| word(object, path, "<none>");
    vec![
        json!(name(object)),
        json!(at(object, "spec.type")),
        json!(figure("spec.limited.nominalConcurrencyShares")),
        json!(figure(&format!("{queuing}.queues"))),
        json!(figure(&format!("{queuing}.handSize"))),
        json!(figure(&format!("{queuing}.queueLengthLimit"))),
        json!(age(object, now)),
    ]
}

fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(count(object, "value")),
        json!(flag(object, "globalDefault")),
        json!(age(object, now)),
        json!(word(object, "preemptionPolicy", "PreemptLowerPriority")),
    ]
}

fn policy(object: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let param = match value_at(object, "spec.paramKind") {
        None => "<unset>".to_owned(),
        Some(kind) => format!("{}/{}", at(kind, "apiVersion"), at(kind, "kind")),
    };
    vec![
        json!(name(object)),
        json!(items(object, rules).len()),
        json!(param),
        json!(age(object, now)),
    ]
}

fn policy_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let param = match value_at(object, "spec.paramRef") {
        None => "<unset>".to_owned(),
        Some(one) => match (at(one, "namespace"), at(one, "name")) {
            (_, "") => "<selector>".to_owned(),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        },
    };
    vec![
        json!(name(object)),
        json!(at(object, "spec.policyName")),
        json!(param),
        json!(age(object, now)),
    ]
}

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = match value_at(object, "spec.service") {
        None => "Local".to_owned(),
        Some(one) => format!("{}/{}", at(one, "namespace"), at(one, "name")),
    };
    let available =
        items(object, "status.conditions").iter().find(|one| at(one, "type") == "Available");
    let available = match available {
        None => "Unknown".to_owned(),
        Some(one) if at(one, "status") == "True" => "True".to_owned(),
        Some(one) => format!("{} ({})", at(one, "status"), at(one, "reason")),
    };
    vec![json!(name(object)), json!(service), json!(available), json!(age(object, now))]
}
