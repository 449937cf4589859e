//! Certificates, keys and kubeconfigs of the cluster.
//!
//! Everything is ECDSA P-256 by ring. The cluster has one authority; its fingerprint (SHA-256 of
//! the certificate's DER) is what a machine is told before it talks to anyone.
//! This module knows no policy: who may get which certificate is decided by its callers.
//!
//! *Limits*: a subject has at most one organization (the builder below us keeps one value per
//! attribute); a request with more is refused rather than silently narrowed.
//!
//! Spec: RFC 5280 (certificates), RFC 2986 (requests).

mod kubeconfig;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

pub use kubeconfig::Kubeconfig;

/// How far back a certificate's validity starts, for machines whose clock runs behind.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Text that must not be seen in logs: `Debug` is redacted and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Reveals the text, for the one who must write or use it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Who a certificate speaks for: the user and its groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// CN, the user name.
    pub common_name: String,
    /// O, the groups.
    pub organizations: Vec<String>,
}

impl Subject {
    /// Makes a subject of a user name and its groups.
    #[must_use]
    pub fn new(common_name: &str, organizations: &[&str]) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: organizations.iter().map(|&o| o.to_owned()).collect(),
        }
    }
}

/// Names and addresses a server certificate is good for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sans {
    /// Host names.
    pub names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To dial.
    Client,
    /// To be dialled.
    Server,
    /// Both, as nodes need.
    Both,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate (chain), PEM.
    pub cert_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: Secret,
}

/// What a certificate or key could not be made or read for.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The certificate builder refused.
    #[error("cannot make {what}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// The builder's reason.
        #[source]
        source: rcgen::Error,
    },
    /// The text is not what it should be.
    #[error("not a valid {what}")]
    Malformed {
        /// What was expected.
        what: &'static str,
    },
    /// A request or certificate with more than one organization.
    #[error("subject {common_name} has {count} organizations, at most one is supported")]
    Organizations {
        /// The subject's CN.
        common_name: String,
        /// How many were found.
        count: usize,
    },
    /// A file could not be read or written.
    #[error("cannot use file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The cluster's certificate authority: its certificate and its key.
pub struct Authority {
    cert_pem: String,
    key: KeyPair,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &fingerprint(&self.cert_pem)).finish()
    }
}

impl Authority {
    /// Makes a new self-signed authority.
    ///
    /// # Errors
    ///
    /// When the random source or the builder fails; retrying may help.
    pub fn generate(common_name: &str, lifetime: Duration) -> Result<Self, PkiError> {
        let key = generate_key()?;
        let mut params = params_of(&Subject::new(common_name, &[]), &Sans::default(), lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let cert = params
            .self_signed(&key)
            .map_err(|source| PkiError::Make { what: "the authority", source })?;
        Ok(Self { cert_pem: cert.pem(), key })
    }

    /// Reads an authority back.
    ///
    /// # Errors
    ///
    /// When either text is not a certificate or key.
    pub fn from_pem(cert_pem: &str, key_pem: &Secret) -> Result<Self, PkiError> {
        first_der(cert_pem)?;
        let key = KeyPair::from_pem(key_pem.expose())
            .map_err(|source| PkiError::Make { what: "the authority's key", source })?;
        Ok(Self { cert_pem: cert_pem.to_owned(), key })
    }

    /// Reads `ca.crt` and `ca.key` of a directory.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or does not hold what it should.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let cert = read_text(&dir.join("ca.crt"))?;
        let key = Secret::new(read_text(&dir.join("ca.key"))?);
        Self::from_pem(&cert, &key)
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's key, PEM.
    #[must_use]
    pub fn key_pem(&self) -> Secret {
        Secret(self.key.serialize_pem())
    }

    /// The authority's fingerprint: lower-case hex SHA-256 of its certificate's DER.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.cert_pem).unwrap_or_default()
    }

    /// Makes a key and a certificate for it.
    ///
    /// # Errors
    ///
    /// When the subject or a name cannot be put into a certificate.
    pub fn issue(
        &self,
        subject: &Subject,
        sans: &Sans,
        usage: Usage,
        lifetime: Duration,
    ) -> Result<Identity, PkiError> {
        let key = generate_key()?;
        let mut params = params_of(subject, sans, lifetime)?;
        set_usage(&mut params, usage);
        let cert = params
            .signed_by(&key, &self.issuer()?)
            .map_err(|source| PkiError::Make { what: "a certificate", source })?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: Secret(key.serialize_pem()) })
    }

    /// Signs a request: subject, names and key are the request's, everything else is ours.
    ///
    /// Returns the certificate, PEM. The request's own signature is checked.
    ///
    /// # Errors
    ///
    /// When the request is malformed, not signed by its key, or asks for more than one
    /// organization.
    pub fn sign(
        &self,
        csr_pem: &str,
        usage: Usage,
        lifetime: Duration,
    ) -> Result<String, PkiError> {
        let wanted = parse_request(csr_pem)?;
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|source| PkiError::Make { what: "a certificate from the request", source })?;
        // Nothing but the key is taken over as it came: a request must not make itself an
        // authority or choose its own lifetime.
        request.params = params_of(&wanted.subject, &wanted.sans, lifetime)?;
        set_usage(&mut request.params, usage);
        let cert = request
            .signed_by(&self.issuer()?)
            .map_err(|source| PkiError::Make { what: "a certificate from the request", source })?;
        Ok(cert.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, PkiError> {
        Issuer::from_ca_cert_pem(&self.cert_pem, &self.key)
            .map_err(|source| PkiError::Make { what: "an issuer", source })
    }
}

/// A new key and the request for its certificate.
#[derive(Debug, Clone)]
pub struct Request {
    /// The certificate signing request, PEM.
    pub csr_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: Secret,
}

impl Request {
    /// Makes a key and a request for `subject` and `sans`.
    ///
    /// # Errors
    ///
    /// When the subject or a name cannot be put into a request.
    pub fn generate(subject: &Subject, sans: &Sans) -> Result<Self, PkiError> {
        let key = generate_key()?;
        let params = params_of(subject, sans, Duration::from_secs(1))?;
        let pem = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(|source| PkiError::Make { what: "a request", source })?;
        Ok(Self { csr_pem: pem, key_pem: Secret(key.serialize_pem()) })
    }
}

/// What a request or certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// User and groups.
    pub subject: Subject,
    /// Names and addresses.
    pub sans: Sans,
}

/// Reads a signing request and checks that it is signed by its own key.
///
/// # Errors
///
/// When the text is no request, its signature is wrong, or a name is no text.
pub fn parse_request(csr_pem: &str) -> Result<Claims, PkiError> {
    let malformed = || PkiError::Malformed { what: "certificate signing request" };
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr_pem.as_bytes()).map_err(|_| malformed())?;
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|_| malformed())?;
    request.verify_signature().map_err(|_| malformed())?;
    let subject = subject_of(&request.certification_request_info.subject).ok_or_else(malformed)?;
    let mut sans = Sans::default();
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            for name in &names.general_names {
                push_san(&mut sans, name).ok_or_else(malformed)?;
            }
        }
    }
    Ok(Claims { subject, sans })
}

/// Reads who a certificate (DER) speaks for.
///
/// # Errors
///
/// When the bytes are no certificate or a name is no text.
pub fn parse_certificate(der: &[u8]) -> Result<Claims, PkiError> {
    let malformed = || PkiError::Malformed { what: "certificate" };
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| malformed())?;
    let subject = subject_of(cert.subject()).ok_or_else(malformed)?;
    let mut sans = Sans::default();
    if let Ok(Some(extension)) = cert.subject_alternative_name() {
        for name in &extension.value.general_names {
            push_san(&mut sans, name).ok_or_else(malformed)?;
        }
    }
    Ok(Claims { subject, sans })
}

/// The end of a PEM certificate's validity.
///
/// # Errors
///
/// When the text is no certificate.
pub fn not_after(cert_pem: &str) -> Result<SystemTime, PkiError> {
    let der = first_der(cert_pem)?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der)
        .map_err(|_| PkiError::Malformed { what: "certificate" })?;
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The fingerprint of the first certificate of a PEM text: lower-case hex SHA-256 of its DER.
///
/// # Errors
///
/// When the text holds no certificate.
pub fn fingerprint(cert_pem: &str) -> Result<String, PkiError> {
    Ok(hex::encode(Sha256::digest(first_der(cert_pem)?)))
}

/// Writes a secret file atomically and durably with mode 0600.
///
/// # Errors
///
/// When the file or its directory cannot be written.
pub fn write_secret(path: &Path, text: &Secret) -> Result<(), PkiError> {
    write_atomic(path, text.expose().as_bytes(), 0o600)
}

/// Writes a file everybody may read, atomically and durably.
///
/// # Errors
///
/// When the file or its directory cannot be written.
pub fn write_public(path: &Path, text: &str) -> Result<(), PkiError> {
    write_atomic(path, text.as_bytes(), 0o644)
}

/// The new content is complete and on disk before it takes the old one's name, so that a kill at
/// any moment leaves either the old file or the new one.
fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(failed(err)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&temporary).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

fn generate_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|source| PkiError::Make { what: "a key", source })
}

fn params_of(
    subject: &Subject,
    sans: &Sans,
    lifetime: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut name = DistinguishedName::new();
    match subject.organizations.as_slice() {
        [] => {}
        [one] => name.push(DnType::OrganizationName, one.as_str()),
        more => {
            return Err(PkiError::Organizations {
                common_name: subject.common_name.clone(),
                count: more.len(),
            });
        }
    }
    name.push(DnType::CommonName, subject.common_name.as_str());
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    for host in &sans.names {
        let host = host
            .as_str()
            .try_into()
            .map_err(|source| PkiError::Make { what: "a subject alternative name", source })?;
        params.subject_alt_names.push(SanType::DnsName(host));
    }
    params.subject_alt_names.extend(sans.addresses.iter().map(|&ip| SanType::IpAddress(ip)));
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

fn set_usage(params: &mut CertificateParams, usage: Usage) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => {
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
        }
    };
}

fn first_der(cert_pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|_| PkiError::Malformed { what: "PEM certificate" })
}

fn subject_of(name: &X509Name<'_>) -> Option<Subject> {
    let common_name = match name.iter_common_name().next() {
        Some(value) => value.as_str().ok()?.to_owned(),
        None => String::new(),
    };
    let organizations = name
        .iter_organization()
        .map(|value| value.as_str().ok().map(str::to_owned))
        .collect::<Option<Vec<_>>>()?;
    Some(Subject { common_name, organizations })
}

/// Adds one alternative name; kinds that a cluster never uses are left out.
fn push_san(sans: &mut Sans, name: &GeneralName<'_>) -> Option<()> {
    match name {
        GeneralName::DNSName(host) => sans.names.push((*host).to_owned()),
        GeneralName::IPAddress(bytes) => sans.addresses.push(address_of(bytes)?),
        _ => {}
    }
    Some(())
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests;
