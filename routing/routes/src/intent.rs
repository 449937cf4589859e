//! What one node shall announce and believe, made from the plan.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cluster::plan::{Machine, Networks, Numbering, Rack, RackRouting, Role};
use ipnet::Ipv4Net;
use thiserror::Error;

use crate::key::{Key, KeyError};
use crate::second::{Second, SecondOrigin};

/// Everything a node's routing follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The node's name, for comments only.
    pub node: String,
    /// The node's address: router id and preferred source.
    pub address: Ipv4Addr,
    /// The subnet of its rack.
    pub subnet: Ipv4Net,
    /// The link to its rack.
    pub interface: String,
    /// The node's own pod network, which it announces.
    pub pods: Ipv4Net,
    /// Ranges of the whole cluster.
    pub networks: Networks,
    /// Subnets of other racks, sorted.
    pub underlay: Vec<Ipv4Net>,
    /// Service addresses this node may answer now, sorted.
    pub announce: Vec<Ipv4Net>,
    /// How it talks to its neighbours.
    pub protocol: Protocol,
    /// How fast a silent neighbour is noticed.
    pub bfd: Bfd,
    /// The rack's key, where sessions need one.
    pub key: Option<Key>,
    /// The other nodes of the cluster, by address.
    pub others: Vec<Origin>,
    /// The same for IPv6; `None` on a site of IPv4 alone.
    pub second: Option<Second>,
}

/// A routing protocol with what it needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// eBGP to each ToR router.
    Bgp {
        /// The node's AS number.
        asn: u32,
        /// Its ToR routers.
        tors: Vec<Tor>,
        /// By which addresses they are spoken to.
        numbering: Numbering,
    },
    /// iBGP by way of the rack's route reflectors.
    Ibgp {
        /// The AS number of all nodes of the rack.
        asn: u32,
        /// The reflectors, without this node.
        reflectors: Vec<Ipv4Addr>,
        /// The nodes this one reflects for; empty on all but the reflectors.
        clients: Vec<Origin>,
    },
    /// OSPFv2 among the nodes of the rack and its ToR router.
    Ospf {
        /// The area.
        area: u32,
        /// Eagerness to be the segment's designated router; 0 never is.
        priority: u8,
        /// The ToR router, which may speak for other racks.
        tor: Ipv4Addr,
        /// Whether OSPF messages and their neighbours use BFD.
        nodes: Vec<Origin>,
    },
}

/// A ToR router as a BGP neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tor {
    /// Its address in the rack's subnet.
    pub address: Ipv4Addr,
    /// Its AS number.
    pub asn: u32,
}

/// A node as the only rightful origin of a pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The node's name.
    pub node: String,
    /// The node's number.
    pub number: u32,
    /// The node's address, which is its router id.
    pub address: Ipv4Addr,
    /// Its AS number.
    pub asn: u32,
    /// The pod network.
    pub pods: Ipv4Net,
    /// Masters may announce the API's address.
    pub role: Role,
    /// What it has of IPv6; `None` on a site of IPv4 alone.
    pub second: Option<SecondOrigin>,
}

impl Origin {
    /// What the plan says of a machine.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        Self {
            node: machine.name.clone(),
            number: machine.node,
            address: machine.address,
            asn: machine.asn,
            pods: machine.pod_cidr,
            role: machine.role,
            second: SecondOrigin::of(machine),
        }
    }
}

/// Bidirectional forwarding detection: both ends agree on the slower interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bfd {
    /// Between two messages.
    pub interval_ms: u32,
    /// So many lost in a row mean a dead neighbour.
    pub multiplier: u8,
}

impl Default for Bfd {
    /// Silence is noticed within 0.3 s: fast enough for no one to retry by hand, slow enough
    /// for a busy host not to flap.
    fn default() -> Self {
        Self { interval_ms: 100, multiplier: 3 }
    }
}

/// Why no intent could be made for a node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IntentError {
    /// The plan has no such machine.
    #[error("no machine {node} in the plan")]
    NoMachine {
        /// The name asked for.
        node: String,
    },
    /// The machine's rack is not there.
    #[error("machine {node} stands in rack {rack}, which is not in the plan")]
    NoRack {
        /// The machine.
        node: String,
        /// Its rack.
        rack: String,
    },
    /// The rack's sessions need a key that is not there, or is none.
    #[error("rack {rack} needs a key in the Secret kube-system/muster-routing: {why}")]
    NoKey {
        /// The rack.
        rack: String,
        /// What is wrong with it.
        why: String,
    },
    /// The node's pod network and the plan's differ.
    #[error("node {node} was given pod network {given}, but its neighbours accept only {planned}")]
    ForeignPods {
        /// The node.
        node: String,
        /// What `Node.spec.podCIDR` says.
        given: Ipv4Net,
        /// What the plan says.
        planned: Ipv4Net,
    },
}

/// What an intent is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The link to its rack.
    pub interface: &'a str,
    /// The pod network it was given (`Node.spec.podCIDR`); `None` before it was. Sessions may
    /// come up meanwhile with what the plan says: the neighbours accept nothing else anyway.
    pub pods: Option<Ipv4Net>,
    /// All racks.
    pub racks: &'a [Rack],
    /// All machines.
    pub machines: &'a [Machine],
    /// Ranges of the cluster.
    pub networks: &'a Networks,
    /// Keys of racks, as the Secret has them.
    pub keys: &'a BTreeMap<String, Result<Key, KeyError>>,
}

impl Intent {
    /// Makes the intent of one node.
    ///
    /// # Errors
    ///
    /// When plan and node do not fit together; worth retrying when either changes.
    pub fn new(source: Source<'_>) -> Result<Self, IntentError> {
        let node = source.node.to_owned();
        let Some(machine) = source.machines.iter().find(|machine| machine.name == node) else {
            return Err(IntentError::NoMachine { node });
        };
        let Some(rack) = source.racks.iter().find(|rack| rack.name == machine.rack) else {
            return Err(IntentError::NoRack { node, rack: machine.rack.clone() });
        };
        let planned = machine.pod_cidr;
        if let Some(given) = source.pods.filter(|given| *given != planned) {
            return Err(IntentError::ForeignPods { node, given, planned });
        }
        let key = key_of(rack, source.keys)?;
        let mut others: Vec<Origin> =
            source.machines.iter().filter(|other| other.name != node).map(Origin::of).collect();
        others.sort_by_key(|origin| origin.address);
        let mut underlay: Vec<Ipv4Net> = source.racks.iter().map(|rack| rack.subnet).collect();
        underlay.retain(|subnet| *subnet != rack.subnet);
        underlay.sort_unstable();
        underlay.dedup();
        Ok(Self {
            address: machine.address,
            subnet: rack.subnet,
            interface: source.interface.to_owned(),
            pods: planned,
            networks: source.networks.clone(),
            underlay,
            announce: Vec::new(),
            protocol: protocol(machine, rack, source.machines),
            bfd: Bfd::default(),
            key,
            others,
            second: Second::new(machine, rack, source.racks, source.networks),
            node,
        })
    }

    /// The node's own address as a prefix, where it tells its routers of it.
    ///
    /// A router that lost its link to the rack in silence goes on announcing the rack's subnet;
    /// what the nodes said of themselves it has to take back.
    #[must_use]
    pub fn own_host(&self) -> Option<Ipv4Net> {
        matches!(self.protocol, Protocol::Bgp { .. }).then(|| Ipv4Net::from(self.address))
    }
}

fn key_of(
    rack: &Rack,
    keys: &BTreeMap<String, Result<Key, KeyError>>,
) -> Result<Option<Key>, IntentError> {
    if rack.authentication.is_none() {
        return Ok(None);
    }
    let no_key = |why: String| IntentError::NoKey { rack: rack.name.clone(), why };
    match keys.get(&rack.name) {
        Some(Ok(key)) => Ok(Some(key.clone())),
        Some(Err(err)) => Err(no_key(err.to_string())),
        None => Err(no_key(format!("it has none under {}", rack.name))),
    }
}

fn protocol(machine: &Machine, rack: &Rack, machines: &[Machine]) -> Protocol {
    match rack.routing {
        RackRouting::Bgp { tor_asn, ref tors, numbering } => {
            let all = if tors.is_empty() { std::slice::from_ref(&rack.gateway) } else { tors };
            let tors = all.iter().map(|address| Tor { address: *address, asn: tor_asn }).collect();
            Protocol::Bgp { asn: machine.asn, tors, numbering }
        }
        RackRouting::Ibgp { asn, ref reflectors } => {
            let mut here: Vec<Origin> = in_rack(machines, rack)
                .filter(|other| other.name != machine.name)
                .map(Origin::of)
                .collect();
            here.sort_by_key(|origin| origin.address);
            let reflects = |origin: &Origin| reflectors.contains(&origin.node);
            let others = here.iter().filter(|one| reflects(one)).map(|one| one.address).collect();
            here.retain(|origin| !reflects(origin));
            let clients = if reflectors.contains(&machine.name) { here } else { Vec::new() };
            Protocol::Ibgp { asn, reflectors: others, clients }
        }
        RackRouting::Ospf { area, tor_asn } => {
            let mut nodes: Vec<Origin> = in_rack(machines, rack)
                .filter(|other| other.name != machine.name)
                .map(Origin::of)
                .collect();
            nodes.sort_by_key(|origin| origin.address);
            let priority = match tor_asn {
                Some(_) => 0,
                None => designated_priority(machine, rack, machines),
            };
            Protocol::Ospf { area, priority, tor: rack.gateway, nodes }
        }
    }
}

fn in_rack<'a>(machines: &'a [Machine], rack: &'a Rack) -> impl Iterator<Item = &'a Machine> {
    machines.iter().filter(|machine| machine.rack == rack.name)
}

/// Where no ToR router is known to speak OSPF, two nodes must be willing to be designated router,
/// or no adjacency comes up at all: the masters first, they are the machines that stay.
fn designated_priority(machine: &Machine, rack: &Rack, machines: &[Machine]) -> u8 {
    let mut candidates: Vec<(bool, u32)> =
        in_rack(machines, rack).map(|one| (one.role != Role::Master, one.node)).collect();
    candidates.sort_unstable();
    match candidates.iter().position(|(_, node)| *node == machine.node) {
        Some(0) => 2,
        Some(1) => 1,
        _ => 0,
    }
}
