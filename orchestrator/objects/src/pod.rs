//! Pods: what should run, and what does.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    condition::Condition,
    int_or_string::IntOrString,
    kind,
    meta::{LabelSelector, LocalObjectReference, ObjectMeta},
    quantity::Quantity,
    time::Time,
    view::{objects, views},
};

/// Amounts of resources by name (`cpu`, `memory`, …).
pub type ResourceList = BTreeMap<String, Quantity>;

objects! {
    /// A group of containers that share a network address and volumes on one node.
    kind::POD => pub struct Pod {
        pub spec: PodSpec,
        pub status: PodStatus,
    }
}

views! {
    /// What a pod is to be.
    pub struct PodSpec {
        pub volumes: Vec<Volume>,
        pub init_containers: Vec<Container>,
        pub containers: Vec<Container>,
        pub ephemeral_containers: Vec<Container>,
        pub restart_policy: String,
        pub termination_grace_period_seconds: Option<i64>,
        pub active_deadline_seconds: Option<i64>,
        pub dns_policy: String,
        pub dns_config: Option<Value>,
        pub node_selector: BTreeMap<String, String>,
        pub service_account_name: String,
        pub automount_service_account_token: Option<bool>,
        pub node_name: String,
        pub host_network: bool,
        #[serde(rename = "hostPID")]
        pub host_pid: bool,
        #[serde(rename = "hostIPC")]
        pub host_ipc: bool,
        pub share_process_namespace: Option<bool>,
        pub security_context: Option<PodSecurityContext>,
        pub image_pull_secrets: Vec<LocalObjectReference>,
        pub hostname: String,
        pub subdomain: String,
        #[serde(rename = "setHostnameAsFQDN")]
        pub set_hostname_as_fqdn: Option<bool>,
        pub affinity: Option<Affinity>,
        pub scheduler_name: String,
        pub tolerations: Vec<Toleration>,
        pub host_aliases: Vec<HostAlias>,
        pub priority_class_name: String,
        pub priority: Option<i64>,
        pub readiness_gates: Vec<Value>,
        pub runtime_class_name: Option<String>,
        pub enable_service_links: Option<bool>,
        pub preemption_policy: Option<String>,
        pub overhead: ResourceList,
        pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
        pub scheduling_gates: Vec<SchedulingGate>,
        pub resources: Option<ResourceRequirements>,
    }

    /// A reason not to schedule a pod yet.
    pub struct SchedulingGate {
        pub name: String,
    }

    /// Names added to a pod's hosts file.
    pub struct HostAlias {
        pub ip: String,
        pub hostnames: Vec<String>,
    }

    /// One program of a pod.
    pub struct Container {
        pub name: String,
        pub image: String,
        pub command: Vec<String>,
        pub args: Vec<String>,
        pub working_dir: String,
        pub ports: Vec<ContainerPort>,
        pub env_from: Vec<EnvFromSource>,
        pub env: Vec<EnvVar>,
        pub resources: ResourceRequirements,
        pub restart_policy: Option<String>,
        pub volume_mounts: Vec<VolumeMount>,
        pub liveness_probe: Option<Probe>,
        pub readiness_probe: Option<Probe>,
        pub startup_probe: Option<Probe>,
        pub lifecycle: Option<Value>,
        pub termination_message_path: String,
        pub termination_message_policy: String,
        pub image_pull_policy: String,
        pub security_context: Option<SecurityContext>,
        pub stdin: bool,
        pub stdin_once: bool,
        pub tty: bool,
        /// Of an ephemeral container: the one whose processes it sees.
        pub target_container_name: Option<String>,
    }

    /// A port a container listens on.
    pub struct ContainerPort {
        pub name: String,
        pub host_port: Option<i64>,
        pub container_port: i64,
        pub protocol: String,
        #[serde(rename = "hostIP")]
        pub host_ip: String,
    }

    /// All entries of a config map or secret as variables.
    pub struct EnvFromSource {
        pub prefix: String,
        pub config_map_ref: Option<EnvSourceRef>,
        pub secret_ref: Option<EnvSourceRef>,
    }

    /// A config map or secret named by [`EnvFromSource`].
    pub struct EnvSourceRef {
        pub name: String,
        pub optional: Option<bool>,
    }

    /// One environment variable.
    pub struct EnvVar {
        pub name: String,
        pub value: String,
        pub value_from: Option<EnvVarSource>,
    }

    /// Where a variable's value comes from.
    pub struct EnvVarSource {
        pub field_ref: Option<ObjectFieldSelector>,
        pub resource_field_ref: Option<ResourceFieldSelector>,
        pub config_map_key_ref: Option<KeySelector>,
        pub secret_key_ref: Option<KeySelector>,
    }

    /// A field of the pod itself.
    pub struct ObjectFieldSelector {
        pub api_version: String,
        pub field_path: String,
    }

    /// A resource amount of one of the pod's containers.
    pub struct ResourceFieldSelector {
        pub container_name: String,
        pub resource: String,
        pub divisor: Option<Quantity>,
    }

    /// One key of a config map or secret.
    pub struct KeySelector {
        pub name: String,
        pub key: String,
        pub optional: Option<bool>,
    }

    /// What a container may use and what is set aside for it.
    pub struct ResourceRequirements {
        pub limits: ResourceList,
        pub requests: ResourceList,
    }

    /// Where a volume appears in a container.
    pub struct VolumeMount {
        pub name: String,
        pub mount_path: String,
        pub sub_path: String,
        pub sub_path_expr: String,
        pub read_only: bool,
        pub mount_propagation: Option<String>,
    }

    /// A question put to a container again and again.
    pub struct Probe {
        pub exec: Option<ExecAction>,
        pub http_get: Option<HttpGetAction>,
        pub tcp_socket: Option<TcpSocketAction>,
        pub grpc: Option<Value>,
        pub initial_delay_seconds: i64,
        pub timeout_seconds: i64,
        pub period_seconds: i64,
        pub success_threshold: i64,
        pub failure_threshold: i64,
        pub termination_grace_period_seconds: Option<i64>,
    }

    /// Runs a command in the container.
    pub struct ExecAction {
        pub command: Vec<String>,
    }

    /// Fetches a page from the container.
    pub struct HttpGetAction {
        pub path: String,
        pub port: Option<IntOrString>,
        pub host: String,
        pub scheme: String,
        pub http_headers: Vec<Value>,
    }

    /// Opens a connection to the container.
    pub struct TcpSocketAction {
        pub port: Option<IntOrString>,
        pub host: String,
    }

    /// Rights of one container.
    pub struct SecurityContext {
        pub capabilities: Option<Capabilities>,
        pub privileged: Option<bool>,
        pub run_as_user: Option<i64>,
        pub run_as_group: Option<i64>,
        pub run_as_non_root: Option<bool>,
        pub read_only_root_filesystem: Option<bool>,
        pub allow_privilege_escalation: Option<bool>,
        pub proc_mount: Option<String>,
        pub seccomp_profile: Option<Value>,
        pub app_armor_profile: Option<Value>,
    }

    /// Capabilities given and taken.
    pub struct Capabilities {
        pub add: Vec<String>,
        pub drop: Vec<String>,
    }

    /// Rights common to all containers of a pod.
    pub struct PodSecurityContext {
        pub run_as_user: Option<i64>,
        pub run_as_group: Option<i64>,
        pub run_as_non_root: Option<bool>,
        pub supplemental_groups: Vec<i64>,
        pub fs_group: Option<i64>,
        pub fs_group_change_policy: Option<String>,
        pub sysctls: Vec<Value>,
        pub seccomp_profile: Option<Value>,
        pub app_armor_profile: Option<Value>,
    }

    /// A directory containers of the pod may mount; other kinds of volume are in `extra`.
    pub struct Volume {
        pub name: String,
        pub empty_dir: Option<EmptyDirVolume>,
        pub host_path: Option<HostPathVolume>,
        pub config_map: Option<ConfigMapVolume>,
        pub secret: Option<SecretVolume>,
        #[serde(rename = "downwardAPI")]
        pub downward_api: Option<DownwardApiVolume>,
        pub projected: Option<ProjectedVolume>,
        pub persistent_volume_claim: Option<Value>,
    }

    /// An empty directory that lives as long as the pod.
    pub struct EmptyDirVolume {
        pub medium: String,
        pub size_limit: Option<Quantity>,
    }

    /// A path of the node.
    pub struct HostPathVolume {
        pub path: String,
        #[serde(rename = "type")]
        pub kind: Option<String>,
    }

    /// A config map as files.
    pub struct ConfigMapVolume {
        pub name: String,
        pub items: Vec<KeyToPath>,
        pub default_mode: Option<i64>,
        pub optional: Option<bool>,
    }

    /// A secret as files.
    pub struct SecretVolume {
        pub secret_name: String,
        pub items: Vec<KeyToPath>,
        pub default_mode: Option<i64>,
        pub optional: Option<bool>,
    }

    /// One key of a config map or secret as a file.
    pub struct KeyToPath {
        pub key: String,
        pub path: String,
        pub mode: Option<i64>,
    }

    /// The pod's own fields as files.
    pub struct DownwardApiVolume {
        pub items: Vec<DownwardApiFile>,
        pub default_mode: Option<i64>,
    }

    /// One file of a [`DownwardApiVolume`].
    pub struct DownwardApiFile {
        pub path: String,
        pub field_ref: Option<ObjectFieldSelector>,
        pub resource_field_ref: Option<ResourceFieldSelector>,
        pub mode: Option<i64>,
    }

    /// Several sources in one directory.
    pub struct ProjectedVolume {
        pub sources: Vec<VolumeProjection>,
        pub default_mode: Option<i64>,
    }

    /// One source of a [`ProjectedVolume`].
    pub struct VolumeProjection {
        pub secret: Option<NamedProjection>,
        pub config_map: Option<NamedProjection>,
        #[serde(rename = "downwardAPI")]
        pub downward_api: Option<DownwardApiVolume>,
        pub service_account_token: Option<Value>,
    }

    /// A config map or secret in a [`VolumeProjection`].
    pub struct NamedProjection {
        pub name: String,
        pub items: Vec<KeyToPath>,
        pub optional: Option<bool>,
    }

    /// Where a pod wants to be, and near whom.
    pub struct Affinity {
        pub node_affinity: Option<NodeAffinity>,
        pub pod_affinity: Option<PodAffinity>,
        pub pod_anti_affinity: Option<PodAffinity>,
    }

    /// Which nodes a pod wants.
    pub struct NodeAffinity {
        pub required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
        pub preferred_during_scheduling_ignored_during_execution: Vec<PreferredSchedulingTerm>,
    }

    /// Terms of which one must hold.
    pub struct NodeSelector {
        pub node_selector_terms: Vec<NodeSelectorTerm>,
    }

    /// Requirements which must all hold.
    pub struct NodeSelectorTerm {
        pub match_expressions: Vec<NodeSelectorRequirement>,
        pub match_fields: Vec<NodeSelectorRequirement>,
    }

    /// One requirement on a node's labels or fields.
    pub struct NodeSelectorRequirement {
        pub key: String,
        pub operator: String,
        pub values: Vec<String>,
    }

    /// A wish with a weight.
    pub struct PreferredSchedulingTerm {
        pub weight: i64,
        pub preference: NodeSelectorTerm,
    }

    /// Which pods to be near to, or far from.
    pub struct PodAffinity {
        pub required_during_scheduling_ignored_during_execution: Vec<PodAffinityTerm>,
        pub preferred_during_scheduling_ignored_during_execution: Vec<WeightedPodAffinityTerm>,
    }

    /// Which pods, and what counts as near.
    pub struct PodAffinityTerm {
        pub label_selector: Option<LabelSelector>,
        pub namespaces: Vec<String>,
        pub topology_key: String,
        pub namespace_selector: Option<LabelSelector>,
        pub match_label_keys: Vec<String>,
        pub mismatch_label_keys: Vec<String>,
    }

    /// A [`PodAffinityTerm`] with a weight.
    pub struct WeightedPodAffinityTerm {
        pub weight: i64,
        pub pod_affinity_term: PodAffinityTerm,
    }

    /// A taint that the pod bears.
    pub struct Toleration {
        pub key: String,
        pub operator: String,
        pub value: String,
        pub effect: String,
        pub toleration_seconds: Option<i64>,
    }

    /// How evenly pods are spread.
    pub struct TopologySpreadConstraint {
        pub max_skew: i64,
        pub topology_key: String,
        pub when_unsatisfiable: String,
        pub label_selector: Option<LabelSelector>,
        pub min_domains: Option<i64>,
        pub node_affinity_policy: Option<String>,
        pub node_taints_policy: Option<String>,
        pub match_label_keys: Vec<String>,
    }

    /// What is known of a running pod.
    pub struct PodStatus {
        pub observed_generation: i64,
        pub phase: String,
        pub conditions: Vec<Condition>,
        pub message: String,
        pub reason: String,
        pub nominated_node_name: String,
        #[serde(rename = "hostIP")]
        pub host_ip: String,
        #[serde(rename = "hostIPs")]
        pub host_ips: Vec<IpEntry>,
        #[serde(rename = "podIP")]
        pub pod_ip: String,
        #[serde(rename = "podIPs")]
        pub pod_ips: Vec<IpEntry>,
        pub start_time: Option<Time>,
        pub init_container_statuses: Vec<ContainerStatus>,
        pub container_statuses: Vec<ContainerStatus>,
        pub ephemeral_container_statuses: Vec<ContainerStatus>,
        pub qos_class: String,
    }

    /// One address in a list.
    pub struct IpEntry {
        pub ip: String,
    }

    /// What is known of one container. `ready` and `restartCount` are always present upstream;
    /// they are `Option` so that false and 0 are written.
    pub struct ContainerStatus {
        pub name: String,
        pub state: ContainerState,
        pub last_state: ContainerState,
        pub ready: Option<bool>,
        pub restart_count: Option<i64>,
        pub image: Option<String>,
        #[serde(rename = "imageID")]
        pub image_id: Option<String>,
        #[serde(rename = "containerID")]
        pub container_id: String,
        pub started: Option<bool>,
    }

    /// Exactly one of waiting, running, terminated; none means waiting.
    pub struct ContainerState {
        pub waiting: Option<ContainerStateWaiting>,
        pub running: Option<ContainerStateRunning>,
        pub terminated: Option<ContainerStateTerminated>,
    }

    /// Not started yet, and why.
    pub struct ContainerStateWaiting {
        pub reason: String,
        pub message: String,
    }

    /// Running since.
    pub struct ContainerStateRunning {
        pub started_at: Option<Time>,
    }

    /// Ended, and how.
    pub struct ContainerStateTerminated {
        pub exit_code: Option<i64>,
        pub signal: i64,
        pub reason: String,
        pub message: String,
        pub started_at: Option<Time>,
        pub finished_at: Option<Time>,
        #[serde(rename = "containerID")]
        pub container_id: String,
    }

    /// Metadata and spec of the pods a controller makes.
    pub struct PodTemplateSpec {
        pub metadata: ObjectMeta,
        pub spec: PodSpec,
    }
}

impl Pod {
    /// Has the pod run to its end, well or badly?
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Is the condition `Ready` true?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        crate::condition::is_condition_true(&self.status.conditions, "Ready")
    }

    /// Has the pod been given a node?
    #[must_use]
    pub fn is_bound(&self) -> bool {
        !self.spec.node_name.is_empty()
    }
}

impl Toleration {
    /// Does this toleration bear the taint?
    ///
    /// Spec: an empty key with `Exists` bears every taint; an empty effect, every effect.
    #[must_use]
    pub fn tolerates(&self, taint: &crate::node::Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator.as_str() {
            "Exists" => true,
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
            _ => false,
        }
    }
}
