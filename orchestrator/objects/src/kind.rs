//! The table of kinds the API serves.
//!
//! One row says everything that paths, discovery and storage need to know of a kind. What an
//! object of the kind looks like is the schema's business (`api::schema`).

use std::fmt;

/// A group and version, as in `discovery.k8s.io/v1`; the core group is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersion {
    /// The API group; empty for core.
    pub group: &'static str,
    /// The version within the group.
    pub version: &'static str,
}

/// One row: a kind of object.
///
/// Rows are compared by group and kind, so a row may be used as a key.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The API group; empty for core.
    pub group: &'static str,
    /// The version objects are stored and served in.
    pub version: &'static str,
    /// The kind's name in objects (`Pod`).
    pub kind: &'static str,
    /// The resource name in paths (`pods`).
    pub plural: &'static str,
    /// The singular resource name (`pod`).
    pub singular: &'static str,
    /// Names kubectl accepts for short.
    pub short_names: &'static [&'static str],
    /// Groups of kinds kubectl knows by one word (`all`).
    pub categories: &'static [&'static str],
    /// Do objects live in a namespace?
    pub namespaced: bool,
    /// Is there a `status` written apart from the rest?
    pub has_status: bool,
    /// Does `metadata.generation` count changes of the spec?
    pub has_generation: bool,
    /// Does a PUT to a name that does not exist create it?
    pub put_creates: bool,
    /// Subresources by path name, `status` and `scale` included.
    pub subresources: &'static [&'static str],
    /// Field paths that field selectors may use besides `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// Other group-versions the same objects are served in.
    pub aliases: &'static [GroupVersion],
}

/// What most rows have in common.
const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    has_status: false,
    has_generation: false,
    put_creates: false,
    subresources: &[],
    selectable: &[],
    aliases: &[],
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
    subresources: &["status"],
    selectable: &["spec.unschedulable"],
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
    subresources: &["binding", "eviction", "log", "status"],
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

/// A stable address in front of pods.
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    has_status: true,
    subresources: &["status"],
    selectable: &["spec.clusterIP", "spec.type"],
    ..BASE
};

/// The addresses behind a service, in one object.
pub static ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    put_creates: false,
    ..BASE
};

/// Settings for pods.
pub static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    ..BASE
};

/// Secrets for pods.
pub static SECRET: Kind =
    Kind { kind: "Secret", plural: "secrets", singular: "secret", selectable: &["type"], ..BASE };

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

/// An identity for pods.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
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

/// The addresses behind a service, in pieces.
pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    has_generation: true,
    ..BASE
};

/// A heartbeat or a leader's claim.
pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    put_creates: true,
    ..BASE
};

/// A request for a certificate.
pub static CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    namespaced: false,
    has_status: true,
    subresources: &["approval", "status"],
    selectable: &["spec.signerName"],
    ..BASE
};

/// What a person may do in a namespace.
pub static ROLE: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "Role",
    plural: "roles",
    singular: "role",
    ..BASE
};

/// Who has a role in a namespace.
pub static ROLE_BINDING: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    ..BASE
};

/// What a person may do anywhere.
pub static CLUSTER_ROLE: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    ..BASE
};

/// Who has a cluster role.
pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    ..BASE
};

/// What a workload was at some time.
pub static CONTROLLER_REVISION: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    ..BASE
};

/// Runs pods until enough of them succeeded.
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

/// Makes jobs at given times.
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
    ..BASE
};

/// How many pods of a group may be away at once.
pub static POD_DISRUPTION_BUDGET: Kind = Kind {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    has_status: true,
    has_generation: true,
    subresources: &["status"],
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
    ..BASE
};

/// The most a namespace may use.
pub static RESOURCE_QUOTA: Kind = Kind {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// How volumes are made.
pub static STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    ..BASE
};

/// A volume that is, or is to be, at a node.
pub static VOLUME_ATTACHMENT: Kind = Kind {
    group: "storage.k8s.io",
    kind: "VolumeAttachment",
    plural: "volumeattachments",
    singular: "volumeattachment",
    namespaced: false,
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// A machine of the plan.
pub static MACHINE: Kind = Kind {
    group: "muster.dev",
    version: "v1alpha1",
    kind: "Machine",
    plural: "machines",
    singular: "machine",
    categories: &["muster"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    selectable: &["spec.rack", "spec.role", "status.phase"],
    ..BASE
};

/// A rack of the plan.
pub static RACK: Kind = Kind {
    group: "muster.dev",
    version: "v1alpha1",
    kind: "Rack",
    plural: "racks",
    singular: "rack",
    categories: &["muster"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};

/// A release of the node image.
pub static NODE_IMAGE: Kind = Kind {
    group: "muster.dev",
    version: "v1alpha1",
    kind: "NodeImage",
    plural: "nodeimages",
    singular: "nodeimage",
    categories: &["muster"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};

/// Every kind, in the order discovery lists groups and resources.
pub static KINDS: &[&Kind] = &[
    &CONFIG_MAP,
    &ENDPOINTS,
    &EVENT,
    &NAMESPACE,
    &NODE,
    &PERSISTENT_VOLUME_CLAIM,
    &PERSISTENT_VOLUME,
    &POD,
    &REPLICATION_CONTROLLER,
    &SECRET,
    &SERVICE_ACCOUNT,
    &SERVICE,
    &DAEMON_SET,
    &DEPLOYMENT,
    &REPLICA_SET,
    &STATEFUL_SET,
    &CERTIFICATE_SIGNING_REQUEST,
    &CLUSTER_ROLE_BINDING,
    &CLUSTER_ROLE,
    &ROLE_BINDING,
    &ROLE,
    &LEASE,
    &ENDPOINT_SLICE,
    &MACHINE,
    &NODE_IMAGE,
    &RACK,
];

/// Finds a kind by group, version and resource name, alias versions included.
#[must_use]
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|kind| kind.plural == plural && kind.is_served_in(group, version))
}

/// Finds a kind by `apiVersion` and `kind`, alias versions included.
#[must_use]
pub fn by_gvk(api_version: &str, name: &str) -> Option<&'static Kind> {
    let (group, version) = split_api_version(api_version);
    KINDS.iter().copied().find(|kind| kind.kind == name && kind.is_served_in(group, version))
}

/// Splits `apps/v1` into group and version; the core group is empty.
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Joins group and version to an `apiVersion`.
#[must_use]
pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl Kind {
    /// The `apiVersion` of stored objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        join_api_version(self.group, self.version)
    }

    /// `pods`, `deployments.apps`: the name in messages and in storage keys.
    #[must_use]
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Is the kind served in this group-version?
    #[must_use]
    pub fn is_served_in(&self, group: &str, version: &str) -> bool {
        (self.group == group && self.version == version)
            || self.aliases.iter().any(|alias| alias.group == group && alias.version == version)
    }

    /// Has the kind this subresource?
    #[must_use]
    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.contains(&name)
    }

    /// The path of an object, a collection (`name` = `None`), as the API serves it.
    #[must_use]
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let Some(namespace) = namespace.filter(|n| self.namespaced && !n.is_empty()) {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        path.push('/');
        path.push_str(self.plural);
        if let Some(name) = name {
            path.push('/');
            path.push_str(name);
        }
        path
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.kind) == (other.group, other.kind)
    }
}

impl Eq for Kind {}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.group, self.kind).cmp(&(other.group, other.kind))
    }
}

impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.group, self.kind).hash(state);
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Kind={}", self.api_version(), self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_path_and_by_object() {
        assert_eq!(by_resource("", "v1", "pods"), Some(&POD));
        assert_eq!(by_resource("events.k8s.io", "v1", "events"), Some(&EVENT));
        assert_eq!(by_resource("apps", "v1beta1", "deployments"), None);
        assert_eq!(by_gvk("apps/v1", "Deployment"), Some(&DEPLOYMENT));
        assert_eq!(by_gvk("muster.dev/v1alpha1", "Machine"), Some(&MACHINE));
    }

    #[test]
    fn rows_are_unique_and_complete() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(!kind.kind.is_empty() && !kind.plural.is_empty() && !kind.singular.is_empty());
            assert_eq!(kind.has_status, kind.has_subresource("status"), "{kind:?}");
            assert!(!KINDS[..at].contains(kind), "{kind:?} twice");
        }
    }

    #[test]
    fn paths_follow_the_scope() {
        assert_eq!(POD.path(Some("a"), Some("b")), "/api/v1/namespaces/a/pods/b");
        assert_eq!(NODE.path(Some("a"), None), "/api/v1/nodes");
        assert_eq!(DEPLOYMENT.path(None, None), "/apis/apps/v1/deployments");
    }
}
