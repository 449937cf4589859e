//! What a node's pods have been promised, and whether one more fits.
//!
//! The scheduler has counted already; but pods also come by other ways (a name of a node in the
//! pod itself, two schedulers, a node that shrank), and a node must never promise more than it
//! has. Who was there before an agent's restart stays.
//!
//! Spec: upstream's admission by a node: `OutOfcpu`, `OutOfmemory`, `OutOfpods`, ….

use std::collections::BTreeMap;

use objects::pod::{Container, PodSpec, ResourceList};

use crate::plan::is_sidecar;
use crate::seen::Verdict;

/// Amounts by the resource's name: CPU in thousandths, others whole.
pub type Amounts = BTreeMap<String, i64>;

/// All promises of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pods: BTreeMap<String, Amounts>,
}

/// A resource that does not suffice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Its name.
    pub resource: String,
    /// What was asked for.
    pub requested: i64,
    /// What others have.
    pub used: i64,
    /// What there is.
    pub capacity: i64,
}

impl Ledger {
    /// Promises a pod what it asks for, if there is so much; the same pod twice is once.
    ///
    /// # Errors
    ///
    /// The first resource that does not suffice. Nothing is promised then, and an earlier
    /// promise to the same pod stands.
    pub fn promise(&mut self, uid: &str, spec: &PodSpec, room: &Amounts) -> Result<(), Lack> {
        let asked = asked(spec);
        for (resource, requested) in &asked {
            // What the node does not know of was told to the API by somebody else.
            let foreign = resource.contains('/') && !room.contains_key(resource);
            let capacity = room.get(resource).copied().unwrap_or(0);
            let used = self.used(resource, uid);
            if used.saturating_add(*requested) > capacity && !foreign {
                let (resource, requested) = (resource.clone(), *requested);
                return Err(Lack { resource, requested, used, capacity });
            }
        }
        self.pods.insert(uid.to_owned(), asked);
        Ok(())
    }

    /// Notes a pod that is here already, whether it fits or not.
    pub fn note(&mut self, uid: &str, spec: &PodSpec) {
        self.pods.entry(uid.to_owned()).or_insert_with(|| asked(spec));
    }

    /// Takes a pod's promises back.
    pub fn release(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    fn used(&self, resource: &str, but: &str) -> i64 {
        let others = self.pods.iter().filter(|(uid, _)| *uid != but);
        others.filter_map(|(_, asked)| asked.get(resource)).fold(0, |sum, a| sum.saturating_add(*a))
    }
}

impl Lack {
    /// Why a pod is not taken.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let Self { resource, requested, used, capacity } = self;
        Verdict {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Pod was rejected: Node didn't have enough resource: {resource}, requested: \
                 {requested}, used: {used}, capacity: {capacity} "
            ),
            grace_seconds: None,
        }
    }
}

/// What a pod asks for in all: containers that run at the same time are added, others compared.
#[must_use]
pub fn asked(spec: &PodSpec) -> Amounts {
    let mut beside = Amounts::new();
    let mut peak = Amounts::new();
    for init in &spec.init_containers {
        let mut step = beside.clone();
        add(&mut step, &requests(init));
        if is_sidecar(init) {
            beside.clone_from(&step);
        }
        for (name, amount) in step {
            let most = peak.entry(name).or_default();
            *most = (*most).max(amount);
        }
    }
    let mut total = beside;
    for container in &spec.containers {
        add(&mut total, &requests(container));
    }
    for (name, amount) in peak {
        let sum = total.entry(name).or_default();
        *sum = (*sum).max(amount);
    }
    if let Some(own) = &spec.resources {
        total.extend(amounts(&own.requests));
    }
    add(&mut total, &amounts(&spec.overhead));
    total.retain(|_, amount| *amount > 0);
    total.insert("pods".to_owned(), 1);
    total
}

/// What a container asks for; a limit without a request is a request of the same amount.
fn requests(container: &Container) -> Amounts {
    let mut asked = amounts(&container.resources.limits);
    asked.extend(amounts(&container.resources.requests));
    asked
}

fn amounts(list: &ResourceList) -> Amounts {
    let value = |(name, amount): (&String, &objects::Quantity)| {
        let amount = if name == "cpu" { amount.milli_value() } else { amount.value() };
        (name.clone(), amount)
    };
    list.iter().map(value).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let had = sum.entry(name.clone()).or_default();
        *had = had.saturating_add(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(containers: Value) -> PodSpec {
        serde_json::from_value(containers).unwrap()
    }

    fn one(requests: Value) -> PodSpec {
        spec(json!({"containers": [{"name": "a", "resources": {"requests": requests}}]}))
    }

    fn room() -> Amounts {
        Amounts::from([("cpu".into(), 2000), ("pods".into(), 3), ("x.io/card".into(), 1)])
    }

    #[test]
    fn what_runs_together_is_added() {
        let spec = spec(json!({
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"name": "S", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "I", "resources": {"requests": {"cpu": "2"}}}],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Ki"}}},
                {"name": "b", "resources": {"requests": {"cpu": "500m"}}}]}));
        let asked = asked(&spec);
        assert_eq!(asked["cpu"], 2110, "the init container beside its sidecar is the most");
        assert_eq!((asked["memory"], asked["pods"]), (1024, 1));
    }

    #[test]
    fn a_node_promises_what_it_has_and_no_more() {
        let mut ledger = Ledger::default();
        ledger.promise("a", &one(json!({"cpu": "1500m"})), &room()).unwrap();
        // The same pod asked about again does not compete with itself.
        ledger.promise("a", &one(json!({"cpu": "1500m"})), &room()).unwrap();
        let lack = ledger.promise("b", &one(json!({"cpu": "501m"})), &room()).unwrap_err();
        let verdict = lack.verdict();
        assert_eq!(verdict.reason, "OutOfcpu");
        assert_eq!(
            verdict.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 501, used: 1500, \
             capacity: 2000 "
        );
        ledger.release("a");
        ledger.promise("b", &one(json!({"cpu": "501m"})), &room()).unwrap();
    }

    #[test]
    fn pods_and_devices_are_counted_too() {
        let mut ledger = Ledger::default();
        for uid in ["a", "b", "c"] {
            ledger.promise(uid, &one(json!({})), &room()).unwrap();
        }
        let lack = ledger.promise("d", &one(json!({})), &room()).unwrap_err();
        assert_eq!(lack.verdict().reason, "OutOfpods");
        ledger.release("c");
        let card = one(json!({"x.io/card": "2"}));
        let lack = ledger.promise("d", &card, &room()).unwrap_err();
        assert_eq!((lack.resource.as_str(), lack.capacity), ("x.io/card", 1));
        // Who was there before is noted even above what there is.
        ledger.note("d", &card);
        assert_eq!(ledger.promise("e", &one(json!({})), &room()).unwrap_err().used, 3);
    }
}
