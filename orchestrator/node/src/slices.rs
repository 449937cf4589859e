//! Control groups of pods: who shares what with whom, and what all of a pod may use together.
//!
//! The pods of a node are in `kubepods`, which is as large as what the node has for pods. Those
//! that are promised all they may use are in it directly; those promised a part are in
//! `burstable` below it, those promised nothing in `besteffort`, which gets what is left over.
//! Each pod has a group of its own, and the runtime makes its containers' groups in there.
//!
//! Spec: upstream's layout of cgroup v2 with the `cgroupfs` driver, and its conversion of CPU
//! shares to weights: 2, 1024 and 262,144 shares are the weights 1, 100 and 10,000.

use std::collections::BTreeMap;

use objects::pod::{Container, Pod, PodSpec, ResourceList};

use crate::ledger;
use crate::manifest::local_uid;
use crate::plan::is_sidecar;
use crate::resources::qos_class;

/// The group of all pods.
pub const PODS: &str = "kubepods";
/// The group of pods that are promised a part of what they may use.
const BURSTABLE: &str = "burstable";
/// The group of pods that are promised nothing.
const BEST_EFFORT: &str = "besteffort";
/// The period that limits of CPU time refer to, in microseconds.
const PERIOD_US: i64 = 100_000;
/// The smallest limit of CPU time that the kernel takes, in microseconds.
const QUOTA_US_MIN: i64 = 1_000;
/// The least and the most shares.
const SHARES: (i64, i64) = (2, 262_144);
/// The most weight.
const WEIGHT_MAX: u32 = 10_000;

/// A control group: what is to be in its files, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// Where it is below the group that all pods are in, without a leading slash; empty for that
    /// group itself.
    pub path: String,
    /// What its files say.
    pub files: BTreeMap<&'static str, String>,
}

/// What a group may use; `None` stands for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// CPU asked for, in thousandths; it decides the weight.
    pub cpu_milli: i64,
    /// CPU allowed, in thousandths.
    pub cpu_milli_max: Option<i64>,
    /// Memory in bytes.
    pub memory_bytes_max: Option<i64>,
    /// Process ids.
    pub pids_max: Option<i64>,
}

impl Slice {
    /// A group as large as `room`.
    #[must_use]
    pub fn new(path: &str, room: Room) -> Self {
        let amount = |max: Option<i64>| max.map_or_else(|| "max".to_owned(), |max| max.to_string());
        let quota = room
            .cpu_milli_max
            .map(|milli| (milli.saturating_mul(PERIOD_US) / 1000).max(QUOTA_US_MIN));
        let mut slice = Self { path: path.to_owned(), files: BTreeMap::new() };
        slice.files.insert("cpu.weight", weight(shares(room.cpu_milli)).to_string());
        slice.files.insert("cpu.max", format!("{} {PERIOD_US}", amount(quota)));
        slice.files.insert("memory.max", amount(room.memory_bytes_max));
        slice.files.insert("pids.max", amount(room.pids_max));
        slice
    }

    /// The group with whatever is more of both: what has to hold while one becomes the other.
    #[must_use]
    pub fn or_more(&self, other: &Self) -> Self {
        let mut most = self.clone();
        for (name, value) in &other.files {
            // "max" is more than any number; the first word is what is compared.
            let rank = |text: &str| {
                let first = text.split(' ').next().unwrap_or_default();
                first.parse::<i64>().unwrap_or(i64::MAX)
            };
            let have = most.files.entry(*name).or_insert_with(|| value.clone());
            if rank(value) > rank(have) {
                have.clone_from(value);
            }
        }
        most
    }
}

/// Where the group of a pod is, by its class.
#[must_use]
pub fn pod_path(uid: &str, class: &str) -> String {
    match class {
        "Guaranteed" => format!("pod{uid}"),
        "BestEffort" => format!("{BEST_EFFORT}/pod{uid}"),
        _ => format!("{BURSTABLE}/pod{uid}"),
    }
}

/// Everywhere the group of a pod could be.
#[must_use]
pub fn pod_paths(uid: &str) -> [String; 3] {
    ["Guaranteed", "Burstable", "BestEffort"].map(|class| pod_path(uid, class))
}

/// Where groups of pods are: the group of all pods, and those of two classes in it.
pub const HOMES: [&str; 3] = ["", BURSTABLE, BEST_EFFORT];

/// The group of a pod.
#[must_use]
pub fn pod_slice(pod: &Pod, pids_max: Option<i64>) -> Slice {
    let class = qos_class(&pod.spec);
    let path = pod_path(local_uid(pod), class);
    let asked = ledger::asked(&pod.spec).get("cpu").copied().unwrap_or(0);
    let limit = |name| most(&pod.spec, name).filter(|_| class != "BestEffort");
    Slice::new(
        &path,
        Room {
            cpu_milli: if class == "BestEffort" { 0 } else { asked },
            cpu_milli_max: limit("cpu"),
            memory_bytes_max: limit("memory"),
            pids_max,
        },
    )
}

/// The groups of the classes, when pods of the middle one ask for so much CPU in all.
#[must_use]
pub fn class_slices(burstable_milli: i64) -> [Slice; 2] {
    let class = |path, cpu_milli| {
        let mut slice = Slice::new(path, Room { cpu_milli, ..Room::default() });
        // What a class may use is what all pods may use.
        slice.files.retain(|name, _| *name == "cpu.weight");
        slice
    };
    [class(BURSTABLE, burstable_milli), class(BEST_EFFORT, 0)]
}

/// What all containers of a pod together may use; `None` when one of them has no limit.
fn most(spec: &PodSpec, name: &str) -> Option<i64> {
    let value = |list: &ResourceList| {
        let amount = list.get(name).filter(|amount| !amount.is_zero())?;
        Some(if name == "cpu" { amount.milli_value() } else { amount.value() })
    };
    if let Some(own) = spec.resources.as_ref().and_then(|own| value(&own.limits)) {
        return Some(own);
    }
    let limit = |container: &Container| value(&container.resources.limits);
    let (mut beside, mut peak) = (0_i64, 0_i64);
    for init in &spec.init_containers {
        let step = beside.saturating_add(limit(init)?);
        peak = peak.max(step);
        if is_sidecar(init) {
            beside = step;
        }
    }
    for container in &spec.containers {
        beside = beside.saturating_add(limit(container)?);
    }
    let most = beside.max(peak);
    (most > 0).then(|| most.saturating_add(value(&spec.overhead).unwrap_or(0)))
}

fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(SHARES.0, SHARES.1)
}

/// The weight that so many shares are: a curve through three points, in powers of ten.
fn weight(shares: i64) -> u32 {
    let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // The least weight that is not below the curve; what is nearer than this is on it.
    let wanted = exponent - 1e-9;
    let (mut low, mut high) = (1_u32, WEIGHT_MAX);
    while low < high {
        let middle = low.midpoint(high);
        if f64::from(middle).log10() < wanted {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(spec: Value, path: &str, files: [&str; 4]) {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let slice = pod_slice(&pod, Some(64));
        assert_eq!(slice.path, path);
        let [weight, cpu, memory, pids] = files;
        let wanted = [("cpu.max", cpu), ("cpu.weight", weight), ("memory.max", memory)];
        let wanted = wanted.into_iter().chain([("pids.max", pids)]);
        let wanted: BTreeMap<&str, String> =
            wanted.map(|(name, value)| (name, value.to_owned())).collect();
        assert_eq!(slice.files, wanted);
    }

    #[test]
    fn shares_become_weights_along_upstreams_curve() {
        for (shares, wanted) in
            [(2, 1), (102, 17), (256, 35), (1024, 100), (2048, 174), (262_144, 10_000)]
        {
            assert_eq!(weight(shares), wanted, "{shares}");
        }
        let all: Vec<u32> = (1..2000).map(|step| weight(step * 131)).collect();
        assert!(all.is_sorted());
    }

    #[test]
    fn a_pod_has_the_group_of_its_class() {
        let amounts = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
        let one = |resources: Value| json!({"containers": [{"name": "a", "resources": resources}]});
        check(one(json!({})), "besteffort/podu", ["1", "max 100000", "max", "64"]);
        check(
            one(json!({"limits": amounts("2", "64Mi")})),
            "podu",
            ["174", "200000 100000", "67108864", "64"],
        );
        check(
            one(json!({"requests": amounts("1", "1Mi"), "limits": {"memory": "2Mi"}})),
            "burstable/podu",
            ["100", "max 100000", "2097152", "64"],
        );
        // One container without a limit is a pod without one.
        check(
            json!({"containers": [
                {"name": "a", "resources": {"limits": amounts("1", "1Mi")}}, {"name": "b"}]}),
            "burstable/podu",
            ["100", "max 100000", "max", "64"],
        );
    }

    #[test]
    fn sidecars_first_steps_and_overhead_count() {
        let amounts = json!({"cpu": "250m", "memory": "5Mi"});
        let limits = |cpu: &str| json!({"limits": {"cpu": cpu, "memory": "1Mi"}});
        check(
            json!({
                "overhead": {"cpu": "100m", "memory": "1Mi"},
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": limits("500m")},
                    {"name": "i", "resources": limits("3")}],
                "containers": [{"name": "a", "resources": limits("1")}]}),
            "podu",
            ["278", "360000 100000", "3145728", "64"],
        );
        check(
            json!({"resources": {"limits": amounts, "requests": amounts}, "containers": [{"name": "a"}]}),
            "podu",
            ["35", "25000 100000", "5242880", "64"],
        );
    }

    #[test]
    fn what_becomes_another_is_at_no_time_less_than_either() {
        let slice = |cpu, memory| {
            let room =
                Room { cpu_milli: 1, cpu_milli_max: cpu, memory_bytes_max: memory, pids_max: None };
            Slice::new("p", room)
        };
        let most = slice(Some(100), None).or_more(&slice(Some(200), Some(7)));
        assert_eq!(most, slice(Some(200), None));
        assert_eq!(class_slices(1000)[0].files["cpu.weight"], "100");
        assert_eq!(class_slices(1000)[1].files.len(), 1);
    }
}
