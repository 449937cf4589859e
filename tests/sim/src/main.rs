//! The whole control plane in one thread, on virtual time, from a seed.
//!
//! A model of the API server, every controller and the scheduler of `control`, agents that
//! run pods. Each controller has a view of its own that lags, skips what lies between, goes
//! back in time, and each may fall between any two writes. After that the cluster is left in
//! peace and must come to rest as declared: then every controller plans nothing, pods never
//! moved, nodes hold no more than they can.
//!
//! `cargo run --release -p sim -- --seeds 10000`, and `-- --seed 7` to live one again.
//!
//! *Limits*: storage and networks are not played; webhooks and quotas are the server's.

#![forbid(unsafe_code)]

mod actor;
mod dice;
mod server;
mod story;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, bail};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Lives of a cluster from seeds")]
struct Args {
    /// How many seeds to live.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Live this one alone.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let seeds = match args.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => args.first..args.first.saturating_add(args.seeds),
    };
    let begun = std::time::Instant::now();
    let count = seeds.end - seeds.start;
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Err(why) = try_live(seed)
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push((seed, why));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort();
    let mut out = std::io::stdout().lock();
    for (seed, why) in failed.iter().take(5) {
        writeln!(out, "seed {seed}: {why}\n  again: cargo run --release -p sim -- --seed {seed}")?;
    }
    writeln!(
        out,
        "{count} seeds in {:.1} s, {} failed",
        begun.elapsed().as_secs_f64(),
        failed.len()
    )?;
    if failed.is_empty() { Ok(()) } else { bail!("{} seeds failed", failed.len()) }
}

/// Lives a seed; a panic is a failure like any other.
fn try_live(seed: u64) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| story::live(seed))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(err)) => Err(format!("{err:#}")),
        Err(_) => Err("panicked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cluster_comes_to_rest_as_declared_whatever_happens() {
        for seed in 0..6 {
            super::try_live(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
    }
}
