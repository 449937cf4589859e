//! A hundred clients write, read and watch while processes are killed; then their histories are
//! checked against each other.
//!
//! The store's revision is the order that all must agree on. A write that got no answer may have
//! happened or not; everything else is certain.

mod check;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use runtime::Client;
use runtime::client::{DeleteParams, ListParams, WatchEvent};
use runtime::resource::CONFIG_MAPS;
use serde_json::{Value, json};
use store::suite::Members;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::common::{soon, version, watch_from};
use crate::{Process, client_of};

const NAMESPACE: Option<&str> = Some("default");
/// Objects that all clients contend for.
const OBJECTS: u64 = 40;
const WRITERS: u64 = 70;
const READERS: u64 = 10;
const WATCHERS: u64 = 20;
/// Acknowledged writes between two kills.
const WRITES_PER_ROUND: usize = 160;

/// What a client asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wish {
    /// A value, on an object that is at this revision; `None` when it must not exist.
    Put(Option<u64>, String),
    /// That the object of this revision goes.
    Delete(u64),
}

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Told {
    /// It happened; at this revision, when that is said.
    Done(Option<u64>),
    /// It did not happen.
    Refused,
    /// Nothing.
    Unknown,
}

#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) name: String,
    pub(crate) wish: Wish,
    pub(crate) told: Told,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
}

/// An object's revision and value as a client saw it; `None` when it was not there.
pub(crate) type Seen = Option<(u64, String)>;

#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) name: String,
    pub(crate) seen: Seen,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
}

/// A change, as a watcher was told it: revision, object, and its value; `None` when deleted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// What a watcher knows without a gap: all that happened after `from`, up to `to`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stretch {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) reads: Vec<Read>,
    /// Per watcher, in the order it lived through them.
    pub(crate) watched: Vec<Vec<Stretch>>,
}

/// What all clients share.
struct Play {
    history: Mutex<History>,
    /// The server of the moment.
    server: watch::Receiver<Client>,
    acknowledged: AtomicUsize,
    over: watch::Receiver<bool>,
    values: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_its_history_through_kills() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Process::start(dir.path());
    let history = play(dir.path(), start, 5, &mut |_| false).await;
    check::all(&history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_etcd_keeps_its_history_through_kills() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut members = Members::start(etcd.path(), 3, &[]).unwrap();
    let options = members.options();
    let start = || Process::start_on_etcd(dir.path(), &options);
    // A member in every round, and the server too in every third.
    let mut strike = |round: usize| {
        let victim = round % 3;
        if round > 0 {
            members.start_one((round - 1) % 3).unwrap();
        }
        members.kill(victim).unwrap();
        round % 3 != 1
    };
    let history = play(dir.path(), start, 6, &mut strike).await;
    check::all(&history);
}

/// Lets the clients work; after each round `strike` kills what it likes and says whether the
/// server may live on.
async fn play(
    dir: &Path,
    start: impl Fn() -> Process,
    rounds: usize,
    strike: &mut dyn FnMut(usize) -> bool,
) -> History {
    let mut process = start();
    let (next, server) = watch::channel(client_of(dir).await);
    let (end, over) = watch::channel(false);
    let play = Arc::new(Play {
        history: Mutex::default(),
        server,
        acknowledged: AtomicUsize::new(0),
        over,
        values: AtomicU64::new(0),
    });
    let mut clients = JoinSet::new();
    for n in 0..WRITERS + READERS {
        clients.spawn(work(Arc::clone(&play), n, n < WRITERS));
    }
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        watchers.spawn(follow(Arc::clone(&play)));
    }
    for round in 0..rounds {
        let enough = play.acknowledged.load(Ordering::SeqCst) + WRITES_PER_ROUND;
        soon("enough writes", async {
            while play.acknowledged.load(Ordering::SeqCst) < enough {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
        if !strike(round) {
            process.kill().await;
            process = start();
            next.send_replace(client_of(dir).await);
        }
    }
    end.send_replace(true);
    soon("the clients' end", async { while clients.join_next().await.is_some() {} }).await;
    // What the watchers must have seen before they may go, and the last word about each object.
    let client = next.borrow().clone();
    let last = soon("a last write", async {
        loop {
            let object = config_map("the-end", "end");
            if let Ok(made) = client.create(&CONFIG_MAPS, NAMESPACE, &object).await {
                break made;
            }
        }
    })
    .await;
    let last: u64 = version(&last).parse().unwrap();
    soon("the watchers' end", async {
        while let Some(stretches) = watchers.join_next().await {
            let stretches: Vec<Stretch> = stretches.unwrap();
            assert!(stretches.last().unwrap().to >= last, "a watcher missed the end");
            play.history.lock().unwrap().watched.push(stretches);
        }
    })
    .await;
    list(&play, &client).await.unwrap();
    process.kill().await;
    std::mem::take(&mut *play.history.lock().unwrap())
}

fn config_map(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"}, "data": {"value": value},
    })
}

fn seen(object: &Value) -> (u64, String) {
    let value = object["data"]["value"].as_str().unwrap().to_owned();
    (version(object).parse().unwrap(), value)
}

/// Reads objects and, if it is a writer, changes what it has read.
async fn work(play: Arc<Play>, seed: u64, writes: bool) {
    let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut server = play.server.clone();
    while !*play.over.borrow() {
        // xorshift; the schedule of the tasks is chance enough besides.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let client = server.borrow_and_update().clone();
        let name = format!("n{}", dice % OBJECTS);
        let begun = Instant::now();
        let seen = match client.get(&CONFIG_MAPS, NAMESPACE, &name).await {
            Ok(object) => Some(seen(&object)),
            Err(err) if err.is_not_found() => None,
            Err(_) => {
                // Away, or without its etcd; there may soon be another.
                let pause = std::time::Duration::from_millis(20);
                let _changed = tokio::time::timeout(pause, server.changed()).await.is_ok();
                continue;
            }
        };
        let ended = Instant::now();
        let read = Read { name: name.clone(), seen: seen.clone(), begun, ended };
        play.history.lock().unwrap().reads.push(read);
        if writes {
            change(&play, &client, name, seen, dice).await;
        } else if list(&play, &client).await.is_none() {
            tokio::task::yield_now().await;
        }
    }
}

async fn change(play: &Play, client: &Client, name: String, seen: Seen, dice: u64) {
    let value = play.values.fetch_add(1, Ordering::SeqCst).to_string();
    let mut object = config_map(&name, &value);
    let begun = Instant::now();
    let (wish, outcome) = match seen {
        None => {
            let outcome = client.create(&CONFIG_MAPS, NAMESPACE, &object).await;
            (Wish::Put(None, value), outcome)
        }
        Some((revision, _)) if dice.is_multiple_of(7) => {
            let mut params = DeleteParams::default();
            params.preconditions.resource_version = Some(revision.to_string());
            let outcome = client.delete(&CONFIG_MAPS, NAMESPACE, &name, &params).await;
            (Wish::Delete(revision), outcome)
        }
        Some((revision, _)) => {
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
            let outcome = client.update(&CONFIG_MAPS, NAMESPACE, &name, &object).await;
            (Wish::Put(Some(revision), value), outcome)
        }
    };
    let ended = Instant::now();
    let told = match outcome {
        Ok(_) if matches!(wish, Wish::Delete(_)) => Told::Done(None),
        Ok(object) => Told::Done(Some(version(&object).parse().unwrap())),
        Err(err) if err.is_conflict() || err.is_already_exists() || err.is_not_found() => {
            Told::Refused
        }
        Err(_) => Told::Unknown,
    };
    if matches!(told, Told::Done(_)) {
        play.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    play.history.lock().unwrap().attempts.push(Attempt { name, wish, told, begun, ended });
}

/// Reads all objects at once; the revision, and whether the last of all writes is among them.
async fn list(play: &Play, client: &Client) -> Option<(u64, bool)> {
    let begun = Instant::now();
    let list = client.list(&CONFIG_MAPS, NAMESPACE, &ListParams::default()).await.ok()?;
    let ended = Instant::now();
    let mut history = play.history.lock().unwrap();
    for n in 0..OBJECTS {
        let name = format!("n{n}");
        let object = list.items.iter().find(|item| item["metadata"]["name"] == name.as_str());
        history.reads.push(Read { name, seen: object.map(seen), begun, ended });
    }
    let last = list.items.iter().any(|item| item["metadata"]["name"] == "the-end");
    Some((list.resource_version.parse().ok()?, last))
}

/// Watches until the sign for the end; goes on where it was after each break, and lists anew
/// only when told to.
async fn follow(play: Arc<Play>) -> Vec<Stretch> {
    let mut server = play.server.clone();
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut gap = true;
    loop {
        let client = server.borrow_and_update().clone();
        if gap {
            let Some((from, last)) = list(&play, &client).await else {
                tokio::task::yield_now().await;
                continue;
            };
            stretches.push(Stretch { from, to: from, events: Vec::new() });
            gap = false;
            if last {
                return stretches;
            }
        }
        let stretch = stretches.last_mut().unwrap();
        let from = watch_from(&stretch.to.to_string());
        let Ok(mut stream) = client.watch(&CONFIG_MAPS, NAMESPACE, &from).await else {
            let pause = std::time::Duration::from_millis(20);
            let _changed = tokio::time::timeout(pause, server.changed()).await.is_ok();
            continue;
        };
        // The stream of a killed server ends with an error; that of a cut one, too.
        while let Some(Ok(event)) = stream.next().await {
            let (object, gone) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Error(status) => {
                    assert_eq!(status.code, 410, "{status:?}");
                    gap = true;
                    break;
                }
                _ => continue,
            };
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            if !name.starts_with('n') && name != "the-end" {
                continue;
            }
            let (revision, value) = seen(&object);
            stretch.to = revision;
            if name == "the-end" {
                return stretches;
            }
            stretch.events.push(Event { revision, name, value: (!gone).then_some(value) });
        }
    }
}
