//! Services and their endpoints as nftables tables, one for each family of addresses.
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
//! A [`Planner`] holds what the API says and what follows from it. After the first load, what
//! changed of one service becomes elements taken out and put in ([`Planner::change`]); nobody
//! looks at the other services. Endpoints that stay keep their slots, so that one that goes moves
//! one other, and clients with affinity, who are remembered with their slot for as long as the
//! service says, stay where they are. A planner that begins learns the slots of the one before
//! from the kernel ([`Planner::remember`]).
//!
//! *Limits*: When endpoints become fewer, the last ones move into the gaps and their clients choose
//! anew.

mod element;
mod plan;
mod planner;
mod progress;
mod table;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use element::{Data, Element, Key, Set};
pub use planner::{Change, Planner};
pub use progress::{PATIENCE, Progress};
pub use table::{STICKY, TABLE, chain_name};

/// Where the tables are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// This node's name: endpoints of this name are local.
    pub node: String,
    /// The zone this node is in, which topology hints speak of.
    pub zone: Option<String>,
    /// The site's addresses of IPv4.
    pub v4: Ranges,
    /// The site's addresses of IPv6; `None` where it has none, and services of that family are
    /// not served.
    pub v6: Option<Ranges>,
}

/// A site's addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// The range of all pods: clients outside it are masqueraded.
    pub pods: IpNet,
    /// The range of service addresses: what is not served there goes nowhere.
    pub services: IpNet,
    /// Where this node itself answers as cluster DNS.
    pub dns: Option<IpAddr>,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As slices of endpoints call it.
    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl Site {
    /// The site's addresses of a family.
    #[must_use]
    pub fn ranges(&self, family: Family) -> Option<&Ranges> {
        match family {
            Family::V4 => Some(&self.v4),
            Family::V6 => self.v6.as_ref(),
        }
    }
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

    /// The protocol's number in packets.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
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
    Address(IpAddr, Transport, u16),
    /// A port of every node.
    NodePort(Family, Transport, u16),
}

impl Frontend {
    /// The family of addresses it is reached by.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Address(address, ..) => Family::of(*address),
            Self::NodePort(family, ..) => *family,
        }
    }

    fn is_udp(&self) -> bool {
        matches!(self, Self::Address(_, Transport::Udp, _) | Self::NodePort(_, Transport::Udp, _))
    }
}

/// A pod's address and port behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The pod's address.
    pub address: IpAddr,
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
        /// All backends; slot 0 first.
        backends: Arc<[Backend]>,
        /// The backends on this node; empty unless only those may be used.
        local: Arc<[Backend]>,
    },
    /// Nobody is there: the client is told so.
    Refused,
    /// Somebody is there, but not on this node, and the service asks for local ones only.
    Dropped,
}

impl Target {
    /// Everybody whom connections may go to.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        let (all, local) = match self {
            Self::Balanced { backends, local, .. } => (&**backends, &**local),
            Self::Refused | Self::Dropped => (&[][..], &[][..]),
        };
        all.iter().chain(local)
    }
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

/// A UDP flow as the kernel tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What the client dialled.
    pub destination: (IpAddr, u16),
    /// Who answers it.
    pub answering: Backend,
}

#[cfg(test)]
pub(crate) mod tests;
