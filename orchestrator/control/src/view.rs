//! What controllers see: the objects of the cluster at about one moment, with indexes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use objects::meta::{Object, ObjectMeta};
use objects::pod::Pod;

use crate::garbage::Graph;
use crate::lifecycle::Verdicts;
use crate::scaling::Observed;

/// Names and objects of one namespace.
type Names<T> = BTreeMap<String, Arc<T>>;

/// Objects of one kind by namespace and name; a clone shares everything.
#[derive(Debug)]
pub struct Set<T> {
    by_namespace: Arc<BTreeMap<String, Arc<Names<T>>>>,
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
        let mut set = Self::default();
        for item in items {
            let (namespace, name) = (item.meta().namespace.clone(), item.meta().name.clone());
            set.put(&namespace, &name, Some(item));
        }
        set
    }
}

impl<T> Set<T> {
    /// Puts an object in, or takes it out; those who hold a clone see no change.
    pub fn put(&mut self, namespace: &str, name: &str, object: Option<Arc<T>>) {
        let all = Arc::make_mut(&mut self.by_namespace);
        if let Some(object) = object {
            let names = match all.get_mut(namespace) {
                Some(names) => names,
                None => all.entry(namespace.to_owned()).or_default(),
            };
            Arc::make_mut(names).insert(name.to_owned(), object);
        } else if let Some(names) = all.get_mut(namespace) {
            let rest = Arc::make_mut(names);
            rest.remove(name);
            if rest.is_empty() {
                all.remove(namespace);
            }
        }
    }

    /// Finds an object; the namespace of cluster-wide ones is empty.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.by_namespace.get(namespace)?.get(name)
    }

    /// The objects of a namespace by name.
    pub fn inside(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.by_namespace.get(namespace).into_iter().flat_map(|names| names.values())
    }

    /// All objects by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_namespace.values().flat_map(|names| names.values())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_namespace.values().map(|names| names.len()).sum()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// The keys of all objects.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        let all = self.by_namespace.iter();
        all.flat_map(|(namespace, names)| names.keys().map(|name| Key::new(namespace, name)))
            .collect()
    }

    /// The keys of the objects of a namespace.
    #[must_use]
    pub fn keys_inside(&self, namespace: &str) -> Vec<Key> {
        let names = self.by_namespace.get(namespace).into_iter().flat_map(|names| names.keys());
        names.map(|name| Key::new(namespace, name)).collect()
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

/// What the operator sets for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which a node counts as `Unknown`.
    pub node_monitor_grace_period: Duration,
    /// How long pods that say nothing about it stay on an unreachable node.
    pub pod_eviction_timeout: Duration,
    /// How fast nodes that are not ready lose their pods.
    pub zones: ZoneRules,
    /// The name of our scheduler in `spec.schedulerName`.
    pub scheduler_name: String,
    /// Ended pods kept before the oldest are deleted; 0 keeps all.
    pub terminated_pods_max: usize,
    /// Ranges that services of type `LoadBalancer` get addresses from.
    pub load_balancer_pools: Vec<ipnet::IpNet>,
    /// The authority's certificate, PEM, published in every namespace; empty publishes nothing.
    pub root_ca: String,
}

impl Default for Settings {
    /// Upstream's: 40 s, 5 min, its pace of evictions, 12,500 ended pods.
    fn default() -> Self {
        Self {
            node_monitor_grace_period: Duration::from_secs(40),
            pod_eviction_timeout: Duration::from_secs(300),
            zones: ZoneRules::default(),
            scheduler_name: "default-scheduler".to_owned(),
            terminated_pods_max: 12_500,
            load_balancer_pools: Vec::new(),
            root_ca: String::new(),
        }
    }
}

/// How fast nodes that are not ready lose their pods, by how their failure zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneRules {
    /// The time between two nodes of a zone that is well, or wholly silent while others are not;
    /// `None` means never.
    pub eviction_interval: Option<Duration>,
    /// The same for a large zone in which most nodes fail.
    pub secondary_eviction_interval: Option<Duration>,
    /// A zone with more nodes is a large one; in smaller ones in which most fail nothing is
    /// evicted.
    pub large_zone_nodes: usize,
    /// The part of a zone's nodes, in thousandths, that makes it one in which most fail.
    pub unhealthy_per_mille: u32,
}

impl Default for ZoneRules {
    /// Upstream's: a node in 10 s, or in 100 s; 50 nodes; 55 %.
    fn default() -> Self {
        Self {
            eviction_interval: Some(Duration::from_secs(10)),
            secondary_eviction_interval: Some(Duration::from_secs(100)),
            large_zone_nodes: 50,
            unhealthy_per_mille: 550,
        }
    }
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

/// Calls a macro with the field and the type of every kind a view holds.
#[macro_export]
macro_rules! view_kinds {
    ($then:ident) => {
        $then! {
            pods: objects::pod::Pod,
            nodes: objects::node::Node,
            leases: objects::lease::Lease,
            namespaces: objects::namespace::Namespace,
            services: objects::network::Service,
            endpoints: objects::network::Endpoints,
            slices: objects::network::EndpointSlice,
            service_cidrs: objects::network::ServiceCidr,
            addresses: objects::network::IpAddress,
            deployments: objects::workload::Deployment,
            replica_sets: objects::workload::ReplicaSet,
            replication_controllers: objects::workload::ReplicationController,
            daemon_sets: objects::workload::DaemonSet,
            stateful_sets: objects::workload::StatefulSet,
            revisions: objects::workload::ControllerRevision,
            jobs: objects::batch::Job,
            cron_jobs: objects::batch::CronJob,
            budgets: objects::policy::PodDisruptionBudget,
            autoscalers: objects::policy::HorizontalPodAutoscaler,
            quotas: objects::policy::ResourceQuota,
            volumes: objects::storage::PersistentVolume,
            claims: objects::storage::PersistentVolumeClaim,
            storage_classes: objects::storage::StorageClass,
            attachments: objects::storage::VolumeAttachment,
            snapshots: objects::storage::VolumeSnapshot,
            snapshot_contents: objects::storage::VolumeSnapshotContent,
            snapshot_classes: objects::storage::VolumeSnapshotClass,
            csi_drivers: objects::storage::CsiDriver,
            accounts: objects::config::ServiceAccount,
            config_maps: objects::config::ConfigMap,
            cluster_roles: objects::access::ClusterRole,
            machines: objects::machine::Machine,
            node_images: objects::machine::NodeImage,
            requests: objects::certificate::CertificateSigningRequest,
        }
    };
}

macro_rules! view {
    ($($field:ident: $kind:ty,)*) => {
        /// Everything a controller may look at; a controller fills in only what it needs.
        #[derive(Debug, Default)]
        #[allow(missing_docs, reason = "the fields are the kinds")]
        pub struct View {
            $(pub $field: Set<$kind>,)*
            /// What the requests' bodies say, by request name; absent when they do not parse.
            pub facts: BTreeMap<String, RequestFacts>,
            /// Who belongs to whom, over every kind; for garbage collection alone.
            pub graph: Arc<Graph>,
            /// When we last saw a sign of life of each node, by our own clock.
            pub heartbeats: Arc<BTreeMap<String, Timestamp>>,
            /// Which nodes may lose their pods.
            pub verdicts: Arc<Verdicts>,
            /// When no node at all was ready last, by our own clock.
            pub dark: Option<Timestamp>,
            /// What pods use and what autoscalers decided before.
            pub observed: Arc<Observed>,
            /// What the server said when it last refused to make something for a key, as a quota
            /// does; forgotten once it makes it, or nothing more is asked for.
            pub refused: BTreeMap<Key, String>,
            /// Pods given to nodes whose binding the view does not show yet, by pod uid.
            pub assumed: BTreeMap<String, String>,
            /// How many objects of a resource that no view holds there are, by namespace and
            /// resource (`secrets`, `pumps.example.com`); for quotas alone.
            pub counted: BTreeMap<(String, String), usize>,
            /// What the operator sets.
            pub settings: Settings,
            /// Worked out on first use; views of the same pods may share it.
            pub index: Arc<Index>,
        }
    };
}

view_kinds!(view);

/// Indexes over the pods of a view, made when first asked for; the pods must not change after.
#[derive(Debug, Default)]
pub struct Index(OnceLock<PodIndex>);

/// Some pods in order of namespace and name.
type Bucket = Arc<BTreeMap<(String, String), Arc<Pod>>>;

/// Pods by what they belong to; a clone shares everything.
#[derive(Debug, Default, Clone)]
pub struct PodIndex {
    by_controller: Arc<BTreeMap<String, Bucket>>,
    orphans: Arc<BTreeMap<String, Bucket>>,
    by_node: Arc<BTreeMap<String, Bucket>>,
}

impl PodIndex {
    /// Takes account of one change of a pod.
    pub fn note(&mut self, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        for (pod, is_in) in [(before, false), (after, true)] {
            let Some(pod) = pod else { continue };
            match pod.metadata.controller() {
                Some(owner) => move_pod(&mut self.by_controller, &owner.uid, pod, is_in),
                None => move_pod(&mut self.orphans, &pod.metadata.namespace, pod, is_in),
            }
            if pod.is_bound() {
                move_pod(&mut self.by_node, &pod.spec.node_name, pod, is_in);
            }
        }
    }
}

impl From<PodIndex> for Index {
    fn from(index: PodIndex) -> Self {
        Self(OnceLock::from(index))
    }
}

fn move_pod(
    buckets: &mut Arc<BTreeMap<String, Bucket>>,
    bucket: &str,
    pod: &Arc<Pod>,
    is_in: bool,
) {
    let all = Arc::make_mut(buckets);
    let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
    if is_in {
        let found = match all.get_mut(bucket) {
            Some(found) => found,
            None => all.entry(bucket.to_owned()).or_default(),
        };
        Arc::make_mut(found).insert(key, Arc::clone(pod));
    } else if let Some(found) = all.get_mut(bucket) {
        let rest = Arc::make_mut(found);
        rest.remove(&key);
        if rest.is_empty() {
            all.remove(bucket);
        }
    }
}

impl View {
    fn index(&self) -> &PodIndex {
        self.index.0.get_or_init(|| {
            let mut index = PodIndex::default();
            for pod in self.pods.iter() {
                index.note(None, Some(pod));
            }
            index
        })
    }

    /// The pods a controller's uid controls, by name.
    pub fn pods_of(&self, controller_uid: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let found = self.index().by_controller.get(controller_uid);
        found.into_iter().flat_map(|bucket| bucket.values())
    }

    /// The pods of a namespace that nobody controls, by name.
    pub fn orphans(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let found = self.index().orphans.get(namespace);
        found.into_iter().flat_map(|bucket| bucket.values())
    }

    /// The pods bound to a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let found = self.index().by_node.get(node);
        found.into_iter().flat_map(|bucket| bucket.values())
    }
}
