//! The messages of CRI v1 that the agent uses, field for field.
//!
//! Names are the interface's own (in Rust's spelling), so a reader can look each one up in the
//! interface's description. Enumerations travel as numbers; the getters that prost derives
//! (`state()`, `protocol()`) give the enumeration and read an unknown number as the first value.

#![allow(missing_docs, reason = "names and meanings are the interface's own")]

mod container;
mod containerd;
mod image;
mod runtime;
mod sandbox;

pub use container::*;
pub(crate) use containerd::*;
pub use image::*;
pub use runtime::*;
pub use sandbox::*;
