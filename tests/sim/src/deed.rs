//! What people do to the cluster, and what happens to it.

use control::action::{Propagation, Target};
use objects::Kind;
use objects::kind;
use serde_json::{Value, json};

use crate::server::{target, text};
use crate::story::{NODES, Story};

/// Networks that machines may be given; more than there are machines.
const NETWORKS: [&str; 5] =
    ["172.20.1.0/24", "172.20.2.0/24", "172.20.3.0/24", "172.20.4.0/24", "172.20.5.0/24"];

/// A machine as the plan says.
pub(crate) fn machine(name: &str, network: &str) -> Value {
    let number = name.bytes().map(u32::from).sum::<u32>() % 200;
    json!({
        "metadata": {"name": name},
        "spec": {
            "name": name, "rack": "r1", "node": number, "role": "worker",
            "address": format!("10.98.1.{number}"), "prefixLen": 24, "gateway": "10.98.1.1",
            "mac": format!("52:54:00:00:01:{number:02x}"), "boot": "bios", "podCIDR": network,
            "asn": 4_200_000_011_u32,
        },
    })
}

impl Story {
    /// Someone does something.
    pub(crate) fn happen(&mut self) {
        self.server.who = "operator";
        let ns = *["n", "n", "n", "m"].get(self.dice.below(4)).unwrap_or(&"n");
        match self.dice.below(27) {
            number @ 0..=8 => self.declare_some(number, ns),
            9 | 10 => self.remove_some(),
            11 | 12 => self.lose_pod(),
            13 => {
                let node = self.any_node();
                let silent = self.dice.once_in(2);
                self.silent.insert(node, silent);
            }
            14 => {
                let (node, cordoned) = (self.any_node(), self.dice.once_in(2));
                let patch = json!({"spec": {"unschedulable": cordoned}});
                self.server.change(&kind::NODE, "", node, &patch);
            }
            15 => {
                let index = self.dice.below(self.actors.len() + 1);
                self.server.say(|| "someone falls".to_owned());
                match self.actors.get_mut(index) {
                    Some(actor) => actor.crash(&self.server, &mut self.dice),
                    None => self.planner.crash(&self.server),
                }
            }
            16 => self.replan(),
            17 => self.lose_node(),
            18 => self.serve(ns),
            19 => self.autoscale(ns),
            20 => self.drain(),
            21 => self.publish(),
            _ => {
                let seconds = self.dice.below(60);
                self.pass(i64::try_from(seconds).unwrap_or(0));
            }
        }
    }

    fn any_node(&mut self) -> &'static str {
        NODES.get(self.dice.below(NODES.len())).copied().unwrap_or("a")
    }

    fn declare_some(&mut self, number: usize, ns: &str) {
        let size = self.dice.below(5);
        let image = format!("image-{}", self.dice.below(3));
        let coin = self.dice.once_in(2);
        let (kind, name, spec): (&'static Kind, _, _) = match number {
            0 | 1 => {
                let strategy = if self.dice.once_in(4) { "Recreate" } else { "RollingUpdate" };
                let spec = json!({"replicas": size, "strategy": {"type": strategy}, "paused": self.dice.once_in(8)});
                (&kind::DEPLOYMENT, "web", spec)
            }
            2 => (&kind::DEPLOYMENT, "spread", json!({"replicas": size.min(2)})),
            3 => (&kind::DAEMON_SET, "log", json!({})),
            4 => (
                &kind::STATEFUL_SET,
                "db",
                json!({
                    "replicas": size, "serviceName": "db",
                    "podManagementPolicy": if coin { "Parallel" } else { "OrderedReady" },
                    "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                        "accessModes": ["ReadWriteOnce"], "storageClassName": "disk",
                        "resources": {"requests": {"storage": "1Gi"}},
                    }}],
                    "persistentVolumeClaimRetentionPolicy": {
                        "whenDeleted": "Delete", "whenScaled": if coin { "Delete" } else { "Retain" },
                    },
                }),
            ),
            5 => (
                &kind::JOB,
                "work",
                json!({
                    "completions": size + 1, "parallelism": 2, "backoffLimit": 3,
                    "ttlSecondsAfterFinished": (size == 0).then_some(90),
                    "completionMode": if coin { "Indexed" } else { "NonIndexed" },
                }),
            ),
            6 => (
                &kind::CRON_JOB,
                "tick",
                json!({
                    "schedule": "*/2 * * * *",
                    "concurrencyPolicy": if coin { "Replace" } else { "Forbid" },
                }),
            ),
            7 => {
                let selector = json!({"matchLabels": {"app": "web"}});
                (
                    &kind::POD_DISRUPTION_BUDGET,
                    "web",
                    json!({"selector": selector, "maxUnavailable": 1}),
                )
            }
            _ => (
                &kind::RESOURCE_QUOTA,
                "all",
                json!({"hard": {"pods": "90", "requests.cpu": "90"}}),
            ),
        };
        self.declare(kind, ns, name, &image, spec);
    }

    /// Creates a workload, or changes the one that is there.
    fn declare(&mut self, kind: &'static Kind, ns: &str, name: &str, image: &str, spec: Value) {
        let mut object = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": name, "namespace": ns}, "spec": spec,
        });
        let restart = if ["Job", "CronJob"].contains(&kind.kind) { "Never" } else { "Always" };
        let mut pod = json!({
            "restartPolicy": restart, "schedulerName": "default-scheduler",
            "containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "500m"}}}],
        });
        if let Some(fields) = pod.as_object_mut() {
            if name == "spread" {
                let term = json!({"labelSelector": {"matchLabels": {"app": "spread"}}, "topologyKey": "kubernetes.io/hostname"});
                let away = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
                fields.insert("affinity".to_owned(), away);
            } else if name == "db" {
                fields.insert("nodeSelector".to_owned(), json!({"disk": "fast"}));
            }
        }
        let template = json!({"metadata": {"labels": {"app": name}}, "spec": pod});
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

    /// A service with an address from outside, or without.
    fn serve(&mut self, ns: &str) {
        let name = format!("s{}", self.dice.below(4));
        let kind = if self.dice.once_in(3) { "ClusterIP" } else { "LoadBalancer" };
        let spec = json!({
            "type": kind, "selector": {"app": "web"}, "ports": [{"port": 80}], "clusterIP": "10.0.0.1",
        });
        self.declare(&kind::SERVICE, ns, &name, "", spec);
    }

    fn autoscale(&mut self, ns: &str) {
        let spec = json!({
            "scaleTargetRef": {"kind": "Deployment", "name": "web"},
            "minReplicas": 1, "maxReplicas": 2 + self.dice.below(4),
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50},
            }}],
        });
        self.declare(&kind::HORIZONTAL_POD_AUTOSCALER, ns, "web", "", spec);
    }

    /// A node is wanted for maintenance, or given back.
    fn drain(&mut self) {
        let node = self.any_node();
        let wanted = self.dice.once_in(2).then_some("drain");
        let patch = json!({"metadata": {"annotations": {"muster.dev/maintenance": wanted}}});
        self.server.change(&kind::NODE, "", node, &patch);
    }

    /// A new image for every node; few lives see more than one.
    fn publish(&mut self) {
        let version = self.server.all(&kind::NODE_IMAGE).count() + 1;
        let rollout = json!({"force": true, "minReadySeconds": self.dice.below(20)});
        self.server.create(
            &kind::NODE_IMAGE,
            json!({
                "metadata": {"name": format!("v{version:03}")},
                "spec": {"version": version.to_string(), "rollout": rollout},
            }),
        );
    }

    /// The plan is changed: a machine moves to a place that no other has.
    fn replan(&mut self) {
        let node = self.any_node();
        let free: Vec<&str> = NETWORKS
            .into_iter()
            .filter(|one| {
                !self.server.all(&kind::MACHINE).any(|had| text(had, "/spec/podCIDR") == *one)
            })
            .collect();
        if let Some(network) = free.get(self.dice.below(free.len())) {
            let patch = json!({"spec": {"podCIDR": network}});
            self.server.change(&kind::MACHINE, "", node, &patch);
        }
    }

    /// A node is taken out of the cluster; it comes back as a new one.
    fn lose_node(&mut self) {
        let node = self.any_node();
        let found = self.server.get(&kind::NODE, "", node).map(|one| target(&kind::NODE, one));
        if let Some(found) = found {
            self.server.delete(&found, true, Propagation::Background);
        }
    }

    /// Deletes some workload, or the second namespace.
    fn remove_some(&mut self) {
        let kinds = [
            "Deployment",
            "DaemonSet",
            "StatefulSet",
            "Job",
            "CronJob",
            "Namespace",
            "Service",
            "HorizontalPodAutoscaler",
            "PodDisruptionBudget",
        ];
        let wanted = self.server.objects.iter().filter(|((_, _, name), held)| {
            kinds.contains(&held.kind.kind) && !["n", "kube-system"].contains(&name.as_str())
        });
        let wanted: Vec<Target> = wanted.map(|(_, held)| target(held.kind, &held.value)).collect();
        let propagation = match self.dice.below(3) {
            0 => Propagation::Foreground,
            1 => Propagation::Orphan,
            _ => Propagation::Background,
        };
        if let Some(target) = wanted.get(self.dice.below(wanted.len())) {
            self.server.delete(target, false, propagation);
        }
    }

    /// A pod fails, or is deleted by someone.
    fn lose_pod(&mut self) {
        let pods: Vec<Target> =
            self.server.all(&kind::POD).map(|one| target(&kind::POD, one)).collect();
        let Some(target) = pods.get(self.dice.below(pods.len())).cloned() else { return };
        if self.dice.once_in(2) {
            self.server.delete(&target, false, Propagation::Background);
        } else {
            let failed = json!({"status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}});
            self.server.change(&kind::POD, &target.namespace, &target.name, &failed);
        }
    }
}

/// Adds a label.
pub(crate) fn label(labels: &mut Value, name: &str, value: &str) {
    if let Some(all) = labels.as_object_mut() {
        all.insert(name.to_owned(), json!(value));
    }
}
