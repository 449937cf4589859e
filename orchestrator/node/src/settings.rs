//! What an operator may set for a node, in the words of upstream's `KubeletConfiguration`.
//!
//! Only the fields named in [`Settings`] are read; others are left alone, so that a file made
//! for upstream's kubelet can be given as it is. All mistakes are told at once.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use objects::Quantity;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::images::Marks;
use crate::machine::PODS_MAX;
use crate::pressure::{Amount, Limits, Signal, Threshold};

/// How a node treats its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// When the node runs short: `evictionHard`, `evictionSoft` and what belongs to them.
    pub limits: Limits,
    /// When images go: `imageGCHighThresholdPercent` and what belongs to it.
    pub marks: Marks,
    /// What is set aside: `systemReserved` and `kubeReserved` together.
    pub reserved: Held,
    /// Pods the node takes: `maxPods`.
    pub pods_max: i64,
    /// Whether each pod has a control group of its own, by its class: `cgroupsPerQOS`.
    pub slices: bool,
    /// The control group that all groups of pods are in: `cgroupRoot`.
    pub cgroup_root: String,
    /// Whether all pods together are kept below what the node has for them:
    /// `enforceNodeAllocatable`.
    pub enforce_pods: bool,
    /// Control groups of others that are kept below what is set aside for them:
    /// `systemReservedCgroup`, `kubeReservedCgroup`.
    pub enforced: Vec<(String, Held)>,
    /// Process ids a pod may have; `None` for no limit: `podPidsLimit`.
    pub pod_pids_max: Option<i64>,
    /// How long a log may become, in bytes: `containerLogMaxSize`.
    pub log_bytes_max: u64,
    /// How many files a log is kept in: `containerLogMaxFiles`.
    pub log_files_max: usize,
    /// A directory of pods that run whatever the API says: `staticPodPath`.
    pub static_pods: Option<String>,
    /// Kernel settings that pods may ask for besides the safe ones; `*` ends a prefix:
    /// `allowedUnsafeSysctls`.
    pub sysctls: Vec<String>,
    /// Whether whole cores are given to pods that ask for whole cores: `cpuManagerPolicy`.
    pub static_cpus: bool,
    /// `seccompDefault`: a container that says nothing gets the runtime's filter.
    pub seccomp_default: bool,
    /// How long a shutdown may be held up for pods: `shutdownGracePeriod`.
    pub shutdown: SignedDuration,
    /// The part of it that is kept for critical pods: `shutdownGracePeriodCriticalPods`.
    pub shutdown_critical: SignedDuration,
    /// From which priority on pods end together, and how long that may take, in seconds:
    /// `shutdownGracePeriodByPodPriority`, instead of the two above.
    pub shutdown_phases: Vec<(i64, i64)>,
}

/// What of a node's amounts is not for pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// CPU in thousandths.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// The pods' file system, in bytes.
    pub disk_bytes: i64,
}

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {found} is {rule}")]
pub struct Mistake {
    /// Where.
    pub field: String,
    /// What was found.
    pub found: String,
    /// Why it is wrong.
    pub rule: &'static str,
}

/// The fields as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_soft: BTreeMap<String, String>,
    eviction_soft_grace_period: BTreeMap<String, String>,
    eviction_minimum_reclaim: BTreeMap<String, String>,
    eviction_pressure_transition_period: Option<String>,
    eviction_max_pod_grace_period: i64,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high: Option<i64>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low: Option<i64>,
    #[serde(rename = "imageMinimumGCAge")]
    image_gc_age: Option<String>,
    system_reserved: BTreeMap<String, String>,
    kube_reserved: BTreeMap<String, String>,
    max_pods: Option<i64>,
    pod_pids_limit: Option<i64>,
    #[serde(rename = "cgroupsPerQOS")]
    cgroups_per_qos: Option<bool>,
    cgroup_root: String,
    cgroup_driver: String,
    enforce_node_allocatable: Option<Vec<String>>,
    system_reserved_cgroup: String,
    kube_reserved_cgroup: String,
    container_log_max_size: Option<Quantity>,
    container_log_max_files: Option<usize>,
    static_pod_path: String,
    allowed_unsafe_sysctls: Vec<String>,
    cpu_manager_policy: String,
    seccomp_default: bool,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_critical_pods: Option<String>,
    shutdown_grace_period_by_pod_priority: Vec<RawPhase>,
}

/// One entry of `shutdownGracePeriodByPodPriority`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPhase {
    priority: i64,
    shutdown_grace_period_seconds: i64,
}

impl Default for Settings {
    /// Upstream's defaults.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            marks: Marks::default(),
            reserved: Held::default(),
            pods_max: PODS_MAX,
            // Unlike upstream's default: a node gets this when its operator asks for it.
            slices: false,
            cgroup_root: String::new(),
            enforce_pods: true,
            enforced: Vec::new(),
            pod_pids_max: None,
            log_bytes_max: 10 << 20,
            log_files_max: 5,
            static_pods: None,
            sysctls: Vec::new(),
            static_cpus: false,
            seccomp_default: false,
            shutdown: SignedDuration::ZERO,
            shutdown_critical: SignedDuration::ZERO,
            shutdown_phases: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads a `KubeletConfiguration`.
    ///
    /// # Errors
    ///
    /// Every mistake that was found, with its place.
    pub fn decode(value: &Value) -> Result<Self, Vec<Mistake>> {
        let raw = Raw::deserialize(value).map_err(|err| {
            let (field, found) = ("KubeletConfiguration".to_owned(), err.to_string());
            vec![Mistake { field, found, rule: "not what the field takes" }]
        })?;
        let mut reader = Reader::default();
        let settings = reader.settings(raw);
        if reader.mistakes.is_empty() { Ok(settings) } else { Err(reader.mistakes) }
    }

    /// What is not for pods on a machine with so much memory and disk, in bytes.
    #[must_use]
    pub fn held(&self, memory_bytes: i64, disk_bytes: i64) -> Held {
        let kept = |signal, capacity| self.limits.kept(signal, capacity);
        let Held { cpu_milli, memory_bytes: memory, disk_bytes: disk } = self.reserved;
        Held {
            cpu_milli,
            memory_bytes: memory.saturating_add(kept(Signal::Memory, memory_bytes)),
            disk_bytes: disk.saturating_add(kept(Signal::DiskBytes, disk_bytes)),
        }
    }
}

/// Reads fields and collects what is wrong with them.
#[derive(Debug, Default)]
struct Reader {
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn settings(&mut self, raw: Raw) -> Settings {
        let before = Settings::default();
        let marks = Marks {
            high_percent: raw.image_gc_high.unwrap_or(before.marks.high_percent),
            low_percent: raw.image_gc_low.unwrap_or(before.marks.low_percent),
            age_min: self.duration("imageMinimumGCAge", raw.image_gc_age.as_deref(), 120),
        };
        if marks.low_percent >= marks.high_percent || !(0..=100).contains(&marks.high_percent) {
            let found = marks.low_percent.to_string();
            self.wrong("imageGCLowThresholdPercent", &found, "not below the high mark");
        }
        let shutdown =
            self.duration("shutdownGracePeriod", raw.shutdown_grace_period.as_deref(), 0);
        let critical = raw.shutdown_grace_period_critical_pods.as_deref();
        let shutdown_critical = self.duration("shutdownGracePeriodCriticalPods", critical, 0);
        if shutdown_critical > shutdown {
            let found = critical.unwrap_or_default();
            let rule = "longer than shutdownGracePeriod";
            self.wrong("shutdownGracePeriodCriticalPods", found, rule);
        }
        let (system, kube) = (self.held("systemReserved", &raw.system_reserved), {
            self.held("kubeReserved", &raw.kube_reserved)
        });
        let static_cpus = match raw.cpu_manager_policy.as_str() {
            "" | "none" => false,
            "static" => true,
            other => {
                self.wrong("cpuManagerPolicy", other, "neither none nor static");
                false
            }
        };
        let slices = raw.cgroups_per_qos.unwrap_or(before.slices);
        if slices && !matches!(raw.cgroup_driver.as_str(), "" | "cgroupfs") {
            let rule = "known only with cgroupsPerQOS: false";
            self.wrong("cgroupDriver", &raw.cgroup_driver, rule);
        }
        let (enforce_pods, enforced) = self.enforced(&raw, (system, kube));
        let log = raw.container_log_max_size.map(|size| size.value());
        Settings {
            limits: self.limits(&raw),
            marks,
            reserved: Held {
                cpu_milli: system.cpu_milli.saturating_add(kube.cpu_milli),
                memory_bytes: system.memory_bytes.saturating_add(kube.memory_bytes),
                disk_bytes: system.disk_bytes.saturating_add(kube.disk_bytes),
            },
            pods_max: raw.max_pods.unwrap_or(before.pods_max),
            slices,
            cgroup_root: raw.cgroup_root,
            enforce_pods,
            enforced,
            pod_pids_max: raw.pod_pids_limit.filter(|limit| *limit > 0),
            log_bytes_max: log.and_then(|v| u64::try_from(v).ok()).unwrap_or(before.log_bytes_max),
            log_files_max: raw.container_log_max_files.unwrap_or(before.log_files_max).max(2),
            static_pods: Some(raw.static_pod_path).filter(|path| !path.is_empty()),
            sysctls: raw.allowed_unsafe_sysctls,
            static_cpus,
            seccomp_default: raw.seccomp_default,
            shutdown,
            shutdown_critical,
            shutdown_phases: raw
                .shutdown_grace_period_by_pod_priority
                .iter()
                .map(|phase| (phase.priority, phase.shutdown_grace_period_seconds.max(0)))
                .collect(),
        }
    }

    /// Whether pods are kept below their limit, and which other groups are.
    fn enforced(&mut self, raw: &Raw, (system, kube): (Held, Held)) -> (bool, Vec<(String, Held)>) {
        let Some(named) = &raw.enforce_node_allocatable else { return (true, Vec::new()) };
        let (mut pods, mut enforced) = (false, Vec::new());
        for name in named {
            let (group, held) = match name.as_str() {
                "none" => continue,
                "pods" => {
                    pods = true;
                    continue;
                }
                "system-reserved" => (&raw.system_reserved_cgroup, system),
                "kube-reserved" => (&raw.kube_reserved_cgroup, kube),
                other => {
                    self.wrong("enforceNodeAllocatable", other, "nothing that can be enforced");
                    continue;
                }
            };
            if group.is_empty() {
                let rule = "without the control group it is about";
                self.wrong("enforceNodeAllocatable", name, rule);
            }
            enforced.push((group.clone(), held));
        }
        (pods, enforced)
    }

    fn limits(&mut self, raw: &Raw) -> Limits {
        let before = Limits::default();
        let mut thresholds = match &raw.eviction_hard {
            None => before.thresholds,
            Some(given) => self.thresholds("evictionHard", given),
        };
        let mut soft = self.thresholds("evictionSoft", &raw.eviction_soft);
        for threshold in &mut soft {
            let name = threshold.signal.name();
            match raw.eviction_soft_grace_period.get(name) {
                Some(given) => {
                    let grace = self.duration("evictionSoftGracePeriod", Some(given), 0);
                    threshold.grace = Some(grace);
                }
                None => self.wrong("evictionSoft", name, "without an evictionSoftGracePeriod"),
            }
        }
        thresholds.extend(soft);
        for (name, given) in &raw.eviction_minimum_reclaim {
            let field = "evictionMinimumReclaim";
            let (signal, amount) = (self.signal(field, name), self.amount(field, given));
            let (Some(signal), Some(amount)) = (signal, amount) else { continue };
            thresholds.iter_mut().filter(|t| t.signal == signal).for_each(|t| t.reclaim = amount);
        }
        let transition = raw.eviction_pressure_transition_period.as_deref();
        Limits {
            thresholds,
            transition: self.duration("evictionPressureTransitionPeriod", transition, 300),
            soft_grace_seconds: raw.eviction_max_pod_grace_period,
        }
    }

    fn thresholds(&mut self, field: &str, given: &BTreeMap<String, String>) -> Vec<Threshold> {
        let mut all = Vec::new();
        for (name, amount) in given {
            let (signal, below) = (self.signal(field, name), self.amount(field, amount));
            let (Some(signal), Some(below)) = (signal, below) else { continue };
            // A threshold of nothing is how upstream's operators switch one off.
            if !matches!(below, Amount::Whole(0) | Amount::PerMille(0)) {
                all.push(Threshold { signal, below, grace: None, reclaim: Amount::Whole(0) });
            }
        }
        all
    }

    fn signal(&mut self, field: &str, name: &str) -> Option<Signal> {
        let found = Signal::ALL.into_iter().find(|signal| signal.name() == name);
        if found.is_none() {
            self.wrong(field, name, "no signal of a node");
        }
        found
    }

    fn amount(&mut self, field: &str, text: &str) -> Option<Amount> {
        let parsed = match text.strip_suffix('%') {
            // A percentage has at most one decimal that matters here.
            Some(percent) => percent
                .parse::<Quantity>()
                .ok()
                .map(|percent| Amount::PerMille(percent.milli_value().saturating_add(50) / 100)),
            None => text.parse::<Quantity>().ok().map(|amount| Amount::Whole(amount.value())),
        };
        if parsed.is_none() {
            self.wrong(field, text, "neither a quantity nor a percentage");
        }
        parsed
    }

    fn held(&mut self, field: &str, given: &BTreeMap<String, String>) -> Held {
        let mut held = Held::default();
        for (name, text) in given {
            let Ok(amount) = text.parse::<Quantity>() else {
                self.wrong(field, text, "not a quantity");
                continue;
            };
            match name.as_str() {
                "cpu" => held.cpu_milli = amount.milli_value(),
                "memory" => held.memory_bytes = amount.value(),
                "ephemeral-storage" => held.disk_bytes = amount.value(),
                "pid" => {}
                other => self.wrong(field, other, "nothing that can be set aside"),
            }
        }
        held
    }

    fn duration(&mut self, field: &str, text: Option<&str>, default: i64) -> SignedDuration {
        let Some(text) = text else { return SignedDuration::from_secs(default) };
        // What upstream writes (`1m30s`) is one of the forms this reads.
        match text.parse::<SignedDuration>() {
            Ok(duration) if !duration.is_negative() => duration,
            _ if text == "0" => SignedDuration::ZERO,
            _ => {
                self.wrong(field, text, "not a duration such as 1m30s");
                SignedDuration::ZERO
            }
        }
    }

    fn wrong(&mut self, field: &str, found: &str, rule: &'static str) {
        let (field, found) = (field.to_owned(), found.to_owned());
        self.mistakes.push(Mistake { field, found, rule });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn upstreams_words_are_understood() {
        let settings = Settings::decode(&json!({
            "kind": "KubeletConfiguration", "clusterDomain": "cluster.local",
            "evictionHard": {"memory.available": "200Mi", "nodefs.available": "7.5%", "imagefs.available": "0%"},
            "evictionSoft": {"memory.available": "300Mi"},
            "evictionSoftGracePeriod": {"memory.available": "1m30s"},
            "evictionMinimumReclaim": {"memory.available": "10Mi"},
            "evictionPressureTransitionPeriod": "0s", "evictionMaxPodGracePeriod": 60,
            "systemReserved": {"cpu": "100m", "memory": "100Mi"}, "kubeReserved": {"cpu": "0.2"},
            "maxPods": 250, "containerLogMaxSize": "1Mi", "cpuManagerPolicy": "static",
            "shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s",
            "cgroupsPerQOS": true, "cgroupRoot": "/all", "enforceNodeAllocatable": ["kube-reserved"],
            "kubeReservedCgroup": "/muster.slice",
        }))
        .unwrap();
        let reclaim = Amount::Whole(10 << 20);
        let memory = |below: i64, grace| Threshold {
            signal: Signal::Memory,
            below: Amount::Whole(below << 20),
            grace,
            reclaim,
        };
        assert_eq!(settings.limits.thresholds.len(), 3, "{:?}", settings.limits);
        assert_eq!(settings.limits.thresholds[0], memory(200, None));
        assert_eq!(settings.limits.thresholds[1].below, Amount::PerMille(75));
        assert_eq!(settings.limits.thresholds[2], memory(300, Some(SignedDuration::from_secs(90))));
        let held = settings.held(1 << 30, 1000);
        assert_eq!((held.cpu_milli, held.memory_bytes, held.disk_bytes), (300, 300 << 20, 75));
        assert!(settings.static_cpus && settings.pods_max == 250);
        assert!(settings.slices && !settings.enforce_pods && settings.cgroup_root == "/all");
        let kube = Held { cpu_milli: 200, ..Held::default() };
        assert_eq!(settings.enforced, [("/muster.slice".to_owned(), kube)]);
        assert_eq!((settings.log_bytes_max, settings.log_files_max), (1 << 20, 5));
        assert_eq!(Settings::decode(&json!({})), Ok(Settings::default()));
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let mistakes = Settings::decode(&json!({
            "evictionHard": {"memory.free": "1Gi", "pid.available": "many"},
            "evictionSoft": {"nodefs.available": "5%"},
            "systemReserved": {"gpu": "1", "cpu": "x"},
            "imageGCHighThresholdPercent": 50, "imageMinimumGCAge": "soon",
            "cpuManagerPolicy": "dynamic", "shutdownGracePeriodCriticalPods": "1s",
            "cgroupsPerQOS": true, "cgroupDriver": "systemd", "enforceNodeAllocatable": ["system-reserved", "all"],
        }))
        .unwrap_err();
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "imageMinimumGCAge: soon is not a duration such as 1m30s",
                "imageGCLowThresholdPercent: 80 is not below the high mark",
                "shutdownGracePeriodCriticalPods: 1s is longer than shutdownGracePeriod",
                "systemReserved: x is not a quantity",
                "systemReserved: gpu is nothing that can be set aside",
                "cpuManagerPolicy: dynamic is neither none nor static",
                "cgroupDriver: systemd is known only with cgroupsPerQOS: false",
                "enforceNodeAllocatable: system-reserved is without the control group it is about",
                "enforceNodeAllocatable: all is nothing that can be enforced",
                "evictionHard: memory.free is no signal of a node",
                "evictionHard: many is neither a quantity nor a percentage",
                "evictionSoft: nodefs.available is without an evictionSoftGracePeriod",
            ]
        );
        assert!(Settings::decode(&json!({"maxPods": "x"})).is_err());
    }
}
