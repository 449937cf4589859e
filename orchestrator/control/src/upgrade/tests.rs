//! Rollouts on a cluster in memory; nodes restart when they are asked to.

use objects::kind;
use objects::machine::NodeImage;
use objects::node::Node;
use serde_json::{Value, json};

use super::{RESTART, UPGRADE};
use crate::drain;
use crate::world::World;

fn cluster() -> World {
    let mut world = World::default();
    for (name, rack, master) in
        [("m1", "r1", true), ("m2", "r2", true), ("w1", "r1", false), ("w2", "r2", false)]
    {
        world.add_node(name, rack);
        let labels = json!({"node-role.kubernetes.io/master": master.then_some("")});
        let info = json!({"osImage": "Muster 1 (Debian)", "bootID": "0", "kubeletVersion": "v1"});
        let patch = json!({"metadata": {"labels": labels}, "status": {"nodeInfo": info}});
        world.change(&kind::NODE, "", name, &patch);
    }
    world
}

fn publish(world: &mut World, name: &str, version: &str, rollout: Value) {
    let spec = json!({"version": version, "rollout": rollout});
    world.now = world.now.saturating_add(jiff::SignedDuration::from_secs(1)).unwrap();
    world.add(&kind::NODE_IMAGE, json!({"metadata": {"name": name}, "spec": spec}));
}

/// Nodes that were asked to restart do, into this image; their names.
fn restart(world: &mut World, image: &str) -> Vec<String> {
    let mut restarted = Vec::new();
    for node in world.all::<Node>() {
        let boot = node.status.node_info.boot_id.clone().unwrap_or_default();
        if node.metadata.annotation(RESTART) == Some(&boot) {
            let info = json!({"osImage": image, "bootID": format!("{boot}+")});
            let patch = json!({"status": {"nodeInfo": info}});
            world.change(&kind::NODE, "", &node.metadata.name, &patch);
            restarted.push(node.metadata.name);
        }
    }
    restarted
}

/// What `Progressing` says of an image.
fn reason(world: &World, name: &str) -> String {
    let images = world.all::<NodeImage>();
    let image = images.iter().find(|one| one.metadata.name == name).unwrap();
    let all = image.status["conditions"].as_array().unwrap();
    let found = all.iter().find(|one| one["type"] == "Progressing").unwrap();
    found["reason"].as_str().unwrap().to_owned()
}

/// Rounds of restarts until there are none: who restarted in each.
fn roll(world: &mut World, image: &str) -> Vec<Vec<String>> {
    let mut rounds = Vec::new();
    loop {
        world.settle(&[]);
        match restart(world, image) {
            names if names.is_empty() => return rounds,
            names => rounds.push(names),
        }
    }
}

#[test]
fn workers_go_first_then_masters_one_by_one() {
    let mut world = cluster();
    publish(&mut world, "two", "2", json!({"maxUnavailable": "50%"}));
    let rounds = roll(&mut world, "Muster 2 (Debian)");
    assert_eq!(rounds, [vec!["w1", "w2"], vec!["m1"], vec!["m2"]]);
    assert_eq!(reason(&world, "two"), "Complete");
    for node in world.all::<Node>() {
        assert!(!node.spec.unschedulable, "{} is open again", node.metadata.name);
        assert_eq!(node.metadata.annotation(UPGRADE), None);
    }
    assert!(world.told.iter().any(|one| one == "Upgraded Node w2 runs Muster 2"));
    assert!(world.told.iter().any(|one| one.starts_with("RolloutComplete 4 of 4 nodes")));
}

#[test]
fn a_node_that_comes_back_with_the_old_image_stops_the_rollout() {
    let mut world = cluster();
    publish(&mut world, "two", "2", json!({}));
    let rounds = roll(&mut world, "Muster 1 (Debian)");
    assert_eq!(rounds, [vec!["w1"]], "asked once, and nobody after it");
    assert_eq!(reason(&world, "two"), "Stalled");
    // The right image is served now, and somebody restarts the node by hand.
    let info = json!({"osImage": "Muster 2 (Debian)", "bootID": "9"});
    world.change(&kind::NODE, "", "w1", &json!({"status": {"nodeInfo": info}}));
    assert_eq!(roll(&mut world, "Muster 2 (Debian)").len(), 3);
    assert_eq!(reason(&world, "two"), "Complete");
}

#[test]
fn nobody_begins_while_others_are_missing_or_a_person_says_stop() {
    let mut world = cluster();
    world.change(&kind::NODE, "", "m2", &json!({"spec": {"unschedulable": true}}));
    publish(&mut world, "two", "2", json!({}));
    assert_eq!(roll(&mut world, "Muster 2 (Debian)").len(), 0);
    let patch = json!({"spec": {"rollout": {"paused": true}}});
    world.change(&kind::NODE_IMAGE, "", "two", &patch);
    world.change(&kind::NODE, "", "m2", &json!({"spec": {"unschedulable": null}}));
    assert_eq!(roll(&mut world, "Muster 2 (Debian)").len(), 0);
    assert_eq!(reason(&world, "two"), "Paused");
    world.change(&kind::NODE_IMAGE, "", "two", &json!({"spec": {"rollout": {"paused": false}}}));
    assert_eq!(roll(&mut world, "Muster 2 (Debian)").len(), 4);
}

#[test]
fn the_youngest_image_counts_and_a_withdrawn_one_lets_go() {
    let mut world = cluster();
    publish(&mut world, "two", "2", json!({}));
    world.settle(&[]);
    publish(&mut world, "three", "3", json!({}));
    world.settle(&[]);
    assert_eq!(reason(&world, "two"), "Superseded");
    let marks = |world: &World| -> Vec<String> {
        let all = world.all::<Node>();
        all.iter().filter_map(|one| one.metadata.annotation(UPGRADE).map(str::to_owned)).collect()
    };
    assert_eq!(marks(&world), ["three"], "the same node goes on with the other image");
    for name in ["two", "three"] {
        world.change(&kind::NODE_IMAGE, "", name, &json!({"spec": {"rollout": null}}));
    }
    world.settle(&[]);
    assert_eq!(marks(&world), [""; 0]);
    let drained = |one: &Node| one.metadata.annotation(drain::WANTED).is_some();
    assert!(!world.all::<Node>().iter().any(drained));
}

#[test]
fn a_node_that_stays_away_stalls_it_after_its_deadline() {
    let mut world = cluster();
    publish(&mut world, "two", "2", json!({"nodeDeadlineSeconds": 60}));
    world.pass(50, &[]);
    assert_eq!(reason(&world, "two"), "RollingOut");
    world.pass(20, &[]);
    assert_eq!(reason(&world, "two"), "Stalled");
    assert!(world.told.iter().any(|one| one.contains("node w1 does not come back")));
}
