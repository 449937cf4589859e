//! A node's decisions about its pods, services and names.
//!
//! Everything here is a pure function of what was seen and the time it was seen at: which step
//! a pod needs next ([`plan`]), what is told about it ([`status`]), what its containers get
//! ([`env`], [`resources`], [`config`]), when to ask it how it is ([`probe`]), and what its log
//! lines say ([`log`]), who must go when the node runs short ([`pressure`], [`images`]), what
//! stands behind which service ([`behind`]), whose packets go where ([`service`]), who may speak
//! with whom ([`policy`]), what names mean ([`dns`]), what was promised to whom ([`ledger`],
//! [`devices`], [`cores`], [`slices`]), which pods are the node's own ([`manifest`]), and in which order they
//! end with it ([`shutdown`]). `agent` sees and does; nothing here touches a socket, disk or clock.
//!
//! Spec: upstream's kubelet, whose reasons, names and times are kept wherever a user can see them.

#![forbid(unsafe_code)]

pub mod behind;
pub mod config;
pub mod cores;
pub mod devices;
pub mod dns;
pub mod env;
pub mod field;
pub mod figures;
pub mod image_name;
pub mod images;
pub mod ledger;
pub mod links;
pub mod log;
pub mod machine;
pub mod manifest;
pub mod mirror;
pub mod names;
pub mod plan;
pub mod policy;
pub mod pressure;
pub mod probe;
pub mod query;
pub mod registry;
pub mod resize;
pub mod resources;
pub mod seen;
pub mod service;
pub mod settings;
pub mod shutdown;
pub mod slices;
pub mod status;
pub mod users;
