//! What the tables' sets and maps hold.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::table::chain_name;
use super::{Backend, Choice, Family, Frontend, Origin, Reach, Target};

/// Endpoints on this node have a second slot from here on.
pub(super) const LOCAL_SLOTS: u32 = 0x1_0000;

/// A set or map of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Frontend with an address → chain.
    Services,
    /// Port of the node → chain.
    NodePorts,
    /// Frontend with an address, slot → endpoint.
    Endpoints,
    /// Port of the node, slot → endpoint.
    NodePortEndpoints,
    /// Frontends that are refused.
    Refused,
    /// Cluster addresses of services.
    Addresses,
    /// Each pod behind a service, twice: it may reach itself.
    OwnPods,
    /// Frontends that not everybody may dial.
    Guarded,
    /// Frontend and who may dial it.
    Sources,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Services,
        Self::NodePorts,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::Refused,
        Self::Addresses,
        Self::OwnPods,
        Self::Guarded,
        Self::Sources,
    ];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "nodeports",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "np_endpoints",
            Self::Refused => "refused",
            Self::Addresses => "addresses",
            Self::OwnPods => "own_pods",
            Self::Guarded => "guarded",
            Self::Sources => "sources",
        }
    }

    /// Its head and type in nft's words.
    pub(super) fn definition(self, address: &str) -> (&'static str, String) {
        let service = format!("{address} . inet_proto . inet_service");
        match self {
            Self::Services => ("map", format!("{service} : verdict")),
            Self::NodePorts => ("map", "inet_proto . inet_service : verdict".to_owned()),
            Self::Endpoints => ("map", format!("{service} . mark : {address} . inet_service")),
            Self::NodePortEndpoints => {
                ("map", format!("inet_proto . inet_service . mark : {address} . inet_service"))
            }
            Self::Refused | Self::Guarded => ("set", service),
            Self::Addresses => ("set", address.to_owned()),
            Self::OwnPods => ("set", format!("{address} . {address}")),
            Self::Sources => ("set", format!("{service} . {address}\n        flags interval")),
        }
    }
}

/// The key of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A frontend.
    Frontend(Frontend),
    /// A frontend's slot.
    Slot(Frontend, u32),
    /// An address.
    Address(IpAddr),
    /// An address, twice.
    Twice(IpAddr),
    /// A frontend and whom it answers.
    Source(Frontend, IpNet),
}

impl Key {
    /// The table's family.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Frontend(frontend) | Self::Slot(frontend, _) | Self::Source(frontend, _) => {
                frontend.family()
            }
            Self::Address(address) | Self::Twice(address) => Family::of(*address),
        }
    }
}

/// What a map leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// Nothing: it is a set.
    None,
    /// The packet is dropped.
    Drop,
    /// The chain of this choice has it.
    Goto(Choice),
    /// An endpoint.
    Backend(Backend),
}

/// An element of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Where it is.
    pub set: Set,
    /// Its key.
    pub key: Key,
    /// What it leads to.
    pub data: Data,
}

struct Words<'a>(&'a Frontend);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Frontend::Address(address, transport, port) => {
                write!(f, "{address} . {transport} . {port}")
            }
            Frontend::NodePort(_, transport, port) => write!(f, "{transport} . {port}"),
        }
    }
}

/// As it stands in nft's scripts.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Key::Frontend(frontend) => write!(f, "{}", Words(frontend))?,
            Key::Slot(frontend, slot) => write!(f, "{} . {slot}", Words(frontend))?,
            Key::Address(address) => write!(f, "{address}")?,
            Key::Twice(address) => write!(f, "{address} . {address}")?,
            Key::Source(frontend, net) => write!(f, "{} . {net}", Words(frontend))?,
        }
        match &self.data {
            Data::None => Ok(()),
            Data::Drop => f.write_str(" : drop"),
            Data::Goto(choice) => write!(f, " : goto {}", chain_name(*choice)),
            Data::Backend(Backend { address, port }) => write!(f, " : {address} . {port}"),
        }
    }
}

/// The elements of a frontend.
pub(super) fn elements(
    frontend: Frontend,
    target: &Target,
    sources: Option<&[IpNet]>,
) -> Vec<Element> {
    let mut found = Vec::new();
    let mut add = |set, key, data| found.push(Element { set, key, data });
    let by_address = matches!(frontend, Frontend::Address(..));
    let (verdicts, endpoints) = if by_address {
        (Set::Services, Set::Endpoints)
    } else {
        (Set::NodePorts, Set::NodePortEndpoints)
    };
    match target {
        // A node port without endpoints is a port nobody listens on; the kernel says so.
        Target::Refused if !by_address => (),
        Target::Refused => add(Set::Refused, Key::Frontend(frontend), Data::None),
        Target::Dropped => add(verdicts, Key::Frontend(frontend), Data::Drop),
        Target::Balanced { choice, backends, local } => {
            add(verdicts, Key::Frontend(frontend), Data::Goto(*choice));
            for (first, list) in [(0, backends), (LOCAL_SLOTS, local)] {
                for (slot, backend) in (first..).zip(&**list) {
                    add(endpoints, Key::Slot(frontend, slot), Data::Backend(*backend));
                }
            }
        }
    }
    if let Some(sources) = sources {
        add(Set::Guarded, Key::Frontend(frontend), Data::None);
        for net in sources {
            add(Set::Sources, Key::Source(frontend, *net), Data::None);
        }
    }
    found
}

/// The choices whose chains a target needs.
pub(super) fn choices(target: &Target) -> impl Iterator<Item = Choice> {
    let choice = match target {
        Target::Balanced { choice, .. } => Some(*choice),
        Target::Refused | Target::Dropped => None,
    };
    choice.into_iter().chain(choice.and_then(insiders))
}

/// How pods and the node itself choose where outsiders meet local endpoints only.
pub(super) fn insiders(choice: Choice) -> Option<Choice> {
    let origin = match choice.origin {
        Origin::External => Origin::Cluster,
        Origin::NodePort => Origin::Inside,
        Origin::Cluster | Origin::Inside => return None,
    };
    match choice.reach {
        Reach::Local { all: all @ 1.., .. } => {
            Some(Choice { origin, reach: Reach::All(all), ..choice })
        }
        Reach::Local { .. } | Reach::All(_) => None,
    }
}
