//! What a checked `rack.yaml` says: the site, its racks and its machines.
//!
//! These are also the `spec`s of the API objects `Machine` and `Rack` (group
//! `muster.dev/v1alpha1`), hence the camel-case names on the wire.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::problem::Problem;
use crate::{check, document};

/// Shared address space of RFC 6598, which no site uses for its own machines.
const DEFAULT_LINKS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 255, 0), 24);

/// A whole site, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The site's name, a DNS label.
    pub site: String,
    /// The operator's host: boot server and first master.
    pub seed: Seed,
    /// Pod and service ranges.
    pub networks: Networks,
    /// How long the cluster waits before it acts on a silent node.
    pub timings: Timings,
    /// The racks, in file order.
    pub racks: Vec<Rack>,
    /// The machines, in file order.
    pub machines: Vec<Machine>,
    /// Ceph, when the site has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceph: Option<Ceph>,
    /// What only a simulated site needs.
    #[serde(default)]
    pub sim: Sim,
}

impl Plan {
    /// Reads and checks the text of a `rack.yaml`.
    ///
    /// # Errors
    ///
    /// Returns every problem in file order, so that one edit can mend them all. Text that is not
    /// YAML at all gives just one, at the place where reading stopped.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let root = document::parse(text).map_err(|problem| vec![problem])?;
        check::check(&root)
    }

    /// Points out what is allowed but probably not meant; places carry no line.
    #[must_use]
    pub fn warnings(&self) -> Vec<Problem> {
        check::warnings(self)
    }

    /// Digests the plan: lower-hex SHA-256 over its compact JSON.
    ///
    /// Fields stand in declared order and lists in file order, so that comments, spacing and
    /// spelled-out defaults in `rack.yaml` do not change it, and everything else does.
    #[must_use]
    pub fn hash(&self) -> String {
        // A plan is strings and numbers under string keys: there is nothing JSON cannot say.
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        hex::encode(Sha256::digest(canonical))
    }

    /// Finds a rack by name.
    #[must_use]
    pub fn rack(&self, name: &str) -> Option<&Rack> {
        self.racks.iter().find(|rack| rack.name == name)
    }

    /// Finds a machine by name.
    #[must_use]
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.name == name)
    }
}

/// What only a simulated site needs; a real one ignores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sim {
    /// Memory of each machine, 1024 unless said.
    pub memory_mib: u32,
    /// Virtual processors of each machine, 1 unless said.
    pub cpus: u32,
    /// Range of the links between ToR routers, a `/31` each; 100.64.255.0/24 unless said.
    pub links: Ipv4Net,
}

impl Default for Sim {
    fn default() -> Self {
        Self { memory_mib: 1024, cpus: 1, links: DEFAULT_LINKS }
    }
}

/// The operator's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// The address machines reach it by: DHCP server identifier, HTTP and API host.
    pub address: Ipv4Addr,
    /// The subnet the seed stands in.
    pub subnet: Ipv4Net,
    /// The rack whose ToR router is the seed's gateway; `None` on a flat network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The router's address in the seed's subnet: the last one of the subnet unless said; `None`
    /// when the seed stands in a rack's own subnet and that rack's gateway serves it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Port of the Kubernetes API, 6443 unless said.
    pub api_port: u16,
    /// Port of the boot server's HTTP side, 8080 unless said.
    pub http_port: u16,
}

/// Address ranges of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Networks {
    /// The range that holds every pod network.
    pub pods: Ipv4Net,
    /// The range of service addresses.
    pub services: Ipv4Net,
    /// Ranges that services of type `LoadBalancer` get their outside addresses from; nodes
    /// announce each address while they may answer for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancers: Vec<Ipv4Net>,
    /// The address of the API at every master at once: each announces it while its own API server
    /// is ready. No machine's own address; `None` where the API has only those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Ipv4Addr>,
    /// The seed's subnet, where it is no rack's own: nodes learn the way there from every router of
    /// their rack, and so reach the seed while their gateway is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Ipv4Net>,
    /// The range that holds every IPv6 pod network; `None` on a site of IPv4 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_v6: Option<Ipv6Net>,
    /// The range of IPv6 service addresses; there is one where there is one for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services_v6: Option<Ipv6Net>,
}

impl Networks {
    /// Where the config map stands that tells these to every node (key `networks`, as JSON).
    pub const CONFIG_MAP: (&str, &str) = ("kube-system", "muster-site");

    /// The address of the API as the prefix that masters announce.
    #[must_use]
    pub fn api_net(&self) -> Option<Ipv4Net> {
        self.api.map(Ipv4Net::from)
    }

    /// The address of cluster DNS, the tenth of the services' range as upstream's installers
    /// choose it; `None` when the range has no tenth.
    #[must_use]
    pub fn dns(&self) -> Option<Ipv4Addr> {
        self.services.hosts().nth(9)
    }

    /// The ranges of service addresses as `muster master --service-cidr` takes them: that of IPv4,
    /// which services get that ask for no family, and behind a comma that of IPv6 if there is one.
    #[must_use]
    pub fn service_cidrs(&self) -> String {
        let second = self.services_v6.map(|range| format!(",{range}")).unwrap_or_default();
        format!("{}{second}", self.services)
    }

    /// The IPv6 ranges of pods and of services; `None` on a site of IPv4 alone.
    #[must_use]
    pub fn v6(&self) -> Option<(Ipv6Net, Ipv6Net)> {
        self.pods_v6.zip(self.services_v6)
    }
}

/// Waiting times, in seconds; the names are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// Silence after which a node counts as `Unknown`.
    pub node_monitor_grace_period_seconds: u32,
    /// How long pods stay on an unreachable node before they are evicted.
    pub pod_eviction_timeout_seconds: u32,
}

/// One rack: a subnet behind a ToR router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rack {
    /// The rack's name, a DNS label; the value of `topology.kubernetes.io/zone`.
    pub name: String,
    /// The subnet of the rack's machines.
    pub subnet: Ipv4Net,
    /// The ToR router's address in that subnet.
    pub gateway: Ipv4Addr,
    /// How pod networks are announced.
    pub routing: RackRouting,
    /// Whether sessions need the rack's key (`Rack::KEYS`).
    #[serde(default, skip_serializing_if = "Authentication::is_none")]
    pub authentication: Authentication,
    /// The IPv6 subnet of the rack's machines and routers, a `/64`; `None` on a site of IPv4 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_v6: Option<Ipv6Net>,
}

impl Rack {
    /// The IPv6 address of whoever has an IPv4 address in the rack: as far into the one subnet as
    /// into the other. `None` where the rack has no IPv6, and outside of its subnet.
    #[must_use]
    pub fn address_v6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let subnet = self.subnet_v6?;
        let inside = self.subnet.contains(&address);
        let offset = u32::from(address).checked_sub(u32::from(self.subnet.network()));
        let found = u128::from(subnet.network()).checked_add(u128::from(offset?));
        found.filter(|_| inside).map(Ipv6Addr::from)
    }

    /// Where the keys of racks stand: a Secret with one key for each rack, under its name. Keys
    /// are neither in `rack.yaml` nor on the boot network: nodes read them over TLS.
    pub const KEYS: (&str, &str) = ("kube-system", "muster-routing");
}

/// How routers and nodes of a rack prove to each other that they belong to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Authentication {
    /// Not at all.
    #[default]
    None,
    /// By a shared key: TCP MD5 signatures for BGP, HMAC-SHA-256 for OSPF.
    Key,
}

impl Authentication {
    /// Whether no key is needed.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// By which addresses BGP neighbours in a rack speak to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numbering {
    /// By those of the rack's subnet, node by node.
    #[default]
    Numbered,
    /// By addresses of the link itself: a router has `fe80::1`, a second one `fe80::2`, on every
    /// port, and takes whoever calls from there. IPv4 has IPv6 next hops then (RFC 8950).
    Unnumbered,
}

impl Numbering {
    /// Whether addresses of the subnet are used.
    #[must_use]
    pub fn is_numbered(&self) -> bool {
        *self == Self::Numbered
    }

    /// The address on the link of the rack's N-th router, from zero.
    #[must_use]
    pub fn link_local(router: usize) -> Ipv6Addr {
        let number = u16::try_from(router).unwrap_or(u16::MAX).saturating_add(1);
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number)
    }
}

/// The routing protocol of a rack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum RackRouting {
    /// eBGP from each node to its ToR router, with BFD.
    Bgp {
        /// AS number of the ToR router.
        tor_asn: u32,
        /// All ToR routers of the rack, the gateway first; empty means the gateway alone.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tors: Vec<Ipv4Addr>,
        /// By which addresses nodes and routers speak to each other.
        #[serde(default, skip_serializing_if = "Numbering::is_numbered")]
        numbering: Numbering,
    },
    /// iBGP among the nodes of a flat network, by way of route reflectors; its router speaks no
    /// routing protocol with them.
    Ibgp {
        /// AS number of all nodes of the rack.
        asn: u32,
        /// The machines that reflect: masters first unless said, at most two.
        reflectors: Vec<String>,
    },
    /// OSPFv2 between nodes and ToR router.
    Ospf {
        /// The area, 0 unless said.
        area: u32,
        /// AS number of the ToR router towards other racks; `None` on a site of OSPF alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tor_asn: Option<u32>,
    },
}

/// One machine of the plan: the `spec` of its `Machine` object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// The machine's and its node's name, a DNS label.
    pub name: String,
    /// The rack it stands in.
    pub rack: String,
    /// Its number, unique in the site; pod network and AS number follow from it.
    pub node: u32,
    /// Master or worker.
    pub role: Role,
    /// Address by formula: rack subnet + node number, unless said.
    pub address: Ipv4Addr,
    /// Prefix length of the rack's subnet.
    pub prefix_len: u8,
    /// The ToR router.
    pub gateway: Ipv4Addr,
    /// Boot NIC, lower case with colons (`52:54:00:00:01:0b`).
    pub mac: String,
    /// SMBIOS system UUID, lower case, when the operator gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// SMBIOS system serial number, when the operator gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How the firmware boots.
    pub boot: BootMethod,
    /// Which disk may be used; `None` runs from memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskSelector>,
    /// The node's pod network.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv4Net,
    /// The node's IPv6 pod network; `None` on a site of IPv4 alone.
    #[serde(rename = "podCIDRv6", default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr_v6: Option<Ipv6Net>,
    /// Its IPv6 address, which lies in the rack's IPv6 subnet where the other lies in the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<Ipv6Addr>,
    /// The node's private AS number, 4200000000 + node.
    pub asn: u32,
    /// Virtual machine of the site's own hypervisor, not a box in a rack.
    #[serde(default)]
    pub r#virtual: bool,
}

/// What a machine does in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Carries the control plane.
    Master,
    /// Runs pods.
    Worker,
}

/// How a machine's firmware boots from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMethod {
    /// Legacy BIOS PXE.
    Bios,
    /// UEFI PXE: the loader comes by TFTP.
    UefiPxe,
    /// UEFI HTTP boot: the signed UKI comes by HTTP.
    UefiHttp,
}

/// Which one disk of a machine may be written; every given field must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSelector {
    /// Serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// World-wide name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Smallest acceptable size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes_min: Option<u64>,
}

/// A Ceph cluster the site already has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ceph {
    /// Monitor addresses, `address:port`.
    pub monitors: Vec<String>,
    /// The RBD pool for volumes.
    pub pool: String,
}
