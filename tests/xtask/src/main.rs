//! Chores of the project: `cargo xtask rack|test|ci|tidy`.
//!
//! Each chore installs by itself what it needs and asks for root only when it must.
//! Chores know the order of commands and nothing else: what a rack or an image is, is
//! known by `muster` and `rig`, which are run as a user would run them.

mod build;
mod ci;
mod deps;
mod shell;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the Muster project")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build binary and node image, then bring up the lab of examples/lab on this host
    Rack {
        #[command(subcommand)]
        verb: Option<RackVerb>,
    },
    /// Run every test: units, kubectl, ansible, and the scenarios on simulated racks
    Test,
    /// Run what CI runs: format, clippy, tidy, cargo-deny, and `cargo xtask test`
    Ci,
    /// Check what no compiler checks: floors, file lengths, `unsafe`, shared lint files
    Tidy,
    /// Install what the chores need, the tests' kubectls included
    Deps,
    /// Build the release binaries and the node image, and nothing else
    Image,
}

#[derive(Subcommand)]
enum RackVerb {
    /// Power the lab off and remove everything it made
    Down,
}

fn main() -> ExitCode {
    let done = run(&Args::parse());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            shell::say(&format!("error: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    match &args.chore {
        Chore::Rack { verb: None } => build::rack_up(),
        Chore::Rack { verb: Some(RackVerb::Down) } => build::rack_down(),
        Chore::Test => ci::test(),
        Chore::Ci => ci::ci(),
        Chore::Tidy => tidy::tidy(),
        Chore::Deps => deps::install().and_then(|()| deps::fetch_programs()),
        Chore::Image => build::binaries().and_then(|()| build::image()),
    }
}
