//! Which steps a pod needs next.
//!
//! [`plan_pod`] looks at what is wanted and what was seen and names the steps towards it, in
//! order. An empty plan means the pod is as it should be, or must wait until [`Plan::again`].
//! It is level-triggered: a step that failed, or was done twice, or whose news came late, is
//! planned again from what is seen then.
//!
//! Two rules stand above the others: a container that runs and is wanted is never touched, and
//! a container that the API knows but the runtime lost (the machine was off) counts as ended
//! with code 137, so that a pod which must not be restarted never runs twice.
//!
//! Spec: upstream's kubelet: pod lifecycle, restart policy, init and sidecar containers,
//! CrashLoopBackOff (10 s, doubling, at most 5 min, forgotten after a run of 10 min).

mod keep;
mod restart;

use jiff::{SignedDuration, Timestamp};
use objects::pod::{Container, Pod};

use crate::names::{container_hash, grace_seconds};
use crate::plan::keep::{plan_resizes, plan_sweep};
pub(crate) use crate::plan::restart::Restart;
pub use crate::plan::restart::{is_sidecar, policy_of};
use crate::probe::Kind;
use crate::seen::{self, Failure, Life, Memory, Seen, Verdict, Volumes};

/// The first pause of a crash loop, in seconds.
const BACKOFF_FIRST: i64 = 10;
/// What a sidecar has to end in at least, in seconds, when others used the grace up; upstream's.
const SIDECAR_GRACE: i64 = 2;
/// The longest pause of a crash loop, in seconds.
const BACKOFF_MAX: i64 = 300;
/// A run this long makes earlier crashes forgotten, in seconds.
const LONG_RUN: i64 = 600;
/// The longest pause before a sandbox or volumes are tried again, in seconds: what they wait
/// for (network, config maps) usually comes soon.
const SETUP_BACKOFF_MAX: i64 = 30;
/// Why a container waits whose variables cannot be resolved.
pub const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// Seconds a failure is shown by its own name before it is shown as a back-off.
pub(crate) const FRESH_SECONDS: i64 = 2;
/// The exit code of a container whose end nobody saw.
pub const LOST_CODE: i32 = 137;

/// One step for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes the volumes and writes what is in them; without them nothing after it is done.
    PrepareVolumes,
    /// Makes a sandbox.
    RunSandbox {
        /// Which try it is.
        attempt: u32,
    },
    /// Stops a sandbox; its addresses are free afterwards.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Removes a stopped sandbox and what is in it.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
    /// Gets the image, makes the container and starts it.
    Start {
        /// The container's name.
        container: String,
        /// The sandbox to put it in.
        sandbox: String,
        /// Which life it will be.
        attempt: u32,
    },
    /// Stops a container.
    Stop {
        /// Its id.
        id: String,
        /// Its name.
        container: String,
        /// Seconds between the stop signal and the kill.
        grace_seconds: i64,
        /// Why, for the event.
        cause: StopCause,
    },
    /// Changes what a running container may use.
    Resize {
        /// Its id.
        id: String,
        /// Its name.
        container: String,
    },
    /// Removes a dead container and its log.
    Remove {
        /// Its id.
        id: String,
    },
    /// Removes everything of a pod that is at rest, and tells the API it is gone.
    Forget,
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// The pod ends.
    PodEnds,
    /// The container's image changed.
    SpecChanged,
    /// It is resized, and has to be restarted for it.
    Resized,
    /// The liveness or startup probe failed.
    Unhealthy(Kind),
    /// It is in a sandbox that is no longer the pod's, or in an unknown state.
    Stray,
}

/// The steps of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// When to look again although nothing happens.
    pub again: Option<Timestamp>,
}

/// How a pod ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every container ended well.
    Succeeded,
    /// One did not.
    Failed,
}

/// What the next step of one container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start it, as this life.
    Start { attempt: u32 },
    /// Wait until then.
    Wait { until: Timestamp, why: Why },
    /// It runs.
    Running,
    /// It ended and stays so.
    Done { code: i32 },
    /// Its state is not known; stop it.
    Stop,
}

/// Why a container waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It crashed too often lately; the pause in seconds.
    CrashLoop { pause: i64 },
    /// It could not be started.
    Failure,
}

/// Plans the next steps of a pod that is wanted on this node, or was.
///
/// `now` is compared with the times the runtime gives, which come from the same machine.
#[must_use]
pub fn plan_pod(pod: &Pod, seen: &Seen, memory: &Memory, now: Timestamp) -> Plan {
    if pod.metadata.is_deleting() {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(grace_seconds(pod));
        let mut plan = plan_end(pod, seen, (grace, left_seconds(pod, grace, now)));
        if plan.actions.is_empty() {
            plan.actions.push(Action::Forget);
        }
        return plan;
    }
    if pod.is_finished() || memory.verdict.is_some() || outcome(pod, seen).is_some() {
        let given = memory.verdict.as_ref().and_then(|verdict| verdict.grace_seconds);
        let grace = given.unwrap_or(grace_seconds(pod));
        return plan_end(pod, seen, (grace, grace));
    }
    let mut plan = plan_run(pod, seen, memory, now);
    if let (Some(limit), Some(start)) = (pod.spec.active_deadline_seconds, pod.status.start_time) {
        plan.wait(later(start.0, limit));
    }
    plan
}

/// Plans the end of a pod that the API no longer knows: at once, and without a trace.
#[must_use]
pub fn plan_orphan(seen: &Seen) -> Plan {
    let mut plan = plan_end(&Pod::default(), seen, (1, 1));
    if plan.actions.is_empty() {
        plan.actions.push(Action::Forget);
    }
    plan
}

/// Tells how the pod ended, when no container of it may run again.
#[must_use]
pub fn outcome(pod: &Pod, seen: &Seen) -> Option<Outcome> {
    let failed = pod.spec.init_containers.iter().any(|container| {
        let code = last_code(pod, seen, &container.name);
        code.is_some_and(|code| code != 0 && !Restart::of(pod, container).wants(code))
    });
    if failed {
        return Some(Outcome::Failed);
    }
    let mut worst = Outcome::Succeeded;
    for container in &pod.spec.containers {
        let code = last_code(pod, seen, &container.name)?;
        if Restart::of(pod, container).wants(code) {
            return None;
        }
        if code != 0 {
            worst = Outcome::Failed;
        }
    }
    (!pod.spec.containers.is_empty()).then_some(worst)
}

/// Takes what was seen into memory: long runs end a crash loop, and a deadline may have passed.
pub fn remember(pod: &Pod, seen: &Seen, memory: &mut Memory, now: Timestamp) {
    for container in containers(pod) {
        let Some(newest) = seen.lives(&container.name).first().copied() else { continue };
        if let Some(exit) = newest.life.exit()
            && let (Some(started), Some(finished)) = (exit.started, exit.finished)
            && finished.as_second().saturating_sub(started.as_second()) >= LONG_RUN
        {
            memory.base.insert(container.name.clone(), newest.attempt);
        }
        if newest.life.is_running() {
            memory.failures.remove(&container.name);
        }
    }
    if seen.ready_sandbox().is_some() {
        memory.sandbox_failure = None;
    }
    let running = |id: &String| seen.containers.iter().any(|c| &c.id == id && c.life.is_running());
    memory.probes.retain(|id, _| running(id));
    memory.sizes.retain(|id, _| running(id));
    if let (Some(limit), Some(start)) = (pod.spec.active_deadline_seconds, pod.status.start_time)
        && memory.verdict.is_none()
        && outcome(pod, seen).is_none()
        && start.seconds_until(now) >= limit
    {
        memory.verdict = Some(Verdict {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
            grace_seconds: None,
        });
    }
}

/// The pause before life `attempt + 1`, in seconds, when lives are counted from `base`.
///
/// The first restart comes at once, the second after 10 s, then twice as long each time.
#[must_use]
pub fn crash_pause(attempt: u32, base: u32) -> i64 {
    match attempt.saturating_sub(base) {
        0 => 0,
        crashes => doubled(crashes, BACKOFF_FIRST, BACKOFF_MAX),
    }
}

fn doubled(count: u32, first: i64, max: i64) -> i64 {
    let shift = count.saturating_sub(1).min(16);
    first.saturating_mul(1_i64 << shift).min(max)
}

/// When a failed start of a container is tried again.
pub(crate) fn retry_at(failure: &Failure) -> Timestamp {
    // A config map may come at any time, and asking for it costs little.
    let max = if failure.reason == CONFIG_ERROR { SETUP_BACKOFF_MAX } else { BACKOFF_MAX };
    later(failure.at, doubled(failure.count, BACKOFF_FIRST, max))
}

fn setup_retry_at(failure: &Failure) -> Timestamp {
    later(failure.at, doubled(failure.count, 1, SETUP_BACKOFF_MAX))
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(at)
}

/// What the API was told of all containers of a pod.
pub(crate) fn told(pod: &Pod) -> impl Iterator<Item = &objects::pod::ContainerStatus> {
    let status = &pod.status;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    all.chain(&status.ephemeral_container_statuses)
}

/// All containers of a pod: init containers, its own, ephemeral ones.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = &pod.spec;
    spec.init_containers.iter().chain(&spec.containers).chain(&spec.ephemeral_containers)
}

/// The life of a container that the API was told of but the runtime no longer has.
pub(crate) fn lost_attempt(pod: &Pod, seen: &Seen, name: &str) -> Option<u32> {
    if seen.containers.iter().any(|container| container.name == name) {
        return None;
    }
    let told = told(pod).find(|s| s.name == name && !s.container_id.is_empty())?;
    Some(told.restart_count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0))
}

/// The exit code of a container's last life, when it has ended.
fn last_code(pod: &Pod, seen: &Seen, name: &str) -> Option<i32> {
    match seen.lives(name).first() {
        Some(container) => container.life.exit().map(|exit| exit.code),
        None => lost_attempt(pod, seen, name).map(|_| lost_code(pod, name)),
    }
}

/// The code the API was told, when the end was seen before the runtime forgot it.
pub(crate) fn lost_code(pod: &Pod, name: &str) -> i32 {
    told(pod)
        .find(|status| status.name == name)
        .and_then(|status| status.state.terminated.as_ref()?.exit_code)
        .and_then(|code| i32::try_from(code).ok())
        .unwrap_or(LOST_CODE)
}

/// The next step of one container.
pub(crate) fn step(
    pod: &Pod,
    seen: &Seen,
    memory: &Memory,
    (name, restart): (&str, Restart<'_>),
    now: Timestamp,
) -> Step {
    let attempt = match seen.lives(name).first().copied() {
        None => match lost_attempt(pod, seen, name) {
            None => 0,
            Some(_) if !restart.wants(lost_code(pod, name)) => {
                return Step::Done { code: lost_code(pod, name) };
            }
            Some(attempt) => attempt.saturating_add(1),
        },
        Some(seen::Container { life, attempt, .. }) => match life {
            Life::Running { .. } => return Step::Running,
            Life::Unknown => return Step::Stop,
            Life::Created => *attempt,
            Life::Exited(exit) if !restart.wants(exit.code) => {
                return Step::Done { code: exit.code };
            }
            Life::Exited(exit) => {
                let pause = crash_pause(*attempt, memory.base.get(name).copied().unwrap_or(0));
                let until = exit.finished.map_or(now, |finished| later(finished, pause));
                if pause > 0 && now < until {
                    return Step::Wait { until, why: Why::CrashLoop { pause } };
                }
                attempt.saturating_add(1)
            }
        },
    };
    if let Some(failure) = memory.failures.get(name)
        && now < retry_at(failure)
    {
        return Step::Wait { until: retry_at(failure), why: Why::Failure };
    }
    Step::Start { attempt }
}

/// What is left of the grace of a pod that is deleted, for those who end last: its containers may
/// have used it up, but everyone has a moment.
fn left_seconds(pod: &Pod, grace: i64, now: Timestamp) -> i64 {
    let ends = pod.metadata.deletion_timestamp.map_or(now, |time| time.0);
    ends.as_second().saturating_sub(now.as_second()).clamp(grace.min(SIDECAR_GRACE), grace)
}

/// Stops what runs: the containers, then the sidecars one by one, the last first, then the
/// sandboxes; with a grace for the containers, and one for each sidecar.
fn plan_end(pod: &Pod, seen: &Seen, (grace_seconds, left_seconds): (i64, i64)) -> Plan {
    let sidecars = || pod.spec.init_containers.iter().filter(|init| is_sidecar(init));
    let sidecar = |name: &str| sidecars().position(|init| init.name == name);
    let (last, first): (Vec<_>, Vec<_>) = seen
        .containers
        .iter()
        .filter(|c| matches!(c.life, Life::Running { .. } | Life::Unknown))
        .partition(|c| sidecar(&c.name).is_some());
    let mut plan = Plan::default();
    for container in &first {
        plan.stop(container, grace_seconds, StopCause::PodEnds);
    }
    if first.is_empty() {
        let turn = last.iter().map(|c| sidecar(&c.name)).max();
        for container in last.iter().filter(|c| Some(sidecar(&c.name)) == turn) {
            plan.stop(container, left_seconds, StopCause::PodEnds);
        }
    }
    if plan.actions.is_empty() {
        let ready = seen.sandboxes.iter().filter(|sandbox| sandbox.ready);
        plan.actions.extend(ready.map(|s| Action::StopSandbox { id: s.id.clone() }));
    }
    plan
}

fn plan_run(pod: &Pod, seen: &Seen, memory: &Memory, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let keep = seen.ready_sandbox();
    let kept = keep.map_or("", |sandbox| sandbox.id.as_str());
    for container in &seen.containers {
        let stray = container.life.is_running() && container.sandbox != kept;
        if stray || container.life == Life::Unknown {
            plan.stop(container, grace_seconds(pod), StopCause::Stray);
        }
    }
    let spare = seen.sandboxes.iter().filter(|sandbox| sandbox.ready && sandbox.id != kept);
    plan.actions.extend(spare.map(|s| Action::StopSandbox { id: s.id.clone() }));
    if !plan.actions.is_empty() {
        return plan;
    }
    match &memory.volumes {
        Volumes::Ready => {}
        Volumes::Failed(failure) if now < setup_retry_at(failure) => {
            plan.wait(setup_retry_at(failure));
            return plan;
        }
        Volumes::Unknown | Volumes::Failed(_) => {
            plan.actions.push(Action::PrepareVolumes);
            // The sandbox is made right after them, if they could be had.
            if keep.is_none() {
                plan_sandbox(seen, memory, now, &mut plan);
            }
            return plan;
        }
    }
    let Some(sandbox) = keep else {
        plan_sandbox(seen, memory, now, &mut plan);
        return plan;
    };
    plan_kills(pod, seen, memory, &mut plan);
    plan_resizes(pod, seen, memory, now, &mut plan);
    if plan.actions.is_empty() {
        plan_starts(pod, seen, memory, (sandbox, now), &mut plan);
    }
    plan_sweep(seen, &mut plan);
    plan
}

fn plan_sandbox(seen: &Seen, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    if memory.blocked.is_some() {
        // The agent looks again when the node becomes ready; this is for a lost wake-up.
        plan.wait(later(now, SETUP_BACKOFF_MAX));
        return;
    }
    if let Some(failure) = &memory.sandbox_failure
        && now < setup_retry_at(failure)
    {
        plan.wait(setup_retry_at(failure));
        return;
    }
    let attempt = seen.sandboxes.iter().map(|s| s.attempt.saturating_add(1)).max().unwrap_or(0);
    plan.actions.push(Action::RunSandbox { attempt });
}

/// Stops containers whose image changed or whose probes failed; the next round restarts them.
fn plan_kills(pod: &Pod, seen: &Seen, memory: &Memory, plan: &mut Plan) {
    let sidecars = pod.spec.init_containers.iter().filter(|init| is_sidecar(init));
    for container in pod.spec.containers.iter().chain(sidecars) {
        let Some(life) = seen.lives(&container.name).first().copied() else { continue };
        if !life.life.is_running() {
            continue;
        }
        let grace = grace_seconds(pod);
        if !life.hash.is_empty() && life.hash != container_hash(container) {
            plan.stop(life, grace, StopCause::SpecChanged);
        } else if let Some((kind, probe)) =
            memory.probes.get(&life.id).and_then(|p| p.condemned(container))
        {
            let grace = probe.termination_grace_period_seconds.unwrap_or(grace);
            plan.stop(life, grace, StopCause::Unhealthy(kind));
        }
    }
}

fn plan_starts(
    pod: &Pod,
    seen: &Seen,
    memory: &Memory,
    (sandbox, now): (&seen::Sandbox, Timestamp),
    plan: &mut Plan,
) {
    let here = |name: &str| {
        seen.lives(name).first().copied().filter(|container| container.sandbox == sandbox.id)
    };
    // Whoever looks into a pod does so in whatever state it is, and once.
    for added in &pod.spec.ephemeral_containers {
        plan.start(pod, seen, memory, (added, Restart::NEVER, &sandbox.id), now);
    }
    // Init containers run once per sandbox: a new sandbox is a new network.
    let initialized = pod.spec.containers.iter().any(|c| here(&c.name).is_some());
    for init in &pod.spec.init_containers {
        let life = here(&init.name);
        if is_sidecar(init) {
            let up = life.is_some_and(|life| {
                life.life.is_running()
                    && memory.probes.get(&life.id).is_none_or(|probes| probes.is_started(init))
            });
            if !up {
                plan.start(pod, seen, memory, (init, Restart::ALWAYS, &sandbox.id), now);
                if !initialized {
                    return;
                }
            }
            continue;
        }
        if initialized || life.and_then(|life| life.life.exit()).is_some_and(|exit| exit.code == 0)
        {
            continue;
        }
        // One that ended well in an earlier sandbox has to run again in this one.
        let restart = if life.is_some() { Restart::of(pod, init) } else { Restart::ALWAYS };
        plan.start(pod, seen, memory, (init, restart, &sandbox.id), now);
        return;
    }
    for container in &pod.spec.containers {
        let restart = Restart::of(pod, container);
        plan.start(pod, seen, memory, (container, restart, &sandbox.id), now);
    }
}

impl Plan {
    fn wait(&mut self, until: Timestamp) {
        self.again = Some(self.again.map_or(until, |again| again.min(until)));
    }

    fn stop(&mut self, container: &seen::Container, grace_seconds: i64, cause: StopCause) {
        self.actions.push(Action::Stop {
            id: container.id.clone(),
            container: container.name.clone(),
            grace_seconds,
            cause,
        });
    }

    fn start(
        &mut self,
        pod: &Pod,
        seen: &Seen,
        memory: &Memory,
        (container, restart, sandbox): (&Container, Restart<'_>, &str),
        now: Timestamp,
    ) {
        match step(pod, seen, memory, (&container.name, restart), now) {
            Step::Start { attempt } => {
                // One that was made but never started blocks its own name in the runtime.
                let stale = seen.containers.iter().find(|c| {
                    c.name == container.name && c.attempt == attempt && c.life == Life::Created
                });
                self.actions.extend(stale.map(|c| Action::Remove { id: c.id.clone() }));
                self.actions.push(Action::Start {
                    container: container.name.clone(),
                    sandbox: sandbox.to_owned(),
                    attempt,
                });
            }
            Step::Wait { until, .. } => {
                self.wait(until);
                // The status has another name for a failure that is no longer fresh.
                let stale = memory.failures.get(&container.name);
                let stale = stale.map(|failure| later(failure.at, FRESH_SECONDS));
                if let Some(stale) = stale.filter(|stale| now < *stale) {
                    self.wait(stale);
                }
            }
            Step::Running | Step::Done { .. } | Step::Stop => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
