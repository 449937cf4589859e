//! What lies on a shelf, and what can happen to it.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

/// What a reader has worked out about an item and wants to find again: labels, fields, owners.
pub type Head = Arc<dyn Any + Send + Sync>;

/// One version of one thing; never changes.
pub struct Item {
    name: Box<str>,
    value: Bytes,
    created: u64,
    modified: u64,
    head: OnceLock<Head>,
}

impl Item {
    pub(crate) fn new(
        name: &str,
        value: Bytes,
        created: u64,
        modified: u64,
        head: Option<Head>,
    ) -> Self {
        let cell = OnceLock::new();
        if let Some(head) = head {
            // The cell is new, so this cannot be refused.
            let _was_empty = cell.set(head).is_ok();
        }
        Self { name: name.into(), value, created, modified, head: cell }
    }

    /// An item that lies in no store: for what was never written, and for tests.
    #[must_use]
    pub fn detached(name: &str, value: Bytes, revision: u64, head: Option<Head>) -> Self {
        Self::new(name, value, revision, revision, head)
    }

    /// The name on its shelf.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes.
    #[must_use]
    pub fn value(&self) -> &Bytes {
        &self.value
    }

    /// The revision that created the item.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The revision that wrote this version.
    #[must_use]
    pub fn modified(&self) -> u64 {
        self.modified
    }

    /// What was worked out about this version; computed at most once, by the first who asks.
    pub fn head(&self, compute: impl FnOnce(&Self) -> Head) -> &Head {
        self.head.get_or_init(|| compute(self))
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.value.len() + self.name.len()
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        f.debug_struct("Item")
            .field("name", &self.name)
            .field("created", &self.created)
            .field("modified", &self.modified)
            .field("size_bytes", &self.value.len())
            .finish_non_exhaustive()
    }
}

/// One thing that happened on a shelf.
#[derive(Debug)]
pub struct Change {
    /// The revision of this change; each has its own.
    pub revision: u64,
    /// The item after the change; `None` when it was deleted.
    pub current: Option<Arc<Item>>,
    /// The item before the change; `None` when it was created.
    pub previous: Option<Arc<Item>>,
}

impl Change {
    /// The name of what changed.
    #[must_use]
    pub fn name(&self) -> &str {
        self.current.as_ref().or(self.previous.as_ref()).map_or("", |item| item.name())
    }

    pub(crate) fn size_bytes(&self) -> usize {
        // The current version is also held by the map or by the next change as its previous one,
        // so each version is counted once.
        self.previous.as_ref().map_or(64, |item| item.size_bytes() + 64)
    }
}

/// What must be true of an item for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It does not exist.
    Absent,
    /// It exists and was last written by this revision.
    Revision(u64),
}

/// One conditional write.
pub struct Write {
    /// The shelf.
    pub shelf: Arc<str>,
    /// The name on it.
    pub name: Box<str>,
    /// The condition.
    pub expect: Expect,
    /// The new bytes; `None` deletes.
    pub value: Option<Bytes>,
    /// What the writer already knows about the new bytes, see [`Item::head`].
    pub head: Option<Head>,
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write")
            .field("shelf", &self.shelf)
            .field("name", &self.name)
            .field("expect", &self.expect)
            .field("size_bytes", &self.value.as_ref().map(Bytes::len))
            .finish_non_exhaustive()
    }
}

/// A write that is durable.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its revision.
    pub revision: u64,
    /// The item as written; `None` when it was deleted.
    pub item: Option<Arc<Item>>,
}
