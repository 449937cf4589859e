//! What a DHCP request tells of the client: firmware, identity, place.
//!
//! Spec: RFC 4578, UEFI 2.10 §24.3 (HTTP boot), iPXE's user class and option 175.

use std::net::Ipv4Addr;

use super::{Message, option};
use crate::{Firmware, SmbiosUuid};

/// The vendor class of our own first program in the node image.
pub const INIT_CLASS: &[u8] = b"muster-init";
/// The vendor class of a boot server that looks for others; it is not answered.
pub const PROBE_CLASS: &[u8] = b"muster-probe";
const HTTP_CLASS: &[u8] = b"HTTPClient";
const PXE_CLASS: &[u8] = b"PXEClient";
const IPXE_CLASS: &[u8] = b"iPXE";

/// What one sub-option of option 82 says.
#[must_use]
pub fn relay_data(message: &Message, code: u8) -> Option<&[u8]> {
    let mut rest = message.options.get(option::RELAY_AGENT)?;
    while let [found, len, tail @ ..] = rest {
        let (bytes, next) = tail.split_at_checked(usize::from(*len))?;
        if *found == code {
            return Some(bytes);
        }
        rest = next;
    }
    None
}

/// A sub-option of option 82 that is one address.
pub(crate) fn relay_address(message: &Message, code: u8) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(relay_data(message, code)?).ok().map(Ipv4Addr::from)
}

/// The SMBIOS UUID, when the client gave one that identifies it.
pub(crate) fn uuid(message: &Message) -> Option<SmbiosUuid> {
    SmbiosUuid::from_option(message.options.get(option::CLIENT_UUID)?)
}

/// Tells which program on the machine is asking.
///
/// iPXE is looked for before the vendor class: it calls itself `PXEClient` too, and without this
/// branch the loader would load itself for ever.
#[must_use]
pub fn firmware(message: &Message) -> Firmware {
    let class = message.options.get(option::VENDOR_CLASS).unwrap_or_default();
    if class.starts_with(INIT_CLASS) {
        return Firmware::Init;
    }
    let user_class = message.options.get(option::USER_CLASS).unwrap_or_default();
    if message.options.get(option::IPXE).is_some() || has(user_class, IPXE_CLASS) {
        return Firmware::Ipxe;
    }
    let architecture = architecture(message, class);
    if class.starts_with(HTTP_CLASS) {
        return match architecture {
            // Some firmware says "x64" (7 or 9) in HTTP boot too; the class decides.
            Some(7 | 9 | 16) => Firmware::HttpEfi,
            other => Firmware::Unsupported { architecture: other.unwrap_or(0) },
        };
    }
    if class.starts_with(PXE_CLASS) {
        return match architecture {
            None | Some(0) => Firmware::PxeBios,
            Some(7 | 9) => Firmware::PxeEfi,
            Some(architecture) => Firmware::Unsupported { architecture },
        };
    }
    Firmware::Other
}

/// Option 93, or else the number in `PXEClient:Arch:00007:UNDI:003016`.
fn architecture(message: &Message, class: &[u8]) -> Option<u16> {
    if let Some([high, low, ..]) = message.options.get(option::CLIENT_ARCHITECTURE) {
        return Some(u16::from_be_bytes([*high, *low]));
    }
    let text = std::str::from_utf8(class).ok()?;
    let (_, after) = text.split_once(":Arch:")?;
    after.split(':').next()?.parse().ok()
}

fn has(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
