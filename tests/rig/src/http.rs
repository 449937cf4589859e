//! A very small HTTP client, for asking servers inside the rig.
//!
//! HTTP/1.0 with `Connection: close`, so that an answer ends with the connection: no keep-alive,
//! no chunks, no TLS. Spec: RFC 1945.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// An answer larger than this is not one we asked for.
const BODY_BYTES_MAX: u64 = 16 << 20;

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who is asked.
    pub server: SocketAddrV4,
    /// Path and query.
    pub path: &'a str,
    /// A JSON body makes it a POST.
    pub json: Option<&'a str>,
    /// Limit of each step: connect, write, read.
    pub limit: Duration,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body, as text.
    pub body: String,
}

/// Asks and waits for the whole answer.
///
/// # Errors
///
/// When the server cannot be reached, stops answering, or does not speak HTTP.
pub fn send(request: Request<'_>) -> Result<Response> {
    let Request { server, path, json, limit } = request;
    let mut stream = TcpStream::connect_timeout(&server.into(), limit)
        .with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(limit)).context("setting a time limit")?;
    stream.set_write_timeout(Some(limit)).context("setting a time limit")?;
    let head = match json {
        None => format!("GET {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\r\n"),
        Some(json) => format!(
            "POST {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        ),
    };
    stream.write_all(head.as_bytes()).with_context(|| format!("asking {server} for {path}"))?;
    let mut answer = Vec::new();
    let read = stream.take(BODY_BYTES_MAX).read_to_end(&mut answer);
    // A server that closes hard after the answer has still answered.
    match parse(&answer) {
        Some(response) => Ok(response),
        None => match read {
            Err(err) => Err(err).with_context(|| format!("reading {path} from {server}")),
            Ok(_) => bail!("{server} does not answer {path} in HTTP"),
        },
    }
}

fn parse(answer: &[u8]) -> Option<Response> {
    // Scripts behind a server may end their lines without a carriage return.
    let blank = |at: usize| {
        let rest = answer.get(at..).unwrap_or_default();
        [&b"\n\r\n"[..], b"\n\n"].into_iter().find(|end| rest.starts_with(end)).map(<[u8]>::len)
    };
    let (end, gap) = (0..answer.len()).find_map(|at| Some((at, blank(at)?)))?;
    let head = String::from_utf8_lossy(answer.get(..end)?);
    let status = head.lines().next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let body = String::from_utf8_lossy(answer.get(end + gap..)?).into_owned();
    Some(Response { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_split_into_status_and_body() {
        let good = parse(b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nno such thing").unwrap();
        assert_eq!(good, Response { status: 404, body: "no such thing".to_owned() });
        let script = parse(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\n\npod-1\n").unwrap();
        assert_eq!(script, Response { status: 200, body: "pod-1\n".to_owned() });
        for bad in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1\r\n\r\n"] {
            assert_eq!(parse(bad), None);
        }
    }
}
