use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::suite::{Members, all, put, remove};
use crate::{Expect, Query, Store, WriteError, read_snapshot, write_snapshot};

fn embedded(dir: &Path) -> Place {
    Place::Embedded(Options { dir: dir.to_owned() })
}

async fn open(place: &Place) -> Result<Store, TransferError> {
    match place {
        Place::Embedded(options) => Ok(Store::open(options)?),
        Place::Etcd(options) => Ok(Store::connect(options).await?),
    }
}

/// Two shelves with items, one that was emptied; the store's revision and what it holds.
async fn furnish(store: &Store) -> (u64, BTreeMap<String, String>) {
    for n in 0..300 {
        let name = format!("default/{n:03}");
        store.write(put("core/pods", &name, Expect::Absent, &format!("{{{n}}}"))).await.unwrap();
    }
    let first = store.get("core/pods", "default/000").unwrap().modified();
    store.write(put("core/pods", "default/000", Expect::Revision(first), "{new}")).await.unwrap();
    store.write(put("core/nodes", "a", Expect::Absent, "{a}")).await.unwrap();
    let gone = store.write(put("core/events", "x", Expect::Absent, "{}")).await.unwrap().revision;
    store.write(remove("core/events", "x", gone)).await.unwrap();
    (store.revision(), contents_of(store))
}

fn contents_of(store: &Store) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for shelf in ["core/pods", "core/nodes", "core/events"] {
        for item in store.range(&all(shelf)).unwrap().items {
            let text = String::from_utf8(item.value().to_vec()).unwrap();
            found.insert(format!("{shelf}/{}", item.name()), text);
        }
    }
    found
}

/// What was there is there; no revision is one that a client may have seen for something else,
/// and whoever comes with an old one is told to list anew.
async fn check_moved(store: &Store, before: u64, expected: &BTreeMap<String, String>) {
    assert_eq!(&contents_of(store), expected);
    assert!(store.revision() >= before);
    for shelf in ["core/pods", "core/events", "never/used"] {
        assert!(store.watch(shelf, "", before - 1).ready().is_err(), "{shelf}");
        let past = Query { at: Some(before - 1), ..all(shelf) };
        assert!(store.range(&past).is_err(), "{shelf}");
    }
    let item = store.get("core/pods", "default/001").unwrap();
    assert!(item.modified() <= store.revision());
    let next = put("core/pods", "default/001", Expect::Revision(item.modified()), "{1}");
    assert!(store.write(next).await.unwrap().revision > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_to_etcd_and_back_and_loses_nothing() {
    let (dir, cluster) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let members = Members::start(cluster.path(), 1, &[]).unwrap();
    let (file, etcd) = (embedded(dir.path()), Place::Etcd(members.options()));
    let store = open(&file).await.unwrap();
    let (before, expected) = furnish(&store).await;
    assert!(migrate(&file, &etcd).await.is_err(), "a store in use stays where it is");
    drop(store);
    let (revision, items) = migrate(&file, &etcd).await.unwrap();
    assert!(revision > before);
    assert_eq!(items, expected.len());
    assert!(matches!(open(&file).await, Err(TransferError::Embedded(OpenError::Moved))));
    let store = open(&etcd).await.unwrap();
    check_moved(&store, before, &expected).await;
    let (revision, expected) = (store.revision(), contents_of(&store));

    // Back again, away from a server that still runs: it is told, and can write no more.
    let item = store.get("core/nodes", "a").unwrap();
    migrate(&etcd, &file).await.unwrap();
    let late = put("core/nodes", "a", Expect::Revision(item.modified()), "{late}");
    assert!(matches!(store.write(late).await, Err(WriteError::Closed)));
    store.failed().await;
    assert!(matches!(open(&etcd).await, Err(TransferError::Etcd(EtcdError::Moved))));
    let store = open(&file).await.unwrap();
    assert_eq!(store.get("core/nodes", "a").unwrap().modified(), item.modified());
    check_moved(&store, revision, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_move_leaves_all_as_it_was() {
    let (dir, cluster) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let members = Members::start(cluster.path(), 1, &[]).unwrap();
    let (file, etcd) = (embedded(dir.path()), Place::Etcd(members.options()));
    let (revision, expected) = furnish(&open(&file).await.unwrap()).await;
    furnish(&open(&etcd).await.unwrap()).await;
    let refused = migrate(&file, &etcd).await;
    assert!(matches!(refused, Err(TransferError::Etcd(EtcdError::NotEmpty))), "{refused:?}");
    let store = open(&file).await.unwrap();
    assert_eq!((store.revision(), contents_of(&store)), (revision, expected));
    drop(store);
    let refused = migrate(&etcd, &file).await;
    assert!(matches!(refused, Err(TransferError::Embedded(OpenError::NotEmpty { .. }))));
    open(&etcd).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_restores_into_either_kind_of_store() {
    let (dir, cluster) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let members = Members::start(cluster.path(), 1, &[]).unwrap();
    let file = dir.path().join("snapshot");
    let places = [embedded(&dir.path().join("a")), Place::Etcd(members.options())];
    for from in &places {
        let store = open(from).await.unwrap();
        let (seen, expected) = furnish(&store).await;
        if matches!(from, Place::Embedded(_)) {
            drop(store);
        }
        write_snapshot(&read(from).await.unwrap(), &file).unwrap();
        // After the snapshot something happens, which the restored store does not know.
        let store = open(from).await.unwrap();
        let lost = store.write(put("core/nodes", "lost", Expect::Absent, "{}")).await.unwrap();
        assert!(lost.revision > seen);
        drop(store);
        let contents = read_snapshot(&file).unwrap();
        assert!(fill(from, &contents, seen + 1_000, Over::Nothing).await.is_err());
        let to = embedded(&dir.path().join("b"));
        for place in [from, &to] {
            let revision = fill(place, &contents, seen + 1_000, Over::Anything).await.unwrap();
            assert!(revision >= seen + 1_000);
            check_moved(&open(place).await.unwrap(), lost.revision + 1, &expected).await;
        }
        // The next round begins with an empty store.
        let nothing = Contents { revision: 1, items: Vec::new() };
        fill(from, &nothing, 1, Over::Anything).await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_record_is_found_and_keeps_the_store_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let place = embedded(dir.path());
    let missing = verify(&place).await;
    assert!(matches!(missing, Err(TransferError::Embedded(OpenError::Missing { .. }))));
    let (revision, expected) = furnish(&open(&place).await.unwrap()).await;
    let report = verify(&place).await.unwrap();
    assert_eq!((report.revision, report.faults.len()), (revision, 0), "{:?}", report.faults);
    assert_eq!(report.shelves.values().map(|count| count.items).sum::<usize>(), expected.len());
    // A bit of the disk turns over inside a value.
    let path = dir.path().join("store.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> =
        bytes.windows(5).enumerate().filter(|(_, w)| *w == b"{123}").map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 1] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    let report = verify(&place).await.unwrap();
    assert_eq!(report.faults[0], "the record of core/pods/default/123 is damaged");
    assert!(report.faults[1].starts_with("the engine's file is damaged"), "{:?}", report.faults);
    assert_eq!(report.faults.len(), 2);
    assert!(matches!(
        open(&place).await,
        Err(TransferError::Embedded(OpenError::Damaged { name, .. })) if name == "default/123"
    ));
}
