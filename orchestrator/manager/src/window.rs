//! A window to the manager for whoever watches over it: `/healthz`, `/livez`, `/readyz` and
//! `/metrics` over plain HTTP, one exchange a connection.
//!
//! For a manager that runs by itself; beside an API server that server's own doors answer. There
//! is no login, and nothing secret to see: listen on loopback unless the network may count too.
//! A manager that waits for another's lease is healthy, as upstream's is.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::metrics::Metrics;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Exchanges at a time; more wait in the backlog.
const EXCHANGES_MAX: usize = 16;

/// Listens where it was told to.
///
/// # Errors
///
/// When the address is taken, or not this machine's.
pub(crate) async fn open(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    info!(address = %listener.local_addr()?, "health and metrics are served");
    Ok(listener)
}

/// Answers until `stop`.
pub(crate) async fn serve(stop: CancellationToken, listener: TcpListener, metrics: Metrics) {
    let mut exchanges = JoinSet::new();
    loop {
        let accepted = tokio::select! { biased;
            () = stop.cancelled() => return,
            Some(_ended) = exchanges.join_next(), if !exchanges.is_empty() => continue,
            accepted = listener.accept(), if exchanges.len() < EXCHANGES_MAX => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let exchange = exchange(stream, metrics.clone());
                // Whoever is late is left alone.
                exchanges.spawn(async { _ = tokio::time::timeout(PATIENCE, exchange).await });
            }
            // Out of descriptors, or a client that is gone already: neither is helped by haste.
            Err(err) => {
                debug!(%err, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn exchange(stream: TcpStream, metrics: Metrics) {
    let service = service_fn(|request: Request<_>| {
        let answer = answer(request.method(), request.uri().path(), &metrics);
        async move { answer }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(err) = connection.await {
        debug!(%err, "an exchange broke off");
    }
}

fn answer(
    method: &Method,
    path: &str,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (status, kind, body) = match path {
        _ if ![Method::GET, Method::HEAD].contains(method) => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned())
        }
        "/healthz" | "/livez" | "/readyz" => (StatusCode::OK, "text/plain", "ok".to_owned()),
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4", metrics.render()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(Full::from(body))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{head} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn health_and_numbers_are_seen_from_outside() {
        let listener = open("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::default();
        metrics.of("a").round(3, None);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(stop.clone(), listener, metrics));
        // Somebody who never asks anything holds nobody up.
        let _silent = TcpStream::connect(address).await.unwrap();
        for (head, status, part) in [
            ("GET /healthz", 200, "ok"),
            ("GET /livez", 200, "ok"),
            ("GET /readyz?verbose", 200, "ok"),
            ("GET /metrics", 200, "muster_controller_actions_total{controller=\"a\"} 3\n"),
            ("POST /metrics", 405, ""),
            ("GET /", 404, ""),
        ] {
            let text = ask(address, head).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {text}");
            assert!(text.contains(part), "{head}: {text}");
        }
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
