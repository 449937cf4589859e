//! The UDP sockets of DHCP: one that hears relays, and one per local segment for broadcasts.
//!
//! A socket bound to the seed's address hears unicast alone, by whatever interface it comes. A
//! socket bound to an interface hears the broadcasts of its segment, and thereby tells which
//! subnet a machine without an address stands in.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use boot::Arrival;
use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::Config;
use crate::desk::Listener;

/// A thousand machines asking at once fit; the default of 212 KB drops half of them.
const RECEIVE_BUFFER_LEN: usize = 4 << 20;

/// On which segments broadcasts are heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segments {
    /// On each interface that has an address in a subnet of the plan's racks.
    Detect,
    /// On none: all machines are behind relays.
    None,
}

/// Where a socket could not be opened.
pub(crate) struct OpenFailure {
    pub(crate) address: SocketAddr,
    pub(crate) source: std::io::Error,
}

/// Opens the sockets of DHCP; the first is the one for unicast.
pub(crate) fn open_all(config: &Config) -> Result<Vec<Listener>, OpenFailure> {
    let listen = &config.listen;
    let failure = |address: SocketAddrV4| {
        move |source| OpenFailure { address: SocketAddr::V4(address), source }
    };
    let unicast = open_unicast(listen.dhcp).map_err(failure(listen.dhcp))?;
    let arrival = Arrival { socket: 0, segment: None };
    let mut listeners = vec![Listener { socket: Arc::new(unicast), arrival }];
    if listen.segments == Segments::None {
        return Ok(listeners);
    }
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, listen.dhcp.port());
    for (interface, segment) in local_segments(config)
        .map_err(|errno| OpenFailure { address: SocketAddr::V4(any), source: errno.into() })?
    {
        let socket = open(any, Some(&interface)).map_err(failure(any))?;
        tracing::info!(%interface, subnet = %segment, "hearing broadcasts");
        let arrival = Arrival { socket: listeners.len(), segment: Some(segment) };
        listeners.push(Listener { socket: Arc::new(socket), arrival });
    }
    Ok(listeners)
}

/// Opens a socket on one address.
pub(crate) fn open_unicast(address: SocketAddrV4) -> std::io::Result<UdpSocket> {
    open(address, None)
}

/// Opens a socket that may broadcast, on all interfaces or one.
pub(crate) fn open(address: SocketAddrV4, interface: Option<&str>) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    // Best effort: beyond the system's limit only root may go.
    let _granted = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_LEN).is_ok()
        || socket.set_recv_buffer_size(RECEIVE_BUFFER_LEN).is_ok();
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.bind(&SocketAddr::V4(address).into())?;
    UdpSocket::from_std(socket.into())
}

/// The interfaces with an address in a rack's subnet.
pub(crate) fn local_segments(config: &Config) -> nix::Result<Vec<(String, Ipv4Net)>> {
    let mut found: Vec<(String, Ipv4Net)> = Vec::new();
    for entry in getifaddrs()? {
        let address = entry.address.and_then(|address| address.as_sockaddr_in().map(|v4| v4.ip()));
        let Some(address) = address else {
            continue;
        };
        let rack = config.plan.racks.iter().find(|rack| rack.subnet.contains(&address));
        if let Some(rack) = rack
            && found.iter().all(|(interface, _)| *interface != entry.interface_name)
        {
            found.push((entry.interface_name, rack.subnet));
        }
    }
    Ok(found)
}
