//! Answers: bodies, headers, errors as `Status`.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use objects::Status;
use serde::Serialize;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub(crate) type Answer = Response<Body>;

/// Warnings a header may carry; more would only be cut off by clients.
const WARNINGS_MAX: usize = 32;

/// An answer of bytes in memory.
pub(crate) fn whole(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

/// The same answer to HEAD: the headers of GET alone, for HTTP/2 refuses a body there.
pub(crate) fn without_body(answer: Answer) -> Answer {
    answer.map(|_| Full::new(Bytes::new()).boxed_unsync())
}

/// An answer of JSON bytes.
pub(crate) fn json_bytes(code: u16, body: impl Into<Bytes>) -> Answer {
    whole(code, "application/json", body)
}

/// An answer of something that can be written as JSON.
pub(crate) fn json(code: u16, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => json_bytes(code, bytes),
        Err(err) => {
            tracing::error!(%err, "an answer cannot be written as JSON");
            json_bytes(500, Bytes::from_static(b"{}"))
        }
    }
}

/// An answer of plain text.
pub(crate) fn text(code: u16, body: impl Into<Bytes>) -> Answer {
    whole(code, "text/plain; charset=utf-8", body)
}

/// An answer whose parts come when they come; each is sent at once.
pub(crate) fn stream(
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Answer {
    let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
    let mut answer = whole(200, content_type, Bytes::new());
    *answer.body_mut() = StreamBody::new(frames).boxed_unsync();
    answer
}

/// An error.
pub(crate) fn failure(status: &Status) -> Answer {
    let mut answer = json(status.code, status);
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if seconds > 0 {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// Adds warnings for people to an answer.
pub(crate) fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(WARNING, value);
        }
    }
}
