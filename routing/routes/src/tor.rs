//! The ToR router's side, for routers that run BIRD: the simulated ones do.
//!
//! Each node has its own block: its address, its AS number, and exactly that address and its pod
//! network, so a node that claims another's traffic is not believed. In OSPF mode the same binding
//! is by router id; there the lie still floods to the other nodes, and only filters keep it out.

use std::net::Ipv4Addr;

use cluster::plan::{Machine, Networks, Numbering, Plan, RackRouting, Role};
use ipnet::Ipv4Net;

use crate::intent::{Bfd, Origin};
use crate::key::Key;
use crate::second::{self, SecondTor};
use crate::words::{
    Pattern, SESSION, default_route, quote, render_adjacency, render_bfd, render_password,
    render_set, symbol,
};

/// Everything a ToR router's configuration follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorIntent {
    /// The rack's name, for comments only.
    pub rack: String,
    /// Its address in the rack: router id.
    pub address: Ipv4Addr,
    /// The rack's subnet.
    pub subnet: Ipv4Net,
    /// The link to the rack.
    pub interface: String,
    /// How the nodes of the rack are spoken to.
    pub routing: RackRouting,
    /// The nodes of the rack, by address.
    pub nodes: Vec<Origin>,
    /// Ranges of the cluster.
    pub networks: Networks,
    /// Other ToR routers.
    pub uplinks: Vec<Uplink>,
    /// Subnets of its own links that it announces to the other ToR routers, the rack's included.
    pub connected: Vec<Ipv4Net>,
    /// Prefixes that may come from other ToR routers.
    pub abroad: Vec<Ipv4Net>,
    /// Nodes' own addresses that may come from other ToR routers. The rack's nodes need not hear
    /// of them: which way leads to them is decided behind its routers.
    pub hosts_abroad: Vec<Ipv4Net>,
    /// The same for IPv6; `None` on a site of IPv4 alone. What other routers are spoken to by must
    /// have IPv6 addresses of its own then.
    pub second: Option<SecondTor>,
    /// How fast a silent neighbour is noticed; a slow interval here slows the nodes down, too.
    pub bfd: Bfd,
    /// Whether IPv6 router advertisements are sent to the rack.
    pub advertisement: Advertisement,
    /// The rack's key, where sessions with nodes need one.
    pub key: Option<Key>,
    /// Path of the log file; `None` logs to standard error.
    pub log: Option<String>,
}

/// Whether a ToR router says on its rack's link that it is an IPv6 router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advertisement {
    /// Says nothing.
    Silent,
    /// Says so, but not that it is a default router: firmware that waits for an advertisement
    /// goes on at once, and nobody sends it traffic.
    Presence,
}

/// Another ToR router as a BGP neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// The link to it.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its AS number.
    pub asn: u32,
}

impl TorIntent {
    /// Makes the intent of a rack's ToR router; `None` when the plan has no such rack.
    ///
    /// Uplinks are not in the plan and are added by the caller.
    #[must_use]
    pub fn new(plan: &Plan, rack: &str, interface: &str) -> Option<Self> {
        let rack = plan.racks.iter().find(|one| one.name == rack)?;
        let mut nodes: Vec<Origin> =
            plan.machines.iter().filter(|one| one.rack == rack.name).map(Origin::of).collect();
        nodes.sort_by_key(|origin| origin.address);
        let mut connected = vec![rack.subnet];
        let mut abroad: Vec<Ipv4Net> = vec![];
        if plan.seed.rack.as_ref() == Some(&rack.name) {
            connected.push(plan.seed.subnet);
        } else {
            abroad.push(plan.seed.subnet);
        }
        abroad.extend(plan.racks.iter().map(|one| one.subnet));
        let elsewhere = plan.machines.iter().filter(|one| one.rack != rack.name);
        abroad.extend(elsewhere.map(|one| one.pod_cidr));
        abroad.sort_unstable();
        abroad.dedup();
        abroad.retain(|net| !connected.contains(net));
        connected.dedup();
        let speaks_bgp = |machine: &&Machine| {
            let rack = plan.racks.iter().find(|one| one.name == machine.rack);
            rack.is_some_and(|rack| matches!(rack.routing, RackRouting::Bgp { .. }))
        };
        let far = plan.machines.iter().filter(|one| one.rack != rack.name).filter(speaks_bgp);
        let mut hosts_abroad: Vec<Ipv4Net> = far.map(|one| Ipv4Net::from(one.address)).collect();
        hosts_abroad.sort_unstable();
        Some(Self {
            rack: rack.name.clone(),
            address: rack.gateway,
            subnet: rack.subnet,
            interface: interface.to_owned(),
            routing: rack.routing.clone(),
            nodes,
            networks: plan.networks.clone(),
            uplinks: Vec::new(),
            connected,
            abroad,
            hosts_abroad,
            second: SecondTor::new(plan, rack),
            bfd: Bfd::default(),
            advertisement: Advertisement::Silent,
            key: None,
            log: None,
        })
    }

    /// The addresses that the rack's nodes announce as their own.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = Ipv4Net> {
        let speaks_bgp = matches!(self.routing, RackRouting::Bgp { .. });
        let nodes = self.nodes.iter().filter(move |_| speaks_bgp);
        nodes.map(|node| Ipv4Net::from(node.address))
    }

    /// The intents of all ToR routers of a rack, the gateway first; empty when the plan has no
    /// such rack.
    #[must_use]
    pub fn all(plan: &Plan, rack: &str, interface: &str) -> Vec<Self> {
        let Some(first) = Self::new(plan, rack, interface) else { return Vec::new() };
        let addresses = match &first.routing {
            RackRouting::Bgp { tors, .. } if !tors.is_empty() => tors.clone(),
            RackRouting::Bgp { .. } | RackRouting::Ibgp { .. } | RackRouting::Ospf { .. } => {
                vec![first.address]
            }
        };
        addresses.into_iter().map(|address| Self { address, ..first.clone() }).collect()
    }
}

/// Renders a ToR router's whole BIRD configuration.
#[must_use]
pub fn render_tor(intent: &TorIntent) -> String {
    let mut text = format!("# ToR router of rack {}: written by Muster.\n", intent.rack);
    text += &match &intent.log {
        Some(path) => format!("log {} all;\n", quote(path)),
        None => "log stderr all;\n".to_owned(),
    };
    text += "timeformat protocol iso long;\n";
    text += &format!("router id {};\n", intent.address);
    text += "protocol device { scan time 10; }\n";
    text += "protocol direct connected4 { ipv4; }\n";
    text += "protocol kernel kernel4 {
    ipv4 { import none; export where source != RTS_DEVICE; };
    merge paths yes limit 16;
    persist;
}
";
    text += &second::render_tor_part(intent);
    let mut interfaces = vec![intent.interface.as_str()];
    interfaces.extend(intent.uplinks.iter().map(|uplink| uplink.interface.as_str()));
    text += &render_bfd(&interfaces, intent.bfd);
    if intent.advertisement == Advertisement::Presence {
        let interface = quote(&intent.interface);
        text += &format!(
            "protocol radv {{ interface {interface} {{ max ra interval 10; default lifetime 0; }}; }}\n"
        );
    }
    let asn = match intent.routing {
        RackRouting::Bgp { tor_asn, numbering, .. } => {
            text += &match numbering {
                Numbering::Numbered => node_sessions(intent, tor_asn),
                Numbering::Unnumbered => open_sessions(intent, tor_asn),
            };
            Some(tor_asn)
        }
        RackRouting::Ibgp { asn, .. } => {
            text += &static_routes(intent);
            Some(asn)
        }
        RackRouting::Ospf { area, tor_asn } => {
            text += &node_adjacencies(intent, area);
            tor_asn
        }
    };
    if let Some(asn) = asn {
        text += &uplinks(intent, asn);
    }
    text
}

/// Addresses that several nodes may announce, one by one.
fn shared(intent: &TorIntent) -> impl Iterator<Item = Pattern> {
    Pattern::anycast(&intent.networks)
}

/// With a rack that keeps its routing to itself, each pod network leads straight to its node.
fn static_routes(intent: &TorIntent) -> String {
    let mut text = String::from("protocol static nodes4 {\n    ipv4;\n");
    for Origin { address, pods, .. } in &intent.nodes {
        text += &format!("    route {pods} via {address};\n");
    }
    text + "}\n"
}

/// What nodes hear: all that is outside their own link.
fn beyond_the_rack(intent: &TorIntent) -> String {
    let nets = intent.abroad.iter().chain(&intent.connected).filter(|net| **net != intent.subnet);
    let nets = nets.map(|net| Pattern::exactly(*net));
    let nodes = intent.nodes.iter().map(|node| Pattern::exactly(node.pods));
    let all = std::iter::once(Pattern::exactly(default_route()))
        .chain(nets)
        .chain(nodes)
        .chain(shared(intent));
    render_set(all)
}

fn node_sessions(intent: &TorIntent, asn: u32) -> String {
    let audible = beyond_the_rack(intent);
    let password = render_password(intent.key.as_ref());
    let mut text = format!(
        "template bgp node {{
    local {} as {asn};
{SESSION}{password}    ipv4 {{
        import none; import keep filtered yes; import limit 64 action restart;
        export where net ~ {audible};
    }};
{}}}
",
        intent.address,
        second::render_tor_channel(intent)
    );
    for origin in &intent.nodes {
        let Origin { node, number, address, asn, pods, role, .. } = origin;
        let shared = Pattern::anycast_of(&intent.networks, *role);
        let own = [*pods, Ipv4Net::from(*address)].map(Pattern::exactly);
        let allowed = render_set(own.into_iter().chain(shared));
        let name = symbol("node_", &number.to_string());
        text += &format!("# {node}\n");
        text += &format!("protocol bgp {name} from node {{\n");
        text += &format!("    neighbor {address} as {asn};\n");
        text += &format!("    ipv4 {{ import where net ~ {allowed}; }};\n");
        text += &second::render_node_channel(origin);
        text += "}\n";
    }
    text
}

/// Sessions with whoever calls from the rack's link: no line for each node but those of the filter,
/// which believes of each AS number what the plan gives its node.
fn open_sessions(intent: &TorIntent, asn: u32) -> String {
    let mut text = String::from("filter from_node4 {\n");
    for Origin { address, asn, pods, role, .. } in &intent.nodes {
        let api = Pattern::api(&intent.networks).filter(|_| *role == Role::Master);
        let own = [*pods, Ipv4Net::from(*address)].map(Pattern::exactly);
        let own = render_set(own.into_iter().chain(api));
        text += &format!("    if net ~ {own} && bgp_path.first = {asn} then accept;\n");
    }
    let services = render_set(Pattern::service_ranges(&intent.networks).map(Pattern::hosts));
    text += &format!("    if net ~ {services} then accept;\n    reject;\n}}\n");
    text += &second::render_open_filter(intent);
    let audible = beyond_the_rack(intent);
    let password = render_password(intent.key.as_ref());
    let interface = quote(&intent.interface);
    text += &format!(
        "protocol bgp nodes {{
    local as {asn};
    neighbor range fe80::/64 external; interface {interface}; dynamic name \"node_\";
{SESSION}{password}    ipv4 {{
        extended next hop yes; next hop self; import filter from_node4;
        import keep filtered yes; import limit 64 action restart;
        export where net ~ {audible};
    }};
{}}}
",
        second::render_open_channel(intent)
    );
    text
}

fn node_adjacencies(intent: &TorIntent, area: u32) -> String {
    let mut text = String::from("filter from_nodes4 {\n");
    for Origin { address, pods, .. } in &intent.nodes {
        text += &format!("    if net = {pods} && ospf_router_id = {address} then accept;\n");
    }
    if let Some(api) = intent.networks.api_net() {
        for Origin { address, .. } in intent.nodes.iter().filter(|one| one.role == Role::Master) {
            text += &format!("    if net = {api} && ospf_router_id = {address} then accept;\n");
        }
    }
    let ranges = Pattern::service_ranges(&intent.networks);
    let services = render_set(ranges.map(|range| Pattern::inside(range, 32)));
    text += &format!("    if net ~ {services} then accept;\n");
    text += "    reject;\n}\n";
    let audible = beyond_the_rack(intent);
    let interface = quote(&intent.interface);
    let adjacency = render_adjacency(intent.key.as_ref());
    text += &format!(
        "filter to_nodes4 {{
    if source != RTS_BGP && source != RTS_DEVICE then reject;
    if net ~ {audible} then {{ ospf_metric2 = 1000; accept; }}
    reject;
}}
protocol ospf v2 rack4 {{
    ecmp yes; merge external yes;
    ipv4 {{ import filter from_nodes4; export filter to_nodes4; }};
    area {area} {{ interface {interface} {{ priority 10; {adjacency} }}; }};
}}
"
    );
    text
}

fn uplinks(intent: &TorIntent, asn: u32) -> String {
    if intent.uplinks.is_empty() {
        return String::new();
    }
    let abroad = intent.abroad.iter().chain(&intent.hosts_abroad);
    let abroad = abroad.map(|net| Pattern::exactly(*net));
    let abroad: Vec<Pattern> = abroad.chain(shared(intent)).collect();
    let believed = render_set(
        std::iter::once(Pattern::exactly(default_route())).chain(abroad.iter().copied()),
    );
    let home = intent.connected.iter().copied();
    let home = home.chain(intent.nodes.iter().map(|node| node.pods)).chain(intent.hosts());
    let home = home.map(Pattern::exactly);
    let told = render_set(home.chain(abroad));
    let mut text = format!(
        "template bgp uplink {{
    local as {asn};
{SESSION}    ipv4 {{
        next hop self;
        import where net ~ {believed}; import keep filtered yes; import limit 20000 action restart;
        export where net ~ {told};
    }};
{}}}
",
        second::render_uplink_channel(intent)
    );
    for Uplink { name, address, asn, .. } in &intent.uplinks {
        let symbol = symbol("up_", name);
        text += &format!("protocol bgp {symbol} from uplink {{ neighbor {address} as {asn}; }}\n");
    }
    text
}

#[cfg(test)]
mod tests;
