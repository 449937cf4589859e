//! Requests with upstream's answers, as files below `testdata` have them, put to our server in
//! order.
//!
//! Each difference is printed. One that is known stands there with its reason, and the run fails
//! when it is no longer one: the list of differences cannot go stale.

#[path = "../../src/bin/apibench/connection.rs"]
#[allow(dead_code, reason = "the tests need a part of it")]
mod connection;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use connection::{Connection, Target};
use http::HeaderValue;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use crate::common::{Cluster, soon};

/// One request and what upstream answers.
#[derive(Debug, Default, Clone)]
struct Exchange {
    line: usize,
    method: String,
    path: String,
    media: String,
    accept: String,
    body: String,
    code: u16,
    expected: String,
    /// Why we answer otherwise.
    differs: String,
    /// Names under which parts of the answer are kept, with where these are.
    kept: Vec<(String, String)>,
}

/// Reads a file: `> METHOD PATH`, `@ MEDIA-TYPE`, `? ACCEPT`, a body as it is, `~ REASON` for
/// a known difference, `< CODE` and from there on the answer, `= NAME POINTER` for a part of it
/// that later requests name as `${NAME}`. `> WATCH NAME PATH` opens a watch, `> EVENTS NAME` is
/// answered with as many of its events as are expected.
fn exchanges(text: &str) -> Vec<Exchange> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if let Some(request) = line.strip_prefix("> ") {
            let (method, path) = request.split_once(' ').unwrap();
            exchanges.push(Exchange {
                line: at + 1,
                method: method.to_owned(),
                path: path.to_owned(),
                accept: "application/json".to_owned(),
                ..Exchange::default()
            });
            continue;
        }
        let Some(open) = exchanges.last_mut() else { continue };
        if let Some(media) = line.strip_prefix("@ ") {
            media.clone_into(&mut open.media);
        } else if let Some(accept) = line.strip_prefix("? ") {
            accept.clone_into(&mut open.accept);
        } else if let Some(reason) = line.strip_prefix("~ ") {
            reason.clone_into(&mut open.differs);
        } else if let Some(kept) = line.strip_prefix("= ") {
            let (name, place) = kept.split_once(' ').unwrap();
            open.kept.push((name.to_owned(), place.to_owned()));
        } else if let Some(code) = line.strip_prefix("< ") {
            open.code = code.parse().unwrap();
        } else if !line.starts_with('#') {
            let part = if open.code == 0 { &mut open.body } else { &mut open.expected };
            part.push_str(line);
            part.push('\n');
        }
    }
    exchanges
}

/// Where an answer is not as expected: every member of an expected object must be there, `null`
/// must not, lists are compared item by item, and `*` in a text stands for anything.
fn differences(expected: &Value, found: Option<&Value>, place: &str, told: &mut Vec<String>) {
    let differs = match (expected, found) {
        (Value::Null, None | Some(Value::Null)) => false,
        (Value::Object(members), Some(found @ Value::Object(_))) => {
            for (name, value) in members {
                differences(value, found.get(name), &format!("{place}.{name}"), told);
            }
            false
        }
        // `["...", ...]`: the rest of these must be among those found.
        (Value::Array(items), Some(Value::Array(found)))
            if items.first().is_some_and(|first| first == "...") =>
        {
            for item in &items[1..] {
                let fits = found.iter().any(|one| {
                    let mut trial = Vec::new();
                    differences(item, Some(one), "", &mut trial);
                    trial.is_empty()
                });
                if !fits {
                    told.push(format!("{place}: none is like {item}"));
                }
            }
            false
        }
        (Value::Array(items), Some(Value::Array(found))) if items.len() == found.len() => {
            for (at, item) in items.iter().enumerate() {
                differences(item, found.get(at), &format!("{place}[{at}]"), told);
            }
            false
        }
        (Value::String(pattern), Some(Value::String(text))) => !fits(pattern, text),
        (expected, found) => Some(expected) != found,
    };
    if differs {
        let found = found.map_or("nothing".to_owned(), Value::to_string);
        told.push(format!("{place}: expected {expected}, found {found}"));
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

/// A watch that goes on beside the requests.
struct Stream {
    _connection: Connection,
    body: Incoming,
    rest: Vec<u8>,
}

impl Stream {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = self.body.frame().await.expect("the watch has ended").unwrap();
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

/// A client that plays a file's requests, with what it has learnt.
pub(crate) struct Player {
    target: Target,
    connection: Connection,
    kept: BTreeMap<String, String>,
    watches: BTreeMap<String, Stream>,
}

impl Player {
    pub(crate) async fn new(cluster: &Cluster) -> Self {
        let target = Target::open(&cluster.path("admin.kubeconfig")).unwrap();
        let connection = target.connect().await.unwrap();
        Self { target, connection, kept: BTreeMap::new(), watches: BTreeMap::new() }
    }

    /// Keeps something for requests to name.
    pub(crate) fn keep(&mut self, name: &str, value: &str) {
        self.kept.insert(name.to_owned(), value.to_owned());
    }

    /// Puts what is kept where it is named.
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.kept {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        text
    }

    /// Asks, and returns code and body.
    async fn ask(&mut self, exchange: &Exchange) -> (u16, Vec<u8>) {
        let accept = HeaderValue::from_str(&exchange.accept).unwrap();
        let path = self.fill(&exchange.path);
        match exchange.method.as_str() {
            "WATCH" => {
                let (name, path) = path.split_once(' ').unwrap();
                let mut connection = self.target.connect().await.unwrap();
                connection.accept = accept;
                let opened = connection.send("GET", path, "", Bytes::new());
                let opened = soon("the watch", opened).await.unwrap();
                let code = opened.status().as_u16();
                let body = opened.into_body();
                let stream = Stream { _connection: connection, body, rest: Vec::new() };
                self.watches.insert(name.to_owned(), stream);
                (code, Vec::new())
            }
            "EVENTS" => {
                let expected: Value = serde_json::from_str(&exchange.expected).unwrap();
                let stream = self.watches.get_mut(&path).unwrap();
                let mut events = Vec::new();
                for _ in expected.as_array().unwrap() {
                    events.push(soon("an event", stream.next()).await);
                }
                (200, serde_json::to_vec(&events).unwrap())
            }
            method => {
                let body = Bytes::from(self.fill(&exchange.body));
                self.connection.accept = accept;
                let asked = self.connection.ask(method, &path, &exchange.media, body);
                let answer = soon("an answer", asked).await.unwrap();
                (answer.code, answer.body())
            }
        }
    }

    /// Asks for something in JSON.
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        media: &str,
        body: &str,
    ) -> (u16, Value) {
        let exchange = Exchange {
            method: method.to_owned(),
            path: path.to_owned(),
            media: media.to_owned(),
            body: body.to_owned(),
            accept: "application/json".to_owned(),
            ..Exchange::default()
        };
        let (code, bytes) = self.ask(&exchange).await;
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Opens a watch.
    pub(crate) async fn watch(&mut self, name: &str, path: &str) {
        let (code, _) = self.request("WATCH", &format!("{name} {path}"), "", "").await;
        assert_eq!(code, 200, "{path}");
    }

    /// The next event of a watch.
    pub(crate) async fn event(&mut self, name: &str) -> Value {
        soon("an event", self.watches.get_mut(name).unwrap().next()).await
    }

    /// Plays one exchange; what was not as expected is told.
    async fn play_one(&mut self, exchange: &Exchange, told: &mut Vec<String>) {
        let Exchange { line, method, path, code, differs, kept, .. } = exchange;
        let (found_code, bytes) = self.ask(exchange).await;
        let mut found = Vec::new();
        if found_code != *code {
            found.push(format!("expected {code}, found {found_code}"));
        }
        let text = String::from_utf8_lossy(&bytes);
        let value = serde_json::from_slice::<Value>(&bytes);
        for (name, place) in kept {
            let part = value.as_ref().ok().and_then(|value| value.pointer(place));
            match part {
                Some(Value::String(part)) => self.kept.insert(name.clone(), part.clone()),
                Some(part) => self.kept.insert(name.clone(), part.to_string()),
                None => {
                    found.push(format!("nothing at {place}"));
                    None
                }
            };
        }
        let expected = self.fill(&exchange.expected);
        if !expected.trim().is_empty() {
            match serde_json::from_str::<Value>(expected.trim()) {
                Ok(expected) => {
                    differences(&expected, Some(&value.unwrap_or_default()), "", &mut found);
                }
                Err(_) if fits(expected.trim(), text.trim()) => {}
                Err(_) => found.push(format!("expected {expected:?}, found {text:?}")),
            }
        }
        match (found.is_empty(), differs.is_empty()) {
            (true, true) | (false, false) => {}
            (false, true) => {
                let found = found.join("\n  ");
                told.push(format!("line {line}, {method} {path}:\n  {found}\n  in {text}"));
            }
            (true, false) => {
                told.push(format!("line {line}, {method} {path}: no longer differs ({differs})"));
            }
        }
    }

    /// Plays a file's exchanges and returns what was not as expected.
    pub(crate) async fn play(&mut self, text: &str) -> Vec<String> {
        let mut told = Vec::new();
        for exchange in exchanges(text) {
            self.play_one(&exchange, &mut told).await;
        }
        told
    }
}

/// A file below `testdata`; read when the test runs, so that changing it needs no build.
pub(crate) fn testdata(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

#[tokio::test]
async fn answers_are_those_of_upstream() {
    let cluster = Cluster::start().await;
    let told = Player::new(&cluster).await.play(&testdata("answers.txt")).await;
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn a_difference_is_seen() {
    let check = |expected: Value, found: Value, count: usize| {
        let mut told = Vec::new();
        differences(&expected, Some(&found), "", &mut told);
        assert_eq!(told.len(), count, "{told:?}");
    };
    use serde_json::json;
    check(json!({"a": "x*z", "b": null}), json!({"a": "xyz", "c": 1}), 0);
    check(json!({"a": "x*z", "b": null}), json!({"a": "xy", "b": 1}), 2);
    check(json!({"a": [{"b": 1}]}), json!({"a": [{"b": 1, "c": 2}]}), 0);
    check(json!({"a": [1]}), json!({"a": [1, 2]}), 1);
    check(json!({"a": ["...", 2]}), json!({"a": [1, 2]}), 0);
    check(json!({"a": ["...", {"b": 2}, 3]}), json!({"a": [1, {"b": 2}]}), 1);
    check(json!({"a": 1}), json!({}), 1);
}
