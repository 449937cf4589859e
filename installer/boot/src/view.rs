//! What the boot server tells of its machines: `GET /machines` and `Machine.status`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Firmware, Mac, Moment, Phase, SmbiosUuid};

/// All machines, known, discovered and quarantined, and other DHCP servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteView {
    /// When this was true.
    pub at: Moment,
    /// Machines of the plan in its order, then all others by MAC address.
    pub machines: Vec<MachineView>,
    /// Other DHCP servers, by address.
    pub rivals: Vec<RivalView>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineView {
    /// Its name in the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `planned`, `discovered` or `quarantined`.
    pub standing: String,
    /// What it was recognised by.
    pub evidence: Evidence,
    /// The furthest phase of its current boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// All phases reached, in order.
    pub phases: Vec<Mark>,
    /// Why it hangs; absent while it moves, and once it is Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it is held back for a reason other than being unknown.
    pub quarantined: bool,
    /// When it was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Moment>,
}

/// What a machine was recognised by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Its boot NIC.
    pub mac: Mac,
    /// Its SMBIOS UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<SmbiosUuid>,
    /// Its SMBIOS serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The rack it was last heard in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The switch port, as the relay names it (option 82).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<String>,
    /// The program that asked last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
}

/// When a phase was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The phase.
    pub name: Phase,
    /// When.
    pub at: Moment,
}

/// Another DHCP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RivalView {
    /// Its address, by option 54.
    pub server: Ipv4Addr,
    /// When it was last noticed.
    pub at: Moment,
    /// The rack it was noticed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The machine that listened to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}
