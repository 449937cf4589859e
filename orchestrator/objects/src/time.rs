//! Times as the API writes them: RFC 3339 in UTC, to the second or to the microsecond.
//!
//! Nothing here knows what time it is; `now` is always an argument.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point in time, written to the second (`2026-01-02T03:04:05Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Timestamp);

/// A point in time, written to the microsecond (`2026-01-02T03:04:05.000000Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroTime(pub Timestamp);

/// Reads an RFC 3339 time; `None` when it is not one.
#[must_use]
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Whole seconds from `earlier` to `later`; negative when they are the other way round.
#[must_use]
pub fn seconds_between(earlier: Timestamp, later: Timestamp) -> i64 {
    later.as_second().saturating_sub(earlier.as_second())
}

impl Time {
    /// Whole seconds from this time to `now`.
    #[must_use]
    pub fn seconds_until(self, now: Timestamp) -> i64 {
        seconds_between(self.0, now)
    }
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        // What is written is what is compared: the fraction would be lost on the wire.
        Self(Timestamp::from_second(at.as_second()).unwrap_or(at))
    }
}

impl From<Timestamp> for MicroTime {
    fn from(at: Timestamp) -> Self {
        Self(Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl fmt::Display for MicroTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.strftime("%Y-%m-%dT%H:%M:%S.%6fZ"))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for MicroTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_time(&text).map(Self).ok_or_else(|| D::Error::custom("not an RFC 3339 time"))
    }
}

impl<'de> Deserialize<'de> for MicroTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_time(&text).map(Self).ok_or_else(|| D::Error::custom("not an RFC 3339 time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_upstream_writes_them() {
        let at: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        assert_eq!(Time::from(at).to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(MicroTime::from(at).to_string(), "2026-01-02T03:04:05.678901Z");
        let zero: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(MicroTime::from(zero).to_string(), "2026-01-02T03:04:05.000000Z");
        assert_eq!(parse_time("2026-01-02T05:04:05+02:00"), Some(zero));
        assert_eq!(parse_time("yesterday"), None);
    }
}
