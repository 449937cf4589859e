//! Addresses of monitors and servers: the kernel resolves no names.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use runtime::report;
use tracing::warn;
use volumes::rbd::Monitor;

use super::RemoteError;

pub(super) async fn resolve_all(monitors: &[String]) -> Result<Vec<SocketAddr>, RemoteError> {
    let mut all = Vec::new();
    for monitor in monitors.iter().filter_map(|one| Monitor::parse(one)) {
        match resolve(&monitor.host, monitor.port).await {
            Ok(address) => all.push(address),
            // The others may do.
            Err(err) if monitors.len() > 1 => warn!(err = report(&err), "monitor left out"),
            Err(err) => return Err(err),
        }
    }
    if all.is_empty() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Err(RemoteError::Address { host: monitors.join(","), source });
    }
    Ok(all)
}

pub(super) async fn resolve(host: &str, port: u16) -> Result<SocketAddr, RemoteError> {
    let failed = |source| RemoteError::Address { host: host.to_owned(), source };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut found = tokio::net::lookup_host((bare, port)).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

/// Our address towards another; nothing is sent.
pub(super) fn own_address(to: IpAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if to.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect((to, 9))?;
    Ok(socket.local_addr()?.ip())
}
