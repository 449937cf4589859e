//! Processors of containers: whole ones for those entitled to them, the rest shared by all.
//!
//! Who gets which is decided in `node::cores`; what was given is kept in a file. One task sets
//! what running containers share anew whenever that has changed, and at a slow beat.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cri::CallError;
use cri::message::{
    ContainerState, LinuxContainerResources, ListContainersRequest, UpdateContainerResourcesRequest,
};
use node::cores::{Cores, Place, parse, render};
use node::names::{CONTAINER_NAME, POD_UID};
use objects::pod::{Container, Pod};
use runtime::report;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Config, Shared, disk};

/// Where the kernel tells of its processors.
const SYSTEM: &str = "/sys/devices/system/cpu";
/// What was given, in the agent's own directory; upstream's name.
const KEPT: &str = "cpu_manager_state";
/// How often running containers are looked at; upstream's.
const BEAT: Duration = Duration::from_secs(10);

/// The processors of this node; without the static policy it gives nothing.
#[derive(Debug, Default)]
pub(crate) struct Manager {
    cores: Option<Mutex<Cores>>,
    changed: Notify,
}

impl Manager {
    /// The processors as they are, and as they were given before a restart.
    pub(crate) fn recall(config: &Config) -> Self {
        if !config.settings.static_cpus {
            return Self::default();
        }
        let mut cores = Cores::new(places(Path::new(SYSTEM)), config.settings.reserved.cpu_milli);
        let kept = std::fs::read(config.data_dir.join(KEPT)).unwrap_or_default();
        cores.recall(&serde_json::from_slice(&kept).unwrap_or_default());
        Self { cores: Some(Mutex::new(cores)), changed: Notify::new() }
    }

    /// What a container may use; empty means whatever there is.
    pub(crate) fn give(
        &self,
        shared: &Shared,
        pod: &Pod,
        container: &Container,
    ) -> Result<String, String> {
        let Some(mut cores) = self.lock() else { return Ok(String::new()) };
        let before = cores.shared();
        let set = cores.give(pod, container).map_err(|lack| lack.verdict().message)?;
        if cores.shared() != before {
            keep(shared, &cores);
            self.changed.notify_one();
        }
        Ok(render(&set))
    }

    /// Takes everything of a pod back.
    pub(crate) fn release(&self, shared: &Shared, uid: &str) {
        let Some(mut cores) = self.lock() else { return };
        if cores.release(uid) {
            keep(shared, &cores);
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Cores>> {
        // A poisoned lock still guards a whole value.
        Some(self.cores.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sets what running containers may use until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    if shared.cores.cores.is_none() {
        return;
    }
    let mut told = BTreeMap::new();
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = shared.cores.changed.notified() => {}
            () = tokio::time::sleep(BEAT) => {}
        }
        if let Err(err) = apply(&shared, &mut told).await {
            debug!(err = report(&err), "the runtime cannot be asked about its containers");
        }
    }
}

/// Tells the runtime about each running container whose processors differ from what it was told.
async fn apply(shared: &Shared, told: &mut BTreeMap<String, String>) -> Result<(), CallError> {
    let all = shared.runtime.list_containers(ListContainersRequest::default()).await?.containers;
    let running = i32::from(ContainerState::Running);
    told.retain(|id, _| all.iter().any(|found| &found.id == id && found.state == running));
    for found in all.into_iter().filter(|found| found.state == running) {
        let label = |name: &str| found.labels.get(name).map(String::as_str);
        let (Some(uid), Some(name)) = (label(POD_UID), label(CONTAINER_NAME)) else { continue };
        let Some(set) = shared.cores.lock().map(|cores| render(&cores.of(uid, name))) else {
            return Ok(());
        };
        // With every processor given away there is nothing to share; the kernel takes no empty set.
        if told.get(&found.id) == Some(&set) || set.is_empty() {
            continue;
        }
        let cpuset_cpus = set.clone();
        let linux =
            Some(LinuxContainerResources { cpuset_cpus, ..LinuxContainerResources::default() });
        let container_id = found.id.clone();
        let request = UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
        match shared.runtime.update_container_resources(request).await {
            Ok(_) => drop(told.insert(found.id, set)),
            Err(err) => warn!(uid, name, err = report(&err), "cannot set processors; retrying"),
        }
    }
    Ok(())
}

fn keep(shared: &Shared, cores: &Cores) {
    let path: PathBuf = shared.config.data_dir.join(KEPT);
    if let Err(err) = disk::replace(&path, &cores.encode().to_string()) {
        warn!(path = %path.display(), err = report(&err), "cannot keep what processors were given");
    }
}

/// The processors that are online, and where they are.
fn places(system: &Path) -> Vec<Place> {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let online = parse(&read(system.join("online"))).unwrap_or_default();
    let number = |cpu: u32, name: &str| {
        let path = system.join(format!("cpu{cpu}/topology/{name}"));
        read(path).trim().parse().ok()
    };
    let place = |cpu: u32| Place {
        socket: number(cpu, "physical_package_id").unwrap_or(0),
        // Without a topology each processor is a core of its own.
        core: number(cpu, "core_id").unwrap_or(cpu),
        cpu,
    };
    online.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_found_with_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("online", "0-2\n");
        for (cpu, socket, core) in [(0, 0, 0), (1, 1, 0)] {
            put(&format!("cpu{cpu}/topology/physical_package_id"), &format!("{socket}\n"));
            put(&format!("cpu{cpu}/topology/core_id"), &format!("{core}\n"));
        }
        let at = |socket, core, cpu| Place { socket, core, cpu };
        assert_eq!(places(dir.path()), [at(0, 0, 0), at(1, 0, 1), at(0, 2, 2)]);
        assert!(!places(Path::new(SYSTEM)).is_empty());
    }
}
