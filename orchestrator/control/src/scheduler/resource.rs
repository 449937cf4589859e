//! Amounts of resources: names as small numbers, and what a pod asks for in all.
//!
//! Spec: upstream's `PodRequests`: init containers run one after the other, those that restart
//! always run beside everything after them, and the pod's own figures replace the sum.

use std::collections::BTreeMap;

use objects::pod::{Container, PodSpec, ResourceList};

/// CPU assumed for scoring when a container asks for none, in thousandths; upstream's.
const CPU_DEFAULT: i64 = 100;
/// Memory likewise, in bytes.
const MEMORY_DEFAULT: i64 = 200 << 20;

/// A resource as its place among the columns of the node table.
pub(super) type ResourceId = usize;
/// CPU, in thousandths.
pub(super) const CPU: ResourceId = 0;
/// Memory, in bytes.
pub(super) const MEMORY: ResourceId = 1;

/// Amounts by resource; CPU in thousandths, everything else in units.
pub(super) type Amounts = Vec<(ResourceId, i64)>;

type Sums = BTreeMap<ResourceId, i64>;

/// Names of resources that were ever seen.
#[derive(Debug)]
pub(super) struct Names {
    ids: BTreeMap<String, ResourceId>,
    names: Vec<String>,
}

impl Default for Names {
    fn default() -> Self {
        let mut names = Self { ids: BTreeMap::new(), names: Vec::new() };
        for name in ["cpu", "memory"] {
            names.id(name);
        }
        names
    }
}

impl Names {
    /// The number of a name, new when it must be.
    pub(super) fn id(&mut self, name: &str) -> ResourceId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.names.len();
        self.ids.insert(name.to_owned(), id);
        self.names.push(name.to_owned());
        id
    }

    /// The number of a name that was seen before.
    pub(super) fn find(&self, name: &str) -> Option<ResourceId> {
        self.ids.get(name).copied()
    }

    /// The name of a number.
    pub(super) fn name(&self, id: ResourceId) -> &str {
        self.names.get(id).map_or("", String::as_str)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// A list of an object as numbers.
    pub(super) fn amounts(&mut self, list: &ResourceList) -> Sums {
        let each = list.iter().map(|(name, amount)| {
            let amount = if name == "cpu" { amount.milli_value() } else { amount.value() };
            (self.id(name), amount)
        });
        each.collect()
    }
}

/// What a pod asks for; zeroes are left out.
pub(super) fn requests(names: &mut Names, spec: &PodSpec) -> Amounts {
    let mut total = total(spec, |container| names.amounts(&container.resources.requests));
    if let Some(own) = &spec.resources {
        total.extend(names.amounts(&own.requests));
    }
    add(&mut total, &names.amounts(&spec.overhead));
    total.into_iter().filter(|(_, amount)| *amount > 0).collect()
}

/// CPU and memory for scoring, with defaults for containers that ask for none.
pub(super) fn load(names: &mut Names, spec: &PodSpec) -> (i64, i64) {
    let mut total = total(spec, |container| {
        let mut own = names.amounts(&container.resources.requests);
        own.retain(|id, _| *id == CPU || *id == MEMORY);
        own.entry(CPU).or_insert(CPU_DEFAULT);
        own.entry(MEMORY).or_insert(MEMORY_DEFAULT);
        own
    });
    if let Some(own) = &spec.resources {
        total.extend(names.amounts(&own.requests));
    }
    add(&mut total, &names.amounts(&spec.overhead));
    let get = |id| total.get(&id).copied().unwrap_or(0);
    (get(CPU), get(MEMORY))
}

fn total(spec: &PodSpec, mut of: impl FnMut(&Container) -> Sums) -> Sums {
    let mut beside = Sums::new();
    let mut peak = Sums::new();
    for container in &spec.init_containers {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut beside, &own);
            raise(&mut peak, &beside);
        } else {
            let mut step = beside.clone();
            add(&mut step, &own);
            raise(&mut peak, &step);
        }
    }
    let mut total = beside;
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    raise(&mut total, &peak);
    total
}

fn add(sum: &mut Sums, other: &Sums) {
    for (id, amount) in other {
        let had = sum.entry(*id).or_default();
        *had = had.saturating_add(*amount);
    }
}

fn raise(most: &mut Sums, other: &Sums) {
    for (id, amount) in other {
        let had = most.entry(*id).or_default();
        *had = (*had).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(spec: Value, cpu: i64) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let found = requests(&mut Names::default(), &spec);
        let found = found.iter().find(|(id, _)| *id == CPU).map_or(0, |(_, amount)| *amount);
        assert_eq!(found, cpu);
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    fn sidecar(cpu: &str) -> Value {
        let mut value = container(cpu);
        value["restartPolicy"] = json!("Always");
        value
    }

    #[test]
    fn a_pod_asks_for_its_sum_or_for_the_largest_step_of_its_start() {
        check(json!({"containers": [container("1"), container("500m")]}), 1500);
        let starts = [container("2"), container("3")];
        check(json!({"containers": [container("1")], "initContainers": starts}), 3000);
        // A sidecar runs beside the containers, and beside the steps that come after it alone.
        let mixed = [container("2"), sidecar("500m"), container("2")];
        check(json!({"containers": [container("1")], "initContainers": mixed}), 2500);
        let small = [sidecar("500m")];
        check(json!({"containers": [container("1")], "initContainers": small}), 1500);
        check(json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}), 1250);
        let whole = json!({"requests": {"cpu": "4"}});
        check(json!({"containers": [container("1")], "resources": whole}), 4000);
    }
}
