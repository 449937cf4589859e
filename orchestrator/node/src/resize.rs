//! Resizing a pod that runs: what its containers may use when its spec changes.
//!
//! What was promised is kept apart from what is asked for: a change that the node cannot hold
//! waits, and the pod goes on with what it has. A container is resized where it runs, unless it
//! says that it must be restarted for it.
//!
//! Spec: upstream's in-place resize: `allocatedResources`, `resources` and the conditions
//! `PodResizePending` (`Deferred`, `Infeasible`) and `PodResizeInProgress`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use objects::Condition;
use objects::condition::set_condition;
use objects::pod::{Container, ContainerStatus, Pod, PodSpec, PodStatus, ResourceList};
use serde_json::{Map, Value, json};

use crate::ledger::Lack;
use crate::plan::is_sidecar;
use crate::resources::{Limits, limits};
use crate::seen::{self, Memory};

/// Annotation of a container: what it was made with.
pub const SIZE: &str = "muster.dev/size";
/// The condition of a change that waits.
const PENDING: &str = "PodResizePending";
/// The condition of a change that is being made.
const RUNNING: &str = "PodResizeInProgress";

/// What the kernel was told about a container, as far as it may change while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// CPU weight.
    pub cpu_shares: i64,
    /// CPU time per period, in microseconds; 0 is no limit.
    pub cpu_quota_us: i64,
    /// Memory in bytes; 0 is no limit.
    pub memory_bytes: i64,
}

/// What a container was promised: requests and limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Promise {
    requests: ResourceList,
    limits: ResourceList,
}

/// A change that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    /// Why.
    pub message: String,
}

/// How a container gets its new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Where it runs.
    InPlace,
    /// By another life.
    Restart,
}

impl Size {
    /// The part of a container's limits that may change.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        let Limits { cpu_shares, cpu_quota_us, memory_bytes, .. } = *limits;
        Self { cpu_shares, cpu_quota_us, memory_bytes }
    }

    /// The size as an annotation.
    #[must_use]
    pub fn render(self) -> String {
        format!("{} {} {}", self.cpu_shares, self.cpu_quota_us, self.memory_bytes)
    }

    /// Reads the annotation; `None` when it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ').map(str::parse::<i64>);
        let mut next = || words.next()?.ok();
        Some(Self { cpu_shares: next()?, cpu_quota_us: next()?, memory_bytes: next()? })
    }
}

/// Decides what the pod's containers get now; `promise` asks the node whether it has so much.
///
/// Gives the pod with what it was promised before when the node has not.
pub fn settle(
    pod: &Pod,
    memory: &mut Memory,
    promise: impl FnOnce(&PodSpec) -> Result<(), Lack>,
) -> Option<Pod> {
    let wanted: BTreeMap<String, Promise> =
        lasting(&pod.spec).map(|c| (c.name.clone(), Promise::of(c))).collect();
    if memory.promised.is_empty() {
        memory.promised = told(pod).unwrap_or_else(|| wanted.clone());
    }
    memory.pending = None;
    if memory.promised == wanted {
        return None;
    }
    let Err(lack) = promise(&pod.spec) else {
        memory.promised = wanted;
        return None;
    };
    let Lack { resource, requested, used, capacity } = lack;
    memory.pending = Some(if requested > capacity {
        let message = format!(
            "Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}"
        );
        Pending { reason: "Infeasible", message }
    } else {
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, \
             capacity: {capacity}"
        );
        Pending { reason: "Deferred", message }
    });
    let mut pod = pod.clone();
    for container in pod.spec.containers.iter_mut().chain(&mut pod.spec.init_containers) {
        if let Some(kept) = memory.promised.get(&container.name) {
            container.resources.requests.clone_from(&kept.requests);
            container.resources.limits.clone_from(&kept.limits);
        }
    }
    Some(pod)
}

/// How a running container comes to what it was promised; `None` when it has it.
pub(crate) fn step(
    pod: &Pod,
    container: &Container,
    life: &seen::Container,
    memory: &Memory,
) -> Option<Step> {
    let have = memory.sizes.get(&life.id).copied().or(life.size)?;
    // The score for the kernel's killer is given once, so that the node's memory plays no part.
    let want = Size::of(&limits(&pod.spec, container, 0));
    let cpu = (have.cpu_shares, have.cpu_quota_us) != (want.cpu_shares, want.cpu_quota_us);
    let memory = have.memory_bytes != want.memory_bytes;
    if !cpu && !memory {
        return None;
    }
    let restarts = |resource: &str| {
        let policies = container.extra.get("resizePolicy").and_then(Value::as_array);
        policies.into_iter().flatten().any(|policy| {
            policy.get("resourceName").is_some_and(|name| name == resource)
                && policy.get("restartPolicy").is_some_and(|word| word == "RestartContainer")
        })
    };
    let restart = cpu && restarts("cpu") || memory && restarts("memory");
    Some(if restart { Step::Restart } else { Step::InPlace })
}

/// Tells what a container has, and what it was promised.
pub(crate) fn tell_container(
    status: &mut ContainerStatus,
    pod: &Pod,
    (container, life): (&Container, &seen::Container),
    memory: &Memory,
) {
    let resources = &container.resources;
    if resources.requests.is_empty() && resources.limits.is_empty() {
        return;
    }
    let before = pod.status.container_statuses.iter().find(|told| told.name == container.name);
    let before = before.and_then(|told| told.extra.get("resources"));
    let have = match before.filter(|_| step(pod, container, life, memory).is_some()) {
        Some(before) => before.clone(),
        None => json!({"requests": resources.requests, "limits": resources.limits}),
    };
    let have: Map<String, Value> = have.as_object().cloned().unwrap_or_default();
    let have = have.into_iter().filter(|(_, list)| list.as_object().is_some_and(|l| !l.is_empty()));
    status.extra.insert("resources".to_owned(), Value::Object(have.collect()));
    if !resources.requests.is_empty() {
        status.extra.insert("allocatedResources".to_owned(), json!(resources.requests));
    }
}

/// Tells of changes that wait or are being made.
pub(crate) fn tell_pod(
    status: &mut PodStatus,
    pod: &Pod,
    seen: &seen::Seen,
    memory: &Memory,
    now: Timestamp,
) {
    let pending = memory.pending.as_ref();
    let pending = pending.map(|p| Condition::new(PENDING, true, p.reason, &p.message));
    let running = lasting(&pod.spec).any(|container| {
        let life = seen.lives(&container.name).first().copied();
        let life = life.filter(|life| life.life.is_running());
        life.is_some_and(|life| step(pod, container, life, memory).is_some())
    });
    let failure = memory.resize_failure.as_ref();
    let running = running.then(|| match failure {
        Some(failure) => Condition::new(RUNNING, true, "Error", &failure.message),
        None => Condition::new(RUNNING, true, "", ""),
    });
    for (kind, condition) in [(PENDING, pending), (RUNNING, running)] {
        match condition {
            Some(mut condition) => {
                condition.observed_generation = pod.metadata.generation;
                set_condition(&mut status.conditions, condition, now);
            }
            None => status.conditions.retain(|had| had.kind != kind),
        }
    }
}

impl Promise {
    fn of(container: &Container) -> Self {
        let resources = &container.resources;
        Self { requests: resources.requests.clone(), limits: resources.limits.clone() }
    }
}

/// The containers that may be resized: the pod's own and its sidecars.
fn lasting(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().filter(|init| is_sidecar(init)).chain(&spec.containers)
}

/// What the API was told that the containers were promised, when it was told of each.
fn told(pod: &Pod) -> Option<BTreeMap<String, Promise>> {
    let status = &pod.status;
    let all = || status.container_statuses.iter().chain(&status.init_container_statuses);
    let list = |value: Option<&Value>| -> ResourceList {
        value.and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
    };
    let one = |container: &Container| {
        let told = all().find(|told| told.name == container.name)?;
        let resources = told.extra.get("resources");
        if resources.is_none() && Promise::of(container) != Promise::default() {
            return None;
        }
        let requests = list(told.extra.get("allocatedResources"));
        let limits = list(resources.and_then(|resources| resources.get("limits")));
        Some((container.name.clone(), Promise { requests, limits }))
    };
    lasting(&pod.spec).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::{Life, Seen};

    fn pod(cpu: &str, memory: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "generation": 2}, "spec": {"containers": [
            {"name": "a", "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
             "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}}]}}))
        .unwrap()
    }

    fn life(pod: &Pod) -> Seen {
        let size = Size::of(&limits(&pod.spec, &pod.spec.containers[0], 0));
        let life = seen::Container {
            id: "a0".into(),
            name: "a".into(),
            sandbox: "s0".into(),
            attempt: 0,
            life: Life::Running { started: Timestamp::UNIX_EPOCH },
            image: String::new(),
            image_id: String::new(),
            hash: String::new(),
            size: Size::parse(&size.render()),
        };
        Seen { containers: vec![life], ..Seen::default() }
    }

    fn lack(requested: i64) -> Lack {
        Lack { resource: "cpu".into(), requested, used: 900, capacity: 1000 }
    }

    #[test]
    fn a_change_that_fits_is_made_in_place_or_by_another_life() {
        let (before, mut memory) = (pod("500m", "1Gi"), Memory::default());
        assert!(settle(&before, &mut memory, |_| unreachable!()).is_none());
        let seen = life(&before);
        let check = |after: &Pod, memory: &Memory| {
            step(after, &after.spec.containers[0], &seen.containers[0], memory)
        };
        assert_eq!(check(&before, &memory), None);
        let cpu = pod("800m", "1Gi");
        assert!(settle(&cpu, &mut memory, |_| Ok(())).is_none());
        assert_eq!(check(&cpu, &memory), Some(Step::InPlace));
        assert_eq!(check(&pod("500m", "2Gi"), &memory), Some(Step::Restart));
        // Once it is told to the runtime it is done.
        memory.sizes.insert("a0".into(), Size::of(&limits(&cpu.spec, &cpu.spec.containers[0], 0)));
        assert_eq!(check(&cpu, &memory), None);
    }

    #[test]
    fn a_change_that_does_not_fit_waits_and_says_why() {
        let (before, mut memory) = (pod("500m", "1Gi"), Memory::default());
        assert!(settle(&before, &mut memory, |_| unreachable!()).is_none());
        let seen = life(&before);
        for (requested, reason) in [(800, "Deferred"), (8000, "Infeasible")] {
            let after = pod(&format!("{requested}m"), "1Gi");
            let kept = settle(&after, &mut memory, |_| Err(lack(requested))).unwrap();
            assert_eq!(kept.spec.containers[0].resources, before.spec.containers[0].resources);
            let mut status = PodStatus::default();
            tell_pod(&mut status, &kept, &seen, &memory, Timestamp::UNIX_EPOCH);
            let told = &status.conditions[0];
            assert_eq!((told.kind.as_str(), told.reason.as_str()), (PENDING, reason));
            assert_eq!((told.observed_generation, status.conditions.len()), (2, 1));
        }
        // The room was made: the condition goes.
        assert!(settle(&pod("800m", "1Gi"), &mut memory, |_| Ok(())).is_none());
        assert!(memory.pending.is_none());
    }

    #[test]
    fn what_was_promised_is_learnt_again_from_the_status() {
        let mut after = pod("800m", "1Gi");
        let before = pod("500m", "1Gi");
        let mut status = ContainerStatus { name: "a".into(), ..ContainerStatus::default() };
        let seen = life(&before);
        let lives = (&before.spec.containers[0], &seen.containers[0]);
        tell_container(&mut status, &before, lives, &Memory::default());
        assert_eq!(status.extra["allocatedResources"]["cpu"], "500m");
        assert_eq!(status.extra["resources"]["limits"]["memory"], "1Gi");
        after.status.container_statuses.push(status);
        let mut memory = Memory::default();
        let mut asked = false;
        settle(&after, &mut memory, |_| {
            asked = true;
            Err(lack(800))
        });
        assert!(asked && memory.pending.is_some());
    }
}
