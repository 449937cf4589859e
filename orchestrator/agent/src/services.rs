//! Services and names on this node: what the API says of them, and who works by it.
//!
//! Caches: this node's object, the site's config map; one task each. Those of Services and
//! EndpointSlices are shared with the router's of the same process, where there is one.
//! They serve the proxy (packets) and cluster DNS (names), one loop each. Beside them runs the loop
//! of network policies ([`crate::policy`]), which has caches of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use cluster::plan::Networks;
use ipnet::IpNet;
use node::behind::Behind;
use node::service::{Ranges, Site};
use objects::config::ConfigMap;
use objects::node::Node;
use runtime::cache::{CacheParams, Changes, ServiceCaches};
use runtime::resource::{CONFIG_MAPS, NETWORK_POLICIES, NODES, Resource};
use runtime::{Cache, Client, ClientConfig, ClientError, Supervisor};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dns::Dns;
use crate::policy::{self, Enforcer, Gate};
use crate::proxy::{self, Proxy};
use crate::served::Served;

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
    /// What the process already follows of services; `None` when nobody does.
    pub services: Option<ServiceCaches>,
    /// Where new pods of this node wait for their policies.
    pub gate: Gate,
    /// Who waits until services are in force.
    pub served: Served,
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
    let enforcer = Enforcer::new(client.clone(), config.node.clone(), policies, config.gate);
    let wakes = enforcer.changes();
    tasks.spawn("policies", runtime::drive(stop.clone(), wakes, enforcer, policy::pace()));
    let endpoints = config.services.unwrap_or_else(|| ServiceCaches::follow(&client, &mut tasks));
    let watched = Watched::follow(&client, config.node, endpoints, &mut tasks);
    let proxy = Proxy::new(watched.clone(), config.served);
    let wakes = proxy.changes();
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
    endpoints: ServiceCaches,
}

impl Watched {
    /// Starts the caches; that of services and endpoints is shared with others.
    fn follow(
        client: &Client,
        node: String,
        endpoints: ServiceCaches,
        tasks: &mut Supervisor,
    ) -> Self {
        let by_name = |namespace: Option<&str>, name: &str| CacheParams {
            namespace: namespace.map(str::to_owned),
            ..CacheParams::fields(format!("metadata.name={name}"))
        };
        let (namespace, name) = Networks::CONFIG_MAP;
        Self {
            this: cache(client, NODES, by_name(None, &node), tasks),
            node,
            site: cache(client, CONFIG_MAPS, by_name(Some(namespace), name), tasks),
            endpoints,
        }
    }

    /// Tells `behind` what the API has said of services and endpoints since the last time.
    pub(crate) fn tell(&self, told: &mut Told, behind: &mut Behind) {
        match self.endpoints.services.changes_since(&mut told.services) {
            Changes::These(changes) => changes.into_iter().for_each(|one| {
                behind.set_service(&one.key.namespace, &one.key.name, one.after);
            }),
            Changes::Everything(all) => behind.replace_services(all.values().cloned()),
        }
        match self.endpoints.slices.changes_since(&mut told.slices) {
            Changes::These(changes) => changes.into_iter().for_each(|one| {
                behind.set_slice(&one.key.namespace, &one.key.name, one.after);
            }),
            Changes::Everything(all) => behind.replace_slices(all.values().cloned()),
        }
    }

    /// Wakes when anything changed.
    pub(crate) fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![
            self.this.changes(),
            self.site.changes(),
            self.endpoints.services.changes(),
            self.endpoints.slices.changes(),
        ]
    }

    /// Whether all services and endpoints are known: half of them would refuse the other half.
    pub(crate) fn synced(&self) -> bool {
        self.endpoints.synced()
    }

    /// Whether the API has told what there is to tell of the site.
    pub(crate) fn site_synced(&self) -> bool {
        self.site.synced()
    }

    /// The site's ranges as this node's services need them; `None` until the API has told them.
    pub(crate) fn ranges(&self) -> Option<Site> {
        let text = self.setting("networks")?;
        let networks: Networks = serde_json::from_str(&text).ok()?;
        let dns = networks.dns().map(IpAddr::V4);
        let v4 = Ranges { pods: networks.pods.into(), services: networks.services.into(), dns };
        let v6 = networks.v6().map(|(pods, services)| Ranges {
            pods: IpNet::V6(pods),
            services: IpNet::V6(services),
            dns: None,
        });
        let this = self.this.get("", &self.node);
        let zone = this.and_then(|node| node.metadata.label(ZONE).map(str::to_owned));
        Some(Site { node: self.node.clone(), zone, v4, v6 })
    }

    /// A text from the site's config map.
    pub(crate) fn setting(&self, key: &str) -> Option<String> {
        let (namespace, name) = Networks::CONFIG_MAP;
        self.site.get(namespace, name)?.data.get(key).cloned()
    }
}

/// How far somebody has followed services and slices of endpoints.
#[derive(Debug, Default)]
pub(crate) struct Told {
    services: u64,
    slices: u64,
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
