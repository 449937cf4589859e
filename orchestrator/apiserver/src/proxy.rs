//! HTTP passed on to pods, services and node agents: the subresource `proxy`.
//!
//! The server dials the pod's address itself, as upstream's does; a service means one of its
//! ready endpoints, a node its agent.
//!
//! Spec: upstream's `[SCHEME:]NAME[:PORT]` names. *Limits*: certificates of pods are not
//! checked, as upstream does not; links inside pages are not rewritten, redirects are.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, LOCATION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use objects::field::Fields as _;
use objects::{Status, field, kind};
use runtime::trust;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio_rustls::TlsConnector;

use crate::agent::{self, AskError};
use crate::handle::Call;
use crate::object;
use crate::respond::{self, Answer};
use crate::server::Server;

/// How long a backend may take to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// Headers of one connection, which go no further.
const OF_THE_CONNECTION: [HeaderName; 9] = [
    AUTHORIZATION,
    CONNECTION,
    HOST,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Where a request goes.
#[derive(Debug, Clone)]
enum Backend {
    /// An address, and whether it speaks TLS.
    Address(SocketAddr, bool),
    /// A node's agent.
    Agent(agent::Door),
}

/// A name as the path gives it: `https:web:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target<'a> {
    is_tls: bool,
    name: &'a str,
    port: &'a str,
}

/// Tells whether a request is to be passed on.
pub(crate) fn is_proxy(call: &Call<'_>) -> bool {
    call.request.subresource == "proxy"
}

/// Passes a request on and its answer back.
pub(crate) async fn answer(
    call: &Call<'_>,
    parts: &Parts,
    body: Incoming,
) -> Result<Answer, Status> {
    let (base, rest) = split(parts.uri.path(), !call.request.namespace.is_empty());
    if rest.is_empty() {
        let query = parts.uri.query().map_or_else(String::new, |query| format!("?{query}"));
        return redirect(&format!("{base}/{query}"));
    }
    let backend = backend(call)?;
    let path = match parts.uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let uri: Uri = path.parse().map_err(|_| Status::bad_request("the path is no path"))?;
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = forwarded(&parts.headers);
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let upgrade = upgrade.filter(|_| parts.headers.contains_key(UPGRADE));
    if upgrade.is_some() {
        for name in [CONNECTION, UPGRADE] {
            if let Some(value) = parts.headers.get(&name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
    }
    let mut answered = send(call, &backend, request).await?;
    if answered.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(switch(call.server, &mut answered, upgrade));
    }
    Ok(passed_back(answered, base))
}

/// The path up to `proxy`, and what follows, which is the backend's.
fn split(path: &str, is_namespaced: bool) -> (&str, &str) {
    // `/api/v1/namespaces/NS/pods/NAME/proxy` or `/api/v1/nodes/NAME/proxy`.
    let steps = if is_namespaced { 7 } else { 5 };
    let end = path.match_indices('/').nth(steps).map_or(path.len(), |(at, _)| at);
    path.split_at_checked(end).unwrap_or((path, ""))
}

fn target(name: &str) -> Target<'_> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [scheme @ ("http" | "https"), name, port] => {
            Target { is_tls: *scheme == "https", name, port }
        }
        [name, port] => Target { is_tls: false, name, port },
        _ => Target { is_tls: false, name, port: "" },
    }
}

fn backend(call: &Call<'_>) -> Result<Backend, Status> {
    let request = &call.request;
    let target = target(&request.name);
    let missing = || Status::not_found(request.kind, target.name);
    let item = call.server.item(request.kind, &request.namespace, target.name);
    let item = item.ok_or_else(missing)?;
    let found = object::decode(&item, 0);
    match request.kind.plural {
        "nodes" => Ok(Backend::Agent(agent::door(call.server, target.name)?)),
        "services" => service(call, &found, target),
        _ => pod(&found, target),
    }
}

fn pod(pod: &Value, target: Target<'_>) -> Result<Backend, Status> {
    let address = field::str_at(pod, "status.podIP").and_then(|ip| ip.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| Status::bad_request("address not allowed"))?;
    let first = || {
        let containers = pod.field("spec.containers").and_then(Value::as_array);
        let ports = containers.into_iter().flatten().filter_map(|c| c.get("ports")?.as_array());
        ports.flatten().find_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok())
    };
    let port = match target.port {
        "" => first().or(Some(80)),
        given => given.parse().ok(),
    };
    let port = port.ok_or_else(|| Status::bad_request("the port is no number"))?;
    Ok(Backend::Address(SocketAddr::new(address, port), target.is_tls))
}

fn service(call: &Call<'_>, service: &Value, target: Target<'_>) -> Result<Backend, Status> {
    let ports = service.field("spec.ports").and_then(Value::as_array);
    let ports: Vec<&Value> = ports.into_iter().flatten().collect();
    let text = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let number = target.port.parse::<u64>().ok();
    let is_meant = |port: &&&Value| {
        text(port, "name") == target.port
            || port.get("port").and_then(Value::as_u64).is_some_and(|port| number == Some(port))
    };
    let port = match (target.port, ports.as_slice()) {
        ("", [only]) => Some(*only),
        ("", _) => ports.iter().find(|port| text(port, "name").is_empty()).copied(),
        _ => ports.iter().find(is_meant).copied(),
    };
    let unavailable = |why: String| Status { code: 503, ..Status::internal(why) };
    let name = target.name;
    let port = port.ok_or_else(|| {
        unavailable(format!("no service port {:?} found for service {name:?}", target.port))
    })?;
    let port_name = text(port, "name");
    let mut ready = Vec::new();
    for slice in slices(call.server, &call.request.namespace, name, service) {
        ready.extend(endpoints(&slice, &port_name));
    }
    let seed = usize::try_from(call.server.seed() >> 33).unwrap_or(0);
    let chosen = seed.checked_rem(ready.len()).and_then(|at| ready.get(at).copied());
    let why = || unavailable(format!("no endpoints available for service {name:?}"));
    Ok(Backend::Address(chosen.ok_or_else(why)?, target.is_tls))
}

/// The slices of a service's endpoints; those of its first family alone where there are any, as
/// upstream asks only the Endpoints object. This machine need not reach the other family.
pub(crate) fn slices(server: &Server, namespace: &str, name: &str, service: &Value) -> Vec<Value> {
    let label = "/metadata/labels/kubernetes.io~1service-name";
    let items = server.items(&kind::ENDPOINT_SLICE, namespace);
    let mut slices: Vec<Value> = items.iter().map(|item| object::decode(item, 0)).collect();
    slices.retain(|slice| slice.pointer(label).and_then(Value::as_str) == Some(name));
    let first = service.pointer("/spec/ipFamilies/0");
    let is_first = |slice: &Value| slice.get("addressType") == first;
    if slices.iter().any(is_first) {
        slices.retain(is_first);
    }
    slices
}

/// The ready addresses of a slice, with the port of this name.
fn endpoints(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let list = |name: &str| slice.get(name).and_then(Value::as_array).into_iter().flatten();
    let named =
        |port: &&Value| port.get("name").and_then(Value::as_str).unwrap_or_default() == port_name;
    let port = list("ports").find(named).and_then(|port| port.get("port")?.as_u64());
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return Vec::new() };
    let is_ready = |endpoint: &&Value| {
        endpoint.field("conditions.ready").and_then(Value::as_bool).unwrap_or(true)
    };
    let addresses = list("endpoints").filter(is_ready).filter_map(|endpoint| {
        endpoint.get("addresses")?.as_array()?.first()?.as_str()?.parse::<IpAddr>().ok()
    });
    addresses.map(|address| SocketAddr::new(address, port)).collect()
}

/// The headers of the client that the backend gets.
pub(crate) fn forwarded(asked: &HeaderMap) -> HeaderMap {
    let mut headers = asked.clone();
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers
}

async fn send(
    call: &Call<'_>,
    backend: &Backend,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>, Status> {
    let address = match backend {
        Backend::Address(address, _) => *address,
        Backend::Agent(door) => door.address,
    };
    let host = HeaderValue::from_str(&address.to_string());
    request.headers_mut().insert(HOST, host.map_err(|err| Status::internal(err.to_string()))?);
    let asked = match backend {
        Backend::Agent(door) => return agent::ask(call.server, door, request, LIMIT).await,
        Backend::Address(address, false) => match agent::connect(*address).await {
            Ok(socket) => agent::exchange(call.server, socket, request, LIMIT).await,
            Err(err) => Err(err),
        },
        Backend::Address(address, true) => tls(call, *address, request).await,
    };
    asked.map_err(|err| {
        let why = format!("error trying to reach service: {err}");
        Status { code: 503, ..Status::internal(why) }
    })
}

async fn tls(
    call: &Call<'_>,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, AskError> {
    let socket = agent::connect(address).await?;
    let config = trust::anyone().map_err(std::io::Error::other)?.with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    let tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    agent::exchange(call.server, tls, request, LIMIT).await
}

/// Lets the bytes of a backend that switched flow both ways.
pub(crate) fn switch(
    server: &Server,
    answered: &mut Response<Incoming>,
    ours: Option<OnUpgrade>,
) -> Answer {
    let mut answer = respond::text(101, Bytes::new());
    *answer.headers_mut() = answered.headers().clone();
    let theirs = hyper::upgrade::on(answered);
    server.background.spawn(async move {
        let Some(ours) = ours else { return Ok(()) };
        let switched = async { Ok::<_, hyper::Error>((ours.await?, theirs.await?)) };
        let (ours, theirs) = switched.await.map_err(std::io::Error::other)?;
        copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await.map(drop)
    });
    answer
}

/// A backend's answer with its redirects kept below the proxy's path.
pub(crate) fn passed_back(answered: Response<Incoming>, base: &str) -> Answer {
    let (parts, body) = answered.into_parts();
    // A backend that breaks off ends the body; there is no place left to say so.
    let frames = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
    let frames = frames
        .filter_map(|chunk| std::future::ready(chunk.ok()))
        .map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    let mut answer = Response::new(StreamBody::new(Box::pin(frames)).boxed_unsync());
    *answer.status_mut() = parts.status;
    let headers = answer.headers_mut();
    *headers = parts.headers;
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let location = headers.get(LOCATION).and_then(|place| place.to_str().ok());
    if let Some(place) = location.filter(|place| place.starts_with('/'))
        && let Ok(place) = HeaderValue::from_str(&format!("{base}{place}"))
    {
        headers.insert(LOCATION, place);
    }
    answer
}

fn redirect(place: &str) -> Result<Answer, Status> {
    let place = HeaderValue::from_str(place).map_err(|err| Status::bad_request(err.to_string()))?;
    let mut answer = respond::text(301, Bytes::new());
    answer.headers_mut().insert(LOCATION, place);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_may_have_scheme_and_port() {
        let check = |name, is_tls, own, port| {
            assert_eq!(target(name), Target { is_tls, name: own, port }, "{name}");
        };
        check("web", false, "web", "");
        check("web:80", false, "web", "80");
        check("https:web:tls", true, "web", "tls");
        check("http:web:", false, "web", "");
    }

    #[test]
    fn what_follows_proxy_is_the_backends() {
        let base = "/api/v1/namespaces/n/pods/p:80/proxy";
        assert_eq!(split(&format!("{base}/a/b%2Fc"), true), (base, "/a/b%2Fc"));
        assert_eq!(split(base, true), (base, ""));
        assert_eq!(split("/api/v1/nodes/n/proxy/", false), ("/api/v1/nodes/n/proxy", "/"));
    }

    #[test]
    fn only_ready_endpoints_are_asked() {
        let slice = json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}}]});
        assert_eq!(endpoints(&slice, "b"), ["10.0.0.2:2".parse().unwrap()]);
        assert!(endpoints(&slice, "c").is_empty());
    }
}
