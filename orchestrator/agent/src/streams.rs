//! Streams to containers: commands, terminals, ports.
//!
//! The runtime serves them itself on a loopback address it gives out with a one-time token. The
//! agent asks for that address, hands the client's upgrade on, and carries the bytes: it does
//! not know which protocol they are.
//!
//! Spec: upstream's `/exec`, `/attach`, `/portForward` and `/run`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::CallError;
use cri::message::{AttachRequest, ExecRequest, PortForwardRequest};
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderName, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use node::query::parse_pairs;
use runtime::report;
use thiserror::Error;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tracing::debug;

use crate::logs::Body;
use crate::{Shared, observe};

/// How long the runtime's own server may take to answer.
const OPEN: Duration = Duration::from_secs(10);
/// Limit of a command of `/run`, whose output is answered when it has ended.
const RUN: Duration = Duration::from_secs(60);
/// Headers of an upgrade, in both directions.
const HANDED_ON: [HeaderName; 7] = [
    CONNECTION,
    UPGRADE,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
    HeaderName::from_static("x-stream-protocol-version"),
];

/// Why there is no stream.
#[derive(Debug, Error)]
enum StreamError {
    #[error("{0}")]
    Asked(String),
    #[error("{0}")]
    Missing(String),
    #[error("the runtime refuses")]
    Runtime(#[from] CallError),
    #[error("the runtime's stream address {url:?} cannot be used")]
    Address { url: String },
    #[error("cannot reach the runtime's stream server")]
    Connect(#[from] io::Error),
    #[error("the runtime's stream server broke off")]
    Speak(#[from] hyper::Error),
    #[error("the runtime's stream server does not answer")]
    Late,
}

impl StreamError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Asked(_) => StatusCode::BAD_REQUEST,
            Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::Runtime(err) if err.is_not_found() => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// A command with its streams.
    Exec,
    /// The streams of the container's own process.
    Attach,
    /// Ports of the pod.
    PortForward,
    /// A command whose output is the answer.
    Run,
}

/// The verb and the steps of a path; `None` when it is no stream's.
pub(crate) fn parse_path(path: &str) -> Option<(Verb, Vec<&str>)> {
    let mut steps = path.trim_start_matches('/').split('/');
    let verb = match steps.next()? {
        "exec" => Verb::Exec,
        "attach" => Verb::Attach,
        "portForward" => Verb::PortForward,
        "run" => Verb::Run,
        _ => return None,
    };
    Some((verb, steps.collect()))
}

/// Answers a request for a stream; the stream itself becomes one of `tunnels`.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    tunnels: &tokio::sync::Mutex<JoinSet<()>>,
) -> Response<Body> {
    match open(shared, request, tunnels).await {
        Ok(response) => response,
        Err(err) => {
            let text = format!("{}\n", report(&err));
            let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
            *response.status_mut() = err.status();
            response
        }
    }
}

async fn open(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    tunnels: &tokio::sync::Mutex<JoinSet<()>>,
) -> Result<Response<Body>, StreamError> {
    let uri = request.uri().clone();
    let unknown = || StreamError::Missing("no such page".to_owned());
    let (verb, steps) = parse_path(uri.path()).ok_or_else(unknown)?;
    let pairs = parse_pairs(uri.query().unwrap_or_default());
    let values = |key: &str| -> Vec<String> {
        let found = pairs.iter().filter(|(name, _)| name == key);
        found.map(|(_, value)| value.clone()).collect()
    };
    let flag = |key: &str| values(key).first().is_some_and(|v| matches!(&**v, "1" | "true"));
    // Upstream also takes a uid between the pod and the container.
    let (namespace, pod, container) = match (verb, steps.as_slice()) {
        (Verb::PortForward, [namespace, pod] | [namespace, pod, _]) => (*namespace, *pod, ""),
        (_, [namespace, pod, container] | [namespace, pod, _, container]) => {
            (*namespace, *pod, *container)
        }
        _ => return Err(StreamError::Asked("the path lacks a pod or container".to_owned())),
    };
    let runtime = &shared.runtime;
    let (stdin, stdout, stderr) = (flag("input"), flag("output"), flag("error"));
    let tty = flag("tty");
    let url = match verb {
        Verb::PortForward => {
            let pod_sandbox_id = observe::sandbox_id(shared, namespace, pod).await?;
            let pod_sandbox_id = pod_sandbox_id.ok_or_else(|| missing(pod, ""))?;
            let port = values("port").iter().filter_map(|port| port.parse().ok()).collect();
            runtime.port_forward(PortForwardRequest { pod_sandbox_id, port }).await?.url
        }
        _ => {
            let id = observe::container_id(shared, (namespace, pod), container).await?;
            let container_id = id.ok_or_else(|| missing(pod, container))?;
            let stderr = stderr && !tty;
            match verb {
                Verb::Run => return run(shared, &container_id, &values("cmd")).await,
                Verb::Attach => {
                    let request = AttachRequest { container_id, stdin, tty, stdout, stderr };
                    runtime.attach(request).await?.url
                }
                _ => {
                    let cmd = values("command");
                    let request = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
                    runtime.exec(request).await?.url
                }
            }
        }
    };
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    if !request.headers().contains_key(UPGRADE) {
        return Err(StreamError::Asked("unable to upgrade: missing upgrade headers".to_owned()));
    }
    let upgrade = upgrade.ok_or_else(|| StreamError::Asked("cannot upgrade".to_owned()))?;
    hand_on(&url, &request, upgrade, tunnels).await
}

fn missing(pod: &str, container: &str) -> StreamError {
    let what = if container.is_empty() {
        format!("pod {pod:?} does not run on this node")
    } else {
        format!("container not found (\"{container}\")")
    };
    StreamError::Missing(what)
}

/// Runs a command and answers what it said.
async fn run(shared: &Shared, id: &str, cmd: &[String]) -> Result<Response<Body>, StreamError> {
    let words: Vec<String> = cmd.iter().flat_map(|cmd| cmd.split(' ')).map(str::to_owned).collect();
    let answer = shared.runtime.exec_sync(id, &words, RUN).await?;
    let mut output = answer.stdout;
    output.extend(answer.stderr);
    if answer.exit_code != 0 {
        let text = format!("command terminated with exit code {}\n", answer.exit_code);
        output.extend(text.into_bytes());
    }
    Ok(Response::new(Full::new(Bytes::from(output)).boxed()))
}

/// Hands a client's upgrade to the runtime's server, and carries the bytes when it switched.
async fn hand_on(
    url: &str,
    asked: &Request<Incoming>,
    upgrade: OnUpgrade,
    tunnels: &tokio::sync::Mutex<JoinSet<()>>,
) -> Result<Response<Body>, StreamError> {
    let unusable = || StreamError::Address { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| unusable())?;
    let authority = uri.authority().ok_or_else(unusable)?;
    let target = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(asked.method().clone())
        .uri(path)
        .header(HOST, authority.as_str())
        .body(Empty::<Bytes>::new())
        .map_err(|_| unusable())?;
    copy_headers(asked.headers(), request.headers_mut());
    let exchange = async {
        let socket = TcpStream::connect(target).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        // It moves bytes only while it is polled, and ends when it is upgraded.
        tunnels.lock().await.spawn(async move { drop(connection.with_upgrades().await) });
        Ok::<_, StreamError>(sender.send_request(request).await?)
    };
    let mut answer =
        tokio::time::timeout(OPEN, exchange).await.map_err(|_| StreamError::Late)??;
    let mut response = Response::new(Empty::<Bytes>::new().boxed());
    *response.status_mut() = answer.status();
    copy_headers(answer.headers(), response.headers_mut());
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let bytes = answer.into_body().collect().await?.to_bytes();
        *response.body_mut() = Full::new(bytes).boxed();
        return Ok(response);
    }
    let theirs = hyper::upgrade::on(&mut answer);
    let stream = async move {
        let carried = async {
            let (mut ours, mut theirs) =
                (TokioIo::new(upgrade.await?), TokioIo::new(theirs.await?));
            copy_bidirectional(&mut ours, &mut theirs).await?;
            Ok::<(), StreamError>(())
        };
        if let Err(err) = carried.await {
            debug!(err = report(&err), "a stream ended early");
        }
    };
    tunnels.lock().await.spawn(stream);
    Ok(response)
}

fn copy_headers(from: &http::HeaderMap, to: &mut http::HeaderMap) {
    for name in HANDED_ON {
        for value in from.get_all(&name) {
            to.append(name.clone(), value.clone());
        }
    }
}
