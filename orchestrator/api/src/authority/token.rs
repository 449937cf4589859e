//! Tokens: what they say, what they are good for. Signatures are checked by the caller.
//!
//! Spec: RFC 7515 (compact form), RFC 7519 (claims), authentication.k8s.io/v1 TokenRequest and
//! upstream's private claims below `kubernetes.io`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use objects::{Cause, Status, field::str_at};
use serde_json::{Map, Value, json};

use super::review::invalid;

/// A longer text is no token of anybody's.
const TOKEN_BYTES_MAX: usize = 64 << 10;
/// The shortest life that may be asked for.
const SECONDS_MIN: i64 = 600;
/// The longest.
const SECONDS_MAX: i64 = 1 << 32;
/// The life of a token when none is asked for.
const SECONDS_USUAL: i64 = 3600;
/// How far the clock of who made a token may be ahead of ours.
const LEEWAY_SECONDS: i64 = 60;
/// The issuer of tokens kept in secrets.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// A signed token, taken apart and not believed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt<'a> {
    /// The header.
    pub header: Value,
    /// The claims.
    pub claims: Value,
    /// What is signed.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: Vec<u8>,
}

/// An object a token lives and dies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid; in a request empty when any will do.
    pub uid: String,
}

/// What a TokenRequest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// For whom the token is; never empty.
    pub audiences: Vec<String>,
    /// How long it lives.
    pub seconds: i64,
    /// What it is bound to.
    pub bound: Option<Reference>,
}

/// Whom a ServiceAccount's token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The namespace.
    pub namespace: String,
    /// The account's name.
    pub name: String,
    /// The account's uid.
    pub uid: String,
    /// What must still be there, `Pod`, `Secret` and `Node` in this order.
    pub bound: Vec<Reference>,
    /// Is it one kept in a secret, which has no end?
    pub legacy: bool,
}

/// Takes a token apart; `None` when it is none.
#[must_use]
pub fn parse_jwt(text: &str) -> Option<Jwt<'_>> {
    if text.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (signed, signature) = text.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let json = |part: &str| -> Option<Value> {
        let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice(&bytes).ok().filter(Value::is_object)
    };
    Some(Jwt {
        header: json(header)?,
        claims: json(claims)?,
        signed: signed.as_bytes(),
        signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
    })
}

/// Renders header and claims, ready to be signed.
#[must_use]
pub fn render_unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// For whom a token is.
#[must_use]
pub fn audiences(claims: &Value) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => {
            all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// Is a token valid at this time? A token without an end is not, unless it is one that has none.
///
/// # Errors
///
/// The reason, for reviews and logs.
pub fn check_times(claims: &Value, now: Timestamp, endless: bool) -> Result<(), &'static str> {
    let seconds = now.as_second();
    // Times may be written with a fraction.
    let at = |key: &str| -> Option<i64> {
        let value = claims.get(key)?;
        value.as_i64().or_else(|| value.to_string().split('.').next()?.parse().ok())
    };
    match at("exp") {
        Some(end) if seconds >= end => return Err("token has expired"),
        None if !endless => return Err("token has no end"),
        _ => {}
    }
    let early = |key: &str| at(key).is_some_and(|start| start > seconds + LEEWAY_SECONDS);
    if early("nbf") || early("iat") { Err("token is not valid yet") } else { Ok(()) }
}

/// Reads a TokenRequest; `usual` are the audiences of who names none.
///
/// # Errors
///
/// 422 for lives too short or too long.
pub fn parse_request(body: &Value, usual: &[String]) -> Result<TokenRequest, Status> {
    let spec = body.get("spec").unwrap_or(&Value::Null);
    let listed: Vec<String> = audiences(&json!({"aud": spec.get("audiences")}));
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(SECONDS_USUAL);
    let refuse = |why: &str| {
        let cause = Cause::invalid("spec.expirationSeconds", &json!(seconds), why);
        let mut status = invalid("TokenReview", cause);
        // The words of reviews, with the name of what this is.
        status.message = status.message.replacen("TokenReview", "TokenRequest", 1);
        if let Some(details) = &mut status.details {
            "TokenRequest".clone_into(&mut details.kind);
        }
        Err(status)
    };
    if seconds < SECONDS_MIN {
        return refuse("may not specify a duration less than 10 minutes");
    }
    if seconds > SECONDS_MAX {
        return refuse("may not specify a duration larger than 2^32 seconds");
    }
    let bound = spec.get("boundObjectRef").filter(|one| one.is_object()).map(|one| {
        let text = |key: &str| str_at(one, key).unwrap_or("").to_owned();
        Reference { kind: text("kind"), name: text("name"), uid: text("uid") }
    });
    let audiences = if listed.is_empty() { usual.to_vec() } else { listed };
    Ok(TokenRequest { audiences, seconds, bound })
}

/// The claims of a bound token.
///
/// `bound` are the objects it lives and dies with, uids included; `id` is unique to it.
#[must_use]
pub fn claims(
    issuer: &str,
    account: &Account,
    audiences: &[String],
    (from, to): (Timestamp, Timestamp),
    id: &str,
) -> Value {
    let named = |name: &str, uid: &str| json!({"name": name, "uid": uid});
    let mut private = Map::new();
    private.insert("namespace".to_owned(), json!(account.namespace));
    private.insert("serviceaccount".to_owned(), named(&account.name, &account.uid));
    for one in &account.bound {
        private.insert(one.kind.to_ascii_lowercase(), named(&one.name, &one.uid));
    }
    json!({
        "iss": issuer,
        "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        "aud": audiences,
        "iat": from.as_second(), "nbf": from.as_second(), "exp": to.as_second(),
        "jti": id,
        "kubernetes.io": private,
    })
}

/// The claims of a token that is kept in a secret.
#[must_use]
pub fn legacy_claims(account: &Account, secret: &str) -> Value {
    json!({
        "iss": LEGACY_ISSUER,
        "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
        "kubernetes.io/serviceaccount/namespace": account.namespace,
        "kubernetes.io/serviceaccount/secret.name": secret,
        "kubernetes.io/serviceaccount/service-account.name": account.name,
        "kubernetes.io/serviceaccount/service-account.uid": account.uid,
    })
}

/// Whom believed claims speak for; `None` when they name no account.
#[must_use]
pub fn account(claims: &Value) -> Option<Account> {
    let text = |value: &Value, key: &str| -> Option<String> {
        value.get(key)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if claims.get("iss").and_then(Value::as_str) == Some(LEGACY_ISSUER) {
        let own = |key: &str| text(claims, &format!("kubernetes.io/serviceaccount/{key}"));
        let secret = own("secret.name")?;
        return checked(
            claims,
            Account {
                namespace: own("namespace")?,
                name: own("service-account.name")?,
                uid: own("service-account.uid")?,
                bound: vec![Reference {
                    kind: "Secret".to_owned(),
                    name: secret,
                    uid: String::new(),
                }],
                legacy: true,
            },
        );
    }
    let private = claims.get("kubernetes.io")?;
    let own = private.get("serviceaccount")?;
    let bound = ["Pod", "Secret", "Node"].into_iter().filter_map(|kind| {
        let one = private.get(kind.to_ascii_lowercase())?;
        Some(Reference {
            kind: kind.to_owned(),
            name: text(one, "name")?,
            uid: text(one, "uid").unwrap_or_default(),
        })
    });
    let account = Account {
        namespace: text(private, "namespace")?,
        name: text(own, "name")?,
        uid: text(own, "uid")?,
        bound: bound.collect(),
        legacy: false,
    };
    checked(claims, account)
}

/// The subject must be the account that the private claims name.
fn checked(claims: &Value, account: Account) -> Option<Account> {
    let subject = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
    (claims.get("sub").and_then(Value::as_str) == Some(&subject)).then_some(account)
}

/// The id and the secret half of a bootstrap token, `abcdef.0123456789abcdef`.
#[must_use]
pub fn parse_bootstrap(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn robot() -> Account {
        let pod = Reference { kind: "Pod".to_owned(), name: "p".to_owned(), uid: "u2".to_owned() };
        Account {
            namespace: "a".to_owned(),
            name: "robot".to_owned(),
            uid: "u1".to_owned(),
            bound: vec![pod],
            legacy: false,
        }
    }

    #[test]
    fn a_token_says_what_was_put_into_it() {
        let audience = ["x".to_owned()];
        let made = claims("https://i", &robot(), &audience, (at(10), at(610)), "id");
        let header = json!({"alg": "ES256"});
        let text = format!("{}.{}", render_unsigned(&header, &made), URL_SAFE_NO_PAD.encode("sig"));
        let read = parse_jwt(&text).unwrap();
        assert_eq!((&read.header, &read.claims, &*read.signature), (&header, &made, &b"sig"[..]));
        assert_eq!(account(&read.claims), Some(robot()));
        assert_eq!(audiences(&read.claims), audience);
        let mut other = made.clone();
        other["sub"] = json!("system:serviceaccount:a:other");
        assert_eq!(account(&other), None);
        let kept = legacy_claims(&robot(), "s");
        let found = account(&kept).unwrap();
        assert!(found.legacy && found.bound[0].name == "s");
    }

    #[test]
    fn a_token_has_its_time() {
        for (claims, now, endless, valid) in [
            (json!({"exp": 100, "nbf": 10}), 50, false, true),
            (json!({"exp": 100, "nbf": 10}), 100, false, false),
            (json!({"exp": 100.5}), 50, false, true),
            (json!({"exp": 1000, "nbf": 500}), 50, false, false),
            (json!({"exp": 1000, "iat": 80}), 50, false, true),
            (json!({}), 50, false, false),
            (json!({}), 50, true, true),
        ] {
            assert_eq!(check_times(&claims, at(now), endless).is_ok(), valid, "{claims} {now}");
        }
    }

    #[test]
    fn requests_have_their_limits() {
        let usual = ["api".to_owned()];
        let read = |spec: Value| parse_request(&json!({ "spec": spec }), &usual);
        assert_eq!(read(json!({})).unwrap().seconds, 3600);
        assert_eq!(read(json!({})).unwrap().audiences, usual);
        assert_eq!(read(json!({"audiences": ["v"]})).unwrap().audiences, ["v"]);
        let short = read(json!({"expirationSeconds": 60})).unwrap_err();
        assert_eq!(
            short.message,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid \
             value: 60: may not specify a duration less than 10 minutes"
        );
        assert_eq!(read(json!({"expirationSeconds": 1_i64 << 33})).unwrap_err().code, 422);
    }

    #[test]
    fn bootstrap_tokens_have_one_form() {
        assert_eq!(
            parse_bootstrap("abcdef.0123456789abcdef"),
            Some(("abcdef", "0123456789abcdef"))
        );
        for bad in ["abcdef.0123456789ABCDEF", "abcde.0123456789abcdef", "abcdef", "", "."] {
            assert_eq!(parse_bootstrap(bad), None, "{bad}");
        }
    }

    #[test]
    fn any_text_is_read_without_harm() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let encoded = URL_SAFE_NO_PAD.encode(bytes);
            for text in [text.to_string(), format!("{encoded}.{encoded}.{encoded}")] {
                if let Some(jwt) = parse_jwt(&text) {
                    let _found = (account(&jwt.claims), audiences(&jwt.claims));
                }
            }
        });
    }
}
