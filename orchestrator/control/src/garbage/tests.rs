use objects::kind;
use serde_json::{Value, json};

use crate::world::World;

fn map(name: &str, owners: &[&str], patch: Value) -> Value {
    let owners: Vec<Value> = owners
        .iter()
        .map(|owner| owner.split_once('/').unwrap_or((owner, owner)))
        .map(|(uid, name)| json!({"uid": uid, "name": name, "kind": "ConfigMap", "apiVersion": "v1", "blockOwnerDeletion": true}))
        .collect();
    let mut object =
        json!({"metadata": {"name": name, "namespace": "n", "ownerReferences": owners}});
    crate::world::merge(&mut object, &json!({ "metadata": patch }));
    object
}

/// Objects get uids `uid-1`, `uid-2`, … in this order; returns the names left in the end.
#[track_caller]
fn check(objects: Vec<Value>, expected: &[&str]) {
    let mut world = World::default();
    for object in objects {
        world.add(&kind::CONFIG_MAP, object);
    }
    world.settle(&[]);
    let left: Vec<String> = world
        .all::<objects::config::ConfigMap>()
        .into_iter()
        .map(|one| one.metadata.name)
        .collect();
    assert_eq!(left, expected);
}

#[test]
fn whole_families_go_when_the_first_is_gone() {
    let none = || json!({});
    check(vec![map("a", &[], none()), map("b", &["uid-1/a"], none())], &["a", "b"]);
    check(vec![map("a", &["gone"], none()), map("b", &["uid-1/a"], none())], &[]);
    check(vec![map("a", &[], none()), map("b", &["gone", "uid-1/a"], none())], &["a", "b"]);
}

#[test]
fn foreground_goes_from_the_leaves_up() {
    let going = json!({
        "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"],
    });
    check(
        vec![
            map("a", &[], going),
            map("b", &["uid-1/a"], json!({})),
            map("c", &["uid-2/b"], json!({})),
        ],
        &[],
    );
}

#[test]
fn orphans_stay() {
    let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]});
    check(vec![map("a", &[], going), map("b", &["uid-1/a"], json!({}))], &["b"]);
}

#[test]
fn an_owner_in_another_namespace_is_no_owner() {
    check(
        vec![map("a", &[], json!({})), map("b", &["uid-1/a"], json!({"namespace": "m"}))],
        &["a"],
    );
}

#[test]
fn a_reference_to_an_owner_that_went_is_taken_away() {
    let mut world = World::default();
    world.add(&kind::CONFIG_MAP, map("a", &[], json!({})));
    world.add(&kind::CONFIG_MAP, map("b", &["uid-1/a", "gone"], json!({})));
    world.settle(&[]);
    let maps = world.all::<objects::config::ConfigMap>();
    assert_eq!(maps.len(), 2);
    assert_eq!(maps[1].metadata.owner_references.len(), 1);
}

#[test]
fn a_circle_of_waiting_owners_is_broken() {
    let going = || {
        json!({
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"],
        })
    };
    check(vec![map("a", &["uid-2/b"], going()), map("b", &["uid-1/a"], json!({}))], &[]);
}

#[test]
fn a_new_version_of_what_is_to_go_wakes_us() {
    use super::Graph;
    use crate::view::Key;
    use crate::wake::{Seen, Touch};
    use std::sync::Arc;
    let object = |uid: &str, version: &str, owner: Option<&str>| -> Arc<dyn Seen> {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"uid": uid, "name": uid, "kind": "ConfigMap"}))
            .into_iter()
            .collect();
        let meta = json!({
            "name": uid, "uid": uid, "resourceVersion": version, "ownerReferences": owners,
        });
        let map = json!({ "metadata": meta });
        Arc::new(serde_json::from_value::<objects::config::ConfigMap>(map).unwrap())
    };
    let mut graph = Graph::default();
    let mut see = |before: Option<&Arc<dyn Seen>>, after: &Arc<dyn Seen>| {
        let key = Key::new("n", &after.meta().uid);
        let (before, after) = (before.cloned(), Some(Arc::clone(after)));
        graph.note(&Touch { kind: &kind::CONFIG_MAP, key, before, after })
    };
    let (lost, found) = (object("a", "1", Some("gone")), object("b", "1", Some("owner")));
    see(None, &object("owner", "1", None));
    see(None, &lost);
    see(None, &found);
    assert!(see(Some(&lost), &object("a", "2", Some("gone"))).contains(&"a".to_owned()));
    assert!(see(Some(&found), &object("b", "2", Some("owner"))).is_empty(), "a heartbeat");
}
