//! Cluster DNS beside dnsmasq and unbound: the same questions, one processor each.
//!
//! `dnsbench [--services N] [--clients N] [--seconds N] [--output json]` starts each name server as
//! a process bound to the first processor, with the same names, and asks from the last one over
//! loopback.
//! Beside them runs a program that looks at no question and answers all alike: what it takes is the
//! kernel's work, the floor for everybody.
//! Printed are answers per second, answers per second of processor time used (which a busy
//! machine disturbs less), what of that time is the program's own and not the kernel's for any
//! program, and the latency and lost answers at half of the full rate.
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
    /// From how many sockets it is asked; one is what a resolver or proxy has, and `dnsperf`.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// How long each server is asked at each load.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Print one JSON object instead of a table.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Be the name server under test at this port (used by the bench itself).
    #[arg(long, hide = true)]
    serve: Option<u16>,
    /// Be the floor at that port (used by the bench itself).
    #[arg(long, hide = true, requires = "serve")]
    echo: bool,
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
    /// What the program itself takes of that; the rest is the kernel's, for any program.
    own_us_per_answer: f64,
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
    /// A program that looks at no question.
    floor: Figures,
    skipped: Vec<String>,
    ratios: Vec<Ratio>,
}

/// Ours by a peer's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ratio {
    peer: String,
    /// Answers per second of processor time.
    answers: f64,
    /// The same of the floor: what nobody can have.
    most: f64,
    /// The peer's own work for an answer by ours.
    work: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.serve {
        Some(port) if arguments.echo => return server::echo(port),
        Some(port) => return server::serve(port, arguments.services),
        None => (),
    }
    let time = Duration::from_secs(arguments.seconds.max(1));
    let (mut servers, mut skipped) = (Vec::new(), Vec::new());
    let floor = measure(Kind::Echo, &arguments, time)?;
    for kind in [Kind::Ours, Kind::Dnsmasq, Kind::Unbound] {
        match measure(kind, &arguments, time) {
            Ok(figures) => servers.push(figures),
            Err(err) if kind != Kind::Ours => skipped.push(format!("{kind:?}: {err:#}")),
            Err(err) => return Err(err),
        }
    }
    let ratios = match servers.split_first() {
        Some((ours, peers)) => peers.iter().map(|peer| ratio(ours, peer, &floor)).collect(),
        None => Vec::new(),
    };
    let report = Report { services: arguments.services, ratios, servers, floor, skipped };
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Output::Table => write!(out, "{}", render(&report))?,
    }
    Ok(())
}

fn ratio(ours: &Figures, peer: &Figures, floor: &Figures) -> Ratio {
    let by_peer = |one: &Figures| {
        one.answers_per_processor_second / peer.answers_per_processor_second.max(1.0)
    };
    Ratio {
        peer: peer.server.clone(),
        answers: by_peer(ours),
        most: by_peer(floor),
        work: peer.own_us_per_answer / ours.own_us_per_answer,
    }
}

fn measure(kind: Kind, arguments: &Arguments, time: Duration) -> Result<Figures> {
    let services = arguments.services;
    load::bind_to_last_processor()?;
    let server = Server::start(kind, services)?;
    let load = Load::new(server.address(), services);
    load.warm_up().context("the first answers")?;
    let before = server.processor_time()?;
    let full = load.as_fast_as_possible(arguments.clients, time)?;
    let after = server.processor_time()?;
    let own = after.0.saturating_sub(before.0).as_secs_f64();
    let used = own + after.1.saturating_sub(before.1).as_secs_f64();
    let rate = full as f64 / time.as_secs_f64();
    let load::Paced { mut latencies, lost } = load.at_rate(rate / 2.0, time)?;
    latencies.sort_unstable();
    let at =
        |share: usize| latencies.get(latencies.len() * share / 100).map_or(0, Duration::as_micros);
    Ok(Figures {
        server: format!("{kind:?}").to_lowercase(),
        answers_per_second: rate,
        answers_per_processor_second: full as f64 / used.max(0.01),
        own_us_per_answer: own.max(0.01) * 1e6 / full as f64,
        half_load_p50_us: at(50),
        half_load_p99_us: at(99),
        half_load_lost: lost,
        resident_bytes: server.resident_bytes()?,
    })
}

fn render(report: &Report) -> String {
    let mut text = format!(
        "{:<10} {:>12} {:>16} {:>9} {:>9} {:>9} {:>6} {:>8}\n",
        "", "answers/s", "per CPU second", "own work", "p50", "p99", "lost", "memory"
    );
    for one in report.servers.iter().chain([&report.floor]) {
        text += &format!(
            "{:<10} {:>12.0} {:>16.0} {:>6.2} us {:>6} us {:>6} us {:>6} {:>4} MiB\n",
            one.server,
            one.answers_per_second,
            one.answers_per_processor_second,
            one.own_us_per_answer,
            one.half_load_p50_us,
            one.half_load_p99_us,
            one.half_load_lost,
            one.resident_bytes >> 20,
        );
    }
    for Ratio { peer, answers, most, work } in &report.ratios {
        text += &format!(
            "{answers:.1} times the answers of {peer} per second of processor time (at most {most:.1} \
             by any program on a socket), whose own work for an answer is {work:.1} times ours\n"
        );
    }
    for skipped in &report.skipped {
        text += &format!("left out: {skipped}\n");
    }
    text
}
