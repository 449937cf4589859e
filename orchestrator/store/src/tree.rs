//! The tree in memory: every current item, and per shelf a window of past changes.
//!
//! An older revision is read by taking the present and undoing the changes since, so no item
//! carries a chain of versions and the window alone bounds what history costs.
//!
//! One lock guards everything, so that whoever has seen revision 11 of one shelf also sees
//! revision 10 of another. It is held to copy pointers, never to copy or parse bytes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::item::{Change, Item};
use crate::watch::Compacted;

/// Changes a shelf remembers at most.
const WINDOW_CHANGES_MAX: usize = 16_384;
/// Bytes of old versions a shelf remembers at most.
const WINDOW_BYTES_MAX: usize = 32 << 20;
/// Beyond this many changes, old ones are forgotten by age too: heartbeats fill the window
/// otherwise, and nobody resumes that late.
const WINDOW_CHANGES_KEPT: usize = 256;
/// The age from which a change may be forgotten.
const WINDOW_AGE: Duration = Duration::from_secs(300);

/// What to read of a shelf.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The shelf.
    pub shelf: &'a str,
    /// Only names that begin so.
    pub prefix: &'a str,
    /// Only names after this one; for the next page.
    pub after: Option<&'a str>,
    /// The revision to read at; `None` is now.
    pub at: Option<u64>,
    /// How many items at most.
    pub limit: usize,
}

/// A page of a shelf.
#[derive(Debug)]
pub struct Page {
    /// The items by name.
    pub items: Vec<Arc<Item>>,
    /// The revision all of them were read at.
    pub revision: u64,
    /// Whether names follow after the last item.
    pub more: bool,
}

/// Why a range cannot be read at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The window no longer reaches back that far.
    #[error("revision {at} is older than what the shelf remembers, {floor}")]
    Compacted {
        /// The revision asked for.
        at: u64,
        /// The oldest revision that can be read.
        floor: u64,
    },
    /// The revision has not happened yet.
    #[error("revision {at} is newer than the newest, {newest}")]
    Future {
        /// The revision asked for.
        at: u64,
        /// The newest revision.
        newest: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Tree {
    state: RwLock<State>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// Where the history of shelves begins that hold nothing.
    base: u64,
    shelves: BTreeMap<Box<str>, Shelf>,
}

#[derive(Debug)]
struct Shelf {
    items: BTreeMap<Box<str>, Arc<Item>>,
    window: VecDeque<(Instant, Arc<Change>)>,
    window_bytes: usize,
    /// The oldest revision at which the shelf can be read and after which it can be watched.
    floor: u64,
    news: watch::Sender<u64>,
}

impl Shelf {
    fn new(floor: u64) -> Self {
        let news = watch::Sender::new(floor);
        Self { items: BTreeMap::new(), window: VecDeque::new(), window_bytes: 0, floor, news }
    }

    fn apply(&mut self, now: Instant, change: Arc<Change>) {
        match &change.current {
            Some(item) => {
                self.items.insert(item.name().into(), Arc::clone(item));
            }
            None => {
                self.items.remove(change.name());
            }
        }
        self.window_bytes += change.size_bytes();
        self.window.push_back((now, change));
        while let Some((at, oldest)) = self.window.front() {
            let aged = self.window.len() > WINDOW_CHANGES_KEPT
                && now.saturating_duration_since(*at) > WINDOW_AGE;
            if self.window.len() <= WINDOW_CHANGES_MAX
                && self.window_bytes <= WINDOW_BYTES_MAX
                && !aged
            {
                break;
            }
            self.floor = oldest.revision;
            self.window_bytes = self.window_bytes.saturating_sub(oldest.size_bytes());
            self.window.pop_front();
        }
    }

    fn changes_after(&self, revision: u64) -> impl Iterator<Item = &Arc<Change>> {
        let start = self.window.partition_point(|(_, change)| change.revision <= revision);
        self.window.range(start..).map(|(_, change)| change)
    }
}

impl Tree {
    /// A tree as read from disk: items and, per shelf, the revision of its last change.
    ///
    /// A watcher that had seen a shelf's last change may go on where it was; what happened before
    /// is forgotten by a restart.
    ///
    /// `base` is where the history begins of shelves that are not among them.
    pub(crate) fn new(
        revision: u64,
        base: u64,
        floors: impl IntoIterator<Item = (Box<str>, u64)>,
        items: impl IntoIterator<Item = (Box<str>, Arc<Item>)>,
    ) -> Self {
        let mut state = State { revision, base, shelves: BTreeMap::new() };
        for (name, floor) in floors {
            state.shelves.insert(name, Shelf::new(floor));
        }
        for (shelf, item) in items {
            let shelf = state.shelves.entry(shelf).or_insert_with(|| Shelf::new(revision));
            shelf.items.insert(item.name().into(), item);
        }
        Self { state: RwLock::new(state), newest: watch::Sender::new(revision) }
    }

    /// A tree of which nothing is known from before this revision.
    pub(crate) fn since(
        revision: u64,
        items: impl IntoIterator<Item = (Box<str>, Arc<Item>)>,
    ) -> Self {
        Self::new(revision, revision, [], items)
    }

    pub(crate) fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Replaces everything and forgets the past: whoever watches must list anew.
    pub(crate) fn reset(
        &self,
        revision: u64,
        items: impl IntoIterator<Item = (Box<str>, Arc<Item>)>,
    ) {
        let mut touched = Vec::new();
        {
            let mut state = self.write();
            (state.revision, state.base) = (revision, revision);
            for shelf in state.shelves.values_mut() {
                let news = shelf.news.clone();
                *shelf = Shelf { news, ..Shelf::new(revision) };
            }
            for (name, item) in items {
                shelf_of(&mut state, &name).items.insert(item.name().into(), item);
            }
            touched.extend(state.shelves.values().map(|shelf| shelf.news.clone()));
        }
        for news in touched {
            news.send_replace(revision);
        }
        self.newest.send_replace(revision);
    }

    /// Nothing more is to come up to this revision.
    pub(crate) fn advance(&self, revision: u64) {
        {
            let mut state = self.write();
            if revision <= state.revision {
                return;
            }
            state.revision = revision;
        }
        self.newest.send_replace(revision);
    }

    pub(crate) async fn wait_for(&self, revision: u64) {
        let mut newest = self.newest.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _reached = newest.wait_for(|&now| now >= revision).await.is_ok();
    }

    pub(crate) fn get(&self, shelf: &str, name: &str) -> Option<Arc<Item>> {
        self.read().shelves.get(shelf)?.items.get(name).cloned()
    }

    pub(crate) fn count(&self, shelf: &str, prefix: &str) -> usize {
        let state = self.read();
        let Some(shelf) = state.shelves.get(shelf) else { return 0 };
        if prefix.is_empty() {
            return shelf.items.len();
        }
        from(&shelf.items, prefix, None).take_while(|(name, _)| name.starts_with(prefix)).count()
    }

    pub(crate) fn range(&self, query: &Query<'_>) -> Result<Page, RangeError> {
        let state = self.read();
        let at = query.at.unwrap_or(state.revision);
        if at > state.revision {
            return Err(RangeError::Future { at, newest: state.revision });
        }
        let Some(shelf) = state.shelves.get(query.shelf) else {
            if at < state.base {
                return Err(RangeError::Compacted { at, floor: state.base });
            }
            return Ok(Page { items: Vec::new(), revision: at, more: false });
        };
        if at < shelf.floor {
            return Err(RangeError::Compacted { at, floor: shelf.floor });
        }
        let present = from(&shelf.items, query.prefix, query.after)
            .take_while(|(name, _)| name.starts_with(query.prefix))
            .map(|(_, item)| item);
        let mut undone: BTreeMap<&str, Option<&Arc<Item>>> = BTreeMap::new();
        for change in shelf.changes_after(at) {
            let name = change.name();
            if name.starts_with(query.prefix) && query.after.is_none_or(|after| name > after) {
                // The first change after `at` knows how the item was at `at`.
                undone.entry(name).or_insert(change.previous.as_ref());
            }
        }
        let mut items = Vec::new();
        let mut more = false;
        for item in merge(present, undone) {
            if items.len() == query.limit {
                more = true;
                break;
            }
            items.push(Arc::clone(item));
        }
        Ok(Page { items, revision: at, more })
    }

    /// Applies durable changes, in the order of their revisions, and wakes who waits for them.
    pub(crate) fn apply(&self, changes: Vec<(Arc<str>, Arc<Change>)>) {
        let now = Instant::now();
        let Some(last) = changes.last().map(|(_, change)| change.revision) else { return };
        let mut touched: BTreeMap<Arc<str>, watch::Sender<u64>> = BTreeMap::new();
        {
            let mut state = self.write();
            debug_assert!(last > state.revision, "revisions only grow");
            for (name, change) in changes {
                let shelf = shelf_of(&mut state, &name);
                shelf.apply(now, change);
                touched.entry(name).or_insert_with(|| shelf.news.clone());
            }
            state.revision = last;
        }
        for news in touched.values() {
            news.send_replace(last);
        }
        self.newest.send_replace(last);
    }

    pub(crate) fn news(&self, shelf: &str) -> watch::Receiver<u64> {
        if let Some(shelf) = self.read().shelves.get(shelf) {
            return shelf.news.subscribe();
        }
        shelf_of(&mut self.write(), shelf).news.subscribe()
    }

    /// Up to `limit` changes of a shelf after a revision, oldest first, and the revision up to
    /// which nothing more is to come: all there is when fewer than `limit` were found.
    pub(crate) fn changes(
        &self,
        shelf: &str,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<Arc<Change>>, u64), Compacted> {
        let state = self.read();
        let Some(shelf) = state.shelves.get(shelf) else {
            if after < state.base {
                return Err(Compacted { after, floor: state.base });
            }
            return Ok((Vec::new(), state.revision.max(after)));
        };
        if after < shelf.floor {
            return Err(Compacted { after, floor: shelf.floor });
        }
        let changes: Vec<_> = shelf.changes_after(after).take(limit).cloned().collect();
        let seen = match changes.last() {
            Some(last) if changes.len() == limit => last.revision,
            _ => state.revision.max(after),
        };
        Ok((changes, seen))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shelf nobody has written to is empty at every revision that is known.
fn shelf_of<'a>(state: &'a mut State, name: &str) -> &'a mut Shelf {
    let base = state.base;
    if !state.shelves.contains_key(name) {
        state.shelves.insert(name.into(), Shelf::new(base));
    }
    state.shelves.entry(name.into()).or_insert_with(|| Shelf::new(base))
}

fn from<'a>(
    items: &'a BTreeMap<Box<str>, Arc<Item>>,
    prefix: &str,
    after: Option<&str>,
) -> impl Iterator<Item = (&'a Box<str>, &'a Arc<Item>)> {
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    items.range::<str, _>((start, Bound::Unbounded))
}

/// Merges the present with what must be undone; both are ordered by name.
fn merge<'a>(
    present: impl Iterator<Item = &'a Arc<Item>>,
    undone: BTreeMap<&'a str, Option<&'a Arc<Item>>>,
) -> impl Iterator<Item = &'a Arc<Item>> {
    let mut present = present.peekable();
    let mut undone = undone.into_iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let Some(&(undone_name, past)) = undone.peek() else { return present.next() };
            match present.peek() {
                Some(item) if item.name() < undone_name => return present.next(),
                Some(item) if item.name() == undone_name => {
                    present.next();
                }
                _ => {}
            }
            undone.next();
            if past.is_some() {
                return past;
            }
        }
    })
}
