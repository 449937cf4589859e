//! Runs scenarios on simulated racks, and lets a person drive a rig by hand.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use cluster::plan::Plan;
use rig::{Rig, RigOptions, host, scenario};

/// Racks of simulated machines, and the stories told on them.
#[derive(Debug, Parser)]
#[command(name = "rig")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the scenarios.
    List,
    /// Runs scenarios.
    Run {
        /// Their names.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Runs every scenario.
        #[arg(long, conflicts_with = "names")]
        all: bool,
        #[command(flatten)]
        options: scenario::Options,
    },
    /// Installs the packages the rig needs and checks the kernel.
    Preflight,
    /// Builds the network of a site, machines off.
    Build {
        /// The site's rack.yaml.
        file: PathBuf,
        /// Where state, consoles and logs are kept.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Shows routers, boot server, power and consoles.
    Show {
        /// The rig's directory.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Switches a machine, or pulls its cable.
    Switch {
        /// The machine.
        name: String,
        /// What to do.
        to: Switch,
        /// The rig's directory.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Takes a rig down.
    Down {
        /// The rig's directory.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    /// Power on.
    On,
    /// Power button, then plug.
    Off,
    /// Plug pulled at once.
    Cut,
    /// Network cable out.
    Unplug,
    /// Network cable in.
    Plug,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match act(Arguments::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // Standard error being gone leaves nobody to tell.
            drop(writeln!(std::io::stderr(), "error: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<()> {
    let mut out = std::io::stdout();
    match action {
        Action::List => {
            for scenario in scenario::ALL.iter().chain(scenario::NAMED) {
                writeln!(out, "{:<16} {}", scenario.name, scenario.summary)?;
            }
        }
        Action::Run { names, all, options } => scenario::run(&names, all, &options)?,
        Action::Preflight => {
            let installed = host::install_packages(&host::PACKAGES)?;
            match installed.as_slice() {
                [] => writeln!(out, "packages: all there")?,
                names => writeln!(out, "packages: installed {}", names.join(" "))?,
            }
            host::check_kernel()?;
            writeln!(out, "kernel: namespaces, taps and bridges work")?;
            writeln!(out, "machines: run by {:?}", rig::Accelerator::choose())?;
        }
        Action::Build { file, dir } => {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("reading {}", file.display()))?;
            let plan = match Plan::parse(&text) {
                Ok(plan) => plan,
                Err(problems) => {
                    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    bail!("{} has problems:\n{}", file.display(), lines.join("\n"));
                }
            };
            let rig = Rig::build(&plan, &RigOptions::new(&dir))?;
            writeln!(out, "seed: namespace {}", rig.namespace(rig::Place::Seed)?)?;
            writeln!(out, "seed from this host: {}", rig.host_side_address())?;
            writeln!(out, "machines: run by {:?}", rig.accelerator())?;
        }
        Action::Show { dir } => write!(out, "{}", open(&dir)?.describe())?,
        Action::Switch { name, to, dir } => {
            let rig = open(&dir)?;
            match to {
                Switch::On => rig.power_on(&name)?,
                Switch::Off => rig.power_off(&name)?,
                Switch::Cut => rig.power_cut(&name)?,
                Switch::Unplug => rig.cut_cable(&name)?,
                Switch::Plug => rig.mend_cable(&name)?,
            }
        }
        Action::Down { dir } => match Rig::load(&dir)? {
            Some(rig) => rig.down()?,
            None => writeln!(out, "nothing to take down in {}", dir.display())?,
        },
    }
    Ok(())
}

fn open(dir: &Path) -> Result<Rig> {
    Rig::load(dir)?.with_context(|| format!("no rig in {}", dir.display()))
}
