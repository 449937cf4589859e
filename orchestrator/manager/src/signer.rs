//! Signs certificates of nodes and users with the cluster's authority.
//!
//! What may be signed is decided elsewhere: only approved requests come here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control::approval;
use control::view::RequestFacts;
use objects::certificate::CertificateSigningRequest;
use runtime::pki::{self, Authority, PkiError, Secret, Usage};
use thiserror::Error;

/// Validity when the request does not ask for less: machines make a new key at every boot.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest validity granted; upstream's.
const LIFETIME_MIN: Duration = Duration::from_secs(600);

/// Why nothing was signed.
#[derive(Debug, Error)]
pub enum SignerError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The request's body is not the base64 of a PEM.
    #[error("the request's body is not base64 of a PEM")]
    Body,
    /// The authority or the request is not usable.
    #[error("the certificate cannot be made")]
    Pki(#[from] PkiError),
}

/// The authority, ready to sign.
pub(crate) struct Signer {
    authority: Authority,
}

impl Signer {
    /// Reads the authority's certificate and key.
    pub(crate) fn load(cert: &Path, key: &Path) -> Result<Self, SignerError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| SignerError::Read { path: path.to_owned(), source })
        };
        let authority = Authority::from_pem(&read(cert)?, &Secret::new(read(key)?))?;
        Ok(Self { authority })
    }

    /// Returns the certificate, base64 of its PEM.
    pub(crate) fn sign(&self, request: &CertificateSigningRequest) -> Result<String, SignerError> {
        let wanted = request.spec.expiration_seconds.and_then(|one| u64::try_from(one).ok());
        let lifetime = wanted.map_or(LIFETIME, Duration::from_secs).clamp(LIFETIME_MIN, LIFETIME);
        let pem = body(request).ok_or(SignerError::Body)?;
        let signer = request.spec.signer_name.as_str();
        let usage = match (approval::is_client(signer), approval::is_serving(signer)) {
            (true, _) => Usage::Client,
            (_, true) => Usage::Server,
            _ => Usage::Both,
        };
        let cert = self.authority.sign(&pem, usage, lifetime)?;
        Ok(STANDARD.encode(cert))
    }
}

fn body(request: &CertificateSigningRequest) -> Option<String> {
    String::from_utf8(STANDARD.decode(&request.spec.request).ok()?).ok()
}

/// Reads what a request's body asks for; `None` when it does not parse or is not signed by
/// its own key.
pub(crate) fn read_facts(request: &CertificateSigningRequest) -> Option<RequestFacts> {
    let claims = pki::parse_request(&body(request)?).ok()?;
    Some(RequestFacts {
        common_name: claims.subject.common_name,
        organizations: claims.subject.organizations,
        addresses: claims.sans.addresses.iter().map(ToString::to_string).collect(),
        names: claims.sans.names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::pki::{Request, Sans, Subject};

    #[test]
    fn a_request_is_read_and_signed_as_asked() {
        let subject = Subject::new("system:node:a", &["system:nodes"]);
        let address = "10.98.1.11".parse().unwrap();
        let sans = Sans { addresses: vec![address], ..Sans::default() };
        let request = Request::generate(&subject, &sans).unwrap();
        let mut object = CertificateSigningRequest::blank();
        object.spec.request = STANDARD.encode(&request.csr_pem);
        let facts = read_facts(&object).unwrap();
        assert_eq!(facts.common_name, "system:node:a");
        assert_eq!(facts.organizations, ["system:nodes"]);
        assert_eq!(facts.addresses, ["10.98.1.11"]);
        let authority = Authority::generate("test", LIFETIME).unwrap();
        let cert = Signer { authority }.sign(&object).unwrap();
        let pem = String::from_utf8(STANDARD.decode(cert).unwrap()).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }

    #[test]
    fn rubbish_is_refused_without_a_fall() {
        for body in ["", "%%%", "aGVsbG8="] {
            let mut object = CertificateSigningRequest::blank();
            object.spec.request = body.to_owned();
            assert_eq!(read_facts(&object), None);
        }
    }
}
