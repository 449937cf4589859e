//! Links and their addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope as WireAddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage, State,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::request::{Request, plain_address_message};
use super::{Cause, Netlink, NetlinkError};
use crate::netns::Namespace;

/// The kernel's number of a link, unique in one namespace at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}", self.0)
    }
}

/// A network interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: LinkIndex,
    /// Its name (`eth0`).
    pub name: String,
    /// Hardware address in lower case with colons; empty when it has none.
    pub mac: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether it was set up by an administrator.
    pub up: bool,
    /// Whether the cable, or the peer, is there; meaningful only while `up`.
    pub carrier: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
}

/// How far an address is meant to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressScope {
    /// Everywhere.
    Global,
    /// On this link only: never chosen as a source towards other links.
    Link,
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_len: u8,
    /// How far it is known.
    pub scope: AddressScope,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// A pair of virtual Ethernet links, one end here and one in another namespace.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of the end in this namespace, 15 bytes at most.
    pub name: &'a str,
    /// Name of the end in `peer_namespace`.
    pub peer: &'a str,
    /// Where the peer is created.
    pub peer_namespace: &'a Namespace,
    /// Largest packet in bytes, of both ends.
    pub mtu: u32,
}

impl Netlink {
    /// Lists all links, in order of index.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; worth retrying when interrupted by changes.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let error = |err| NetlinkError::new("list", "links", Cause::Request(err));
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(error)?;
        let links: BTreeMap<LinkIndex, Link> =
            messages.iter().map(parse_link).map(|link| (link.index, link)).collect();
        Ok(links.into_values().collect())
    }

    /// Finds a link by name; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason than absence.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        match found.map_err(|err| NetlinkError::new("find link", name, Cause::Request(err))) {
            Ok(message) => Ok(message.as_ref().map(parse_link)),
            Err(err) if err.is_missing() => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Finds a link that must be there.
    ///
    /// # Errors
    ///
    /// When it is not, or the kernel refuses.
    pub async fn require_link(&self, name: &str) -> Result<Link, NetlinkError> {
        let missing = || NetlinkError::new("find link", name, Cause::NoLink);
        self.link(name).await?.ok_or_else(missing)
    }

    /// Sets a link up. Doing it twice is no error.
    ///
    /// # Errors
    ///
    /// When the link is missing or the kernel refuses.
    pub async fn set_up(&self, index: LinkIndex) -> Result<(), NetlinkError> {
        self.change(Request::set_up(index)).await
    }

    /// Creates a veth pair in one message, the peer directly inside its namespace. This end is up;
    /// the kernel sets the peer up only when it is asked after both are there.
    ///
    /// Creating the peer here and moving it would take about twenty times as long, and its name
    /// could collide on the way.
    ///
    /// # Errors
    ///
    /// When a link of either name exists ([`NetlinkError::is_exists`]) or the kernel refuses.
    pub async fn add_veth(&self, veth: &Veth<'_>) -> Result<(), NetlinkError> {
        self.change(Request::add_veth(veth)).await
    }

    /// Deletes a link; a veth's peer goes with it.
    ///
    /// # Errors
    ///
    /// When the link is missing ([`NetlinkError::is_missing`]) or cannot be deleted.
    pub async fn delete_link(&self, index: LinkIndex) -> Result<(), NetlinkError> {
        self.change(Request::delete_link(index)).await
    }

    /// Gives a link an address. Giving it one it has already is no error.
    ///
    /// # Errors
    ///
    /// When the link is missing or the kernel refuses.
    pub async fn add_address(
        &self,
        index: LinkIndex,
        address: Address,
    ) -> Result<(), NetlinkError> {
        self.change(Request::add_address(index, address)).await
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    ///
    /// When the link or address is missing, or the kernel refuses.
    pub async fn delete_address(
        &self,
        index: LinkIndex,
        address: Address,
    ) -> Result<(), NetlinkError> {
        self.change(Request::delete_address(index, address)).await
    }

    /// Lists the addresses of a link.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn addresses(&self, index: LinkIndex) -> Result<Vec<Address>, NetlinkError> {
        let request = self.handle.address().get().set_link_index_filter(index.0);
        let listed: Result<Vec<AddressMessage>, _> = request.execute().try_collect().await;
        let messages = listed.map_err(|err| NetlinkError::new("list addresses of", index, err))?;
        Ok(messages.iter().filter_map(parse_address).collect())
    }
}

/// A veth pair, this end up. The kernel sets the peer up only when it is asked after both are there.
pub(super) fn veth_message(veth: &Veth<'_>) -> LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(veth.peer)
        .mtu(veth.mtu)
        .setns_by_fd(veth.peer_namespace.as_raw_fd())
        .build();
    LinkVeth::new(veth.name, veth.peer)
        .up()
        .mtu(veth.mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build()
}

/// An address as it is given to a link.
pub(super) fn address_message(index: LinkIndex, address: Address) -> AddressMessage {
    let mut message = plain_address_message(index, address);
    message.header.scope = match address.scope {
        AddressScope::Global => WireAddressScope::Universe,
        AddressScope::Link => WireAddressScope::Link,
    };
    // Addresses of ours follow from the plan: nobody else has them, and nothing need wait
    // until the link was asked. The scope of an IPv6 address follows from itself.
    if address.address.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    message
}

pub(crate) fn parse_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: LinkIndex(message.header.index),
        name: String::new(),
        mac: String::new(),
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = render_mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = *carrier != 0,
            LinkAttribute::OperState(State::LowerLayerDown) => link.carrier = false,
            _ => (),
        }
    }
    link
}

fn render_mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The local address of an address message; the other end of a point-to-point link is skipped.
pub(crate) fn parse_address(message: &AddressMessage) -> Option<Address> {
    let mut any = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(address) => any = Some(*address),
            AddressAttribute::Local(address) => local = Some(*address),
            _ => (),
        }
    }
    let scope = match message.header.scope {
        WireAddressScope::Universe | WireAddressScope::Site => AddressScope::Global,
        _ => AddressScope::Link,
    };
    Some(Address { address: local.or(any)?, prefix_len: message.header.prefix_len, scope })
}
