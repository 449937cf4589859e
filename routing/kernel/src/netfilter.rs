//! Messages of the kernel's netfilter subsystems: headers, attributes, answers.
//!
//! Writing and reading only; the sockets are their owners'.
//!
//! Spec: netlink(7), linux/netfilter/nfnetlink.h.

/// Ends of a dump, and answers that are errors or acknowledgements.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
/// Flags of requests: it is one, it wants an answer, it wants everything.
pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACKNOWLEDGE: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
/// The flag of attributes that hold attributes, and the mask of the rest.
pub(crate) const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
/// Netlink's header, and with the subsystem's.
const HEADER: usize = 16;
const HEADERS: usize = 20;

/// Whose addresses a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4; `ip` in nft's words.
    V4,
    /// IPv6; `ip6` in nft's words.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The kernel's number of it.
    pub(crate) fn number(self) -> u8 {
        let number = match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        };
        u8::try_from(number).unwrap_or_default()
    }
}

/// One message's header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Subsystem and request.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// Comes back in the answer.
    pub(crate) sequence: u32,
    /// An address family; 0 where none is meant.
    pub(crate) family: u8,
    /// What the subsystem makes of it.
    pub(crate) resource: u16,
}

/// Writes messages, one after the other.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

/// A place whose length is told later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(usize);

impl Writer {
    /// Begins a message; [`Self::end_message`] says where it ends.
    pub(crate) fn begin_message(&mut self, head: Head) -> Mark {
        let mark = Mark(self.bytes.len());
        self.bytes.extend([0; 4]);
        self.bytes.extend(head.kind.to_ne_bytes());
        self.bytes.extend(head.flags.to_ne_bytes());
        self.bytes.extend(head.sequence.to_ne_bytes());
        // The port: the kernel knows it from the socket.
        self.bytes.extend([0; 4]);
        self.bytes.extend([head.family, 0]);
        self.bytes.extend(head.resource.to_be_bytes());
        mark
    }

    /// Ends a message.
    pub(crate) fn end_message(&mut self, mark: Mark) {
        let length = u32::try_from(self.bytes.len().saturating_sub(mark.0)).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(mark.0..).and_then(<[u8]>::first_chunk_mut) {
            *place = length.to_ne_bytes();
        }
    }

    /// Begins an attribute that holds attributes.
    pub(crate) fn begin(&mut self, kind: u16) -> Mark {
        let mark = Mark(self.bytes.len());
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        mark
    }

    /// Ends an attribute that holds attributes.
    pub(crate) fn end(&mut self, mark: Mark) {
        let length = u16::try_from(self.bytes.len().saturating_sub(mark.0)).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(mark.0..).and_then(<[u8]>::first_chunk_mut) {
            *place = length.to_ne_bytes();
        }
    }

    /// Writes an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Writes a text, which ends with a zero.
    pub(crate) fn put_text(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value);
    }
}

/// One message of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    /// What follows netlink's header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind the subsystem's header.
    pub(crate) fn attributes(&self) -> &'a [u8] {
        self.body.get(HEADERS - HEADER..).unwrap_or_default()
    }
}

/// The messages of one datagram.
pub(crate) fn messages(mut bytes: &[u8]) -> Vec<Message<'_>> {
    let mut found = Vec::new();
    while let Some((length, kind)) = number32(bytes).zip(bytes.get(4..).and_then(number16)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..length) else { break };
        let sequence = bytes.get(8..).and_then(number32).unwrap_or_default();
        found.push(Message { kind, sequence, body });
        bytes = length.checked_next_multiple_of(4).and_then(|at| bytes.get(at..)).unwrap_or(&[]);
    }
    found
}

/// Reads an acknowledgement: a negative error number, 0 for success.
pub(crate) fn acknowledged(body: &[u8]) -> std::io::Result<()> {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(code.saturating_abs())) }
}

/// The attributes in order; what is cut off is left out.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(number16(bytes)?);
        let kind = bytes.get(2..).and_then(number16)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn number16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn number32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_of_an_answer_are_too_strange() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            for message in messages(bytes) {
                let _outcome = acknowledged(message.body);
                for (kind, value) in attributes(message.attributes()) {
                    assert!(find(message.attributes(), kind).is_some());
                    assert!(value.len() < bytes.len());
                }
            }
        });
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::default();
        for sequence in [7, 8] {
            let head = Head { kind: 0x0a0c, flags: REQUEST, sequence, family: 2, resource: 0 };
            let message = writer.begin_message(head);
            writer.put_text(1, "abc");
            let nest = writer.begin(2);
            writer.put(3, &[1, 2, 3, 4, 5]);
            writer.end(nest);
            writer.end_message(message);
        }
        let read = messages(&writer.bytes);
        assert_eq!(read.iter().map(|one| one.sequence).collect::<Vec<_>>(), [7, 8]);
        for message in read {
            assert_eq!(message.kind, 0x0a0c);
            assert_eq!(find(message.attributes(), 1), Some(b"abc\0".as_slice()));
            let nest = find(message.attributes(), 2).unwrap();
            assert_eq!(find(nest, 3), Some([1, 2, 3, 4, 5].as_slice()));
        }
    }
}
