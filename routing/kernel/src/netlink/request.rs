//! Requests as messages: the same for the socket with a runtime and for the one without.
//!
//! Spec: netlink(7), rtnetlink(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::link::{address_message, veth_message};
use super::route::route_message;
use super::{Address, Cause, Family, LinkIndex, NetlinkError, Route, Veth};

/// Something that is asked of the kernel, and how it is told of when it fails.
#[derive(Debug)]
pub(crate) struct Request {
    pub(super) message: NetlinkMessage<Message>,
    pub(super) operation: &'static str,
    pub(super) subject: String,
}

impl Request {
    fn new(message: Message, flags: u16, operation: &'static str, subject: impl ToString) -> Self {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        Self { message, operation, subject: subject.to_string() }
    }

    fn change(message: Message, operation: &'static str, subject: impl ToString) -> Self {
        Self::new(message, NLM_F_ACK, operation, subject)
    }

    /// Its bytes behind those that are there.
    pub(crate) fn append(&mut self, sequence: u32, bytes: &mut Vec<u8>) {
        self.message.header.sequence_number = sequence;
        self.message.finalize();
        let start = bytes.len();
        bytes.resize(start.saturating_add(self.message.buffer_len()), 0);
        if let Some(room) = bytes.get_mut(start..) {
            self.message.serialize(room);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }

    /// Whether its answer is one message, with nothing after it.
    pub(crate) fn is_answered_by_one(&self) -> bool {
        self.message.header.flags & (NLM_F_ACK | NLM_F_DUMP) == 0
    }

    /// The error of this request.
    pub(crate) fn failed(&self, cause: impl Into<Cause>) -> NetlinkError {
        NetlinkError::new(self.operation, &self.subject, cause)
    }

    pub(crate) fn add_veth(veth: &Veth<'_>) -> Self {
        let mut request = Self::change(Message::NewLink(veth_message(veth)), "add veth", veth.name);
        request.message.header.flags |= NLM_F_CREATE | NLM_F_EXCL;
        request
    }

    pub(crate) fn set_up(index: LinkIndex) -> Self {
        let message = LinkUnspec::new_with_index(index.0).up().build();
        Self::change(Message::NewLink(message), "set up", index)
    }

    pub(crate) fn delete_link(index: LinkIndex) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index.0;
        Self::change(Message::DelLink(message), "delete", index)
    }

    pub(crate) fn add_address(index: LinkIndex, address: Address) -> Self {
        let message = Message::NewAddress(address_message(index, address));
        let mut request = Self::change(message, "add address", address);
        request.message.header.flags |= NLM_F_CREATE | NLM_F_REPLACE;
        request
    }

    pub(crate) fn delete_address(index: LinkIndex, address: Address) -> Self {
        let message = Message::DelAddress(plain_address_message(index, address));
        Self::change(message, "delete address", address)
    }

    pub(crate) fn add_route(route: &Route) -> Result<Self, NetlinkError> {
        let message = route_message("add route", route)?;
        let mut request = Self::change(Message::NewRoute(message), "add route", route);
        request.message.header.flags |= NLM_F_CREATE | NLM_F_EXCL;
        Ok(request)
    }

    pub(crate) fn replace_route(route: &Route) -> Result<Self, NetlinkError> {
        let message = route_message("replace route", route)?;
        let mut request = Self::change(Message::NewRoute(message), "replace route", route);
        request.message.header.flags |= NLM_F_CREATE | NLM_F_REPLACE;
        Ok(request)
    }

    pub(crate) fn delete_route(route: &Route) -> Result<Self, NetlinkError> {
        let message = route_message("delete route", route)?;
        Ok(Self::change(Message::DelRoute(message), "delete route", route))
    }

    /// Asks for one link; it is answered by that, or by an error.
    pub(crate) fn find_link(name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Self::new(Message::GetLink(message), 0, "find link", name)
    }

    pub(crate) fn list_links() -> Self {
        Self::new(Message::GetLink(LinkMessage::default()), NLM_F_DUMP, "list", "links")
    }

    /// Asks for the addresses of all links.
    pub(crate) fn list_addresses(index: LinkIndex) -> Self {
        let message = Message::GetAddress(AddressMessage::default());
        Self::new(message, NLM_F_DUMP, "list addresses of", index)
    }

    pub(crate) fn list_routes(family: Family) -> Self {
        let message = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        Self::new(Message::GetRoute(message), NLM_F_DUMP, "list", "routes")
    }
}

/// An address on a link, and nothing of what goes with it.
pub(super) fn plain_address_message(index: LinkIndex, address: Address) -> AddressMessage {
    let prefix_len = address.prefix_len;
    match address.address {
        IpAddr::V4(v4) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index.0).address(v4, prefix_len).build()
        }
        IpAddr::V6(v6) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(index.0).address(v6, prefix_len).build()
        }
    }
}
