//! Runs the manager alone beside a server that is up:
//! `cargo run -p manager --example manage -- DIR [GRACE_SECONDS EVICTION_SECONDS]`.

use std::error::Error;
use std::path::PathBuf;

use cluster::plan::Timings;
use tokio_util::sync::CancellationToken;

/// As in `muster`: what is tried and measured here is to be what runs there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    runtime::telemetry::init("info", runtime::telemetry::Format::Text);
    let mut arguments = std::env::args().skip(1);
    let dir: PathBuf = arguments.next().ok_or("usage: manage DIR [GRACE EVICTION]")?.into();
    let mut seconds = |default: u32| -> Result<u32, std::num::ParseIntError> {
        arguments.next().map_or(Ok(default), |text| text.parse())
    };
    let timings = Timings {
        node_monitor_grace_period_seconds: seconds(40)?,
        pod_eviction_timeout_seconds: seconds(300)?,
    };
    let config = manager::Config {
        kubeconfig: dir.join("manager.kubeconfig"),
        authority: Some(manager::Authority {
            cert: dir.join("pki/ca.crt"),
            key: dir.join("pki/ca.key"),
        }),
        timings,
        zones: manager::ZoneRules::default(),
        controllers: manager::Choice::default(),
        metrics: manager::Metrics::default(),
        window: None,
        load_balancer_pools: Vec::new(),
        scheduler: control::scheduler::Config::default(),
    };
    let stop = CancellationToken::new();
    let running = manager::run(stop.clone(), config);
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return Ok(ended?),
        signal = tokio::signal::ctrl_c() => signal?,
    }
    stop.cancel();
    Ok(running.await?)
}
