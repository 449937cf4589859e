//! Drives one pod: look, plan, tell, do, wait.
//!
//! A round takes nothing over from the wake-up that began it; everything is read anew. Steps are
//! done one after another and each to its end, except stops: they run side by side, and a pod
//! that must now die sooner has them told again with the shorter grace. The status is written
//! beside the steps, one write at a time: no step waits for the API.
//!
//! When the agent stops, the step in hand is finished and the containers are left as they are.

mod told;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use cri::message::{RemoveContainerRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use futures_util::future::join_all;
use jiff::Timestamp;
use node::config::refuse_sysctls;
use node::ledger::Ledger;
use node::manifest::is_static;
use node::plan::{Action, Plan, StopCause, plan_orphan, plan_pod, remember};
use node::pressure::refuse;
use node::probe;
use node::seen::{Memory, Seen, Volumes};
use node::shutdown;
use objects::meta::Object;
use objects::pod::{Pod, PodSpec, PodStatus};
use runtime::backoff::Backoff;
use runtime::client::DeleteParams;
use runtime::{report, resource};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::pressure::Evictions;
use crate::probe::Verdict;
use crate::slices::Size;
use crate::start::Materials;
use crate::worker::told::Told;
use crate::{Shared, disk, facts, hook, manifests, observe, remote, start};

/// A full round happens this often although nothing happened; volumes are refreshed then.
const RESYNC: Duration = Duration::from_secs(60);
/// What is left for the stop signal after a hook; upstream's.
const GRACE_MIN: Duration = Duration::from_secs(2);
/// Wait after a round whose status could not be written.
const UNTOLD: Duration = Duration::from_secs(2);

/// What one round came to.
enum Round {
    /// Something was done; look again at once.
    Again,
    /// Nothing to do; wait at most so long.
    Wait(Duration),
    /// A step or a look failed; wait longer each time.
    Failed,
    /// Nothing is left of the pod.
    Gone,
}

/// The worker of one pod.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) uid: String,
    news: watch::Receiver<Option<Arc<Pod>>>,
    wake: Arc<Notify>,
    problems: watch::Receiver<Vec<String>>,
    evictions: watch::Receiver<Evictions>,
    /// The pod as the API has it, as far as we know; the answer to our own write counts too.
    pod: Option<Arc<Pod>>,
    /// The status written last, and the version of the pod that came of it.
    written: Option<(PodStatus, String)>,
    /// The status on its way to the API; at most one.
    telling: JoinSet<Told>,
    /// When a write that failed is tried again.
    untold: Option<Instant>,
    pub(crate) memory: Memory,
    pub(crate) materials: Materials,
    pub(crate) known: observe::Known,
    refreshed: Instant,
    asked: BTreeSet<(String, probe::Kind)>,
    probes: JoinSet<Verdict>,
}

impl Worker {
    /// A worker that follows `news` and is woken by `wake`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        uid: String,
        news: watch::Receiver<Option<Arc<Pod>>>,
        wake: Arc<Notify>,
    ) -> Self {
        let problems = shared.problems.subscribe();
        let evictions = shared.told.evictions.subscribe();
        Self {
            shared,
            uid,
            news,
            wake,
            problems,
            evictions,
            pod: None,
            written: None,
            telling: JoinSet::new(),
            untold: None,
            memory: Memory::default(),
            materials: Materials::default(),
            known: observe::Known::default(),
            refreshed: Instant::now(),
            asked: BTreeSet::new(),
            probes: JoinSet::new(),
        }
    }

    /// Works until nothing of the pod is left, or until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        while !stop.is_cancelled() {
            let pause = match self.round().await {
                Round::Gone => return self.release(),
                Round::Again => {
                    backoff.reset();
                    continue;
                }
                Round::Wait(pause) => {
                    backoff.reset();
                    pause
                }
                Round::Failed => backoff.step(),
            };
            tokio::select! { biased;
                () = stop.cancelled() => return,
                Some(verdict) = self.probes.join_next() => self.take(verdict.ok()),
                Some(told) = self.telling.join_next() => self.take_told(told.ok()),
                Ok(()) = self.news.changed() => {}
                Ok(()) = self.problems.changed() => {}
                Ok(()) = self.evictions.changed() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn round(&mut self) -> Round {
        while let Some(told) = self.telling.try_join_next() {
            self.take_told(told.ok());
        }
        self.take_news();
        let seen = match observe::pod(&self.shared, &self.uid, &mut self.known).await {
            Ok(seen) => seen,
            Err(err) => {
                // That the runtime is down is told once, by the node's condition.
                if !err.is_unavailable() {
                    warn!(uid = self.uid, err = report(&err), "cannot look at a pod; retrying");
                }
                return Round::Failed;
            }
        };
        facts::learn_runtime(&self.shared).await;
        let now = Timestamp::now();
        let Some(pod) = self.pod.clone() else {
            // The scheduler counts it no more either.
            self.ledger().release(&self.uid);
            return self.apply(None, &seen, plan_orphan(&seen)).await;
        };
        // A pod with the node's own network needs no other.
        let problems = self.problems.borrow_and_update().join(", ");
        let blocked = !problems.is_empty() && !pod.spec.host_network;
        self.memory.blocked = blocked.then_some(problems);
        let doomed = self.memory.verdict.is_some();
        remember(&pod, &seen, &mut self.memory, now);
        if let Some(verdict) = self.memory.verdict.as_ref().filter(|_| !doomed) {
            self.shared.events.normal(&pod, None, &verdict.reason, &verdict.message);
        }
        self.take_verdict(&pod, &seen);
        let pod = self.settle(pod);
        self.refresh(&pod).await;
        self.adopt_probes(&pod, &seen);
        let told = self.tell(&pod, &seen, now);
        let plan = plan_pod(&pod, &seen, &self.memory, now);
        let again = plan.again;
        if plan.actions.contains(&Action::Forget) && !told {
            // Whoever waits for the pod's end reads how it ended before it is gone.
            return Round::Wait(UNTOLD);
        }
        let resizes = |action: &Action| matches!(action, Action::Resize { .. });
        if seen.ready_sandbox().is_some()
            && !plan.actions.iter().any(resizes)
            && let Err(err) = self.shared.slices.apply(&self.shared, &pod, Size::Planned)
        {
            debug!(pod = pod.key(), err = report(&err), "cannot write a control group");
        }
        if !plan.actions.is_empty() {
            return self.apply(Some(&pod), &seen, plan).await;
        }
        let next_probe = self.ask(&pod, &seen, now);
        let due = [again, next_probe].into_iter().flatten().min();
        let pause = due.map_or(RESYNC, |due| until(now, due).min(RESYNC));
        Round::Wait(if told { pause } else { pause.min(UNTOLD) })
    }

    /// Takes the API's pod, unless our own write is newer.
    fn take_news(&mut self) {
        let latest = self.news.borrow_and_update().clone();
        let newer = match (&latest, &self.pod) {
            // A file knows no status; that is told by us alone.
            (Some(latest), Some(have)) if is_static(have) => {
                let status = have.status.clone();
                let changed = latest.metadata.resource_version != have.metadata.resource_version;
                let fresh = changed.then(|| Arc::new(Pod { status, ..Pod::clone(latest) }));
                self.pod = fresh.or_else(|| self.pod.take());
                false
            }
            (Some(latest), Some(have)) => latest.metadata.revision() >= have.metadata.revision(),
            _ => true,
        };
        if newer {
            self.pod = latest;
        }
    }

    /// Takes what was decided about the pod elsewhere, and refuses it when the node is too short
    /// of something to begin with it.
    fn take_verdict(&mut self, pod: &Pod, seen: &Seen) {
        if pod.is_finished() {
            self.release();
        }
        if self.memory.verdict.is_some() || pod.is_finished() || pod.metadata.is_deleting() {
            return;
        }
        let evicted = self.evictions.borrow_and_update().get(&self.uid).cloned();
        let is_new = pod.status.start_time.is_none() && *seen == Seen::default();
        self.memory.verdict = evicted.or_else(|| {
            let allowed = &self.shared.config.settings.sysctls;
            let leaving = self.shared.leaving.load(Ordering::Relaxed);
            let refused = leaving.then(shutdown::refuse);
            let refused = refused.or_else(|| refuse_sysctls(&pod.spec, allowed));
            let refused = refused.or_else(|| refuse(pod, &self.shared.told.pressures.borrow()));
            let verdict = refused.filter(|_| is_new).or_else(|| self.promise(pod, is_new))?;
            self.shared.events.warning(pod, None, &verdict.reason, &verdict.message);
            Some(verdict)
        });
    }

    /// The pod with what its containers were promised, where it asks for more than there is.
    fn settle(&mut self, pod: Arc<Pod>) -> Arc<Pod> {
        if self.memory.verdict.is_some() || pod.is_finished() || pod.metadata.is_deleting() {
            return pod;
        }
        let shared = Arc::clone(&self.shared);
        let promise = |spec: &PodSpec| {
            let mut ledger = shared.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.promise(&self.uid, spec, &facts::room(&shared))
        };
        node::resize::settle(&pod, &mut self.memory, promise).map_or(pod, Arc::new)
    }

    /// Promises a pod what it asks for; a new one that asks for too much is refused.
    fn promise(&self, pod: &Pod, is_new: bool) -> Option<node::seen::Verdict> {
        let mut ledger = self.ledger();
        if !is_new || is_static(pod) {
            ledger.note(&self.uid, &pod.spec);
            return None;
        }
        let room = facts::room(&self.shared);
        ledger.promise(&self.uid, &pod.spec, &room).err().map(|lack| lack.verdict())
    }

    /// Takes back what a pod had that needs it no more.
    fn release(&self) {
        self.ledger().release(&self.uid);
        self.shared.devices.release(&self.shared, &self.uid);
        self.shared.cores.release(&self.shared, &self.uid);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A poisoned lock still guards a whole value.
        self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads config maps and secrets again from time to time, and renews the files made of them.
    async fn refresh(&mut self, pod: &Pod) {
        let due = self.refreshed.elapsed() >= RESYNC;
        if self.memory.volumes != Volumes::Ready || !due || pod.metadata.is_deleting() {
            return;
        }
        self.refreshed = Instant::now();
        if let Err(err) = start::prepare_volumes(self, pod).await {
            debug!(pod = pod.key(), err, "volumes not refreshed");
        }
    }

    async fn apply(&mut self, pod: Option<&Pod>, seen: &Seen, plan: Plan) -> Round {
        let mut stops = Vec::new();
        for action in plan.actions {
            debug!(uid = self.uid, ?action, "step");
            if matches!(action, Action::Stop { .. }) {
                stops.push(action);
                continue;
            }
            // Stops come first in a plan; what follows must see them done.
            if !stops.is_empty() {
                return self.stop_all(pod, stops).await;
            }
            if action == Action::Forget {
                return self.forget(pod, seen).await;
            }
            let prepares = action == Action::PrepareVolumes;
            if let Err(err) = self.step(pod, action).await {
                warn!(uid = self.uid, err, "a step failed; retrying");
                return Round::Failed;
            }
            if prepares && self.memory.volumes != Volumes::Ready {
                return Round::Again;
            }
        }
        if stops.is_empty() { Round::Again } else { self.stop_all(pod, stops).await }
    }

    async fn step(&mut self, pod: Option<&Pod>, action: Action) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        match action {
            Action::StopSandbox { id } => {
                let request = StopPodSandboxRequest { pod_sandbox_id: id };
                shared.runtime.stop_pod_sandbox(request).await.map(drop).map_err(|e| report(&e))
            }
            Action::RemoveSandbox { id } => {
                let request = RemovePodSandboxRequest { pod_sandbox_id: id };
                shared.runtime.remove_pod_sandbox(request).await.map(drop).map_err(|e| report(&e))
            }
            Action::Remove { id } => self.remove(id).await,
            Action::Resize { id, container } => {
                if let Some(pod) = pod {
                    start::resize(self, pod, (id, &container)).await;
                }
                Ok(())
            }
            Action::PrepareVolumes => {
                if let Some(pod) = pod {
                    start::volumes(self, pod).await;
                }
                Ok(())
            }
            Action::RunSandbox { attempt } => {
                if let Some(pod) = pod {
                    start::sandbox(self, pod, attempt).await;
                }
                Ok(())
            }
            Action::Start { container, sandbox, attempt } => {
                if let Some(pod) = pod {
                    start::container(self, pod, (&container, &sandbox, attempt)).await;
                }
                Ok(())
            }
            // Both are taken out of the plan before.
            Action::Stop { .. } | Action::Forget => Ok(()),
        }
    }

    async fn remove(&self, id: String) -> Result<(), String> {
        let request = RemoveContainerRequest { container_id: id };
        match self.shared.runtime.remove_container(request).await {
            Ok(_) => Ok(()),
            Err(err) if err.is_not_found() => Ok(()),
            Err(err) => Err(report(&err)),
        }
    }

    /// Stops containers side by side; a change of the pod ends the wait, not the stopping.
    async fn stop_all(&mut self, pod: Option<&Pod>, stops: Vec<Action>) -> Round {
        let shared = Arc::clone(&self.shared);
        for stop in &stops {
            if let Action::Stop { id, .. } = stop {
                self.known.stop(id);
            }
        }
        let work =
            join_all(stops.into_iter().map(|action| stop_one((&shared, &self.uid), pod, action)));
        let before = patience(pod);
        let sooner = async {
            loop {
                if self.news.changed().await.is_err() {
                    return std::future::pending().await;
                }
                if patience(self.news.borrow().as_deref()) < before {
                    return;
                }
            }
        };
        tokio::select! { biased;
            done = work => if done.into_iter().all(|good| good) { Round::Again } else { Round::Failed },
            () = sooner => Round::Again,
        }
    }

    /// Removes all traces of the pod here, then from the API.
    async fn forget(&mut self, pod: Option<&Pod>, seen: &Seen) -> Round {
        self.shared.config.gate.leave(&self.uid);
        for sandbox in &seen.sandboxes {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(err) = self.shared.runtime.remove_pod_sandbox(request).await {
                warn!(uid = self.uid, err = report(&err), "cannot remove a sandbox; retrying");
                return Round::Failed;
            }
        }
        if let Err(err) = disk::remove(&self.shared, &self.uid).await {
            warn!(uid = self.uid, err = report(&err), "cannot remove a pod's files; retrying");
            return Round::Failed;
        }
        self.shared.users.release(&self.uid);
        if let Err(err) = self.shared.slices.remove(&self.uid).await {
            warn!(uid = self.uid, err = report(&err), "cannot remove a control group; retrying");
            return Round::Failed;
        }
        let Some(pod) = pod else { return Round::Gone };
        if is_static(pod) {
            return match manifests::hide(&self.shared, pod).await {
                Ok(()) => Round::Gone,
                Err(_) => Round::Failed,
            };
        }
        let meta = &pod.metadata;
        let params = DeleteParams::uid(&self.uid).grace(0);
        let client = &self.shared.client;
        match client.delete(&resource::PODS, Some(&meta.namespace), &meta.name, &params).await {
            Ok(_) => {}
            Err(err) if err.is_not_found() || err.is_conflict() => {}
            Err(err) => {
                warn!(pod = pod.key(), err = report(&err), "cannot delete a pod; retrying");
                return Round::Failed;
            }
        }
        info!(pod = pod.key(), uid = self.uid, "pod is gone");
        Round::Gone
    }

    /// Gives every running container with probes a state to answer into.
    fn adopt_probes(&mut self, pod: &Pod, seen: &Seen) {
        for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
            let Some(life) = seen.lives(&container.name).first().copied() else { continue };
            if life.life.is_running() && probe::has_probes(container) {
                let fresh = !self.memory.probes.contains_key(&life.id);
                let state = self.memory.probes.entry(life.id.clone()).or_default();
                // An agent that was restarted believes what it told before, until asked anew.
                let told = pod.status.container_statuses.iter().find(|s| s.name == container.name);
                if fresh
                    && told.is_some_and(|s| {
                        s.ready == Some(true) && s.container_id.ends_with(&life.id)
                    })
                {
                    state.believe();
                }
            }
        }
    }

    /// Starts the probes that are due; gives the time of the next one.
    fn ask(&mut self, pod: &Arc<Pod>, seen: &Seen, now: Timestamp) -> Option<Timestamp> {
        let mut next = None;
        for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
            let Some(life) = seen.lives(&container.name).first().copied() else { continue };
            let node::seen::Life::Running { started } = life.life else { continue };
            let Some(state) = self.memory.probes.get(&life.id) else { continue };
            for kind in state.due(container, started, now) {
                if !self.asked.insert((life.id.clone(), kind)) {
                    continue;
                }
                let address = seen.ready_sandbox().and_then(|s| s.addresses.first().cloned());
                let address = address.unwrap_or_else(|| self.shared.node.address.to_string());
                let (shared, container) = (Arc::clone(&self.shared), container.clone());
                let id = life.id.clone();
                self.probes.spawn(crate::probe::run(shared, container, (id, kind), address));
            }
            let due = state.deadline(container, started).filter(|due| *due > now);
            next = [next, due].into_iter().flatten().min();
        }
        next
    }

    fn take(&mut self, verdict: Option<Verdict>) {
        let Some(verdict) = verdict else { return };
        self.asked.remove(&(verdict.id.clone(), verdict.kind));
        let Some(pod) = &self.pod else { return };
        let all = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
        let Some(container) = all().find(|c| c.name == verdict.container) else { return };
        if let Some(why) = &verdict.failure {
            let message = format!("{:?} probe failed: {why}", verdict.kind);
            self.shared.events.warning(pod, Some(&container.name), "Unhealthy", &message);
        }
        if let Some(state) = self.memory.probes.get_mut(&verdict.id) {
            state.record(container, verdict.kind, verdict.failure.is_none(), Timestamp::now());
        }
    }
}

/// Seconds a pod may take to end; less when it is being deleted, none when it is gone.
fn patience(pod: Option<&Pod>) -> i64 {
    let Some(pod) = pod else { return -1 };
    if pod.metadata.is_deleting() {
        return pod.metadata.deletion_grace_period_seconds.unwrap_or(i64::MAX - 1);
    }
    i64::MAX
}

async fn stop_one((shared, uid): (&Shared, &str), pod: Option<&Pod>, action: Action) -> bool {
    let Action::Stop { id, container, grace_seconds, cause } = action else { return true };
    let mut grace = Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
    if let Some(pod) = pod {
        let message = match cause {
            StopCause::PodEnds | StopCause::Stray => format!("Stopping container {container}"),
            StopCause::SpecChanged => {
                format!("Container {container} definition changed, will be restarted")
            }
            StopCause::Resized => format!("Container {container} resize requires restart"),
            StopCause::Unhealthy(kind) => {
                let word = if kind == probe::Kind::Startup { "startup" } else { "liveness" };
                format!("Container {container} failed {word} probe, will be restarted")
            }
        };
        shared.events.normal(pod, Some(&container), "Killing", &message);
        let begun = Instant::now();
        hook::before_stop(shared, pod, &container, &id, grace).await;
        let left = grace.saturating_sub(begun.elapsed());
        // A hook that used its time up leaves a moment for the signal.
        grace = if grace.is_zero() { grace } else { left.max(GRACE_MIN) };
    }
    let stop = shared.runtime.stop_container(&id, grace);
    match remote::end_within((shared, uid), grace, stop).await {
        Ok(()) => true,
        Err(err) if err.is_not_found() => true,
        Err(err) => {
            warn!(container, err = report(&err), "cannot stop a container; retrying");
            false
        }
    }
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    let milliseconds = then.as_millisecond().saturating_sub(now.as_millisecond());
    // A millisecond more, so that the time has come when we wake.
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0).saturating_add(1))
}
