//! Users of pods: asks whether the runtime can keep them apart, gives ranges, remembers them.
//!
//! Which range a pod has is decided in `node::users` and kept in the pod's own directory.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cri::message::{IdMapping, NamespaceMode, RuntimeHandler, UserNamespace};
use node::machine::Handler;
use node::users::{IDS, Ranges, decode, encode, host_users};
use objects::pod::Pod;
use runtime::report;
use tracing::warn;

use crate::{Config, Shared, disk};

/// The file of a pod's range in its directory; upstream's.
const KEPT: &str = "userns";

/// The users of this node's pods.
#[derive(Debug)]
pub(crate) struct Manager {
    ranges: Mutex<Ranges>,
    /// What the runtime's handlers can do; `None` until it was asked.
    handlers: Mutex<Option<Vec<Handler>>>,
}

impl Manager {
    /// The ranges that were given before a restart.
    pub(crate) fn recall(config: &Config) -> Self {
        let mut ranges = Ranges::new(config.settings.pods_max);
        let dirs = std::fs::read_dir(config.data_dir.join("pods")).into_iter().flatten().flatten();
        for dir in dirs {
            let uid = dir.file_name().to_string_lossy().into_owned();
            let Ok(text) = std::fs::read(dir.path().join(KEPT)) else { continue };
            let first = serde_json::from_slice(&text).ok().and_then(|value| decode(&value));
            if !first.is_some_and(|first| ranges.recall(&uid, first)) {
                warn!(uid, "what is kept of a pod's users is not understood");
            }
        }
        Self { ranges: Mutex::new(ranges), handlers: Mutex::default() }
    }

    /// Notes what the runtime says of itself.
    pub(crate) fn learn(&self, handlers: Vec<RuntimeHandler>) {
        let handler = |handler: RuntimeHandler| {
            let features = handler.features.unwrap_or_default();
            Handler {
                name: handler.name,
                recursive_read_only_mounts: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            }
        };
        *lock(&self.handlers) = Some(handlers.into_iter().map(handler).collect());
    }

    /// What the runtime's handlers can do, as far as it says so.
    pub(crate) fn handlers(&self) -> Vec<Handler> {
        lock(&self.handlers).clone().unwrap_or_default()
    }

    /// The users of a pod whose sandbox is about to be made; `None` for the node's own.
    ///
    /// # Errors
    ///
    /// In upstream's words, when the runtime cannot keep users apart or there are no ids left.
    pub(crate) fn give(
        &self,
        shared: &Shared,
        pod: &Pod,
        handler: &str,
    ) -> Result<Option<UserNamespace>, String> {
        if host_users(pod) != Some(false) {
            return Ok(None);
        }
        {
            let handlers = lock(&self.handlers);
            let Some(known) = handlers.as_ref() else {
                return Err("runtime handlers are not set".to_owned());
            };
            let found = known.iter().find(|known| known.name == handler);
            let found = found.ok_or_else(|| format!("the handler {handler:?} is not known"))?;
            if !found.user_namespaces {
                return Err(format!(
                    "RuntimeClass handler {handler:?} does not support user namespaces"
                ));
            }
        }
        let uid = node::manifest::local_uid(pod);
        let first = lock(&self.ranges).give(uid);
        let first = first.ok_or("could not find an empty slot to allocate a user namespace")?;
        let path: PathBuf = disk::pod_dir(shared, uid).join(KEPT);
        // Known before it is used: a range that was forgotten might be given twice.
        disk::replace(&path, &encode(first).to_string()).map_err(|err| report(&err))?;
        Ok(Some(namespace(first)))
    }

    /// The users of a pod that has its sandbox.
    pub(crate) fn of(&self, uid: &str) -> Option<UserNamespace> {
        lock(&self.ranges).of(uid).map(namespace)
    }

    /// Takes a pod's range back, once nothing of it is left.
    pub(crate) fn release(&self, uid: &str) {
        lock(&self.ranges).release(uid);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock still guards a whole value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn namespace(first: u32) -> UserNamespace {
    let range = IdMapping { host_id: first, container_id: 0, length: IDS };
    UserNamespace {
        mode: i32::from(NamespaceMode::Pod),
        uids: vec![range.clone()],
        gids: vec![range],
    }
}
