//! Killing the server at any moment and starting it again loses nothing.

mod common;

use std::collections::BTreeMap;

use common::{Cluster, config_map, soon, version, watch_from};
use runtime::client::{ListParams, Patch, WatchEvent};
use runtime::resource::{CONFIG_MAPS, NAMESPACES};
use serde_json::json;

const DEFAULT: Option<&str> = Some("default");

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start().await;
    let fingerprint = cluster.kubeconfig().ca_pem;
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..4 {
        let admin = cluster.admin();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8 {
            let admin = admin.clone();
            tasks.spawn(async move {
                let name = format!("r{round}-n{n}");
                let made = admin.create(&CONFIG_MAPS, DEFAULT, &config_map(&name, "0")).await;
                made.map(|made| (name, version(&made).parse::<u64>().unwrap()))
            });
        }
        // The kill comes while the rest is on its way.
        for _ in 0..4 {
            if let Some(Ok(Ok((name, revision)))) = tasks.join_next().await {
                acknowledged.insert(name, revision);
            }
        }
        cluster.kill_and_restart().await;
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Ok((name, revision))) = ended {
                acknowledged.insert(name, revision);
            }
        }
        let found =
            cluster.admin().list(&CONFIG_MAPS, DEFAULT, &ListParams::default()).await.unwrap();
        let found: BTreeMap<String, u64> = found
            .items
            .iter()
            .map(|item| {
                let name = item["metadata"]["name"].as_str().unwrap().to_owned();
                (name, version(item).parse().unwrap())
            })
            .collect();
        for (name, revision) in &acknowledged {
            assert_eq!(found.get(name), Some(revision), "{name}");
        }
    }
    assert_eq!(cluster.kubeconfig().ca_pem, fingerprint, "the authority must stay");
}

#[tokio::test]
async fn an_old_kubeconfig_opens_the_restarted_server() {
    let mut cluster = Cluster::start().await;
    let before = cluster.kubeconfig().identity;
    cluster.kill_and_restart().await;
    assert_eq!(cluster.kubeconfig().identity, before);
    let list = cluster.admin().list(&NAMESPACES, None, &ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 4);
}

#[tokio::test]
async fn a_watcher_that_was_up_to_date_goes_on_after_a_kill() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    let newer = Patch::merge(json!({"data": {"value": "2"}}));
    let newer = admin.patch(&CONFIG_MAPS, DEFAULT, "a", &newer).await.unwrap();
    cluster.kill_and_restart().await;
    let admin = cluster.admin();
    let mut fresh =
        admin.watch(&CONFIG_MAPS, DEFAULT, &watch_from(&version(&newer))).await.unwrap();
    let next = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("b", "1")).await.unwrap();
    match soon("an event", fresh.next()).await.unwrap().unwrap() {
        WatchEvent::Added(object) => assert_eq!(version(&object), version(&next)),
        other => panic!("{other:?}"),
    }
    // Who missed something that nobody remembers is told to list again.
    let mut stale = admin.watch(&CONFIG_MAPS, DEFAULT, &watch_from(&version(&made))).await.unwrap();
    match soon("an event", stale.next()).await.unwrap().unwrap() {
        WatchEvent::Error(status) => {
            assert_eq!((status.code, status.reason.as_str()), (410, "Expired"))
        }
        other => panic!("{other:?}"),
    }
}
