//! What follows from one service and its endpoints.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use objects::network::{Endpoint, EndpointSlice, Service, ServicePort};

use super::{
    Backend, Choice, Family, Frontend, Health, Origin, Reach, Site, Skipped, Target, Transport,
};

/// More endpoints than this of one port are not used: slots must not meet those of local ones.
const ENDPOINTS_MAX: usize = 0xffff;
/// How long affinity lasts unless the service says otherwise.
const AFFINITY_SECONDS: u32 = 10_800;

/// What one service wants of this node.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Its frontends, sorted.
    pub(super) claims: Box<[Claim]>,
    /// Its cluster addresses: other ports of theirs are refused. External addresses are not among
    /// them, for they may belong to a node.
    pub(super) addresses: Vec<IpAddr>,
    /// Where this node says whether it has endpoints.
    pub(super) health: Option<(u16, Health)>,
    /// What cannot be served, and why.
    pub(super) skipped: Vec<Skipped>,
}

/// A frontend that a service wants for itself.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) frontend: Frontend,
    pub(super) target: Target,
    /// From where it may be dialled; `None` means from everywhere.
    pub(super) sources: Option<Arc<[IpNet]>>,
}

impl Plan {
    /// The claim to a frontend.
    pub(super) fn claim(&self, frontend: &Frontend) -> Option<&Claim> {
        let at = self.claims.binary_search_by(|claim| claim.frontend.cmp(frontend)).ok()?;
        self.claims.get(at)
    }

    /// Plans a service; `old` tells which slots a frontend has already, which are kept.
    pub(super) fn of(
        site: &Site,
        service: &Service,
        slices: &[&EndpointSlice],
        old: &dyn Fn(&Frontend) -> Option<Slots>,
    ) -> Self {
        let spec = &service.spec;
        let mut plan = Self::default();
        if spec.kind == "ExternalName" || matches!(spec.cluster_ip.as_str(), "" | "None") {
            return plan;
        }
        for text in cluster_ips(service) {
            let address = text.parse::<IpAddr>().ok();
            match address.filter(|address| site.ranges(Family::of(*address)).is_some()) {
                Some(address) => plan.addresses.push(address),
                None => {
                    plan.skip(service, format!("clusterIP {text} is of no family of this site"))
                }
            }
        }
        if plan.addresses.is_empty() {
            return plan;
        }
        if let Ok(port @ 1..) = u16::try_from(spec.health_check_node_port)
            && spec.external_traffic_policy == "Local"
        {
            plan.health = Some((port, health(site, service, slices)));
        }
        let mut claims = Vec::new();
        for port in &spec.ports {
            let (Some(transport), Ok(number)) =
                (Transport::parse(&port.protocol), u16::try_from(port.port))
            else {
                let reason = format!("port {} {} is unknown", port.protocol, port.port);
                plan.skip(service, reason);
                continue;
            };
            for address in plan.addresses.clone() {
                let one = One { site, service, slices, port, transport, number, address, old };
                one.claim(&mut claims);
            }
        }
        // Of two claims to one frontend the first counts.
        claims.sort_by_key(|claim: &Claim| claim.frontend);
        let mut doubles = Vec::new();
        claims.dedup_by(|later, first| {
            let same = later.frontend == first.frontend;
            if same {
                doubles.push(later.frontend);
            }
            same
        });
        for frontend in doubles {
            plan.skip(service, format!("{frontend:?} belongs to another port of it"));
        }
        plan.claims = claims.into();
        plan
    }

    fn skip(&mut self, service: &Service, reason: String) {
        self.skipped.push(Skipped { service: service.metadata.key(), reason });
    }
}

/// The service's cluster addresses, the first one first.
fn cluster_ips(service: &Service) -> Vec<&str> {
    let spec = &service.spec;
    let mut texts = vec![spec.cluster_ip.as_str()];
    texts.extend(spec.cluster_ips.iter().map(String::as_str).filter(|ip| *ip != spec.cluster_ip));
    texts
}

/// One port of a service in one family.
struct One<'a> {
    site: &'a Site,
    service: &'a Service,
    slices: &'a [&'a EndpointSlice],
    port: &'a ServicePort,
    transport: Transport,
    number: u16,
    /// The service's address of that family.
    address: IpAddr,
    old: &'a dyn Fn(&Frontend) -> Option<Slots>,
}

impl One<'_> {
    fn claim(&self, claims: &mut Vec<Claim>) {
        let Self { service, transport, number, .. } = *self;
        let spec = &service.spec;
        let family = Family::of(self.address);
        let local_inside = spec.internal_traffic_policy.as_deref() == Some("Local");
        let local_outside = spec.external_traffic_policy == "Local";
        let balanced = balancer_addresses(service, family);
        let mut frontends = vec![(
            Frontend::Address(self.address, transport, number),
            Origin::Cluster,
            local_inside,
        )];
        for address in external_addresses(service, family).union(&balanced) {
            let frontend = Frontend::Address(*address, transport, number);
            frontends.push((frontend, Origin::External, local_outside));
        }
        if let Ok(node_port @ 1..) = u16::try_from(self.port.node_port) {
            let frontend = Frontend::NodePort(family, transport, node_port);
            frontends.push((frontend, Origin::NodePort, local_outside));
        }
        let old = frontends.iter().filter_map(|(frontend, ..)| (self.old)(frontend));
        let backends = self.backends(family).slots(&old.collect::<Vec<_>>());
        let affinity = affinity(service);
        let sources = sources(service, family);
        for (frontend, origin, only_local) in frontends {
            let guarded =
                matches!(frontend, Frontend::Address(address, ..) if balanced.contains(&address));
            claims.push(Claim {
                frontend,
                target: backends.target(origin, affinity, only_local),
                sources: sources.clone().filter(|_| guarded),
            });
        }
    }

    /// Collects the backends of the port: the ready ones, and of those the ones that topology hints
    /// give to this node. When none is ready, those that end but still serve are better than
    /// nothing, as upstream has it.
    fn backends(&self, family: Family) -> Found {
        let site = self.site;
        let found = collect(self.port, self.transport, family, self.slices);
        let set = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<Backend> {
            let wanted = found.iter().filter(|(endpoint, _)| wanted(endpoint));
            wanted.map(|(_, backend)| *backend).take(ENDPOINTS_MAX).collect()
        };
        let ready = found.iter().map(|(endpoint, _)| *endpoint).filter(|one| is_ready(one));
        let hinted = near(site, &ready.collect::<Vec<_>>());
        let local = set(&|one| is_ready(one) && site.is_home_of(one));
        // Local ones that end are better than none, whatever there is elsewhere.
        let local = if local.is_empty() {
            set(&|one| is_leaving(one) && site.is_home_of(one))
        } else {
            local
        };
        let all = match hinted {
            Some((list, name)) => set(&|one| is_ready(one) && is_meant_for(one, list, name)),
            None => set(&is_ready),
        };
        let all = if all.is_empty() { set(&is_leaving) } else { all };
        Found { all, local }
    }
}

/// The backends of one port, everywhere and here.
struct Found {
    all: BTreeSet<Backend>,
    local: BTreeSet<Backend>,
}

impl Found {
    /// Gives slots: those that they have already, where they have.
    fn slots(&self, old: &[Slots]) -> Slots {
        let all = old.iter().map(|slots| &slots.all).find(|list| !list.is_empty());
        let local = old.iter().map(|slots| &slots.local).find(|list| !list.is_empty());
        Slots { all: keep_slots(all, &self.all), local: keep_slots(local, &self.local) }
    }
}

/// The backends of one port in their slots.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    pub(super) all: Arc<[Backend]>,
    pub(super) local: Arc<[Backend]>,
}

impl Slots {
    /// Those of a target; none where nothing is balanced.
    pub(super) fn of(target: &Target) -> Self {
        match target {
            Target::Balanced { backends, local, .. } => {
                Self { all: Arc::clone(backends), local: Arc::clone(local) }
            }
            Target::Refused | Target::Dropped => Self::default(),
        }
    }

    fn target(&self, origin: Origin, affinity: Option<u32>, only_local: bool) -> Target {
        let count = |list: &[Backend]| u32::try_from(list.len()).unwrap_or(u32::MAX);
        let reach = match (count(&self.all), count(&self.local)) {
            (0, 0) => return Target::Refused,
            (0, _) if !only_local => return Target::Refused,
            // Who dialled the cluster address is an insider and bound all the same.
            (_, 0) if only_local && origin == Origin::Cluster => return Target::Dropped,
            (all, local) if only_local => Reach::Local { local, all },
            (all, _) => Reach::All(all),
        };
        Target::Balanced {
            choice: Choice { origin, affinity, reach },
            backends: Arc::clone(&self.all),
            local: match reach {
                Reach::All(_) => Arc::default(),
                Reach::Local { .. } => Arc::clone(&self.local),
            },
        }
    }
}

/// Orders `new` so that what is in `old`, too, keeps its place; newcomers take the places that
/// became free, and when places stay free the last ones move there.
fn keep_slots(old: Option<&Arc<[Backend]>>, new: &BTreeSet<Backend>) -> Arc<[Backend]> {
    let Some(old) = old else { return new.iter().copied().collect() };
    let known: BTreeSet<&Backend> = old.iter().collect();
    let mut newcomers = new.iter().filter(|one| !known.contains(one)).copied();
    let mut changed = old.len() != new.len();
    let mut slots: Vec<Option<Backend>> = Vec::with_capacity(old.len().max(new.len()));
    for one in &**old {
        let stays = new.contains(one);
        changed |= !stays;
        slots.push(if stays { Some(*one) } else { newcomers.next() });
    }
    if !changed {
        return Arc::clone(old);
    }
    slots.extend(newcomers.map(Some));
    let mut kept = Vec::with_capacity(new.len());
    let mut at = 0;
    while at < slots.len() {
        match slots.get(at).copied().flatten() {
            Some(backend) => {
                kept.push(backend);
                at += 1;
            }
            None => _ = slots.swap_remove(at),
        }
    }
    kept.into()
}

fn external_addresses(service: &Service, family: Family) -> BTreeSet<IpAddr> {
    let parsed = service.spec.external_ips.iter().filter_map(|text| text.parse().ok());
    parsed.filter(|address| Family::of(*address) == family).collect()
}

/// The addresses of load balancers that hand packets on as they are.
fn balancer_addresses(service: &Service, family: Family) -> BTreeSet<IpAddr> {
    let ingress = service.status.load_balancer.ingress.iter();
    // A balancer that dials on behalf of clients must not be bypassed.
    let direct = ingress.filter(|one| one.extra.get("ipMode").is_none_or(|mode| mode != "Proxy"));
    let parsed = direct.filter_map(|one| one.ip.parse().ok());
    parsed.filter(|address| Family::of(*address) == family).collect()
}

/// From where load balancers' addresses may be dialled; `None` means from everywhere. Ranges of
/// the other family alone restrict nothing, as upstream has it.
fn sources(service: &Service, family: Family) -> Option<Arc<[IpNet]>> {
    let ranges = service.spec.extra.get("loadBalancerSourceRanges")?.as_array()?;
    let texts = ranges.iter().filter_map(|range| range.as_str().map(str::trim));
    let nets: Vec<IpNet> = match family {
        Family::V4 => {
            let parsed: Vec<Ipv4Net> = texts.filter_map(|text| text.parse().ok()).collect();
            Ipv4Net::aggregate(&parsed).into_iter().map(IpNet::V4).collect()
        }
        Family::V6 => {
            let parsed: Vec<Ipv6Net> = texts.filter_map(|text| text.parse().ok()).collect();
            Ipv6Net::aggregate(&parsed).into_iter().map(IpNet::V6).collect()
        }
    };
    (!nets.is_empty()).then(|| nets.into())
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
    // A pod of two families is one endpoint.
    let family = slices.iter().map(|slice| &slice.address_type).min();
    let slices = slices.iter().filter(|slice| Some(&slice.address_type) == family);
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|endpoint| is_ready(endpoint) && site.is_home_of(endpoint));
    let addresses: BTreeSet<&String> = here.filter_map(|one| one.addresses.first()).collect();
    let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
    Health { namespace, name, local: addresses.len() }
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
    family: Family,
    slices: &[&'a EndpointSlice],
) -> Vec<(&'a Endpoint, Backend)> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family.address_type()) {
        let mut ports = slice.ports.iter().filter(|one| {
            one.name.as_deref().unwrap_or_default() == port.name
                && Transport::parse(one.protocol.as_deref().unwrap_or_default()) == Some(transport)
        });
        let number = ports.find_map(|one| one.port).and_then(|port| u16::try_from(port).ok());
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            // All addresses of one endpoint are the same pod: the first is the one to use.
            let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
            let fits = |address: &IpAddr| Family::of(*address) == family;
            let Some(address) = address.filter(fits) else { continue };
            found.push((endpoint, Backend { address, port: number }));
        }
    }
    found
}
