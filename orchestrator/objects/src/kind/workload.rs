//! Kinds that keep pods running: apps, autoscaling, batch, policy, and what pods refer to.

use super::{BASE, GroupVersion, Kind};

/// An earlier state of a daemon set or stateful set.
pub static CONTROLLER_REVISION: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    ..BASE
};

/// One pod per node.
pub static DAEMON_SET: Kind = Kind {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};

/// Rolls out replica sets.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["scale", "status"],
    ..BASE
};

/// Keeps a number of equal pods.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["scale", "status"],
    selectable: &["status.replicas"],
    ..BASE
};

/// Pods with lasting names.
pub static STATEFUL_SET: Kind = Kind {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["scale", "status"],
    ..BASE
};

/// Scales a workload by what it uses.
pub static HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    has_status: true,
    subresources: &["status"],
    aliases: &[GroupVersion { group: "autoscaling", version: "v1" }],
    ..BASE
};

/// Jobs by the clock.
pub static CRON_JOB: Kind = Kind {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    aliases: &[GroupVersion { group: "batch", version: "v1beta1" }],
    ..BASE
};

/// Pods that run to completion.
pub static JOB: Kind = Kind {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    selectable: &["status.successful"],
    ..BASE
};

/// How many pods of a set may be away by intent.
pub static POD_DISRUPTION_BUDGET: Kind = Kind {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    aliases: &[GroupVersion { group: "policy", version: "v1beta1" }],
    ..BASE
};

/// A way to run containers under one name.
pub static RUNTIME_CLASS: Kind = Kind {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    namespaced: false,
    ..BASE
};

/// A priority of pods under one name.
pub static PRIORITY_CLASS: Kind = Kind {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    namespaced: false,
    has_generation: true,
    ..BASE
};
