//! The resource metrics API, answered from what the nodes' agents measure.
//!
//! `kubectl top` and autoscalers read `metrics.k8s.io/v1beta1`; upstream needs an aggregated
//! server for it. Here the agents' summaries are fetched when somebody asks, and kept for a
//! moment, so that a thousand readers cost no more than one.
//!
//! Spec: metrics.k8s.io/v1beta1, NodeMetrics and PodMetrics; the kubelet's `/stats/summary`.
//!
//! *Limits*: no watch and no field selectors, as upstream's metrics-server has none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::Attributes;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use objects::field::Fields as _;
use objects::{Selector, Status, kind};
use serde_json::{Value, json};

use crate::agent;
use crate::object;
use crate::respond::{self, Answer};
use crate::server::Server;

/// Where the API is.
const ROOT: &str = "/apis/metrics.k8s.io/v1beta1/";
/// How long a summary is good.
const FRESH: Duration = Duration::from_secs(5);
/// How long an agent may take.
const AGENT_LIMIT: Duration = Duration::from_secs(5);
/// Agents asked at a time.
const AGENTS: usize = 64;
/// The largest summary: some hundred containers of a kilobyte each stay far below.
const SUMMARY_BYTES_MAX: usize = 8 << 20;
/// The agents' readings are so far apart.
const WINDOW: &str = "10s";

/// Summaries of the nodes, and when they came.
#[derive(Debug, Default)]
pub(crate) struct Summaries {
    nodes: Mutex<BTreeMap<String, Summary>>,
}

/// When a node was asked, and its summary if it gave one.
type Summary = (Instant, Option<Arc<Value>>);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Nodes { name: String },
    Pods { namespace: String, name: String },
}

/// Is this a path of the API, below its group-version?
pub(crate) fn is_path(path: &str) -> bool {
    path.strip_prefix(ROOT).is_some_and(|rest| !rest.trim_matches('/').is_empty())
}

/// What a request asks to be allowed.
pub(crate) fn attributes(path: &str) -> Attributes {
    let (resource, namespace, name) = match parse(path) {
        Some(Wanted::Nodes { name }) => ("nodes", String::new(), name),
        Some(Wanted::Pods { namespace, name }) => ("pods", namespace, name),
        None => ("", String::new(), String::new()),
    };
    Attributes {
        verb: if name.is_empty() { "list" } else { "get" }.to_owned(),
        group: "metrics.k8s.io".to_owned(),
        version: "v1beta1".to_owned(),
        resource: resource.to_owned(),
        namespace,
        name,
        ..Attributes::default()
    }
}

fn parse(path: &str) -> Option<Wanted> {
    let steps: Vec<&str> = path.strip_prefix(ROOT)?.trim_end_matches('/').split('/').collect();
    let text = |step: &str| step.to_owned();
    Some(match steps.as_slice() {
        ["nodes"] => Wanted::Nodes { name: String::new() },
        ["nodes", name] => Wanted::Nodes { name: text(name) },
        ["pods"] => Wanted::Pods { namespace: String::new(), name: String::new() },
        ["namespaces", namespace, "pods"] => {
            Wanted::Pods { namespace: text(namespace), name: String::new() }
        }
        ["namespaces", namespace, "pods", name] => {
            Wanted::Pods { namespace: text(namespace), name: text(name) }
        }
        _ => return None,
    })
}

/// Answers GET of metrics.
pub(crate) async fn answer(
    server: &Arc<Server>,
    path: &str,
    query: &str,
) -> Result<Answer, Status> {
    let selector = label_selector(query)?;
    let (kind, items, name) = match parse(path).ok_or_else(Status::no_such_path)? {
        Wanted::Nodes { name } => ("NodeMetrics", nodes(server, &selector, &name).await, name),
        Wanted::Pods { namespace, name } => {
            ("PodMetrics", pods(server, &selector, (&namespace, &name)).await, name)
        }
    };
    if name.is_empty() {
        return Ok(respond::json(
            200,
            &json!({"kind": format!("{kind}List"), "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": {}, "items": items}),
        ));
    }
    let Some(mut item) = items.into_iter().next() else {
        let kind = if kind == "NodeMetrics" { &kind::NODE } else { &kind::POD };
        return Err(Status::not_found(kind, &name));
    };
    if let Some(fields) = item.as_object_mut() {
        fields.insert("kind".to_owned(), json!(kind));
        fields.insert("apiVersion".to_owned(), json!("metrics.k8s.io/v1beta1"));
    }
    Ok(respond::json(200, &item))
}

fn label_selector(query: &str) -> Result<Selector, Status> {
    let found = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
    let text = found.unwrap_or_default().replace('+', " ");
    let text = percent(&text);
    Selector::parse(&text).map_err(|err| Status::bad_request(err.to_string()))
}

fn percent(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes: Vec<u8> = parts.next().unwrap_or_default().bytes().collect();
    for part in parts {
        match part.split_at_checked(2).map(|(hex, rest)| (u8::from_str_radix(hex, 16), rest)) {
            Some((Ok(byte), rest)) => {
                bytes.push(byte);
                bytes.extend(rest.bytes());
            }
            _ => {
                bytes.push(b'%');
                bytes.extend(part.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn nodes(server: &Arc<Server>, selector: &Selector, name: &str) -> Vec<Value> {
    let mut wanted = BTreeMap::new();
    for item in server.items(&kind::NODE, "") {
        let node = object::decode(&item, 0);
        let metadata = node.get("metadata").cloned().unwrap_or_default();
        let own = text(&metadata, "name");
        if (name.is_empty() || name == own) && selector.matches(&labels(&metadata)) {
            wanted.insert(own, metadata);
        }
    }
    let names = wanted.keys().cloned().collect();
    let found = summaries(server, names).await;
    let render = |(name, summary): (String, Arc<Value>)| {
        let metadata = wanted.get(&name)?;
        let usage = usage(summary.get("node")?)?;
        Some(json!({"metadata": shown(metadata), "timestamp": usage.0, "window": WINDOW,
            "usage": usage.1}))
    };
    found.into_iter().filter_map(render).collect()
}

async fn pods(
    server: &Arc<Server>,
    selector: &Selector,
    (namespace, name): (&str, &str),
) -> Vec<Value> {
    let mut wanted: BTreeMap<String, Value> = BTreeMap::new();
    let mut on = std::collections::BTreeSet::new();
    for item in server.items(&kind::POD, namespace) {
        let pod = object::decode(&item, 0);
        let metadata = pod.get("metadata").cloned().unwrap_or_default();
        let node = objects::field::str_at(&pod, "spec.nodeName").unwrap_or_default();
        let is_meant = name.is_empty() || name == text(&metadata, "name");
        if is_meant && !node.is_empty() && selector.matches(&labels(&metadata)) {
            on.insert(node.to_owned());
            wanted.insert(text(&metadata, "uid"), metadata);
        }
    }
    let mut items = Vec::new();
    for (_, summary) in summaries(server, on.into_iter().collect()).await {
        for pod in summary.get("pods").and_then(Value::as_array).into_iter().flatten() {
            let uid = pod.field("podRef.uid").and_then(Value::as_str).unwrap_or_default();
            let Some(metadata) = wanted.get(uid) else { continue };
            let all = pod.get("containers").and_then(Value::as_array);
            let all: Vec<&Value> = all.into_iter().flatten().collect();
            let containers: Vec<(String, Value)> = all
                .iter()
                .filter_map(|container| {
                    let (at, usage) = usage(container)?;
                    Some((at, json!({"name": container.get("name")?, "usage": usage})))
                })
                .collect();
            // Half of a pod's use would make an autoscaler err.
            if containers.len() != all.len() || containers.is_empty() {
                continue;
            }
            let at = containers.iter().map(|(at, _)| at.clone()).max().unwrap_or_default();
            let containers: Vec<Value> = containers.into_iter().map(|(_, value)| value).collect();
            items.push(json!({"metadata": shown(metadata), "timestamp": at, "window": WINDOW,
                "containers": containers}));
        }
    }
    items.sort_by_key(|item| {
        let metadata = item.get("metadata").cloned().unwrap_or_default();
        (text(&metadata, "namespace"), text(&metadata, "name"))
    });
    items
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn labels(metadata: &Value) -> BTreeMap<String, String> {
    let labels = metadata.get("labels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// What of an object's metadata its metrics carry.
fn shown(metadata: &Value) -> Value {
    let mut shown = serde_json::Map::new();
    for name in ["name", "namespace", "labels", "creationTimestamp"] {
        if let Some(value) = metadata.get(name) {
            shown.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(shown)
}

/// The moment and the use that a part of a summary tells; `None` before there are two readings.
fn usage(part: &Value) -> Option<(String, Value)> {
    let cpu = part.field("cpu.usageNanoCores")?.as_u64()?;
    let memory = part.field("memory.workingSetBytes")?.as_u64()?;
    let at = part.field("cpu.time")?.as_str()?.to_owned();
    // Times of the API have whole seconds.
    let at = at.split_once('.').map_or(at.clone(), |(whole, _)| format!("{whole}Z"));
    Some((at, json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)})))
}

/// The summaries of these nodes that can be had.
async fn summaries(server: &Arc<Server>, names: Vec<String>) -> Vec<(String, Arc<Value>)> {
    let asked = names.into_iter().map(|name| {
        let server = Arc::clone(server);
        async move {
            let summary = summary(&server, &name).await;
            summary.map(|summary| (name, summary))
        }
    });
    let found = stream::iter(asked).buffered(AGENTS);
    found.filter_map(std::future::ready).collect().await
}

async fn summary(server: &Server, node: &str) -> Option<Arc<Value>> {
    let kept = {
        let nodes = server.summaries.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, summary)| summary.clone())
    };
    if let Some(kept) = kept {
        return kept;
    }
    let got = fetch(server, node).await;
    if let Err(err) = &got {
        tracing::debug!(node, err = err.message, "no summary");
    }
    let got = got.ok().map(Arc::new);
    let mut nodes = server.summaries.nodes.lock().unwrap_or_else(PoisonError::into_inner);
    // Nodes come and go; what nobody asked for lately is let go too.
    nodes.retain(|_, (at, _)| at.elapsed() < FRESH * 12);
    // That an agent does not answer is kept as well, or every reader would wait for it.
    nodes.insert(node.to_owned(), (Instant::now(), got.clone()));
    got
}

async fn fetch(server: &Server, node: &str) -> Result<Value, Status> {
    let door = agent::door(server, node)?;
    let request = Request::get("/stats/summary")
        .header(http::header::HOST, door.address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|err| Status::internal(err.to_string()))?;
    let answered = agent::ask(server, &door, request, AGENT_LIMIT).await?;
    let code = answered.status().as_u16();
    if code != 200 {
        return Err(agent::refused(code, answered.into_body()).await);
    }
    let body = Limited::new(answered.into_body(), SUMMARY_BYTES_MAX).collect();
    let body = tokio::time::timeout(AGENT_LIMIT, body).await;
    let late = || Status::timeout("the summary did not come in time", 1);
    let body = body.map_err(|_| late())?.map_err(|err| Status::internal(err.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|err| Status::internal(err.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_nodes_and_pods() {
        let check = |rest: &str, expected: (&str, &str, &str, &str)| {
            let asked = attributes(&format!("{ROOT}{rest}"));
            let got = (&*asked.verb, &*asked.resource, &*asked.namespace, &*asked.name);
            assert_eq!(got, expected, "{rest}");
        };
        check("nodes", ("list", "nodes", "", ""));
        check("nodes/a", ("get", "nodes", "", "a"));
        check("pods", ("list", "pods", "", ""));
        check("namespaces/x/pods/p", ("get", "pods", "x", "p"));
        assert!(!is_path("/apis/metrics.k8s.io/v1beta1"));
        assert!(!is_path("/apis/metrics.k8s.io/v1beta1/"));
    }

    #[test]
    fn use_is_told_in_the_units_that_are_read() {
        let part = json!({"cpu": {"time": "2026-01-01T00:00:00.25Z", "usageNanoCores": 1500},
            "memory": {"workingSetBytes": 4096}});
        let (at, usage) = usage(&part).unwrap();
        assert_eq!(at, "2026-01-01T00:00:00Z");
        assert_eq!(usage, json!({"cpu": "1500n", "memory": "4Ki"}));
        assert!(super::usage(&json!({"cpu": {"time": "t"}})).is_none());
    }

    #[test]
    fn selectors_come_percent_encoded() {
        let selector = label_selector("labelSelector=app%3Dweb&x=1").unwrap();
        let labels = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
        assert!(selector.matches(&labels("web")) && !selector.matches(&labels("db")));
        assert!(label_selector("labelSelector=%3D%3D").is_err());
    }
}
