//! Requests with upstream's answers, as `testdata/answers.txt` has them, put to our server in order.
//!
//! Each difference is printed. One that is known stands there with its reason, and the run fails
//! when it is no longer one: the list of differences cannot go stale.

#[path = "../../src/bin/apibench/connection.rs"]
#[allow(dead_code, reason = "the tests need a part of it")]
mod connection;

use bytes::Bytes;
use connection::Target;
use http::HeaderValue;
use serde_json::Value;

use crate::common::{Cluster, soon};

/// One request and what upstream answers.
#[derive(Debug, Default)]
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
}

/// Reads the file: `> METHOD PATH`, `@ MEDIA-TYPE`, `? ACCEPT`, a body as it is, `~ REASON` for
/// a known difference, `< CODE` and from there on the answer.
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

#[tokio::test]
async fn answers_are_those_of_upstream() {
    let cluster = Cluster::start().await;
    let target = Target::open(&cluster.path("admin.kubeconfig")).unwrap();
    let mut connection = target.connect().await.unwrap();
    let mut told = Vec::new();
    for exchange in exchanges(include_str!("../testdata/answers.txt")) {
        let Exchange { line, method, path, media, accept, body, code, expected, differs } =
            exchange;
        connection.accept = HeaderValue::from_str(&accept).unwrap();
        let asked = connection.ask(&method, &path, &media, Bytes::from(body));
        let answer = soon("an answer", asked).await.unwrap();
        let mut found = Vec::new();
        if answer.code != code {
            found.push(format!("expected {code}, found {}", answer.code));
        }
        let bytes = answer.body();
        let text = String::from_utf8_lossy(&bytes);
        if !expected.trim().is_empty() {
            match serde_json::from_str::<Value>(expected.trim()) {
                Ok(expected) => {
                    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                    differences(&expected, Some(&value), "", &mut found);
                }
                Err(_) if fits(expected.trim(), text.trim()) => {}
                Err(_) => found.push(format!("expected {expected:?}, found {text:?}")),
            }
        }
        match (found.is_empty(), differs.is_empty()) {
            (true, true) | (false, false) => {}
            (false, true) => {
                told.push(format!("line {line}, {method} {path}:\n  {}\n  in {text}", found.join("\n  ")));
            }
            (true, false) => {
                told.push(format!("line {line}, {method} {path}: no longer differs ({differs})"));
            }
        }
    }
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
    check(json!({"a": 1}), json!({}), 1);
}
