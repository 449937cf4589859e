//! What routing costs and how fast it heals, each figure beside its peer in the same run.
//!
//! `cargo bench -p router --bench routebench -- [failover] [crowd[=N]] [path] [wiring[=PROGRAM,...]]`:
//! all four unless some are named. Everything is built of network namespaces of its own, with the
//! real BIRD, router and plugin; no root is needed.
//!
//! - `failover`: traffic from a pod, and to an address that two nodes announce; a router or a node
//!   falls silent with its carrier up. Printed is the longest gap that any of some flows sees, for
//!   BGP and OSPF, each with BFD.
//! - `crowd`: N nodes (200) and two reflectors start; then one more does.
//! - `path`: a round trip and the processor's time for a packet from pod to pod, by plain routes,
//!   by VXLAN, and by a tunnel that a program forwards.
//! - `wiring`: the plugin's ADD and DEL, beside the same work by `ip`; and by each of the programs
//!   that are named, with its start.
//!
//! *Limits*: no real cards; a busy machine shows in every time, and in gaps above all.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a bench is built as tests are, of their helpers"
)]

#[path = "../../tests/racks/site.rs"]
mod site;
#[path = "../../tests/support/mod.rs"]
mod support;

mod crowd;
mod failover;
mod path;
mod wiring;

use std::process::ExitCode;
use std::time::Duration;

use support::alone;

/// The name under which it runs itself again, inside.
const NAME: &str = "routebench";
/// How the names of parts travel inside.
const PARTS: &str = "MUSTER_ROUTEBENCH_PARTS";

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with('-')).collect();
    let parts = std::env::var(PARTS).unwrap_or_else(|_| given.join(" "));
    if std::env::var_os(PARTS).is_none() {
        // The program is started again by its own name: what was asked for goes by the
        // environment.
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .env(PARTS, &parts)
            .status()
            .unwrap();
        return if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let wanted = |part: &str| {
        let named = parts.split(' ').filter(|one| !one.is_empty());
        let mut named = named.map(|one| one.split_once('=').unwrap_or((one, "")));
        if parts.trim().is_empty() {
            return Some(String::new());
        }
        named.find(|(name, _)| *name == part).map(|(_, value)| value.to_owned())
    };
    alone(NAME, &["ip", "nsenter", "bird", "birdc", "nft"], || {
        if wanted("path").is_some() {
            path::measure();
        }
        if let Some(programs) = wanted("wiring") {
            wiring::measure(&programs);
        }
        if wanted("failover").is_some() {
            failover::measure();
        }
        if let Some(count) = wanted("crowd") {
            crowd::measure(count.parse().unwrap_or(200));
        }
    });
    ExitCode::SUCCESS
}

/// The value at a share of a sorted list.
fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Processor time of this process and all its threads, the kernel's work for it included.
fn cpu() -> Duration {
    cpu_of(nix::sys::resource::UsageWho::RUSAGE_SELF)
}

/// The same of this process, or of those it started that have ended.
fn cpu_of(whom: nix::sys::resource::UsageWho) -> Duration {
    let usage = nix::sys::resource::getrusage(whom).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(u64::try_from(value.tv_sec()).unwrap())
            + Duration::from_micros(u64::try_from(value.tv_usec()).unwrap())
    };
    time(usage.user_time()) + time(usage.system_time())
}
