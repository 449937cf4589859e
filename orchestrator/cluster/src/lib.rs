//! The words of a site: `rack.yaml` (raw → checked), and the plan made from it.
//!
//! Knows no sockets, disks or clocks. A [`plan::Plan`] is proof that a site was checked:
//! it is only made by [`plan::Plan::parse`].

#![forbid(unsafe_code)]

pub mod plan;
