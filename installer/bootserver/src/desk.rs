//! The desk: the one task that owns the site and the journal.
//!
//! It takes whatever waits in its queue in one go, so that a storm of requests costs one sync of
//! the disk per round and not one per lease. Answers leave only after `boot::commit`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boot::{
    Arrival, Fetch, Moment, Outcome, Query, Reply, Report, ReportRefused, Site, SiteView, Verdict,
    commit,
};
use ipnet::Ipv4Net;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::journal::{FileJournal, JournalError};
use crate::{RunError, now};

/// Questions taken in one round.
const ROUND_LEN: usize = 256;
/// How long records that promise nothing may wait for the disk.
const SYNC_PACE: Duration = Duration::from_secs(1);
/// Largest packet that is read; DHCP messages beyond an Ethernet frame do not exist.
const PACKET_LEN: usize = 2048;

/// A DHCP socket and what it tells of those it hears.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) socket: Arc<UdpSocket>,
    pub(crate) arrival: Arrival,
}

/// What the desk is asked or told.
enum Input {
    Packet(Vec<u8>, Arrival),
    Script(Query, oneshot::Sender<String>),
    Fetched(Ipv4Addr, Fetch, Option<oneshot::Sender<Verdict>>),
    Report(Ipv4Addr, Report, oneshot::Sender<Result<(), ReportRefused>>),
    Ready(String, Moment),
    Rival(Ipv4Addr, Option<Ipv4Net>),
    View(oneshot::Sender<SiteView>),
}

/// An answer within the process, given after the round was kept.
enum Answer {
    Script(oneshot::Sender<String>, String),
    Verdict(oneshot::Sender<Verdict>, Verdict),
    Report(oneshot::Sender<Result<(), ReportRefused>>, Result<(), ReportRefused>),
    View(oneshot::Sender<SiteView>, Box<SiteView>),
}

/// The desk is gone: the service stops.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the boot server stops")]
pub(crate) struct Stopping;

/// A way to the desk.
#[derive(Debug, Clone)]
pub(crate) struct DeskHandle {
    sender: mpsc::Sender<Input>,
}

/// Makes the two ends of the desk's queue.
pub(crate) fn queue(len: usize) -> (DeskHandle, Questions) {
    let (sender, receiver) = mpsc::channel(len);
    (DeskHandle { sender }, Questions { receiver })
}

/// What waits for the desk.
pub(crate) struct Questions {
    receiver: mpsc::Receiver<Input>,
}

impl DeskHandle {
    pub(crate) async fn script(&self, query: Query) -> Result<String, Stopping> {
        self.ask(|answer| Input::Script(query, answer)).await
    }

    pub(crate) async fn may_fetch(
        &self,
        peer: Ipv4Addr,
        fetch: Fetch,
    ) -> Result<Verdict, Stopping> {
        self.ask(|answer| Input::Fetched(peer, fetch, Some(answer))).await
    }

    pub(crate) async fn fetched(&self, peer: Ipv4Addr, fetch: Fetch) -> Result<(), Stopping> {
        self.tell(Input::Fetched(peer, fetch, None)).await
    }

    pub(crate) async fn report(
        &self,
        peer: Ipv4Addr,
        report: Report,
    ) -> Result<Result<(), ReportRefused>, Stopping> {
        self.ask(|answer| Input::Report(peer, report, answer)).await
    }

    pub(crate) async fn ready(&self, node: String, heartbeat: Moment) -> Result<(), Stopping> {
        self.tell(Input::Ready(node, heartbeat)).await
    }

    pub(crate) async fn rival(
        &self,
        server: Ipv4Addr,
        segment: Option<Ipv4Net>,
    ) -> Result<(), Stopping> {
        self.tell(Input::Rival(server, segment)).await
    }

    pub(crate) async fn view(&self) -> Result<SiteView, Stopping> {
        self.ask(Input::View).await
    }

    async fn tell(&self, input: Input) -> Result<(), Stopping> {
        self.sender.send(input).await.map_err(|_| Stopping)
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Stopping> {
        let (sender, receiver) = oneshot::channel();
        self.tell(input(sender)).await?;
        receiver.await.map_err(|_| Stopping)
    }
}

/// The task's state.
pub(crate) struct Desk {
    site: Site,
    journal: Option<FileJournal>,
    queue: mpsc::Receiver<Input>,
    sockets: Vec<Arc<UdpSocket>>,
}

impl Desk {
    /// Cleans the journal up and takes the desk.
    pub(crate) fn new(
        site: Site,
        mut journal: FileJournal,
        questions: Questions,
        listeners: Vec<Listener>,
    ) -> Result<Self, JournalError> {
        journal.rewrite(&site.snapshot(now()))?;
        let sockets = listeners.into_iter().map(|listener| listener.socket).collect();
        Ok(Self { site, journal: Some(journal), queue: questions.receiver, sockets })
    }

    /// Works until `stop`; what is in the queue then is dropped, as if it had been lost on the
    /// wire.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), RunError> {
        let mut round = Vec::with_capacity(ROUND_LEN);
        let mut pace = tokio::time::interval(SYNC_PACE);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                taken = self.queue.recv_many(&mut round, ROUND_LEN) => {
                    if taken == 0 {
                        break;
                    }
                    self.work(round.drain(..)).await?;
                }
                _ = pace.tick() => self.with_journal(FileJournal::sync).await?,
            }
        }
        self.with_journal(FileJournal::sync).await
    }

    async fn work(&mut self, round: impl Iterator<Item = Input>) -> Result<(), RunError> {
        let now = now();
        let mut outcomes = Vec::new();
        let mut answers = Vec::new();
        for input in round {
            let (outcome, answer) = self.take(now, input);
            outcomes.push(outcome);
            answers.extend(answer);
        }
        let replies = self.keep(outcomes).await?;
        answers.into_iter().for_each(Answer::give);
        for reply in replies {
            self.send(&reply).await;
        }
        Ok(())
    }

    fn take(&mut self, now: Moment, input: Input) -> (Outcome, Option<Answer>) {
        let site = &mut self.site;
        match input {
            Input::Packet(bytes, arrival) => (site.dhcp(now, &bytes, arrival), None),
            Input::Script(query, to) => {
                let (outcome, script) = site.script(now, &query);
                (outcome, Some(Answer::Script(to, script)))
            }
            Input::Fetched(peer, fetch, to) => {
                let (outcome, verdict) = site.fetched(now, peer, fetch);
                (outcome, to.map(|to| Answer::Verdict(to, verdict)))
            }
            Input::Report(peer, report, to) => match site.report(now, peer, &report) {
                Ok(outcome) => (outcome, Some(Answer::Report(to, Ok(())))),
                Err(refused) => (Outcome::default(), Some(Answer::Report(to, Err(refused)))),
            },
            Input::Ready(node, heartbeat) => (site.ready(now, &node, heartbeat), None),
            Input::Rival(server, segment) => (site.rival(now, server, segment), None),
            Input::View(to) => {
                (Outcome::default(), Some(Answer::View(to, Box::new(site.view(now)))))
            }
        }
    }

    /// Keeps a round's records. The disk is waited for on a thread of its own, so HTTP goes on.
    async fn keep(&mut self, outcomes: Vec<Outcome>) -> Result<Vec<Reply>, RunError> {
        for record in outcomes.iter().flat_map(Outcome::records) {
            log(record);
        }
        let is_promise = outcomes.iter().flat_map(Outcome::records).any(boot::Record::is_promise);
        let snapshot = self.journal.as_ref().is_some_and(FileJournal::is_long);
        if !is_promise && !snapshot {
            // Nothing is synced, so nothing blocks: one write to the page cache.
            let journal = self.journal.as_mut().ok_or(RunError::NoJournal)?;
            return Ok(commit(journal, outcomes)?);
        }
        let snapshot = snapshot.then(|| self.site.snapshot(now()));
        self.with_journal(move |journal| {
            let replies = commit(journal, outcomes)?;
            if let Some(records) = snapshot {
                journal.rewrite(&records)?;
            }
            Ok(replies)
        })
        .await
    }

    async fn with_journal<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut FileJournal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, RunError> {
        let mut journal = self.journal.take().ok_or(RunError::NoJournal)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut journal);
            (journal, result)
        });
        let (journal, result) = done
            .await
            .map_err(|source| RunError::Panicked { name: "journal".to_owned(), source })?;
        self.journal = Some(journal);
        Ok(result?)
    }

    /// An answer that cannot be sent is lost like one on the wire: the machine asks again.
    async fn send(&self, reply: &Reply) {
        let Some(socket) = self.sockets.get(reply.socket) else {
            return;
        };
        if let Err(err) = socket.send_to(&reply.bytes, SocketAddr::V4(reply.to)).await {
            tracing::warn!(to = %reply.to, %err, "DHCP answer not sent");
        }
    }
}

impl Answer {
    /// Whoever asked may be gone; that is its own affair.
    fn give(self) {
        let _gone = match self {
            Self::Script(to, script) => to.send(script).is_err(),
            Self::Verdict(to, verdict) => to.send(verdict).is_err(),
            Self::Report(to, taken) => to.send(taken).is_err(),
            Self::View(to, view) => to.send(*view).is_err(),
        };
    }
}

/// Hears one DHCP socket until `stop`.
pub(crate) async fn listen(stop: CancellationToken, listener: Listener, desk: DeskHandle) {
    let mut buffer = vec![0; PACKET_LEN];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = listener.socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((len, _)) => {
                let bytes = buffer.get(..len).unwrap_or_default().to_vec();
                if desk.tell(Input::Packet(bytes, listener.arrival)).await.is_err() {
                    return;
                }
            }
            // A relay that went away is told by ICMP; the socket is as good as before.
            Err(err) => {
                tracing::debug!(%err, "DHCP socket");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn log(record: &boot::Record) {
    use boot::Record;
    match record {
        Record::Lease { mac, address, .. } => tracing::info!(%mac, %address, "lease"),
        Record::Phase { mac, phase, .. } => tracing::info!(%mac, phase = phase.name(), "phase"),
        Record::Failed { mac, detail, .. } => tracing::warn!(%mac, detail, "machine failed"),
        Record::Rival { server, mac, .. } => {
            tracing::error!(%server, mac = ?mac, "another DHCP server answers machines");
        }
        Record::Decline { mac, address, .. } => {
            tracing::warn!(%mac, %address, "address is in use by another machine");
        }
        Record::Seen { .. } | Record::Boot { .. } | Record::Release { .. } => {
            tracing::debug!(?record, "record");
        }
    }
}
