use objects::condition::{find_condition, is_condition_true};
use objects::pod::Pod;

use super::*;
use crate::world::World;

fn deployment(replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "n"},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

fn world() -> World {
    let mut world = World::default();
    world.add_node("a", "r1");
    world.add_node("b", "r2");
    world.add(&kind::DEPLOYMENT, deployment(4, "one"));
    world.settle(&[]);
    world
}

fn set_image(world: &mut World, image: &str) {
    let template = json!({"spec": {"containers": [{"name": "c", "image": image}]}});
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"template": template}}));
}

/// One line per replica set in order of revision: revision, size, image.
fn sets(world: &World) -> Vec<String> {
    let mut sets = world.all::<ReplicaSet>();
    sets.sort_by_key(revision);
    let line = |set: &ReplicaSet| {
        format!("{} {} {}", revision(set), asked(set), set.spec.template.spec.containers[0].image)
    };
    sets.iter().map(line).collect()
}

#[test]
fn a_rollout_ends_with_the_new_set_alone_and_can_be_undone() {
    let mut world = world();
    assert_eq!(sets(&world), ["1 4 one"]);
    set_image(&mut world, "two");
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 0 one", "2 4 two"]);
    set_image(&mut world, "one");
    world.settle(&[]);
    assert_eq!(sets(&world), ["2 0 two", "3 4 one"]);
    let deployment = &world.all::<Deployment>()[0];
    assert_eq!(deployment.metadata.annotation(REVISION), Some("3"));
    assert_eq!(deployment.status.available_replicas, 4);
    assert_eq!(deployment.status.unavailable_replicas, 0);
    let progress = find_condition(&deployment.status.conditions, "Progressing").unwrap();
    assert_eq!(progress.reason, "NewReplicaSetAvailable");
    assert!(is_condition_true(&deployment.status.conditions, "Available"));
}

#[test]
fn availability_never_falls_below_what_the_strategy_allows() {
    let mut world = world();
    set_image(&mut world, "two");
    // The rollout by hand, one controller at a time, so that every state is seen.
    for _ in 0..400 {
        let mut any = false;
        for controller in crate::controller::CONTROLLERS {
            any |= world.round(controller);
            let pods = world.all::<Pod>();
            let ready = pods.iter().filter(|pod| pod.is_ready() && !pod.metadata.is_deleting());
            assert!(ready.count() >= 3);
            assert!(pods.iter().filter(|pod| !pod.metadata.is_deleting()).count() <= 5);
        }
        if !any {
            break;
        }
        // Nothing but one round of scheduling and of the agents.
        world.step(&[]);
    }
    assert_eq!(sets(&world), ["1 0 one", "2 4 two"]);
}

#[test]
fn recreate_stops_everything_old_first() {
    let mut world = world();
    world.change(
        &kind::DEPLOYMENT,
        "n",
        "web",
        &json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    world.settle(&[]);
    set_image(&mut world, "two");
    // The node does not answer, so the old pods cannot stop.
    world.settle(&["a", "b"]);
    assert_eq!(sets(&world), ["1 0 one"]);
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 0 one", "2 4 two"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = world();
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"paused": true, "replicas": 6}}));
    set_image(&mut world, "two");
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 6 one"]);
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"paused": false}}));
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 0 one", "2 6 two"]);
}

#[test]
fn a_rollout_that_stands_still_says_so() {
    let mut world = world();
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"progressDeadlineSeconds": 60}}));
    let template = json!({"spec": {"nodeSelector": {"no": "where"}}});
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"template": template}}));
    world.settle(&[]);
    world.pass(70, &[]);
    let deployment = &world.all::<Deployment>()[0];
    let progress = find_condition(&deployment.status.conditions, "Progressing").unwrap();
    assert_eq!(progress.reason, "ProgressDeadlineExceeded");
    assert_eq!(deployment.status.available_replicas, 3);
    assert!(world.told.iter().any(|line| line.starts_with("FailedScheduling 0/2 nodes")));
}

#[test]
fn scaling_in_mid_rollout_keeps_the_proportion() {
    let mut world = world();
    let patch = json!({"spec": {"replicas": 8}});
    world.change(&kind::DEPLOYMENT, "n", "web", &patch);
    world.settle(&[]);
    let template = json!({"spec": {"nodeSelector": {"no": "where"}}});
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"template": template}}));
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 6 one", "2 4 one"]);
    world.change(&kind::DEPLOYMENT, "n", "web", &json!({"spec": {"replicas": 16}}));
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 12 one", "2 8 one"]);
}

#[test]
fn history_is_kept_as_long_as_asked() {
    let mut world = world();
    let patch = json!({"spec": {"revisionHistoryLimit": 1}});
    world.change(&kind::DEPLOYMENT, "n", "web", &patch);
    for image in ["two", "three", "four"] {
        set_image(&mut world, image);
        world.settle(&[]);
    }
    assert_eq!(sets(&world), ["3 0 three", "4 4 four"]);
}

#[test]
fn everything_goes_with_the_deployment() {
    let mut world = world();
    world.remove(&kind::DEPLOYMENT, "n", "web");
    world.settle(&[]);
    assert!(world.all::<ReplicaSet>().is_empty());
    assert!(world.all::<Pod>().is_empty());
}

#[test]
fn a_set_left_behind_is_taken_over_by_the_next_deployment() {
    let mut world = world();
    let name = world.all::<ReplicaSet>()[0].metadata.name.clone();
    let free = json!({"metadata": {"ownerReferences": null}});
    world.remove(&kind::DEPLOYMENT, "n", "web");
    world.change(&kind::REPLICA_SET, "n", &name, &free);
    world.settle(&[]);
    world.add(&kind::DEPLOYMENT, deployment(2, "one"));
    world.settle(&[]);
    assert_eq!(sets(&world), ["1 2 one"]);
    assert_eq!(world.all::<ReplicaSet>()[0].metadata.name, name);
}
