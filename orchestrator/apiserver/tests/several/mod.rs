//! Two servers on one etcd cluster behave as one.

use runtime::client::{DeleteParams, ListParams, Patch, WatchEvent};
use runtime::resource::{CONFIG_MAPS, NAMESPACES, Resource, SERVICES};
use serde_json::{Value, json};
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

fn service(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_give_each_address_and_port_once() {
    let etcd = tempfile::tempdir().unwrap();
    let members = Members::start(etcd.path(), 1, &[]).unwrap();
    let first = Cluster::start_on(&members, None).await;
    let second = Cluster::start_on(&members, Some(&first)).await;
    let clients = [first.admin(), second.admin()];
    // All ask at once; the range has few more addresses than there are services.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let client = clients[n % 2].clone();
        tasks.spawn(async move {
            let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
            client.create(&SERVICES, DEFAULT, &service(&format!("s{n}"), spec)).await.unwrap()
        });
    }
    let made: Vec<Value> = soon("all services", tasks.join_all()).await;
    let distinct = |path: &str| {
        let all: std::collections::BTreeSet<String> =
            made.iter().map(|one| one.pointer(path).unwrap().to_string()).collect();
        all.len()
    };
    assert_eq!(distinct("/spec/clusterIP"), 200);
    assert_eq!(distinct("/spec/ports/0/nodePort"), 200);
    // Of those who ask for the same one, one gets it.
    let mut tasks = tokio::task::JoinSet::new();
    for (n, client) in clients.iter().cloned().enumerate() {
        tasks.spawn(async move {
            let spec = json!({"clusterIP": "172.21.0.9", "ports": [{"port": 80}]});
            client.create(&SERVICES, DEFAULT, &service(&format!("same{n}"), spec)).await
        });
    }
    let won = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

/// `IPAddress` objects, which the runtime knows no constant for.
fn addresses() -> Resource {
    Resource::from(&objects::kind::IP_ADDRESS)
}

#[tokio::test]
async fn a_start_mends_what_a_kill_left_of_claims() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let spec = json!({"clusterIP": "172.21.0.7", "ports": [{"port": 80}]});
    admin.create(&SERVICES, DEFAULT, &service("kept", spec)).await.unwrap();
    // As if the server had been killed between claim and service, and had lost a claim.
    let orphan = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": "172.21.0.8",
            "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
        },
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "never"}},
    });
    admin.create(&addresses(), None, &orphan).await.unwrap();
    let spec = || json!({"clusterIP": "172.21.0.8", "ports": [{"port": 80}]});
    let taken = admin.create(&SERVICES, DEFAULT, &service("next", spec())).await;
    assert!(taken.unwrap_err().to_string().contains("provided IP is already allocated"));
    admin.delete(&addresses(), None, "172.21.0.7", &DeleteParams::default()).await.unwrap();
    cluster.kill_and_restart().await;
    let admin = cluster.admin();
    admin.create(&SERVICES, DEFAULT, &service("next", spec())).await.unwrap();
    let kept = admin.get(&addresses(), None, "172.21.0.7").await.unwrap();
    assert_eq!(kept["spec"]["parentRef"]["name"], "kept");
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
