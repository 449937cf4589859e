use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::client::ClientConfig;
use crate::resource::PODS;

/// What the server says next: the start of the path and query it expects, then status and body.
type Line = (&'static str, u16, String);

/// A server that reads from a script; when that is over it hangs.
struct Stage {
    script: Mutex<VecDeque<Line>>,
    asked: watch::Sender<usize>,
}

async fn play(stage: Arc<Stage>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().to_string();
    let line = stage.script.lock().unwrap().pop_front();
    let Some((expected, status, body)) = line else { return std::future::pending().await };
    assert!(path.contains(expected), "asked for {path}, expected {expected}");
    stage.asked.send_modify(|count| *count += 1);
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

async fn serve(listener: TcpListener, stage: Arc<Stage>) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let stage = Arc::clone(&stage);
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let stage = Arc::clone(&stage);
                async move { Ok::<_, Infallible>(play(stage, request).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _closed = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn pod(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": revision.to_string()}})
}

fn list(revision: u64, pods: &[Value]) -> String {
    json!({"metadata": {"resourceVersion": revision.to_string()}, "items": pods}).to_string()
}

fn events(all: &[(&str, Value)]) -> String {
    all.iter()
        .map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n")
        .collect()
}

/// Plays a script to a cache until it has seen `revision`; returns the names it holds.
async fn run<T: DeserializeOwned + Send + Sync + 'static>(
    script: Vec<Line>,
    revision: u64,
) -> Vec<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let stage = Arc::new(Stage { script: Mutex::new(script.into()), asked: watch::channel(0).0 });
    let client = Client::new(ClientConfig { server, ..ClientConfig::default() }).unwrap();
    let (cache, reflector) = Cache::<T>::new(client, PODS, CacheParams::default());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, Arc::clone(&stage)));
    tasks.spawn(reflector.run(stop.clone()));
    let limit = Duration::from_secs(20);
    let seen = tokio::time::timeout(limit, cache.wait_revision(revision)).await;
    assert!(seen.is_ok(), "stuck at {} after {} requests", cache.revision(), *stage.asked.borrow());
    cache.snapshot().keys().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_list_and_then_changes_line_by_line() {
    let changes = events(&[
        ("ADDED", pod("b", 6)),
        ("MODIFIED", pod("b", 7)),
        ("DELETED", pod("a", 8)),
        ("BOOKMARK", json!({"metadata": {"resourceVersion": "20"}})),
    ]);
    let script = vec![
        ("/api/v1/pods?limit=500", 200, list(5, &[pod("a", 3)])),
        ("watch=true&allowWatchBookmarks=true&resourceVersion=5", 200, changes),
    ];
    assert_eq!(run::<Value>(script, 20).await, ["n/b"]);
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let script = vec![
        ("limit", 200, list(5, &[])),
        ("resourceVersion=5", 200, events(&[("ADDED", pod("a", 6))])),
        ("resourceVersion=6", 200, events(&[("ADDED", pod("b", 7))])),
    ];
    assert_eq!(run::<Value>(script, 7).await, ["n/a", "n/b"]);
}

#[tokio::test]
async fn what_is_too_old_is_listed_anew_however_it_is_said() {
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired"});
    for (status, body) in [(410, gone.to_string()), (200, events(&[("ERROR", gone)]))] {
        let script = vec![
            ("limit", 200, list(5, &[pod("a", 3), pod("b", 4)])),
            ("resourceVersion=5", status, body),
            ("limit", 200, list(9, &[pod("b", 4), pod("c", 8)])),
        ];
        assert_eq!(run::<Value>(script, 9).await, ["n/b", "n/c"]);
    }
}

#[tokio::test]
async fn failures_are_waited_out() {
    let script = vec![
        ("limit", 500, "oh".to_owned()),
        ("limit", 200, "not json".to_owned()),
        ("limit", 200, list(5, &[pod("a", 3)])),
        ("resourceVersion=5", 200, "{\"type\":\"ADD".to_owned()),
        ("resourceVersion=5", 503, String::new()),
        ("resourceVersion=5", 200, events(&[("ADDED", pod("b", 6))])),
    ];
    assert_eq!(run::<Value>(script, 6).await, ["n/a", "n/b"]);
}

#[tokio::test]
async fn pages_are_put_together() {
    let first = json!({
        "metadata": {"resourceVersion": "5", "continue": "more"}, "items": [pod("a", 1)],
    });
    let script = vec![
        ("limit=500", 200, first.to_string()),
        ("limit=500&continue=more", 200, list(5, &[pod("b", 2)])),
    ];
    assert_eq!(run::<Value>(script, 5).await, ["n/a", "n/b"]);
}

#[derive(serde::Deserialize)]
struct Strict {
    #[expect(dead_code, reason = "only its type matters")]
    spec: u64,
}

#[tokio::test]
async fn a_broken_object_is_left_out_and_stops_nothing() {
    let good = |name: &str, revision| {
        let mut pod = pod(name, revision);
        pod["spec"] = json!(1);
        pod
    };
    let changes = events(&[("MODIFIED", pod("a", 6)), ("ADDED", good("c", 7))]);
    let script = vec![
        ("limit", 200, list(5, &[good("a", 3), pod("b", 4)])),
        ("resourceVersion=5", 200, changes),
    ];
    assert_eq!(run::<Strict>(script, 7).await, ["n/c"]);
}

/// A view that has a list, as a Go program's empty one must become.
#[derive(serde::Deserialize)]
struct Listed {
    status: ListedStatus,
}

#[derive(serde::Deserialize)]
struct ListedStatus {
    #[serde(default)]
    conditions: Vec<String>,
}

impl Listed {
    fn is_empty(&self) -> bool {
        self.status.conditions.is_empty()
    }
}

#[test]
fn a_null_is_as_good_as_nothing() {
    let mut object = json!({"status": {"conditions": null, "more": [{"x": null}, null]}});
    forget_nulls(&mut object);
    assert_eq!(object, json!({"status": {"more": [{}, null]}}));
    assert!(serde_json::from_value::<Listed>(object).unwrap().is_empty());
}

#[test]
fn followers_see_each_change_once_and_start_over_after_a_new_list() {
    let state = State { objects: Snapshot::default(), journal: VecDeque::new(), first: 1 };
    let shared = Shared { state: RwLock::new(state), seen: watch::channel(0).0 };
    let cache: Cache<Value> = Cache { shared: Arc::new(shared) };
    let (mut early, mut late) = (0, 0);
    assert!(matches!(cache.changes_since(&mut early), Changes::Everything(all) if all.is_empty()));
    let key = || Key::new("n", "a");
    cache.shared.set(key(), Some(Arc::new(json!(1))));
    cache.shared.set(key(), Some(Arc::new(json!(2))));
    cache.shared.set(key(), None);
    let told = |changes: Changes<Value>| match changes {
        Changes::These(all) => all
            .into_iter()
            .map(|one| (one.before.map(|v| v.to_string()), one.after.map(|v| v.to_string())))
            .collect(),
        Changes::Everything(_) => vec![],
    };
    let some = |number: i64| Some(number.to_string());
    let expected = [(None, some(1)), (some(1), some(2)), (some(2), None)];
    assert_eq!(told(cache.changes_since(&mut early)), expected);
    assert_eq!(told(cache.changes_since(&mut early)), []);
    assert!(matches!(cache.changes_since(&mut late), Changes::Everything(_)));
    cache.shared.replace([(key(), Arc::new(json!(3)))].into());
    assert!(matches!(cache.changes_since(&mut early), Changes::Everything(all) if all.len() == 1));
    for number in 0..JOURNAL {
        cache.shared.set(key(), Some(Arc::new(json!(number))));
    }
    assert!(matches!(cache.changes_since(&mut early), Changes::These(all) if all.len() == JOURNAL));
    for number in 0..=JOURNAL {
        cache.shared.set(key(), Some(Arc::new(json!(number))));
    }
    assert!(matches!(cache.changes_since(&mut early), Changes::Everything(_)), "too far behind");
}
