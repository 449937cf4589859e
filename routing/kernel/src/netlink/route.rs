//! Routes of the main table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::RouteMessageBuilder;

use super::request::Request;
use super::{Cause, LinkIndex, Netlink, NetlinkError};

/// One route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which packets it is for.
    pub destination: IpNet,
    /// What happens to them.
    pub kind: RouteKind,
    /// The source address this host prefers on it, when one is set.
    pub source: Option<IpAddr>,
    /// Preference among routes to one destination, smaller first; `None` is the kernel's own.
    pub metric: Option<u32>,
    /// Who put it there.
    pub origin: RouteOrigin,
}

/// What a route does with its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteKind {
    /// Hands them to one of these next hops; never empty.
    Unicast(Vec<NextHop>),
    /// Drops them without a word.
    Blackhole,
    /// Drops them and tells the sender.
    Unreachable,
    /// Anything else: local, broadcast, multicast, prohibit.
    Other,
}

/// One way a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The router; `None` when the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The link; `None` lets the kernel find it by the gateway.
    pub link: Option<LinkIndex>,
    /// The gateway is on the link although no prefix of the link says so.
    pub onlink: bool,
}

impl NextHop {
    /// The destination itself is on this link.
    #[must_use]
    pub fn on(link: LinkIndex) -> Self {
        Self { gateway: None, link: Some(link), onlink: false }
    }
}

/// Who put a route into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteOrigin {
    /// The kernel, because of an address.
    Kernel,
    /// An administrator, or Muster itself.
    Static,
    /// BIRD.
    Bird,
    /// Somebody else.
    Other,
}

impl Route {
    /// A static route to `destination` on `link`, without a gateway.
    #[must_use]
    pub fn on_link(destination: IpNet, link: LinkIndex) -> Self {
        let kind = RouteKind::Unicast(vec![NextHop::on(link)]);
        Self { destination, kind, source: None, metric: None, origin: RouteOrigin::Static }
    }

    /// A static route to `destination` through `gateway`.
    #[must_use]
    pub fn via(destination: IpNet, hop: NextHop) -> Self {
        let kind = RouteKind::Unicast(vec![hop]);
        Self { destination, kind, source: None, metric: None, origin: RouteOrigin::Static }
    }

    /// A static route that drops everything for `destination`.
    #[must_use]
    pub fn blackhole(destination: IpNet) -> Self {
        let kind = RouteKind::Blackhole;
        Self { destination, kind, source: None, metric: None, origin: RouteOrigin::Static }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        match &self.kind {
            RouteKind::Unicast(hops) => {
                for hop in hops {
                    if let Some(gateway) = hop.gateway {
                        write!(f, " via {gateway}")?;
                    }
                    if let Some(link) = hop.link {
                        write!(f, " on {link}")?;
                    }
                }
                Ok(())
            }
            RouteKind::Blackhole => write!(f, " blackhole"),
            RouteKind::Unreachable => write!(f, " unreachable"),
            RouteKind::Other => write!(f, " other"),
        }
    }
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    ///
    /// When it is there already ([`NetlinkError::is_exists`]) or the kernel refuses.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.change(Request::add_route(route)?).await
    }

    /// Adds a route, or puts it in the place of one with the same destination and metric.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.change(Request::replace_route(route)?).await
    }

    /// Deletes a route.
    ///
    /// # Errors
    ///
    /// When it is not there ([`NetlinkError::is_missing`]) or the kernel refuses.
    pub async fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.change(Request::delete_route(route)?).await
    }

    /// Lists the main table of one address family, in the kernel's order.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn routes(&self, family: Family) -> Result<Vec<Route>, NetlinkError> {
        let request = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let error = |err| NetlinkError::new("list", "routes", Cause::Request(err));
        let messages: Vec<RouteMessage> =
            self.handle.route().get(request).execute().try_collect().await.map_err(error)?;
        Ok(messages.iter().filter_map(parse_route).collect())
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

pub(super) fn route_message(
    operation: &'static str,
    route: &Route,
) -> Result<RouteMessage, NetlinkError> {
    let destination = route.destination;
    let bad = || NetlinkError::new(operation, route, Cause::BadPrefix);
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .map_err(|_| bad())?
        .protocol(match route.origin {
            RouteOrigin::Kernel => RouteProtocol::Kernel,
            RouteOrigin::Bird => RouteProtocol::Bird,
            RouteOrigin::Static | RouteOrigin::Other => RouteProtocol::Static,
        });
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(|_| bad())?;
    }
    if let Some(metric) = route.metric {
        builder = builder.priority(metric);
    }
    match &route.kind {
        RouteKind::Blackhole => builder = builder.kind(RouteType::BlackHole),
        RouteKind::Unreachable => builder = builder.kind(RouteType::Unreachable),
        RouteKind::Other => (),
        RouteKind::Unicast(hops) => match hops.as_slice() {
            [hop] => builder = one_hop(builder, *hop).map_err(|()| bad())?,
            hops => {
                let hops: Result<Vec<_>, ()> = hops.iter().map(|hop| next_hop(*hop)).collect();
                builder = builder.multipath(hops.map_err(|()| bad())?);
            }
        },
    }
    Ok(builder.build())
}

fn one_hop(
    mut builder: RouteMessageBuilder<IpAddr>,
    hop: NextHop,
) -> Result<RouteMessageBuilder<IpAddr>, ()> {
    match hop.gateway {
        Some(gateway) => builder = builder.gateway(gateway).map_err(|_| ())?,
        None => builder = builder.scope(RouteScope::Link),
    }
    if let Some(link) = hop.link {
        builder = builder.output_interface(link.0);
    }
    Ok(if hop.onlink { builder.onlink() } else { builder })
}

fn next_hop(hop: NextHop) -> Result<netlink_packet_route::route::RouteNextHop, ()> {
    let mut builder = match hop.gateway {
        Some(gateway @ IpAddr::V4(_)) => {
            rtnetlink::RouteNextHopBuilder::new_ipv4().via(gateway).map_err(|_| ())?
        }
        Some(gateway @ IpAddr::V6(_)) => {
            rtnetlink::RouteNextHopBuilder::new_ipv6().via(gateway).map_err(|_| ())?
        }
        None => rtnetlink::RouteNextHopBuilder::new_ipv4(),
    };
    if let Some(link) = hop.link {
        builder = builder.interface(link.0);
    }
    Ok(if hop.onlink { builder.onlink().build() } else { builder.build() })
}

/// Reads a route; `None` for another table's, or one whose shape we do not know.
pub(crate) fn parse_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut address = None;
    let (mut source, mut metric) = (None, None);
    let mut single =
        NextHop { gateway: None, link: None, onlink: header.flags.contains(RouteFlags::Onlink) };
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(destination) => address = ip(destination),
            RouteAttribute::PrefSource(preferred) => source = ip(preferred),
            RouteAttribute::Priority(priority) => metric = Some(*priority),
            RouteAttribute::Gateway(gateway) => single.gateway = ip(gateway),
            RouteAttribute::Via(via) => single.gateway = via_ip(via),
            RouteAttribute::Oif(index) => single.link = Some(LinkIndex(*index)),
            RouteAttribute::MultiPath(many) => {
                for one in many {
                    let gateway = one.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(gateway) => ip(gateway),
                        RouteAttribute::Via(via) => via_ip(via),
                        _ => None,
                    });
                    let onlink = one.flags.contains(RouteNextHopFlags::Onlink);
                    let link = Some(LinkIndex(one.interface_index));
                    hops.push(NextHop { gateway, link, onlink });
                }
            }
            _ => (),
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let destination = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => {
            let IpAddr::V4(v4) = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) else {
                return None;
            };
            IpNet::V4(Ipv4Net::new(v4, header.destination_prefix_length).ok()?)
        }
        netlink_packet_route::AddressFamily::Inet6 => {
            let IpAddr::V6(v6) = address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()) else {
                return None;
            };
            IpNet::V6(Ipv6Net::new(v6, header.destination_prefix_length).ok()?)
        }
        _ => return None,
    };
    let kind = match header.kind {
        RouteType::Unicast if hops.is_empty() => RouteKind::Unicast(vec![single]),
        RouteType::Unicast => RouteKind::Unicast(hops),
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => RouteKind::Other,
    };
    let origin = match header.protocol {
        RouteProtocol::Kernel => RouteOrigin::Kernel,
        RouteProtocol::Bird => RouteOrigin::Bird,
        RouteProtocol::Static | RouteProtocol::Boot => RouteOrigin::Static,
        _ => RouteOrigin::Other,
    };
    Some(Route { destination, kind, source, metric, origin })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn via_ip(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteVia::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
