//! What was seen of one pod in the container runtime, and what the agent remembers of it.
//!
//! [`Seen`] is read anew in each round and survives a restart of the agent, for it lives in the
//! runtime. [`Memory`] does not: it holds only what may be learnt again.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::probe::ProbeState;
use crate::resize::{Pending, Promise, Size};

/// A pod in the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its sandboxes, in any order; usually one.
    pub sandboxes: Vec<Sandbox>,
    /// Its containers, in any order, dead ones included.
    pub containers: Vec<Container>,
}

/// A sandbox of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's name for it.
    pub id: String,
    /// Which try it is, from 0.
    pub attempt: u32,
    /// Whether it can hold running containers.
    pub ready: bool,
    /// Its addresses, the first one leading; empty with host network.
    pub addresses: Vec<String>,
}

/// A container of a pod, in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The runtime's name for it.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// The sandbox it is in.
    pub sandbox: String,
    /// Which life it is, from 0: the restart count.
    pub attempt: u32,
    /// Where it is in this life.
    pub life: Life,
    /// The image as the runtime names it.
    pub image: String,
    /// The image's digest.
    pub image_id: String,
    /// Digest of the spec it was made from; empty when made by someone else.
    pub hash: String,
    /// What it was made to use; `None` when made by someone else.
    pub size: Option<Size>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Made but not started.
    Created,
    /// Running since.
    Running {
        /// When it started.
        started: Timestamp,
    },
    /// Ended.
    Exited(Exit),
    /// The runtime does not know; it must be stopped before anything else.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + signal when it was killed.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, …
    pub reason: String,
    /// Last words.
    pub message: String,
    /// When it started, unless it never did.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

/// What the agent remembers of a pod between rounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// Whether the volumes are in place.
    pub volumes: Volumes,
    /// Why no sandbox can be made on this node now; trying would only cost time.
    pub blocked: Option<String>,
    /// Why the sandbox could not be made, the last time.
    pub sandbox_failure: Option<Failure>,
    /// Why containers could not be started, the last time, by container name.
    pub failures: BTreeMap<String, Failure>,
    /// The life from which back-off counts, by container name: raised after a long run.
    pub base: BTreeMap<String, u32>,
    /// How the running containers answer, by container id.
    pub probes: BTreeMap<String, ProbeState>,
    /// What the containers were promised, by name.
    pub promised: BTreeMap<String, Promise>,
    /// What containers were told to use since they were made, by id.
    pub sizes: BTreeMap<String, Size>,
    /// A change of what they may use that has to wait.
    pub pending: Option<Pending>,
    /// Why a container could not be resized, the last time.
    pub resize_failure: Option<Failure>,
    /// Set once the pod must end although nobody deleted it.
    pub verdict: Option<Verdict>,
}

/// The state of a pod's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Volumes {
    /// Not tried yet.
    #[default]
    Unknown,
    /// All there.
    Ready,
    /// Not to be had now.
    Failed(Failure),
}

/// A step that failed, and how often in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `ErrImagePull`, `CreateContainerError`, …
    pub reason: String,
    /// The cause in words.
    pub message: String,
    /// When it failed last.
    pub at: Timestamp,
    /// How often in a row, from 1.
    pub count: u32,
}

/// Why a pod ends before its containers do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `DeadlineExceeded`, `Evicted`, …
    pub reason: String,
    /// The cause in words.
    pub message: String,
    /// Seconds between the stop signal and the kill; `None` for the pod's own.
    pub grace_seconds: Option<i64>,
}

impl Verdict {
    /// Tells whether the node ends a pod that it had taken, for its own sake.
    #[must_use]
    pub fn is_eviction(&self) -> bool {
        matches!(self.reason.as_str(), "Evicted" | "Terminated") && self.grace_seconds.is_some()
    }
}

impl Life {
    /// Tells whether the container's program runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// How it ended, when it did.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        if let Self::Exited(exit) = self { Some(exit) } else { None }
    }
}

impl Seen {
    /// The newest sandbox, ready or not.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().max_by_key(|sandbox| (sandbox.ready, sandbox.attempt))
    }

    /// The newest sandbox if it is ready.
    #[must_use]
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandbox().filter(|sandbox| sandbox.ready)
    }

    /// The lives of one container, newest first.
    #[must_use]
    pub fn lives(&self, name: &str) -> Vec<&Container> {
        let mut lives: Vec<&Container> =
            self.containers.iter().filter(|container| container.name == name).collect();
        lives.sort_by_key(|container| std::cmp::Reverse(container.attempt));
        lives
    }

    /// Tells whether nothing of the pod runs or holds an address any more.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.is_quiet() && self.sandboxes.iter().all(|sandbox| !sandbox.ready)
    }

    /// Tells whether none of the pod's containers runs, or may run.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.containers.iter().any(|c| matches!(c.life, Life::Running { .. } | Life::Unknown))
    }
}

impl Memory {
    /// Notes a failed start of a container.
    pub fn fail(&mut self, container: &str, reason: &str, message: String, now: Timestamp) {
        let count = self.failures.get(container).map_or(0, |failure| failure.count);
        let failure = Failure::new(reason, message, now, count);
        self.failures.insert(container.to_owned(), failure);
    }

    /// Notes a failed sandbox.
    pub fn fail_sandbox(&mut self, message: String, now: Timestamp) {
        let count = self.sandbox_failure.as_ref().map_or(0, |failure| failure.count);
        self.sandbox_failure = Some(Failure::new("FailedCreatePodSandBox", message, now, count));
    }

    /// Notes a container that could not be resized.
    pub fn fail_resize(&mut self, message: String, now: Timestamp) {
        let count = self.resize_failure.as_ref().map_or(0, |failure| failure.count);
        self.resize_failure = Some(Failure::new("Error", message, now, count));
    }

    /// Notes volumes that cannot be had.
    pub fn fail_volumes(&mut self, reason: &str, message: String, now: Timestamp) {
        let count = if let Volumes::Failed(failure) = &self.volumes { failure.count } else { 0 };
        self.volumes = Volumes::Failed(Failure::new(reason, message, now, count));
    }
}

impl Failure {
    fn new(reason: &str, message: String, at: Timestamp, before: u32) -> Self {
        Self { reason: reason.to_owned(), message, at, count: before.saturating_add(1) }
    }
}
