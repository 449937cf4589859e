//! What the zone holds, and how it is made of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record};
use ipnet::IpNet;
use objects::network::{Endpoint, EndpointSlice, Service};

use super::TTL_SECONDS;
use crate::behind::Behind;

/// Headless services may be asked for endpoints that are not ready by this old annotation, too.
const TOLERATE: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/// A port: name, protocol in small letters, number.
type Port = (String, String, u16);

/// All names of a cluster.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    depth: usize,
    /// Addresses of which nobody else can know a name.
    ranges: Vec<IpNet>,
    behind: Behind,
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Entry>>,
    /// The names of addresses, sorted.
    reverse: BTreeMap<IpAddr, Vec<Name>>,
}

/// One service's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A service with addresses of its own.
    Cluster { name: Name, addresses: Vec<IpAddr>, ports: Vec<Port> },
    /// A service that is its endpoints; by host name, for an endpoint may have two families.
    Headless(BTreeMap<String, Host>),
    /// Another name.
    External(Name),
}

/// One endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    name: Name,
    /// Whether the endpoint has a name of its own, which its address is told to have.
    is_named: bool,
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<Port>,
}

/// What stands under a name.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) services: Vec<SRV>,
    pub(super) glue: Vec<(Name, IpAddr)>,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.services.is_empty()
    }

    fn add_service(&mut self, name: &Name, port: u16, addresses: impl Iterator<Item = IpAddr>) {
        self.services.push(SRV::new(0, 100, port, name.clone()));
        for address in addresses {
            let glue = (name.clone(), address);
            if !self.glue.contains(&glue) {
                self.glue.push(glue);
            }
        }
    }
}

impl Entry {
    /// What stands under the service's own name: its addresses, and each of its ports.
    pub(super) fn all(&self) -> Found {
        self.select(|_| true, Addresses::Listed)
    }

    /// What stands under `_port._protocol` of the service.
    pub(super) fn port(&self, port: &str, protocol: &str) -> Found {
        self.select(
            |(name, transport, _)| name == port && transport == protocol,
            Addresses::Unlisted,
        )
    }

    /// The addresses that have a name, and their names.
    fn reverse(&self) -> Vec<(IpAddr, &Name)> {
        match self {
            Self::Cluster { name, addresses, .. } => {
                addresses.iter().map(|address| (*address, name)).collect()
            }
            Self::Headless(hosts) => hosts
                .values()
                .filter(|host| host.is_named)
                .flat_map(|host| host.addresses.iter().map(|address| (*address, &host.name)))
                .collect(),
            Self::External(_) => Vec::new(),
        }
    }

    fn select(&self, wanted: impl Fn(&Port) -> bool, listed: Addresses) -> Found {
        let mut found = Found::default();
        match self {
            Self::Cluster { name, addresses, ports } => {
                if listed == Addresses::Listed {
                    found.addresses.clone_from(addresses);
                }
                for port in ports.iter().filter(|port| wanted(port)) {
                    found.add_service(name, port.2, addresses.iter().copied());
                }
            }
            Self::Headless(hosts) => {
                for host in hosts.values() {
                    if listed == Addresses::Listed {
                        found.addresses.extend(&host.addresses);
                    }
                    for port in host.ports.iter().filter(|port| wanted(port)) {
                        found.add_service(&host.name, port.2, host.addresses.iter().copied());
                    }
                }
            }
            Self::External(_) => {}
        }
        found
    }
}

/// Whether addresses stand beside services under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    Listed,
    Unlisted,
}

/// What stands under one endpoint's name.
pub(super) fn host(hosts: &BTreeMap<String, Host>, name: &str) -> Found {
    let addresses = hosts.get(name).map(|host| host.addresses.iter().copied().collect());
    Found { addresses: addresses.unwrap_or_default(), ..Found::default() }
}

impl Zone {
    /// Makes the zone of `domain` (`cluster.local`), with no names yet. `ranges` are the cluster's
    /// own addresses: their reverse names are ours even where nobody has the address.
    ///
    /// # Errors
    ///
    /// When `domain` is not a domain name.
    pub fn new(domain: &str, ranges: Vec<IpNet>) -> Result<Self, NotADomain> {
        let bad = || NotADomain(domain.to_owned());
        let mut name = Name::from_ascii(domain.to_ascii_lowercase()).map_err(|_| bad())?;
        name.set_fqdn(true);
        let depth = name.iter().len();
        let (behind, namespaces, reverse) = Default::default();
        Ok(Self { domain: name, depth, ranges, behind, namespaces, reverse })
    }

    /// The cluster's own addresses.
    #[must_use]
    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// Where to tell what the API says; in the zone after the next [`Self::refresh`].
    pub fn behind(&mut self) -> &mut Behind {
        &mut self.behind
    }

    /// Takes in what was told since the last time, and says whether any name has changed. Total:
    /// what makes no sense has no name.
    pub fn refresh(&mut self) -> bool {
        let mut has_changed = false;
        for name in self.behind.take_changed() {
            let entry = self
                .behind
                .service(&name)
                .and_then(|service| self.entry_of(service, &self.behind.slices(&name)));
            has_changed |= self.put(&name.0, &name.1, entry);
            self.behind.forget_if_gone(&name);
        }
        has_changed
    }

    /// Puts a service's names in the place of those before; says whether they differ.
    fn put(&mut self, namespace: &str, service: &str, entry: Option<Entry>) -> bool {
        let old = self.namespaces.get_mut(namespace).and_then(|names| names.remove(service));
        let differs = old != entry;
        if differs {
            for (address, name) in old.iter().flat_map(Entry::reverse) {
                if let Some(names) = self.reverse.get_mut(&address) {
                    names.retain(|one| one != name);
                    if names.is_empty() {
                        self.reverse.remove(&address);
                    }
                }
            }
            for (address, name) in entry.iter().flat_map(Entry::reverse) {
                let names = self.reverse.entry(address).or_default();
                let at = names.partition_point(|one| one < name);
                names.insert(at, name.clone());
            }
        }
        if let Some(entry) = entry {
            self.namespaces.entry(namespace.into()).or_default().insert(service.into(), entry);
        } else if self.namespaces.get(namespace).is_some_and(BTreeMap::is_empty) {
            self.namespaces.remove(namespace);
        }
        differs
    }

    /// A service's names; `None` when it has none.
    fn entry_of(&self, service: &Service, slices: &[&EndpointSlice]) -> Option<Entry> {
        let meta = &service.metadata;
        let name = self.name(&[&meta.name, &meta.namespace, "svc"])?;
        let spec = &service.spec;
        if spec.kind == "ExternalName" {
            let mut target = Name::from_ascii(&spec.external_name).ok()?;
            target.set_fqdn(true);
            return Some(Entry::External(target));
        }
        if spec.cluster_ip == "None" || spec.cluster_ips.iter().any(|ip| ip == "None") {
            return Some(Entry::Headless(hosts(service, &name, slices)));
        }
        let several = spec.cluster_ips.iter().chain(std::iter::once(&spec.cluster_ip));
        let addresses: BTreeSet<IpAddr> = several.filter_map(|ip| ip.parse().ok()).collect();
        let ports = spec.ports.iter().filter_map(|port| {
            Some((port.name.clone(), small(&port.protocol), u16::try_from(port.port).ok()?))
        });
        let (addresses, ports) = (addresses.into_iter().collect::<Vec<_>>(), ports.collect());
        (!addresses.is_empty()).then_some(Entry::Cluster { name, addresses, ports })
    }

    /// Everything there is, for comparison.
    #[cfg(test)]
    pub(super) fn contents(&self) -> String {
        format!("{:?} {:?}", self.namespaces, self.reverse)
    }

    /// Whether a name is the domain or below it.
    pub(super) fn contains(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    /// How many labels the domain has.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    pub(super) fn entry(&self, namespace: &str, service: &str) -> Option<&Entry> {
        self.namespaces.get(namespace)?.get(service)
    }

    /// The names that an address has; none when nobody has it.
    pub(super) fn reverse(&self, address: IpAddr) -> &[Name] {
        self.reverse.get(&address).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether an address is one of the cluster's.
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }

    /// The name server's own name.
    pub(super) fn server_name(&self) -> Name {
        self.name(&["ns", "dns"]).unwrap_or_else(|| self.domain.clone())
    }

    /// The record that says who answers for the domain.
    pub(super) fn soa(&self) -> Record {
        let hand = self.domain.prepend_label("hostmaster").unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(self.server_name(), hand, 1, 7200, 1800, 86_400, TTL_SECONDS);
        Record::from_rdata(self.domain.clone(), TTL_SECONDS, RData::SOA(soa))
    }

    fn name(&self, labels: &[&str]) -> Option<Name> {
        let labels = labels.iter().rev();
        labels.copied().try_fold(self.domain.clone(), |name, label| name.prepend_label(label).ok())
    }
}

/// The endpoints of a headless service.
fn hosts(service: &Service, name: &Name, slices: &[&EndpointSlice]) -> BTreeMap<String, Host> {
    let tolerate = service.metadata.annotations.get(TOLERATE).is_some_and(|yes| yes == "true");
    let unready = service.spec.publish_not_ready_addresses || tolerate;
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type != "FQDN") {
        let ports: Vec<Port> = slice
            .ports
            .iter()
            .filter_map(|port| {
                let protocol = small(port.protocol.as_deref().unwrap_or_default());
                let number = port.port.and_then(|port| u16::try_from(port).ok())?;
                Some((port.name.clone().unwrap_or_default(), protocol, number))
            })
            .collect();
        let ready = |endpoint: &&Endpoint| endpoint.conditions.ready.unwrap_or(true) || unready;
        for endpoint in slice.endpoints.iter().filter(ready) {
            for address in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
                let named = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
                let label = named.map_or_else(|| render_dashed(address), str::to_ascii_lowercase);
                let Ok(own) = name.prepend_label(label.as_str()) else { continue };
                let host = hosts.entry(label).or_insert_with(|| Host {
                    name: own,
                    is_named: named.is_some(),
                    addresses: BTreeSet::new(),
                    ports: BTreeSet::new(),
                });
                host.addresses.insert(address);
                host.ports.extend(ports.iter().cloned());
            }
        }
    }
    hosts
}

/// The cluster's domain cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a domain name")]
pub struct NotADomain(String);

/// The record data of an address.
pub(super) fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// Reads `10-0-0-1` or `2001-db8--1`.
pub(super) fn parse_dashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

fn render_dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn small(protocol: &str) -> String {
    if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() }
}
