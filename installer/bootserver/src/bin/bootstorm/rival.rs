//! The same machines against dnsmasq: DHCP through relays, and the loader by TFTP.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};

use crate::fleet;
use crate::wire::{self, Relays, Target};
use crate::{End, Run, boot_all};

/// TFTP's port; dnsmasq knows no other.
const TFTP_PORT: u16 = 69;
const LOG: &str = "dnsmasq.log";

/// Starts dnsmasq for the fleet, boots all machines, and stops it.
pub(crate) async fn storm(dir: &Path, image_dir: &Path, count: u32) -> anyhow::Result<Run> {
    ensure!(nix::unistd::geteuid().is_root(), "its TFTP port 69 needs root");
    // The relays come first: they choose the port that dnsmasq then shares.
    let relays = Relays::open(fleet::racks(count), None).await?;
    let mut dnsmasq = start(dir, image_dir, count, relays.port())?;
    let target = Target {
        dhcp: SocketAddr::V4(SocketAddrV4::new(fleet::SEED, relays.port())),
        tftp: SocketAddr::V4(SocketAddrV4::new(fleet::SEED, TFTP_PORT)),
        http: None,
    };
    let run = match wait_ready(&mut dnsmasq, &target).await {
        Ok(()) => boot_all(count, Arc::new(target), relays, End::Loader).await,
        Err(err) => {
            let log = std::fs::read_to_string(dir.join(LOG)).unwrap_or_default();
            Err(err.context(log.lines().last().unwrap_or("no log").to_owned()))
        }
    };
    dnsmasq.kill().await?;
    run
}

fn start(dir: &Path, image_dir: &Path, count: u32, port: u16) -> anyhow::Result<Child> {
    let hosts = dir.join("dnsmasq.hosts");
    let host = |number| format!("{},{},infinite\n", fleet::mac(number), fleet::address(number));
    std::fs::write(&hosts, (0..count).map(host).collect::<String>())?;
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"]);
    command.args(["--interface=lo", "--bind-interfaces", "--no-ping", "--dhcp-authoritative"]);
    command.args(["--dhcp-lease-max=100000", "--dhcp-boot=undionly.kpxe", "--enable-tftp"]);
    command.args(["--tftp-max=2000", "--quiet-dhcp", "--quiet-tftp", "--log-facility=-"]);
    command.arg(format!("--dhcp-alternate-port={port},68"));
    command.arg(format!("--dhcp-hostsfile={}", hosts.display()));
    command.arg(format!("--dhcp-leasefile={}", dir.join("dnsmasq.leases").display()));
    command.arg(format!("--tftp-root={}", image_dir.display()));
    for rack in 0..fleet::racks(count) {
        let gateway = fleet::gateway(rack);
        command.arg(format!("--dhcp-range=set:r{rack},{gateway},static,255.255.255.0,infinite"));
        command.arg(format!("--dhcp-option=tag:r{rack},3,{gateway}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(dir.join(LOG))?);
    command.kill_on_drop(true).spawn().context("dnsmasq does not start")
}

/// Ready is when it serves the loader.
async fn wait_ready(dnsmasq: &mut Child, target: &Target) -> anyhow::Result<()> {
    for _ in 0..50 {
        if let Some(status) = dnsmasq.try_wait()? {
            bail!("dnsmasq ended with {status}");
        }
        let probe = wire::fetch_tftp(fleet::SEED, target.tftp, "undionly.kpxe");
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), probe).await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("dnsmasq does not serve the loader")
}
