//! A value that is a number or a word: ports by name, counts by percentage.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number or a string, as in `targetPort: http` and `maxSurge: 25%`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i64),
    /// A name or a percentage.
    String(String),
}

/// Which way a percentage of a whole is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the next lower whole number.
    Down,
    /// To the next higher whole number.
    Up,
}

impl IntOrString {
    /// The number, or the percentage taken of `total`; `None` for other strings.
    #[must_use]
    pub fn resolve(&self, total: i64, rounding: Rounding) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::String(text) => {
                let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
                let product = percent.checked_mul(total)?;
                Some(match rounding {
                    Rounding::Down => product.div_euclid(100),
                    Rounding::Up => product.checked_add(99)?.div_euclid(100),
                })
            }
        }
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => write!(f, "{number}"),
            Self::String(text) => f.write_str(text),
        }
    }
}

impl From<i64> for IntOrString {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<&str> for IntOrString {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let quarter = IntOrString::from("25%");
        assert_eq!(quarter.resolve(10, Rounding::Up), Some(3));
        assert_eq!(quarter.resolve(10, Rounding::Down), Some(2));
        assert_eq!(IntOrString::from(4).resolve(10, Rounding::Up), Some(4));
        assert_eq!(IntOrString::from("http").resolve(10, Rounding::Up), None);
        assert_eq!(IntOrString::from("%").resolve(10, Rounding::Up), None);
    }
}
