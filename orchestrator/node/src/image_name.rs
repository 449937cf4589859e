//! Which names an image can have.
//!
//! Spec: the grammar of `distribution/reference` (`[DOMAIN[:PORT]/]PATH[:TAG][@DIGEST]`), with its
//! words for what is wrong.

use thiserror::Error;

/// The longest name, without tag and digest.
const NAME_LEN_MAX: usize = 255;
/// The longest tag.
const TAG_LEN_MAX: usize = 128;
/// The shortest digest, in hexadecimal digits.
const DIGEST_LEN_MIN: usize = 32;
/// So many hexadecimal digits alone are an image's own number, which nobody can pull.
const NUMBER_LEN: usize = 64;

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageNameError {
    /// It is no name at all.
    #[error("invalid reference format")]
    Format,
    /// It has capital letters where none may be.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// It is the number of an image.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Number(String),
    /// It is too long.
    #[error("repository name must not be more than {NAME_LEN_MAX} characters")]
    Length,
}

/// Checks the name of an image as a container has it.
///
/// # Errors
///
/// When no registry can have an image of this name: it must be written otherwise.
pub fn check_image_name(image: &str) -> Result<(), ImageNameError> {
    let is_hex =
        |text: &str| text.bytes().all(|one| one.is_ascii_digit() || matches!(one, b'a'..=b'f'));
    if image.len() == NUMBER_LEN && is_hex(image) {
        return Err(ImageNameError::Number(image.to_owned()));
    }
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let (domain, path) = split_domain(rest);
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if path.contains(|one: char| one.is_uppercase()) {
        let official = domain.is_none() && !path.contains('/');
        let name = if official { format!("library/{path}") } else { path.to_owned() };
        return Err(ImageNameError::Uppercase(name));
    }
    let fits = domain.is_none_or(is_domain)
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    if !fits {
        return Err(ImageNameError::Format);
    }
    let name = domain.map_or(0, |domain| domain.len() + 1) + path.len();
    if name > NAME_LEN_MAX { Err(ImageNameError::Length) } else { Ok(()) }
}

/// What comes before the first slash is a registry if it looks like one.
fn split_domain(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|one: char| one.is_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|one| one.is_ascii_digit());
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let is_address = address.bytes().all(|one| one.is_ascii_hexdigit() || one == b':');
        return is_address
            && !address.is_empty()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = domain.split_once(':').map_or((domain, None), |(a, b)| (a, Some(b)));
    let is_label = |label: &str| {
        let inner = label.bytes().all(|one| one.is_ascii_alphanumeric() || one == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Letters and digits with one of `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let is_inner = |one: u8| one.is_ascii_lowercase() || one.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    let separators = component.split(|one: char| u8::try_from(one).is_ok_and(is_inner));
    ends.is_some_and(|(first, last)| is_inner(*first) && is_inner(*last))
        && separators
            .into_iter()
            .all(|one| matches!(one, "" | "." | "_" | "__") || one.bytes().all(|one| one == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |one: u8| one.is_ascii_alphanumeric() || one == b'_';
    tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|one| is_word(one) || matches!(one, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.starts_with(|one: char| one.is_ascii_alphabetic())
            && part.bytes().all(|one| one.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_part)
        && hex.len() >= DIGEST_LEN_MIN
        && hex.bytes().all(|one| one.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_a_registry_can_have() {
        let number = "0123456789abcdef".repeat(4);
        let digest = format!("a@sha256:{number}");
        let long = format!("a/{}", "b".repeat(260));
        let tag = format!("a:{}", "t".repeat(129));
        for (image, wrong) in [
            ("nginx", None),
            ("nginx:1.27", None),
            ("library/nginx:1.27-alpine_3", None),
            ("registry.k8s.io/pause:3.10", None),
            ("localhost/a", None),
            ("localhost:5000/a/b/c", None),
            ("[fd00::1]:5000/a", None),
            ("EXAMPLE.com/a", None),
            ("a__b/c--d/e.f_g", None),
            (digest.as_str(), None),
            ("", Some(ImageNameError::Format)),
            (":1", Some(ImageNameError::Format)),
            ("a:", Some(ImageNameError::Format)),
            ("a:b:c", Some(ImageNameError::Format)),
            ("a:-b", Some(ImageNameError::Format)),
            ("a//b", Some(ImageNameError::Format)),
            ("a/", Some(ImageNameError::Format)),
            ("/a", Some(ImageNameError::Format)),
            ("a..b", Some(ImageNameError::Format)),
            ("-a", Some(ImageNameError::Format)),
            ("a b", Some(ImageNameError::Format)),
            ("a@sha256:0123", Some(ImageNameError::Format)),
            ("ex_ample.com/a", Some(ImageNameError::Format)),
            ("example.com:port/a", Some(ImageNameError::Format)),
            (tag.as_str(), Some(ImageNameError::Format)),
            ("Nginx", Some(ImageNameError::Uppercase("library/Nginx".to_owned()))),
            ("example.com/Nginx:1", Some(ImageNameError::Uppercase("Nginx".to_owned()))),
            (number.as_str(), Some(ImageNameError::Number(number.clone()))),
            (long.as_str(), Some(ImageNameError::Length)),
        ] {
            assert_eq!(check_image_name(image).err(), wrong, "{image}");
        }
    }

    #[test]
    fn any_text_is_a_name_or_not() {
        bolero::check!().with_iterations(2_000).with_type::<String>().for_each(|text| {
            if check_image_name(text).is_ok() {
                assert!(text.is_ascii() && !text.contains(char::is_whitespace), "{text:?}");
            }
        });
    }
}
