//! Figures of the node and its containers: sampled at a slow beat, served in upstream's shapes.
//!
//! Rates need two readings, so each container's last two are kept. Everything is computed in
//! `node`; here is read and remembered.
//!
//! Spec: upstream's `/stats/summary`, `/metrics/resource`, `/metrics/cadvisor` and `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cri::message::{ContainerStats, ImageFsInfoRequest, ListContainerStatsRequest};
use jiff::Timestamp;
use node::figures::{Container, Node, Reading, Sample};
use node::names::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use node::pressure::{Share, Usage};
use runtime::report;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{Shared, facts};

/// Between two readings; upstream's housekeeping looks as often.
const BEAT: Duration = Duration::from_secs(10);
/// The first readings come sooner, that figures are there soon after a start.
const FIRST: Duration = Duration::from_secs(2);

/// The latest readings.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    node: Sample,
    containers: BTreeMap<String, (Container, Sample)>,
}

/// Reads until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    let mut pause = FIRST;
    loop {
        if let Err(err) = shared.figures.observe(&shared).await {
            debug!(err = report(&err), "the runtime gives no figures");
        }
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = BEAT.min(pause * 2),
        }
    }
}

impl Figures {
    async fn observe(&self, shared: &Shared) -> Result<(), cri::CallError> {
        let node = node_reading().await;
        let answer = shared.runtime.list_container_stats(ListContainerStatsRequest::default());
        let found = answer.await?.stats;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.node.push(node);
        let mut before = std::mem::take(&mut state.containers);
        for stats in found {
            let Some((id, container, reading)) = decode(stats) else { continue };
            let mut sample = before.remove(&id).map(|(_, sample)| sample).unwrap_or_default();
            sample.push(reading);
            state.containers.insert(id, (container, sample));
        }
        Ok(())
    }

    /// What the containers of a pod used when they were looked at last.
    pub(crate) fn usage(&self, uid: &str) -> Usage {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = state.containers.values().filter(|(container, _)| container.uid == uid);
        let bytes = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        let containers = ours.filter_map(|(container, sample)| {
            let last = sample.last()?;
            let share = Share {
                memory_bytes: bytes(last.working_set_bytes),
                disk_bytes: bytes(last.disk_bytes),
            };
            Some((container.name.clone(), share))
        });
        Usage { containers: containers.collect(), volumes: BTreeMap::new() }
    }

    /// Everything known, for rendering.
    pub(crate) async fn report(&self, shared: &Shared) -> Node {
        let (memory_bytes, memory_free_bytes) = facts::memory().await;
        let (disk_bytes, disk_free_bytes) = facts::disk(&shared.config.data_dir);
        let images = shared.runtime.image_fs_info(ImageFsInfoRequest::default()).await;
        let images = images.unwrap_or_default().image_filesystems;
        let used = images.first().and_then(|fs| Some(fs.used_bytes.as_ref()?.value));
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Node {
            name: shared.node.name.clone(),
            started: shared.started,
            sample: state.node.clone(),
            memory_bytes,
            memory_free_bytes,
            disk_bytes,
            disk_free_bytes,
            image_bytes: used.unwrap_or(0),
            containers: state.containers.values().cloned().collect(),
        }
    }
}

fn decode(stats: ContainerStats) -> Option<(String, Container, Reading)> {
    let attributes = stats.attributes?;
    let label = |name: &str| attributes.labels.get(name).cloned();
    let container = Container {
        namespace: label(POD_NAMESPACE)?,
        pod: label(POD_NAME)?,
        uid: label(POD_UID)?,
        name: label(CONTAINER_NAME)?,
    };
    let (cpu, memory) = (stats.cpu?, stats.memory.unwrap_or_default());
    let value = |value: Option<cri::message::UInt64Value>| value.map_or(0, |value| value.value);
    let layer = stats.writable_layer.unwrap_or_default();
    let reading = Reading {
        at: Timestamp::from_nanosecond(i128::from(cpu.timestamp)).ok()?,
        cpu_ns: value(cpu.usage_core_nano_seconds),
        working_set_bytes: value(memory.working_set_bytes),
        usage_bytes: value(memory.usage_bytes),
        rss_bytes: value(memory.rss_bytes),
        disk_bytes: value(layer.used_bytes),
    };
    Some((attributes.id, container, reading))
}

/// What the whole machine has used.
async fn node_reading() -> Reading {
    let (all, free) = facts::memory().await;
    let used = u64::try_from(all.saturating_sub(free)).unwrap_or(0);
    let stat = tokio::fs::read_to_string("/proc/stat").await.unwrap_or_default();
    Reading {
        at: Timestamp::now(),
        cpu_ns: node::figures::parse_stat(&stat),
        working_set_bytes: used,
        usage_bytes: used,
        rss_bytes: used,
        disk_bytes: 0,
    }
}
