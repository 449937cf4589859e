//! The links, addresses and routes of one pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::netns::Namespace;
use kernel::sync::{Change, Network};
use kernel::{
    Address, AddressScope, Family, Link, LinkIndex, NetlinkError, NextHop, Route, RouteKind, Veth,
};

use super::message::Failure;
use super::{Call, LINK_PREFIX};
use crate::pod_network::{PodNetwork, PodNetworkV6};

/// What the kernel chose while a pod was wired.
#[derive(Debug)]
pub(super) struct Wired {
    pub(super) host_mac: String,
    pub(super) pod_mac: String,
}

/// The name of a pod's host end: the same for the same container and link, so that DEL finds it
/// without a record.
pub(super) fn host_name(container: &str, interface: &str) -> String {
    // FNV-1a: spread matters, secrecy does not.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in container.bytes().chain([0]).chain(interface.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // Twelve digits beside the prefix are the kernel's fifteen characters.
    format!("{LINK_PREFIX}{:012x}", hash & 0xffff_ffff_ffff)
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn single(address: IpAddr, scope: AddressScope) -> Address {
    Address { address, prefix_len: host(address).prefix_len(), scope }
}

/// A pod's address of one family, with what stands on the other side of its link.
#[derive(Debug, Clone, Copy)]
struct Half {
    address: IpAddr,
    gateway: IpAddr,
    /// The node's own address of that family.
    node: IpAddr,
}

impl Half {
    /// What a pod has: an address of each of the site's families.
    fn all(address: Ipv4Addr, pods: &PodNetwork) -> impl Iterator<Item = Self> {
        let first = Self {
            address: address.into(),
            gateway: pods.gateway.into(),
            node: pods.node_address.into(),
        };
        let half = |(address, v6): (Ipv6Addr, &PodNetworkV6)| Self {
            address: address.into(),
            gateway: v6.gateway.into(),
            node: v6.node_address.into(),
        };
        let second = pods.address_v6(address).zip(pods.v6.as_ref()).map(half);
        std::iter::once(first).chain(second)
    }

    fn family(&self) -> Family {
        match self.address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    fn default_route(&self) -> IpNet {
        match self.address {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        }
    }

    /// The node speaks to its pods as itself, not as their gateway.
    fn route(&self, link: &Link) -> Route {
        let mut route = Route::on_link(host(self.address), link.index);
        route.source = Some(self.node);
        route
    }
}

fn failed(err: &NetlinkError) -> Failure {
    Failure::wiring(runtime::report(err))
}

fn open(call: &Call) -> Result<Namespace, Failure> {
    let path = call.namespace.as_deref().unwrap_or(Path::new(""));
    Namespace::open(path).map_err(|err| Failure::environment(runtime::report(&err)))
}

/// Refuses a container that has our own namespace: the node's links are not a pod's.
pub(super) fn not_our_own(call: &Call) -> Result<(), Failure> {
    let identity = |path: &Path| Some(std::fs::metadata(path).ok()?.st_ino());
    let theirs = call.namespace.as_deref().and_then(identity);
    if theirs.is_some() && theirs == identity(Path::new(OWN_NAMESPACE)) {
        let why = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Failure::namespace(why));
    }
    Ok(())
}

fn network() -> Result<Network, Failure> {
    Network::open().map_err(|err| failed(&err))
}

/// The network of the pod's namespace.
fn network_in(namespace: &Namespace) -> Result<Network, Failure> {
    Network::open_in(namespace).map_err(|err| Failure::wiring(runtime::report(&err)))
}

/// The calling thread's network namespace.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Every namespace's loopback link has this number.
const LOOPBACK: LinkIndex = LinkIndex(1);

/// Connects a pod; what an earlier, cut-off call left is removed first.
///
/// No thread is started, nothing is asked that is known, and what can go together does: on a busy
/// machine each switch costs more than the kernel's work.
pub(super) fn connect(
    call: &Call,
    host_end: &str,
    address: Ipv4Addr,
    pods: &PodNetwork,
) -> Result<Wired, Failure> {
    let namespace = open(call)?;
    let here = network()?;
    let there = network_in(&namespace)?;
    let veth =
        Veth { name: host_end, peer: &call.interface, peer_namespace: &namespace, mtu: pods.mtu };
    let host = match here.add_veth(&veth) {
        Ok(link) => link,
        Err(err) => {
            let left = here.link(host_end).map_err(|err| failed(&err))?;
            // Another link of the pod's has the name, or something else is wrong.
            let Some(left) = left.filter(|_| err.is_exists()) else { return Err(failed(&err)) };
            here.delete_link(left.index).map_err(|err| failed(&err))?;
            here.add_veth(&veth).map_err(|err| failed(&err))?
        }
    };
    let pod = pod_side(&there, &call.interface, address, pods);
    let pod = pod.map_err(|err| failed(&err))?;
    host_side(&here, &host, address, pods).map_err(|err| failed(&err))?;
    Ok(Wired { host_mac: host.mac, pod_mac: pod.mac })
}

fn pod_side(
    there: &Network,
    interface: &str,
    address: Ipv4Addr,
    pods: &PodNetwork,
) -> Result<Link, NetlinkError> {
    let link = there.apply_and_find(&[Change::SetUp(LOOPBACK)], interface)?;
    let mut routes = Vec::new();
    let mut changes = vec![Change::SetUp(link.index)];
    for half in Half::all(address, pods) {
        let own = single(half.address, AddressScope::Global);
        changes.push(Change::AddAddress(link.index, own));
        // Addresses of the link itself need no route.
        if half.family() == Family::V4 {
            routes.push(Route::on_link(host(half.gateway), link.index));
        }
        let gateway = Some(half.gateway);
        let hop = NextHop { gateway, link: Some(link.index), onlink: true };
        routes.push(Route::via(half.default_route(), hop));
    }
    changes.extend(routes.iter().map(Change::ReplaceRoute));
    there.apply(&changes)?;
    Ok(link)
}

fn host_side(
    here: &Network,
    link: &Link,
    address: Ipv4Addr,
    pods: &PodNetwork,
) -> Result<(), NetlinkError> {
    let halves: Vec<Half> = Half::all(address, pods).collect();
    let gateway =
        |half: &Half| Change::AddAddress(link.index, single(half.gateway, AddressScope::Link));
    let routes: Vec<Route> = halves.iter().map(|half| half.route(link)).collect();
    let addresses = halves.iter().map(gateway);
    let changes: Vec<Change<'_>> =
        addresses.chain(routes.iter().map(Change::ReplaceRoute)).collect();
    here.apply(&changes)
}

/// Removes a pod's host end, and with it the pod's; nothing there is fine.
pub(super) fn remove(host_end: &str) -> Result<(), Failure> {
    let here = network()?;
    let Some(link) = here.link(host_end).map_err(|err| failed(&err))? else { return Ok(()) };
    match here.delete_link(link.index) {
        // The kernel was faster: the namespace ended meanwhile.
        Err(err) if err.is_missing() => Ok(()),
        other => other.map_err(|err| failed(&err)),
    }
}

/// Is everything as [`connect`] left it?
pub(super) fn check(
    call: &Call,
    host_end: &str,
    address: Ipv4Addr,
    pods: &PodNetwork,
) -> Result<(), Failure> {
    let here = network()?;
    let missing = |what: String| Failure::wiring(format!("{what} is missing"));
    let link = here.link(host_end).map_err(|err| failed(&err))?;
    let link = link.filter(|link| link.up).ok_or_else(|| missing(format!("link {host_end}")))?;
    for half in Half::all(address, pods) {
        let routes = here.routes(half.family()).map_err(|err| failed(&err))?;
        let wanted = half.route(&link);
        let right = |one: &Route| one.destination == wanted.destination && one.kind == wanted.kind;
        if !routes.iter().any(right) {
            return Err(missing(format!("the route to {}", half.address)));
        }
    }
    let namespace = open(call)?;
    let there = network_in(&namespace)?;
    let link = there.require_link(&call.interface).map_err(|err| failed(&err))?;
    let addresses = there.addresses(link.index).map_err(|err| failed(&err))?;
    for half in Half::all(address, pods) {
        if !addresses.iter().any(|one| one.address == half.address) {
            return Err(missing(format!("address {} of {}", half.address, call.interface)));
        }
        let routes = there.routes(half.family()).map_err(|err| failed(&err))?;
        let gateway = Some(half.gateway);
        let default = |route: &Route| match &route.kind {
            RouteKind::Unicast(hops) => {
                route.destination.prefix_len() == 0 && hops.iter().any(|hop| hop.gateway == gateway)
            }
            RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Other => false,
        };
        if !routes.iter().any(default) {
            return Err(missing(format!("the default route of {}", call.interface)));
        }
    }
    Ok(())
}

/// Sets a pod's loopback link up.
pub(super) fn loopback(call: &Call) -> Result<(), Failure> {
    let namespace = open(call)?;
    let there = network_in(&namespace)?;
    let link = there.require_link(&call.interface).map_err(|err| failed(&err))?;
    there.set_up(link.index).map_err(|err| failed(&err))
}
