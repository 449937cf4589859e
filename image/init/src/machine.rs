//! What the machine says of itself: SMBIOS identity.

use std::fs;

use sha2::{Digest, Sha256};

/// UUID and serial number from the firmware; empty where it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// SMBIOS system UUID, lower case.
    pub(crate) uuid: String,
    /// SMBIOS system serial number.
    pub(crate) serial: String,
}

impl Identity {
    /// Reads what the kernel took from the firmware's tables.
    pub(crate) fn observe() -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
            text.trim().to_owned()
        };
        Self { uuid: read("product_uuid").to_ascii_lowercase(), serial: read("product_serial") }
    }

    /// The text of `/etc/machine-id`: the same machine has the same one at every boot, and nobody
    /// learns the UUID from it.
    pub(crate) fn machine_id(&self, mac: &str) -> String {
        let text = format!("muster machine {mac} {} {}", self.uuid, self.serial);
        let digest = hex::encode(Sha256::digest(text));
        format!("{}\n", digest.get(..32).unwrap_or(&digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_stable_and_of_systemds_form() {
        let identity = Identity { uuid: "u".into(), serial: "s".into() };
        let id = identity.machine_id("52:54:00:00:00:01");
        assert_eq!(id.len(), 33);
        assert_eq!(id, identity.machine_id("52:54:00:00:00:01"));
        assert_ne!(id, identity.machine_id("52:54:00:00:00:02"));
    }
}
