//! What the API says that routing follows from.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cluster::plan::{Machine, Networks, Rack};
use ipnet::Ipv4Net;
use objects::condition::Condition;
use objects::network::EndpointSlice;
use objects::node::ROUTES;
use routes::announce::{self, Standing};
use routes::{Key, KeyError};
use runtime::cache::{CacheParams, ServiceCaches};
use runtime::resource::{CONFIG_MAPS, MACHINES, NODES, RACKS, SECRETS};
use runtime::{Cache, Client, Resource, Supervisor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

/// The operator's word that a node is no door to the cluster.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Where API servers listen unless their address says otherwise.
const API_PORT: u16 = 6443;

/// An object of which only the `spec` matters here.
#[derive(Debug, Clone, Deserialize)]
struct Planned<T> {
    spec: T,
}

/// The node; the agent makes it without a spec.
#[derive(Debug, Clone, Deserialize)]
struct Node {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

/// The keys of racks. Its content is not for logs, so there is no `Debug`.
#[derive(Clone, Deserialize)]
struct Secret {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<Ipv4Net>,
    #[serde(default)]
    unschedulable: bool,
}

impl Node {
    /// Whether the node may answer for the outside.
    fn standing(&self) -> Standing {
        let ready = |one: &Condition| one.kind == "Ready" && one.is_true();
        if self.metadata.labels.contains_key(EXCLUDE) || !self.status.conditions.iter().any(ready) {
            Standing::Out
        } else if self.spec.unschedulable {
            Standing::Draining
        } else {
            Standing::Serving
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Caches of the objects that routing follows from.
#[derive(Debug)]
pub(crate) struct Site {
    machines: Cache<Planned<Machine>>,
    racks: Cache<Planned<Rack>>,
    node: Cache<Node>,
    networks: Cache<ConfigMap>,
    keys: Cache<Secret>,
    endpoints: ServiceCaches,
    node_name: String,
    api_port: u16,
}

/// One consistent look at them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) machines: Vec<Machine>,
    pub(crate) racks: Vec<Rack>,
    pub(crate) networks: Networks,
    /// `Node.spec.podCIDR`; `None` until the node has one.
    pub(crate) pods: Option<Ipv4Net>,
    /// Keys by rack.
    pub(crate) keys: BTreeMap<String, Result<Key, KeyError>>,
    /// Outside addresses of services that this node may answer for.
    pub(crate) announce: Vec<Ipv4Net>,
    /// Whether the node is closed to new pods.
    pub(crate) closed: bool,
    /// The port that API servers listen on.
    pub(crate) api_port: u16,
    /// What the node says of its routes; `None` when it has said nothing yet.
    pub(crate) said: Option<String>,
}

impl Site {
    /// Starts the caches; that of services and endpoints is shared with others.
    pub(crate) fn follow(
        client: &Client,
        node: &str,
        endpoints: ServiceCaches,
        tasks: &mut Supervisor,
    ) -> Self {
        // All API servers listen on one port: the one in the address this node was given.
        let port = client.server().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let by_name = |name: &str| CacheParams::fields(format!("metadata.name={name}"));
        let (namespace, name) = Networks::CONFIG_MAP;
        let in_namespace = CacheParams { namespace: Some(namespace.to_owned()), ..by_name(name) };
        let (namespace, name) = Rack::KEYS;
        let keys = CacheParams { namespace: Some(namespace.to_owned()), ..by_name(name) };
        Self {
            machines: cache(client, MACHINES, CacheParams::default(), tasks),
            racks: cache(client, RACKS, CacheParams::default(), tasks),
            node: cache(client, NODES, by_name(node), tasks),
            networks: cache(client, CONFIG_MAPS, in_namespace, tasks),
            keys: cache(client, SECRETS, keys, tasks),
            endpoints,
            node_name: node.to_owned(),
            api_port: port.unwrap_or(API_PORT),
        }
    }

    /// Wakes when anything changed.
    pub(crate) fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![
            self.machines.changes(),
            self.racks.changes(),
            self.node.changes(),
            self.networks.changes(),
            self.keys.changes(),
            self.endpoints.services.changes(),
            self.endpoints.slices.changes(),
        ]
    }

    /// What is known; `Err` names what is still missing.
    pub(crate) fn known(&self) -> Result<Known, &'static str> {
        let (namespace, name) = Networks::CONFIG_MAP;
        let map = self.networks.get(namespace, name).ok_or("config map kube-system/muster-site")?;
        let text = map.data.get("networks").ok_or("networks in config map muster-site")?;
        let networks: Networks = serde_json::from_str(text).map_err(|err| {
            warn!(%err, "the site's networks do not decode");
            "readable networks in config map muster-site"
        })?;
        let node = self.node.get("", &self.node_name);
        let pods = node.as_ref().and_then(|node| node.spec.pod_cidr);
        let closed = node.as_ref().is_some_and(|node| node.spec.unschedulable);
        let said = node.as_ref().and_then(|node| node.metadata.annotations.get(ROUTES).cloned());
        let announce = match node {
            // Before everything is known, nothing that is announced may be withdrawn.
            Some(_) if !networks.load_balancers.is_empty() && !self.endpoints.synced() => {
                return Err("services and their endpoints");
            }
            Some(node) => self.announce(&networks, node.standing()),
            None => Vec::new(),
        };
        let machines: Vec<Machine> = specs(&self.machines);
        if !machines.iter().any(|machine| machine.name == self.node_name) {
            return Err("this node's Machine object");
        }
        let racks = specs(&self.racks);
        Ok(Known {
            machines,
            racks,
            networks,
            pods,
            keys: self.keys(),
            announce,
            closed,
            said,
            api_port: self.api_port,
        })
    }

    /// What the node says of its routes, as far as is known here.
    pub(crate) fn said(&self, node: &str) -> Option<String> {
        self.node.get("", node)?.metadata.annotations.get(ROUTES).cloned()
    }

    fn announce(&self, networks: &Networks, standing: Standing) -> Vec<Ipv4Net> {
        if networks.load_balancers.is_empty() {
            return Vec::new();
        }
        let services = self.endpoints.services.snapshot();
        let slices = self.endpoints.slices.snapshot();
        let slices: Vec<&EndpointSlice> = slices.values().map(AsRef::as_ref).collect();
        let services = services.values().map(AsRef::as_ref);
        let chosen = announce::choose(&self.node_name, standing, networks, services, &slices);
        chosen.into_iter().collect()
    }

    fn keys(&self) -> BTreeMap<String, Result<Key, KeyError>> {
        let (namespace, name) = Rack::KEYS;
        let Some(secret) = self.keys.get(namespace, name) else { return BTreeMap::new() };
        let one = |(rack, text): (&String, &String)| {
            let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
            (rack.clone(), Key::new(&String::from_utf8_lossy(&bytes)))
        };
        secret.data.iter().map(one).collect()
    }
}

fn cache<T: DeserializeOwned + Send + Sync + 'static>(
    client: &Client,
    resource: Resource,
    params: CacheParams,
    tasks: &mut Supervisor,
) -> Cache<T> {
    let name = format!("cache of {resource}");
    let (cache, reflector) = Cache::new(client.clone(), resource, params);
    tasks.spawn(name, reflector.run(tasks.stop()));
    cache
}

fn specs<T: Clone>(cache: &Cache<Planned<T>>) -> Vec<T> {
    cache.snapshot().values().map(|object| object.spec.clone()).collect()
}
