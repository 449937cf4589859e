//! Is the kernel's table what the intent asks for?
//!
//! A node that is switched off has no route, so an absent route to another node is no
//! difference; a route that leads astray is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::intent::{Intent, Protocol};

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
    for other in &intent.others {
        let Some(route) = by_net.get(&other.pods.into()) else { continue };
        let allowed = gateways(intent, other.address);
        let right = match &route.way {
            Way::Via(found) => found.iter().all(|gateway| allowed.contains(gateway)),
            Way::Link | Way::Blackhole => false,
        };
        if !right {
            differences.push(Difference {
                destination: other.pods.into(),
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

/// The routers by which a node may be reached.
pub(crate) fn gateways(intent: &Intent, other: Ipv4Addr) -> Vec<IpAddr> {
    let all = match &intent.protocol {
        // The ToR's word may name a node of the same rack as next hop: they share the link.
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
    let pods = IpNet::V4(intent.networks.pods);
    let known = |net: &IpNet| {
        *net == IpNet::V4(intent.pods)
            || intent.others.iter().any(|other| IpNet::V4(other.pods) == *net)
    };
    table
        .iter()
        .filter(|route| route.by_bird && pods.contains(&route.destination))
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
