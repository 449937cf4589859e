//! Tokens: made for ServiceAccounts, and believed when they hold.
//!
//! The key lies in `pki/sa.key` (ES256). Besides the signature and the times, a token holds only
//! as long as its account and everything it is bound to are there, by uid.
//!
//! Spec: RFC 7515, RFC 7518 §3.4, RFC 7517; upstream's TokenRequest.

mod bootstrap;
mod key;
mod oidc;
mod request;

pub(crate) use key::Key;
pub use key::KeyError;
pub use oidc::OidcError;
use oidc::Provider;
pub(crate) use request::{answer, fill_secret};

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use api::User;
use api::authority::{AUTHENTICATED, token as words};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::{Kind, field, kind};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::identity::Identity;
use crate::object;
use crate::server::{Server, now};

/// Signatures remembered as good, so that not each request pays for the check.
const REMEMBERED_MAX: usize = 4096;

/// A user that a token proves, and for whom the token is.
#[derive(Debug, Clone)]
pub(crate) struct Proven {
    pub(crate) user: User,
    pub(crate) audiences: Vec<String>,
}

/// Why a token is not believed; for reviews and logs, never for who shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("invalid bearer token")]
    Unknown,
    #[error("invalid bearer token: {0}")]
    Refused(&'static str),
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
}

/// Makes and checks tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    key: Key,
    issuer: String,
    audiences: Vec<String>,
    provider: Option<Provider>,
    good: Mutex<BTreeMap<[u8; 32], ()>>,
}

impl Tokens {
    pub(crate) fn new(key: Key, identity: &Identity) -> Result<Self, OidcError> {
        Ok(Self {
            key,
            issuer: identity.issuer.clone(),
            audiences: identity.audiences(),
            provider: identity.oidc.as_ref().map(Provider::new).transpose()?,
            good: Mutex::default(),
        })
    }

    /// For whom tokens are that name nobody, and for whom they must be to open this server.
    pub(crate) fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The key's public half, for those who check tokens by themselves.
    pub(crate) fn key_set(&self) -> Value {
        json!({"keys": [self.key.public_jwk()]})
    }

    /// The document of OpenID Connect discovery.
    pub(crate) fn discovery(&self, address: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{address}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// Signs claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let header = json!({"alg": "ES256", "kid": self.key.id()});
        let unsigned = words::render_unsigned(&header, claims);
        let signature = self.key.sign(unsigned.as_bytes())?;
        Ok(format!("{unsigned}.{signature}"))
    }

    fn is_signed(&self, token: &str, jwt: &words::Jwt<'_>) -> bool {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.contains_key(&digest) {
            return true;
        }
        drop(good);
        let algorithm = field::str_at(&jwt.header, "alg") == Some("ES256");
        if !algorithm || !self.key.verify(jwt.signed, &jwt.signature) {
            return false;
        }
        good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= REMEMBERED_MAX {
            good.clear();
        }
        good.insert(digest, ());
        true
    }
}

/// Finds out whom a token proves; it must be for one of `audiences`.
///
/// # Errors
///
/// When it proves nobody.
pub(crate) async fn authenticate(
    server: &Server,
    token: &str,
    audiences: &[String],
) -> Result<Proven, TokenError> {
    if let Some((id, secret)) = words::parse_bootstrap(token) {
        let user = bootstrap::user(server, id, secret).ok_or(TokenError::Unknown)?;
        return Ok(Proven { user, audiences: server.site.tokens.audiences.clone() });
    }
    let tokens = &server.site.tokens;
    let jwt = words::parse_jwt(token).ok_or(TokenError::Unknown)?;
    let issuer = field::str_at(&jwt.claims, "iss").unwrap_or_default();
    if issuer == server.site.tokens.issuer || issuer == words::LEGACY_ISSUER {
        return account(server, token, &jwt, audiences);
    }
    if let Some(provider) = tokens.provider.as_ref().filter(|one| one.issues(issuer)) {
        let user = provider.user(&jwt).await?;
        return Ok(Proven { user, audiences: tokens.audiences.clone() });
    }
    Err(TokenError::Unknown)
}

/// Those of the wanted audiences a token is for.
fn common(has: &[String], wanted: &[String]) -> Result<Vec<String>, TokenError> {
    let both: Vec<String> = wanted.iter().filter(|one| has.contains(one)).cloned().collect();
    if both.is_empty() {
        return Err(TokenError::Audience(has.to_vec(), wanted.to_vec()));
    }
    Ok(both)
}

fn account(
    server: &Server,
    token: &str,
    jwt: &words::Jwt<'_>,
    wanted: &[String],
) -> Result<Proven, TokenError> {
    if !server.site.tokens.is_signed(token, jwt) {
        return Err(TokenError::Refused("the signature does not hold"));
    }
    let account = words::account(&jwt.claims).ok_or(TokenError::Unknown)?;
    words::check_times(&jwt.claims, now(), account.legacy).map_err(TokenError::Refused)?;
    let audiences = if account.legacy {
        // Tokens in secrets name no audience: they are for the cluster itself.
        common(&server.site.tokens.audiences, wanted)?
    } else {
        common(&words::audiences(&jwt.claims), wanted)?
    };
    let own = live(server, &kind::SERVICE_ACCOUNT, &account.namespace, &account.name, &account.uid);
    own.ok_or(TokenError::Refused("the service account is gone"))?;
    let mut user = user_of(&account);
    for bound in &account.bound {
        let gone = TokenError::Refused("what the token is bound to is gone");
        let (kind, namespace) = place(bound, &account.namespace).ok_or_else(|| gone.clone())?;
        let Some(found) = live(server, kind, namespace, &bound.name, &bound.uid) else {
            // A pod may outlive its node's object for a while, and its token with it.
            if bound.kind == "Node" && account.bound.iter().any(|one| one.kind == "Pod") {
                continue;
            }
            return Err(gone);
        };
        if account.legacy && !is_kept(&found, token) {
            return Err(TokenError::Refused("the secret holds another token"));
        }
        if matches!(bound.kind.as_str(), "Pod" | "Node") {
            let word = bound.kind.to_ascii_lowercase();
            let mut tell = |what: &str, text: &String| {
                let key = format!("authentication.kubernetes.io/{word}-{what}");
                user.extra.insert(key, vec![text.clone()]);
            };
            tell("name", &bound.name);
            tell("uid", &bound.uid);
        }
    }
    if let Some(id) = field::str_at(&jwt.claims, "jti") {
        let key = "authentication.kubernetes.io/credential-id".to_owned();
        user.extra.insert(key, vec![format!("JTI={id}")]);
    }
    Ok(Proven { user, audiences })
}

fn user_of(account: &words::Account) -> User {
    let (namespace, name) = (&account.namespace, &account.name);
    let groups =
        vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    let name = format!("system:serviceaccount:{namespace}:{name}");
    User { name, uid: account.uid.clone(), groups, ..User::default() }.with_group(AUTHENTICATED)
}

/// The kind and namespace of what a token is bound to.
fn place<'a>(bound: &words::Reference, namespace: &'a str) -> Option<(&'static Kind, &'a str)> {
    match bound.kind.as_str() {
        "Pod" => Some((&kind::POD, namespace)),
        "Secret" => Some((&kind::SECRET, namespace)),
        "Node" => Some((&kind::NODE, "")),
        _ => None,
    }
}

/// An object that is there, with this uid (empty = any), and not on its way out for long.
fn live(server: &Server, kind: &Kind, namespace: &str, name: &str, uid: &str) -> Option<Value> {
    let item = server.item(kind, namespace, name)?;
    let found = object::decode(&item, item.modified());
    let same = uid.is_empty() || field::str_at(&found, "metadata.uid") == Some(uid);
    // What is being deleted may finish its work, for a minute beyond its time.
    let deleted = field::str_at(&found, "metadata.deletionTimestamp")
        .and_then(objects::time::parse_time)
        .is_some_and(|end| objects::time::seconds_between(end, now()) > 60);
    (same && !deleted).then_some(found)
}

/// Does the secret hold this very token?
fn is_kept(secret: &Value, token: &str) -> bool {
    let kept = field::value_at(secret, "data").and_then(|data| data.get("token"));
    let kept = kept.and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
    kept.is_some_and(|kept| same_bytes(&kept, token.as_bytes()))
}

/// Compares without telling by time where the difference is.
fn same_bytes(one: &[u8], other: &[u8]) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}
