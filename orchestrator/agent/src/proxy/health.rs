//! Health checks of services: outside load balancers ask a node whether it has endpoints of a
//! service whose outsiders meet local endpoints only.
//!
//! Any request at the service's port is answered: 200 when there is a ready endpoint here, 503
//! when not, and the number of them. Tasks: one per port, owned by [`Checks`]; it answers one
//! client after the other, for there are few, and each question is short.
//!
//! Spec: upstream's kube-proxy at `healthCheckNodePort`.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use node::service::Health;
use runtime::report;
use serde_json::json;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

/// A client that is slower makes the next one wait no longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why health checks of a service are not answered.
#[derive(Debug, Error)]
pub(crate) enum HealthError {
    #[error("port {port} cannot be listened at")]
    Listen {
        port: u16,
        #[source]
        source: io::Error,
    },
}

/// The ports at which this node answers.
#[derive(Debug, Default)]
pub(super) struct Checks {
    ports: BTreeMap<u16, Check>,
}

/// One port.
#[derive(Debug)]
struct Check {
    said: watch::Sender<Health>,
    /// Ends with this value.
    _task: JoinSet<()>,
}

impl Checks {
    /// Whether just this is answered already.
    pub(super) fn are(&self, wanted: &BTreeMap<u16, Health>) -> bool {
        let said = |(port, health): (&u16, &Health)| {
            self.ports.get(port).is_some_and(|check| *check.said.borrow() == *health)
        };
        self.ports.len() == wanted.len() && wanted.iter().all(said)
    }

    /// Answers so from now on.
    ///
    /// # Errors
    ///
    /// When a port cannot be listened at; the others are answered all the same.
    pub(super) async fn answer(
        &mut self,
        wanted: &BTreeMap<u16, Health>,
    ) -> Result<(), HealthError> {
        self.ports.retain(|port, _| wanted.contains_key(port));
        let mut outcome = Ok(());
        for (port, health) in wanted {
            if let Some(check) = self.ports.get(port) {
                check.said.send_replace(health.clone());
                continue;
            }
            match listen(*port).await {
                Ok(listener) => {
                    let (said, says) = watch::channel(health.clone());
                    let mut task = JoinSet::new();
                    task.spawn(serve(listener, says));
                    self.ports.insert(*port, Check { said, _task: task });
                }
                Err(source) => outcome = Err(HealthError::Listen { port: *port, source }),
            }
        }
        outcome
    }
}

/// Listens in both families: a socket for IPv6 takes IPv4 too, as the kernel has it by itself.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(err) if has_no_ipv6(&err) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        listener => listener,
    }
}

/// Is it that the kernel was told to do without IPv6?
fn has_no_ipv6(err: &io::Error) -> bool {
    let errno = err.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

async fn serve(listener: TcpListener, says: watch::Receiver<Health>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Whoever is late is left alone.
                let _late = tokio::time::timeout(PATIENCE, exchange(stream, &says)).await;
            }
            // Out of descriptors, or a client that is gone already: neither is helped by haste.
            Err(err) => {
                debug!(err = report(&err), "a health check could not be accepted");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn exchange(stream: TcpStream, says: &watch::Receiver<Health>) {
    let service = service_fn(|_| async { render(&says.borrow()) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(err) = connection.await {
        debug!(err = report(&err), "a health check broke off");
    }
}

fn render(health: &Health) -> Result<Response<Full<Bytes>>, http::Error> {
    let Health { namespace, name, local } = health;
    let status = if *local > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"service": {"namespace": namespace, "name": name},
        "localEndpoints": local, "serviceProxyHealthy": true});
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header("x-load-balancing-endpoint-weight", *local)
        .body(Full::from(body.to_string()))
}
