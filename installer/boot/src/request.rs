//! What machines tell over HTTP: the query of the boot script, and reports.
//!
//! Nothing here is authenticated. It is bounded, made printable, and never trusted further than
//! for status texts and the choice between two public scripts.

use serde::Deserialize;

use crate::{Mac, MacError, SmbiosUuid};

const QUERY_LEN_MAX: usize = 1024;
const REPORT_LEN_MAX: usize = 4096;
const SERIAL_LEN_MAX: usize = 64;
const DETAIL_LEN_MAX: usize = 500;

/// Who asks for a boot script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its boot NIC.
    pub mac: Mac,
    /// Its SMBIOS UUID, when it told a usable one.
    pub uuid: Option<SmbiosUuid>,
    /// Its SMBIOS serial number, when it has one.
    pub serial: Option<String>,
}

/// A query that names no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Longer than any honest one.
    #[error("query of {len} bytes, at most 1024 are read")]
    Long {
        /// Its length.
        len: usize,
    },
    /// There is no `mac=`.
    #[error("no mac in the query")]
    NoMac,
    /// The `mac=` is none.
    #[error("bad mac in the query")]
    Mac(#[source] MacError),
}

/// What a machine, or who powers it, says of its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which machine, by its boot NIC.
    pub mac: Mac,
    /// Its SMBIOS UUID, when told.
    pub uuid: Option<SmbiosUuid>,
    /// How far it came.
    pub phase: ReportedPhase,
    /// Free text, made printable; empty when nothing was told.
    pub detail: String,
}

/// The phases that are told and not seen by the boot server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportedPhase {
    /// Power was switched on.
    Power,
    /// The root image was checked.
    Verified,
    /// The agent runs.
    Agent,
    /// The boot failed; the detail says why.
    Failed,
}

/// A report that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Longer than any honest one.
    #[error("report of {len} bytes, at most 4096 are read")]
    Long {
        /// Its length.
        len: usize,
    },
    /// It is no report.
    #[error("report is not the JSON object that is wanted")]
    Json(#[source] serde_json::Error),
    /// Its `mac` is none.
    #[error("bad mac in the report")]
    Mac(#[source] MacError),
}

/// Reads `mac=…&uuid=…&serial=…`.
///
/// Unknown keys are skipped, the first of several wins, and a UUID or serial number that is none
/// counts as not told: firmware leaves them out, or leaves `${uuid}` unexpanded.
///
/// # Errors
/// When it is too long or has no readable `mac`.
pub fn parse_query(query: &str) -> Result<Query, QueryError> {
    if query.len() > QUERY_LEN_MAX {
        return Err(QueryError::Long { len: query.len() });
    }
    let find = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == wanted).map(|(_, value)| decode_percent(value))
    };
    let mac = find("mac").ok_or(QueryError::NoMac)?.parse().map_err(QueryError::Mac)?;
    let uuid = find("uuid").as_deref().and_then(SmbiosUuid::parse);
    let serial = find("serial").map(|text| printable(&text, SERIAL_LEN_MAX));
    Ok(Query { mac, uuid, serial: serial.filter(|text| !text.is_empty() && !text.contains('$')) })
}

/// Reads the body of `POST /report`.
///
/// # Errors
/// When it is too long, no such JSON, names an unknown phase, or its `mac` is none.
pub fn parse_report(body: &[u8]) -> Result<Report, ReportError> {
    #[derive(Deserialize)]
    struct Raw {
        mac: String,
        #[serde(default)]
        uuid: Option<String>,
        phase: ReportedPhase,
        #[serde(default)]
        detail: Option<String>,
    }
    if body.len() > REPORT_LEN_MAX {
        return Err(ReportError::Long { len: body.len() });
    }
    let raw: Raw = serde_json::from_slice(body).map_err(ReportError::Json)?;
    Ok(Report {
        mac: raw.mac.parse().map_err(ReportError::Mac)?,
        uuid: raw.uuid.as_deref().and_then(SmbiosUuid::parse),
        phase: raw.phase,
        detail: printable(&raw.detail.unwrap_or_default(), DETAIL_LEN_MAX),
    })
}

/// Makes foreign text fit for logs, consoles and scripts' `echo`: printable ASCII of bounded
/// length, trimmed; anything else becomes `?`.
pub(crate) fn printable(text: &str, len_max: usize) -> String {
    let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.trim().chars().take(len_max).map(plain).collect()
}

/// A broken escape stays as it is. `+` is no space: firmware writes `%20`.
fn decode_percent(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            out.push(high << 4 | low);
            rest = rest.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, expected: &str) {
        let found = match parse_query(query) {
            Ok(query) => format!(
                "{} {} {}",
                query.mac,
                query.uuid.map_or("-".to_owned(), |uuid| uuid.to_string()),
                query.serial.as_deref().unwrap_or("-"),
            ),
            Err(err) => err.to_string(),
        };
        assert_eq!(found, expected, "{query}");
    }

    #[test]
    fn queries_are_read_or_refused() {
        check("mac=52:54:00:00:01:0b", "52:54:00:00:01:0b - -");
        check("mac=52%3A54%3a00:00:01:0B&serial=A%201", "52:54:00:00:01:0b - A 1");
        check(
            "x=1&mac=52-54-00-00-01-0b&uuid=00112233-4455-6677-8899-AABBCCDDEEFF",
            "52:54:00:00:01:0b 00112233-4455-6677-8899-aabbccddeeff -",
        );
        check("mac=52:54:00:00:01:0b&uuid=${uuid}&serial=${serial}", "52:54:00:00:01:0b - -");
        check("mac=52:54:00:00:01:0b&serial=%0Aboot%ff%zz", "52:54:00:00:01:0b - boot?%zz");
        check("", "no mac in the query");
        check("mac=", "bad mac in the query");
        check(&"m".repeat(1025), "query of 1025 bytes, at most 1024 are read");
    }

    #[test]
    fn reports_are_read_or_refused() {
        let good = br#"{"mac":"52:54:00:00:01:0b","uuid":"","phase":"failed","detail":"a\nb"}"#;
        let report = parse_report(good).unwrap();
        assert_eq!((report.phase, report.detail.as_str()), (ReportedPhase::Failed, "a?b"));
        for bad in [
            &b""[..],
            b"[]",
            br#"{"mac":"x","phase":"power"}"#,
            br#"{"mac":"52:54:00:00:01:0b","phase":"ready"}"#,
        ] {
            assert!(parse_report(bad).is_err());
        }
        assert!(matches!(parse_report(&[b' '; 4097]), Err(ReportError::Long { len: 4097 })));
    }

    #[test]
    fn no_bytes_break_the_query_parser() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let _ignored = parse_query(&text).is_ok();
            if let Ok(query) = parse_query(&format!("mac=52:54:00:00:01:0b&serial={text}")) {
                let serial = query.serial.unwrap_or_default();
                assert!(serial.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            }
        });
    }

    #[test]
    fn no_bytes_break_the_report_parser() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            let _ignored = parse_report(bytes).is_ok();
        });
    }
}
