//! Which credentials of a pod's pull secrets are meant for an image.
//!
//! Spec: upstream's lookup in `.dockerconfigjson` and `.dockercfg`: a key is a registry with an
//! optional path, host labels may be globs, and the longest path comes first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::config::Secret;
use serde_json::Value;

/// The registry of images that name none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// How to prove oneself to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
    /// A token of the registry's identity service instead.
    pub identity_token: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The credentials for an image, best first.
#[must_use]
pub fn credentials(image: &str, secrets: &[Secret]) -> Vec<Credential> {
    let (host, path) = split_image(image);
    let mut found: Vec<(usize, Credential)> = Vec::new();
    for (key, value) in secrets.iter().flat_map(entries) {
        let (key_host, key_path) = split_key(&key);
        if is_host(&key_host, &host) && is_below(&path, &key_path) {
            found.extend(credential(&value).map(|credential| (key_path.len(), credential)));
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, credential)| credential).collect()
}

/// The registries and their entries in a secret; one that cannot be read has none.
fn entries(secret: &Secret) -> Vec<(String, Value)> {
    let read = |name: &str| {
        let bytes = STANDARD.decode(secret.data.get(name)?).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    };
    let auths =
        read(".dockerconfigjson").and_then(|mut file| file.get_mut("auths").map(Value::take));
    match auths.or_else(|| read(".dockercfg")) {
        Some(Value::Object(entries)) => entries.into_iter().collect(),
        _ => Vec::new(),
    }
}

fn credential(value: &Value) -> Option<Credential> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if let Some(auth) = value.get("auth").and_then(Value::as_str).filter(|auth| !auth.is_empty()) {
        let both = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
        let (user, word) = both.split_once(':')?;
        (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
    }
    let identity_token = text("identitytoken");
    let is_empty = username.is_empty() && identity_token.is_empty();
    (!is_empty).then_some(Credential { username, password, identity_token })
}

/// Registry and path of an image.
fn split_image(image: &str) -> (String, String) {
    let name = image.split('@').next().unwrap_or(image);
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            (canonical(host), path.to_owned())
        }
        Some(_) => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
        None => (DEFAULT_REGISTRY.to_owned(), format!("library/{name}")),
    }
}

/// Registry and path of a key, which may be written as an address.
fn split_key(key: &str) -> (String, String) {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path.trim_matches('/');
    // What old tools write for a registry as a whole.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    (canonical(host), path.to_owned())
}

fn canonical(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        other => other.to_owned(),
    }
}

/// Host labels match one by one; `*` stands for any part of a label.
fn is_host(pattern: &str, host: &str) -> bool {
    let (pattern, pattern_port) = pattern.split_once(':').unwrap_or((pattern, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let (patterns, labels) = (pattern.split('.'), host.split('.'));
    pattern_port == port
        && patterns.clone().count() == labels.clone().count()
        && patterns.zip(labels).all(|(pattern, label)| is_label(pattern, label))
}

fn is_label(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((start, end)) => label
            .strip_prefix(start)
            .is_some_and(|rest| rest.len() >= end.len() && rest.ends_with(end)),
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with(['/', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(auths: &Value) -> Secret {
        let file = STANDARD.encode(json!({"auths": auths}).to_string());
        serde_json::from_value(json!({"data": {".dockerconfigjson": file}})).unwrap()
    }

    #[test]
    fn the_most_exact_key_comes_first() {
        let entry = |user: &str| json!({"username": user, "password": "p"});
        let secrets = [secret(&json!({
            "reg.example": entry("host"), "https://reg.example/team": entry("team"),
            "*.cloud.example:5000": entry("glob"), "https://index.docker.io/v1/": entry("hub"),
        }))];
        for (image, users) in [
            ("reg.example/team/app:1", "team host"),
            ("reg.example/teams/app", "host"),
            ("reg.example/other", "host"),
            ("eu.cloud.example:5000/app@sha256:00", "glob"),
            ("a.b.cloud.example:5000/app", ""),
            ("eu.cloud.example/app", ""),
            ("busybox", "hub"),
            ("someone/app", "hub"),
        ] {
            let found = credentials(image, &secrets);
            let got: Vec<_> = found.iter().map(|found| found.username.as_str()).collect();
            assert_eq!(got.join(" "), users, "{image}");
        }
    }

    #[test]
    fn both_spellings_of_a_password_are_read() {
        let auth = STANDARD.encode("me:se:cret");
        let secrets = [secret(&json!({"r.example": {"auth": auth}}))];
        let found = credentials("r.example/a", &secrets);
        assert_eq!((&*found[0].username, &*found[0].password), ("me", "se:cret"));
        assert!(!format!("{found:?}").contains("cret"));
        let broken: Secret =
            serde_json::from_value(json!({"data": {".dockerconfigjson": "%"}})).unwrap();
        assert!(credentials("r.example/a", &[broken]).is_empty());
    }
}
