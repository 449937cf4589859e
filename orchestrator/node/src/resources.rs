//! From amounts in a pod to numbers for the kernel: shares, quotas, limits, and who dies first.
//!
//! Spec: upstream's conversion for cgroups and its OOM scores by quality-of-service class.

use objects::Quantity;
use objects::pod::{Container, PodSpec, ResourceList};

/// The CFS period all quotas refer to, in microseconds.
const PERIOD_US: i64 = 100_000;
/// The smallest quota the kernel takes, in microseconds.
const QUOTA_US_MIN: i64 = 1_000;
/// The smallest CPU weight.
const SHARES_MIN: i64 = 2;
/// The largest CPU weight.
const SHARES_MAX: i64 = 262_144;

/// Limits of a container in the kernel's units; 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// CPU weight, 1024 per core asked for.
    pub cpu_shares: i64,
    /// CPU time per period, in microseconds.
    pub cpu_quota_us: i64,
    /// The period, in microseconds.
    pub cpu_period_us: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// -1000 … 1000; the highest dies first when memory runs out.
    pub oom_score_adj: i64,
}

/// The limits of one container of a pod on a node with so much memory.
#[must_use]
pub fn limits(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> Limits {
    let resources = &container.resources;
    // Upstream: a limit without a request is a request of the same amount.
    let request = amount(&resources.requests, "cpu").or_else(|| amount(&resources.limits, "cpu"));
    let cpu_limit = amount(&resources.limits, "cpu").map_or(0, |q| q.milli_value());
    let memory_bytes = amount(&resources.limits, "memory").map_or(0, |q| q.value());
    Limits {
        cpu_shares: shares(request.map_or(0, |q| q.milli_value())),
        cpu_quota_us: if cpu_limit > 0 {
            (cpu_limit.saturating_mul(PERIOD_US) / 1000).max(QUOTA_US_MIN)
        } else {
            0
        },
        cpu_period_us: PERIOD_US,
        memory_bytes,
        oom_score_adj: oom_score(spec, container, node_memory_bytes),
    }
}

/// The limits of all containers of a pod together, for runtimes that size a machine by them.
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> Limits {
    let sum = |name: &str, pick: fn(&Container) -> &ResourceList, value: fn(&Quantity) -> i64| {
        let amounts = spec.containers.iter().map(|c| pick(c).get(name).map(value));
        amounts
            .collect::<Option<Vec<i64>>>()
            .map(|all| all.into_iter().fold(0, i64::saturating_add))
    };
    let cpu = sum("cpu", |c| &c.resources.requests, Quantity::milli_value);
    let quota = sum("cpu", |c| &c.resources.limits, Quantity::milli_value);
    let memory = sum("memory", |c| &c.resources.limits, Quantity::value);
    Limits {
        cpu_shares: shares(cpu.unwrap_or(0)),
        cpu_quota_us: quota.map_or(0, |milli| milli.saturating_mul(PERIOD_US) / 1000),
        cpu_period_us: PERIOD_US,
        // One container without a limit is a pod without one.
        memory_bytes: memory.unwrap_or(0),
        oom_score_adj: 0,
    }
}

/// What a pod costs besides its containers.
#[must_use]
pub fn overhead(spec: &PodSpec) -> Limits {
    let milli = amount(&spec.overhead, "cpu").map_or(0, |cpu| cpu.milli_value());
    Limits {
        cpu_shares: if milli > 0 { shares(milli) } else { 0 },
        cpu_quota_us: milli.saturating_mul(PERIOD_US) / 1000,
        cpu_period_us: PERIOD_US,
        memory_bytes: amount(&spec.overhead, "memory").map_or(0, |memory| memory.value()),
        oom_score_adj: 0,
    }
}

/// The quality-of-service class: `Guaranteed`, `Burstable` or `BestEffort`.
#[must_use]
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(&spec.init_containers);
    let names = ["cpu", "memory"];
    let set = |list: &ResourceList| names.iter().any(|name| amount(list, name).is_some());
    // What is said of the whole pod stands above what is said of its parts.
    if let Some(own) = spec.resources.as_ref().filter(|own| set(&own.limits) || set(&own.requests))
    {
        let is_whole = |name: &&str| {
            let limit = amount(&own.limits, name);
            let request = amount(&own.requests, name);
            limit.is_some_and(|limit| request.is_none_or(|request| request == limit))
        };
        return if names.iter().all(is_whole) { "Guaranteed" } else { "Burstable" };
    }
    if !all().any(|c| set(&c.resources.limits) || set(&c.resources.requests)) {
        return "BestEffort";
    }
    let guaranteed = all().all(|c| {
        names.iter().all(|name| {
            let limit = amount(&c.resources.limits, name);
            let request = amount(&c.resources.requests, name);
            limit.is_some_and(|limit| request.is_none_or(|request| request == limit))
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

fn oom_score(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> i64 {
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let resources = &container.resources;
            let asked = amount(&resources.requests, "memory")
                .or_else(|| amount(&resources.limits, "memory"))
                .map_or(0, |q| q.value());
            let part = asked.saturating_mul(1000).checked_div(node_memory_bytes).unwrap_or(0);
            // Never as safe as Guaranteed, never as doomed as BestEffort.
            (1000_i64.saturating_sub(part)).clamp(3, 999)
        }
    }
}

fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

fn amount(list: &ResourceList, name: &str) -> Option<Quantity> {
    list.get(name).copied().filter(|quantity| !quantity.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(resources: serde_json::Value, class: &str, expected: [i64; 4]) {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "a", "resources": resources}]}))
                .unwrap();
        let got = limits(&spec, &spec.containers[0], 4 << 30);
        assert_eq!(qos_class(&spec), class);
        assert_eq!(
            [got.cpu_shares, got.cpu_quota_us, got.memory_bytes, got.oom_score_adj],
            expected
        );
    }

    #[test]
    fn a_pod_is_as_large_as_its_containers_and_its_overhead() {
        let spec: PodSpec = serde_json::from_value(json!({
            "overhead": {"cpu": "100m", "memory": "64Mi"},
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Mi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}},
            ],
        }))
        .unwrap();
        let pod = pod_limits(&spec);
        assert_eq!((pod.cpu_shares, pod.cpu_quota_us, pod.memory_bytes), (1024, 200_000, 0));
        let more = overhead(&spec);
        assert_eq!(
            (more.cpu_shares, more.cpu_quota_us, more.memory_bytes),
            (102, 10_000, 64 << 20)
        );
        assert_eq!(overhead(&PodSpec::default()).cpu_shares, 0);
    }

    #[test]
    fn amounts_become_the_kernels_numbers() {
        check(json!({}), "BestEffort", [2, 0, 0, 1000]);
        check(json!({"requests": {"cpu": "250m"}}), "Burstable", [256, 0, 0, 999]);
        check(json!({"requests": {"memory": "1Gi"}}), "Burstable", [2, 0, 0, 750]);
        check(
            json!({"limits": {"cpu": "2", "memory": "64Mi"}}),
            "Guaranteed",
            [2048, 200_000, 64 << 20, -997],
        );
        check(
            json!({"limits": {"cpu": "1m", "memory": "8Gi"}, "requests": {"cpu": "1m", "memory": "1"}}),
            "Burstable",
            [2, 1000, 8 << 30, 999],
        );
    }
}
