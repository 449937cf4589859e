//! Runs the controllers and the scheduler of `control` against an API server.
//!
//! Decides nothing itself: it keeps the views up to date, carries out what is planned, and
//! sees to it that only one manager of a cluster does so. Also the signer of node
//! certificates, because it alone of these parts may hold the authority's key.
//!
//! Tasks: one reflector per kind, one loop per controller, the scheduler's loop, the event
//! recorder and their expiry, the leader's lease.

#![forbid(unsafe_code)]

mod apply;
mod ceph;
mod choice;
mod custom;
mod definition;
mod empty;
mod event;
mod expiry;
mod fence;
mod hub;
mod image;
mod leader;
mod metrics;
mod scheduling;
mod signer;
mod usage;
mod window;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::plan::Timings;
use control::controller::CONTROLLERS;
use control::scheduler::Scheduler;
use control::view::Settings;
use runtime::driver::Pace;
use runtime::supervise::TaskFailed;
use runtime::{Client, ClientError, Supervisor};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::apply::{Gone, Hand};
use crate::hub::Hub;

/// The files of the cluster's authority.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Its certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// How the manager runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach the API server, and as whom.
    pub kubeconfig: PathBuf,
    /// The authority's certificate and key, PEM; without them nothing is signed here.
    pub authority: Option<Authority>,
    /// How long the cluster waits before it acts on a silent node.
    pub timings: Timings,
    /// How fast nodes that are not ready lose their pods.
    pub zones: ZoneRules,
    /// Which controllers run.
    pub controllers: Choice,
    /// Where they count what they do.
    pub metrics: Metrics,
    /// Where health and metrics are served, for a manager by itself; `None` serves them nowhere.
    pub window: Option<SocketAddr>,
    /// Ranges that services of type `LoadBalancer` get addresses from.
    pub load_balancer_pools: Vec<ipnet::IpNet>,
    /// How the scheduler is set up.
    pub scheduler: control::scheduler::Config,
}

impl Config {
    fn settings(&self) -> Settings {
        let seconds = |number: u32| Duration::from_secs(number.into());
        Settings {
            node_monitor_grace_period: seconds(self.timings.node_monitor_grace_period_seconds),
            pod_eviction_timeout: seconds(self.timings.pod_eviction_timeout_seconds),
            zones: self.zones,
            load_balancer_pools: self.load_balancer_pools.clone(),
            root_ca: self.root_ca(),
            ..Settings::default()
        }
    }

    /// The authority's certificate, to be published; empty without one.
    fn root_ca(&self) -> String {
        let path = self.authority.as_ref().map(|one| &one.cert);
        path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
    }

    /// Our name among managers: the same after a restart, or the restart would wait for the
    /// old lease to run out.
    fn identity(&self) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}_{}", host.trim(), self.kubeconfig.display())
    }
}

/// Why the manager cannot start or go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// The API client cannot be made.
    #[error("cannot use kubeconfig {path}")]
    Client {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<ClientError>,
    },
    /// The authority cannot be read.
    #[error("cannot use the authority {path}")]
    Authority {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: signer::SignerError,
    },
    /// Health and metrics cannot be served.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A task ended that should not have.
    #[error("the manager cannot go on")]
    Task(#[source] Box<TaskFailed<leader::LeaseLost>>),
}

pub use choice::{Choice, UnknownController, names};
pub use control::scheduler::Config as SchedulerConfig;
pub use control::view::ZoneRules;
pub use leader::LeaseLost;
pub use metrics::{Meter, Metrics};
pub use scheduling::{ScheduleError, SetupError, Stopwatch, read_scheduler_config, schedule};
pub use signer::SignerError;

/// Runs every controller and the scheduler until `stop`.
///
/// The API server need not be up yet: everything waits for it with back-off.
///
/// # Errors
///
/// When a file is not usable, or the leader's lease is lost: then someone else may be acting,
/// and the process must start over.
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    let client = Client::from_kubeconfig(&config.kubeconfig).map_err(|source| {
        RunError::Client { path: config.kubeconfig.clone(), source: Box::new(source) }
    })?;
    let load = |files: &Authority| {
        let failed = |source| RunError::Authority { path: files.cert.clone(), source };
        signer::Signer::load(&files.cert, &files.key).map_err(failed)
    };
    let signer = config.authority.as_ref().map(load).transpose()?;
    let mut tasks = Supervisor::new(stop.child_token());
    let stop = tasks.stop();
    if let Some(address) = config.window {
        let opened = window::open(address).await;
        let listener = opened.map_err(|source| RunError::Listen { address, source })?;
        let watched = window::serve(stop.clone(), listener, config.metrics.clone());
        tasks.spawn("health and metrics", watched);
    }
    if let Some(name) = config.controllers.lease() {
        let Some(lease) = leader::acquire(&stop, &client, &config.identity(), name).await else {
            return Ok(());
        };
        tasks.spawn_fallible("leader", lease.keep(stop.clone()));
    }
    definition::publish(&stop, &client).await;
    let Some(served) = hub::served(&stop, &client).await else { return Ok(()) };
    let looked_at = config.controllers.kinds().into_iter().filter(|kind| served.contains(kind));
    let looked_at = hub::allowed(&client, looked_at.collect()).await;
    let hub = Arc::new(Hub::start(&client, served, &looked_at, &mut tasks));
    let (events, recorder) = event::channel(client.clone());
    tasks.spawn("events", recorder.run(stop.clone()));
    let hand =
        Arc::new(Hand { client, hub: Arc::clone(&hub), events, signer, gone: Gone::default() });
    start_loops(&mut tasks, &hub, &hand, &config);
    if config.controllers.has(choice::SCHEDULER) {
        start_scheduler(&mut tasks, &hub, &hand, &config);
    }
    tasks.join().await.map_err(|failed| RunError::Task(Box::new(failed)))
}

/// How long a loop gathers wake-ups: longer where they are mostly other loops' echoes.
fn settle(controller: &str) -> Duration {
    match controller {
        "garbage-collector" | "resourcequota-controller" => Duration::from_millis(200),
        // Each round asks for the metrics of all pods.
        "horizontal-pod-autoscaler-controller" => Duration::from_secs(5),
        "node-controller" => Duration::from_millis(50),
        _ => Pace::default().settle,
    }
}

fn start_loops(
    tasks: &mut Supervisor<LeaseLost>,
    hub: &Arc<Hub>,
    hand: &Arc<Hand>,
    config: &Config,
) {
    let stop = tasks.stop();
    if config.controllers.any_controller() {
        tasks.spawn("event expiry", expiry::run(stop.clone(), hand.client.clone()));
        let customs = Arc::clone(&hub.customs);
        let asking = customs.run(stop.clone(), hand.client.clone(), hub.definitions());
        tasks.spawn("kinds that come and go", asking);
    }
    for controller in CONTROLLERS.iter().filter(|one| config.controllers.has(one.name)) {
        if !hub.suffices(controller) {
            info!(controller = controller.name, "the server lacks a kind it needs; not started");
            continue;
        }
        let pace = Pace { settle: settle(controller.name), ..Pace::default() };
        let meter = config.metrics.of(controller.name);
        let world = worker::Worker::new(controller, hub, hand, config.settings(), meter);
        let needs = hub.needs(controller);
        let mut wakes = hub.changes(&needs);
        if controller.needs.is_empty() {
            wakes.push(hub.customs.changes());
        }
        let (hub, stop) = (Arc::clone(hub), stop.clone());
        tasks.spawn(controller.name, async move {
            if hub.wait_synced(&stop, &needs).await {
                runtime::drive(stop, wakes, world, pace).await;
            }
        });
    }
}

/// Starts the scheduler, which waits for a lease of its own.
fn start_scheduler(
    tasks: &mut Supervisor<LeaseLost>,
    hub: &Arc<Hub>,
    hand: &Arc<Hand>,
    config: &Config,
) {
    let (stop, client) = (tasks.stop(), hand.client.clone());
    let clerk = scheduling::Clerk { client: client.briefly(), events: Some(hand.events.clone()) };
    let scheduler = Scheduler::new(config.scheduler.clone(), scheduling::seed());
    let scheduling = scheduling::Loop {
        feeds: hub.feeds(),
        clerk,
        scheduler,
        stopwatch: None,
        meter: Arc::clone(&config.metrics.scheduler),
    };
    let identity = config.identity();
    tasks.spawn_fallible("scheduler", async move {
        let Some(lease) = leader::acquire(&stop, &client, &identity, leader::SCHEDULER).await
        else {
            return Ok(());
        };
        let inner = stop.child_token();
        let keep = async {
            let kept = lease.keep(stop).await;
            inner.cancel();
            kept
        };
        let (kept, ()) = tokio::join!(keep, scheduling.run(inner.clone()));
        kept
    });
}
