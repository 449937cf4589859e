//! Our own kinds: what a site is made of.

use super::{BASE, Kind};

/// A machine of the plan.
pub static MACHINE: Kind = Kind {
    group: "muster.dev",
    version: "v1alpha1",
    kind: "Machine",
    plural: "machines",
    singular: "machine",
    categories: &["muster"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    selectable: &["spec.rack", "spec.role", "status.phase"],
    ..BASE
};

/// A release of the node image.
pub static NODE_IMAGE: Kind = Kind {
    group: "muster.dev",
    version: "v1alpha1",
    kind: "NodeImage",
    plural: "nodeimages",
    singular: "nodeimage",
    categories: &["muster"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};

/// A rack of the plan.
pub static RACK: Kind = Kind {
    group: "muster.dev",
    version: "v1alpha1",
    kind: "Rack",
    plural: "racks",
    singular: "rack",
    categories: &["muster"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};
