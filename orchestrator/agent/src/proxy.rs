//! Services on this node: Services and EndpointSlices in, one nftables table out.
//!
//! What the table says is decided in `node::service`; here it is applied, whole at first, later
//! element by element, each time in one transaction. One loop; the caches are `services`'s.
//! The table stays when the proxy ends: services work on while the agent is down.
//!
//! Outside load balancers ask at the services' health check ports ([`health`]).
//!
//! When UDP endpoints change, tracked flows that lead nowhere any more are forgotten, in one pass
//! over the kernel's table.

mod health;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::plan::Networks;
use kernel::conntrack::{self, ConntrackError};
use kernel::nft::{self, NftError};
use node::service::{
    Backend, Flow, Frontend, Loaded, Services, Site, Skipped, TABLE, is_stale, plan_services,
    render_table,
};
use runtime::backoff::Backoff;
use runtime::driver::{Pace, Plan, World};
use thiserror::Error;
use tracing::{debug, warn};

use crate::services::Watched;
use health::{Checks, HealthError};

/// A burst of endpoint changes, such as a rollout's, becomes one transaction.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the table is looked for in the kernel when nothing changes.
const BEAT: Duration = Duration::from_secs(60);
/// How long the first table waits for the node to be Ready. Loading it loads a dozen kernel
/// modules, too, which in an emulator takes seconds from the very work that makes the node Ready;
/// and no pod comes before. A node that cannot become Ready still serves its own clients.
const READY_WAIT: Duration = Duration::from_secs(180);
/// How often it is looked whether the wait is over; a node that becomes Ready is seen at once.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Waits after a refused transaction.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Why a round failed.
#[derive(Debug, Error)]
pub(crate) enum ProxyError {
    #[error("the table of services cannot be read")]
    Read(#[source] NftError),
    #[error("the table of services cannot be changed")]
    Apply(#[source] NftError),
    #[error("health checks of services cannot be answered")]
    Health(#[source] HealthError),
    #[error("stale flows cannot be forgotten")]
    Forget(#[source] ConntrackError),
}

/// How the loop is driven.
pub(crate) fn pace() -> Pace {
    Pace { resync: BEAT, settle: SETTLE, backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX) }
}

/// The node's services as a world.
pub(crate) struct Proxy {
    watched: Watched,
    /// What the kernel holds; `None` before the first load, and when that is in doubt.
    loaded: Option<Loaded>,
    /// The UDP endpoints that flows were last held against; `None` before the first time.
    flows: Option<Udp>,
    /// Where health checks are answered.
    checks: Checks,
    /// When the proxy started.
    since: tokio::time::Instant,
    /// What was said last about parts that are not served.
    skipped: Vec<Skipped>,
    /// When the kernel was last asked for the table.
    looked: Option<tokio::time::Instant>,
}

/// UDP frontends and their endpoints.
type Udp = BTreeMap<Frontend, BTreeSet<Backend>>;

/// What the loop sees: nothing while the API has not said everything yet, or it is too early.
pub(crate) type Seen = Option<Wanted>;

/// The wanted state.
pub(crate) struct Wanted {
    site: Site,
    services: Arc<Services>,
    udp: Udp,
}

/// One step.
pub(crate) enum Action {
    /// Make the table serve these: element by element, or whole where that cannot be.
    Serve { site: Site, services: Arc<Services> },
    /// Answer health checks so; only after the table leads there.
    Answer { services: Arc<Services> },
    /// Forget flows that lead where these do not; only after the table leads there neither.
    Forget { site: Site, udp: Udp },
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // There may be ten thousand.
            Self::Serve { services, .. } => {
                write!(f, "Serve({} frontends)", services.frontends.len())
            }
            Self::Answer { services } => write!(f, "Answer({} ports)", services.health.len()),
            Self::Forget { udp, .. } => write!(f, "Forget({} frontends)", udp.len()),
        }
    }
}

/// Forgets stale flows; blocks.
fn forget(site: &Site, udp: &Udp) -> Result<(), ConntrackError> {
    let mut flows = conntrack::flows()?;
    flows.retain(|flow| {
        let (address, port) = flow.answering;
        let answering = Backend { address, port };
        is_stale(site, udp, &Flow { destination: flow.destination, answering })
    });
    conntrack::forget(&flows)
}

impl Proxy {
    pub(crate) fn new(watched: Watched) -> Self {
        Self {
            watched,
            loaded: None,
            flows: None,
            checks: Checks::default(),
            since: tokio::time::Instant::now(),
            skipped: Vec::new(),
            looked: None,
        }
    }

    /// The site's ranges; `None` until the API has told them.
    fn site(&self) -> Option<Site> {
        let networks = self.watched.networks()?;
        let dns = networks.dns();
        let Networks { pods, services, .. } = networks;
        let (node, zone) = (self.watched.node.clone(), self.watched.zone());
        Some(Site { node, pods, services, zone, dns })
    }

    /// Whether the first table should still wait.
    fn is_early(&self) -> bool {
        let ready = || self.watched.is_ready();
        self.loaded.is_none() && self.since.elapsed() < READY_WAIT && !ready()
    }

    /// Forgets the loaded table when somebody has removed it: `nft flush ruleset` by hand.
    async fn look(&mut self) -> Result<(), ProxyError> {
        let recent = self.looked.is_some_and(|at| at.elapsed() < BEAT);
        if self.loaded.is_none() || recent {
            return Ok(());
        }
        self.looked = Some(tokio::time::Instant::now());
        if !nft::has_table("ip", TABLE).await.map_err(ProxyError::Read)? {
            warn!(table = TABLE, "the table of services is gone; loading it again");
            self.loaded = None;
        }
        Ok(())
    }
}

impl World for Proxy {
    type Seen = Seen;
    type Action = Action;
    type Error = ProxyError;

    fn name(&self) -> &str {
        "proxy"
    }

    async fn observe(&mut self) -> Result<Seen, ProxyError> {
        // A table of half the services would refuse the other half.
        let synced = self.watched.synced();
        let Some(site) = self.site().filter(|_| synced && !self.is_early()) else {
            return Ok(None);
        };
        self.look().await?;
        let services = self.watched.services.snapshot();
        let slices = self.watched.slices.snapshot();
        let planned = plan_services(
            &site,
            services.values().map(AsRef::as_ref),
            slices.values().map(AsRef::as_ref),
        );
        if planned.skipped != self.skipped {
            for Skipped { service, reason } in &planned.skipped {
                warn!(service, reason, "part of a service is not served");
            }
            self.skipped.clone_from(&planned.skipped);
        }
        let udp = planned.udp();
        Ok(Some(Wanted { site, services: Arc::new(planned), udp }))
    }

    fn plan(&mut self, seen: &Seen) -> Plan<Action> {
        let mut actions = Vec::new();
        let Some(Wanted { site, services, udp }) = seen else {
            return Plan { actions, again_after: Some(LOOK_AGAIN) };
        };
        if self.loaded.as_ref().is_none_or(|loaded| !loaded.is(site, services)) {
            let (site, services) = (site.clone(), Arc::clone(services));
            actions.push(Action::Serve { site, services });
        }
        if !self.checks.are(&services.health) {
            actions.push(Action::Answer { services: Arc::clone(services) });
        }
        if self.flows.as_ref() != Some(udp) {
            actions.push(Action::Forget { site: site.clone(), udp: udp.clone() });
        }
        Plan::of(actions)
    }

    async fn apply(&mut self, action: &Action) -> Result<(), ProxyError> {
        match action {
            Action::Serve { site, services } => {
                // Taken out first: after a failure nobody knows what the kernel holds.
                let loaded = self.loaded.take();
                let change = loaded.and_then(|loaded| loaded.render_change(site, services));
                let (script, loaded) = change.unwrap_or_else(|| {
                    let whole = Loaded::whole(site.clone(), Services::clone(services));
                    (render_table(site, services), whole)
                });
                nft::apply(&script).await.map_err(ProxyError::Apply)?;
                debug!(bytes = script.len(), "services are in force");
                self.loaded = Some(loaded);
                self.looked = Some(tokio::time::Instant::now());
            }
            Action::Answer { services } => {
                self.checks.answer(&services.health).await.map_err(ProxyError::Health)?;
            }
            Action::Forget { site, udp } => {
                // Reading a full table takes a tenth of a second: not on the runtime's threads.
                let (site, wanted) = (site.clone(), udp.clone());
                let forgotten = tokio::task::spawn_blocking(move || forget(&site, &wanted)).await;
                match forgotten {
                    Ok(outcome) => outcome.map_err(ProxyError::Forget)?,
                    Err(err) => match err.try_into_panic() {
                        // A panic there is one here.
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime is ending.
                        Err(_) => return Ok(()),
                    },
                }
                self.flows = Some(udp.clone());
            }
        }
        Ok(())
    }
}
