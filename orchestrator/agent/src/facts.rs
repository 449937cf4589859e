//! Reads what the machine has: cores, memory, disk, ids, versions.

use std::path::Path;

use cri::message::{ListImagesRequest, RuntimeCondition, StatusRequest, VersionRequest};
use node::field::Allocatable;
use node::ledger::Amounts;
use node::machine::{Facts, Ids, Versions};
use node::pressure::Reading;
use runtime::report;

use crate::{Config, Shared};

/// The version the agent gives as the kubelet's.
pub(crate) const VERSION: &str = concat!("v1.36.0+muster-", env!("CARGO_PKG_VERSION"));

/// What a container gets to see as the node's own amounts.
pub(crate) async fn allocatable(config: &Config) -> Allocatable {
    let (memory_bytes, _) = memory().await;
    let held = config.settings.held(memory_bytes, disk(&config.data_dir).0);
    Allocatable {
        cpu_milli: cpus().saturating_mul(1000).saturating_sub(held.cpu_milli),
        memory_bytes: memory_bytes.saturating_sub(held.memory_bytes).max(0),
    }
}

/// Asks the runtime for its name, once.
pub(crate) async fn learn_runtime(shared: &Shared) {
    if shared.runtime_name.get().is_none()
        && let Ok(version) = shared.runtime.version(VersionRequest::default()).await
    {
        // Another worker may have asked at the same time and got the same answer.
        shared.runtime_name.get_or_init(|| version.runtime_name);
    }
}

/// What all pods of the node together may ask for.
pub(crate) fn room(shared: &Shared) -> Amounts {
    let settings = &shared.config.settings;
    let (disk, _) = disk(&shared.config.data_dir);
    let Allocatable { cpu_milli, memory_bytes } = shared.allocatable;
    let held = settings.held(memory_bytes, disk);
    let mut room = Amounts::from([
        ("cpu".to_owned(), cpu_milli),
        ("memory".to_owned(), memory_bytes),
        ("ephemeral-storage".to_owned(), disk.saturating_sub(held.disk_bytes).max(0)),
        ("pods".to_owned(), settings.pods_max),
    ]);
    room.extend(shared.devices.amounts().into_iter().map(|(name, (_, healthy))| (name, healthy)));
    room
}

/// Reads everything the node's status tells.
pub(crate) async fn observe(
    shared: &Shared,
    labels: std::collections::BTreeMap<String, String>,
) -> Facts {
    let (memory_bytes, _) = memory().await;
    let (disk_bytes, _) = disk(&shared.config.data_dir);
    let settings = &shared.config.settings;
    let pressures = shared.told.pressures.borrow().clone();
    let version = shared.runtime.version(VersionRequest::default()).await.unwrap_or_default();
    let runtime = format!("{}://{}", version.runtime_name, version.runtime_version);
    Facts {
        name: shared.node.name.clone(),
        address: shared.node.address,
        port: shared.config.listen.port(),
        labels,
        cpus: cpus(),
        memory_bytes,
        disk_bytes,
        held: settings.held(memory_bytes, disk_bytes),
        pods_max: settings.pods_max,
        devices: shared.devices.amounts(),
        pressures,
        ids: Ids {
            machine: text("/etc/machine-id").await,
            system: shared.node.uuid.clone(),
            boot: text("/proc/sys/kernel/random/boot_id").await,
        },
        versions: Versions {
            kernel: text("/proc/sys/kernel/osrelease").await,
            os: os_name().await,
            runtime,
            agent: VERSION.to_owned(),
        },
        runtime_problems: reasons(shared).await,
        handlers: shared.users.handlers(),
        images: images(shared).await,
    }
}

/// Why the node is not ready, in words; nothing when all is well.
pub(crate) async fn reasons(shared: &Shared) -> Vec<String> {
    let mut reasons = problems(shared).await;
    // Pods may start meanwhile, but clients must not come.
    reasons.extend(shared.config.served.problem());
    reasons
}

/// Why no pod can run here now, in words; nothing when all is well. The workers are told too.
async fn problems(shared: &Shared) -> Vec<String> {
    let mut problems = match shared.runtime.status(StatusRequest::default()).await {
        Ok(answer) => {
            shared.users.learn(answer.runtime_handlers);
            let conditions = answer.status.unwrap_or_default().conditions;
            conditions.into_iter().filter(stops_pods).map(words).collect()
        }
        Err(err) => vec![format!("container runtime is down: {}", report(&err))],
    };
    if !shared.imports.are_done() {
        problems.push("the node's own images are still being imported".to_owned());
    }
    if shared.leaving.load(std::sync::atomic::Ordering::Relaxed) {
        problems.push("node is shutting down".to_owned());
    }
    shared.problems.send_if_modified(|have| {
        let changed = *have != problems;
        have.clone_from(&problems);
        changed
    });
    problems
}

/// Only these two of CRI's conditions; others, as on deprecated settings, are advice.
fn stops_pods(condition: &RuntimeCondition) -> bool {
    !condition.status && matches!(condition.r#type.as_str(), "RuntimeReady" | "NetworkReady")
}

fn words(condition: RuntimeCondition) -> String {
    let what = match condition.r#type.as_str() {
        "NetworkReady" => "container runtime network not ready",
        _ => "container runtime not ready",
    };
    let RuntimeCondition { r#type, reason, message, .. } = condition;
    format!("{what}: {}=false reason:{reason} message:{message}", r#type)
}

async fn images(shared: &Shared) -> Vec<(Vec<String>, i64)> {
    let Ok(list) = shared.runtime.list_images(ListImagesRequest::default()).await else {
        return Vec::new();
    };
    let tell = |image: cri::message::Image| {
        let mut names = image.repo_digests;
        names.extend(image.repo_tags);
        (names, i64::try_from(image.size).unwrap_or(i64::MAX))
    };
    list.images.into_iter().map(tell).collect()
}

async fn text(path: &str) -> String {
    let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
    text.trim().to_owned()
}

pub(crate) fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1))
}

/// Memory in bytes: all of it, and what could be had at once.
pub(crate) async fn memory() -> (i64, i64) {
    let info = text("/proc/meminfo").await;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<i64>().ok()
    };
    let bytes = |name: &str| field(name).unwrap_or(0).saturating_mul(1024);
    (bytes("MemTotal:"), bytes("MemAvailable:"))
}

/// The file system of a path in bytes: all of it, and what is free.
pub(crate) fn disk(path: &Path) -> (i64, i64) {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return (0, 0) };
    let bytes = |blocks: u64| {
        i64::try_from(blocks.saturating_mul(stat.fragment_size())).unwrap_or(i64::MAX)
    };
    (bytes(stat.blocks()), bytes(stat.blocks_available()))
}

/// The inodes of a path's file system: all of them, and what is free.
pub(crate) fn inodes(path: &Path) -> (i64, i64) {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return (0, 0) };
    let count = |inodes: u64| i64::try_from(inodes).unwrap_or(i64::MAX);
    (count(stat.files()), count(stat.files_available()))
}

/// Process ids: all of them, and what is free.
pub(crate) async fn pids() -> Option<Reading> {
    let max: i64 = text("/proc/sys/kernel/pid_max").await.parse().ok()?;
    // The fourth field of loadavg is "running/all".
    let load = text("/proc/loadavg").await;
    let all: i64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(Reading { available: max.saturating_sub(all), capacity: max })
}

async fn os_name() -> String {
    node::machine::os_name(&text("/etc/os-release").await)
}
