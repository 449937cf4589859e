//! Cluster DNS beside dnsmasq and unbound: the same questions, one processor each.
//!
//! `dnsbench [--services N] [--seconds N] [--output json]` starts each name server as a process
//! bound to the first processor, with the same names, and asks from the last one over loopback.
//! Printed are answers per second, answers per second of processor time used (which a busy
//! machine disturbs less), and the latency and lost answers at half of the full rate.
//!
//! *Limits*: with one processor, servers and clients share it. A peer that is not installed is
//! left out and said so.

mod load;
mod server;

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;

use crate::load::Load;
use crate::server::{Kind, Server};

#[derive(Parser)]
struct Arguments {
    /// How many services have names.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// How long each server is asked at each load.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Print one JSON object instead of a table.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Be the name server under test at this port (used by the bench itself).
    #[arg(long, hide = true)]
    serve: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What was measured of one server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    server: String,
    answers_per_second: f64,
    answers_per_processor_second: f64,
    half_load_p50_us: u128,
    half_load_p99_us: u128,
    /// Questions without an answer within a second.
    half_load_lost: usize,
    resident_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    services: u32,
    servers: Vec<Figures>,
    skipped: Vec<String>,
    /// Ours by each peer's answers per second of processor time.
    ratios: Vec<(String, f64)>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(port) = arguments.serve {
        return server::serve(port, arguments.services);
    }
    let time = Duration::from_secs(arguments.seconds.max(1));
    let (mut servers, mut skipped) = (Vec::new(), Vec::new());
    for kind in [Kind::Ours, Kind::Dnsmasq, Kind::Unbound] {
        match measure(kind, arguments.services, time) {
            Ok(figures) => servers.push(figures),
            Err(err) if kind != Kind::Ours => skipped.push(format!("{kind:?}: {err:#}")),
            Err(err) => return Err(err),
        }
    }
    let ours = servers.first().map_or(0.0, |ours| ours.answers_per_processor_second);
    let ratios = servers
        .iter()
        .skip(1)
        .map(|peer| (peer.server.clone(), ours / peer.answers_per_processor_second.max(1.0)));
    let report =
        Report { services: arguments.services, ratios: ratios.collect(), servers, skipped };
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Output::Table => write!(out, "{}", render(&report))?,
    }
    Ok(())
}

fn measure(kind: Kind, services: u32, time: Duration) -> Result<Figures> {
    load::bind_to_last_processor()?;
    let server = Server::start(kind, services)?;
    let load = Load::new(server.address(), services);
    load.warm_up().context("the first answers")?;
    let before = server.processor_time()?;
    let full = load.as_fast_as_possible(time)?;
    let used = server.processor_time()?.saturating_sub(before).as_secs_f64();
    let rate = full as f64 / time.as_secs_f64();
    let load::Paced { mut latencies, lost } = load.at_rate(rate / 2.0, time)?;
    latencies.sort_unstable();
    let at =
        |share: usize| latencies.get(latencies.len() * share / 100).map_or(0, Duration::as_micros);
    Ok(Figures {
        server: format!("{kind:?}").to_lowercase(),
        answers_per_second: rate,
        answers_per_processor_second: full as f64 / used.max(0.01),
        half_load_p50_us: at(50),
        half_load_p99_us: at(99),
        half_load_lost: lost,
        resident_bytes: server.resident_bytes()?,
    })
}

fn render(report: &Report) -> String {
    let mut text = format!(
        "{:<10} {:>12} {:>16} {:>9} {:>9} {:>6} {:>8}\n",
        "", "answers/s", "per CPU second", "p50", "p99", "lost", "memory"
    );
    for one in &report.servers {
        text += &format!(
            "{:<10} {:>12.0} {:>16.0} {:>6} us {:>6} us {:>6} {:>4} MiB\n",
            one.server,
            one.answers_per_second,
            one.answers_per_processor_second,
            one.half_load_p50_us,
            one.half_load_p99_us,
            one.half_load_lost,
            one.resident_bytes >> 20,
        );
    }
    for (peer, ratio) in &report.ratios {
        text += &format!("{ratio:.1} times the answers of {peer} per second of processor time\n");
    }
    for skipped in &report.skipped {
        text += &format!("left out: {skipped}\n");
    }
    text
}
