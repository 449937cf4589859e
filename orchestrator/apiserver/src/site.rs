//! The files of a master's data directory: authority, kubeconfigs.
//!
//! Everything is made on the first start and kept afterwards. Each file is complete before it has
//! its name, so a kill at any moment leaves nothing that the next start would trip over.
//! The certificates the server shows are `certificate`'s.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use runtime::pki::{self, Authority, Identity, Kubeconfig, PkiError, Sans, Subject, Usage};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Config;
use crate::certificate::{CertificateError, Certificates};
use crate::front::FrontProxy;
use crate::token::{Key, KeyError, OidcError, Tokens};

/// The authority outlives the machines.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Certificates of the control plane's own parts; renewed at a start that finds them old.
const PART_LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// A part's certificate with less than this left is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(365 * 86_400);
/// File, user, groups of every kubeconfig, and whether it is used on this host only.
const PARTS: [(&str, &str, &[&str], Reach); 3] = [
    ("admin.kubeconfig", "admin", &["system:masters"], Reach::Network),
    ("manager.kubeconfig", "system:kube-controller-manager", &[], Reach::Host),
    ("boot.kubeconfig", "muster:boot", &[], Reach::Host),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Network,
    Host,
}

/// What the server needs of its data directory.
pub(crate) struct Site {
    /// How the server shows itself and checks its clients.
    pub(crate) server_tls: Arc<ServerConfig>,
    /// How the server dials node agents.
    pub(crate) agent_tls: Arc<ClientConfig>,
    /// Where this server is reached from the network.
    pub(crate) address: IpAddr,
    /// The certificate of the cluster's authority, PEM.
    pub(crate) ca_pem: String,
    /// What servers behind ours believe us by.
    pub(crate) front_proxy: FrontProxy,
    /// Makes and checks tokens.
    pub(crate) tokens: Tokens,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A directory cannot be made.
    #[error("cannot make directory {path}")]
    Dir {
        /// The directory.
        path: std::path::PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or kubeconfig cannot be made or read.
    #[error("cannot prepare {what}")]
    Pki {
        /// What was being prepared.
        what: &'static str,
        /// The reason.
        #[source]
        source: PkiError,
    },
    /// The key of ServiceAccount tokens cannot be made or read.
    #[error("cannot prepare the key of service accounts' tokens")]
    TokenKey(#[source] KeyError),
    /// The OpenID Connect provider cannot be used.
    #[error("cannot use the OpenID Connect provider")]
    Oidc(#[source] OidcError),
    /// A certificate cannot be shown.
    #[error("cannot prepare the server's certificates")]
    Certificate(#[from] CertificateError),
    /// TLS cannot be set up with the certificates.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// Client certificates cannot be checked against the authority.
    #[error("cannot check client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Makes or reads everything in the data directory.
pub(crate) fn prepare(config: &Config, bound: SocketAddr) -> Result<Site, SiteError> {
    let pki_dir = config.data_dir.join("pki");
    std::fs::create_dir_all(&pki_dir)
        .map_err(|source| SiteError::Dir { path: pki_dir.clone(), source })?;
    let authority = authority(&pki_dir)?;
    let address = reachable(config, bound);
    for (file, user, groups, reach) in PARTS {
        let host = if reach == Reach::Host { local(bound) } else { address };
        let server = format!("https://{}", SocketAddr::new(host, bound.port()));
        let subject = Subject::new(user, groups);
        kubeconfig(&config.data_dir.join(file), &authority, &server, &subject)?;
    }
    let names = server_names(config, bound, address);
    let given = config.identity.certificate.as_ref();
    let shown = Arc::new(Certificates::new(&authority, &pki_dir, names, given)?);
    let client = authority
        .issue(
            &Subject::new("muster:apiserver", &["system:masters"]),
            &Sans::default(),
            Usage::Client,
            PART_LIFETIME,
        )
        .map_err(|source| SiteError::Pki { what: "the certificate towards agents", source })?;
    let key = Key::load_or_make(&pki_dir.join("sa.key")).map_err(SiteError::TokenKey)?;
    let roots = roots(authority.cert_pem())?;
    Ok(Site {
        server_tls: Arc::new(server_tls(shown, Arc::clone(&roots))?),
        agent_tls: Arc::new(agent_tls(&client, roots)?),
        address,
        ca_pem: authority.cert_pem().to_owned(),
        front_proxy: FrontProxy::open(&pki_dir)
            .map_err(|source| SiteError::Pki { what: "the front-proxy authority", source })?,
        tokens: Tokens::new(key, &config.identity).map_err(SiteError::Oidc)?,
    })
}

/// Key before certificate: a certificate on disk always has its key.
fn authority(dir: &Path) -> Result<Authority, SiteError> {
    let failed = |source| SiteError::Pki { what: "the cluster's authority", source };
    if dir.join("ca.crt").exists() {
        return Authority::load(dir).map_err(failed);
    }
    let made = Authority::generate("muster-ca", AUTHORITY_LIFETIME).map_err(failed)?;
    pki::write_secret(&dir.join("ca.key"), &made.key_pem()).map_err(failed)?;
    pki::write_public(&dir.join("ca.crt"), made.cert_pem()).map_err(failed)?;
    Ok(made)
}

/// Keeps the identity of a kubeconfig that is still good, so that copies of it stay good too.
fn kubeconfig(
    path: &Path,
    authority: &Authority,
    server: &str,
    subject: &Subject,
) -> Result<(), SiteError> {
    let failed = |source| SiteError::Pki { what: "a kubeconfig", source };
    let old = Kubeconfig::load(path).ok();
    let kept = old.as_ref().and_then(|old| {
        let identity = old.identity.as_ref()?;
        let end = pki::not_after(&identity.cert_pem).ok()?;
        let fresh = end > SystemTime::now() + RENEW_BEFORE;
        (fresh && old.ca_pem == authority.cert_pem()).then(|| identity.clone())
    });
    let identity = match kept {
        Some(identity) => identity,
        None => authority
            .issue(subject, &Sans::default(), Usage::Client, PART_LIFETIME)
            .map_err(failed)?,
    };
    let wanted = Kubeconfig {
        server: server.to_owned(),
        ca_pem: authority.cert_pem().to_owned(),
        identity: Some(identity),
    };
    if old.as_ref() == Some(&wanted) {
        return Ok(());
    }
    wanted.store(path).map_err(failed)
}

/// The address others reach us by: the first advertised one, else the one we listen on.
fn reachable(config: &Config, bound: SocketAddr) -> IpAddr {
    let advertised = config.advertise.iter().find_map(|name| name.parse().ok());
    advertised.unwrap_or_else(|| local(bound))
}

fn local(bound: SocketAddr) -> IpAddr {
    match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
    }
}

fn server_names(config: &Config, bound: SocketAddr, address: IpAddr) -> Sans {
    let mut sans = Sans::default();
    for name in [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ] {
        sans.names.push(name.to_owned());
    }
    sans.addresses.extend([IpAddr::from([127, 0, 0, 1]), local(bound), address]);
    // The service `kubernetes` stays where it is when the ranges change places.
    sans.addresses.extend(config.service_cidr.firsts());
    for name in &config.advertise {
        match name.parse() {
            Ok(ip) => sans.addresses.push(ip),
            Err(_) => sans.names.push(name.clone()),
        }
    }
    sans.addresses.sort();
    sans.addresses.dedup();
    sans
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, SiteError> {
    let mut roots = RootCertStore::empty();
    for cert in chain(ca_pem)? {
        roots.add(cert).map_err(SiteError::Tls)?;
    }
    Ok(Arc::new(roots))
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, SiteError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| {
        let source = PkiError::Malformed { what: "PEM certificate" };
        SiteError::Pki { what: "a certificate", source }
    })
}

fn key(identity: &Identity) -> Result<PrivateKeyDer<'static>, SiteError> {
    PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes()).map_err(|_| {
        SiteError::Pki { what: "a key", source: PkiError::Malformed { what: "PEM key" } }
    })
}

fn server_tls(
    shown: Arc<Certificates>,
    roots: Arc<RootCertStore>,
) -> Result<ServerConfig, SiteError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(SiteError::Verifier)?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SiteError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn agent_tls(identity: &Identity, roots: Arc<RootCertStore>) -> Result<ClientConfig, SiteError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SiteError::Tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(&identity.cert_pem)?, key(identity)?)
        .map_err(SiteError::Tls)
}

/// The name an agent's certificate must be good for.
pub(crate) fn agent_name(address: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.into())
}
