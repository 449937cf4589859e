//! What servers behind ours believe us by: an authority of its own, and a certificate it signed.
//!
//! It is not the cluster's authority, so that no client of the cluster can speak in another's
//! name to a server behind ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::pki::{self, Authority, Identity, PkiError, Sans, Secret, Subject, Usage};
use runtime::trust;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

/// The authority outlives the machines.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// The certificate is made anew at every start.
const LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// Who we are to servers behind ours; upstream's name.
const NAME: &str = "front-proxy-client";

/// The front-proxy authority and our certificate.
pub(crate) struct FrontProxy {
    ca_pem: String,
    identity: Identity,
}

impl FrontProxy {
    /// Makes or reads the authority in `pki/`.
    pub(crate) fn open(dir: &Path) -> Result<Self, PkiError> {
        let (cert, key) = (dir.join("front-proxy-ca.crt"), dir.join("front-proxy-ca.key"));
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let authority = match (read(&cert), read(&key)) {
            (Some(cert), Some(key)) => Authority::from_pem(&cert, &Secret::new(key))?,
            _ => {
                // Key before certificate: a certificate on disk always has its key.
                let made = Authority::generate("muster-front-proxy-ca", AUTHORITY_LIFETIME)?;
                pki::write_secret(&key, &made.key_pem())?;
                pki::write_public(&cert, made.cert_pem())?;
                made
            }
        };
        let subject = Subject::new(NAME, &[]);
        let identity = authority.issue(&subject, &Sans::default(), Usage::Client, LIFETIME)?;
        Ok(Self { ca_pem: authority.cert_pem().to_owned(), identity })
    }

    /// How to dial a server: which authorities to trust, PEM; `None` trusts anyone.
    ///
    /// # Errors
    ///
    /// In words, when the authorities cannot be read.
    pub(crate) fn tls(&self, bundle: Option<&[u8]>) -> Result<ClientConfig, String> {
        let builder = match bundle {
            Some(bundle) => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let builder = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .map_err(|err| err.to_string())?;
                builder.with_root_certificates(roots(bundle)?)
            }
            None => trust::anyone().map_err(|err| err.to_string())?,
        };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(self.identity.cert_pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|err| err.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(self.identity.key_pem.expose().as_bytes());
        let key = key.map_err(|err| err.to_string())?;
        builder.with_client_auth_cert(chain, key).map_err(|err| err.to_string())
    }

    /// What servers behind ours read to know whom to believe.
    pub(crate) fn config_map(&self, client_ca_pem: &str) -> Value {
        let list = |names: &[&str]| json!(names).to_string();
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "extension-apiserver-authentication", "namespace": "kube-system",
            },
            "data": {
                "client-ca-file": client_ca_pem,
                "requestheader-client-ca-file": self.ca_pem,
                "requestheader-allowed-names": list(&[NAME]),
                "requestheader-username-headers": list(&["X-Remote-User"]),
                "requestheader-uid-headers": list(&["X-Remote-Uid"]),
                "requestheader-group-headers": list(&["X-Remote-Group"]),
                "requestheader-extra-headers-prefix": list(&["X-Remote-Extra-"]),
            },
        })
    }
}

fn roots(bundle: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(bundle) {
        let cert = cert.map_err(|err| format!("caBundle: {err}"))?;
        roots.add(cert).map_err(|err| format!("caBundle: {err}"))?;
    }
    if roots.is_empty() {
        return Err("x509: certificate signed by unknown authority: no caBundle".to_owned());
    }
    Ok(roots)
}
