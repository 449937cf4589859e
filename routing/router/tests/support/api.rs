//! Just enough of an API server for caches: lists, and watches that say when to list again.
//!
//! A change is told by ending watches as expired, so that clients list again.

#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests: each uses its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kernel::netns::Namespace;
use serde_json::{Value, json};

/// What the server serves; shared with whoever changes it.
#[derive(Clone, Default)]
pub(crate) struct Items(Arc<Mutex<Versioned>>);

#[derive(Default)]
struct Versioned {
    version: u64,
    /// Nobody is answered any more.
    closed: bool,
    /// What is said of itself.
    ready: bool,
    /// Items by the collection's path.
    lists: BTreeMap<String, Vec<Value>>,
}

impl Items {
    /// Puts a list in the place of the one before.
    pub(crate) fn set(&self, path: &str, list: Vec<Value>) {
        let mut items = self.0.lock().unwrap();
        items.version += 1;
        items.lists.insert(path.to_owned(), list);
    }

    /// Says from now on whether it is ready.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.0.lock().unwrap().ready = ready;
    }

    fn is_ready(&self) -> bool {
        self.0.lock().unwrap().ready
    }

    /// Stops answering, as a server that is gone.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap().closed = true;
    }

    /// Sets annotations of one object, as a merge patch asks.
    fn annotate(&self, path: &str, patch: &Value) -> Value {
        let mut items = self.0.lock().unwrap();
        items.version += 1;
        let (collection, name) = path.rsplit_once('/').unwrap();
        let all = items.lists.get_mut(collection).unwrap();
        let object = all.iter_mut().find(|one| one["metadata"]["name"] == name).unwrap();
        for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            object["metadata"]["annotations"][key] = value.clone();
        }
        object.clone()
    }

    /// An annotation of the first object of a list.
    pub(crate) fn annotation(&self, path: &str, key: &str) -> Option<String> {
        let items = self.0.lock().unwrap();
        let object = items.lists.get(path)?.first()?;
        object["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }

    fn is_closed(&self) -> bool {
        self.0.lock().unwrap().closed
    }

    fn version(&self) -> u64 {
        self.0.lock().unwrap().version + 1
    }

    fn list(&self, path: &str) -> String {
        let version = self.version().to_string();
        let items = self.0.lock().unwrap().lists.get(path).cloned().unwrap_or_default();
        json!({"metadata": {"resourceVersion": version}, "items": items}).to_string()
    }
}

/// Serves `items` inside a namespace until the process ends; returns the base address.
pub(crate) fn serve(inside: &Namespace, items: &Items) -> String {
    let listener = inside.run(|| TcpListener::bind("0.0.0.0:0")).unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    let items = items.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let items = items.clone();
            std::thread::spawn(move || drop(answer(stream, &items)));
        }
    });
    format!("http://127.0.0.1:{port}")
}

fn answer(mut stream: TcpStream, items: &Items) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 || items.is_closed() {
            return Ok(());
        }
        let mut line = String::new();
        let mut length = 0;
        while reader.read_line(&mut line)? > 2 {
            if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = number.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/readyz" {
            let status = if items.is_ready() { "200 OK" } else { "500 Internal Server Error" };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        }
        if request.starts_with("PATCH ") {
            let object = items.annotate(path, &serde_json::from_slice(&body)?).to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
            write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{object}", object.len())?;
            continue;
        }
        if query.contains("watch=") {
            watch(&mut stream, query, items)?;
            continue;
        }
        let body = items.list(path);
        let length = body.len();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}")?;
    }
}

fn watch(stream: &mut TcpStream, query: &str, items: &Items) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let known = format!("resourceVersion={}", items.version());
    while query.split('&').any(|term| term == known)
        && format!("resourceVersion={}", items.version()) == known
    {
        if items.is_closed() {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let expired = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410}});
    let event = format!("{expired}\n");
    write!(stream, "{:x}\r\n{event}\r\n0\r\n\r\n", event.len())
}
