//! The `muster` program: the operator's commands, and every daemon by subcommand.
//!
//! This is where sister parts meet: it reads arguments, wires services together and
//! prints. Decisions live in the crates below.

mod approve;
mod args;
mod check;
mod daemon;
mod drain;
mod export;
mod follow;
mod ground;
mod identity;
mod image;
mod images;
mod inventory;
mod plan;
mod process;
mod routing;
mod site;
mod status;
mod store;
mod up;
mod waterfall;
mod zones;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use runtime::telemetry::Format;

use crate::args::{Args, Command};

/// The API server's work is many small values: with the C library's allocator, above all musl's,
/// it would spend half its time there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The container runtime calls us as its CNI plugin: no arguments, all by environment.
    if std::env::var_os("CNI_COMMAND").is_some() {
        return daemon::cni();
    }
    let args = Args::parse();
    runtime::telemetry::init(args.log.as_deref().unwrap_or("info"), Format::Text);
    match run(args.command) {
        Ok(code) => code,
        Err(err) => {
            say(&format!("error: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Plan(args) => plan::run(&args),
        Command::Up(args) => done(up::run(&args)),
        Command::Down(args) => done(up::down(&args)),
        Command::Status(args) => done(status::run(&args)),
        Command::Approve(args) => done(approve::run(&args)),
        Command::Image(args) => done(image::run(&args)),
        Command::Images(args) => done(images::run(&args)),
        Command::Routes(args) => routing::run(&args),
        Command::Drain(args) => done(drain::run(&args)),
        Command::Uncordon(args) => done(drain::uncordon(&args)),
        Command::Export(args) => done(export::run(&args)),
        Command::Inventory(args) => done(inventory::run(&args)),
        Command::Master(args) => done(daemon::master(*args)),
        Command::Store(args) => store::run(&args),
        Command::Manager(args) => done(daemon::manager(args)),
        Command::Boot(args) => done(daemon::boot(args)),
        Command::Agent(args) => done(daemon::agent(args)),
        Command::Csi(args) => done(daemon::csi(args)),
        Command::Cni => Ok(daemon::cni()),
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// Prints one line for the person in front of the screen.
fn say(line: &str) {
    // A closed terminal must not stop the work.
    drop(writeln!(std::io::stderr(), "{line}"));
}
