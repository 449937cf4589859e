//! Services and their endpoints as one nftables table.
//!
//! Flat: one map from service to a chain, one map from (service, slot) to an endpoint, and one
//! chain per *number* of endpoints, shared by all services that have so many. Rules do not grow
//! with services, so the first and the last of ten thousand cost the same.
//!
//! A connection's slot rides in the packet mark from the choosing rule to the map and is cleared
//! before routing; nothing else may use packet marks on first packets. Bit 0x4000 of the
//! connection mark means "masquerade".
//!
//! Spec: what upstream's kube-proxy promises of ClusterIP, NodePort, external addresses, traffic
//! policies, affinity, and services without endpoints.
//!
//! After the first load, changes are elements added and removed ([`Loaded::render_change`]).
//!
//! A client with affinity is remembered with its slot, as long as the service says after its last
//! connection. Endpoints that stay keep their slots ([`Loaded::render_change`]); when there are
//! fewer, the last ones move into the gaps and their clients choose anew.
//!
//! *Limits*: IPv4. What is remembered of clients is lost when the whole table is loaded, as after
//! a restart of the agent.

mod table;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use objects::network::{Endpoint, EndpointSlice, Service, ServicePort};

pub use table::{Loaded, TABLE, render_table};

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Endpoints on this node have a second slot from here on.
const LOCAL_SLOTS: u32 = 0x1_0000;
/// More endpoints than this of one port are not used: slots must not meet [`LOCAL_SLOTS`].
const ENDPOINTS_MAX: usize = 0xffff;
/// How long affinity lasts unless the service says otherwise.
const AFFINITY_SECONDS: u32 = 10_800;

/// Where the table is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// This node's name: endpoints of this name are local.
    pub node: String,
    /// The range of all pods: clients outside it are masqueraded.
    pub pods: Ipv4Net,
    /// The range of service addresses: what is not served there goes nowhere.
    pub services: Ipv4Net,
    /// The zone this node is in, which topology hints speak of.
    pub zone: Option<String>,
    /// Where this node itself answers as cluster DNS.
    pub dns: Option<Ipv4Addr>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What a client dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frontend {
    /// An address of the service alone.
    Address(Ipv4Addr, Transport, u16),
    /// A port of every node.
    NodePort(Transport, u16),
}

/// A pod's address and port behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The pod's port.
    pub port: u16,
}

/// How one of the backends is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// Where the client comes from.
    pub origin: Origin,
    /// For how many seconds one client gets the same backend; `None` when each connection may
    /// get another.
    pub affinity: Option<u32>,
    /// How many backends there are; the local ones among them when only those may be used.
    pub reach: Reach,
}

/// Where a client comes from, which decides about its source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It dialled the cluster address: masqueraded unless it is a pod.
    Cluster,
    /// It dialled an external address.
    External,
    /// It is a pod or the node itself, and dialled a port of the node whose service wants
    /// outsiders to meet local backends only.
    Inside,
    /// It dialled a port of the node.
    NodePort,
}

/// Which backends may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// All; never zero.
    All(u32),
    /// Only those on this node. Pods and the node itself may use all, unless they dialled the
    /// cluster address.
    Local {
        /// How many are on this node; zero means that outsiders are dropped.
        local: u32,
        /// How many there are.
        all: u32,
    },
}

/// What becomes of a frontend's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// They go to one of these.
    Balanced {
        /// How one is chosen.
        choice: Choice,
        /// All backends, sorted; slot 0 first.
        backends: Vec<Backend>,
        /// The backends on this node, sorted; empty unless only those may be used.
        local: Vec<Backend>,
    },
    /// Nobody is there: the client is told so.
    Refused,
    /// Somebody is there, but not on this node, and the service asks for local ones only.
    Dropped,
}

/// All services as one node serves them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// What becomes of each frontend.
    pub frontends: BTreeMap<Frontend, Target>,
    /// Cluster addresses of services: other ports of theirs are refused. External addresses are
    /// not among them, for they may belong to a node.
    pub cluster_addresses: BTreeSet<Ipv4Addr>,
    /// External addresses that answer only clients from some networks.
    pub guarded: BTreeMap<Frontend, Vec<Ipv4Net>>,
    /// Ports at which this node says whether it has endpoints of a service.
    pub health: BTreeMap<u16, Health>,
    /// What could not be served, and why.
    pub skipped: Vec<Skipped>,
}

/// What outside load balancers are told of a service whose outsiders meet local endpoints only.
///
/// Spec: `healthCheckNodePort`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// How many ready endpoints are on this node.
    pub local: usize,
}

/// A part of a service that is not served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// `namespace/name` of the service.
    pub service: String,
    /// Why, for people.
    pub reason: String,
}

/// Plans what this node does for every service.
///
/// Total: an object that makes no sense is reported in `skipped`, and of two services that claim
/// one frontend the first by namespace and name has it. The order of the arguments is irrelevant.
#[must_use]
pub fn plan_services<'a>(
    site: &Site,
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Services {
    let mut behind: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let meta = &slice.metadata;
        if let Some(name) = meta.labels.get(SERVICE_NAME)
            && slice.address_type == "IPv4"
        {
            behind.entry((&meta.namespace, name)).or_default().push(slice);
        }
    }
    let mut ordered: Vec<&Service> = services.into_iter().collect();
    ordered.sort_by_key(|service| (&service.metadata.namespace, &service.metadata.name));
    let mut planned = Services::default();
    for service in ordered {
        let key = (service.metadata.namespace.as_str(), service.metadata.name.as_str());
        let slices = behind.get(&key).map_or(&[][..], Vec::as_slice);
        plan_service(site, service, slices, &mut planned);
    }
    planned
}

fn plan_service(site: &Site, service: &Service, slices: &[&EndpointSlice], planned: &mut Services) {
    let spec = &service.spec;
    if spec.kind == "ExternalName" || matches!(spec.cluster_ip.as_str(), "" | "None") {
        return;
    }
    let skip = |reason: String| Skipped { service: service.metadata.key(), reason };
    let Ok(cluster_ip) = spec.cluster_ip.parse::<Ipv4Addr>() else {
        planned.skipped.push(skip(format!("clusterIP {} is no IPv4 address", spec.cluster_ip)));
        return;
    };
    planned.cluster_addresses.insert(cluster_ip);
    if let Ok(port @ 1..) = u16::try_from(spec.health_check_node_port)
        && spec.external_traffic_policy == "Local"
    {
        planned.health.insert(port, health(site, service, slices));
    }
    for port in &spec.ports {
        let (Some(transport), Ok(number)) =
            (Transport::parse(&port.protocol), u16::try_from(port.port))
        else {
            let reason = format!("port {} {} is unknown", port.protocol, port.port);
            planned.skipped.push(skip(reason));
            continue;
        };
        let backends = backends(site, port, transport, slices);
        let affinity = affinity(service);
        let local_inside = spec.internal_traffic_policy.as_deref() == Some("Local");
        let local_outside = spec.external_traffic_policy == "Local";
        let mut claims = vec![(
            Frontend::Address(cluster_ip, transport, number),
            backends.target(Origin::Cluster, affinity, local_inside),
        )];
        let balanced = balancer_addresses(service);
        for address in external_addresses(service).union(&balanced) {
            let target = backends.target(Origin::External, affinity, local_outside);
            claims.push((Frontend::Address(*address, transport, number), target));
        }
        if let Ok(node_port @ 1..) = u16::try_from(port.node_port) {
            let target = backends.target(Origin::NodePort, affinity, local_outside);
            claims.push((Frontend::NodePort(transport, node_port), target));
        }
        let sources = sources(service);
        for (frontend, target) in claims {
            match planned.frontends.entry(frontend) {
                Entry::Vacant(free) => {
                    free.insert(target);
                    if let Frontend::Address(address, ..) = frontend
                        && !sources.is_empty()
                        && balanced.contains(&address)
                    {
                        planned.guarded.insert(frontend, sources.clone());
                    }
                }
                Entry::Occupied(_) => {
                    let reason = format!("{frontend:?} belongs to another service");
                    planned.skipped.push(skip(reason));
                }
            }
        }
    }
}

fn external_addresses(service: &Service) -> BTreeSet<Ipv4Addr> {
    service.spec.external_ips.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The addresses of load balancers that hand packets on as they are.
fn balancer_addresses(service: &Service) -> BTreeSet<Ipv4Addr> {
    let ingress = service.status.load_balancer.ingress.iter();
    // A balancer that dials on behalf of clients must not be bypassed.
    let direct = ingress.filter(|one| one.extra.get("ipMode").is_none_or(|mode| mode != "Proxy"));
    direct.filter_map(|one| one.ip.parse().ok()).collect()
}

/// From where load balancers' addresses may be dialled; empty means from everywhere. Ranges of
/// the other family alone restrict nothing, as upstream has it.
fn sources(service: &Service) -> Vec<Ipv4Net> {
    let ranges = service.spec.extra.get("loadBalancerSourceRanges");
    let ranges = ranges.and_then(|ranges| ranges.as_array()).map_or(&[][..], Vec::as_slice);
    let texts = ranges.iter().filter_map(|range| range.as_str());
    let parsed: Vec<Ipv4Net> = texts.filter_map(|text| text.trim().parse().ok()).collect();
    Ipv4Net::aggregate(&parsed)
}

/// For how long the service wants a client to stay at its backend.
fn affinity(service: &Service) -> Option<u32> {
    let spec = &service.spec;
    let seconds = || {
        let config = spec.session_affinity_config.as_ref()?;
        config.pointer("/clientIP/timeoutSeconds")?.as_u64()?.try_into().ok()
    };
    (spec.session_affinity == "ClientIP").then(|| seconds().unwrap_or(AFFINITY_SECONDS))
}

fn health(site: &Site, service: &Service, slices: &[&EndpointSlice]) -> Health {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|endpoint| is_ready(endpoint) && site.is_home_of(endpoint));
    let addresses: BTreeSet<&String> = here.filter_map(|one| one.addresses.first()).collect();
    let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
    Health { namespace, name, local: addresses.len() }
}

/// The backends of one port, everywhere and here.
#[derive(Default)]
struct Backends {
    all: BTreeSet<Backend>,
    local: BTreeSet<Backend>,
    /// Backends on this node that end but still serve.
    leaving: BTreeSet<Backend>,
}

impl Backends {
    fn target(&self, origin: Origin, affinity: Option<u32>, only_local: bool) -> Target {
        let count = |set: &BTreeSet<Backend>| u32::try_from(set.len()).unwrap_or(u32::MAX);
        // Local ones that end are better than none, whatever there is elsewhere.
        let local = if self.local.is_empty() { &self.leaving } else { &self.local };
        let reach = match (count(&self.all), count(local)) {
            (0, 0) => return Target::Refused,
            (0, _) if !only_local => return Target::Refused,
            // Who dialled the cluster address is an insider and bound all the same.
            (_, 0) if only_local && origin == Origin::Cluster => return Target::Dropped,
            (all, local) if only_local => Reach::Local { local, all },
            (all, _) => Reach::All(all),
        };
        Target::Balanced {
            choice: Choice { origin, affinity, reach },
            backends: self.all.iter().copied().collect(),
            local: match reach {
                Reach::All(_) => Vec::new(),
                Reach::Local { .. } => local.iter().copied().collect(),
            },
        }
    }
}

/// A UDP flow as the kernel tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What the client dialled.
    pub destination: (Ipv4Addr, u16),
    /// Who answers it.
    pub answering: Backend,
}

impl Services {
    /// The UDP frontends with their backends: while these stay, so may every tracked flow.
    #[must_use]
    pub fn udp(&self) -> BTreeMap<Frontend, BTreeSet<Backend>> {
        let backends = |target: &Target| match target {
            Target::Balanced { backends, local, .. } => {
                backends.iter().chain(local).copied().collect()
            }
            Target::Refused | Target::Dropped => BTreeSet::new(),
        };
        let udp = |frontend: &Frontend| {
            matches!(
                frontend,
                Frontend::Address(_, Transport::Udp, _) | Frontend::NodePort(Transport::Udp, _)
            )
        };
        let frontends = self.frontends.iter().filter(|(frontend, _)| udp(frontend));
        frontends.map(|(frontend, target)| (*frontend, backends(target))).collect()
    }
}

/// Whether a flow leads where `udp` ([`Services::udp`]) no longer leads.
///
/// A client that goes on sending keeps its flow, and with it an endpoint that is gone, for ever;
/// upstream learnt this from name servers. Flows of others, such as a pod's own traffic to a port
/// that happens to be a node port, are left alone.
#[must_use]
pub fn is_stale(site: &Site, udp: &BTreeMap<Frontend, BTreeSet<Backend>>, flow: &Flow) -> bool {
    let (address, port) = flow.destination;
    if let Some(backends) = udp.get(&Frontend::Address(address, Transport::Udp, port)) {
        return !backends.contains(&flow.answering);
    }
    if site.services.contains(&address) {
        return true;
    }
    let translated = flow.answering.address != address;
    let by_node_port = udp.get(&Frontend::NodePort(Transport::Udp, port));
    translated && by_node_port.is_some_and(|backends| !backends.contains(&flow.answering))
}

impl Site {
    fn is_home_of(&self, endpoint: &Endpoint) -> bool {
        endpoint.node_name.as_deref() == Some(self.node.as_str())
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.ready.unwrap_or(true)
}

/// Whether an endpoint ends but still serves.
fn is_leaving(endpoint: &Endpoint) -> bool {
    let conditions = &endpoint.conditions;
    conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false)
}

/// Collects the backends of a port: the ready ones, and of those the ones that topology hints
/// give to this node. When none is ready, those that end but still serve are better than nothing,
/// as upstream has it.
fn backends(
    site: &Site,
    port: &ServicePort,
    transport: Transport,
    slices: &[&EndpointSlice],
) -> Backends {
    let found = collect(port, transport, slices);
    let set = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<Backend> {
        let wanted = found.iter().filter(|(endpoint, _)| wanted(endpoint));
        wanted.map(|(_, backend)| *backend).take(ENDPOINTS_MAX).collect()
    };
    let ready = found.iter().map(|(endpoint, _)| *endpoint).filter(|one| is_ready(one));
    let hinted = near(site, &ready.collect::<Vec<_>>());
    let local = set(&|one| is_ready(one) && site.is_home_of(one));
    let leaving = set(&|one| is_leaving(one) && site.is_home_of(one));
    let all = match hinted {
        Some((list, name)) => set(&|one| is_ready(one) && is_meant_for(one, list, name)),
        None => set(&is_ready),
    };
    let all = if all.is_empty() { set(&is_leaving) } else { all };
    Backends { all, local, leaving }
}

/// By which hints this node's share of the ready endpoints is told; `None` when it may use all:
/// an endpoint without a hint, or no endpoint for this node, means that hints cannot be trusted.
fn near<'a>(site: &'a Site, ready: &[&Endpoint]) -> Option<(&'static str, &'a str)> {
    let by_node = ("forNodes", site.node.as_str());
    let by_zone = site.zone.as_deref().map(|zone| ("forZones", zone));
    [Some(by_node), by_zone].into_iter().flatten().find(|(list, name)| {
        ready.iter().all(|one| hints(one, list).next().is_some())
            && ready.iter().any(|one| is_meant_for(one, list, name))
    })
}

/// The names in one of an endpoint's lists of hints.
fn hints<'a>(endpoint: &'a Endpoint, list: &str) -> impl Iterator<Item = &'a str> {
    let listed = endpoint.hints.as_ref().and_then(|hints| hints.get(list)?.as_array());
    listed.into_iter().flatten().filter_map(|hint| hint.get("name")?.as_str())
}

fn is_meant_for(endpoint: &Endpoint, list: &str, name: &str) -> bool {
    hints(endpoint, list).any(|hint| hint == name)
}

/// Every endpoint that has the port, whatever its state.
fn collect<'a>(
    port: &ServicePort,
    transport: Transport,
    slices: &[&'a EndpointSlice],
) -> Vec<(&'a Endpoint, Backend)> {
    let mut found = Vec::new();
    for slice in slices {
        let mut ports = slice.ports.iter().filter(|one| {
            one.name.as_deref().unwrap_or_default() == port.name
                && Transport::parse(one.protocol.as_deref().unwrap_or_default()) == Some(transport)
        });
        let number = ports.find_map(|one| one.port).and_then(|port| u16::try_from(port).ok());
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            // All addresses of one endpoint are the same pod: the first is the one to use.
            let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
            let Some(address) = address else { continue };
            found.push((endpoint, Backend { address, port: number }));
        }
    }
    found
}

#[cfg(test)]
pub(crate) mod tests;
