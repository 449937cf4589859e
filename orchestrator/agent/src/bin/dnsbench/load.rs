//! Questions, as fast as they are answered or at a pace.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kernel::datagram::{self, BATCH};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::server::name;

/// Questions under way at a time: what fits the smallest of the servers' buffers.
const WINDOW: usize = 128;
/// How long one socket is waited for while there are others.
const TURN: Duration = Duration::from_millis(1);
/// Names asked for, spread over all services: more than fit any small cache by accident.
const NAMES: u32 = 4096;
/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// Room for answers that wait.
const WAITING_BYTES: usize = 8 << 20;

/// What came of questions asked at a pace.
pub(crate) struct Paced {
    /// The time each answer took.
    pub(crate) latencies: Vec<Duration>,
    /// How many had no answer.
    pub(crate) lost: usize,
}

/// The questions for one server.
pub(crate) struct Load {
    server: SocketAddr,
    questions: Vec<Vec<u8>>,
}

/// Moves this thread away from the servers' processor.
pub(crate) fn bind_to_last_processor() -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    bind(Pid::from_raw(0), processors - 1)
}

/// Binds a process to a processor; does nothing on a machine that has only one.
pub(crate) fn bind(process: Pid, processor: usize) -> Result<()> {
    if processor == 0 && std::thread::available_parallelism()?.get() == 1 {
        return Ok(());
    }
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(process, &set).context("binding to a processor")
}

impl Load {
    pub(crate) fn new(server: SocketAddr, services: u32) -> Self {
        let count = NAMES.min(services);
        let questions = (0..count).filter_map(|number| {
            // A fixed stride visits services from all over the table.
            let service = number.wrapping_mul(2_654_435_761) % services;
            let mut message = Message::query();
            message.metadata.recursion_desired = true;
            message.add_query(Query::query(Name::from_ascii(name(service)).ok()?, RecordType::A));
            message.to_vec().ok()
        });
        Self { server, questions: questions.collect() }
    }

    fn connect(&self) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(self.server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Lost answers are to be the server's, not ours.
        datagram::make_room(&socket, WAITING_BYTES)?;
        Ok(socket)
    }

    fn ask(&self, socket: &UdpSocket, id: u16, turn: usize) -> Result<()> {
        let question = self.questions.get(turn % self.questions.len()).context("no question")?;
        let mut bytes = question.clone();
        if let Some(head) = bytes.first_chunk_mut::<2>() {
            *head = id.to_be_bytes();
        }
        socket.send(&bytes)?;
        Ok(())
    }

    /// Asks every name once, one after the other, and checks the answers.
    pub(crate) fn warm_up(&self) -> Result<()> {
        let socket = self.connect()?;
        let mut buffer = [0; 4096];
        for turn in 0..self.questions.len() {
            self.ask(&socket, 7, turn)?;
            let len = socket.recv(&mut buffer).context("no answer")?;
            let reply = Message::from_vec(buffer.get(..len).unwrap_or_default())?;
            let code = reply.metadata.response_code;
            ensure!(code == ResponseCode::NoError, "answered {code:?}");
            ensure!(reply.answers.len() == 1, "{} answers", reply.answers.len());
        }
        Ok(())
    }

    /// Keeps a window of questions under way, from so many sockets; the number of answers. Many go
    /// and come by one system call, so that the server is what is busy.
    pub(crate) fn as_fast_as_possible(&self, clients: usize, time: Duration) -> Result<u64> {
        let connect = |_| -> Result<UdpSocket> {
            let socket = self.connect()?;
            socket.set_read_timeout(Some(TURN))?;
            Ok(socket)
        };
        let sockets: Vec<UdpSocket> = (0..clients.max(1)).map(connect).collect::<Result<_>>()?;
        let share = (WINDOW / sockets.len()).max(1);
        let mut buffers = vec![vec![0; 512].into_boxed_slice(); BATCH];
        let mut come = Vec::with_capacity(BATCH);
        let (mut turn, mut answers) = (0, 0);
        for socket in &sockets {
            self.ask_many(socket, share, &mut turn)?;
        }
        let (began, mut silent) = (Instant::now(), vec![Instant::now(); sockets.len()]);
        while began.elapsed() < time {
            for (socket, silent) in sockets.iter().zip(&mut silent) {
                // Waits, but not for ever: others may have answers.
                match socket.peek(&mut [0]) {
                    Ok(_) => *silent = Instant::now(),
                    Err(err) if err.kind() == ErrorKind::WouldBlock => {
                        // All of them are lost: the window opens anew.
                        if silent.elapsed() > PATIENCE {
                            self.ask_many(socket, share, &mut turn)?;
                            *silent = Instant::now();
                        }
                        continue;
                    }
                    Err(err) => bail!(err),
                }
                datagram::receive(socket, &mut buffers, &mut come)?;
                answers += come.len() as u64;
                self.ask_many(socket, come.len(), &mut turn)?;
            }
        }
        ensure!(answers > 0, "no answer at all");
        Ok(answers)
    }

    /// Asks the next so many questions.
    fn ask_many(&self, socket: &UdpSocket, count: usize, turn: &mut usize) -> Result<()> {
        let mut questions = Vec::with_capacity(count);
        for _ in 0..count {
            let question = self.questions.get(*turn % self.questions.len());
            questions.push(question.context("no question")?.as_slice());
            *turn += 1;
        }
        let mut rest = questions.as_slice();
        while !rest.is_empty() {
            let letters = rest.iter().map(|question| (*question, self.server));
            let sent = datagram::send(socket, letters)?;
            rest = rest.get(sent.max(1)..).unwrap_or_default();
        }
        Ok(())
    }

    /// Asks at an even pace, whatever comes back.
    pub(crate) fn at_rate(&self, rate: f64, time: Duration) -> Result<Paced> {
        let socket = self.connect()?;
        socket.set_nonblocking(true)?;
        let mut buffer = [0; 4096];
        let mut open: BTreeMap<u16, Instant> = BTreeMap::new();
        let mut latencies = Vec::new();
        let (began, gap) = (Instant::now(), Duration::from_secs_f64(1.0 / rate.max(1.0)));
        let mut next = began;
        let (mut id, mut turn, mut lost) = (0_u16, 0, 0);
        while began.elapsed() < time || (!open.is_empty() && began.elapsed() < time + PATIENCE) {
            let now = Instant::now();
            if now >= next && began.elapsed() < time {
                // The clock starts when the question was due, not when we came to send it.
                let overtaken = open.insert(id, next).is_some();
                lost += usize::from(overtaken);
                self.ask(&socket, id, turn)?;
                (id, turn) = (id.wrapping_add(1), turn + 1);
                next += gap;
            }
            match socket.recv(&mut buffer) {
                Ok(_) => {
                    let id = buffer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
                    if let Some(asked) = open.remove(&id) {
                        latencies.push(asked.elapsed());
                    }
                }
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    std::hint::spin_loop();
                }
                Err(err) => bail!(err),
            }
        }
        Ok(Paced { latencies, lost: lost + open.len() })
    }
}
