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
//! *Limits*: IPv4. Affinity is by hash of the client's address: no state to lose when the table is
//! replaced, but a changed number of endpoints moves clients that upstream would leave in place.

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

/// Where the table is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// This node's name: endpoints of this name are local.
    pub node: String,
    /// The range of all pods: clients outside it are masqueraded.
    pub pods: Ipv4Net,
    /// The range of service addresses: what is not served there goes nowhere.
    pub services: Ipv4Net,
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
    /// Whether one client always gets the same backend.
    pub affinity: bool,
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
    /// It dialled a port of the node.
    NodePort,
}

/// Which backends may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// All; never zero.
    All(u32),
    /// Only those on this node; never zero. Pods may use all.
    Local {
        /// How many are on this node.
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
    /// What could not be served, and why.
    pub skipped: Vec<Skipped>,
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
    for port in &spec.ports {
        let (Some(transport), Ok(number)) =
            (Transport::parse(&port.protocol), u16::try_from(port.port))
        else {
            let reason = format!("port {} {} is unknown", port.protocol, port.port);
            planned.skipped.push(skip(reason));
            continue;
        };
        let backends = backends(site, port, transport, slices);
        let affinity = spec.session_affinity == "ClientIP";
        let local_inside = spec.internal_traffic_policy.as_deref() == Some("Local");
        let local_outside = spec.external_traffic_policy == "Local";
        let mut claims = vec![(
            Frontend::Address(cluster_ip, transport, number),
            backends.target(Origin::Cluster, affinity, local_inside),
        )];
        for address in external_addresses(service) {
            let target = backends.target(Origin::External, affinity, local_outside);
            claims.push((Frontend::Address(address, transport, number), target));
        }
        if let Ok(node_port @ 1..) = u16::try_from(port.node_port) {
            let target = backends.target(Origin::NodePort, affinity, local_outside);
            claims.push((Frontend::NodePort(transport, node_port), target));
        }
        for (frontend, target) in claims {
            match planned.frontends.entry(frontend) {
                Entry::Vacant(free) => drop(free.insert(target)),
                Entry::Occupied(_) => {
                    let reason = format!("{frontend:?} belongs to another service");
                    planned.skipped.push(skip(reason));
                }
            }
        }
    }
}

fn external_addresses(service: &Service) -> BTreeSet<Ipv4Addr> {
    let ingress = service.status.load_balancer.ingress.iter().map(|ingress| &ingress.ip);
    let all = service.spec.external_ips.iter().chain(ingress);
    all.filter_map(|text| text.parse().ok()).collect()
}

/// The backends of one port, everywhere and here.
struct Backends {
    all: BTreeSet<Backend>,
    local: BTreeSet<Backend>,
}

impl Backends {
    fn target(&self, origin: Origin, affinity: bool, only_local: bool) -> Target {
        let count = |set: &BTreeSet<Backend>| u32::try_from(set.len()).unwrap_or(u32::MAX);
        let all = count(&self.all);
        let reach = match (all, count(&self.local)) {
            (0, _) => return Target::Refused,
            (_, 0) if only_local => return Target::Dropped,
            (_, local) if only_local => Reach::Local { local, all },
            _ => Reach::All(all),
        };
        Target::Balanced {
            choice: Choice { origin, affinity, reach },
            backends: self.all.iter().copied().collect(),
            local: match reach {
                Reach::All(_) => Vec::new(),
                Reach::Local { .. } => self.local.iter().copied().collect(),
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
            Target::Balanced { backends, .. } => backends.iter().copied().collect(),
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

/// Collects the ready backends of a port. When none is ready, those that end but still serve are
/// better than nothing, as upstream has it.
fn backends(
    site: &Site,
    port: &ServicePort,
    transport: Transport,
    slices: &[&EndpointSlice],
) -> Backends {
    let ready = |endpoint: &Endpoint| endpoint.conditions.ready.unwrap_or(true);
    let serving = |endpoint: &Endpoint| {
        endpoint.conditions.serving.unwrap_or(false)
            && endpoint.conditions.terminating.unwrap_or(false)
    };
    let found = collect(site, port, transport, slices, ready);
    if found.all.is_empty() { collect(site, port, transport, slices, serving) } else { found }
}

fn collect(
    site: &Site,
    port: &ServicePort,
    transport: Transport,
    slices: &[&EndpointSlice],
    usable: impl Fn(&Endpoint) -> bool,
) -> Backends {
    let mut found = Backends { all: BTreeSet::new(), local: BTreeSet::new() };
    for slice in slices {
        let mut ports = slice.ports.iter().filter(|one| {
            one.name.as_deref().unwrap_or_default() == port.name
                && Transport::parse(one.protocol.as_deref().unwrap_or_default()) == Some(transport)
        });
        let number = ports.find_map(|one| one.port).and_then(|port| u16::try_from(port).ok());
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| usable(endpoint)) {
            // All addresses of one endpoint are the same pod: the first is the one to use.
            let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
            let Some(address) = address else { continue };
            if found.all.len() >= ENDPOINTS_MAX {
                return found;
            }
            let backend = Backend { address, port: number };
            found.all.insert(backend);
            if endpoint.node_name.as_deref() == Some(site.node.as_str()) {
                found.local.insert(backend);
            }
        }
    }
    found
}

#[cfg(test)]
pub(crate) mod tests;
