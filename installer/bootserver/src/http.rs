//! HTTP/1.1: scripts, images with ranges, reports.
//!
//! Nothing secret is served, so there is no TLS and no login; what a node trusts it checks by hash
//! or signature. A machine that may not boot is refused images by its leased address.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use boot::{Fetch, Verdict, parse_query, parse_report};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::services::ServeFile;

use crate::desk::{DeskHandle, Stopping};
use crate::tftp::LOADERS;
use crate::{Config, peer_v4};

/// Downloads at a time; more wait in the backlog. Each costs a buffer of 64 KB.
const CONNECTIONS_MAX: usize = 512;
/// How long a connection may idle between requests, or take over a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How long sent bytes may stay unacknowledged: machines that lost power free their place.
const DEAD_PEER: Duration = Duration::from_secs(60);
/// How long downloads may go on after the stop was asked for.
const STOP_LIMIT: Duration = Duration::from_secs(5);
const REPORT_LEN_MAX: usize = 4096;
/// What of the image directory is served.
const IMAGE_FILES: [&str; 5] = ["vmlinuz", "initrd", "root.img", "manifest.json", "manifest.sig"];

#[derive(Clone)]
struct Counter {
    desk: DeskHandle,
    image_dir: Arc<PathBuf>,
    uki: Option<Arc<PathBuf>>,
    ca_pem: Option<Arc<PathBuf>>,
}

/// Who asks.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

/// Serves until `stop`, then lets downloads go on for five seconds: nodes resume by ranges.
pub(crate) async fn run(
    stop: CancellationToken,
    listener: TcpListener,
    config: Config,
    desk: DeskHandle,
) {
    let app = router(Counter {
        desk,
        image_dir: Arc::new(config.image_dir),
        uki: config.uki.map(Arc::new),
        ca_pem: config.ca_pem.map(Arc::new),
    });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else {
            continue;
        };
        let app = app.clone();
        let service = hyper::service::service_fn(move |mut request: Request<_>| {
            request.extensions_mut().insert(Peer(peer));
            app.clone().oneshot(request)
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).half_close(true);
        let connection = graceful.watch(server.serve_connection(TokioIo::new(stream), service));
        connections.spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(%peer, %err, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    let _late = tokio::time::timeout(STOP_LIMIT, graceful.shutdown()).await.is_err();
    connections.shutdown().await;
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

/// Cancel safety: a place is given back when this is dropped before a connection came.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<Accepted> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            let options = socket2::SockRef::from(&stream);
            let _set = options.set_tcp_user_timeout(Some(DEAD_PEER)).is_ok();
            let _set = options.set_tcp_nodelay(true).is_ok();
            Some((stream, peer, place))
        }
        Err(err) => {
            // Out of file descriptors, mostly: waiting helps, ending the service does not.
            tracing::warn!(%err, "connection not accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

fn router(counter: Counter) -> Router {
    Router::new()
        .route("/boot.ipxe", get(script))
        .route("/image/{name}", get(image))
        .route("/loader/{name}", get(loader))
        .route("/uki.efi", get(uki))
        .route("/ca.pem", get(ca_pem))
        .route("/report", post(report))
        .route("/machines", get(machines))
        .with_state(counter)
}

async fn script(State(counter): State<Counter>, RawQuery(query): RawQuery) -> Response {
    match parse_query(&query.unwrap_or_default()) {
        Ok(query) => match counter.desk.script(query).await {
            Ok(script) => {
                let head =
                    [(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store")];
                (head, script).into_response()
            }
            Err(Stopping) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        },
        Err(err) => (StatusCode::BAD_REQUEST, format!("{err}\n")).into_response(),
    }
}

async fn image(
    State(counter): State<Counter>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    let Some(name) = IMAGE_FILES.into_iter().find(|known| **known == *name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let fetch = match name {
        "vmlinuz" => Some(Fetch::Kernel),
        "initrd" => Some(Fetch::Initrd),
        "root.img" => Some(Fetch::Image),
        _ => None,
    };
    if let Some(fetch) = fetch
        && let Err(refusal) = ask(&counter, peer, fetch).await
    {
        return refusal;
    }
    serve(counter.image_dir.join(name), request).await
}

async fn uki(
    State(counter): State<Counter>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let Some(path) = &counter.uki else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let fetch = if request.method() == Method::HEAD { Fetch::UkiSize } else { Fetch::Uki };
    match ask(&counter, peer, fetch).await {
        Ok(()) => serve(path.as_ref().clone(), request).await,
        Err(refusal) => refusal,
    }
}

async fn loader(
    State(counter): State<Counter>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    let Some(name) = LOADERS.into_iter().find(|known| **known == *name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match ask(&counter, peer, Fetch::Loader).await {
        Ok(()) => serve(counter.image_dir.join(name), request).await,
        Err(refusal) => refusal,
    }
}

async fn ca_pem(State(counter): State<Counter>, request: Request<Body>) -> Response {
    match &counter.ca_pem {
        Some(path) => serve(path.as_ref().clone(), request).await,
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn report(
    State(counter): State<Counter>,
    Extension(Peer(peer)): Extension<Peer>,
    body: Body,
) -> Response {
    let Ok(body): Result<Bytes, _> = axum::body::to_bytes(body, REPORT_LEN_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let report = match parse_report(&body) {
        Ok(report) => report,
        Err(err) => return (StatusCode::BAD_REQUEST, format!("{err}\n")).into_response(),
    };
    match counter.desk.report(peer_v4(peer), report).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(refused)) => (StatusCode::FORBIDDEN, format!("{refused}\n")).into_response(),
        Err(Stopping) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn machines(State(counter): State<Counter>) -> Response {
    match counter.desk.view().await {
        Ok(view) => Json(view).into_response(),
        Err(Stopping) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn ask(counter: &Counter, peer: SocketAddr, fetch: Fetch) -> Result<(), Response> {
    match counter.desk.may_fetch(peer_v4(peer), fetch).await {
        Ok(Verdict::Serve) => Ok(()),
        Ok(Verdict::Refuse) => {
            Err((StatusCode::FORBIDDEN, "this machine may not boot\n").into_response())
        }
        Err(Stopping) => Err(StatusCode::SERVICE_UNAVAILABLE.into_response()),
    }
}

async fn serve(path: PathBuf, request: Request<Body>) -> Response {
    match ServeFile::new(path).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}
