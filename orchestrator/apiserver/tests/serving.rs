//! What clients may rely on, spoken over TLS as they do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where its expectation does"
)]

mod aggregation;
mod answers;
mod common;
mod conformance;
mod dual;
mod extension;
mod identity;
mod registry;

use common::{Cluster, config_map, pod, soon, version, watch_from};
use runtime::client::{DeleteParams, ListParams, Patch, Preconditions, WatchEvent, WatchParams};
use runtime::resource::{
    CERTIFICATE_SIGNING_REQUESTS, CONFIG_MAPS, MACHINES, NAMESPACES, NODES, PODS, SECRETS, SERVICES,
};
use serde_json::{Value, json};

const DEFAULT: Option<&str> = Some("default");

#[tokio::test]
async fn a_new_cluster_has_namespaces_and_its_own_service() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let list = admin.list(&NAMESPACES, None, &ListParams::default()).await.unwrap();
    let names: Vec<_> = list.items.iter().filter_map(|n| n["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let service = admin.get(&SERVICES, DEFAULT, "kubernetes").await.unwrap();
    assert_eq!(service["spec"]["clusterIP"], "172.21.0.1");
    for file in ["manager.kubeconfig", "boot.kubeconfig", "pki/ca.crt", "pki/ca.key"] {
        assert!(cluster.path(file).exists(), "{file}");
    }
    soon("stopping", cluster.stop()).await;
}

#[tokio::test]
async fn a_stale_update_is_a_conflict_and_a_no_op_is_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    let again = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap_err();
    assert!(again.is_already_exists(), "{again:?}");
    let mut wanted = made.clone();
    wanted["data"]["value"] = json!("2");
    let updated = admin.update(&CONFIG_MAPS, DEFAULT, "a", &wanted).await.unwrap();
    assert_ne!(version(&updated), version(&made));
    let stale = admin.update(&CONFIG_MAPS, DEFAULT, "a", &wanted).await.unwrap_err();
    assert!(stale.is_conflict(), "{stale:?}");
    let same = admin.update(&CONFIG_MAPS, DEFAULT, "a", &updated).await.unwrap();
    assert_eq!(version(&same), version(&updated));
    let patched = admin
        .patch(&CONFIG_MAPS, DEFAULT, "a", &Patch::merge(json!({"data": {"more": "x"}})))
        .await
        .unwrap();
    assert_eq!(patched["data"], json!({"value": "2", "more": "x"}));
}

#[tokio::test]
async fn many_writers_without_a_version_all_get_through() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let admin = admin.clone();
        tasks.spawn(async move {
            let patch = Patch::merge(json!({"data": {format!("k{n}"): "x"}}));
            admin.patch(&CONFIG_MAPS, DEFAULT, "a", &patch).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let found = admin.get(&CONFIG_MAPS, DEFAULT, "a").await.unwrap();
    assert_eq!(found["data"].as_object().unwrap().len(), 17);
}

#[tokio::test]
async fn preconditions_guard_deletion() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    let other = DeleteParams::uid("00000000-0000-0000-0000-000000000000");
    assert!(admin.delete(&CONFIG_MAPS, DEFAULT, "a", &other).await.unwrap_err().is_conflict());
    let preconditions =
        Preconditions { resource_version: Some("1".to_owned()), ..Preconditions::default() };
    let older = DeleteParams { preconditions, ..DeleteParams::default() };
    assert!(admin.delete(&CONFIG_MAPS, DEFAULT, "a", &older).await.unwrap_err().is_conflict());
    let own = DeleteParams::uid(made["metadata"]["uid"].as_str().unwrap());
    admin.delete(&CONFIG_MAPS, DEFAULT, "a", &own).await.unwrap();
    assert!(admin.get(&CONFIG_MAPS, DEFAULT, "a").await.unwrap_err().is_not_found());
}

async fn next(stream: &mut runtime::client::WatchStream) -> (&'static str, String, String) {
    loop {
        let event = soon("an event", stream.next()).await.unwrap().unwrap();
        let (what, object) = match event {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => return ("ERROR", status.code.to_string(), String::new()),
        };
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        return (what, name, version(&object));
    }
}

#[tokio::test]
async fn a_watch_tells_everything_and_resumes_where_it_was() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let start = admin.list(&CONFIG_MAPS, DEFAULT, &ListParams::default()).await.unwrap();
    let mut all =
        admin.watch(&CONFIG_MAPS, DEFAULT, &watch_from(&start.resource_version)).await.unwrap();
    let a = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    assert_eq!(next(&mut all).await, ("ADDED", "a".into(), version(&a)));
    let b = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("b", "1")).await.unwrap();
    admin.delete(&CONFIG_MAPS, DEFAULT, "a", &DeleteParams::default()).await.unwrap();
    assert_eq!(next(&mut all).await, ("ADDED", "b".into(), version(&b)));
    let (what, name, deleted_at) = next(&mut all).await;
    assert_eq!((what, name.as_str()), ("DELETED", "a"));
    assert!(deleted_at.parse::<u64>().unwrap() > version(&b).parse().unwrap());
    drop(all);
    let mut resumed = admin.watch(&CONFIG_MAPS, DEFAULT, &watch_from(&version(&a))).await.unwrap();
    assert_eq!(next(&mut resumed).await, ("ADDED", "b".into(), version(&b)));
    assert_eq!(next(&mut resumed).await, ("DELETED", "a".into(), deleted_at));
}

#[tokio::test]
async fn a_watch_from_the_future_is_told_to_list() {
    let cluster = Cluster::start().await;
    let mut stream =
        cluster.admin().watch(&CONFIG_MAPS, DEFAULT, &watch_from("4000000")).await.unwrap();
    assert_eq!(next(&mut stream).await, ("ERROR", "410".to_owned(), String::new()));
    assert!(soon("the end", stream.next()).await.is_none());
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let params = WatchParams { label_selector: "app=x".to_owned(), ..WatchParams::default() };
    let mut stream = admin.watch(&CONFIG_MAPS, DEFAULT, &params).await.unwrap();
    admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "y")).await.unwrap();
    let label = |value: &str| Patch::merge(json!({"metadata": {"labels": {"app": value}}}));
    let entered = admin.patch(&CONFIG_MAPS, DEFAULT, "a", &label("x")).await.unwrap();
    assert_eq!(next(&mut stream).await, ("ADDED", "a".into(), version(&entered)));
    let changed = Patch::merge(json!({"data": {"value": "z"}}));
    let changed = admin.patch(&CONFIG_MAPS, DEFAULT, "a", &changed).await.unwrap();
    assert_eq!(next(&mut stream).await, ("MODIFIED", "a".into(), version(&changed)));
    let left = admin.patch(&CONFIG_MAPS, DEFAULT, "a", &label("y")).await.unwrap();
    assert_eq!(next(&mut stream).await, ("DELETED", "a".into(), version(&left)));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "1")).await.unwrap();
    let base = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1\
                &allowWatchBookmarks=true&sendInitialEvents=true";
    let answer = admin.raw_get(&format!("{base}&resourceVersionMatch=NotOlderThan")).await.unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    let lines: Vec<Value> = answer
        .body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines[0]["type"], "ADDED");
    assert_eq!(lines[1]["type"], "BOOKMARK");
    let annotations = &lines[1]["object"]["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
    let refused = admin.raw_get(base).await.unwrap();
    assert_eq!(refused.status.as_u16(), 422);
}

#[tokio::test]
async fn long_lists_come_in_pages_of_one_revision() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for n in 0..7 {
        let name = format!("n{n}");
        admin.create(&CONFIG_MAPS, DEFAULT, &config_map(&name, "x")).await.unwrap();
    }
    let mut names = Vec::new();
    let mut params = ListParams { limit: Some(3), ..ListParams::default() };
    let mut revisions = Vec::new();
    loop {
        let page = admin.list(&CONFIG_MAPS, DEFAULT, &params).await.unwrap();
        names.extend(page.items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()));
        revisions.push(page.resource_version);
        // What happens between the pages is not seen by them.
        if names.len() == 3 {
            admin.delete(&CONFIG_MAPS, DEFAULT, "n5", &DeleteParams::default()).await.unwrap();
            admin.create(&CONFIG_MAPS, DEFAULT, &config_map("n9", "x")).await.unwrap();
        }
        let Some(token) = page.continue_token.filter(|token| !token.is_empty()) else { break };
        params.continue_token = Some(token);
    }
    assert_eq!(names, ["n0", "n1", "n2", "n3", "n4", "n5", "n6"]);
    revisions.dedup();
    assert_eq!(revisions.len(), 1);
    let selected =
        ListParams { label_selector: "app=x,app!=y".to_owned(), ..ListParams::default() };
    assert_eq!(admin.list(&CONFIG_MAPS, DEFAULT, &selected).await.unwrap().items.len(), 7);
    let one = ListParams { field_selector: "metadata.name=n3".to_owned(), ..ListParams::default() };
    assert_eq!(admin.list(&CONFIG_MAPS, DEFAULT, &one).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn strangers_may_ask_for_health_and_nothing_else() {
    let cluster = Cluster::start().await;
    let stranger = cluster.client(None);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(stranger.raw_get(path).await.unwrap().status.as_u16(), 200, "{path}");
    }
    for path in [
        "/",
        "/api",
        "/apis",
        "/api/v1/pods",
        "/api/v1/secrets",
        "/metrics",
        "/nowhere",
        "/api/v1/x",
    ] {
        let answer = stranger.raw_get(path).await.unwrap();
        assert_eq!(answer.status.as_u16(), 401, "{path}");
        let status: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(status["kind"], "Status");
    }
    let posted = stranger.raw_post("/api/v1/namespaces/default/configmaps", &json!({})).await;
    assert_eq!(posted.unwrap().status.as_u16(), 401);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let cluster = Cluster::start().await;
    let day = std::time::Duration::from_secs(86_400);
    let forger = runtime::pki::Authority::generate("muster-ca", day).unwrap();
    let subject = runtime::pki::Subject::new("admin", &["system:masters"]);
    let forged = forger
        .issue(&subject, &runtime::pki::Sans::default(), runtime::pki::Usage::Client, day)
        .unwrap();
    let identity = runtime::Identity {
        cert_pem: forged.cert_pem.into_bytes(),
        key_pem: forged.key_pem.expose().as_bytes().to_vec(),
    };
    let client = cluster.client(Some(identity));
    assert!(client.raw_get("/api/v1/namespaces").await.is_err());
}

#[tokio::test]
async fn the_boot_server_has_few_rights() {
    let cluster = Cluster::start().await;
    let boot = cluster.boot();
    boot.list(&MACHINES, None, &ListParams::default()).await.unwrap();
    let refused = boot.list(&SECRETS, DEFAULT, &ListParams::default()).await.unwrap_err();
    assert_eq!(refused.status().unwrap().code, 403);
}

#[tokio::test]
async fn bad_bodies_are_told_so_and_change_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let before = admin.list(&CONFIG_MAPS, None, &ListParams::default()).await.unwrap();
    let path = "/api/v1/namespaces/default/configmaps";
    for (body, code) in [
        (json!("text"), 400),
        (json!([]), 400),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}), 400),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "A_"}}), 422),
        (config_map("a", &"x".repeat(4 << 20)), 413),
    ] {
        let answer = admin.raw_post(path, &body).await.unwrap();
        let status: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer.status.as_u16(), code, "{status}");
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)));
    }
    let after = admin.list(&CONFIG_MAPS, None, &ListParams::default()).await.unwrap();
    assert_eq!(before.resource_version, after.resource_version);
}

#[tokio::test]
async fn a_machine_enrols_and_gets_its_certificate() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let stranger = cluster.client(None);
    let subject = runtime::pki::Subject::new("system:node:w1", &["system:nodes"]);
    let sans = runtime::pki::Sans { names: vec![], addresses: vec!["10.98.1.12".parse().unwrap()] };
    let request = runtime::pki::Request::generate(&subject, &sans).unwrap();
    let post = |name: &str, csr: &str| {
        let evidence = json!({"mac": "52:54:00:AA:01:0c", "uuid": "U-1", "serial": "s"});
        let body = json!({"name": name, "csr": csr, "evidence": evidence});
        let stranger = stranger.clone();
        async move { stranger.raw_post("/muster/v1/enroll", &body).await.unwrap() }
    };
    for (name, csr, code) in [
        ("w2", request.csr_pem.as_str(), 400),
        ("w1", "nonsense", 400),
        ("w1", &"x".repeat(20_000), 413),
        ("w1", &request.csr_pem, 202),
        ("w1", &request.csr_pem, 202),
    ] {
        assert_eq!(post(name, csr).await.status.as_u16(), code);
    }
    let answer: Value = serde_json::from_slice(&post("w1", &request.csr_pem).await.body).unwrap();
    let name = answer["request"].as_str().unwrap();
    assert!(name.starts_with("node-w1-"));
    let state = || async {
        let answer = stranger.raw_get(&format!("/muster/v1/enroll/{name}")).await.unwrap();
        serde_json::from_slice::<Value>(&answer.body).unwrap()
    };
    assert_eq!(state().await["state"], "pending");

    let mut object = admin.get(&CERTIFICATE_SIGNING_REQUESTS, None, name).await.unwrap();
    assert_eq!(object["spec"]["username"], "muster:enrolling");
    assert_eq!(object["spec"]["signerName"], "muster.dev/node");
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations["muster.dev/evidence-mac"], "52:54:00:aa:01:0c");
    object["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "Test", "message": "as planned"}]);
    admin
        .update_subresource(&CERTIFICATE_SIGNING_REQUESTS, None, name, "approval", &object)
        .await
        .unwrap();
    assert_eq!(state().await["state"], "approved");
    let ca = runtime::pki::Authority::load(&cluster.path("pki")).unwrap();
    let day = std::time::Duration::from_secs(86_400);
    let signed = ca.sign(&request.csr_pem, runtime::pki::Usage::Both, day).unwrap();
    let mut object = admin.get(&CERTIFICATE_SIGNING_REQUESTS, None, name).await.unwrap();
    object["status"]["certificate"] = json!(encode(&signed));
    admin.update_status(&CERTIFICATE_SIGNING_REQUESTS, None, name, &object).await.unwrap();
    let told = state().await;
    assert_eq!((&told["state"], &told["certificate"]), (&json!("issued"), &json!(signed)));

    // The certificate opens the API as the node, and as that node only.
    let identity = runtime::Identity {
        cert_pem: signed.into_bytes(),
        key_pem: request.key_pem.expose().as_bytes().to_vec(),
    };
    let node = cluster.client(Some(identity));
    let object =
        |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    node.create(&NODES, None, &object("w1")).await.unwrap();
    node.list(&PODS, None, &ListParams::fields("spec.nodeName=w1")).await.unwrap();
    assert!(node.list(&SECRETS, None, &ListParams::default()).await.is_err());
    admin.create(&NODES, None, &object("w2")).await.unwrap();
    let patch = Patch::merge(json!({"status": {"nodeInfo": {}}})).on("status");
    assert!(node.patch(&NODES, None, "w2", &patch).await.is_err());
}

fn encode(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn services_get_addresses_and_give_them_back() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
               "spec": {"selector": {"app": "x"}, "type": "NodePort", "ports": [{"port": 80}]}})
    };
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..5 {
        let name = format!("s{n}");
        let made = admin.create(&SERVICES, DEFAULT, &service(&name)).await.unwrap();
        assert!(seen.insert(made["spec"]["clusterIP"].as_str().unwrap().to_owned()));
        assert!(seen.insert(made["spec"]["ports"][0]["nodePort"].to_string()));
    }
    let first = admin.get(&SERVICES, DEFAULT, "s0").await.unwrap();
    let mut thief = service("thief");
    thief["spec"]["clusterIP"] = first["spec"]["clusterIP"].clone();
    assert!(admin.create(&SERVICES, DEFAULT, &thief).await.is_err());
    admin.delete(&SERVICES, DEFAULT, "s0", &DeleteParams::default()).await.unwrap();
    admin.create(&SERVICES, DEFAULT, &thief).await.unwrap();
    // An update keeps what was given.
    let mut second = admin.get(&SERVICES, DEFAULT, "s1").await.unwrap();
    let before = second["spec"]["clusterIP"].clone();
    second["spec"]["selector"] = json!({"app": "y"});
    let after = admin.update(&SERVICES, DEFAULT, "s1", &second).await.unwrap();
    assert_eq!(after["spec"]["clusterIP"], before);
}

#[tokio::test]
async fn a_pod_is_bound_once_and_ends_gracefully() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.create(&PODS, DEFAULT, &pod("p")).await.unwrap();
    assert_eq!(made["status"]["phase"], "Pending");
    let bind = |node: &str| {
        let object = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
                            "target": {"kind": "Node", "name": node}});
        let admin = admin.clone();
        async move { admin.create_subresource(&PODS, DEFAULT, "p", "binding", &object).await }
    };
    bind("w1").await.unwrap();
    assert!(bind("w2").await.unwrap_err().is_conflict());
    let fields = ListParams::fields("spec.nodeName=w1");
    assert_eq!(admin.list(&PODS, None, &fields).await.unwrap().items.len(), 1);
    admin.delete(&PODS, DEFAULT, "p", &DeleteParams::default()).await.unwrap();
    let ending = admin.get(&PODS, DEFAULT, "p").await.unwrap();
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    admin.delete(&PODS, DEFAULT, "p", &DeleteParams::default().grace(0)).await.unwrap();
    assert!(admin.get(&PODS, DEFAULT, "p").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn generated_names_are_unique() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut object = config_map("x", "1");
    object["metadata"] = json!({"generateName": "job-"});
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let made = admin.create(&CONFIG_MAPS, DEFAULT, &object).await.unwrap();
        let name = made["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("job-") && name.len() == 9 && names.insert(name));
    }
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_is_not_there() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut object = config_map("x", "1");
    object["metadata"]["namespace"] = json!("nowhere");
    let refused = admin.create(&CONFIG_MAPS, Some("nowhere"), &object).await.unwrap_err();
    assert!(refused.is_not_found(), "{refused:?}");
}
