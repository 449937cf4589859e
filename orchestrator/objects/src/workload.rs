//! Deployments and replica sets: how many pods, made from which template.

use serde_json::Value;

use crate::{
    condition::Condition,
    int_or_string::IntOrString,
    kind,
    meta::LabelSelector,
    pod::PodTemplateSpec,
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
