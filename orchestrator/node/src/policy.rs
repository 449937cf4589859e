//! Network policies as sets of addresses and lists of permissions.
//!
//! A pod of this node that a policy selects is isolated in the directions the policy speaks of;
//! then it may speak with whom the policies that select it permit, all taken together. Pods
//! selected by the same policies have the same *role* and share one chain; the pods that a
//! policy names as peers are a set, shared by all rules that name them so. A pod that comes, goes
//! or changes its labels changes elements of sets, no rules ([`Loaded::render_change`]).
//!
//! Never stopped: answers of connections that were allowed, a pod's packets to itself, and what
//! passes between a pod and its own node (probes, cluster DNS), which takes another road through
//! the kernel. Pods on the host's network are neither isolated nor peers: they have no address.
//!
//! Spec: NetworkPolicy of networking.k8s.io/v1.
//!
//! *Limits*: a connection that was allowed stays when a policy forbids it later, as upstream
//! leaves open. A pod is isolated as soon as its address is told, not before it starts. Addresses
//! are believed: what a pod sends in another's name is the pod network's matter.

mod facts;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use objects::int_or_string::IntOrString;
use objects::network::{IpBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use objects::{LabelSelector, Selector};

pub use facts::{Guest, GuestPort, Labels, Room};
pub use table::{Loaded, TABLE, render_removal};

use crate::service::Transport;

/// All policies as one node enforces them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// Whom each isolated address of this node may hear from.
    pub ingress: BTreeMap<IpAddr, Role>,
    /// Whom each isolated address of this node may speak to.
    pub egress: BTreeMap<IpAddr, Role>,
    /// The addresses of pods that rules name.
    pub members: BTreeMap<Members, BTreeSet<IpAddr>>,
    /// The ports of pods that rules name by a name.
    pub named: BTreeMap<Named, BTreeSet<(IpAddr, u16)>>,
    /// What could not be understood, and so permits nothing.
    pub skipped: BTreeSet<Skipped>,
}

/// What is permitted; everything else is not.
pub type Role = BTreeSet<Rule>;

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The other end.
    pub peer: Peer,
    /// The ports of the end that is spoken to.
    pub ports: Ports,
}

/// The other end of a permission.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Whoever it is.
    Anyone,
    /// Some pods.
    Pods(Members),
    /// A block of addresses.
    Block {
        /// The block.
        net: IpNet,
        /// Blocks inside that are not meant; none overlaps another.
        except: Vec<IpNet>,
    },
}

/// Which pods are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Members {
    /// Their namespaces.
    pub rooms: Rooms,
    /// Their labels.
    pub pods: Selector,
}

/// Which namespaces are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rooms {
    /// The one of this name.
    One(String),
    /// Those with such labels.
    Selected(Selector),
}

/// Which ports are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// Every protocol, also those without ports.
    All,
    /// Every port of a protocol.
    Of(Transport),
    /// These ranges, first and last; sorted, none touching another.
    Ranges(Transport, Vec<(u16, u16)>),
    /// The port that the spoken-to pod calls so.
    Named(Named),
}

/// A port by its name in the pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Its protocol.
    pub transport: Transport,
    /// Its name.
    pub name: String,
}

/// A part of a policy that permits nothing because it makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// Why, for people.
    pub reason: String,
}

/// Plans what this node lets its pods say and hear.
///
/// Total: a part that makes no sense permits nothing and is told in `skipped`; an isolated pod
/// stays isolated. The order of the arguments is irrelevant. A namespace that is not known has no
/// labels.
#[must_use]
pub fn plan_policies<'a>(
    node: &str,
    policies: impl IntoIterator<Item = &'a NetworkPolicy>,
    pods: impl IntoIterator<Item = &'a Guest>,
    rooms: impl IntoIterator<Item = &'a Room>,
) -> Policies {
    let pods: Vec<&Guest> = pods.into_iter().filter(|pod| !pod.addresses.is_empty()).collect();
    let own: Vec<&Guest> = pods.iter().copied().filter(|pod| *pod.node == *node).collect();
    let mut planned = Policies::default();
    for policy in policies {
        let namespace = policy.metadata.namespace.as_str();
        let mut here = own.iter().filter(|pod| &*pod.namespace == namespace).peekable();
        // Most policies of a cluster are about pods of other nodes.
        if here.peek().is_none() {
            continue;
        }
        let mut reader = Reader { policy, skipped: &mut planned.skipped };
        let Some(selector) = reader.selector(&policy.spec.pod_selector) else { continue };
        let mut selected = here.filter(|pod| pod.labels.are(&selector)).peekable();
        if selected.peek().is_none() {
            continue;
        }
        let (ingress, egress) = (reader.ingress(), reader.egress());
        for address in selected.flat_map(|pod| &pod.addresses) {
            for (roles, rules) in [(&mut planned.ingress, &ingress), (&mut planned.egress, &egress)]
            {
                if let Some(rules) = rules {
                    roles.entry(*address).or_default().extend(rules.iter().cloned());
                }
            }
        }
    }
    let rooms: BTreeMap<&str, &Labels> =
        rooms.into_iter().map(|room| (&*room.name, &room.labels)).collect();
    planned.gather(&pods, &rooms);
    planned
}

impl Policies {
    /// Finds the pods and ports that the rules name.
    fn gather(&mut self, pods: &[&Guest], rooms: &BTreeMap<&str, &Labels>) {
        let roles = self.ingress.values().chain(self.egress.values());
        for rule in roles.flatten() {
            if let Peer::Pods(members) = &rule.peer {
                self.members.entry(members.clone()).or_default();
            }
            if let Ports::Named(named) = &rule.ports {
                self.named.entry(named.clone()).or_default();
            }
        }
        let unlabelled = Labels::default();
        for (members, found) in &mut self.members {
            let selected: Option<BTreeSet<&str>> = match &members.rooms {
                Rooms::One(_) => None,
                Rooms::Selected(selector) => {
                    let known = rooms.iter().filter(|(_, labels)| labels.are(selector));
                    Some(known.map(|(name, _)| *name).collect())
                }
            };
            let inside = |pod: &Guest| match (&members.rooms, &selected) {
                (Rooms::One(name), _) => *pod.namespace == **name,
                (Rooms::Selected(_), Some(names)) if rooms.contains_key(&*pod.namespace) => {
                    names.contains(&*pod.namespace)
                }
                (Rooms::Selected(selector), _) => unlabelled.are(selector),
            };
            let meant = pods.iter().filter(|pod| inside(pod) && pod.labels.are(&members.pods));
            found.extend(meant.flat_map(|pod| pod.addresses.iter().copied()));
        }
        for (named, found) in &mut self.named {
            for pod in pods {
                let ports = pod.ports.iter().filter(|port| {
                    *port.name == *named.name
                        && Transport::parse(&port.protocol) == Some(named.transport)
                });
                for port in ports {
                    found.extend(pod.addresses.iter().map(|address| (*address, port.number)));
                }
            }
        }
    }
}

/// Which end of a connection is a rule's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

/// Reads one policy.
struct Reader<'a> {
    policy: &'a NetworkPolicy,
    skipped: &'a mut BTreeSet<Skipped>,
}

impl Reader<'_> {
    /// `None` when the policy says nothing about what its pods hear.
    fn ingress(&mut self) -> Option<Vec<Rule>> {
        let spec = &self.policy.spec;
        let meant =
            spec.policy_types.is_empty() || spec.policy_types.iter().any(|kind| kind == "Ingress");
        meant.then(|| self.rules(Direction::Ingress))
    }

    /// `None` when the policy says nothing about what its pods say.
    fn egress(&mut self) -> Option<Vec<Rule>> {
        let spec = &self.policy.spec;
        let meant = if spec.policy_types.is_empty() {
            !spec.egress.is_empty()
        } else {
            spec.policy_types.iter().any(|kind| kind == "Egress")
        };
        meant.then(|| self.rules(Direction::Egress))
    }

    fn rules(&mut self, direction: Direction) -> Vec<Rule> {
        let spec = &self.policy.spec;
        let rules = match direction {
            Direction::Ingress => &spec.ingress,
            Direction::Egress => &spec.egress,
        };
        let mut found = Vec::new();
        for rule in rules {
            let peers = match direction {
                Direction::Ingress => &rule.from,
                Direction::Egress => &rule.to,
            };
            let peers: Vec<Peer> = if peers.is_empty() {
                vec![Peer::Anyone]
            } else {
                peers.iter().filter_map(|peer| self.peer(peer)).collect()
            };
            let ports = self.ports(&rule.ports);
            for peer in peers {
                let each = ports.iter().cloned();
                found.extend(each.map(|ports| Rule { peer: peer.clone(), ports }));
            }
        }
        found
    }

    fn peer(&mut self, peer: &NetworkPolicyPeer) -> Option<Peer> {
        if let Some(block) = &peer.ip_block {
            return self.block(block);
        }
        let rooms = match &peer.namespace_selector {
            Some(selector) => Rooms::Selected(self.selector(selector)?),
            None => Rooms::One(self.policy.metadata.namespace.clone()),
        };
        let pods = match &peer.pod_selector {
            Some(selector) => self.selector(selector)?,
            None if peer.namespace_selector.is_some() => Selector::default(),
            None => {
                self.skip("a peer says neither pods nor addresses".to_owned());
                return None;
            }
        };
        Some(Peer::Pods(Members { rooms, pods }))
    }

    fn block(&mut self, block: &IpBlock) -> Option<Peer> {
        let net = self.net(&block.cidr)?;
        let mut except = Vec::new();
        for text in &block.except {
            // What is taken out must be known, or too much would be let in.
            except.push(self.net(text)?);
        }
        // Of the other family, or around the whole block.
        except.retain(|inner| net.contains(inner) || inner.contains(&net));
        if except.iter().any(|inner| inner.contains(&net)) {
            return None;
        }
        Some(Peer::Block { net, except: IpNet::aggregate(&except) })
    }

    fn net(&mut self, text: &str) -> Option<IpNet> {
        let net = text.parse::<IpNet>().ok();
        if net.is_none() {
            self.skip(format!("{text} is no block of addresses"));
        }
        net.map(|net| net.trunc())
    }

    fn ports(&mut self, ports: &[NetworkPolicyPort]) -> BTreeSet<Ports> {
        if ports.is_empty() {
            return [Ports::All].into();
        }
        let mut found = BTreeSet::new();
        let mut ranges: BTreeMap<Transport, BTreeSet<(u16, u16)>> = BTreeMap::new();
        for port in ports {
            let Some(transport) = Transport::parse(&port.protocol) else {
                self.skip(format!("protocol {} is unknown", port.protocol));
                continue;
            };
            match &port.port {
                None => drop(found.insert(Ports::Of(transport))),
                Some(IntOrString::String(name)) => {
                    found.insert(Ports::Named(Named { transport, name: name.clone() }));
                }
                Some(IntOrString::Int(first)) => {
                    let last = port.end_port.unwrap_or(*first);
                    match (u16::try_from(*first), u16::try_from(last)) {
                        (Ok(first), Ok(last)) if first <= last => {
                            ranges.entry(transport).or_default().insert((first, last));
                        }
                        _ => self.skip(format!("ports {first} to {last} are none")),
                    }
                }
            }
        }
        for (transport, ranges) in ranges {
            if !found.contains(&Ports::Of(transport)) {
                found.insert(Ports::Ranges(transport, join_ranges(ranges)));
            }
        }
        found
    }

    fn selector(&mut self, selector: &LabelSelector) -> Option<Selector> {
        let compiled = selector.compile();
        if compiled.is_none() {
            self.skip("a selector has an unknown operator".to_owned());
        }
        compiled
    }

    fn skip(&mut self, reason: String) {
        self.skipped.insert(Skipped { policy: self.policy.metadata.key(), reason });
    }
}

/// Makes one range of those that touch or overlap.
fn join_ranges(ranges: BTreeSet<(u16, u16)>) -> Vec<(u16, u16)> {
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
