//! What admission says beside its verdict: warnings for the client, annotations for whoever reads
//! the audit log.
//!
//! It is said of refused requests too. Values are cut where upstream cuts them.

use crate::authority::audit::Level;

/// Bytes of an annotation's value that are kept.
const VALUE_BYTES_MAX: usize = 10 << 10;

/// One thing for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// From which level on it is noted.
    pub level: Level,
    /// Its name, with the name of who says it in front.
    pub key: String,
    /// Its text.
    pub value: String,
}

/// What was said so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// For the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<Annotation>,
}

impl Said {
    /// Says something in the audit log.
    pub fn annotate(&mut self, level: Level, key: impl Into<String>, value: impl Into<String>) {
        let (key, mut value) = (key.into(), value.into());
        value.truncate(value.floor_char_boundary(VALUE_BYTES_MAX));
        self.annotations.push(Annotation { level, key, value });
    }
}
