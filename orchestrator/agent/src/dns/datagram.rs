//! What comes in and goes out by UDP, many datagrams at a time.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use kernel::datagram::{self, BATCH};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::debug;

/// Questions are shorter; what is longer is cut off and cannot be read.
const DATAGRAM_BYTES: usize = 2048;
/// Room for what comes while others have the processor: some ten thousand questions. The kernel's
/// own default holds three hundred, which a busy node loses in a moment.
const WAITING_BYTES: usize = 8 << 20;

/// Gives the socket room for questions that wait.
pub(super) fn make_room(socket: &UdpSocket) {
    if let Err(err) = datagram::make_room(socket, WAITING_BYTES) {
        debug!(%err, "the DNS socket keeps its small room");
    }
}

/// What has come.
pub(super) struct Inbox {
    buffers: Vec<Box<[u8]>>,
    come: Vec<(usize, Option<SocketAddr>)>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let buffer = || vec![0; DATAGRAM_BYTES].into_boxed_slice();
        let buffers = std::iter::repeat_with(buffer).take(BATCH).collect();
        Self { buffers, come: Vec::with_capacity(BATCH) }
    }

    /// Reads what has come in the place of what was read before; says whether there may be more.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is nothing; others are about earlier answers.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        self.come.clear();
        let (buffers, come) = (&mut self.buffers, &mut self.come);
        let read = || datagram::receive(socket, buffers, come);
        socket.try_io(Interest::READABLE, read)?;
        Ok(self.come.len() == BATCH)
    }

    /// What was read, and from whom.
    pub(super) fn messages(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let both = self.buffers.iter().zip(&self.come);
        both.filter_map(|(buffer, (length, client))| Some((buffer.get(..*length)?, (*client)?)))
    }
}

/// What is to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    letters: Vec<Letter>,
}

/// Where an answer's bytes are, and who is to have it.
type Letter = (Range<usize>, SocketAddr);

impl Outbox {
    /// Adds an answer, in pieces.
    pub(super) fn push(&mut self, pieces: &[&[u8]], client: SocketAddr) {
        let start = self.bytes.len();
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        self.letters.push((start..self.bytes.len(), client));
    }

    /// Sends everything. A full send buffer loses answers, as UDP may; the client asks again.
    pub(super) fn send(&mut self, socket: &UdpSocket) {
        // Who asks much from one socket, as a resolver or a proxy does, has many answers of one
        // length, and those go together.
        self.letters.sort_unstable_by_key(|(range, client)| (*client, range.len()));
        let bytes = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
        let alike = |one: &Letter, other: &Letter| one.1 == other.1 && one.0.len() == other.0.len();
        let mut single = Vec::new();
        for group in self.letters.chunk_by(alike).flat_map(|group| group.chunks(BATCH)) {
            if let [(_, client), _, ..] = group {
                let all: Vec<&[u8]> = group.iter().map(|(range, _)| bytes(range)).collect();
                match datagram::send_alike(socket, &all, *client) {
                    Ok(()) => continue,
                    Err(err) => debug!(%err, "answers cannot go together"),
                }
            }
            single.extend(group);
        }
        let mut rest = single.as_slice();
        while !rest.is_empty() {
            let letters = rest.iter().map(|(range, client)| (bytes(range), *client));
            let sent = datagram::send(socket, letters).unwrap_or_else(|err| {
                // It is of no matter to the others.
                debug!(%err, "an answer is lost");
                1
            });
            rest = rest.get(sent.max(1)..).unwrap_or_default();
        }
        self.bytes.clear();
        self.letters.clear();
    }
}
