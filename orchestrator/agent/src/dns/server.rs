//! The sockets of cluster DNS, and what is done with one message.
//!
//! Spec: RFC 1035 §4.2 (transports), RFC 6891 (EDNS), RFC 7766 (TCP).

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Name;
use node::dns::{Answer, Verdict, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::datagram::{self, Inbox, Outbox};
use super::forward::{Forwarder, Upstreams};
use super::memory::{Memory, Recalled};

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
/// Batches of datagrams read before other tasks have their turn.
const BATCHES: usize = 4;

/// What every question is answered by.
#[derive(Default)]
pub(super) struct Desk {
    zone: RwLock<Option<Zone>>,
    /// Counts the zone's changes.
    edition: AtomicU64,
    forwarder: Forwarder,
    /// Counts questions by TCP.
    turn: AtomicUsize,
}

/// What becomes of a message.
enum Reply {
    /// This is sent; the same message is answered so while the zone stays as it is.
    Now(Message),
    /// This is sent now; another time it may be something else.
    Kept(Message),
    /// Others must be asked first.
    Foreign(Box<Message>),
    /// Nothing: it is no question.
    Silence,
}

impl Desk {
    /// Changes the zone; `change` says whether it did. There is none at first.
    pub(super) fn change_zone(&self, change: impl FnOnce(&mut Option<Zone>) -> bool) {
        let mut zone = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        if change(&mut zone) {
            self.edition.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn has_zone(&self) -> bool {
        self.with_zone(|_, _| ()).is_some()
    }

    /// Works with the zone and the number of its edition; `None` while there is no zone.
    fn with_zone<T>(&self, work: impl FnOnce(&Zone, u64) -> T) -> Option<T> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        zone.as_ref().map(|zone| work(zone, self.edition.load(Ordering::Relaxed)))
    }

    pub(super) fn set_upstreams(&self, upstreams: Upstreams) {
        self.forwarder.set_upstreams(upstreams);
    }

    /// Answers a message from the zone, where it can; several records begin with the one that it
    /// is the turn of.
    fn reply(&self, zone: &Zone, bytes: &[u8], turn: usize) -> Reply {
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
        match zone.answer(query, turn) {
            Verdict::Answer(answer) => Reply::Now(render(&question, answer)),
            Verdict::Foreign => match self.forwarder.recall(&question) {
                Some(reply) => Reply::Kept(readdressed(reply, &question)),
                None => Reply::Foreign(Box::new(question)),
            },
            Verdict::Alias { .. } => Reply::Foreign(Box::new(question)),
        }
    }

    /// Answers what the zone could not: by asking others.
    async fn ask_others(&self, question: &Message) -> Message {
        let mut aliases = Vec::new();
        let mut name: Option<Name> = None;
        for _ in 0..ALIASES_MAX {
            let mut asked = question.clone();
            if let (Some(name), Some(query)) = (&name, asked.queries.first_mut()) {
                query.set_name(name.clone());
            }
            let verdict = asked
                .queries
                .first()
                .and_then(|query| self.with_zone(|zone, _| zone.answer(query, 0)));
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
            reply = readdressed(reply, question);
            reply.answers.splice(..0, aliases);
            return reply;
        }
        failure(question, ResponseCode::ServFail)
    }
}

/// An answer to the same question of somebody else.
fn readdressed(mut reply: Message, question: &Message) -> Message {
    reply.metadata.id = question.metadata.id;
    reply.queries.clone_from(&question.queries);
    reply
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
    datagram::make_room(&socket);
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(FOREIGN_MAX));
    let mut others = JoinSet::new();
    let mut memory = Memory::default();
    let (mut inbox, mut outbox) = (Inbox::new(), Outbox::default());
    let mut foreign = Vec::new();
    loop {
        tokio::select! {
            Some(_) = others.join_next() => continue,
            ready = socket.readable() => if let Err(err) = ready {
                warn!(%err, "the DNS socket fails");
                return;
            },
        }
        for _ in 0..BATCHES {
            let more = match inbox.receive(&socket) {
                Ok(more) => more,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP message about an earlier answer.
                Err(_) => continue,
            };
            desk.with_zone(|zone, edition| {
                memory.is_of(edition);
                for (message, client) in inbox.messages() {
                    if let Some(question) =
                        desk.answer_datagram(zone, message, client, &mut memory, &mut outbox)
                    {
                        foreign.push((question, client));
                    }
                }
            });
            for (question, client) in foreign.drain(..) {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    let reply = failure(&question, ResponseCode::ServFail);
                    if let Some(answer) = render_datagram(question.edns.as_ref(), &reply) {
                        outbox.push(&[&answer], client);
                    }
                    continue;
                };
                let (socket, desk) = (Arc::clone(&socket), Arc::clone(&desk));
                others.spawn(async move {
                    let reply = desk.ask_others(&question).await;
                    if let Some(answer) = render_datagram(question.edns.as_ref(), &reply) {
                        send(&socket, &answer, client);
                    }
                    drop(place);
                });
            }
            outbox.send(&socket);
            if !more {
                break;
            }
        }
        tokio::task::consume_budget().await;
    }
}

impl Desk {
    /// Answers one datagram, or returns the question that others must be asked.
    fn answer_datagram(
        &self,
        zone: &Zone,
        message: &[u8],
        client: SocketAddr,
        memory: &mut Memory,
        outbox: &mut Outbox,
    ) -> Option<Box<Message>> {
        let turn = match memory.recall(message) {
            Recalled::Answer(id, answer) => {
                outbox.push(&[id, answer], client);
                return None;
            }
            Recalled::Turn(turn) => turn,
        };
        let (reply, keep) = match self.reply(zone, message, turn) {
            Reply::Silence => return None,
            Reply::Now(reply) => (reply, true),
            Reply::Kept(reply) => (reply, false),
            Reply::Foreign(question) => return Some(question),
        };
        // The client's limit stands in its own EDNS record, which the reply mirrors.
        let limit = Message::from_vec(message).ok().and_then(|message| message.edns);
        let answer = render_datagram(limit.as_ref(), &reply)?;
        outbox.push(&[&answer], client);
        if keep {
            memory.keep(message, reply.answers.len(), &answer);
        }
        None
    }
}

/// A full send buffer loses the answer, as UDP may; the client asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(err) = socket.try_send_to(answer, client) {
        debug!(%client, %err, "an answer is lost");
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
        let turn = desk.turn.fetch_add(1, Ordering::Relaxed);
        let reply = match desk.with_zone(|zone, _| desk.reply(zone, &buffer, turn)) {
            None | Some(Reply::Silence) => return Ok(()),
            Some(Reply::Now(reply) | Reply::Kept(reply)) => reply,
            Some(Reply::Foreign(question)) => desk.ask_others(&question).await,
        };
        let bytes = reply.to_vec().map_err(io::Error::other)?;
        let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend(bytes);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
