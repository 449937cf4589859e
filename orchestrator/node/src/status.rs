//! What is told about a pod: phase, conditions, and the state of each container.
//!
//! [`compute_status`] writes the whole `status` of a pod from what was seen; conditions that
//! belong to others (`PodScheduled`) are kept as they are. The same input gives the same status,
//! so the agent writes only when it differs from the one the API has.
//!
//! Spec: upstream's pod lifecycle; reasons and messages are upstream's where people read them.

use std::net::IpAddr;

use jiff::Timestamp;
use objects::condition::{find_condition, set_condition};
use objects::pod::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, IpEntry, Pod, PodStatus,
};
use objects::{Condition, Time};

use crate::plan::{
    self, FRESH_SECONDS, Outcome, Restart, Step, Why, is_sidecar, lost_attempt, lost_code, outcome,
};
use crate::resize;
use crate::resources::qos_class;
use crate::seen::{self, Exit, Failure, Life, Memory, Seen, Volumes};

/// What the status needs to know of the node.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The node's own address.
    pub host: IpAddr,
    /// The container runtime's name: what the ids of its containers begin with.
    pub runtime: &'a str,
    /// What time it is.
    pub now: Timestamp,
}

/// Writes the status of a pod.
#[must_use]
pub fn compute_status(pod: &Pod, seen: &Seen, memory: &Memory, place: Place<'_>) -> PodStatus {
    let ending = ends(pod, seen, memory);
    let one = |container: &Container, role: Role| {
        container_status(pod, seen, memory, (container, role, ending), place)
    };
    let mut status = pod.status.clone();
    status.init_container_statuses = pod
        .spec
        .init_containers
        .iter()
        .map(|c| one(c, if is_sidecar(c) { Role::Sidecar } else { Role::Init }))
        .collect();
    status.container_statuses = pod.spec.containers.iter().map(|c| one(c, Role::Main)).collect();
    status.ephemeral_container_statuses =
        pod.spec.ephemeral_containers.iter().map(|c| one(c, Role::Added)).collect();
    status.start_time.get_or_insert(Time::from(place.now));
    status.qos_class = qos_class(&pod.spec).to_owned();
    let host = place.host.to_string();
    status.host_ips = vec![IpEntry { ip: host.clone(), ..IpEntry::default() }];
    set_addresses(&mut status, pod, seen, &host);
    status.host_ip = host;
    set_phase(&mut status, pod, seen, memory);
    set_conditions(&mut status, pod, seen, place.now);
    resize::tell_pod(&mut status, pod, seen, memory, place.now);
    status.observed_generation = pod.metadata.generation;
    if let Some(verdict) = memory.verdict.as_ref().filter(|verdict| verdict.is_eviction()) {
        let kind = "DisruptionTarget";
        let mut condition = Condition::new(kind, true, "TerminationByKubelet", &verdict.message);
        condition.observed_generation = pod.metadata.generation;
        set_condition(&mut status.conditions, condition, place.now);
    }
    status
}

/// Whether an init container, a sidecar, one of the pod's own or an ephemeral one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Sidecar,
    Main,
    Added,
}

/// Whether nothing of the pod will be started again.
fn ends(pod: &Pod, seen: &Seen, memory: &Memory) -> bool {
    pod.metadata.is_deleting()
        || pod.is_finished()
        || memory.verdict.is_some()
        || outcome(pod, seen).is_some()
}

fn set_addresses(status: &mut PodStatus, pod: &Pod, seen: &Seen, host: &str) {
    let addresses: Vec<String> = match seen.ready_sandbox() {
        Some(_) if pod.spec.host_network => vec![host.to_owned()],
        Some(sandbox) => sandbox.addresses.clone(),
        // A pod that ended keeps telling where it was; one that lost its sandbox does not.
        None if ends_in_status(status) => return,
        None => Vec::new(),
    };
    status.pod_ip = addresses.first().cloned().unwrap_or_default();
    status.pod_ips = addresses.into_iter().map(|ip| IpEntry { ip, ..IpEntry::default() }).collect();
}

fn ends_in_status(status: &PodStatus) -> bool {
    matches!(status.phase.as_str(), "Succeeded" | "Failed")
}

fn set_phase(status: &mut PodStatus, pod: &Pod, seen: &Seen, memory: &Memory) {
    if pod.is_finished() {
        return;
    }
    if let Some(verdict) = &memory.verdict
        && seen.is_quiet()
    {
        // Not before: whoever replaces the pod takes this for its end.
        "Failed".clone_into(&mut status.phase);
        status.reason.clone_from(&verdict.reason);
        status.message.clone_from(&verdict.message);
        return;
    }
    let ended = outcome(pod, seen).or_else(|| end_by_deletion(pod, seen));
    let phase = match ended {
        Some(Outcome::Succeeded) if sidecars_rest(pod, seen) => "Succeeded",
        Some(Outcome::Failed) if sidecars_rest(pod, seen) => "Failed",
        _ if !is_initialized(pod, status) => "Pending",
        _ if status.container_statuses.iter().any(never_ran) => "Pending",
        _ => "Running",
    };
    phase.clone_into(&mut status.phase);
}

/// A deleted pod whose containers have all stopped ended, whatever its restart policy.
fn end_by_deletion(pod: &Pod, seen: &Seen) -> Option<Outcome> {
    if !pod.metadata.is_deleting() || !seen.is_at_rest() {
        return None;
    }
    let mut worst = Outcome::Succeeded;
    for container in &pod.spec.containers {
        let lives = seen.lives(&container.name);
        if lives.first()?.life.exit()?.code != 0 {
            worst = Outcome::Failed;
        }
    }
    Some(worst)
}

fn sidecars_rest(pod: &Pod, seen: &Seen) -> bool {
    let mut sidecars = pod.spec.init_containers.iter().filter(|init| is_sidecar(init));
    sidecars.all(|init| !seen.lives(&init.name).first().is_some_and(|c| c.life.is_running()))
}

fn never_ran(status: &ContainerStatus) -> bool {
    status.state.running.is_none()
        && status.state.terminated.is_none()
        && status.last_state.terminated.is_none()
}

fn is_initialized(pod: &Pod, status: &PodStatus) -> bool {
    let mut inits = pod.spec.init_containers.iter().zip(&status.init_container_statuses);
    // Once a container of the pod itself has run, the init containers are behind it.
    let past = status.container_statuses.iter().any(|s| !never_ran(s));
    past || inits.all(|(init, status)| {
        if is_sidecar(init) { status.started == Some(true) } else { status.ready == Some(true) }
    })
}

fn set_conditions(status: &mut PodStatus, pod: &Pod, seen: &Seen, now: Timestamp) {
    let done = status.phase == "Succeeded";
    let initialized = is_initialized(pod, status);
    let sidecar = |name: &str| {
        pod.spec.init_containers.iter().any(|init| init.name == name && is_sidecar(init))
    };
    let sidecars = status.init_container_statuses.iter().filter(|s| sidecar(&s.name));
    let unready: Vec<&str> = sidecars
        .chain(&status.container_statuses)
        .filter(|s| s.ready != Some(true))
        .map(|s| s.name.as_str())
        .collect();
    let incomplete: Vec<&str> = status
        .init_container_statuses
        .iter()
        .filter(|s| s.ready != Some(true))
        .map(|s| s.name.as_str())
        .collect();
    let completed = |kind: &str| Condition::new(kind, false, "PodCompleted", "");
    let init = if initialized || done {
        let reason = if done { "PodCompleted" } else { "" };
        Condition::new("Initialized", true, reason, "")
    } else {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Condition::new("Initialized", false, "ContainersNotInitialized", &message)
    };
    let containers = if done {
        completed("ContainersReady")
    } else if unready.is_empty() && status.phase == "Running" {
        Condition::new("ContainersReady", true, "", "")
    } else if status.phase == "Failed" {
        Condition::new("ContainersReady", false, "PodFailed", "")
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        Condition::new("ContainersReady", false, "ContainersNotReady", &message)
    };
    let mut ready = Condition { kind: "Ready".to_owned(), ..containers.clone() };
    if containers.is_true() {
        let message = closed_gates(pod, &status.conditions);
        if !message.is_empty() {
            ready = Condition::new("Ready", false, "ReadinessGatesNotReady", &message);
        }
    }
    let sandbox =
        Condition::new("PodReadyToStartContainers", seen.ready_sandbox().is_some(), "", "");
    for mut condition in [sandbox, init, ready, containers] {
        condition.observed_generation = pod.metadata.generation;
        set_condition(&mut status.conditions, condition, now);
    }
    if find_condition(&status.conditions, "PodScheduled").is_none() {
        set_condition(&mut status.conditions, Condition::new("PodScheduled", true, "", ""), now);
    }
}

/// What is said of the readiness gates that are not open; empty when all are.
fn closed_gates(pod: &Pod, conditions: &[Condition]) -> String {
    let gates = pod.spec.readiness_gates.iter();
    let names = gates.filter_map(|gate| gate.get("conditionType")?.as_str());
    let closed = names.filter_map(|name| match find_condition(conditions, name) {
        None => Some(format!(
            "corresponding condition of pod readiness gate \"{name}\" does not exist."
        )),
        Some(one) if !one.is_true() => Some(format!(
            "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
            one.status
        )),
        Some(_) => None,
    });
    closed.collect::<Vec<_>>().join(", ")
}

fn container_status(
    pod: &Pod,
    seen: &Seen,
    memory: &Memory,
    (container, role, ending): (&Container, Role, bool),
    place: Place<'_>,
) -> ContainerStatus {
    let Place { now, runtime, .. } = place;
    let lives = seen.lives(&container.name);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: Some(container.image.clone()),
        image_id: Some(String::new()),
        ready: Some(false),
        restart_count: Some(0),
        started: Some(false),
        ..ContainerStatus::default()
    };
    match lives.first() {
        Some(newest) => fill_seen(&mut status, runtime, newest, lives.get(1).copied()),
        None => fill_lost(&mut status, pod, seen),
    }
    let restart = match role {
        Role::Added => Restart::NEVER,
        Role::Sidecar | Role::Init | Role::Main => Restart::of(pod, container),
    };
    let needs = needs_start(&status, role, restart);
    if needs && !ending {
        let step = plan::step(pod, seen, memory, (&container.name, restart), now);
        fill_waiting(&mut status, pod, memory, (container, role, step), now);
    } else if never_ran(&status) {
        status.state.waiting = Some(waiting(default_wait(pod, role), ""));
    }
    let life = lives.first().filter(|c| c.life.is_running());
    if let Some(life) = life {
        resize::tell_container(&mut status, pod, (container, life), memory);
    }
    let probes = life.and_then(|life| memory.probes.get(&life.id));
    let unasked = life.is_some() && !crate::probe::has_probes(container);
    status.started = Some(unasked || probes.is_some_and(|p| p.is_started(container)));
    status.ready = Some(match role {
        Role::Init => status.state.terminated.as_ref().is_some_and(|t| t.exit_code == Some(0)),
        Role::Added => false,
        Role::Sidecar | Role::Main => unasked || probes.is_some_and(|p| p.is_ready(container)),
    });
    status
}

/// Whether the container is to run again (or at all) and does not.
fn needs_start(status: &ContainerStatus, role: Role, restart: Restart<'_>) -> bool {
    let code = status.state.terminated.as_ref().and_then(|t| t.exit_code);
    match (status.state.running.is_some(), code) {
        (true, _) => false,
        (false, None) => true,
        (false, Some(0)) if role == Role::Init => false,
        (false, Some(code)) => restart.wants(i32::try_from(code).unwrap_or(plan::LOST_CODE)),
    }
}

fn fill_seen(
    status: &mut ContainerStatus,
    runtime: &str,
    newest: &seen::Container,
    before: Option<&seen::Container>,
) {
    status.restart_count = Some(i64::from(newest.attempt));
    status.container_id = format!("{runtime}://{}", newest.id);
    if !newest.image.is_empty() {
        status.image = Some(newest.image.clone());
    }
    status.image_id = Some(newest.image_id.clone());
    match &newest.life {
        Life::Running { started } => {
            let started_at = Some(Time::from(*started));
            status.state.running =
                Some(ContainerStateRunning { started_at, ..ContainerStateRunning::default() });
        }
        Life::Exited(exit) => {
            status.state.terminated = Some(terminated(exit, &format!("{runtime}://{}", newest.id)))
        }
        Life::Created | Life::Unknown => {}
    }
    if let Some(before) = before
        && let Some(exit) = before.life.exit()
    {
        status.last_state.terminated =
            Some(terminated(exit, &format!("{runtime}://{}", before.id)));
    }
}

/// A container the API was told of and the runtime lost: what was told last stands, and an end
/// that nobody saw is named as such.
fn fill_lost(status: &mut ContainerStatus, pod: &Pod, seen: &Seen) {
    let Some(attempt) = lost_attempt(pod, seen, &status.name) else { return };
    let Some(told) = plan::told(pod).find(|s| s.name == status.name) else { return };
    status.restart_count = Some(i64::from(attempt));
    status.container_id.clone_from(&told.container_id);
    status.image.clone_from(&told.image);
    status.image_id.clone_from(&told.image_id);
    status.last_state = told.last_state.clone();
    status.state.terminated = told.state.terminated.clone().or_else(|| {
        Some(ContainerStateTerminated {
            exit_code: Some(i64::from(lost_code(pod, &status.name))),
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was terminated".to_owned(),
            started_at: told.state.running.as_ref().and_then(|running| running.started_at),
            container_id: told.container_id.clone(),
            ..ContainerStateTerminated::default()
        })
    });
}

fn fill_waiting(
    status: &mut ContainerStatus,
    pod: &Pod,
    memory: &Memory,
    (container, role, step): (&Container, Role, Step),
    now: Timestamp,
) {
    let failure = memory.failures.get(&container.name);
    let wait = match step {
        Step::Wait { why: Why::CrashLoop { pause }, .. } => {
            let key =
                format!("{}_{}({})", pod.metadata.name, pod.metadata.namespace, pod.metadata.uid);
            let message = format!(
                "back-off {} restarting failed container={} pod={key}",
                go_duration(pause),
                container.name
            );
            Some(waiting("CrashLoopBackOff", &message))
        }
        Step::Wait { why: Why::Failure, .. } | Step::Start { .. } => {
            failure.map(|failure| failed(failure, container, now))
        }
        Step::Running | Step::Done { .. } | Step::Stop => None,
    };
    let Some(wait) = wait.or_else(|| never_ran(status).then(|| starting(pod, memory, role))) else {
        return;
    };
    if let Some(ended) = status.state.terminated.take() {
        status.last_state = ContainerState { terminated: Some(ended), ..ContainerState::default() };
    }
    status.state = ContainerState { waiting: Some(wait), ..ContainerState::default() };
}

/// Why a container that never ran does not run yet.
fn starting(pod: &Pod, memory: &Memory, role: Role) -> ContainerStateWaiting {
    let failure = match (&memory.volumes, &memory.sandbox_failure) {
        (Volumes::Failed(failure), _) => Some(failure),
        (_, failure) => failure.as_ref(),
    };
    let blocked = memory.blocked.as_deref().unwrap_or_default();
    waiting(default_wait(pod, role), failure.map_or(blocked, |failure| &failure.message))
}

fn default_wait(pod: &Pod, role: Role) -> &'static str {
    // A sidecar and an init container wait for those before them.
    if pod.spec.init_containers.is_empty()
        || role == Role::Added
        || role == Role::Init && pod.spec.init_containers.len() == 1
    {
        "ContainerCreating"
    } else {
        "PodInitializing"
    }
}

fn failed(failure: &Failure, container: &Container, now: Timestamp) -> ContainerStateWaiting {
    let age = now.as_second().saturating_sub(failure.at.as_second());
    if failure.reason == "ErrImagePull" && age >= FRESH_SECONDS {
        let message = format!(
            "Back-off pulling image \"{}\": ErrImagePull: {}",
            container.image, failure.message
        );
        return waiting("ImagePullBackOff", &message);
    }
    waiting(&failure.reason, &failure.message)
}

fn waiting(reason: &str, message: &str) -> ContainerStateWaiting {
    ContainerStateWaiting {
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..ContainerStateWaiting::default()
    }
}

fn terminated(exit: &Exit, id: &str) -> ContainerStateTerminated {
    let reason = match (exit.reason.as_str(), exit.code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (given, _) => given,
    };
    ContainerStateTerminated {
        exit_code: Some(i64::from(exit.code)),
        reason: reason.to_owned(),
        message: exit.message.clone(),
        started_at: exit.started.map(Time::from),
        finished_at: exit.finished.map(Time::from),
        container_id: id.to_owned(),
        ..ContainerStateTerminated::default()
    }
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_duration(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests;
