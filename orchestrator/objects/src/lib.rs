//! Kubernetes and muster objects: the words every part of the orchestrator speaks.
//!
//! The [`kind::KINDS`] table says which kinds exist; the views ([`pod::Pod`], [`node::Node`], …)
//! are typed windows on their JSON that keep the fields they do not name; around them stand
//! the small languages of the API: quantities, selectors, times, names, conditions, `Status`.
//!
//! Nothing here reads a clock, a socket or a file. Defaults and validation live in `api`.
//!
//! *Limits*: the views name what our own components read or write; everything else of an
//! object is carried in `extra` and survives a round trip untouched.

mod view;

pub mod kind;
pub mod meta;

pub mod access;
pub mod batch;
pub mod certificate;
pub mod config;
pub mod event;
pub mod lease;
pub mod machine;
pub mod namespace;
pub mod network;
pub mod node;
pub mod pod;
pub mod policy;
pub mod storage;
pub mod workload;

pub mod condition;
pub mod field;
pub mod int_or_string;
pub mod intern;
pub mod name;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod time;

pub use condition::Condition;
pub use int_or_string::IntOrString;
pub use kind::Kind;
pub use meta::{LabelSelector, ObjectMeta, OwnerReference};
pub use quantity::Quantity;
pub use selector::{FieldSelector, Selector};
pub use status::{Cause, Status};
pub use time::{MicroTime, Time};
