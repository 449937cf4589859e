//! Logs of containers: asked of the node's agent and passed on as they come.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use objects::{Status, field, kind};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::handle::Call;
use crate::object;
use crate::respond::{self, Answer};
use crate::server::agent_address;
use crate::site::agent_name;

/// How long an agent may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an agent's error that are shown.
const ERROR_BYTES_MAX: usize = 4096;
/// Parameters passed on to the agent.
const PARAMETERS: [&str; 7] =
    ["follow", "tailLines", "previous", "timestamps", "sinceSeconds", "sinceTime", "limitBytes"];

/// Answers GET of a pod's log.
pub(crate) async fn answer(call: &Call<'_>) -> Result<Answer, Status> {
    let request = &call.request;
    let missing = || Status::not_found(request.kind, &request.name);
    let item = call.server.item(&kind::POD, &request.namespace, &request.name);
    let item = item.ok_or_else(missing)?;
    let pod = object::decode(&item, 0);
    let container = container(call, &pod)?;
    let node = field::str_at(&pod, "spec.nodeName").unwrap_or_default();
    if node.is_empty() {
        let why = format!("pod {} does not have a host assigned", request.name);
        return Err(Status::bad_request(why));
    }
    let node_item = call.server.item(&kind::NODE, "", node);
    let node_item = node_item.ok_or_else(|| Status::not_found(&kind::NODE, node))?;
    let address = agent_address(&object::decode(&node_item, 0))
        .ok_or_else(|| Status::internal(format!("node {node} has no InternalIP address yet")))?;
    let path = path(call, &container);
    let asked = tokio::time::timeout(AGENT_LIMIT, ask(call, address, &path)).await;
    let answered = asked
        .map_err(|_| Status::timeout(format!("the agent of node {node} does not answer"), 5))?
        .map_err(|err| Status::internal(format!("cannot reach the agent of node {node}: {err}")))?;
    let code = answered.status().as_u16();
    let body = answered.into_body();
    if code != 200 {
        return Err(refused(code, body).await);
    }
    let chunks = futures_util::stream::unfold(body, |mut body| async move {
        loop {
            // An agent that breaks off ends the log; there is no place left to say so.
            let frame = body.frame().await?.ok()?;
            if let Ok(chunk) = frame.into_data() {
                return Some((chunk, body));
            }
        }
    });
    let stop = call.server.stop.clone();
    let chunks = futures_util::StreamExt::take_until(chunks, async move { stop.cancelled().await });
    Ok(respond::stream("text/plain", Box::pin(chunks)))
}

/// The container that is meant: the one named, the annotated one, or the only one.
fn container(call: &Call<'_>, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        let list = pod.pointer(list).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| c.get("name")?.as_str()).collect()
    };
    let (own, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let wanted = parameter(call, "container");
    let pod_name = &call.request.name;
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        if own.contains(&wanted) || init.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        let why = format!("container {wanted} is not valid for pod {pod_name}");
        return Err(Status::bad_request(why));
    }
    match own.as_slice() {
        [only] if init.is_empty() => Ok((*only).to_owned()),
        _ => Err(Status::bad_request(format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            own.iter().chain(&init).copied().collect::<Vec<_>>().join(" ")
        ))),
    }
}

fn parameter<'a>(call: &'a Call<'_>, key: &str) -> Option<&'a str> {
    let found = call.request.options.raw.iter().find(|(have, _)| have == key);
    found.map(|(_, value)| value.as_str())
}

fn path(call: &Call<'_>, container: &str) -> String {
    let request = &call.request;
    let mut path = format!("/containerLogs/{}/{}/{container}", request.namespace, request.name);
    let mut separator = '?';
    for key in PARAMETERS {
        // Values are flags, numbers and times; anything else would change the request's meaning.
        let plain = |value: &&str| {
            value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '.'))
        };
        if let Some(value) = parameter(call, key).filter(plain) {
            path.push(separator);
            path.push_str(key);
            path.push('=');
            path.push_str(value);
            separator = '&';
        }
    }
    path
}

/// Why an agent cannot be asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Speak(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

async fn ask(
    call: &Call<'_>,
    target: SocketAddr,
    path: &str,
) -> Result<http::Response<Incoming>, AskError> {
    let socket = TcpStream::connect(target).await?;
    let connector = TlsConnector::from(std::sync::Arc::clone(&call.server.site.agent_tls));
    let tls = connector.connect(agent_name(target.ip()), socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    let request = Request::get(path)
        .header(http::header::HOST, target.to_string())
        .body(Empty::<Bytes>::new())?;
    call.server.background.spawn(connection);
    Ok(sender.send_request(request).await?)
}

async fn refused(code: u16, body: Incoming) -> Status {
    let text = match Limited::new(body, ERROR_BYTES_MAX).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned(),
        Err(_) => String::new(),
    };
    match code {
        400 | 404 => Status::bad_request(text),
        code => Status::internal(format!("the node's agent answered {code}: {text}")),
    }
}
