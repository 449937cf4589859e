//! Kinds of the core group.

use super::{BASE, GroupVersion, Kind};

/// Settings for pods.
pub static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    ..BASE
};

/// The addresses behind a service, in one object.
pub static ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    put_creates: true,
    ..BASE
};

/// Something that happened to an object.
pub static EVENT: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    put_creates: true,
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    aliases: &[GroupVersion { group: "events.k8s.io", version: "v1" }],
    ..BASE
};

/// What one object of a namespace may use, and what it uses unless it says.
pub static LIMIT_RANGE: Kind = Kind {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &["limits"],
    put_creates: true,
    ..BASE
};

/// A namespace.
pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    has_status: true,
    subresources: &["finalize", "status"],
    selectable: &["status.phase"],
    ..BASE
};

/// A machine as the orchestrator sees it.
pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    has_status: true,
    subresources: &["proxy", "status"],
    selectable: &["spec.unschedulable"],
    ..BASE
};

/// A claim on storage.
pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// A piece of storage.
pub static PERSISTENT_VOLUME: Kind = Kind {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// A group of containers on one node.
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &[
        "attach",
        "binding",
        "ephemeralcontainers",
        "eviction",
        "exec",
        "log",
        "portforward",
        "proxy",
        "resize",
        "status",
    ],
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    ..BASE
};

/// A pod to be made, kept by itself.
pub static POD_TEMPLATE: Kind = Kind {
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    has_generation: true,
    put_creates: true,
    ..BASE
};

/// Keeps a number of equal pods, the older way.
pub static REPLICATION_CONTROLLER: Kind = Kind {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    has_status: true,
    has_generation: true,
    subresources: &["scale", "status"],
    selectable: &["status.replicas"],
    ..BASE
};

/// What a namespace may use in all.
pub static RESOURCE_QUOTA: Kind = Kind {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// Secrets for pods.
pub static SECRET: Kind =
    Kind { kind: "Secret", plural: "secrets", singular: "secret", selectable: &["type"], ..BASE };

/// An identity for pods.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &["token"],
    ..BASE
};

/// A stable address in front of pods.
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    has_status: true,
    put_creates: true,
    subresources: &["proxy", "status"],
    selectable: &["spec.clusterIP", "spec.type"],
    ..BASE
};
