use expect_test::{Expect, expect};
use objects::node::Node;
use serde_json::{Value, json};

use super::*;
use crate::action::Steps;
use crate::view::{Set, View};
use objects::Condition;

fn node(name: &str, patch: Value) -> Arc<Node> {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    crate::world::merge(&mut value, &patch);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn pod(name: &str, spec: Value) -> Arc<Pod> {
    let value = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": name.split('-').next()}},
        "spec": spec,
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
}

/// Prints `pod -> node` or `pod: reason` for each pod that waits.
fn run(nodes: Vec<Arc<Node>>, pods: Vec<Arc<Pod>>) -> String {
    let view = View { nodes: Set::from_iter(nodes), pods: Set::from_iter(pods), ..View::default() };
    let lines =
        plan(&view, Timestamp::UNIX_EPOCH).actions.into_iter().filter_map(|action| match action {
            Action::Bind { target, node } => Some(format!("{} -> {node}\n", target.name)),
            Action::Patch { note: Some(note), .. } => {
                Some(format!("{}: {}\n", note.about.name, note.message))
            }
            _ => None,
        });
    lines.collect()
}

#[track_caller]
fn check(nodes: Vec<Arc<Node>>, pods: Vec<Arc<Pod>>, expected: Expect) {
    expected.assert_eq(&run(nodes, pods));
}

#[test]
fn reasons_are_counted_and_said_in_one_sentence() {
    let taint = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    let nodes = vec![
        node("full", json!({"status": {"allocatable": {"cpu": "500m", "pods": "0"}}})),
        node("small", json!({"status": {"allocatable": {"cpu": "500m"}}})),
        node("tainted", json!({"spec": {"taints": taint}})),
        node("closed", json!({"spec": {"unschedulable": true}})),
        node("dead", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})),
    ];
    check(
        nodes,
        vec![pod("web-1", cpu("1"))],
        expect![[r#"
            web-1: 0/5 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {dedicated: db}, 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, 1 node(s) were unschedulable, 2 Insufficient cpu. preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling.
        "#]],
    );
    check(
        vec![],
        vec![pod("web-1", cpu("1"))],
        expect![[r#"
        web-1: no nodes available to schedule pods
    "#]],
    );
}

#[test]
fn a_pod_placed_in_this_round_counts_for_the_next() {
    let nodes = vec![node("a", json!({})), node("b", json!({}))];
    let pods = (1..=5).map(|n| pod(&format!("web-{n}"), cpu("900m"))).collect();
    let output = run(nodes, pods);
    assert_eq!(output.matches("-> a").count(), 2, "{output}");
    assert_eq!(output.matches("-> b").count(), 2, "{output}");
    assert!(output.contains("web-5: 0/2 nodes are available: 2 Insufficient cpu."), "{output}");
}

#[test]
fn tolerations_selectors_and_affinity_open_doors() {
    let taint = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    let nodes = vec![
        node("plain", json!({})),
        node("db", json!({"metadata": {"labels": {"disk": "ssd"}}, "spec": {"taints": taint}})),
    ];
    let term = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "disk", "operator": "In", "values": ["ssd"]},
    ]}]});
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
    let toleration = json!([{"key": "dedicated", "operator": "Exists"}]);
    let pods = vec![
        pod("a-1", json!({"nodeSelector": {"disk": "ssd"}})),
        pod("b-1", json!({"nodeSelector": {"disk": "ssd"}, "tolerations": toleration})),
        pod("c-1", json!({"affinity": affinity, "tolerations": toleration})),
        pod("d-1", json!({"nodeSelector": {"disk": "tape"}})),
    ];
    check(
        nodes,
        pods,
        expect![[r#"
            a-1: 0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {dedicated: db}. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.
            b-1 -> db
            c-1 -> db
            d-1: 0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {dedicated: db}. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.
        "#]],
    );
}

#[test]
fn host_ports_and_anti_affinity_keep_pods_apart() {
    let nodes = vec![node("a", json!({})), node("b", json!({}))];
    let port =
        json!({"containers": [{"name": "c", "ports": [{"hostPort": 80, "containerPort": 80}]}]});
    let output =
        run(nodes.clone(), (1..=3).map(|n| pod(&format!("web-{n}"), port.clone())).collect());
    assert!(output.contains("web-3: 0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."), "{output}");
    let term = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let mut pods: Vec<_> = (1..=3).map(|n| pod(&format!("web-{n}"), apart.clone())).collect();
    let output = run(nodes.clone(), pods.clone());
    assert!(
        output.contains(
            "web-3: 0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
        ),
        "{output}"
    );
    // A pod without rules of its own is still kept away by those of others.
    pods.truncate(2);
    let mut plain = Pod::clone(&pod("web-9", json!({})));
    plain.spec.priority = Some(-1);
    pods.push(Arc::new(plain));
    let output = run(nodes, pods);
    assert!(output.contains("web-9: 0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."), "{output}");
}

#[test]
fn affinity_lets_the_first_of_a_group_begin() {
    let nodes = vec![node("a", json!({})), node("b", json!({}))];
    let term = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let output =
        run(nodes.clone(), (1..=4).map(|n| pod(&format!("web-{n}"), near.clone())).collect());
    let on_a = output.matches("-> a").count();
    assert!(on_a == 0 || on_a == 4, "{output}");
    let output = run(nodes, vec![pod("other-1", near)]);
    assert!(output.contains("2 node(s) didn't match pod affinity rules."), "{output}");
}

#[test]
fn hard_spreading_holds_and_says_when_it_cannot() {
    let zone = |name: &str, zone: &str, cpu: &str| {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        node(name, json!({"metadata": {"labels": labels}, "status": {"allocatable": {"cpu": cpu}}}))
    };
    let nodes = vec![zone("a", "r1", "8"), zone("b", "r2", "1"), node("c", json!({}))];
    let mut spec = cpu("1");
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}},
    }]);
    let output = run(nodes, (1..=4).map(|n| pod(&format!("web-{n}"), spec.clone())).collect());
    assert_eq!(output.matches("-> a").count(), 2, "{output}");
    assert_eq!(output.matches("-> b").count(), 1, "{output}");
    assert!(output.contains("web-4: 0/3 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod topology spread constraints, 1 node(s) didn't match pod topology spread constraints (missing required label)."), "{output}");
}

#[test]
fn equal_pods_lie_apart_over_racks_and_nodes_by_default() {
    let rack = |name: &str, rack: &str| {
        node(name, json!({"metadata": {"labels": {"topology.kubernetes.io/zone": rack}}}))
    };
    let nodes = vec![rack("a1", "a"), rack("a2", "a"), rack("b1", "b")];
    let pods = (1..=4).map(|n| {
        let mut pod = Pod::clone(&pod(&format!("web-{n}"), json!({})));
        pod.metadata.owner_references =
            serde_json::from_value(json!([{"uid": "set", "controller": true}])).unwrap();
        Arc::new(pod)
    });
    let output = run(nodes, pods.collect());
    for node in ["a1", "a2", "b1"] {
        assert!(output.contains(&format!("-> {node}")), "{output}");
    }
}

#[test]
fn others_pods_and_gated_pods_are_not_placed_and_a_told_reason_is_not_told_again() {
    let nodes = || vec![node("a", json!({}))];
    check(
        nodes(),
        vec![
            pod("x-1", json!({"schedulerName": "other"})),
            pod("y-1", json!({"schedulingGates": [{"name": "wait"}]})),
        ],
        expect![""],
    );
    let mut waiting = Pod::clone(&pod("z-1", cpu("9")));
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    waiting.status.conditions =
        vec![Condition::new("PodScheduled", false, "Unschedulable", message)];
    let view = View {
        nodes: Set::from_iter(nodes()),
        pods: Set::from_iter([Arc::new(waiting)]),
        ..View::default()
    };
    assert_eq!(plan(&view, Timestamp::UNIX_EPOCH), Steps::none());
}

/// Any mixture of pods and nodes: no node is ever over-committed, and higher priority first.
#[test]
fn no_mixture_breaks_a_hard_limit() {
    use proptest::prelude::*;
    let pods = proptest::collection::vec((1_i64..2500, 0_i64..3), 0..30);
    let nodes = proptest::collection::vec(0_i64..4000, 1..6);
    proptest!(|(pods in pods, nodes in nodes)| {
        let rows: Vec<_> = nodes.iter().enumerate().map(|(n, cpu)| {
            node(&format!("n{n}"), json!({"status": {"allocatable": {"cpu": format!("{cpu}m"), "pods": "5"}}}))
        }).collect();
        let asked: Vec<_> = pods.iter().enumerate().map(|(n, (amount, priority))| {
            let mut pod = Pod::clone(&pod(&format!("p{n}-x"), cpu(&format!("{amount}m"))));
            pod.spec.priority = Some(*priority);
            Arc::new(pod)
        }).collect();
        let output = run(rows, asked);
        for (n, capacity) in nodes.iter().enumerate() {
            let here: Vec<i64> = output.lines().filter(|line| line.ends_with(&format!("-> n{n}")))
                .map(|line| pods[line[1..].split('-').next().unwrap().parse::<usize>().unwrap()].0)
                .collect();
            prop_assert!(here.iter().sum::<i64>() <= *capacity && here.len() <= 5);
        }
    });
}
