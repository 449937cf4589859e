//! The table's text.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Backend, Choice, Frontend, LOCAL_SLOTS, Origin, Reach, Services, Site, Target};

/// The table's name; family `ip`. Only the proxy writes it.
pub const TABLE: &str = "muster-services";

/// Renders the script that puts the whole table in the place of the one before, in one
/// transaction: no packet sees a half state.
#[must_use]
pub fn render_table(site: &Site, services: &Services) -> String {
    let elements = Elements::of(services);
    let mut text = format!("add table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n");
    text +=
        &map("map services", "ipv4_addr . inet_proto . inet_service : verdict", elements.services);
    text += &map("map nodeports", "inet_proto . inet_service : verdict", elements.node_ports);
    text += &map(
        "map endpoints",
        "ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service",
        elements.endpoints,
    );
    text += &map(
        "map np_endpoints",
        "inet_proto . inet_service . mark : ipv4_addr . inet_service",
        elements.node_port_endpoints,
    );
    text += &map("set refused", "ipv4_addr . inet_proto . inet_service", elements.refused);
    let addresses = services.cluster_addresses.iter().map(ToString::to_string).collect();
    text += &map("set addresses", "ipv4_addr", addresses);
    text += &map("set own_pods", "ipv4_addr . ipv4_addr", elements.hairpins);
    let (guarded, sources) = guards(&services.guarded);
    text += &map("set guarded", "ipv4_addr . inet_proto . inet_service", guarded);
    let kind = "ipv4_addr . inet_proto . inet_service . ipv4_addr\n        flags interval";
    text += &map("set sources", kind, sources);
    text += STICKY;
    text += "    chain pick {
        meta l4proto { tcp, udp, sctp } dnat ip addr . port to ip daddr . meta l4proto . th dport . meta mark map @endpoints
    }
    chain np_pick {
        meta l4proto { tcp, udp, sctp } dnat ip addr . port to meta l4proto . th dport . meta mark map @np_endpoints
    }
";
    text += &format!(
        "    chain outside {{ ip saddr != {} ct mark set ct mark or 0x4000; }}\n",
        site.pods
    );
    for choice in elements.choices {
        text += &render_chain(site, choice);
    }
    text + &hooks(site)
}

/// Who was sent to which slot. Full, it remembers no further client.
const STICKY: &str = "    map sticky {
        type ipv4_addr . ipv4_addr . inet_proto . inet_service : mark
        size 65535
        flags dynamic,timeout
    }
";

/// External addresses that not everybody may dial, and who may: elements of two sets.
fn guards(guarded: &BTreeMap<Frontend, Vec<Ipv4Net>>) -> (Vec<String>, Vec<String>) {
    let keys = guarded.keys().map(key).collect();
    let sources = guarded.iter().flat_map(|(frontend, nets)| {
        nets.iter().map(move |net| format!("{} . {net}", key(frontend)))
    });
    (keys, sources.collect())
}

/// A frontend as it stands in maps.
fn key(frontend: &Frontend) -> String {
    match frontend {
        Frontend::Address(address, transport, port) => format!("{address} . {transport} . {port}"),
        Frontend::NodePort(transport, port) => format!("{transport} . {port}"),
    }
}

/// What the kernel holds: the services it was told of, and every chain it was given since the
/// whole table was loaded. A chain that nobody uses any more stays: it costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    site: Site,
    services: Services,
    chains: BTreeSet<Choice>,
}

impl Loaded {
    /// What [`render_table`] loads.
    #[must_use]
    pub fn whole(site: Site, services: Services) -> Self {
        let chains = Elements::of(&services).choices;
        Self { site, services, chains }
    }

    /// Whether this is what is wanted.
    #[must_use]
    pub fn is(&self, site: &Site, services: &Services) -> bool {
        let services = self.aligned(services);
        self.site == *site
            && self.services.frontends == services.frontends
            && self.services.guarded == services.guarded
            && self.services.cluster_addresses == services.cluster_addresses
    }

    /// Renders the script that makes the loaded table serve `services`, element by element and in
    /// one transaction, and what is loaded then. `None` when the whole table must be loaded:
    /// rules would change.
    #[must_use]
    pub fn render_change(&self, site: &Site, services: &Services) -> Option<(String, Self)> {
        if self.site != *site {
            return None;
        }
        let services: &Services = &self.aligned(services);
        let differs = |one: &Services, other: &Services| {
            let frontends = one.frontends.iter();
            let changed =
                frontends.filter(|(key, target)| other.frontends.get(key) != Some(target));
            Elements::of_frontends(changed)
        };
        let (old, new) = (differs(&self.services, services), differs(services, &self.services));
        let addresses = |services: &Services| services.cluster_addresses.clone();
        let addresses = (addresses(&self.services), addresses(services));
        let hairpins = (pods(&self.services), pods(services));
        let words = |set: &BTreeSet<Ipv4Addr>, other: &BTreeSet<Ipv4Addr>| {
            set.difference(other).map(ToString::to_string).collect::<Vec<_>>()
        };
        let pairs = |set: &BTreeSet<Ipv4Addr>, other: &BTreeSet<Ipv4Addr>| {
            set.difference(other).map(|pod| format!("{pod} . {pod}")).collect::<Vec<_>>()
        };
        let (old_guards, new_guards) = (guards(&self.services.guarded), guards(&services.guarded));
        let mut chains = self.chains.clone();
        let mut text = String::new();
        for choice in new.choices.iter().filter(|choice| !self.chains.contains(choice)) {
            text += &format!("table ip {TABLE} {{\n{}}}\n", render_chain(site, *choice));
            chains.insert(*choice);
        }
        let mut removed = String::new();
        let mut added = String::new();
        let (own, next) = (&addresses.0, &addresses.1);
        for (name, old, new) in [
            ("services", old.services, new.services),
            ("nodeports", old.node_ports, new.node_ports),
            ("endpoints", old.endpoints, new.endpoints),
            ("np_endpoints", old.node_port_endpoints, new.node_port_endpoints),
            ("refused", old.refused, new.refused),
            ("addresses", words(own, next), words(next, own)),
            ("own_pods", pairs(&hairpins.0, &hairpins.1), pairs(&hairpins.1, &hairpins.0)),
            ("guarded", old_guards.0, new_guards.0),
            ("sources", old_guards.1, new_guards.1),
        ] {
            let (old, new): (BTreeSet<_>, BTreeSet<_>) =
                (old.into_iter().collect(), new.into_iter().collect());
            // Of a map's element the key is enough to remove it.
            let keys = old.difference(&new).map(|one| one.split(" : ").next().unwrap_or(one));
            removed += &render_elements("delete", name, keys);
            added += &render_elements("add", name, new.difference(&old).map(String::as_str));
        }
        let loaded = Self { site: site.clone(), services: services.clone(), chains };
        Some((text + &removed + &added, loaded))
    }
}

impl Loaded {
    /// The same services with endpoints in the slots they have already, where clients are
    /// remembered by slot.
    fn aligned<'a>(&self, services: &'a Services) -> Cow<'a, Services> {
        let mut moved = Vec::new();
        for (frontend, target) in &services.frontends {
            let Target::Balanced { choice, backends, local } = target else { continue };
            let Some(Target::Balanced { choice: was, backends: old, local: old_local }) =
                self.services.frontends.get(frontend)
            else {
                continue;
            };
            if choice.affinity.is_some() && was.affinity.is_some() {
                let (backends, local) = (keep_slots(old, backends), keep_slots(old_local, local));
                moved.push((*frontend, Target::Balanced { choice: *choice, backends, local }));
            }
        }
        if moved.is_empty() {
            return Cow::Borrowed(services);
        }
        let mut services = services.clone();
        services.frontends.extend(moved);
        Cow::Owned(services)
    }
}

/// Orders `new` so that what is in `old`, too, keeps its place; newcomers take the places that
/// became free, and when places stay free the last ones move there.
fn keep_slots(old: &[Backend], new: &[Backend]) -> Vec<Backend> {
    let mut newcomers = new.iter().filter(|one| !old.contains(one)).copied();
    let place = |one: &Backend| if new.contains(one) { Some(*one) } else { newcomers.next() };
    let mut slots: Vec<Option<Backend>> = old.iter().map(place).collect();
    slots.extend(newcomers.map(Some));
    let mut kept = Vec::new();
    let mut at = 0;
    while at < slots.len() {
        match slots.get(at).copied().flatten() {
            Some(backend) => {
                kept.push(backend);
                at += 1;
            }
            None => _ = slots.swap_remove(at),
        }
    }
    kept
}

fn render_elements<'a>(verb: &str, set: &str, elements: impl Iterator<Item = &'a str>) -> String {
    let elements: Vec<&str> = elements.collect();
    if elements.is_empty() {
        return String::new();
    }
    format!("{verb} element ip {TABLE} {set} {{ {} }}\n", elements.join(", "))
}

/// Every pod behind a service.
fn pods(services: &Services) -> BTreeSet<Ipv4Addr> {
    let targets = services.frontends.values();
    let backends = targets.flat_map(|target| match target {
        Target::Balanced { backends, local, .. } => backends.iter().chain(local),
        Target::Refused | Target::Dropped => [].iter().chain(&[]),
    });
    backends.map(|backend| backend.address).collect()
}

/// What the maps and sets hold.
#[derive(Default)]
struct Elements {
    services: Vec<String>,
    node_ports: Vec<String>,
    endpoints: Vec<String>,
    node_port_endpoints: Vec<String>,
    refused: Vec<String>,
    hairpins: Vec<String>,
    choices: BTreeSet<Choice>,
}

impl Elements {
    fn of(services: &Services) -> Self {
        let mut elements = Self::of_frontends(services.frontends.iter());
        // A pod that reaches itself by its service must see another address than its own.
        elements.hairpins = pods(services).iter().map(|pod| format!("{pod} . {pod}")).collect();
        elements
    }

    fn of_frontends<'a>(frontends: impl Iterator<Item = (&'a Frontend, &'a Target)>) -> Self {
        let mut elements = Self::default();
        for (frontend, target) in frontends {
            elements.add(frontend, target);
        }
        elements
    }

    fn add(&mut self, frontend: &Frontend, target: &Target) {
        let key = key(frontend);
        let (verdicts, endpoints) = match frontend {
            Frontend::Address(..) => (&mut self.services, &mut self.endpoints),
            Frontend::NodePort(..) => (&mut self.node_ports, &mut self.node_port_endpoints),
        };
        match target {
            // A node port without endpoints is a port nobody listens on; the kernel says so.
            Target::Refused if matches!(frontend, Frontend::NodePort(..)) => (),
            Target::Refused => self.refused.push(key),
            Target::Dropped => verdicts.push(format!("{key} : drop")),
            Target::Balanced { choice, backends, local } => {
                verdicts.push(format!("{key} : goto {}", chain_name(*choice)));
                endpoints.extend(slots(&key, 0, backends));
                endpoints.extend(slots(&key, LOCAL_SLOTS, local));
                self.choices.insert(*choice);
                self.choices.extend(insiders(*choice));
            }
        }
    }
}

fn slots<'a>(
    key: &'a str,
    first: u32,
    backends: &'a [Backend],
) -> impl Iterator<Item = String> + 'a {
    (first..).zip(backends).map(move |(slot, Backend { address, port })| {
        format!("{key} . {slot} : {address} . {port}")
    })
}

/// Renders a map or set; nft knows no empty list of elements.
fn map(head: &str, kind: &str, elements: Vec<String>) -> String {
    let mut text = format!("    {head} {{\n        type {kind}\n");
    if !elements.is_empty() {
        text += "        elements = {\n";
        for element in elements {
            text += &format!("            {element},\n");
        }
        text += "        }\n";
    }
    text + "    }\n"
}

/// How pods and the node itself choose where outsiders meet local endpoints only.
fn insiders(choice: Choice) -> Option<Choice> {
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

fn chain_name(choice: Choice) -> String {
    let origin = match choice.origin {
        Origin::Cluster => "lb",
        Origin::External => "ext",
        Origin::Inside => "in",
        Origin::NodePort => "np",
    };
    let sticky = choice.affinity.map(|seconds| format!("_sticky{seconds}")).unwrap_or_default();
    match choice.reach {
        Reach::All(all) => format!("{origin}{sticky}_{all}"),
        Reach::Local { local, all } => format!("{origin}{sticky}_{local}of{all}"),
    }
}

/// Renders the chain that all frontends with this choice share.
fn render_chain(site: &Site, choice: Choice) -> String {
    let mut text = format!("    chain {} {{\n", chain_name(choice));
    let pick = match choice.origin {
        Origin::Cluster | Origin::External => "goto pick",
        Origin::NodePort | Origin::Inside => "goto np_pick",
    };
    if let Some(insiders) = insiders(choice) {
        // Outsiders keep their address: the answer leaves by this node anyway. Pods that use an
        // external address or a node port are not bound to this node, nor is the node itself.
        let (pods, insiders) = (site.pods, chain_name(insiders));
        text += &format!("        ip saddr {pods} goto {insiders}\n");
        text += &format!("        fib saddr type local goto {insiders}\n");
    }
    let (first, count) = match choice.reach {
        Reach::All(all) => (0, all),
        Reach::Local { local, .. } => (LOCAL_SLOTS, local),
    };
    if count == 0 {
        return text + "        drop\n    }\n";
    }
    text += match (choice.origin, choice.reach) {
        (Origin::Cluster | Origin::Inside, _) => "        jump outside\n",
        (_, Reach::All(_)) => "        ct mark set ct mark or 0x4000\n",
        (_, Reach::Local { .. }) => "",
    };
    let offset = if first == 0 { String::new() } else { format!(" offset {first}") };
    let spread = format!("numgen random mod {count}{offset}");
    let Some(seconds) = choice.affinity else {
        return text + &format!("        meta mark set {spread}\n        {pick}\n    }}\n");
    };
    let client = "ip saddr . ip daddr . meta l4proto . th dport";
    let last = first.saturating_add(count).saturating_sub(1);
    let slots = if first == last { first.to_string() } else { format!("{first}-{last}") };
    // Nobody has so many slots: who is not remembered chooses, and so does whose slot is gone.
    text += "        meta mark set 0xffffffff\n";
    text += &format!("        meta mark set {client} map @sticky\n");
    // An update alone would leave the old slot where it is.
    text += &format!("        meta mark != {slots} delete @sticky {{ {client} : meta mark }}\n");
    text += &format!("        meta mark != {slots} meta mark set {spread}\n");
    text += &format!("        update @sticky {{ {client} timeout {seconds}s : meta mark }}\n");
    text + &format!("        {pick}\n    }}\n")
}

/// The chains that the kernel calls.
fn hooks(site: &Site) -> String {
    let services = site.services;
    // Cluster DNS is this node: without endpoints of its own it is neither refused nor dropped.
    let dns = site.dns.map(|dns| format!("\n        ip daddr {dns} return")).unwrap_or_default();
    format!(
        "    chain route_services {{
        ip daddr . meta l4proto . th dport @guarded ip daddr . meta l4proto . th dport . ip saddr != @sources drop
        ip daddr . meta l4proto . th dport vmap @services
        ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @nodeports
    }}
    chain pre {{ type nat hook prerouting priority dstnat; jump route_services; }}
    chain out {{ type nat hook output priority -100; jump route_services; }}
    chain post {{
        type nat hook postrouting priority srcnat;
        ct status dnat ip saddr . ip daddr @own_pods masquerade
        ct mark and 0x4000 == 0x4000 masquerade fully-random
    }}
    chain unmark {{ type filter hook prerouting priority -99; ct status dnat meta mark set 0; }}
    chain refuse {{
        meta l4proto tcp reject with tcp reset
        reject with icmp port-unreachable
    }}
    chain check {{
        ct state != new return{dns}
        ip daddr . meta l4proto . th dport @refused goto refuse
        ip daddr @addresses meta l4proto {{ tcp, udp, sctp }} goto refuse
        ip daddr {services} drop comment \"no such service: would loop to the ToR\"
    }}
    chain guard {{ type filter hook forward priority filter; jump check; }}
    chain guard_local {{ type filter hook output priority filter; jump check; }}
}}
"
    )
}

/// The number of chains besides the fixed ones, for tests: it must not grow with services.
#[cfg(test)]
pub(super) fn chains(services: &Services) -> usize {
    Elements::of(services).choices.len()
}

/// Every slot that a choice may yield has an endpoint; for tests.
#[cfg(test)]
pub(super) fn slots_of(services: &Services) -> std::collections::BTreeMap<String, usize> {
    let mut counts = std::collections::BTreeMap::new();
    let elements = Elements::of(services);
    for element in elements.endpoints.iter().chain(&elements.node_port_endpoints) {
        let key = element.rsplit_once(" : ").map_or("", |(key, _)| key);
        let frontend = key.rsplit_once(" . ").map_or("", |(frontend, _)| frontend);
        *counts.entry(frontend.to_owned()).or_default() += 1;
    }
    counts
}
