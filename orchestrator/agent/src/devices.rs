//! Device plugins: takes their registrations, follows their lists, asks what containers need.
//!
//! One task takes registrations at `kubelet.sock` in the plugins' directory, one more per plugin
//! follows its list. Who gets which device is decided in `node::devices`; what was given is kept
//! in a file, so that a restart of the agent gives no device twice.
//!
//! Spec: upstream's device plugin API `v1beta1`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cri::device::{
    AllocateRequest, Allocation, DeviceIds, Plugin, PluginOptions, PreStartRequest,
    RegisterRequest, VERSION, serve,
};
use node::devices::{Devices, Share};
use objects::pod::{Container, Pod};
use runtime::report;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Shared, disk};

/// The socket that plugins look for.
const SOCKET: &str = "kubelet.sock";
/// What was given, in the agent's own directory.
const KEPT: &str = "device_manager_state";
/// Registrations waiting to be answered.
const QUEUE: usize = 16;

/// The devices of this node.
#[derive(Debug, Default)]
pub(crate) struct Manager {
    state: Mutex<State>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    devices: Devices,
    /// What plugins said that containers need, by `UID/CONTAINER/RESOURCE`, as base64.
    answers: BTreeMap<String, String>,
    #[serde(skip)]
    plugins: BTreeMap<String, Registered>,
}

#[derive(Debug, Clone)]
struct Registered {
    plugin: Plugin,
    options: PluginOptions,
    /// Which registration of the resource this is: a later one replaces it.
    number: u64,
}

impl Manager {
    /// What was given before a restart.
    pub(crate) fn recall(data_dir: &Path) -> Self {
        let text = std::fs::read(data_dir.join(KEPT)).unwrap_or_default();
        let state = serde_json::from_slice(&text).unwrap_or_default();
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock still guards a whole value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of each resource there are, and how many are healthy.
    pub(crate) fn amounts(&self) -> BTreeMap<String, (i64, i64)> {
        self.lock().devices.amounts()
    }

    /// Takes everything of a pod back.
    pub(crate) fn release(&self, shared: &Shared, uid: &str) {
        let mut state = self.lock();
        if state.devices.release(uid) {
            let prefix = format!("{uid}/");
            state.answers.retain(|key, _| !key.starts_with(&prefix));
            keep(shared, &state);
        }
    }

    /// Gives a container its devices, and what it needs to use them.
    ///
    /// # Errors
    ///
    /// In words, when there are too few or a plugin refuses.
    pub(crate) async fn allocate(
        &self,
        shared: &Shared,
        pod: &Pod,
        container: &Container,
    ) -> Result<Vec<Allocation>, String> {
        let share: Share = self.lock().devices.give(pod, container).map_err(|lack| {
            let resource = &lack.resource;
            format!(
                "requested number of devices unavailable for {resource}. Requested: {}, Available: {}",
                lack.requested,
                lack.capacity.saturating_sub(lack.used)
            )
        })?;
        let mut all = Vec::new();
        for (resource, ids) in share {
            let ids: Vec<String> = ids.into_iter().collect();
            let key = format!("{}/{}/{resource}", pod.metadata.uid, container.name);
            let (plugin, known) = {
                let state = self.lock();
                (state.plugins.get(&resource).cloned(), state.answers.get(&key).cloned())
            };
            let allocation = match known.as_deref().and_then(decode) {
                Some(allocation) => allocation,
                None => {
                    let missing = || format!("no plugin is registered for {resource}");
                    let plugin = &plugin.as_ref().ok_or_else(missing)?.plugin;
                    let request =
                        AllocateRequest { containers: vec![DeviceIds { ids: ids.clone() }] };
                    let answer = plugin.allocate(request).await.map_err(|err| report(&err))?;
                    let allocation = answer.containers.into_iter().next().unwrap_or_default();
                    let mut state = self.lock();
                    state.answers.insert(key, encode(&allocation));
                    keep(shared, &state);
                    allocation
                }
            };
            if let Some(plugin) = plugin.filter(|plugin| plugin.options.pre_start_required) {
                let told = plugin.plugin.pre_start(PreStartRequest { ids }).await;
                told.map_err(|err| report(&err))?;
            }
            all.push(allocation);
        }
        Ok(all)
    }
}

/// Takes registrations until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    let Some(dir) = shared.config.device_dir.clone() else { return };
    let listener = match listen(&dir) {
        Ok(listener) => listener,
        Err(err) => {
            warn!(dir = %dir.display(), err = report(&err), "no device plugin can register");
            return;
        }
    };
    let (sender, mut registrations) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, sender));
    let mut number = 0;
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            Some(_) = tasks.join_next() => {}
            Some((request, answer)) = registrations.recv() => {
                number += 1;
                let taken = register(&shared, &dir, &request, number);
                let outcome = taken.as_ref().map(|_| ()).map_err(Clone::clone);
                if let Ok(plugin) = taken {
                    tasks.spawn(follow(Arc::clone(&shared), request.resource_name, plugin));
                }
                // A plugin that went away before it was answered asks again.
                drop(answer.send(outcome));
            }
        }
    }
}

/// Makes the socket; sockets of earlier plugins go, which is how those notice a new agent.
fn listen(dir: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)?.flatten() {
        use std::os::unix::fs::FileTypeExt as _;
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    UnixListener::bind(dir.join(SOCKET))
}

fn register(
    shared: &Shared,
    dir: &Path,
    request: &RegisterRequest,
    number: u64,
) -> Result<Registered, String> {
    let resource = &request.resource_name;
    if request.version != VERSION {
        return Err(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
            request.version
        ));
    }
    let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "..";
    let named = resource.split_once('/').is_some_and(|(domain, name)| {
        domain.contains('.') && plain(name) && !domain.ends_with("kubernetes.io")
    });
    if !named {
        return Err(format!("the ResourceName {resource:?} is invalid"));
    }
    if !plain(&request.endpoint) {
        return Err(format!("the endpoint {:?} is no file beside ours", request.endpoint));
    }
    let plugin = Plugin::at(&dir.join(&request.endpoint)).map_err(|err| report(&err))?;
    let options = request.options.unwrap_or_default();
    let registered = Registered { plugin, options, number };
    shared.devices.lock().plugins.insert(resource.clone(), registered.clone());
    info!(resource, "a device plugin registered");
    Ok(registered)
}

/// Follows a plugin's list until it ends; what it had is then fit for nobody.
async fn follow(shared: Arc<Shared>, resource: String, registered: Registered) {
    let ended = async {
        let mut listing = registered.plugin.list().await?;
        while let Some(list) = listing.next().await? {
            let devices: BTreeMap<String, bool> = list
                .devices
                .into_iter()
                .map(|device| (device.id, device.health == "Healthy"))
                .collect();
            let mut state = shared.devices.lock();
            let current = state.plugins.get(&resource).map(|known| known.number);
            if current != Some(registered.number) {
                return Ok(());
            }
            info!(resource, devices = devices.len(), "a device plugin told its devices");
            state.devices.list(&resource, devices);
            drop(state);
            shared.hurry.notify_one();
        }
        Ok::<_, cri::CallError>(())
    };
    let ended = ended.await;
    let mut state = shared.devices.lock();
    if state.plugins.get(&resource).is_some_and(|known| known.number == registered.number) {
        let why = ended.err().map(|err| report(&err)).unwrap_or_default();
        warn!(resource, why, "a device plugin went away");
        state.plugins.remove(&resource);
        state.devices.lose(&resource);
        drop(state);
        shared.hurry.notify_one();
    }
}

fn keep(shared: &Shared, state: &State) {
    let path: PathBuf = shared.config.data_dir.join(KEPT);
    let text = serde_json::to_string(state).unwrap_or_default();
    if let Err(err) = disk::replace(&path, &text) {
        warn!(path = %path.display(), err = report(&err), "cannot keep what devices were given");
    }
}

fn encode(allocation: &Allocation) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(allocation.to_bytes())
}

fn decode(text: &str) -> Option<Allocation> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    Allocation::from_bytes(&bytes)
}
