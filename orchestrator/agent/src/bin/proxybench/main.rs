//! The table of services beside the forms other proxies use: the same services, one kernel.
//!
//! `proxybench [--services N] [--endpoints N] [--output json]` loads, for 100, 1,000 and N
//! services, three tables into a network namespace of its own: ours, a chain per service and
//! endpoint found by a map (kube-proxy's with nftables), and the same found by one rule after the
//! other (kube-proxy's with iptables, whose kernel side is nftables today). Printed are the time
//! to load, the time to change one endpoint (of the agent's own: from the object to the kernel's
//! element, and once more of the whole agent: from the API server's event), the time of a new flow's first round trip to the first, middle and last service, and
//! the memory that services take in the agent.
//!
//! *Limits*: everything is on loopback and one machine: compare the lines, not the numbers with
//! those of other machines. The peers' times to change include starting `nft`, as theirs do.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

mod api;
mod peer;
mod whole;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::tables::Tables;
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use node::dns::{DOMAIN, Zone};
use node::service::{Planner, Ranges, Site, TABLE};
use objects::network::{EndpointSlice, Service};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use peer::Shape;

/// Where new flows come from.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);
/// The port of every endpoint.
const PORT: u16 = 8080;
/// How often one endpoint is changed.
const CHANGES: usize = 9;
/// How many new flows are timed for each service.
const FLOWS: usize = 300;
/// An answer on loopback that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// Says that the namespace is ours already.
const INSIDE: &str = "MUSTER_PROXYBENCH_INSIDE";

#[derive(Parser)]
struct Arguments {
    /// The largest number of services.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each service.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    endpoints: u8,
    /// Measure the other forms up to so many services; ten thousand take half a minute each.
    #[arg(long, default_value_t = 10_000)]
    peers_max: u32,
    /// Print one JSON object instead of a table.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What was measured of one table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    table: String,
    services: u32,
    load_ms: f64,
    change_ms: f64,
    first_us: f64,
    middle_us: f64,
    last_us: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    endpoints: u8,
    /// A new flow without any table.
    bare_us: f64,
    tables: Vec<Figures>,
    /// What the agent holds of the largest number of services.
    memory: Memory,
    /// From an event of the API server to the kernel's element, with all of the agent between.
    whole: whole::Figures,
}

/// Growth of this process while it makes what the agent holds.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    /// Services and endpoint slices as the caches hold them.
    objects_bytes: u64,
    /// What the proxy and cluster DNS make of them and keep.
    kept_bytes: u64,
    /// The most the process ever had, while tables were rendered.
    peak_bytes: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if std::env::var_os(INSIDE).is_none() {
        return enter();
    }
    let report = measure(&arguments)?;
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Output::Table => write!(out, "{}", render(&report))?,
    }
    Ok(())
}

/// Runs this program again in namespaces of its own, so that root is not needed and the host's
/// tables are not touched.
///
/// Root of the host keeps its user: only that one may send the larger tables in one transaction.
fn enter() -> Result<()> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let user: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
    let status = Command::new("unshare")
        .args(user)
        .arg("--net")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("unshare cannot be run")?;
    ensure!(status.success(), "the bench ended with {status}");
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let network = "ip link set lo up && ip addr add 10.0.9.9/32 dev lo && ip route add 172.16.0.0/12 dev lo src 10.0.9.9";
    let status = Command::new("sh").args(["-c", network]).status()?;
    ensure!(status.success(), "the namespace cannot be set up");
    // A flow's two ends on two processors wait for each other by chance, longer than any table
    // takes; on one they do not. Endpoints' threads begin where this one is.
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    let mut one = CpuSet::new();
    one.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    (0..arguments.endpoints).try_for_each(echo).context("an endpoint")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bare_us = flow_us(SocketAddr::from((peer::endpoint(0), PORT)))?;
    let sizes = [100, 1_000, arguments.services];
    let mut sizes: Vec<u32> = sizes.into_iter().filter(|one| *one <= arguments.services).collect();
    sizes.dedup();
    let mut memory = Memory::default();
    let mut tables = Vec::new();
    for services in sizes {
        let (figures, held) = ours(&runtime, services, arguments.endpoints)?;
        memory = held;
        tables.push(figures);
        for shape in [Shape::Mapped, Shape::Listed] {
            if services <= arguments.peers_max {
                tables.push(others(&runtime, shape, services, arguments.endpoints)?);
            }
        }
    }
    sched_setaffinity(Pid::from_raw(0), &everywhere)?;
    let whole = whole::measure(arguments.services, arguments.endpoints)?;
    Ok(Report { endpoints: arguments.endpoints, bare_us, tables, memory, whole })
}

/// An endpoint that sends datagrams back, until the process ends.
fn echo(number: u8) -> Result<()> {
    let address = peer::endpoint(number);
    let own = format!("{address}/32");
    let status = Command::new("ip").args(["addr", "add", &own, "dev", "lo"]).status()?;
    ensure!(status.success(), "{address} cannot be had");
    let socket = UdpSocket::bind((address, PORT))?;
    std::thread::Builder::new().spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let words = buffer.get(..length).unwrap_or_default();
            if socket.send_to(words, peer).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn site() -> Result<Site> {
    let ranges =
        Ranges { pods: "10.0.0.0/8".parse()?, services: "172.16.0.0/12".parse()?, dns: None };
    Ok(Site { node: "here".to_owned(), zone: None, v4: ranges, v6: None })
}

/// Services and their slices of endpoints, as the API tells them.
fn told(services: u32, endpoints: u8) -> impl Iterator<Item = (Value, Value)> {
    let addresses: Vec<_> = (0..endpoints)
        .map(|number| {
            json!({"addresses": [peer::endpoint(number)], "nodeName": format!("node-{number}"),
                "conditions": {"ready": true, "serving": true, "terminating": false}})
        })
        .collect();
    (0..services).map(move |number| {
        let (namespace, name) = (format!("team-{}", number % 50), format!("service-{number}"));
        let service = json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": peer::service(number), "type": "ClusterIP",
                "ports": [{"port": 80, "protocol": "UDP"}], "selector": {"app": name}}});
        let slice = json!({
            "metadata": {"namespace": namespace, "name": format!("{name}-x"),
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": addresses,
            "ports": [{"port": PORT, "protocol": "UDP"}]});
        (service, slice)
    })
}

/// Services and their slices of endpoints, as the caches hold them.
type Objects = (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>);

fn objects(services: u32, endpoints: u8) -> Result<Objects> {
    let (mut all, mut slices) = (Vec::new(), Vec::new());
    for (service, slice) in told(services, endpoints) {
        all.push(Arc::new(serde_json::from_value(service)?));
        slices.push(Arc::new(serde_json::from_value(slice)?));
    }
    Ok((all, slices))
}

fn ours(runtime: &Runtime, count: u32, endpoints: u8) -> Result<(Figures, Memory)> {
    let before = resident_bytes("VmRSS:")?;
    let (services, mut slices) = objects(count, endpoints)?;
    let site = site()?;
    let with_objects = resident_bytes("VmRSS:")?;
    let start = Instant::now();
    let mut planner = Planner::new(site.clone());
    planner.behind().replace_services(services.iter().cloned());
    planner.behind().replace_slices(slices.iter().cloned());
    let mut tables = Tables::default();
    runtime.block_on(tables.load(&mut planner))?;
    let load_ms = milliseconds(start.elapsed());
    let mut zone = Zone::new(DOMAIN, vec![site.v4.pods, site.v4.services])?;
    zone.behind().replace_services(services.iter().cloned());
    zone.behind().replace_slices(slices.iter().cloned());
    ensure!(zone.refresh(), "no names");
    let kept_bytes = resident_bytes("VmRSS:")?.saturating_sub(with_objects);
    drop(zone);
    let mut changes = Vec::new();
    let first = slices.first_mut().context("no service")?;
    for change in 0..CHANGES {
        let spare = if change % 2 == 0 { peer::SPARE } else { peer::endpoint(0) };
        let mut slice = EndpointSlice::clone(first);
        slice.endpoints.first_mut().context("no endpoint")?.addresses = vec![spare.to_string()];
        *first = Arc::new(slice);
        let meta = &first.metadata;
        let start = Instant::now();
        planner.behind().set_slice(&meta.namespace, &meta.name, Some(Arc::clone(first)));
        let change = planner.change();
        ensure!(!change.is_empty(), "nothing was changed");
        runtime.block_on(tables.change(&change))?;
        changes.push(milliseconds(start.elapsed()));
    }
    let figures = flows("ours", count, load_ms, changes);
    remove(runtime, TABLE)?;
    let objects_bytes = with_objects.saturating_sub(before);
    let memory = Memory { objects_bytes, kept_bytes, peak_bytes: resident_bytes("VmHWM:")? };
    Ok((figures?, memory))
}

fn others(runtime: &Runtime, shape: Shape, count: u32, endpoints: u8) -> Result<Figures> {
    let start = Instant::now();
    runtime.block_on(kernel::nft::apply(&peer::render(shape, count, endpoints)))?;
    let load_ms = milliseconds(start.elapsed());
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        let spare = if change % 2 == 0 { peer::SPARE } else { peer::endpoint(0) };
        let start = Instant::now();
        runtime.block_on(kernel::nft::apply(&peer::render_change(spare)))?;
        changes.push(milliseconds(start.elapsed()));
    }
    let name = match shape {
        Shape::Mapped => "map of chains",
        Shape::Listed => "list of rules",
    };
    let figures = flows(name, count, load_ms, changes);
    remove(runtime, peer::TABLE)?;
    figures
}

fn remove(runtime: &Runtime, table: &str) -> Result<()> {
    Ok(runtime.block_on(kernel::nft::apply(&format!("delete table ip {table}\n")))?)
}

fn flows(table: &str, services: u32, load_ms: f64, changes: Vec<f64>) -> Result<Figures> {
    // The first service's endpoint is being changed: the second is as good.
    let time = |number: u32| flow_us(SocketAddr::from((peer::service(number), 80)));
    Ok(Figures {
        table: table.to_owned(),
        services,
        load_ms,
        change_ms: median(changes),
        first_us: time(1)?,
        middle_us: time(services / 2)?,
        last_us: time(services.saturating_sub(1))?,
    })
}

/// The median time of a new flow's first round trip.
fn flow_us(target: SocketAddr) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..FLOWS {
        let socket = UdpSocket::bind((CLIENT, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let start = Instant::now();
        socket.send_to(b"ping", target)?;
        let mut buffer = [0; 8];
        let (length, _) = socket.recv_from(&mut buffer).with_context(|| format!("{target}"))?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        if length != 4 {
            bail!("{target} answered {length} bytes");
        }
    }
    Ok(median(times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A line of this process's status that tells memory.
fn resident_bytes(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no such memory")?;
    Ok(number.parse::<u64>()? << 10)
}

fn render(report: &Report) -> String {
    let mut text = format!(
        "{:<14} {:>8} {:>10} {:>10} {:>8} {:>8} {:>8}\n",
        "", "services", "load", "change", "first", "middle", "last"
    );
    for one in &report.tables {
        text += &format!(
            "{:<14} {:>8} {:>7.0} ms {:>7.3} ms {:>5.1} us {:>5.1} us {:>5.1} us",
            one.table,
            one.services,
            one.load_ms,
            one.change_ms,
            one.first_us,
            one.middle_us,
            one.last_us
        );
        let ours = |peer: &&Figures| peer.table == "ours" && peer.services == one.services;
        if let Some(ours) = report.tables.iter().find(ours).filter(|_| one.table != "ours") {
            text += &format!(
                "   load x{:.1} change x{:.1} last x{:.1}",
                one.load_ms / ours.load_ms,
                one.change_ms / ours.change_ms,
                one.last_us / ours.last_us
            );
        }
        text += "\n";
    }
    text += &format!(
        "from the API's event to the kernel, all of the agent between: {:.0} us, {:.0} us at worst\n",
        report.whole.median_us, report.whole.worst_us
    );
    text += &format!("a new flow without any table: {:.1} us\n", report.bare_us);
    let Memory { objects_bytes, kept_bytes, peak_bytes } = &report.memory;
    let mib = |bytes: &u64| *bytes as f64 / f64::from(1 << 20);
    text + &format!(
        "memory: objects {:.1} MiB, table and names {:.1} MiB, peak {:.1} MiB\n",
        mib(objects_bytes),
        mib(kept_bytes),
        mib(peak_bytes)
    )
}
