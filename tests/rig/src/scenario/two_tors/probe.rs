//! How long the network loses what is sent: connections to pods, begun all the time from the seed.
//!
//! Each goes to a port that nobody serves, so the pod's kernel refuses it, and a refusal is an
//! answer: it has come all the way there and back, and costs an emulated machine next to nothing.
//! Each has a source port of its own, so the flows spread over all ways. One that has no answer
//! before the kernel would send it again was lost.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, socket, sockopt,
};

use crate::Rig;

/// Between two rounds of connections.
const BEAT: Duration = Duration::from_millis(20);
/// The kernel sends the first packet again after a second, which would hide a loss.
const ANSWER_LIMIT: Duration = Duration::from_millis(900);
/// The discard service, which no pod of ours has.
const CLOSED_PORT: u16 = 9;

/// What became of the connections to one pod, or to all of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outage {
    /// From the first to the last that was lost, the worst pod's.
    pub(super) span: Duration,
    /// How many were lost.
    pub(super) lost: usize,
    /// How many there were.
    pub(super) sent: usize,
}

/// A connection that has had no answer yet.
struct Attempt {
    socket: OwnedFd,
    pod: usize,
    start: Instant,
}

/// When connections to a pod were lost.
#[derive(Default)]
struct Losses {
    first: Option<Instant>,
    last: Option<Instant>,
    count: usize,
}

impl Losses {
    fn add(&mut self, start: Instant) {
        self.first = Some(self.first.map_or(start, |first| first.min(start)));
        self.last = Some(self.last.map_or(start, |last| last.max(start)));
        self.count += 1;
    }

    fn span(&self) -> Duration {
        // What was lost in one round may have been so since the round before.
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first + BEAT)
    }
}

/// Sends to all pods while `work` is done, and until what is under way by then has its answer.
pub(super) fn during(
    rig: &Rig,
    pods: &[Ipv4Addr],
    work: impl FnOnce() -> Result<()>,
) -> Result<Outage> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| rig.in_seed(|| probe(pods, &stop)));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let outage = probing.join().ok().context("the probe panicked")?;
        done?;
        outage
    })
}

fn probe(pods: &[Ipv4Addr], stop: &AtomicBool) -> Result<Outage> {
    let mut losses: Vec<Losses> = pods.iter().map(|_| Losses::default()).collect();
    let mut open: Vec<Attempt> = Vec::new();
    let mut sent = 0;
    loop {
        let round = Instant::now();
        if !stop.load(Ordering::Relaxed) {
            for (pod, address) in pods.iter().enumerate() {
                sent += 1;
                match begin(*address)? {
                    Begun::Open(socket) => open.push(Attempt { socket, pod, start: round }),
                    Begun::Answered => (),
                    Begun::Lost => losses.iter_mut().skip(pod).take(1).for_each(|it| it.add(round)),
                }
            }
        } else if open.is_empty() {
            break;
        }
        open.retain(|attempt| match getsockopt(&attempt.socket, sockopt::SocketError) {
            Ok(0) if attempt.start.elapsed() < ANSWER_LIMIT => true,
            // Refused, or taken by somebody after all.
            Ok(error) if is_answer(error) => false,
            Ok(_) | Err(_) => {
                let of = losses.iter_mut().skip(attempt.pod).take(1);
                of.for_each(|it| it.add(attempt.start));
                false
            }
        });
        std::thread::sleep(BEAT.saturating_sub(round.elapsed()));
    }
    let span = losses.iter().map(Losses::span).max().unwrap_or_default();
    Ok(Outage { span, lost: losses.iter().map(|it| it.count).sum(), sent })
}

fn is_answer(error: i32) -> bool {
    Errno::from_raw(error) == Errno::ECONNREFUSED
}

/// How a connection begins.
enum Begun {
    Open(OwnedFd),
    Answered,
    Lost,
}

fn begin(pod: Ipv4Addr) -> Result<Begun> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)
        .context("opening a socket for a probe")?;
    let [a, b, c, d] = pod.octets();
    match connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, CLOSED_PORT)) {
        Ok(()) | Err(Errno::ECONNREFUSED) => Ok(Begun::Answered),
        Err(Errno::EINPROGRESS) => Ok(Begun::Open(socket)),
        Err(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Ok(Begun::Lost),
        Err(err) => Err(err).with_context(|| format!("probing {pod}")),
    }
}
