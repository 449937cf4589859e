//! Elements of nftables' sets and maps over netlink: what `nft` would do, in microseconds.
//!
//! A [`Transaction`] is elements put in and taken out; [`Elements::commit`] hands it to the kernel
//! whole, and all of it happens or none. Tables, sets, chains and rules are not made here. A set
//! is told by its name; the kernel checks that keys and data are as long as the set's type says,
//! not that they mean the same.
//!
//! Spec: linux/netfilter/nf_tables.h. A key of several parts has each padded to four bytes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use thiserror::Error;

use crate::netfilter::{
    ACKNOWLEDGE, DONE, DUMP, ERROR, Family, Head, Mark, REQUEST, Writer, acknowledged, attributes,
    find, messages,
};

/// The subsystem, and its requests.
const NFTABLES: u16 = 10;
const GET_TABLE: u16 = 0x0a01;
const NEW_ELEMENT: u16 = 0x0a0c;
const GET_ELEMENT: u16 = 0x0a0d;
const REMOVE_ELEMENT: u16 = 0x0a0e;
const GET_GENERATION: u16 = 0x0a10;
/// Around the requests of a transaction.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// A request that makes something.
const CREATE: u16 = 0x400;
/// Attributes of a table, and of a list of elements.
const TABLE_NAME: u16 = 1;
const GENERATION_NUMBER: u16 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
/// Attributes of an element.
const KEY: u16 = 1;
const DATA: u16 = 2;
const KEY_END: u16 = 10;
/// Attributes of data and of verdicts.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const DROP: i32 = 0;
const GOTO: i32 = -4;
/// A list of elements is an attribute, whose length has sixteen bits.
const LIST_BYTES_MAX: usize = 32 << 10;
/// The kernel's own room for requests; more has to be asked for.
const BUFFER_BYTES: usize = 128 << 10;
/// The kernel's answers are shorter, a page of a dump among them.
const ANSWER_BYTES: usize = 64 << 10;

/// Why a transaction did not happen, or a question has no answer.
#[derive(Debug, Error)]
pub enum ElementError {
    /// The socket failed: nobody knows what the kernel holds.
    #[error("netlink cannot be used")]
    Socket(#[source] io::Error),
    /// The kernel refused; nothing was changed. What it holds is not what was thought.
    #[error("the kernel refused elements")]
    Refused(#[source] io::Error),
}

impl ElementError {
    /// The kernel's error number, when the kernel refused.
    #[must_use]
    pub fn refused(&self) -> Option<i32> {
        match self {
            Self::Refused(source) => source.raw_os_error(),
            Self::Socket(_) => None,
        }
    }
}

/// Where elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: &'a str,
    /// The set's or map's name.
    pub set: &'a str,
}

/// The key of an element, or a map's value: parts, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parts(Vec<u8>);

impl Parts {
    /// No part yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Vec::with_capacity(28))
    }

    /// The parts as they lie in the kernel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds `ipv4_addr` or `ipv6_addr`.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.0.extend(address.octets()),
            IpAddr::V6(address) => self.0.extend(address.octets()),
        }
        self
    }

    /// Adds `inet_proto`.
    #[must_use]
    pub fn protocol(mut self, number: u8) -> Self {
        self.0.extend([number, 0, 0, 0]);
        self
    }

    /// Adds `inet_service`.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.0.extend(port.to_be_bytes());
        self.0.extend([0; 2]);
        self
    }

    /// Adds `mark`.
    #[must_use]
    pub fn mark(mut self, mark: u32) -> Self {
        self.0.extend(mark.to_ne_bytes());
        self
    }
}

/// What a map holds under a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value<'a> {
    /// Nothing: it is a set.
    None,
    /// Parts.
    Parts(Parts),
    /// The verdict to drop.
    Drop,
    /// The verdict to go to a chain.
    Goto(&'a str),
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element<'a> {
    /// Its key; the first of a range where there is a last.
    pub key: Parts,
    /// The last of a range.
    pub key_end: Option<Parts>,
    /// What it leads to. Of no matter for an element that is taken out.
    pub value: Value<'a>,
}

/// What happens together.
#[derive(Debug, Clone)]
pub struct Transaction {
    writer: Writer,
    list: Option<List>,
    /// The place and request of the open list.
    at: (u16, Family, String, String),
    elements: usize,
    messages: u32,
    last: usize,
}

/// A list of elements that may grow.
#[derive(Debug, Clone, Copy)]
struct List {
    message: Mark,
    elements: Mark,
    began: usize,
}

impl Default for Transaction {
    fn default() -> Self {
        let mut writer = Writer::default();
        let head =
            Head { kind: BATCH_BEGIN, flags: REQUEST, sequence: 0, family: 0, resource: NFTABLES };
        let begin = writer.begin_message(head);
        writer.end_message(begin);
        let at = (0, Family::V4, String::new(), String::new());
        Self { writer, list: None, at, elements: 0, messages: 0, last: 0 }
    }
}

impl Transaction {
    /// Puts an element in, which must not be there.
    pub fn add(&mut self, place: Place<'_>, element: &Element<'_>) {
        self.put(NEW_ELEMENT, place, element);
    }

    /// Takes an element out, which must be there.
    pub fn remove(&mut self, place: Place<'_>, element: &Element<'_>) {
        self.put(REMOVE_ELEMENT, place, element);
    }

    /// Takes out whatever is there.
    pub fn flush(&mut self, place: Place<'_>) {
        self.close();
        self.at.0 = 0;
        self.messages = self.messages.saturating_add(1);
        self.last = self.writer.bytes.len();
        let head = Head {
            kind: REMOVE_ELEMENT,
            flags: REQUEST,
            sequence: self.messages,
            family: place.family.number(),
            resource: 0,
        };
        let message = self.writer.begin_message(head);
        self.writer.put_text(LIST_TABLE, place.table);
        self.writer.put_text(LIST_SET, place.set);
        self.writer.end_message(message);
    }

    /// How many elements are put in and taken out, but for those of flushed places.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements
    }

    /// Whether nothing happens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    fn put(&mut self, kind: u16, place: Place<'_>, element: &Element<'_>) {
        self.open(kind, place);
        let writer = &mut self.writer;
        let one = writer.begin(LIST_ELEMENT);
        let key = writer.begin(KEY);
        writer.put(VALUE, &element.key.0);
        writer.end(key);
        if let Some(last) = &element.key_end {
            let key = writer.begin(KEY_END);
            writer.put(VALUE, &last.0);
            writer.end(key);
        }
        if kind == NEW_ELEMENT && element.value != Value::None {
            let data = writer.begin(DATA);
            match &element.value {
                Value::None => {}
                Value::Parts(parts) => writer.put(VALUE, &parts.0),
                Value::Drop => put_verdict(writer, DROP, None),
                Value::Goto(chain) => put_verdict(writer, GOTO, Some(chain)),
            }
            writer.end(data);
        }
        writer.end(one);
        self.elements += 1;
    }

    /// Opens a list there, unless it is open and has room.
    fn open(&mut self, kind: u16, place: Place<'_>) {
        let same = self.at.0 == kind
            && self.at.1 == place.family
            && self.at.2 == place.table
            && self.at.3 == place.set;
        let full = |list: List| self.writer.bytes.len().saturating_sub(list.began) > LIST_BYTES_MAX;
        if same && self.list.is_some_and(|list| !full(list)) {
            return;
        }
        self.close();
        self.messages = self.messages.saturating_add(1);
        let create = if kind == NEW_ELEMENT { CREATE } else { 0 };
        let head = Head {
            kind,
            flags: REQUEST | create,
            sequence: self.messages,
            family: place.family.number(),
            resource: 0,
        };
        let began = self.writer.bytes.len();
        self.last = began;
        let message = self.writer.begin_message(head);
        self.writer.put_text(LIST_TABLE, place.table);
        self.writer.put_text(LIST_SET, place.set);
        let elements = self.writer.begin(LIST_ELEMENTS);
        self.list = Some(List { message, elements, began });
        self.at = (kind, place.family, place.table.to_owned(), place.set.to_owned());
    }

    fn close(&mut self) {
        if let Some(List { message, elements, .. }) = self.list.take() {
            self.writer.end(elements);
            self.writer.end_message(message);
        }
    }

    /// The bytes, and the sequence number of the message that is acknowledged: the last that is
    /// not the end, for not every kernel acknowledges ends.
    fn finish(mut self) -> (Vec<u8>, u32) {
        self.close();
        if let Some(flags) =
            self.writer.bytes.get_mut(self.last + 6..).and_then(<[u8]>::first_chunk_mut)
        {
            *flags = (u16::from_ne_bytes(*flags) | ACKNOWLEDGE).to_ne_bytes();
        }
        let sequence = self.messages.saturating_add(1);
        let head =
            Head { kind: BATCH_END, flags: REQUEST, sequence, family: 0, resource: NFTABLES };
        let end = self.writer.begin_message(head);
        self.writer.end_message(end);
        (self.writer.bytes, self.messages)
    }
}

fn put_verdict(writer: &mut Writer, code: i32, chain: Option<&str>) {
    let verdict = writer.begin(VERDICT);
    writer.put(VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        writer.put_text(VERDICT_CHAIN, chain);
    }
    writer.end(verdict);
}

/// What the kernel says an element is: its key, and the bytes of its value or its verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The key.
    pub key: Parts,
    /// The value; empty for a set.
    pub value: HeldValue,
}

/// What the kernel says an element leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeldValue {
    /// Nothing: it is a set.
    None,
    /// Parts.
    Parts(Parts),
    /// A verdict and, where one is meant, its chain.
    Verdict(i32, String),
}

impl Held {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let key = Parts(find(find(bytes, KEY)?, VALUE)?.to_vec());
        let Some(data) = find(bytes, DATA) else {
            return Some(Self { key, value: HeldValue::None });
        };
        if let Some(value) = find(data, VALUE) {
            return Some(Self { key, value: HeldValue::Parts(Parts(value.to_vec())) });
        }
        let verdict = find(data, VERDICT)?;
        let code = i32::from_be_bytes(*find(verdict, VERDICT_CODE)?.first_chunk()?);
        let chain = find(verdict, VERDICT_CHAIN).unwrap_or_default();
        let chain = chain.strip_suffix(b"\0").unwrap_or(chain);
        let chain = String::from_utf8_lossy(chain).into_owned();
        Some(Self { key, value: HeldValue::Verdict(code, chain) })
    }
}

/// The kernel's elements, in the network namespace of the thread that opened this.
///
/// The kernel works while the request is sent and has answered when that returns, so nothing here
/// waits for anybody else.
#[derive(Debug)]
pub struct Elements {
    socket: OwnedFd,
    buffer: usize,
}

impl Elements {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// When the kernel gives none.
    pub fn open() -> Result<Self, ElementError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let kind = (SockType::Raw, SockProtocol::NetlinkNetFilter);
        let socket = socket(AddressFamily::Netlink, kind.0, flags, kind.1).map_err(failed)?;
        Ok(Self { socket, buffer: BUFFER_BYTES })
    }

    /// Does a transaction. Blocks for about a microsecond per element.
    ///
    /// # Errors
    ///
    /// When the kernel refuses (nothing is changed then), or the socket fails.
    pub fn commit(&mut self, transaction: Transaction) -> Result<(), ElementError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let (bytes, last) = transaction.finish();
        self.make_room(bytes.len())?;
        self.send(&bytes)?;
        let mut first = Ok(());
        let mut acknowledgement = false;
        let mut buffer = vec![0; ANSWER_BYTES];
        // Everything is read, so that nothing is left for the next one.
        while let Some(answer) = self.receive(&mut buffer)? {
            for message in messages(answer).iter().filter(|message| message.kind == ERROR) {
                acknowledgement |= message.sequence == last;
                if let (Ok(()), Err(source)) = (&first, acknowledged(message.body)) {
                    first = Err(ElementError::Refused(source));
                }
            }
        }
        first?;
        // Nothing at all: the answers found no room.
        if acknowledgement { Ok(()) } else { Err(failed(Errno::ENOBUFS)) }
    }

    /// Whether there is a table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to say.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, ElementError> {
        let mut writer = Writer::default();
        let flags = REQUEST | ACKNOWLEDGE;
        let head =
            Head { kind: GET_TABLE, flags, sequence: 1, family: family.number(), resource: 0 };
        let message = writer.begin_message(head);
        writer.put_text(TABLE_NAME, table);
        writer.end_message(message);
        self.send(&writer.bytes)?;
        let mut found = false;
        let mut buffer = vec![0; ANSWER_BYTES];
        while let Some(answer) = self.receive(&mut buffer)? {
            for message in messages(answer) {
                match (message.kind, acknowledged(message.body)) {
                    (ERROR, Ok(())) => {}
                    (ERROR, Err(err)) if err.raw_os_error() == Some(libc::ENOENT) => {}
                    (ERROR, Err(err)) => return Err(ElementError::Refused(err)),
                    _ => found = true,
                }
            }
        }
        Ok(found)
    }

    /// The number of the rule set in force: another one after each transaction, whoever's.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to say.
    pub fn generation(&mut self) -> Result<u32, ElementError> {
        let mut writer = Writer::default();
        let head =
            Head { kind: GET_GENERATION, flags: REQUEST, sequence: 1, family: 0, resource: 0 };
        let message = writer.begin_message(head);
        writer.end_message(message);
        self.send(&writer.bytes)?;
        let mut buffer = vec![0; ANSWER_BYTES];
        let mut generation = None;
        while let Some(answer) = self.receive(&mut buffer)? {
            for message in messages(answer) {
                if message.kind == ERROR {
                    acknowledged(message.body).map_err(ElementError::Refused)?;
                }
                let number = find(message.attributes(), GENERATION_NUMBER);
                generation = number.and_then(<[u8]>::first_chunk).or(generation.as_ref()).copied();
            }
        }
        generation.map(u32::from_be_bytes).ok_or_else(|| failed(Errno::ENODATA))
    }

    /// Lists what a set or map holds, in no order. Not for the running path: ten thousand
    /// elements take milliseconds.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as where there is no such set, or the set changed meanwhile.
    pub fn list(&mut self, place: Place<'_>) -> Result<Vec<Held>, ElementError> {
        let mut writer = Writer::default();
        let family = place.family.number();
        let head =
            Head { kind: GET_ELEMENT, flags: REQUEST | DUMP, sequence: 1, family, resource: 0 };
        let message = writer.begin_message(head);
        writer.put_text(LIST_TABLE, place.table);
        writer.put_text(LIST_SET, place.set);
        writer.end_message(message);
        self.send(&writer.bytes)?;
        let mut held = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES];
        while let Some(answer) = self.receive(&mut buffer)? {
            for message in messages(answer) {
                match message.kind {
                    DONE => return Ok(held),
                    ERROR => acknowledged(message.body).map_err(ElementError::Refused)?,
                    _ => {
                        let list = find(message.attributes(), LIST_ELEMENTS).unwrap_or_default();
                        held.extend(attributes(list).filter_map(|(_, one)| Held::parse(one)));
                    }
                }
            }
        }
        Ok(held)
    }

    /// Asks for room for one large request: the kernel takes a transaction in one piece.
    fn make_room(&mut self, bytes: usize) -> Result<(), ElementError> {
        // The kernel counts its own bookkeeping, too.
        let wanted = bytes.saturating_mul(2).saturating_add(BUFFER_BYTES);
        if bytes <= self.buffer / 2 {
            return Ok(());
        }
        // Only root of the host may have more than anybody; who is not tries what there is.
        let forced = setsockopt(&self.socket, sockopt::SndBufForce, &wanted);
        forced.or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &wanted)).map_err(failed)?;
        self.buffer = wanted;
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), ElementError> {
        let sent = send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()).map_err(failed)?;
        if sent == bytes.len() { Ok(()) } else { Err(failed(Errno::EMSGSIZE)) }
    }

    /// The next answer; `None` when there is no more.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, ElementError> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(buffer.get(..length)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(err) => Err(failed(err)),
        }
    }
}

fn failed(err: Errno) -> ElementError {
    ElementError::Socket(err.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_laid_out_as_the_kernel_compares_them() {
        let parts = Parts::new().address([172, 18, 0, 10].into()).protocol(6).port(80).mark(1);
        let mut expected = vec![172, 18, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0];
        expected.extend(1_u32.to_ne_bytes());
        assert_eq!(parts.0, expected);
    }

    #[test]
    fn elements_of_one_place_share_messages_that_stay_small() {
        let place = Place { family: Family::V4, table: "t", set: "s" };
        let mut transaction = Transaction::default();
        let element = |number: u32| Element {
            key: Parts::new().mark(number),
            key_end: None,
            value: Value::Goto("there"),
        };
        for number in 0..10_000 {
            transaction.add(place, &element(number));
        }
        transaction.remove(place, &element(1));
        assert_eq!(transaction.len(), 10_001);
        let (bytes, last) = transaction.finish();
        let read = messages(&bytes);
        assert!(read.len() < 40, "{}", read.len());
        assert_eq!(
            read.iter().map(|one| one.body.len()).sum::<usize>() + 16 * read.len(),
            bytes.len()
        );
        let elements: Vec<Held> = read
            .iter()
            .filter(|message| message.kind == NEW_ELEMENT)
            .flat_map(|message| attributes(find(message.attributes(), LIST_ELEMENTS).unwrap()))
            .map(|(_, one)| Held::parse(one).unwrap())
            .collect();
        assert_eq!(elements.len(), 10_000);
        assert_eq!(elements[9_999].key, Parts::new().mark(9_999));
        assert_eq!(elements[9_999].value, HeldValue::Verdict(GOTO, "there".to_owned()));
        assert_eq!(read[read.len() - 2].sequence, last);
    }

    #[test]
    fn no_bytes_of_an_element_are_too_strange() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            if let Some(held) = Held::parse(bytes) {
                assert!(held.key.0.len() <= bytes.len());
            }
        });
    }
}
