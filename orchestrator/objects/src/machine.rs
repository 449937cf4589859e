//! Machines, racks and node images: the site as API objects (`muster.dev/v1alpha1`).
//!
//! The specs of `Machine` and `Rack` are `cluster::plan::{Machine, Rack}`; this crate stands on
//! the same floor as `cluster`, so they are kept as JSON here and read by those who know both.

use serde_json::Value;

use crate::{
    condition::Condition,
    kind,
    time::MicroTime,
    view::{objects, views},
};

objects! {
    /// A machine of the plan; its `spec` reads as `cluster::plan::Machine`.
    kind::MACHINE => pub struct Machine {
        pub spec: Value,
        pub status: MachineStatus,
    }

    /// A rack of the plan; its `spec` reads as `cluster::plan::Rack`.
    kind::RACK => pub struct Rack {
        pub spec: Value,
        pub status: Value,
    }

    /// A release of the node image; its `spec` reads as the image's manifest.
    kind::NODE_IMAGE => pub struct NodeImage {
        pub spec: Value,
        pub status: Value,
    }
}

views! {
    /// How far a machine has come on its road.
    pub struct MachineStatus {
        /// The last phase reached: power, dhcp, loader, kernel, image, verified, agent, ready.
        pub phase: String,
        /// When each phase was reached.
        pub phases: Vec<PhaseTime>,
        /// Why the machine does not get further, in words.
        pub cause: String,
        /// Addresses the machine was seen with.
        pub addresses: Vec<String>,
        /// What the hardware said of itself: mac, uuid, serial.
        pub evidence: Value,
        /// Set when identities clash; such a machine is given nothing.
        pub quarantined: bool,
        pub conditions: Vec<Condition>,
    }

    /// When a phase was reached.
    pub struct PhaseTime {
        pub name: String,
        pub at: Option<MicroTime>,
    }
}
