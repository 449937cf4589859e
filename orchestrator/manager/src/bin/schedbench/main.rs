//! Measures the scheduler: `schedbench WORKLOAD.yaml [--core] [--kubeconfig FILE] [--json]`.
//!
//! A workload is a data file in the manner of upstream's `scheduler_perf`: nodes and pods to be
//! made, some of them measured. Pods exist before the clock starts; it runs from the first
//! decision to the last binding that the API server has acknowledged, which ours does only once
//! the binding is on disk. At the end every pod is read back and checked against its node.
//!
//! Without `--kubeconfig` our own API server is started for the occasion, as a process beside
//! this one: the example `serve` of `apiserver`, built if need be. With it, any Kubernetes API
//! server will do; no other scheduler may run there. `--core` measures decisions alone, without
//! any server.

mod core;
mod process;
mod served;
mod workload;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// As in `muster`: what is measured here is to be what runs there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What was measured.
struct Outcome {
    nodes: usize,
    pods: usize,
    elapsed: Duration,
    /// Per decision about any pod, refused ones included.
    decisions: Vec<Duration>,
    cost: Cost,
}

struct Arguments {
    workload: PathBuf,
    kubeconfig: Option<PathBuf>,
    core: bool,
    json: bool,
    /// Divides every count, for a quick look.
    divide: usize,
}

/// Processor time of server and scheduler, in seconds, while the clock ran.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    server: f64,
    scheduler: f64,
}

const USAGE: &str =
    "usage: schedbench WORKLOAD.yaml [--core] [--kubeconfig FILE] [--json] [--divide N]";

fn arguments() -> Result<Arguments, Failure> {
    let mut words = std::env::args().skip(1);
    let mut found = Arguments {
        workload: PathBuf::new(),
        kubeconfig: None,
        core: false,
        json: false,
        divide: 1,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--core" => found.core = true,
            "--json" => found.json = true,
            "--kubeconfig" => found.kubeconfig = Some(words.next().ok_or(USAGE)?.into()),
            "--divide" => found.divide = words.next().ok_or(USAGE)?.parse()?,
            path if !path.starts_with('-') => found.workload = path.into(),
            _ => return Err(USAGE.into()),
        }
    }
    if found.workload.as_os_str().is_empty() || found.divide == 0 {
        return Err(USAGE.into());
    }
    Ok(found)
}

fn main() -> Result<(), Failure> {
    runtime::telemetry::init("warn", runtime::telemetry::Format::Text);
    let arguments = arguments()?;
    let text = std::fs::read_to_string(&arguments.workload)
        .map_err(|err| format!("{}: {err}", arguments.workload.display()))?;
    let workload = workload::Workload::parse(&text, arguments.divide)?;
    let outcome = if arguments.core {
        core::run(&workload)?
    } else {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(served::run(&workload, arguments.kubeconfig.as_deref()))?
    };
    tell(&workload.name, &arguments, outcome)
}

fn tell(name: &str, arguments: &Arguments, mut outcome: Outcome) -> Result<(), Failure> {
    outcome.decisions.sort();
    let count = outcome.decisions.len();
    let micros = |percent: usize| {
        let at = (count * percent / 100).min(count.saturating_sub(1));
        outcome.decisions.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    let pods = f64::from(u32::try_from(outcome.pods)?);
    let rate = pods / outcome.elapsed.as_secs_f64().max(1e-9);
    let mode = if arguments.core { "core" } else { "api" };
    let mut out = std::io::stdout();
    if arguments.json {
        let line = json!({
            "name": name, "mode": mode, "nodes": outcome.nodes, "pods": outcome.pods,
            "seconds": outcome.elapsed.as_secs_f64(), "podsPerSecond": rate,
            "decisions": count,
            "cpuSeconds": {"server": outcome.cost.server, "scheduler": outcome.cost.scheduler},
            "decisionMicros": {"p50": micros(50), "p90": micros(90), "p99": micros(99), "max": micros(100)},
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(
            out,
            "{name:32} {mode:4} {:6} nodes {:6} pods {rate:9.0} pods/s  decisions {count:6}: p50 {:.0} µs, p99 {:.0} µs, max {:.0} µs; CPU per pod: server {:.0} µs, scheduler {:.0} µs",
            outcome.nodes,
            outcome.pods,
            micros(50),
            micros(99),
            micros(100),
            outcome.cost.server * 1e6 / pods.max(1.0),
            outcome.cost.scheduler * 1e6 / pods.max(1.0),
        )?;
    }
    Ok(())
}
