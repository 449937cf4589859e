//! The second family: what a node, and a ToR router, says and believes of IPv6.
//!
//! The same sessions carry it: a BGP session over IPv4 has a channel for each family (RFC 4760),
//! and the next hop is the neighbour's IPv6 address in the rack's subnet. OSPF needs an instance of
//! its own, version 3. Judged is as for IPv4: everybody's own pod network and address.
//!
//! *Limits*: addresses of services and of the API are announced for IPv4 alone.

use std::net::Ipv6Addr;

use cluster::plan::{Machine, Networks, Numbering, Plan, Rack, RackRouting};
use ipnet::Ipv6Net;

use crate::intent::{Intent, Origin, Protocol};
use crate::tor::TorIntent;
use crate::words::{Pattern, default_route_v6, quote, render_adjacency_v6, render_set};

/// What a node's IPv6 routing follows from, beside its [`Intent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Second {
    /// The node's address in its rack: preferred source and next hop.
    pub address: Ipv6Addr,
    /// The subnet of its rack.
    pub subnet: Ipv6Net,
    /// The node's own pod network.
    pub pods: Ipv6Net,
    /// The range of all pods.
    pub all_pods: Ipv6Net,
    /// The range of services.
    pub services: Ipv6Net,
    /// The rack's routers, in the order of their IPv4 addresses in the plan.
    pub tors: Vec<Ipv6Addr>,
    /// Who takes what no router has announced: the first of them, by whichever address it has.
    pub gateway: Ipv6Addr,
    /// Subnets of other racks, sorted.
    pub underlay: Vec<Ipv6Net>,
}

/// What a node has of IPv6, as its neighbours know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondOrigin {
    /// Its address in its rack.
    pub address: Ipv6Addr,
    /// Its pod network.
    pub pods: Ipv6Net,
}

/// What a ToR router's IPv6 configuration follows from, beside its [`TorIntent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondTor {
    /// The rack's subnet.
    pub subnet: Ipv6Net,
    /// Prefixes that may come from other ToR routers: subnets, pod networks, and with eBGP nodes'
    /// own addresses.
    pub abroad: Vec<Ipv6Net>,
    /// Those of them that the rack's nodes need not hear of.
    pub hosts_abroad: Vec<Ipv6Net>,
}

impl SecondOrigin {
    pub(crate) fn of(machine: &Machine) -> Option<Self> {
        Some(Self { address: machine.address_v6?, pods: machine.pod_cidr_v6? })
    }
}

impl Second {
    pub(crate) fn new(
        machine: &Machine,
        rack: &Rack,
        racks: &[Rack],
        networks: &Networks,
    ) -> Option<Self> {
        let (all_pods, services) = networks.v6()?;
        let SecondOrigin { address, pods } = SecondOrigin::of(machine)?;
        let routers = match &rack.routing {
            RackRouting::Bgp { tors, .. } if !tors.is_empty() => tors.as_slice(),
            RackRouting::Bgp { .. } | RackRouting::Ibgp { .. } | RackRouting::Ospf { .. } => {
                std::slice::from_ref(&rack.gateway)
            }
        };
        let subnet = rack.subnet_v6?;
        let mut underlay: Vec<Ipv6Net> = racks.iter().filter_map(|rack| rack.subnet_v6).collect();
        underlay.retain(|other| *other != subnet);
        underlay.sort_unstable();
        underlay.dedup();
        let tors: Vec<Ipv6Addr> =
            routers.iter().filter_map(|router| rack.address_v6(*router)).collect();
        let gateway = match rack.routing {
            RackRouting::Bgp { numbering: Numbering::Unnumbered, .. } => Numbering::link_local(0),
            RackRouting::Bgp { .. } | RackRouting::Ibgp { .. } | RackRouting::Ospf { .. } => {
                rack.address_v6(rack.gateway)?
            }
        };
        Some(Self { address, subnet, pods, all_pods, services, tors, gateway, underlay })
    }

    /// The node's own address as a prefix.
    #[must_use]
    pub fn host(&self) -> Ipv6Net {
        Ipv6Net::from(self.address)
    }

    fn all_pod_networks(&self) -> Pattern {
        Pattern::inside(self.all_pods, self.pods.prefix_len())
    }

    /// Prefixes of other racks, and the way out of the site.
    fn abroad(&self) -> impl Iterator<Item = Pattern> {
        let racks = self.underlay.iter().map(|subnet| Pattern::exactly(*subnet));
        std::iter::once(Pattern::exactly(default_route_v6())).chain(racks)
    }

    /// What a BGP neighbour may say.
    fn believed(&self) -> String {
        render_set(self.abroad().chain([self.all_pod_networks()]))
    }
}

impl SecondTor {
    pub(crate) fn new(plan: &Plan, rack: &Rack) -> Option<Self> {
        plan.networks.v6()?;
        let subnet = rack.subnet_v6?;
        let far = || plan.machines.iter().filter(|one| one.rack != rack.name);
        let subnets = plan.racks.iter().filter_map(|one| one.subnet_v6);
        let mut abroad: Vec<Ipv6Net> =
            subnets.chain(far().filter_map(|one| one.pod_cidr_v6)).collect();
        abroad.retain(|net| *net != subnet);
        abroad.sort_unstable();
        abroad.dedup();
        let speaks_bgp = |machine: &&Machine| {
            let rack = plan.racks.iter().find(|one| one.name == machine.rack);
            rack.is_some_and(|rack| matches!(rack.routing, RackRouting::Bgp { .. }))
        };
        let hosts = far().filter(speaks_bgp).filter_map(|one| one.address_v6);
        let mut hosts_abroad: Vec<Ipv6Net> = hosts.map(Ipv6Net::from).collect();
        hosts_abroad.sort_unstable();
        Some(Self { subnet, abroad, hosts_abroad })
    }
}

/// The node's own prefixes, its kernel's side, and OSPF where the rack speaks that; empty on a
/// site of IPv4 alone.
pub(crate) fn render_node_part(intent: &Intent) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let Second { address, pods, .. } = second;
    let mut text = format!("protocol static pods6 {{ ipv6; route {pods} blackhole; }}\n");
    text += "protocol static announce6 {\n    ipv6;\n";
    if matches!(intent.protocol, Protocol::Bgp { .. }) {
        text += &format!("    route {} blackhole;\n", second.host());
    }
    text += "}\n";
    text += &format!(
        "filter to_kernel6 {{
    if source = RTS_DEVICE || proto = \"announce6\" then reject;
    krt_prefsrc = {address};
    accept;
}}
{KERNEL}"
    );
    if let Protocol::Ospf { area, priority, nodes, .. } = &intent.protocol {
        text += &originator_filter(intent, second, nodes);
        let interface = quote(&intent.interface);
        let adjacency = render_adjacency_v6(intent.key.as_ref());
        text += &format!(
            "protocol ospf v3 rack6 {{
    ecmp yes; merge external yes;
    ipv6 {{ import filter from_rack6; export where proto = \"pods6\" || proto = \"announce6\"; }};
    area {area} {{ interface {interface} {{ priority {priority}; {adjacency} }}; }};
}}
"
        );
    }
    text
}

const KERNEL: &str = "protocol kernel kernel6 {
    ipv6 { import none; export filter to_kernel6; };
    merge paths yes limit 16;
    persist;
}
";

/// A node's channel in the sessions with its routers.
pub(crate) fn render_channel(intent: &Intent, numbering: Numbering) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let believed = second.believed();
    let next_hop = match numbering {
        Numbering::Numbered => format!("address {}", second.address),
        Numbering::Unnumbered => "self".to_owned(),
    };
    format!(
        "    ipv6 {{
        next hop {next_hop};
        import where net ~ {believed};
        import limit 20000 action restart;
        export where proto = \"pods6\" || proto = \"announce6\";
    }};
"
    )
}

/// A node's channel in the sessions inside its AS; a reflector passes on what it heard.
pub(crate) fn render_inside_channel(intent: &Intent, reflects: bool) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let (address, believed) = (second.address, second.believed());
    let heard = if reflects { " || source = RTS_BGP" } else { "" };
    format!(
        "    ipv6 {{
        add paths on; next hop address {address};
        import where net ~ {believed};
        import limit 20000 action restart;
        export where proto = \"pods6\" || proto = \"announce6\"{heard};
    }};
"
    )
}

/// What a reflector takes from one of its clients.
pub(crate) fn render_client_channel(client: &Origin) -> String {
    let Some(SecondOrigin { pods, .. }) = client.second else { return String::new() };
    let allowed = render_set([Pattern::exactly(pods)]);
    format!(
        "    ipv6 {{ import where net ~ {allowed}; import keep filtered yes; import limit 64 action restart; }};\n"
    )
}

fn originator_filter(intent: &Intent, second: &Second, nodes: &[Origin]) -> String {
    let Protocol::Ospf { tor, .. } = intent.protocol else { return String::new() };
    let mut text = String::from("filter from_rack6 {\n");
    text += &format!("    if net = {} then reject;\n", second.subnet);
    text += &format!("    if net ~ {} then {{\n", render_set([second.all_pod_networks()]));
    for (node, pods) in nodes.iter().filter_map(|node| Some((node, node.second?.pods))) {
        text += &format!("        if net = {pods} then {{\n");
        text += &format!("            if ospf_router_id = {} then accept;\n", node.address);
        text += "            reject;\n        }\n";
    }
    text += &format!("        if ospf_router_id = {tor} then accept;\n");
    text += "        reject;\n    }\n";
    let abroad = render_set(second.abroad());
    text += &format!("    if net ~ {abroad} && ospf_router_id = {tor} then accept;\n");
    text + "    reject;\n}\n"
}

/// A ToR router's links, its kernel's side, and what follows from its rack's protocol; empty on a
/// site of IPv4 alone.
pub(crate) fn render_tor_part(intent: &TorIntent) -> String {
    let Some(second) = &intent.second else { return String::new() };
    // A node's own address by way of itself would do no harm, were it not that the kernel then
    // refuses it as the gateway of anything else: of IPv6 it wants gateways on the link. The
    // others hear of it all the same.
    let except = match intent.routing {
        RackRouting::Bgp { numbering: Numbering::Numbered, .. } => {
            format!(" && !(net ~ {})", render_set([Pattern::hosts(second.subnet)]))
        }
        RackRouting::Bgp { .. } | RackRouting::Ibgp { .. } | RackRouting::Ospf { .. } => {
            String::new()
        }
    };
    let mut text = format!(
        "protocol direct connected6 {{ ipv6; }}
protocol kernel kernel6 {{
    ipv6 {{ import none; export where source != RTS_DEVICE{except}; }};
    merge paths yes limit 16;
    persist;
}}
"
    );
    match intent.routing {
        RackRouting::Bgp { .. } => (),
        RackRouting::Ibgp { .. } => {
            text += "protocol static nodes6 {\n    ipv6;\n";
            for SecondOrigin { address, pods } in origins(intent) {
                text += &format!("    route {pods} via {address};\n");
            }
            text += "}\n";
        }
        RackRouting::Ospf { area, .. } => text += &tor_adjacencies(intent, second, area),
    }
    text
}

fn origins(intent: &TorIntent) -> impl Iterator<Item = SecondOrigin> {
    intent.nodes.iter().filter_map(|node| node.second)
}

/// What nodes hear: all that is outside their own link.
fn beyond_the_rack(intent: &TorIntent, second: &SecondTor) -> String {
    let nets = second.abroad.iter().copied().chain(origins(intent).map(|node| node.pods));
    render_set(std::iter::once(default_route_v6()).chain(nets).map(Pattern::exactly))
}

/// The channel of a ToR router's sessions with nodes; each session adds what it believes.
pub(crate) fn render_tor_channel(intent: &TorIntent) -> String {
    render_channel_towards_nodes(intent, "import none;")
}

/// The same where nobody's session is told beforehand: a filter judges by AS numbers.
pub(crate) fn render_open_channel(intent: &TorIntent) -> String {
    render_channel_towards_nodes(intent, "next hop self; import filter from_node6;")
}

/// That filter.
pub(crate) fn render_open_filter(intent: &TorIntent) -> String {
    if intent.second.is_none() {
        return String::new();
    }
    let mut text = String::from("filter from_node6 {\n");
    for node in &intent.nodes {
        let Some(SecondOrigin { address, pods }) = node.second else { continue };
        let own = render_set([pods, Ipv6Net::from(address)].map(Pattern::exactly));
        text += &format!("    if net ~ {own} && bgp_path.first = {} then accept;\n", node.asn);
    }
    text + "    reject;\n}\n"
}

fn render_channel_towards_nodes(intent: &TorIntent, judge: &str) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let audible = beyond_the_rack(intent, second);
    format!(
        "    ipv6 {{
        {judge} import keep filtered yes; import limit 64 action restart;
        export where net ~ {audible};
    }};
"
    )
}

/// What a ToR router takes from a node.
pub(crate) fn render_node_channel(node: &Origin) -> String {
    let Some(SecondOrigin { address, pods }) = node.second else { return String::new() };
    let allowed = render_set([pods, Ipv6Net::from(address)].map(Pattern::exactly));
    format!("    ipv6 {{ import where net ~ {allowed}; }};\n")
}

/// The channel of a ToR router's sessions with others of its kind.
pub(crate) fn render_uplink_channel(intent: &TorIntent) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let abroad = second.abroad.iter().chain(&second.hosts_abroad).copied();
    let believed = std::iter::once(default_route_v6()).chain(abroad.clone());
    let believed = render_set(believed.map(Pattern::exactly));
    let speaks_bgp = matches!(intent.routing, RackRouting::Bgp { .. });
    let hosts = origins(intent).filter(|_| speaks_bgp).map(|node| Ipv6Net::from(node.address));
    let home = std::iter::once(second.subnet).chain(origins(intent).map(|node| node.pods));
    let told = render_set(home.chain(hosts).chain(abroad).map(Pattern::exactly));
    format!(
        "    ipv6 {{
        next hop self;
        import where net ~ {believed}; import keep filtered yes; import limit 20000 action restart;
        export where net ~ {told};
    }};
"
    )
}

fn tor_adjacencies(intent: &TorIntent, second: &SecondTor, area: u32) -> String {
    let mut text = String::from("filter from_nodes6 {\n");
    for (node, pods) in intent.nodes.iter().filter_map(|node| Some((node, node.second?.pods))) {
        text += &format!("    if net = {pods} && ospf_router_id = {} then accept;\n", node.address);
    }
    text += "    reject;\n}\n";
    let audible = beyond_the_rack(intent, second);
    let interface = quote(&intent.interface);
    let adjacency = render_adjacency_v6(intent.key.as_ref());
    text += &format!(
        "filter to_nodes6 {{
    if source != RTS_BGP && source != RTS_DEVICE then reject;
    if net ~ {audible} then {{ ospf_metric2 = 1000; accept; }}
    reject;
}}
protocol ospf v3 rack6 {{
    ecmp yes; merge external yes;
    ipv6 {{ import filter from_nodes6; export filter to_nodes6; }};
    area {area} {{ interface {interface} {{ priority 10; {adjacency} }}; }};
}}
"
    );
    text
}

#[cfg(test)]
mod tests;
