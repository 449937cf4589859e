//! Stories of the scheduler over time: queues, hints, preemption, volumes, profiles.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;

/// A scheduler with a clock and a journal of what it did.
struct Stage {
    scheduler: Scheduler,
    now: Timestamp,
    pods: BTreeMap<String, Value>,
    journal: String,
}

fn decode<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn merged(mut object: Value, patch: Value) -> Value {
    crate::world::merge(&mut object, &patch);
    object
}

impl Stage {
    fn new(config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(config, 1),
            now: Timestamp::UNIX_EPOCH,
            pods: BTreeMap::new(),
            journal: String::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        self.scheduler.apply(event, self.now);
    }

    fn node(&mut self, name: &str, patch: Value) {
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        self.tell(Event::Node(decode(merged(node, patch))));
    }

    fn pod(&mut self, name: &str, cpu: &str, patch: Value) {
        let pod = json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        });
        let pod = merged(pod, patch);
        self.pods.insert(name.to_owned(), pod.clone());
        self.tell(Event::Pod(decode(pod)));
    }

    fn gone(&mut self, name: &str) {
        self.pods.remove(name);
        self.tell(Event::PodGone(name.to_owned()));
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    /// Carries out everything decided, as the API server and its watch would.
    fn play(&mut self) {
        for _ in 0..100 {
            let Some(decision) = self.scheduler.next(self.now) else { return };
            match decision {
                Decision::Bind { uid, before, bind, .. } => {
                    assert!(before.is_empty());
                    let Action::Bind { node, .. } = *bind else { panic!("no binding") };
                    writeln!(self.journal, "{uid} -> {node}").unwrap();
                    let pod = self.pods.get_mut(&uid).unwrap();
                    pod["spec"]["nodeName"] = json!(node);
                    let pod = pod.clone();
                    self.tell(Event::Pod(decode(pod)));
                }
                Decision::Prepare { uid, steps } => {
                    for step in steps {
                        let target = step.target().unwrap();
                        writeln!(self.journal, "{uid} prepares {}", target.name).unwrap();
                    }
                }
                Decision::Tell(steps) => steps.into_iter().for_each(|step| self.take(step)),
            }
        }
        panic!("never comes to rest:\n{}", self.journal);
    }

    fn take(&mut self, step: Action) {
        match step {
            Action::Patch { target, body, note, .. } => {
                if let Some(note) = note {
                    writeln!(self.journal, "{}: {}", target.name, note.message).unwrap();
                }
                if let Some(node) = body["status"]["nominatedNodeName"].as_str() {
                    writeln!(self.journal, "{} is nominated to {node}", target.name).unwrap();
                }
                let pod = self.pods.get_mut(&target.name).unwrap();
                crate::world::merge(pod, &body);
                let pod = pod.clone();
                self.tell(Event::Pod(decode(pod)));
            }
            Action::Delete { target, .. } => {
                writeln!(self.journal, "{} is evicted", target.name).unwrap();
                self.gone(&target.name);
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: Expect) {
        self.play();
        expected.assert_eq(&std::mem::take(&mut self.journal));
    }
}

#[test]
fn a_refused_pod_rests_until_something_helps_it() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    stage.pod("big", "3", json!({}));
    stage.expect(expect![[r#"
        big: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.
    "#]]);
    // A node as small as the first does not help, nor does time.
    stage.node("b", json!({}));
    stage.pass(30);
    stage.expect(expect![""]);
    assert_eq!(stage.scheduler.ready(), 0);
    stage.node("c", json!({"status": {"allocatable": {"cpu": "4"}}}));
    stage.expect(expect![[r#"
        big -> c
    "#]]);
}

#[test]
fn what_nothing_helps_is_looked_at_again_after_five_minutes() {
    let mut stage = Stage::new(Config::default());
    stage.pod("early", "1", json!({}));
    stage.expect(expect![[r#"
        early: no nodes available to schedule pods
    "#]]);
    assert_eq!(stage.scheduler.deadline(), Some("1970-01-01T00:05:00Z".parse().unwrap()));
    stage.pass(301);
    stage.play();
    assert!(stage.scheduler.deadline() > Some(stage.now), "it rests again");
    stage.node("a", json!({}));
    stage.expect(expect![[r#"
        early -> a
    "#]]);
}

#[test]
fn gates_hold_a_pod_back_and_lifting_them_lets_it_go() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    stage.pod("gated", "1", json!({"spec": {"schedulingGates": [{"name": "wait"}]}}));
    stage.expect(expect![""]);
    assert!(stage.pods["gated"]["status"]["conditions"][0]["reason"] == "SchedulingGated");
    stage.pod("gated", "1", json!({}));
    stage.expect(expect![[r#"
        gated -> a
    "#]]);
}

#[test]
fn a_failed_binding_frees_the_place_and_is_tried_again_later() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    stage.pod("one", "2", json!({}));
    let decision = stage.scheduler.next(stage.now);
    assert!(matches!(decision, Some(Decision::Bind { .. })), "{decision:?}");
    stage.scheduler.bound("one", false, stage.now);
    assert_eq!(stage.scheduler.next(stage.now), None, "the server is left alone for a while");
    stage.pass(1);
    stage.expect(expect![[r#"
        one -> a
    "#]]);
}

#[test]
fn the_important_push_out_the_least_important() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    stage.node("b", json!({}));
    for (name, node, priority) in [("low", "a", 1), ("middle", "b", 5)] {
        stage.pod(name, "2", json!({"spec": {"nodeName": node, "priority": priority}}));
    }
    stage.pod("never", "1", json!({"spec": {"priority": 9, "preemptionPolicy": "Never"}}));
    stage.expect(expect![[r#"
        never: 0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.
    "#]]);
    stage.gone("never");
    stage.pod("least", "1", json!({"spec": {"priority": 0}}));
    stage.expect(expect![[r#"
        least: 0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.
    "#]]);
    stage.pod("high", "1500m", json!({"spec": {"priority": 10}}));
    stage.expect(expect![[r#"
        high: 0/2 nodes are available: 2 Insufficient cpu.
        high is nominated to a
        low is evicted
        high -> a
    "#]]);
}

#[test]
fn victims_are_chosen_with_their_budgets_in_mind_and_no_more_than_needed() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    stage.node("b", json!({}));
    for (name, node, app) in [
        ("a-1", "a", "guarded"),
        ("a-2", "a", "guarded"),
        ("b-1", "b", "free"),
        ("b-2", "b", "free"),
    ] {
        let labels = json!({"labels": {"app": app}});
        stage.pod(name, "1", json!({"metadata": labels, "spec": {"nodeName": node}}));
    }
    stage.tell(Event::Budget(decode(json!({
        "metadata": {"name": "guard", "namespace": "n"},
        "spec": {"selector": {"matchLabels": {"app": "guarded"}}},
        "status": {"disruptionsAllowed": 0},
    }))));
    stage.pod("high", "1", json!({"spec": {"priority": 10}}));
    stage.play();
    let journal = stage.journal.clone();
    assert!(journal.contains("high -> b"), "{journal}");
    assert_eq!(journal.matches("is evicted").count(), 1, "{journal}");
}

#[test]
fn the_place_made_for_one_is_not_taken_by_a_lesser() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    stage.pod("low", "2", json!({"spec": {"nodeName": "a", "priority": 1}}));
    stage.pod("high", "2", json!({"spec": {"priority": 10}}));
    // The victim takes its time: it is asked to go, but is still there.
    let decision = stage.scheduler.next(stage.now);
    let Some(Decision::Tell(steps)) = decision else { panic!("{decision:?}") };
    for step in steps {
        if let Action::Patch { .. } = step {
            stage.take(step);
        }
    }
    stage.gone("low");
    stage.pod("sneaky", "1", json!({"spec": {"priority": 5}}));
    stage.play();
    assert!(stage.journal.contains("high -> a"), "{}", stage.journal);
    assert!(!stage.journal.contains("sneaky -> a"), "{}", stage.journal);
}

fn claim(name: &str, class: &str, patch: Value) -> Event {
    let claim = json!({
        "metadata": {"name": name, "namespace": "n", "uid": format!("claim-{name}")},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}},
        },
        "status": {"phase": "Pending"},
    });
    Event::Claim(decode(merged(claim, patch)))
}

fn volume(name: &str, size: &str, node: &str) -> Event {
    let term = json!({"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
    ]});
    Event::Volume(decode(json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
        "status": {"phase": "Available"},
    })))
}

fn with_claim(name: &str) -> Value {
    json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]}})
}

#[test]
fn a_claim_that_waits_is_bound_where_its_pod_can_be() {
    let mut stage = Stage::new(Config::default());
    for name in ["a", "b"] {
        stage.node(name, json!({}));
    }
    stage.pod("one", "1", with_claim("data"));
    stage.expect(expect![[r#"
        one: 0/2 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.
    "#]]);
    stage.tell(Event::StorageClass(decode(json!({
        "metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }))));
    stage.tell(claim("data", "local", json!({})));
    stage.expect(expect![[r#"
        one: 0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.
    "#]]);
    stage.tell(volume("large", "9Gi", "b"));
    stage.tell(volume("small", "2Gi", "b"));
    stage.expect(expect![[r#"
        one prepares small
    "#]]);
    // The same volume is not promised twice.
    stage.tell(claim("other", "local", json!({})));
    stage.pod("two", "1", with_claim("other"));
    stage.expect(expect![[r#"
        two prepares large
    "#]]);
    let bound = json!({"spec": {"volumeName": "small"}, "status": {"phase": "Bound"}});
    stage.tell(claim("data", "local", bound));
    stage.expect(expect![[r#"
        one -> b
    "#]]);
}

#[test]
fn immediate_claims_must_be_bound_and_volumes_be_in_reach() {
    let mut stage = Stage::new(Config::default());
    for name in ["a", "b"] {
        stage.node(name, json!({}));
    }
    stage.tell(Event::StorageClass(decode(json!({
        "metadata": {"name": "fast"}, "provisioner": "rbd.csi.ceph.com",
    }))));
    stage.tell(claim("data", "fast", json!({})));
    stage.pod("one", "1", with_claim("data"));
    stage.expect(expect![[r#"
        one: 0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.
    "#]]);
    stage.tell(volume("there", "1Gi", "b"));
    let bound = json!({"spec": {"volumeName": "there"}, "status": {"phase": "Bound"}});
    stage.tell(claim("data", "fast", bound));
    stage.expect(expect![[r#"
        one -> b
    "#]]);
}

#[test]
fn a_claim_for_one_pod_serves_one_pod_and_a_driver_bears_so_many_volumes() {
    let mut stage = Stage::new(Config::default());
    stage.node("a", json!({}));
    let volume = json!({
        "metadata": {"name": "v"},
        "spec": {"capacity": {"storage": "1Gi"}, "csi": {"driver": "rbd.csi.ceph.com", "volumeHandle": "v"}},
    });
    stage.tell(Event::Volume(decode(volume.clone())));
    let single = json!({
        "spec": {"volumeName": "v", "accessModes": ["ReadWriteOncePod"]}, "status": {"phase": "Bound"},
    });
    stage.tell(claim("data", "fast", single));
    stage.pod("one", "1", with_claim("data"));
    stage.pod("two", "1", with_claim("data"));
    stage.expect(expect![[r#"
        one -> a
        two: 0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.
    "#]]);
    stage.gone("two");
    stage.tell(Event::CsiNode(Arc::new(json!({
        "metadata": {"name": "a"},
        "spec": {"drivers": [{"name": "rbd.csi.ceph.com", "allocatable": {"count": 1}}]},
    }))));
    let other = merged(
        volume,
        json!({
            "metadata": {"name": "w"}, "spec": {"csi": {"volumeHandle": "w"}},
        }),
    );
    stage.tell(Event::Volume(decode(other)));
    let bound = json!({"spec": {"volumeName": "w"}, "status": {"phase": "Bound"}});
    stage.tell(claim("more", "fast", bound));
    stage.pod("three", "100m", with_claim("more"));
    stage.expect(expect![[r#"
        three: 0/1 nodes are available: 1 node(s) exceed max volume count. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.
    "#]]);
}

#[test]
fn a_pod_goes_where_its_data_is() {
    let mut stage = Stage::new(Config::default());
    for name in ["a", "b", "c"] {
        stage.node(name, json!({}));
    }
    let crush = json!({
        "buckets": [
            {"id": -1, "name": "default", "items": [{"id": -2}]},
            {"id": -2, "name": "b", "items": [{"id": 0, "weight": 100}]},
        ],
        "rules": [{"rule_id": 0, "steps": [{"op": "take", "item": -1}]}],
    });
    let pools = json!([{"pool_name": "vms", "crush_rule": 0}]);
    stage.tell(Event::CrushMap(Some(decode(json!({
        "metadata": {"namespace": CRUSH_MAP.0, "name": CRUSH_MAP.1},
        "data": {"crush.json": crush.to_string(), "pools.json": pools.to_string()},
    })))));
    stage.tell(Event::Volume(decode(json!({
        "metadata": {"name": "v"},
        "spec": {"capacity": {"storage": "1Gi"}, "rbd": {"pool": "vms", "image": "disk"}},
    }))));
    let bound = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
    stage.tell(claim("data", "fast", bound));
    stage.pod("near", "100m", with_claim("data"));
    stage.expect(expect![[r#"
        near -> b
    "#]]);
}

#[test]
fn profiles_differ_by_name_plugins_and_arguments() {
    let config = Config::read(&json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "profiles": [
            {"schedulerName": "default-scheduler"},
            {
                "schedulerName": "packer",
                "plugins": {
                    "multiPoint": {"disabled": [{"name": "NodeResourcesBalancedAllocation"}]},
                    "filter": {"disabled": [{"name": "TaintToleration"}]},
                    "score": {"enabled": [{"name": "NodeResourcesFit", "weight": 10}]},
                },
                "pluginConfig": [{
                    "name": "NodeResourcesFit",
                    "args": {"scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu"}]}},
                }],
            },
        ],
    }));
    let mut stage = Stage::new(config.unwrap());
    let taint = json!([{"key": "odd", "effect": "NoSchedule"}]);
    stage.node("full", json!({"spec": {"taints": taint}}));
    stage.node("empty", json!({}));
    stage.pod("there", "1", json!({"spec": {"nodeName": "full"}}));
    stage.pod("spread", "100m", json!({}));
    stage.pod("packed", "100m", json!({"spec": {"schedulerName": "packer"}}));
    stage.pod("strange", "100m", json!({"spec": {"schedulerName": "other"}}));
    stage.expect(expect![[r#"
        spread -> empty
        packed -> full
    "#]]);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_with_its_place() {
    let check = |patch: Value, expected: &str| {
        let config = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        });
        let error = Config::read(&merged(config, patch)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(json!({"kind": "Pod"}), "kind: want KubeSchedulerConfiguration");
    check(json!({"extenders": [{}]}), "extenders: extenders are not supported");
    check(
        json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nonsense"}]}}}]}),
        "profiles[0].plugins.score.enabled[0]: there is no plugin \"Nonsense\"",
    );
    check(
        json!({"profiles": [{"plugins": {"bind": {"disabled": [{"name": "*"}]}}}]}),
        "profiles[0].plugins.bind: at least one plugin must bind",
    );
    check(
        json!({"profiles": [{}, {}]}),
        "profiles[1].schedulerName: two profiles are called \"default-scheduler\"",
    );
}

#[test]
fn the_same_story_has_the_same_end() {
    let tell = || {
        let mut stage = Stage::new(Config::default());
        (0..7).for_each(|n| stage.node(&format!("n{n}"), json!({})));
        (0..30).for_each(|n| stage.pod(&format!("p{n}"), "300m", json!({})));
        stage.play();
        stage.journal
    };
    assert_eq!(tell(), tell());
}
