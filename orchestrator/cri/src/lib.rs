//! Speaks the container runtime interface (containerd, CRI-O).
//!
//! [`Runtime`] is a client of `runtime.v1` over the runtime's Unix socket; [`message`] holds
//! the messages of the calls that the node agent uses. Nothing is decided here: which pod
//! should run is `node`'s business, when to ask is `agent`'s.
//!
//! [`Runtime::import_archive`] goes beyond CRI: it brings image archives into containerd.
//! [`device`] is the other door: plugins that bring devices to a node.
//!
//! Spec: Kubernetes CRI v1 (`runtime.v1.RuntimeService`, `runtime.v1.ImageService`).
//!
//! *Limits*: Windows fields, statistics of pods, checkpoints and metrics are not
//! modelled; unknown fields that a newer runtime sends are skipped.

#![forbid(unsafe_code)]

pub mod device;
pub mod message;

mod archive;
mod client;

pub use archive::ImportError;
pub use client::{CallError, ConnectError, Events, Runtime};
