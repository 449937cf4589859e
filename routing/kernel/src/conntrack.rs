//! Translated UDP flows: listing and forgetting them.
//!
//! A flow keeps the endpoint it was given for as long as packets come, whatever the rules say
//! later; who removes an endpoint must also forget its flows. TCP needs no such help: an endpoint
//! that is gone ends its connections.
//!
//! Spec: nfnetlink_conntrack. *Limits*: UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use thiserror::Error;

pub use crate::netfilter::Family;
use crate::netfilter::{
    ACKNOWLEDGE, DONE, DUMP, ERROR, Head, NESTED, REQUEST, Writer, acknowledged, find, messages,
};

/// Messages of the connection-tracking subsystem (1): get and delete.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// Attributes: the two directions of a flow, and what is in each.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// The two addresses of IPv4, and of IPv6.
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;

/// Why flows could not be listed or forgotten.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The socket failed.
    #[error("cannot {operation} tracked connections")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// One UDP flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// What the client dialled.
    pub destination: (IpAddr, u16),
    /// Who answers: another than `destination` when the flow was translated.
    pub answering: (IpAddr, u16),
    family: Family,
    /// The original direction as the kernel gave it, by which it is forgotten.
    key: Vec<u8>,
}

/// Lists the UDP flows of the calling thread's namespace. Blocks: a full table takes a tenth of a
/// second.
///
/// # Errors
///
/// When the kernel refuses.
pub fn flows(family: Family) -> Result<Vec<Flow>, ConntrackError> {
    let error = |source| ConntrackError::Socket { operation: "list", source };
    let socket = open().map_err(error)?;
    socket.send(&request(GET, REQUEST | DUMP, family, None), 0).map_err(error)?;
    let mut flows = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().map_err(error)?;
        for message in messages(&bytes) {
            match message.kind {
                DONE => return Ok(flows),
                ERROR => acknowledged(message.body).map_err(error)?,
                _ => flows.extend(parse_flow(family, message.attributes())),
            }
        }
    }
}

/// Forgets flows; one that is gone already is fine. Blocks.
///
/// # Errors
///
/// When the kernel refuses; flows before that are forgotten.
pub fn forget(flows: &[Flow]) -> Result<(), ConntrackError> {
    let error = |source| ConntrackError::Socket { operation: "forget", source };
    let socket = open().map_err(error)?;
    for flow in flows {
        let request = request(DELETE, REQUEST | ACKNOWLEDGE, flow.family, Some(&flow.key));
        socket.send(&request, 0).map_err(error)?;
        let (bytes, _) = socket.recv_from_full().map_err(error)?;
        for message in messages(&bytes) {
            match acknowledged(message.body) {
                Err(err) if err.raw_os_error() == Some(libc::ENOENT) => (),
                other => other.map_err(error)?,
            }
        }
    }
    Ok(())
}

fn open() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn request(kind: u16, flags: u16, family: Family, key: Option<&[u8]>) -> Vec<u8> {
    let mut writer = Writer::default();
    // One request at a time on a socket of its own needs no sequence number.
    let head = Head { kind, flags, sequence: 0, family: family.number(), resource: 0 };
    let message = writer.begin_message(head);
    if let Some(key) = key {
        writer.put(TUPLE_ORIGINAL | NESTED, key);
    }
    writer.end_message(message);
    writer.bytes
}

/// Reads a flow; `None` when it is not UDP or lacks something.
fn parse_flow(family: Family, attributes: &[u8]) -> Option<Flow> {
    let key = find(attributes, TUPLE_ORIGINAL)?;
    let (destination, protocol) = end(key, DESTINATIONS, PORT_DESTINATION)?;
    let (answering, _) = end(find(attributes, TUPLE_REPLY)?, SOURCES, PORT_SOURCE)?;
    let is_udp = i32::from(protocol) == libc::IPPROTO_UDP;
    is_udp.then(|| Flow { destination, answering, family, key: key.to_vec() })
}

/// One end of a direction, and the protocol.
fn end(tuple: &[u8], [four, six]: [u16; 2], port: u16) -> Option<((IpAddr, u16), u8)> {
    let addresses = find(tuple, TUPLE_ADDRESSES)?;
    let protocol = find(tuple, TUPLE_PROTOCOL)?;
    let address = match find(addresses, four) {
        Some(four) => IpAddr::V4(Ipv4Addr::from(*four.first_chunk::<4>()?)),
        None => IpAddr::V6(Ipv6Addr::from(*find(addresses, six)?.first_chunk::<16>()?)),
    };
    let port = u16::from_be_bytes(*find(protocol, port)?.first_chunk()?);
    Some(((address, port), *find(protocol, PROTOCOL_NUMBER)?.first()?))
}
