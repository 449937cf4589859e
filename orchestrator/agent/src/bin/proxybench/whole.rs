//! The whole agent side of services: from an event of the API server to the kernel's element.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent::services::{Config, DnsConfig, run};
use anyhow::{Context, Result, anyhow, ensure};
use kernel::nft::{Elements, Family};
use node::service::TABLE;
use runtime::ClientConfig;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, SLICES};
use crate::{median, peer, told};

/// How many changes are timed.
const CHANGES: u32 = 200;
/// Between two looks at the kernel; what is measured is as fine.
const LOOK: Duration = Duration::from_micros(20);
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(5);
/// Loading is over when nothing has happened for so long.
const QUIET: Duration = Duration::from_secs(3);
/// Loading everything takes seconds, and so may a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    pub(crate) median_us: f64,
    pub(crate) worst_us: f64,
}

pub(crate) fn measure(services: u32, endpoints: u8) -> Result<Figures> {
    let (all, slices): (Vec<Value>, Vec<Value>) = told(services, endpoints).unzip();
    let mut slice = slices.first().context("no service")?.clone();
    let ranges = json!({"pods": "10.0.0.0/8", "services": "172.16.0.0/12"}).to_string();
    let site = json!({"metadata": {"name": "muster-site", "namespace": "kube-system"},
        "data": {"networks": ranges}});
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let node = json!({"metadata": {"name": "here"}, "status": ready});
    let mut api = Api::serve(BTreeMap::from([
        ("/api/v1/services", all),
        (SLICES, slices),
        ("/api/v1/namespaces/kube-system/configmaps", vec![site]),
        ("/api/v1/nodes", vec![node]),
    ]))?;
    let client = ClientConfig { server: api.address.clone(), ..ClientConfig::default() };
    let mut dns = DnsConfig::new(watch::channel(Vec::new()).0);
    dns.listen = Some(([127, 0, 0, 1], 0).into());
    let (node, gate) = ("here".to_owned(), agent::Gate::default());
    let served = agent::Served::default();
    let config = Config { client, node, dns, services: None, gate, served };
    let stop = CancellationToken::new();
    let signal = stop.clone();
    let agent = std::thread::Builder::new().spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(runtime.block_on(run(signal, config))?)
    })?;
    let mut elements = Elements::open()?;
    let began = Instant::now();
    while !elements.has_table(Family::V4, TABLE)? {
        ensure!(began.elapsed() < LIMIT, "no table");
        ensure!(!agent.is_finished(), "the agent ended");
        std::thread::sleep(PAUSE);
    }
    // The elements come after the rules, and nothing may come after the elements.
    let (mut seen, mut since) = (elements.generation()?, Instant::now());
    while since.elapsed() < QUIET {
        std::thread::sleep(PAUSE);
        let now = elements.generation()?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    let mut times = Vec::new();
    for change in 0..CHANGES {
        std::thread::sleep(PAUSE);
        let spare = if change % 2 == 0 { peer::SPARE } else { peer::endpoint(0) };
        let address = slice.pointer_mut("/endpoints/0/addresses/0").context("no endpoint")?;
        *address = json!(spare);
        let before = elements.generation()?;
        let start = Instant::now();
        api.change(slice.clone())?;
        while elements.generation()? == before {
            ensure!(start.elapsed() < LIMIT, "the change did not come");
            // Whoever spins takes the processor from those who are measured.
            std::thread::sleep(LOOK);
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    stop.cancel();
    agent.join().map_err(|_| anyhow!("the agent panicked"))??;
    let worst_us = times.iter().copied().fold(0.0, f64::max);
    Ok(Figures { median_us: median(times), worst_us })
}
