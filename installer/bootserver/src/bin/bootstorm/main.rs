//! A boot storm: a thousand simulated machines boot at once from the real boot server.
//!
//! `bootstorm --machines 1000 [--json]` runs server and machines in this one process, over
//! loopback sockets on free ports, and prints wall time, resident memory and who gave up. Then it
//! runs DHCP and TFTP alone twice more: against the boot server, and against dnsmasq where that is
//! installed and we are root (its TFTP port is fixed).
//!
//! Each machine goes DISCOVER → ACK (firmware) → loader by TFTP → DISCOVER → ACK (iPXE) → script →
//! kernel and initramfs → DISCOVER → ACK (init) → a range of the root image → reports `verified`
//! and `agent` → its own key and signing request → its certificate from a real `muster master`
//! (a process of its own, found beside this program or named with `--muster`). It has its own
//! address in 127.20.0.0/14, and DHCP goes through a simulated relay.
//!
//! *Limits*: the machines share processors and memory with the server, so figures are upper
//! bounds.

mod enroll;
mod fleet;
mod rival;
mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bootserver::{Config, Listen, Segments, Server};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::enroll::{Door, Master};
use crate::fleet::{Machine, Road};
use crate::wire::{Relays, Target};

/// As undionly.kpxe of Debian 13 weighs.
const LOADER_LEN: usize = 72 * 1024;
/// Enough that ranges and buffers matter; a real kernel would measure the loopback device.
const KERNEL_LEN: usize = 512 * 1024;
const IMAGE_LEN: usize = 4 << 20;

#[derive(Parser)]
struct Arguments {
    /// How many machines boot at once.
    #[arg(long, default_value_t = 1000)]
    machines: u32,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// The `muster` program whose control plane enrols the machines [default: the one built
    /// beside this program; without any, machines stop at the report of their agent].
    #[arg(long, value_name = "PATH")]
    muster: Option<PathBuf>,
    /// Leave the comparison with dnsmasq out.
    #[arg(long)]
    no_dnsmasq: bool,
}

/// Where the machines' road ends.
#[derive(Clone)]
enum End {
    /// At the loader, which is what dnsmasq can do too.
    Loader,
    /// At the report of the agent.
    Agent,
    /// At the certificate that a control plane issues.
    Certificate(Arc<Door>),
}

/// One run of all machines.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    machines: u32,
    wall_ms: u128,
    /// Slowest machine.
    slowest_ms: u128,
    /// Half of the machines were faster.
    median_ms: u128,
    gave_up: usize,
    succeeded: usize,
    /// Why the first ones gave up.
    reasons: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    whole_road: Run,
    /// Peak resident memory of this process, server and machines, after the whole road.
    resident_max_bytes: u64,
    /// Machines that the server itself says reached the agent.
    reached_agent: usize,
    /// Machines that got their certificate, which is the end of the whole road.
    enrolled: Option<usize>,
    /// Why nobody was enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    enrolment_skipped: Option<String>,
    /// Peak resident memory of the control plane after that.
    master_resident_max_bytes: Option<u64>,
    dhcp_tftp: Run,
    dnsmasq: Option<Run>,
    /// Why dnsmasq was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    dnsmasq_skipped: Option<String>,
    /// Our wall time of DHCP and TFTP divided by dnsmasq's; below 1 we are faster.
    ratio: Option<f64>,
    /// The same of the median machine; the wall time is that of the most patient who gave up.
    median_ratio: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    raise_file_limit()?;
    let dir = std::env::temp_dir().join(format!("bootstorm-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(&arguments, &dir));
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let figures = figures?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&figures)?)?;
    } else {
        write!(out, "{}", render(&figures))?;
    }
    ensure!(figures.whole_road.gave_up == 0, "{} machines gave up", figures.whole_road.gave_up);
    Ok(())
}

async fn measure(arguments: &Arguments, dir: &Path) -> anyhow::Result<Figures> {
    let image_dir = dir.join("image");
    make_image(&image_dir)?;
    let count = arguments.machines;
    let (master, enrolment_skipped) = match enroll::find_program(arguments.muster.as_deref()) {
        Ok(program) => {
            let plan = fleet::plan(count)?;
            (Some(Master::start(&program, &dir.join("master"), &plan).await?), None)
        }
        Err(err) if arguments.muster.is_none() => (None, Some(format!("{err:#}"))),
        Err(err) => return Err(err),
    };
    let end = master.as_ref().map_or(End::Agent, |master| End::Certificate(master.door()));
    let (whole_road, reached_agent) = storm(dir.join("whole"), &image_dir, count, end).await?;
    let resident_max_bytes = resident_max_bytes("self")?;
    let enrolled = master.as_ref().map(|_| whole_road.succeeded);
    let master_resident_max_bytes = master.as_ref().map(Master::resident_max_bytes).transpose()?;
    drop(master);
    let (dhcp_tftp, _) = storm(dir.join("part"), &image_dir, count, End::Loader).await?;
    let (dnsmasq, dnsmasq_skipped) = if arguments.no_dnsmasq {
        (None, Some("left out".to_owned()))
    } else {
        match rival::storm(dir, &image_dir, count).await {
            Ok(run) => (Some(run), None),
            Err(err) => (None, Some(format!("{err:#}"))),
        }
    };
    let ratio = |of: fn(&Run) -> u128| {
        let seconds = |run: &Run| {
            Duration::from_millis(u64::try_from(of(run)).unwrap_or(u64::MAX)).as_secs_f64()
        };
        dnsmasq.as_ref().map(|theirs| seconds(&dhcp_tftp) / seconds(theirs).max(0.001))
    };
    let (ratio, median_ratio) = (ratio(|run| run.wall_ms), ratio(|run| run.median_ms));
    Ok(Figures {
        whole_road,
        resident_max_bytes,
        reached_agent,
        enrolled,
        enrolment_skipped,
        master_resident_max_bytes,
        dhcp_tftp,
        dnsmasq,
        dnsmasq_skipped,
        ratio,
        median_ratio,
    })
}

/// Starts a boot server with a fresh journal, lets all machines boot, and stops it.
async fn storm(
    state_dir: PathBuf,
    image_dir: &Path,
    count: u32,
    end: End,
) -> anyhow::Result<(Run, usize)> {
    let plan = fleet::plan(count)?;
    let relays = Relays::open(fleet::racks(count), None).await?;
    let any = |port| std::net::SocketAddrV4::new(fleet::SEED, port);
    let listen = Listen {
        dhcp: any(0),
        segments: Segments::None,
        tftp: any(0),
        http: any(0),
        relay_port: relays.port(),
        client_port: 68,
    };
    let mut config = Config::new(plan, image_dir.to_owned(), state_dir);
    config.command_line = "console=ttyS0 quiet".to_owned();
    config.listen = listen;
    let server = Server::bind(config).await?;
    let addresses = server.addresses();
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(server.run(stop.clone()));
    let target = Target { dhcp: addresses.dhcp, tftp: addresses.tftp, http: Some(addresses.http) };
    let run = boot_all(count, Arc::new(target.clone()), relays, end.clone()).await?;
    let reached_agent = match end {
        End::Agent | End::Certificate(_) => fleet::count_agents(&target).await?,
        End::Loader => 0,
    };
    stop.cancel();
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok((run, reached_agent))
}

/// Boots all machines at once and waits for the last.
async fn boot_all(
    count: u32,
    target: Arc<Target>,
    relays: Relays,
    end: End,
) -> anyhow::Result<Run> {
    let relays = Arc::new(relays);
    let mut dispatch = JoinSet::new();
    relays.dispatch(&mut dispatch);
    let began = Instant::now();
    let mut boots = JoinSet::new();
    for number in 0..count {
        let machine = Machine::new(number, Arc::clone(&target), Arc::clone(&relays));
        let end = end.clone();
        boots.spawn(async move {
            let began = Instant::now();
            match end {
                End::Loader => machine.boot(Road::DhcpAndTftp).await?,
                End::Agent => machine.boot(Road::Whole).await?,
                End::Certificate(door) => {
                    machine.boot(Road::Whole).await?;
                    door.enroll(number).await.context("enrolment")?;
                }
            }
            anyhow::Ok(began.elapsed())
        });
    }
    let (mut times, mut reasons, mut gave_up) = (Vec::new(), Vec::new(), 0);
    while let Some(ended) = boots.join_next().await {
        match ended? {
            Ok(time) => times.push(time),
            Err(err) => {
                gave_up += 1;
                if reasons.len() < 5 {
                    reasons.push(format!("{err:#}"));
                }
            }
        }
    }
    let wall = began.elapsed();
    dispatch.shutdown().await;
    times.sort();
    let at = |index: usize| times.get(index).map_or(0, Duration::as_millis);
    Ok(Run {
        machines: count,
        wall_ms: wall.as_millis(),
        slowest_ms: times.last().map_or(0, Duration::as_millis),
        median_ms: at(times.len() / 2),
        gave_up,
        succeeded: times.len(),
        reasons,
    })
}

fn make_image(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, len) in [
        ("undionly.kpxe", LOADER_LEN),
        ("vmlinuz", KERNEL_LEN),
        ("initrd", KERNEL_LEN),
        ("root.img", IMAGE_LEN),
    ] {
        std::fs::write(dir.join(name), vec![0x5a; len])?;
    }
    Ok(())
}

/// A thousand machines have two sockets each, and so has the server.
fn raise_file_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// The most memory a process ever had.
fn resident_max_bytes(process: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmHWM")?;
    Ok(kib.parse::<u64>()? * 1024)
}

fn render(figures: &Figures) -> String {
    let line = |what: &str, run: &Run| {
        format!(
            "{what:<28} {:>6} ms wall, median {} ms, slowest {} ms, gave up {}\n",
            run.wall_ms, run.median_ms, run.slowest_ms, run.gave_up
        )
    };
    let mut text = line("whole road", &figures.whole_road);
    let of = figures.whole_road.machines;
    text += &format!("{:<28} {:>6} of {of}\n", "agents the server knows", figures.reached_agent);
    match (figures.enrolled, figures.master_resident_max_bytes) {
        (Some(enrolled), Some(bytes)) => {
            text += &format!("{:<28} {enrolled:>6} of {of}\n", "certificates issued");
            text += &format!("{:<28} {:>6} MiB\n", "control plane, peak memory", bytes >> 20);
        }
        _ => {
            let why = figures.enrolment_skipped.as_deref().unwrap_or_default();
            text += &format!("nobody was enrolled: {why}\n");
        }
    }
    let mib = figures.resident_max_bytes >> 20;
    text += &format!("{:<28} {mib:>6} MiB (server and machines)\n", "peak resident memory");
    text += &line("DHCP and TFTP alone", &figures.dhcp_tftp);
    match (&figures.dnsmasq, figures.ratio.zip(figures.median_ratio)) {
        (Some(run), Some((wall, median))) => {
            text += &line("dnsmasq, the same", run);
            text += &format!("{:<28} {wall:>6.2} wall, {median:.2} median\n", "ours / dnsmasq");
        }
        _ => {
            let why = figures.dnsmasq_skipped.as_deref().unwrap_or_default();
            text += &format!("dnsmasq was not run: {why}\n");
        }
    }
    let theirs = figures.dnsmasq.iter();
    for run in [&figures.whole_road, &figures.dhcp_tftp].into_iter().chain(theirs) {
        for reason in &run.reasons {
            text += &format!("gave up: {reason}\n");
        }
    }
    text
}
