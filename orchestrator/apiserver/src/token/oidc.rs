//! Tokens of an OpenID Connect provider.
//!
//! The provider's keys are fetched when a token names one that is not known, at most once in a
//! while. Nothing is asked of the provider about single tokens.
//!
//! *Limits*: distributed claims are not followed; RS256, RS384, RS512, ES256 and ES384 are known.
//!
//! Spec: OpenID Connect Core 1.0 §2, §3.1.3.7; Discovery 1.0 §4; RFC 7517, RFC 7518 §3, §6.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::User;
use api::authority::{AUTHENTICATED, token as words};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use objects::field::str_at;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::TokenError;
use crate::identity::Oidc;
use crate::server::now;

/// Where Debian keeps the authorities that the system trusts.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long the provider may take to answer.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked at most.
const FETCH_EVERY: Duration = Duration::from_secs(1);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a provider cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// Its address is not one.
    #[error("{url} is no https address")]
    Address {
        /// What was given.
        url: String,
    },
    /// The authorities that it is trusted by cannot be read.
    #[error("cannot read authorities from {path}")]
    Authorities {
        /// The file.
        path: std::path::PathBuf,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS towards the provider")]
    Tls(#[source] rustls::Error),
}

/// Why keys cannot be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0} is no https address")]
    Address(String),
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Speak(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("the provider answered {0}")]
    Refused(u16),
    #[error("the provider's answer cannot be read")]
    Answer,
    #[error("the provider calls itself {0:?}")]
    Issuer(String),
    #[error("the provider does not answer")]
    Silent,
}

/// A provider and what is known of its keys.
#[derive(Debug)]
pub(crate) struct Provider {
    settings: Oidc,
    tls: Arc<ClientConfig>,
    keys: Mutex<Arc<BTreeMap<String, Value>>>,
    /// Held while keys are fetched; when that was last tried.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl Provider {
    pub(crate) fn new(settings: &Oidc) -> Result<Self, OidcError> {
        if target(&settings.issuer_url).is_none() {
            return Err(OidcError::Address { url: settings.issuer_url.clone() });
        }
        let path = settings.ca_file.clone().unwrap_or_else(|| SYSTEM_AUTHORITIES.into());
        let failed = || OidcError::Authorities { path: path.clone() };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|_| failed())? {
            roots.add(certificate.map_err(|_| failed())?).map_err(OidcError::Tls)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(OidcError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            settings: settings.clone(),
            tls: Arc::new(tls),
            keys: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        })
    }

    /// Is a token with this issuer the provider's?
    pub(crate) fn issues(&self, issuer: &str) -> bool {
        self.settings.issuer_url == issuer
    }

    /// The user a token proves.
    pub(crate) async fn user(&self, jwt: &words::Jwt<'_>) -> Result<User, TokenError> {
        let id = str_at(&jwt.header, "kid").unwrap_or_default();
        let key = self.key(id).await.ok_or(TokenError::Refused("the key is not known"))?;
        let algorithm = str_at(&jwt.header, "alg").unwrap_or_default();
        if !verify(&key, algorithm, jwt.signed, &jwt.signature) {
            return Err(TokenError::Refused("the signature does not hold"));
        }
        words::check_times(&jwt.claims, now(), false).map_err(TokenError::Refused)?;
        if !words::audiences(&jwt.claims).contains(&self.settings.client_id) {
            return Err(TokenError::Refused("the token is for another client"));
        }
        user_of(&self.settings, &jwt.claims).map_err(TokenError::Refused)
    }

    async fn key(&self, id: &str) -> Option<Value> {
        if let Some(known) = self.known(id) {
            return Some(known);
        }
        let mut asked = self.asked.lock().await;
        // Somebody else may have fetched it in the meantime.
        if let Some(known) = self.known(id) {
            return Some(known);
        }
        if asked.is_some_and(|at| at.elapsed() < FETCH_EVERY) {
            return None;
        }
        match self.fetch().await {
            Ok(keys) => {
                *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(err) => {
                tracing::warn!(%err, issuer = self.settings.issuer_url, "cannot fetch keys");
            }
        }
        // From the end on, so that those who wait here do not all try a provider that is silent.
        *asked = Some(Instant::now());
        self.known(id)
    }

    fn known(&self, id: &str) -> Option<Value> {
        let keys = Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner));
        // A token need not name the key when there is only one.
        match (keys.get(id), keys.len(), id) {
            (Some(key), ..) => Some(key.clone()),
            (None, 1, "") => keys.values().next().cloned(),
            _ => None,
        }
    }

    async fn fetch(&self) -> Result<BTreeMap<String, Value>, FetchError> {
        let issuer = self.settings.issuer_url.trim_end_matches('/');
        let found = self.get(&format!("{issuer}/.well-known/openid-configuration")).await?;
        let named = str_at(&found, "issuer").unwrap_or_default();
        if named != self.settings.issuer_url {
            return Err(FetchError::Issuer(named.to_owned()));
        }
        let keys = str_at(&found, "jwks_uri").ok_or(FetchError::Answer)?;
        let set = self.get(keys).await?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or(FetchError::Answer)?;
        let signs = keys.iter().filter(|key| str_at(key, "use").is_none_or(|what| what == "sig"));
        let id = |key: &Value| str_at(key, "kid").unwrap_or_default().to_owned();
        Ok(signs.map(|key| (id(key), key.clone())).collect())
    }

    async fn get(&self, url: &str) -> Result<Value, FetchError> {
        let asking = tokio::time::timeout(FETCH_LIMIT, self.ask(url));
        let bytes = asking.await.map_err(|_| FetchError::Silent)??;
        serde_json::from_slice(&bytes).map_err(|_| FetchError::Answer)
    }

    async fn ask(&self, url: &str) -> Result<Bytes, FetchError> {
        let (host, port, path) = target(url).ok_or_else(|| FetchError::Address(url.to_owned()))?;
        let bare = host.trim_matches(['[', ']']).to_owned();
        let socket = TcpStream::connect((bare.as_str(), port)).await?;
        let name = ServerName::try_from(bare).map_err(|_| FetchError::Address(url.to_owned()))?;
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let request = Request::get(path)
            .header(http::header::HOST, format!("{host}:{port}"))
            .header(http::header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())?;
        let answering = async {
            let answer = sender.send_request(request).await?;
            let code = answer.status().as_u16();
            if code != 200 {
                return Err(FetchError::Refused(code));
            }
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok(body.map_err(|_| FetchError::Answer)?.to_bytes())
        };
        // The connection is driven only as long as its answer is awaited.
        let driving = async {
            let _ended = connection.await.is_ok();
            std::future::pending::<()>().await;
        };
        tokio::select! { biased;
            answer = answering => answer,
            () = driving => Err(FetchError::Answer),
        }
    }
}

/// Host, port and path of an `https` address.
fn target(url: &str) -> Option<(String, u16, String)> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("https") {
        return None;
    }
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    Some((uri.host()?.to_owned(), uri.port_u16().unwrap_or(443), path.to_owned()))
}

fn verify(key: &Value, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
    let bytes = |name: &str| {
        let text = str_at(key, name).unwrap_or_default();
        URL_SAFE_NO_PAD.decode(text).unwrap_or_default()
    };
    // A key that says what it is for is used for nothing else.
    if str_at(key, "alg").is_some_and(|only| only != algorithm) {
        return false;
    }
    let curve = |name: &str| str_at(key, "crv") == Some(name) && str_at(key, "kty") == Some("EC");
    let point = || [vec![4], bytes("x"), bytes("y")].concat();
    let rsa = match algorithm {
        "ES256" if curve("P-256") => {
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point());
            return public.verify(message, signature).is_ok();
        }
        "ES384" if curve("P-384") => {
            let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point());
            return public.verify(message, signature).is_ok();
        }
        "RS256" => &RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    let public = RsaPublicKeyComponents { n: bytes("n"), e: bytes("e") };
    str_at(key, "kty") == Some("RSA") && public.verify(rsa, message, signature).is_ok()
}

/// The user that believed claims speak of.
fn user_of(settings: &Oidc, claims: &Value) -> Result<User, &'static str> {
    let claim = match settings.username_claim.as_str() {
        "" => "sub",
        claim => claim,
    };
    let name = claims.get(claim).and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err("the claim of the user's name is missing");
    }
    if claim == "email" && claims.get("email_verified").is_some_and(|said| said != true) {
        return Err("the address is not verified");
    }
    let required = settings.required_claims.iter();
    if !required.clone().all(|(key, value)| claims.get(key).and_then(Value::as_str) == Some(value))
    {
        return Err("a required claim is missing or different");
    }
    let prefix = match settings.username_prefix.as_str() {
        "-" => String::new(),
        "" if claim == "email" => String::new(),
        "" => format!("{}#", settings.issuer_url),
        prefix => prefix.to_owned(),
    };
    let groups = match claims.get(&settings.groups_claim) {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let groups = groups.into_iter().map(|group| format!("{}{group}", settings.groups_prefix));
    let user = User { groups: groups.collect(), ..User::named(&format!("{prefix}{name}")) };
    Ok(user.with_group(AUTHENTICATED))
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use runtime::pki::{Authority, Sans, Subject, Usage};
    use rustls::pki_types::PrivateKeyDer;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn claims_make_the_user_that_the_settings_say() {
        let claims = json!({"sub": "7", "email": "ann@x", "email_verified": true,
                            "roles": ["dev", "ops"], "team": "a"});
        let base = Oidc { issuer_url: "https://i".to_owned(), ..Oidc::default() };
        let with = |change: fn(&mut Oidc)| {
            let mut settings = base.clone();
            change(&mut settings);
            user_of(&settings, &claims)
                .map(|user| format!("{} {}", user.name, user.groups.join(",")))
        };
        for (settings, expected) in [
            (with(|_| ()), Ok("https://i#7 system:authenticated")),
            (with(|s| s.username_prefix = "-".to_owned()), Ok("7 system:authenticated")),
            (with(|s| s.username_claim = "email".to_owned()), Ok("ann@x system:authenticated")),
            (
                with(|s| {
                    s.username_prefix = "o:".to_owned();
                    s.groups_claim = "roles".to_owned();
                    s.groups_prefix = "g:".to_owned();
                }),
                Ok("o:7 g:dev,g:ops,system:authenticated"),
            ),
            (
                with(|s| s.username_claim = "name".to_owned()),
                Err("the claim of the user's name is missing"),
            ),
            (
                with(|s| s.required_claims = vec![("team".to_owned(), "b".to_owned())]),
                Err("a required claim is missing or different"),
            ),
        ] {
            assert_eq!(settings, expected.map(str::to_owned));
        }
    }

    /// Answers every connection with the document of the path.
    async fn serve(listener: TcpListener, tls: tokio_rustls::TlsAcceptor, keys: Value) {
        let port = listener.local_addr().unwrap().port();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = tls.accept(socket).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let body = if head.starts_with(b"GET /.well-known/openid-configuration ") {
                let issuer = format!("https://localhost:{port}");
                json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}).to_string()
            } else {
                keys.to_string()
            };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_token_of_the_provider_is_believed_and_no_other() {
        let day = Duration::from_secs(86_400);
        let authority = Authority::generate("provider", day).unwrap();
        let sans = Sans { names: vec!["localhost".to_owned()], addresses: vec![] };
        let made = authority.issue(&Subject::new("p", &[]), &sans, Usage::Server, day).unwrap();
        let certificate = CertificateDer::from_pem_slice(made.cert_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.key_pem.expose().as_bytes()).unwrap();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k1", "alg": "ES256",
                                    "x": encode(x), "y": encode(y)}]});
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::new(tls).into(), keys));
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, authority.cert_pem()).unwrap();
        let provider = Provider::new(&Oidc {
            issuer_url: issuer.clone(),
            client_id: "muster".to_owned(),
            username_prefix: "-".to_owned(),
            ca_file: Some(ca_file),
            ..Oidc::default()
        })
        .unwrap();
        assert!(provider.issues(&issuer));
        let token = |id: &str, audience: &str, end: i64| {
            let header = json!({"alg": "ES256", "kid": id});
            let claims = json!({"iss": issuer, "aud": audience, "sub": "ann", "exp": end});
            let unsigned = words::render_unsigned(&header, &claims);
            let signature = pair.sign(&random, unsigned.as_bytes()).unwrap();
            format!("{unsigned}.{}", encode(signature.as_ref()))
        };
        let later = now().as_second() + 600;
        for (token, expected) in [
            (token("k1", "muster", later), Ok("ann")),
            (token("k1", "other", later), Err("the token is for another client")),
            (token("k1", "muster", 5), Err("token has expired")),
            (token("k2", "muster", later), Err("the key is not known")),
        ] {
            let jwt = words::parse_jwt(&token).unwrap();
            let said = provider.user(&jwt).await;
            let expected = expected.map(str::to_owned).map_err(TokenError::Refused);
            assert_eq!(said.map(|user| user.name), expected);
        }
    }
}
