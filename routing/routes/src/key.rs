//! The shared key of a rack: what routers and nodes prove by that they belong to it.

use std::fmt;

use thiserror::Error;

/// Fewer characters are guessed from one captured packet.
const BYTES_MIN: usize = 8;
/// The kernel's TCP MD5 signatures take 80, HMAC-SHA-256 in BIRD 64.
const BYTES_MAX: usize = 64;

/// A rack's key. It is not printed: neither by `Debug` nor, as it has none, by `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

/// Why a text is no key.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum KeyError {
    /// Too short or too long.
    #[error("the key has {found} characters; it must have from {BYTES_MIN} to {BYTES_MAX}")]
    Length {
        /// How many it has.
        found: usize,
    },
    /// It would not survive a router's configuration.
    #[error("the key may hold only printable ASCII without quotes, blanks and backslashes")]
    Characters,
}

impl Key {
    /// Takes a key as it stands in the Secret; a line feed at its end does not count.
    ///
    /// # Errors
    ///
    /// When it is too short, too long, or holds what a configuration cannot.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        let text = text.trim_end_matches(['\r', '\n']);
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\'))
        {
            return Err(KeyError::Characters);
        }
        if !(BYTES_MIN..=BYTES_MAX).contains(&text.len()) {
            return Err(KeyError::Length { found: text.len() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Stands for the key where a person has to put it.
    pub(crate) fn placeholder(rack: &str) -> Self {
        Self(format!("PUT-THE-KEY-OF-RACK-{rack}-HERE"))
    }

    /// The key itself, for a configuration and nothing else.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_checked_and_never_printed() {
        let key = Key::new("correct-horse-7\n").unwrap();
        assert_eq!((format!("{key:?}").as_str(), key.reveal()), ("Key(..)", "correct-horse-7"));
        assert_eq!(Key::new("short"), Err(KeyError::Length { found: 5 }));
        assert_eq!(Key::new(&"x".repeat(65)), Err(KeyError::Length { found: 65 }));
        for hostile in ["has a blank in it", "quote\"; include", "back\\slash-", "umlaut-\u{fc}ber"]
        {
            assert_eq!(Key::new(hostile), Err(KeyError::Characters));
        }
    }
}
