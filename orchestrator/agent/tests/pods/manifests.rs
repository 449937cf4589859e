//! Stories of static pods: files of the node that run whatever the API says.

use serde_json::{Value, json};

use crate::containerd::BUSYBOX;
use crate::{Node, Settings, first, is_ready, path};

fn manifest(script: &str) -> String {
    let container = json!({"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}})
    .to_string()
}

fn id(pod: &Value) -> String {
    first(pod)["containerID"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_a_file_runs_without_the_api_and_is_shown_in_it() {
    let Some(mut node) = Node::start().await else { return };
    node.kill_agent().await;
    let dir = node.containerd.dir().join("manifests");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("web.yaml");
    std::fs::write(&file, manifest("echo one; sleep 1000")).unwrap();
    let settings = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "staticPodPath": dir});
    let settings = Settings::decode(&settings).unwrap();

    // Nobody answers at this address; the pod runs nevertheless.
    node.start_agent_at("http://127.0.0.1:1", settings.clone());
    // A start that is cut off counts as one, so it is awaited.
    node.await_running("web-w1", 1).await;
    node.kill_agent().await;
    assert!(node.api.get(&path("web-w1")).is_none());

    node.start_agent_with(settings.clone());
    let before = node.await_pod("web-w1", is_ready).await;
    let note = |pod: &Value, name: &str| pod["metadata"]["annotations"][name].clone();
    assert_eq!(note(&before, "kubernetes.io/config.source"), "file");
    let mirror = "kubernetes.io/config.mirror";
    assert_eq!(note(&before, mirror), note(&before, "kubernetes.io/config.hash"));
    assert_eq!(before["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(first(&before)["restartCount"], 0);
    node.await_log("web-w1", "one\n").await;

    // Who deletes the mirror deletes nothing else.
    node.api.remove(&path("web-w1"));
    let after = node.await_pod("web-w1", is_ready).await;
    assert_eq!(id(&after), id(&before));
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);

    // Another file is another pod; the one before ends first.
    std::fs::write(&file, manifest("echo another; sleep 1000")).unwrap();
    let changed = |pod: &Value| is_ready(pod) && note(pod, mirror) != note(&before, mirror);
    let after = node.await_pod("web-w1", changed).await;
    assert_ne!(id(&after), id(&before));
    node.await_log("web-w1", "another\n").await;

    std::fs::remove_file(&file).unwrap();
    node.await_count("web-w1", 0).await;
    node.await_gone("web-w1").await;
    node.kill_agent().await;
}
