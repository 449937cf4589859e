//! Measures a Kubernetes API server, ours or any other that a kubeconfig opens.
//!
//! Each client is one HTTP/1.1 connection that asks one thing at a time, as fast as it is answered.
//! Pods are made in a namespace of their own, which is emptied at the end; no node is needed.
//! Rates and latencies are the clients'; memory and processor time are those of the process that
//! listens at the server's address, when that is on this machine.

mod connection;
mod process;
mod workload;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use serde_json::json;

use crate::connection::Target;
use crate::process::Server;
use crate::workload::Outcome;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Creates pods.
    CreatePods,
    /// Reads pods by name.
    Get,
    /// Replaces pods.
    Update,
    /// Lists all pods.
    List,
    /// Creates pods while every client watches, from the call to the event.
    Watch,
    /// Creates pods by server-side apply.
    Apply,
}

/// How results are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Measures a Kubernetes API server.
#[derive(Debug, Parser)]
struct Arguments {
    /// The kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// What to do.
    #[arg(long, value_enum)]
    workload: Workload,
    /// Connections; watchers for `watch`.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Pods made, read or listed.
    #[arg(long, default_value_t = 2000)]
    objects: usize,
    /// Bytes that each pod is larger than usual.
    #[arg(long, default_value_t = 0)]
    filler: usize,
    /// Lists to make (`list`).
    #[arg(long, default_value_t = 20)]
    lists: usize,
    /// Items in a page of a list; 0 for all at once.
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// Pods created in a second (`watch`).
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// `fieldValidation` of writes.
    #[arg(long, default_value = "Ignore")]
    field_validation: String,
    /// Where pods are made.
    #[arg(long, default_value = "apibench")]
    namespace: String,
    /// Leave the pods there.
    #[arg(long)]
    keep: bool,
    /// How results are told.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

// One thread: the server shares the machine, and what the clients take it cannot have.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let target = Target::open(&arguments.kubeconfig)?;
    let server = Server::find(target.address());
    workload::prepare(&target, &arguments).await.context("cannot prepare the namespace")?;
    let before = server.as_ref().map(Server::cpu_seconds).unwrap_or_default();
    let outcome = workload::run(&target, &arguments).await?;
    let after = server.as_ref().map(Server::cpu_seconds).unwrap_or_default();
    let resident = server.as_ref().map(Server::resident_bytes);
    if !arguments.keep {
        workload::tidy(&target, &arguments).await.context("cannot empty the namespace")?;
    }
    report(&arguments, outcome, after - before, resident)
}

fn report(
    arguments: &Arguments,
    mut outcome: Outcome,
    cpu_seconds: f64,
    resident: Option<u64>,
) -> anyhow::Result<()> {
    outcome.times.sort_unstable();
    outcome.last.sort_unstable();
    let operations = outcome.operations;
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let (count, megabytes) = (operations as f64, outcome.bytes as f64 / 1e6);
    let seconds = outcome.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let cpu_ms = cpu_seconds * 1000.0 / count.max(1.0);
    let (p50, p99) = (percentile(&outcome.times, 50), percentile(&outcome.times, 99));
    let last = percentile(&outcome.last, 99);
    let workload = arguments.workload.to_possible_value();
    let workload = workload.as_ref().map_or("", |value| value.get_name()).to_owned();
    let mut out = std::io::stdout().lock();
    if arguments.output == Output::Json {
        let told = json!({
            "workload": workload, "clients": arguments.clients, "objects": arguments.objects,
            "operations": operations, "seconds": seconds, "rate": count / seconds,
            "p50Ms": p50, "p99Ms": p99, "lastWatcherP99Ms": last, "bytes": outcome.bytes,
            "serverCpuMsPerOperation": resident.map(|_| cpu_ms), "serverResidentBytes": resident,
        });
        writeln!(out, "{told}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{workload}: {operations} operations by {} clients in {seconds:.2} s: {:.0}/s, \
         p50 {p50:.2} ms, p99 {p99:.2} ms, {:.1} MB/s",
        arguments.clients,
        count / seconds,
        megabytes / seconds,
    )?;
    if !outcome.last.is_empty() {
        writeln!(out, "  to the last watcher: p99 {last:.2} ms")?;
    }
    if let Some(bytes) = resident {
        writeln!(out, "  server: {cpu_ms:.3} ms CPU each, {} MiB resident", bytes >> 20)?;
    }
    Ok(())
}

fn percentile(times: &[Duration], percent: usize) -> f64 {
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
