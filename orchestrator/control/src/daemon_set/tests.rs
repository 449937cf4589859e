use objects::workload::ControllerRevision;
use serde_json::Value;

use super::*;
use crate::world::World;

fn world(nodes: &[&str], update: Value) -> World {
    let mut world = World::default();
    for node in nodes {
        world.add_node(node, "r1");
    }
    world.add(
        &kind::DAEMON_SET,
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "log", "namespace": "n"},
            "spec": {
                "selector": {"matchLabels": {"app": "log"}},
                "updateStrategy": update,
                "template": {
                    "metadata": {"labels": {"app": "log"}},
                    "spec": {"containers": [{"name": "c", "image": "one"}]},
                },
            },
        }),
    );
    world.settle(&[]);
    world
}

fn rolling(most: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": most})
}

fn set_image(world: &mut World, image: &str) {
    let template = json!({"spec": {"containers": [{"name": "c", "image": image}]}});
    world.change(&kind::DAEMON_SET, "n", "log", &json!({"spec": {"template": template}}));
}

/// `node image` of each pod.
fn pods(world: &World) -> Vec<String> {
    let line = |pod: &Pod| format!("{} {}", pod.spec.node_name, pod.spec.containers[0].image);
    let mut lines: Vec<_> = world.all::<Pod>().iter().map(line).collect();
    lines.sort();
    lines
}

fn status(world: &World) -> DaemonSetStatus {
    world.all::<DaemonSet>()[0].status.clone()
}

#[test]
fn every_node_that_fits_has_one_pod() {
    let mut world = world(&["a", "b"], rolling(json!({})));
    assert_eq!(pods(&world), ["a one", "b one"]);
    world.add_node("c", "r2");
    world.settle(&[]);
    assert_eq!(pods(&world), ["a one", "b one", "c one"]);
    let counts = status(&world);
    assert_eq!((counts.desired_number_scheduled, counts.number_available), (3, 3));
    let selector =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}}}});
    world.change(&kind::DAEMON_SET, "n", "log", &selector);
    world.settle(&[]);
    assert_eq!(pods(&world), ["b one"]);
}

#[test]
fn cordons_are_borne_and_operators_taints_are_not() {
    let mut world = world(&["a", "b"], rolling(json!({})));
    world.change(&kind::NODE, "", "a", &json!({"spec": {"unschedulable": true}}));
    world.settle(&[]);
    assert_eq!(pods(&world).len(), 2);
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "mine", "effect": effect}]}});
    world.change(&kind::NODE, "", "b", &taint("NoSchedule"));
    world.settle(&[]);
    assert_eq!(pods(&world).len(), 2, "those that are there stay");
    assert_eq!(status(&world).number_misscheduled, 1);
    world.change(&kind::NODE, "", "b", &taint("NoExecute"));
    world.settle(&[]);
    assert_eq!(pods(&world), ["a one"]);
}

#[test]
fn an_update_takes_away_no_more_than_it_may() {
    let mut world = world(&["a", "b", "c", "d"], rolling(json!({"maxUnavailable": 1})));
    set_image(&mut world, "two");
    for _ in 0..200 {
        let mut any = false;
        for controller in crate::controller::CONTROLLERS {
            any |= world.round(controller);
            let pods = world.all::<Pod>();
            let ready = pods.iter().filter(|pod| pod.is_ready() && !pod.metadata.is_deleting());
            assert!(ready.count() >= 3);
        }
        if !world.step(&[]) && !any {
            break;
        }
    }
    assert_eq!(pods(&world), ["a two", "b two", "c two", "d two"]);
    assert_eq!(status(&world).updated_number_scheduled, 4);
}

#[test]
fn a_surging_update_brings_the_new_before_the_old_goes() {
    let mut world = world(&["a", "b"], rolling(json!({"maxSurge": 1, "maxUnavailable": 0})));
    set_image(&mut world, "two");
    for _ in 0..200 {
        let mut any = false;
        for controller in crate::controller::CONTROLLERS {
            any |= world.round(controller);
            let pods = world.all::<Pod>();
            let ready = |node: &str| {
                pods.iter().any(|pod| {
                    pod.spec.node_name == node && pod.is_ready() && !pod.metadata.is_deleting()
                })
            };
            assert!(ready("a") && ready("b"));
        }
        if !world.step(&[]) && !any {
            break;
        }
    }
    assert_eq!(pods(&world), ["a two", "b two"]);
}

#[test]
fn on_delete_waits_for_the_operator() {
    let mut world = world(&["a", "b"], json!({"type": "OnDelete"}));
    set_image(&mut world, "two");
    world.settle(&[]);
    assert_eq!(pods(&world), ["a one", "b one"]);
    let first = world.all::<Pod>()[0].metadata.name.clone();
    world.remove(&kind::POD, "n", &first);
    world.settle(&[]);
    assert_eq!(pods(&world).iter().filter(|line| line.ends_with("two")).count(), 1);
}

#[test]
fn revisions_are_kept_for_going_back() {
    let mut world = world(&["a"], rolling(json!({})));
    world.change(&kind::DAEMON_SET, "n", "log", &json!({"spec": {"revisionHistoryLimit": 1}}));
    for image in ["two", "three", "two"] {
        set_image(&mut world, image);
        world.settle(&[]);
    }
    let mut revisions: Vec<(i64, String)> = world
        .all::<ControllerRevision>()
        .iter()
        .map(|one| {
            let image = one.data.pointer("/spec/template/spec/containers/0/image").unwrap();
            (one.revision, image.as_str().unwrap().to_owned())
        })
        .collect();
    revisions.sort();
    assert_eq!(revisions, [(3, "three".to_owned()), (4, "two".to_owned())]);
}

#[test]
fn a_failed_pod_is_replaced_after_a_while() {
    let mut world = world(&["a"], rolling(json!({})));
    let name = world.all::<Pod>()[0].metadata.name.clone();
    let failed = json!({"status": {"phase": "Failed", "conditions": []}});
    world.change(&kind::POD, "n", &name, &failed);
    world.settle(&[]);
    assert_eq!(world.all::<Pod>()[0].metadata.name, name);
    world.pass(20, &[]);
    assert_ne!(world.all::<Pod>()[0].metadata.name, name);
    assert!(world.told.iter().any(|line| line.starts_with("FailedDaemonPod")));
}
