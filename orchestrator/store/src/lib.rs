//! Bytes with revisions: compare-and-set, ranges at a revision, watch.
//!
//! A *shelf* is one kind of thing (`core/pods`), a *name* one thing on it (`default/web-1`).
//! All writes of a cluster are counted by one revision. What a reader or a watcher can see is
//! always durable already: the tree in memory learns a write only after it is safe below.
//!
//! This crate knows nothing of what the bytes mean. It keeps every current item in memory and a
//! bounded window of past changes per shelf; who asks for what lies before that window is told so
//! and must list anew.
//!
//! The *embedded* store keeps a file beside the server; the *etcd* store shares a cluster with
//! other servers. Both feed the same tree and pass the same [`suite`].
//!
//! Tasks: embedded, one thread, `store-commit`, owns the file and is the only writer of the tree;
//! on etcd, the task that follows the watch is, see `etcd`.

mod backend;
mod checksum;
mod contents;
mod embedded;
mod etcd;
mod item;
mod snapshot;
pub mod suite;
pub mod transfer;
mod tree;
mod watch;

pub use backend::{Fault, SyncError, Trouble, WriteError};
pub use contents::{Contents, Count, Report};
pub use embedded::{OpenError, Options};
pub use etcd::{CallError, EndpointError, EtcdError, EtcdOptions};
pub use item::{Change, Expect, Head, Item, Write, Written};
pub use snapshot::{Malformed, SnapshotError, read_snapshot, write_snapshot};
pub use tree::{Page, Query, RangeError};
pub use watch::{Compacted, Watch};

use std::sync::Arc;

use crate::backend::{Backend, Haste};
use crate::tree::Tree;

/// A handle to the store; clones share it.
///
/// When the last clone is dropped, what was accepted is written and the store is closed.
#[derive(Clone, Debug)]
pub struct Store {
    tree: Arc<Tree>,
    backend: Arc<dyn Backend>,
}

impl Store {
    /// Opens or creates the embedded store of a directory and reads all of it into memory.
    ///
    /// # Errors
    ///
    /// When the file cannot be used: locked by another process, damaged, or not ours.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        embedded::open(options)
    }

    /// Connects to a store in etcd, creates it when there is none, and reads all of it into
    /// memory. Must be called inside a tokio runtime, which then follows the cluster.
    ///
    /// # Errors
    ///
    /// When the cluster does not answer or what is there is not a store of ours.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, EtcdError> {
        etcd::open(options).await
    }

    fn on(tree: Arc<Tree>, backend: Arc<dyn Backend>) -> Self {
        Self { tree, backend }
    }

    /// Writes one item if it is as expected, and returns once that is durable and visible.
    ///
    /// Cancel safety: dropping the future leaves it open whether the write happens.
    ///
    /// # Errors
    ///
    /// [`WriteError::Conflict`] may be retried after a fresh look; the others may not.
    pub async fn write(&self, write: Write) -> Result<Written, WriteError> {
        self.backend.write(write, Haste::Now).await
    }

    /// As [`Store::write`], for a writer whom a few hundredths of a second cost nothing: it may
    /// wait for others, so that one sync of the disk serves them all.
    ///
    /// # Errors
    ///
    /// As for [`Store::write`].
    pub async fn write_soon(&self, write: Write) -> Result<Written, WriteError> {
        self.backend.write(write, Haste::Soon).await
    }

    /// Waits until readers of this store see all that was acknowledged before the call, by
    /// whichever server.
    ///
    /// # Errors
    ///
    /// When nobody knows what that is; try again.
    pub async fn sync(&self) -> Result<(), SyncError> {
        self.backend.sync().await
    }

    /// What is wrong with the store, if anything is. Readers are served all the same.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.backend.trouble()
    }

    /// The item as it is now.
    #[must_use]
    pub fn get(&self, shelf: &str, name: &str) -> Option<Arc<Item>> {
        self.tree.get(shelf, name)
    }

    /// A page of a shelf, now or at an older revision inside the window.
    ///
    /// # Errors
    ///
    /// When the revision is older than the window or has not happened yet.
    pub fn range(&self, query: &Query<'_>) -> Result<Page, RangeError> {
        self.tree.range(query)
    }

    /// How many items of a shelf have names that begin with `prefix`.
    #[must_use]
    pub fn count(&self, shelf: &str, prefix: &str) -> usize {
        self.tree.count(shelf, prefix)
    }

    /// Watches names that begin with `prefix`, all changes after revision `after`.
    #[must_use]
    pub fn watch(&self, shelf: &str, prefix: &str, after: u64) -> Watch {
        Watch::new(Arc::clone(&self.tree), shelf, prefix, after)
    }

    /// The newest revision this store can show.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.tree.revision()
    }

    /// Waits until the store has reached a revision. Cancel safe; the caller sets the limit.
    pub async fn wait_for(&self, revision: u64) {
        self.tree.wait_for(revision).await;
    }

    /// Returns when the store takes no more writes, ever. Cancel safe.
    pub async fn failed(&self) {
        self.backend.failed().await;
    }
}
