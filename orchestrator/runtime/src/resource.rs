//! Which collection of the API is meant.
//!
//! Everything a request path needs and nothing more; the full table of kinds is in `objects`.

use std::borrow::Cow;
use std::fmt;

use objects::kind::Kind;

/// One resource of the API: group, version, plural, scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// Version, `v1`.
    pub version: Cow<'static, str>,
    /// Kind, `Pod`.
    pub kind: Cow<'static, str>,
    /// Plural in paths, `pods`.
    pub plural: Cow<'static, str>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// A resource whose objects live in namespaces.
    #[must_use]
    pub const fn namespaced(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Self::known(group, version, kind, plural, true)
    }

    /// A resource of the whole cluster.
    #[must_use]
    pub const fn cluster(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Self::known(group, version, kind, plural, false)
    }

    const fn known(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        namespaced: bool,
    ) -> Self {
        Self {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            kind: Cow::Borrowed(kind),
            plural: Cow::Borrowed(plural),
            namespaced,
        }
    }

    /// Returns `apiVersion` as objects carry it: `v1`, `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Renders the path of the collection (`name` = `None`), an object, or its subresource.
    ///
    /// A `namespace` of `None` on a namespaced resource means all namespaces.
    #[must_use]
    pub fn render_path(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
        subresource: Option<&str>,
    ) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let Some(namespace) = namespace.filter(|ns| self.namespaced && !ns.is_empty()) {
            path.push_str("/namespaces/");
            path.push_str(&escape(namespace));
        }
        path.push('/');
        path.push_str(&self.plural);
        for part in [name, subresource].into_iter().flatten() {
            path.push('/');
            path.push_str(&escape(part));
        }
        path
    }
}

impl From<&Kind> for Resource {
    fn from(kind: &Kind) -> Self {
        Self::known(kind.group, kind.version, kind.kind, kind.plural, kind.namespaced)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            write!(out, "{}", self.plural)
        } else {
            write!(out, "{}.{}", self.plural, self.group)
        }
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3).
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident = $scope:ident($group:literal, $version:literal, $kind:literal, $plural:literal);)*) => {
        $($(#[$doc])* pub const $name: Resource = Resource::$scope($group, $version, $kind, $plural);)*
    };
}

resources! {
    /// Namespaces.
    NAMESPACES = cluster("", "v1", "Namespace", "namespaces");
    /// Nodes.
    NODES = cluster("", "v1", "Node", "nodes");
    /// Pods.
    PODS = namespaced("", "v1", "Pod", "pods");
    /// Services.
    SERVICES = namespaced("", "v1", "Service", "services");
    /// Endpoints.
    ENDPOINTS = namespaced("", "v1", "Endpoints", "endpoints");
    /// Config maps.
    CONFIG_MAPS = namespaced("", "v1", "ConfigMap", "configmaps");
    /// Secrets.
    SECRETS = namespaced("", "v1", "Secret", "secrets");
    /// Service accounts.
    SERVICE_ACCOUNTS = namespaced("", "v1", "ServiceAccount", "serviceaccounts");
    /// Events of the core group.
    EVENTS = namespaced("", "v1", "Event", "events");
    /// Replication controllers.
    REPLICATION_CONTROLLERS = namespaced("", "v1", "ReplicationController", "replicationcontrollers");
    /// Persistent volume claims.
    PERSISTENT_VOLUME_CLAIMS = namespaced("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims");
    /// Volumes of the cluster.
    PERSISTENT_VOLUMES = cluster("", "v1", "PersistentVolume", "persistentvolumes");
    /// Which drivers a node has.
    CSI_NODES = cluster("storage.k8s.io", "v1", "CSINode", "csinodes");
    /// How drivers want to be treated.
    CSI_DRIVERS = cluster("storage.k8s.io", "v1", "CSIDriver", "csidrivers");
    /// Volumes that are, or are to be, at a node.
    VOLUME_ATTACHMENTS = cluster("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments");
    /// Deployments.
    DEPLOYMENTS = namespaced("apps", "v1", "Deployment", "deployments");
    /// Replica sets.
    REPLICA_SETS = namespaced("apps", "v1", "ReplicaSet", "replicasets");
    /// Endpoint slices.
    ENDPOINT_SLICES = namespaced("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices");
    /// Network policies.
    NETWORK_POLICIES = namespaced("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies");
    /// Leases.
    LEASES = namespaced("coordination.k8s.io", "v1", "Lease", "leases");
    /// Certificate signing requests.
    CERTIFICATE_SIGNING_REQUESTS = cluster("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests");
    /// Machines of the plan.
    MACHINES = cluster("muster.dev", "v1alpha1", "Machine", "machines");
    /// Racks of the plan.
    RACKS = cluster("muster.dev", "v1alpha1", "Rack", "racks");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_group_scope_and_subresource() {
        assert_eq!(NODES.render_path(None, Some("a"), Some("status")), "/api/v1/nodes/a/status");
        assert_eq!(PODS.render_path(None, None, None), "/api/v1/pods");
        assert_eq!(
            DEPLOYMENTS.render_path(Some("x"), Some("y"), None),
            "/apis/apps/v1/namespaces/x/deployments/y"
        );
        assert_eq!(NODES.render_path(Some("x"), Some("a/b"), None), "/api/v1/nodes/a%2Fb");
    }
}
