//! Two servers on one etcd cluster behave as one.

use runtime::client::{ListParams, Patch, WatchEvent};
use runtime::resource::{CONFIG_MAPS, NAMESPACES};
use serde_json::json;
use store::suite::Members;

use crate::common::{Cluster, config_map, soon, version, watch_from};

const DEFAULT: Option<&str> = Some("default");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_acknowledged_the_other_serves() {
    let etcd = tempfile::tempdir().unwrap();
    let members = Members::start(etcd.path(), 1, &[]).unwrap();
    let first = Cluster::start_on(&members, None).await;
    let second = Cluster::start_on(&members, Some(&first)).await;
    let (one, two) = (first.admin(), second.admin());
    let list = two.list(&CONFIG_MAPS, DEFAULT, &ListParams::default()).await.unwrap();
    let mut watch =
        one.watch(&CONFIG_MAPS, DEFAULT, &watch_from(&list.resource_version)).await.unwrap();
    let mut expected = Vec::new();
    for n in 0..20 {
        let (writer, reader) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let name = format!("n{n}");
        let made = writer.create(&CONFIG_MAPS, DEFAULT, &config_map(&name, "1")).await.unwrap();
        let again = reader.create(&CONFIG_MAPS, DEFAULT, &config_map(&name, "1")).await;
        assert!(again.unwrap_err().is_already_exists());
        let mut found = reader.get(&CONFIG_MAPS, DEFAULT, &name).await.unwrap();
        assert_eq!(version(&found), version(&made));
        found["data"]["value"] = json!("2");
        let changed = reader.update(&CONFIG_MAPS, DEFAULT, &name, &found).await.unwrap();
        // The other server is asked with a version it may not have heard of yet.
        let patch = Patch::merge(json!({
            "metadata": {"resourceVersion": version(&changed)}, "data": {"value": "3"},
        }));
        let patched = writer.patch(&CONFIG_MAPS, DEFAULT, &name, &patch).await.unwrap();
        let old = Patch::merge(json!({"metadata": {"resourceVersion": version(&changed)}}));
        assert!(reader.patch(&CONFIG_MAPS, DEFAULT, &name, &old).await.unwrap_err().is_conflict());
        expected.extend([version(&made), version(&changed), version(&patched)]);
    }
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        match soon("an event", watch.next()).await.unwrap().unwrap() {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => seen.push(version(&object)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, expected);
    // A namespace is known to both at once.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fresh"}});
    one.create(&NAMESPACES, None, &namespace).await.unwrap();
    let mut inside = config_map("a", "1");
    inside["metadata"]["namespace"] = json!("fresh");
    two.create(&CONFIG_MAPS, Some("fresh"), &inside).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_on_at_another_server() {
    let etcd = tempfile::tempdir().unwrap();
    let members = Members::start(etcd.path(), 1, &[]).unwrap();
    let mut first = Cluster::start_on(&members, None).await;
    let second = Cluster::start_on(&members, Some(&first)).await;
    let made = first.admin().create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    let next = first.admin().create(&CONFIG_MAPS, DEFAULT, &config_map("b", "1")).await.unwrap();
    first.kill_and_restart().await;
    // The restarted server, and the one that was there all the time.
    for client in [first.admin(), second.admin()] {
        let from = watch_from(&version(&made));
        let mut watch = client.watch(&CONFIG_MAPS, DEFAULT, &from).await.unwrap();
        match soon("an event", watch.next()).await.unwrap().unwrap() {
            WatchEvent::Added(object) => assert_eq!(version(&object), version(&next)),
            other => panic!("{other:?}"),
        }
    }
}
