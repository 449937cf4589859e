//! The socket: accepts, speaks TLS, learns who the client is, hands requests on.
//!
//! Tasks: one per connection, owned by the accept loop, which ends them when told to stop.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use api::User;

use crate::handle::{Peer, handle};
use crate::server::Server;

/// Connections at a time; each costs about 40 kB when idle.
const CONNECTIONS_MAX: usize = 20_000;
/// How long a client may take for its TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take until a request's head is there, the pause since its last request
/// included; upstream's limit for idle connections.
const HEAD_LIMIT: Duration = Duration::from_secs(90);
/// How long running requests may take after the stop signal.
const GRACE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed: descriptors are short, and spinning frees none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests at a time on one HTTP/2 connection; each watch is one.
const STREAMS_MAX: u32 = 1000;

/// Serves connections until `stop`.
pub(crate) async fn serve(stop: CancellationToken, listener: TcpListener, server: Arc<Server>) {
    let acceptor = TlsAcceptor::from(Arc::clone(&server.site.server_tls));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let accepted = tokio::select! { biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                tracing::warn!(%err, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (stop, acceptor, server) = (stop.clone(), acceptor.clone(), Arc::clone(&server));
        connections.spawn(async move {
            converse(stop, socket, address, acceptor, server).await;
            drop(place);
        });
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE * 2, rest).await.is_err() {
        tracing::warn!("connections did not end in time and are cut");
    }
}

async fn converse(
    stop: CancellationToken,
    socket: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    server: Arc<Server>,
) {
    if let Err(err) = socket.set_nodelay(true) {
        tracing::debug!(%err, "cannot switch off Nagle's algorithm");
    }
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(socket));
    let tls = tokio::select! { biased;
        () = stop.cancelled() => return,
        done = handshake => match done {
            Ok(Ok(tls)) => tls,
            Ok(Err(err)) => {
                tracing::debug!(%address, %err, "TLS handshake failed");
                return;
            }
            Err(_) => return,
        },
    };
    let user = user_of(tls.get_ref().1.peer_certificates());
    let peer = Arc::new(Peer { user, address: address.ip() });
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (server, peer) = (Arc::clone(&server), Arc::clone(&peer));
        // On the heap, for a connection keeps room for its service's future as long as it lives,
        // and a watch is answered at once and then lives for minutes.
        async move { Ok::<_, std::convert::Infallible>(Box::pin(handle(&server, &peer, request)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(tls), service));
    let served = tokio::select! { biased;
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(err) = served {
        tracing::debug!(%address, %err, "a connection ended early");
    }
}

/// The user a verified client certificate speaks for; `None` without one.
fn user_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<User> {
    let claims = certificates
        .and_then(<[_]>::first)
        .and_then(|certificate| runtime::pki::parse_certificate(certificate).ok())
        .filter(|claims| !claims.subject.common_name.is_empty())?;
    let (name, groups) = (claims.subject.common_name, claims.subject.organizations);
    Some(User { name, groups, ..User::default() }.with_group(api::authority::AUTHENTICATED))
}
