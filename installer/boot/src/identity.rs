//! By what a machine is told from others: its MAC address and its SMBIOS UUID.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// UUIDs that vendors leave in boards by the thousand; they identify nothing.
const BOGUS: [Uuid; 3] =
    [Uuid::nil(), Uuid::max(), Uuid::from_u128(0x0300_0200_0400_0500_0006_0007_0008_0009)];

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no MAC address like 52:54:00:00:01:0b")]
pub struct MacError {
    /// What was found.
    pub found: String,
}

/// An Ethernet address; written in lower case with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Makes an address from its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Tells the bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Says whether one machine can own it: not zero, and no group address.
    #[must_use]
    pub fn is_individual(self) -> bool {
        let [first, ..] = self.0;
        self.0 != [0; 6] && first & 1 == 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// Reads `52:54:00:00:01:0b`, with colons or hyphens, in either case.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let refused = || MacError { found: text.chars().take(40).collect() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        if parts.next().is_some() {
            return Err(refused());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An SMBIOS system UUID that identifies a machine; never one of the known bogus values.
///
/// Firmware disagrees on the byte order of the first three fields (DHCP option 97 carries them
/// little-endian, the text form is big-endian, and some ROMs mix the two up), so two values that
/// differ only in that order are the same machine: compare by [`SmbiosUuid::is_same`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SmbiosUuid(Uuid);

impl SmbiosUuid {
    /// Reads the text form; `None` for other text and for values that identify nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::checked(Uuid::try_parse(text).ok()?)
    }

    /// Reads DHCP option 97: a type byte, which must be 0, and 16 bytes as SMBIOS has them.
    ///
    /// Spec: RFC 4578 §2.3.
    #[must_use]
    pub fn from_option(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let raw: [u8; 16] = rest.try_into().ok()?;
        (*kind == 0).then(|| Self::checked(Uuid::from_bytes_le(raw))).flatten()
    }

    /// Says whether both name one machine, whichever byte order its firmware used.
    #[must_use]
    pub fn is_same(self, other: Self) -> bool {
        self.key() == other.key()
    }

    /// A value equal for both byte orders.
    pub(crate) fn key(self) -> u128 {
        let swapped = Uuid::from_bytes_le(*self.0.as_bytes());
        self.0.as_u128().min(swapped.as_u128())
    }

    fn checked(uuid: Uuid) -> Option<Self> {
        let swapped = Uuid::from_bytes_le(*uuid.as_bytes());
        let bogus = BOGUS.iter().any(|bad| *bad == uuid || *bad == swapped);
        (!bogus).then_some(Self(uuid))
    }
}

impl fmt::Display for SmbiosUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for SmbiosUuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SmbiosUuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no usable SMBIOS UUID"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_in_the_usual_spellings() {
        let mac = Mac::new([0x52, 0x54, 0, 0, 1, 0x0b]);
        for text in ["52:54:00:00:01:0b", "52-54-00-00-01-0B"] {
            assert_eq!(text.parse::<Mac>().unwrap(), mac);
        }
        for text in
            ["", "52:54:00:00:01", "52:54:00:00:01:0b:0c", "52:54:0:0:1:b", "+2:54:00:00:01:0b"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn both_byte_orders_are_one_machine() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let uuid = SmbiosUuid::parse(text).unwrap();
        let wire = [
            0, 0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ];
        let little = SmbiosUuid::from_option(&wire).unwrap();
        assert_eq!(little.to_string(), text);
        let mut straight = vec![0];
        straight.extend_from_slice(uuid.0.as_bytes());
        assert!(SmbiosUuid::from_option(&straight).unwrap().is_same(uuid));
    }

    #[test]
    fn bogus_uuids_identify_nothing() {
        for text in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "03000200-0400-0500-0006-000700080009",
            "${uuid}",
            "",
        ] {
            assert_eq!(SmbiosUuid::parse(text), None, "{text}");
        }
        assert_eq!(SmbiosUuid::from_option(&[0; 17]), None);
        assert_eq!(SmbiosUuid::from_option(&[0; 3]), None);
    }
}
