//! A cursor over a shelf's changes.
//!
//! A watcher owns no queue: it reads the shelf's shared window at its own pace. One that falls
//! behind the window is told so and must list anew.

use std::sync::Arc;

use tokio::sync::watch;

use crate::item::Change;
use crate::tree::Tree;

/// Changes handed over at a time, so that the lock is held briefly.
const BATCH_CHANGES_MAX: usize = 256;

/// The changes after a revision are no longer remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes after revision {after} are forgotten, the oldest known follow {floor}")]
pub struct Compacted {
    /// The revision the watcher had seen.
    pub after: u64,
    /// The oldest revision after which all changes are known.
    pub floor: u64,
}

/// A watcher's place on a shelf.
#[derive(Debug)]
pub struct Watch {
    tree: Arc<Tree>,
    news: watch::Receiver<u64>,
    shelf: Box<str>,
    prefix: Box<str>,
    seen: u64,
}

impl Watch {
    pub(crate) fn new(tree: Arc<Tree>, shelf: &str, prefix: &str, after: u64) -> Self {
        let news = tree.news(shelf);
        Self { tree, news, shelf: shelf.into(), prefix: prefix.into(), seen: after }
    }

    /// Waits for the next changes, oldest first, at least one. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the watcher fell behind; this watch is then at its end.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>, Compacted> {
        loop {
            let changes = self.ready()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            // The sender lives in the tree that we hold, so this cannot fail.
            let _woken = self.news.changed().await.is_ok();
        }
    }

    /// The changes that are there already; none means there is nothing up to [`Self::seen`].
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub fn ready(&mut self) -> Result<Vec<Arc<Change>>, Compacted> {
        loop {
            self.news.borrow_and_update();
            let (mut changes, seen) =
                self.tree.changes(&self.shelf, self.seen, BATCH_CHANGES_MAX)?;
            let all = changes.len() < BATCH_CHANGES_MAX;
            self.seen = seen;
            changes.retain(|change| change.name().starts_with(&*self.prefix));
            if all || !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// The revision up to which everything has been handed over.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }
}
