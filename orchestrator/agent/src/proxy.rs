//! Services on this node: Services and EndpointSlices in, nftables tables out.
//!
//! What the tables say is decided in `node::service`; here it is applied, whole at first, later
//! element by element ([`crate::tables`]), each time in one transaction. One loop; the caches are
//! `services`'s. Nobody waits for a burst to end: what comes while the kernel works is done next,
//! together. When the kernel does not hold what was thought, the whole is loaded again at once.
//! The tables stay when the proxy ends: services work on while the agent is down.
//!
//! Outside load balancers ask at the services' health check ports ([`health`]).
//!
//! When UDP endpoints change, tracked flows that lead nowhere any more are forgotten, beside the
//! loop ([`sweep`]).

mod health;
mod sweep;

use std::time::Duration;

use node::service::{Backend, Change, Family, Flow, Planner, Progress, Site, Skipped, TABLE};
use runtime::backoff::Backoff;
use runtime::driver::{Pace, Plan, World};
use runtime::report;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::modules;
use crate::served::Served;
use crate::services::{Told, Watched};
use crate::tables::{self, TableError, Tables};
use health::{Checks, HealthError};
use sweep::Sweep;

/// How often the tables are looked for in the kernel when nothing changes.
const BEAT: Duration = Duration::from_secs(60);
/// Waits after a refused transaction.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Why a round failed.
#[derive(Debug, Error)]
pub(crate) enum ProxyError {
    #[error("the tables of services cannot be looked for")]
    Read(#[source] TableError),
    #[error("the tables of services cannot be changed")]
    Apply(#[source] TableError),
    #[error("health checks of services cannot be answered")]
    Health(#[source] HealthError),
}

/// How the loop is driven.
pub(crate) fn pace() -> Pace {
    let backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    Pace { resync: BEAT, settle: Duration::ZERO, backoff }
}

/// The node's services as a world.
pub(crate) struct Proxy {
    watched: Watched,
    /// How far the caches' changes were told to the planner.
    told: Told,
    /// `None` before the first look, and after one that went wrong.
    planner: Option<Planner>,
    tables: Tables,
    /// Whether the kernel holds what was planned before.
    loaded: bool,
    /// Looks for flows that lead nowhere.
    sweep: Sweep,
    /// Where health checks are answered.
    checks: Checks,
    /// Who waits for the first table.
    served: Served,
    /// When the kernel was last asked for the tables.
    looked: Option<tokio::time::Instant>,
}

/// What the loop sees.
pub(crate) enum Seen {
    /// The API has not said everything yet.
    TooLittle,
    /// What is known has been told to the planner.
    Told,
}

/// One step.
pub(crate) enum Action {
    /// Make the kernel hold everything.
    Load,
    /// Change what the kernel holds.
    Change(Change),
    /// Answer health checks as planned; only after the tables lead there.
    Answer,
    /// Go on looking for flows that lead nowhere; only after the tables lead there neither.
    Sweep,
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load => f.write_str("Load"),
            // There may be ten thousand.
            Self::Change(Change { removed, added, .. }) => {
                write!(f, "Change({} out, {} in)", removed.len(), added.len())
            }
            Self::Answer => f.write_str("Answer"),
            Self::Sweep => f.write_str("Sweep"),
        }
    }
}

impl Proxy {
    pub(crate) fn new(watched: Watched, served: Served) -> Self {
        Self {
            watched,
            told: Told::default(),
            planner: None,
            tables: Tables::default(),
            loaded: false,
            sweep: Sweep::new(),
            checks: Checks::default(),
            served,
            looked: None,
        }
    }

    /// Wakes when anything changed.
    pub(crate) fn changes(&self) -> Vec<watch::Receiver<u64>> {
        let mut changes = self.watched.changes();
        changes.push(self.sweep.changes());
        changes
    }

    /// Tells who waits why there is no table yet.
    fn tell_missing(&self) {
        let progress = if !self.watched.site_synced() {
            Progress::Untold("the site's networks")
        } else if self.watched.ranges().is_none() {
            Progress::Nothing
        } else {
            Progress::Untold("all services and endpoints")
        };
        self.served.tell(progress);
    }

    /// Forgets that tables are loaded when somebody has removed them: `nft flush ruleset` by hand.
    fn look(&mut self) -> Result<(), ProxyError> {
        let recent = self.looked.is_some_and(|at| at.elapsed() < BEAT);
        let Some(planner) = self.planner.as_ref().filter(|_| self.loaded && !recent) else {
            return Ok(());
        };
        self.looked = Some(tokio::time::Instant::now());
        if !self.tables.are_there(&families(planner.site())).map_err(ProxyError::Read)? {
            warn!(table = TABLE, "a table of services is gone; loading it again");
            self.loaded = false;
        }
        Ok(())
    }

    /// Tells the planner what the API has said since the last time.
    fn tell(&mut self, site: Site) {
        let planner = self.planner.get_or_insert_with(|| {
            // A new one begins at the beginning, but for what the kernel remembers.
            (self.told, self.loaded) = (Told::default(), false);
            let mut planner = Planner::new(site.clone());
            planner.remember(self.tables.slots(&site));
            planner
        });
        if planner.set_site(site) {
            self.loaded = false;
        }
        self.watched.tell(&mut self.told, planner.behind());
    }

    async fn load(&mut self) -> Result<(), ProxyError> {
        let Some(planner) = &mut self.planner else { return Ok(()) };
        self.loaded = false;
        self.served.tell(Progress::Loading);
        modules::load().await;
        if let Err(err) = self.tables.load(planner).await {
            self.served.tell(Progress::Refused(report(&err)));
            return Err(ProxyError::Apply(err));
        }
        debug!("services are in force");
        self.loaded = true;
        self.served.tell(Progress::Done);
        self.sweep.want();
        self.looked = Some(tokio::time::Instant::now());
        Ok(())
    }

    async fn change(&mut self, change: &Change) -> Result<(), ProxyError> {
        // Until it has happened nobody knows what the kernel holds.
        self.loaded = false;
        match self.tables.change(change).await {
            Ok(()) => {
                debug!(
                    removed = change.removed.len(),
                    added = change.added.len(),
                    "services changed"
                );
                self.loaded = true;
                Ok(())
            }
            Err(err) => {
                warn!(err = report(&err), "the tables of services are others; loading them again");
                self.load().await
            }
        }
    }

    /// Goes on looking for flows that lead nowhere, and forgets those that were found.
    fn sweep(&mut self) {
        let Some(planner) = self.planner.as_ref().filter(|_| self.loaded) else { return };
        let families = families(planner.site()).into_iter().map(tables::of).collect();
        if let Some(mut flows) = self.sweep.go_on(families) {
            flows.retain(|flow| {
                let (address, port) = flow.answering;
                let answering = Backend { address, port };
                planner.is_stale(&Flow { destination: flow.destination, answering })
            });
            self.sweep.forget(flows);
        }
    }
}

/// The families that a site has tables for.
fn families(site: &Site) -> Vec<Family> {
    Family::BOTH.into_iter().filter(|family| site.ranges(*family).is_some()).collect()
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
        let Some(site) = self.watched.ranges().filter(|_| synced) else {
            self.tell_missing();
            return Ok(Seen::TooLittle);
        };
        self.look()?;
        self.tell(site);
        Ok(Seen::Told)
    }

    fn plan(&mut self, seen: &Seen) -> Plan<Action> {
        let mut actions = Vec::new();
        // Taken out: should planning panic, the next round begins anew.
        let (Seen::Told, Some(mut planner)) = (seen, self.planner.take()) else {
            return Plan::of(actions);
        };
        let change = planner.change();
        for Skipped { service, reason } in &change.skipped {
            warn!(service, reason, "part of a service is not served");
        }
        if change.strands_flows {
            self.sweep.want();
        }
        if !self.loaded {
            actions.push(Action::Load);
        } else if !change.is_empty() {
            actions.push(Action::Change(change));
        }
        if !self.checks.are(planner.health()) {
            actions.push(Action::Answer);
        }
        let due = if self.loaded { self.sweep.is_due() } else { Ok(()) };
        if due.is_ok() {
            actions.push(Action::Sweep);
        }
        self.planner = Some(planner);
        Plan { actions, again_after: due.err().flatten() }
    }

    async fn apply(&mut self, action: &Action) -> Result<(), ProxyError> {
        match action {
            Action::Load => self.load().await,
            Action::Change(change) => self.change(change).await,
            Action::Answer => {
                let Some(planner) = &self.planner else { return Ok(()) };
                self.checks.answer(planner.health()).await.map_err(ProxyError::Health)
            }
            Action::Sweep => {
                self.sweep();
                Ok(())
            }
        }
    }
}
