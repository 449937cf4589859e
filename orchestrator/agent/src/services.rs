//! Services and names on this node: what the API says of them, and who works by it.
//!
//! Caches: this node's object, the site's config map, Services, EndpointSlices; one task each.
//! They serve the proxy (packets) and cluster DNS (names), one loop each. Beside them runs the loop
//! of network policies ([`crate::policy`]), which has caches of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use cluster::plan::Networks;
use objects::config::ConfigMap;
use objects::network::{EndpointSlice, Service};
use objects::node::Node;
use runtime::cache::CacheParams;
use runtime::resource::{
    CONFIG_MAPS, ENDPOINT_SLICES, NETWORK_POLICIES, NODES, Resource, SERVICES,
};
use runtime::{Cache, Client, ClientConfig, ClientError, Supervisor};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dns::Dns;
use crate::policy::{self, Enforcer};
use crate::proxy::{self, Proxy};

/// The label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What the node's services and names need to know.
#[derive(Debug)]
pub struct Config {
    /// The API server and the node's identity.
    pub client: ClientConfig,
    /// This node's name: endpoints that bear it are local.
    pub node: String,
    /// Where cluster DNS is to answer, and whom it asks.
    pub dns: DnsConfig,
}

/// Where cluster DNS answers, and whom it asks.
#[derive(Debug)]
pub struct DnsConfig {
    /// The domain of the cluster's names.
    pub domain: String,
    /// Where to answer; `None` means at the site's DNS address, which is then given to this node.
    pub listen: Option<SocketAddr>,
    /// The node's own resolver settings: who is asked about foreign names.
    pub resolv_conf: PathBuf,
    /// Told where pods find cluster DNS, as soon as it answers there.
    pub told: watch::Sender<Vec<String>>,
}

impl DnsConfig {
    /// The settings of a node.
    #[must_use]
    pub fn new(told: watch::Sender<Vec<String>>) -> Self {
        Self {
            domain: node::dns::DOMAIN.to_owned(),
            listen: None,
            resolv_conf: "/etc/resolv.conf".into(),
            told,
        }
    }
}

/// Why services or names ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// No client can be made of the configuration.
    #[error("cannot make an API client")]
    Client(#[source] ClientError),
    /// A task ended unexpectedly.
    #[error("the tasks of services and names failed")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs proxy, cluster DNS and network policies until `stop`.
///
/// # Errors
///
/// When no client can be made or a task panics; everything else is retried.
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    let client = Client::new(config.client).map_err(RunError::Client)?;
    let mut tasks: Supervisor = Supervisor::new(stop.clone());
    let policies = cache(&client, NETWORK_POLICIES, CacheParams::default(), &mut tasks);
    let enforcer = Enforcer::new(client.clone(), config.node.clone(), policies);
    let wakes = enforcer.changes();
    tasks.spawn("policies", runtime::drive(stop.clone(), wakes, enforcer, policy::pace()));
    let watched = Watched::follow(&client, config.node, &mut tasks);
    let proxy = Proxy::new(watched.clone());
    let wakes = watched.changes();
    tasks.spawn("proxy", runtime::drive(stop.clone(), wakes, proxy, proxy::pace()));
    let dns = Dns::new(watched, config.dns);
    tasks.spawn("dns", dns.run(stop));
    tasks.join().await.map_err(|err| RunError::Task(Box::new(err)))
}

/// What the API says of services, as this node sees it.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) node: String,
    this: Cache<Node>,
    site: Cache<ConfigMap>,
    pub(crate) services: Cache<Service>,
    pub(crate) slices: Cache<EndpointSlice>,
}

impl Watched {
    /// Starts the caches.
    fn follow(client: &Client, node: String, tasks: &mut Supervisor) -> Self {
        let by_name = |namespace: Option<&str>, name: &str| CacheParams {
            namespace: namespace.map(str::to_owned),
            ..CacheParams::fields(format!("metadata.name={name}"))
        };
        let (namespace, name) = Networks::CONFIG_MAP;
        Self {
            this: cache(client, NODES, by_name(None, &node), tasks),
            node,
            site: cache(client, CONFIG_MAPS, by_name(Some(namespace), name), tasks),
            services: cache(client, SERVICES, CacheParams::default(), tasks),
            slices: cache(client, ENDPOINT_SLICES, CacheParams::default(), tasks),
        }
    }

    /// Wakes when anything changed.
    pub(crate) fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![
            self.this.changes(),
            self.site.changes(),
            self.services.changes(),
            self.slices.changes(),
        ]
    }

    /// Whether all services and endpoints are known: half of them would refuse the other half.
    pub(crate) fn synced(&self) -> bool {
        self.services.synced() && self.slices.synced()
    }

    /// Whether this node is Ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.this.get("", &self.node).is_some_and(|node| node.is_ready())
    }

    /// The zone this node is in.
    pub(crate) fn zone(&self) -> Option<String> {
        self.this.get("", &self.node)?.metadata.label(ZONE).map(str::to_owned)
    }

    /// The site's address ranges; `None` until the API has told them.
    pub(crate) fn networks(&self) -> Option<Networks> {
        serde_json::from_str(self.setting("networks")?.as_str()).ok()
    }

    /// A text from the site's config map.
    pub(crate) fn setting(&self, key: &str) -> Option<String> {
        let (namespace, name) = Networks::CONFIG_MAP;
        self.site.get(namespace, name)?.data.get(key).cloned()
    }

    /// Where pods of this site find cluster DNS.
    pub(crate) fn dns_address(&self) -> Option<Ipv4Addr> {
        self.networks()?.dns()
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
