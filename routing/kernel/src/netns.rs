//! Network namespaces: opening one by path, and doing work inside it.
//!
//! A thread belongs to one namespace and a runtime's threads must never change theirs, so the
//! work is done on a thread of its own that ends with it.
//!
//! Spec: network_namespaces(7), setns(2).

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

use crate::NetlinkError;
use crate::sync::Network;

/// The calling thread's own namespace.
const HOME: &str = "/proc/thread-self/ns/net";

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

/// Why a namespace could not be opened or entered.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// The path cannot be opened.
    #[error("cannot open network namespace {path}")]
    Open {
        /// The path given.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No thread for the work.
    #[error("cannot start a thread for network namespace {path}")]
    Thread {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel did not let us in: not a network namespace, or not our right.
    #[error("cannot enter network namespace {path}")]
    Enter {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// No netlink socket inside.
    #[error("cannot talk to the kernel inside network namespace {path}")]
    Network {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The work panicked.
    #[error("the work inside network namespace {path} panicked")]
    Panicked {
        /// The namespace's path.
        path: PathBuf,
    },
}

impl Namespace {
    /// Opens the namespace at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    ///
    /// When the path cannot be opened.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        match File::open(path) {
            Ok(file) => Ok(Self { file, path: path.to_owned() }),
            Err(source) => Err(NamespaceError::Open { path: path.to_owned(), source }),
        }
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. Child
    /// processes that `work` starts are in the namespace, too.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered; what `work` returns is handed on as it is.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let inside = || match setns(&self.file, CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(work()),
            Err(source) => Err(NamespaceError::Enter { path: self.path.clone(), source }),
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, inside)
                .map_err(|source| NamespaceError::Thread { path: self.path.clone(), source })?;
            let panicked = |_| NamespaceError::Panicked { path: self.path.clone() };
            thread.join().map_err(panicked)?
        })
    }

    /// The path it was opened at.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the calling thread into the namespace for one piece of work, and back.
    pub(crate) fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T, NamespaceError> {
        let home = Self::open(Path::new(HOME))?;
        let enter = |to: &Self| {
            let failed = |source| NamespaceError::Enter { path: to.path.clone(), source };
            setns(&to.file, CloneFlags::CLONE_NEWNET).map_err(failed)
        };
        enter(self)?;
        let done = work();
        enter(&home)?;
        Ok(done)
    }

    /// Runs `work` inside the namespace with a netlink socket of that namespace.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or gives no socket.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce(&Network) -> T + Send,
    ) -> Result<T, NamespaceError> {
        self.run(|| match Network::open() {
            Ok(network) => Ok(work(&network)),
            Err(source) => Err(NamespaceError::Network { path: self.path.clone(), source }),
        })?
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
