//! API client, list-watch caches, the observe-plan-apply driver, certificates, supervision, telemetry.

pub mod pki;
