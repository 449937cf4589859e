//! What the router's round reads from the kernel and writes to files, in the words of `routes`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ipnet::{IpNet, Ipv6Net};
use kernel::{
    Address, AddressScope, Family, Link, LinkIndex, Netlink, NextHop, Route, RouteKind, RouteOrigin,
};
use routes::birdc::ProtocolRow;
use routes::compare::{KernelRoute, Way};
use routes::{Intent, Survey};

use super::{Known, RouterError};

/// Settings a node forwards with. Loose reverse-path checks, because ways there and back differ
/// with several routers; flows, not packets, are spread over them.
const SETTINGS: [(&str, &str); 5] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    // Pods and their neighbours share the uplink only by way of us: nothing to redirect to.
    ("net/ipv4/conf/all/send_redirects", "0"),
];
/// The same for IPv6, on a site that has it.
const SETTINGS_V6: [(&str, &str); 2] =
    [("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/fib_multipath_hash_policy", "1")];

/// The settings of a node, with or without IPv6.
pub(super) fn settings(has_v6: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS.into_iter().chain(SETTINGS_V6.into_iter().filter(move |_| has_v6))
}

/// Writes a file that nobody else may read.
pub(super) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // A file that is there keeps its mode.
    match fs::remove_file(path) {
        Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
        Ok(()) | Err(_) => (),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// A survey as its file holds it.
pub(super) fn render_survey(survey: &Survey) -> String {
    // Names and addresses under string keys: there is nothing JSON cannot say.
    serde_json::to_string(survey).unwrap_or_default() + "\n"
}

pub(super) fn describe(row: &ProtocolRow) -> String {
    format!("{} ({})", row.name, row.info)
}

/// `SERVICES dev lo`: an address that no route leads to fails before nat has seen it.
pub(super) fn services_route(intent: &Intent, loopback: LinkIndex) -> Route {
    let mut route = Route::on_link(IpNet::V4(intent.networks.services), loopback);
    route.source = Some(IpAddr::V4(intent.address));
    route
}

/// An address that several nodes hold: on the loopback link, where nobody is asked for it by ARP.
pub(super) fn shared(address: Ipv4Addr) -> Address {
    Address { address: IpAddr::V4(address), prefix_len: 32, scope: AddressScope::Global }
}

pub(super) fn same_way(found: &Route, wanted: &Route) -> bool {
    found.destination == wanted.destination
        && found.kind == wanted.kind
        && found.source == wanted.source
}

/// What the kernel has that routing follows from, or follows from routing.
#[derive(Debug)]
pub(super) struct KernelView {
    /// The link that holds the node's address.
    pub(super) uplink: Link,
    /// All addresses of that link.
    pub(super) addresses: Vec<Address>,
    /// The loopback link.
    pub(super) loopback: LinkIndex,
    /// The routes of each family that the site has.
    pub(super) routes: Vec<Route>,
}

impl KernelView {
    pub(super) fn has_address(&self, wanted: &Address) -> bool {
        self.addresses.iter().any(|one| one.address == wanted.address)
    }
}

/// The node's own IPv6 address, in its rack's subnet; `None` on a site of IPv4 alone.
pub(super) fn own_v6(intent: &Intent) -> Option<Address> {
    let second = intent.second.as_ref()?;
    let prefix_len = second.subnet.prefix_len();
    Some(Address { address: second.address.into(), prefix_len, scope: AddressScope::Global })
}

/// As [`services_route`], by the uplink: the kernel makes blackholes of IPv6 routes by the
/// loopback link.
pub(super) fn services_route_v6(intent: &Intent, uplink: LinkIndex) -> Option<Route> {
    let second = intent.second.as_ref()?;
    let mut route = Route::on_link(IpNet::V6(second.services), uplink);
    route.source = Some(IpAddr::V6(second.address));
    Some(route)
}

/// What no router announces goes by the gateway, as booting left it for IPv4. Routes of BIRD come
/// before it (metric 32 before 1024).
pub(super) fn default_route_v6(intent: &Intent, uplink: LinkIndex) -> Option<Route> {
    let second = intent.second.as_ref()?;
    let gateway = Some(IpAddr::V6(second.gateway));
    let hop = NextHop { gateway, link: Some(uplink), onlink: false };
    let mut route = Route::via(IpNet::V6(Ipv6Net::default()), hop);
    route.source = Some(IpAddr::V6(second.address));
    Some(route)
}

/// Looks at links, addresses and routes.
pub(super) async fn kernel_view(
    netlink: &Netlink,
    known: &Known,
    node: &str,
) -> Result<KernelView, RouterError> {
    let address = known
        .machines
        .iter()
        .find(|machine| machine.name == node)
        .map_or(std::net::Ipv4Addr::UNSPECIFIED, |machine| machine.address);
    let links = netlink.links().await.map_err(RouterError::Kernel)?;
    let mut loopback = None;
    let mut uplink = None;
    for link in links {
        if link.loopback {
            loopback = Some(link.index);
            continue;
        }
        // Pods' links carry only the gateway's address; asking them all would be slow with many.
        if uplink.is_some() || link.name.starts_with(crate::cni::LINK_PREFIX) {
            continue;
        }
        let addresses = netlink.addresses(link.index).await.map_err(RouterError::Kernel)?;
        if addresses.iter().any(|one| one.address == IpAddr::V4(address)) {
            uplink = Some((link, addresses));
        }
    }
    let mut routes = netlink.routes(Family::V4).await.map_err(RouterError::Kernel)?;
    if known.networks.v6().is_some() {
        routes.extend(netlink.routes(Family::V6).await.map_err(RouterError::Kernel)?);
    }
    let (uplink, addresses) = uplink.ok_or(RouterError::NoUplink(address))?;
    let loopback = loopback.ok_or(RouterError::NoLoopback)?;
    Ok(KernelView { uplink, addresses, loopback, routes })
}

/// The kernel's routes in the words of `routes`.
pub(super) fn kernel_routes(routes: &[Route]) -> Vec<KernelRoute> {
    let way = |kind: &RouteKind| match kind {
        RouteKind::Unicast(hops) => {
            let gateways: Vec<_> = hops.iter().filter_map(|hop| hop.gateway).collect();
            if gateways.is_empty() { Way::Link } else { Way::Via(gateways) }
        }
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Other => Way::Blackhole,
    };
    let route = |route: &Route| KernelRoute {
        destination: route.destination,
        way: way(&route.kind),
        by_bird: route.origin == RouteOrigin::Bird,
    };
    routes.iter().map(route).collect()
}
