//! Asks a page of a container, plain or encrypted.
//!
//! Spec: upstream's HTTP probes: 200–399 is good, certificates are not checked, redirects are
//! followed on the same host and count as good when they lead elsewhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use runtime::{report, trust};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// Redirects followed; upstream's.
const REDIRECTS_MAX: usize = 10;

/// A page, and how to ask for it.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) encrypted: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
}

/// Asks for a page within a time; good when it is there.
pub(super) async fn check(mut page: Page, limit: Duration) -> Result<(), String> {
    let asked = async {
        for _ in 0..REDIRECTS_MAX {
            let (status, location) = ask(&page).await?;
            if !(200..400).contains(&status.as_u16()) {
                return Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()));
            }
            match location.filter(|_| status.is_redirection()).and_then(|to| page.follow(&to)) {
                Some(next) => page = next,
                None => return Ok(()),
            }
        }
        Err(format!("stopped after {REDIRECTS_MAX} redirects"))
    };
    let asked = tokio::time::timeout(limit, asked).await;
    asked.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

/// The headers of a probe: what it gives, and what it lacks.
pub(super) fn headers(given: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let usual = [(header::USER_AGENT, "kube-probe/1.36"), (header::ACCEPT, "*/*")];
    for (name, value) in usual {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers
}

impl Page {
    /// The page a redirect leads to; `None` when it leads to another host.
    fn follow(&self, location: &str) -> Option<Self> {
        let uri: Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let Some(host) = uri.host() else { return Some(Self { path, ..self.clone() }) };
        if host != self.host {
            return None;
        }
        let encrypted = uri.scheme_str().map_or(self.encrypted, |scheme| scheme == "https");
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Some(Self { encrypted, port, path, ..self.clone() })
    }
}

async fn ask(page: &Page) -> Result<(StatusCode, Option<String>), String> {
    let stream = super::connect(&page.host, page.port).await?;
    if !page.encrypted {
        return exchange(stream, page).await;
    }
    let name = ServerName::try_from(page.host.clone()).map_err(|err| report(&err))?;
    // A probe asks whether a container answers, not who it is.
    let config = trust::anyone().map_err(|err| report(&err))?.with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    exchange(stream.map_err(|err| report(&err))?, page).await
}

async fn exchange<S>(stream: S, page: &Page) -> Result<(StatusCode, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::builder().uri(&page.path).body(Empty::<Bytes>::new());
    if let Ok(request) = &mut request {
        request.headers_mut().extend(page.headers.clone());
        let host = HeaderValue::from_str(&page.host).map_err(|err| report(&err))?;
        request.headers_mut().entry(header::HOST).or_insert(host);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let request = request.map_err(|err| report(&err))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err: hyper::Error| report(&err))?;
    // The connection ends with this future: a probe wants the head alone.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! { biased;
        answer = answer.as_mut() => answer,
        // A server that closes at once has answered before; whoever has not is told as an error.
        _ = connection => answer.await,
    };
    let answer = answer.map_err(|err| report(&err))?;
    let location = answer.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok((answer.status(), location))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn page(path: &str) -> Page {
        let (host, path) = ("127.0.0.1".to_owned(), path.to_owned());
        Page { encrypted: false, host, port: 80, path, headers: headers(&[("X-A", "b")]) }
    }

    #[test]
    fn redirects_are_followed_on_the_same_host() {
        let to = |location: &str| {
            page("/a").follow(location).map(|next| (next.encrypted, next.port, next.path))
        };
        assert_eq!(to("/b?c=1"), Some((false, 80, "/b?c=1".to_owned())));
        assert_eq!(to("http://127.0.0.1:81/b"), Some((false, 81, "/b".to_owned())));
        assert_eq!(to("https://127.0.0.1/"), Some((true, 443, "/".to_owned())));
        assert_eq!(to("http://example.org/"), None);
    }

    /// A server with a certificate that nobody signed: `/a` leads to `/b`, which is there.
    #[tokio::test]
    async fn an_encrypted_page_is_asked_whoever_signed_its_certificate() {
        let made = rcgen::generate_simple_self_signed(vec!["nobody".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
                .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut bytes = [0; 1024];
                let length = stream.read(&mut bytes).await.unwrap();
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                assert!(text.contains("x-a: b") && text.contains("kube-probe/"), "{text}");
                let head = match text.split(' ').nth(1).unwrap() {
                    "/a" => "302 Found\r\nlocation: /b",
                    "/b" => "200 OK",
                    _ => "503 Bad",
                };
                let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
        };
        let ask = async {
            let limit = Duration::from_secs(60);
            let page = |path: &str| Page { encrypted: true, port, ..page(path) };
            assert_eq!(check(page("/a"), limit).await, Ok(()));
            let bad = check(page("/c"), limit).await;
            assert_eq!(bad, Err("HTTP probe failed with statuscode: 503".to_owned()));
        };
        tokio::select! {
            () = serve => unreachable!(),
            () = ask => {}
        }
    }
}
