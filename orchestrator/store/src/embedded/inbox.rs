//! The way of writes to the commit thread, in groups.
//!
//! Who is in haste wakes the thread. Who is not joins a company, whose first member alone calls:
//! the thread then waits a moment, and takes along whoever has come meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Disk;
use crate::backend::{Haste, WriteError};
use crate::item::{Write, Written};

/// Writes of one group, so that a flood cannot make one transaction endless.
const GROUP_WRITES_MAX: usize = 1024;
/// Writes that may wait for the disk; more make their senders wait, which is the back-pressure.
const QUEUE_WRITES_MAX: usize = 4096;
/// How long a group waits for company when nobody in it is in haste.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often a full disk is looked at again.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// A write, and who awaits its outcome.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) write: Write,
    pub(super) reply: oneshot::Sender<Result<Written, WriteError>>,
}

/// What wakes the commit thread.
#[derive(Debug)]
enum Call {
    /// A write, to be done now.
    Commit(Commit),
    /// The first of those who may wait has come; the others come without waking anybody.
    Company,
}

/// Writes that nobody hurries.
type Company = Arc<Mutex<Vec<Commit>>>;

/// Makes both ends.
///
/// # Errors
///
/// When the system has no clock to wait by.
pub(super) fn channel() -> std::io::Result<(Outbox, Inbox)> {
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (calls, queue) = mpsc::channel(QUEUE_WRITES_MAX);
    let company = Company::default();
    Ok((Outbox { calls, company: Arc::clone(&company) }, Inbox { queue, company, clock }))
}

/// The writers' end.
#[derive(Debug)]
pub(super) struct Outbox {
    calls: mpsc::Sender<Call>,
    company: Company,
}

impl Outbox {
    /// Hands a write over and waits for its outcome.
    pub(super) async fn write(&self, write: Write, haste: Haste) -> Result<Written, WriteError> {
        let (reply, answer) = oneshot::channel();
        let commit = Commit { write, reply };
        match haste {
            Haste::Now => {
                let sent = self.calls.send(Call::Commit(commit)).await;
                sent.map_err(|_| WriteError::Closed)?;
            }
            Haste::Soon => self.join(commit),
        }
        answer.await.map_err(|_| WriteError::Closed)?
    }

    /// Adds a write to those that may wait. Never waits itself, so whoever does not await the
    /// answer leaves nobody behind without a call.
    fn join(&self, commit: Commit) {
        let lock = || self.company.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = {
            let mut waiting = lock();
            waiting.push(commit);
            waiting.len() == 1
        };
        if is_first {
            // Who finds the queue full is taken along by what is in it.
            let _called = self.calls.try_send(Call::Company).is_ok();
        }
        if self.calls.is_closed() {
            // Nobody comes for them any more.
            lock().clear();
        }
    }

    /// Has the commit thread ended?
    pub(super) fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }

    /// Returns when the commit thread has ended.
    pub(super) async fn closed(&self) {
        self.calls.closed().await;
    }
}

/// What arrives at the commit thread.
pub(super) struct Inbox {
    queue: mpsc::Receiver<Call>,
    company: Company,
    /// Lets the thread wait for a time.
    clock: tokio::runtime::Runtime,
}

impl Inbox {
    /// The writes of the next group; `None` when every sender is gone.
    pub(super) fn next_group(&mut self, disk: &mut Disk) -> Option<Vec<Commit>> {
        let mut group = Vec::new();
        match self.first_call(disk)? {
            Call::Commit(commit) => group.push(commit),
            Call::Company => self.await_haste(&mut group),
        }
        while group.len() < GROUP_WRITES_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            // Who waits goes along below, whether the call was heard or is still to come.
            if let Call::Commit(commit) = next {
                group.push(commit);
            }
        }
        let mut waiting = self.company.lock().unwrap_or_else(PoisonError::into_inner);
        group.append(&mut waiting);
        Some(group)
    }

    /// What comes next; `None` when every sender is gone.
    ///
    /// While the disk is full, it is looked at now and then, whether anybody writes or not.
    fn first_call(&mut self, disk: &mut Disk) -> Option<Call> {
        while disk.refused.is_some() {
            let queue = &mut self.queue;
            let next = async { tokio::time::timeout(ROOM_EVERY, queue.recv()).await };
            if let Ok(next) = self.clock.block_on(next) {
                return next;
            }
            disk.look_for_room();
        }
        self.queue.blocking_recv()
    }

    /// Lets company gather for [`PATIENCE`], or until a write comes that is in haste.
    fn await_haste(&mut self, group: &mut Vec<Commit>) {
        let queue = &mut self.queue;
        let haste = async {
            loop {
                match queue.recv().await {
                    Some(Call::Company) => {}
                    Some(Call::Commit(commit)) => return Some(commit),
                    None => return None,
                }
            }
        };
        let haste = self.clock.block_on(async { tokio::time::timeout(PATIENCE, haste).await });
        group.extend(haste.ok().flatten());
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // In this order: who comes after the clearing finds the queue closed.
        self.queue.close();
        self.company.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
