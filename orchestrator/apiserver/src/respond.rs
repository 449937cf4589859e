//! Answers: bodies, headers, errors as `Status`.

use std::convert::Infallible;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt as _};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame};
use objects::Status;
use serde::Serialize;
use serde_json::Value;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub(crate) type Answer = Response<Body>;

/// Shorter answers are not worth compressing; upstream's threshold.
const COMPRESSED_BYTES_MIN: u64 = 128 << 10;
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

/// An answer of protobuf bytes.
pub(crate) fn protobuf_bytes(code: u16, body: impl Into<Bytes>) -> Answer {
    whole(code, api::protobuf::MEDIA_TYPE, body)
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

/// Marks a stream that ends by itself, and so may be compressed.
#[derive(Debug, Clone, Copy)]
struct Finite;

/// An answer that is sent in pieces because it is long.
pub(crate) fn pieces(
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Answer {
    let mut answer = stream(content_type, chunks);
    answer.extensions_mut().insert(Finite);
    answer
}

/// The same answer compressed, when it is long and the client can read that.
///
/// Short answers, and streams that must be flushed event by event, stay as they are.
pub(crate) fn compressed(answer: Answer, accept_encoding: &str) -> Answer {
    let accepts = accept_encoding.split(',').any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim() == "gzip" && quality.trim() != "q=0"
    });
    let long = answer.body().size_hint().exact().is_some_and(|size| size >= COMPRESSED_BYTES_MIN);
    if !accepts || !(long || answer.extensions().get::<Finite>().is_some()) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    head.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let coder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
    let frames = futures_util::stream::unfold((body, coder), |(mut body, coder)| async move {
        let mut coder = coder?;
        loop {
            // Our own bodies never fail.
            match body.frame().await {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    // Writing into memory cannot fail.
                    let _written = coder.write_all(&data).is_ok();
                    let ready = std::mem::take(coder.get_mut());
                    if !ready.is_empty() {
                        let frame = Ok(Frame::data(Bytes::from(ready)));
                        return Some((frame, (body, Some(coder))));
                    }
                }
                _ => {
                    let rest = coder.finish().unwrap_or_default();
                    return Some((Ok(Frame::data(Bytes::from(rest))), (body, None)));
                }
            }
        }
    });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}

/// The same answer in YAML, when it is JSON and in memory; what flows stays as it is.
pub(crate) async fn in_yaml(answer: Answer) -> Answer {
    let in_json =
        answer.headers().get(CONTENT_TYPE).is_some_and(|media| media == "application/json");
    if !in_json || answer.body().size_hint().exact().is_none() {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(never) => match never {},
    };
    let body = match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) => {
            head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
            Bytes::from(api::yaml::render_yaml(&value))
        }
        Err(_) => bytes,
    };
    Response::from_parts(head, Full::new(body).boxed_unsync())
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
