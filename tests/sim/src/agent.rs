//! The parts around the control plane: agents that run pods, a driver that makes volumes and
//! brings them to nodes, and what pods use.

use std::collections::BTreeMap;

use control::action::{Propagation, Target};
use control::scaling::Usage;
use objects::kind;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::server::{Server, has_ended, is_deleting, target, text};

/// What all pods of one workload use together, in thousandths of a processor.
const LOAD: i64 = 700;

/// What running pods of `web` use: together always the same.
pub(crate) fn usage(server: &Server) -> BTreeMap<(String, String), Usage> {
    let serves = |pod: &&Value| {
        text(pod, "/metadata/labels/app") == "web" && is_ready(pod) && !is_deleting(pod)
    };
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for pod in server.all(&kind::POD).filter(serves) {
        *counts.entry(text(pod, "/metadata/namespace")).or_default() += 1;
    }
    let mut all = BTreeMap::new();
    for pod in server.all(&kind::POD).filter(serves) {
        let ns = text(pod, "/metadata/namespace");
        let share = LOAD / counts.get(ns).copied().unwrap_or(1);
        let amounts = [("cpu".to_owned(), share)].into();
        let usage = Usage { containers: [("c".to_owned(), amounts)].into(), ..Usage::default() };
        all.insert((ns.to_owned(), text(pod, "/metadata/name").to_owned()), usage);
    }
    all
}

fn is_ready(pod: &Value) -> bool {
    let all = pod.pointer("/status/conditions").and_then(Value::as_array);
    all.into_iter().flatten().any(|one| {
        one.get("type") == Some(&json!("Ready")) && one.get("status") == Some(&json!("True"))
    })
}

/// What an agent says of a pod now; `None` when nothing new.
fn report(pod: &Value, at: objects::Time, dice: &mut Dice) -> Option<Value> {
    let status = |phase: &str, ready: &str| {
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": at});
        let status = json!({"phase": phase, "podIP": "172.20.0.1", "startTime": at, "conditions": [condition]});
        Some(json!({ "status": status }))
    };
    let phase = text(pod, "/status/phase");
    if is_deleting(pod) {
        return if has_ended(pod) { None } else { status("Failed", "False") };
    }
    if has_ended(pod) {
        return None;
    }
    if phase != "Running" || (text(pod, "/spec/restartPolicy") != "Never" && !is_ready(pod)) {
        return status("Running", "True");
    }
    if text(pod, "/spec/restartPolicy") == "Never" {
        return status(if dice.once_in(6) { "Failed" } else { "Succeeded" }, "False");
    }
    None
}

/// Bound pods run, jobs' pods end, deleted ones stop; a silent node does nothing.
pub(crate) fn run_pods(
    server: &mut Server,
    silent: &BTreeMap<&'static str, bool>,
    dice: &mut Dice,
) -> bool {
    server.who = "agent";
    let at = objects::Time::from(server.now);
    let acts = |pod: &&Value| {
        let node = text(pod, "/spec/nodeName");
        !node.is_empty() && silent.get(node) != Some(&true)
    };
    let mut reports = Vec::new();
    for pod in server.all(&kind::POD).filter(acts) {
        if let Some(patch) = report(pod, at, dice) {
            reports.push((target(&kind::POD, pod), patch));
        }
    }
    for (pod, patch) in &reports {
        server.change(&kind::POD, &pod.namespace, &pod.name, patch);
    }
    !reports.is_empty()
}

/// Nodes that are empty and asked to restart do, into the youngest image there is.
pub(crate) fn restart(server: &mut Server, silent: &BTreeMap<&'static str, bool>) -> bool {
    server.who = "agent";
    let asked = |node: &&Value| {
        let boot = text(node, "/status/nodeInfo/bootID");
        let note = |name: &str| text(node, &format!("/metadata/annotations/muster.dev~1{name}"));
        silent.get(text(node, "/metadata/name")) != Some(&true)
            && note("maintenance-state") == "ready"
            && note("restart") == boot
    };
    let names =
        server.all(&kind::NODE).filter(asked).map(|one| text(one, "/metadata/name").to_owned());
    let names: Vec<String> = names.collect();
    let image = image(server);
    for name in &names {
        let boot = format!("{name}-{}", server.head());
        let info = json!({"nodeInfo": {"bootID": boot, "osImage": image}});
        server.change(&kind::NODE, "", name, &json!({"status": info}));
    }
    !names.is_empty()
}

/// What a machine that boots now says it runs.
pub(crate) fn image(server: &Server) -> String {
    let number = |one: &Value| text(one, "/spec/version").parse::<u32>().unwrap_or(0);
    let latest = server.all(&kind::NODE_IMAGE).map(number).max();
    format!("Muster {} (sim)", latest.unwrap_or(0))
}

/// Volumes are made for claims that ask for them, and go when they are released.
pub(crate) fn provision(server: &mut Server) -> bool {
    server.who = "driver";
    let asks = |claim: &&Value| {
        let asked =
            claim.pointer("/metadata/annotations/volume.kubernetes.io~1storage-provisioner");
        asked.is_some() && text(claim, "/spec/volumeName").is_empty() && !is_deleting(claim)
    };
    let mut made = Vec::new();
    for claim in server.all(&kind::PERSISTENT_VOLUME_CLAIM).filter(asks) {
        let uid = text(claim, "/metadata/uid");
        let name = format!("pvc-{uid}");
        if server.get(&kind::PERSISTENT_VOLUME, "", &name).is_some() {
            continue;
        }
        made.push(json!({
            "metadata": {
                "name": name, "annotations": {"pv.kubernetes.io/provisioned-by": "sim"},
            },
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "disk",
                "csi": {"driver": "sim", "volumeHandle": uid},
                "claimRef": {
                    "kind": "PersistentVolumeClaim", "uid": uid,
                    "namespace": text(claim, "/metadata/namespace"),
                    "name": text(claim, "/metadata/name"),
                },
            },
        }));
    }
    let released = |one: &&Value| text(one, "/status/phase") == "Released" && !is_deleting(one);
    let volumes = server.all(&kind::PERSISTENT_VOLUME).filter(released);
    let old: Vec<Target> = volumes.map(|one| target(&kind::PERSISTENT_VOLUME, one)).collect();
    let any = !made.is_empty() || !old.is_empty();
    for volume in made {
        server.create(&kind::PERSISTENT_VOLUME, volume);
    }
    for volume in &old {
        server.delete(volume, false, Propagation::Background);
    }
    any
}

/// Volumes are brought to nodes and taken from them as attachments say.
pub(crate) fn attach(server: &mut Server) -> bool {
    server.who = "driver";
    let open =
        |one: &&Value| one.pointer("/status/attached") != Some(&json!(true)) && !is_deleting(one);
    let names = |all: &mut dyn Iterator<Item = &Value>| -> Vec<String> {
        all.map(|one| text(one, "/metadata/name").to_owned()).collect()
    };
    let kind = &kind::VOLUME_ATTACHMENT;
    let coming = names(&mut server.all(kind).filter(open));
    let going = names(&mut server.all(kind).filter(|one| is_deleting(one)));
    for name in &coming {
        let held = json!({"metadata": {"finalizers": ["external-attacher/sim"]}, "status": {"attached": true}});
        server.change(kind, "", name, &held);
    }
    for name in &going {
        server.change(
            kind,
            "",
            name,
            &json!({"metadata": {"finalizers": null}, "status": {"attached": false}}),
        );
    }
    !coming.is_empty() || !going.is_empty()
}
