//! Which devices of a node there are, and who has which.
//!
//! Plugins tell their devices; a container that asks for two gets two healthy ones and keeps
//! them through its restarts and those of the agent. Nothing is taken from a running container:
//! a device that turns bad is only given to nobody else.
//!
//! Spec: upstream's device manager. *Limits*: plugins' preferences and topology hints are not
//! asked for.

use std::collections::{BTreeMap, BTreeSet};

use objects::pod::{Container, Pod};
use serde::{Deserialize, Serialize};

use crate::ledger::Lack;
use crate::plan::is_sidecar;

/// Devices of one container: by resource, their names.
pub type Share = BTreeMap<String, BTreeSet<String>>;

/// All devices and who has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// By resource: each device, and whether it is healthy.
    #[serde(skip)]
    known: BTreeMap<String, BTreeMap<String, bool>>,
    /// By pod and container.
    given: BTreeMap<String, BTreeMap<String, Share>>,
}

impl Devices {
    /// Takes the whole list of a plugin.
    pub fn list(&mut self, resource: &str, devices: BTreeMap<String, bool>) {
        self.known.insert(resource.to_owned(), devices);
    }

    /// Notes that a plugin is gone: its devices stay known and are fit for nobody.
    pub fn lose(&mut self, resource: &str) {
        if let Some(devices) = self.known.get_mut(resource) {
            devices.values_mut().for_each(|healthy| *healthy = false);
        }
    }

    /// How many of each resource there are, and how many are healthy.
    #[must_use]
    pub fn amounts(&self) -> BTreeMap<String, (i64, i64)> {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let each = self.known.iter().map(|(resource, devices)| {
            let healthy = devices.values().filter(|healthy| **healthy).count();
            (resource.clone(), (count(devices.len()), count(healthy)))
        });
        each.collect()
    }

    /// Gives a container what it asks for of the resources that plugins have told of.
    ///
    /// # Errors
    ///
    /// The first resource of which there are too few; nothing is given then.
    pub fn give(&mut self, pod: &Pod, container: &Container) -> Result<Share, Lack> {
        let uid = pod.metadata.uid.as_str();
        if let Some(share) = self.given.get(uid).and_then(|all| all.get(&container.name)) {
            return Ok(share.clone());
        }
        let mut share = Share::new();
        for (resource, amount) in &container.resources.limits {
            let Some(devices) = self.known.get(resource) else { continue };
            let wanted = usize::try_from(amount.value()).unwrap_or(0);
            let taken = self.taken(resource);
            let mut ids = self.reusable(pod, resource);
            ids.retain(|id| devices.get(id) == Some(&true));
            let free =
                devices.iter().filter(|(id, healthy)| **healthy && !taken.contains(id.as_str()));
            ids.extend(free.map(|(id, _)| id.clone()));
            if ids.len() < wanted {
                let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
                return Err(Lack {
                    resource: resource.clone(),
                    requested: count(wanted),
                    used: count(taken.len()),
                    capacity: count(devices.len()),
                });
            }
            ids.truncate(wanted);
            share.insert(resource.clone(), ids.into_iter().collect());
        }
        if !share.is_empty() {
            let of_pod = self.given.entry(uid.to_owned()).or_default();
            of_pod.insert(container.name.clone(), share.clone());
        }
        Ok(share)
    }

    /// Takes everything of a pod back; tells whether it had anything.
    pub fn release(&mut self, uid: &str) -> bool {
        self.given.remove(uid).is_some()
    }

    fn taken(&self, resource: &str) -> BTreeSet<&str> {
        let shares = self.given.values().flat_map(BTreeMap::values);
        shares.filter_map(|share| share.get(resource)).flatten().map(String::as_str).collect()
    }

    /// Devices that the pod's init containers had: they have ended when the next one starts.
    fn reusable(&self, pod: &Pod, resource: &str) -> Vec<String> {
        let Some(of_pod) = self.given.get(&pod.metadata.uid) else { return Vec::new() };
        let inits = pod.spec.init_containers.iter().filter(|init| !is_sidecar(init));
        let had = inits.filter_map(|init| of_pod.get(&init.name)?.get(resource)).flatten();
        let had: BTreeSet<&String> = had.collect();
        let names: BTreeSet<&str> =
            pod.spec.init_containers.iter().filter(|i| !is_sidecar(i)).map(|i| &*i.name).collect();
        // What another container of the pod has taken over by now is its own.
        let others = of_pod.iter().filter(|(name, _)| !names.contains(name.as_str()));
        let kept: BTreeSet<&String> =
            others.filter_map(|(_, share)| share.get(resource)).flatten().collect();
        had.difference(&kept).map(|id| (*id).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const CARD: &str = "example.org/card";

    fn pod(uid: &str, inits: &[(&str, i64)], mains: &[(&str, i64)]) -> Pod {
        let one = |(name, count): &(&str, i64)| -> Value {
            json!({"name": name, "resources": {"limits": {CARD: count.to_string(), "cpu": "1"}}})
        };
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {
            "initContainers": inits.iter().map(one).collect::<Vec<_>>(),
            "containers": mains.iter().map(one).collect::<Vec<_>>()}}))
        .unwrap()
    }

    fn devices(text: &str) -> Devices {
        let mut devices = Devices::default();
        let list = text.split(' ').map(|id| match id.strip_suffix('!') {
            Some(bad) => (bad.to_owned(), false),
            None => (id.to_owned(), true),
        });
        devices.list(CARD, list.collect());
        devices
    }

    fn ids(share: &Share) -> String {
        share
            .get(CARD)
            .map(|ids| ids.iter().cloned().collect::<Vec<_>>().join(" "))
            .unwrap_or_default()
    }

    #[test]
    fn each_container_gets_healthy_devices_of_its_own_and_keeps_them() {
        let mut all = devices("a b! c d");
        assert_eq!(all.amounts()[CARD], (4, 3));
        let first = pod("1", &[], &[("x", 2), ("y", 1)]);
        assert_eq!(ids(&all.give(&first, &first.spec.containers[0]).unwrap()), "a c");
        assert_eq!(ids(&all.give(&first, &first.spec.containers[1]).unwrap()), "d");
        // A restart finds the same ones, sick or not.
        all.lose(CARD);
        assert_eq!(all.amounts()[CARD], (4, 0));
        assert_eq!(ids(&all.give(&first, &first.spec.containers[0]).unwrap()), "a c");
        all.list(CARD, [("a".to_owned(), true), ("c".to_owned(), true)].into());
        let second = pod("2", &[], &[("x", 1)]);
        let lack = all.give(&second, &second.spec.containers[0]).unwrap_err();
        assert_eq!(lack.verdict().reason, format!("OutOf{CARD}"));
        // So does a restart of the agent.
        let kept = serde_json::to_string(&all).unwrap();
        let mut again: Devices = serde_json::from_str(&kept).unwrap();
        again.list(CARD, [("a".to_owned(), true), ("c".to_owned(), true)].into());
        assert!(again.give(&second, &second.spec.containers[0]).is_err());
        assert!(again.release("1") && !again.release("1"));
        assert_eq!(ids(&again.give(&second, &second.spec.containers[0]).unwrap()), "a");
    }

    #[test]
    fn what_an_init_container_had_goes_to_the_next_one() {
        let mut all = devices("a b");
        let pod = pod("1", &[("I", 2)], &[("x", 1), ("y", 1)]);
        assert_eq!(ids(&all.give(&pod, &pod.spec.init_containers[0]).unwrap()), "a b");
        assert_eq!(ids(&all.give(&pod, &pod.spec.containers[0]).unwrap()), "a");
        assert_eq!(ids(&all.give(&pod, &pod.spec.containers[1]).unwrap()), "b");
    }

    #[test]
    fn resources_that_no_plugin_told_of_are_not_ours() {
        let mut all = Devices::default();
        let pod = pod("1", &[], &[("x", 1)]);
        assert!(all.give(&pod, &pod.spec.containers[0]).unwrap().is_empty());
    }
}
