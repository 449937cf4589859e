use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use redb::StorageBackend;

use super::*;
use crate::Query;
use crate::suite::{all, put, remove};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

fn contents(store: &Store, query: Query<'_>) -> BTreeMap<String, (u64, String)> {
    let page = store.range(&query).unwrap();
    let read = |item: &Arc<Item>| {
        let text = String::from_utf8(item.value().to_vec()).unwrap();
        (item.name().to_owned(), (item.modified(), text))
    };
    page.items.iter().map(read).collect()
}

#[test]
fn the_embedded_store_passes_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Options { dir: dir.path().to_owned() }).unwrap();
    runtime().block_on(crate::suite::run(&store));
}

#[test]
fn a_watcher_that_was_up_to_date_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { dir: dir.path().to_owned() };
    runtime().block_on(async {
        let store = Store::open(&options).unwrap();
        let first = store.write(put("s/a", "1", Expect::Absent, "x")).await.unwrap().revision;
        let last = store.write(put("s/a", "2", Expect::Absent, "x")).await.unwrap().revision;
        let other = store.write(put("s/b", "1", Expect::Absent, "x")).await.unwrap().revision;
        drop(store);
        let store = Store::open(&options).unwrap();
        assert_eq!(store.revision(), other);
        let mut stale = store.watch("s/a", "", first);
        let mut fresh = store.watch("s/a", "", last);
        assert!(stale.ready().is_err());
        assert!(fresh.ready().unwrap().is_empty());
        let next = store.write(put("s/a", "3", Expect::Absent, "x")).await.unwrap().revision;
        assert_eq!(next, other + 1);
        assert_eq!(fresh.next().await.unwrap().first().unwrap().revision, next);
    });
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, bool, u16),
    Remove(u8, bool),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6u8, prop::bool::weighted(0.8), any::<u16>()).prop_map(|(n, f, v)| Step::Put(n, f, v)),
        3 => (0..6u8, prop::bool::weighted(0.8)).prop_map(|(n, f)| Step::Remove(n, f)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    /// The store agrees with a plain map, at every revision of its window, across restarts.
    #[test]
    fn the_store_agrees_with_a_plain_map(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { dir: dir.path().to_owned() };
        let runtime = runtime();
        let mut store = Store::open(&options).unwrap();
        let mut now: BTreeMap<String, (u64, String)> = BTreeMap::new();
        let mut past = vec![(store.revision(), now.clone())];
        let mut events: Vec<u64> = Vec::new();
        for step in steps {
            let (name, fits, value) = match step {
                Step::Reopen => {
                    drop(store);
                    store = Store::open(&options).unwrap();
                    past.retain(|(revision, _)| *revision == store.revision());
                    events.clear();
                    continue;
                }
                Step::Put(name, fits, value) => (name.to_string(), fits, Some(value.to_string())),
                Step::Remove(name, fits) => (name.to_string(), fits, None),
            };
            let right = now.get(&name).map_or(Expect::Absent, |(r, _)| Expect::Revision(*r));
            let expect = if fits { right } else { Expect::Revision(0) };
            let possible = fits && !(value.is_none() && right == Expect::Absent);
            let write = match (&value, expect) {
                (Some(value), _) => put("m/x", &name, expect, value),
                (None, Expect::Revision(revision)) => remove("m/x", &name, revision),
                (None, Expect::Absent) => remove("m/x", &name, 0),
            };
            let outcome = runtime.block_on(store.write(write));
            prop_assert_eq!(outcome.is_ok(), possible);
            if let Ok(written) = outcome {
                match value {
                    Some(value) => now.insert(name, (written.revision, value)),
                    None => now.remove(&name),
                };
                events.push(written.revision);
                past.push((written.revision, now.clone()));
            }
            for (at, expected) in &past {
                let query = Query { at: Some(*at), ..all("m/x") };
                prop_assert_eq!(&contents(&store, query), expected);
            }
        }
        if let Some((oldest, _)) = past.first() {
            let mut watch = store.watch("m/x", "", *oldest);
            let seen: Vec<_> = watch.ready().unwrap().iter().map(|c| c.revision).collect();
            prop_assert_eq!(seen, events);
        }
    }
}

/// A disk that loses power: the n-th write fails, and so does everything after it. What was not
/// synced is lost, except for what the seed says happened to arrive.
#[derive(Debug, Clone, Default)]
struct TestDisk {
    content: Arc<Mutex<Content>>,
    writes_left: Arc<AtomicUsize>,
    /// How long the file may become.
    room_bytes: Arc<AtomicUsize>,
    syncs: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Content {
    synced: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl TestDisk {
    fn with(content: Vec<u8>, writes: usize) -> Self {
        let content = Content { synced: content.clone(), current: content, unsynced: Vec::new() };
        Self {
            content: Arc::new(Mutex::new(content)),
            writes_left: Arc::new(AtomicUsize::new(writes)),
            room_bytes: Arc::new(AtomicUsize::new(usize::MAX)),
            syncs: Arc::default(),
        }
    }

    /// The bytes found after the power came back.
    fn after_power_loss(&self, seed: usize) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        let mut found = content.synced.clone();
        for (n, (at, bytes)) in content.unsynced.iter().enumerate() {
            if (seed >> (n % 8)) & 1 == 1 {
                let end = at + bytes.len();
                found.resize(found.len().max(end), 0);
                found[*at..end].copy_from_slice(bytes);
            }
        }
        found
    }

    fn step(&self) -> io::Result<()> {
        let left = &self.writes_left;
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the power is gone")),
        }
    }
}

impl StorageBackend for TestDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&content.current[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        let mut content = self.content.lock().unwrap();
        let len = usize::try_from(len).unwrap();
        if len > self.room_bytes.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        content.current.resize(len, 0);
        content.synced.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut content = self.content.lock().unwrap();
        content.synced = content.current.clone();
        content.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        let mut content = self.content.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        content.current[at..at + data.len()].copy_from_slice(data);
        content.unsynced.push((at, data.to_vec()));
        Ok(())
    }
}

fn open_disk(disk: &TestDisk) -> Option<Store> {
    let disk = disk.clone();
    let room = Arc::clone(&disk.room_bytes);
    start(
        Box::new(move || {
            Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone())
        }),
        Box::new(move || room.load(Ordering::SeqCst) == usize::MAX),
    )
    .ok()
}

/// A full disk refuses writes and nothing else, and forgets it once there is room.
#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let runtime = runtime();
    let disk = TestDisk::with(Vec::new(), usize::MAX);
    let store = open_disk(&disk).unwrap();
    let write = |name: &str, text: &str| {
        runtime.block_on(store.write(put("d/x", name, Expect::Absent, text)))
    };
    write("kept", "x").unwrap();
    let before = store.revision();
    let room = disk.content.lock().unwrap().current.len();
    disk.room_bytes.store(room, Ordering::SeqCst);
    let large = "x".repeat(4 << 20);
    for name in ["a", "b"] {
        assert!(matches!(write(name, &large), Err(WriteError::Full(_))));
        assert_eq!(store.trouble(), Some(Trouble::Full));
        assert_eq!(store.revision(), before);
        assert!(store.get("d/x", "kept").is_some());
    }
    // A full store is read-only as a whole, not by chance.
    assert!(matches!(write("small", "x"), Err(WriteError::Full(_))));
    disk.room_bytes.store(usize::MAX, Ordering::SeqCst);
    write("a", &large).unwrap();
    assert_eq!(store.trouble(), None);
    drop(store);
    let survived = TestDisk::with(disk.after_power_loss(0), usize::MAX);
    let found = contents(&open_disk(&survived).unwrap(), all("d/x"));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "kept"]);
}

/// Many heartbeats are as durable as other writes, and share the disk's work.
#[test]
fn writes_without_haste_wait_for_each_other() {
    const WRITES: usize = 200;
    let runtime = runtime();
    let disk = TestDisk::with(Vec::new(), usize::MAX);
    let store = open_disk(&disk).unwrap();
    let name = |n: usize| format!("n{n:03}");
    let soon = |n| {
        let (store, write) = (store.clone(), put("h/x", &name(n), Expect::Absent, "x"));
        async move { store.write_soon(write).await }
    };
    let before = disk.syncs.load(Ordering::SeqCst);
    let written = runtime.block_on(async {
        (0..WRITES).map(soon).collect::<tokio::task::JoinSet<_>>().join_all().await
    });
    assert!(written.iter().all(Result::is_ok));
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!((1..WRITES / 2).contains(&syncs), "{syncs} for {WRITES} writes");
    // One that is in haste takes along who waits.
    let (patient, hurried) = runtime.block_on(async {
        tokio::join!(soon(WRITES), store.write(put("h/x", "last", Expect::Absent, "x")))
    });
    assert_eq!(patient.unwrap().revision.abs_diff(hurried.unwrap().revision), 1);
    // Nobody waits for company that never comes.
    runtime.block_on(soon(WRITES + 1)).unwrap();
    drop(store);
    let survived = TestDisk::with(disk.after_power_loss(0), usize::MAX);
    assert_eq!(contents(&open_disk(&survived).unwrap(), all("h/x")).len(), WRITES + 3);
}

/// Whatever write the disk stops at, every acknowledged write is there after the restart, and
/// nothing is there that nobody asked for.
#[test]
fn no_acknowledged_write_is_lost_whichever_write_fails() {
    let runtime = runtime();
    let fresh = TestDisk::with(Vec::new(), usize::MAX);
    drop(open_disk(&fresh).unwrap());
    let base = fresh.content.lock().unwrap().current.clone();
    for n in 0.. {
        let disk = TestDisk::with(base.clone(), n);
        let mut acknowledged: BTreeMap<String, (u64, String)> = BTreeMap::new();
        let mut in_doubt = None;
        if let Some(store) = open_disk(&disk) {
            for step in 0..6 {
                let name = format!("n{}", step % 4);
                let expect = acknowledged
                    .get(&name)
                    .map_or(Expect::Absent, |(revision, _)| Expect::Revision(*revision));
                let value = format!("v{step}");
                match runtime.block_on(store.write(put("f/x", &name, expect, &value))) {
                    Ok(written) => acknowledged.insert(name, (written.revision, value)),
                    Err(_) => {
                        in_doubt = Some((name, value));
                        break;
                    }
                };
            }
        }
        let whole = in_doubt.is_none() && acknowledged.len() == 4;
        let survived = TestDisk::with(disk.after_power_loss(n * 37 + 11), usize::MAX);
        let store = open_disk(&survived).unwrap_or_else(|| panic!("cannot reopen after write {n}"));
        let mut found = contents(&store, all("f/x"));
        if found != acknowledged
            && let Some((name, value)) = in_doubt
        {
            // The write that got no answer may have happened, as a whole.
            assert_eq!(found.get(&name).map(|(_, v)| v.clone()), Some(value), "after write {n}");
            match acknowledged.get(&name) {
                Some(before) => found.insert(name, before.clone()),
                None => found.remove(&name),
            };
        }
        assert_eq!(found, acknowledged, "after write {n}");
        if whole && n > 200 {
            break;
        }
    }
}
