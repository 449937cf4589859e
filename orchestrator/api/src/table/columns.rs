//! The columns of all kinds but pods.

use super::Column;

pub(super) const fn text(name: &'static str) -> Column {
    (name, "string", false)
}

pub(super) const fn wide(name: &'static str) -> Column {
    (name, "string", true)
}

pub(super) const fn number(name: &'static str) -> Column {
    (name, "integer", false)
}

pub(super) const fn boolean(name: &'static str) -> Column {
    (name, "boolean", false)
}

pub(super) const PLAIN: &[Column] = &[text("Name"), text("Age")];
pub(super) const NAMESPACE: &[Column] = &[text("Name"), text("Status"), text("Age")];
pub(super) const NODE: &[Column] = &[
    text("Name"),
    text("Status"),
    text("Roles"),
    text("Age"),
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];
pub(super) const SERVICE: &[Column] = &[
    text("Name"),
    text("Type"),
    text("Cluster-IP"),
    text("External-IP"),
    text("Port(s)"),
    text("Age"),
    wide("Selector"),
];
pub(super) const ENDPOINTS: &[Column] = &[text("Name"), text("Endpoints"), text("Age")];
pub(super) const ENDPOINT_SLICE: &[Column] =
    &[text("Name"), text("AddressType"), text("Ports"), text("Endpoints"), text("Age")];
pub(super) const CONFIG_MAP: &[Column] = &[text("Name"), text("Data"), text("Age")];
pub(super) const SECRET: &[Column] = &[text("Name"), text("Type"), number("Data"), text("Age")];
pub(super) const SERVICE_ACCOUNT: &[Column] = &[text("Name"), text("Secrets"), text("Age")];
pub(super) const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];
pub(super) const DEPLOYMENT: &[Column] = &[
    text("Name"),
    text("Ready"),
    number("Up-to-date"),
    number("Available"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub(super) const REPLICA_SET: &[Column] = &[
    text("Name"),
    number("Desired"),
    number("Current"),
    number("Ready"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub(super) const DAEMON_SET: &[Column] = &[
    text("Name"),
    number("Desired"),
    number("Current"),
    number("Ready"),
    number("Up-to-date"),
    number("Available"),
    text("Node Selector"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub(super) const STATEFUL_SET: &[Column] =
    &[text("Name"), text("Ready"), text("Age"), wide("Containers"), wide("Images")];
pub(super) const LEASE: &[Column] = &[text("Name"), text("Holder"), text("Age")];
pub(super) const CSR: &[Column] = &[
    text("Name"),
    text("Age"),
    text("SignerName"),
    text("Requestor"),
    text("RequestedDuration"),
    text("Condition"),
];
pub(super) const VOLUME: &[Column] = &[
    text("Name"),
    text("Capacity"),
    text("Access Modes"),
    text("Reclaim Policy"),
    text("Status"),
    text("Claim"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Reason"),
    text("Age"),
    wide("VolumeMode"),
];
pub(super) const CLAIM: &[Column] = &[
    text("Name"),
    text("Status"),
    text("Volume"),
    text("Capacity"),
    text("Access Modes"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Age"),
    wide("VolumeMode"),
];
pub(super) const ROLE: &[Column] = &[text("Name"), ("Created At", "date", false)];
pub(super) const BINDING: &[Column] = &[
    text("Name"),
    text("Role"),
    text("Age"),
    wide("Users"),
    wide("Groups"),
    wide("ServiceAccounts"),
];
pub(super) const MACHINE: &[Column] = &[
    text("Name"),
    text("Rack"),
    text("Role"),
    text("Address"),
    text("Phase"),
    text("Age"),
    wide("MAC"),
    wide("Boot"),
    wide("Cause"),
];
pub(super) const RACK: &[Column] =
    &[text("Name"), text("Subnet"), text("Gateway"), text("Routing"), text("Age")];
pub(super) const NODE_IMAGE: &[Column] =
    &[text("Name"), text("Version"), text("Kernel"), text("Age")];
