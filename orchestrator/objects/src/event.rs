//! Events: what happened to an object, for people to read.

use crate::{
    kind,
    meta::ObjectReference,
    time::{MicroTime, Time},
    view::{objects, views},
};

objects! {
    /// Something that happened, in the form of core/v1.
    kind::EVENT => pub struct Event {
        pub involved_object: ObjectReference,
        pub reason: String,
        pub message: String,
        pub source: EventSource,
        pub first_timestamp: Option<Time>,
        pub last_timestamp: Option<Time>,
        pub count: i64,
        #[serde(rename = "type")]
        pub severity: String,
        pub event_time: Option<MicroTime>,
        pub action: String,
        pub related: Option<ObjectReference>,
        pub reporting_component: String,
        pub reporting_instance: String,
    }
}

views! {
    /// Who tells.
    pub struct EventSource {
        pub component: String,
        pub host: String,
    }
}
