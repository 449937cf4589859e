//! The health check of gRPC services, as a probe asks it.
//!
//! Spec: `grpc.health.v1.Health/Check` over HTTP/2 in the clear; status 1 is serving.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use runtime::report;
use tokio::net::TcpStream;

/// The longest answer read; a real one has seven bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// The status of a service that serves.
const SERVING: u8 = 1;

/// Asks a service how it is, over a fresh connection.
pub(crate) async fn check(
    stream: TcpStream,
    service: &str,
    authority: &str,
    limit: Duration,
) -> Result<(), String> {
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.36")
        .body(Full::new(question(service)))
        .map_err(|err| report(&err))?;
    let exchange = async {
        let shaken =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = shaken.await.map_err(|err| report(&err))?;
        let asked = async {
            let answer = sender.send_request(request).await.map_err(|err| report(&err))?;
            let code = answer.headers().get("grpc-status").cloned();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|err| err.to_string())?;
            let code = code.or_else(|| body.trailers()?.get("grpc-status").cloned());
            Ok::<_, String>((code, body.to_bytes()))
        };
        // The connection lives as long as the question.
        tokio::select! { biased;
            asked = asked => asked,
            ended = connection => Err(ended.err().map_or("connection closed".to_owned(), |err| report(&err))),
        }
    };
    let late = || format!("timeout: health rpc did not complete within {} s", limit.as_secs());
    let (code, body) = tokio::time::timeout(limit, exchange).await.map_err(|_| late())??;
    let code = code.as_ref().and_then(|code| code.to_str().ok()).unwrap_or("2");
    if code != "0" {
        return Err(format!("error: health rpc failed with code {code}"));
    }
    match status(&body) {
        Some(SERVING) => Ok(()),
        other => Err(format!("service unhealthy (responded with status {})", other.unwrap_or(0))),
    }
}

/// A message with one field, the service's name, behind gRPC's five bytes.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    // Names longer than a byte can count are none of a real service.
    if let Some(length) =
        u8::try_from(service.len()).ok().filter(|length| (1..128).contains(length))
    {
        message.put_slice(&[0x0a, length]);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(0));
    framed.put_slice(&message);
    framed.freeze()
}

/// The status in an answer; 0 when the message is empty.
fn status(body: &[u8]) -> Option<u8> {
    let (_, message) = body.split_at_checked(5)?;
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_have_grpcs_shape() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(status(&[0, 0]), None);
    }
}
