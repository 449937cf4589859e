//! Tokens of service accounts for the pods that project them: asked for, kept, renewed in time.
//!
//! A token is bound to its pod, so that it ends with it. It is renewed when a fifth of its life
//! is left, or after a day; the file is replaced in one step by whoever writes the volume.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use objects::pod::Pod;
use runtime::{ClientError, resource};
use serde_json::{Value, json};
use volumes::TokenRequest;

use crate::Shared;

/// A token is not used longer than this, in seconds.
const AGE_MAX: i64 = 24 * 3600;
/// Which part of its life a token has left when it is renewed, as a divisor.
const LEFT_PART: i64 = 5;

/// A token, and when to ask for the next one.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    text: String,
    renew_at: Timestamp,
}

/// The tokens of a pod.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    all: BTreeMap<TokenRequest, Token>,
}

impl Tokens {
    /// The token that was got for a request.
    pub(crate) fn get(&self, request: &TokenRequest) -> Option<String> {
        self.all.get(request).map(|token| token.text.clone())
    }

    /// Asks for every token that is missing or due; one that is due but not given anew is kept.
    pub(crate) async fn refresh(&mut self, shared: &Shared, pod: &Pod) -> Result<(), ClientError> {
        for request in volumes::token_requests(pod) {
            let now = Timestamp::now();
            let before = self.all.get(&request);
            if before.is_some_and(|token| now < token.renew_at) {
                continue;
            }
            match fetch(shared, pod, &request, now).await {
                Ok(token) => drop(self.all.insert(request, token)),
                Err(err) if before.is_none() => return Err(err),
                Err(err) => {
                    let err = runtime::report(&err);
                    tracing::warn!(pod = pod.metadata.name, err, "token not renewed; retrying");
                }
            }
        }
        Ok(())
    }
}

/// Asks for a token of a pod's account; gives it, and when it ends.
pub(crate) async fn give(
    shared: &Shared,
    pod: &Pod,
    request: &TokenRequest,
) -> Result<(String, String), ClientError> {
    let answer = ask(shared, pod, request).await?;
    let text = |name: &str| answer.pointer(name).and_then(Value::as_str).unwrap_or_default();
    Ok((text("/status/token").to_owned(), text("/status/expirationTimestamp").to_owned()))
}

async fn fetch(
    shared: &Shared,
    pod: &Pod,
    request: &TokenRequest,
    now: Timestamp,
) -> Result<Token, ClientError> {
    let (text, end) = give(shared, pod, request).await?;
    let end = end.parse::<Timestamp>().ok();
    let lasts = end.map_or(request.seconds, |end| end.as_second().saturating_sub(now.as_second()));
    let seconds = lasts.saturating_sub(lasts / LEFT_PART).clamp(1, AGE_MAX);
    let renew_at = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
    Ok(Token { text, renew_at })
}

async fn ask(shared: &Shared, pod: &Pod, request: &TokenRequest) -> Result<Value, ClientError> {
    let meta = &pod.metadata;
    let account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        given => given,
    };
    let audiences: Vec<&str> =
        Some(&*request.audience).filter(|a| !a.is_empty()).into_iter().collect();
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": audiences, "expirationSeconds": request.seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name,
                "uid": meta.uid}}});
    let accounts = &resource::SERVICE_ACCOUNTS;
    let namespace = Some(meta.namespace.as_str());
    shared.client.create_subresource(accounts, namespace, account, "token", &body).await
}
