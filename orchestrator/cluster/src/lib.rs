//! The words of a site: `rack.yaml` (raw → checked), and the plan made from it.
//!
//! Knows no sockets, disks or clocks. [`plan::Plan::parse`] is the one way from text to a plan,
//! and it answers with every mistake at once.

#![forbid(unsafe_code)]

mod check;
mod document;
pub mod inventory;
pub mod plan;
pub mod preview;
pub mod problem;
