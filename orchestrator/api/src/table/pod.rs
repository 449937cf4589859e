//! The row of a pod: one word for a state of many parts.

use jiff::Timestamp;
use objects::{
    condition::is_condition_true,
    meta::Object as _,
    pod::{ContainerStatus, Pod},
};
use serde_json::{Value, json};

use super::{
    Column,
    cells::{age, human_duration, name, or_none},
};

pub(super) const COLUMNS: &[Column] = &[
    ("Name", "string", false),
    ("Ready", "string", false),
    ("Status", "string", false),
    ("Restarts", "string", false),
    ("Age", "string", false),
    ("IP", "string", true),
    ("Node", "string", true),
    ("Nominated Node", "string", true),
    ("Readiness Gates", "string", true),
];

pub(super) fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let Ok(pod) = Pod::decode(object) else {
        let unknown = json!("<unknown>");
        return std::iter::once(json!(name(object)))
            .chain(COLUMNS.iter().skip(1).map(|_| unknown.clone()))
            .collect();
    };
    let summary = summarise(&pod);
    let mut restarts = summary.restarts.to_string();
    if let Some(at) = summary.last_restart.filter(|_| summary.restarts > 0) {
        let ago = human_duration(objects::time::seconds_between(at, now));
        restarts = format!("{restarts} ({ago} ago)");
    }
    let first_ip = pod.status.pod_ips.first().map_or(pod.status.pod_ip.as_str(), |ip| &ip.ip);
    let gates = pod.spec.readiness_gates.len();
    let gates = if gates == 0 { "<none>".to_owned() } else { format!("0/{gates}") };
    vec![
        json!(pod.metadata.name),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        json!(age(object, now)),
        json!(or_none(first_ip)),
        json!(or_none(&pod.spec.node_name)),
        json!(or_none(&pod.status.nominated_node_name)),
        json!(gates),
    ]
}

/// What is told of a pod in one line.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn summarise(pod: &Pod) -> Summary {
    let status = &pod.status;
    let mut reason =
        if status.reason.is_empty() { status.phase.clone() } else { status.reason.clone() };
    let gated =
        status.conditions.iter().any(|c| c.kind == "PodScheduled" && c.reason == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut reason);
    }
    let sidecars: Vec<&str> = pod
        .spec
        .init_containers
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let mut summary = Summary {
        reason,
        ready: 0,
        total: pod.spec.containers.len().saturating_add(sidecars.len()),
        restarts: 0,
        last_restart: None,
    };
    let initialising = summarise_init(pod, &sidecars, &mut summary);
    if !initialising || is_condition_true(&status.conditions, "Initialized") {
        summarise_main(pod, &mut summary, initialising);
    }
    if pod.metadata.is_deleting() {
        if status.reason == "NodeLost" {
            "Unknown".clone_into(&mut summary.reason);
        } else if !pod.is_finished() {
            "Terminating".clone_into(&mut summary.reason);
        }
    }
    summary
}

fn count_restarts(status: &ContainerStatus, summary: &mut Summary) {
    summary.restarts = summary.restarts.saturating_add(status.restart_count.unwrap_or(0));
    let ended = status.last_state.terminated.as_ref().and_then(|ended| ended.finished_at);
    summary.last_restart = summary.last_restart.max(ended.map(|time| time.0));
}

/// Why a container ended, in one word.
fn ended(state: &objects::pod::ContainerStateTerminated) -> String {
    if !state.reason.is_empty() {
        return state.reason.clone();
    }
    if state.signal != 0 {
        return format!("Signal:{}", state.signal);
    }
    format!("ExitCode:{}", state.exit_code.unwrap_or(0))
}

/// Tells whether init containers are still at work.
fn summarise_init(pod: &Pod, sidecars: &[&str], summary: &mut Summary) -> bool {
    let total = pod.spec.init_containers.len();
    for (at, status) in pod.status.init_container_statuses.iter().enumerate() {
        count_restarts(status, summary);
        let sidecar = sidecars.contains(&status.name.as_str());
        if sidecar && status.started == Some(true) {
            if status.ready == Some(true) {
                summary.ready = summary.ready.saturating_add(1);
            }
            continue;
        }
        if let Some(end) = &status.state.terminated {
            if end.exit_code == Some(0) {
                continue;
            }
            summary.reason = format!("Init:{}", ended(end));
            return true;
        }
        let waiting = status.state.waiting.as_ref().map_or("", |w| w.reason.as_str());
        summary.reason = if waiting.is_empty() || waiting == "PodInitializing" {
            format!("Init:{at}/{total}")
        } else {
            format!("Init:{waiting}")
        };
        return true;
    }
    false
}

fn summarise_main(pod: &Pod, summary: &mut Summary, initialising: bool) {
    if !initialising {
        summary.restarts = sidecar_restarts(pod);
    }
    let mut running = false;
    for status in pod.status.container_statuses.iter().rev() {
        count_restarts(status, summary);
        let state = &status.state;
        if let Some(waiting) = state.waiting.as_ref().filter(|w| !w.reason.is_empty()) {
            summary.reason.clone_from(&waiting.reason);
        } else if let Some(end) = &state.terminated {
            summary.reason = ended(end);
        } else if status.ready == Some(true) && state.running.is_some() {
            running = true;
            summary.ready = summary.ready.saturating_add(1);
        }
    }
    if summary.reason == "Completed" && running {
        summary.reason = if pod.is_ready() { "Running" } else { "NotReady" }.to_owned();
    }
}

/// Restarts of init containers that stay; the others' no longer matter.
fn sidecar_restarts(pod: &Pod) -> i64 {
    let stays = |name: &str| {
        pod.spec
            .init_containers
            .iter()
            .any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    pod.status
        .init_container_statuses
        .iter()
        .filter(|status| stays(&status.name))
        .filter_map(|status| status.restart_count)
        .sum()
}
