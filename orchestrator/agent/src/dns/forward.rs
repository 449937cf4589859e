//! Foreign names: whom to ask, asking, and what they said lately.
//!
//! Each question goes out with a fresh id from a fresh port, and only an answer to that very
//! question is believed (RFC 5452).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::Name;
use node::config::parse_resolv;
use node::dns::Cache;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;
use tracing::warn;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all servers are asked before the client is told to give up.
const ROUNDS: usize = 2;

/// Whom to ask about which names.
#[derive(Debug, Default, Clone)]
pub(super) struct Upstreams {
    /// Servers of a domain, for it alone.
    stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Servers of everything else.
    general: Vec<SocketAddr>,
}

/// Why a foreign name has no answer.
#[derive(Debug, Error)]
pub(super) enum ForwardError {
    #[error("there is no name server to ask")]
    NoServer,
    #[error("the question cannot be written")]
    Write,
    #[error("{server} does not answer: {source}")]
    Silent { server: SocketAddr, source: io::Error },
}

impl Upstreams {
    /// Reads the settings; what cannot be read is named in the log and left out. `own` is the
    /// address that asking would be asking ourselves.
    pub(super) fn read(
        stubs: Option<&str>,
        general: Option<&str>,
        resolv_conf: &str,
        own: Option<IpAddr>,
    ) -> Self {
        let stubs: BTreeMap<String, Vec<String>> = read_json("stubDomains", stubs);
        let named: Vec<String> = read_json("upstreamNameservers", general);
        let general = if named.is_empty() { parse_resolv(resolv_conf).servers } else { named };
        let servers = |texts: &[String]| {
            let parsed = texts.iter().filter_map(|text| parse_server(text));
            parsed.filter(|server| Some(server.ip()) != own).collect::<Vec<_>>()
        };
        let mut stubs: Vec<_> = stubs
            .iter()
            .filter_map(|(domain, texts)| {
                let mut domain = Name::from_ascii(domain).ok()?;
                domain.set_fqdn(true);
                Some((domain, servers(texts)))
            })
            .collect();
        // The longest domain that fits is the one meant.
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.num_labels()));
        Self { stubs, general: servers(&general) }
    }

    fn of(&self, name: &Name) -> Vec<SocketAddr> {
        let stub = self.stubs.iter().find(|(domain, _)| domain.zone_of(name));
        stub.map_or(&self.general, |(_, servers)| servers).clone()
    }
}

fn read_json<T: serde::de::DeserializeOwned + Default>(key: &str, text: Option<&str>) -> T {
    let Some(text) = text else { return T::default() };
    serde_json::from_str(text).unwrap_or_else(|err| {
        warn!(key, %err, "a setting in config map kube-system/muster-site does not read");
        T::default()
    })
}

/// Reads `10.0.0.53` or `10.0.0.53:5353`.
fn parse_server(text: &str) -> Option<SocketAddr> {
    let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, super::PORT));
    plain.or_else(|_| text.parse()).ok()
}

/// Asks others, and remembers.
pub(super) struct Forwarder {
    upstreams: RwLock<Upstreams>,
    cache: Mutex<Cache>,
    began: Instant,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self { upstreams: RwLock::default(), cache: Mutex::default(), began: Instant::now() }
    }
}

impl Forwarder {
    pub(super) fn set_upstreams(&self, upstreams: Upstreams) {
        *self.upstreams.write().unwrap_or_else(PoisonError::into_inner) = upstreams;
    }

    /// What is remembered of a foreign name; the answer bears any id.
    pub(super) fn recall(&self, question: &Message) -> Option<Message> {
        let query = question.queries.first()?;
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(query, signed(question), self.began.elapsed())
    }

    /// Looks a foreign name up; the answer bears any id.
    pub(super) async fn ask(&self, question: &Message) -> Result<Message, ForwardError> {
        let query = question.queries.first().ok_or(ForwardError::Write)?;
        let signed = signed(question);
        if let Some(kept) = self.recall(question) {
            return Ok(kept);
        }
        let servers = {
            let upstreams = self.upstreams.read().unwrap_or_else(PoisonError::into_inner);
            upstreams.of(query.name())
        };
        let mut last = ForwardError::NoServer;
        for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
            let asked = tokio::time::timeout(PATIENCE, ask_server(*server, question)).await;
            match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(reply) => {
                    let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                    cache.put(&reply, signed, self.began.elapsed());
                    return Ok(reply);
                }
                Err(source) => last = ForwardError::Silent { server: *server, source },
            }
        }
        Err(last)
    }
}

/// Whether signatures are wanted, too.
fn signed(question: &Message) -> bool {
    question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
}

async fn ask_server(server: SocketAddr, question: &Message) -> io::Result<Message> {
    let mut question = question.clone();
    question.metadata.id = rand::random();
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let Some(reply) = believe(&question, buffer.get(..len).unwrap_or_default()) else {
            continue;
        };
        if !reply.metadata.truncation {
            return Ok(reply);
        }
        return ask_by_tcp(server, &question, &bytes).await;
    }
}

async fn ask_by_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    believe(question, &buffer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads a reply, if it is one to this question.
fn believe(question: &Message, bytes: &[u8]) -> Option<Message> {
    let reply = Message::from_vec(bytes).ok()?;
    let fits = reply.metadata.id == question.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries == question.queries;
    fits.then_some(reply)
}
