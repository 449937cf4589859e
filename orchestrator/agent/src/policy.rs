//! Network policies on this node: policies, pods and namespaces in, nftables tables out.
//!
//! What the tables say is decided in `node::policy`; here they are applied, whole at first, later
//! element by element, each time in one transaction. The tables stay when the agent ends.
//!
//! A cluster without policies costs one empty watch: pods and namespaces of the whole cluster are
//! watched only while there is a policy, and of a pod only what policies need is kept.
//!
//! Pods of this node are isolated before their containers start ([`gate`]).
//!
//! Tasks: one loop, and one cache of policies; while there are any, two caches more and one task
//! that hands on their wake-ups.

mod gate;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use kernel::nft::{self, NftError};
use node::policy::{Guest, Loaded, Policies, Room, Skipped, TABLE, plan_policies, render_removal};
use objects::network::NetworkPolicy;
use objects::pod::Pod;
use runtime::Client;
use runtime::backoff::Backoff;
use runtime::cache::{Cache, CacheParams, Key};
use runtime::driver::{Pace, Plan, World};
use runtime::resource::{NAMESPACES, PODS};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::modules;

pub use gate::Gate;
use gate::Waiting;

/// A burst of changes, such as a rollout's, becomes one transaction. Short: until then a new pod
/// waits.
const SETTLE: Duration = Duration::from_millis(10);
/// How often the tables are looked for in the kernel when nothing changes.
const BEAT: Duration = Duration::from_secs(60);
/// When tables of an earlier run are looked for, if there is no policy any more. Not at once:
/// asking loads kernel modules, and a machine that has just started has better things to do.
const SWEEP_AFTER: Duration = Duration::from_secs(60);
/// Waits after a refused transaction.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Why a round failed.
#[derive(Debug, Error)]
pub(crate) enum PolicyError {
    #[error("the tables of policies cannot be read")]
    Read(#[source] NftError),
    #[error("the tables of policies cannot be changed")]
    Apply(#[source] NftError),
}

/// Waits at the gate until policies are in force for a pod's addresses; `false` when that takes too
/// long. A pod on the host's network has none of its own.
pub(crate) async fn pass(gate: &Gate, pod: &Pod, addresses: &[String]) -> bool {
    let meta = &pod.metadata;
    let key = Key::new(meta.namespace.as_str(), meta.name.as_str());
    let guest = Guest::of(pod, addresses.iter().map(String::as_str));
    gate.pass(&meta.uid, key, guest).await
}

/// How the loop is driven.
pub(crate) fn pace() -> Pace {
    Pace { resync: BEAT, settle: SETTLE, backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX) }
}

/// The node's policies as a world.
pub(crate) struct Enforcer {
    client: Client,
    node: String,
    policies: Cache<NetworkPolicy>,
    /// Where new pods of this node wait.
    gate: Gate,
    /// What policies speak of; `None` while there are none.
    peers: Option<Peers>,
    /// Woken when peers change.
    wake: watch::Sender<u64>,
    /// What the kernel holds; `None` when it holds nothing of ours, or that is in doubt.
    loaded: Option<Loaded>,
    /// Who was let in last.
    opened: Option<u64>,
    /// Whether tables of an earlier run were looked for.
    swept: bool,
    /// When the loop started.
    since: tokio::time::Instant,
    /// When the kernel was last asked for the tables.
    looked: Option<tokio::time::Instant>,
    /// What was said last about parts that permit nothing.
    skipped: std::collections::BTreeSet<Skipped>,
}

/// The pods and namespaces of the whole cluster.
struct Peers {
    pods: Cache<Guest>,
    rooms: Cache<Room>,
    /// Ends with this value.
    _tasks: JoinSet<()>,
}

impl Peers {
    fn follow(client: &Client, wake: watch::Sender<u64>) -> Self {
        let params = CacheParams::default;
        let (pods, each_pod) = Cache::new(client.clone(), PODS, params());
        let (rooms, each_room) = Cache::new(client.clone(), NAMESPACES, params());
        let mut changes = [pods.changes(), rooms.changes()];
        let mut tasks = JoinSet::new();
        // Nobody stops these but the end of the set.
        tasks.spawn(each_pod.run(CancellationToken::new()));
        tasks.spawn(each_room.run(CancellationToken::new()));
        tasks.spawn(async move {
            loop {
                let any = select_all(changes.iter_mut().map(|one| Box::pin(one.changed()))).await;
                if any.0.is_err() {
                    return;
                }
                wake.send_modify(|count| *count = count.wrapping_add(1));
            }
        });
        Self { pods, rooms, _tasks: tasks }
    }
}

/// What the loop sees.
pub(crate) enum Seen {
    /// Not everything is known yet: half of the pods would be half of the permissions.
    TooLittle,
    /// There is no policy.
    Nothing,
    /// What is to be enforced, and how many of those who wait it knows.
    Wanted(Arc<Policies>, u64),
}

/// One step.
pub(crate) enum Action {
    /// Make the tables enforce these, then let in so many of those who wait.
    Enforce(Arc<Policies>, u64),
    /// Let in so many of those who wait; everybody with `None`.
    Open(Option<u64>),
    /// Remove the tables.
    Remove,
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enforce(policies, _) => {
                write!(f, "Enforce({} in, {} out)", policies.ingress.len(), policies.egress.len())
            }
            Self::Open(count) => write!(f, "Open({count:?})"),
            Self::Remove => f.write_str("Remove"),
        }
    }
}

impl Enforcer {
    /// Knows nothing yet; `policies` is filled by somebody else.
    pub(crate) fn new(
        client: Client,
        node: String,
        policies: Cache<NetworkPolicy>,
        gate: Gate,
    ) -> Self {
        Self {
            client,
            node,
            policies,
            gate,
            opened: Some(0),
            peers: None,
            wake: watch::channel(0).0,
            loaded: None,
            swept: false,
            since: tokio::time::Instant::now(),
            looked: None,
            skipped: std::collections::BTreeSet::new(),
        }
    }

    /// Wakes when anything changed.
    pub(crate) fn changes(&self) -> Vec<watch::Receiver<u64>> {
        let mut changes = vec![self.policies.changes(), self.wake.subscribe()];
        changes.extend(self.gate.changes());
        changes
    }

    /// Forgets the loaded tables when somebody has removed them: `nft flush ruleset` by hand.
    async fn look(&mut self) -> Result<(), PolicyError> {
        let recent = self.looked.is_some_and(|at| at.elapsed() < BEAT);
        if self.loaded.is_none() || recent {
            return Ok(());
        }
        self.looked = Some(tokio::time::Instant::now());
        if !nft::has_table("ip", TABLE).await.map_err(PolicyError::Read)? {
            warn!(table = TABLE, "the table of policies is gone; loading it again");
            self.loaded = None;
        }
        Ok(())
    }

    fn tell(&mut self, planned: &Policies) {
        if planned.skipped != self.skipped {
            for Skipped { policy, reason } in &planned.skipped {
                warn!(policy, reason, "part of a network policy permits nothing");
            }
            self.skipped.clone_from(&planned.skipped);
        }
    }

    fn open(&mut self, count: Option<u64>) {
        self.gate.open(count);
        self.opened = count;
    }

    async fn remove(&mut self) -> Result<(), PolicyError> {
        let ours = self.loaded.is_some();
        if ours || nft::has_table("ip", TABLE).await.map_err(PolicyError::Read)? {
            nft::apply(&render_removal()).await.map_err(PolicyError::Apply)?;
            info!("there is no network policy any more");
        }
        self.loaded = None;
        self.swept = true;
        Ok(())
    }
}

impl World for Enforcer {
    type Seen = Seen;
    type Action = Action;
    type Error = PolicyError;

    fn name(&self) -> &str {
        "policies"
    }

    async fn observe(&mut self) -> Result<Seen, PolicyError> {
        if !self.policies.synced() {
            return Ok(Seen::TooLittle);
        }
        let policies = self.policies.snapshot();
        if policies.is_empty() {
            self.peers = None;
            return Ok(Seen::Nothing);
        }
        let follow = || Peers::follow(&self.client, self.wake.clone());
        let peers = self.peers.get_or_insert_with(follow);
        if !peers.pods.synced() || !peers.rooms.synced() {
            return Ok(Seen::TooLittle);
        }
        let (pods, rooms) = (peers.pods.snapshot(), peers.rooms.snapshot());
        self.look().await?;
        let Waiting { count, guests } = self.gate.waiting(&pods);
        let planned = plan_policies(
            &self.node,
            policies.values().map(AsRef::as_ref),
            pods.values().chain(&guests).map(AsRef::as_ref),
            rooms.values().map(AsRef::as_ref),
        );
        self.tell(&planned);
        Ok(Seen::Wanted(Arc::new(planned), count))
    }

    fn plan(&mut self, seen: &Seen) -> Plan<Action> {
        let open = |count| (self.opened != count).then_some(Action::Open(count));
        match seen {
            Seen::TooLittle => Plan::of(Vec::new()),
            Seen::Nothing => {
                let mut actions: Vec<Action> = open(None).into_iter().collect();
                let early = SWEEP_AFTER.checked_sub(self.since.elapsed());
                let early = early.filter(|_| self.loaded.is_none() && !self.swept);
                if self.loaded.is_some() || (early.is_none() && !self.swept) {
                    actions.push(Action::Remove);
                }
                Plan { actions, again_after: early }
            }
            Seen::Wanted(policies, count) => match &self.loaded {
                Some(loaded) if loaded.is(policies) => {
                    Plan::of(open(Some(*count)).into_iter().collect())
                }
                _ => Plan::of(vec![Action::Enforce(Arc::clone(policies), *count)]),
            },
        }
    }

    async fn apply(&mut self, action: &Action) -> Result<(), PolicyError> {
        let (policies, count) = match action {
            Action::Enforce(policies, count) => (policies, *count),
            Action::Open(count) => {
                self.open(*count);
                return Ok(());
            }
            Action::Remove => return self.remove().await,
        };
        // Taken out first: after a failure nobody knows what the kernel holds.
        let loaded = self.loaded.take();
        let (script, loaded) = match &loaded {
            Some(loaded) => loaded.render_change(policies),
            None => Loaded::render_whole(policies),
        };
        if !script.is_empty() {
            modules::load().await;
            nft::apply(&script).await.map_err(PolicyError::Apply)?;
            debug!(bytes = script.len(), "policies are in force");
        }
        self.loaded = Some(loaded);
        self.looked = Some(tokio::time::Instant::now());
        self.open(Some(count));
        Ok(())
    }
}
