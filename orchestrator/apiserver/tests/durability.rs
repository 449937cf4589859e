//! Killing the server at any moment and starting it again loses nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where its expectation does"
)]

mod common;
mod history;
mod several;

use std::collections::BTreeMap;

use common::{Cluster, config_map, soon, version, watch_from};
use runtime::client::{ListParams, Patch, WatchEvent};
use runtime::resource::{CONFIG_MAPS, ENDPOINT_SLICES, NAMESPACES, SERVICES};
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
async fn the_api_service_follows_the_server_to_its_new_port() {
    let mut cluster = Cluster::start().await;
    cluster.kill_and_restart().await;
    let port = cluster.kubeconfig().server.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let slice = cluster.admin().get(&ENDPOINT_SLICES, DEFAULT, "kubernetes").await.unwrap();
    assert_eq!(slice["ports"][0]["port"], port);
    let service = cluster.admin().get(&SERVICES, DEFAULT, "kubernetes").await.unwrap();
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port);
    assert_eq!(service["spec"]["clusterIP"], "172.21.0.1");
}

#[tokio::test]
async fn a_second_server_leaves_the_first_alone() {
    let cluster = Cluster::start().await;
    let before = cluster.kubeconfig();
    let config = apiserver::Config {
        data_dir: cluster.dir.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Vec::new(),
        service_cidr: "172.21.0.0/24".parse().unwrap(),
        storage: apiserver::Storage::Embedded,
        identity: apiserver::Identity::default(),
        toleration_seconds: Some(300),
    };
    let stop = tokio_util::sync::CancellationToken::new();
    assert!(apiserver::ApiServer::open(stop, &config).await.is_err());
    assert_eq!(cluster.kubeconfig(), before);
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

/// Not a test by itself: the server that other tests kill, in a process of its own.
#[tokio::test]
async fn serves_when_asked_to() {
    let Some(dir) = std::env::var_os("MUSTER_TEST_SERVE") else { return };
    let config = apiserver::Config {
        data_dir: dir.into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Vec::new(),
        service_cidr: "172.21.0.0/24".parse().unwrap(),
        storage: match std::env::var("MUSTER_TEST_ETCD") {
            Ok(endpoints) => {
                let endpoints = endpoints.split(',').map(str::to_owned).collect();
                apiserver::Storage::Etcd(apiserver::EtcdOptions::plain(endpoints))
            }
            Err(_) => apiserver::Storage::Embedded,
        },
        identity: apiserver::Identity::default(),
        toleration_seconds: Some(300),
    };
    apiserver::run(tokio_util::sync::CancellationToken::new(), config).await.unwrap();
}

struct Process(tokio::process::Child);

impl Process {
    fn start(dir: &std::path::Path) -> Self {
        Self::spawn(&mut Self::command(dir))
    }

    fn start_on_etcd(dir: &std::path::Path, etcd: &apiserver::EtcdOptions) -> Self {
        let endpoints = etcd.endpoints.join(",");
        Self::spawn(Self::command(dir).env("MUSTER_TEST_ETCD", endpoints))
    }

    fn command(dir: &std::path::Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "serves_when_asked_to"]).env("MUSTER_TEST_SERVE", dir);
        command
    }

    fn spawn(command: &mut tokio::process::Command) -> Self {
        let null = std::process::Stdio::null;
        Self(command.stdout(null()).stderr(null()).kill_on_drop(true).spawn().unwrap())
    }

    async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}

/// A client of the server in this directory, once it answers.
async fn client_of(dir: &std::path::Path) -> runtime::Client {
    soon("the server being ready", async {
        loop {
            if let Ok(client) = runtime::Client::from_kubeconfig(dir.join("admin.kubeconfig"))
                && client.raw_get("/readyz").await.is_ok_and(|a| a.status.as_u16() == 200)
            {
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Writes as fast as it can until the server is gone; the last acknowledged value.
async fn count_up(client: runtime::Client, name: String, from: u64) -> u64 {
    let mut acknowledged = from;
    loop {
        let next = acknowledged + 1;
        let outcome = if next == 1 {
            client.create(&CONFIG_MAPS, DEFAULT, &config_map(&name, "1")).await
        } else {
            let patch = Patch::merge(json!({"data": {"value": next.to_string()}}));
            client.patch(&CONFIG_MAPS, DEFAULT, &name, &patch).await
        };
        match outcome {
            Ok(_) => acknowledged = next,
            Err(err) if err.is_already_exists() => acknowledged = next,
            Err(_) => return acknowledged,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_moment_keeps_every_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..5_u64 {
        let process = Process::start(dir.path());
        let client = client_of(dir.path()).await;
        let found = client.list(&CONFIG_MAPS, DEFAULT, &ListParams::default()).await.unwrap();
        for (name, acknowledged) in &counts {
            let item = found.items.iter().find(|i| i["metadata"]["name"] == name.as_str());
            let value = item.map(|item| item["data"]["value"].as_str().unwrap().to_owned());
            let value: u64 = value.unwrap_or_else(|| "0".to_owned()).parse().unwrap();
            // The write that was on its way when the kill came may have happened.
            assert!(
                value == *acknowledged || value == acknowledged + 1,
                "round {round}: {name} is {value}, {acknowledged} was acknowledged"
            );
        }
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..6 {
            let (client, name) = (client.clone(), format!("c{n}"));
            let item = found.items.iter().find(|i| i["metadata"]["name"] == name.as_str());
            let from = item.map_or(0, |i| i["data"]["value"].as_str().unwrap().parse().unwrap());
            tasks.spawn(async move { (name.clone(), count_up(client, name, from).await) });
        }
        // Enough writes that the kill falls among them.
        let revision = found.resource_version.parse::<u64>().unwrap() + 40 + 17 * round;
        let path = format!("/api/v1/configmaps?resourceVersion={revision}&limit=1");
        soon("some writes", async {
            while client.raw_get(&path).await.unwrap().status.as_u16() != 200 {}
        })
        .await;
        process.kill().await;
        while let Some(done) = tasks.join_next().await {
            let (name, acknowledged) = done.unwrap();
            counts.insert(name, acknowledged);
        }
    }
    assert!(counts.values().sum::<u64>() > 200, "{counts:?}");
}
