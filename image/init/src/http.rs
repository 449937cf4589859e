//! The little of HTTP/1.1 that init needs: fetch with ranges, and post a report.
//!
//! One request per connection, no TLS, no redirects, no chunked bodies: the boot server states
//! lengths. What is fetched is judged by its hash, never by who sent it.
//!
//! Spec: RFC 9110 §14 (ranges), RFC 9112 §2–6.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A server that sends nothing for so long is asked again.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const HEADER_LINE_BYTES_MAX: u64 = 8192;
const HEADER_LINES_MAX: usize = 100;

/// The start of an answer, and the connection to read its body from.
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: u16,
    /// Length of the whole resource, when the server told it.
    pub(crate) total_bytes: Option<u64>,
    /// The body.
    pub(crate) body: BufReader<TcpStream>,
}

/// Asks for a resource from `offset` on.
pub(crate) fn get(url: &str, offset: u64) -> Result<Answer> {
    let range = if offset > 0 { format!("Range: bytes={offset}-\r\n") } else { String::new() };
    send(url, "GET", &range, b"")
}

/// Posts JSON; the answer's body is not looked at.
pub(crate) fn post_json(url: &str, body: &[u8]) -> Result<()> {
    let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    let answer = send(url, "POST", &length, body)?;
    ensure!((200..300).contains(&answer.status), "{url} answered {}", answer.status);
    Ok(())
}

fn send(url: &str, method: &str, headers: &str, body: &[u8]) -> Result<Answer> {
    let (host, path) = split(url)?;
    let address = host
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {host}"))?
        .next()
        .with_context(|| format!("{host} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_PATIENCE)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: muster-init\r\n{headers}Connection: close\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).context("cannot send the request")?;
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let (status, total_bytes) = read_head(&mut reader)?;
    Ok(Answer { status, total_bytes, body: reader })
}

fn read_head(reader: &mut impl BufRead) -> Result<(u16, Option<u64>)> {
    let first = read_line(reader)?;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("{first:?} is no HTTP answer"))?;
    let (mut length, mut range_total) = (None, None);
    for _ in 0..HEADER_LINES_MAX {
        let line = read_line(reader)?;
        if line.is_empty() {
            // Of a partial answer the length is that of the part.
            return Ok((status, if status == 206 { range_total } else { length }));
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("content-range") {
            range_total = value.rsplit('/').next().and_then(|total| total.trim().parse().ok());
        }
    }
    bail!("the answer has more than {HEADER_LINES_MAX} header lines")
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    reader.take(HEADER_LINE_BYTES_MAX).read_until(b'\n', &mut line).context("no answer")?;
    ensure!(line.ends_with(b"\n"), "the answer ends within its header");
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// Splits `http://HOST[:PORT]/PATH` into `HOST:PORT` and `/PATH`.
fn split(url: &str) -> Result<(String, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is no http URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    Ok((host, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_server_and_path() {
        for (url, host, path) in [
            ("http://10.0.0.1:8080/image/root.img", "10.0.0.1:8080", "/image/root.img"),
            ("http://seed/x?y=1", "seed:80", "/x?y=1"),
            ("http://seed", "seed:80", "/"),
        ] {
            assert_eq!(split(url).unwrap(), (host.to_owned(), path.to_owned()));
        }
        assert!(split("https://seed/").is_err());
    }

    #[test]
    fn the_head_of_an_answer_tells_status_and_whole_length() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", (200, Some(12))),
            ("HTTP/1.0 200 OK\r\n\r\n", (200, None)),
            (
                "HTTP/1.1 206 Partial\r\ncontent-range: bytes 5-9/10\r\ncontent-length: 5\r\n\r\n",
                (206, Some(10)),
            ),
        ] {
            assert_eq!(read_head(&mut text.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn senseless_answers_are_refused() {
        for text in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert!(read_head(&mut text.as_bytes()).is_err(), "{text:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
        assert!(read_head(&mut long.as_bytes()).is_err());
    }

    #[test]
    fn any_bytes_are_an_answer_or_refused() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            drop(read_head(&mut &*bytes));
        });
    }
}
