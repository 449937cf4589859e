//! What the zone holds, and how it is made of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record};
use ipnet::Ipv4Net;
use objects::network::{Endpoint, EndpointSlice, Service};

use super::TTL_SECONDS;

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Headless services may be asked for endpoints that are not ready by this old annotation, too.
const TOLERATE: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/// A port: name, protocol in small letters, number.
type Port = (String, String, u16);

/// All names of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    domain: Name,
    depth: usize,
    /// Addresses of which nobody else can know a name.
    ranges: Vec<Ipv4Net>,
    namespaces: BTreeMap<String, BTreeMap<String, Entry>>,
    reverse: BTreeMap<IpAddr, Name>,
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
    /// Makes the zone of `domain` (`cluster.local`) from what the API says.
    ///
    /// Total: what makes no sense has no name. `ranges` are the cluster's own addresses: their
    /// reverse names are ours even where nobody has the address.
    ///
    /// # Errors
    ///
    /// When `domain` is not a domain name.
    pub fn build<'a>(
        domain: &str,
        ranges: Vec<Ipv4Net>,
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Result<Self, NotADomain> {
        let bad = || NotADomain(domain.to_owned());
        let mut name = Name::from_ascii(domain.to_ascii_lowercase()).map_err(|_| bad())?;
        name.set_fqdn(true);
        let mut behind: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            let meta = &slice.metadata;
            if let Some(service) = meta.labels.get(SERVICE_NAME) {
                behind.entry((&meta.namespace, service)).or_default().push(slice);
            }
        }
        let depth = name.iter().len();
        let (namespaces, reverse) = (BTreeMap::new(), BTreeMap::new());
        let mut zone = Self { domain: name, depth, ranges, namespaces, reverse };
        for service in services {
            let meta = &service.metadata;
            let key = (meta.namespace.as_str(), meta.name.as_str());
            zone.add(service, behind.get(&key).map_or(&[][..], Vec::as_slice));
        }
        Ok(zone)
    }

    fn add(&mut self, service: &Service, slices: &[&EndpointSlice]) {
        let meta = &service.metadata;
        let Some(name) = self.name(&[&meta.name, &meta.namespace, "svc"]) else { return };
        let spec = &service.spec;
        let entry = if spec.kind == "ExternalName" {
            let Ok(mut target) = Name::from_ascii(&spec.external_name) else { return };
            target.set_fqdn(true);
            Entry::External(target)
        } else if spec.cluster_ip == "None" || spec.cluster_ips.iter().any(|ip| ip == "None") {
            Entry::Headless(self.hosts(service, &name, slices))
        } else {
            let several = spec.cluster_ips.iter().chain(std::iter::once(&spec.cluster_ip));
            let addresses: BTreeSet<IpAddr> = several.filter_map(|ip| ip.parse().ok()).collect();
            let addresses: Vec<IpAddr> = addresses.into_iter().collect();
            let ports = spec.ports.iter().filter_map(|port| {
                Some((port.name.clone(), small(&port.protocol), u16::try_from(port.port).ok()?))
            });
            let ports = ports.collect();
            if addresses.is_empty() {
                return;
            }
            for address in &addresses {
                self.reverse.insert(*address, name.clone());
            }
            Entry::Cluster { name, addresses, ports }
        };
        let namespace = self.namespaces.entry(meta.namespace.clone()).or_default();
        namespace.insert(meta.name.clone(), entry);
    }

    fn hosts(
        &mut self,
        service: &Service,
        name: &Name,
        slices: &[&EndpointSlice],
    ) -> BTreeMap<String, Host> {
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
                    let label =
                        named.map_or_else(|| render_dashed(address), str::to_ascii_lowercase);
                    let Ok(own) = name.prepend_label(label.as_str()) else { continue };
                    if named.is_some() {
                        self.reverse.insert(address, own.clone());
                    }
                    let host = hosts.entry(label).or_insert_with(|| Host {
                        name: own,
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

    pub(super) fn reverse(&self, address: IpAddr) -> Option<&Name> {
        self.reverse.get(&address)
    }

    /// Whether an address is one of the cluster's.
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ranges.iter().any(|range| range.contains(&address)),
            IpAddr::V6(_) => false,
        }
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
