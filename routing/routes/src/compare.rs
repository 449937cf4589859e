//! Is the kernel's table what the intent asks for?
//!
//! A node that is switched off has no route, so an absent route to another node is no
//! difference; a route that leads astray is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use cluster::plan::Numbering;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::intent::{Intent, Origin, Protocol};

/// One route of the kernel, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRoute {
    /// Which packets it is for.
    pub destination: IpNet,
    /// Where they go.
    pub way: Way,
    /// Whether BIRD put it there.
    pub by_bird: bool,
}

/// Where packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To one of these routers.
    Via(Vec<IpAddr>),
    /// To a link, where the destination is.
    Link,
    /// Nowhere.
    Blackhole,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Via(gateways) => {
                write!(f, "via")?;
                gateways.iter().try_for_each(|gateway| write!(f, " {gateway}"))
            }
            Self::Link => write!(f, "on a link"),
            Self::Blackhole => write!(f, "blackhole"),
        }
    }
}

/// One point where the kernel does something else than was meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Which packets it is about.
    pub destination: IpNet,
    /// What was meant.
    pub wanted: String,
    /// What is.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: wanted {}, found {}", self.destination, self.wanted, self.found)
    }
}

/// Compares the kernel's table with the intent; sorted, empty when all is well.
#[must_use]
pub fn compare(intent: &Intent, table: &[KernelRoute]) -> Vec<Difference> {
    let by_net: BTreeMap<IpNet, &KernelRoute> =
        table.iter().map(|route| (route.destination, route)).collect();
    let mut differences = Vec::new();
    must_be(&mut differences, &by_net, intent.pods.into(), Way::Blackhole);
    must_be(&mut differences, &by_net, intent.networks.services.into(), Way::Link);
    if let Some(second) = &intent.second {
        must_be(&mut differences, &by_net, second.pods.into(), Way::Blackhole);
        must_be(&mut differences, &by_net, second.services.into(), Way::Link);
    }
    for (destination, allowed) in intent.others.iter().flat_map(|other| ways(intent, other)) {
        let Some(route) = by_net.get(&destination) else { continue };
        let right = match &route.way {
            Way::Via(found) => found.iter().all(|one| allowed.contains(one) || is_on_wire(*one)),
            Way::Link | Way::Blackhole => false,
        };
        if !right {
            differences.push(Difference {
                destination,
                wanted: Way::Via(allowed).to_string(),
                found: route.way.to_string(),
            });
        }
    }
    differences.extend(foreign(intent, table));
    differences.sort();
    differences
}

fn must_be(
    differences: &mut Vec<Difference>,
    table: &BTreeMap<IpNet, &KernelRoute>,
    destination: IpNet,
    wanted: Way,
) {
    let found = table.get(&destination).map(|route| &route.way);
    if found != Some(&wanted) {
        let found = found.map_or_else(|| "no route".to_owned(), ToString::to_string);
        differences.push(Difference { destination, wanted: wanted.to_string(), found });
    }
}

/// Addresses of the link itself, which `OSPFv3` and unnumbered BGP use: they are in no plan, and
/// lead no further than the rack's own wire.
fn is_on_wire(gateway: IpAddr) -> bool {
    matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local())
}

/// A node's pod networks, with the routers by which each may be reached.
pub(crate) fn ways(intent: &Intent, other: &Origin) -> Vec<(IpNet, Vec<IpAddr>)> {
    let mut all = vec![(IpNet::V4(other.pods), gateways(intent, other.address))];
    let second = intent.second.as_ref().zip(other.second);
    all.extend(second.map(|(own, other)| {
        let near = own.subnet.contains(&other.address);
        let gateways = match &intent.protocol {
            Protocol::Ibgp { .. } => vec![other.address],
            Protocol::Bgp { tors, numbering: Numbering::Unnumbered, .. } => {
                (0..tors.len()).map(Numbering::link_local).collect()
            }
            Protocol::Bgp { .. } | Protocol::Ospf { .. } => {
                own.tors.iter().copied().chain(near.then_some(other.address)).collect()
            }
        };
        (IpNet::V6(other.pods), gateways.into_iter().map(IpAddr::V6).collect())
    }));
    all
}

/// The routers by which a node may be reached.
fn gateways(intent: &Intent, other: Ipv4Addr) -> Vec<IpAddr> {
    let all = match &intent.protocol {
        // The ToR's word may name a node of the same rack as next hop: they share the link.
        Protocol::Bgp { tors, numbering: Numbering::Unnumbered, .. } => {
            let all = (0..tors.len()).map(|router| IpAddr::V6(Numbering::link_local(router)));
            return all.collect();
        }
        Protocol::Bgp { tors, .. } => {
            let mut all: Vec<Ipv4Addr> = tors.iter().map(|tor| tor.address).collect();
            all.extend(intent.subnet.contains(&other).then_some(other));
            all
        }
        Protocol::Ibgp { .. } => vec![other],
        Protocol::Ospf { tor, .. } if intent.subnet.contains(&other) => vec![other, *tor],
        Protocol::Ospf { tor, .. } => vec![*tor],
    };
    all.into_iter().map(IpAddr::V4).collect()
}

/// Routes by BIRD into the pod range that belong to no node of the plan.
fn foreign(intent: &Intent, table: &[KernelRoute]) -> Vec<Difference> {
    let second = intent.second.as_ref();
    let pods = |net: &IpNet| {
        IpNet::V4(intent.networks.pods).contains(net)
            || second.is_some_and(|second| IpNet::V6(second.all_pods).contains(net))
    };
    let known = |net: &IpNet| match net {
        IpNet::V4(net) => {
            *net == intent.pods || intent.others.iter().any(|other| other.pods == *net)
        }
        IpNet::V6(net) => {
            let others = intent.others.iter().filter_map(|other| other.second);
            second.is_some_and(|second| *net == second.pods)
                || others.into_iter().any(|other| other.pods == *net)
        }
    };
    table
        .iter()
        .filter(|route| route.by_bird && pods(&route.destination))
        .filter(|route| !known(&route.destination))
        .map(|route| Difference {
            destination: route.destination,
            wanted: "no route".to_owned(),
            found: route.way.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
