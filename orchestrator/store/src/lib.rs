//! Bytes with revisions: compare-and-set, ranges at a revision, watch.
//!
//! A *shelf* is one kind of thing (`core/pods`), a *name* one thing on it (`default/web-1`).
//! All writes of a cluster are counted by one revision. What a reader or a watcher can see is
//! always durable already: the tree in memory learns a write only after it is on disk.
//!
//! This crate knows nothing of what the bytes mean. It keeps every current item in memory and a
//! bounded window of past changes per shelf; who asks for what lies before that window is told so
//! and must list anew.
//!
//! Tasks: one thread, `store-commit`, owns the file and is the only writer of the tree.

mod embedded;
mod item;
pub mod suite;
mod tree;
mod watch;

pub use embedded::{OpenError, Options};
pub use item::{Change, Expect, Head, Item, Write, Written};
pub use tree::{Page, Query, RangeError};
pub use watch::{Compacted, Watch};

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::embedded::{Commit, Disk};
use crate::tree::Tree;

/// Writes that may wait for the disk; more make their senders wait, which is the back-pressure.
const QUEUE_WRITES_MAX: usize = 4096;

/// Why a write did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The item is not as expected; read it again and decide anew.
    #[error("the item is not at the expected revision")]
    Conflict {
        /// The item as it is now; `None` when it does not exist.
        current: Option<Arc<Item>>,
    },
    /// The disk failed; whether the write happened must be read again. A full disk takes writes
    /// again once there is room, and readers go on all the time; any other failure ends the store.
    #[error("the store's file cannot be written")]
    Storage {
        /// What the engine says.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The store is closed or has failed before.
    #[error("the store takes no more writes")]
    Closed,
}

/// A handle to the store; clones share it.
///
/// When the last clone is dropped, what was accepted is written and the file is closed.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tree: Arc<Tree>,
    commits: Option<mpsc::Sender<Commit>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commits = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread panicked");
        }
    }
}

impl Store {
    /// Opens or creates the store of a directory and reads all of it into memory.
    ///
    /// # Errors
    ///
    /// When the file cannot be used: locked by another process, damaged, or not ours.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        embedded::open(options)
    }

    fn start(tree: Arc<Tree>, disk: Disk) -> Result<Self, OpenError> {
        let (commits, inbox) = mpsc::channel(QUEUE_WRITES_MAX);
        let shared = Arc::clone(&tree);
        let thread = std::thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(move || embedded::commit_all(inbox, disk, &shared))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { inner: Arc::new(Inner { tree, commits: Some(commits), thread: Some(thread) }) })
    }

    /// Writes one item if it is as expected, and returns once that is durable and visible.
    ///
    /// Cancel safety: dropping the future leaves it open whether the write happens.
    ///
    /// # Errors
    ///
    /// [`WriteError::Conflict`] may be retried after a fresh look; the others may not.
    pub async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let commits = self.inner.commits.as_ref().ok_or(WriteError::Closed)?;
        let (reply, answer) = oneshot::channel();
        commits.send(Commit { write, reply }).await.map_err(|_| WriteError::Closed)?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    /// The item as it is now.
    #[must_use]
    pub fn get(&self, shelf: &str, name: &str) -> Option<Arc<Item>> {
        self.inner.tree.get(shelf, name)
    }

    /// A page of a shelf, now or at an older revision inside the window.
    ///
    /// # Errors
    ///
    /// When the revision is older than the window or has not happened yet.
    pub fn range(&self, query: &Query<'_>) -> Result<Page, RangeError> {
        self.inner.tree.range(query)
    }

    /// How many items of a shelf have names that begin with `prefix`.
    #[must_use]
    pub fn count(&self, shelf: &str, prefix: &str) -> usize {
        self.inner.tree.count(shelf, prefix)
    }

    /// Watches names that begin with `prefix`, all changes after revision `after`.
    #[must_use]
    pub fn watch(&self, shelf: &str, prefix: &str, after: u64) -> Watch {
        Watch::new(Arc::clone(&self.inner.tree), shelf, prefix, after)
    }

    /// The newest durable revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.tree.revision()
    }

    /// Waits until the store has reached a revision. Cancel safe; the caller sets the limit.
    pub async fn wait_for(&self, revision: u64) {
        self.inner.tree.wait_for(revision).await;
    }

    /// Returns when the store takes no more writes because the disk is lost. Cancel safe.
    pub async fn failed(&self) {
        if let Some(commits) = &self.inner.commits {
            commits.closed().await;
        }
    }
}
