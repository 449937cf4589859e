//! The node's side: announce the own pod network, believe what the plan allows.

use cluster::plan::{Numbering, Role};

use crate::intent::{Intent, Origin, Protocol, Tor};
use crate::second;
use crate::words::{
    INSIDE, Pattern, SESSION, default_route, quote, quote_link, render_adjacency, render_bfd,
    render_password, render_set, symbol,
};

/// Renders a node's whole BIRD configuration.
#[must_use]
pub fn render_node(intent: &Intent) -> String {
    let mut text =
        format!("# Node {}: written by Muster, overwritten at every change.\n", intent.node);
    text += "log stderr { info, remote, warning, error, auth, fatal, bug };\n";
    text += "timeformat protocol iso long;\n";
    text += &format!("router id {};\n", intent.address);
    text += "protocol device { scan time 10; }\n";
    text += &origins(intent);
    text += &kernel(intent);
    text += &second::render_node_part(intent);
    text += &render_bfd(&[&intent.interface], intent.bfd);
    text += &match &intent.protocol {
        Protocol::Bgp { asn, tors, numbering } => bgp(intent, *asn, tors, *numbering),
        Protocol::Ibgp { asn, reflectors, clients } => ibgp(intent, *asn, reflectors, clients),
        Protocol::Ospf { area, priority, tor, nodes } => {
            let mut text = originator_filter(intent, *tor, nodes);
            text += &ospf(intent, *area, *priority);
            text
        }
    };
    text
}

/// What this node is the origin of.
fn origins(intent: &Intent) -> String {
    // The blackhole goes to the kernel, too: a dead pod's address must not bounce off the ToR.
    let mut text = format!("protocol static pods4 {{ ipv4; route {} blackhole; }}\n", intent.pods);
    text += "protocol static announce4 {\n    ipv4;\n";
    for net in intent.own_host().iter().chain(&intent.announce) {
        text += &format!("    route {net} blackhole;\n");
    }
    text + "}\n"
}

/// What is announced beside the pods stays out of the kernel: a local connect to a service looks
/// the route up before nat output, and a blackhole there would refuse it.
fn kernel(intent: &Intent) -> String {
    format!(
        "filter to_kernel4 {{
    if source = RTS_DEVICE || proto = \"announce4\" then reject;
    krt_prefsrc = {};
    accept;
}}
protocol kernel kernel4 {{
    ipv4 {{ import none; export filter to_kernel4; }};
    merge paths yes limit 16;
    persist;
}}
",
        intent.address
    )
}

/// Prefixes of other racks, and the way out of the site.
fn abroad(intent: &Intent) -> impl Iterator<Item = Pattern> {
    let racks = intent.underlay.iter().chain(&intent.networks.seed);
    let racks = racks.map(|subnet| Pattern::exactly(*subnet));
    std::iter::once(Pattern::exactly(default_route()))
        .chain(racks)
        .chain(services(intent))
        .chain(Pattern::api(&intent.networks))
}

fn services(intent: &Intent) -> impl Iterator<Item = Pattern> {
    Pattern::service_ranges(&intent.networks).map(|range| Pattern::inside(range, 32))
}

fn pod_networks(intent: &Intent) -> Pattern {
    Pattern::inside(intent.networks.pods, intent.pods.prefix_len())
}

fn bgp(intent: &Intent, asn: u32, tors: &[Tor], numbering: Numbering) -> String {
    let believed = render_set(abroad(intent).chain([pod_networks(intent)]));
    let password = render_password(intent.key.as_ref());
    let (local, next_hop) = match numbering {
        Numbering::Numbered => (format!("{} ", intent.address), ""),
        Numbering::Unnumbered => (String::new(), "        extended next hop yes; next hop self;\n"),
    };
    let mut text = format!(
        "template bgp tor {{
    local {local}as {asn};
{SESSION}{password}    ipv4 {{
{next_hop}        import where net ~ {believed};
        import limit 20000 action restart;
        export where proto = \"pods4\" || proto = \"announce4\";
    }};
{}}}
",
        second::render_channel(intent, numbering)
    );
    for (index, Tor { address, asn }) in tors.iter().enumerate() {
        let number = index.saturating_add(1);
        let neighbour = match numbering {
            Numbering::Numbered => address.to_string(),
            Numbering::Unnumbered => {
                let link = quote_link(&intent.interface);
                format!("{} % {link}", Numbering::link_local(index))
            }
        };
        text +=
            &format!("protocol bgp tor{number} from tor {{ neighbor {neighbour} as {asn}; }}\n");
    }
    text
}

/// Reflectors pass on what their clients say, next hops untouched, so that packets go straight to
/// the node. What a client may say is judged here, as a ToR router would.
fn ibgp(
    intent: &Intent,
    asn: u32,
    reflectors: &[std::net::Ipv4Addr],
    clients: &[Origin],
) -> String {
    let password = render_password(intent.key.as_ref());
    let believed = render_set(abroad(intent).chain([pod_networks(intent)]));
    let address = intent.address;
    let told = if clients.is_empty() {
        "proto = \"pods4\" || proto = \"announce4\"".to_owned()
    } else {
        "proto = \"pods4\" || proto = \"announce4\" || source = RTS_BGP".to_owned()
    };
    let mut text = format!(
        "template bgp inside {{
    local {address} as {asn};
{INSIDE}{password}    ipv4 {{
        add paths on;
        import where net ~ {believed};
        import limit 20000 action restart;
        export where {told};
    }};
{}}}
",
        second::render_inside_channel(intent, !clients.is_empty())
    );
    for (index, reflector) in reflectors.iter().enumerate() {
        let number = index.saturating_add(1);
        text += &format!(
            "protocol bgp reflector{number} from inside {{ neighbor {reflector} as {asn}; }}\n"
        );
    }
    for client in clients {
        let Origin { node, number, address, pods, role, .. } = client;
        let shared = Pattern::anycast_of(&intent.networks, *role);
        let allowed = render_set(std::iter::once(Pattern::exactly(*pods)).chain(shared));
        let name = symbol("node_", &number.to_string());
        text += &format!("# {node}\n");
        text += &format!("protocol bgp {name} from inside {{\n");
        text += &format!("    neighbor {address} as {asn}; rr client;\n");
        text += &format!(
            "    ipv4 {{ import where net ~ {allowed}; import keep filtered yes; import limit 64 action restart; }};\n"
        );
        text += &second::render_client_channel(client);
        text += "}\n";
    }
    text
}

/// OSPF floods every node's word to every other, so each node must judge for itself who may
/// originate what: the nodes of the rack their own pod network, the ToR what lies behind it.
fn originator_filter(intent: &Intent, tor: std::net::Ipv4Addr, nodes: &[Origin]) -> String {
    let mut text = String::from("filter from_rack4 {\n");
    text += &format!("    if net = {} then reject;\n", intent.subnet);
    text += &format!("    if net ~ {} then {{\n", render_set([pod_networks(intent)]));
    for Origin { address, pods, .. } in nodes {
        text += &format!("        if net = {pods} then {{\n");
        text += &format!("            if ospf_router_id = {address} then accept;\n");
        text += "            reject;\n";
        text += "        }\n";
    }
    text += &format!("        if ospf_router_id = {tor} then accept;\n");
    text += "        reject;\n";
    text += "    }\n";
    let services = render_set(services(intent));
    text += &format!("    if net ~ {services} then accept;\n");
    if let Some(api) = intent.networks.api_net() {
        for Origin { address, .. } in nodes.iter().filter(|one| one.role == Role::Master) {
            text += &format!("    if net = {api} && ospf_router_id = {address} then accept;\n");
        }
    }
    let abroad = render_set(abroad(intent));
    text += &format!("    if net ~ {abroad} && ospf_router_id = {tor} then accept;\n");
    text + "    reject;\n}\n"
}

fn ospf(intent: &Intent, area: u32, priority: u8) -> String {
    let interface = quote(&intent.interface);
    let adjacency = render_adjacency(intent.key.as_ref());
    format!(
        "protocol ospf v2 rack4 {{
    ecmp yes; merge external yes;
    ipv4 {{ import filter from_rack4; export where proto = \"pods4\" || proto = \"announce4\"; }};
    area {area} {{ interface {interface} {{ priority {priority}; {adjacency} }}; }};
}}
"
    )
}

#[cfg(test)]
mod tests;
