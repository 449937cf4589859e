//! What a node tells about itself: its object, its capacity and its conditions.
//!
//! Spec: upstream's Node object. `Ready` follows the runtime: runtime and network must be up.
//! Pressures are judged in [`crate::pressure`] and only told here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use objects::condition::set_condition;
use objects::node::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use objects::pod::ResourceList;
use objects::{Condition, Quantity, Time};
use serde_json::{Value, json};

use crate::pressure::Pressure;
use crate::settings::Held;

/// The port of the agent's HTTPS server, unless told otherwise.
pub const AGENT_PORT: u16 = 10250;
/// Pods a node takes.
pub const PODS_MAX: i64 = 110;
/// Images told about in the status; more would only make it long.
const IMAGES_MAX: usize = 50;

/// What was read from the machine and its runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The node's name.
    pub name: String,
    /// The node's address.
    pub address: IpAddr,
    /// The port of the agent's HTTPS server.
    pub port: u16,
    /// Labels besides the usual ones (zone, role).
    pub labels: BTreeMap<String, String>,
    /// Cores.
    pub cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// The file system of the pods, in bytes.
    pub disk_bytes: i64,
    /// What of all this is not for pods.
    pub held: Held,
    /// Pods the node takes.
    pub pods_max: i64,
    /// Devices of plugins: how many there are of each resource, and how many are healthy.
    pub devices: BTreeMap<String, (i64, i64)>,
    /// What runs short.
    pub pressures: BTreeSet<Pressure>,
    /// Machine id, SMBIOS UUID, boot id.
    pub ids: Ids,
    /// Versions of what runs here.
    pub versions: Versions,
    /// What the runtime says of itself: problems in words, empty when it is well.
    pub runtime_problems: Vec<String>,
    /// What the runtime's handlers can do.
    pub handlers: Vec<Handler>,
    /// Images on the node: names and bytes.
    pub images: Vec<(Vec<String>, i64)>,
}

/// A kind of sandbox that the runtime makes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handler {
    /// Its name; empty for the runtime's own choice.
    pub name: String,
    /// Whether mounts can be read-only all the way down.
    pub recursive_read_only_mounts: bool,
    /// Whether a pod can have users of its own.
    pub user_namespaces: bool,
}

/// What identifies the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ids {
    /// `/etc/machine-id`.
    pub machine: String,
    /// SMBIOS system UUID.
    pub system: String,
    /// The kernel's id of this boot.
    pub boot: String,
}

/// Versions of what runs on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// Kernel release.
    pub kernel: String,
    /// The distribution's name for people.
    pub os: String,
    /// `containerd://1.7.24`.
    pub runtime: String,
    /// The agent's own.
    pub agent: String,
}

/// The Node object as it is registered: labels, no status.
#[must_use]
pub fn render_node(facts: &Facts) -> Node {
    let mut node = Node::blank();
    node.metadata.name.clone_from(&facts.name);
    node.metadata.labels = labels(facts);
    node
}

/// The labels that a node has of itself.
#[must_use]
pub fn labels(facts: &Facts) -> BTreeMap<String, String> {
    let mut labels = facts.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", facts.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// The architecture as the API spells it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What a machine runs, for people, from its `os-release`: our image with its version, or the
/// distribution.
#[must_use]
pub fn os_name(release: &str) -> String {
    let value = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|text| text.trim_matches('"')).filter(|text| !text.is_empty())
    };
    let name = value("PRETTY_NAME").unwrap_or("Linux");
    match value("IMAGE_VERSION").filter(|_| value("IMAGE_ID") == Some("muster")) {
        Some(version) => format!("Muster {version} ({name})"),
        None => name.to_owned(),
    }
}

/// Is this very boot to end? The cluster asks so of a node that it has emptied, by the id of the
/// boot, so that nobody restarts twice for one wish.
#[must_use]
pub fn shall_restart(node: &Node, boot: &str) -> bool {
    let said = |name: &str| node.metadata.annotation(name);
    !boot.is_empty()
        && said("muster.dev/restart") == Some(boot)
        && said("muster.dev/maintenance-state") == Some("ready")
}

/// The node's status from facts; conditions of others and times of ours are kept from `before`.
#[must_use]
pub fn compute_node_status(before: &NodeStatus, facts: &Facts, now: Timestamp) -> NodeStatus {
    let mut status = before.clone();
    // What somebody else told of this node (`example.org/dongle`) is theirs to change.
    let foreign = |name: &String| name.contains('/') && !facts.devices.contains_key(name);
    let kept = |list: &ResourceList| -> ResourceList {
        list.iter().filter(|(name, _)| foreign(name)).map(|(n, v)| (n.clone(), *v)).collect()
    };
    let (capacity, allocatable) = (kept(&before.capacity), kept(&before.allocatable));
    status.capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_whole(facts.cpus)),
        ("memory".to_owned(), kibibytes(facts.memory_bytes)),
        ("ephemeral-storage".to_owned(), kibibytes(facts.disk_bytes)),
        ("pods".to_owned(), Quantity::from_whole(facts.pods_max)),
    ]);
    status.allocatable = status.capacity.clone();
    let held = facts.held;
    let left = |all: i64, held: i64| all.saturating_sub(held).max(0);
    let cpu = left(facts.cpus.saturating_mul(1000), held.cpu_milli);
    let memory = left(facts.memory_bytes, held.memory_bytes);
    let disk = left(facts.disk_bytes, held.disk_bytes);
    for (name, amount) in [
        ("cpu", Quantity::from_milli(cpu)),
        ("memory", kibibytes(memory)),
        ("ephemeral-storage", kibibytes(disk)),
    ] {
        status.allocatable.insert(name.to_owned(), amount);
    }
    status.capacity.extend(capacity);
    status.allocatable.extend(allocatable);
    for (name, (all, healthy)) in &facts.devices {
        status.capacity.insert(name.clone(), Quantity::from_whole(*all));
        status.allocatable.insert(name.clone(), Quantity::from_whole(*healthy));
    }
    let address = |kind: &str, address: String| NodeAddress {
        kind: kind.to_owned(),
        address,
        ..NodeAddress::default()
    };
    status.addresses = vec![
        address("InternalIP", facts.address.to_string()),
        address("Hostname", facts.name.clone()),
    ];
    status.daemon_endpoints = Some(NodeDaemonEndpoints {
        kubelet_endpoint: Some(DaemonEndpoint {
            port: i64::from(facts.port),
            ..DaemonEndpoint::default()
        }),
        ..NodeDaemonEndpoints::default()
    });
    status.node_info = system_info(facts);
    tell_handlers(&mut status, facts);
    let mut images: Vec<_> = facts.images.iter().collect();
    images.sort_by_key(|(names, size_bytes)| (std::cmp::Reverse(*size_bytes), names.clone()));
    status.images = images
        .into_iter()
        .take(IMAGES_MAX)
        .map(|(names, size_bytes)| ContainerImage {
            names: names.clone(),
            size_bytes: *size_bytes,
            ..ContainerImage::default()
        })
        .collect();
    for mut condition in conditions(facts) {
        condition.last_heartbeat_time = Some(Time::from(now));
        set_condition(&mut status.conditions, condition, now);
    }
    status
}

fn tell_handlers(status: &mut NodeStatus, facts: &Facts) {
    let handler = |handler: &Handler| {
        json!({"name": handler.name, "features": {
            "recursiveReadOnlyMounts": handler.recursive_read_only_mounts,
            "userNamespaces": handler.user_namespaces}})
    };
    let handlers: Vec<Value> = facts.handlers.iter().map(handler).collect();
    if !handlers.is_empty() {
        status.extra.insert("runtimeHandlers".to_owned(), Value::Array(handlers));
    } else if let Some(told) = status.extra.get_mut("runtimeHandlers") {
        // What a patch does not name would stay.
        *told = Value::Null;
    }
}

/// Tells whether two statuses differ in more than their heartbeats and how much is free.
#[must_use]
pub fn differs(before: &NodeStatus, after: &NodeStatus) -> bool {
    let calm = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_heartbeat_time = None;
        }
        status
    };
    calm(before) != calm(after)
}

fn system_info(facts: &Facts) -> NodeSystemInfo {
    let text = |value: &str| Some(value.to_owned());
    NodeSystemInfo {
        machine_id: text(&facts.ids.machine),
        system_uuid: text(&facts.ids.system),
        boot_id: text(&facts.ids.boot),
        kernel_version: text(&facts.versions.kernel),
        os_image: text(&facts.versions.os),
        container_runtime_version: text(&facts.versions.runtime),
        kubelet_version: text(&facts.versions.agent),
        kube_proxy_version: text(&facts.versions.agent),
        operating_system: text("linux"),
        architecture: text(architecture()),
        ..NodeSystemInfo::default()
    }
}

fn conditions(facts: &Facts) -> [Condition; 4] {
    let pressure = |which: Pressure, has: &str, has_not: &str, what: &str| {
        let (kind, pressed) = (which.condition(), facts.pressures.contains(&which));
        let (reason, word) = if pressed { (has, "insufficient") } else { (has_not, "sufficient") };
        Condition::new(kind, pressed, reason, &format!("kubelet has {word} {what} available"))
    };
    let ready = if facts.runtime_problems.is_empty() {
        Condition::new("Ready", true, "KubeletReady", "kubelet is posting ready status")
    } else {
        Condition::new("Ready", false, "KubeletNotReady", &facts.runtime_problems.join(", "))
    };
    [
        pressure(
            Pressure::Memory,
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
            "memory",
        ),
        pressure(
            Pressure::Disk,
            "KubeletHasDiskPressure",
            "KubeletHasNoDiskPressure",
            "disk space",
        ),
        pressure(Pressure::Pids, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "PID"),
        ready,
    ]
}

fn kibibytes(bytes: i64) -> Quantity {
    // Whole kibibytes print as upstream's do, and do not flicker in the last digits.
    Quantity::from_bytes(bytes / 1024 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            name: "a-worker".into(),
            address: "10.98.1.12".parse().unwrap(),
            port: AGENT_PORT,
            labels: BTreeMap::from([("topology.kubernetes.io/zone".into(), "a".into())]),
            cpus: 2,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 30,
            held: Held { cpu_milli: 100, memory_bytes: 100 << 20, disk_bytes: 0 },
            pods_max: PODS_MAX,
            devices: BTreeMap::from([("example.org/card".into(), (2, 1))]),
            pressures: BTreeSet::new(),
            ids: Ids::default(),
            versions: Versions::default(),
            runtime_problems: Vec::new(),
            handlers: Vec::new(),
            images: vec![(vec!["small".into()], 1), (vec!["large".into()], 2)],
        }
    }

    #[test]
    fn our_image_is_told_with_its_version() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
        assert_eq!(os_name(debian), "Debian GNU/Linux 12 (bookworm)");
        let ours = format!("{debian}IMAGE_ID=muster\nIMAGE_VERSION=0.2.0\n");
        assert_eq!(os_name(&ours), "Muster 0.2.0 (Debian GNU/Linux 12 (bookworm))");
        assert_eq!(os_name(""), "Linux");
    }

    #[test]
    fn a_node_restarts_once_for_each_wish_and_only_when_it_is_empty() {
        let mut node = Node::blank();
        let mut shall = |restart: &str, state: &str| {
            let notes = [("muster.dev/restart", restart), ("muster.dev/maintenance-state", state)];
            node.metadata.annotations =
                notes.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            shall_restart(&node, "boot-2")
        };
        assert!(shall("boot-2", "ready"));
        assert!(!shall("boot-1", "ready"), "that was the boot before");
        assert!(!shall("boot-2", "draining"));
        assert!(!shall_restart(&Node::blank(), ""));
    }

    #[track_caller]
    fn check(facts: &Facts, expected: &str) {
        let status = compute_node_status(&NodeStatus::default(), facts, Timestamp::UNIX_EPOCH);
        let told: Vec<String> =
            status.conditions.iter().map(|c| format!("{}={}", c.kind, c.status)).collect();
        assert_eq!(told.join(" "), expected);
    }

    #[test]
    fn conditions_follow_the_facts() {
        check(&facts(), "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=True");
        let pressed = Facts {
            pressures: BTreeSet::from([Pressure::Memory, Pressure::Disk, Pressure::Pids]),
            runtime_problems: vec!["network plugin is not ready".into()],
            ..facts()
        };
        check(&pressed, "MemoryPressure=True DiskPressure=True PIDPressure=True Ready=False");
    }

    #[test]
    fn a_heartbeat_alone_is_no_difference() {
        let first = compute_node_status(&NodeStatus::default(), &facts(), Timestamp::UNIX_EPOCH);
        let later = Timestamp::from_second(60).unwrap();
        let second = compute_node_status(&first, &facts(), later);
        assert!(first != second && !differs(&first, &second));
        assert_eq!(first.images[0].names, ["large"]);
        assert_eq!(first.capacity["memory"].to_string(), "1Gi");
        assert_eq!(first.allocatable["memory"].to_string(), "924Mi");
        assert_eq!(first.allocatable["cpu"].to_string(), "1900m");
        assert_eq!(first.capacity["example.org/card"].to_string(), "2");
        assert_eq!(first.allocatable["example.org/card"].to_string(), "1");
        // What somebody told the API by hand stays.
        let mut told = first.clone();
        told.capacity.insert("example.org/dongle".into(), Quantity::from_whole(4));
        let after = compute_node_status(&told, &facts(), later);
        assert_eq!(after.capacity["example.org/dongle"].to_string(), "4");
    }
}
