//! Counters for `/metrics`, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Verb, resource and code.
type Series = (&'static str, &'static str, u16);

/// The server's counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Series, (u64, f64)>>,
    watches: AtomicI64,
}

impl Metrics {
    /// Counts a request that was answered.
    pub(crate) fn observe(
        &self,
        verb: &'static str,
        resource: &'static str,
        code: u16,
        elapsed: std::time::Duration,
    ) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, seconds) = requests.entry((verb, resource, code)).or_default();
        *count += 1;
        *seconds += elapsed.as_secs_f64();
    }

    /// Counts a watch that began (1) or ended (-1).
    pub(crate) fn watching(&self, change: i64) {
        self.watches.fetch_add(change, Ordering::Relaxed);
    }

    /// Renders everything as Prometheus reads it.
    pub(crate) fn render(&self, revision: u64, objects: &[(&'static str, usize)]) -> String {
        let mut out = String::new();
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        out.push_str("# TYPE apiserver_request_total counter\n");
        for ((verb, resource, code), (count, _)) in requests.iter() {
            put(&mut out, "apiserver_request_total", (verb, resource, *code), *count);
        }
        out.push_str("# TYPE apiserver_request_duration_seconds summary\n");
        for ((verb, resource, code), (count, seconds)) in requests.iter() {
            let series = (*verb, *resource, *code);
            put(&mut out, "apiserver_request_duration_seconds_sum", series, *seconds);
            put(&mut out, "apiserver_request_duration_seconds_count", series, *count);
        }
        drop(requests);
        out.push_str("# TYPE apiserver_longrunning_requests gauge\n");
        let watches = self.watches.load(Ordering::Relaxed);
        line(&mut out, format_args!("apiserver_longrunning_requests{{verb=\"WATCH\"}} {watches}"));
        out.push_str("# TYPE apiserver_storage_objects gauge\n");
        for (resource, count) in objects {
            let name = "apiserver_storage_objects";
            line(&mut out, format_args!("{name}{{resource=\"{resource}\"}} {count}"));
        }
        out.push_str("# TYPE muster_store_revision counter\n");
        line(&mut out, format_args!("muster_store_revision {revision}"));
        out
    }
}

fn put(
    out: &mut String,
    name: &str,
    (verb, resource, code): Series,
    value: impl std::fmt::Display,
) {
    let labels = format_args!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"");
    line(out, format_args!("{name}{{{labels}}} {value}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = writeln!(out, "{text}").is_ok();
}
