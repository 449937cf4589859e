//! API client, list-watch caches, the observe-plan-apply driver, events, certificates,
//! supervision, telemetry.
//!
//! The door between our services and the Kubernetes API. It decides nothing about the
//! cluster: what to write is the business of the crates that use it.
//!
//! Start reading at [`client::Client`], then [`cache::Cache`], then [`driver::drive`].

#![forbid(unsafe_code)]

pub mod backoff;
pub mod cache;
pub mod client;
pub mod driver;
pub mod pki;
pub mod recorder;
pub mod resource;
pub mod supervise;
pub mod telemetry;
pub mod trust;

pub use cache::Cache;
pub use client::{Client, ClientConfig, ClientError, Identity, Retry};
pub use driver::drive;
pub use resource::Resource;
pub use supervise::Supervisor;
pub use telemetry::report;
