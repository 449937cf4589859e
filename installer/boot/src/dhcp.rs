//! DHCPv4 messages: bytes to values and back.
//!
//! An own codec, because the one crate there is (`dhcproto`) does arithmetic on lengths from the
//! wire that panics in debug builds, and stops reading at a surprise without a word. Here every
//! length is checked before it is used, a broken message is an error with its offset, and an
//! option nobody knows is kept as the bytes it is.
//!
//! Knows nothing of leases and of what to answer: that is `Site`.
//!
//! Spec: RFC 2131 §2 and §4.1, RFC 2132, RFC 3396 (long options), RFC 3046 (relay agents),
//! RFC 4578 (PXE).

pub mod client;
pub mod option;
pub(crate) mod server;

use std::net::Ipv4Addr;

use crate::Mac;

/// The fixed part before the options, with the magic cookie.
const HEADER_LEN: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Old ROMs and some relays drop anything shorter (RFC 1542 §2.1).
const LEN_MIN: usize = 300;
const FLAG_BROADCAST: u16 = 0x8000;

/// A message that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends within the fixed part.
    #[error("message of {len} bytes, at least 240 needed")]
    Short {
        /// Its length.
        len: usize,
    },
    /// The first byte is neither request nor reply.
    #[error("operation {found}, must be 1 or 2")]
    Operation {
        /// What was found.
        found: u8,
    },
    /// The magic cookie is missing: plain BOOTP, or no DHCP at all.
    #[error("no DHCP cookie at offset 236")]
    Cookie,
    /// An option claims more bytes than there are.
    #[error("option {code} at offset {offset} runs past the end of its field")]
    Truncated {
        /// The option's code.
        code: u8,
        /// Where the option begins, within its field.
        offset: usize,
    },
}

/// A message that does not fit the size its receiver can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message needs {needed} bytes, the receiver takes {limit}")]
pub struct TooLong {
    /// What it needs.
    pub needed: usize,
    /// What the receiver takes.
    pub limit: usize,
}

/// The direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// From client to server.
    Request,
    /// From server to client.
    Reply,
}

/// The value of option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of RFC 2131 table 2")]
pub enum Kind {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

impl Kind {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}

/// Options in the order of the wire; parts of one option are joined (RFC 3396).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    /// Tells an option's bytes.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|(found, _)| *found == code).map(|(_, bytes)| bytes.as_slice())
    }

    /// Tells an option that must be one address.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.get(code)?).ok().map(Ipv4Addr::from)
    }

    /// Sets an option; a value there before is replaced in its place.
    pub fn set(&mut self, code: u8, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        match self.0.iter_mut().find(|(found, _)| *found == code) {
            Some((_, old)) => *old = bytes,
            None => self.0.push((code, bytes)),
        }
    }

    /// Takes an option out.
    pub fn remove(&mut self, code: u8) {
        self.0.retain(|(found, _)| *found != code);
    }

    /// Walks over the options in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, bytes)| (*code, bytes.as_slice()))
    }

    fn join(&mut self, code: u8, bytes: &[u8]) {
        match self.0.iter_mut().find(|(found, _)| *found == code) {
            Some((_, old)) => old.extend_from_slice(bytes),
            None => self.0.push((code, bytes.to_vec())),
        }
    }

    fn decode(&mut self, field: &[u8]) -> Result<(), DecodeError> {
        let mut offset = 0;
        while let Some(&code) = field.get(offset) {
            match code {
                option::PAD => offset += 1,
                option::END => return Ok(()),
                _ => {
                    let truncated = DecodeError::Truncated { code, offset };
                    let len = usize::from(*field.get(offset + 1).ok_or(truncated)?);
                    let start = offset + 2;
                    let bytes = field.get(start..start + len).ok_or(truncated)?;
                    self.join(code, bytes);
                    offset = start + len;
                }
            }
        }
        // Some ROMs leave the end mark out; the end of the packet says the same.
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for (code, bytes) in self.iter() {
            if bytes.is_empty() {
                out.extend_from_slice(&[code, 0]);
            }
            for part in bytes.chunks(255) {
                out.push(code);
                out.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
                out.extend_from_slice(part);
            }
        }
        out.push(option::END);
    }
}

/// One DHCP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Request or reply.
    pub operation: Operation,
    /// Kind of hardware address; 1 is Ethernet.
    pub hardware_kind: u8,
    /// Length of the hardware address in bytes.
    pub hardware_len: u8,
    /// Relays passed.
    pub hops: u8,
    /// The client's number for this exchange.
    pub transaction: u32,
    /// Seconds since the client began.
    pub seconds: u16,
    /// Bit 15 asks for a broadcast answer.
    pub flags: u16,
    /// The address the client already has.
    pub client_address: Ipv4Addr,
    /// The address the client gets.
    pub your_address: Ipv4Addr,
    /// The host of the boot file.
    pub next_server: Ipv4Addr,
    /// The relay that passed the message on.
    pub relay: Ipv4Addr,
    /// The hardware address, padded with zeros.
    pub hardware: [u8; 16],
    /// The server name field as it stands.
    pub server_name: [u8; 64],
    /// The boot file field as it stands.
    pub file: [u8; 128],
    /// All options, those in overloaded fields included.
    pub options: Options,
}

impl Message {
    /// Makes an empty request of an Ethernet client, as simulated machines and the probe for
    /// other servers send it.
    #[must_use]
    pub fn request(kind: Kind, mac: Mac, transaction: u32) -> Self {
        let mut hardware = [0; 16];
        for (to, from) in hardware.iter_mut().zip(mac.bytes()) {
            *to = from;
        }
        let mut options = Options::default();
        options.set(option::MESSAGE_TYPE, [kind.code()]);
        Self {
            operation: Operation::Request,
            hardware_kind: 1,
            hardware_len: 6,
            hops: 0,
            transaction,
            seconds: 0,
            flags: 0,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            next_server: Ipv4Addr::UNSPECIFIED,
            relay: Ipv4Addr::UNSPECIFIED,
            hardware,
            server_name: [0; 64],
            file: [0; 128],
            options,
        }
    }

    /// Makes an empty answer to this request; relay data and client identifier are repeated.
    ///
    /// Spec: RFC 2131 table 3, RFC 3046 §2.2, RFC 6842.
    #[must_use]
    pub fn reply(&self, kind: Kind) -> Self {
        let mut options = Options::default();
        options.set(option::MESSAGE_TYPE, [kind.code()]);
        Self {
            operation: Operation::Reply,
            hops: 0,
            seconds: 0,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            next_server: Ipv4Addr::UNSPECIFIED,
            server_name: [0; 64],
            file: [0; 128],
            options,
            ..self.clone()
        }
    }

    /// Tells what the message is, by option 53.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self.options.get(option::MESSAGE_TYPE) {
            Some([code]) => Kind::from_code(*code),
            _ => None,
        }
    }

    /// Tells the Ethernet address of the client; `None` for other hardware and group addresses.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        let bytes = <[u8; 6]>::try_from(self.hardware.get(..6)?).ok()?;
        let mac = Mac::new(bytes);
        let ethernet = self.hardware_kind == 1 && self.hardware_len == 6;
        (ethernet && mac.is_individual()).then_some(mac)
    }

    /// Says whether the client cannot take a unicast answer yet.
    #[must_use]
    pub const fn wants_broadcast(&self) -> bool {
        self.flags & FLAG_BROADCAST != 0
    }

    /// Asks for, or marks, a broadcast answer.
    pub const fn set_broadcast(&mut self) {
        self.flags |= FLAG_BROADCAST;
    }

    /// Puts a boot file into the old fixed field; a name that does not fit is left out.
    pub fn set_file(&mut self, name: &str) {
        if name.len() < self.file.len() {
            self.file = [0; 128];
            for (to, from) in self.file.iter_mut().zip(name.bytes()) {
                *to = from;
            }
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When the fixed part is short or foreign, or an option runs past its field. Unknown options
    /// and a missing end mark are no errors.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let short = DecodeError::Short { len: bytes.len() };
        let mut reader = Reader { rest: bytes };
        let [code, hardware_kind, hardware_len, hops] = reader.take().ok_or(short)?;
        let operation = match code {
            1 => Operation::Request,
            2 => Operation::Reply,
            found => return Err(DecodeError::Operation { found }),
        };
        let mut message = Self {
            operation,
            hardware_kind,
            hardware_len,
            hops,
            transaction: u32::from_be_bytes(reader.take().ok_or(short)?),
            seconds: u16::from_be_bytes(reader.take().ok_or(short)?),
            flags: u16::from_be_bytes(reader.take().ok_or(short)?),
            client_address: reader.take::<4>().ok_or(short)?.into(),
            your_address: reader.take::<4>().ok_or(short)?.into(),
            next_server: reader.take::<4>().ok_or(short)?.into(),
            relay: reader.take::<4>().ok_or(short)?.into(),
            hardware: reader.take().ok_or(short)?,
            server_name: reader.take().ok_or(short)?,
            file: reader.take().ok_or(short)?,
            options: Options::default(),
        };
        if reader.take().ok_or(short)? != COOKIE {
            return Err(DecodeError::Cookie);
        }
        message.options.decode(reader.rest)?;
        message.take_overloaded()?;
        Ok(message)
    }

    /// Renders the message, padded to the 300 bytes that old ROMs want.
    ///
    /// `limit` is the largest message the receiver takes, without IP and UDP headers.
    ///
    /// # Errors
    /// When it does not fit `limit`; the caller may leave options out and try again.
    pub fn encode(&self, limit: usize) -> Result<Vec<u8>, TooLong> {
        let mut out = Vec::with_capacity(512);
        let code = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        out.extend_from_slice(&[code, self.hardware_kind, self.hardware_len, self.hops]);
        out.extend_from_slice(&self.transaction.to_be_bytes());
        out.extend_from_slice(&self.seconds.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        for address in [self.client_address, self.your_address, self.next_server, self.relay] {
            out.extend_from_slice(&address.octets());
        }
        out.extend_from_slice(&self.hardware);
        out.extend_from_slice(&self.server_name);
        out.extend_from_slice(&self.file);
        out.extend_from_slice(&COOKIE);
        debug_assert_eq!(out.len(), HEADER_LEN);
        self.options.encode(&mut out);
        if out.len() > limit {
            return Err(TooLong { needed: out.len(), limit });
        }
        out.resize(out.len().max(LEN_MIN.min(limit)), option::PAD);
        Ok(out)
    }

    /// Reads options from the file and name fields when option 52 says they stand there.
    fn take_overloaded(&mut self) -> Result<(), DecodeError> {
        let overload = match self.options.get(option::OVERLOAD) {
            Some([which]) => *which,
            _ => 0,
        };
        if overload & 1 != 0 {
            self.options.decode(&self.file)?;
            self.file = [0; 128];
        }
        if overload & 2 != 0 {
            self.options.decode(&self.server_name)?;
            self.server_name = [0; 64];
        }
        self.options.remove(option::OVERLOAD);
        Ok(())
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests;
