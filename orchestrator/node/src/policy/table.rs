//! The tables' text: one table for each family of addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Direction, Members, Named, Peer, Policies, Ports, Role, Rule};

/// The tables' name, in the families `ip` and `ip6`. Only the enforcer of policies writes them.
pub const TABLE: &str = "muster-policies";

/// Renders the script that removes the tables, whether or not there are any.
#[must_use]
pub fn render_removal() -> String {
    let remove = |family: Family| {
        let family = family.word();
        format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n")
    };
    Family::BOTH.map(remove).concat()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    fn has_net(self, net: &IpNet) -> bool {
        self.has(&net.addr())
    }
}

/// What the kernel holds, and under which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    policies: Policies,
    v4: Option<Names>,
    v6: Option<Names>,
}

/// The numbers in the names of one table's chains and sets. Chains never change: one that would
/// be different is another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    next: u32,
    members: BTreeMap<Members, u32>,
    named: BTreeMap<Named, u32>,
    chains: BTreeMap<(Direction, Role), u32>,
}

impl Names {
    fn take(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
}

impl Loaded {
    /// Renders the script that puts these policies in the place of whatever was there, in one
    /// transaction, and what is loaded then.
    #[must_use]
    pub fn render_whole(policies: &Policies) -> (String, Self) {
        let nothing = Self { policies: Policies::default(), v4: None, v6: None };
        let (script, loaded) = nothing.render_change(policies);
        (render_removal() + &script, loaded)
    }

    /// Whether this is what is wanted.
    #[must_use]
    pub fn is(&self, policies: &Policies) -> bool {
        let old = &self.policies;
        old.ingress == policies.ingress
            && old.egress == policies.egress
            && old.members == policies.members
            && old.named == policies.named
    }

    /// Renders the script that makes the loaded tables enforce `policies`, in one transaction: no
    /// packet sees a half state. Empty when nothing changes.
    #[must_use]
    pub fn render_change(&self, policies: &Policies) -> (String, Self) {
        let mut text = String::new();
        let mut loaded = Self { policies: policies.clone(), ..self.clone() };
        for family in Family::BOTH {
            let names = match family {
                Family::V4 => &mut loaded.v4,
                Family::V6 => &mut loaded.v6,
            };
            let isolated = policies.ingress.keys().chain(policies.egress.keys());
            // The first family's table is there even when it isolates nobody: who looks whether
            // it is still there must find it.
            if names.is_none()
                && (family == Family::V4 || isolated.clone().any(|ip| family.has(ip)))
            {
                *names = Some(Names::default());
                text += &render_skeleton(family);
            }
            if let Some(names) = names {
                let change = Change { family, old: &self.policies, new: policies, names };
                text += &change.render();
            }
        }
        (text, loaded)
    }
}

fn render_skeleton(family: Family) -> String {
    let (ip, kind) = (family.word(), family.kind());
    format!(
        "table {ip} {TABLE} {{
    map ingress {{ type {kind} : verdict; }}
    map egress {{ type {kind} : verdict; }}
    set own {{ type {kind} . {kind}; }}
    chain forward {{
        type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept
        {ip} saddr . {ip} daddr @own accept
        {ip} saddr vmap @egress
        {ip} daddr vmap @ingress
    }}
}}
"
    )
}

/// From what is loaded to what is wanted, in one table.
struct Change<'a> {
    family: Family,
    old: &'a Policies,
    new: &'a Policies,
    names: &'a mut Names,
}

/// Parts of the script, in the order in which they may stand: sets before the rules that use
/// them, chains before the elements that jump there, and the other way round for what goes.
#[derive(Default)]
struct Parts {
    added: String,
    moved: String,
    removed_chains: String,
    removed_sets: String,
}

impl Change<'_> {
    fn render(mut self) -> String {
        let mut parts = Parts::default();
        self.sets(&mut parts);
        self.own(&mut parts);
        let (old, new) = (self.old, self.new);
        let mut kept = BTreeSet::new();
        for (direction, map, old, new) in [
            (Direction::Ingress, "ingress", &old.ingress, &new.ingress),
            (Direction::Egress, "egress", &old.egress, &new.egress),
        ] {
            let family = self.family;
            let changed = |one: &BTreeMap<IpAddr, Role>, other: &BTreeMap<IpAddr, Role>| {
                let ours = one.iter().filter(|(address, _)| family.has(address));
                let changed = ours.filter(|(address, role)| other.get(address) != Some(role));
                changed.map(|(address, _)| *address).collect::<Vec<_>>()
            };
            let gone = changed(old, new).into_iter().map(|address| address.to_string());
            parts.moved += &self.elements("delete", map, gone.collect());
            let mut come = Vec::new();
            for address in changed(new, old) {
                let Some(role) = new.get(&address) else { continue };
                let chain = self.chain(direction, role, &mut parts);
                come.push(format!("{address} : jump {chain}"));
            }
            parts.moved += &self.elements("add", map, come);
            let used = new.iter().filter(|(address, _)| family.has(address));
            kept.extend(used.map(|(_, role)| (direction, role.clone())));
        }
        self.forget(&kept, &mut parts);
        parts.added + &parts.moved + &parts.removed_chains + &parts.removed_sets
    }

    /// Makes sets, and puts in and takes out what changed.
    fn sets(&mut self, parts: &mut Parts) {
        let (ip, kind, family) = (self.family.word(), self.family.kind(), self.family);
        let (old, new) = (self.old, self.new);
        for (members, wanted) in &new.members {
            let known = self.names.members.get(members).copied();
            let number = known.unwrap_or_else(|| {
                let number = self.names.take();
                _ = writeln!(parts.added, "add set {ip} {TABLE} pods{number} {{ type {kind}; }}");
                self.names.members.insert(members.clone(), number);
                number
            });
            let words = |set: &BTreeSet<IpAddr>| -> BTreeSet<String> {
                set.iter().filter(|ip| family.has(ip)).map(ToString::to_string).collect()
            };
            let held = known.and_then(|_| old.members.get(members)).map(words);
            let held = held.unwrap_or_default();
            parts.added += &self.difference(&format!("pods{number}"), &held, &words(wanted));
        }
        for (named, wanted) in &new.named {
            let known = self.names.named.get(named).copied();
            let number = known.unwrap_or_else(|| {
                let number = self.names.take();
                let kind = format!("{kind} . inet_service");
                _ = writeln!(parts.added, "add set {ip} {TABLE} ports{number} {{ type {kind}; }}");
                self.names.named.insert(named.clone(), number);
                number
            });
            let words = |set: &BTreeSet<(IpAddr, u16)>| -> BTreeSet<String> {
                let ours = set.iter().filter(|(ip, _)| family.has(ip));
                ours.map(|(ip, port)| format!("{ip} . {port}")).collect()
            };
            let held = known.and_then(|_| old.named.get(named)).map(words).unwrap_or_default();
            parts.added += &self.difference(&format!("ports{number}"), &held, &words(wanted));
        }
    }

    /// Keeps the pairs by which a pod that speaks with itself is known.
    fn own(&self, parts: &mut Parts) {
        let words = |policies: &Policies| -> BTreeSet<String> {
            let isolated = policies.ingress.keys().chain(policies.egress.keys());
            let ours = isolated.filter(|ip| self.family.has(ip));
            ours.map(|ip| format!("{ip} . {ip}")).collect()
        };
        parts.moved += &self.difference("own", &words(self.old), &words(self.new));
    }

    fn difference(&self, set: &str, old: &BTreeSet<String>, new: &BTreeSet<String>) -> String {
        let words = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
            one.difference(other).cloned().collect::<Vec<_>>()
        };
        let removed = self.elements("delete", set, words(old, new));
        removed + &self.elements("add", set, words(new, old))
    }

    fn elements(&self, verb: &str, set: &str, elements: Vec<String>) -> String {
        if elements.is_empty() {
            return String::new();
        }
        let (ip, elements) = (self.family.word(), elements.join(", "));
        format!("{verb} element {ip} {TABLE} {set} {{ {elements} }}\n")
    }

    /// The name of a role's chain, which is made if need be.
    fn chain(&mut self, direction: Direction, role: &Role, parts: &mut Parts) -> String {
        let key = (direction, role.clone());
        if let Some(number) = self.names.chains.get(&key) {
            return chain_name(direction, *number);
        }
        let number = self.names.take();
        let (ip, name) = (self.family.word(), chain_name(direction, number));
        _ = writeln!(parts.added, "add chain {ip} {TABLE} {name}");
        for rule in role {
            if let Some(rule) = self.rule(direction, rule) {
                _ = writeln!(parts.added, "add rule {ip} {TABLE} {name} {rule}return");
            }
        }
        _ = writeln!(parts.added, "add rule {ip} {TABLE} {name} drop");
        self.names.chains.insert(key, number);
        name
    }

    /// What a packet must be for a rule to permit it, with a space at the end; `None` when the
    /// rule is about the other family.
    fn rule(&self, direction: Direction, rule: &Rule) -> Option<String> {
        let ip = self.family.word();
        let end = match direction {
            Direction::Ingress => "saddr",
            Direction::Egress => "daddr",
        };
        let mut text = match &rule.peer {
            Peer::Anyone => String::new(),
            Peer::Pods(members) => {
                format!("{ip} {end} @pods{} ", self.names.members.get(members)?)
            }
            Peer::Block { net, .. } if !self.family.has_net(net) => return None,
            Peer::Block { net, except } => {
                let mut text = format!("{ip} {end} {net} ");
                if !except.is_empty() {
                    let except: Vec<String> = except.iter().map(ToString::to_string).collect();
                    text += &format!("{ip} {end} != {{ {} }} ", except.join(", "));
                }
                text
            }
        };
        text += &match &rule.ports {
            Ports::All => String::new(),
            Ports::Of(transport) => format!("meta l4proto {transport} "),
            Ports::Ranges(transport, ranges) => {
                let range = |(first, last): &(u16, u16)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                };
                let ranges: Vec<String> = ranges.iter().map(range).collect();
                format!("{transport} dport {{ {} }} ", ranges.join(", "))
            }
            Ports::Named(named) => {
                let number = self.names.named.get(named)?;
                format!("{ip} daddr . {} dport @ports{number} ", named.transport)
            }
        };
        Some(text)
    }

    /// Removes chains and sets that nobody uses any more.
    fn forget(&mut self, kept: &BTreeSet<(Direction, Role)>, parts: &mut Parts) {
        let (ip, new) = (self.family.word(), self.new);
        self.names.chains.retain(|key, number| {
            let keep = kept.contains(key);
            if !keep {
                let name = chain_name(key.0, *number);
                let chain = format!("chain {ip} {TABLE} {name}");
                _ = writeln!(parts.removed_chains, "flush {chain}\ndelete {chain}");
            }
            keep
        });
        let mut remove = |set: &str, number: u32| {
            _ = writeln!(parts.removed_sets, "delete set {ip} {TABLE} {set}{number}");
        };
        self.names.members.retain(|members, number| {
            let keep = new.members.contains_key(members);
            if !keep {
                remove("pods", *number);
            }
            keep
        });
        self.names.named.retain(|named, number| {
            let keep = new.named.contains_key(named);
            if !keep {
                remove("ports", *number);
            }
            keep
        });
    }
}

fn chain_name(direction: Direction, number: u32) -> String {
    match direction {
        Direction::Ingress => format!("to{number}"),
        Direction::Egress => format!("from{number}"),
    }
}
