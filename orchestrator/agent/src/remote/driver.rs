//! Storage drivers that are not ours: who has registered, and what the cluster is told of them.
//!
//! A driver puts a socket into `DATA/plugins_registry`; it is asked there who it is, then at its
//! own socket by what name it knows this node, and both are written into the node's `CSINode` and
//! labels. Only then is it told that it was taken. When the socket goes, so does the entry.
//!
//! Drivers name their paths below `/var/lib/kubelet`, for that is what their manifests say: a
//! link there leads to our own directory.
//!
//! Spec: the node agent's plugin registration (`pluginregistration.v1`), CSI `csi.v1`.

pub(super) mod volume;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use csi::message::{Empty, NodeGetInfoResponse, PluginInfo, RegistrationStatus, capability};
use csi::{CallError, Client, Code, ConnectError};
use runtime::client::Patch;
use runtime::{ClientError, report, resource};
use serde_json::{Value, json};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Config, Shared};

/// Below `DATA`: where drivers put their sockets.
const REGISTRY: &str = "plugins_registry";
/// What drivers believe is the node agent's directory.
const UPSTREAM_DIR: &str = "/var/lib/kubelet";
/// How often the registry is looked at.
const BEAT: Duration = Duration::from_secs(1);
/// Rounds that a socket which could not be registered is left alone.
const PATIENCE_ROUNDS: u32 = 10;
/// What a registering plugin must say it is.
const KIND: &str = "CSIPlugin";
/// The node's annotation with the names drivers know it by; upstream's.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// Why a plugin was not taken.
#[derive(Debug, Error)]
pub(super) enum RegisterError {
    /// Its socket cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not answer.
    #[error("the plugin does not answer as a storage driver does")]
    Call(#[from] CallError),
    /// It is something else.
    #[error("{0}")]
    Unfit(String),
    /// The API does not take the driver's entry.
    #[error("cannot tell the API about the driver")]
    Api(#[from] ClientError),
}

/// A driver that serves this node.
#[derive(Debug, Clone)]
pub(super) struct Driver {
    pub(super) client: Client,
    /// What it can do, by CSI's numbers of node capabilities.
    capabilities: Vec<i32>,
    node: NodeGetInfoResponse,
    /// The socket it registered by, and which one it is: a new one of the same name is another.
    socket: (PathBuf, u64),
}

impl Driver {
    pub(super) fn can(&self, what: i32) -> bool {
        self.capabilities.contains(&what)
    }
}

/// The drivers of this node by name.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    known: Mutex<BTreeMap<String, Arc<Driver>>>,
    /// Sockets that were refused, and for how many rounds they are left alone.
    refused: Mutex<BTreeMap<(PathBuf, u64), u32>>,
}

impl Drivers {
    pub(super) fn get(&self, name: &str) -> Option<Arc<Driver>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn insert(&self, name: &str, driver: Driver) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.to_owned(), Arc::new(driver));
    }

    fn all(&self) -> BTreeMap<String, Arc<Driver>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Is this socket new, and not to be left alone for now?
    fn is_due(&self, socket: &(PathBuf, u64)) -> bool {
        if self.all().values().any(|driver| driver.socket == *socket) {
            return false;
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rounds) = refused.get_mut(socket) else { return true };
        *rounds = rounds.saturating_sub(1);
        if *rounds > 0 {
            return false;
        }
        refused.remove(socket);
        true
    }

    fn refuse(&self, socket: (PathBuf, u64)) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.insert(socket, PATIENCE_ROUNDS);
    }

    /// Forgets drivers whose sockets are gone, and gives their names.
    fn forget_gone(&self, sockets: &[(PathBuf, u64)]) -> Vec<String> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|socket, _| sockets.contains(socket));
        drop(refused);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |driver: &Driver| !sockets.contains(&driver.socket);
        let gone: Vec<String> =
            known.iter().filter(|(_, one)| is_gone(one)).map(|(name, _)| name.clone()).collect();
        known.retain(|name, _| !gone.contains(name));
        gone
    }
}

/// Where drivers see our directory.
pub(super) fn seen_by_drivers(config: &Config) -> PathBuf {
    // Only a real node has the link: an agent in a directory of its own stays in there.
    let real = config.data_dir == Config::default().data_dir;
    if real { PathBuf::from(UPSTREAM_DIR) } else { config.data_dir.clone() }
}

/// Looks after the registry until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    if let Err(err) = make_ready(&shared.config) {
        warn!(err = report(&err), "storage drivers cannot register here");
    }
    let watch = async {
        loop {
            round(&shared).await;
            tokio::time::sleep(BEAT).await;
        }
    };
    tokio::select! { biased;
        () = stop.cancelled() => (),
        () = watch => (),
    }
}

fn make_ready(config: &Config) -> io::Result<()> {
    for name in [REGISTRY, super::PLUGINS, "pods"] {
        fs::create_dir_all(config.data_dir.join(name))?;
    }
    let seen = seen_by_drivers(config);
    if seen != config.data_dir && !seen.exists() {
        symlink(&config.data_dir, &seen)?;
    }
    Ok(())
}

async fn round(shared: &Shared) {
    let drivers = &shared.disks.drivers;
    let sockets = sockets(&shared.config.data_dir.join(REGISTRY));
    for name in drivers.forget_gone(&sockets) {
        match tell(shared, &name, None).await {
            Ok(()) => info!(driver = name, "storage driver left"),
            Err(err) => warn!(driver = name, err = report(&err), "cannot tell that a driver left"),
        }
    }
    let due: Vec<_> = sockets.into_iter().filter(|socket| drivers.is_due(socket)).collect();
    // A driver that is refused may give up for good: before the node is known none is asked.
    if due.is_empty() || !is_known(shared).await {
        return;
    }
    for socket in due {
        match register(shared, &socket).await {
            Ok(name) => info!(driver = name, "storage driver registered"),
            Err(err) => {
                let path = socket.0.display().to_string();
                warn!(path, err = report(&err), "a plugin cannot be registered; retrying");
                drivers.refuse(socket);
            }
        }
    }
}

/// Does the API know this node?
async fn is_known(shared: &Shared) -> bool {
    shared.client.get(&resource::NODES, None, &shared.node.name).await.is_ok()
}

/// The sockets in the registry; the number tells a new one from an old one of the same name.
fn sockets(dir: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let socket = |entry: fs::DirEntry| {
        let meta = entry.metadata().ok()?;
        meta.file_type().is_socket().then(|| (entry.path(), meta.ino()))
    };
    let mut all: Vec<_> = entries.flatten().filter_map(socket).collect();
    all.sort();
    all
}

async fn register(shared: &Shared, socket: &(PathBuf, u64)) -> Result<String, RegisterError> {
    let plugin = Client::at(&socket.0)?;
    let info = plugin.get_info(Empty {}).await?;
    let taken = take(shared, socket, &info).await;
    let error = taken.as_ref().err().map(|err| report(err)).unwrap_or_default();
    let told = RegistrationStatus { plugin_registered: taken.is_ok(), error };
    plugin.notify_registration_status(told).await?;
    taken.map(|()| info.name)
}

async fn take(
    shared: &Shared,
    socket: &(PathBuf, u64),
    info: &PluginInfo,
) -> Result<(), RegisterError> {
    check(info).map_err(RegisterError::Unfit)?;
    let known = shared.disks.drivers.get(&info.name);
    if known.is_some_and(|known| known.socket.0 != socket.0) {
        let why = format!("a driver named {} is registered by another socket", info.name);
        return Err(RegisterError::Unfit(why));
    }
    let endpoint = if info.endpoint.is_empty() { &socket.0 } else { Path::new(&info.endpoint) };
    let client = Client::at(endpoint)?;
    let node = client.node_get_info(Empty {}).await?;
    let capabilities = match client.node_get_capabilities(Empty {}).await {
        Ok(answer) => answer.capabilities,
        Err(err) if err.code == Code::Unimplemented => Vec::new(),
        Err(err) => return Err(err.into()),
    };
    let number = |one: csi::message::RpcCapability| Some(one.rpc?.r#type);
    let capabilities = capabilities.into_iter().filter_map(number).collect();
    let driver = Driver { client, capabilities, node, socket: socket.clone() };
    tell(shared, &info.name, Some(&driver)).await?;
    shared.disks.drivers.insert(&info.name, driver);
    Ok(())
}

/// Is this a driver that can be spoken to?
fn check(info: &PluginInfo) -> Result<(), String> {
    if info.r#type != KIND {
        return Err(format!("a plugin of type {:?} is not for this node", info.r#type));
    }
    // The name becomes a part of paths.
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if info.name.is_empty() || info.name.starts_with('.') || !info.name.chars().all(plain) {
        return Err(format!("{:?} is no name for a driver", info.name));
    }
    let first = |version: &String| version.trim_start_matches('v').starts_with("1.");
    if !info.supported_versions.iter().any(first) {
        let versions = info.supported_versions.join(", ");
        return Err(format!("the driver speaks versions {versions}, this node speaks 1"));
    }
    Ok(())
}

/// Writes a driver into the node's `CSINode` and labels, or takes it out.
async fn tell(shared: &Shared, name: &str, driver: Option<&Driver>) -> Result<(), ClientError> {
    let (client, own) = (&shared.client, &shared.node.name);
    let node = client.get(&resource::NODES, None, own).await?;
    let found = match client.get(&resource::CSI_NODES, None, own).await {
        Ok(found) => Some(found),
        Err(err) if err.is_not_found() => None,
        Err(err) => return Err(err),
    };
    let before = found.as_ref().and_then(|one| one.pointer("/spec/drivers")?.as_array().cloned());
    let mut drivers = before.unwrap_or_default();
    drivers.retain(|one| one.get("name").and_then(Value::as_str) != Some(name));
    drivers.extend(driver.map(|driver| entry(name, &driver.node)));
    match found {
        None if driver.is_none() => {}
        None => {
            let uid = node.pointer("/metadata/uid");
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": own, "uid": uid});
            let object = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
                "metadata": {"name": own, "ownerReferences": [owner]},
                "spec": {"drivers": drivers},
            });
            client.create(&resource::CSI_NODES, None, &object).await?;
        }
        Some(_) => {
            let patch = Patch::merge(json!({"spec": {"drivers": drivers}}));
            client.patch(&resource::CSI_NODES, None, own, &patch).await?;
        }
    }
    let ids = node.pointer("/metadata/annotations").and_then(|all| all.get(NODE_IDS)?.as_str());
    let mut ids: BTreeMap<String, String> =
        ids.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut labels = BTreeMap::new();
    match driver {
        Some(driver) => {
            ids.insert(name.to_owned(), driver.node.node_id.clone());
            let topology = driver.node.accessible_topology.clone().unwrap_or_default();
            labels.extend(topology.segments);
        }
        None => drop(ids.remove(name)),
    }
    let text = serde_json::to_string(&ids).map_err(|source| ClientError::Encode { source })?;
    let metadata = json!({"labels": labels, "annotations": {NODE_IDS: text}});
    let patch = Patch::merge(json!({ "metadata": metadata }));
    client.patch(&resource::NODES, None, own, &patch).await.map(drop)
}

/// A driver as `CSINode` has it.
fn entry(name: &str, node: &NodeGetInfoResponse) -> Value {
    let topology = node.accessible_topology.clone().unwrap_or_default();
    let keys: Vec<String> = topology.segments.into_keys().collect();
    let entry = json!({"name": name, "nodeID": node.node_id, "topologyKeys": keys});
    if node.max_volumes_per_node <= 0 {
        return entry;
    }
    let count = i32::try_from(node.max_volumes_per_node).unwrap_or(i32::MAX);
    let limit = ("allocatable".to_owned(), json!({ "count": count }));
    let fields = entry.as_object().into_iter().flatten();
    fields.map(|(key, value)| (key.clone(), value.clone())).chain([limit]).collect()
}

/// What a driver that stages volumes says.
pub(super) const STAGES: i32 = capability::NODE_STAGE_UNSTAGE_VOLUME;

#[cfg(test)]
mod tests;
