//! One life of a cluster from a seed: things happen, views lag, processes fall; then it is
//! left in peace, and must come to rest as it was declared.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use control::action::{Action, Propagation, Target};
use control::controller::CONTROLLERS;
use control::scheduler;
use control::view::{Settings, View};
use jiff::{SignedDuration, Timestamp};
use objects::Kind;
use objects::kind;
use serde_json::{Value, json};

use crate::actor::{Actor, show};
use crate::dice::Dice;
use crate::server::Server;

const NODES: [&str; 3] = ["a", "b", "c"];
/// Things that happen before the cluster is left in peace.
const HAPPENINGS: usize = 120;
/// Rounds within which it must then come to rest.
const ROUNDS: usize = 4000;

/// The whole cluster.
struct Story {
    server: Server,
    actors: Vec<Actor>,
    /// The scheduler's view, and how much of the history it shows.
    scheduler: (View, usize),
    dice: Dice,
    silent: BTreeMap<&'static str, bool>,
}

/// Lives one seed.
///
/// # Errors
///
/// Says what broke, or who still wants what.
pub(crate) fn live(seed: u64) -> Result<()> {
    let mut story = Story::begin(seed)?;
    for _ in 0..HAPPENINGS {
        story.happen();
        for _ in 0..8 {
            story.stumble();
        }
    }
    story.peace()?;
    story.check()
}

impl Story {
    fn begin(seed: u64) -> Result<Self> {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse()?;
        let settings = Settings { root_ca: "PEM".to_owned(), ..Settings::default() };
        let mut server = Server::new(now);
        for name in ["n", "m"] {
            server.create(&kind::NAMESPACE, json!({"metadata": {"name": name}}));
        }
        for name in NODES {
            let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": objects::Time::from(now)});
            server.create(
                &kind::NODE,
                json!({
                    "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                    "spec": {},
                    "status": {
                        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "8"},
                        "conditions": [ready],
                    },
                }),
            );
        }
        let actors = CONTROLLERS.iter().map(|one| Actor::new(one, &settings)).collect();
        let view = View { settings, ..View::default() };
        let dice = Dice::new(seed);
        Ok(Self { server, actors, scheduler: (view, 0), dice, silent: BTreeMap::new() })
    }

    /// Someone does something.
    fn happen(&mut self) {
        let namespace = *["n", "n", "n", "m"].get(self.dice.below(4)).unwrap_or(&"n");
        let size = self.dice.below(5);
        let image = format!("image-{}", self.dice.below(3));
        let coin = self.dice.once_in(2);
        match self.dice.below(16) {
            0 => self.declare(&kind::DEPLOYMENT, namespace, "web", &image, json!({"replicas": size})),
            1 => self.declare(&kind::DAEMON_SET, namespace, "log", &image, json!({})),
            2 => self.declare(&kind::STATEFUL_SET, namespace, "db", &image, json!({
                "replicas": size, "serviceName": "db",
                "podManagementPolicy": if coin { "Parallel" } else { "OrderedReady" },
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
            })),
            3 => self.declare(&kind::JOB, namespace, "work", "image-0", json!({
                "completions": size + 1, "parallelism": 2, "backoffLimit": 3,
                "completionMode": if coin { "Indexed" } else { "NonIndexed" },
            })),
            4 => self.declare(&kind::CRON_JOB, namespace, "tick", "image-0", json!({
                "schedule": "*/2 * * * *", "concurrencyPolicy": "Replace",
            })),
            5 => {
                let selector = json!({"matchLabels": {"app": "web"}});
                let spec = json!({"selector": selector, "maxUnavailable": 1});
                self.declare(&kind::POD_DISRUPTION_BUDGET, namespace, "web", "", spec);
            }
            6 => {
                let ports = json!([{"port": 80}]);
                let spec = json!({"selector": {"app": "web"}, "ports": ports, "clusterIP": "10.0.0.1"});
                self.declare(&kind::SERVICE, namespace, "web", "", spec);
            }
            7 => self.remove_some(),
            8 | 9 => self.lose_pod(),
            10 => {
                let node = self.any_node();
                let silent = self.dice.once_in(2);
                self.silent.insert(node, silent);
            }
            11 => {
                let (node, cordoned) = (self.any_node(), self.dice.once_in(2));
                let patch = json!({"spec": {"unschedulable": cordoned}});
                self.server.change(&kind::NODE, "", node, &patch);
            }
            12 => {
                let index = self.dice.below(self.actors.len());
                let server = &self.server;
                if let Some(actor) = self.actors.get_mut(index) {
                    // Time travel: a new process listens to a server that is behind.
                    let back = actor.seen.saturating_sub(self.dice.below(60));
                    actor.crash(server, back);
                }
            }
            _ => {
                let seconds = self.dice.below(60);
                self.pass(i64::try_from(seconds).unwrap_or(0));
            }
        }
    }

    fn any_node(&mut self) -> &'static str {
        NODES.get(self.dice.below(NODES.len())).copied().unwrap_or("a")
    }

    /// Creates a workload, or changes the one that is there.
    fn declare(&mut self, kind: &'static Kind, ns: &str, name: &str, image: &str, spec: Value) {
        let mut object = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": name, "namespace": ns}, "spec": spec,
        });
        let restart = if ["work", "tick"].contains(&name) { "Never" } else { "Always" };
        let template = json!({
            "metadata": {"labels": {"app": name}},
            "spec": {"restartPolicy": restart, "containers": [
                {"name": "c", "image": image, "resources": {"requests": {"cpu": "500m"}}},
            ]},
        });
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            match kind.kind {
                "CronJob" => {
                    let job =
                        json!({"spec": {"completions": 1, "parallelism": 1, "template": template}});
                    spec.insert("jobTemplate".to_owned(), job);
                }
                "Job" => _ = spec.insert("template".to_owned(), template),
                "Deployment" | "DaemonSet" | "StatefulSet" => {
                    spec.insert("template".to_owned(), template);
                    spec.insert("selector".to_owned(), json!({"matchLabels": {"app": name}}));
                }
                _ => (),
            }
        }
        let spec = object.get("spec").cloned().unwrap_or_default();
        if self.server.create(kind, object).is_none() && !["Job", "CronJob"].contains(&kind.kind) {
            self.server.change(kind, ns, name, &json!({ "spec": spec }));
        }
    }

    /// Deletes some workload, or the second namespace.
    fn remove_some(&mut self) {
        let kinds = ["Deployment", "DaemonSet", "StatefulSet", "Job", "CronJob", "Namespace"];
        let wanted: Vec<Target> =
            self.targets(|kind, _, name| kinds.contains(&kind.kind) && name != "n");
        let propagation = match self.dice.below(3) {
            0 => Propagation::Foreground,
            1 => Propagation::Orphan,
            _ => Propagation::Background,
        };
        if let Some(target) = wanted.get(self.dice.below(wanted.len())) {
            self.server.delete(target, false, propagation);
        }
    }

    fn targets(&self, wanted: impl Fn(&Kind, &str, &str) -> bool) -> Vec<Target> {
        let all = self.server.objects.iter();
        all.filter(|((kind, ns, name), _)| wanted(kind, ns, name))
            .map(|((kind, namespace, name), object)| Target {
                kind,
                namespace: namespace.clone(),
                name: name.clone(),
                uid: object
                    .pointer("/metadata/uid")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned(),
                resource_version: String::new(),
            })
            .collect()
    }

    /// A pod fails, or is deleted by someone.
    fn lose_pod(&mut self) {
        let pods = self.targets(|kind, _, _| kind.kind == "Pod");
        let Some(target) = pods.get(self.dice.below(pods.len())).cloned() else { return };
        if self.dice.once_in(2) {
            self.server.delete(&target, false, Propagation::Background);
        } else {
            let failed = json!({"status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}});
            self.server.change(&kind::POD, &target.namespace, &target.name, &failed);
        }
    }

    /// Time goes by; nodes that are not silent say that they live.
    fn pass(&mut self, seconds: i64) {
        let now = self.server.now.saturating_add(SignedDuration::from_secs(seconds));
        self.server.now = now.unwrap_or(self.server.now);
        for node in NODES {
            if self.silent.get(node) != Some(&true) {
                let at = objects::Time::from(self.server.now);
                let place = (&kind::NODE, String::new(), node.to_owned());
                let Some(mut object) = self.server.objects.get(&place).cloned() else { continue };
                let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": at}]);
                if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
                    status.insert("conditions".to_owned(), ready);
                }
                self.server.put(place, object);
            }
        }
    }

    /// Someone does one small thing, with what it knows.
    fn stumble(&mut self) {
        let head = self.server.log.len();
        let lag = self.dice.below(20);
        match self.dice.below(self.actors.len() + 4) {
            0 | 1 => _ = self.schedule(head.saturating_sub(lag)),
            2 | 3 => _ = self.run_pods(),
            number => {
                let Some(actor) = self.actors.get_mut(number - 4) else { return };
                if !self.dice.once_in(3) {
                    let lag = self.dice.below(25);
                    actor.see(&self.server, head.saturating_sub(lag).max(actor.seen));
                }
                actor.round(&mut self.server, &mut self.dice, true);
            }
        }
    }

    /// One round of the scheduler on a view that shows the history up to `until`.
    fn schedule(&mut self, until: usize) -> bool {
        let (view, seen) = &mut self.scheduler;
        for written in self.server.log.iter().take(until).skip(*seen) {
            show(view, written);
        }
        *seen = until.max(*seen);
        let steps = scheduler::plan(view, self.server.now);
        let mut any = false;
        for action in &steps.actions {
            any |= self.server.carry_out(action).is_some();
        }
        any
    }

    /// The agents: bound pods run, jobs' pods end, deleted ones stop.
    fn run_pods(&mut self) -> bool {
        let mut any = false;
        for target in self.targets(|kind, _, _| kind.kind == "Pod") {
            let place = (&kind::POD, target.namespace.clone(), target.name.clone());
            let Some(pod) = self.server.objects.get(&place).cloned() else { continue };
            let text =
                |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let node = text("/spec/nodeName");
            if node.is_empty() || self.silent.iter().any(|(name, silent)| *name == node && *silent)
            {
                continue;
            }
            let phase = text("/status/phase").to_owned();
            let ended = matches!(phase.as_str(), "Succeeded" | "Failed");
            let at = objects::Time::from(self.server.now);
            let status = |phase: &str, ready: &str| {
                let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": at});
                json!({"status": {"phase": phase, "podIP": "172.20.0.1", "conditions": [condition]}})
            };
            let patch = if pod.pointer("/metadata/deletionTimestamp").is_some() {
                if ended { continue } else { status("Failed", "False") }
            } else if phase != "Running" && !ended {
                status("Running", "True")
            } else if phase == "Running" && text("/spec/restartPolicy") == "Never" {
                let fails = self.dice.once_in(6);
                status(if fails { "Failed" } else { "Succeeded" }, "False")
            } else if phase == "Running" && !pod.pointer("/status/conditions").is_some_and(is_ready)
            {
                status("Running", "True")
            } else {
                continue;
            };
            self.server.change(&kind::POD, &target.namespace, &target.name, &patch);
            any = true;
        }
        any
    }

    /// Nothing happens any more: everyone sees everything, and time goes by.
    fn peace(&mut self) -> Result<()> {
        self.silent.clear();
        for node in NODES {
            self.server.change(&kind::NODE, "", node, &json!({"spec": {"unschedulable": false}}));
        }
        for target in self.targets(|kind, _, _| kind.kind == "CronJob") {
            let patch = json!({"spec": {"suspend": true}});
            self.server.change(&kind::CRON_JOB, &target.namespace, &target.name, &patch);
        }
        // Long enough for every patience and back-off there is.
        for _ in 0..40 {
            self.pass(40);
            self.settle()?;
        }
        Ok(())
    }

    /// Rounds of everyone until nobody moves.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..ROUNDS {
            let mut any = false;
            for place in 0..self.actors.len() {
                let head = self.server.log.len();
                let Some(actor) = self.actors.get_mut(place) else { continue };
                actor.see(&self.server, head);
                any |= actor.round(&mut self.server, &mut self.dice, false);
            }
            any |= self.schedule(self.server.log.len());
            any |= self.run_pods();
            if !any {
                return Ok(());
            }
        }
        let last: Vec<String> = self
            .server
            .log
            .iter()
            .rev()
            .take(6)
            .map(|one| format!("{:?} {:?}", one.kind, one.key))
            .collect();
        bail!("does not come to rest; the last writes, latest first: {last:#?}")
    }

    /// Is everything as it was declared, and does nobody want anything?
    fn check(&mut self) -> Result<()> {
        ensure!(self.server.broken.is_empty(), "broken: {:?}", self.server.broken);
        for actor in &self.actors {
            let wishes: Vec<Action> = actor.wishes(self.server.now);
            ensure!(
                wishes.is_empty() || actor.controller.name == "namespace-controller",
                "{} was not woken for {:#?}",
                actor.controller.name,
                wishes.first()
            );
        }
        let mut used: BTreeMap<String, usize> = BTreeMap::new();
        for ((kind, ns, name), object) in &self.server.objects {
            let number =
                |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
            let (wanted, has) = match kind.kind {
                "Deployment" => (number("/spec/replicas"), number("/status/availableReplicas")),
                "StatefulSet" => (number("/spec/replicas"), number("/status/readyReplicas")),
                "DaemonSet" => (3, number("/status/numberAvailable")),
                "Job" => {
                    (1, i64::from(object.pointer("/status/conditions").is_some_and(has_ended)))
                }
                "Pod" => {
                    let node = object.pointer("/spec/nodeName").and_then(Value::as_str);
                    let phase = object.pointer("/status/phase").and_then(Value::as_str);
                    if phase == Some("Running") {
                        *used.entry(node.unwrap_or_default().to_owned()).or_default() += 1;
                    }
                    (0, 0)
                }
                _ => (0, 0),
            };
            let room = self.fits();
            ensure!(
                wanted == has || !room,
                "{kind:?} {ns}/{name} has {has} of {wanted}: {object:#}"
            );
            let going = object.pointer("/metadata/deletionTimestamp").is_some();
            ensure!(!going, "{kind:?} {ns}/{name} does not go: {object:#}");
        }
        for (node, pods) in used {
            ensure!(pods <= 8, "{node} runs {pods} pods of half a processor each, and has four");
        }
        Ok(())
    }

    /// Is there room for everything that is declared? Otherwise some of it must wait.
    fn fits(&self) -> bool {
        !self.server.objects.iter().any(|((kind, _, _), object)| {
            kind.kind == "Pod" && object.pointer("/spec/nodeName").is_none()
        })
    }
}

fn is_ready(conditions: &Value) -> bool {
    let all = conditions.as_array().into_iter().flatten();
    all.into_iter().any(|one| {
        one.get("type") == Some(&json!("Ready")) && one.get("status") == Some(&json!("True"))
    })
}

fn has_ended(conditions: &Value) -> bool {
    let all = conditions.as_array().into_iter().flatten();
    all.into_iter().any(|one| {
        let kind = one.get("type").and_then(Value::as_str);
        matches!(kind, Some("Complete" | "Failed"))
    })
}
