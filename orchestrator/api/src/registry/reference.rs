//! Digests and names of images.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The registry of images that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Names of that registry which mean the same.
const DEFAULT_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// What an image without a tag has.
const DEFAULT_TAG: &str = "latest";
/// Characters of a whole name; the limit of clients.
const NAME_CHARS_MAX: usize = 255;
/// Characters of a tag.
const TAG_CHARS_MAX: usize = 128;
const PREFIX: &str = "sha256:";
const HEX_CHARS: usize = 64;

/// What is wrong with a name or digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not a digest we can check.
    #[error("{0:?} is no digest: sha256: and 64 lower-case hexadecimal digits are wanted")]
    Digest(String),
    /// Not a name.
    #[error("{0:?} is no image name: lower-case letters, digits, and . _ - / between them")]
    Name(String),
    /// Not a tag.
    #[error("{0:?} is no tag: letters, digits, _ . and -, at most 128")]
    Tag(String),
}

/// The digest of some bytes: `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Reads a digest as it is written everywhere.
    ///
    /// # Errors
    ///
    /// For any other algorithm and form.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let hex = text.strip_prefix(PREFIX).unwrap_or_default();
        let is_hex = hex.len() == HEX_CHARS
            && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex { Ok(Self(text.to_owned())) } else { Err(ReferenceError::Digest(shown(text))) }
    }

    /// The digest whose raw bytes these are.
    #[must_use]
    pub fn of_raw(raw: &[u8; 32]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(PREFIX.len() + HEX_CHARS);
        text.push_str(PREFIX);
        for byte in raw {
            // Writing to a string cannot fail.
            let _written = write!(text, "{byte:02x}").is_ok();
        }
        Self(text)
    }

    /// The digest as it is written everywhere.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal digits alone.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.strip_prefix(PREFIX).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Which image is meant: registry, repository, and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The registry, as in `docker.io` or `registry.lab:5000`.
    pub registry: String,
    /// The repository in it, as in `library/nginx`.
    pub repository: String,
    /// The tag; absent only beside a digest.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as people and manifests of pods write it: `nginx` is
    /// `docker.io/library/nginx:latest`.
    ///
    /// # Errors
    ///
    /// When a part is not what it may be.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, repository) = split_name(name)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry, repository, tag, digest })
    }

    /// The whole name without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(out, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Registry and repository of a name that may leave both out.
pub(super) fn split_name(name: &str) -> Result<(String, String), ReferenceError> {
    let wrong = || ReferenceError::Name(shown(name));
    if name.len() > NAME_CHARS_MAX {
        return Err(wrong());
    }
    let (registry, repository) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if DEFAULT_ALIASES.contains(&registry) { DEFAULT_REGISTRY } else { registry };
    if !is_host(registry) || !repository.split('/').all(is_component) {
        return Err(wrong());
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    Ok((registry.to_owned(), repository))
}

/// Checks a tag.
pub(super) fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let mut bytes = tag.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if starts && goes_on && tag.len() <= TAG_CHARS_MAX {
        Ok(())
    } else {
        Err(ReferenceError::Tag(shown(tag)))
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Letters and digits with one separator between them: a dot, one or two underscores, dashes.
fn is_component(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (part.bytes().next(), part.bytes().last()) else {
        return false;
    };
    let separators =
        part.split(|letter: char| letter.is_ascii() && u8::try_from(letter).is_ok_and(is_word));
    is_word(first)
        && is_word(last)
        && separators
            .into_iter()
            .all(|one| matches!(one, "" | "." | "_" | "__") || one.bytes().all(|byte| byte == b'-'))
}

/// At most this much of what somebody sent is repeated.
fn shown(text: &str) -> String {
    text.chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_mean_the_default_registry() {
        let digest = format!("@sha256:{HEX}");
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/team/app:2", "docker.io/team/app:2"),
            ("muster.dev/busybox:1", "muster.dev/busybox:1"),
            ("registry.lab:5000/a/b__c/d-e.f:T_1", "registry.lab:5000/a/b__c/d-e.f:T_1"),
            ("localhost/a", "localhost/a:latest"),
            (&format!("nginx{digest}"), &format!("docker.io/library/nginx{digest}")),
            (&format!("nginx:1{digest}"), &format!("docker.io/library/nginx:1{digest}")),
        ] {
            let found = Reference::parse(text).unwrap();
            assert_eq!(found.to_string(), expected, "{text}");
            assert_eq!(Reference::parse(expected).unwrap(), found, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b c",
            "a@sha256:00",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "../etc",
            "reg.example:99999/a",
            "a@md5:00",
            "a:b:c",
            "é",
            &long,
            "reg.example/../../x",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn any_text_is_refused_or_comes_back_as_it_went() {
        bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(found) = Reference::parse(&text) {
                assert_eq!(Reference::parse(&found.to_string()), Ok(found.clone()));
                assert!(!found.repository.contains(".."), "{found}");
            }
            let _outcome = Digest::parse(&text);
        });
    }

    #[test]
    fn a_digest_is_made_of_its_bytes() {
        let mut raw = [0; 32];
        raw[0] = 0xab;
        let made = Digest::of_raw(&raw);
        assert_eq!(made.as_str(), format!("sha256:ab{}", "00".repeat(31)));
        assert_eq!(Digest::parse(made.as_str()).unwrap(), made);
        assert_eq!(made.hex().len(), 64);
    }
}
