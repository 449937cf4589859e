//! Where the server is and who we are: from values or from a kubeconfig file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use thiserror::Error;

/// What a client needs to know.
#[derive(Clone, Default)]
pub struct ClientConfig {
    /// Base address, `https://10.98.0.1:6443`.
    pub server: String,
    /// The only certificate authority trusted, PEM.
    pub ca_pem: Vec<u8>,
    /// Client certificate; `None` for the enrolment door.
    pub identity: Option<Identity>,
    /// Bearer token, when there is no certificate.
    pub token: Option<String>,
}

/// A client certificate with its key.
#[derive(Clone)]
pub struct Identity {
    /// Certificate chain, PEM.
    pub cert_pem: Vec<u8>,
    /// Private key, PEM.
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ClientConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Identity(redacted)")
    }
}

/// What is wrong with a client's settings; a person must mend it.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kubeconfig is not valid YAML of the expected shape.
    #[error("kubeconfig {path} does not parse")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// The kubeconfig refers to something it does not contain.
    #[error("kubeconfig {path} has no {what} named {name:?}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// The name looked for.
        name: String,
    },
    /// Inline data is not base64.
    #[error("{field} is not base64")]
    Base64 {
        /// The field.
        field: &'static str,
        /// Where.
        #[source]
        source: base64::DecodeError,
    },
    /// A certificate or key is not PEM.
    #[error("{what} is not valid PEM")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificates that TLS refuses.
    #[error("{what} cannot be used for TLS")]
    Tls {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A token that cannot stand in a header.
    #[error("the bearer token has characters that no header may carry")]
    Token,
}

impl ClientConfig {
    /// Reads the current context of a kubeconfig file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or parsed or does not hold together.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let file: Kubeconfig = serde_saphyr::from_slice(&text).map_err(|source| {
            ConfigError::Kubeconfig { path: path.to_owned(), source: Box::new(source) }
        })?;
        file.choose(path)
    }

    /// Makes the TLS settings: who is trusted, and whom we show ourselves as.
    ///
    /// # Errors
    ///
    /// When a certificate or key is not PEM, or TLS refuses it.
    pub fn render_tls(&self) -> Result<rustls::ClientConfig, ConfigError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for cert in certificates("CA certificate", &self.ca_pem)? {
            roots
                .add(cert)
                .map_err(|source| ConfigError::Tls { what: "CA certificate", source })?;
        }
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| ConfigError::Tls { what: "protocol versions", source })?
            .with_root_certificates(roots);
        let Some(identity) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates("client certificate", &identity.cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&identity.key_pem)
            .map_err(|source| ConfigError::Pem { what: "client key", source })?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|source| ConfigError::Tls { what: "client certificate", source })
    }
}

fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| ConfigError::Pem { what, source })
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// The file as it stands on disk, as far as we use it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named<Context>>,
    #[serde(default)]
    clusters: Vec<Named<Cluster>>,
    #[serde(default)]
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

impl Kubeconfig {
    fn choose(self, path: &Path) -> Result<ClientConfig, ConfigError> {
        let context = pick(self.contexts, "context", &self.current_context, path)?;
        let cluster = pick(self.clusters, "cluster", &context.cluster, path)?;
        let user = pick(self.users, "user", &context.user, path)?;
        let ca = either(
            path,
            "certificate-authority-data",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
        )?;
        let cert = either(
            path,
            "client-certificate-data",
            user.client_certificate_data,
            user.client_certificate,
        )?;
        let key = either(path, "client-key-data", user.client_key_data, user.client_key)?;
        let identity = cert.zip(key).map(|(cert_pem, key_pem)| Identity { cert_pem, key_pem });
        Ok(ClientConfig {
            server: cluster.server,
            ca_pem: ca.unwrap_or_default(),
            identity,
            token: user.token,
        })
    }
}

fn pick<T>(
    all: Vec<Named<T>>,
    what: &'static str,
    name: &str,
    path: &Path,
) -> Result<T, ConfigError> {
    all.into_iter()
        .find(|one| one.name == name)
        .map(|one| one.value)
        .ok_or_else(|| ConfigError::Missing { path: path.to_owned(), what, name: name.to_owned() })
}

/// Inline data wins over a file; a relative file is beside the kubeconfig, as kubectl has it.
fn either(
    kubeconfig: &Path,
    field: &'static str,
    data: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<Vec<u8>>, ConfigError> {
    if let Some(data) = data {
        let bytes =
            STANDARD.decode(data.trim()).map_err(|source| ConfigError::Base64 { field, source })?;
        return Ok(Some(bytes));
    }
    let Some(file) = file else { return Ok(None) };
    let beside = kubeconfig.parent().map_or_else(|| file.clone(), |dir| dir.join(&file));
    read(&beside).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_is_followed_and_files_are_relative() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), "authority").unwrap();
        let path = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: b\n\
            contexts:\n- name: a\n  context: {cluster: x, user: y}\n\
            - name: b\n  context: {cluster: site, user: admin, namespace: default}\n\
            clusters:\n- name: site\n  cluster: {server: 'https://10.0.0.1:6443', certificate-authority: ca.crt}\n\
            users:\n- name: admin\n  user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}\n";
        std::fs::write(&path, text).unwrap();
        let config = ClientConfig::from_kubeconfig(&path).unwrap();
        assert_eq!(config.server, "https://10.0.0.1:6443");
        assert_eq!(config.ca_pem, b"authority");
        assert_eq!(config.identity.unwrap().cert_pem, b"cert");
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "current-context: b\n").unwrap();
        let err = ClientConfig::from_kubeconfig(&path).unwrap_err();
        assert!(err.to_string().ends_with("has no context named \"b\""), "{err}");
    }
}
