//! The node agent: joins, runs pods, serves logs, programs services.
//!
//! The road is [`join`] (key, request, certificate) and then [`run`]: the node registers and
//! beats, archives of images are imported, pods bound to this node are driven through the
//! container runtime, and their logs are served. What to do is decided in `node` and `volumes`.
//!
//! Tasks of [`run`]: `pods` (cache of this node's pods), `node` (its own object), `slices` (control groups), `workers` (one task per pod, woken by
//! the cache and by the runtime), `services` (their variables), `manifests` (static pods), `devices` (their plugins),
//! `figures` (readings of what is used), `pressure` (room on the node), `relist` and `events` (the runtime's news), `beat` (lease and
//! node status), `logs` (HTTPS), `tell` (events for people), `renew` (certificate).
//!
//! A stopped or killed agent leaves everything running; started again, it finds its pods by the
//! labels in the runtime and goes on.

#![forbid(unsafe_code)]

pub mod dns;
pub mod hollow;
pub mod join;
pub mod services;
pub mod tables;

mod beat;
mod button;
mod cores;
mod devices;
mod disk;
mod facts;
mod figures;
mod hook;
mod image;
mod logs;
mod manifests;
mod mirror;
mod modules;
mod news;
mod observe;
mod oom;
mod pods;
mod policy;
mod pressure;
mod probe;
mod proxy;
mod remote;
mod served;
mod shutdown;
mod slices;
mod start;
mod started;
mod streams;
mod tell;
mod token;
mod users;
mod web;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use cri::Runtime;
use objects::network::Service;
use objects::node::Node;
use objects::pod::Pod;
use runtime::cache::{Cache, CacheParams};
use runtime::{Client, Supervisor, resource};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use image::Imports;
pub use node::settings::Settings;

pub use join::{JoinError, Joined, NodeInfo, join};
pub use policy::Gate;
pub use served::Served;

/// Where the agent finds and keeps things.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the first program of the node found out: `/run/muster/node.json`.
    pub node_json: PathBuf,
    /// Certificate, key and authority, in memory: `/run/muster/pki`.
    pub pki_dir: PathBuf,
    /// The container runtime's socket.
    pub cri_socket: PathBuf,
    /// Volumes and other files of pods.
    pub data_dir: PathBuf,
    /// Logs of pods.
    pub log_dir: PathBuf,
    /// Image archives that come with the node.
    pub image_dir: PathBuf,
    /// Where the runtime reads which mirrors registries have; `None` leaves that to the operator.
    pub mirror_dir: Option<PathBuf>,
    /// Where the kernel shows its control groups.
    pub cgroups: PathBuf,
    /// The kernel's log; it says whom the kernel killed because memory ran out.
    pub kernel_log: PathBuf,
    /// Where the HTTPS server listens.
    pub listen: SocketAddr,
    /// Where device plugins register; `None` takes none.
    pub device_dir: Option<PathBuf>,
    /// Where people watching the machine read; `None` keeps quiet.
    pub console: Option<PathBuf>,
    /// The program that knows whether the whole machine stops, as `systemctl` does.
    pub machine_state: PathBuf,
    /// Cancelled when the process is asked to stop: pods are ended first if the machine stops
    /// too, and then the agent's own signal is pulled. Whoever pulls that one ends no pod.
    pub asked: CancellationToken,
    /// What the operator set for this node.
    pub settings: Settings,
    /// The cluster's DNS servers, as `services` tells them; empty while there are none.
    pub cluster_dns: watch::Receiver<Vec<String>>,
    /// Where pods wait until `services` enforces their policies.
    pub gate: Gate,
    /// How far `services` are: the node is not ready before they are in force.
    pub served: Served,
}

impl Default for Config {
    /// The paths of the node image.
    fn default() -> Self {
        Self {
            node_json: "/run/muster/node.json".into(),
            pki_dir: "/run/muster/pki".into(),
            cri_socket: "/run/containerd/containerd.sock".into(),
            data_dir: "/var/lib/muster".into(),
            log_dir: "/var/log/pods".into(),
            image_dir: "/usr/share/muster/images".into(),
            // Only who owns the whole node may change what its runtime asks.
            mirror_dir: None,
            cgroups: "/sys/fs/cgroup".into(),
            kernel_log: "/dev/kmsg".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], node::machine::AGENT_PORT)),
            device_dir: None,
            console: Some("/dev/console".into()),
            machine_state: "systemctl".into(),
            asked: CancellationToken::new(),
            settings: Settings::default(),
            cluster_dns: watch::channel(Vec::new()).1,
            gate: Gate::default(),
            served: Served::default(),
        }
    }
}

/// Why the agent ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// The node could not join.
    #[error("cannot join the cluster")]
    Join(#[source] Box<JoinError>),
    /// No client can be made of the node's certificate.
    #[error("cannot make an API client")]
    Client(#[source] Box<runtime::ClientError>),
    /// The runtime's socket cannot be used.
    #[error("cannot use the container runtime")]
    Runtime(#[source] cri::ConnectError),
    /// The log server cannot be set up.
    #[error("cannot serve logs")]
    Logs(#[source] logs::ServeError),
    /// The node has a new certificate; the process must start again to use it.
    #[error("the node's certificate was renewed; start again to use it")]
    Renewed,
    /// A task ended unexpectedly.
    #[error("the agent's tasks failed")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What every task of the agent shares.
#[derive(Debug)]
struct Shared {
    config: Config,
    node: NodeInfo,
    client: Client,
    runtime: Runtime,
    pods: Cache<Pod>,
    /// The node's own object.
    nodes: Cache<Node>,
    events: tell::Teller,
    allocatable: node::field::Allocatable,
    imports: Imports,
    services: Cache<Service>,
    /// The runtime's own name, once it has told it: what container ids begin with.
    runtime_name: OnceLock<String>,
    figures: figures::Figures,
    /// Whether the node's own files of pods were read at all; true when there is no such directory.
    files_read: watch::Sender<bool>,
    /// The pods of the node's own files.
    fixed: watch::Sender<Arc<Vec<Arc<Pod>>>>,
    /// The processors of containers.
    cores: cores::Manager,
    /// The control groups of pods.
    slices: slices::Manager,
    /// Which ids of the node the users in pods are.
    users: users::Manager,
    /// The devices that plugins brought.
    devices: devices::Manager,
    /// Wakes whoever tells about the node: something of it has changed.
    hurry: tokio::sync::Notify,
    /// Set when the machine shuts down: nothing new begins.
    leaving: AtomicBool,
    /// What the node's pods were promised.
    ledger: Mutex<node::ledger::Ledger>,
    told: pressure::Told,
    started: jiff::Timestamp,
    /// Why no pod can run here now; empty when all is well.
    problems: watch::Sender<Vec<String>>,
    /// Volumes of the network and disks in use here.
    disks: remote::Disks,
}

/// Joins and runs the agent until `stop`.
///
/// # Errors
///
/// As [`join`] and [`run_joined`].
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    let Some(joined) = join(&stop, &config).await.map_err(|err| RunError::Join(Box::new(err)))?
    else {
        return Ok(());
    };
    run_joined(stop, config, joined).await
}

/// Runs the agent of a node that has joined, until `stop`.
///
/// Pods go on when it ends, however it ends.
///
/// # Errors
///
/// [`RunError::Renewed`] when the process must start again to use a new certificate; others
/// when the set-up fails or a task panics. Everything that may heal is retried inside.
pub async fn run_joined(
    stop: CancellationToken,
    config: Config,
    joined: Joined,
) -> Result<(), RunError> {
    let client =
        Client::new(joined.client_config.clone()).map_err(|err| RunError::Client(Box::new(err)))?;
    let runtime = Runtime::at(&config.cri_socket).map_err(RunError::Runtime)?;
    let params = CacheParams::fields(format!("spec.nodeName={}", joined.node.name));
    let (pods, reflector) = Cache::new(client.clone(), resource::PODS, params);
    let own = CacheParams::fields(format!("metadata.name={}", joined.node.name));
    let (nodes, followed) = Cache::new(client.clone(), resource::NODES, own);
    let (services, links) = Cache::new(client.clone(), resource::SERVICES, CacheParams::default());
    let (events, teller) = tell::Teller::new(client.clone(), &joined.node.name);
    let allocatable = facts::allocatable(&config).await;
    let (listener, listen) = logs::listen(config.listen).await.map_err(RunError::Logs)?;
    let config = Config { listen, ..config };
    let node = joined.node.clone();
    let imports = joined.imports.clone();
    imports.begin(&config);
    mirror::apply(&config, &joined).await;
    let (problems, _) = watch::channel(vec!["the runtime was not looked at yet".to_owned()]);
    let files_read = watch::Sender::new(config.settings.static_pods.is_none());
    let cores = cores::Manager::recall(&config);
    let slices = slices::Manager::find(&config);
    let users = users::Manager::recall(&config);
    let recalled = devices::Manager::recall(&config.data_dir);
    let shared = Arc::new(Shared {
        config,
        node,
        client,
        runtime,
        pods,
        nodes,
        events,
        allocatable,
        imports,
        services,
        runtime_name: OnceLock::new(),
        figures: figures::Figures::default(),
        files_read,
        fixed: watch::Sender::default(),
        leaving: AtomicBool::new(false),
        ledger: Mutex::default(),
        cores,
        slices,
        users,
        devices: recalled,
        hurry: tokio::sync::Notify::new(),
        told: pressure::Told::default(),
        started: jiff::Timestamp::now(),
        problems,
        disks: remote::Disks::default(),
    });

    let server = logs::Server::new(Arc::clone(&shared), listener, &joined);
    let server = server.map_err(RunError::Logs)?;
    let mut tasks: Supervisor<RunError> = Supervisor::new(stop.clone());
    let (wakes, woken) = news::channel();
    tasks.spawn("pods", reflector.run(stop.clone()));
    tasks.spawn("node", followed.run(stop.clone()));
    tasks.spawn("services", links.run(stop.clone()));
    begin(&mut tasks, &stop, &shared);
    tasks.spawn("tell", teller.run(stop.clone()));
    tasks.spawn("relist", news::relist(stop.clone(), Arc::clone(&shared), wakes.clone()));
    tasks.spawn("events", news::events(stop.clone(), Arc::clone(&shared), wakes));
    tasks.spawn("logs", server.run(stop.clone()));
    tasks.spawn("workers", pods::run(stop.clone(), Arc::clone(&shared), woken));
    tasks.spawn_fallible("renew", join::renew(stop.clone(), Arc::clone(&shared), joined));
    match tasks.join().await {
        Ok(()) => Ok(()),
        Err(runtime::supervise::TaskFailed::Failed { source, .. }) => Err(source),
        Err(err) => Err(RunError::Task(Box::new(err))),
    }
}

/// Begins the tasks that need nothing but what all share.
fn begin(tasks: &mut Supervisor<RunError>, stop: &CancellationToken, shared: &Arc<Shared>) {
    tasks.spawn("figures", figures::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("pressure", pressure::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("shutdown", shutdown::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("button", button::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("cores", cores::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("slices", slices::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("devices", devices::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("manifests", manifests::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("beat", beat::run(stop.clone(), Arc::clone(shared)));
    tasks.spawn("storage drivers", remote::run_drivers(stop.clone(), Arc::clone(shared)));
    tasks.spawn("rotate", logs::rotate(stop.clone(), Arc::clone(shared)));
}
