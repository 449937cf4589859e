//! What the router's round reads from the kernel and writes to files, in the words of `routes`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ipnet::IpNet;
use kernel::{
    Address, AddressScope, Family, Link, LinkIndex, Netlink, Route, RouteKind, RouteOrigin,
};
use routes::birdc::ProtocolRow;
use routes::compare::{KernelRoute, Way};
use routes::{Intent, Survey};

use super::{Known, RouterError};

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

/// The link that holds the node's address, the loopback link, and the IPv4 routes.
pub(super) async fn kernel_view(
    netlink: &Netlink,
    known: &Known,
    node: &str,
) -> Result<(Link, LinkIndex, Vec<Route>), RouterError> {
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
            uplink = Some(link);
        }
    }
    let routes = netlink.routes(Family::V4).await.map_err(RouterError::Kernel)?;
    Ok((
        uplink.ok_or(RouterError::NoUplink(address))?,
        loopback.ok_or(RouterError::NoLoopback)?,
        routes,
    ))
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
