//! Resource quotas: what a namespace may use in all, charged when it is asked for.
//!
//! A write is checked against every quota that counts it, and charged to all of them or to none.
//! The API server holds a lock from reading the quotas until they and the object are written, so
//! two writes never share what is left. What is freed a controller gives back.
//!
//! *Limits*: devices of claims (`…/devices`) are not counted; objects of kinds that definitions
//! add are, as `count/PLURAL.GROUP`.

use objects::field::Fields as _;
use objects::{Kind, Quantity, Status, field::str_at};
use serde_json::{Value, json};

use super::amount::{Amounts, add, amounts, of_container, of_pod, render, shown};
use crate::{json::put, request::Request};

/// Kinds that have had a name of their own since before `count/…`.
const NAMED: &[&str] = &["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];

/// Charges a write to the quotas of its namespace.
///
/// Returns the quotas that change, with their new `status.used`; none when nothing is counted.
/// `old` is `None` when the object is new.
///
/// # Errors
///
/// 403 when a quota would be exceeded, when its limits are not known yet, or when it limits a
/// resource of pods that a container leaves unsaid.
pub fn charge(
    request: &Request,
    quotas: &[Value],
    old: Option<&Value>,
    new: &Value,
) -> Result<Vec<Value>, Status> {
    let before = old.map(|old| usage(request.kind, old)).unwrap_or_default();
    let mut wanted = Amounts::new();
    for (name, amount) in usage(request.kind, new) {
        let more = before.get(&name).map_or(amount, |had| amount.sub(had));
        if !more.is_zero() && !more.is_negative() {
            wanted.insert(name, more);
        }
    }
    let name = str_at(new, "metadata.name").unwrap_or("");
    let forbid = |why: &str| Status::forbidden(request.kind, name, why);
    let mut changed = Vec::new();
    for quota in quotas.iter().filter(|quota| counts(quota, request.kind, new)) {
        let own = str_at(quota, "metadata.name").unwrap_or("");
        let limits = amounts(quota.field("spec.hard"));
        let known = amounts(quota.field("status.hard"));
        if request.kind.kind == "Pod" && old.is_none() {
            let unsaid = unsaid(new, &limits);
            if !unsaid.is_empty() {
                return Err(forbid(&format!("failed quota: {own}: must specify {unsaid}")));
            }
        }
        let asked: Amounts = restricted(&wanted, &limits);
        if asked.is_empty() {
            continue;
        }
        let unknown: Vec<&str> =
            asked.keys().filter(|name| !known.contains_key(*name)).map(String::as_str).collect();
        if !unknown.is_empty() {
            let why = format!("status unknown for quota: {own}, resources: {}", unknown.join(","));
            return Err(forbid(&why));
        }
        let used = amounts(quota.field("status.used"));
        let mut sum = used.clone();
        add(&mut sum, &asked);
        let over: Vec<&String> =
            asked.keys().filter(|name| sum.get(*name) > known.get(*name)).collect();
        if !over.is_empty() {
            let only = |all: &Amounts| -> String {
                let zero = Quantity::from_whole(0);
                let part =
                    over.iter().map(|&name| (name.clone(), all.get(name).copied().unwrap_or(zero)));
                shown(&part.collect())
            };
            let why = format!(
                "exceeded quota: {own}, requested: {}, used: {}, limited: {}",
                only(&asked),
                only(&used),
                only(&known)
            );
            return Err(forbid(&why));
        }
        let mut quota = quota.clone();
        if let Some(status) = quota.get_mut("status") {
            put(status, "used", render(&sum));
        }
        changed.push(quota);
    }
    Ok(changed)
}

/// Is this a write that quotas may count?
#[must_use]
pub fn is_counted(request: &Request, is_new: bool) -> bool {
    let grows = matches!(request.kind.kind, "Service" | "PersistentVolumeClaim");
    let resizes = request.kind.kind == "Pod" && request.subresource == "resize";
    request.kind.namespaced
        && ((request.is_main() && (is_new || grows)) || resizes)
        && !matches!(request.kind.kind, "Event" | "Lease")
}

/// What an object counts for: each name a quota may use, and how much.
#[must_use]
pub fn usage(kind: &Kind, object: &Value) -> std::collections::BTreeMap<String, Quantity> {
    let one = Quantity::from_whole(1);
    let mut all = Amounts::new();
    all.insert(format!("count/{}", kind.qualified_plural()), one);
    if kind.group.is_empty() && NAMED.contains(&kind.plural) {
        all.insert(kind.plural.to_owned(), one);
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => pod_usage(object, &mut all),
        ("", "Service") => service_usage(object, &mut all),
        ("", "PersistentVolumeClaim") => claim_usage(object, &mut all),
        _ => {}
    }
    all
}

fn pod_usage(pod: &Value, all: &mut Amounts) {
    // What has ended keeps its place in the store and nothing else.
    if matches!(str_at(pod, "status.phase"), Some("Succeeded" | "Failed")) {
        return;
    }
    all.insert("pods".to_owned(), Quantity::from_whole(1));
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    for (name, amount) in of_pod(spec, "requests") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            all.insert(name.clone(), amount);
        }
        all.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in of_pod(spec, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            all.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service_usage(service: &Value, all: &mut Amounts) {
    all.insert("services".to_owned(), Quantity::from_whole(1));
    let kind = str_at(service, "spec.type").unwrap_or("");
    let ports = service.field("spec.ports").and_then(Value::as_array).map_or(0, Vec::len);
    let ports = Quantity::from_whole(i64::try_from(ports).unwrap_or(i64::MAX));
    let allocates = service.field("spec.allocateLoadBalancerNodePorts") != Some(&json!(false));
    if kind == "NodePort" || (kind == "LoadBalancer" && allocates) {
        all.insert("services.nodeports".to_owned(), ports);
    }
    if kind == "LoadBalancer" {
        all.insert("services.loadbalancers".to_owned(), Quantity::from_whole(1));
    }
}

fn claim_usage(claim: &Value, all: &mut Amounts) {
    let one = Quantity::from_whole(1);
    let size = amounts(claim.field("spec.resources.requests")).get("storage").copied();
    let size = size.unwrap_or(Quantity::from_whole(0));
    all.insert("persistentvolumeclaims".to_owned(), one);
    all.insert("requests.storage".to_owned(), size);
    if let Some(class) = str_at(claim, "spec.storageClassName").filter(|class| !class.is_empty()) {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        all.insert(format!("{prefix}/requests.storage"), size);
        all.insert(format!("{prefix}/persistentvolumeclaims"), one);
    }
}

/// The part of `wanted` that a quota limits.
fn restricted(wanted: &Amounts, limits: &Amounts) -> Amounts {
    let part = wanted.iter().filter(|(name, _)| limits.contains_key(*name));
    part.map(|(name, amount)| (name.clone(), *amount)).collect()
}

/// Which containers leave unsaid what a quota limits: `limits.cpu for: main; memory for: main`.
fn unsaid(pod: &Value, limits: &Amounts) -> String {
    let mut words = Vec::new();
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let whole = |half: &str, name: &str| {
        amounts(spec.get("resources").and_then(|all| all.get(half))).contains_key(name)
    };
    for limited in limits.keys() {
        let (half, name) = match limited.split_once('.') {
            Some((half @ ("limits" | "requests"), name)) => (half, name),
            None if matches!(limited.as_str(), "cpu" | "memory") => ("requests", limited.as_str()),
            _ => continue,
        };
        // Only these two must be said; all else is nothing when unsaid.
        if !matches!(name, "cpu" | "memory") || whole(half, name) {
            continue;
        }
        let containers = ["containers", "initContainers"]
            .iter()
            .filter_map(|list| spec.get(*list)?.as_array())
            .flatten();
        let names: Vec<&str> = containers
            .filter(|one| !of_container(one, half).contains_key(name))
            .filter_map(|one| one.get("name")?.as_str())
            .collect();
        if !names.is_empty() {
            words.push(format!("{limited} for: {}", names.join(",")));
        }
    }
    words.join("; ")
}

/// Does a quota count this object? One without scopes counts all.
fn counts(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let scopes = quota.field("spec.scopes").and_then(Value::as_array);
    let plain = scopes.into_iter().flatten().filter_map(Value::as_str);
    let terms = quota.field("spec.scopeSelector.matchExpressions").and_then(Value::as_array);
    let mut all: Vec<(&str, &str, Vec<&str>)> =
        plain.map(|scope| (scope, "Exists", Vec::new())).collect();
    for term in terms.into_iter().flatten() {
        let text = |key: &str| term.get(key).and_then(Value::as_str).unwrap_or("");
        let values = term.get("values").and_then(Value::as_array).into_iter().flatten();
        all.push((text("scopeName"), text("operator"), values.filter_map(Value::as_str).collect()));
    }
    if all.is_empty() {
        return true;
    }
    all.iter().all(|(scope, operator, values)| match kind.kind {
        "Pod" => pod_scope(object, scope, operator, values),
        "PersistentVolumeClaim" if *scope == "VolumeAttributesClass" => {
            let class = str_at(object, "spec.volumeAttributesClassName").unwrap_or("");
            operator_holds(operator, class, values)
        }
        _ => false,
    })
}

fn pod_scope(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let ends = spec.get("activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|s| s >= 0);
    let best_effort = crate::defaults::qos_class(spec) == "BestEffort";
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = str_at(pod, "spec.priorityClassName").unwrap_or("");
            operator_holds(operator, class, values)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        _ => false,
    }
}

fn operator_holds(operator: &str, said: &str, values: &[&str]) -> bool {
    match operator {
        "Exists" => !said.is_empty(),
        "DoesNotExist" => said.is_empty(),
        "In" => values.contains(&said),
        "NotIn" => !values.contains(&said),
        _ => false,
    }
}

/// Does any affinity name other namespaces?
fn crosses_namespaces(spec: &Value) -> bool {
    fn names(value: &Value) -> bool {
        match value {
            Value::Object(fields) => {
                let own = fields.get("namespaces").and_then(Value::as_array);
                own.is_some_and(|all| !all.is_empty())
                    || fields.contains_key("namespaceSelector")
                    || fields.values().any(names)
            }
            Value::Array(items) => items.iter().any(names),
            _ => false,
        }
    }
    let affinity =
        |half: &str| spec.get("affinity").and_then(|all| all.get(half)).is_some_and(names);
    affinity("podAffinity") || affinity("podAntiAffinity")
}
