//! Stories a user would tell, run on a rig.
//!
//! A scenario drives the `muster` executable and stock kubectl, as a user does; the rig only
//! plays the world around them: power, cables, captures. Every check prints a line. The first
//! that fails ends the story with all that the rig can see.

mod archive;
mod database;
mod faults;
mod first_light;
mod kubectl;
mod light;
mod measure;
mod ospf;
mod pods;
mod rolling_drain;
mod secret;
mod shares;
mod story;
mod two_tors;
mod workloads;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::story::Story;

/// Every scenario, in the order `run --all` takes.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "first_light",
        summary: "a new site comes up, runs pods across racks, loses a worker and gets it back",
        plan: "examples/lab/rack.yaml",
        run: first_light::run,
    },
    Scenario {
        name: "faults",
        summary: "daemons are killed, strangers plugged in, an image damaged: nothing is lost",
        plan: "examples/lab/rack.yaml",
        run: faults::run,
    },
    Scenario {
        name: "ospf",
        summary: "a rack that speaks OSPF, with the seed on its own wire, comes up and runs pods",
        plan: "examples/university/rack.yaml",
        run: ospf::run,
    },
    Scenario {
        name: "workloads",
        summary: "what people run: tiers, updates under load, probes, limits, scalers, clocks",
        plan: "examples/lab/rack.yaml",
        run: workloads::run,
    },
];

/// Scenarios that are told only when they are named: they take long, or more machines than a common
/// host has.
pub const NAMED: &[Scenario] = &[
    Scenario {
        name: "pods",
        summary: "images from the master, policies, daemons killed under pods, a full disk",
        plan: "examples/lab/rack.yaml",
        run: pods::run,
    },
    Scenario {
        name: "two_tors",
        summary: "racks of two routers each lose one, its cable, its cable's packets: pods go on",
        plan: "examples/two-tors/rack.yaml",
        run: two_tors::run,
    },
    Scenario {
        name: "rolling_drain",
        summary: "each machine is emptied, switched off and started under load: no request fails",
        plan: "examples/lab/rack.yaml",
        run: rolling_drain::run,
    },
    Scenario {
        name: "database",
        summary: "MariaDB on a real Ceph: cut off while it writes, grown, restored: nothing is lost",
        plan: "examples/database/rack.yaml",
        run: database::run,
    },
    Scenario {
        name: "shares",
        summary: "NFS, CephFS and raw disks: shared, moved, their node and their server lost",
        plan: "examples/lab/rack.yaml",
        run: shares::run,
    },
];

/// A story.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line that says what is shown to be true.
    pub summary: &'static str,
    /// The site it is told on, unless said otherwise.
    plan: &'static str,
    /// Tells it.
    run: fn(&mut Story) -> Result<()>,
}

/// What scenarios need from outside.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The muster executable.
    #[arg(long, default_value = "target/x86_64-unknown-linux-musl/release/muster")]
    pub muster: PathBuf,
    /// The node image, as made by `muster image build`.
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    pub image: PathBuf,
    /// Another site to bring up.
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Where scenarios keep their sites, each below its own name.
    #[arg(long, value_name = "DIR", default_value = "target/rig")]
    pub dir: PathBuf,
    /// The kubectl to use; may be given several times, the first tells the story [default: those
    /// in target/tools, else the one in the path].
    #[arg(long, value_name = "PROGRAM")]
    pub kubectl: Vec<PathBuf>,
    /// Does not measure a bare boot to compare with.
    #[arg(long)]
    pub no_baseline: bool,
    /// Goes on with the site that an earlier run left up by --keep.
    #[arg(long)]
    pub resume: bool,
    /// Leaves the site up at the end, also after a failure.
    #[arg(long)]
    pub keep: bool,
}

/// Runs scenarios by name.
///
/// # Errors
///
/// When one is unknown or fails; the others run all the same.
pub fn run(names: &[String], all: bool, options: &Options) -> Result<()> {
    for name in names {
        if !ALL.iter().chain(NAMED).any(|one| one.name == name) {
            bail!("no scenario {name}; `rig list` shows them");
        }
    }
    for (path, hint) in [
        (&options.muster, "build it with `cargo xtask build`, or name it with --muster"),
        (&options.image.join("manifest.json"), "build it with `muster image build`"),
    ] {
        ensure!(path.exists(), "{} is not there: {hint}", path.display());
    }
    crate::process::require_root()?;
    let mut out = std::io::stdout();
    let mut failed = Vec::new();
    let named = |one: &&Scenario| names.iter().any(|name| name == one.name);
    let told = ALL.iter().filter(|one| all || named(one)).chain(NAMED.iter().filter(named));
    for scenario in told {
        writeln!(out, "=== {}: {}", scenario.name, scenario.summary)?;
        let mut story = Story::open(scenario, options)
            .with_context(|| format!("preparing {}", scenario.name))?;
        let told = (scenario.run)(&mut story);
        if let Err(err) = &told {
            writeln!(out, "FAILED {}: {err:#}", scenario.name)?;
            story.describe()?;
            failed.push(scenario.name);
        }
        if options.keep && story.rig().is_ok() {
            writeln!(out, "the site stays up in {}", story.dir().display())?;
        } else if let Err(err) = story.clear() {
            writeln!(out, "FAILED {}: taking the site down: {err:#}", scenario.name)?;
            failed.push(scenario.name);
        }
        if told.is_ok() {
            writeln!(out, "=== {}: all true", scenario.name)?;
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
