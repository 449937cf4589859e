//! A ToR router's side as FRR's integrated configuration.
//!
//! The same promises as in `tor`, in FRR's words: a prefix list for each node, route maps towards
//! nodes, BFD on each session.
//!
//! *Limits*: FRR cannot bind an OSPF prefix to the router id it came from, so in OSPF mode it
//! only keeps prefixes out that no node of the rack has. Unnumbered sessions are not written; where
//! the site has them, a comment says so.

mod second;

use cluster::plan::{Numbering, RackRouting, Role};
use ipnet::Ipv4Net;

use crate::intent::Origin;
use crate::tor::TorIntent;
use crate::words::Pattern;

/// Renders `/etc/frr/frr.conf`.
pub(super) fn render(intent: &TorIntent) -> String {
    let mut text = format!("! ToR router of rack {}: written by Muster.\n", intent.rack);
    text += match intent.second {
        None => {
            "! Needs zebra, bfdd and bgpd or ospfd. Sessions to other routers are the site's own.\n"
        }
        Some(_) => {
            "! Needs zebra, bfdd and bgpd, or ospfd and ospf6d; and its IPv6 address on the link to the\n\
             ! rack, with one link-local address there: with two, ospf6d may tell bfdd the wrong one.\n\
             ! Sessions to other routers are the site's own.\n"
        }
    };
    text += &format!("ip router-id {}\n!\n", intent.address);
    text += &format!(
        "bfd\n profile muster\n  detect-multiplier {0}\n  receive-interval {1}\n  transmit-interval {1}\n exit\nexit\n!\n",
        intent.bfd.multiplier, intent.bfd.interval_ms
    );
    text += &second::lists(intent);
    text += &match intent.routing {
        RackRouting::Bgp { numbering: Numbering::Unnumbered, .. } => {
            "! Sessions by the links' own addresses are written for BIRD and in words alone.\n"
                .to_owned()
        }
        RackRouting::Bgp { tor_asn, .. } => bgp(intent, tor_asn),
        RackRouting::Ibgp { .. } => static_routes(intent),
        RackRouting::Ospf { area, .. } => ospf(intent, area),
    };
    text
}

/// A prefix list; each item may carry a limit such as `ge 32`.
fn prefix_list(name: &str, nets: impl IntoIterator<Item = (Ipv4Net, &'static str)>) -> String {
    let mut text = String::new();
    for (index, (net, limit)) in nets.into_iter().enumerate() {
        let sequence = index.saturating_add(1).saturating_mul(5);
        text += &format!("ip prefix-list {name} seq {sequence} permit {net}{limit}\n");
    }
    text
}

/// Single service addresses.
fn services(intent: &TorIntent) -> impl Iterator<Item = (Ipv4Net, &'static str)> {
    Pattern::service_ranges(&intent.networks).map(|range| (range, " ge 32"))
}

/// With a rack that keeps its routing to itself, each pod network leads straight to its node.
fn static_routes(intent: &TorIntent) -> String {
    let route = |node: &Origin| format!("ip route {} {}\n", node.pods, node.address);
    intent.nodes.iter().map(route).collect()
}

/// What nodes hear: all that is outside their own link.
fn audible(intent: &TorIntent) -> Vec<(Ipv4Net, &'static str)> {
    let beyond = intent.abroad.iter().chain(&intent.connected).filter(|net| **net != intent.subnet);
    let mut all = vec![(Ipv4Net::default(), "")];
    all.extend(beyond.map(|net| (*net, "")));
    all.extend(intent.nodes.iter().map(|node| (node.pods, "")));
    all.extend(services(intent));
    all.extend(intent.networks.api_net().map(|net| (net, "")));
    all
}

fn bgp(intent: &TorIntent, asn: u32) -> String {
    let mut text = prefix_list("muster-to-nodes", audible(intent));
    for Origin { number, address, pods, role, .. } in &intent.nodes {
        let name = format!("muster-node-{number}");
        let api = intent.networks.api_net().filter(|_| *role == Role::Master).map(|net| (net, ""));
        let own = [*pods, Ipv4Net::from(*address)].map(|net| (net, ""));
        let allowed = own.into_iter().chain(services(intent)).chain(api);
        text += &prefix_list(&name, allowed);
    }
    text += &format!("!\nrouter bgp {asn}\n bgp router-id {}\n", intent.address);
    text += " no bgp default ipv4-unicast\n bgp bestpath as-path multipath-relax\n";
    text += " neighbor muster peer-group\n neighbor muster timers 3 9\n";
    text += " neighbor muster timers connect 5\n neighbor muster ttl-security hops 1\n";
    text += " neighbor muster bfd\n neighbor muster bfd profile muster\n";
    if let Some(key) = &intent.key {
        text += &format!(" neighbor muster password {}\n", key.reveal());
    }
    for Origin { node, address, asn, .. } in &intent.nodes {
        text += &format!(" neighbor {address} remote-as {asn}\n");
        text += &format!(" neighbor {address} peer-group muster\n");
        text += &format!(" neighbor {address} description {node}\n");
    }
    text += " !\n address-family ipv4 unicast\n";
    for net in &intent.connected {
        text += &format!("  network {net}\n");
    }
    text += "  neighbor muster activate\n  neighbor muster prefix-list muster-to-nodes out\n";
    text += "  neighbor muster maximum-prefix 64 restart 1\n";
    for Origin { address, number, .. } in &intent.nodes {
        text += &format!("  neighbor {address} prefix-list muster-node-{number} in\n");
    }
    text += "  maximum-paths 16\n exit-address-family\n";
    text += &second::bgp_family(intent);
    text + "exit\n!\n"
}

fn ospf(intent: &TorIntent, area: u32) -> String {
    let services = Pattern::service_ranges(&intent.networks).map(|range| (range, " le 32"));
    let api = intent.networks.api_net().map(|net| (net, ""));
    let believed = intent.nodes.iter().map(|node| (node.pods, "")).chain(services).chain(api);
    let mut text = prefix_list("muster-from-nodes", believed);
    text += &prefix_list("muster-to-nodes", audible(intent));
    text += "route-map muster-from-nodes permit 10\n match ip address prefix-list muster-from-nodes\nexit\n!\n";
    text += "route-map muster-to-nodes permit 10\n match ip address prefix-list muster-to-nodes\n set metric 1000\nexit\n!\n";
    if let Some(key) = &intent.key {
        text += "! Key chains in OSPF need FRR 8.5.\n";
        text += &format!("key chain muster\n key 1\n  key-string {}\n", key.reveal());
        text += "  cryptographic-algorithm hmac-sha-256\n exit\nexit\n!\n";
    }
    text += &format!("interface {}\n ip ospf area {area}\n", intent.interface);
    text += " ip ospf network broadcast\n ip ospf hello-interval 1\n ip ospf dead-interval 4\n";
    text += " ip ospf cost 10\n ip ospf priority 10\n ip ospf bfd\n ip ospf bfd profile muster\n";
    if intent.key.is_some() {
        text += " ip ospf authentication key-chain muster\n";
    }
    text += &second::ospf_interface(intent, area);
    text += "exit\n!\n";
    text += &format!("router ospf\n ospf router-id {}\n", intent.address);
    text += " redistribute connected route-map muster-to-nodes\n";
    text += " redistribute bgp route-map muster-to-nodes\n maximum-paths 16\nexit\n!\n";
    text += "ip protocol ospf route-map muster-from-nodes\n";
    text + &second::ospf_instance(intent)
}
