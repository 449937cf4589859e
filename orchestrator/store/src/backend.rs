//! What lies below the tree: the trait every kind of store fulfils, and how it can fail.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::etcd::CallError;
use crate::item::{Item, Write, Written};

/// A future that may be sent; the trait below is used by reference to one of several kinds.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whether a write may wait for others, so that one sync serves them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    Now,
    /// A few hundredths of a second are nothing to its writer.
    Soon,
}

/// Makes writes durable and feeds the tree with them, in order.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Writes one item if it is as expected; once this is answered, the tree has it.
    fn write(&self, write: Write, haste: Haste) -> Answer<'_, Result<Written, WriteError>>;

    /// Brings the tree up to what any server had acknowledged when this was called.
    fn sync(&self) -> Answer<'_, Result<(), SyncError>>;

    /// What is wrong, if anything is.
    fn trouble(&self) -> Option<Trouble>;

    /// Returns when no write will ever succeed again.
    fn failed(&self) -> Answer<'_, ()>;
}

/// What the layer below says of its failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The embedded engine's reason.
    #[error(transparent)]
    Engine(Arc<redb::Error>),
    /// etcd's reason.
    #[error(transparent)]
    Etcd(#[from] CallError),
    /// A shelf's name is not two words with a slash between.
    #[error("{shelf} is not the name of a shelf")]
    Shelf {
        /// What was given.
        shelf: String,
    },
}

/// Why a write did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The item is not as expected; read it again and decide anew.
    #[error("the item is not at the expected revision")]
    Conflict {
        /// The item as it is now; `None` when it does not exist.
        current: Option<Arc<Item>>,
    },
    /// There is no room, and the write did not happen. Readers go on all the time, and writes are
    /// taken again once there is room.
    #[error("the store is full and can only be read")]
    Full(#[source] Fault),
    /// The value is larger than the store takes; it did not happen.
    #[error("the value is too large for the store")]
    TooLarge(#[source] Fault),
    /// The layer below failed; whether the write happened must be read again.
    #[error("the store cannot be written")]
    Storage(#[source] Fault),
    /// The store is closed or has failed before.
    #[error("the store takes no more writes")]
    Closed,
}

/// Why nobody knows what the newest revision is; worth trying again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SyncError {
    /// The layer below does not say.
    #[error("the store cannot be asked for its newest revision")]
    Storage(#[source] Fault),
    /// The tree does not reach the newest revision in time.
    #[error("the store is at revision {at} and does not reach {wanted}")]
    Behind {
        /// The newest revision.
        wanted: u64,
        /// What the tree has.
        at: u64,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// What is wrong with a store that still serves its readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nothing can be written until there is room.
    #[error("the store is full: it can only be read until there is room")]
    Full,
    /// The changes of others do not arrive.
    #[error("etcd cannot be followed")]
    Unreachable,
    /// Nothing will ever be written again; start anew.
    #[error("the store takes no more writes")]
    Failed,
}
