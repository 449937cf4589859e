use std::collections::BTreeMap;

use super::*;
use crate::suite::{Members, all, put, remove};
use crate::{Query, WriteError};

struct Cluster {
    dir: tempfile::TempDir,
    members: Members,
}

impl Cluster {
    fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let members = Members::start(dir.path(), count, &[]).unwrap();
        Self { dir, members }
    }

    async fn store(&self) -> Store {
        Store::connect(&self.members.options()).await.unwrap()
    }

    /// What `etcdctl` would show: keys and values as they lie there.
    async fn dump(&self) -> BTreeMap<String, String> {
        let client = client(&self.members.options()).unwrap();
        let everything = RangeRequest {
            key: Bytes::from_static(b"/"),
            range_end: Bytes::from_static(b"0"),
            ..RangeRequest::default()
        };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let found = range(&client, everything).await.unwrap();
        found.kvs.into_iter().map(|kv| (text(kv.key), text(kv.value))).collect()
    }

    async fn compact_all(&self) {
        let client = client(&self.members.options()).unwrap();
        let request = RangeRequest { key: Bytes::from_static(b"/"), ..RangeRequest::default() };
        let newest = range(&client, request).await.unwrap().header.unwrap().revision;
        compact_to(&client, newest).await.unwrap();
    }
}

async fn add(store: &Store, name: &str, text: &str) -> Written {
    store.write(put("s/x", name, Expect::Absent, text)).await.unwrap()
}

fn contents(store: &Store) -> BTreeMap<String, (u64, u64, Bytes)> {
    let page = store.range(&all("s/x")).unwrap();
    let read = |item: &Arc<Item>| {
        (item.name().to_owned(), (item.created(), item.modified(), item.value().clone()))
    };
    page.items.iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_on_etcd_passes_the_suite() {
    let cluster = Cluster::start(1);
    crate::suite::run(&cluster.store().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_cluster_agree() {
    let cluster = Cluster::start(1);
    let (one, two) = (cluster.store().await, cluster.store().await);
    let mut watch = two.watch("s/x", "", two.revision());
    let mut revisions = Vec::new();
    for n in 0..100 {
        let (writer, reader) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let name = n.to_string();
        let written = add(writer, &name, "a").await;
        assert_eq!(writer.get("s/x", &name).unwrap().modified(), written.revision);
        // The other may be behind until it is asked to be fresh.
        reader.sync().await.unwrap();
        let item = reader.get("s/x", &name).unwrap();
        assert_eq!(item.modified(), written.revision);
        revisions.push(written.revision);
        let next = put("s/x", &name, Expect::Revision(item.modified()), "b");
        revisions.push(reader.write(next).await.unwrap().revision);
        // The first writer's knowledge is old now, and the refusal brings it up to date.
        let stale = writer.write(remove("s/x", &name, written.revision)).await;
        let Err(WriteError::Conflict { current: Some(current) }) = stale else {
            panic!("{stale:?}")
        };
        assert_eq!(current.value(), "b");
    }
    let mut seen = Vec::new();
    while seen.len() < revisions.len() {
        seen.extend(watch.next().await.unwrap().iter().map(|change| change.revision));
    }
    assert_eq!(seen, revisions);
    assert_eq!(contents(&one), contents(&two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_can_be_read_by_people_and_others_are_let_be() {
    let cluster = Cluster::start(1);
    let store = cluster.store().await;
    let before =
        store.write(put("core/pods", "default/web-1", Expect::Absent, "{}")).await.unwrap();
    let client = client(&cluster.members.options()).unwrap();
    // Somebody else's key beside ours: it moves the cluster's revision and nothing else.
    let theirs = Bytes::from_static(b"/calico/x");
    let write = Request::Put(PutRequest { key: theirs.clone(), value: "y".into() });
    transact(&client, &theirs, Compared::Create(0), write, Repeat::Harmful).await.unwrap();
    store.sync().await.unwrap();
    assert_eq!(store.revision(), before.revision + 1);
    let expected = [
        ("/calico/x", "y"),
        ("/muster/core/pods/default/web-1", "{}"),
        ("/muster/store", "format 1\noffset 0\nstate ready\n"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(cluster.dump().await, BTreeMap::from(expected));
    let bad = store.write(put("pods", "a", Expect::Absent, "{}")).await;
    assert!(matches!(bad, Err(WriteError::Storage(Fault::Shelf { .. }))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_server_lets_old_watchers_go_on() {
    let cluster = Cluster::start(1);
    let old = cluster.store().await;
    let first = add(&old, "1", "a").await.revision;
    let last = add(&old, "2", "a").await.revision;
    drop(old);
    let new = cluster.store().await;
    let seen: Vec<_> =
        new.watch("s/x", "", first).ready().unwrap().iter().map(|c| c.revision).collect();
    assert_eq!(seen, [last]);
    let past = Query { at: Some(first), ..all("s/x") };
    assert_eq!(new.range(&past).unwrap().items.len(), 1);
    // What etcd has forgotten, a new server does not know either, and says so.
    cluster.compact_all().await;
    let newest = cluster.store().await;
    assert!(newest.watch("s/x", "", first).ready().is_err());
    assert!(newest.watch("never/used", "", first).ready().is_err());
    assert!(newest.range(&past).is_err());
    assert_eq!(contents(&newest), contents(&new));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_watch_goes_on_where_it_was() {
    let mut cluster = Cluster::start(1);
    let store = cluster.store().await;
    let mut watch = store.watch("s/x", "", store.revision());
    let mut expected = vec![add(&store, "before", "a").await.revision];
    for round in 0..3 {
        cluster.members.kill(0).unwrap();
        let refused = store.write(put("s/x", &format!("{round}-in-doubt"), Expect::Absent, "a"));
        // Nobody is there to take it; it fails or is given up.
        let outcome = timeout(Duration::from_millis(50), refused).await;
        assert!(!matches!(outcome, Ok(Ok(_))));
        cluster.members.start_one(0).unwrap();
        store.sync().await.unwrap();
        expected.push(add(&store, &round.to_string(), "a").await.revision);
    }
    assert_eq!(store.trouble(), None);
    let mut seen = Vec::new();
    while seen.last() != expected.last() {
        for change in watch.next().await.unwrap() {
            if !change.name().ends_with("in-doubt") {
                seen.push(change.revision);
            }
        }
    }
    assert_eq!(seen, expected);
}

/// While a server cannot reach the cluster, others write and the past is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_told_and_never_skipped() {
    let cluster = Cluster::start(1);
    let door = Door::open(&cluster).await;
    let behind = Store::connect(&door.options).await.unwrap();
    let other = cluster.store().await;
    let kept = add(&other, "kept", "a").await.revision;
    let gone = add(&other, "gone", "a").await.revision;
    behind.sync().await.unwrap();
    let mut watch = behind.watch("s/x", "", behind.revision());
    let mut idle = behind.watch("never/used", "", behind.revision());
    door.shut().await;
    other.write(remove("s/x", "gone", gone)).await.unwrap();
    let next = put("s/x", "kept", Expect::Revision(kept), "b");
    other.write(next).await.unwrap();
    add(&other, "new", "a").await;
    cluster.compact_all().await;
    door.unlock();
    assert!(watch.next().await.is_err(), "nobody may believe that nothing happened");
    assert!(idle.ready().is_err());
    assert_eq!(contents(&behind), contents(&other));
    // And from here on all is as ever.
    let mut watch = behind.watch("s/x", "", behind.revision());
    let last = add(&other, "last", "a").await.revision;
    assert_eq!(watch.next().await.unwrap().first().unwrap().revision, last);
}

/// A cluster that was restored from an old copy is refused: clients have seen more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_went_back_in_time_ends_the_store() {
    let mut cluster = Cluster::start(1);
    let store = cluster.store().await;
    for n in 0..10 {
        add(&store, &n.to_string(), "a").await;
    }
    cluster.members.kill(0).unwrap();
    std::fs::remove_dir_all(cluster.dir.path().join("m0")).unwrap();
    cluster.members.start_one(0).unwrap();
    timeout(Duration::from_secs(20), store.failed()).await.unwrap();
    assert_eq!(store.trouble(), Some(Trouble::Failed));
    let late = store.write(put("s/x", "late", Expect::Absent, "a")).await;
    assert!(matches!(late, Err(WriteError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cluster_is_read_only_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let quota = ["--quota-backend-bytes=4000000"];
    let members = Members::start(dir.path(), 1, &quota).unwrap();
    let store = Store::connect(&members.options()).await.unwrap();
    let kept = add(&store, "kept", "a").await.revision;
    let large = "x".repeat(1 << 20);
    let too_large = store.write(put("s/x", "huge", Expect::Absent, &"x".repeat(4 << 20))).await;
    assert!(matches!(too_large, Err(WriteError::TooLarge(_))), "{too_large:?}");
    let mut outcome = Ok(());
    for n in 0..20 {
        outcome = store.write(put("s/x", &n.to_string(), Expect::Absent, &large)).await.map(drop);
        if outcome.is_err() {
            break;
        }
    }
    assert!(matches!(outcome, Err(WriteError::Full(_))), "{outcome:?}");
    assert_eq!(store.trouble(), Some(Trouble::Full));
    store.sync().await.unwrap();
    assert_eq!(store.get("s/x", "kept").unwrap().modified(), kept);
}

#[test]
fn what_says_how_to_read_the_store_is_read_back() {
    let meta = Meta { offset: 12_345, state: State::Moved };
    assert_eq!(Meta::parse(std::str::from_utf8(&meta.render()).unwrap()), Some(meta));
    for text in ["", "format 2\noffset 0\nstate ready\n", "format 1\noffset x\nstate ready\n"] {
        assert_eq!(Meta::parse(text), None, "{text}");
    }
}

/// A door between a store and the cluster that can be shut.
struct Door {
    options: EtcdOptions,
    open: Arc<tokio::sync::watch::Sender<bool>>,
    _tasks: JoinSet<()>,
}

impl Door {
    async fn open(cluster: &Cluster) -> Self {
        let path = cluster.dir.path().join("door");
        let behind = cluster.dir.path().join("c:0");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let open = Arc::new(tokio::sync::watch::Sender::new(true));
        let mut tasks = JoinSet::new();
        let state = open.subscribe();
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut state, behind) = (state.clone(), behind.clone());
                pipes.spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let mut far = tokio::net::UnixStream::connect(behind).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        let options = EtcdOptions::plain(vec![format!("unix://{}", path.display())]);
        Self { options, open, _tasks: tasks }
    }

    async fn shut(&self) {
        self.open.send_replace(false);
    }

    fn unlock(&self) {
        self.open.send_replace(true);
    }
}
