//! Fills the tree from etcd and keeps it there by following the watch.
//!
//! A broken watch is opened anew where it ended. If etcd has forgotten that place meanwhile, the
//! tree is read anew and whoever watches it is told to list again: a gap is never passed over in
//! silence. If etcd has gone back in time, the store is given up, for what clients have seen
//! would come undone before their eyes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::etcd::client::{CallError, Client};
use crate::etcd::key::Keys;
use crate::etcd::message::{
    Event, EventType, KeyValue, RangeRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse, WatchUnion,
};
use crate::etcd::{PAGE_ITEMS, Shared, header_revision, range};
use crate::item::{Change, Item};

/// The pause before a broken watch is opened anew, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Requests for progress that may wait; one is enough for all.
const QUEUE_REQUESTS: usize = 4;

/// Shelf and item.
pub(crate) type Placed = (Box<str>, Arc<Item>);

/// Shelf and name.
type Key = (Box<str>, Box<str>);

/// All items at a revision of etcd's; the first number is ours.
pub(crate) async fn load(
    client: &Client,
    keys: &Keys,
    offset: u64,
    revision: i64,
) -> Result<(u64, Vec<Placed>), CallError> {
    let mut items = Vec::new();
    let mut key = keys.start();
    loop {
        let request = RangeRequest {
            key,
            range_end: keys.end(),
            limit: PAGE_ITEMS,
            revision,
            count_only: false,
        };
        let page = range(client, request).await?;
        let Some(last) = page.kvs.last() else { break };
        let mut next = last.key.clone();
        next.push(0);
        key = Bytes::from(next);
        for kv in page.kvs {
            let Some((shelf, name)) = keys.parse(&kv.key) else { continue };
            let (shelf, item) = (
                Box::from(shelf),
                item_of(name, kv.create_revision, kv.mod_revision, offset, kv.value.into()),
            );
            items.push((shelf, Arc::new(item)));
        }
        if !page.more {
            break;
        }
    }
    Ok((u64::try_from(revision).unwrap_or(0) + offset, items))
}

fn item_of(name: &str, created: i64, modified: i64, offset: u64, value: Bytes) -> Item {
    let ours = |revision: i64| u64::try_from(revision).unwrap_or(0) + offset;
    Item::new(name, value, ours(created), ours(modified), None)
}

/// How a watch ended.
enum End {
    Broken(CallError),
    Forgotten,
}

/// Follows until the store is dropped or lost.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut pause = PAUSE.0;
    loop {
        let before = shared.tree.revision();
        let end = follow_once(&shared).await;
        shared.following.store(false, Ordering::SeqCst);
        let outcome = match end {
            End::Broken(err) => Err(err),
            End::Forgotten => reload(&shared).await,
        };
        if let Err(err) = outcome {
            tracing::warn!(%err, "the watch of etcd broke; it is opened anew");
            shared.client.watch_broke();
        }
        if shared.lost.is_cancelled() {
            return;
        }
        if shared.tree.revision() > before {
            pause = PAUSE.0;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Reads everything anew; whoever watches must list.
async fn reload(shared: &Shared) -> Result<(), CallError> {
    let newest = shared.newest().await?;
    let (revision, items) = load(&shared.client, &shared.keys, shared.offset, newest).await?;
    tracing::warn!(revision, "etcd has forgotten what happened meanwhile; all was read anew");
    shared.tree.reset(revision, items);
    Ok(())
}

async fn follow_once(shared: &Shared) -> End {
    match shared.newest().await {
        Err(err) => return End::Broken(err),
        Ok(newest) if shared.ours(newest) < shared.tree.revision() => {
            let (newest, seen) = (shared.ours(newest), shared.tree.revision());
            tracing::error!(newest, seen, "etcd has gone back in time; the store is given up");
            shared.lost.cancel();
            return End::Broken(CallError::local("Watch", Code::DataLoss, "time went back"));
        }
        Ok(_) => {}
    }
    let (requests, inbox) = mpsc::channel(QUEUE_REQUESTS);
    let create = WatchCreateRequest {
        key: shared.keys.start(),
        range_end: shared.keys.end(),
        start_revision: shared.theirs(shared.tree.revision()).saturating_add(1),
        progress_notify: true,
        fragment: true,
    };
    // The channel is new and has room.
    let _sent = requests.try_send(WatchRequest { union: Some(WatchUnion::Create(create)) }).is_ok();
    let mut stream = match shared.client.watch(ReceiverStream::new(inbox)).await {
        Ok(stream) => stream,
        Err(err) => return End::Broken(err),
    };
    let mut fragments: Vec<Event> = Vec::new();
    loop {
        let response = tokio::select! {
            response = next(&mut stream) => response,
            () = shared.nudge.notified() => {
                let progress = WatchUnion::Progress(WatchProgressRequest {});
                // A full channel holds such a request already.
                let _sent = requests.try_send(WatchRequest { union: Some(progress) }).is_ok();
                continue;
            }
        };
        let response = match response {
            Ok(response) => response,
            Err(err) => return End::Broken(err),
        };
        if response.canceled {
            if response.compact_revision > 0 {
                return End::Forgotten;
            }
            let reason = &response.cancel_reason;
            return End::Broken(CallError::local("Watch", Code::Unavailable, reason));
        }
        shared.following.store(true, Ordering::SeqCst);
        fragments.extend(response.events);
        if response.fragment || response.created {
            continue;
        }
        if fragments.is_empty() {
            // A sign of progress: everything up to here has been sent.
            if let Ok(revision) = header_revision(response.header) {
                shared.tree.advance(shared.ours(revision));
            }
        }
        apply(shared, std::mem::take(&mut fragments));
        if shared.lost.is_cancelled() {
            return End::Broken(CallError::local("Watch", Code::Aborted, "the store was moved"));
        }
    }
}

async fn next(stream: &mut Streaming<WatchResponse>) -> Result<WatchResponse, CallError> {
    match stream.message().await {
        Ok(Some(response)) => Ok(response),
        Ok(None) => Err(CallError::local("Watch", Code::Unavailable, "the stream ended")),
        Err(status) => Err(CallError::local("Watch", status.code(), status.message())),
    }
}

fn apply(shared: &Shared, events: Vec<Event>) {
    let seen = shared.tree.revision();
    let mut changes = Vec::with_capacity(events.len());
    let mut pending: BTreeMap<Key, Option<Arc<Item>>> = BTreeMap::new();
    let mut shelves: BTreeMap<Box<str>, Arc<str>> = BTreeMap::new();
    let mut last = seen;
    for event in events {
        let is_put = event.r#type == i32::from(EventType::Put);
        let Some(kv) = event.kv else { continue };
        let revision = shared.ours(kv.mod_revision);
        if revision <= seen {
            continue;
        }
        last = last.max(revision);
        if kv.key == shared.keys.meta() && kv.mod_revision > shared.meta_revision {
            tracing::error!("the store in etcd is moved or restored; it must be opened anew");
            shared.lost.cancel();
            return;
        }
        let Some((shelf, name)) = shared.keys.parse(&kv.key) else { continue };
        let place: Key = (shelf.into(), name.into());
        let previous = match pending.get(&place) {
            Some(previous) => previous.clone(),
            None => shared.tree.get(shelf, name),
        };
        let shelf = shelves.entry(shelf.into()).or_insert_with(|| shelf.into());
        let (shelf, current) = (Arc::clone(shelf), is_put.then(|| written(shared, name, &kv)));
        if current.is_none() && previous.is_none() {
            // A key that came and went between two others of the same transaction.
            continue;
        }
        pending.insert(place, current.clone());
        changes.push((shelf, Arc::new(Change { revision, current, previous })));
    }
    shared.tree.apply(changes);
    // Keys of the store's own have no item, but their revision has passed.
    shared.tree.advance(last);
}

fn written(shared: &Shared, name: &str, kv: &KeyValue) -> Arc<Item> {
    let (created, modified) = (shared.ours(kv.create_revision), shared.ours(kv.mod_revision));
    Arc::new(match shared.known(&kv.key, &kv.value) {
        Some((value, head)) => Item::new(name, value, created, modified, Some(head)),
        None => {
            let value = Bytes::copy_from_slice(&kv.value);
            Item::new(name, value, created, modified, None)
        }
    })
}
