//! Whether the node runs short of something, what is told of it, and which pod ends for it.
//!
//! A [`Watch`] judges readings against [`Threshold`]s at a slow beat: which pressures are told
//! ([`Judgement::pressures`]), and whether something must be given back now
//! ([`Judgement::relief`]). Whoever relieves first collects garbage and only then asks
//! [`choose`] which pod ends; one at a time, for the next reading may already be better.
//!
//! Spec: upstream's node-pressure eviction: hard and soft thresholds, minimum reclaim, the
//! transition period of conditions, ranking by excess over requests, priority and usage;
//! critical pods are spared. Limits of local storage end a pod by themselves ([`overdrawn`]).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use objects::Quantity;
use objects::pod::{Container, Pod, ResourceList};

use crate::resources::qos_class;
use crate::seen::Verdict;

/// From this priority on a pod belongs to the system and is never evicted.
const SYSTEM_PRIORITY: i64 = 2_000_000_000;
/// Annotation of pods that stand for a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Grace of a pod that ends for a hard threshold, in seconds; upstream's.
const HARD_GRACE: i64 = 1;

/// Something a node may run short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    DiskBytes,
    /// `nodefs.inodesFree`
    DiskInodes,
    /// `imagefs.available`
    ImageBytes,
    /// `imagefs.inodesFree`
    ImageInodes,
    /// `pid.available`
    Pids,
}

/// A condition of the node that keeps pods away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// `MemoryPressure`
    Memory,
    /// `DiskPressure`
    Disk,
    /// `PIDPressure`
    Pids,
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What could still be had.
    pub available: i64,
    /// All of it.
    pub capacity: i64,
}

/// An amount, or a part of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So much.
    Whole(i64),
    /// So many thousandths of the capacity.
    PerMille(i64),
}

/// When a signal is too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// What is looked at.
    pub signal: Signal,
    /// Below this it is too low.
    pub below: Amount,
    /// How long it may be too low; `None` for a hard threshold.
    pub grace: Option<SignedDuration>,
    /// How far above the threshold it must come before all is well again.
    pub reclaim: Amount,
}

/// What counts as pressure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All thresholds.
    pub thresholds: Vec<Threshold>,
    /// How long a pressure is told after it ended.
    pub transition: SignedDuration,
    /// The longest grace of a pod that ends for a soft threshold, in seconds.
    pub soft_grace_seconds: i64,
}

/// What is remembered between judgements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Since when each threshold is met, by its place in the list.
    met: BTreeMap<usize, Timestamp>,
    /// When each pressure was there last.
    pressed: BTreeMap<Pressure, Timestamp>,
}

/// What follows from a reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The conditions to tell.
    pub pressures: BTreeSet<Pressure>,
    /// What must be given back now.
    pub relief: Option<Relief>,
}

/// Something of which more is needed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relief {
    /// What.
    pub signal: Signal,
    /// What there should be.
    pub wanted: i64,
    /// What there is.
    pub available: i64,
    /// The grace of a pod that ends for it, in seconds; its own when that is shorter.
    pub grace_seconds: i64,
}

/// What one pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory and disk of each container, in bytes, by its name.
    pub containers: BTreeMap<String, Share>,
    /// Each volume that is the pod's own, in bytes on the disk, by its name.
    pub volumes: BTreeMap<String, i64>,
}

/// What one container uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Memory that cannot be taken back, in bytes.
    pub memory_bytes: i64,
    /// Its own layer and its logs, in bytes.
    pub disk_bytes: i64,
}

impl Signal {
    /// All signals.
    pub const ALL: [Self; 6] = [
        Self::Memory,
        Self::DiskBytes,
        Self::DiskInodes,
        Self::ImageBytes,
        Self::ImageInodes,
        Self::Pids,
    ];

    /// The name in configuration and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::DiskBytes => "nodefs.available",
            Self::DiskInodes => "nodefs.inodesFree",
            Self::ImageBytes => "imagefs.available",
            Self::ImageInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// The resource that runs short, as people are told.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::DiskBytes | Self::ImageBytes => "ephemeral-storage",
            Self::DiskInodes | Self::ImageInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// The condition that follows.
    #[must_use]
    pub fn pressure(self) -> Pressure {
        match self {
            Self::Memory => Pressure::Memory,
            Self::Pids => Pressure::Pids,
            Self::DiskBytes | Self::DiskInodes | Self::ImageBytes | Self::ImageInodes => {
                Pressure::Disk
            }
        }
    }
}

impl Pressure {
    /// The condition's type.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pids => "PIDPressure",
        }
    }
}

impl Amount {
    /// The amount of a capacity.
    #[must_use]
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Whole(amount) => amount,
            Self::PerMille(part) => {
                let product = i128::from(capacity).saturating_mul(i128::from(part));
                i64::try_from(product / 1000).unwrap_or(i64::MAX)
            }
        }
    }
}

impl Default for Limits {
    /// Upstream's hard thresholds, and a thousand process ids.
    fn default() -> Self {
        let hard =
            |signal, below| Threshold { signal, below, grace: None, reclaim: Amount::Whole(0) };
        Self {
            thresholds: vec![
                hard(Signal::Memory, Amount::Whole(100 << 20)),
                hard(Signal::DiskBytes, Amount::PerMille(100)),
                hard(Signal::DiskInodes, Amount::PerMille(50)),
                hard(Signal::ImageBytes, Amount::PerMille(150)),
                hard(Signal::ImageInodes, Amount::PerMille(50)),
                hard(Signal::Pids, Amount::Whole(1000)),
            ],
            transition: SignedDuration::from_mins(5),
            soft_grace_seconds: 0,
        }
    }
}

impl Limits {
    /// What is kept free of a signal at any rate: pods may not be promised it.
    #[must_use]
    pub fn kept(&self, signal: Signal, capacity: i64) -> i64 {
        let hard = self.thresholds.iter().filter(|t| t.signal == signal && t.grace.is_none());
        hard.map(|threshold| threshold.below.of(capacity)).max().unwrap_or(0)
    }
}

impl Watch {
    /// Judges readings; a signal that could not be read is left as it was.
    pub fn judge(
        &mut self,
        limits: &Limits,
        readings: &BTreeMap<Signal, Reading>,
        now: Timestamp,
    ) -> Judgement {
        for (place, threshold) in limits.thresholds.iter().enumerate() {
            let Some(reading) = readings.get(&threshold.signal) else { continue };
            let below = threshold.below.of(reading.capacity);
            // Once too low, it must come further than the threshold.
            let more = if self.met.contains_key(&place) {
                threshold.reclaim.of(reading.capacity)
            } else {
                0
            };
            if reading.available < below.saturating_add(more) {
                self.met.entry(place).or_insert(now);
            } else {
                self.met.remove(&place);
            }
        }
        let met = || {
            let all = limits.thresholds.iter().enumerate();
            all.filter_map(|(place, threshold)| Some((threshold, *self.met.get(&place)?)))
        };
        for (threshold, _) in met() {
            self.pressed.insert(threshold.signal.pressure(), now);
        }
        self.pressed
            .retain(|_, last| now.duration_since(*last) < limits.transition || *last == now);
        let due = met().filter(|(threshold, since)| {
            threshold.grace.is_none_or(|grace| now.duration_since(*since) >= grace)
        });
        // Memory first: without it nothing else can be done.
        let worst = due.min_by_key(|(threshold, _)| (threshold.signal, threshold.grace.is_some()));
        let relief = worst.and_then(|(threshold, _)| {
            let reading = readings.get(&threshold.signal)?;
            let soft = threshold.grace.is_some();
            let wanted = threshold.below.of(reading.capacity);
            let more = threshold.reclaim.of(reading.capacity);
            Some(Relief {
                signal: threshold.signal,
                wanted: wanted.saturating_add(more),
                available: reading.available,
                grace_seconds: if soft { limits.soft_grace_seconds } else { HARD_GRACE },
            })
        });
        Judgement { pressures: self.pressed.keys().copied().collect(), relief }
    }
}

impl Usage {
    fn memory(&self) -> i64 {
        self.containers.values().fold(0, |sum, share| sum.saturating_add(share.memory_bytes))
    }

    fn disk(&self) -> i64 {
        let own = self.containers.values().map(|share| share.disk_bytes);
        own.chain(self.volumes.values().copied()).fold(0, i64::saturating_add)
    }
}

/// Tells whether the cluster itself needs the pod.
#[must_use]
pub fn is_critical(pod: &Pod) -> bool {
    pod.spec.priority.is_some_and(|priority| priority >= SYSTEM_PRIORITY)
        || pod.metadata.annotations.contains_key(MIRROR)
}

/// The pod that ends first; `None` when only critical ones are left.
#[must_use]
pub fn choose<'a>(pods: &[(&'a Pod, &Usage)], signal: Signal) -> Option<&'a Pod> {
    let ours = pods.iter().filter(|(pod, _)| !is_critical(pod));
    let first = ours.min_by_key(|(pod, usage)| {
        let (used, asked) = match signal.pressure() {
            Pressure::Memory => (usage.memory(), asked(pod, "memory")),
            Pressure::Disk => (usage.disk(), asked(pod, "ephemeral-storage")),
            Pressure::Pids => (0, 0),
        };
        // Smallest first: those above their requests, of low priority, with the most above.
        (
            used <= asked,
            pod.spec.priority.unwrap_or(0),
            asked.saturating_sub(used),
            &pod.metadata.uid,
        )
    });
    first.map(|(pod, _)| *pod)
}

/// Why a pod ends for a relief, in upstream's words.
#[must_use]
pub fn evict(pod: &Pod, usage: &Usage, relief: Relief) -> Verdict {
    let signal = relief.signal;
    let amount = |amount: i64| {
        match signal {
            Signal::Memory | Signal::DiskBytes | Signal::ImageBytes => Quantity::from_bytes(amount),
            Signal::DiskInodes | Signal::ImageInodes | Signal::Pids => Quantity::from_whole(amount),
        }
        .to_string()
    };
    let mut message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        signal.resource(),
        amount(relief.wanted),
        amount(relief.available)
    );
    let pick = |share: &Share| match signal {
        Signal::Memory => share.memory_bytes,
        Signal::DiskBytes | Signal::ImageBytes => share.disk_bytes,
        Signal::DiskInodes | Signal::ImageInodes | Signal::Pids => 0,
    };
    for container in &pod.spec.containers {
        let used = usage.containers.get(&container.name).map_or(0, pick);
        let asked = request(container, signal.resource());
        if used > asked {
            message.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                container.name,
                amount(used),
                amount(asked),
                signal.resource()
            ));
        }
    }
    let own = pod.spec.termination_grace_period_seconds.unwrap_or(30);
    Verdict {
        reason: "Evicted".to_owned(),
        message,
        grace_seconds: Some(relief.grace_seconds.min(own).max(0)),
    }
}

/// Why a pod ends that uses more of the disk than it may; `None` while it does not.
#[must_use]
pub fn overdrawn(pod: &Pod, usage: &Usage) -> Option<Verdict> {
    let end = |message: String| {
        let grace_seconds = Some(HARD_GRACE);
        Some(Verdict { reason: "Evicted".to_owned(), message, grace_seconds })
    };
    for volume in &pod.spec.volumes {
        let limit = volume.empty_dir.as_ref().and_then(|dir| dir.size_limit);
        let used = usage.volumes.get(&volume.name).copied().unwrap_or(0);
        if let Some(limit) = limit.filter(|limit| !limit.is_zero() && used > limit.value()) {
            let name = &volume.name;
            return end(format!(
                "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". "
            ));
        }
    }
    let limit = |container: &Container| {
        container
            .resources
            .limits
            .get("ephemeral-storage")
            .filter(|limit| !limit.is_zero())
            .copied()
    };
    let limits: Option<Vec<i64>> =
        pod.spec.containers.iter().map(|container| Some(limit(container)?.value())).collect();
    if let Some(sum) = limits.filter(|all| !all.is_empty()).map(|all| all.into_iter().sum::<i64>())
        && usage.disk() > sum
    {
        let sum = Quantity::from_bytes(sum);
        return end(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {sum}. "
        ));
    }
    for container in &pod.spec.containers {
        let used = usage.containers.get(&container.name).map_or(0, |share| share.disk_bytes);
        if let Some(limit) = limit(container).filter(|limit| used > limit.value()) {
            let name = &container.name;
            return end(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{limit}\". "
            ));
        }
    }
    None
}

/// Tells whether the disk use of a pod has a limit that must be watched.
#[must_use]
pub fn is_limited(pod: &Pod) -> bool {
    let set = |list: &ResourceList| list.contains_key("ephemeral-storage");
    pod.spec.containers.iter().any(|container| set(&container.resources.limits))
        || pod
            .spec
            .volumes
            .iter()
            .any(|volume| volume.empty_dir.as_ref().is_some_and(|dir| dir.size_limit.is_some()))
}

/// Why a pod that is new here is not taken under these pressures.
#[must_use]
pub fn refuse(pod: &Pod, pressures: &BTreeSet<Pressure>) -> Option<Verdict> {
    if pressures.is_empty() || is_critical(pod) {
        return None;
    }
    if pressures.iter().all(|pressure| *pressure == Pressure::Memory) {
        let bears = pod.spec.tolerations.iter().any(|toleration| {
            let meant = toleration.key == "node.kubernetes.io/memory-pressure"
                || toleration.key.is_empty() && toleration.operator == "Exists";
            meant && matches!(toleration.effect.as_str(), "" | "NoSchedule")
        });
        if bears || qos_class(&pod.spec) != "BestEffort" {
            return None;
        }
    }
    let told: Vec<&str> = pressures.iter().map(|pressure| pressure.condition()).collect();
    let message = format!("Pod was rejected: The node had condition: [{}]. ", told.join(" "));
    Some(Verdict { reason: "Evicted".to_owned(), message, grace_seconds: None })
}

fn asked(pod: &Pod, resource: &str) -> i64 {
    let all = pod.spec.containers.iter().map(|container| request(container, resource));
    all.fold(0, i64::saturating_add)
}

fn request(container: &Container, resource: &str) -> i64 {
    let resources = &container.resources;
    let asked = resources.requests.get(resource).or_else(|| resources.limits.get(resource));
    asked.map_or(0, Quantity::value)
}

#[cfg(test)]
mod tests;
