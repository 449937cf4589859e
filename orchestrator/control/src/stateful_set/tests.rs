use objects::storage::PersistentVolumeClaim;
use serde_json::Value;

use super::*;
use crate::world::{World, merge};

fn world(patch: Value) -> World {
    let mut world = World::default();
    world.add_node("a", "r1");
    world.add_node("b", "r2");
    let mut spec = json!({
        "replicas": 3,
        "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}},
        "updateStrategy": {"type": "RollingUpdate"},
        "template": {
            "metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": "one"}]},
        },
    });
    merge(&mut spec, &patch);
    world.add(
        &kind::STATEFUL_SET,
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db", "namespace": "n"},
            "spec": spec,
        }),
    );
    world
}

fn change(world: &mut World, spec: Value) {
    world.change(&kind::STATEFUL_SET, "n", "db", &json!({ "spec": spec }));
}

fn image(image: &str) -> Value {
    json!({"template": {"spec": {"containers": [{"name": "c", "image": image}]}}})
}

fn pods(world: &World) -> Vec<String> {
    let line = |pod: &Pod| format!("{} {}", pod.metadata.name, pod.spec.containers[0].image);
    world.all::<Pod>().iter().map(line).collect()
}

fn status(world: &World) -> StatefulSetStatus {
    world.all::<StatefulSet>()[0].status.clone()
}

/// Goes on step by step until nothing moves; every state is looked at.
fn watch(world: &mut World, mut look: impl FnMut(&[Pod])) {
    for _ in 0..300 {
        let mut any = false;
        for controller in crate::controller::CONTROLLERS {
            any |= world.round(controller);
            look(&world.all::<Pod>());
        }
        if !world.step(&[]) && !any {
            return;
        }
    }
    panic!("does not converge");
}

#[test]
fn pods_come_one_after_the_other_and_go_backwards() {
    let mut world = world(json!({}));
    watch(&mut world, |pods| {
        let young = pods.iter().filter(|pod| !pod.is_ready()).count();
        assert!(young <= 1, "one at a time");
    });
    assert_eq!(pods(&world), ["db-0 one", "db-1 one", "db-2 one"]);
    let pod = &world.all::<Pod>()[1];
    assert_eq!((pod.spec.hostname.as_str(), pod.spec.subdomain.as_str()), ("db-1", "db"));
    assert_eq!(pod.metadata.label("apps.kubernetes.io/pod-index"), Some("1"));
    assert_eq!(status(&world).ready_replicas, 3);
    change(&mut world, json!({"replicas": 1}));
    watch(&mut world, |pods| {
        assert!(pods.iter().filter(|pod| pod.metadata.is_deleting()).count() <= 1);
    });
    assert_eq!(pods(&world), ["db-0 one"]);
}

#[test]
fn parallel_pods_come_at_once() {
    let mut world = world(json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}));
    let mut most = 0;
    watch(&mut world, |pods| most = most.max(pods.iter().filter(|pod| !pod.is_ready()).count()));
    assert!(most > 1);
    assert_eq!(pods(&world), ["db-5 one", "db-6 one", "db-7 one"]);
}

#[test]
fn an_update_goes_from_the_last_down_to_the_partition() {
    let mut world = world(json!({}));
    world.settle(&[]);
    let first = status(&world).current_revision;
    change(&mut world, json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}}));
    change(&mut world, image("two"));
    world.settle(&[]);
    assert_eq!(pods(&world), ["db-0 one", "db-1 one", "db-2 two"]);
    let counts = status(&world);
    assert_eq!((counts.current_replicas, counts.updated_replicas), (2, 1));
    assert_eq!(counts.current_revision, first);
    // A pod below the border that is lost comes back as it was.
    world.remove(&kind::POD, "n", "db-0");
    world.settle(&[]);
    assert_eq!(pods(&world), ["db-0 one", "db-1 one", "db-2 two"]);
    change(&mut world, json!({"updateStrategy": {"rollingUpdate": {"partition": 0}}}));
    let mut order = Vec::new();
    watch(&mut world, |pods| {
        assert!(pods.iter().filter(|pod| pod.is_ready()).count() >= 1);
        for pod in pods.iter().filter(|pod| pod.metadata.is_deleting()) {
            if !order.contains(&pod.metadata.name) {
                order.push(pod.metadata.name.clone());
            }
        }
    });
    assert_eq!(order, ["db-1", "db-0"]);
    assert_eq!(pods(&world), ["db-0 two", "db-1 two", "db-2 two"]);
    let counts = status(&world);
    assert_eq!(counts.current_revision, counts.update_revision);
    assert_eq!((counts.current_replicas, counts.updated_replicas), (3, 3));
}

#[test]
fn more_than_one_may_be_missing_if_the_set_says_so() {
    let mut world = world(json!({
        "replicas": 4, "podManagementPolicy": "Parallel",
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}},
    }));
    world.settle(&[]);
    change(&mut world, image("two"));
    let mut fewest = 4;
    watch(&mut world, |pods| {
        let up = pods.iter().filter(|pod| pod.is_ready() && !pod.metadata.is_deleting()).count();
        fewest = fewest.min(up);
    });
    assert_eq!(fewest, 2);
    assert_eq!(pods(&world).iter().filter(|line| line.ends_with("two")).count(), 4);
}

#[test]
fn pods_that_ended_do_not_hold_up_a_set_that_shrinks() {
    let mut world = world(json!({}));
    watch(&mut world, |_| ());
    for name in ["db-1", "db-2"] {
        let ended = json!({"status": {"phase": "Failed", "conditions": []}});
        world.change(&kind::POD, "n", name, &ended);
    }
    change(&mut world, json!({"replicas": 0}));
    watch(&mut world, |_| ());
    assert!(pods(&world).is_empty());
}

fn claims(world: &World) -> Vec<String> {
    let line = |claim: &PersistentVolumeClaim| {
        let owners = claim.metadata.owner_references.iter().map(|one| one.kind.as_str());
        format!("{} {}", claim.metadata.name, owners.collect::<Vec<_>>().join(","))
    };
    world.all::<PersistentVolumeClaim>().iter().map(line).collect()
}

#[track_caller]
fn check_claims(policy: Value, shrunk: &[&str], deleted: &[&str]) {
    let mut world = world(json!({
        "replicas": 2,
        // Nobody makes volumes here, so an ordered set would wait for its first pod for ever.
        "podManagementPolicy": "Parallel",
        "persistentVolumeClaimRetentionPolicy": policy,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
    }));
    world.settle(&[]);
    assert_eq!(claims(&world).len(), 2);
    let volumes = &world.all::<Pod>()[1].spec.volumes;
    assert_eq!(volumes[0].persistent_volume_claim, Some(json!({"claimName": "data-db-1"})));
    change(&mut world, json!({"replicas": 1}));
    world.settle(&[]);
    assert_eq!(claims(&world), shrunk);
    world.remove(&kind::STATEFUL_SET, "n", "db");
    world.settle(&[]);
    assert_eq!(claims(&world), deleted);
}

#[test]
fn claims_are_kept_or_go_as_the_policy_says() {
    let policy =
        |deleted: &str, scaled: &str| json!({"whenDeleted": deleted, "whenScaled": scaled});
    check_claims(Value::Null, &["data-db-0 ", "data-db-1 "], &["data-db-0 ", "data-db-1 "]);
    check_claims(policy("Retain", "Delete"), &["data-db-0 "], &["data-db-0 "]);
    check_claims(
        policy("Delete", "Retain"),
        &["data-db-0 StatefulSet", "data-db-1 StatefulSet"],
        &[],
    );
    check_claims(policy("Delete", "Delete"), &["data-db-0 StatefulSet"], &[]);
}

#[test]
fn a_claim_that_was_lost_comes_back_for_the_pod_that_waits_for_it() {
    let mut world =
        world(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
    world.settle(&[]);
    assert_eq!(claims(&world), ["data-db-0 "]);
    world.remove(&kind::PERSISTENT_VOLUME_CLAIM, "n", "data-db-0");
    world.settle(&[]);
    assert_eq!(claims(&world), ["data-db-0 "]);
}

#[test]
fn a_pod_that_has_our_name_but_is_not_ours_is_waited_for() {
    let mut world = world(json!({"replicas": 1}));
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "earlier",
        "controller": true,
    });
    world.add(
        &kind::POD,
        json!({
            "metadata": {
                "name": "db-0", "namespace": "n", "labels": {"app": "db"},
                "ownerReferences": [owner], "finalizers": ["example.com/hold"],
            },
            "spec": {"containers": [{"name": "c", "image": "old"}]},
        }),
    );
    world.settle(&[]);
    assert_eq!(pods(&world), ["db-0 old"], "nothing is made beside it");
    world.remove(&kind::POD, "n", "db-0");
    world.settle(&[]);
    assert_eq!(pods(&world), ["db-0 one"]);
}

#[test]
fn a_pod_of_ours_that_failed_while_it_was_an_orphan_is_made_again() {
    let mut world = world(json!({"replicas": 1}));
    world.settle(&[]);
    let orphan = json!({"metadata": {"ownerReferences": []}, "status": {"phase": "Failed"}});
    world.change(&kind::POD, "n", "db-0", &orphan);
    change(&mut world, image("two"));
    world.settle(&[]);
    assert_eq!(pods(&world), ["db-0 two"]);
    assert_eq!(world.all::<Pod>()[0].status.phase, "Running");
}
