//! Which volumes a pod needs on its node, and what is in them.
//!
//! [`plan_volumes`] turns a pod's volumes into [`Source`]s: directories to make, paths of the
//! node to check, files to write. [`plan_mounts`] says where each container sees them.
//! [`layout`] keeps a directory of files up to date in one step, so that a reader never
//! sees half of a change. Nothing here touches a disk; the node agent does what is planned.
//!
//! Spec: upstream's emptyDir, hostPath, configMap, secret, downwardAPI and projected volumes.
//!
//! *Limits*: persistent volume claims are named as problems of the pod; ownership by `fsGroup`
//! is left to the agent, and so is asking for tokens.

#![forbid(unsafe_code)]

pub mod layout;

mod files;
mod mount;
mod source;

pub use files::{File, FileSet};
pub use mount::{Mount, Propagation, SubPath, plan_mounts};
pub use source::{
    Facts, HostPathKind, Problem, References, Source, TokenRequest, Volume, plan_volumes,
    references, token_requests,
};
