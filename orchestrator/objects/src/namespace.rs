//! Namespaces.

use crate::{
    condition::Condition,
    kind,
    view::{objects, views},
};

objects! {
    /// A room for names.
    kind::NAMESPACE => pub struct Namespace {
        pub spec: NamespaceSpec,
        pub status: NamespaceStatus,
    }
}

views! {
    /// Who must let go before the namespace may vanish.
    pub struct NamespaceSpec {
        pub finalizers: Vec<String>,
    }

    /// `Active` or `Terminating`.
    pub struct NamespaceStatus {
        pub phase: String,
        pub conditions: Vec<Condition>,
    }
}
