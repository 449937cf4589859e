//! Streams to containers: exec, attach and port-forward, tunnelled to the node's agent.
//!
//! The agent is spoken to in SPDY, as upstream's API server does, so that either side may be
//! upstream's. What a client speaks decides how its bytes are carried:
//!
//! - SPDY, and WebSockets of the old protocols (which agents pass to the runtime): as they are;
//! - WebSocket `v5.channel.k8s.io` (exec, attach): translated to SPDY, see [`translate`];
//! - WebSocket `SPDY/3.1+portforward.k8s.io`: unwrapped.
//!
//! Each stream is one task of the server's background.

mod spdy;
mod translate;
mod websocket;

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use objects::Status;
use serde_json::Value;
use tokio::io::copy_bidirectional;

use crate::agent::{self, Door, parameter};
use crate::handle::Call;
use crate::respond::{self, Answer};
use crate::server::Server;

/// How long an agent may take to open a stream: the runtime looks the container up first.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// What both sides of SPDY call the protocol spoken in its streams.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The protocol that agents and runtimes of all versions speak inside SPDY.
const COMMAND_PROTOCOL: &str = "v4.channel.k8s.io";
/// The WebSocket protocol of exec and attach that can close standard input.
const CLIENT_COMMAND_PROTOCOL: &str = "v5.channel.k8s.io";
/// SPDY's port-forward, and its name when a WebSocket carries it.
const PORT_PROTOCOL: &str = "portforward.k8s.io";
const CLIENT_PORT_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Headers of an upgrade that are handed on to the agent, and back.
const HANDED_ON: [HeaderName; 6] = [
    CONNECTION,
    UPGRADE,
    STREAM_PROTOCOL,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION,
    SEC_WEBSOCKET_PROTOCOL,
];
const HANDED_BACK: [HeaderName; 5] =
    [CONNECTION, UPGRADE, STREAM_PROTOCOL, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL];

/// How the bytes between client and agent are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carriage {
    Plain,
    Command,
    Ports,
}

/// Tells whether a subresource of pods is a stream.
pub(crate) fn is_stream(call: &Call<'_>) -> bool {
    call.request.kind.plural == "pods"
        && matches!(call.request.subresource.as_str(), "exec" | "attach" | "portforward")
}

/// Answers GET or POST of a stream.
pub(crate) async fn answer(call: &Call<'_>, parts: &Parts) -> Result<Answer, Status> {
    let (pod, door) = agent::door_of_pod(call)?;
    let (path, channels) = path(call, &pod)?;
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let wanted = parts.headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let Some(upgrade) = upgrade.filter(|_| !wanted.is_empty()) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let protocols = protocols(&parts.headers);
    let offers = |name: &str| protocols.iter().any(|offer| offer == name);
    let is_websocket = wanted.eq_ignore_ascii_case("websocket");
    let carriage = match channels {
        Some(_) if is_websocket && offers(CLIENT_COMMAND_PROTOCOL) => Carriage::Command,
        None if is_websocket && offers(CLIENT_PORT_PROTOCOL) => Carriage::Ports,
        _ => Carriage::Plain,
    };
    let (method, headers) = match carriage {
        Carriage::Plain => (parts.method.clone(), picked(&parts.headers, &HANDED_ON)),
        Carriage::Command => (Method::POST, spdy_headers(COMMAND_PROTOCOL)),
        Carriage::Ports => (Method::POST, spdy_headers(PORT_PROTOCOL)),
    };
    let mut answered = open(call.server, &door, (method, &path), headers).await?;
    let answer = match carriage {
        Carriage::Plain => switched(picked(answered.headers(), &HANDED_BACK)),
        Carriage::Command => switched(accepted(&parts.headers, CLIENT_COMMAND_PROTOCOL)?),
        Carriage::Ports => switched(accepted(&parts.headers, CLIENT_PORT_PROTOCOL)?),
    };
    let theirs = hyper::upgrade::on(&mut answered);
    call.server.background.spawn(async move {
        // Ours is there as soon as the answer has been sent.
        let (ours, theirs) = (upgrade.await?, theirs.await?);
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        match (carriage, channels) {
            (Carriage::Command, Some(channels)) => {
                translate::command(ours, theirs, channels).await?;
            }
            (Carriage::Ports, _) => translate::tunnel(ours, theirs).await?,
            _ => {
                copy_bidirectional(&mut ours, &mut theirs).await?;
            }
        }
        Ok::<(), StreamError>(())
    });
    Ok(answer)
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("{0}")]
    Upgrade(#[from] hyper::Error),
    #[error("{0}")]
    Carry(#[from] std::io::Error),
}

/// Asks an agent to switch to a stream.
async fn open(
    server: &Server,
    door: &Door,
    (method, path): (Method, &str),
    headers: HeaderMap,
) -> Result<Response<Incoming>, Status> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, door.address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|err| Status::bad_request(err.to_string()))?;
    request.headers_mut().extend(headers);
    let answered = agent::ask(server, door, request, AGENT_LIMIT).await?;
    if answered.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answered);
    }
    let code = answered.status().as_u16();
    Err(agent::refused(code, answered.into_body()).await)
}

/// The agent's path of a stream, and its channels unless it forwards ports.
fn path(call: &Call<'_>, pod: &Value) -> Result<(String, Option<translate::Channels>), Status> {
    let (namespace, name) = (&call.request.namespace, &call.request.name);
    let raw = &call.request.options.raw;
    let mut query = String::new();
    let mut put = |key: &str, value: &str| {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(key);
        query.push('=');
        query.push_str(&escape(value));
    };
    let verb = call.request.subresource.as_str();
    if verb == "portforward" {
        raw.iter().filter(|(key, _)| key == "ports").for_each(|(_, value)| put("port", value));
        return Ok((format!("/portForward/{namespace}/{name}{query}"), None));
    }
    let container = agent::container(call, pod)?;
    let flag = |key: &str| matches!(parameter(call, key), Some("true" | "1" | "t" | "True"));
    let given = |key: &str| parameter(call, key).is_some();
    let channels = translate::Channels {
        stdin: flag("stdin"),
        // Upstream's defaults.
        stdout: flag("stdout") || !given("stdout"),
        stderr: flag("stderr") || !given("stderr"),
        tty: flag("tty"),
    };
    for (key, is_set) in [
        ("input", channels.stdin),
        ("output", channels.stdout),
        ("error", channels.stderr),
        ("tty", channels.tty),
    ] {
        if is_set {
            put(key, "1");
        }
    }
    if verb == "exec" {
        raw.iter().filter(|(key, _)| key == "command").for_each(|(_, value)| put("command", value));
        if !given("command") {
            return Err(Status::bad_request(
                "you must specify at least 1 command for the container",
            ));
        }
    }
    Ok((format!("/{verb}/{namespace}/{name}/{container}{query}"), Some(channels)))
}

/// Percent-encodes a value of a query.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn protocols(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let words = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    words.map(|word| word.trim().to_owned()).collect()
}

fn picked(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let found = names.iter().flat_map(|name| {
        headers.get_all(name).iter().map(move |value| (name.clone(), value.clone()))
    });
    found.collect()
}

fn spdy_headers(protocol: &'static str) -> HeaderMap {
    HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("SPDY/3.1")),
        (STREAM_PROTOCOL, HeaderValue::from_static(protocol)),
    ])
}

/// The headers that accept a client's WebSocket.
fn accepted(asked: &HeaderMap, protocol: &'static str) -> Result<HeaderMap, Status> {
    let key = asked.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let key = key.ok_or_else(|| Status::bad_request("a WebSocket needs Sec-WebSocket-Key"))?;
    let accept = HeaderValue::from_str(&websocket::accept_key(key))
        .map_err(|err| Status::bad_request(err.to_string()))?;
    Ok(HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol)),
    ]))
}

fn switched(headers: HeaderMap) -> Answer {
    let mut answer = respond::text(101, Bytes::new());
    *answer.headers_mut() = headers;
    answer
}
