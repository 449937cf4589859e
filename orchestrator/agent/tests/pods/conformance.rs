//! Upstream's conformance tests of a node, played from `testdata/conformance.yaml`.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::containerd::BUSYBOX;
use crate::{Node, path};

const STORIES: [&str; 2] =
    [include_str!("testdata/conformance.yaml"), include_str!("testdata/node.yaml")];
/// Stories told at a time: each waits for little, but all of them at once are a crowd for two cores.
const AT_ONCE: usize = 48;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Story {
    name: String,
    #[serde(default)]
    elsewhere: String,
    #[serde(default)]
    container: BTreeMap<String, Value>,
    #[serde(default)]
    spec: BTreeMap<String, Value>,
    #[serde(default)]
    expect: BTreeMap<String, Value>,
    #[serde(default)]
    change: Value,
    #[serde(default)]
    after: BTreeMap<String, Value>,
    log: Option<String>,
    #[serde(default)]
    delete: bool,
    visited: Option<String>,
    leaves: Option<String>,
}

/// A server on the node: answers well unless the page is a bad one, and notes what was asked for.
struct Peer {
    port: u16,
    visited: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let visited: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let noted = Arc::clone(&visited);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let noted = Arc::clone(&noted);
                connections.spawn(async move {
                    let mut bytes = [0; 2048];
                    let length = stream.read(&mut bytes).await.unwrap_or(0);
                    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                    let Some(page) = text.split(' ').nth(1) else { return };
                    noted.lock().unwrap().push(page.to_owned());
                    let code = if page.contains("bad") { "500 Bad" } else { "200 OK" };
                    let answer = format!("HTTP/1.1 {code}\r\ncontent-length: 0\r\n\r\n");
                    drop(stream.write_all(answer.as_bytes()).await);
                });
            }
        });
        Self { port, visited, _tasks: tasks }
    }
}

/// What a JSON pointer leads to; a segment `type=Ready` is the item of a list that has this field.
fn find<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    pointer.split('/').skip(1).try_fold(object, |object, segment| match object {
        Value::Array(items) => match segment.split_once('=') {
            Some((field, wanted)) => items.iter().find(|item| item[field] == wanted),
            None => items.get(segment.parse::<usize>().ok()?),
        },
        object => object.get(segment),
    })
}

async fn play(node: &Node, peer: &Peer, index: usize, story: &Story) {
    let name = format!("story-{index}");
    let dir = node.containerd.dir().join("host");
    let mut container = json!({"name": "main", "image": BUSYBOX});
    container.as_object_mut().unwrap().extend(story.container.clone());
    let mut spec = json!({"nodeName": "w1", "terminationGracePeriodSeconds": 1,
        "restartPolicy": "Never", "containers": [container]});
    spec.as_object_mut().unwrap().extend(story.spec.clone());
    let fill = |value: &Value| -> Value {
        let text = value.to_string();
        let text = text.replace("HOST_DIR", dir.to_str().unwrap()).replace("IMAGE", BUSYBOX);
        let text = text.replace("\"PEER_PORT\"", &peer.port.to_string());
        serde_json::from_str(&text.replace("UID_OF_POD", &format!("uid-{name}"))).unwrap()
    };
    let is_so = |expected: &BTreeMap<String, Value>, pod: &Value| {
        let holds = |(pointer, value): (&String, &Value)| {
            find(pod, pointer).unwrap_or(&Value::Null) == value
        };
        expected.iter().all(holds)
    };
    println!("{name}: {}", story.name);
    node.create(&name, fill(&spec));
    node.await_pod(&name, |pod| is_so(&story.expect, pod)).await;
    if !story.change.is_null() {
        node.api.change(&path(&name), &fill(&story.change));
        node.await_pod(&name, |pod| is_so(&story.after, pod)).await;
    }
    if let Some(log) = &story.log {
        node.await_log(&name, log).await;
    }
    if story.delete {
        node.api.delete_gracefully(&path(&name), 5);
        node.await_gone(&name).await;
    }
    if let Some(page) = &story.visited {
        assert!(peer.visited.lock().unwrap().contains(page), "{}: not visited", story.name);
    }
    if let Some(file) = &story.leaves {
        assert!(dir.join(file).exists(), "{}: no {file}", story.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_behave_as_upstreams_conformance_tests_expect() {
    let read = |text: &str| serde_saphyr::from_str::<Vec<Story>>(text).unwrap();
    let stories: Vec<Story> = STORIES.into_iter().flat_map(read).collect();
    let Some(mut node) = Node::start().await else { return };
    let peer = Peer::start().await;
    std::fs::create_dir(node.containerd.dir().join("host")).unwrap();
    let words = json!({"data": {"data_1": "value-1", "data_2": "value-2"}});
    node.api.put("/api/v1/namespaces/default/configmaps/words", words);
    let letters = json!({"data": {"a": "c2VjcmV0LWE="}});
    node.api.put("/api/v1/namespaces/default/secrets/letters", letters);
    let meta = json!({"name": "fooservice", "namespace": "default", "uid": "service"});
    let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
        "ports": [{"port": 8765, "protocol": "TCP"}]});
    let service = json!({"metadata": meta, "spec": spec});
    node.api.put("/api/v1/namespaces/default/services/fooservice", service);
    let here = stories.iter().enumerate().filter(|(_, story)| story.elsewhere.is_empty());
    let played = here.map(|(index, story)| {
        // Every story is played to its end, whatever became of the others.
        let told = AssertUnwindSafe(play(&node, &peer, index, story)).catch_unwind();
        told.map(|end| end.err().map(|_| story.name.clone()))
    });
    let played = futures_util::stream::iter(played).buffer_unordered(AT_ONCE);
    let failed: Vec<Option<String>> = played.collect().await;
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    node.kill_agent().await;
    assert!(failed.is_empty(), "{failed:#?}");
}
