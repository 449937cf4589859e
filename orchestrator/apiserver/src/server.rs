//! What every request of the server shares.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use api::service::ServiceRange;
use api::{Facts, User};
use jiff::Timestamp;
use objects::{Kind, field, kind};
use rand::Rng as _;
use serde_json::Value;
use store::{Item, Query, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::aggregate::Aggregates;
use crate::audit::AuditLog;
use crate::custom::Customs;
use crate::enroll::Limiter;
use crate::fair::Fair;
use crate::identity::Keeping;
use crate::metrics::Metrics;
use crate::object;
use crate::roles::Roles;
use crate::seal::Seals;
use crate::site::Site;

/// The port of every node's agent that names no other.
const AGENT_PORT: u16 = 10_250;
/// Letters of generated names: no vowels and none that look alike, so that no words come out.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Letters of a generated name's end.
const NAME_SUFFIX_LETTERS: usize = 5;

/// Connections to node agents, which outlive the call that opened them.
#[derive(Debug, Default)]
pub(crate) struct Background {
    tasks: Mutex<JoinSet<()>>,
}

impl Background {
    /// Drives a connection until it ends by itself or the server stops.
    pub(crate) fn spawn<E: std::fmt::Display>(
        &self,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(%err, "a connection to an agent ended early");
            }
        });
    }

    /// Ends all of them.
    pub(crate) async fn end(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

/// The server's shared state.
pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) site: Site,
    pub(crate) stop: CancellationToken,
    pub(crate) services: ServiceRange,
    /// Held from reading quotas until they and what they count are written.
    pub(crate) quota_writes: tokio::sync::Mutex<()>,
    pub(crate) metrics: Metrics,
    /// What other parts of the process count.
    pub(crate) others: crate::metrics::Others,
    pub(crate) limiter: Limiter,
    pub(crate) port: u16,
    pub(crate) background: Background,
    /// What the nodes' agents told of their use.
    pub(crate) summaries: crate::metrics_api::Summaries,
    pub(crate) roles: Roles,
    pub(crate) fair: Fair,
    pub(crate) seals: Seals,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) customs: Customs,
    pub(crate) aggregates: Aggregates,
    pub(crate) images: crate::registry::Shelf,
    /// What new pods tolerate of a silent node.
    pub(crate) toleration_seconds: Option<u32>,
    shelves: Vec<(&'static Kind, Arc<str>)>,
    seed: AtomicU64,
}

impl Server {
    pub(crate) fn new(
        store: Store,
        site: Site,
        stop: CancellationToken,
        services: ServiceRange,
        port: u16,
        keeping: Keeping,
        images: crate::registry::Shelf,
    ) -> Self {
        let Keeping { fair, audit, seals } = keeping;
        let shelves = kind::KINDS.iter().map(|kind| (*kind, object::shelf(kind))).collect();
        let seed = AtomicU64::new(rand::rng().random());
        Self {
            store,
            site,
            stop,
            services,
            quota_writes: tokio::sync::Mutex::new(()),
            metrics: Metrics::default(),
            others: crate::metrics::Others::default(),
            limiter: Limiter::default(),
            port,
            background: Background::default(),
            summaries: crate::metrics_api::Summaries::default(),
            roles: Roles::default(),
            fair,
            seals,
            audit,
            customs: Customs::default(),
            aggregates: Aggregates::default(),
            images,
            toleration_seconds: None,
            shelves,
            seed,
        }
    }

    /// The shelf of a kind; each name exists once.
    pub(crate) fn shelf(&self, kind: &Kind) -> Arc<str> {
        let found = self.shelves.iter().find(|(known, _)| *known == kind);
        found.map_or_else(|| object::shelf(kind), |(_, shelf)| Arc::clone(shelf))
    }

    /// The stored version of an object.
    pub(crate) fn item(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Item>> {
        self.store.get(&self.shelf(kind), &object::place(namespace, name))
    }

    /// All objects of a kind in a namespace, or in all when that is empty.
    pub(crate) fn items(&self, kind: &Kind, namespace: &str) -> Vec<Arc<Item>> {
        let shelf = self.shelf(kind);
        let prefix = prefix(namespace, "");
        let query =
            Query { shelf: &shelf, prefix: &prefix, after: None, at: None, limit: usize::MAX };
        // The present can always be read.
        self.store.range(&query).map(|page| page.items).unwrap_or_default()
    }

    /// Notes that an object of this kind was written, for what is worked out from it.
    pub(crate) fn written(&self, kind: &Kind) {
        self.roles.written(kind);
        self.fair.written(kind);
    }

    /// A number for spreading choices; not for secrets.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }

    /// Where this server is reached, as `host:port`.
    pub(crate) fn address(&self) -> String {
        SocketAddr::new(self.site.address, self.port).to_string()
    }
}

/// What the names of a namespace's objects begin with.
pub(crate) fn prefix(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The time, as objects carry it.
pub(crate) fn now() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The end of a generated name.
pub(crate) fn name_suffix() -> String {
    let mut random = rand::rng();
    let letters = (0..NAME_SUFFIX_LETTERS).filter_map(|_| {
        let at = random.random_range(0..NAME_LETTERS.len());
        NAME_LETTERS.get(at).map(|&letter| char::from(letter))
    });
    letters.collect()
}

/// A user of the server's own, for what it writes by itself.
pub(crate) fn own_user(name: &str) -> User {
    User::named(name)
}

/// Where a node's agent listens: its internal address, and the port it names or the usual one.
pub(crate) fn agent_address(node: &Value) -> Option<SocketAddr> {
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let internal = addresses
        .iter()
        .find(|address| address.get("type").and_then(Value::as_str) == Some("InternalIP"));
    let address: IpAddr = internal?.get("address")?.as_str()?.parse().ok()?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port");
    let port = port.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    Some(SocketAddr::new(address, port.filter(|port| *port != 0).unwrap_or(AGENT_PORT)))
}

impl Facts for Server {
    fn pod_node(&self, namespace: &str, pod: &str) -> Option<String> {
        let item = self.item(&kind::POD, namespace, pod)?;
        let node = object::known(&kind::POD, &item).field("spec.nodeName")?;
        (!node.is_empty()).then(|| node.to_owned())
    }

    fn node_needs(&self, node: &str, plural: &str, namespace: &str, name: &str) -> bool {
        match plural {
            "persistentvolumes" => {
                self.items(&kind::PERSISTENT_VOLUME_CLAIM, "").iter().any(|item| {
                    let claim = object::decode(item, 0);
                    let text = |path| field::str_at(&claim, path).unwrap_or_default();
                    text("spec.volumeName") == name
                        && self.node_needs(
                            node,
                            "persistentvolumeclaims",
                            text("metadata.namespace"),
                            text("metadata.name"),
                        )
                })
            }
            "volumeattachments" => kind::by_resource("storage.k8s.io", "v1", plural)
                .and_then(|kind| self.item(kind, "", name))
                .is_some_and(|item| {
                    let attachment = object::decode(&item, 0);
                    field::str_at(&attachment, "spec.nodeName") == Some(node)
                }),
            _ => {
                let named = self.items(&kind::POD, namespace).iter().any(|item| {
                    object::known(&kind::POD, item).field("spec.nodeName") == Some(node)
                        && names(&object::decode(item, 0), plural, name)
                });
                named || (plural == "secrets" && self.volume_needs(node, namespace, name))
            }
        }
    }

    fn has_network_policies(&self) -> bool {
        let policies = kind::by_resource("networking.k8s.io", "v1", "networkpolicies");
        policies.is_some_and(|kind| !self.items(kind, "").is_empty())
    }
}

impl Server {
    /// Does a volume that a pod of the node claims need this secret?
    fn volume_needs(&self, node: &str, namespace: &str, secret: &str) -> bool {
        self.items(&kind::PERSISTENT_VOLUME, "").iter().any(|item| {
            let volume = object::decode(item, 0);
            let own = field::str_at(&volume, "spec.claimRef.namespace").unwrap_or_default();
            let name = field::str_at(&volume, "metadata.name").unwrap_or_default();
            volume.get("spec").is_some_and(|spec| {
                volume_secret(spec, (own, namespace), secret)
                    && self.node_needs(node, "persistentvolumes", "", name)
            })
        })
    }
}

/// Does a volume name a secret for use on nodes? One without a namespace is the claim's.
fn volume_secret(spec: &Value, (own, namespace): (&str, &str), secret: &str) -> bool {
    const REFERENCES: [(&str, &str); 8] = [
        ("rbd", "secretRef"),
        ("cephfs", "secretRef"),
        ("iscsi", "secretRef"),
        ("csi", "nodeStageSecretRef"),
        ("csi", "nodePublishSecretRef"),
        ("csi", "nodeExpandSecretRef"),
        ("flexVolume", "secretRef"),
        ("scaleIO", "secretRef"),
    ];
    REFERENCES.iter().any(|(source, reference)| {
        let Some(found) = spec.get(source).and_then(|source| source.get(reference)) else {
            return false;
        };
        let text = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default();
        let place = if text("namespace").is_empty() { own } else { text("namespace") };
        text("name") == secret && place == namespace
    })
}

/// Does a pod name this object of its namespace?
fn names(pod: &Value, plural: &str, name: &str) -> bool {
    if plural == "serviceaccounts" {
        let own = field::str_at(pod, "spec.serviceAccountName").unwrap_or("default");
        return own == name;
    }
    // Every reference to these kinds sits below one of these keys, at any depth of the spec.
    let keys: &[(&str, &str)] = match plural {
        "configmaps" => {
            &[("configMap", "name"), ("configMapKeyRef", "name"), ("configMapRef", "name")]
        }
        "secrets" => &[
            ("secret", "secretName"),
            ("secret", "name"),
            ("secretKeyRef", "name"),
            ("secretRef", "name"),
            ("imagePullSecrets", "name"),
        ],
        "persistentvolumeclaims" => &[("persistentVolumeClaim", "claimName")],
        "resourceclaims" => &[("resourceClaims", "resourceClaimName")],
        _ => return false,
    };
    if plural == "persistentvolumeclaims" && owns_claim(pod, name) {
        return true;
    }
    pod.get("spec").is_some_and(|spec| refers(spec, keys, name))
}

/// Is this the claim of a generic ephemeral volume of the pod?
fn owns_claim(pod: &Value, claim: &str) -> bool {
    let own = field::str_at(pod, "metadata.name").unwrap_or_default();
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let mut names = volumes.filter(|volume| volume.get("ephemeral").is_some());
    names.any(|volume| {
        let volume = volume.get("name").and_then(Value::as_str).unwrap_or_default();
        claim.strip_prefix(own).and_then(|rest| rest.strip_prefix('-')) == Some(volume)
    })
}

fn refers(value: &Value, keys: &[(&str, &str)], name: &str) -> bool {
    let hit = |key: &str, below: &Value| {
        keys.iter().filter(|(above, _)| *above == key).any(|(_, inner)| match below {
            Value::Array(list) => {
                list.iter().any(|one| one.get(inner).and_then(Value::as_str) == Some(name))
            }
            one => one.get(inner).and_then(Value::as_str) == Some(name),
        })
    };
    match value {
        Value::Object(members) => {
            members.iter().any(|(key, below)| hit(key, below) || refers(below, keys, name))
        }
        Value::Array(list) => list.iter().any(|below| refers(below, keys, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
