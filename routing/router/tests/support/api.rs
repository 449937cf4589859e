//! Just enough of an API server for the router's four caches: lists, and watches that stay open.
//!
//! Serves one list per path from a shared map; a changed map is seen when the watch's connection
//! is closed and the router lists again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use kernel::netns::Namespace;
use serde_json::{Value, json};

/// Items by the collection's path.
pub(crate) type Items = Arc<Mutex<BTreeMap<String, Vec<Value>>>>;

/// Serves `items` inside a namespace until the process ends; returns the base address.
pub(crate) fn serve(inside: &Namespace, items: &Items) -> String {
    let listener = inside.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let items = Arc::clone(items);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let items = Arc::clone(&items);
            std::thread::spawn(move || drop(answer(stream, &items)));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, items: &Items) -> std::io::Result<()> {
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
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            std::thread::park();
        }
        let list = items.lock().unwrap().get(path).cloned().unwrap_or_default();
        let body = json!({"metadata": {"resourceVersion": "7"}, "items": list}).to_string();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
    }
}
