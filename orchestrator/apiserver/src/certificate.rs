//! The certificates the server shows, renewed and exchanged while it runs.
//!
//! Its own certificate is of the cluster's authority, lives in memory, and is issued anew long
//! before its end. Another one may be given in files, for names that the site's clients know: it
//! is shown to those who ask for one of its names, and read anew when the files change.
//! Connections that exist keep what they were opened with.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use runtime::pki::{self, Authority, PkiError, Sans, Subject, Usage};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// How long a certificate of our own is good; it is renewed after half of that.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The authority does not issue it.
    #[error("cannot issue the server's certificate")]
    Issue(#[source] PkiError),
    /// A file holds no certificates, or no key.
    #[error("cannot read a certificate and its key from {cert} and {key}")]
    Files {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Certificate and key do not fit, or cannot be used.
    #[error("cannot use the certificate")]
    Unusable(#[source] rustls::Error),
}

/// Chooses a certificate for each handshake.
#[derive(Debug)]
pub(crate) struct Certificates {
    pki_dir: PathBuf,
    names: Sans,
    own: RwLock<Own>,
    given: Option<RwLock<Given>>,
}

#[derive(Debug)]
struct Own {
    shown: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

/// A certificate from files.
#[derive(Debug)]
struct Given {
    cert: PathBuf,
    key: PathBuf,
    /// When the files were last changed, as far as they were tried.
    tried: (Option<SystemTime>, Option<SystemTime>),
    shown: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl Certificates {
    /// Issues the own certificate, and reads the given one.
    pub(crate) fn new(
        authority: &Authority,
        pki_dir: &Path,
        names: Sans,
        given: Option<&(PathBuf, PathBuf)>,
    ) -> Result<Self, CertificateError> {
        let own = RwLock::new(issue(authority, &names)?);
        let given = given.map(|(cert, key)| Given::read(cert, key).map(RwLock::new)).transpose()?;
        Ok(Self { pki_dir: pki_dir.to_owned(), names, own, given })
    }

    fn own(&self) -> Arc<CertifiedKey> {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        if SystemTime::now() < own.renew_at {
            return Arc::clone(&own.shown);
        }
        drop(own);
        let mut own = self.own.write().unwrap_or_else(PoisonError::into_inner);
        let renewed = Authority::load(&self.pki_dir).map_err(CertificateError::Issue);
        match renewed.and_then(|authority| issue(&authority, &self.names)) {
            Ok(renewed) => *own = renewed,
            // The old one is good for as long again.
            Err(err) => {
                tracing::warn!(err = runtime::report(&err), "cannot renew the certificate");
            }
        }
        Arc::clone(&own.shown)
    }

    fn given(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let given = self.given.as_ref()?;
        let read = given.read().unwrap_or_else(PoisonError::into_inner);
        if read.tried != changed(&read.cert, &read.key) {
            drop(read);
            given.write().unwrap_or_else(PoisonError::into_inner).refresh();
        } else {
            drop(read);
        }
        let read = given.read().unwrap_or_else(PoisonError::into_inner);
        read.names.iter().any(|pattern| covers(pattern, name)).then(|| Arc::clone(&read.shown))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let given = hello.server_name().and_then(|name| self.given(name));
        Some(given.unwrap_or_else(|| self.own()))
    }
}

fn issue(authority: &Authority, names: &Sans) -> Result<Own, CertificateError> {
    let subject = Subject::new("muster:apiserver", &[]);
    let made = authority
        .issue(&subject, names, Usage::Server, LIFETIME)
        .map_err(CertificateError::Issue)?;
    let malformed = |_| CertificateError::Issue(PkiError::Malformed { what: "certificate" });
    let chain = CertificateDer::pem_slice_iter(made.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(malformed)?;
    let key = PrivateKeyDer::from_pem_slice(made.key_pem.expose().as_bytes()).map_err(malformed)?;
    Ok(Own { shown: certified(chain, key)?, renew_at: SystemTime::now() + LIFETIME / 2 })
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, CertificateError> {
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(CertificateError::Unusable)
}

fn changed(cert: &Path, key: &Path) -> (Option<SystemTime>, Option<SystemTime>) {
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    (time(cert), time(key))
}

impl Given {
    fn read(cert: &Path, key: &Path) -> Result<Self, CertificateError> {
        let tried = changed(cert, key);
        let unreadable = || CertificateError::Files { cert: cert.to_owned(), key: key.to_owned() };
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|_| unreadable())?;
        let first = chain.first().ok_or_else(unreadable)?;
        let names = pki::parse_certificate(first).map_err(|_| unreadable())?.sans.names;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|_| unreadable())?;
        let shown = certified(chain, private)?;
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), tried, shown, names })
    }

    /// Reads the files anew; what cannot be used changes nothing.
    fn refresh(&mut self) {
        match Self::read(&self.cert, &self.key) {
            Ok(fresh) => {
                tracing::info!(path = %self.cert.display(), "a new certificate is shown");
                *self = fresh;
            }
            Err(err) => {
                // Half of a change may be seen; the other half changes the times again.
                self.tried = changed(&self.cert, &self.key);
                tracing::warn!(err = runtime::report(&err), "the old certificate is kept");
            }
        }
    }
}

/// Is a name of a certificate good for this name?
fn covers(pattern: &str, name: &str) -> bool {
    let same = pattern.eq_ignore_ascii_case(name);
    same || pattern
        .strip_prefix("*.")
        .zip(name.split_once('.'))
        .is_some_and(|(rest, (first, under))| !first.is_empty() && rest.eq_ignore_ascii_case(under))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_shown_to_the_next_who_asks() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let day = Duration::from_secs(86_400);
        let authority = Authority::generate("site", day).unwrap();
        let write = |name: &str, at: u64| {
            let sans = Sans { names: vec![name.to_owned()], addresses: vec![] };
            let made = authority.issue(&Subject::new("s", &[]), &sans, Usage::Server, day).unwrap();
            let parts =
                [(&cert, made.cert_pem.as_bytes()), (&key, made.key_pem.expose().as_bytes())];
            for (path, bytes) in parts {
                std::fs::write(path, bytes).unwrap();
                // The clock of a file system may be too coarse to tell two writes apart.
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
                std::fs::File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
            }
        };
        write("api.example.com", 1000);
        let files = (cert.clone(), key.clone());
        let shown =
            Certificates::new(&authority, dir.path(), Sans::default(), Some(&files)).unwrap();
        let first = shown.given("api.example.com").unwrap();
        assert!(shown.given("other.example.com").is_none());
        assert!(Arc::ptr_eq(&first, &shown.given("API.example.com").unwrap()));
        write("*.example.com", 2000);
        let second = shown.given("other.example.com").unwrap();
        assert_ne!(first.cert, second.cert);
        // What cannot be read changes nothing.
        std::fs::write(&cert, "nonsense").unwrap();
        assert_eq!(shown.given("other.example.com").unwrap().cert, second.cert);
        assert!(Arc::ptr_eq(&shown.own(), &shown.own()));
    }

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, name, good) in [
            ("a.b.c", "A.b.c", true),
            ("*.b.c", "a.b.c", true),
            ("*.b.c", "x.a.b.c", false),
            ("*.b.c", "b.c", false),
            ("*.b.c", ".b.c", false),
        ] {
            assert_eq!(covers(pattern, name), good, "{pattern} {name}");
        }
    }
}
