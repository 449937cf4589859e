//! Stories a user would tell, run on a rig.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// Every scenario, in the order `run --all` takes.
pub const ALL: &[Scenario] = &[];

/// A story.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line that says what is shown to be true.
    pub summary: &'static str,
    /// Runs it.
    pub run: fn(&Options) -> Result<()>,
}

/// What scenarios need from outside.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The muster executable.
    #[arg(long, default_value = "target/x86_64-unknown-linux-musl/release/muster")]
    pub muster: PathBuf,
}

/// Runs scenarios by name.
///
/// # Errors
///
/// When one is unknown or fails.
pub fn run(names: &[String], all: bool, options: &Options) -> Result<()> {
    for scenario in ALL.iter().filter(|one| all || names.iter().any(|name| name == one.name)) {
        (scenario.run)(options)?;
    }
    for name in names {
        if !ALL.iter().any(|one| one.name == name) {
            bail!("no scenario {name}; `rig list` shows them");
        }
    }
    Ok(())
}
