//! An API in memory: objects by path, merge patches, watches. It checks nothing.

#![allow(dead_code, reason = "each program that includes this file uses a part of it")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;

type Event = Result<Frame<Bytes>, Infallible>;
type Watcher = mpsc::UnboundedSender<Event>;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<String, Value>,
    watchers: Vec<(String, Watcher)>,
    /// Revision, path and line of everything that happened, for who begins to watch later.
    history: Vec<(u64, String, String)>,
}

/// The API; ends when dropped.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Api {
    /// Serves at a free port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { revision: 1, ..State::default() }));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    /// Puts an object at its path, as a client that creates it.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.lock().unwrap().put(path, object);
    }

    /// The object at a path.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Begins to delete a pod, as the API does with a grace.
    pub(crate) fn delete_gracefully(&self, path: &str, seconds: i64) {
        let patch = json!({"metadata": {"deletionTimestamp": jiff::Timestamp::now().to_string(), "deletionGracePeriodSeconds": seconds}});
        self.state.lock().unwrap().patch(path, &patch);
    }

    /// Changes an object by a merge patch.
    pub(crate) fn change(&self, path: &str, patch: &Value) {
        self.state.lock().unwrap().patch(path, patch);
    }

    /// Removes an object without asking anyone.
    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().unwrap().remove(path);
    }
}

impl State {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.revision += 1;
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        self.tell(path, kind, &object);
        object
    }

    fn patch(&mut self, path: &str, patch: &Value) -> Option<Value> {
        let mut object = self.objects.get(path)?.clone();
        merge(&mut object, patch);
        Some(self.put(path, object))
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.tell(path, "DELETED", &object);
        Some(object)
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        self.watchers.retain(|(kind, watcher)| {
            !is_in(path, kind) || watcher.send(Ok(Frame::data(line.clone().into()))).is_ok()
        });
        self.history.push((self.revision, path.to_owned(), line));
    }

    /// Begins a watch behind a revision: what happened since a list is not lost.
    fn watch(&mut self, path: String, since: u64) -> mpsc::UnboundedReceiver<Event> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for (revision, key, line) in &self.history {
            if *revision > since && is_in(key, &path) {
                sender.send(Ok(Frame::data(line.clone().into()))).unwrap();
            }
        }
        self.watchers.push((path, sender));
        receiver
    }
}

/// Tells whether `/api/v1/namespaces/n/pods/p` is in the collection `/api/v1/pods`.
fn is_in(path: &str, collection: &str) -> bool {
    let (dir, _) = path.rsplit_once('/').unwrap_or_default();
    let plain = dir.split_once("/namespaces/").map(|(group, rest)| {
        format!("{group}/{}", rest.split_once('/').map_or("", |(_, plural)| plural))
    });
    dir == collection || plain.as_deref() == Some(collection)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&state)));
            let io = TokioIo::new(stream);
            drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = head.uri.path().trim_end_matches("/status").to_owned();
    let query = head.uri.query().unwrap_or_default();
    let is_watch = query.contains("watch=true");
    let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let mut state = state.lock().unwrap();
    if is_watch {
        let since = since.and_then(|text| text.parse().ok()).unwrap_or(state.revision);
        let receiver = state.watch(path, since);
        let stream = StreamBody::new(UnboundedReceiverStream::new(receiver));
        return Ok(Response::new(stream.boxed()));
    }
    let found = match head.method {
        Method::GET if state.objects.contains_key(&path) => state.objects.get(&path).cloned(),
        Method::GET if ["pods", "services", "nodes"].iter().any(|kind| path.ends_with(kind)) => {
            let items: Vec<_> =
                state.objects.iter().filter(|(key, _)| is_in(key, &path)).map(|(_, v)| v).collect();
            let revision = state.revision.to_string();
            Some(
                json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": revision}, "items": items}),
            )
        }
        // A token says for whom it is, and nothing is kept.
        Method::POST if path.ends_with("/token") => {
            let (account, spec) = (path.rsplit('/').nth(1), &body["spec"]);
            let token = format!("{} for {}", account.unwrap_or_default(), spec["audiences"][0]);
            let end = "2099-01-01T00:00:00Z";
            Some(json!({"status": {"token": token, "expirationTimestamp": end}}))
        }
        Method::POST => {
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let mut body = body;
            if body["metadata"]["uid"].as_str().unwrap_or_default().is_empty() {
                body["metadata"]["uid"] = json!(format!("made-{}", state.revision));
            }
            Some(state.put(&format!("{path}/{name}"), body))
        }
        Method::PATCH => state.patch(&path, &body),
        Method::DELETE => state.remove(&path),
        _ => None,
    };
    let missing = json!({"kind": "Status", "code": 404, "reason": "NotFound"});
    let mut response = Response::new(
        Full::new(Bytes::from(found.as_ref().unwrap_or(&missing).to_string())).boxed(),
    );
    if found.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}
