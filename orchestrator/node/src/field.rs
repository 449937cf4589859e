//! Values of a pod's own fields, for variables and downward API files.
//!
//! Spec: upstream's downward API: `metadata.*`, `spec.nodeName`, `spec.serviceAccountName`,
//! `status.*IP*`, and amounts of resources with a divisor.

use std::collections::BTreeMap;

use objects::Quantity;
use objects::pod::{Pod, ResourceFieldSelector};

/// What a node has to give, where a container sets no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allocatable {
    /// CPU in thousandths.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
}

/// The value of a field; `None` when there is no such field.
///
/// A field that is there but has no value yet gives the empty text.
#[must_use]
pub fn field_value(pod: &Pod, path: &str) -> Option<String> {
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return None,
        };
        return Some(map.get(key).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "metadata.labels" => lines(&pod.metadata.labels),
        "metadata.annotations" => lines(&pod.metadata.annotations),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => pod.status.host_ip.clone(),
        "status.hostIPs" => joined(&pod.status.host_ips),
        "status.podIP" => pod.status.pod_ip.clone(),
        "status.podIPs" => joined(&pod.status.pod_ips),
        _ => return None,
    })
}

/// The value of a resource field, rounded up to a multiple of its divisor.
#[must_use]
pub fn resource_value(
    pod: &Pod,
    own: &str,
    selector: &ResourceFieldSelector,
    node: Allocatable,
) -> Option<String> {
    let name = if selector.container_name.is_empty() { own } else { &selector.container_name };
    let mut all = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let resources = &all.find(|container| container.name == name)?.resources;
    let (kind, resource) = selector.resource.split_once('.')?;
    let given = match kind {
        "limits" => resources.limits.get(resource),
        "requests" => resources.requests.get(resource),
        _ => return None,
    };
    let node = match resource {
        "cpu" => Quantity::from_milli(node.cpu_milli),
        "memory" => Quantity::from_bytes(node.memory_bytes),
        _ => Quantity::from_whole(0),
    };
    let absent = if kind == "limits" { node } else { Quantity::from_whole(0) };
    let amount = given.copied().unwrap_or(absent);
    let divisor = selector.divisor.filter(|d| !d.is_zero()).unwrap_or(Quantity::from_whole(1));
    Some(amount.divide_up(&divisor).to_string())
}

/// `metadata.labels['a/b']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    Some((map, key.strip_prefix('\'')?.strip_suffix('\'')?))
}

/// One `key="value"` per line, escaped as upstream (Go's `%q`) does for what labels may hold.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

fn joined(entries: &[objects::pod::IpEntry]) -> String {
    entries.iter().map(|entry| entry.ip.as_str()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a/b": "c", "d": "e \"f\""}},
            "spec": {"nodeName": "w", "containers": [{"name": "m", "resources": {"limits": {"memory": "100Mi"}, "requests": {"cpu": "250m"}}}]},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        assert_eq!(field_value(&pod(), path).as_deref(), expected);
    }

    #[test]
    fn fields_are_found_by_path() {
        check("metadata.name", Some("p"));
        check("metadata.labels", Some("a/b=\"c\"\nd=\"e \\\"f\\\"\""));
        check("metadata.labels['a/b']", Some("c"));
        check("metadata.annotations['none']", Some(""));
        check("status.podIPs", Some("10.0.0.1,fd00::1"));
        check("status.hostIP", Some(""));
        check("spec.containers", None);
    }

    #[test]
    fn amounts_are_divided_and_rounded_up() {
        let check = |resource: &str, divisor: Option<&str>, expected: Option<&str>| {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
            let node = Allocatable { cpu_milli: 2000, memory_bytes: 1 << 30 };
            assert_eq!(resource_value(&pod(), "m", &selector, node).as_deref(), expected);
        };
        check("limits.memory", Some("1Mi"), Some("100"));
        check("requests.cpu", None, Some("1"));
        check("requests.cpu", Some("1m"), Some("250"));
        check("limits.cpu", None, Some("2"));
        check("other.cpu", None, None);
    }
}
