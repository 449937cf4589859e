//! Our driver for Ceph images behind the container storage interface: `muster csi`.
//!
//! The controller half makes, grows, snapshots, clones and deletes images with the cluster's own
//! `rbd` program; the node half maps them by the kernel and needs no Ceph program. Both are
//! served on one socket and work without the rest of Muster. With a registry the driver makes
//! itself known to the node's agent, ours or another's, without a helper beside it.
//!
//! A volume's id is `POOL/IMAGE`, a snapshot's `POOL/IMAGE@SNAP`; image and snapshot names are
//! made of the asked name, so that asking twice finds what is there. Images have the features
//! `layering,exclusive-lock` and writers map them `exclusive`: the kernel refuses a second one.
//!
//! Which node has a volume is noted at the image. Before it is given to another node, every client
//! that still holds the image's lock or watches it is fenced: a lost node's late writes fail.
//!
//! Spec: CSI 1.12; parameters and secrets are called as ceph-csi calls them (`pool`, `userID`,
//! `userKey`, `topologyConstrainedPools`).
//!
//! *Limits*: an image grows while it is not mapped for writing (the lock's price). Capacity is not
//! told, for images are thin; no group snapshots. On a host whose kernel has no `rbd`, images come
//! by Debian's `rbd-fuse` and a loop device.

#![forbid(unsafe_code)]

mod controller;
mod door;
mod images;
mod node;
mod publish;
mod service;
mod snapshot;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ceph::Cluster;
use csi::Status;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::door::Door;
use crate::images::{Images, Real};

/// The driver's name in the API.
pub const NAME: &str = "rbd.storage.muster.dev";
/// How images of this driver begin.
const IMAGE: &str = "csi-vol-";

/// What the driver is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The socket it listens at.
    pub socket: PathBuf,
    /// The node's name.
    pub node: String,
    /// Monitors, unless a class names others.
    pub monitors: Vec<String>,
    /// The pool, unless a class names another.
    pub pool: String,
    /// The user, unless a secret names another.
    pub user: String,
    /// The configuration file of the `rbd` program; its own default otherwise.
    pub conf: Option<PathBuf>,
    /// Where a node agent looks for plugins; `None`: nobody is told that the driver is here.
    pub registry: Option<PathBuf>,
    /// Where this node is, by domain (`rack`, `zone`): pools may be reached from some places only.
    pub topology: BTreeMap<String, String>,
}

/// Why the driver ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// The socket cannot be used.
    #[error("cannot listen at {socket}")]
    Listen {
        /// Which.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The service ended.
    #[error("the service failed")]
    Serve(#[source] csi::ServeError),
}

/// Serves the driver until `stop`.
///
/// # Errors
///
/// When the socket cannot be used.
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    let listener = listen(&config.socket)?;
    let images = Real(Cluster {
        conf: config.conf.clone(),
        monitors: config.monitors.clone(),
        user: None,
        key: None,
    });
    let driver = Arc::new(Driver::new(config.clone(), images));
    // Agents ask who is there only once the driver itself can be asked.
    let door = config.registry.as_ref().map(|dir| dir.join(format!("{NAME}-reg.sock")));
    let done = match &door {
        Some(door) => {
            let registration = csi::serve(stop.clone(), listen(door)?, Arc::clone(&driver));
            tokio::try_join!(registration, csi::serve(stop, listener, driver)).map(|_| ())
        }
        None => csi::serve(stop, listener, driver).await,
    };
    for socket in door.iter().chain([&config.socket]) {
        drop(fs::remove_file(socket));
    }
    done.map_err(RunError::Serve)
}

/// Takes a socket's place; what is left there of an earlier run answers nobody.
fn listen(socket: &Path) -> Result<UnixListener, RunError> {
    let fail = |source| RunError::Listen { socket: socket.to_owned(), source };
    match fs::remove_file(socket) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(fail(err)),
        _ => {}
    }
    UnixListener::bind(socket).map_err(fail)
}

/// The driver over one way to make images.
#[derive(Debug)]
pub(crate) struct Driver<I> {
    config: Config,
    images: I,
    door: Door,
    busy: Mutex<BTreeSet<String>>,
}

impl<I: Images> Driver<I> {
    fn new(config: Config, images: I) -> Self {
        let dir = config.socket.with_extension("images");
        // The kernel names files by their whole paths.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        let door = Door { dir, conf: config.conf.clone() };
        Self { config, images, door, busy: Mutex::default() }
    }

    /// Claims a volume for one call; a second call meanwhile is told to come again.
    fn claim(&self, id: &str) -> Result<Claim<'_>, Status> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.insert(id.to_owned()) {
            return Ok(Claim { busy: &self.busy, id: id.to_owned() });
        }
        Err(Status::aborted(format!("an operation with the given volume {id} already exists")))
    }
}

/// A volume that one call works on.
struct Claim<'a> {
    busy: &'a Mutex<BTreeSet<String>>,
    id: String,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A field that must be there.
fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{name} missing in request")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
