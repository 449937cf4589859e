//! The way to a node's agent: where it listens, and requests to it over TLS in both directions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use objects::{Status, field, kind};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::handle::Call;
use crate::object;
use crate::server::{Server, agent_address};
use crate::site::agent_name;

/// Bytes of an agent's error that are shown.
const ERROR_BYTES_MAX: usize = 4096;
/// How long a connection may take to come about: nodes are near.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// An agent: the node's name and where it listens.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// The node.
    pub(crate) node: String,
    /// The agent's HTTPS server.
    pub(crate) address: SocketAddr,
}

/// Why an agent, or a pod, cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Speak(#[from] hyper::Error),
    #[error("no answer in {} s", .0.as_secs())]
    Late(Duration),
}

/// The agent of a node.
pub(crate) fn door(server: &Server, node: &str) -> Result<Door, Status> {
    let item = server.item(&kind::NODE, "", node);
    let item = item.ok_or_else(|| Status::not_found(&kind::NODE, node))?;
    let address = agent_address(&object::decode(&item, 0))
        .ok_or_else(|| Status::internal(format!("node {node} has no InternalIP address yet")))?;
    Ok(Door { node: node.to_owned(), address })
}

/// The pod a request names, and the agent of its node.
pub(crate) fn door_of_pod(call: &Call<'_>) -> Result<(Value, Door), Status> {
    let request = &call.request;
    let item = call.server.item(&kind::POD, &request.namespace, &request.name);
    let item = item.ok_or_else(|| Status::not_found(request.kind, &request.name))?;
    let pod = object::decode(&item, 0);
    let node = field::str_at(&pod, "spec.nodeName").unwrap_or_default();
    if node.is_empty() {
        let why = format!("pod {} does not have a host assigned", request.name);
        return Err(Status::bad_request(why));
    }
    let door = door(call.server, node)?;
    Ok((pod, door))
}

/// Sends a request to an agent and waits for the head of its answer.
pub(crate) async fn ask<B>(
    server: &Server,
    door: &Door,
    request: Request<B>,
    limit: Duration,
) -> Result<Response<Incoming>, Status>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let node = &door.node;
    let asked = async {
        let socket = connect(door.address).await?;
        let connector = TlsConnector::from(Arc::clone(&server.site.agent_tls));
        let tls = connector.connect(agent_name(door.address.ip()), socket).await?;
        exchange(server, tls, request, limit).await
    };
    asked.await.map_err(|err| match err {
        AskError::Late(_) => {
            Status::timeout(format!("the agent of node {node} does not answer"), 5)
        }
        err => Status::internal(format!("cannot reach the agent of node {node}: {err}")),
    })
}

/// Opens a connection to somewhere near.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream, AskError> {
    let socket = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let socket = socket.map_err(|_| AskError::Late(CONNECT_LIMIT))??;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// One request over a fresh connection, which the server's background drives to its end.
pub(crate) async fn exchange<I, B>(
    server: &Server,
    io: I,
    request: Request<B>,
    limit: Duration,
) -> Result<Response<Incoming>, AskError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    server.background.spawn(connection.with_upgrades());
    let answered = tokio::time::timeout(limit, sender.send_request(request)).await;
    Ok(answered.map_err(|_| AskError::Late(limit))??)
}

/// An agent's refusal as a `Status`.
pub(crate) async fn refused(code: u16, body: Incoming) -> Status {
    let text = match Limited::new(body, ERROR_BYTES_MAX).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned(),
        Err(_) => String::new(),
    };
    match code {
        400 | 404 => Status::bad_request(text),
        code => Status::internal(format!("the node's agent answered {code}: {text}")),
    }
}

/// The container of a pod that is meant: the one named, or the only one.
pub(crate) fn container(call: &Call<'_>, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        let list = pod.pointer(list).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| c.get("name")?.as_str()).collect()
    };
    let (own, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let added = names("/spec/ephemeralContainers");
    let pod_name = &call.request.name;
    if let Some(wanted) = parameter(call, "container").filter(|wanted| !wanted.is_empty()) {
        if [&own, &init, &added].iter().any(|list| list.contains(&wanted)) {
            return Ok(wanted.to_owned());
        }
        let why = format!("container {wanted} is not valid for pod {pod_name}");
        return Err(Status::bad_request(why));
    }
    match own.as_slice() {
        [only] if init.is_empty() && added.is_empty() => Ok((*only).to_owned()),
        _ => {
            let inits = match init.as_slice() {
                [] => String::new(),
                init => format!(" or one of the init containers: [{}]", init.join(" ")),
            };
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]{inits}",
                own.join(" ")
            )))
        }
    }
}

/// The first value of a query parameter.
pub(crate) fn parameter<'a>(call: &'a Call<'_>, key: &str) -> Option<&'a str> {
    let found = call.request.options.raw.iter().find(|(have, _)| have == key);
    found.map(|(_, value)| value.as_str())
}
