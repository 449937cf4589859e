//! The first program of a node: from the kernel to systemd.
//!
//! Runs as process 1 of the initramfs: loads drivers, gets an address, fetches the root image into
//! memory, refuses it unless its hash is the one on the command line, and hands the machine over.
//! It decides nothing about the cluster and keeps no secret. Whatever fails is said on the
//! console and to the boot server, and then the machine starts over.

mod console;
mod handover;
mod http;
mod machine;
mod network;
mod root;

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use kernel::module::Modules;
use kernel::mount::{Access, mount};
use layout::cmdline::Arguments;
use nix::sys::reboot::{RebootMode, reboot};
use serde_json::json;

use console::say;
use machine::Identity;
use network::Network;

/// What the root needs that no device asks for.
const NEEDED_MODULES: [&str; 5] = ["loop", "blake2b_generic", "dm-verity", "squashfs", "overlay"];
/// Drivers bring buses, buses bring devices; trees are not deeper than this.
const COLDPLUG_ROUNDS: usize = 4;
/// Long enough to read the console, short enough to come back with the rack.
const FAILURE_PAUSE: Duration = Duration::from_secs(15);

fn main() {
    let mut journey = Journey::default();
    let Err(err) = journey.travel();
    say(&format!("FAILED: {err:#}"));
    journey.report("failed", &format!("{err:#}"));
    say(&format!("starting over in {} s", FAILURE_PAUSE.as_secs()));
    thread::sleep(FAILURE_PAUSE);
    restart(RebootMode::RB_AUTOBOOT);
}

/// What is known so far; a failure is reported with as much of it as there is.
#[derive(Default)]
struct Journey {
    arguments: Arguments,
    identity: Identity,
    network: Option<Network>,
}

impl Journey {
    fn travel(&mut self) -> Result<Infallible> {
        mount_api_file_systems()?;
        let text = fs::read_to_string("/proc/cmdline").context("no kernel command line")?;
        self.arguments = Arguments::parse(&text).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", lines.join("; "))
        })?;
        if self.arguments.bare_probe {
            say("bare init reached");
            restart(RebootMode::RB_POWER_OFF);
        }
        say("init started");
        load_modules()?;
        self.identity = Identity::observe();
        let network = network::apply(&self.arguments)?;
        say(&format!("{} has {}/{}", network.interface, network.address, network.prefix_len));
        self.network = Some(network.clone());
        let site = self.arguments.site.clone().context("no muster.root= on the command line")?;
        let image = self.arguments.image.clone().context("no muster.hash= on the command line")?;
        say(&format!("fetching {}", site.root));
        root::fetch(&site.root, &image)?;
        let device = root::verify(&image)?;
        say("root image verified");
        root::mount_root(&device)?;
        handover::prepare_places()?;
        handover::write_identity(&network, &self.identity, &site)?;
        self.report("verified", &image.hash);
        say("starting the node");
        handover::become_systemd()?;
        anyhow::bail!("systemd did not start")
    }

    /// Tells the boot server where we are; it may be gone, and that must not stop us.
    fn report(&self, phase: &str, detail: &str) {
        let (Some(network), Some(site)) = (&self.network, &self.arguments.site) else { return };
        let uuid = Some(&self.identity.uuid).filter(|uuid| !uuid.is_empty());
        let body = json!({ "mac": network.mac, "uuid": uuid, "phase": phase, "detail": detail });
        let url = format!("{}/report", site.boot.trim_end_matches('/'));
        if let Err(err) = http::post_json(&url, body.to_string().as_bytes()) {
            say(&format!("cannot report {phase}: {err:#}"));
        }
    }
}

fn mount_api_file_systems() -> Result<()> {
    for (kind, place, options) in [
        ("devtmpfs", "/dev", "mode=755"),
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("tmpfs", "/run", "mode=755,size=80%"),
    ] {
        mount(kind, kind, Path::new(place), Access::ReadWrite, options)?;
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut modules = Modules::open(&Path::new("/lib/modules").join(release.trim()))?;
    for name in NEEDED_MODULES {
        modules.load(name)?;
    }
    for _ in 0..COLDPLUG_ROUNDS {
        if modules.coldplug() == 0 {
            break;
        }
    }
    Ok(())
}

/// Ends this boot; a machine that refuses waits for a person.
fn restart(how: RebootMode) -> ! {
    nix::unistd::sync();
    let Err(err) = reboot(how);
    say(&format!("the machine does not obey: {err}"));
    loop {
        thread::sleep(FAILURE_PAUSE);
    }
}
