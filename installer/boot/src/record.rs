//! What must survive a kill, and the gate that keeps promises behind it.
//!
//! Every change of lasting state is a [`Record`]; applying the records of a journal in order
//! gives the state back. A reply that promises something (a lease) cannot be had before its
//! record was kept: [`Outcome`] has no way to its replies but [`commit`].

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::{Firmware, Mac, Moment, Phase, SmbiosUuid};

/// One change of lasting state; one JSON line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Record {
    /// An address is promised to a machine.
    Lease {
        /// When.
        at: Moment,
        /// To whom.
        mac: Mac,
        /// Which address.
        address: Ipv4Addr,
        /// Until when; `None` for ever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<Moment>,
    },
    /// A machine gave its address back.
    Release {
        /// When.
        at: Moment,
        /// Who.
        mac: Mac,
        /// Which address.
        address: Ipv4Addr,
    },
    /// A machine found its address in use by someone else.
    Decline {
        /// When.
        at: Moment,
        /// Who.
        mac: Mac,
        /// Which address.
        address: Ipv4Addr,
    },
    /// What is known of a machine's hardware and place, when it changed.
    Seen {
        /// When.
        at: Moment,
        /// Who.
        mac: Mac,
        /// Its SMBIOS UUID, if it told a usable one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<SmbiosUuid>,
        /// Its SMBIOS serial number, if it told one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial: Option<String>,
        /// The rack it was heard in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rack: Option<String>,
        /// The program that asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        firmware: Option<Firmware>,
        /// The switch port, as the relay names it (option 82).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        circuit: Option<String>,
    },
    /// A machine starts anew: marks of the boot before are forgotten.
    Boot {
        /// When.
        at: Moment,
        /// Who.
        mac: Mac,
    },
    /// A machine reached a phase of its boot.
    Phase {
        /// When.
        at: Moment,
        /// Who.
        mac: Mac,
        /// Which phase.
        phase: Phase,
    },
    /// A machine said that its boot failed.
    Failed {
        /// When.
        at: Moment,
        /// Who.
        mac: Mac,
        /// What it said, made printable.
        detail: String,
    },
    /// Another DHCP server answers machines of ours.
    Rival {
        /// When.
        at: Moment,
        /// Its address, by option 54.
        server: Ipv4Addr,
        /// The rack it was noticed in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rack: Option<String>,
        /// The machine that listened to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mac: Option<Mac>,
    },
}

impl Record {
    /// Says whether someone was promised something: then it must be on disk before the answer
    /// goes out. Others may be lost with the power, though not with the process.
    #[must_use]
    pub const fn is_promise(&self) -> bool {
        matches!(self, Self::Lease { .. })
    }
}

/// Renders a record as a line without its newline.
#[must_use]
pub fn render_record(record: &Record) -> String {
    // A struct of strings and numbers always renders; an empty line is skipped on the way back.
    serde_json::to_string(record).unwrap_or_default()
}

/// Reads one line of a journal; `None` for a line that a crash has torn or that is foreign.
#[must_use]
pub fn parse_record(line: &str) -> Option<Record> {
    serde_json::from_str(line).ok()
}

/// Where records are kept.
pub trait Journal {
    /// Why it could not keep them.
    type Error;

    /// Appends records in order. When it returns `Ok` and one of them [`is_promise`], they
    /// survive the loss of power.
    ///
    /// # Errors
    /// When they may be lost. The caller must then stop answering: memory is ahead of the disk.
    ///
    /// [`is_promise`]: Record::is_promise
    fn append(&mut self, records: &[Record]) -> Result<(), Self::Error>;
}

/// An answer that may be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The packet.
    pub bytes: Vec<u8>,
    /// Where to.
    pub to: SocketAddrV4,
    /// The number of the socket the request came by, from its `Arrival`.
    pub socket: usize,
}

/// What one input led to: records to keep, and answers that are locked up until they are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "an outcome that is not committed loses state and leaves a machine waiting"]
pub struct Outcome {
    records: Vec<Record>,
    replies: Vec<Reply>,
}

impl Outcome {
    pub(crate) fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    pub(crate) fn reply(&mut self, reply: Reply) {
        self.replies.push(reply);
    }

    /// Tells what is to be kept.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Says whether there is nothing to keep and nothing to send.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty() && self.replies.is_empty()
    }
}

/// Keeps the records of all outcomes in one go and then hands out their replies in order.
///
/// # Errors
/// When the journal fails; then nothing may be sent, and nothing can be.
pub fn commit<J: Journal>(
    journal: &mut J,
    outcomes: impl IntoIterator<Item = Outcome>,
) -> Result<Vec<Reply>, J::Error> {
    let mut records = Vec::new();
    let mut replies = Vec::new();
    for mut outcome in outcomes {
        records.append(&mut outcome.records);
        replies.append(&mut outcome.replies);
    }
    if !records.is_empty() {
        journal.append(&records)?;
    }
    Ok(replies)
}
