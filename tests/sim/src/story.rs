//! One life of a cluster from a seed: things happen, views lag, processes fall; then it is
//! left in peace, and must come to rest as it was declared.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use control::action::Action;
use control::controller::CONTROLLERS;
use control::view::Settings;
use jiff::{SignedDuration, Timestamp};
use objects::kind;
use serde_json::{Value, json};

use crate::actor::Actor;
use crate::agent;
use crate::deed;
use crate::dice::Dice;
use crate::planner::Planner;
use crate::rule::{self, Restarts, Rules};
use crate::server::{Server, has_ended, is_deleting, number, text};

/// The machines.
pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];
/// Things that happen before the cluster is left in peace.
const HAPPENINGS: usize = 120;
/// Rounds within which it must then come to rest.
const ROUNDS: usize = 4000;
/// Seconds that go by in peace, step by step: every patience and back-off there is.
const PEACE: [i64; 16] = [1, 5, 10, 15, 20, 30, 30, 60, 60, 120, 180, 300, 300, 300, 600, 600];

/// The whole cluster.
pub(crate) struct Story {
    pub(crate) server: Server,
    pub(crate) actors: Vec<Actor>,
    pub(crate) planner: Planner,
    pub(crate) dice: Dice,
    pub(crate) silent: BTreeMap<&'static str, bool>,
    /// Is there room for everything that may be declared?
    roomy: bool,
}

/// How a life went.
pub(crate) struct Life {
    /// What broke, or who still wants what.
    pub(crate) end: Result<()>,
    /// The same for every run of the seed.
    pub(crate) digest: u64,
    /// Every write, if asked for.
    pub(crate) trace: Vec<String>,
}

/// Lives one seed.
pub(crate) fn live(seed: u64, traced: bool) -> Life {
    let mut story = Story::begin(seed, traced);
    let end = story.go();
    let Server { digest, trace, .. } = story.server;
    Life { end, digest, trace: trace.unwrap_or_default() }
}

impl Story {
    fn begin(seed: u64, traced: bool) -> Self {
        let now = Timestamp::from_second(1_767_225_600).unwrap_or_default();
        let mut dice = Dice::new(seed);
        let restarts = if dice.once_in(3) { Restarts::Old } else { Restarts::Fresh };
        let roomy = !dice.once_in(4);
        let pools = "10.9.0.0/29".parse().into_iter().collect();
        let settings = Settings {
            root_ca: "PEM".to_owned(),
            load_balancer_pools: pools,
            ..Settings::default()
        };
        let mut server = Server::new(now, Rules::new(restarts), traced);
        for name in ["n", "m", "kube-system"] {
            server.create(&kind::NAMESPACE, json!({"metadata": {"name": name}}));
        }
        server.create(
            &kind::STORAGE_CLASS,
            json!({"metadata": {"name": "disk"}, "provisioner": "sim", "reclaimPolicy": "Delete"}),
        );
        for (number, name) in (1..).zip(NODES) {
            let network = format!("172.20.{number}.0/24");
            server.create(&kind::MACHINE, deed::machine(name, &network));
        }
        let actors = CONTROLLERS.iter().map(|one| Actor::new(one, &settings)).collect();
        let planner = Planner::new(seed);
        let mut story = Self { server, actors, planner, dice, silent: BTreeMap::new(), roomy };
        NODES.iter().for_each(|name| story.join(name));
        story
    }

    fn go(&mut self) -> Result<()> {
        for _ in 0..HAPPENINGS {
            self.happen();
            for _ in 0..8 {
                self.stumble();
            }
            self.hold()?;
        }
        self.peace()?;
        self.check()
    }

    /// No hard rule is broken.
    fn hold(&self) -> Result<()> {
        let broken = &self.server.rules.broken;
        ensure!(broken.is_empty(), "broken: {}", broken.join("; "));
        Ok(())
    }

    /// A node says that it is there.
    fn join(&mut self, name: &str) {
        let at = objects::Time::from(self.server.now);
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": at});
        let mut labels = json!({"kubernetes.io/hostname": name});
        if name != "c" {
            deed::label(&mut labels, "disk", "fast");
        }
        let places = if self.roomy { 24 } else { 6 };
        let cpu = places / 2;
        let boot = format!("{name}-{}", self.server.head());
        let node = json!({
            "metadata": {"name": name, "labels": labels}, "spec": {},
            "status": {
                "nodeInfo": {"bootID": boot, "osImage": agent::image(&self.server)},
                "allocatable": {"cpu": cpu.to_string(), "memory": "8Gi", "pods": places.to_string()},
                "conditions": [ready],
            },
        });
        self.server.create(&kind::NODE, node);
    }

    /// Time goes by; nodes that are not silent say that they live.
    pub(crate) fn pass(&mut self, seconds: i64) {
        let now = self.server.now.saturating_add(SignedDuration::from_secs(seconds));
        self.server.now = now.unwrap_or(self.server.now);
        self.server.who = "agent";
        for name in NODES {
            if self.silent.get(name) == Some(&true) {
                continue;
            }
            let at = objects::Time::from(self.server.now);
            let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": at}]);
            if self.server.get(&kind::NODE, "", name).is_none() {
                self.join(name);
            }
            let patch = json!({"status": {"conditions": ready}});
            self.server.change(&kind::NODE, "", name, &patch);
        }
    }

    /// Someone does one small thing, with what it knows.
    fn stumble(&mut self) {
        let (server, dice) = (&mut self.server, &mut self.dice);
        match dice.below(self.actors.len() + 7) {
            0..=2 => {
                if !dice.once_in(3) {
                    self.planner.see(server, Some(dice));
                }
                self.planner.round(server, dice, true);
            }
            3 | 4 => {
                agent::run_pods(server, &self.silent, dice);
                agent::restart(server, &self.silent);
            }
            5 => _ = agent::provision(server),
            6 => _ = agent::attach(server),
            number => {
                let Some(actor) = self.actors.get_mut(number - 7) else { return };
                if !dice.once_in(3) {
                    actor.see(server, Some(dice), 25);
                }
                actor.round(server, dice, true);
            }
        }
    }

    /// Nothing happens any more: everyone sees everything, and time goes by.
    fn peace(&mut self) -> Result<()> {
        self.server.who = "operator";
        self.server.say(|| "peace".to_owned());
        self.silent.clear();
        for node in NODES {
            let patch = json!({
                "metadata": {"annotations": {"muster.dev/maintenance": null}},
                "spec": {"unschedulable": false},
            });
            self.server.change(&kind::NODE, "", node, &patch);
        }
        self.each(&kind::CRON_JOB, &json!({"spec": {"suspend": true}}));
        self.each(&kind::DEPLOYMENT, &json!({"spec": {"paused": false}}));
        for seconds in PEACE {
            self.pass(seconds);
            self.settle()?;
            self.hold()?;
        }
        Ok(())
    }

    /// The same change to every object of a kind.
    fn each(&mut self, kind: &'static objects::Kind, patch: &Value) {
        let name = |one: &Value| {
            (text(one, "/metadata/namespace").to_owned(), text(one, "/metadata/name").to_owned())
        };
        let names: Vec<_> = self.server.all(kind).map(name).collect();
        for (namespace, name) in names {
            self.server.change(kind, &namespace, &name, patch);
        }
    }

    /// Rounds of everyone until nobody moves.
    fn settle(&mut self) -> Result<()> {
        let (server, dice) = (&mut self.server, &mut self.dice);
        for _ in 0..ROUNDS {
            let mut any = false;
            for actor in &mut self.actors {
                actor.see(server, None, 0);
                // Everything its views let it do; then the others may answer.
                for _ in 0..=actor.dirty.len() {
                    any |= actor.round(server, dice, false);
                }
            }
            self.planner.see(server, None);
            while self.planner.round(server, dice, false) {
                any = true;
            }
            any |= agent::run_pods(server, &self.silent, dice);
            any |= agent::restart(server, &self.silent);
            any |= agent::provision(server);
            any |= agent::attach(server);
            if !any {
                return Ok(());
            }
        }
        let last = server.log.iter().rev().take(8);
        let last: Vec<String> = last
            .map(|one| format!("{} {}/{}", one.kind.plural, one.key.namespace, one.key.name))
            .collect();
        bail!("does not come to rest; the last writes, latest first: {}", last.join(", "))
    }

    /// Is everything as it was declared, and does nobody want anything?
    fn check(&self) -> Result<()> {
        let server = &self.server;
        let waits = |pod: &&Value| text(pod, "/spec/nodeName").is_empty() && !has_ended(pod);
        let waiting = server.all(&kind::POD).find(waits);
        // A pod that was orphaned beside its claim waits for ever once somebody deletes that.
        let why = |pod| {
            let message = text(pod, "/status/conditions/0/message");
            let left = text(pod, "/metadata/ownerReferences/0/uid").is_empty();
            message.contains("is being deleted") || (left && message.contains("\" not found"))
        };
        ensure!(
            waiting.is_none_or(why) || !self.roomy,
            "there is room, but {} waits: {}",
            waiting.map_or("", |pod| text(pod, "/metadata/name")),
            waiting.and_then(|pod| pod.pointer("/status/conditions/0/message")).unwrap_or_default()
        );
        let waits = waiting.is_some();
        for actor in &self.actors {
            let mut wishes = actor.wishes(server.now);
            // Where there is no room, a budget may keep a node from being emptied for ever.
            wishes.retain(|wish| !waits || !matches!(wish, Action::Evict { .. }));
            ensure!(
                wishes.is_empty(),
                "{} was not woken for {:#?}",
                actor.controller.name,
                wishes.first()
            );
        }
        let image = agent::image(server);
        for node in server.all(&kind::NODE).filter(|_| !waits) {
            let has = text(node, "/status/nodeInfo/osImage");
            ensure!(has == image, "a node has {has}, not {image}: {node:#}");
        }
        // A claim that somebody deleted stays until the pods that use it are gone, and no new pod
        // may use it: what was orphaned beside it keeps both so.
        let is_used = |claim: &Value| {
            let (ns, name) = (text(claim, "/metadata/namespace"), text(claim, "/metadata/name"));
            server.all(&kind::POD).any(|pod| {
                let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
                let uses = |one: &Value| text(one, "/persistentVolumeClaim/claimName") == name;
                text(pod, "/metadata/namespace") == ns
                    && volumes.is_some_and(|all| all.iter().any(uses))
            })
        };
        for ((plural, ns, name), held) in &server.objects {
            let object = &held.value;
            let count = |pointer: &str| number(object, pointer).unwrap_or(0);
            let (wanted, has) = match *plural {
                "deployments" => (count("/spec/replicas"), count("/status/availableReplicas")),
                "replicasets" => (count("/spec/replicas"), count("/status/replicas")),
                "statefulsets" => (count("/spec/replicas"), count("/status/readyReplicas")),
                "daemonsets" => (3, count("/status/numberAvailable")),
                "jobs" => (1, i64::from(has_verdict(object))),
                _ => (0, 0),
            };
            ensure!(
                wanted == has || waits,
                "{plural} {ns}/{name} has {has} of {wanted}: {object:#}"
            );
            let kept = *plural == "persistentvolumeclaims" && is_used(object);
            ensure!(!is_deleting(object) || kept, "{plural} {ns}/{name} does not go: {object:#}");
        }
        self.check_shares(waits)
    }

    /// What there is once is given once; what is counted is counted right.
    fn check_shares(&self, waits: bool) -> Result<()> {
        let server = &self.server;
        let pointer = "/status/loadBalancer/ingress/0/ip";
        let twice = rule::shared(server, &kind::SERVICE, pointer);
        ensure!(twice.is_none(), "two services have {twice:?}");
        let wants = |one: &&Value| text(one, "/spec/type") == "LoadBalancer";
        let wanted = server.all(&kind::SERVICE).filter(wants).count();
        let has = server.all(&kind::SERVICE).filter(|one| !text(one, pointer).is_empty()).count();
        ensure!(has == wanted.min(6), "{has} of {wanted} services have an address");
        for quota in server.all(&kind::RESOURCE_QUOTA) {
            let ns = text(quota, "/metadata/namespace");
            let counts = |pod: &&Value| text(pod, "/metadata/namespace") == ns && !has_ended(pod);
            let count = server.all(&kind::POD).filter(counts).count().to_string();
            let used = text(quota, "/status/used/pods");
            ensure!(used == count, "the quota of {ns} counts {used} pods, there are {count}");
        }
        for scaler in server.all(&kind::HORIZONTAL_POD_AUTOSCALER) {
            let (ns, most) =
                (text(scaler, "/metadata/namespace"), number(scaler, "/spec/maxReplicas"));
            let Some(web) = server.get(&kind::DEPLOYMENT, ns, "web") else { continue };
            let has = number(web, "/spec/replicas");
            ensure!(has <= most, "{ns}/web is scaled to {has:?} of at most {most:?}");
        }
        let upgraded = |node: &&Value| {
            waits && !text(node, "/metadata/annotations/muster.dev~1upgrade").is_empty()
        };
        for node in server.all(&kind::NODE).filter(|node| !upgraded(node)) {
            let closed = node.pointer("/spec/unschedulable") == Some(&json!(true));
            let taints = node.pointer("/spec/taints").and_then(Value::as_array);
            ensure!(!closed && taints.is_none_or(Vec::is_empty), "a node stays closed: {node:#}");
        }
        Ok(())
    }
}

fn has_verdict(job: &Value) -> bool {
    let all = job.pointer("/status/conditions").and_then(Value::as_array);
    all.into_iter().flatten().any(|one| matches!(text(one, "/type"), "Complete" | "Failed"))
}
