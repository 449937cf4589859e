//! The boot network card: link, address, default route and the DHCP socket, without netlink.
//!
//! For the initramfs, where one card gets one address once; everything later goes through
//! netlink. Knows nothing of DHCP itself.
//!
//! Spec: netdevice(7), packet sizes of the 64-bit Linux ABI.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// linux/sockios.h.
const SIOCADDRT: libc::Ioctl = 0x890B;
const SIOCGIFFLAGS: libc::Ioctl = 0x8913;
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;
const SIOCSIFADDR: libc::Ioctl = 0x8916;
const SIOCSIFNETMASK: libc::Ioctl = 0x891C;
const SIOCSIFMTU: libc::Ioctl = 0x8922;

/// `struct ifreq`: 16 bytes of name, then a union.
const IFREQ_BYTES: usize = 40;
const IFREQ_NAME_BYTES: usize = 16;
/// `struct rtentry` and the fields used of it.
const RTENTRY_BYTES: usize = 120;
const ROUTE_TARGET_AT: usize = 8;
const ROUTE_GATEWAY_AT: usize = 24;
const ROUTE_MASK_AT: usize = 40;
const ROUTE_FLAGS_AT: usize = 56;
const ROUTE_METRIC_AT: usize = 80;
/// `RTF_UP | RTF_GATEWAY`.
const ROUTE_FLAGS: u16 = 3;
/// What is learnt of routers later goes first; BIRD's routes have metric 32.
const ROUTE_METRIC: u16 = 1024;
const IFF_UP: u16 = 1;

/// The ports of a DHCP client. Spec: RFC 2131 §4.1.
const DHCP_CLIENT_PORT: u16 = 68;

/// `ARPHRD_ETHER`, as `/sys/class/net/*/type` shows it.
const ETHERNET: &str = "1";

/// Says which step on a network card failed.
#[derive(Debug, Error)]
pub enum PacketError {
    /// The list of cards cannot be read.
    #[error("cannot list the network cards")]
    List(#[source] io::Error),
    /// No socket could be made or bound.
    #[error("cannot open a socket on {link}")]
    Socket {
        /// The card.
        link: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a setting.
    #[error("cannot {step} on {link}")]
    Refused {
        /// What was being set.
        step: &'static str,
        /// The card.
        link: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The name is longer than the kernel allows.
    #[error("{link} is no name of a network card")]
    Name {
        /// The name as given.
        link: String,
    },
}

/// An Ethernet card.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Card {
    /// Hardware address.
    pub mac: [u8; 6],
    /// The kernel's name of it.
    pub name: String,
}

/// Lists the machine's own Ethernet cards, lowest hardware address first.
///
/// Devices without hardware behind them (bridges, bonds, loopback) are left out.
///
/// # Errors
///
/// When sysfs cannot be read.
pub fn list_cards() -> Result<Vec<Card>, PacketError> {
    let mut cards = Vec::new();
    for entry in fs::read_dir("/sys/class/net").map_err(PacketError::List)?.flatten() {
        let dir = entry.path();
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        if text("type").trim() != ETHERNET || !dir.join("device").exists() {
            continue;
        }
        if let (Some(mac), Ok(name)) =
            (parse_mac(text("address").trim()), entry.file_name().into_string())
        {
            cards.push(Card { mac, name });
        }
    }
    cards.sort();
    Ok(cards)
}

/// Says whether the card has a link partner; a card that is down has none.
#[must_use]
pub fn has_carrier(link: &str) -> bool {
    let path = Path::new("/sys/class/net").join(link).join("carrier");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

/// Switches a card on.
///
/// # Errors
///
/// When the card does not exist or its driver refuses.
pub fn bring_up(link: &str) -> Result<(), PacketError> {
    let mut request = Request::new(link)?;
    request.send(SIOCGIFFLAGS, "read the flags")?;
    let [low, high] = request.value([IFREQ_NAME_BYTES, IFREQ_NAME_BYTES + 1]);
    let flags = u16::from_ne_bytes([low, high]) | IFF_UP;
    request.put(&flags.to_ne_bytes());
    request.send(SIOCSIFFLAGS, "switch the card on")
}

/// Gives a card its one address.
///
/// # Errors
///
/// When the kernel refuses.
pub fn set_address(link: &str, address: Ipv4Addr, prefix_len: u8) -> Result<(), PacketError> {
    let mut request = Request::new(link)?;
    request.put(&socket_address(address));
    request.send(SIOCSIFADDR, "set the address")?;
    let mut request = Request::new(link)?;
    request.put(&socket_address(netmask(prefix_len)));
    request.send(SIOCSIFNETMASK, "set the netmask")
}

/// Sets the largest packet a card sends.
///
/// # Errors
///
/// When the driver refuses the size.
pub fn set_mtu(link: &str, mtu_bytes: u16) -> Result<(), PacketError> {
    let mut request = Request::new(link)?;
    request.put(&i32::from(mtu_bytes).to_ne_bytes());
    request.send(SIOCSIFMTU, "set the MTU")
}

/// Sends everything that no other route takes through `gateway`.
///
/// # Errors
///
/// When the gateway is not reachable through the card's own network.
pub fn set_default_route(link: &str, gateway: Ipv4Addr) -> Result<(), PacketError> {
    let mut entry = [0; RTENTRY_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in entry.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    put(ROUTE_TARGET_AT, &socket_address(Ipv4Addr::UNSPECIFIED));
    put(ROUTE_GATEWAY_AT, &socket_address(gateway));
    put(ROUTE_MASK_AT, &socket_address(Ipv4Addr::UNSPECIFIED));
    put(ROUTE_FLAGS_AT, &ROUTE_FLAGS.to_ne_bytes());
    // The kernel takes one off: its own zero means that none was given.
    put(ROUTE_METRIC_AT, &ROUTE_METRIC.saturating_add(1).to_ne_bytes());
    call(link, SIOCADDRT, &mut entry, "set the default route")
}

/// Opens a socket for DHCP on one card, which needs no address yet.
///
/// Answers are seen only when they are broadcast, so requests must carry the broadcast flag.
///
/// # Errors
///
/// When the card does not exist or the port is taken.
pub fn open_dhcp_socket(link: &str, patience: Duration) -> Result<UdpSocket, PacketError> {
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(link.as_bytes()))?;
        socket.set_read_timeout(Some(patience))?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DHCP_CLIENT_PORT).into())?;
        Ok(socket.into())
    };
    open().map_err(|source| PacketError::Socket { link: link.to_owned(), source })
}

/// A `struct ifreq` and the card it is about.
struct Request {
    link: String,
    bytes: [u8; IFREQ_BYTES],
}

impl Request {
    fn new(link: &str) -> Result<Self, PacketError> {
        // The last byte of the name stays 0.
        if link.is_empty() || link.len() >= IFREQ_NAME_BYTES {
            return Err(PacketError::Name { link: link.to_owned() });
        }
        let mut bytes = [0; IFREQ_BYTES];
        for (place, byte) in bytes.iter_mut().zip(link.bytes()) {
            *place = byte;
        }
        Ok(Self { link: link.to_owned(), bytes })
    }

    fn put(&mut self, value: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(IFREQ_NAME_BYTES).zip(value) {
            *place = *byte;
        }
    }

    fn value<const N: usize>(&self, places: [usize; N]) -> [u8; N] {
        places.map(|at| self.bytes.get(at).copied().unwrap_or_default())
    }

    fn send(&mut self, code: libc::Ioctl, step: &'static str) -> Result<(), PacketError> {
        call(&self.link, code, &mut self.bytes, step)
    }
}

/// Sends one request about a card over a throw-away socket.
fn call<const N: usize>(
    link: &str,
    code: libc::Ioctl,
    bytes: &mut [u8; N],
    step: &'static str,
) -> Result<(), PacketError> {
    // The kernel reads and writes as many bytes as its structures have, so nothing shorter may
    // reach it.
    const { assert!(N >= IFREQ_BYTES) };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .map_err(|source| PacketError::Socket { link: link.to_owned(), source })?;
    // SAFETY: every caller passes a buffer of the size of the structure its request takes
    // (`ifreq`, or `rtentry` for SIOCADDRT) without pointers in it; it is exclusively borrowed.
    // JUSTIFICATION: neither std nor nix wraps these requests, and netlink would bring an
    // asynchronous runtime into the initramfs.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, bytes.as_mut_ptr()) };
    Errno::result(result).map(drop).map_err(|source| PacketError::Refused {
        step,
        link: link.to_owned(),
        source,
    })
}

/// A `struct sockaddr_in` without a port.
fn socket_address(address: Ipv4Addr) -> [u8; 16] {
    let [family_low, family_high] = 2_u16.to_ne_bytes();
    let [a, b, c, d] = address.octets();
    [family_low, family_high, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn netmask(prefix_len: u8) -> Ipv4Addr {
    let host_bits = 32_u32.saturating_sub(prefix_len.into());
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netmask_has_as_many_ones_as_the_prefix_says() {
        for (prefix_len, expected) in
            [(0, "0.0.0.0"), (8, "255.0.0.0"), (23, "255.255.254.0"), (32, "255.255.255.255")]
        {
            assert_eq!(netmask(prefix_len).to_string(), expected);
        }
    }

    #[test]
    fn a_hardware_address_is_six_bytes() {
        assert_eq!(parse_mac("52:54:00:00:00:0a"), Some([0x52, 0x54, 0, 0, 0, 10]));
        for text in ["", "52:54:00:00:00", "52:54:00:00:00:0a:0b", "xx:54:00:00:00:0a"] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    #[test]
    fn an_overlong_name_is_refused() {
        assert!(Request::new("sixteen-letters-").is_err());
        assert!(Request::new("fifteen-letters").is_ok());
    }
}
