//! Which objects are unreadable on disk, and by which keys.
//!
//! For each resource the first entry that names it counts: its first provider writes, all its
//! providers read. This holds keys and enciphers nothing itself.
//!
//! *Limits*: the providers are `aesgcm` (keys of 16 or 32 bytes) and `identity`.
//!
//! Spec: EncryptionConfiguration of apiserver.config.k8s.io/v1.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::field::str_at;
use serde_json::Value;

/// What the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encryption {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

/// How an object is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// As it is.
    Identity,
    /// By AES-GCM with this key.
    AesGcm(NamedKey),
}

/// A key and its name; the key is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// The name, which stands before what was enciphered with it.
    pub name: String,
    /// 16 or 32 bytes.
    pub secret: Vec<u8>,
}

impl fmt::Debug for NamedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// It is no YAML.
    #[error("the encryption configuration cannot be read: {0}")]
    Unreadable(String),
    /// It is something else.
    #[error("an EncryptionConfiguration of apiserver.config.k8s.io/v1 with resources is wanted")]
    Kind,
    /// A provider nobody knows.
    #[error("resources[{rule}]: aesgcm and identity are the providers known here, not {found:?}")]
    Provider {
        /// Which entry, from 0.
        rule: usize,
        /// What was found.
        found: String,
    },
    /// A key without a usable name or secret.
    #[error(
        "resources[{rule}]: a key of aesgcm needs a name without colons and 16 or 32 bytes in base64"
    )]
    Key {
        /// Which entry, from 0.
        rule: usize,
    },
    /// An entry without resources or providers.
    #[error("resources[{rule}]: resources and providers are wanted")]
    Empty {
        /// Which entry, from 0.
        rule: usize,
    },
}

impl Encryption {
    /// Reads a configuration from YAML or JSON.
    ///
    /// # Errors
    ///
    /// When it is none, or names what is not known here.
    pub fn parse(text: &str) -> Result<Self, EncryptionError> {
        let config: Value = serde_saphyr::from_str(text)
            .map_err(|err| EncryptionError::Unreadable(err.to_string()))?;
        let rules = config.get("resources").and_then(Value::as_array);
        let rules = rules.ok_or(EncryptionError::Kind)?;
        if str_at(&config, "kind") != Some("EncryptionConfiguration")
            || str_at(&config, "apiVersion") != Some("apiserver.config.k8s.io/v1")
        {
            return Err(EncryptionError::Kind);
        }
        let rules = rules.iter().enumerate().map(|(at, rule)| parse_rule(at, rule));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// The providers of a resource, the one that writes first; none at all = as it is.
    #[must_use]
    pub fn providers(&self, group: &str, plural: &str) -> &[Provider] {
        let full = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let names = |have: &String| {
            have == "*.*" || *have == full || have.strip_prefix("*.").is_some_and(|g| g == group)
        };
        let found = self.rules.iter().find(|rule| rule.resources.iter().any(names));
        found.map_or(&[], |rule| rule.providers.as_slice())
    }

    /// Every key there is.
    pub fn keys(&self) -> impl Iterator<Item = &NamedKey> {
        self.rules.iter().flat_map(|rule| &rule.providers).filter_map(|provider| match provider {
            Provider::AesGcm(key) => Some(key),
            Provider::Identity => None,
        })
    }
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn parse_rule(at: usize, rule: &Value) -> Result<Rule, EncryptionError> {
    let resources = items(rule, "resources").iter().filter_map(Value::as_str);
    let resources: Vec<String> = resources.map(str::to_owned).collect();
    let mut providers = Vec::new();
    for provider in items(rule, "providers") {
        let named = provider.as_object().into_iter().flatten().next();
        match named.map(|(name, settings)| (name.as_str(), settings)) {
            Some(("identity", _)) => providers.push(Provider::Identity),
            Some(("aesgcm", settings)) => {
                for key in items(settings, "keys") {
                    providers.push(Provider::AesGcm(parse_key(at, key)?));
                }
            }
            other => {
                let found = other.map(|(name, _)| name.to_owned()).unwrap_or_default();
                return Err(EncryptionError::Provider { rule: at, found });
            }
        }
    }
    if resources.is_empty() || providers.is_empty() {
        return Err(EncryptionError::Empty { rule: at });
    }
    Ok(Rule { resources, providers })
}

fn parse_key(at: usize, key: &Value) -> Result<NamedKey, EncryptionError> {
    let name = str_at(key, "name").unwrap_or("").to_owned();
    let secret = STANDARD.decode(str_at(key, "secret").unwrap_or("")).unwrap_or_default();
    if name.is_empty() || name.contains(':') || !matches!(secret.len(), 16 | 32) {
        return Err(EncryptionError::Key { rule: at });
    }
    Ok(NamedKey { name, secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(resources: &str) -> Result<Encryption, EncryptionError> {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
        Encryption::parse(&format!("{head}resources: {resources}"))
    }

    #[test]
    fn the_first_entry_that_names_a_resource_counts() {
        let key = "{name: k1, secret: MDEyMzQ1Njc4OWFiY2RlZg==}";
        let config = parse(&format!(
            "[{{resources: [secrets, '*.apps'], providers: [{{aesgcm: {{keys: [{key}]}}}}, \
             {{identity: {{}}}}]}}, {{resources: ['*.*'], providers: [{{identity: {{}}}}]}}]"
        ))
        .unwrap();
        let sealed = |group: &str, plural: &str| {
            matches!(config.providers(group, plural).first(), Some(Provider::AesGcm(_)))
        };
        assert!(sealed("", "secrets") && sealed("apps", "deployments"));
        assert!(!sealed("", "configmaps") && !sealed("x.dev", "secrets"));
        assert_eq!(config.keys().next().unwrap().secret, b"0123456789abcdef");
        assert!(!format!("{config:?}").contains("0123"));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let provider =
            |text: &str| parse(&format!("[{{resources: [secrets], providers: [{text}]}}]"));
        assert!(provider("{identity: {}}").is_ok());
        assert!(matches!(provider("{kms: {}}"), Err(EncryptionError::Provider { rule: 0, .. })));
        let short = "{aesgcm: {keys: [{name: a, secret: MDEy}]}}";
        assert_eq!(provider(short), Err(EncryptionError::Key { rule: 0 }));
        assert_eq!(provider(""), Err(EncryptionError::Empty { rule: 0 }));
        assert_eq!(Encryption::parse("kind: Secret"), Err(EncryptionError::Kind));
    }
}
