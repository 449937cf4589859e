//! Cluster-wide decisions: the scheduler and every controller as a pure `reconcile`.
//!
//! A controller is a row of [`controller::CONTROLLERS`]: which kinds it looks at, which keys
//! there are, and what to do about one key. It gets a [`view::View`] and the time and returns
//! [`action::Steps`]; `manager` fetches the one and carries out the other. Nothing here knows
//! a clock, a socket or a lock.
//!
//! Start reading at [`controller`], then `replica_set`, the simplest of them.

#![forbid(unsafe_code)]

pub mod action;
pub mod controller;
pub mod view;
pub mod wake;

mod address;

pub mod aggregation;
pub mod approval;
pub mod attachment;
pub mod autoscaler;
pub mod budget;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod drain;
pub mod endpoints;
pub mod expansion;
pub mod garbage;
pub mod image_provisioner;
pub mod job;
pub mod lifecycle;
pub mod load_balancer;
pub mod machine;
pub mod membership;
pub mod mirror;
pub mod namespace;
pub mod pod_gc;
pub mod quota;
pub mod replica_set;
pub mod scaling;
pub mod scheduler;
pub mod service_account;
pub mod service_range;
pub mod snapshot;
pub mod stateful_set;
pub mod upgrade;
pub mod volume_binder;

mod family;
mod hash;
mod placement;
mod rollout;

#[cfg(test)]
mod world;
