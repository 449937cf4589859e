//! Counters for `/metrics`, under upstream's names and labels.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use api::{Request, Verb};

/// Upper bounds of the buckets a request's time falls into, in seconds; upstream's.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Linux counts processor time in hundredths of a second for programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// What other parts of the process count.
#[derive(Default)]
pub(crate) struct Others(Mutex<Vec<Box<dyn Fn() -> String + Send + Sync>>>);

impl Others {
    /// Adds one that renders itself.
    pub(crate) fn add(&self, render: impl Fn() -> String + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(render));
    }

    /// All of them, one after the other.
    pub(crate) fn render(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|render| render()).collect()
    }
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: bool,
}

impl Series {
    /// A request to a resource.
    pub(crate) fn of(request: &Request) -> Self {
        let collection = request.name.is_empty();
        Self {
            verb: match request.verb {
                Verb::Get => "GET",
                Verb::List => "LIST",
                Verb::Watch => "WATCH",
                Verb::Create => "POST",
                Verb::Update => "PUT",
                Verb::Patch => "PATCH",
                Verb::Delete => "DELETE",
                Verb::DeleteCollection => "DELETECOLLECTION",
            },
            group: request.served.group.to_owned(),
            version: request.served.version.to_owned(),
            resource: request.kind.plural.to_owned(),
            subresource: request.subresource.clone(),
            scope: match (collection, request.namespace.is_empty()) {
                (false, _) => "resource",
                (true, false) => "namespace",
                (true, true) => "cluster",
            },
            dry_run: request.options.dry_run,
        }
    }

    /// A request to something else.
    pub(crate) fn other(method: &http::Method) -> Self {
        let verb = match method.as_str() {
            "GET" | "HEAD" => "GET",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        Self {
            verb,
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            scope: "",
            dry_run: false,
        }
    }

    /// Does it change anything?
    fn mutates(&self) -> bool {
        !matches!(self.verb, "GET" | "LIST" | "WATCH")
    }

    fn labels(&self) -> String {
        let dry_run = if self.dry_run { "All" } else { "" };
        format!(
            "component=\"apiserver\",dry_run=\"{dry_run}\",group=\"{}\",resource=\"{}\",scope=\"{}\",\
             subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

/// What became of the requests of a series.
#[derive(Debug, Default)]
struct Counts {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// The server's counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Series, Counts>>,
    watches: AtomicI64,
    reading: AtomicI64,
    mutating: AtomicI64,
}

/// A request on its way; counted as done when dropped.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts a request that begins, until what is returned is dropped.
    pub(crate) fn begin(&self, series: &Series) -> InFlight<'_> {
        let gauge = if series.mutates() { &self.mutating } else { &self.reading };
        gauge.fetch_add(1, Ordering::Relaxed);
        InFlight(gauge)
    }

    /// Counts a request that was answered.
    pub(crate) fn observe(&self, series: Series, code: u16, elapsed: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = requests.entry(series).or_default();
        *counts.codes.entry(code).or_default() += 1;
        let seconds = elapsed.as_secs_f64();
        counts.count += 1;
        counts.seconds += seconds;
        for (bucket, bound) in counts.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }

    /// Counts a watch that began (1) or ended (-1).
    pub(crate) fn watching(&self, change: i64) {
        self.watches.fetch_add(change, Ordering::Relaxed);
    }

    /// Renders everything as Prometheus reads it.
    pub(crate) fn render(&self, revision: u64, objects: &[(&'static str, usize)]) -> String {
        let mut out = Text::default();
        self.render_requests(&mut out);
        out.kind("apiserver_current_inflight_requests", "gauge");
        for (kind, gauge) in [("mutating", &self.mutating), ("readOnly", &self.reading)] {
            let labels = format!("request_kind=\"{kind}\"");
            let now = gauge.load(Ordering::Relaxed);
            out.put("apiserver_current_inflight_requests", &labels, now);
        }
        out.kind("apiserver_longrunning_requests", "gauge");
        let watches = self.watches.load(Ordering::Relaxed);
        out.put("apiserver_longrunning_requests", "verb=\"WATCH\"", watches);
        out.kind("apiserver_storage_objects", "gauge");
        for (resource, count) in objects {
            out.put("apiserver_storage_objects", &format!("resource=\"{resource}\""), count);
        }
        out.kind("muster_store_revision", "counter");
        out.put("muster_store_revision", "", revision);
        render_process(&mut out);
        out.0
    }

    fn render_requests(&self, out: &mut Text) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        out.kind("apiserver_request_total", "counter");
        for (series, counts) in requests.iter() {
            for (code, count) in &counts.codes {
                let labels = format!("code=\"{code}\",{}", series.labels());
                out.put("apiserver_request_total", &labels, count);
            }
        }
        let name = "apiserver_request_duration_seconds";
        out.kind(name, "histogram");
        for (series, counts) in requests.iter() {
            let labels = series.labels();
            for (bound, count) in BUCKETS.iter().zip(counts.buckets) {
                out.put(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), count);
            }
            out.put(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), counts.count);
            out.put(&format!("{name}_sum"), &labels, counts.seconds);
            out.put(&format!("{name}_count"), &labels, counts.count);
        }
    }
}

/// What every Prometheus client says of its process.
fn render_process(out: &mut Text) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}"));
    let status = read("status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    if let Some(kibibytes) = resident.and_then(|line| line.split_whitespace().next()) {
        let bytes = kibibytes.parse::<u64>().unwrap_or(0) << 10;
        out.kind("process_resident_memory_bytes", "gauge");
        out.put("process_resident_memory_bytes", "", bytes);
    }
    let stat = read("stat").unwrap_or_default();
    // The name in parentheses may hold blanks, so fields are counted from its end.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    out.kind("process_cpu_seconds_total", "counter");
    out.put("process_cpu_seconds_total", "", ticks / TICKS_PER_SECOND);
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        out.kind("process_open_fds", "gauge");
        out.put("process_open_fds", "", files.count());
    }
    let started = std::fs::metadata("/proc/self").and_then(|process| process.modified());
    let started = started.ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    if let Some(started) = started {
        out.kind("process_start_time_seconds", "gauge");
        out.put("process_start_time_seconds", "", started.as_secs());
    }
}

/// Text as Prometheus reads it.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn kind(&mut self, name: &str, kind: &str) {
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn put(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        match labels {
            "" => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{labels}}} {value}")),
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{text}").is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_ask_and_how_long_they_took() {
        let Ok(api::Route::Resource(request)) =
            api::parse_request("GET", "/apis/apps/v1/namespaces/a/deployments", "")
        else {
            panic!("a resource");
        };
        let metrics = Metrics::default();
        let series = Series::of(&request);
        let flying = metrics.begin(&series);
        assert!(metrics.render(1, &[]).contains("request_kind=\"readOnly\"} 1\n"));
        drop(flying);
        metrics.observe(series.clone(), 200, Duration::from_millis(30));
        metrics.observe(series, 200, Duration::from_secs(70));
        let text = metrics.render(7, &[("pods", 3)]);
        let labels = "component=\"apiserver\",dry_run=\"\",group=\"apps\",\
                      resource=\"deployments\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",\
                      version=\"v1\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",{labels}}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.025\"}} 0"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.05\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("apiserver_request_duration_seconds_count{{{labels}}} 2"),
            "apiserver_storage_objects{resource=\"pods\"} 3".to_owned(),
            "muster_store_revision 7".to_owned(),
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "));
    }
}
