//! Reads one pod from the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cri::message::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, PodSandboxState,
    PodSandboxStatusRequest,
};
use cri::{CallError, Runtime};
use jiff::{SignedDuration, Timestamp};
use node::names::{CONTAINER_HASH, CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use node::resize::{SIZE, Size};
use node::seen::{Container, Exit, Life, Sandbox, Seen};
use runtime::report;
use tracing::debug;

use crate::Shared;
use crate::disk;
use crate::oom;

/// How long a container's end by SIGKILL waits for its cause: the runtime hears of memory that
/// ran out by another way than of ends, and often later.
const CAUSE_LIMIT: SignedDuration = SignedDuration::from_secs(1);
/// Between looks for it.
const CAUSE_BEAT: Duration = Duration::from_millis(50);
/// The exit code of a container that was killed.
const KILLED: i32 = 137;
/// The runtime's and upstream's word for memory that ran out.
const OUT_OF_MEMORY: &str = "OOMKilled";

/// What cannot change any more and need not be asked for again, by id.
#[derive(Debug, Default)]
pub(crate) struct Known {
    ended: BTreeMap<String, Container>,
    addresses: BTreeMap<String, Vec<String>>,
    /// How often memory had run out in the pod when it was looked at last, where that is known.
    kills: Option<u64>,
    /// Containers that the agent itself stopped: who killed them is known.
    stopped: BTreeSet<String>,
}

impl Known {
    /// The addresses of a sandbox that was looked at.
    pub(crate) fn addresses(&self, sandbox: &str) -> Option<&[String]> {
        self.addresses.get(sandbox).map(Vec::as_slice)
    }

    /// Notes a container that is about to be stopped.
    pub(crate) fn stop(&mut self, id: &str) {
        self.stopped.insert(id.to_owned());
    }
}

/// Reads a pod's sandboxes and containers.
pub(crate) async fn pod(shared: &Shared, uid: &str, known: &mut Known) -> Result<Seen, CallError> {
    let runtime = &shared.runtime;
    let label_selector = BTreeMap::from([(POD_UID.to_owned(), uid.to_owned())]);
    let filter = PodSandboxFilter { label_selector: label_selector.clone(), ..Default::default() };
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let mut seen = Seen::default();
    if known.kills.is_none() {
        known.kills = shared.slices.kills(uid);
    }
    let mut kills = known.kills;
    let containers = ContainerFilter { label_selector, ..Default::default() };
    let containers = ListContainersRequest { filter: Some(containers) };
    let (sandboxes, containers) =
        tokio::join!(runtime.list_pod_sandbox(request), runtime.list_containers(containers));
    for found in sandboxes?.items {
        let ready = found.state() == PodSandboxState::Ready;
        let addresses =
            if ready { addresses(runtime, &found.id, known).await? } else { Vec::new() };
        let attempt = found.metadata.map_or(0, |metadata| metadata.attempt);
        seen.sandboxes.push(Sandbox { id: found.id, attempt, ready, addresses });
    }
    for found in containers?.containers {
        if let Some(ended) = known.ended.get(&found.id) {
            seen.containers.push(ended.clone());
            continue;
        }
        let Some(status) = status(shared, uid, (&found.id, known), &mut kills).await? else {
            continue;
        };
        let sandbox = found.pod_sandbox_id;
        let container = container(shared, uid, sandbox, status).await;
        if container.life.exit().is_some() {
            known.ended.insert(container.id.clone(), container.clone());
        }
        seen.containers.push(container);
    }
    known.kills = kills;
    known.ended.retain(|id, _| seen.containers.iter().any(|c| &c.id == id));
    known.addresses.retain(|id, _| seen.sandboxes.iter().any(|s| &s.id == id));
    known.stopped.retain(|id| seen.containers.iter().any(|c| &c.id == id));
    Ok(seen)
}

/// The state of a container, with the cause of its end; `None` when it was removed meanwhile.
async fn status(
    shared: &Shared,
    uid: &str,
    (id, known): (&str, &Known),
    kills: &mut Option<u64>,
) -> Result<Option<ContainerStatus>, CallError> {
    let runtime = &shared.runtime;
    let mut asked = false;
    loop {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let mut status = match runtime.container_status(request).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            Err(err) if err.is_not_found() => return Ok(None),
            Err(err) => return Err(err),
        };
        let killed = status.state() == ContainerState::Exited
            && status.exit_code == KILLED
            && status.reason != OUT_OF_MEMORY
            && !known.stopped.contains(id);
        // The kernel counts before it kills. The count is the pod's: of two containers of which one
        // is killed for its memory and the other otherwise in the same moment, both are told so.
        if killed && let Some(count) = shared.slices.kills(uid) {
            if known.kills.is_some_and(|before| before < count) {
                OUT_OF_MEMORY.clone_into(&mut status.reason);
            }
            *kills = Some(count);
            return Ok(Some(status));
        }
        // The kernel tells before it kills: what its log has not now, it never will.
        if killed && !asked && is_out_of_memory(shared, id).await {
            OUT_OF_MEMORY.clone_into(&mut status.reason);
            return Ok(Some(status));
        }
        asked |= killed;
        let fresh = instant(status.finished_at).is_some_and(|end| {
            let age = Timestamp::now().duration_since(end);
            !age.is_negative() && age < CAUSE_LIMIT
        });
        if !killed || !fresh {
            return Ok(Some(status));
        }
        tokio::time::sleep(CAUSE_BEAT).await;
    }
}

/// Tells whether the kernel says that it killed something of a container for its memory.
async fn is_out_of_memory(shared: &Shared, id: &str) -> bool {
    let (log, id) = (shared.config.kernel_log.clone(), id.to_owned());
    let told = disk::blocking(move || oom::is_told(&log, &id)).await;
    told.unwrap_or_else(|err| {
        debug!(err = report(&err), "the kernel's log cannot be read");
        false
    })
}

/// The ready sandbox of a pod.
pub(crate) async fn sandbox_id(
    shared: &Shared,
    namespace: &str,
    pod: &str,
) -> Result<Option<String>, CallError> {
    let filter = PodSandboxFilter { label_selector: owner(namespace, pod), ..Default::default() };
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let all = shared.runtime.list_pod_sandbox(request).await?.items;
    let ready = all.into_iter().filter(|found| found.state() == PodSandboxState::Ready);
    Ok(ready.max_by_key(|found| found.created_at).map(|found| found.id))
}

/// The running life of a container.
pub(crate) async fn container_id(
    shared: &Shared,
    (namespace, pod): (&str, &str),
    container: &str,
) -> Result<Option<String>, CallError> {
    let mut label_selector = owner(namespace, pod);
    label_selector.insert(CONTAINER_NAME.to_owned(), container.to_owned());
    let filter = ContainerFilter { label_selector, ..Default::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    let all = shared.runtime.list_containers(request).await?.containers;
    let running = all.into_iter().filter(|found| found.state() == ContainerState::Running);
    Ok(running.max_by_key(|found| found.created_at).map(|found| found.id))
}

fn owner(namespace: &str, pod: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (POD_NAMESPACE.to_owned(), namespace.to_owned()),
        (POD_NAME.to_owned(), pod.to_owned()),
    ])
}

async fn addresses(
    runtime: &Runtime,
    id: &str,
    known: &mut Known,
) -> Result<Vec<String>, CallError> {
    if let Some(addresses) = known.addresses.get(id) {
        return Ok(addresses.clone());
    }
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = match runtime.pod_sandbox_status(request).await {
        Ok(answer) => answer.status.unwrap_or_default(),
        Err(err) if err.is_not_found() => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let network = status.network.unwrap_or_default();
    let mut addresses = vec![network.ip];
    addresses.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    addresses.retain(|address| !address.is_empty());
    known.addresses.insert(id.to_owned(), addresses.clone());
    Ok(addresses)
}

async fn container(
    shared: &Shared,
    uid: &str,
    sandbox: String,
    mut status: ContainerStatus,
) -> Container {
    let metadata = status.metadata.take().unwrap_or_default();
    let name = status.labels.remove(CONTAINER_NAME).unwrap_or(metadata.name);
    let life = match status.state() {
        ContainerState::Created => Life::Created,
        ContainerState::Running => {
            Life::Running { started: instant(status.started_at).unwrap_or(Timestamp::UNIX_EPOCH) }
        }
        ContainerState::Exited => {
            let words = disk::last_words(shared, uid, &name, metadata.attempt, &status).await;
            Life::Exited(Exit {
                code: status.exit_code,
                reason: status.reason.clone(),
                message: words.unwrap_or_else(|| status.message.clone()),
                started: instant(status.started_at),
                finished: instant(status.finished_at),
            })
        }
        ContainerState::Unknown => Life::Unknown,
    };
    Container {
        id: status.id,
        name,
        sandbox,
        attempt: metadata.attempt,
        life,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id: status.image_ref,
        hash: status.annotations.remove(CONTAINER_HASH).unwrap_or_default(),
        size: status.annotations.get(SIZE).and_then(|text| Size::parse(text)),
    }
}

/// CRI's nanoseconds; 0 stands for never.
fn instant(nanoseconds: i64) -> Option<Timestamp> {
    if nanoseconds <= 0 {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()
}
