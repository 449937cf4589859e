//! The IPv6 half of a router in FRR's words: the same sessions with a family more, and OSPFv3.

use cluster::plan::{Numbering, RackRouting};
use ipnet::Ipv6Net;

use crate::intent::Origin;
use crate::second::{SecondOrigin, SecondTor};
use crate::tor::TorIntent;

/// Comes before everything else: lists and maps, and who keeps what out of the kernel.
pub(super) fn lists(intent: &TorIntent) -> String {
    let Some(second) = &intent.second else { return String::new() };
    match intent.routing {
        RackRouting::Bgp { numbering: Numbering::Unnumbered, .. } => String::new(),
        RackRouting::Bgp { .. } => bgp_lists(intent, second),
        RackRouting::Ibgp { .. } => {
            let route =
                |(_, own): (_, SecondOrigin)| format!("ipv6 route {} {}\n", own.pods, own.address);
            origins(intent).map(route).collect()
        }
        RackRouting::Ospf { .. } => ospf_lists(intent, second),
    }
}

fn origins(intent: &TorIntent) -> impl Iterator<Item = (&Origin, SecondOrigin)> {
    intent.nodes.iter().filter_map(|node| Some((node, node.second?)))
}

fn prefix_list(name: &str, nets: impl IntoIterator<Item = Ipv6Net>) -> String {
    let mut text = String::new();
    for (index, net) in nets.into_iter().enumerate() {
        let sequence = index.saturating_add(1).saturating_mul(5);
        text += &format!("ipv6 prefix-list {name} seq {sequence} permit {net}\n");
    }
    text
}

/// What nodes hear: all that is outside their own link.
fn audible(intent: &TorIntent, second: &SecondTor) -> impl Iterator<Item = Ipv6Net> {
    let abroad = second.abroad.iter().copied();
    let pods = origins(intent).map(|(_, own)| own.pods);
    std::iter::once(Ipv6Net::default()).chain(abroad).chain(pods)
}

fn bgp_lists(intent: &TorIntent, second: &SecondTor) -> String {
    let mut text = prefix_list("muster-to-nodes", audible(intent, second));
    for (Origin { number, .. }, own) in origins(intent) {
        let allowed = [own.pods, Ipv6Net::from(own.address)];
        text += &prefix_list(&format!("muster-node-{number}"), allowed);
    }
    // A node's own address by way of itself is for other routers alone: the kernel wants
    // gateways of IPv6 on the link.
    let subnet = second.subnet;
    text += &format!("ipv6 prefix-list muster-on-link seq 5 permit {subnet} ge 128\n");
    text += "route-map muster-to-kernel deny 10\n";
    text += " match ipv6 address prefix-list muster-on-link\nexit\n";
    text + "route-map muster-to-kernel permit 20\nexit\nipv6 protocol bgp route-map muster-to-kernel\n"
}

/// The family in the router's BGP.
pub(super) fn bgp_family(intent: &TorIntent) -> String {
    let Some(second) = &intent.second else { return String::new() };
    let mut text = format!(" !\n address-family ipv6 unicast\n  network {}\n", second.subnet);
    text += "  neighbor muster activate\n  neighbor muster prefix-list muster-to-nodes out\n";
    text += "  neighbor muster maximum-prefix 64 restart 1\n";
    for (Origin { address, number, .. }, _) in origins(intent) {
        text += &format!("  neighbor {address} prefix-list muster-node-{number} in\n");
    }
    text + "  maximum-paths 16\n exit-address-family\n"
}

fn ospf_lists(intent: &TorIntent, second: &SecondTor) -> String {
    let mut text = prefix_list("muster-from-nodes", origins(intent).map(|(_, own)| own.pods));
    text += &prefix_list("muster-to-nodes", audible(intent, second));
    text += "route-map muster-from-nodes6 permit 10\n match ipv6 address prefix-list muster-from-nodes\nexit\n!\n";
    text + "route-map muster-to-nodes6 permit 10\n match ipv6 address prefix-list muster-to-nodes\n set metric 1000\nexit\n!\n"
}

/// The lines of the link to the rack.
pub(super) fn ospf_interface(intent: &TorIntent, area: u32) -> String {
    if intent.second.is_none() {
        return String::new();
    }
    let mut text = format!(" ipv6 ospf6 area {area}\n ipv6 ospf6 network broadcast\n");
    text += " ipv6 ospf6 hello-interval 1\n ipv6 ospf6 dead-interval 4\n ipv6 ospf6 cost 10\n";
    text += " ipv6 ospf6 priority 10\n ipv6 ospf6 bfd\n ipv6 ospf6 bfd profile muster\n";
    if intent.key.is_some() {
        text += " ipv6 ospf6 authentication keychain muster\n";
    }
    text
}

/// The instance of OSPFv3.
pub(super) fn ospf_instance(intent: &TorIntent) -> String {
    if intent.second.is_none() {
        return String::new();
    }
    let mut text = format!("!\nrouter ospf6\n ospf6 router-id {}\n", intent.address);
    text += " redistribute connected route-map muster-to-nodes6\n";
    text += " redistribute bgp route-map muster-to-nodes6\n maximum-paths 16\nexit\n!\n";
    text + "ipv6 protocol ospf6 route-map muster-from-nodes6\n"
}
