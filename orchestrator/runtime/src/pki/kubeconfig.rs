//! Kubeconfig files: where the cluster is, whom to trust, who we are.
//!
//! *Limits*: only inline data is read, no files beside the file, no tokens, no exec plugins.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Identity, PkiError, Secret, read_text, write_secret};

/// What a program needs to speak to the cluster: the content of a kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    /// `https://host:port`.
    pub server: String,
    /// The authority's certificate, PEM; empty trusts nobody.
    pub ca_pem: String,
    /// The user's certificate and key; `None` is anonymous.
    pub identity: Option<Identity>,
}

impl Kubeconfig {
    /// Renders the file with one cluster, one user and one context, all called `muster`.
    #[must_use]
    pub fn render(&self) -> Secret {
        let mut text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: muster\n  cluster:\n    server: {}\n    \
             certificate-authority-data: {}\ncontexts:\n- name: muster\n  context:\n    \
             cluster: muster\n    user: muster\ncurrent-context: muster\nusers:\n- name: muster\n",
            self.server,
            STANDARD.encode(&self.ca_pem)
        );
        match &self.identity {
            Some(identity) => {
                text.push_str("  user:\n    client-certificate-data: ");
                text.push_str(&STANDARD.encode(&identity.cert_pem));
                text.push_str("\n    client-key-data: ");
                text.push_str(&STANDARD.encode(identity.key_pem.expose()));
                text.push('\n');
            }
            None => text.push_str("  user: {}\n"),
        }
        Secret(text)
    }

    /// Reads the current context of a kubeconfig with inline data.
    ///
    /// # Errors
    ///
    /// When the text is no kubeconfig, or the current context names what is not there.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        let malformed = || PkiError::Malformed { what: "kubeconfig" };
        let raw: RawConfig = serde_saphyr::from_str(text).map_err(|_| malformed())?;
        let context = raw.contexts.iter().find(|c| c.name == raw.current_context);
        let context = context.or(raw.contexts.first()).ok_or_else(malformed)?;
        let cluster = raw.clusters.iter().find(|c| c.name == context.context.cluster);
        let cluster = &cluster.ok_or_else(malformed)?.cluster;
        let user = raw.users.iter().find(|u| u.name == context.context.user).map(|u| &u.user);
        let decode = |data: &str| {
            let bytes = STANDARD.decode(data.trim()).map_err(|_| malformed())?;
            String::from_utf8(bytes).map_err(|_| malformed())
        };
        let identity = match user {
            Some(RawUser { cert: Some(cert), key: Some(key) }) => {
                Some(Identity { cert_pem: decode(cert)?, key_pem: Secret(decode(key)?) })
            }
            _ => None,
        };
        let ca_pem = cluster.ca.as_deref().map(decode).transpose()?.unwrap_or_default();
        Ok(Self { server: cluster.server.clone(), ca_pem, identity })
    }

    /// Reads a kubeconfig file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is no kubeconfig.
    pub fn load(path: &Path) -> Result<Self, PkiError> {
        Self::parse(&read_text(path)?)
    }

    /// Writes the file atomically with mode 0600.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), PkiError> {
        write_secret(path, &self.render())
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default, rename = "current-context")]
    current_context: String,
    #[serde(default)]
    clusters: Vec<RawNamedCluster>,
    #[serde(default)]
    contexts: Vec<RawNamedContext>,
    #[serde(default)]
    users: Vec<RawNamedUser>,
}

#[derive(Deserialize)]
struct RawNamedCluster {
    name: String,
    cluster: RawCluster,
}

#[derive(Deserialize)]
struct RawCluster {
    server: String,
    #[serde(default, rename = "certificate-authority-data")]
    ca: Option<String>,
}

#[derive(Deserialize)]
struct RawNamedContext {
    name: String,
    context: RawContext,
}

#[derive(Deserialize)]
struct RawContext {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct RawNamedUser {
    name: String,
    #[serde(default)]
    user: RawUser,
}

#[derive(Deserialize, Default)]
struct RawUser {
    #[serde(default, rename = "client-certificate-data")]
    cert: Option<String>,
    #[serde(default, rename = "client-key-data")]
    key: Option<String>,
}
