//! A small client for the boot server's plain HTTP: the authority's certificate and reports.
//!
//! Nothing fetched this way is believed: the certificate is checked against its fingerprint.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use thiserror::Error;

/// Limit of one exchange; the boot server is near.
const LIMIT: Duration = Duration::from_secs(10);
/// The largest body read.
const BODY_BYTES_MAX: usize = 1 << 20;

/// An exchange that failed.
#[derive(Debug, Error)]
pub(crate) enum WebError {
    /// The address is none.
    #[error("{url} is not an address")]
    Address {
        /// What was given.
        url: String,
        /// Why not.
        #[source]
        source: http::Error,
    },
    /// No answer came.
    #[error("no answer from {url}")]
    Transport {
        /// What was asked for.
        url: String,
        /// Why not.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// The answer broke off.
    #[error("the answer from {url} broke off")]
    Body {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The answer is a refusal, too long or too late.
    #[error("{url} answered {what}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What came.
        what: String,
    },
}

/// Fetches a page.
pub(crate) async fn get(url: &str) -> Result<Bytes, WebError> {
    within(url, exchange(Method::GET, url, Bytes::new())).await
}

/// Posts JSON.
pub(crate) async fn post(url: &str, body: String) -> Result<(), WebError> {
    within(url, exchange(Method::POST, url, Bytes::from(body))).await.map(drop)
}

async fn within(
    url: &str,
    work: impl Future<Output = Result<Bytes, WebError>>,
) -> Result<Bytes, WebError> {
    let late = || WebError::Answer { url: url.to_owned(), what: "nothing in time".to_owned() };
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| Err(late()))
}

async fn exchange(method: Method, url: &str, body: Bytes) -> Result<Bytes, WebError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|source| WebError::Address { url: url.to_owned(), source })?;
    let answer = client
        .request(request)
        .await
        .map_err(|source| WebError::Transport { url: url.to_owned(), source })?;
    let status = answer.status();
    let mut incoming = answer.into_body();
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|source| WebError::Body { url: url.to_owned(), source })?;
        if let Some(data) = frame.data_ref() {
            body.extend_from_slice(data);
        }
        if body.len() > BODY_BYTES_MAX {
            let what = format!("more than {BODY_BYTES_MAX} bytes");
            return Err(WebError::Answer { url: url.to_owned(), what });
        }
    }
    if !status.is_success() {
        return Err(WebError::Answer { url: url.to_owned(), what: status_text(status) });
    }
    Ok(body.freeze())
}

fn status_text(status: StatusCode) -> String {
    status.to_string()
}
