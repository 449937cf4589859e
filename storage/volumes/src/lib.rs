//! Which volumes a pod needs on its node, and what is in them.
//!
//! [`plan_volumes`] turns a pod's volumes into [`Source`]s: directories to make, paths of the
//! node to check, files to write. [`plan_mounts`] says where each container sees them.
//! [`layout`] keeps a directory of files up to date in one step, so that a reader never
//! sees half of a change. Nothing here touches a disk; the node agent does what is planned.
//!
//! Volumes outside the node's own directories are [`remote`]; [`claim`] finds the one a claim
//! has, [`rbd`] speaks the kernel's words about Ceph images, [`disk`] says when a disk is
//! formatted, [`share`] how shares are mounted, [`owner`] whose files are whose, and [`attach`]
//! which node may have a volume, so that there are never two writers.
//!
//! Spec: upstream's volume kinds, their defaults, paths and messages.

#![forbid(unsafe_code)]

pub mod attach;
pub mod claim;
pub mod disk;
pub mod layout;
pub mod owner;
pub mod rbd;
pub mod remote;
pub mod share;

mod files;
mod mount;
mod source;

pub use files::{File, FileSet};
pub use mount::{Device, Mount, Propagation, SubPath, check_modes, plan_devices, plan_mounts};
pub use source::{
    Facts, HostPathKind, Problem, References, Source, TokenRequest, Volume, plan_volumes,
    references, token_requests,
};
