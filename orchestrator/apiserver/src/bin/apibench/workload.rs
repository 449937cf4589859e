//! What the clients do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use objects::field::Fields as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::connection::{Connection, Target};
use crate::{Arguments, Workload};

const JSON: &str = "application/json";
const APPLY: &str = "application/apply-patch+yaml";
/// Connections that make the pods a workload reads.
const MAKERS: usize = 32;
/// How long to wait for the last event.
const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// Where the name stands in an event of ours.
const NAME_MARK: &[u8] = b"\"name\":\"bench-";

/// What was measured.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) operations: usize,
    pub(crate) elapsed: Duration,
    pub(crate) bytes: usize,
    /// One for each operation, or for each event at each watcher.
    pub(crate) times: Vec<Duration>,
    /// From each creation to the watcher that heard of it last.
    pub(crate) last: Vec<Duration>,
}

fn pods(arguments: &Arguments) -> String {
    format!("/api/v1/namespaces/{}/pods", arguments.namespace)
}

fn name(n: usize) -> String {
    format!("bench-{n:06}")
}

/// A pod like many: answered with defaults and owners it takes about 2.2 kB, and with a filler as
/// much more as is wanted.
fn pod(n: usize, filler: usize) -> Bytes {
    let environment: Vec<Value> =
        (0..4).map(|n| json!({"name": format!("SETTING_{n}"), "value": "some value"})).collect();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name(n), "labels": {"app": "bench", "tier": "none"}},
        "spec": {
            "containers": [{
                "name": "main", "image": "registry.example/bench/main:1.2.3",
                "env": environment,
                "ports": [{"containerPort": 8080, "name": "web"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }],
            "nodeSelector": {"bench.example/never": "here"},
        },
    });
    if filler > 0
        && let Some(metadata) = pod.field_mut("metadata").and_then(Value::as_object_mut)
    {
        // Words that differ from pod to pod, so that nothing is gained by packing or sharing them.
        let words = (0..).map(|word| format!("{n:06}-{word:05} "));
        let text: String = words.take(filler.div_ceil(13)).collect();
        metadata.insert("annotations".to_owned(), json!({"bench.example/filler": text}));
    }
    Bytes::from(pod.to_string())
}

/// Makes the namespace, its account and the pods the workload begins with.
pub(crate) async fn prepare(target: &Target, arguments: &Arguments) -> anyhow::Result<()> {
    let mut connection = target.connect().await?;
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": arguments.namespace},
    });
    let body = Bytes::from(namespace.to_string());
    connection.ask("POST", "/api/v1/namespaces", JSON, body).await?.expect(&[201, 409])?;
    // Where nobody makes the account that pods need, we do.
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
    });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts", arguments.namespace);
    let body = Bytes::from(account.to_string());
    connection.ask("POST", &path, JSON, body).await?.expect(&[201, 409])?;
    let filler = arguments.filler;
    match arguments.workload {
        Workload::Get | Workload::List | Workload::Update => {
            let path = pods(arguments);
            each(target, MAKERS, arguments.objects, move |n| Call {
                method: "POST",
                path: path.clone(),
                content_type: JSON,
                body: pod(n, filler),
                codes: &[201, 409],
            })
            .await
            .map(drop)
        }
        Workload::CreatePods | Workload::Apply | Workload::Watch => tidy(target, arguments).await,
    }
}

/// Removes the pods.
pub(crate) async fn tidy(target: &Target, arguments: &Arguments) -> anyhow::Result<()> {
    let path = format!("{}?gracePeriodSeconds=0", pods(arguments));
    let mut connection = target.connect().await?;
    connection.ask("DELETE", &path, "", Bytes::new()).await?.expect(&[200])?;
    Ok(())
}

/// Does what is to be measured.
pub(crate) async fn run(target: &Target, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let path = pods(arguments);
    let validation = format!("fieldValidation={}", arguments.field_validation);
    let (clients, objects) = (arguments.clients, arguments.objects);
    let filler = arguments.filler;
    match arguments.workload {
        Workload::CreatePods => {
            let path = format!("{path}?{validation}");
            each(target, clients, objects, move |n| Call {
                method: "POST",
                path: path.clone(),
                content_type: JSON,
                body: pod(n, filler),
                codes: &[201],
            })
            .await
        }
        Workload::Get => {
            each(target, clients, objects, move |n| Call {
                method: "GET",
                path: format!("{path}/{}", name(n)),
                content_type: "",
                body: Bytes::new(),
                codes: &[200],
            })
            .await
        }
        Workload::Update => {
            each(target, clients, objects, move |n| Call {
                method: "PATCH",
                path: format!("{path}/{}?{validation}", name(n)),
                content_type: "application/merge-patch+json",
                body: Bytes::from(format!("{{\"metadata\":{{\"labels\":{{\"turn\":\"{n}\"}}}}}}")),
                codes: &[200],
            })
            .await
        }
        Workload::Apply => {
            each(target, clients, objects, move |n| Call {
                method: "PATCH",
                path: format!("{path}/{}?fieldManager=apibench&{validation}", name(n)),
                content_type: APPLY,
                body: pod(n, filler),
                codes: &[200, 201],
            })
            .await
        }
        Workload::List => list(target, arguments).await,
        Workload::Watch => watch(target, arguments).await,
    }
}

/// One request.
struct Call {
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Bytes,
    codes: &'static [u16],
}

/// Makes `count` calls as fast as the clients are answered.
async fn each(
    target: &Target,
    clients: usize,
    count: usize,
    call: impl Fn(usize) -> Call + Clone + Send + 'static,
) -> anyhow::Result<Outcome> {
    let mut connections = Vec::new();
    for _ in 0..clients.min(count) {
        connections.push(target.connect().await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for mut connection in connections {
        let (next, call) = (Arc::clone(&next), call.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut bytes = 0;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return anyhow::Ok((times, bytes));
                }
                let Call { method, path, content_type, body, codes } = call(n);
                let begun = Instant::now();
                let answer = connection.ask(method, &path, content_type, body).await?;
                times.push(begun.elapsed());
                bytes += answer.expect(codes)?.size();
            }
        });
    }
    let mut outcome = Outcome::default();
    while let Some(done) = tasks.join_next().await {
        let (times, bytes) = done??;
        outcome.times.extend(times);
        outcome.bytes += bytes;
    }
    outcome.elapsed = started.elapsed();
    outcome.operations = outcome.times.len();
    Ok(outcome)
}

/// Lists everything, page by page when a limit is given.
async fn list(target: &Target, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let path = format!("/api/v1/pods?limit={}", arguments.limit);
    let next = Arc::new(AtomicUsize::new(0));
    let lists = arguments.lists;
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..arguments.clients.min(lists) {
        let mut connection = target.connect().await?;
        let (next, path, pages) = (Arc::clone(&next), path.clone(), arguments.limit > 0);
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            while next.fetch_add(1, Ordering::Relaxed) < lists {
                let begun = Instant::now();
                outcome.bytes += list_once(&mut connection, &path, pages).await?;
                outcome.times.push(begun.elapsed());
            }
            anyhow::Ok(outcome)
        });
    }
    let mut outcome = Outcome::default();
    while let Some(done) = tasks.join_next().await {
        let one = done??;
        outcome.times.extend(one.times);
        outcome.bytes += one.bytes;
    }
    outcome.elapsed = started.elapsed();
    outcome.operations = outcome.times.len();
    Ok(outcome)
}

async fn list_once(connection: &mut Connection, path: &str, pages: bool) -> anyhow::Result<usize> {
    let mut bytes = 0;
    let mut token = String::new();
    loop {
        let path = format!("{path}&continue={token}");
        let answer = connection.ask("GET", &path, "", Bytes::new()).await?.expect(&[200])?;
        bytes += answer.size();
        if !pages {
            return Ok(bytes);
        }
        let page: Value = serde_json::from_slice(&answer.body())?;
        match page.field("metadata.continue").and_then(Value::as_str) {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => return Ok(bytes),
        }
    }
}

/// Creates pods at a pace while everyone watches.
async fn watch(target: &Target, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let objects = arguments.objects;
    let path = pods(arguments);
    let limit = format!("{path}?limit=1");
    let list =
        target.connect().await?.ask("GET", &limit, "", Bytes::new()).await?.expect(&[200])?;
    let list: Value = serde_json::from_slice(&list.body())?;
    let version = list.field("metadata.resourceVersion").and_then(Value::as_str);
    let version = version.context("a list without a version")?;
    let mut watchers = JoinSet::new();
    for _ in 0..arguments.clients {
        let mut connection = target.connect().await?;
        let path = format!("{path}?watch=1&resourceVersion={version}&timeoutSeconds=3600");
        let answer = connection.send("GET", &path, "", Bytes::new()).await?;
        if answer.status().as_u16() != 200 {
            bail!("the server answers {} to a watch", answer.status());
        }
        watchers.spawn(follow(connection, answer.into_body(), objects));
    }
    // Only now: the server may end what is idle while thousands of watchers come.
    let mut maker = target.connect().await?;
    let pause = Duration::from_secs_f64(1.0 / arguments.rate.max(0.001));
    let mut beat = tokio::time::interval(pause);
    let started = Instant::now();
    let mut sent = Vec::new();
    for n in 0..objects {
        beat.tick().await;
        sent.push(Instant::now());
        maker.ask("POST", &path, JSON, pod(n, arguments.filler)).await?.expect(&[201])?;
    }
    let mut outcome = Outcome { operations: objects, ..Outcome::default() };
    let mut last = vec![Duration::ZERO; objects];
    let heard = async {
        while let Some(done) = watchers.join_next().await {
            let (seen, bytes) = done??;
            outcome.bytes += bytes;
            for ((seen, sent), last) in seen.iter().zip(&sent).zip(&mut last) {
                let time = seen.saturating_duration_since(*sent);
                outcome.times.push(time);
                *last = time.max(*last);
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(EVENT_LIMIT, heard).await.context("events are missing")??;
    outcome.elapsed = started.elapsed();
    outcome.last = last;
    Ok(outcome)
}

/// Notes when each creation is heard of, until all are.
async fn follow(
    connection: Connection,
    mut body: Incoming,
    objects: usize,
) -> anyhow::Result<(Vec<Instant>, usize)> {
    let mut seen = Vec::with_capacity(objects);
    let mut rest: Vec<u8> = Vec::new();
    let mut bytes = 0;
    while seen.len() < objects {
        let frame = body.frame().await.context("a watch ended early")??;
        let Ok(data) = frame.into_data() else { continue };
        let now = Instant::now();
        bytes += data.len();
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let event = rest.drain(..=end).collect::<Vec<u8>>();
            let ours = event.windows(NAME_MARK.len()).any(|window| window == NAME_MARK);
            if ours && event.starts_with(b"{\"type\":\"ADDED\"") {
                seen.push(now);
            }
        }
    }
    drop(connection);
    Ok((seen, bytes))
}
