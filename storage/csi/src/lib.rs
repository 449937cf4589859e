//! Speaks the container storage interface, both ways: [`Client`] calls a driver, [`Service`] and
//! [`serve`] are one.
//!
//! Messages and calls stand once, in [`message`] and `call`; client, server and dispatch are
//! made of the same table. Nothing is decided here.
//!
//! Spec: CSI 1.12 (`csi.v1`) and the node agent's registration of plugins
//! (`pluginregistration`).
//!
//! *Limits*: group snapshots, snapshot metadata and volume modification are not modelled;
//! unknown fields are skipped.

#![forbid(unsafe_code)]

pub mod message;

mod call;

pub use call::{CallError, Client, ConnectError, ServeError, Service, serve};
pub use tonic::{Code, Status};
