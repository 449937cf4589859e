//! A ToR router's side in words, for routers that neither BIRD nor FRR runs on.

use cluster::plan::{Numbering, RackRouting, Role};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::intent::Origin;
use crate::tor::TorIntent;
use crate::words::Pattern;

/// Renders what has to be set up, in the order a person would.
pub(super) fn render(intent: &TorIntent) -> String {
    let mut text = format!("Router of rack {}\n", intent.rack);
    text += &format!("  address {} in {}, router id the same\n", intent.address, intent.subnet);
    text += "  packet forwarding on, flows spread over equal routes (up to 16)\n\n";
    text += &match intent.routing {
        RackRouting::Bgp { tor_asn, .. } => bgp(intent, tor_asn),
        RackRouting::Ibgp { .. } => ibgp(intent),
        RackRouting::Ospf { area, tor_asn } => ospf(intent, area, tor_asn),
    };
    text += "\nTo other routers of the site, and from them:\n";
    let hosts: Vec<Ipv4Net> = intent.hosts().collect();
    let home = intent.connected.iter().chain(pods(intent)).chain(&hosts);
    text += &format!("  announce {}\n", list(home));
    text += &format!("  take     {}\n", list(intent.abroad.iter().chain(&intent.hosts_abroad)));
    text += &format!("  both     single addresses (/32) inside {}", services(intent));
    text += &format!("{}\n", api(intent, Role::Master));
    text + &second(intent)
}

/// The IPv6 half: by the same sessions, or by an OSPF of its own.
fn second(intent: &TorIntent) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let how = match intent.routing {
        RackRouting::Bgp { numbering: Numbering::Numbered, .. } => {
            "the same sessions carry it (RFC 4760), with IPv6 next hops"
        }
        RackRouting::Bgp { .. } => "the same sessions carry it (RFC 4760)",
        RackRouting::Ibgp { .. } => "a route to each node's pods, by hand",
        RackRouting::Ospf { .. } => {
            "OSPFv3 beside the other, with the same area, times and router ids (key: RFC 7166)"
        }
    };
    let mut text = format!("\nIPv6 in {}: {how}\n", second.subnet);
    let speaks_bgp = matches!(intent.routing, RackRouting::Bgp { .. });
    let rows = intent.nodes.iter().filter_map(|node| {
        let own = node.second?;
        let host = if speaks_bgp { format!(", {}/128", own.address) } else { String::new() };
        Some([node.node.clone(), own.address.to_string(), format!("{}{host}", own.pods)])
    });
    text += &table(["NODE", "ADDRESS", "TAKE ONLY"], rows);
    let owns = || intent.nodes.iter().filter_map(|node| node.second);
    let hosts = owns().filter(|_| speaks_bgp).map(|own| Ipv6Net::from(own.address));
    let home: Vec<Ipv6Net> =
        std::iter::once(second.subnet).chain(owns().map(|own| own.pods)).chain(hosts).collect();
    text += "  To other routers of the site, and from them:\n";
    text += &format!("  announce {}\n", list(home.iter()));
    let abroad = second.abroad.iter().chain(&second.hosts_abroad);
    text + &format!("  take     {}\n", list(abroad))
}

/// The API's address, for whom may announce it.
fn api(intent: &TorIntent, role: Role) -> String {
    let net = intent.networks.api_net().filter(|_| role == Role::Master);
    net.map_or_else(String::new, |net| format!(", {net}"))
}

fn services(intent: &TorIntent) -> String {
    let ranges: Vec<Ipv4Net> = Pattern::service_ranges(&intent.networks).collect();
    list(ranges.iter())
}

fn ibgp(intent: &TorIntent) -> String {
    let mut text = String::from("No session with the nodes: a route to each, by hand\n");
    let rows = intent.nodes.iter().map(|Origin { node, address, pods, .. }| {
        [node.clone(), pods.to_string(), address.to_string()]
    });
    text += &table(["NODE", "DESTINATION", "VIA"], rows);
    text
}

fn key(intent: &TorIntent, how: &str) -> String {
    intent.key.as_ref().map_or_else(String::new, |_| format!("  the rack's key, as {how}\n"))
}

fn bfd(intent: &TorIntent) -> String {
    format!(
        "  BFD on every neighbour, single hop, {} ms, dead after {}\n",
        intent.bfd.interval_ms, intent.bfd.multiplier
    )
}

fn bgp(intent: &TorIntent, asn: u32) -> String {
    let mut text = format!("BGP, AS {asn}, one session to each node\n");
    if let RackRouting::Bgp { tors, numbering: Numbering::Unnumbered, .. } = &intent.routing {
        let router = tors.iter().position(|tor| *tor == intent.address).unwrap_or_default();
        let own = Numbering::link_local(router);
        text += &format!("  by {own} on every port to the rack, from whoever calls (fe80::/64)\n");
        text += "  IPv4 with IPv6 next hops (RFC 8950); the AS number says whose session it is\n";
    }
    text += "  hold time 9 s, keepalive 3 s, TTL security (one hop)\n";
    text += &key(intent, "TCP MD5 signature (RFC 2385)");
    text += &bfd(intent);
    text += "  import: refuse everything but what stands at the node, at most 64 prefixes\n";
    text += "  export: default route, subnets and pod networks of all racks, service addresses\n";
    let rows = intent.nodes.iter().map(|Origin { node, address, asn, pods, role, .. }| {
        [
            node.clone(),
            address.to_string(),
            asn.to_string(),
            format!("{pods}, {address}/32, /32s inside {}{}", services(intent), api(intent, *role)),
        ]
    });
    text + &table(["NODE", "NEIGHBOUR", "AS", "TAKE ONLY"], rows)
}

fn ospf(intent: &TorIntent, area: u32, asn: Option<u32>) -> String {
    let mut text = format!("OSPFv2, area {area}, on the link to the rack\n");
    text += "  network type broadcast, hello 1 s, dead after 4 s, cost 10, priority 10\n";
    text += &key(intent, "HMAC-SHA-256 with key id 1 (RFC 5709)");
    text += &bfd(intent);
    text += "  import into the routing table: only what stands at the node, and only from its\n";
    text += "  router id where the router can tell; nodes announce as external routes (type 2)\n";
    text += "  redistribute: default route, subnets and pod networks of other racks\n";
    if let Some(asn) = asn {
        text += &format!("  BGP to other racks' routers, AS {asn}\n");
    }
    let rows = intent.nodes.iter().map(|Origin { node, address, pods, role, .. }| {
        let take = format!("{pods}, addresses inside {}{}", services(intent), api(intent, *role));
        [node.clone(), address.to_string(), take]
    });
    text + &table(["NODE", "ROUTER ID", "TAKE ONLY"], rows)
}

fn pods(intent: &TorIntent) -> impl Iterator<Item = &Ipv4Net> {
    intent.nodes.iter().map(|node| &node.pods)
}

fn list<N: ToString>(nets: impl Iterator<Item = N>) -> String {
    let nets: Vec<String> = nets.map(|net| net.to_string()).collect();
    if nets.is_empty() { "nothing".to_owned() } else { nets.join(", ") }
}

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut all = vec![header.map(str::to_owned)];
    all.extend(rows);
    let mut widths = [0_usize; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += &format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}
