//! What a request can come to.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::RawResponse;
use super::config::ConfigError;

/// Whether trying again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once, after reading anew.
    Now,
    /// After a pause of at least this long.
    After(Duration),
    /// Not without a change of the request.
    Never,
}

/// Pause suggested when nothing better is known.
const PAUSE: Duration = Duration::from_secs(1);

/// The server's own words about a failure: `Status` of the API.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiStatus {
    /// HTTP status.
    pub code: u16,
    /// Machine-readable word: `NotFound`, `Conflict`, `Expired`…
    pub reason: String,
    /// Sentence for people.
    pub message: String,
    /// Group, kind, name, causes, `retryAfterSeconds`.
    pub details: Option<Value>,
}

/// Why a request failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client cannot be made.
    #[error("the client's settings are not usable")]
    Config(#[from] ConfigError),
    /// No answer came.
    #[error("no answer to {method} {path}")]
    Transport {
        /// HTTP method.
        method: Method,
        /// Path and query.
        path: String,
        /// Why.
        #[source]
        source: Box<hyper_util::client::legacy::Error>,
    },
    /// No answer came in time.
    #[error("no answer to {method} {path} within {limit:?}")]
    Timeout {
        /// HTTP method.
        method: Method,
        /// Path and query.
        path: String,
        /// The limit.
        limit: Duration,
    },
    /// The answer broke off.
    #[error("the answer from {path} broke off")]
    Body {
        /// Path and query.
        path: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The answer, or one line of a watch, is larger than we take.
    #[error("the answer from {path} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Path and query.
        path: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// The server refused.
    #[error("{method} {path} was refused with {} {}: {}", .status.code, .status.reason, .status.message)]
    Refused {
        /// HTTP method.
        method: Method,
        /// Path and query.
        path: String,
        /// The server's words.
        status: Box<ApiStatus>,
    },
    /// The answer is not JSON.
    #[error("the answer from {path} is not JSON")]
    Decode {
        /// Path and query.
        path: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The body cannot be rendered.
    #[error("the request body cannot be rendered")]
    Encode {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The address is not a valid URI.
    #[error("{path} does not make a valid request")]
    Request {
        /// Path and query.
        path: String,
        /// Why.
        #[source]
        source: http::Error,
    },
}

impl ClientError {
    pub(super) fn transport(
        method: &Method,
        path: &str,
        source: hyper_util::client::legacy::Error,
    ) -> Self {
        Self::Transport { method: method.clone(), path: path.to_owned(), source: Box::new(source) }
    }

    pub(super) fn timeout(method: &Method, path: &str, limit: Duration) -> Self {
        Self::Timeout { method: method.clone(), path: path.to_owned(), limit }
    }

    /// An answer outside 2xx; a body that is no `Status` is quoted as the message.
    pub(super) fn refused(method: &Method, path: &str, raw: &RawResponse) -> Self {
        let mut status: ApiStatus = serde_json::from_slice(&raw.body).unwrap_or_else(|_| {
            let start: Vec<u8> = raw.body.iter().copied().take(300).collect();
            ApiStatus {
                message: String::from_utf8_lossy(&start).into_owned(),
                ..ApiStatus::default()
            }
        });
        status.code = raw.status.as_u16();
        Self::Refused { method: method.clone(), path: path.to_owned(), status: Box::new(status) }
    }

    /// The server's words, when there are any.
    #[must_use]
    pub fn status(&self) -> Option<&ApiStatus> {
        if let Self::Refused { status, .. } = self { Some(status) } else { None }
    }

    fn code(&self) -> u16 {
        self.status().map_or(0, |status| status.code)
    }

    fn reason(&self) -> &str {
        self.status().map_or("", |status| &status.reason)
    }

    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Whether the object changed in between, or a precondition does not hold.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && self.reason() != "AlreadyExists"
    }

    /// Whether the name is taken.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.code() == 409 && self.reason() == "AlreadyExists"
    }

    /// Whether the revision asked for is no longer kept: list again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.code() == 410
    }

    /// Says whether and when to try again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Config(_)
            | Self::Encode { .. }
            | Self::Request { .. }
            | Self::TooLarge { .. } => Retry::Never,
            Self::Transport { .. }
            | Self::Timeout { .. }
            | Self::Body { .. }
            | Self::Decode { .. } => Retry::After(PAUSE),
            Self::Refused { status, .. } => match status.code {
                409 if status.reason != "AlreadyExists" => Retry::Now,
                410 => Retry::Now,
                408 | 429 | 500..=599 => Retry::After(retry_after(status)),
                // Our certificate may be young or the server's clock behind; permissions may
                // still be on their way.
                401 | 403 => Retry::After(PAUSE),
                _ => Retry::Never,
            },
        }
    }
}

fn retry_after(status: &ApiStatus) -> Duration {
    let seconds = status.details.as_ref().and_then(|details| details.get("retryAfterSeconds"));
    seconds.and_then(Value::as_u64).map_or(PAUSE, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn refused(code: u16, body: &str) -> ClientError {
        let raw = RawResponse {
            headers: http::HeaderMap::new(),
            status: StatusCode::from_u16(code).unwrap(),
            body: body.to_owned().into(),
        };
        ClientError::refused(&Method::GET, "/x", &raw)
    }

    #[test]
    fn the_reason_tells_conflicts_from_taken_names() {
        let taken = refused(409, r#"{"reason":"AlreadyExists"}"#);
        assert!(taken.is_already_exists() && !taken.is_conflict());
        assert_eq!(taken.retry(), Retry::Never);
        let conflict = refused(409, r#"{"reason":"Conflict"}"#);
        assert!(conflict.is_conflict());
        assert_eq!(conflict.retry(), Retry::Now);
    }

    #[test]
    fn a_body_that_is_no_status_is_quoted() {
        let err = refused(502, "bad gateway");
        assert_eq!(err.to_string(), "GET /x was refused with 502 : bad gateway");
        assert_eq!(err.retry(), Retry::After(PAUSE));
        let busy = refused(429, r#"{"details":{"retryAfterSeconds":7}}"#);
        assert_eq!(busy.retry(), Retry::After(Duration::from_secs(7)));
    }
}
