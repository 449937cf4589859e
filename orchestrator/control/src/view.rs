//! What controllers see: the objects of the cluster at about one moment, with indexes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use objects::certificate::CertificateSigningRequest;
use objects::kind::Kind;
use objects::lease::Lease;
use objects::machine::Machine;
use objects::meta::{Object, ObjectMeta};
use objects::namespace::Namespace;
use objects::network::{EndpointSlice, Endpoints, Service};
use objects::node::Node;
use objects::pod::Pod;
use objects::workload::{Deployment, ReplicaSet};

/// Names and objects of each namespace.
type Namespaces<T> = BTreeMap<String, BTreeMap<String, Arc<T>>>;

/// Objects of one kind by namespace and name; a clone shares everything.
#[derive(Debug)]
pub struct Set<T> {
    by_namespace: Arc<Namespaces<T>>,
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self { by_namespace: Arc::new(BTreeMap::new()) }
    }
}

impl<T> Clone for Set<T> {
    fn clone(&self) -> Self {
        Self { by_namespace: Arc::clone(&self.by_namespace) }
    }
}

impl<T: Object> FromIterator<Arc<T>> for Set<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(items: I) -> Self {
        let mut all: Namespaces<T> = BTreeMap::new();
        for item in items {
            let meta = item.meta();
            let names = match all.get_mut(&meta.namespace) {
                Some(names) => names,
                None => all.entry(meta.namespace.clone()).or_default(),
            };
            names.insert(meta.name.clone(), item);
        }
        Self { by_namespace: Arc::new(all) }
    }
}

impl<T> Set<T> {
    /// Finds an object; the namespace of cluster-wide ones is empty.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.by_namespace.get(namespace)?.get(name)
    }

    /// The objects of a namespace by name.
    pub fn inside(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.by_namespace.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// All objects by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_namespace.values().flat_map(BTreeMap::values)
    }

    /// The keys of all objects.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        let all = self.by_namespace.iter();
        all.flat_map(|(namespace, names)| names.keys().map(|name| Key::new(namespace, name)))
            .collect()
    }
}

/// Which object a reconcile is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key of an object.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(&meta.namespace, &meta.name)
    }
}

/// Waiting times of the cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Silence after which a node counts as `Unknown`.
    pub node_monitor_grace_period: Duration,
    /// How long pods that say nothing about it stay on an unreachable node.
    pub pod_eviction_timeout: Duration,
    /// The name of our scheduler in `spec.schedulerName`.
    pub scheduler_name: String,
}

impl Default for Settings {
    /// Upstream's: 40 s and 5 min.
    fn default() -> Self {
        Self {
            node_monitor_grace_period: Duration::from_secs(40),
            pod_eviction_timeout: Duration::from_secs(300),
            scheduler_name: "default-scheduler".to_owned(),
        }
    }
}

/// Metadata of any object, with its kind: all that garbage collection needs.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its metadata.
    pub meta: Arc<ObjectMeta>,
}

/// What a signing request's PKCS #10 body says; read by those who may parse certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// Common name of the subject.
    pub common_name: String,
    /// Organisations of the subject.
    pub organizations: Vec<String>,
    /// IP addresses asked for.
    pub addresses: Vec<String>,
    /// Host names asked for.
    pub names: Vec<String>,
}

/// Everything a controller may look at; a controller fills in only what it needs.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "the fields are the kinds")]
pub struct View {
    pub pods: Set<Pod>,
    pub nodes: Set<Node>,
    pub leases: Set<Lease>,
    pub namespaces: Set<Namespace>,
    pub services: Set<Service>,
    pub endpoints: Set<Endpoints>,
    pub slices: Set<EndpointSlice>,
    pub deployments: Set<Deployment>,
    pub replica_sets: Set<ReplicaSet>,
    /// Replication controllers, read as the replica sets they are.
    pub replication_controllers: Set<ReplicaSet>,
    pub machines: Set<Machine>,
    pub requests: Set<CertificateSigningRequest>,
    /// What the requests' bodies say, by request name; absent when they do not parse.
    pub facts: BTreeMap<String, RequestFacts>,
    /// Metadata of every kind, for garbage collection alone.
    pub references: Vec<Reference>,
    /// When we last saw a sign of life of each node, by our own clock.
    pub heartbeats: BTreeMap<String, Timestamp>,
    /// When no node at all was ready last, by our own clock.
    pub dark: Option<Timestamp>,
    /// Pods given to nodes whose binding the view does not show yet, by pod uid.
    pub assumed: BTreeMap<String, String>,
    /// Waiting times.
    pub settings: Settings,
    /// Worked out on first use; views of the same pods may share it.
    pub index: Arc<Index>,
}

/// Indexes over the pods of a view, made when first asked for; the pods must not change after.
#[derive(Debug, Default)]
pub struct Index(OnceLock<PodIndex>);

/// Pods by what they belong to.
#[derive(Debug, Default)]
struct PodIndex {
    by_controller: BTreeMap<String, Vec<Arc<Pod>>>,
    orphans: BTreeMap<String, Vec<Arc<Pod>>>,
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
}

impl View {
    fn index(&self) -> &PodIndex {
        self.index.0.get_or_init(|| {
            let mut index = PodIndex::default();
            for pod in self.pods.iter() {
                let home = match pod.metadata.controller() {
                    Some(owner) => index.by_controller.entry(owner.uid.clone()).or_default(),
                    None => index.orphans.entry(pod.metadata.namespace.clone()).or_default(),
                };
                home.push(Arc::clone(pod));
                if pod.is_bound() {
                    let node = index.by_node.entry(pod.spec.node_name.clone()).or_default();
                    node.push(Arc::clone(pod));
                }
            }
            index
        })
    }

    /// The pods a controller's uid controls.
    #[must_use]
    pub fn pods_of(&self, controller_uid: &str) -> &[Arc<Pod>] {
        self.index().by_controller.get(controller_uid).map_or(&[], Vec::as_slice)
    }

    /// The pods of a namespace that nobody controls.
    #[must_use]
    pub fn orphans(&self, namespace: &str) -> &[Arc<Pod>] {
        self.index().orphans.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// The pods bound to a node.
    #[must_use]
    pub fn pods_on(&self, node: &str) -> &[Arc<Pod>] {
        self.index().by_node.get(node).map_or(&[], Vec::as_slice)
    }
}
