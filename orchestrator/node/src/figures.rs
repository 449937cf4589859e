//! Figures of a node and its containers, in the shapes that upstream's clients read.
//!
//! Spec: the kubelet's summary API (`stats.k8s.io/v1alpha1` as JSON), its resource metrics, and
//! the names of cAdvisor's metrics for what is measured here.
//!
//! *Limits*: no network figures of pods, no inodes, no accelerators.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Nanoseconds of one tick of `/proc/stat`.
const TICK_NS: u64 = 10_000_000;

/// Whose figures they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub name: String,
}

/// What was used up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The moment.
    pub at: Timestamp,
    /// CPU time since the start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that cannot be taken back, in bytes.
    pub working_set_bytes: u64,
    /// Memory with caches, in bytes.
    pub usage_bytes: u64,
    /// Anonymous memory, in bytes.
    pub rss_bytes: u64,
    /// What was written to the container's own layer, in bytes.
    pub disk_bytes: u64,
}

/// The last two readings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    before: Option<Reading>,
    last: Option<Reading>,
}

/// Everything that is told of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// When the agent started.
    pub started: Timestamp,
    /// What the whole machine uses.
    pub sample: Sample,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Memory that could be had at once, in bytes.
    pub memory_free_bytes: i64,
    /// The file system of the pods, in bytes.
    pub disk_bytes: i64,
    /// What is free on it, in bytes.
    pub disk_free_bytes: i64,
    /// What images take, in bytes.
    pub image_bytes: u64,
    /// The running containers.
    pub containers: Vec<(Container, Sample)>,
}

impl Sample {
    /// Adds a reading; one as old as the last is none.
    pub fn push(&mut self, reading: Reading) {
        if self.last.is_some_and(|last| last.at >= reading.at) {
            return;
        }
        // A count that went back is another life's.
        let before = self.last.filter(|last| last.cpu_ns <= reading.cpu_ns);
        *self = Self { before, last: Some(reading) };
    }

    /// The last reading.
    #[must_use]
    pub fn last(&self) -> Option<Reading> {
        self.last
    }

    /// CPU used per second between the two readings, in nanoseconds; `None` before the second.
    #[must_use]
    pub fn cpu_rate(&self) -> Option<u64> {
        let (before, last) = (self.before?, self.last?);
        let elapsed = last.at.as_nanosecond().saturating_sub(before.at.as_nanosecond());
        let used = i128::from(last.cpu_ns.saturating_sub(before.cpu_ns));
        let rate = used.saturating_mul(1_000_000_000).checked_div(elapsed)?;
        u64::try_from(rate).ok()
    }

    fn render_cpu(&self) -> Option<Value> {
        let last = self.last?;
        let mut cpu = json!({"time": last.at.to_string(), "usageCoreNanoSeconds": last.cpu_ns});
        if let (Some(rate), Some(fields)) = (self.cpu_rate(), cpu.as_object_mut()) {
            fields.insert("usageNanoCores".to_owned(), json!(rate));
        }
        Some(cpu)
    }

    fn render_memory(&self) -> Option<Value> {
        let last = self.last?;
        Some(json!({"time": last.at.to_string(), "usageBytes": last.usage_bytes,
            "workingSetBytes": last.working_set_bytes, "rssBytes": last.rss_bytes}))
    }
}

/// CPU time the machine has used, in nanoseconds, from the text of `/proc/stat`.
#[must_use]
pub fn parse_stat(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields: Vec<u64> =
        line.unwrap_or_default().split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    // user nice system idle iowait irq softirq steal; guests are counted as user.
    let busy = fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4));
    let ticks = busy.fold(0_u64, |sum, (_, ticks)| sum.saturating_add(*ticks));
    ticks.saturating_mul(TICK_NS)
}

/// Renders the summary.
#[must_use]
pub fn render_summary(node: &Node) -> Value {
    let now = node.sample.last.map(|last| last.at.to_string());
    let mut memory = node.sample.render_memory().unwrap_or_else(|| json!({}));
    if let Some(fields) = memory.as_object_mut() {
        fields.insert("availableBytes".to_owned(), json!(node.memory_free_bytes));
    }
    let fs = json!({"time": now, "availableBytes": node.disk_free_bytes,
        "capacityBytes": node.disk_bytes,
        "usedBytes": node.disk_bytes.saturating_sub(node.disk_free_bytes)});
    let mut image_fs = fs.clone();
    if let Some(fields) = image_fs.as_object_mut() {
        fields.insert("usedBytes".to_owned(), json!(node.image_bytes));
    }
    let mut pods: BTreeMap<&str, (&Container, Vec<Value>, Vec<&Sample>)> = BTreeMap::new();
    for (container, sample) in &node.containers {
        let pod = pods.entry(&container.uid).or_insert_with(|| (container, vec![], vec![]));
        let used = sample.last.map_or(0, |last| last.disk_bytes);
        pod.1.push(json!({"name": container.name, "startTime": null,
            "cpu": sample.render_cpu(), "memory": sample.render_memory(),
            "rootfs": {"time": now, "usedBytes": used, "capacityBytes": node.disk_bytes,
                "availableBytes": node.disk_free_bytes}}));
        pod.2.push(sample);
    }
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(owner, containers, samples)| {
            let sum = sum(&samples);
            json!({"podRef": {"name": owner.pod, "namespace": owner.namespace, "uid": owner.uid},
                "containers": containers, "cpu": sum.render_cpu(), "memory": sum.render_memory()})
        })
        .collect();
    json!({
        "node": {"nodeName": node.name, "startTime": node.started.to_string(),
            "cpu": node.sample.render_cpu(), "memory": memory, "fs": fs,
            "runtime": {"imageFs": image_fs.clone(), "containerFs": image_fs}},
        "pods": pods,
    })
}

/// The sum of several samples, reading by reading.
fn sum(samples: &[&Sample]) -> Sample {
    let add = |pick: fn(&Sample) -> Option<Reading>| {
        let readings = samples.iter().map(|sample| pick(sample));
        let all: Option<Vec<Reading>> = readings.collect();
        all?.into_iter().reduce(|sum, one| Reading {
            at: sum.at.max(one.at),
            cpu_ns: sum.cpu_ns.saturating_add(one.cpu_ns),
            working_set_bytes: sum.working_set_bytes.saturating_add(one.working_set_bytes),
            usage_bytes: sum.usage_bytes.saturating_add(one.usage_bytes),
            rss_bytes: sum.rss_bytes.saturating_add(one.rss_bytes),
            disk_bytes: sum.disk_bytes.saturating_add(one.disk_bytes),
        })
    };
    Sample { before: add(|sample| sample.before), last: add(|sample| sample.last) }
}

/// Renders the resource metrics, as metrics-server scrapes them.
#[must_use]
pub fn render_resource(node: &Node) -> String {
    let mut page = Page::default();
    let (cpu, memory) = ("cpu_usage_seconds_total", "memory_working_set_bytes");
    page.head(&format!("node_{cpu}"), "counter", "Cumulative cpu time of the node in seconds");
    page.seconds(&format!("node_{cpu}"), "", &node.sample);
    page.head(&format!("node_{memory}"), "gauge", "Working set of the node in bytes");
    page.bytes(&format!("node_{memory}"), "", &node.sample, |reading| reading.working_set_bytes);
    page.head(&format!("container_{cpu}"), "counter", "Cumulative cpu time in seconds");
    for (container, sample) in &node.containers {
        page.seconds(&format!("container_{cpu}"), &labels(container), sample);
    }
    page.head(&format!("container_{memory}"), "gauge", "Working set in bytes");
    for (container, sample) in &node.containers {
        let name = format!("container_{memory}");
        page.bytes(&name, &labels(container), sample, |reading| reading.working_set_bytes);
    }
    let pods = by_pod(node);
    page.head(&format!("pod_{cpu}"), "counter", "Cumulative cpu time of the pod in seconds");
    for (labels, sample) in &pods {
        page.seconds(&format!("pod_{cpu}"), labels, sample);
    }
    page.head(&format!("pod_{memory}"), "gauge", "Working set of the pod in bytes");
    for (labels, sample) in &pods {
        page.bytes(&format!("pod_{memory}"), labels, sample, |reading| reading.working_set_bytes);
    }
    page.head("resource_scrape_error", "gauge", "1 if the readings failed, 0 otherwise");
    page.text.push_str("resource_scrape_error 0\n");
    page.text
}

/// Renders what is measured of containers under cAdvisor's names.
#[must_use]
pub fn render_cadvisor(node: &Node) -> String {
    type Pick = fn(&Reading) -> u64;
    let gauges: [(&str, Pick); 4] = [
        ("container_memory_working_set_bytes", |reading| reading.working_set_bytes),
        ("container_memory_usage_bytes", |reading| reading.usage_bytes),
        ("container_memory_rss", |reading| reading.rss_bytes),
        ("container_fs_usage_bytes", |reading| reading.disk_bytes),
    ];
    let mut page = Page::default();
    let cpu = "container_cpu_usage_seconds_total";
    page.head(cpu, "counter", "Cumulative cpu time consumed in seconds");
    for (container, sample) in &node.containers {
        page.seconds(cpu, &labels(container), sample);
    }
    for (name, pick) in gauges {
        page.head(name, "gauge", "Bytes in use");
        for (container, sample) in &node.containers {
            page.bytes(name, &labels(container), sample, pick);
        }
    }
    page.head("machine_memory_bytes", "gauge", "Memory of the machine in bytes");
    page.text.push_str(&format!("machine_memory_bytes {}\n", node.memory_bytes));
    page.text
}

fn by_pod(node: &Node) -> Vec<(String, Sample)> {
    let mut pods: BTreeMap<&str, (&Container, Vec<&Sample>)> = BTreeMap::new();
    for (container, sample) in &node.containers {
        pods.entry(&container.uid).or_insert_with(|| (container, vec![])).1.push(sample);
    }
    let labels =
        |owner: &Container| format!("{{namespace=\"{}\",pod=\"{}\"}}", owner.namespace, owner.pod);
    pods.into_values().map(|(owner, samples)| (labels(owner), sum(&samples))).collect()
}

fn labels(container: &Container) -> String {
    // Names of objects hold no quotes.
    let Container { namespace, pod, name, .. } = container;
    format!("{{container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"}}")
}

/// A page of metrics in Prometheus' text format.
#[derive(Debug, Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _done = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn seconds(&mut self, name: &str, labels: &str, sample: &Sample) {
        let Some(last) = sample.last else { return };
        let (whole, rest) = (last.cpu_ns / 1_000_000_000, last.cpu_ns % 1_000_000_000);
        let at = last.at.as_millisecond();
        let _done = writeln!(self.text, "{name}{labels} {whole}.{rest:09} {at}");
    }

    fn bytes(&mut self, name: &str, labels: &str, sample: &Sample, pick: fn(&Reading) -> u64) {
        let Some(last) = sample.last else { return };
        let _done =
            writeln!(self.text, "{name}{labels} {} {}", pick(&last), last.at.as_millisecond());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: i64, cpu_ns: u64, memory: u64) -> Reading {
        Reading {
            at: Timestamp::from_second(second).unwrap(),
            cpu_ns,
            working_set_bytes: memory,
            usage_bytes: memory,
            rss_bytes: memory,
            disk_bytes: 7,
        }
    }

    fn sample(cpu: [u64; 2], memory: u64) -> Sample {
        let mut sample = Sample::default();
        sample.push(reading(100, cpu[0], memory));
        sample.push(reading(110, cpu[1], memory));
        sample
    }

    fn node() -> Node {
        let container = |pod: &str, name: &str| Container {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            uid: format!("uid-{pod}"),
            name: name.to_owned(),
        };
        Node {
            name: "w1".to_owned(),
            started: Timestamp::UNIX_EPOCH,
            sample: sample([0, 5_000_000_000], 4000),
            memory_bytes: 10_000,
            memory_free_bytes: 6000,
            disk_bytes: 100,
            disk_free_bytes: 60,
            image_bytes: 30,
            containers: vec![
                (container("p", "a"), sample([1_000_000_000, 2_000_000_000], 50)),
                (container("p", "b"), sample([0, 500_000_000], 70)),
                (container("q", "a"), sample([0, 0], 1)),
            ],
        }
    }

    #[test]
    fn a_rate_needs_two_readings_of_one_life() {
        let mut sample = Sample::default();
        assert_eq!(sample.cpu_rate(), None);
        sample.push(reading(10, 1000, 0));
        sample.push(reading(10, 9999, 0));
        assert_eq!(sample.cpu_rate(), None, "the same reading twice");
        sample.push(reading(12, 3000, 0));
        assert_eq!(sample.cpu_rate(), Some(1000));
        sample.push(reading(14, 10, 0));
        assert_eq!(sample.cpu_rate(), None, "the container was restarted");
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let summary = render_summary(&node());
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"]["name"], "p");
        assert_eq!(pod["cpu"]["usageNanoCores"], 150_000_000);
        assert_eq!(pod["memory"]["workingSetBytes"], 120);
        assert_eq!(pod["containers"][1]["cpu"]["usageNanoCores"], 50_000_000);
        assert_eq!(summary["node"]["cpu"]["usageNanoCores"], 500_000_000);
        assert_eq!(summary["node"]["memory"]["availableBytes"], 6000);
        assert_eq!(summary["node"]["fs"]["usedBytes"], 40);
    }

    #[test]
    fn metrics_have_the_names_that_are_scraped() {
        let resource = render_resource(&node());
        for line in [
            "node_cpu_usage_seconds_total 5.000000000 110000",
            "container_memory_working_set_bytes{container=\"b\",namespace=\"default\",pod=\"p\"} 70 110000",
            "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"p\"} 2.500000000 110000",
            "# TYPE pod_memory_working_set_bytes gauge",
        ] {
            assert!(resource.lines().any(|have| have == line), "{line} is not in\n{resource}");
        }
        assert!(render_cadvisor(&node()).contains("container_fs_usage_bytes{container=\"a\""));
    }

    #[test]
    fn the_machines_own_time_is_all_but_idle() {
        assert_eq!(parse_stat("cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1"), 27 * TICK_NS);
        assert_eq!(parse_stat(""), 0);
    }
}
