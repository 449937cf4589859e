//! Deployments, replica sets, daemon sets, stateful sets: how many pods, made from which template.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    condition::Condition,
    int_or_string::IntOrString,
    kind,
    meta::LabelSelector,
    pod::PodTemplateSpec,
    storage::PersistentVolumeClaim,
    view::{objects, views},
};

objects! {
    /// Rolls out replica sets.
    kind::DEPLOYMENT => pub struct Deployment {
        pub spec: DeploymentSpec,
        pub status: DeploymentStatus,
    }

    /// Keeps a number of equal pods.
    kind::REPLICA_SET => pub struct ReplicaSet {
        pub spec: ReplicaSetSpec,
        pub status: ReplicaSetStatus,
    }

    /// Keeps a number of equal pods, the older way.
    kind::REPLICATION_CONTROLLER => pub struct ReplicationController {
        pub spec: ReplicationControllerSpec,
        pub status: ReplicaSetStatus,
    }

    /// One pod per node.
    kind::DAEMON_SET => pub struct DaemonSet {
        pub spec: DaemonSetSpec,
        pub status: DaemonSetStatus,
    }

    /// Pods with lasting names.
    kind::STATEFUL_SET => pub struct StatefulSet {
        pub spec: StatefulSetSpec,
        pub status: StatefulSetStatus,
    }

    /// What a workload was at some time.
    kind::CONTROLLER_REVISION => pub struct ControllerRevision {
        pub data: Value,
        pub revision: i64,
    }
}

views! {
    /// What a replication controller is to be; its selector is labels alone.
    pub struct ReplicationControllerSpec {
        pub replicas: Option<i64>,
        pub min_ready_seconds: i64,
        pub selector: BTreeMap<String, String>,
        pub template: PodTemplateSpec,
    }

    /// What a daemon set is to be.
    pub struct DaemonSetSpec {
        pub selector: Option<LabelSelector>,
        pub template: PodTemplateSpec,
        pub update_strategy: DeploymentStrategy,
        pub min_ready_seconds: i64,
        pub revision_history_limit: Option<i64>,
    }

    /// What is known of a daemon set.
    pub struct DaemonSetStatus {
        pub current_number_scheduled: i64,
        pub number_misscheduled: i64,
        pub desired_number_scheduled: i64,
        pub number_ready: i64,
        pub observed_generation: i64,
        pub updated_number_scheduled: i64,
        pub number_available: i64,
        pub number_unavailable: i64,
        pub collision_count: Option<i64>,
        pub conditions: Vec<Condition>,
    }

    /// What a stateful set is to be.
    pub struct StatefulSetSpec {
        pub replicas: Option<i64>,
        pub selector: Option<LabelSelector>,
        pub template: PodTemplateSpec,
        pub volume_claim_templates: Vec<PersistentVolumeClaim>,
        pub service_name: String,
        pub pod_management_policy: String,
        pub update_strategy: StatefulSetStrategy,
        pub revision_history_limit: Option<i64>,
        pub min_ready_seconds: i64,
        pub persistent_volume_claim_retention_policy: Option<ClaimRetentionPolicy>,
        pub ordinals: Option<Ordinals>,
    }

    /// How old pods are replaced by new ones.
    pub struct StatefulSetStrategy {
        #[serde(rename = "type")]
        pub kind: String,
        pub rolling_update: Option<StatefulRollingUpdate>,
    }

    /// From which pod on, and how many at once.
    pub struct StatefulRollingUpdate {
        pub partition: Option<i64>,
        pub max_unavailable: Option<IntOrString>,
    }

    /// What becomes of claims: `Retain` or `Delete`.
    pub struct ClaimRetentionPolicy {
        pub when_deleted: String,
        pub when_scaled: String,
    }

    /// The number of the first pod.
    pub struct Ordinals {
        pub start: i64,
    }

    /// What is known of a stateful set; `replicas` is always written.
    pub struct StatefulSetStatus {
        pub observed_generation: i64,
        pub replicas: Option<i64>,
        pub ready_replicas: i64,
        pub current_replicas: i64,
        pub updated_replicas: i64,
        pub current_revision: String,
        pub update_revision: String,
        pub collision_count: Option<i64>,
        pub conditions: Vec<Condition>,
        pub available_replicas: i64,
    }
}

views! {
    /// What a deployment is to be.
    pub struct DeploymentSpec {
        pub replicas: Option<i64>,
        pub selector: Option<LabelSelector>,
        pub template: PodTemplateSpec,
        pub strategy: DeploymentStrategy,
        pub min_ready_seconds: i64,
        pub revision_history_limit: Option<i64>,
        pub paused: bool,
        pub progress_deadline_seconds: Option<i64>,
    }

    /// How old pods are replaced by new ones.
    pub struct DeploymentStrategy {
        #[serde(rename = "type")]
        pub kind: String,
        pub rolling_update: Option<RollingUpdate>,
    }

    /// How many pods more, and how many fewer, there may be meanwhile.
    pub struct RollingUpdate {
        pub max_unavailable: Option<IntOrString>,
        pub max_surge: Option<IntOrString>,
    }

    /// What is known of a deployment.
    pub struct DeploymentStatus {
        pub observed_generation: i64,
        pub replicas: i64,
        pub updated_replicas: i64,
        pub ready_replicas: i64,
        pub available_replicas: i64,
        pub unavailable_replicas: i64,
        pub terminating_replicas: Option<i64>,
        pub conditions: Vec<Condition>,
        pub collision_count: Option<i64>,
    }

    /// What a replica set is to be.
    pub struct ReplicaSetSpec {
        pub replicas: Option<i64>,
        pub min_ready_seconds: i64,
        pub selector: Option<LabelSelector>,
        pub template: PodTemplateSpec,
    }

    /// What is known of a replica set; `replicas` is always written.
    pub struct ReplicaSetStatus {
        pub replicas: Option<i64>,
        pub fully_labeled_replicas: i64,
        pub ready_replicas: i64,
        pub available_replicas: i64,
        pub terminating_replicas: Option<i64>,
        pub observed_generation: i64,
        pub conditions: Vec<Condition>,
    }

    /// The `scale` subresource (`autoscaling/v1`).
    pub struct Scale {
        pub api_version: String,
        pub kind: String,
        pub metadata: crate::meta::ObjectMeta,
        pub spec: ScaleSpec,
        pub status: Option<Value>,
    }

    /// How many replicas there should be.
    pub struct ScaleSpec {
        pub replicas: Option<i64>,
    }
}
