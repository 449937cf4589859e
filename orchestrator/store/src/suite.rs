//! What every store must do, whatever lies below it; run by the tests of each kind.
//!
//! The functions panic with what went wrong, as tests do.
#![expect(clippy::expect_used, reason = "this module is a test")]

mod members;

pub use members::Members;

use std::sync::Arc;

use bytes::Bytes;

use crate::{Change, Compacted, Expect, Query, RangeError, Store, Write, WriteError, Written};

/// The whole of a shelf, now.
#[must_use]
pub fn all(shelf: &str) -> Query<'_> {
    Query { shelf, prefix: "", after: None, at: None, limit: usize::MAX }
}

/// A write of text.
#[must_use]
pub fn put(shelf: &str, name: &str, expect: Expect, text: &str) -> Write {
    Write {
        shelf: shelf.into(),
        name: name.into(),
        expect,
        value: Some(Bytes::copy_from_slice(text.as_bytes())),
        head: None,
    }
}

/// A deletion.
#[must_use]
pub fn remove(shelf: &str, name: &str, revision: u64) -> Write {
    let expect = Expect::Revision(revision);
    Write { shelf: shelf.into(), name: name.into(), expect, value: None, head: None }
}

/// Runs the whole suite on an empty store.
pub async fn run(store: &Store) {
    a_write_needs_its_expectation(store).await;
    the_past_can_be_read_and_paged(store).await;
    a_watch_is_ordered_complete_and_resumable(store).await;
    concurrent_writers_of_one_item_never_lose_an_update(store).await;
    what_is_written_is_visible_at_once(store).await;
    every_watcher_sees_the_same_history(store).await;
    a_slow_watcher_is_told(store).await;
}

async fn write(store: &Store, write: Write) -> Written {
    store.write(write).await.expect("the write fits")
}

async fn a_write_needs_its_expectation(store: &Store) {
    let first = write(store, put("a/x", "n", Expect::Absent, "1")).await;
    let again = store.write(put("a/x", "n", Expect::Absent, "2")).await;
    let Err(WriteError::Conflict { current: Some(current) }) = again else {
        return assert!(again.is_ok() && again.is_err(), "a second create must conflict");
    };
    assert_eq!(current.modified(), first.revision);
    let second = write(store, put("a/x", "n", Expect::Revision(first.revision), "2")).await;
    assert!(second.revision > first.revision);
    let item = second.item.expect("a put leaves an item");
    assert_eq!((item.created(), item.modified()), (first.revision, second.revision));
    assert!(store.write(put("a/x", "n", Expect::Revision(first.revision), "3")).await.is_err());
    assert!(store.write(remove("a/x", "n", first.revision)).await.is_err());
    assert!(write(store, remove("a/x", "n", second.revision)).await.item.is_none());
    assert!(store.get("a/x", "n").is_none());
    assert!(matches!(
        store.write(remove("a/x", "n", second.revision)).await,
        Err(WriteError::Conflict { current: None })
    ));
}

async fn the_past_can_be_read_and_paged(store: &Store) {
    for name in ["a/1", "a/2", "b/1", "b/2"] {
        write(store, put("past/x", name, Expect::Absent, "old")).await;
    }
    let before = store.revision();
    let victim = store.get("past/x", "a/2").expect("written above").modified();
    write(store, remove("past/x", "a/2", victim)).await;
    let changed = store.get("past/x", "b/1").expect("written above").modified();
    write(store, put("past/x", "b/1", Expect::Revision(changed), "new")).await;
    write(store, put("past/x", "c/1", Expect::Absent, "new")).await;

    let names = |query: Query<'_>| {
        let page = store.range(&query).expect("inside the window");
        let names: Vec<_> = page.items.iter().map(|i| i.name().to_owned()).collect();
        (names, page.more)
    };
    let whole = |names: &[&str]| (names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>(), false);
    let (past, now) = (Query { at: Some(before), ..all("past/x") }, all("past/x"));
    assert_eq!(names(past), whole(&["a/1", "a/2", "b/1", "b/2"]));
    assert_eq!(names(now), whole(&["a/1", "b/1", "b/2", "c/1"]));
    assert_eq!(names(Query { prefix: "b/", ..now }), whole(&["b/1", "b/2"]));
    assert_eq!(names(Query { limit: 2, ..past }).0, ["a/1", "a/2"]);
    assert!(names(Query { limit: 2, ..past }).1);
    assert_eq!(names(Query { limit: 2, after: Some("a/2"), ..past }), whole(&["b/1", "b/2"]));
    let page = store.range(&Query { prefix: "b/1", ..past }).expect("inside the window");
    assert_eq!(page.items.first().expect("one item").value(), "old");
    assert_eq!(page.revision, before);
    assert_eq!(store.count("past/x", "b/"), 2);
    let future = Query { at: Some(store.revision() + 1), ..now };
    assert!(matches!(store.range(&future), Err(RangeError::Future { .. })));
}

async fn a_watch_is_ordered_complete_and_resumable(store: &Store) {
    let start = store.revision();
    let mut revisions = Vec::new();
    for n in 0..600 {
        let name = if n % 2 == 0 { format!("even/{n}") } else { format!("odd/{n}") };
        revisions.push(write(store, put("w/x", &name, Expect::Absent, "")).await.revision);
        write(store, put("w/other", &name, Expect::Absent, "")).await;
    }
    assert_eq!(take(store, "w/x", "", start, 600).await, revisions);
    let odd: Vec<_> = revisions.iter().skip(1).step_by(2).copied().collect();
    assert_eq!(take(store, "w/x", "odd/", start, 300).await, odd);
    let (seen, rest) = revisions.split_at(123);
    let resumed = seen.last().copied().unwrap_or(start);
    assert_eq!(take(store, "w/x", "", resumed, rest.len()).await, rest);
}

async fn take(store: &Store, shelf: &str, prefix: &str, after: u64, count: usize) -> Vec<u64> {
    let mut watch = store.watch(shelf, prefix, after);
    let mut seen: Vec<u64> = Vec::new();
    while seen.len() < count {
        let changes: Vec<Arc<Change>> = watch.next().await.expect("inside the window");
        seen.extend(changes.iter().map(|change| change.revision));
    }
    assert!(watch.ready().expect("inside the window").is_empty(), "nothing may come twice");
    store.sync().await.expect("the store answers");
    assert!(watch.ready().expect("inside the window").is_empty());
    assert_eq!(watch.seen(), store.revision());
    seen
}

async fn concurrent_writers_of_one_item_never_lose_an_update(store: &Store) {
    write(store, put("cas/x", "n", Expect::Absent, "0")).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut done = 0;
            while done < 25 {
                let item = store.get("cas/x", "n").expect("never deleted");
                let text = std::str::from_utf8(item.value()).expect("we wrote text");
                let next = (text.parse::<u64>().expect("a number") + 1).to_string();
                let expect = Expect::Revision(item.modified());
                if store.write(put("cas/x", "n", expect, &next)).await.is_ok() {
                    done += 1;
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no writer panics");
    }
    assert_eq!(store.get("cas/x", "n").expect("never deleted").value(), "200");
}

async fn what_is_written_is_visible_at_once(store: &Store) {
    let mut watch = store.watch("vis/x", "", store.revision());
    let written = write(store, put("vis/x", "n", Expect::Absent, "1")).await;
    assert!(store.revision() >= written.revision);
    assert_eq!(store.get("vis/x", "n").expect("just written").modified(), written.revision);
    let changes = watch.ready().expect("inside the window");
    assert_eq!(changes.first().map(|c| c.revision), Some(written.revision));
    store.wait_for(written.revision).await;
}

/// Names that the writers below contend for.
const CONTENDED: u64 = 12;

async fn every_watcher_sees_the_same_history(store: &Store) {
    let start = store.revision();
    let mut writers = tokio::task::JoinSet::new();
    for seed in 0..6_u64 {
        let store = store.clone();
        writers.spawn(async move { contend(&store, seed).await });
    }
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        watchers.spawn(async move { follow(&store, start).await });
    }
    let mut acknowledged = Vec::new();
    while let Some(done) = writers.join_next().await {
        acknowledged.extend(done.expect("no writer panics"));
    }
    acknowledged.sort_unstable();
    // The sign for the watchers to stop.
    acknowledged.push(write(store, put("h/x", END, Expect::Absent, "")).await.revision);
    while let Some(seen) = watchers.join_next().await {
        let seen = seen.expect("no watcher panics");
        let revisions: Vec<u64> = seen.iter().map(|change| change.revision).collect();
        assert_eq!(revisions, acknowledged, "in order, each once, none missing");
        replay(store, &seen);
    }
}

const END: &str = "end";
/// Writers that wait for the disk together.
const WRITERS_AT_A_TIME: usize = 1_000;

/// Creates, changes and removes; the revisions that were acknowledged.
async fn contend(store: &Store, seed: u64) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for step in 0..150_u64 {
        let name = ((seed * 31 + step * 17) % CONTENDED).to_string();
        let wish = match store.get("h/x", &name) {
            None => put("h/x", &name, Expect::Absent, &format!("{seed}.{step}")),
            Some(item) if (seed + step).is_multiple_of(5) => remove("h/x", &name, item.modified()),
            Some(item) => {
                let expect = Expect::Revision(item.modified());
                put("h/x", &name, expect, &format!("{seed}.{step}"))
            }
        };
        if let Ok(written) = store.write(wish).await {
            acknowledged.push(written.revision);
        }
    }
    acknowledged
}

async fn follow(store: &Store, start: u64) -> Vec<Arc<Change>> {
    let mut watch = store.watch("h/x", "", start);
    let mut seen: Vec<Arc<Change>> = Vec::new();
    while seen.last().is_none_or(|change| change.name() != END) {
        seen.extend(watch.next().await.expect("inside the window"));
    }
    seen
}

/// Each change begins where the one before ended, and the last state is the store's.
fn replay(store: &Store, seen: &[Arc<Change>]) {
    let mut state: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for change in seen {
        let before = change.previous.as_ref().map(|item| item.modified());
        assert_eq!(state.get(change.name()).copied(), before, "no change is skipped");
        match &change.current {
            Some(item) => state.insert(change.name(), item.modified()),
            None => state.remove(change.name()),
        };
    }
    let page = store.range(&all("h/x")).expect("the present");
    let now: Vec<_> = page.items.iter().map(|item| (item.name(), item.modified())).collect();
    assert_eq!(state.into_iter().collect::<Vec<_>>(), now);
}

async fn a_slow_watcher_is_told(store: &Store) {
    let mut watch = store.watch("slow/x", "", store.revision());
    let start = store.revision();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20_000 {
        // No more than a busy machine answers before a writer's patience ends.
        if tasks.len() >= WRITERS_AT_A_TIME {
            let done: Option<Result<bool, _>> = tasks.join_next().await;
            assert!(done.expect("a writer").expect("no writer panics"));
        }
        let store = store.clone();
        tasks.spawn(async move {
            store.write(put("slow/x", &format!("{n}"), Expect::Absent, "")).await.is_ok()
        });
    }
    while let Some(done) = tasks.join_next().await {
        assert!(done.expect("no writer panics"));
    }
    assert!(matches!(watch.next().await, Err(Compacted { .. })));
    let past = Query { at: Some(start), ..all("slow/x") };
    assert!(matches!(store.range(&past), Err(RangeError::Compacted { .. })));
    assert_eq!(store.range(&all("slow/x")).expect("the present").items.len(), 20_000);
}
