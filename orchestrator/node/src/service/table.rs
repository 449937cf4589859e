//! The tables' text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::element::{LOCAL_SLOTS, insiders};
use super::{Choice, Element, Family, Origin, Ranges, Reach, Set, Site};

/// The tables' name, in the families `ip` and `ip6`. Only the proxy writes them.
pub const TABLE: &str = "muster-services";

/// The map of who was sent to which slot, which the kernel fills by itself.
pub const STICKY: &str = "sticky";

/// Chains are made ahead for so many endpoints more, up to twice as many; a service that grows
/// then needs none in the moment it grows.
const SPARES_MAX: u32 = 64;

/// What a family is called in scripts.
struct Words {
    family: &'static str,
    address: &'static str,
    unreachable: &'static str,
    loopback: &'static str,
}

fn words(family: Family) -> Words {
    match family {
        Family::V4 => Words {
            family: "ip",
            address: "ipv4_addr",
            unreachable: "icmp",
            loopback: "127.0.0.0/8",
        },
        Family::V6 => {
            Words { family: "ip6", address: "ipv6_addr", unreachable: "icmpv6", loopback: "::1" }
        }
    }
}

/// A choice, and those that are made ahead with it.
pub(super) fn spares(choice: Choice) -> impl Iterator<Item = Choice> {
    let counts = match choice.reach {
        Reach::All(count) if count < SPARES_MAX => {
            Some(1..=count.saturating_add(1).next_power_of_two())
        }
        Reach::All(count) => {
            let near = SPARES_MAX / 8;
            Some(count.saturating_sub(near)..=count.saturating_add(near))
        }
        Reach::Local { .. } => None,
    };
    let counts = counts.into_iter().flatten();
    let more = counts.map(move |count| Choice { reach: Reach::All(count), ..choice });
    std::iter::once(choice).chain(more)
}

/// Renders a script that does something to each table, which it makes where there is none.
fn each(site: &Site, verb: &str) -> String {
    let families = Family::BOTH.into_iter().filter(|family| site.ranges(*family).is_some());
    let one = |family| {
        let ip = words(family).family;
        format!("add table {ip} {TABLE}\n{verb} table {ip} {TABLE}\n")
    };
    families.map(one).collect()
}

/// Removes the tables, whether or not they are there.
pub(super) fn render_removal(site: &Site) -> String {
    each(site, "delete")
}

/// Removes every rule of the tables, but no chain, set or element.
pub(super) fn render_flush(site: &Site) -> String {
    each(site, "flush")
}

/// Renders whole tables.
pub(super) fn render_tables(
    site: &Site,
    elements: Vec<Element>,
    chains: &BTreeSet<(Family, Choice)>,
) -> String {
    let mut sets: BTreeMap<(Family, Set), Vec<Element>> = BTreeMap::new();
    for element in elements {
        sets.entry((element.key.family(), element.set)).or_default().push(element);
    }
    let mut text = String::new();
    for family in Family::BOTH {
        let Some(ranges) = site.ranges(family) else { continue };
        let Words { family: ip, address, .. } = words(family);
        _ = writeln!(text, "table {ip} {TABLE} {{");
        for set in Set::ALL {
            let mut held = sets.remove(&(family, set)).unwrap_or_default();
            held.sort_unstable();
            let (word, kind) = set.definition(address);
            _ = writeln!(text, "    {word} {} {{\n        type {kind}", set.name());
            // nft knows no empty list of elements.
            if !held.is_empty() {
                text += "        elements = {\n";
                for element in held {
                    _ = writeln!(text, "            {element},");
                }
                text += "        }\n";
            }
            text += "    }\n";
        }
        text += &structure(family, ranges);
        for (_, choice) in chains.iter().filter(|(of, _)| *of == family) {
            text += &render_chain(family, ranges, *choice);
        }
        text += &hooks(family, ranges);
    }
    text
}

/// Renders chains that are missing.
pub(super) fn render_chains(site: &Site, chains: &BTreeSet<(Family, Choice)>) -> String {
    let mut text = String::new();
    for family in Family::BOTH {
        let mut own = chains.iter().filter(|(of, _)| *of == family).peekable();
        let Some(ranges) = site.ranges(family).filter(|_| own.peek().is_some()) else { continue };
        _ = writeln!(text, "table {} {TABLE} {{", words(family).family);
        for (_, choice) in own {
            text += &render_chain(family, ranges, *choice);
        }
        text += "}\n";
    }
    text
}

/// The chains that choices end in, and who was sent to which slot. Full, it remembers no further
/// client.
fn structure(family: Family, ranges: &Ranges) -> String {
    let Words { family: ip, address, .. } = words(family);
    let pods = ranges.pods;
    format!(
        "    map {STICKY} {{
        type {address} . {address} . inet_proto . inet_service : mark
        size 65535
        flags dynamic,timeout
    }}
    chain pick {{
        meta l4proto {{ tcp, udp, sctp }} dnat {ip} addr . port to {ip} daddr . meta l4proto . th dport . meta mark map @endpoints
    }}
    chain np_pick {{
        meta l4proto {{ tcp, udp, sctp }} dnat {ip} addr . port to meta l4proto . th dport . meta mark map @np_endpoints
    }}
    chain outside {{ {ip} saddr != {pods} ct mark set ct mark or 0x4000; }}
"
    )
}

/// The name of the chain that all frontends with this choice share.
#[must_use]
pub fn chain_name(choice: Choice) -> String {
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
fn render_chain(family: Family, ranges: &Ranges, choice: Choice) -> String {
    let ip = words(family).family;
    let mut text = format!("    chain {} {{\n", chain_name(choice));
    let pick = match choice.origin {
        Origin::Cluster | Origin::External => "goto pick",
        Origin::NodePort | Origin::Inside => "goto np_pick",
    };
    if let Some(insiders) = insiders(choice) {
        // Outsiders keep their address: the answer leaves by this node anyway. Pods that use an
        // external address or a node port are not bound to this node, nor is the node itself.
        let (pods, insiders) = (ranges.pods, chain_name(insiders));
        text += &format!("        {ip} saddr {pods} goto {insiders}\n");
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
    let client = format!("{ip} saddr . {ip} daddr . meta l4proto . th dport");
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

/// The chains that leave questions to this node's own name server, and its answers, out of the
/// kernel's table of connections: they would fill it, and two questions from one socket at once
/// are known to lose one of them there. With endpoints of its own the name server's service is one
/// as others are.
fn untracked(ip: &str, dns: IpAddr) -> String {
    format!(
        "    chain question {{ {ip} daddr {dns} {ip} daddr . meta l4proto . th dport @refused notrack; }}
    chain answer {{ {ip} saddr {dns} {ip} saddr . meta l4proto . th sport @refused notrack; }}
    chain quiet {{ type filter hook prerouting priority raw; jump question; jump answer; }}
    chain quiet_local {{ type filter hook output priority raw; jump question; jump answer; }}
"
    )
}

/// The chains that the kernel calls.
fn hooks(family: Family, ranges: &Ranges) -> String {
    let Words { family: ip, unreachable, loopback, .. } = words(family);
    let services = ranges.services;
    // Cluster DNS is this node: without endpoints of its own it is neither refused nor dropped.
    let dns = ranges.dns.map(|dns| format!("\n        {ip} daddr {dns} return"));
    let dns = dns.unwrap_or_default();
    let quiet = ranges.dns.map(|dns| untracked(ip, dns)).unwrap_or_default();
    quiet + &format!(
        "    chain route_services {{
        {ip} daddr . meta l4proto . th dport @guarded {ip} daddr . meta l4proto . th dport . {ip} saddr != @sources drop
        {ip} daddr . meta l4proto . th dport vmap @services
        {ip} daddr != {loopback} fib daddr type local meta l4proto . th dport vmap @nodeports
    }}
    chain pre {{ type nat hook prerouting priority dstnat; jump route_services; }}
    chain out {{ type nat hook output priority -100; jump route_services; }}
    chain post {{
        type nat hook postrouting priority srcnat;
        ct status dnat {ip} saddr . {ip} daddr @own_pods masquerade
        ct mark and 0x4000 == 0x4000 masquerade fully-random
    }}
    chain unmark {{ type filter hook prerouting priority -99; ct status dnat meta mark set 0; }}
    chain refuse {{
        meta l4proto tcp reject with tcp reset
        reject with {unreachable} port-unreachable
    }}
    chain check {{
        ct state != new return{dns}
        {ip} daddr . meta l4proto . th dport @refused goto refuse
        {ip} daddr @addresses meta l4proto {{ tcp, udp, sctp }} goto refuse
        {ip} daddr {services} drop comment \"no such service: would loop to the ToR\"
    }}
    chain guard {{ type filter hook forward priority filter; jump check; }}
    chain guard_local {{ type filter hook output priority filter; jump check; }}
}}
"
    )
}
