//! What the API says that routing follows from.

use std::collections::BTreeMap;

use cluster::plan::{Machine, Networks, Rack};
use ipnet::Ipv4Net;
use runtime::cache::CacheParams;
use runtime::resource::{CONFIG_MAPS, MACHINES, NODES, RACKS};
use runtime::{Cache, Client, Resource, Supervisor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

/// An object of which only the `spec` matters here.
#[derive(Debug, Clone, Deserialize)]
struct Planned<T> {
    spec: T,
}

/// The node; the agent makes it without a spec.
#[derive(Debug, Clone, Deserialize)]
struct Node {
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<Ipv4Net>,
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
    node_name: String,
}

/// One consistent look at them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) machines: Vec<Machine>,
    pub(crate) racks: Vec<Rack>,
    pub(crate) networks: Networks,
    /// `Node.spec.podCIDR`; `None` until the node has one.
    pub(crate) pods: Option<Ipv4Net>,
}

impl Site {
    /// Starts the caches.
    pub(crate) fn follow(client: &Client, node: &str, tasks: &mut Supervisor) -> Self {
        let by_name = |name: &str| CacheParams::fields(format!("metadata.name={name}"));
        let (namespace, name) = Networks::CONFIG_MAP;
        let in_namespace = CacheParams { namespace: Some(namespace.to_owned()), ..by_name(name) };
        Self {
            machines: cache(client, MACHINES, CacheParams::default(), tasks),
            racks: cache(client, RACKS, CacheParams::default(), tasks),
            node: cache(client, NODES, by_name(node), tasks),
            networks: cache(client, CONFIG_MAPS, in_namespace, tasks),
            node_name: node.to_owned(),
        }
    }

    /// Wakes when anything changed.
    pub(crate) fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![
            self.machines.changes(),
            self.racks.changes(),
            self.node.changes(),
            self.networks.changes(),
        ]
    }

    /// What is known; `Err` names what is still missing.
    pub(crate) fn known(&self) -> Result<Known, &'static str> {
        let (namespace, name) = Networks::CONFIG_MAP;
        let map = self.networks.get(namespace, name).ok_or("config map kube-system/muster-site")?;
        let text = map.data.get("networks").ok_or("networks in config map muster-site")?;
        let networks = serde_json::from_str(text).map_err(|err| {
            warn!(%err, "the site's networks do not decode");
            "readable networks in config map muster-site"
        })?;
        let node = self.node.get("", &self.node_name);
        let pods = node.and_then(|node| node.spec.pod_cidr);
        let machines: Vec<Machine> = specs(&self.machines);
        if !machines.iter().any(|machine| machine.name == self.node_name) {
            return Err("this node's Machine object");
        }
        Ok(Known { machines, racks: specs(&self.racks), networks, pods })
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
