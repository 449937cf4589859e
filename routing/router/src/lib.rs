//! Drives BIRD, wires pods, and checks the kernel's table against the intent.
//!
//! [`run`] is a service of the node agent's process: it follows the node's Machine, the Racks,
//! the site's ranges and `Node.spec.podCIDR`, renders BIRD's configuration, has BIRD reload it,
//! and publishes the pod network for the plugin. [`cni`] is that plugin, a process of its own for
//! each call of the container runtime. What is announced and believed is decided in `routes`.
//!
//! One task per cache, one that notices a restarted BIRD, and one loop: [`world`] observes, plans,
//! applies. BIRD is never started, stopped or restarted here; its unit does that.

#![forbid(unsafe_code)]

pub mod cni;

mod bird;
mod pod_network;
mod ready;
mod site;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use runtime::backoff::Backoff;
use runtime::cache::ServiceCaches;
use runtime::driver::Pace;
use runtime::{Client, ClientConfig, ClientError, Supervisor};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use bird::{Bird, BirdError};
pub use pod_network::{PodNetwork, PodNetworkV6};

use crate::site::Site;
use crate::world::{Health, Node};

/// Where the router of a node says what is meant and what is (a [`routes::Survey`] as JSON); it is
/// not older than ten seconds while the agent runs.
pub const SURVEY: &str = "/run/muster/routes.json";
/// How often BIRD and the kernel are looked at when nothing changes.
const BEAT: Duration = Duration::from_secs(10);
/// Waits between failed rounds: the first ones fail while BIRD is still starting.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What the router needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The API server and the node's identity.
    pub client: ClientConfig,
    /// This node's name.
    pub node: String,
    /// Where things are.
    pub paths: Paths,
    /// What the process already follows of services; `None` when nobody does.
    pub services: Option<ServiceCaches>,
}

/// Files and sockets of the router.
#[derive(Debug, Clone)]
pub struct Paths {
    /// BIRD's control socket.
    pub bird_socket: PathBuf,
    /// BIRD's configuration, written whole.
    pub bird_config: PathBuf,
    /// The pod network, for the plugin.
    pub pod_network: PathBuf,
    /// The runtime's list of plugins; its presence says that pods may come.
    pub cni_config: PathBuf,
    /// What is meant and what is, for `muster routes`. Beside it, with the ending `prom`, are the
    /// figures for a scrape.
    pub survey: PathBuf,
}

impl Default for Paths {
    /// The paths of the node image.
    fn default() -> Self {
        Self {
            bird_socket: "/run/bird/bird.ctl".into(),
            bird_config: "/run/bird/bird.conf".into(),
            pod_network: "/run/muster/pod-network.json".into(),
            cni_config: "/etc/cni/net.d/10-muster.conflist".into(),
            survey: SURVEY.into(),
        }
    }
}

/// Why the router ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// No client can be made of the configuration.
    #[error("cannot make an API client")]
    Client(#[source] ClientError),
    /// A task ended unexpectedly.
    #[error("the router's tasks failed")]
    Task(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs the router until `stop`.
///
/// What was configured stays in force afterwards: pods keep their network while the agent is
/// down.
///
/// # Errors
///
/// When no client can be made or a task panics; everything else is retried.
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    let client = Client::new(config.client.clone()).map_err(RunError::Client)?;
    let mut tasks: Supervisor = Supervisor::new(stop.clone());
    let services = config.services.unwrap_or_else(|| ServiceCaches::follow(&client, &mut tasks));
    let site = Site::follow(&client, &config.node, services, &mut tasks);
    let mut wakes = site.changes();
    let (lives, life) = watch::channel(0);
    tasks.spawn("bird", Bird::at(&config.paths.bird_socket).follow(stop.clone(), lives));
    wakes.push(life);
    let (wanted, answer, asking) = ready::channels();
    wakes.push(answer.clone());
    tasks.spawn("api readiness", asking.run(stop.clone(), config.client));
    let node = Node::new(config.node, config.paths, site, client, Health { wanted, answer });
    let pace =
        Pace { resync: BEAT, backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX), ..Pace::default() };
    tasks.spawn("router", runtime::drive(stop, wakes, node, pace));
    tasks.join().await.map_err(|err| RunError::Task(Box::new(err)))
}
