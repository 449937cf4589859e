//! The table of kinds the API serves.
//!
//! One row says everything that paths, discovery and storage need to know of a kind. What an
//! object of the kind looks like is the schema's business (`api::schema`).

mod access;
mod core;
mod network;
mod site;
mod storage;
mod workload;

use std::fmt;

pub use self::{access::*, core::*, network::*, site::*, storage::*, workload::*};

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

/// Every kind, in the order discovery lists groups and resources.
pub static KINDS: &[&Kind] = &[
    &CONFIG_MAP,
    &ENDPOINTS,
    &EVENT,
    &LIMIT_RANGE,
    &NAMESPACE,
    &NODE,
    &PERSISTENT_VOLUME_CLAIM,
    &PERSISTENT_VOLUME,
    &POD,
    &POD_TEMPLATE,
    &REPLICATION_CONTROLLER,
    &RESOURCE_QUOTA,
    &SECRET,
    &SERVICE_ACCOUNT,
    &SERVICE,
    &VALIDATING_WEBHOOK_CONFIGURATION,
    &MUTATING_WEBHOOK_CONFIGURATION,
    &VALIDATING_ADMISSION_POLICY,
    &VALIDATING_ADMISSION_POLICY_BINDING,
    &MUTATING_ADMISSION_POLICY,
    &MUTATING_ADMISSION_POLICY_BINDING,
    &CUSTOM_RESOURCE_DEFINITION,
    &API_SERVICE,
    &DAEMON_SET,
    &CONTROLLER_REVISION,
    &DEPLOYMENT,
    &REPLICA_SET,
    &STATEFUL_SET,
    &HORIZONTAL_POD_AUTOSCALER,
    &CRON_JOB,
    &JOB,
    &CERTIFICATE_SIGNING_REQUEST,
    &LEASE,
    &ENDPOINT_SLICE,
    &FLOW_SCHEMA,
    &PRIORITY_LEVEL_CONFIGURATION,
    &INGRESS_CLASS,
    &INGRESS,
    &IP_ADDRESS,
    &NETWORK_POLICY,
    &SERVICE_CIDR,
    &RUNTIME_CLASS,
    &POD_DISRUPTION_BUDGET,
    &CLUSTER_ROLE_BINDING,
    &CLUSTER_ROLE,
    &ROLE_BINDING,
    &ROLE,
    &DEVICE_CLASS,
    &RESOURCE_CLAIM_TEMPLATE,
    &RESOURCE_CLAIM,
    &RESOURCE_SLICE,
    &PRIORITY_CLASS,
    &CSI_DRIVER,
    &CSI_NODE,
    &CSI_STORAGE_CAPACITY,
    &STORAGE_CLASS,
    &VOLUME_ATTACHMENT,
    &VOLUME_ATTRIBUTES_CLASS,
    &MACHINE,
    &NODE_IMAGE,
    &RACK,
];

/// Kinds that controllers of ours know, and that a server has once their definitions are in it.
pub static CUSTOM_KINDS: &[&Kind] =
    &[&VOLUME_SNAPSHOT, &VOLUME_SNAPSHOT_CONTENT, &VOLUME_SNAPSHOT_CLASS];

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
