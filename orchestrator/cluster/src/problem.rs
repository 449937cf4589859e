//! A mistake in what an operator wrote, with all that is needed to mend it.

use std::fmt;

use serde::Serialize;

/// One thing to mend: where it is, what was found, which rule it breaks, what would do instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// What was found there; empty when something is missing.
    pub found: String,
    /// The rule it breaks, as the end of a sentence that begins with what was found.
    pub rule: String,
    /// What would do instead.
    pub hint: String,
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.place)?;
        if !self.found.is_empty() {
            write!(out, " = {}", self.found)?;
        }
        write!(out, ": {}", self.rule)?;
        if !self.hint.is_empty() {
            write!(out, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// A place in the document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Line, counted from 1; 0 when the place is known by its path alone.
    pub line: u64,
    /// Column, counted from 1; 0 when unknown.
    pub column: u64,
    /// Path from the root, as in `machines[2].mac`; empty for the document itself.
    pub path: String,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(out, "line {}: ", self.line)?;
        }
        write!(out, "{}", if self.path.is_empty() { "document" } else { &self.path })
    }
}
