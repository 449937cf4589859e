//! A read-only TFTP server: packets, and the state of one transfer. For the first loader only.
//!
//! The caller opens a socket per transfer (its port is the transfer's identity), feeds packets and
//! wakes the transfer at its deadline. Writing is refused; names are looked up by the caller,
//! which has no paths, only a short list of files.
//!
//! Spec: RFC 1350, RFC 2347 (options), RFC 2348 (blksize), RFC 2349 (timeout, tsize), RFC 7440
//! (windowsize). Block numbers roll over to 0, as all known servers do; no RFC says.

use std::sync::Arc;
use std::time::Duration;

use crate::Moment;

/// Ethernet without fragments: 1500 − 20 (IP) − 8 (UDP) − 4 (TFTP).
const BLOCK_SIZE_MAX: usize = 1468;
const BLOCK_SIZE_DEFAULT: usize = 512;
/// 23 KB in flight; more gains nothing on a LAN and overruns small NICs.
const WINDOW_MAX: u64 = 16;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const TRIES_MAX: u32 = 8;
/// A client that lost the first block of a window says so by the same ACK again; one that got
/// late copies does too. It is answered at most this often (Sorcerer's Apprentice).
const REPEAT_PAUSE: Duration = Duration::from_millis(100);
const NAME_LEN_MAX: usize = 255;
const OPTIONS_MAX: usize = 16;

/// Error codes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of RFC 1350 and RFC 2347")]
pub enum ErrorCode {
    Undefined,
    FileNotFound,
    AccessViolation,
    IllegalOperation,
    UnknownTransfer,
    OptionRefused,
}

impl ErrorCode {
    const fn code(self) -> u16 {
        match self {
            Self::Undefined => 0,
            Self::FileNotFound => 1,
            Self::AccessViolation => 2,
            Self::IllegalOperation => 4,
            Self::UnknownTransfer => 5,
            Self::OptionRefused => 8,
        }
    }
}

/// A packet that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It ends too early.
    #[error("packet of {len} bytes is cut off")]
    Short {
        /// Its length.
        len: usize,
    },
    /// Its first two bytes are no operation.
    #[error("operation {found}")]
    Operation {
        /// What was found.
        found: u16,
    },
    /// A text has no end, is too long or is no ASCII.
    #[error("bad text at offset {offset}")]
    Text {
        /// Where it begins.
        offset: usize,
    },
    /// More options than any client has.
    #[error("more than 16 options")]
    Options,
}

/// A request to read a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadRequest {
    /// The name as asked for.
    pub file: String,
    /// `octet`, in lower case.
    pub mode: String,
    /// Options in order, names in lower case.
    pub options: Vec<(String, String)>,
}

/// A packet from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Send me a file.
    Read(ReadRequest),
    /// Take a file: always refused.
    Write,
    /// A block, which only a writer sends.
    Data,
    /// All blocks up to this one have come.
    Ack(u16),
    /// The client gives up, which is normal once it knows the size of the file.
    Error {
        /// The code on the wire.
        code: u16,
        /// Its text, made printable.
        text: String,
    },
}

/// What to send and how it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Packets, in order.
    pub send: Vec<Vec<u8>>,
    /// Whether the transfer goes on.
    pub progress: Progress,
}

/// How a transfer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Wait for a packet or the deadline.
    Going,
    /// The client has the whole file.
    Done,
    /// The client asked for the size alone, or stopped for a reason of its own.
    Aborted(String),
    /// The client fell silent.
    Silent,
}

/// One file on its way to one client.
#[derive(Debug)]
pub struct Transfer {
    file: Arc<[u8]>,
    block_size: usize,
    window: u64,
    timeout: Duration,
    /// The option answer, until it was acknowledged.
    offer: Option<Vec<u8>>,
    /// All blocks up to this one were acknowledged; blocks count from 1.
    acked: u64,
    /// The highest block sent.
    sent: u64,
    last_block: u64,
    tries: u32,
    sent_at: Moment,
}

/// Reads a packet.
///
/// # Errors
/// When it is none; the answer to a first packet is then silence.
pub fn parse_packet(bytes: &[u8]) -> Result<Packet, PacketError> {
    let short = PacketError::Short { len: bytes.len() };
    let (head, rest) = bytes.split_first_chunk::<2>().ok_or(short)?;
    match u16::from_be_bytes(*head) {
        1 => Ok(Packet::Read(parse_read(rest)?)),
        2 => Ok(Packet::Write),
        3 => Ok(Packet::Data),
        4 => {
            let (block, _) = rest.split_first_chunk::<2>().ok_or(short)?;
            Ok(Packet::Ack(u16::from_be_bytes(*block)))
        }
        5 => {
            let (code, text) = rest.split_first_chunk::<2>().ok_or(short)?;
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            let text = crate::request::printable(&String::from_utf8_lossy(text), 80);
            Ok(Packet::Error { code: u16::from_be_bytes(*code), text })
        }
        found => Err(PacketError::Operation { found }),
    }
}

/// Renders a request to read, as simulated machines send it.
#[must_use]
pub fn render_read(request: &ReadRequest) -> Vec<u8> {
    let mut out = vec![0, 1];
    let options = request.options.iter().flat_map(|(name, value)| [name, value]);
    for text in [&request.file, &request.mode].into_iter().chain(options) {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }
    out
}

/// Renders an error packet.
#[must_use]
pub fn render_error(code: ErrorCode, text: &str) -> Vec<u8> {
    let mut out = vec![0, 5];
    out.extend_from_slice(&code.code().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    out
}

/// Renders an acknowledgement, as simulated machines send it.
#[must_use]
pub fn render_ack(block: u16) -> Vec<u8> {
    let [high, low] = block.to_be_bytes();
    vec![0, 4, high, low]
}

fn parse_read(fields: &[u8]) -> Result<ReadRequest, PacketError> {
    let mut offset = 0;
    let mut next = || -> Result<Option<String>, PacketError> {
        let bad = PacketError::Text { offset: offset + 2 };
        let rest = fields.get(offset..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let len = rest.iter().position(|byte| *byte == 0).ok_or(bad)?;
        let text = rest.get(..len).filter(|text| text.len() <= NAME_LEN_MAX && text.is_ascii());
        offset += len + 1;
        Ok(Some(String::from_utf8_lossy(text.ok_or(bad)?).into_owned()))
    };
    let short = PacketError::Short { len: fields.len() + 2 };
    let file = next()?.ok_or(short)?;
    let mode = next()?.ok_or(short)?.to_ascii_lowercase();
    let mut options = Vec::new();
    // A name without a value at the end is dropped: some ROMs pad with zeros.
    while let Some(name) = next()?
        && let Some(value) = next()?
    {
        if options.len() == OPTIONS_MAX {
            return Err(PacketError::Options);
        }
        options.push((name.to_ascii_lowercase(), value));
    }
    Ok(ReadRequest { file, mode, options })
}

impl Transfer {
    /// Begins to send `file`.
    #[must_use]
    pub fn start(now: Moment, request: &ReadRequest, file: Arc<[u8]>) -> (Self, Step) {
        let mut transfer = Self {
            block_size: BLOCK_SIZE_DEFAULT,
            window: 1,
            timeout: TIMEOUT_DEFAULT,
            offer: None,
            acked: 0,
            sent: 0,
            last_block: 0,
            tries: 0,
            sent_at: now,
            file,
        };
        let accepted = transfer.negotiate(&request.options);
        if !accepted.is_empty() {
            let mut offer = vec![0, 6];
            for (name, value) in accepted {
                for text in [name, &value] {
                    offer.extend_from_slice(text.as_bytes());
                    offer.push(0);
                }
            }
            transfer.offer = Some(offer);
        }
        let blocks = transfer.file.len() / transfer.block_size + 1;
        transfer.last_block = u64::try_from(blocks).unwrap_or(u64::MAX);
        let step = transfer.send_window(now);
        (transfer, step)
    }

    /// Takes a packet of the client.
    pub fn handle(&mut self, now: Moment, bytes: &[u8]) -> Step {
        match parse_packet(bytes) {
            Ok(Packet::Ack(block)) => self.take_ack(now, block),
            Ok(Packet::Error { code, text }) => {
                let why = if text.is_empty() { format!("error {code}") } else { text };
                Step { send: Vec::new(), progress: Progress::Aborted(why) }
            }
            // A repeated request is answered by the timer; anything else is noise.
            Ok(Packet::Read(_) | Packet::Write | Packet::Data) | Err(_) => going(),
        }
    }

    /// Tells when to call [`Transfer::wake`] if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        self.sent_at.plus(self.timeout)
    }

    /// Sends again what was not acknowledged, or gives up after eight tries.
    pub fn wake(&mut self, now: Moment) -> Step {
        if now < self.deadline() {
            return going();
        }
        self.tries += 1;
        if self.tries >= TRIES_MAX {
            let error = render_error(ErrorCode::Undefined, "no acknowledgement");
            return Step { send: vec![error], progress: Progress::Silent };
        }
        self.send_window(now)
    }

    fn take_ack(&mut self, now: Moment, block: u16) -> Step {
        if self.offer.is_some() {
            if block != 0 {
                return going();
            }
            self.offer = None;
            self.tries = 0;
            return self.send_window(now);
        }
        let low = u16::try_from(self.acked & 0xffff).unwrap_or(0);
        let ahead = u64::from(block.wrapping_sub(low));
        if ahead > self.sent.saturating_sub(self.acked) {
            // Older than the window: a late copy.
            return going();
        }
        if ahead == 0 {
            let lost = self.window > 1 && now.since(self.sent_at) >= REPEAT_PAUSE;
            return if lost { self.send_window(now) } else { going() };
        }
        self.acked += ahead;
        self.tries = 0;
        if self.acked >= self.last_block {
            return Step { send: Vec::new(), progress: Progress::Done };
        }
        self.send_window(now)
    }

    /// Sends the option answer, or all blocks of the window after the last acknowledged.
    fn send_window(&mut self, now: Moment) -> Step {
        self.sent_at = now;
        if let Some(offer) = &self.offer {
            return Step { send: vec![offer.clone()], progress: Progress::Going };
        }
        let last = self.acked.saturating_add(self.window).min(self.last_block);
        let send = (self.acked + 1..=last).map(|block| self.render_block(block)).collect();
        self.sent = last;
        Step { send, progress: Progress::Going }
    }

    fn render_block(&self, block: u64) -> Vec<u8> {
        let index = usize::try_from(block - 1).unwrap_or(usize::MAX);
        let start = index.saturating_mul(self.block_size).min(self.file.len());
        let end = start.saturating_add(self.block_size).min(self.file.len());
        let number = u16::try_from(block & 0xffff).unwrap_or(0);
        let mut out = Vec::with_capacity(4 + end - start);
        out.extend_from_slice(&[0, 3]);
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(self.file.get(start..end).unwrap_or_default());
        out
    }

    /// Takes over what the client wants, within our limits; unknown options are not answered.
    fn negotiate(&mut self, options: &[(String, String)]) -> Vec<(&'static str, String)> {
        let mut accepted = Vec::new();
        for (name, value) in options {
            let Ok(number) = value.parse::<u64>() else {
                continue;
            };
            match name.as_str() {
                "blksize" if (8..=65_464).contains(&number) => {
                    let wanted = usize::try_from(number).unwrap_or(BLOCK_SIZE_MAX);
                    self.block_size = wanted.min(BLOCK_SIZE_MAX);
                    accepted.push(("blksize", self.block_size.to_string()));
                }
                "windowsize" if (1..=65_535).contains(&number) => {
                    self.window = number.min(WINDOW_MAX);
                    accepted.push(("windowsize", self.window.to_string()));
                }
                "timeout" if (1..=255).contains(&number) => {
                    self.timeout = Duration::from_secs(number);
                    accepted.push(("timeout", number.to_string()));
                }
                "tsize" => accepted.push(("tsize", self.file.len().to_string())),
                _ => {}
            }
        }
        accepted
    }
}

const fn going() -> Step {
    Step { send: Vec::new(), progress: Progress::Going }
}

#[cfg(test)]
mod tests;
