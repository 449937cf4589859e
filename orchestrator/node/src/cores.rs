//! Which processors a container may use: whole ones of its own, or those that are shared.
//!
//! A container of a guaranteed pod that asks for whole processors gets so many for itself, near
//! to each other; all others share the rest. Processors set aside for the system are shared but
//! never given away.
//!
//! Spec: upstream's static CPU manager policy and its file `cpu_manager_state`. *Limits*: init
//! containers share; the policy's options are not known.

use std::collections::{BTreeMap, BTreeSet};

use objects::pod::{Container, Pod};
use serde_json::{Value, json};

use crate::ledger::Lack;
use crate::plan::is_sidecar;
use crate::resources::qos_class;

/// Processors by number.
pub type Set = BTreeSet<u32>;

/// Where a processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The socket.
    pub socket: u32,
    /// The core within the socket; two processors of one core share it.
    pub core: u32,
    /// The processor.
    pub cpu: u32,
}

/// The processors of a node and who has which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cores {
    /// In the order of sockets and cores.
    all: BTreeSet<Place>,
    reserved: Set,
    given: BTreeMap<String, BTreeMap<String, Set>>,
}

impl Cores {
    /// Processors of which none is given yet; so many are set aside, whole cores first.
    #[must_use]
    pub fn new(all: impl IntoIterator<Item = Place>, reserved_milli: i64) -> Self {
        let all: BTreeSet<Place> = all.into_iter().collect();
        let count = usize::try_from(reserved_milli.max(0).saturating_add(999) / 1000).unwrap_or(0);
        let reserved = all.iter().take(count).map(|place| place.cpu).collect();
        Self { all, reserved, given: BTreeMap::new() }
    }

    /// What a container may use, giving it what it is entitled to.
    ///
    /// # Errors
    ///
    /// When it is entitled to more whole processors than are left.
    pub fn give(&mut self, pod: &Pod, container: &Container) -> Result<Set, Lack> {
        let uid = &pod.metadata.uid;
        if let Some(own) = self.given.get(uid).and_then(|all| all.get(&container.name)) {
            return Ok(own.clone());
        }
        let wanted = exclusive(pod, container);
        if wanted == 0 {
            return Ok(self.shared());
        }
        let free: Vec<Place> = self.free().collect();
        let own = pick(&free, wanted).ok_or_else(|| Lack {
            resource: "cpu".to_owned(),
            requested: count(wanted),
            used: count(self.all.len().saturating_sub(free.len())),
            capacity: count(self.all.len()),
        })?;
        let of_pod = self.given.entry(uid.clone()).or_default();
        of_pod.insert(container.name.clone(), own.clone());
        Ok(own)
    }

    /// What a container that runs may use now; what is shared changes with what is given.
    #[must_use]
    pub fn of(&self, uid: &str, container: &str) -> Set {
        let own = self.given.get(uid).and_then(|all| all.get(container));
        own.cloned().unwrap_or_else(|| self.shared())
    }

    /// The processors that nobody has for itself.
    #[must_use]
    pub fn shared(&self) -> Set {
        let own: Set = self.given.values().flat_map(BTreeMap::values).flatten().copied().collect();
        self.all.iter().map(|place| place.cpu).filter(|cpu| !own.contains(cpu)).collect()
    }

    /// Takes everything of a pod back; tells whether it had anything.
    pub fn release(&mut self, uid: &str) -> bool {
        self.given.remove(uid).is_some()
    }

    /// What is kept in the file.
    #[must_use]
    pub fn encode(&self) -> Value {
        let entries: BTreeMap<&String, BTreeMap<&String, String>> = self
            .given
            .iter()
            .map(|(uid, all)| (uid, all.iter().map(|(name, set)| (name, render(set))).collect()))
            .collect();
        json!({"policyName": "static", "defaultCpuSet": render(&self.shared()), "entries": entries})
    }

    /// Takes what was given from the file of an earlier life; processors that are no longer
    /// there, or given twice, are left out.
    pub fn recall(&mut self, value: &Value) {
        let Some(entries) = value.get("entries").and_then(Value::as_object) else { return };
        let mut free: Set = self.free().map(|place| place.cpu).collect();
        for (uid, all) in entries {
            for (name, text) in all.as_object().into_iter().flatten() {
                let Some(set) = text.as_str().and_then(parse) else { continue };
                if set.is_subset(&free) && !set.is_empty() {
                    free = &free - &set;
                    self.given.entry(uid.clone()).or_default().insert(name.clone(), set);
                }
            }
        }
    }

    fn free(&self) -> impl Iterator<Item = Place> {
        let shared = self.shared();
        self.all
            .iter()
            .copied()
            .filter(move |at| shared.contains(&at.cpu) && !self.reserved.contains(&at.cpu))
    }
}

/// How many whole processors a container is entitled to.
fn exclusive(pod: &Pod, container: &Container) -> usize {
    let spec = &pod.spec;
    let mut lasting =
        spec.containers.iter().chain(spec.init_containers.iter().filter(|i| is_sidecar(i)));
    if qos_class(spec) != "Guaranteed" || !lasting.any(|one| one.name == container.name) {
        return 0;
    }
    let milli = container.resources.limits.get("cpu").map_or(0, |cpu| cpu.milli_value());
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// Picks so many: whole sockets, then whole cores, then single ones, fullest places first.
fn pick(free: &[Place], wanted: usize) -> Option<Set> {
    if free.len() < wanted {
        return None;
    }
    let mut left: Vec<Place> = free.to_vec();
    let mut picked = Set::new();
    let by_socket = |at: &Place| (at.socket, 0);
    let by_core = |at: &Place| (at.socket, at.core);
    take_whole(&mut left, free, wanted, &mut picked, by_socket);
    take_whole(&mut left, free, wanted, &mut picked, by_core);
    // Single ones come from cores that are broken already, so that whole ones stay whole.
    left.sort_by_key(|at| {
        let beside = left_in(free, at) - left_in_taken(&picked, free, at);
        (beside, *at)
    });
    let missing = wanted.saturating_sub(picked.len());
    picked.extend(left.into_iter().take(missing).map(|at| at.cpu));
    Some(picked)
}

/// Takes whole groups while they fit.
fn take_whole(
    left: &mut Vec<Place>,
    free: &[Place],
    wanted: usize,
    picked: &mut Set,
    group: impl Fn(&Place) -> (u32, u32),
) {
    let size = free.iter().map(|at| free.iter().filter(|b| group(at) == group(b)).count()).max();
    let Some(size) = size.filter(|size| *size > 1) else { return };
    let mut groups: BTreeMap<(u32, u32), Vec<Place>> = BTreeMap::new();
    for at in left.iter() {
        groups.entry(group(at)).or_default().push(*at);
    }
    for members in groups.into_values().filter(|members| members.len() == size) {
        if picked.len().saturating_add(members.len()) > wanted {
            return;
        }
        left.retain(|at| !members.contains(at));
        picked.extend(members.into_iter().map(|at| at.cpu));
    }
}

fn left_in(free: &[Place], at: &Place) -> usize {
    free.iter().filter(|other| (other.socket, other.core) == (at.socket, at.core)).count()
}

fn left_in_taken(picked: &Set, free: &[Place], at: &Place) -> usize {
    let same = free.iter().filter(|other| (other.socket, other.core) == (at.socket, at.core));
    same.filter(|other| picked.contains(&other.cpu)).count()
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes a set as the kernel does: `0-3,6`.
#[must_use]
pub fn render(set: &Set) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(*cpu) => *end = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let one = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

/// Reads what [`render`] and the kernel write; `None` when it is something else.
#[must_use]
pub fn parse(text: &str) -> Option<Set> {
    /// No machine has more.
    const CPUS_MAX: u32 = 1 << 14;
    let mut set = Set::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= CPUS_MAX {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sockets of two cores of two processors, numbered as machines do: 0 and 4 are a core.
    fn machine() -> Vec<Place> {
        (0..8).map(|cpu| Place { socket: cpu % 4 / 2, core: cpu % 4, cpu }).collect()
    }

    fn pod(uid: &str, cpus: &[&str]) -> Pod {
        let one = |(index, cpu): (usize, &&str)| json!({"name": index.to_string(), "resources": {"limits": {"cpu": cpu, "memory": "1Gi"}}});
        let containers: Vec<Value> = cpus.iter().enumerate().map(one).collect();
        serde_json::from_value(
            json!({"metadata": {"uid": uid}, "spec": {"containers": containers}}),
        )
        .unwrap()
    }

    #[track_caller]
    fn check(cores: &mut Cores, pod: &Pod, expected: &[&str]) {
        for (container, expected) in pod.spec.containers.iter().zip(expected) {
            assert_eq!(
                render(&cores.give(pod, container).unwrap()),
                *expected,
                "{}",
                container.name
            );
        }
    }

    #[test]
    fn whole_processors_are_given_near_to_each_other() {
        let mut cores = Cores::new(machine(), 500);
        assert_eq!(render(&cores.shared()), "0-7");
        // 0 is the system's, so 4 is alone on its core and goes first to whoever wants one.
        check(&mut cores, &pod("one", &["1", "1500m"]), &["4", "0-3,5-7"]);
        check(&mut cores, &pod("two", &["2"]), &["1,5"]);
        check(&mut cores, &pod("socket", &["4"]), &["2-3,6-7"]);
        assert_eq!(render(&cores.shared()), "0");
        let more = pod("more", &["1"]);
        assert_eq!(cores.give(&more, &more.spec.containers[0]).unwrap_err().resource, "cpu");
        assert!(cores.release("two"));
        check(&mut cores, &more, &["1"]);
        assert_eq!(render(&cores.of("more", "0")), "1");
        assert_eq!(render(&cores.of("nobody", "0")), "0,5");
    }

    #[test]
    fn only_guaranteed_pods_have_processors_of_their_own() {
        let mut cores = Cores::new(machine(), 1000);
        let mut burstable = pod("b", &["2"]);
        burstable.spec.containers[0].resources.requests =
            [("cpu".to_owned(), objects::Quantity::from_whole(1))].into();
        check(&mut cores, &burstable, &["0-7"]);
    }

    #[test]
    fn what_was_given_survives_in_the_file() {
        let mut cores = Cores::new(machine(), 1000);
        check(&mut cores, &pod("a", &["2"]), &["1,5"]);
        let kept = cores.encode();
        assert_eq!(kept["defaultCpuSet"], "0,2-4,6-7");
        let mut again = Cores::new(machine(), 1000);
        again.recall(&kept);
        assert_eq!(again, cores);
        // A smaller machine has no such processors, and nothing is given twice.
        let mut small = Cores::new(machine().into_iter().take(3), 1000);
        small.recall(&kept);
        assert_eq!(render(&small.shared()), "0-2");
        again.recall(&json!({"entries": {"b": {"0": "5"}, "c": {"0": "0"}, "d": {"0": "x"}}}));
        assert_eq!(again, cores);
    }

    #[test]
    fn sets_are_written_as_the_kernel_does() {
        for text in ["", "0", "0-3", "0,2-3,7"] {
            assert_eq!(render(&parse(text).unwrap()), text);
        }
        assert_eq!(parse("0-99999999"), None);
        assert_eq!(parse("a"), None);
    }
}
