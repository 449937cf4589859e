//! The scheduler against a naive reading of the rules, over random clusters from seeds.
//!
//! The oracle knows nothing of counts, classes or queues: it looks at every pod on every node
//! anew. After every decision it says whether the node was allowed; when there was none, whether
//! that is true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use objects::node::Node;
use objects::pod::{Pod, PodAffinityTerm};
use serde_json::{Value, json};

use super::{Config, Decision, Event, Scheduler};
use crate::action::Action;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

/// The whole truth, naively.
#[derive(Default, Clone)]
struct Truth {
    nodes: BTreeMap<String, Arc<Node>>,
    pods: BTreeMap<String, Arc<Pod>>,
    /// Where each pod is, by uid.
    places: BTreeMap<String, String>,
}

fn affinity(pod: &Pod, anti: bool) -> &[PodAffinityTerm] {
    let affinity = pod.spec.affinity.as_ref();
    let part = affinity.and_then(|one| {
        if anti { one.pod_anti_affinity.as_ref() } else { one.pod_affinity.as_ref() }
    });
    part.map_or(&[], |one| &one.required_during_scheduling_ignored_during_execution)
}

fn term_means(term: &PodAffinityTerm, owner: &Pod, other: &Pod) -> bool {
    let here = if term.namespaces.is_empty() {
        other.metadata.namespace == owner.metadata.namespace
    } else {
        term.namespaces.contains(&other.metadata.namespace)
    };
    here && term.label_selector.as_ref().is_some_and(|one| one.matches(&other.metadata.labels))
}

fn amount(pod: &Pod) -> i64 {
    let all = pod.spec.containers.iter();
    all.filter_map(|one| one.resources.requests.get("cpu")).map(|one| one.milli_value()).sum()
}

fn host_port(pod: &Pod) -> Option<i64> {
    pod.spec.containers.iter().flat_map(|one| &one.ports).find_map(|port| port.host_port)
}

impl Truth {
    fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        let here = self.places.iter().filter(move |(_, place)| *place == node);
        here.filter_map(|(uid, _)| self.pods.get(uid))
    }

    fn label(&self, node: &str, key: &str) -> Option<&str> {
        self.nodes[node].metadata.label(key)
    }

    /// May the pod be on the node, as things are?
    fn allows(&self, pod: &Pod, node: &str) -> Result<(), &'static str> {
        let found = &self.nodes[node];
        let labels = &found.metadata.labels;
        let borne = |taint: &objects::node::Taint| {
            pod.spec.tolerations.iter().any(|one| one.tolerates(taint))
        };
        let closed = objects::node::Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..objects::node::Taint::default()
        };
        if found.spec.unschedulable && !borne(&closed) {
            return Err("unschedulable");
        }
        if found.spec.taints.iter().any(|taint| taint.effect == "NoSchedule" && !borne(taint)) {
            return Err("taint");
        }
        if !pod.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            return Err("selector");
        }
        let used: i64 = self.on(node).map(|other| amount(other)).sum();
        // Who asks for nothing takes nothing, even where too much is taken.
        if amount(pod) > 0 && used + amount(pod) > found.status.allocatable["cpu"].milli_value() {
            return Err("cpu");
        }
        if i64::try_from(self.on(node).count()).unwrap() >= found.status.allocatable["pods"].value()
        {
            return Err("pods");
        }
        if host_port(pod).is_some_and(|port| self.on(node).any(|one| host_port(one) == Some(port)))
        {
            return Err("port");
        }
        self.allows_spread(pod, node)?;
        self.allows_neighbours(pod, node)
    }

    fn allows_spread(&self, pod: &Pod, node: &str) -> Result<(), &'static str> {
        let hard: Vec<_> = pod
            .spec
            .topology_spread_constraints
            .iter()
            .filter(|one| one.when_unsatisfiable == "DoNotSchedule")
            .collect();
        for rule in &hard {
            let Some(domain) = self.label(node, &rule.topology_key) else {
                return Err("spread: no label");
            };
            let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
            for (name, other) in &self.nodes {
                let complete =
                    hard.iter().all(|rule| other.metadata.label(&rule.topology_key).is_some());
                let mut wanted = pod.spec.node_selector.iter();
                if !complete
                    || !wanted.all(|(key, value)| other.metadata.labels.get(key) == Some(value))
                {
                    continue;
                }
                let here = self.on(name).filter(|one| {
                    one.metadata.namespace == pod.metadata.namespace
                        && !one.metadata.is_deleting()
                        && rule.label_selector.as_ref().unwrap().matches(&one.metadata.labels)
                });
                *counts.entry(other.metadata.label(&rule.topology_key).unwrap()).or_default() +=
                    i64::try_from(here.count()).unwrap();
            }
            let enough =
                rule.min_domains.is_none_or(|least| i64::try_from(counts.len()).unwrap() >= least);
            let least = if enough { counts.values().copied().min().unwrap_or(0) } else { 0 };
            let own = rule.label_selector.as_ref().unwrap().matches(&pod.metadata.labels);
            let here = counts.get(domain).copied().unwrap_or(0);
            if here + i64::from(own) - least > rule.max_skew {
                return Err("spread");
            }
        }
        Ok(())
    }

    fn allows_neighbours(&self, pod: &Pod, node: &str) -> Result<(), &'static str> {
        let near = affinity(pod, false);
        let wanted = |other: &Pod| near.iter().all(|term| term_means(term, pod, other));
        let placed = || self.places.iter().filter_map(|(uid, at)| Some((self.pods.get(uid)?, at)));
        let friends: Vec<&str> =
            placed().filter(|(other, _)| wanted(other)).map(|(_, at)| at.as_str()).collect();
        let mut met = true;
        let mut anywhere = false;
        for term in near {
            let Some(here) = self.label(node, &term.topology_key) else {
                return Err("affinity: no label");
            };
            let places: BTreeSet<&str> =
                friends.iter().filter_map(|at| self.label(at, &term.topology_key)).collect();
            anywhere |= !places.is_empty();
            met &= places.contains(here);
        }
        if !met && (anywhere || !wanted(pod)) {
            return Err("affinity");
        }
        for (other, at) in placed() {
            let same = |term: &PodAffinityTerm| {
                let here = self.label(node, &term.topology_key);
                here.is_some() && here == self.label(at, &term.topology_key)
            };
            let far = affinity(pod, true);
            if far.iter().any(|term| term_means(term, pod, other) && same(term)) {
                return Err("anti-affinity");
            }
            let theirs = affinity(other, true);
            if theirs.iter().any(|term| term_means(term, other, pod) && same(term)) {
                return Err("anti-affinity of others");
            }
        }
        Ok(())
    }
}

/// A small random number source, so that a story is its seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40).unwrap() % sides
    }

    fn one_in(&mut self, sides: u32) -> bool {
        self.below(sides) == 0
    }
}

fn random_node(dice: &mut Dice, number: u32) -> Arc<Node> {
    let name = format!("n{number}");
    let mut labels = json!({HOST: name});
    if !dice.one_in(6) {
        labels[ZONE] = json!(format!("z{}", dice.below(3)));
    }
    if dice.one_in(2) {
        labels["disk"] = json!("ssd");
    }
    let mut spec = json!({});
    if dice.one_in(8) {
        spec["unschedulable"] = json!(true);
    }
    if dice.one_in(6) {
        spec["taints"] = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    }
    let value = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": format!("{}m", 500 + 500 * dice.below(6)), "pods": (1 + dice.below(8)).to_string()},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn terms(dice: &mut Dice) -> Value {
    let app = format!("a{}", dice.below(3));
    let key = if dice.one_in(2) { ZONE } else { HOST };
    let mut term = json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key});
    if dice.one_in(3) {
        term["namespaces"] = json!(["one", "two"]);
    }
    json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})
}

fn random_pod(dice: &mut Dice, number: u32) -> Pod {
    let mut container = json!({"name": "c", "resources": {"requests": {"cpu": format!("{}m", 100 * dice.below(8))}}});
    if dice.one_in(8) {
        container["ports"] = json!([{"containerPort": 80, "hostPort": 80 + dice.below(2)}]);
    }
    let mut spec = json!({"containers": [container], "priority": dice.below(2)});
    let mut affinity = json!({});
    if dice.one_in(4) {
        affinity["podAffinity"] = terms(dice);
    }
    if dice.one_in(3) {
        affinity["podAntiAffinity"] = terms(dice);
    }
    spec["affinity"] = affinity;
    if dice.one_in(5) {
        spec["nodeSelector"] = json!({"disk": "ssd"});
    }
    if dice.one_in(5) {
        spec["tolerations"] = json!([{"operator": "Exists"}]);
    }
    if dice.one_in(3) {
        let key = if dice.one_in(2) { ZONE } else { HOST };
        let mut rule = json!({
            "maxSkew": 1 + dice.below(2), "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": format!("a{}", dice.below(3))}},
        });
        if dice.one_in(4) {
            rule["minDomains"] = json!(3);
        }
        spec["topologySpreadConstraints"] = json!([rule]);
    }
    let value = json!({
        "metadata": {
            "name": format!("p{number}"), "uid": format!("u{number}"),
            "namespace": if dice.one_in(4) { "two" } else { "one" },
            "labels": {"app": format!("a{}", dice.below(3))},
        },
        "spec": spec,
    });
    serde_json::from_value(value).unwrap()
}

/// Tells a random story and checks every decision in it.
fn story(seed: u64) {
    let dice = &mut Dice::new(seed);
    let mut truth = Truth::default();
    let mut scheduler = Scheduler::new(Config::default(), seed);
    let mut now = Timestamp::UNIX_EPOCH;
    for number in 0..2 + dice.below(6) {
        let node = random_node(dice, number);
        truth.nodes.insert(node.metadata.name.clone(), Arc::clone(&node));
        scheduler.apply(Event::Node(node), now);
    }
    let mut unseen: Vec<String> = Vec::new();
    for number in 0..40 {
        now = now.saturating_add(jiff::SignedDuration::from_secs(1)).unwrap();
        match dice.below(10) {
            0 if !truth.places.is_empty() => {
                // A pod goes.
                let at = dice.below(u32::try_from(truth.places.len()).unwrap()) as usize;
                let uid = truth.places.keys().nth(at).unwrap().clone();
                truth.places.remove(&uid);
                truth.pods.remove(&uid);
                unseen.retain(|one| *one != uid);
                scheduler.apply(Event::PodGone(uid), now);
            }
            1 => {
                // A node changes its labels, taints or size; what is there stays.
                let number = dice.below(8);
                let node = random_node(dice, number);
                if truth.nodes.contains_key(&node.metadata.name) {
                    truth.nodes.insert(node.metadata.name.clone(), Arc::clone(&node));
                    scheduler.apply(Event::Node(node), now);
                }
            }
            2 if !unseen.is_empty() => {
                // The watch shows a binding, with some delay.
                let uid = unseen.remove(0);
                let mut pod = Pod::clone(&truth.pods[&uid]);
                pod.spec.node_name = truth.places[&uid].clone();
                if dice.one_in(4) {
                    pod.metadata.deletion_timestamp = Some(now.into());
                }
                let pod = Arc::new(pod);
                truth.pods.insert(uid, Arc::clone(&pod));
                scheduler.apply(Event::Pod(pod), now);
            }
            _ => {
                let pod = Arc::new(random_pod(dice, number));
                truth.pods.insert(pod.metadata.uid.clone(), Arc::clone(&pod));
                scheduler.apply(Event::Pod(pod), now);
            }
        }
        check(&mut scheduler, &mut truth, &mut unseen, now, seed);
    }
}

fn check(
    scheduler: &mut Scheduler,
    truth: &mut Truth,
    unseen: &mut Vec<String>,
    now: Timestamp,
    seed: u64,
) {
    for _ in 0..200 {
        let Some(decision) = scheduler.next(now) else { return };
        match decision {
            Decision::Bind { uid, bind, .. } => {
                let Action::Bind { node, .. } = *bind else { panic!("seed {seed}: no binding") };
                assert!(!truth.places.contains_key(&uid), "seed {seed}: {uid} is bound twice");
                let pod = Arc::clone(&truth.pods[&uid]);
                if let Err(why) = truth.allows(&pod, &node) {
                    panic!("seed {seed}: {uid} may not be on {node}: {why}");
                }
                truth.places.insert(uid.clone(), node);
                unseen.push(uid);
            }
            Decision::Prepare { .. } => panic!("seed {seed}: nobody has volumes"),
            Decision::Tell(steps) => {
                for step in steps {
                    match step {
                        Action::Patch { target, body, note: Some(_), .. } => {
                            let cured = body.pointer("/status/nominatedNodeName").is_some();
                            let pod = Arc::clone(&truth.pods[&target.uid]);
                            for node in truth.nodes.keys() {
                                let allowed = truth.allows(&pod, node).is_ok();
                                // What is promised to another is not free.
                                let promised = truth
                                    .pods
                                    .values()
                                    .any(|other| other.status.nominated_node_name == *node);
                                assert!(
                                    !allowed || promised || cured,
                                    "seed {seed}: {} could be on {node}",
                                    pod.metadata.name
                                );
                            }
                            note_nomination(truth, scheduler, &target.uid, &body, now);
                        }
                        Action::Delete { target, .. } => {
                            truth.places.remove(&target.uid);
                            truth.pods.remove(&target.uid);
                            unseen.retain(|one| *one != target.uid);
                            scheduler.apply(Event::PodGone(target.uid), now);
                        }
                        _ => (),
                    }
                }
            }
        }
    }
    panic!("seed {seed}: the scheduler does not come to rest");
}

/// The API server takes a condition and a nomination, and the watch shows them.
fn note_nomination(
    truth: &mut Truth,
    scheduler: &mut Scheduler,
    uid: &str,
    body: &Value,
    now: Timestamp,
) {
    let mut pod = Pod::clone(&truth.pods[uid]);
    pod.status.conditions = serde_json::from_value(body["status"]["conditions"].clone()).unwrap();
    match &body["status"]["nominatedNodeName"] {
        Value::String(node) => pod.status.nominated_node_name = node.clone(),
        _ if body["status"].get("nominatedNodeName").is_some() => {
            pod.status.nominated_node_name = String::new();
        }
        _ => (),
    }
    let pod = Arc::new(pod);
    truth.pods.insert(uid.to_owned(), Arc::clone(&pod));
    scheduler.apply(Event::Pod(pod), now);
}

#[test]
fn no_story_breaks_a_hard_rule_or_binds_twice() {
    (0..400).for_each(story);
}
