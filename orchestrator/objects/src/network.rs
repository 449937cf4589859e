//! Services and the addresses behind them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    condition::Condition,
    int_or_string::IntOrString,
    kind,
    meta::{LabelSelector, ObjectReference},
    view::{objects, views},
};

objects! {
    /// A stable address in front of pods.
    kind::SERVICE => pub struct Service {
        pub spec: ServiceSpec,
        pub status: ServiceStatus,
    }

    /// The addresses behind a service, in one object.
    kind::ENDPOINTS => pub struct Endpoints {
        pub subsets: Vec<EndpointSubset>,
    }

    /// The addresses behind a service, in pieces.
    kind::ENDPOINT_SLICE => pub struct EndpointSlice {
        pub address_type: String,
        pub endpoints: Vec<Endpoint>,
        pub ports: Vec<EndpointPort>,
    }

    /// An address that is taken.
    kind::IP_ADDRESS => pub struct IpAddress {}

    /// Ranges the addresses of services come from.
    kind::SERVICE_CIDR => pub struct ServiceCidr {
        pub spec: ServiceCidrSpec,
        pub status: ServiceCidrStatus,
    }

    /// Who may speak with some pods of a namespace.
    kind::NETWORK_POLICY => pub struct NetworkPolicy {
        pub spec: NetworkPolicySpec,
    }
}

views! {
    /// Which pods a policy is about, and whom it lets them speak with.
    pub struct NetworkPolicySpec {
        pub pod_selector: LabelSelector,
        pub policy_types: Vec<String>,
        pub ingress: Vec<NetworkPolicyRule>,
        pub egress: Vec<NetworkPolicyRule>,
    }

    /// One permission: these peers (`from` of ingress, `to` of egress) at these ports.
    pub struct NetworkPolicyRule {
        pub from: Vec<NetworkPolicyPeer>,
        pub to: Vec<NetworkPolicyPeer>,
        pub ports: Vec<NetworkPolicyPort>,
    }

    /// Some pods, or a block of addresses.
    pub struct NetworkPolicyPeer {
        pub pod_selector: Option<LabelSelector>,
        pub namespace_selector: Option<LabelSelector>,
        pub ip_block: Option<IpBlock>,
    }

    /// A block of addresses without some of them.
    pub struct IpBlock {
        pub cidr: String,
        pub except: Vec<String>,
    }

    /// A port, a range of them, or all of a protocol.
    pub struct NetworkPolicyPort {
        pub protocol: String,
        pub port: Option<IntOrString>,
        pub end_port: Option<i64>,
    }

    /// Ranges, at most one of each family.
    pub struct ServiceCidrSpec {
        pub cidrs: Vec<String>,
    }

    /// May the ranges be used?
    pub struct ServiceCidrStatus {
        pub conditions: Vec<Condition>,
    }

    /// What a service is to be.
    pub struct ServiceSpec {
        pub ports: Vec<ServicePort>,
        pub selector: BTreeMap<String, String>,
        #[serde(rename = "clusterIP")]
        pub cluster_ip: String,
        #[serde(rename = "clusterIPs")]
        pub cluster_ips: Vec<String>,
        #[serde(rename = "type")]
        pub kind: String,
        #[serde(rename = "externalIPs")]
        pub external_ips: Vec<String>,
        pub session_affinity: String,
        pub session_affinity_config: Option<Value>,
        #[serde(rename = "loadBalancerIP")]
        pub load_balancer_ip: String,
        pub external_name: String,
        pub external_traffic_policy: String,
        pub internal_traffic_policy: Option<String>,
        pub publish_not_ready_addresses: bool,
        pub ip_families: Vec<String>,
        pub ip_family_policy: Option<String>,
        pub health_check_node_port: i64,
    }

    /// One port of a service.
    pub struct ServicePort {
        pub name: String,
        pub protocol: String,
        pub app_protocol: Option<String>,
        pub port: i64,
        pub target_port: Option<IntOrString>,
        pub node_port: i64,
    }

    /// What is known of a service.
    pub struct ServiceStatus {
        pub load_balancer: LoadBalancerStatus,
        pub conditions: Vec<Condition>,
    }

    /// Addresses outside the cluster.
    pub struct LoadBalancerStatus {
        pub ingress: Vec<LoadBalancerIngress>,
    }

    /// One address outside the cluster.
    pub struct LoadBalancerIngress {
        pub ip: String,
        pub hostname: String,
    }

    /// Addresses that share ports.
    pub struct EndpointSubset {
        pub addresses: Vec<EndpointAddress>,
        pub not_ready_addresses: Vec<EndpointAddress>,
        pub ports: Vec<EndpointPort>,
    }

    /// One address of an [`EndpointSubset`].
    pub struct EndpointAddress {
        pub ip: String,
        pub hostname: String,
        pub node_name: Option<String>,
        pub target_ref: Option<ObjectReference>,
    }

    /// One port of endpoints.
    pub struct EndpointPort {
        pub name: Option<String>,
        pub port: Option<i64>,
        pub protocol: Option<String>,
        pub app_protocol: Option<String>,
    }

    /// One backend of an [`EndpointSlice`].
    pub struct Endpoint {
        pub addresses: Vec<String>,
        pub conditions: EndpointConditions,
        pub hostname: Option<String>,
        pub target_ref: Option<ObjectReference>,
        pub node_name: Option<String>,
        pub zone: Option<String>,
        pub hints: Option<Value>,
    }

    /// May the backend be used? Absent `ready` means yes.
    pub struct EndpointConditions {
        pub ready: Option<bool>,
        pub serving: Option<bool>,
        pub terminating: Option<bool>,
    }
}
