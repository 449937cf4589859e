//! Fills an embedded store with pods and weighs it: `weigh DIR COUNT BYTES`.
//!
//! Prints the rate of writing by 256 writers, the time of opening, and the resident memory.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement ends where it cannot go on, and prints what it found"
)]

use std::time::Instant;

use store::suite::put;
use store::{Expect, Options, Store};

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn pod(name: &str, size_bytes: usize) -> String {
    let head = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"default","uid":"{name}","labels":{{"app":"web"}},"annotations":{{"filler":""#
    );
    let tail = r#""}},"spec":{"containers":[{"name":"main","image":"muster.dev/busybox:1"}]},"status":{"phase":"Pending"}}"#;
    let filler = "x".repeat(size_bytes.saturating_sub(head.len() + tail.len()));
    format!("{head}{filler}{tail}")
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, count, size_bytes] = args.as_slice() else {
        return println!("usage: weigh DIR COUNT BYTES");
    };
    let (count, size_bytes): (u64, usize) = (count.parse().unwrap(), size_bytes.parse().unwrap());
    let options = Options { dir: dir.into() };
    let store = Store::open(&options).unwrap();
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..256_u64 {
        let store = store.clone();
        writers.spawn(async move {
            for n in (writer..count).step_by(256) {
                let name = format!("pod-{n:06}");
                let place = format!("default/{name}");
                let text = pod(&name, size_bytes);
                store.write(put("core/pods", &place, Expect::Absent, &text)).await.unwrap();
            }
        });
    }
    while writers.join_next().await.is_some() {}
    let seconds = started.elapsed().as_secs_f64();
    println!("written: {count} in {seconds:.1} s; resident {} MB", resident_mb());
    drop(store);
    let started = Instant::now();
    let store = Store::open(&options).unwrap();
    let (elapsed, items) = (started.elapsed(), store.count("core/pods", ""));
    println!("opened: {items} in {elapsed:.2?}; resident {} MB", resident_mb());
}
