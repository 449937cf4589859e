//! Racks of QEMU machines and ToR routers on one Linux host: the ground under
//! `muster up --sim` and under the scenarios.
//!
//! [`Rig`] is the front door. From a checked plan it builds network namespaces (the seed, one ToR
//! router per rack), cables between them, a tap for each machine, BIRD and a DHCP relay in each
//! router, and it switches QEMU machines on and off. It knows nothing of what runs on the seed:
//! whoever calls it starts the boot server and the master there.
//!
//! Everything outlives the process that built it: what a directory's `state.json` says is enough
//! for any later process to look at the rig, drive it and take it down.
//!
//! All calls block; an async caller uses `spawn_blocking`. Root is needed.

#![forbid(unsafe_code)]

pub mod ceph;
pub mod ganesha;
pub mod host;
pub mod http;
pub mod pcap;
pub mod scenario;
pub mod wait;

mod machine;
mod network;
mod process;
mod rig;
mod topology;

pub use machine::Accelerator;
pub use network::seed_addresses;
pub use rig::{Place, Power, Rig, RigOptions};
pub use topology::Stranger;
