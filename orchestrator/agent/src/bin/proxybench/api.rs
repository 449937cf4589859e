//! Just enough of an API server to follow services: lists, and watches that tell of one change
//! after the other.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Where slices of endpoints are.
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// The server; it ends with the process.
pub(crate) struct Api {
    pub(crate) address: String,
    events: Sender<String>,
    revision: u64,
}

/// What connections share.
struct Shared {
    lists: BTreeMap<&'static str, String>,
    /// Changes of slices, for the one who watches them.
    events: Mutex<Option<Receiver<String>>>,
}

impl Api {
    /// Serves these lists, by their paths.
    pub(crate) fn serve(lists: BTreeMap<&'static str, Vec<Value>>) -> Result<Self> {
        let render = |items: Vec<Value>| {
            json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string()
        };
        let lists = lists.into_iter().map(|(path, items)| (path, render(items))).collect();
        let (events, receiver) = channel();
        let shared = Arc::new(Shared { lists, events: Mutex::new(Some(receiver)) });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}", listener.local_addr()?);
        std::thread::Builder::new().spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // Whoever cannot be answered goes away and comes again.
                let answer = move || drop(answer(stream, &shared));
                drop(std::thread::Builder::new().spawn(answer));
            }
        })?;
        Ok(Self { address, events, revision: 1 })
    }

    /// Tells of a changed slice.
    pub(crate) fn change(&mut self, mut slice: Value) -> Result<()> {
        self.revision += 1;
        if let Some(meta) = slice.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("resourceVersion".to_owned(), json!(self.revision.to_string()));
        }
        let event = json!({"type": "MODIFIED", "object": slice}).to_string();
        self.events.send(event).context("nobody listens")
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if query.contains("watch=") {
            return watch(&mut stream, path, shared);
        }
        let nothing = r#"{"metadata":{"resourceVersion":"1"},"items":[]}"#;
        let body = shared.lists.get(path).map_or(nothing, String::as_str);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
}

fn watch(stream: &mut TcpStream, path: &str, shared: &Shared) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let events = {
        let mut events = shared.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.take_if(|_| path == SLICES)
    };
    match events {
        Some(events) => {
            for event in events {
                let chunk = format!("{:x}\r\n{event}\n\r\n", event.len() + 1);
                stream.write_all(chunk.as_bytes())?;
            }
        }
        // Nothing ever changes; the client goes when it has enough.
        None => {
            let mut end = String::new();
            BufReader::new(stream.try_clone()?).read_line(&mut end)?;
        }
    }
    Ok(())
}
