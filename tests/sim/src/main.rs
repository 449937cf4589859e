//! The whole control plane in one thread, on virtual time, from a seed.
//!
//! A model of the API server, every controller and the scheduler of `control`, agents that
//! run pods and a driver that makes volumes. Each controller has views of its own that lag, skip
//! what lies between, and go back in time, and each may fall between any two writes. Hard rules
//! (`rule`) hold at every write: a pod is bound once, to a node with room where its constraints
//! hold; no maker has more pods than it may; no two nodes share a network. After that the
//! cluster is left in peace and must come to rest as declared (`story`): then nobody plans
//! anything.
//!
//! `cargo run --release -p sim -- --seeds 10000`, and `-- --seed 7` to live one again, write
//! by write.
//!
//! *Limits*: networks are not played; admission is the server's.

#![forbid(unsafe_code)]

mod story;

mod actor;
mod agent;
mod deed;
mod dice;
mod planner;
mod rule;
mod server;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, bail};
use clap::Parser;

/// A life is a million small objects; the allocator of musl serves one thread at a time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let seeds = args.first..args.first.saturating_add(args.seeds);
    if let Some(seed) = args.seed {
        return replay(seed);
    }
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

/// Lives one seed and prints every write.
fn replay(seed: u64) -> Result<()> {
    let life = story::live(seed, true);
    let mut out = std::io::stdout().lock();
    for line in &life.trace {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "digest {:016x}", life.digest)?;
    life.end
}

/// Lives a seed; a panic is a failure like any other.
fn try_live(seed: u64) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| story::live(seed, false).end)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(err)) => Err(format!("{err}")),
        Err(_) => Err("panicked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cluster_comes_to_rest_as_declared_whatever_happens() {
        for seed in 0..12 {
            super::try_live(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
    }

    #[test]
    fn a_seed_is_lived_the_same_way_again() {
        let (one, other) = (super::story::live(3, true), super::story::live(3, true));
        assert_eq!(one.trace, other.trace);
        assert_eq!(one.digest, other.digest);
        assert!(one.trace.len() > 100);
    }
}
