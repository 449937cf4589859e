//! The embedded store: a durable map by redb below the tree, written in groups.
//!
//! The commit thread takes everything that arrived while the last group was being synced, writes
//! it as one transaction, syncs once, and only then shows it to readers and answers. Writes that
//! nobody hurries, such as the heartbeats of nodes, wait a moment for company first.
//! Recovery is opening: redb comes back to its last complete transaction, and the tree is read
//! from it; each record carries a checksum. When the disk is full, the file is opened anew, the
//! group's writers are told, readers go on, and writes are refused until there is room. Any other
//! failure ends the store: the outcome of that group is unknown, and only a fresh start reads
//! what is really there.

mod inbox;
mod whole;

pub(crate) use whole::{contents, fill, retire, verify};

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use self::inbox::{Commit, Inbox, Outbox};
use crate::Store;
use crate::backend::{Answer, Backend, Fault, Haste, SyncError, Trouble, WriteError};
use crate::checksum::Checksum;
use crate::item::{Change, Expect, Item, Write, Written};
use crate::tree::Tree;

/// (shelf, name) → checksum of all that follows and of the key, 4 bytes; created and modified
/// revision, 8 bytes each; all little-endian; then the value.
const ITEMS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("items");
/// shelf → revision of its last change.
const SHELVES: TableDefinition<'_, &str, u64> = TableDefinition::new("shelves");
/// `revision` → the newest revision; `format` → [`FORMAT`]; `base` → where the history of shelves
/// begins that hold nothing; `moved` → not 0 when the store lives elsewhere now.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The file's name in its directory.
const FILE: &str = "store.redb";
/// The layout of the tables above.
const FORMAT: u64 = 2;
/// The room a disk must have to count as usable again.
const ROOM_BYTES: usize = 1 << 20;
/// Everything is read from the tree, so the engine needs memory only for the pages it is writing.
const ENGINE_CACHE_BYTES: usize = 4 << 20;

/// Where and how the embedded store is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory; it is created when missing.
    pub dir: PathBuf,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made.
    #[error("cannot make the store's directory {dir}")]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The engine cannot open or read its file.
    #[error("cannot read the store's file")]
    Engine(#[source] redb::Error),
    /// The file was written by another version of the layout.
    #[error("the store's file has format {found}, this program knows {FORMAT}")]
    Format {
        /// What the file says.
        found: u64,
    },
    /// A record is not what was written; `muster store verify` finds all of them.
    #[error("the record of {shelf}/{name} is damaged")]
    Damaged {
        /// The shelf.
        shelf: String,
        /// The name.
        name: String,
    },
    /// There is no store.
    #[error("there is no store at {path}")]
    Missing {
        /// The file that should be there.
        path: PathBuf,
    },
    /// The store was moved away.
    #[error("the store was moved away from here; start with --store etcd")]
    Moved,
    /// The store has items already.
    #[error("the store in {dir} is not empty")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The commit thread cannot be started.
    #[error("cannot start the commit thread")]
    Thread {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The embedded store, as [`Store`] sees it.
#[derive(Debug)]
struct Embedded {
    outbox: Option<Outbox>,
    thread: Option<JoinHandle<()>>,
    full: Arc<AtomicBool>,
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.outbox = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread panicked");
        }
    }
}

impl Backend for Embedded {
    fn write(&self, write: Write, haste: Haste) -> Answer<'_, Result<Written, WriteError>> {
        Box::pin(async move {
            let outbox = self.outbox.as_ref().ok_or(WriteError::Closed)?;
            outbox.write(write, haste).await
        })
    }

    /// Nobody else writes, and the tree has everything before it is acknowledged.
    fn sync(&self) -> Answer<'_, Result<(), SyncError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn trouble(&self) -> Option<Trouble> {
        if self.outbox.as_ref().is_none_or(Outbox::is_closed) {
            return Some(Trouble::Failed);
        }
        self.full.load(Ordering::SeqCst).then_some(Trouble::Full)
    }

    fn failed(&self) -> Answer<'_, ()> {
        Box::pin(async {
            if let Some(outbox) = &self.outbox {
                outbox.closed().await;
            }
        })
    }
}

/// Opens the file; called again after it failed.
pub(crate) type Opener = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send>;

/// Tells whether the disk has room; asked while it is known to be full.
pub(crate) type Room = Box<dyn Fn() -> bool + Send>;

pub(crate) fn open(options: &Options) -> Result<Store, OpenError> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(|source| OpenError::Dir { dir: dir.clone(), source })?;
    let (path, probe) = (dir.join(FILE), dir.join("room"));
    let opener = move || Database::builder().set_cache_size(ENGINE_CACHE_BYTES).create(&path);
    start(Box::new(opener), Box::new(move || has_room(&probe)))
}

/// Writes a file that is thrown away.
fn has_room(probe: &Path) -> bool {
    let written = std::fs::File::create(probe).and_then(|mut file| {
        file.write_all(&vec![0xa5; ROOM_BYTES])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(probe);
    written.and(removed).is_ok()
}

/// Prepares the tables, reads the tree and starts the commit thread.
pub(crate) fn start(opener: Opener, room: Room) -> Result<Store, OpenError> {
    let db = opener().map_err(|err| OpenError::Engine(err.into()))?;
    prepare(&db)?;
    let tree = Arc::new(read_tree(&db)?);
    let full = Arc::new(AtomicBool::new(false));
    let disk = Disk { opener, room, db: Some(db), full: Arc::clone(&full), refused: None };
    let thread_error = |source| OpenError::Thread { source };
    let (outbox, mut inbox) = inbox::channel().map_err(thread_error)?;
    let shared = Arc::clone(&tree);
    let thread = std::thread::Builder::new()
        .name("store-commit".to_owned())
        .spawn(move || commit_all(&mut inbox, disk, &shared))
        .map_err(thread_error)?;
    let embedded = Embedded { outbox: Some(outbox), thread: Some(thread), full };
    Ok(Store::on(tree, Arc::new(embedded)))
}

/// The file, which may have to be opened anew.
struct Disk {
    opener: Opener,
    room: Room,
    db: Option<Database>,
    /// Shown to those who ask after the store's health.
    full: Arc<AtomicBool>,
    /// Why the last group was refused; until there is room, all are.
    refused: Option<Arc<redb::Error>>,
}

impl Disk {
    /// Writes a group; after a failure, finds out what became of it.
    fn write(&mut self, plan: &Plan, before: u64) -> Outcome {
        if plan.changes.is_empty() {
            return Outcome::Written;
        }
        // A failed write costs a look at the whole file, so it is not tried in vain.
        if let Some(source) = self.refused.clone()
            && !self.look_for_room()
        {
            return Outcome::Refused(source);
        }
        let Some(db) = &self.db else {
            return Outcome::Lost(Arc::new(redb::Error::PreviousIo));
        };
        let Err(source) = write_changes(db, &plan.changes, plan.revision) else {
            return Outcome::Written;
        };
        let source = Arc::new(source);
        tracing::error!(err = %source, "the store's file cannot be written; it is opened anew");
        // The engine refuses all work after a failure, and the file is locked until it is gone.
        self.db = None;
        match self.reopen() {
            Ok(revision) if revision == before && is_full(&source) => {
                self.refuse(&source);
                Outcome::Refused(source)
            }
            Ok(revision) if revision == plan.revision && is_full(&source) => {
                self.refuse(&source);
                Outcome::Doubtful(source)
            }
            Ok(_) => Outcome::Lost(source),
            Err(err) => {
                tracing::error!(%err, "the store's file cannot be opened anew");
                Outcome::Lost(source)
            }
        }
    }

    fn refuse(&mut self, source: &Arc<redb::Error>) {
        self.refused = Some(Arc::clone(source));
        self.full.store(true, Ordering::SeqCst);
    }

    /// Asks whether a full disk has room again.
    fn look_for_room(&mut self) -> bool {
        if self.refused.is_some() && (self.room)() {
            tracing::info!("the disk has room again; writes are taken");
            self.refused = None;
            self.full.store(false, Ordering::SeqCst);
        }
        self.refused.is_none()
    }

    /// Opens the file again; the newest revision that is in it.
    fn reopen(&mut self) -> Result<u64, redb::Error> {
        let db = (self.opener)()?;
        let transaction = db.begin_read()?;
        let revision = transaction.open_table(META)?.get("revision")?.map_or(0, |v| v.value());
        drop(transaction);
        self.db = Some(db);
        Ok(revision)
    }
}

/// Is there only no room, and the disk otherwise well?
fn is_full(err: &redb::Error) -> bool {
    let redb::Error::Io(err) = err else { return false };
    matches!(err.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// What became of a group.
enum Outcome {
    Written,
    /// It did not happen; the next one may.
    Refused(Arc<redb::Error>),
    /// It is in the file, but a failed sync may have left it in memory alone: what a restart
    /// would find is shown to readers, and nobody is promised that it stays.
    Doubtful(Arc<redb::Error>),
    /// Nobody knows, and nothing more can be written.
    Lost(Arc<redb::Error>),
}

impl Outcome {
    fn failure(&self) -> Option<WriteError> {
        let fault = |source: &Arc<redb::Error>| Fault::Engine(Arc::clone(source));
        match self {
            Self::Written => None,
            Self::Refused(source) => Some(WriteError::Full(fault(source))),
            Self::Doubtful(source) | Self::Lost(source) => Some(WriteError::Storage(fault(source))),
        }
    }
}

fn prepare(db: &Database) -> Result<(), OpenError> {
    if make_tables(db).map_err(OpenError::Engine)? { Ok(()) } else { Err(OpenError::Moved) }
}

/// Whether the store may be used.
fn make_tables(db: &Database) -> Result<bool, redb::Error> {
    let transaction = db.begin_write()?;
    {
        transaction.open_table(ITEMS)?;
        transaction.open_table(SHELVES)?;
        let mut meta = transaction.open_table(META)?;
        if meta.get("format")?.is_some() {
            let moved = meta.get("moved")?.is_some_and(|moved| moved.value() != 0);
            drop(meta);
            transaction.abort()?;
            return Ok(!moved);
        }
        meta.insert("format", FORMAT)?;
        // Clients take revision 0 for "any", so the first one ever seen must be greater.
        meta.insert("revision", 1)?;
    }
    transaction.commit()?;
    Ok(true)
}

fn read_tree(db: &Database) -> Result<Tree, OpenError> {
    let engine = |err: redb::StorageError| OpenError::Engine(err.into());
    let table = |err: redb::TableError| OpenError::Engine(err.into());
    let transaction = db.begin_read().map_err(|err| OpenError::Engine(err.into()))?;
    let meta = transaction.open_table(META).map_err(table)?;
    let number = |key| meta.get(key).map(|v| v.map_or(0, |v| v.value())).map_err(engine);
    let format = number("format")?;
    if format != FORMAT {
        return Err(OpenError::Format { found: format });
    }
    let revision = number("revision")?;
    let mut floors = Vec::new();
    for row in transaction.open_table(SHELVES).map_err(table)?.iter().map_err(engine)? {
        let (shelf, last) = row.map_err(engine)?;
        floors.push((Box::from(shelf.value()), last.value()));
    }
    let mut items = Vec::new();
    for row in transaction.open_table(ITEMS).map_err(table)?.iter().map_err(engine)? {
        let (key, record) = row.map_err(engine)?;
        let (shelf, name) = key.value();
        let item = decode_record(shelf, name, record.value())
            .ok_or_else(|| OpenError::Damaged { shelf: shelf.to_owned(), name: name.to_owned() })?;
        items.push((Box::from(shelf), Arc::new(item)));
    }
    Ok(Tree::new(revision, number("base")?, floors, items))
}

fn checksum(shelf: &str, name: &str, rest: &[u8]) -> [u8; 4] {
    let key = Checksum::new().with(shelf.as_bytes()).with(&[0]).with(name.as_bytes()).with(&[0]);
    key.with(rest).value().to_le_bytes()
}

/// `None` when the record is not what was written.
fn decode_record(shelf: &str, name: &str, record: &[u8]) -> Option<Item> {
    let (sum, rest) = record.split_first_chunk::<4>()?;
    if *sum != checksum(shelf, name, rest) {
        return None;
    }
    let (created, rest) = rest.split_first_chunk::<8>()?;
    let (modified, value) = rest.split_first_chunk::<8>()?;
    let value = Bytes::copy_from_slice(value);
    let (created, modified) = (u64::from_le_bytes(*created), u64::from_le_bytes(*modified));
    Some(Item::new(name, value, created, modified, None))
}

fn render_record(shelf: &str, item: &Item, record: &mut Vec<u8>) {
    record.clear();
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(&item.created().to_le_bytes());
    record.extend_from_slice(&item.modified().to_le_bytes());
    record.extend_from_slice(item.value());
    if let Some((sum, rest)) = record.split_first_chunk_mut::<4>() {
        *sum = checksum(shelf, item.name(), rest);
    }
}

/// Commits groups until every sender is gone or the disk is lost.
fn commit_all(inbox: &mut Inbox, mut disk: Disk, tree: &Tree) {
    while let Some(group) = inbox.next_group(&mut disk) {
        let mut plan = Plan::default();
        let mut verdicts = Vec::with_capacity(group.len());
        for Commit { write, reply } in group {
            verdicts.push((reply, plan.decide(write, tree)));
        }
        let outcome = disk.write(&plan, tree.revision());
        if matches!(outcome, Outcome::Written | Outcome::Doubtful(_)) {
            tree.apply(plan.changes);
        }
        for (reply, verdict) in verdicts {
            let verdict = match outcome.failure() {
                None => verdict,
                Some(failure) => Err(failure),
            };
            // Whoever no longer waits for the answer has decided to live without it.
            let _heard = reply.send(verdict).is_ok();
        }
        if matches!(outcome, Outcome::Lost(_)) {
            return;
        }
    }
}

/// Shelf and name.
type Key = (Arc<str>, Box<str>);

/// What a group will have changed once it is durable.
#[derive(Default)]
struct Plan {
    changes: Vec<(Arc<str>, Arc<Change>)>,
    /// The items as earlier writes of the group leave them.
    pending: BTreeMap<Key, Option<Arc<Item>>>,
    revision: u64,
}

impl Plan {
    fn decide(&mut self, write: Write, tree: &Tree) -> Result<Written, WriteError> {
        let key = (write.shelf, write.name);
        let previous = match self.pending.get(&key) {
            Some(pending) => pending.clone(),
            None => tree.get(&key.0, &key.1),
        };
        let fits = match (write.expect, &previous) {
            (Expect::Absent, None) => true,
            (Expect::Revision(revision), Some(item)) => item.modified() == revision,
            (Expect::Absent, Some(_)) | (Expect::Revision(_), None) => false,
        };
        if !fits {
            return Err(WriteError::Conflict { current: previous });
        }
        if self.revision == 0 {
            self.revision = tree.revision();
        }
        self.revision += 1;
        let revision = self.revision;
        let created = previous.as_ref().map_or(revision, |item| item.created());
        let item = write
            .value
            .map(|value| Arc::new(Item::new(&key.1, value, created, revision, write.head)));
        let change = Change { revision, current: item.clone(), previous };
        self.changes.push((Arc::clone(&key.0), Arc::new(change)));
        self.pending.insert(key, item.clone());
        Ok(Written { revision, item })
    }
}

fn write_changes(
    db: &Database,
    changes: &[(Arc<str>, Arc<Change>)],
    revision: u64,
) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    {
        let mut items = transaction.open_table(ITEMS)?;
        let mut shelves = transaction.open_table(SHELVES)?;
        let mut meta = transaction.open_table(META)?;
        let mut record = Vec::new();
        for (shelf, change) in changes {
            let key = (&**shelf, change.name());
            match &change.current {
                Some(item) => {
                    render_record(shelf, item, &mut record);
                    items.insert(key, record.as_slice())?;
                }
                None => {
                    items.remove(key)?;
                }
            }
            shelves.insert(&**shelf, change.revision)?;
        }
        meta.insert("revision", revision)?;
    }
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests;
