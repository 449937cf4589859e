//! A local copy of one resource, kept by list and watch.
//!
//! Readers take a [`Snapshot`] (cheap: a shared pointer) and see one consistent state. What
//! does not decode is left out, named in the log, and stops nothing. The cache never writes.
//!
//! One task per cache: [`Reflector::run`].

mod services;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::client::{Client, ClientError, ListParams, WatchEvent, WatchParams};
use crate::resource::Resource;
use crate::telemetry::report;

pub use services::ServiceCaches;

/// Objects per page of the first list: bounds the memory of one answer.
const PAGE: u32 = 500;
/// Changes remembered for those who follow; who falls further behind looks at everything.
const JOURNAL: usize = 4096;

/// Name of an object inside its resource; `namespace` is empty for cluster-wide ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// Namespace or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    fn of(object: &Value) -> Self {
        let text = |pointer: &str| {
            object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Self { namespace: text("/metadata/namespace"), name: text("/metadata/name") }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            out.write_str(&self.name)
        } else {
            write!(out, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One consistent state of a resource.
pub type Snapshot<T> = Arc<BTreeMap<Key, Arc<T>>>;

/// Which objects a cache holds.
#[derive(Debug, Clone, Default)]
pub struct CacheParams {
    /// One namespace; `None` for all.
    pub namespace: Option<String>,
    /// Label selector; empty for all.
    pub label_selector: String,
    /// Field selector; empty for all.
    pub field_selector: String,
    /// Leaves out what nobody reads before an object is decoded.
    pub trim: Option<fn(&mut Value)>,
}

impl CacheParams {
    /// Selects by fields, such as `spec.nodeName=a`.
    #[must_use]
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: selector.into(), ..Self::default() }
    }
}

/// The readers' side; cheap to clone.
pub struct Cache<T = Value> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> fmt::Debug for Cache<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Cache").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

struct Shared<T> {
    state: RwLock<State<T>>,
    /// Revision seen; wakes the readers.
    seen: watch::Sender<u64>,
}

struct State<T> {
    objects: Snapshot<T>,
    /// The latest changes, oldest first.
    journal: VecDeque<Change<T>>,
    /// The serial number of the journal's first change.
    first: u64,
}

impl<T> State<T> {
    fn note(&mut self, change: Change<T>) {
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
            self.first += 1;
        }
        self.journal.push_back(change);
    }

    fn next(&self) -> u64 {
        self.first.saturating_add(u64::try_from(self.journal.len()).unwrap_or(u64::MAX))
    }
}

/// One object before and after a change.
#[derive(Debug)]
pub struct Change<T> {
    /// Which one.
    pub key: Key,
    /// What it was; `None` when it is new.
    pub before: Option<Arc<T>>,
    /// What it is; `None` when it is gone.
    pub after: Option<Arc<T>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), before: self.before.clone(), after: self.after.clone() }
    }
}

/// What happened since a reader last asked.
#[derive(Debug)]
pub enum Changes<T> {
    /// These changes, in order.
    These(Vec<Change<T>>),
    /// More than is remembered, or a new list: look at everything.
    Everything(Snapshot<T>),
}

impl<T: DeserializeOwned + Send + Sync + 'static> Cache<T> {
    /// Makes a cache and the task that fills it, which the caller must run.
    #[must_use]
    pub fn new(client: Client, resource: Resource, params: CacheParams) -> (Self, Reflector<T>) {
        let (seen, _) = watch::channel(0);
        let state = State { objects: Snapshot::default(), journal: VecDeque::new(), first: 1 };
        let shared = Arc::new(Shared { state: RwLock::new(state), seen });
        let reflector = Reflector { client, resource, params, shared: Arc::clone(&shared) };
        (Self { shared }, reflector)
    }
}

impl<T> Cache<T> {
    /// Returns the current state.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<T> {
        self.shared.snapshot()
    }

    /// Returns one object.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        // Without a hold on the whole, which would make the next change a copy of it.
        self.shared.read().objects.get(&Key::new(namespace, name)).cloned()
    }

    /// Returns every object in key order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<T>> {
        self.snapshot().values().cloned().collect()
    }

    /// Returns what happened since `cursor`, and moves it; a fresh reader starts with 0.
    #[must_use]
    pub fn changes_since(&self, cursor: &mut u64) -> Changes<T> {
        let state = self.shared.read();
        let from = std::mem::replace(cursor, state.next());
        match from.checked_sub(state.first).and_then(|skip| usize::try_from(skip).ok()) {
            Some(skip) => Changes::These(state.journal.iter().skip(skip).cloned().collect()),
            None => Changes::Everything(Arc::clone(&state.objects)),
        }
    }

    /// Wakes when anything changed; the number is the revision seen and may be ignored.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.seen.subscribe()
    }

    /// Returns the revision the cache has seen; 0 before the first list.
    #[must_use]
    pub fn revision(&self) -> u64 {
        *self.shared.seen.borrow()
    }

    /// Says whether the first list has come.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.revision() > 0
    }

    /// Waits for the first list. Cancel safety: safe.
    pub async fn wait_synced(&self) {
        self.wait_revision(1).await;
    }

    /// Waits until the cache has seen `revision`, usually that of one's own write.
    ///
    /// The caller sets the limit. Cancel safety: safe.
    pub async fn wait_revision(&self, revision: u64) {
        let mut changes = self.changes();
        // The sender lives in `self`, so this cannot fail.
        let _closed = changes.wait_for(|seen| *seen >= revision).await;
    }
}

impl<T> Shared<T> {
    // A poisoned lock still guards a whole state: writers only swap or insert.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn snapshot(&self) -> Snapshot<T> {
        Arc::clone(&self.read().objects)
    }

    /// Puts an object in, or takes it out.
    fn set(&self, key: Key, after: Option<Arc<T>>) {
        let mut state = self.write();
        // Copies the map of pointers only while a reader holds the old state.
        let objects = Arc::make_mut(&mut state.objects);
        let before = match &after {
            Some(object) => objects.insert(key.clone(), Arc::clone(object)),
            None => objects.remove(&key),
        };
        state.note(Change { key, before, after });
    }

    /// Puts a new list in the place of everything.
    fn replace(&self, fresh: BTreeMap<Key, Arc<T>>) {
        let mut state = self.write();
        // One number more than was given out: every reader starts over.
        state.first = state.next().saturating_add(1);
        state.journal.clear();
        state.objects = Arc::new(fresh);
    }
}

/// The task that fills a cache.
pub struct Reflector<T> {
    client: Client,
    resource: Resource,
    params: CacheParams,
    shared: Arc<Shared<T>>,
}

impl<T> fmt::Debug for Reflector<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Reflector").field("resource", &self.resource).finish_non_exhaustive()
    }
}

/// Why a watch is over.
enum WatchEnd {
    /// Normal: go on at the last revision.
    Ended,
    /// The revision is no longer kept, or the stream makes no sense.
    Relist,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Reflector<T> {
    /// Keeps the cache until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! { biased;
            () = stop.cancelled() => (),
            () = self.keep() => (),
        }
    }

    async fn keep(&self) {
        let mut backoff = Backoff::default();
        loop {
            match self.relist().await {
                Ok(revision) => {
                    backoff.reset();
                    self.follow(revision, &mut backoff).await;
                }
                Err(err) => {
                    warn!(resource = %self.resource, err = report(&err), "cannot list; retrying");
                }
            }
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Watches from `revision` until a new list is needed.
    async fn follow(&self, mut revision: String, backoff: &mut Backoff) {
        loop {
            let before = revision.clone();
            match self.watch_once(&mut revision).await {
                Ok(WatchEnd::Relist) => return,
                Ok(WatchEnd::Ended) => debug!(resource = %self.resource, "watch ended"),
                Err(err) if err.is_gone() => return,
                Err(err) => {
                    debug!(resource = %self.resource, err = report(&err), "watch broke; resuming");
                }
            }
            if revision != before {
                backoff.reset();
            }
            // Also after a normal end: a server that ends watches at once must not spin us.
            tokio::time::sleep(backoff.step()).await;
        }
    }

    async fn watch_once(&self, revision: &mut String) -> Result<WatchEnd, ClientError> {
        // Spread over five to ten minutes, so that watches do not all end together.
        let params = WatchParams {
            label_selector: self.params.label_selector.clone(),
            field_selector: self.params.field_selector.clone(),
            resource_version: Some(revision.clone()),
            timeout_seconds: Some(rand::random_range(300..600)),
        };
        let namespace = self.params.namespace.as_deref();
        let events = self.client.watch(&self.resource, namespace, &params).await?;
        let mut events = events.leave_out();
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    *revision = revision_text(&object);
                    if let Some((key, object)) = self.take(object) {
                        self.shared.set(key, Some(object));
                    }
                }
                WatchEvent::Deleted(object) => {
                    *revision = revision_text(&object);
                    self.shared.set(Key::of(&object), None);
                }
                WatchEvent::Bookmark(mark) => *revision = mark,
                WatchEvent::Error(status) => {
                    debug!(resource = %self.resource, code = status.code, "watch refused");
                    return Ok(WatchEnd::Relist);
                }
            }
            let Ok(number) = revision.parse() else { return Ok(WatchEnd::Relist) };
            self.shared.seen.send_replace(number);
        }
        Ok(WatchEnd::Ended)
    }

    /// Replaces everything by a fresh list and returns its revision.
    async fn relist(&self) -> Result<String, ClientError> {
        let mut fresh = BTreeMap::new();
        let mut params = ListParams {
            label_selector: self.params.label_selector.clone(),
            field_selector: self.params.field_selector.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let revision = loop {
            let namespace = self.params.namespace.as_deref();
            let list = self.client.list(&self.resource, namespace, &params).await?;
            fresh.extend(list.items.into_iter().filter_map(|object| self.decode(object)));
            if list.continue_token.is_none() {
                break list.resource_version;
            }
            params.continue_token = list.continue_token;
        };
        self.shared.replace(fresh);
        // A server without numbers would be a stranger; 1 still says "synced".
        self.shared.seen.send_replace(revision.parse().unwrap_or(1).max(1));
        Ok(revision)
    }

    /// Decodes an object of a list, which was read with all that is in it.
    fn decode(&self, mut object: Value) -> Option<(Key, Arc<T>)> {
        // Only the server reads it, and it is often half of an object.
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("managedFields");
        }
        forget_nulls(&mut object);
        self.take(object)
    }

    /// Decodes an object without owners of fields and members that are null.
    fn take(&self, mut object: Value) -> Option<(Key, Arc<T>)> {
        let key = Key::of(&object);
        if let Some(trim) = self.params.trim {
            trim(&mut object);
        }
        match serde_json::from_value(object) {
            Ok(object) => Some((key, Arc::new(object))),
            Err(err) => {
                let resource = &self.resource;
                warn!(%resource, %key, err = report(&err), "object does not decode; left out");
                // What we held before is no longer true.
                self.shared.set(key, None);
                None
            }
        }
    }
}

fn revision_text(object: &Value) -> String {
    let revision = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    revision.unwrap_or_default().to_owned()
}

/// Waits for caches to have their first list, for at most `limit`; `false` when that passed.
pub async fn all_synced(waits: impl Future<Output = ()>, limit: Duration) -> bool {
    tokio::time::timeout(limit, waits).await.is_ok()
}

/// Drops fields that are null: Go programs write an empty list so, and typed views know empty
/// lists only.
fn forget_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(forget_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
    }
}

#[cfg(test)]
mod tests;
