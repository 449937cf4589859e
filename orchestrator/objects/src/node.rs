//! Nodes: machines that run pods.

use crate::{
    condition::{Condition, is_condition_true},
    kind,
    pod::ResourceList,
    time::Time,
    view::{objects, views},
};

/// Annotation by which a node's router says what it announces: [`ROUTES_ANNOUNCED`] or
/// [`ROUTES_WITHDRAWN`]. Without it nobody routes for the node.
pub const ROUTES: &str = "muster.dev/routes";
/// The node draws traffic for services, as far as it may.
pub const ROUTES_ANNOUNCED: &str = "announced";
/// The node is closed, and its neighbours have let go of every service that others answer for.
pub const ROUTES_WITHDRAWN: &str = "withdrawn";

objects! {
    /// A machine that runs pods.
    kind::NODE => pub struct Node {
        pub spec: NodeSpec,
        pub status: NodeStatus,
    }
}

views! {
    /// What the cluster wants of a node.
    pub struct NodeSpec {
        #[serde(rename = "podCIDR")]
        pub pod_cidr: String,
        #[serde(rename = "podCIDRs")]
        pub pod_cidrs: Vec<String>,
        #[serde(rename = "providerID")]
        pub provider_id: String,
        pub unschedulable: bool,
        pub taints: Vec<Taint>,
    }

    /// A mark that keeps pods away unless they bear it.
    pub struct Taint {
        pub key: String,
        pub value: String,
        pub effect: String,
        pub time_added: Option<Time>,
    }

    /// What the node says of itself.
    pub struct NodeStatus {
        pub capacity: ResourceList,
        pub allocatable: ResourceList,
        pub phase: String,
        pub conditions: Vec<Condition>,
        pub addresses: Vec<NodeAddress>,
        pub daemon_endpoints: Option<NodeDaemonEndpoints>,
        pub node_info: NodeSystemInfo,
        pub images: Vec<ContainerImage>,
    }

    /// One address of a node: `InternalIP`, `ExternalIP`, `Hostname`.
    pub struct NodeAddress {
        #[serde(rename = "type")]
        pub kind: String,
        pub address: String,
    }

    /// Ports of the node's daemons.
    pub struct NodeDaemonEndpoints {
        pub kubelet_endpoint: Option<DaemonEndpoint>,
    }

    /// One port.
    pub struct DaemonEndpoint {
        #[serde(rename = "Port")]
        pub port: i64,
    }

    /// Versions and identities of a node.
    pub struct NodeSystemInfo {
        #[serde(rename = "machineID")]
        pub machine_id: Option<String>,
        #[serde(rename = "systemUUID")]
        pub system_uuid: Option<String>,
        #[serde(rename = "bootID")]
        pub boot_id: Option<String>,
        pub kernel_version: Option<String>,
        pub os_image: Option<String>,
        pub container_runtime_version: Option<String>,
        pub kubelet_version: Option<String>,
        pub kube_proxy_version: Option<String>,
        pub operating_system: Option<String>,
        pub architecture: Option<String>,
    }

    /// An image that is on the node.
    pub struct ContainerImage {
        pub names: Vec<String>,
        pub size_bytes: i64,
    }
}

impl Node {
    /// Is the condition `Ready` true?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        is_condition_true(&self.status.conditions, "Ready")
    }

    /// The first address of a type (`InternalIP`).
    #[must_use]
    pub fn address(&self, kind: &str) -> Option<&str> {
        self.status.addresses.iter().find(|a| a.kind == kind).map(|a| a.address.as_str())
    }
}
