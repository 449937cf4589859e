//! The sockets of cluster DNS, and what is done with one message.
//!
//! Spec: RFC 1035 §4.2 (transports), RFC 6891 (EDNS), RFC 7766 (TCP).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Name;
use node::dns::{Answer, Verdict, Zone};
use objects::network::{EndpointSlice, Service};
use runtime::cache::Snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::forward::{Forwarder, Upstreams};

/// The largest answer by UDP: fits any path without fragments (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// Without EDNS.
const UDP_BYTES_PLAIN: u16 = 512;
/// Foreign questions under way at a time; beyond, the client is told to come again.
const FOREIGN_MAX: usize = 1024;
/// TCP connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Names that are other names, in a row.
const ALIASES_MAX: usize = 8;
/// Messages whose answers are remembered byte for byte while the zone stays.
const REMEMBERED_MAX: usize = 8192;
/// Messages longer than this are not remembered.
const REMEMBERED_BYTES_MAX: usize = 256;
/// Datagrams read before other tasks have their turn.
const BATCH: usize = 64;

/// What the zone was made of.
type Made = (Snapshot<Service>, Snapshot<EndpointSlice>);

/// What every question is answered by.
#[derive(Default)]
pub(super) struct Desk {
    zone: RwLock<Option<(Arc<Zone>, Made)>>,
    forwarder: Forwarder,
    turn: AtomicUsize,
}

/// What becomes of a message.
enum Reply {
    /// This is sent.
    Now(Message),
    /// Others must be asked first.
    Foreign(Box<Message>),
    /// Nothing: it is no question.
    Silence,
}

impl Desk {
    pub(super) fn set_zone(&self, zone: Zone, made: Made) {
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Some((Arc::new(zone), made));
    }

    pub(super) fn has_zone(&self) -> bool {
        self.zone().is_some()
    }

    /// Whether the zone was made of just these.
    pub(super) fn is_made_of(&self, seen: &Made) -> bool {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        zone.as_ref().is_some_and(|(_, (services, slices))| {
            Arc::ptr_eq(services, &seen.0) && Arc::ptr_eq(slices, &seen.1)
        })
    }

    pub(super) fn set_upstreams(&self, upstreams: Upstreams) {
        self.forwarder.set_upstreams(upstreams);
    }

    fn zone(&self) -> Option<Arc<Zone>> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        zone.as_ref().map(|(zone, _)| Arc::clone(zone))
    }

    /// Answers a message from the zone, where it can.
    fn reply(&self, zone: &Zone, bytes: &[u8]) -> Reply {
        let question = match Message::from_vec(bytes) {
            Ok(message) if message.metadata.message_type == MessageType::Query => message,
            Ok(_) => return Reply::Silence,
            Err(_) => {
                let id = bytes.first_chunk().map(|id| u16::from_be_bytes(*id));
                // Too short to have an id, or itself an answer: no answer.
                let is_question = bytes.get(2).is_some_and(|flags| flags & 0x80 == 0);
                return match id.filter(|_| is_question && bytes.len() >= 12) {
                    Some(id) => {
                        Reply::Now(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
                    }
                    None => Reply::Silence,
                };
            }
        };
        if question.metadata.op_code != OpCode::Query {
            return Reply::Now(failure(&question, ResponseCode::NotImp));
        }
        if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Reply::Now(failure(&question, ResponseCode::BADVERS));
        }
        let [query] = question.queries.as_slice() else {
            return Reply::Now(failure(&question, ResponseCode::FormErr));
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match zone.answer(query, turn) {
            Verdict::Answer(answer) => Reply::Now(render(&question, answer)),
            Verdict::Alias { .. } | Verdict::Foreign => Reply::Foreign(Box::new(question)),
        }
    }

    /// Answers what the zone could not: by asking others.
    async fn ask_others(&self, zone: &Zone, question: &Message) -> Message {
        let mut aliases = Vec::new();
        let mut name: Option<Name> = None;
        for _ in 0..ALIASES_MAX {
            let mut asked = question.clone();
            if let (Some(name), Some(query)) = (&name, asked.queries.first_mut()) {
                query.set_name(name.clone());
            }
            let verdict = asked.queries.first().map(|query| zone.answer(query, 0));
            let mut reply = match verdict {
                Some(Verdict::Alias { record, target }) => {
                    aliases.push(*record);
                    name = Some(target);
                    continue;
                }
                Some(Verdict::Answer(answer)) => render(&asked, answer),
                Some(Verdict::Foreign) => match self.forwarder.ask(&asked).await {
                    Ok(reply) => reply,
                    Err(err) => {
                        debug!(%err, "a foreign name cannot be looked up");
                        failure(&asked, ResponseCode::ServFail)
                    }
                },
                None => failure(&asked, ResponseCode::FormErr),
            };
            reply.metadata.id = question.metadata.id;
            reply.queries.clone_from(&question.queries);
            reply.answers.splice(..0, aliases);
            return reply;
        }
        failure(question, ResponseCode::ServFail)
    }
}

fn render(question: &Message, answer: Answer) -> Message {
    let mut reply = failure(question, answer.code);
    reply.metadata.authoritative = true;
    reply.answers = answer.answers;
    reply.additionals = answer.additionals;
    reply.authorities = answer.authority.map(|soa| *soa).into_iter().collect();
    reply
}

/// An empty answer with a code.
fn failure(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&question.queries);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX).set_version(0);
        reply.set_edns(edns);
    }
    reply
}

/// Writes an answer for UDP; one that does not fit says so instead.
fn render_datagram(question_edns: Option<&Edns>, reply: &Message) -> Option<Vec<u8>> {
    let accepted = question_edns
        .map_or(UDP_BYTES_PLAIN, |edns| edns.max_payload().clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX));
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= usize::from(accepted) {
        return Some(bytes);
    }
    let mut cut = reply.truncate();
    cut.metadata.truncation = true;
    cut.to_vec().ok()
}

/// Answers by UDP, for ever.
pub(super) async fn serve_udp(socket: UdpSocket, desk: Arc<Desk>) {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(FOREIGN_MAX));
    let mut others = JoinSet::new();
    let mut memory = Memory::default();
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            Some(_) = others.join_next() => continue,
            ready = socket.readable() => if let Err(err) = ready {
                warn!(%err, "the DNS socket fails");
                return;
            },
        }
        let Some(zone) = desk.zone() else { continue };
        memory.is_of(&zone);
        for _ in 0..BATCH {
            let (len, client) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP message about an earlier answer.
                Err(_) => continue,
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            if let Some(answer) = memory.recall(bytes) {
                send(&socket, answer, client);
                continue;
            }
            match desk.reply(&zone, bytes) {
                Reply::Silence => {}
                Reply::Now(reply) => {
                    // The client's limit stands in its own EDNS record, which the reply mirrors.
                    let limit = Message::from_vec(bytes).ok().and_then(|message| message.edns);
                    if let Some(answer) = render_datagram(limit.as_ref(), &reply) {
                        send(&socket, &answer, client);
                        memory.keep(bytes, &reply, answer);
                    }
                }
                Reply::Foreign(question) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        let reply = failure(&question, ResponseCode::ServFail);
                        if let Some(answer) = render_datagram(question.edns.as_ref(), &reply) {
                            send(&socket, &answer, client);
                        }
                        continue;
                    };
                    let (socket, desk) = (Arc::clone(&socket), Arc::clone(&desk));
                    let zone = Arc::clone(&zone);
                    others.spawn(async move {
                        let reply = desk.ask_others(&zone, &question).await;
                        if let Some(answer) = render_datagram(question.edns.as_ref(), &reply) {
                            send(&socket, &answer, client);
                        }
                        drop(place);
                    });
                }
            }
        }
        tokio::task::consume_budget().await;
    }
}

/// A full send buffer loses the answer, as UDP may; the client asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(err) = socket.try_send_to(answer, client) {
        debug!(%client, %err, "an answer is lost");
    }
}

/// Answers to messages that were seen before, while the zone is the same.
///
/// Clients ask the same few questions over and over; all but the id of such a message is equal.
#[derive(Default)]
struct Memory {
    zone: Option<Arc<Zone>>,
    answers: HashMap<Box<[u8]>, Box<[u8]>>,
    scratch: Vec<u8>,
}

impl Memory {
    /// Forgets everything when the zone is another one.
    fn is_of(&mut self, zone: &Arc<Zone>) {
        if self.zone.as_ref().is_none_or(|own| !Arc::ptr_eq(own, zone)) {
            self.answers.clear();
            self.zone = Some(Arc::clone(zone));
        }
    }

    /// The answer to a message, with its id.
    fn recall(&mut self, message: &[u8]) -> Option<&[u8]> {
        let (id, rest) = message.split_first_chunk::<2>()?;
        let answer = self.answers.get(rest)?;
        self.scratch.clear();
        self.scratch.extend_from_slice(id);
        self.scratch.extend_from_slice(answer);
        Some(&self.scratch)
    }

    /// Remembers an answer, unless others of the same kind are to have their turn.
    fn keep(&mut self, message: &[u8], reply: &Message, answer: Vec<u8>) {
        if reply.answers.len() > 1 || message.len() > REMEMBERED_BYTES_MAX {
            return;
        }
        if self.answers.len() >= REMEMBERED_MAX {
            self.answers.clear();
        }
        if let (Some(rest), Some(answer)) = (message.get(2..), answer.get(2..)) {
            self.answers.insert(rest.into(), answer.into());
        }
    }
}

/// Answers by TCP, for ever.
pub(super) async fn serve_tcp(listener: TcpListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let desk = Arc::clone(&desk);
                    connections.spawn(async move {
                        if let Err(err) = converse(stream, &desk).await {
                            debug!(%err, "a DNS connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(err) => {
                    debug!(%err, "a DNS connection cannot be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn converse(mut stream: TcpStream, desk: &Desk) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let len = match tokio::time::timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(len)) => usize::from(len),
            Ok(Err(err)) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(err)) => return Err(err),
            Err(_) => return Ok(()),
        };
        buffer.resize(len, 0);
        tokio::time::timeout(IDLE, stream.read_exact(&mut buffer)).await??;
        let Some(zone) = desk.zone() else { return Ok(()) };
        let reply = match desk.reply(&zone, &buffer) {
            Reply::Silence => return Ok(()),
            Reply::Now(reply) => reply,
            Reply::Foreign(question) => desk.ask_others(&zone, &question).await,
        };
        let bytes = reply.to_vec().map_err(io::Error::other)?;
        let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend(bytes);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
