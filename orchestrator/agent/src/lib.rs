//! The node agent: joins, runs pods, serves logs, programs services.

pub mod proxy;
