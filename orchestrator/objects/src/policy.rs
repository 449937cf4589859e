//! Policies around workloads: disruption budgets, autoscalers, quotas.

use std::collections::BTreeMap;

use crate::{
    condition::Condition,
    int_or_string::IntOrString,
    kind,
    meta::LabelSelector,
    pod::ResourceList,
    quantity::Quantity,
    time::Time,
    view::{objects, views},
};

objects! {
    /// How many pods of a group may be away at once.
    kind::POD_DISRUPTION_BUDGET => pub struct PodDisruptionBudget {
        pub spec: PodDisruptionBudgetSpec,
        pub status: PodDisruptionBudgetStatus,
    }

    /// Scales a workload by what it uses.
    kind::HORIZONTAL_POD_AUTOSCALER => pub struct HorizontalPodAutoscaler {
        pub spec: HorizontalPodAutoscalerSpec,
        pub status: HorizontalPodAutoscalerStatus,
    }

    /// The most a namespace may use.
    kind::RESOURCE_QUOTA => pub struct ResourceQuota {
        pub spec: ResourceQuotaSpec,
        pub status: ResourceQuotaStatus,
    }
}

views! {
    /// Which pods, and how many of them.
    pub struct PodDisruptionBudgetSpec {
        pub min_available: Option<IntOrString>,
        pub max_unavailable: Option<IntOrString>,
        pub selector: Option<LabelSelector>,
        pub unhealthy_pod_eviction_policy: Option<String>,
    }

    /// What a budget allows now; the counts are always written.
    pub struct PodDisruptionBudgetStatus {
        pub observed_generation: i64,
        pub disrupted_pods: BTreeMap<String, Time>,
        pub disruptions_allowed: Option<i64>,
        pub current_healthy: Option<i64>,
        pub desired_healthy: Option<i64>,
        pub expected_pods: Option<i64>,
        pub conditions: Vec<Condition>,
    }

    /// What is scaled, between which limits, by which metrics.
    pub struct HorizontalPodAutoscalerSpec {
        pub scale_target_ref: CrossVersionObjectReference,
        pub min_replicas: Option<i64>,
        pub max_replicas: i64,
        pub metrics: Vec<MetricSpec>,
        pub behavior: Option<ScalingBehavior>,
    }

    /// An object that has a scale.
    pub struct CrossVersionObjectReference {
        pub api_version: String,
        pub kind: String,
        pub name: String,
    }

    /// One metric to scale by.
    pub struct MetricSpec {
        #[serde(rename = "type")]
        pub kind: String,
        pub resource: Option<ResourceMetric>,
        pub container_resource: Option<ResourceMetric>,
    }

    /// A resource of pods, or of one container of each, and how much is aimed at.
    pub struct ResourceMetric {
        pub name: String,
        pub container: String,
        pub target: MetricTarget,
    }

    /// How much is aimed at.
    pub struct MetricTarget {
        #[serde(rename = "type")]
        pub kind: String,
        pub value: Option<Quantity>,
        pub average_value: Option<Quantity>,
        pub average_utilization: Option<i64>,
    }

    /// How fast a workload is scaled.
    pub struct ScalingBehavior {
        pub scale_up: Option<ScalingRules>,
        pub scale_down: Option<ScalingRules>,
    }

    /// How fast it is scaled in one direction.
    pub struct ScalingRules {
        pub stabilization_window_seconds: Option<i64>,
        pub select_policy: Option<String>,
        pub policies: Vec<ScalingPolicy>,
        pub tolerance: Option<Quantity>,
    }

    /// The most that may change in a time.
    pub struct ScalingPolicy {
        #[serde(rename = "type")]
        pub kind: String,
        pub value: i64,
        pub period_seconds: i64,
    }

    /// What is known of an autoscaler.
    pub struct HorizontalPodAutoscalerStatus {
        pub observed_generation: Option<i64>,
        pub last_scale_time: Option<Time>,
        pub current_replicas: Option<i64>,
        pub desired_replicas: Option<i64>,
        pub current_metrics: Vec<serde_json::Value>,
        pub conditions: Vec<Condition>,
    }

    /// What is limited.
    pub struct ResourceQuotaSpec {
        pub hard: ResourceList,
        pub scopes: Vec<String>,
        pub scope_selector: Option<ScopeSelector>,
    }

    /// Which objects count.
    pub struct ScopeSelector {
        pub match_expressions: Vec<ScopeRequirement>,
    }

    /// One expression of a [`ScopeSelector`].
    pub struct ScopeRequirement {
        pub scope_name: String,
        pub operator: String,
        pub values: Vec<String>,
    }

    /// What is used of it.
    pub struct ResourceQuotaStatus {
        pub hard: ResourceList,
        pub used: ResourceList,
    }
}
