//! The network part of this crate for callers without a runtime: the CNI plugin and tests.
//!
//! The kernel has done a request and answered it when sending it returns, so nothing here waits for
//! anybody: one socket, whose requests may go together ([`Network::apply`]). It belongs to the
//! namespace that its thread was in when it was opened.
//!
//! Spec: netlink(7), rtnetlink(7).

use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};

use crate::netlink::{
    Address, Cause, Family, Link, LinkIndex, NetlinkError, NextHop, Request, Route, Veth,
    parse_address, parse_link, parse_route,
};
use crate::netns::{Namespace, NamespaceError};

/// The kernel's answers to one request are shorter, and dumps are cut to what there is room for.
const ANSWER_BYTES: usize = 32 << 10;
/// Netlink's header.
const HEADER_BYTES: usize = 16;

/// A netlink socket of one namespace.
#[derive(Debug)]
pub struct Network {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

/// A change of links, addresses and routes.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// As [`Network::set_up`].
    SetUp(LinkIndex),
    /// As [`Network::add_address`].
    AddAddress(LinkIndex, Address),
    /// As [`Network::replace_route`].
    ReplaceRoute(&'a Route),
}

impl Change<'_> {
    fn request(self) -> Result<Request, NetlinkError> {
        match self {
            Self::SetUp(index) => Ok(Request::set_up(index)),
            Self::AddAddress(index, address) => Ok(Request::add_address(index, address)),
            Self::ReplaceRoute(route) => Request::replace_route(route),
        }
    }
}

fn requests(changes: &[Change<'_>]) -> Result<Vec<Request>, NetlinkError> {
    changes.iter().map(|change| change.request()).collect()
}

impl Network {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let kind = (SockType::Raw, SockProtocol::NetlinkRoute);
        let socket = socket(AddressFamily::Netlink, kind.0, flags, kind.1)
            .map_err(|errno| NetlinkError::new("open", "rtnetlink socket", socket_error(errno)))?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// Opens a socket of another namespace, which it belongs to for good. The thread is in that
    /// namespace only for the moment; unlike [`Namespace::enter`] this needs no thread of its own,
    /// whose start costs a busy machine more than all the work.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, gives no socket, or cannot be left again; the thread
    /// must do nothing more with the network in the last case.
    pub fn open_in(namespace: &Namespace) -> Result<Self, NamespaceError> {
        let opened = namespace.visit(Self::open)?;
        opened
            .map_err(|source| NamespaceError::Network { path: namespace.path().to_owned(), source })
    }

    /// Makes changes in their order, all of them in one call of the kernel's.
    ///
    /// # Errors
    ///
    /// The first failure; what came after it was tried all the same.
    pub fn apply(&self, changes: &[Change<'_>]) -> Result<(), NetlinkError> {
        self.exchange(&mut requests(changes)?).map(drop)
    }

    /// As [`Self::apply`], and finds a link in the same call.
    ///
    /// # Errors
    ///
    /// As there, and when there is no such link.
    pub fn apply_and_find(&self, changes: &[Change<'_>], name: &str) -> Result<Link, NetlinkError> {
        let mut requests = requests(changes)?;
        requests.push(Request::find_link(name));
        self.find(&mut requests, name)
    }

    /// As [`Netlink::links`](crate::Netlink::links).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut links: Vec<Link> =
            self.ask(Request::list_links())?.iter().filter_map(link).collect();
        links.sort_unstable_by_key(|link| link.index);
        Ok(links)
    }

    /// As [`Netlink::link`](crate::Netlink::link).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self.require_link(name) {
            Ok(link) => Ok(Some(link)),
            Err(err) if err.is_missing() => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// As [`Netlink::require_link`](crate::Netlink::require_link).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn require_link(&self, name: &str) -> Result<Link, NetlinkError> {
        self.find(&mut [Request::find_link(name)], name)
    }

    /// As [`Netlink::set_up`](crate::Netlink::set_up).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_up(&self, index: LinkIndex) -> Result<(), NetlinkError> {
        self.ask(Request::set_up(index)).map(drop)
    }

    /// As [`Netlink::add_veth`](crate::Netlink::add_veth), and shows this end.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add_veth(&self, veth: &Veth<'_>) -> Result<Link, NetlinkError> {
        self.find(&mut [Request::add_veth(veth), Request::find_link(veth.name)], veth.name)
    }

    /// As [`Netlink::delete_link`](crate::Netlink::delete_link).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn delete_link(&self, index: LinkIndex) -> Result<(), NetlinkError> {
        self.ask(Request::delete_link(index)).map(drop)
    }

    /// As [`Netlink::add_address`](crate::Netlink::add_address).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add_address(&self, index: LinkIndex, address: Address) -> Result<(), NetlinkError> {
        self.ask(Request::add_address(index, address)).map(drop)
    }

    /// As [`Netlink::addresses`](crate::Netlink::addresses).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn addresses(&self, index: LinkIndex) -> Result<Vec<Address>, NetlinkError> {
        let address = |message: &Message| match message {
            Message::NewAddress(one) if one.header.index == index.0 => parse_address(one),
            _ => None,
        };
        Ok(self.ask(Request::list_addresses(index))?.iter().filter_map(address).collect())
    }

    /// As [`Netlink::replace_route`](crate::Netlink::replace_route).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.ask(Request::replace_route(route)?).map(drop)
    }

    /// As [`Netlink::delete_route`](crate::Netlink::delete_route).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.ask(Request::delete_route(route)?).map(drop)
    }

    /// As [`Netlink::routes`](crate::Netlink::routes).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn routes(&self, family: Family) -> Result<Vec<Route>, NetlinkError> {
        let route = |message: &Message| match message {
            Message::NewRoute(route) => parse_route(route),
            _ => None,
        };
        Ok(self.ask(Request::list_routes(family))?.iter().filter_map(route).collect())
    }

    /// Sets the default route of the gateway's address family, in place of one there already.
    ///
    /// # Errors
    ///
    /// When the gateway is not on the link or the kernel refuses.
    pub fn set_default_route(&self, index: LinkIndex, gateway: IpAddr) -> Result<(), NetlinkError> {
        let destination = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        let hop = NextHop { gateway: Some(gateway), link: Some(index), onlink: false };
        self.replace_route(&Route::via(destination, hop))
    }

    /// One request and what is answered to it.
    fn ask(&self, request: Request) -> Result<Vec<Message>, NetlinkError> {
        self.exchange(&mut [request])
    }

    /// Some requests, the last of which asks for a link.
    fn find(&self, requests: &mut [Request], name: &str) -> Result<Link, NetlinkError> {
        let found = self.exchange(requests)?.iter().find_map(link);
        found.ok_or_else(|| NetlinkError::new("find link", name, Cause::NoLink))
    }

    /// Sends requests together and reads until each of them is answered.
    fn exchange(&self, requests: &mut [Request]) -> Result<Vec<Message>, NetlinkError> {
        let first = self.sequence.get();
        let mut bytes = Vec::new();
        let mut next = first;
        for request in requests.iter_mut() {
            request.append(next, &mut bytes);
            next = next.wrapping_add(1);
        }
        self.sequence.set(next);
        let Some(any) = requests.first() else { return Ok(Vec::new()) };
        let broken = |errno| any.failed(socket_error(errno));
        while let Err(errno) = send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()) {
            if errno != Errno::EINTR {
                return Err(broken(errno));
            }
        }
        self.collect(requests, first, broken)
    }

    /// Reads until each of the requests, numbered from `first`, is answered.
    fn collect(
        &self,
        requests: &[Request],
        first: u32,
        broken: impl Fn(Errno) -> NetlinkError,
    ) -> Result<Vec<Message>, NetlinkError> {
        let (mut found, mut failure) = (Vec::new(), None);
        let mut open = requests.len();
        let mut buffer = vec![0; ANSWER_BYTES];
        while open > 0 {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                received => received.map_err(&broken)?,
            };
            let answer = buffer.get(..length).ok_or_else(|| broken(Errno::EMSGSIZE))?;
            for message in messages(answer) {
                let number = message.header.sequence_number.wrapping_sub(first);
                let index = usize::try_from(number).unwrap_or(usize::MAX);
                // What was left of an earlier exchange, which a failure cut short.
                let Some(request) = requests.get(index) else { continue };
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        found.push(inner);
                        open = open.saturating_sub(usize::from(request.is_answered_by_one()));
                    }
                    NetlinkPayload::Error(err) => {
                        open = open.saturating_sub(1);
                        if err.code.is_some() && failure.is_none() {
                            let err = rtnetlink::Error::NetlinkError(err);
                            failure = Some(request.failed(err));
                        }
                    }
                    NetlinkPayload::Done(_) => open = open.saturating_sub(1),
                    _ => (),
                }
            }
        }
        failure.map_or(Ok(found), Err)
    }
}

fn socket_error(errno: Errno) -> Cause {
    Cause::Socket(std::io::Error::from(errno))
}

fn link(message: &Message) -> Option<Link> {
    match message {
        Message::NewLink(link) => Some(parse_link(link)),
        _ => None,
    }
}

/// The messages of one datagram; what does not decode is left out.
fn messages(mut bytes: &[u8]) -> Vec<NetlinkMessage<Message>> {
    let mut found = Vec::new();
    while let Some(length) = bytes.first_chunk().map(|length| u32::from_ne_bytes(*length)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        // Less than a header is nonsense, and would never end.
        let Some(one) = bytes.get(..length).filter(|one| one.len() >= HEADER_BYTES) else { break };
        if let Ok(message) = NetlinkMessage::deserialize(one) {
            found.push(message);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_of_an_answer_are_too_strange() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            assert!(messages(bytes).len() <= bytes.len() / HEADER_BYTES);
        });
    }

    #[test]
    fn requests_that_go_together_are_read_one_by_one() {
        let mut bytes = Vec::new();
        for (number, name) in ["a", "pod0123456789ab", "eth0"].into_iter().enumerate() {
            Request::find_link(name).append(u32::try_from(number).unwrap(), &mut bytes);
        }
        let read = messages(&bytes);
        let numbers = read.iter().map(|one| one.header.sequence_number);
        assert_eq!(numbers.collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(messages(&bytes[..bytes.len() - 1]).len(), 2, "what is cut off is left out");
    }
}
