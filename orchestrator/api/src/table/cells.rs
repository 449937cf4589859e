//! The rows of all kinds but pods.

use jiff::Timestamp;
use objects::field::{int_at, str_at, value_at};
use serde_json::{Value, json};

/// As many endpoints are shown before `+ N more...`.
const ENDPOINTS_SHOWN: usize = 3;

pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// The object's name.
pub(super) fn name(object: &Value) -> &str {
    str_at(object, "metadata.name").unwrap_or("")
}

pub(super) fn at<'a>(object: &'a Value, path: &str) -> &'a str {
    str_at(object, path).unwrap_or("")
}

pub(super) fn count(object: &Value, path: &str) -> i64 {
    int_at(object, path).unwrap_or(0)
}

pub(super) fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    value_at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn size(object: &Value, path: &str) -> usize {
    value_at(object, path).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

/// How long ago the object was made.
pub(super) fn age(object: &Value, now: Timestamp) -> String {
    since(at(object, "metadata.creationTimestamp"), now)
}

pub(super) fn since(time: &str, now: Timestamp) -> String {
    match objects::time::parse_time(time) {
        Some(then) => human_duration(objects::time::seconds_between(then, now)),
        None => "<unknown>".to_owned(),
    }
}

/// A duration with two units at most, the finer one only while it matters.
pub(super) fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let years = days / 365;
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(days, "d", hours % 24, "h"),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => pair(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// A map as `a=b,c=d`.
pub(super) fn labels(object: &Value, path: &str) -> String {
    let pairs: Vec<String> = value_at(object, path)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A label selector in text.
pub(super) fn selector(object: &Value, path: &str) -> String {
    let Some(value) = value_at(object, path) else { return "<none>".to_owned() };
    if value.get("matchLabels").is_none() && value.get("matchExpressions").is_none() {
        return labels(object, path);
    }
    let compiled = serde_json::from_value::<objects::LabelSelector>(value.clone())
        .ok()
        .and_then(|selector| selector.compile());
    match compiled {
        Some(selector) if !selector.is_empty() => selector.to_string(),
        Some(_) => "<none>".to_owned(),
        None => "<error>".to_owned(),
    }
}

pub(super) fn containers(object: &Value, field: &str) -> String {
    let all = items(object, "spec.template.spec.containers");
    let all: Vec<&str> = all.iter().map(|container| at(container, field)).collect();
    all.join(",")
}

fn shorten(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(ENDPOINTS_SHOWN);
    all.truncate(ENDPOINTS_SHOWN);
    match (all.is_empty(), more) {
        (true, _) => "<none>".to_owned(),
        (false, 0) => all.join(","),
        (false, more) => format!("{} + {more} more...", all.join(",")),
    }
}

pub(super) fn plain(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(age(object, now))]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(at(object, "status.phase")), json!(age(object, now))]
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = items(object, "status.conditions").iter().find(|c| at(c, "type") == "Ready");
    let mut status = match ready.map(|condition| at(condition, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if value_at(object, "spec.unschedulable").and_then(Value::as_bool) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles = Vec::new();
    let all = value_at(object, "metadata.labels").and_then(Value::as_object);
    for (key, value) in all.into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.push(value.as_str().unwrap_or(""));
        }
    }
    let address = |kind: &str| -> String {
        let found = items(object, "status.addresses").iter().find(|a| at(a, "type") == kind);
        or_none(found.map_or("", |a| at(a, "address"))).to_owned()
    };
    let info = |field: &str| -> String {
        let said = at(object, &format!("status.nodeInfo.{field}"));
        if said.is_empty() { "<unknown>".to_owned() } else { said.to_owned() }
    };
    vec![
        json!(name(object)),
        json!(status),
        json!(or_none(&roles.join(","))),
        json!(age(object, now)),
        json!(at(object, "status.nodeInfo.kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(info("osImage")),
        json!(info("kernelVersion")),
        json!(info("containerRuntimeVersion")),
    ]
}

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let strings = |path: &str| -> Vec<String> {
        items(object, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let external = strings("spec.externalIPs");
    let ingress: Vec<String> = items(object, "status.loadBalancer.ingress")
        .iter()
        .map(|one| {
            let ip = at(one, "ip");
            if ip.is_empty() { at(one, "hostname") } else { ip }.to_owned()
        })
        .collect();
    let outside = match at(object, "spec.type") {
        "ExternalName" => at(object, "spec.externalName").to_owned(),
        "LoadBalancer" if ingress.is_empty() && external.is_empty() => "<pending>".to_owned(),
        "LoadBalancer" => [ingress, external].concat().join(","),
        _ => external.join(","),
    };
    let ports: Vec<String> = items(object, "spec.ports")
        .iter()
        .map(|port| {
            let protocol = at(port, "protocol");
            match count(port, "nodePort") {
                0 => format!("{}/{protocol}", count(port, "port")),
                node => format!("{}:{node}/{protocol}", count(port, "port")),
            }
        })
        .collect();
    vec![
        json!(name(object)),
        json!(at(object, "spec.type")),
        json!(or_none(at(object, "spec.clusterIP"))),
        json!(or_none(&outside)),
        json!(or_none(&ports.join(","))),
        json!(age(object, now)),
        json!(labels(object, "spec.selector")),
    ]
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(object, "subsets") {
        let ports = items(subset, "ports");
        for address in items(subset, "addresses") {
            let ip = at(address, "ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{ip}:{}", count(port, "port"))));
        }
    }
    vec![json!(name(object)), json!(shorten(all)), json!(age(object, now))]
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(object, "ports")
        .iter()
        .map(|port| int_at(port, "port").map_or_else(|| "*".to_owned(), |port| port.to_string()))
        .collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { shorten(ports) };
    let addresses: Vec<String> = items(object, "endpoints")
        .iter()
        .flat_map(|endpoint| items(endpoint, "addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let addresses = if addresses.is_empty() { "<unset>".to_owned() } else { shorten(addresses) };
    vec![
        json!(name(object)),
        json!(at(object, "addressType")),
        json!(ports),
        json!(addresses),
        json!(age(object, now)),
    ]
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = size(object, "data").saturating_add(size(object, "binaryData"));
    vec![json!(name(object)), json!(entries.to_string()), json!(age(object, now))]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(at(object, "type")),
        json!(size(object, "data")),
        json!(age(object, now)),
    ]
}

pub(super) fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    let secrets = items(object, "secrets").len();
    vec![json!(name(object)), json!(secrets.to_string()), json!(age(object, now))]
}

pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |paths: &[&str]| -> String {
        let found = paths.iter().map(|path| at(object, path)).find(|time| !time.is_empty());
        since(found.unwrap_or(""), now)
    };
    let involved = |field: &str| at(object, &format!("involvedObject.{field}"));
    let kind = involved("kind").to_ascii_lowercase();
    let component = match at(object, "source.component") {
        "" => at(object, "reportingComponent"),
        component => component,
    };
    let source: Vec<&str> =
        [component, at(object, "source.host")].into_iter().filter(|w| !w.is_empty()).collect();
    let times = match count(object, "series.count") {
        0 => count(object, "count").max(1),
        many => many,
    };
    vec![
        json!(first_of(&[
            "series.lastObservedTime",
            "lastTimestamp",
            "eventTime",
            "metadata.creationTimestamp"
        ])),
        json!(at(object, "type")),
        json!(at(object, "reason")),
        json!(format!("{kind}/{}", involved("name"))),
        json!(involved("fieldPath")),
        json!(source.join(", ")),
        json!(at(object, "message").trim()),
        json!(first_of(&["firstTimestamp", "eventTime", "metadata.creationTimestamp"])),
        json!(times.to_string()),
        json!(name(object)),
    ]
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = count(object, "status.readyReplicas");
    vec![
        json!(name(object)),
        json!(format!("{ready}/{}", count(object, "spec.replicas"))),
        json!(count(object, "status.updatedReplicas")),
        json!(count(object, "status.availableReplicas")),
        json!(age(object, now)),
        json!(containers(object, "name")),
        json!(containers(object, "image")),
        json!(selector(object, "spec.selector")),
    ]
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(count(object, "spec.replicas")),
        json!(count(object, "status.replicas")),
        json!(count(object, "status.readyReplicas")),
        json!(age(object, now)),
        json!(containers(object, "name")),
        json!(containers(object, "image")),
        json!(selector(object, "spec.selector")),
    ]
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(count(object, "status.desiredNumberScheduled")),
        json!(count(object, "status.currentNumberScheduled")),
        json!(count(object, "status.numberReady")),
        json!(count(object, "status.updatedNumberScheduled")),
        json!(count(object, "status.numberAvailable")),
        json!(labels(object, "spec.template.spec.nodeSelector")),
        json!(age(object, now)),
        json!(containers(object, "name")),
        json!(containers(object, "image")),
        json!(selector(object, "spec.selector")),
    ]
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = count(object, "status.readyReplicas");
    vec![
        json!(name(object)),
        json!(format!("{ready}/{}", count(object, "spec.replicas"))),
        json!(age(object, now)),
        json!(containers(object, "name")),
        json!(containers(object, "image")),
    ]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(at(object, "spec.holderIdentity")), json!(age(object, now))]
}

pub(super) fn csr(object: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| items(object, "status.conditions").iter().any(|c| at(c, "type") == kind);
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied".to_owned(),
        (false, true) => "Approved".to_owned(),
        (false, false) => "Pending".to_owned(),
    };
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !at(object, "status.certificate").is_empty() {
        state.push_str(",Issued");
    }
    let duration = int_at(object, "spec.expirationSeconds");
    vec![
        json!(name(object)),
        json!(age(object, now)),
        json!(or_none(at(object, "spec.signerName"))),
        json!(at(object, "spec.username")),
        json!(duration.map_or_else(|| "<none>".to_owned(), human_duration)),
        json!(state),
    ]
}

/// Access modes as upstream shortens them.
fn access_modes(object: &Value, path: &str) -> String {
    let short: Vec<&str> = items(object, path)
        .iter()
        .filter_map(Value::as_str)
        .map(|mode| match mode {
            "ReadWriteOnce" => "RWO",
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            other => other,
        })
        .collect();
    short.join(",")
}

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match at(object, "spec.claimRef.name") {
        "" => String::new(),
        claim => format!("{}/{claim}", at(object, "spec.claimRef.namespace")),
    };
    vec![
        json!(name(object)),
        json!(at(object, "spec.capacity.storage")),
        json!(access_modes(object, "spec.accessModes")),
        json!(at(object, "spec.persistentVolumeReclaimPolicy")),
        json!(at(object, "status.phase")),
        json!(claim),
        json!(at(object, "spec.storageClassName")),
        json!(match at(object, "spec.volumeAttributesClassName") {
            "" => "<unset>",
            class => class,
        }),
        json!(at(object, "status.reason")),
        json!(age(object, now)),
        json!(at(object, "spec.volumeMode")),
    ]
}

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !at(object, "spec.volumeName").is_empty();
    vec![
        json!(name(object)),
        json!(at(object, "status.phase")),
        json!(at(object, "spec.volumeName")),
        json!(if bound { at(object, "status.capacity.storage") } else { "" }),
        json!(if bound { access_modes(object, "status.accessModes") } else { String::new() }),
        json!(at(object, "spec.storageClassName")),
        json!(match at(object, "spec.volumeAttributesClassName") {
            "" => "<unset>",
            class => class,
        }),
        json!(age(object, now)),
        json!(at(object, "spec.volumeMode")),
    ]
}

pub(super) fn role(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(at(object, "metadata.creationTimestamp"))]
}

pub(super) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| -> String {
        let named: Vec<String> = items(object, "subjects")
            .iter()
            .filter(|subject| at(subject, "kind") == kind)
            .map(|subject| match at(subject, "namespace") {
                "" => at(subject, "name").to_owned(),
                namespace => format!("{namespace}/{}", at(subject, "name")),
            })
            .collect();
        named.join(", ")
    };
    let role = format!("{}/{}", at(object, "roleRef.kind"), at(object, "roleRef.name"));
    vec![
        json!(name(object)),
        json!(role),
        json!(age(object, now)),
        json!(subjects("User")),
        json!(subjects("Group")),
        json!(subjects("ServiceAccount")),
    ]
}

pub(super) fn machine(object: &Value, now: Timestamp) -> Vec<Value> {
    let quarantined = value_at(object, "status.quarantined").and_then(Value::as_bool) == Some(true);
    let phase = match at(object, "status.phase") {
        _ if quarantined => "quarantined",
        "" => "off",
        phase => phase,
    };
    vec![
        json!(name(object)),
        json!(at(object, "spec.rack")),
        json!(at(object, "spec.role")),
        json!(at(object, "spec.address")),
        json!(phase),
        json!(age(object, now)),
        json!(at(object, "spec.mac")),
        json!(at(object, "spec.boot")),
        json!(or_none(at(object, "status.cause"))),
    ]
}

pub(super) fn rack(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(at(object, "spec.subnet")),
        json!(at(object, "spec.gateway")),
        json!(at(object, "spec.routing.mode")),
        json!(age(object, now)),
    ]
}

pub(super) fn node_image(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(at(object, "spec.version")),
        json!(at(object, "spec.kernelVersion")),
        json!(age(object, now)),
    ]
}
