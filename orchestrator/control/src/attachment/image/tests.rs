use super::*;
use crate::world::World;
use serde_json::Value;

fn site() -> World {
    let mut world = World::default();
    for name in ["a", "b"] {
        world.add_node(name, "r1");
    }
    world.add(
        &kind::PERSISTENT_VOLUME,
        json!({
            "metadata": {"name": "v"},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "rbd": {"monitors": ["10.0.0.1"], "image": "i"},
            },
        }),
    );
    world.add(
        &kind::PERSISTENT_VOLUME_CLAIM,
        json!({
            "metadata": {"name": "c", "namespace": "n"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }),
    );
    world
}

fn run(world: &mut World, name: &str, node: &str, silent: &[&str]) {
    let spec = json!({
        "nodeName": node, "containers": [],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
    });
    let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
    world.add(&kind::POD, object);
    world.settle(silent);
}

/// Plays the node's agent: what it says it writes the image with.
fn says(world: &mut World, node: &str, client: Value, silent: &[&str]) {
    let text = match client {
        Value::String(client) => json!({ "rbd/i": client }).to_string(),
        _ => "{}".to_owned(),
    };
    let patch = json!({"metadata": {"annotations": {RBD_CLIENTS: text}}});
    world.change(&kind::NODE, "", node, &patch);
    world.settle(silent);
}

fn attachment(world: &World) -> Option<VolumeAttachment> {
    let all: Vec<VolumeAttachment> = world.all();
    assert!(all.len() < 2, "an image is at two nodes: {all:?}");
    all.into_iter().next()
}

fn at(world: &World) -> String {
    attachment(world).map(|one| one.spec.node_name).unwrap_or_default()
}

fn pods(world: &World) -> Vec<String> {
    world.all::<Pod>().into_iter().map(|pod| pod.metadata.name).collect()
}

#[test]
fn an_image_moves_when_its_node_says_that_it_has_unmapped_it() {
    let mut world = site();
    run(&mut world, "one", "a", &[]);
    assert_eq!(at(&world), "a");
    says(&mut world, "a", json!("10.0.0.9:0/7"), &[]);
    let known = attachment(&world).unwrap().status;
    assert_eq!(known.attached, Some(true));
    assert_eq!(known.attachment_metadata.get(CLIENT).unwrap(), "10.0.0.9:0/7");
    run(&mut world, "two", "b", &[]);
    assert_eq!(at(&world), "a", "the first has it");
    world.remove(&kind::POD, "n", "one");
    world.settle(&[]);
    let closing = attachment(&world).unwrap();
    assert!(closing.metadata.is_deleting() && closing.spec.node_name == "a", "still mapped there");
    says(&mut world, "a", Value::Null, &[]);
    assert_eq!(at(&world), "b");
    assert_eq!(world.fenced, [""; 0], "a node that answers is not fenced");
}

#[test]
fn a_silent_node_keeps_its_image_until_its_pod_is_evicted_and_then_it_is_fenced() {
    let mut world = site();
    run(&mut world, "one", "a", &[]);
    says(&mut world, "a", json!("10.0.0.9:0/7"), &[]);
    world.pass(60, &["a"]);
    assert_eq!(at(&world), "a", "silence alone takes nothing");
    world.pass(400, &["a"]);
    assert_eq!(world.fenced, ["10.0.0.9:0/7"]);
    assert_eq!(attachment(&world), None);
    assert_eq!(pods(&world), [""; 0], "a fenced pod is removed, so that a set can go on");
    run(&mut world, "two", "b", &["a"]);
    assert_eq!(at(&world), "b");
    // The node comes back and tidies up: the image stays where it is.
    says(&mut world, "a", Value::Null, &[]);
    assert_eq!(at(&world), "b");
}

#[test]
fn a_node_that_was_deleted_is_fenced_by_what_it_said_before() {
    let mut world = site();
    run(&mut world, "one", "a", &[]);
    says(&mut world, "a", json!("10.0.0.9:0/7"), &[]);
    world.remove(&kind::NODE, "", "a");
    world.settle(&["a"]);
    world.remove(&kind::POD, "n", "one");
    world.settle(&["a"]);
    assert_eq!(world.fenced, ["10.0.0.9:0/7"]);
    assert_eq!(attachment(&world), None);
}

#[test]
fn volumes_that_many_read_are_not_attached() {
    for patch in [
        json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
        json!({"spec": {"rbd": {"readOnly": true}}}),
    ] {
        let mut world = site();
        world.change(&kind::PERSISTENT_VOLUME, "", "v", &patch);
        run(&mut world, "one", "a", &[]);
        assert_eq!(attachment(&world), None);
    }
}

#[test]
fn a_fence_is_lifted_when_the_node_is_back_and_its_client_has_ended() {
    let mut world = site();
    run(&mut world, "one", "a", &[]);
    says(&mut world, "a", json!("10.0.0.9:0/7"), &[]);
    world.pass(460, &["a"]);
    assert_eq!(world.fenced, ["10.0.0.9:0/7"]);
    world.pass(60, &[]);
    assert_eq!(world.fenced, ["10.0.0.9:0/7"], "it is back, and still has the image mapped");
    says(&mut world, "a", Value::Null, &[]);
    assert_eq!(world.fenced, [""; 0]);
    let node = world.all::<Node>().into_iter().find(|node| node.metadata.name == "a").unwrap();
    assert_eq!(fenced(&node), BTreeMap::new());
}

#[test]
fn a_client_the_node_never_named_is_fenced_until_the_next_boot() {
    let lifted = |boot: &str, named: bool| {
        let mut world = site();
        let client = "[fd00::9]:0/8".to_owned();
        world.fenced.push(client.clone());
        let one = Fenced { client, volume: "v".into(), boot: "one".into(), named };
        assert_eq!(one.key(), "fenced.storage.muster.dev/fd00..9..0.8");
        let text = serde_json::to_string(&one).unwrap();
        let patch = json!({"metadata": {"annotations": {one.key().as_str(): text}},
            "status": {"nodeInfo": {"bootID": boot}}});
        world.change(&kind::NODE, "", "a", &patch);
        world.settle(&[]);
        world.fenced.is_empty()
    };
    assert!(!lifted("one", false) && lifted("two", false) && lifted("one", true));
}
