//! What a node's boot files look like: manifest, command line, unified kernel image, hash tree.
//!
//! Pure: bytes and values in, bytes and values out. Builder, boot server, rig and init agree
//! through this crate; none of them renders or reads these forms by itself.

pub mod cmdline;
pub mod manifest;
pub mod uki;
pub mod verity;
