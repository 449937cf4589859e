//! Asks containers how they are: by command, by HTTP, by gRPC, by opening a connection.
//!
//! Spec: upstream's probes; what counts as a good page is said in `web`.

mod grpc;
mod web;

use std::sync::Arc;
use std::time::Duration;

use node::probe::{Kind, probe_of, timeout_seconds};
use objects::IntOrString;
use objects::pod::{Container, ExecAction, HttpGetAction};
use runtime::report;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::Shared;

/// The most of a command's output put into an event.
const OUTPUT_CHARS: usize = 512;

/// What a container answered.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The container's id.
    pub(crate) id: String,
    /// The container's name.
    pub(crate) container: String,
    /// What was asked.
    pub(crate) kind: Kind,
    /// Why the answer is bad; `None` when it is good.
    pub(crate) failure: Option<String>,
}

/// Puts one question to a container.
pub(crate) async fn run(
    shared: Arc<Shared>,
    container: Container,
    (id, kind): (String, Kind),
    address: String,
) -> Verdict {
    let answer = match probe_of(&container, kind) {
        None => Ok(()),
        Some(probe) => {
            let seconds = u64::try_from(timeout_seconds(probe)).unwrap_or(1);
            let limit = Duration::from_secs(seconds);
            if let Some(action) = &probe.exec {
                exec(&shared, &id, action, limit).await
            } else if let Some(action) = &probe.http_get {
                http(&container, action, &address, limit).await
            } else if let Some(action) = &probe.tcp_socket {
                let host = if action.host.is_empty() { &address } else { &action.host };
                tcp(&container, host, action.port.as_ref(), limit).await.map(drop)
            } else if let Some(action) = &probe.grpc {
                ask_grpc(&container, action, &address, limit).await
            } else {
                Ok(())
            }
        }
    };
    Verdict { id, container: container.name, kind, failure: answer.err() }
}

/// Asks a gRPC service of a container; good when it says that it serves.
async fn ask_grpc(
    container: &Container,
    action: &Value,
    address: &str,
    limit: Duration,
) -> Result<(), String> {
    let port = action.get("port").and_then(Value::as_i64).map(IntOrString::Int);
    let stream = tcp(container, address, port.as_ref(), limit).await?;
    let service = action.get("service").and_then(Value::as_str).unwrap_or_default();
    grpc::check(stream, service, address, limit).await
}

/// Runs a command in a container; good when it ends with 0.
pub(crate) async fn exec(
    shared: &Shared,
    id: &str,
    action: &ExecAction,
    limit: Duration,
) -> Result<(), String> {
    let answer = shared.runtime.exec_sync(id, &action.command, limit).await;
    let answer = answer.map_err(|err| report(&err))?;
    if answer.exit_code == 0 {
        return Ok(());
    }
    let mut output = String::from_utf8_lossy(&answer.stdout).into_owned();
    output.push_str(&String::from_utf8_lossy(&answer.stderr));
    Err(output.chars().take(OUTPUT_CHARS).collect())
}

/// Fetches a page of a container; good when the status is 200–399.
pub(crate) async fn http(
    container: &Container,
    action: &HttpGetAction,
    address: &str,
    limit: Duration,
) -> Result<(), String> {
    let host = if action.host.is_empty() { address } else { &action.host };
    let given = action.http_headers.iter().filter_map(|header| {
        let text = |name: &str| header.get(name).and_then(Value::as_str);
        Some((text("name")?, text("value")?))
    });
    let slash = if action.path.starts_with('/') { "" } else { "/" };
    let page = web::Page {
        encrypted: action.scheme.eq_ignore_ascii_case("https"),
        host: host.to_owned(),
        port: port_number(container, action.port.as_ref())?,
        path: format!("{slash}{}", action.path),
        headers: web::headers(&given.collect::<Vec<_>>()),
    };
    web::check(page, limit).await
}

async fn tcp(
    container: &Container,
    host: &str,
    port: Option<&IntOrString>,
    limit: Duration,
) -> Result<TcpStream, String> {
    let number = port_number(container, port)?;
    match tokio::time::timeout(limit, connect(host, number)).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("dial tcp {host}:{number}: i/o timeout")),
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let connected = TcpStream::connect((host, port)).await;
    connected.map_err(|err| format!("dial tcp {host}:{port}: {}", report(&err)))
}

fn port_number(container: &Container, port: Option<&IntOrString>) -> Result<u16, String> {
    let number = match port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            let named = container.ports.iter().find(|port| &port.name == name);
            named.and_then(|port| u16::try_from(port.container_port).ok())
        }
        None => None,
    };
    number.ok_or_else(|| format!("no such port: {port:?}"))
}
