//! Leases: heartbeats of nodes and claims of leaders.

use crate::{
    kind,
    time::MicroTime,
    view::{objects, views},
};

objects! {
    /// A heartbeat or a leader's claim.
    kind::LEASE => pub struct Lease {
        pub spec: LeaseSpec,
    }
}

views! {
    /// Who holds the lease, and since when.
    pub struct LeaseSpec {
        pub holder_identity: Option<String>,
        pub lease_duration_seconds: Option<i64>,
        pub acquire_time: Option<MicroTime>,
        pub renew_time: Option<MicroTime>,
        pub lease_transitions: Option<i64>,
    }
}
