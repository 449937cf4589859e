//! Translated UDP flows: listing and forgetting them.
//!
//! A flow keeps the endpoint it was given for as long as packets come, whatever the rules say
//! later; who removes an endpoint must also forget its flows. TCP needs no such help: an endpoint
//! that is gone ends its connections.
//!
//! Spec: nfnetlink_conntrack. *Limits*: IPv4, UDP.

use std::net::Ipv4Addr;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use thiserror::Error;

/// Messages of the connection-tracking subsystem (1): get and delete.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// Ends of a dump, and answers that are errors or acknowledgements.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Attributes: the two directions of a flow, and what is in each.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const ADDRESS_SOURCE: u16 = 1;
const ADDRESS_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;
/// The flag of attributes that hold attributes, and the mask of the rest.
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
/// Netlink's header and the subsystem's.
const HEADERS: usize = 20;

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
    pub destination: (Ipv4Addr, u16),
    /// Who answers: another than `destination` when the flow was translated.
    pub answering: (Ipv4Addr, u16),
    /// The original direction as the kernel gave it, by which it is forgotten.
    key: Vec<u8>,
}

/// Lists the UDP flows of the calling thread's namespace. Blocks: a full table takes a tenth of a
/// second.
///
/// # Errors
///
/// When the kernel refuses.
pub fn flows() -> Result<Vec<Flow>, ConntrackError> {
    let error = |source| ConntrackError::Socket { operation: "list", source };
    let socket = open().map_err(error)?;
    socket.send(&message(GET, NLM_F_REQUEST | NLM_F_DUMP, &[]), 0).map_err(error)?;
    let mut flows = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().map_err(error)?;
        for (kind, body) in messages(&bytes) {
            match kind {
                DONE => return Ok(flows),
                ERROR => acknowledged(body).map_err(error)?,
                _ => flows.extend(parse_flow(body)),
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
        let key = attribute(TUPLE_ORIGINAL | NESTED, &flow.key);
        let request = message(DELETE, NLM_F_REQUEST | NLM_F_ACK, &key);
        socket.send(&request, 0).map_err(error)?;
        let (bytes, _) = socket.recv_from_full().map_err(error)?;
        for (_, body) in messages(&bytes) {
            match acknowledged(body) {
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

/// A request for IPv4 flows.
fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS.saturating_add(attributes.len())).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of its own needs neither.
    bytes.extend([0; 8]);
    bytes.extend([u8::try_from(libc::AF_INET).unwrap_or(2), 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The messages of one datagram: their kinds, and what follows netlink's header.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((length, kind)) = number32(bytes).zip(bytes.get(4..).and_then(number16)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(16..length) else { break };
        found.push((kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Reads an acknowledgement: a negative error number, 0 for success.
fn acknowledged(body: &[u8]) -> std::io::Result<()> {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(code.saturating_abs())) }
}

/// Reads a flow; `None` when it is not UDP or lacks something.
fn parse_flow(body: &[u8]) -> Option<Flow> {
    let body = body.get(4..)?;
    let key = find(body, TUPLE_ORIGINAL)?;
    let (destination, protocol) = end(key, ADDRESS_DESTINATION, PORT_DESTINATION)?;
    let (answering, _) = end(find(body, TUPLE_REPLY)?, ADDRESS_SOURCE, PORT_SOURCE)?;
    let is_udp = i32::from(protocol) == libc::IPPROTO_UDP;
    is_udp.then(|| Flow { destination, answering, key: key.to_vec() })
}

/// One end of a direction, and the protocol.
fn end(tuple: &[u8], address: u16, port: u16) -> Option<((Ipv4Addr, u16), u8)> {
    let addresses = find(tuple, TUPLE_ADDRESSES)?;
    let protocol = find(tuple, TUPLE_PROTOCOL)?;
    let address = Ipv4Addr::from(*find(addresses, address)?.first_chunk::<4>()?);
    let port = u16::from_be_bytes(*find(protocol, port)?.first_chunk()?);
    Some(((address, port), *find(protocol, PROTOCOL_NUMBER)?.first()?))
}

/// The value of the first attribute of a kind.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(number16(bytes)?);
        let kind = bytes.get(2..).and_then(number16)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn number16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn number32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
