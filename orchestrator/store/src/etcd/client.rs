//! A client of an etcd cluster: unary calls with deadlines, and the watch stream.
//!
//! All calls go to one member until it fails; then the next one is asked. A call that may have
//! arrived is repeated only when repeating it does no harm.
//!
//! *Limits*: clients are known by certificate, not by user name and password.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::etcd::message::{WatchRequest, WatchResponse};

/// How long one attempt may take; a healthy cluster answers in milliseconds, an election takes a
/// second or two.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// How long attempts are repeated while no member answers.
const REPEAT_LIMIT: Duration = Duration::from_secs(10);
/// The pause after all members were tried in vain, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long a connection may take to come up.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life this often, and given up after as long.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// The largest answer read: a page of the largest objects.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Why no client can be made from what the operator wrote.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// No member is named.
    #[error("no etcd endpoint is given")]
    None,
    /// An address is not one.
    #[error("{endpoint} is not an etcd endpoint such as https://10.0.0.1:2379")]
    Malformed {
        /// What was given.
        endpoint: String,
    },
    /// An `https` endpoint needs an authority to check it by.
    #[error("{endpoint} needs a CA certificate to check it by")]
    NoAuthority {
        /// The endpoint.
        endpoint: String,
    },
}

/// A call that etcd refused or did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("etcd, {call}: {message}")]
pub struct CallError {
    /// The name of the call.
    pub call: &'static str,
    /// etcd's own sentence.
    pub message: String,
    /// The gRPC status code.
    pub code: Code,
    unsent: bool,
}

impl CallError {
    fn new(call: &'static str, status: &Status) -> Self {
        let (mut unsent, mut message) = (false, status.message().to_owned());
        let mut cause = std::error::Error::source(status);
        while let Some(err) = cause {
            unsent |= err.is::<tonic::ConnectError>();
            message = err.to_string();
            cause = err.source();
        }
        Self { call, message, code: status.code(), unsent }
    }

    pub(crate) fn local(call: &'static str, code: Code, message: &str) -> Self {
        Self { call, message: message.to_owned(), code, unsent: false }
    }

    /// Is the member or the way to it at fault, rather than the question?
    fn is_broken(&self) -> bool {
        self.unsent
            || matches!(
                self.code,
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
            )
    }

    /// Does the cluster take no more bytes?
    pub(crate) fn is_full(&self) -> bool {
        self.code == Code::ResourceExhausted && self.message.contains("space exceeded")
    }

    /// Is the value larger than etcd takes?
    pub(crate) fn is_too_large(&self) -> bool {
        self.message.contains("request is too large") || self.message.contains("larger than max")
    }

    /// Is the revision asked for already forgotten?
    pub(crate) fn is_compacted(&self) -> bool {
        self.code == Code::OutOfRange && self.message.contains("compacted")
    }
}

/// May a call be repeated that perhaps had its effect already?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Harmless,
    Harmful,
}

/// Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    members: Vec<Channel>,
    at: Arc<AtomicUsize>,
}

impl Client {
    /// Connects when first used.
    pub(crate) fn new(
        endpoints: &[String],
        tls: Option<&Arc<rustls::ClientConfig>>,
    ) -> Result<Self, EndpointError> {
        let members: Result<Vec<_>, _> =
            endpoints.iter().map(|endpoint| channel(endpoint, tls)).collect();
        let members = members?;
        if members.is_empty() {
            return Err(EndpointError::None);
        }
        Ok(Self { members, at: Arc::new(AtomicUsize::new(0)) })
    }

    fn grpc(&self, at: usize) -> Option<Grpc<Channel>> {
        let member = self.members.get(at % self.members.len().max(1))?;
        Some(Grpc::new(member.clone()).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// Asks another member from now on, unless somebody has moved on already.
    fn move_on(&self, from: usize) {
        let next = from.wrapping_add(1);
        let _moved =
            self.at.compare_exchange(from, next, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    }

    /// Calls the cluster, at one member after the other while that is safe.
    pub(crate) async fn call<Q, A>(
        &self,
        call: &'static str,
        path: &'static str,
        request: Q,
        repeat: Repeat,
    ) -> Result<A, CallError>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let (started, mut pause, mut tried) = (Instant::now(), PAUSE.0, 0_usize);
        loop {
            let at = self.at.load(Ordering::SeqCst);
            let attempt = self.attempt(at, call, path, request.clone());
            let outcome = tokio::time::timeout(ATTEMPT_LIMIT, attempt).await;
            let outcome = outcome.unwrap_or_else(|_| {
                Err(CallError::local(call, Code::DeadlineExceeded, "no answer in time"))
            });
            let Err(err) = outcome else { return outcome };
            if err.is_broken() {
                self.move_on(at);
            }
            let again = err.unsent || (repeat == Repeat::Harmless && err.is_broken());
            if !again || started.elapsed() > REPEAT_LIMIT {
                return Err(err);
            }
            tried += 1;
            if tried.is_multiple_of(self.members.len()) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }

    async fn attempt<Q, A>(
        &self,
        at: usize,
        call: &'static str,
        path: &'static str,
        request: Q,
    ) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let failed = |status: &Status| CallError::new(call, status);
        let mut grpc = self.grpc(at).ok_or_else(|| failed(&Status::unavailable("no member")))?;
        grpc.ready().await.map_err(|err| failed(&Status::from_error(Box::new(err))))?;
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| failed(&status))
    }

    /// Opens a watch stream; what is sent are requests, the first of them already in the channel.
    pub(crate) async fn watch(
        &self,
        requests: ReceiverStream<WatchRequest>,
    ) -> Result<Streaming<WatchResponse>, CallError> {
        let at = self.at.load(Ordering::SeqCst);
        let opened = tokio::time::timeout(ATTEMPT_LIMIT, self.open_watch(at, requests)).await;
        let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        opened.map_err(|status| {
            self.move_on(at);
            CallError::new("Watch", &status)
        })
    }

    async fn open_watch(
        &self,
        at: usize,
        requests: ReceiverStream<WatchRequest>,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let mut grpc = self.grpc(at).ok_or_else(|| Status::unavailable("no member"))?;
        grpc.ready().await.map_err(|err| Status::from_error(Box::new(err)))?;
        let mut request = Request::new(requests);
        // A member that has lost its cluster ends the stream instead of falling silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        Ok(grpc.streaming(request, path, codec).await?.into_inner())
    }

    /// The member that was watched has failed.
    pub(crate) fn watch_broke(&self) {
        self.move_on(self.at.load(Ordering::SeqCst));
    }
}

/// Where a member listens.
#[derive(Clone)]
enum Target {
    Tcp(String),
    Tls(String, ServerName<'static>, TlsConnector),
    Unix(PathBuf),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Target {
    async fn connect(self) -> std::io::Result<TokioIo<Box<dyn Io>>> {
        let connected: Box<dyn Io> = match self {
            Self::Tcp(address) => Box::new(tcp(&address).await?),
            Self::Tls(address, name, tls) => {
                Box::new(tls.connect(name, tcp(&address).await?).await?)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(TokioIo::new(connected))
    }
}

async fn tcp(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn channel(
    endpoint: &str,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Channel, EndpointError> {
    let malformed = || EndpointError::Malformed { endpoint: endpoint.to_owned() };
    let (scheme, rest) = endpoint.split_once("://").ok_or_else(malformed)?;
    let rest = rest.trim_end_matches('/');
    let target = match scheme {
        "unix" => Target::Unix(rest.into()),
        "http" => Target::Tcp(address(rest).ok_or_else(malformed)?),
        "https" => {
            let address = address(rest).ok_or_else(malformed)?;
            let host = address.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host).map_err(|_| malformed())?;
            let no_authority = || EndpointError::NoAuthority { endpoint: endpoint.to_owned() };
            let tls = tls.ok_or_else(no_authority)?;
            Target::Tls(address, name, TlsConnector::from(Arc::clone(tls)))
        }
        _ => return Err(malformed()),
    };
    let authority = match &target {
        Target::Tcp(address) | Target::Tls(address, ..) => address.clone(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    // The scheme is that of the connection's inside; TLS is the connector's business.
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|_| malformed())?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let connector = service_fn(move |_: Uri| {
        let target = target.clone();
        target.connect()
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Host and port; etcd's own port when none is given.
fn address(rest: &str) -> Option<String> {
    let uri: Uri = format!("http://{rest}").parse().ok()?;
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let host = uri.host().filter(|host| !host.is_empty() && plain)?;
    Some(format!("{host}:{}", uri.port_u16().unwrap_or(2379)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_with_a_scheme() {
        let check = |rest: &str, expected: Option<&str>| {
            assert_eq!(address(rest).as_deref(), expected, "{rest}");
        };
        check("10.0.0.1:2379", Some("10.0.0.1:2379"));
        check("a.example", Some("a.example:2379"));
        check("[fd00::1]:4001", Some("[fd00::1]:4001"));
        check("a/b", None);
        check("", None);
        let refused = |endpoint: &str| Client::new(&[endpoint.to_owned()], None).is_err();
        assert!(refused("10.0.0.1:2379"));
        assert!(refused("ftp://10.0.0.1"));
        assert!(refused("https://10.0.0.1:2379"), "without an authority");
        assert!(matches!(Client::new(&[], None), Err(EndpointError::None)));
    }
}
