//! One machine as the boot server sees it: who it is, and how far its boot came.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::cause::Activity;
use crate::{Mac, Moment, SmbiosUuid};

/// The steps of the road from power-on to a Ready node, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Power was switched on; told by whoever switched it.
    Power,
    /// The first offer of this boot was sent.
    Dhcp,
    /// The first loader was asked for, or showed itself.
    Loader,
    /// Kernel or UKI was asked for.
    Kernel,
    /// The root image was asked for.
    Image,
    /// The node checked the root image.
    Verified,
    /// The node agent runs.
    Agent,
    /// The node is Ready.
    Ready,
}

impl Phase {
    /// Tells the name as it stands in reports and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Dhcp => "dhcp",
            Self::Loader => "loader",
            Self::Kernel => "kernel",
            Self::Image => "image",
            Self::Verified => "verified",
            Self::Agent => "agent",
            Self::Ready => "ready",
        }
    }
}

/// Which program on a machine is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A BIOS PXE ROM that is not iPXE.
    PxeBios,
    /// x86-64 UEFI, booting by PXE.
    PxeEfi,
    /// x86-64 UEFI, booting by HTTP.
    HttpEfi,
    /// iPXE, from a ROM or loaded by us.
    Ipxe,
    /// Our own first program of the node image.
    Init,
    /// A network-booting client for which there is no loader.
    Unsupported {
        /// Option 93 (RFC 4578 and the IANA registry).
        architecture: u16,
    },
    /// No boot client: an operating system, or a device.
    Other,
}

/// Whether a machine may boot, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is in the plan and where the plan wants it.
    Planned,
    /// It is not in the plan.
    Discovered,
    /// It must not boot; the text says why, for people.
    Quarantined(String),
}

/// What is known of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) mac: Mac,
    /// Index into the plan's machines.
    pub(crate) planned: Option<usize>,
    pub(crate) uuid: Option<SmbiosUuid>,
    pub(crate) serial: Option<String>,
    /// Index into the plan's racks: where it was last heard.
    pub(crate) rack: Option<usize>,
    pub(crate) firmware: Option<Firmware>,
    pub(crate) circuit: Option<String>,
    /// The marks of the current boot, in order of phases.
    pub(crate) marks: Vec<(Phase, Moment)>,
    /// What the machine itself said went wrong in this boot.
    pub(crate) failure: Option<String>,
    /// When it was last heard; `None` for a planned machine that never was.
    pub(crate) seen: Option<Moment>,
    /// Its last traffic in this boot; lost by a restart, then the phase's time stands in.
    pub(crate) activity: Option<(Activity, Moment)>,
    /// Its address, as of the last lease.
    pub(crate) address: Option<Ipv4Addr>,
    /// The last heartbeat of its node that was seen, by the node's own clock.
    pub(crate) heartbeat: Option<Moment>,
    /// Another DHCP server that it listened to.
    pub(crate) rival: Option<(Ipv4Addr, Moment)>,
}

impl Machine {
    pub(crate) const fn new(mac: Mac) -> Self {
        Self {
            mac,
            planned: None,
            uuid: None,
            serial: None,
            rack: None,
            firmware: None,
            circuit: None,
            marks: Vec::new(),
            failure: None,
            seen: None,
            activity: None,
            address: None,
            heartbeat: None,
            rival: None,
        }
    }

    /// The furthest phase of this boot.
    pub(crate) fn phase(&self) -> Option<(Phase, Moment)> {
        self.marks.last().copied()
    }

    /// Says whether a mark would say something new: later than all marks, or the power-on that
    /// was reported just after the first packet.
    pub(crate) fn lacks(&self, phase: Phase) -> bool {
        match self.marks.last() {
            None => true,
            Some((last, _)) => *last < phase,
        }
    }

    /// Adds a mark. A mark out of order, as of an old record, is put in its place.
    pub(crate) fn mark(&mut self, phase: Phase, at: Moment) {
        if self.marks.iter().any(|(known, _)| *known == phase) {
            return;
        }
        if self.lacks(phase) {
            // It came further after all.
            self.failure = None;
        }
        self.marks.push((phase, at));
        self.marks.sort_by_key(|(phase, _)| *phase);
    }

    /// Forgets the last boot.
    pub(crate) fn begin(&mut self) {
        self.marks.clear();
        self.failure = None;
        self.activity = None;
        self.rival = None;
    }
}
