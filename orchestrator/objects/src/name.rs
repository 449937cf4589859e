//! The rules for names, label keys and label values.
//!
//! Each check returns the broken rule as a sentence for the error message.

/// A lower-case DNS label: the name of a namespace or a container.
///
/// # Errors
///
/// The rule that is broken. Spec: RFC 1123, at most 63 bytes.
pub fn check_dns_label(name: &str) -> Result<(), &'static str> {
    if name.len() > 63 {
        return Err("must be no more than 63 bytes");
    }
    if is_label(name) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 label must consist of lower case letters, digits and '-', and must \
         start and end with a letter or digit (e.g. 'my-name' or '123-abc', regex used for \
         validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')")
}

/// A lower-case DNS subdomain: the name of most objects.
///
/// # Errors
///
/// The rule that is broken. Spec: RFC 1123, at most 253 bytes.
pub fn check_dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > 253 {
        return Err("must be no more than 253 bytes");
    }
    if !name.is_empty() && name.split('.').all(is_label) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case letters, digits, '-' and '.', \
         and must start and end with a letter or digit (e.g. 'example.com', regex used for \
         validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')")
}

/// A DNS label that starts with a letter: the name of a service.
///
/// # Errors
///
/// The rule that is broken. Spec: RFC 1035, at most 63 bytes.
pub fn check_dns_1035_label(name: &str) -> Result<(), &'static str> {
    if name.len() > 63 {
        return Err("must be no more than 63 bytes");
    }
    if is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(
        "a DNS-1035 label must consist of lower case letters, digits and '-', start with a letter, \
         and end with a letter or digit (e.g. 'my-name' or 'abc-123', regex used for validation \
         is '[a-z]([-a-z0-9]*[a-z0-9])?')",
    )
}

/// A name that is one step of a path: the name of a role.
///
/// # Errors
///
/// The rule that is broken.
pub fn check_path_segment(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Err("may not be empty, '.' or '..'");
    }
    if name.contains(['/', '%']) {
        return Err("may not contain '/' or '%'");
    }
    Ok(())
}

/// A label key, annotation key, finalizer or resource name: `prefix/name` or `name`.
///
/// # Errors
///
/// The rule that is broken.
pub fn check_label_key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| check_dns_subdomain(prefix).is_err()) {
        return Err("prefix part must be a lowercase RFC 1123 subdomain (e.g. 'example.com')");
    }
    if name.is_empty() {
        return Err("name part must be non-empty");
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes");
    }
    if is_qualified(name) {
        return Ok(());
    }
    Err("name part must consist of letters, digits, '-', '_' or '.', and must start and end with \
         a letter or digit (e.g. 'MyName', 'my.name' or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')")
}

/// A label value; may be empty.
///
/// # Errors
///
/// The rule that is broken.
pub fn check_label_value(value: &str) -> Result<(), &'static str> {
    if value.len() > 63 {
        return Err("must be no more than 63 bytes");
    }
    if value.is_empty() || is_qualified(value) {
        return Ok(());
    }
    Err(
        "a valid label must be an empty string or consist of letters, digits, '-', '_' or '.', and \
         must start and end with a letter or digit (e.g. 'MyValue', 'my_value' or '12345', regex \
         used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
    )
}

/// A port's name: lower case, at most 15 bytes, with a letter in it.
///
/// # Errors
///
/// The rule that is broken. Spec: RFC 6335 §5.1.
pub fn check_port_name(name: &str) -> Result<(), &'static str> {
    if name.len() > 15 {
        return Err("must be no more than 15 bytes");
    }
    if !is_label(name) {
        return Err(
            "must contain only letters, digits and hyphens, and must start and end with a \
                    letter or digit",
        );
    }
    if !name.contains(|c: char| c.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        return Err("must not contain consecutive hyphens");
    }
    Ok(())
}

/// A key of a config map or secret.
///
/// # Errors
///
/// The rule that is broken.
pub fn check_config_key(key: &str) -> Result<(), &'static str> {
    if key.len() > 253 {
        return Err("must be no more than 253 bytes");
    }
    if key == "." || key.starts_with("..") {
        return Err("must not be '.' or start with '..'");
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !key.is_empty() && key.bytes().all(fits) {
        return Ok(());
    }
    Err("a valid config key must consist of letters, digits, '-', '_' or '.' (e.g. 'key.name', \
         'KEY_NAME' or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')")
}

fn is_label(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(fits) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_qualified(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.bytes().all(fits) && outer(text.bytes().next()) && outer(text.bytes().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let long = "a".repeat(64);
        for (name, label, subdomain, service) in [
            ("a", true, true, true),
            ("1a", true, true, false),
            ("a.b", false, true, false),
            ("a..b", false, false, false),
            ("-a", false, false, false),
            ("A", false, false, false),
            ("", false, false, false),
            (long.as_str(), false, true, false),
        ] {
            assert_eq!(check_dns_label(name).is_ok(), label, "{name}");
            assert_eq!(check_dns_subdomain(name).is_ok(), subdomain, "{name}");
            assert_eq!(check_dns_1035_label(name).is_ok(), service, "{name}");
        }
    }

    #[test]
    fn keys_and_values_follow_the_rules() {
        for (key, good) in [
            ("app", true),
            ("app.kubernetes.io/name", true),
            ("Upper_case.ok", true),
            ("/a", false),
            ("a/", false),
            ("a/b/c", false),
            ("Up/a", false),
            ("-a", false),
        ] {
            assert_eq!(check_label_key(key).is_ok(), good, "{key}");
        }
        assert!(check_label_value("").is_ok());
        assert!(check_label_value("a b").is_err());
        assert!(check_port_name("http").is_ok());
        assert!(check_port_name("80").is_err());
        assert!(check_config_key("..a").is_err());
    }
}
