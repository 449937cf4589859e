//! The agent's HTTPS server: logs of containers, for the API server and administrators.
//!
//! Speaks TLS with the node's certificate and takes logs requests only from clients whose own
//! certificate is of the cluster's authority and names `O=system:masters` or the API server.
//! One task accepts; each connection and each log that is read has a task of its own, all owned
//! here and ended with `stop`.
//!
//! Spec: upstream's `/containerLogs/{namespace}/{pod}/{container}` and `/healthz`.

mod file;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use node::figures;
use node::log::{Query, parse_query};
use objects::meta::Object as _;
use objects::pod::Pod;
use runtime::pki::{Subject, parse_certificate};
use runtime::report;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{Joined, Shared, streams};

pub(crate) use file::rotate;

/// Connections at one time; a follower holds one for as long as it looks.
const CONNECTIONS_MAX: usize = 128;
/// Limit of a handshake: a client that says nothing must not hold a place.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pieces of a log waiting for a slow reader.
const PIECES: usize = 8;

/// Why the server cannot be set up.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Certificate, key or authority cannot be used.
    #[error("cannot use the node's certificate")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// The parts do not make TLS settings.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The authority cannot be trusted.
    #[error("cannot check clients' certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// The node has no certificate at all.
    #[error("the node has no certificate")]
    NoIdentity,
    /// The address is not to be had.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A server that listens but does not answer yet.
pub(crate) struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    /// A server behind `listener` with the node's certificate.
    pub(crate) fn new(
        shared: Arc<Shared>,
        listener: TcpListener,
        joined: &Joined,
    ) -> Result<Self, ServeError> {
        let acceptor = TlsAcceptor::from(Arc::new(tls(joined)?));
        Ok(Self { shared, listener, acceptor })
    }

    /// Answers until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! { biased;
                () = stop.cancelled() => return,
                Some(_ended) = connections.join_next() => continue,
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (shared, acceptor) = (Arc::clone(&self.shared), self.acceptor.clone());
                    connections.spawn(serve(shared, acceptor, stream));
                }
                Err(err) => {
                    debug!(err = report(&err), "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Listens; gives the address that was got, for port 0 means any.
pub(crate) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let got = listener.local_addr()?;
        Ok((listener, got))
    };
    bind.await.map_err(|source| ServeError::Listen { address, source })
}

fn tls(joined: &Joined) -> Result<rustls::ServerConfig, ServeError> {
    let config = &joined.client_config;
    let identity = config.identity.as_ref().ok_or(ServeError::NoIdentity)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&config.ca_pem) {
        roots.add(cert.map_err(ServeError::Certificate)?).map_err(ServeError::Tls)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(ServeError::Verifier)?;
    let chain = CertificateDer::pem_slice_iter(&identity.cert_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(ServeError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key_pem).map_err(ServeError::Certificate)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ServeError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(ServeError::Tls)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

async fn serve(shared: Arc<Shared>, acceptor: TlsAcceptor, stream: TcpStream) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let allowed = peer
        .and_then(|der| parse_certificate(der).ok())
        .is_some_and(|peer| may_read(&peer.subject));
    // Reading tasks end with the connection, whoever ends it; streams are what it becomes.
    let readers = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
    let tunnels = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
    let later = Arc::clone(&tunnels);
    let service = service_fn(|request| {
        let (shared, readers) = (Arc::clone(&shared), Arc::clone(&readers));
        let tunnels = Arc::clone(&tunnels);
        async move {
            let is_stream = streams::parse_path(request.uri().path()).is_some();
            Ok::<_, Infallible>(if is_stream && allowed {
                streams::answer(&shared, request, &tunnels).await
            } else {
                answer(shared, request, allowed, &readers).await
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(err) = connection.await {
        debug!(err = report(&err), "a connection broke off");
    }
    while later.lock().await.join_next().await.is_some() {}
}

/// Where the router of this node says what is meant and what is, as JSON.
const ROUTES: &str = "/run/muster/routes.json";
/// Where the router leaves its figures.
const ROUTING: &str = "/run/muster/routes.prom";

/// Tells whether a client may read logs.
fn may_read(subject: &Subject) -> bool {
    subject.common_name == "muster:apiserver"
        || subject.organizations.iter().any(|group| group == "system:masters")
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    allowed: bool,
    readers: &tokio::sync::Mutex<JoinSet<()>>,
) -> Response<Body> {
    let path = request.uri().path();
    if path == "/healthz" {
        return text(StatusCode::OK, "ok");
    }
    if !allowed {
        return text(StatusCode::FORBIDDEN, "this certificate may not read logs\n");
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    if let Some(page) = page(&shared, path).await {
        return page;
    }
    let Some(steps) = path.strip_prefix("/containerLogs/") else {
        return text(StatusCode::NOT_FOUND, "no such page\n");
    };
    let steps: Vec<&str> = steps.split('/').collect();
    let &[namespace, pod, container] = steps.as_slice() else {
        return text(StatusCode::BAD_REQUEST, "want /containerLogs/NAMESPACE/POD/CONTAINER\n");
    };
    let query = match parse_query(request.uri().query().unwrap_or_default(), Timestamp::now()) {
        Ok(query) => query,
        Err(err) => return text(StatusCode::BAD_REQUEST, &format!("{}\n", report(&err))),
    };
    match find(&shared, (namespace, pod, container), &query).await {
        Ok(log) => {
            let (sender, receiver) = mpsc::channel(PIECES);
            readers.lock().await.spawn(file::read(shared, log, query, sender));
            stream(receiver)
        }
        Err((status, why)) => text(status, &why),
    }
}

/// The pages about the node as a whole.
async fn page(shared: &Shared, path: &str) -> Option<Response<Body>> {
    let json = |value: &serde_json::Value| {
        let mut response = text(StatusCode::OK, &value.to_string());
        let kind = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    };
    Some(match path {
        "/pods" | "/pods/" => {
            let items: Vec<_> =
                shared.pods.list().iter().filter_map(|pod| pod.encode().ok()).collect();
            json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {},
                "items": items}))
        }
        "/stats/summary" => json(&figures::render_summary(&shared.figures.report(shared).await)),
        "/metrics/resource" => {
            text(StatusCode::OK, &figures::render_resource(&shared.figures.report(shared).await))
        }
        "/metrics/cadvisor" => {
            text(StatusCode::OK, &figures::render_cadvisor(&shared.figures.report(shared).await))
        }
        "/metrics" => text(StatusCode::OK, &own_metrics(shared).await),
        "/muster/routes" => match tokio::fs::read(ROUTES).await {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(survey) => json(&survey),
                Err(err) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{err}\n")),
            },
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "routing is not set up yet\n"),
        },
        _ => return None,
    })
}

/// What the agent tells of itself, under upstream's names.
async fn own_metrics(shared: &Shared) -> String {
    let pods = shared.pods.list();
    let running = pods.iter().filter(|pod| pod.status.phase == "Running");
    let containers = running.clone().flat_map(|pod| &pod.status.container_statuses);
    let containers = containers.filter(|status| status.state.running.is_some()).count();
    let statm = tokio::fs::read_to_string("/proc/self/statm").await.unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let resident = pages.unwrap_or(0).saturating_mul(4096);
    let name = &shared.node.name;
    // The router's, in the same words; none before it has begun.
    let routing = tokio::fs::read_to_string(ROUTING).await.unwrap_or_default();
    format!(
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{name}\"}} 1\n\
         # TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n\
         # TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {resident}\n{routing}",
        running.count()
    )
}

/// The file that holds what was asked for, or why there is none.
async fn find(
    shared: &Shared,
    (namespace, name, container): (&str, &str, &str),
    query: &Query,
) -> Result<file::Log, (StatusCode, String)> {
    let Some(pod) = shared.pods.get(namespace, name) else {
        let why = format!("pod \"{name}\" is not on this node\n");
        return Err((StatusCode::NOT_FOUND, why));
    };
    if !node::plan::containers(&pod).any(|c| c.name == container) {
        let why = format!("container {container} is not valid for pod {name}\n");
        return Err((StatusCode::BAD_REQUEST, why));
    }
    let log = file::Log::new(shared, &pod, container);
    let attempts = log.attempts().await;
    let missing = || {
        let why = if query.previous {
            format!("previous terminated container \"{container}\" in pod \"{name}\" not found\n")
        } else {
            let reason = waiting_reason(&pod, container);
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}\n")
        };
        (StatusCode::BAD_REQUEST, why)
    };
    let newest = attempts.last().copied().ok_or_else(missing)?;
    let wanted = if !query.previous {
        Some(newest)
    } else if log.is_waiting(&pod) {
        // Between two lives the newest file is the one of the life before.
        Some(newest)
    } else {
        attempts.iter().rev().nth(1).copied()
    };
    Ok(log.at(wanted.ok_or_else(missing)?))
}

fn waiting_reason(pod: &Pod, container: &str) -> String {
    let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let mut all = all.chain(&pod.status.ephemeral_container_statuses);
    let status = all.find(|status| status.name == container);
    let reason = status.and_then(|status| Some(status.state.waiting.as_ref()?.reason.clone()));
    reason.unwrap_or_else(|| "ContainerCreating".to_owned())
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())).boxed());
    *response.status_mut() = status;
    plain(response)
}

fn stream(receiver: mpsc::Receiver<Result<Frame<Bytes>, Infallible>>) -> Response<Body> {
    plain(Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed()))
}

fn plain(mut response: Response<Body>) -> Response<Body> {
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_administrators_and_the_api_server_read_logs() {
        let check = |name: &str, groups: &[&str]| may_read(&Subject::new(name, groups));
        assert!(check("admin", &["system:masters"]));
        assert!(check("muster:apiserver", &[]));
        assert!(!check("system:node:a", &["system:nodes"]));
        assert!(!check("", &[]));
    }
}
