use std::time::Duration;

use objects::kind;

use super::*;
use crate::world::World;

fn world() -> World {
    let mut world = World::default();
    world.settings.node_monitor_grace_period = Duration::from_secs(20);
    world.settings.pod_eviction_timeout = Duration::from_secs(30);
    world.add_node("a", "r1");
    world.add_node("b", "r2");
    world.settle(&[]);
    world
}

fn add_pod(world: &mut World, name: &str, node: &str, spec: &Value) {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "n"}, "spec": {"nodeName": node},
    });
    crate::world::merge(&mut object["spec"], spec);
    world.add(&kind::POD, object);
    world.settle(&[]);
}

fn state(world: &World, name: &str) -> Option<(bool, bool)> {
    let pods = world.all::<Pod>();
    let pod = pods.iter().find(|pod| pod.metadata.name == name)?;
    Some((pod.is_ready(), pod.metadata.is_deleting()))
}

fn node(world: &World, name: &str) -> Node {
    world.all::<Node>().into_iter().find(|node| node.metadata.name == name).unwrap()
}

#[test]
fn silence_is_noticed_after_the_grace_and_forgiven_on_return() {
    let mut world = world();
    add_pod(&mut world, "p", "a", &json!({}));
    world.pass(15, &["a"]);
    assert!(node(&world, "a").is_ready());
    world.pass(10, &["a"]);
    let silent = node(&world, "a");
    let ready = find_condition(&silent.status.conditions, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("Unknown", "NodeStatusUnknown"));
    let taints: Vec<_> = silent.spec.taints.iter().map(|one| one.effect.as_str()).collect();
    assert_eq!(taints, ["NoSchedule", "NoExecute"]);
    assert_eq!(state(&world, "p"), Some((false, false)));
    assert!(node(&world, "b").spec.taints.is_empty());
    world.pass(10, &[]);
    assert!(node(&world, "a").spec.taints.is_empty());
    assert_eq!(state(&world, "p"), Some((true, false)));
}

#[test]
fn each_pod_has_its_own_patience() {
    let mut world = world();
    let bears = |seconds: Value| {
        json!({"tolerations": [{
            "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }]})
    };
    add_pod(&mut world, "plain", "a", &json!({}));
    add_pod(&mut world, "hasty", "a", &bears(json!(5)));
    add_pod(&mut world, "patient", "a", &bears(Value::Null));
    add_pod(&mut world, "other", "b", &json!({}));
    world.pass(35, &["a"]);
    let deleting = |world: &World, name| state(world, name).map(|(_, deleting)| deleting);
    assert_eq!(deleting(&world, "hasty"), Some(true));
    assert_eq!(deleting(&world, "plain"), Some(false));
    world.pass(25, &["a"]);
    assert_eq!(deleting(&world, "plain"), Some(true));
    world.pass(60, &["a"]);
    assert_eq!(state(&world, "plain"), None, "removed without its node");
    assert_eq!(deleting(&world, "patient"), Some(false));
    assert_eq!(deleting(&world, "other"), Some(false));
}

#[test]
fn a_pod_with_a_volume_is_not_torn_from_a_node_that_may_still_write() {
    let mut world = world();
    let claim = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    add_pod(&mut world, "p", "a", &claim);
    world.pass(200, &["a"]);
    assert_eq!(state(&world, "p"), Some((false, true)));
    let mut taints = serde_json::to_value(node(&world, "a").spec.taints).unwrap();
    taints.as_array_mut().unwrap().push(json!({"key": OUT_OF_SERVICE, "effect": "NoExecute"}));
    world.change(&kind::NODE, "", "a", &json!({"spec": {"taints": taints}}));
    world.pass(5, &["a"]);
    assert_eq!(state(&world, "p"), None);
}

#[test]
fn when_nobody_answers_nobody_is_evicted() {
    let mut world = world();
    add_pod(&mut world, "p", "a", &json!({}));
    world.pass(300, &["a", "b"]);
    assert_eq!(state(&world, "p"), Some((false, false)));
}

#[test]
fn a_cordon_is_a_taint_and_an_operators_taint_stays() {
    let mut world = world();
    let taints = json!([{"key": "mine", "effect": "NoSchedule"}]);
    world.change(&kind::NODE, "", "a", &json!({"spec": {"unschedulable": true, "taints": taints}}));
    world.settle(&[]);
    let keys = |world: &World| -> Vec<String> {
        node(world, "a").spec.taints.into_iter().map(|one| one.key).collect()
    };
    assert_eq!(keys(&world), ["mine", UNSCHEDULABLE]);
    world.change(&kind::NODE, "", "a", &json!({"spec": {"unschedulable": false}}));
    world.settle(&[]);
    assert_eq!(keys(&world), ["mine"]);
}

#[test]
fn a_node_that_runs_short_keeps_new_pods_away() {
    let mut world = world();
    let keys = |world: &World| -> Vec<String> {
        node(world, "a").spec.taints.into_iter().map(|one| one.key).collect()
    };
    for (status, expected) in
        [("True", &["node.kubernetes.io/memory-pressure"][..]), ("False", &[][..])]
    {
        let mut conditions = serde_json::to_value(node(&world, "a").status.conditions).unwrap();
        let all = conditions.as_array_mut().unwrap();
        all.retain(|condition| condition["type"] != "MemoryPressure");
        all.push(json!({"type": "MemoryPressure", "status": status}));
        world.change(&kind::NODE, "", "a", &json!({"status": {"conditions": conditions}}));
        world.settle(&[]);
        assert_eq!(keys(&world), expected);
    }
}

#[test]
fn after_a_blackout_those_who_come_back_last_keep_their_pods() {
    let mut world = world();
    add_pod(&mut world, "p", "a", &json!({}));
    add_pod(&mut world, "q", "b", &json!({}));
    world.pass(300, &["a", "b"]);
    world.pass(15, &["a"]);
    assert_eq!(state(&world, "p"), Some((false, false)));
    assert_eq!(state(&world, "q"), Some((true, false)));
    world.pass(5, &[]);
    assert_eq!(state(&world, "p"), Some((true, false)));
    assert_eq!(world.told.iter().filter(|line| line.starts_with("TaintManager")).count(), 0);
}

#[test]
fn who_is_evicted_is_told_why_and_others_are_told_who() {
    let mut world = world();
    let stays = json!({"finalizers": ["example.com/hold"]});
    let object = json!({
        "metadata": {"name": "p", "namespace": "n", "finalizers": stays["finalizers"]},
        "spec": {"nodeName": "a"},
    });
    world.add(&kind::POD, object);
    world.settle(&[]);
    world.pass(60, &["a"]);
    let pod = world.all::<Pod>()[0].clone();
    assert!(pod.metadata.is_deleting());
    let why = find_condition(&pod.status.conditions, "DisruptionTarget").unwrap();
    assert_eq!((why.status.as_str(), why.reason.as_str()), ("True", "DeletionByTaintManager"));
    let told = |start: &str| world.told.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(told("RegisteredNode Node a event: Registered Node a in Controller"), 1);
    assert_eq!(told("NodeNotReady Node a status is now: NodeNotReady"), 1);
    assert_eq!(told("NodeNotReady Node is not ready"), 1);
    assert_eq!(told("TaintManagerEviction Marking for deletion Pod n/p"), 1);
}

#[test]
fn a_node_that_says_it_is_not_ready_is_talked_of_and_one_without_network_closed() {
    let mut world = world();
    world.pass(60, &[]);
    let at = objects::Time::from(world.now);
    let ready = json!({
        "type": "Ready", "status": "False", "lastHeartbeatTime": at, "lastTransitionTime": at,
    });
    let network = json!({"type": "NetworkUnavailable", "status": "True"});
    world.change(&kind::NODE, "", "a", &json!({"status": {"conditions": [ready, network]}}));
    world.settle(&[]);
    let taints: Vec<String> = node(&world, "a")
        .spec
        .taints
        .iter()
        .map(|one| format!("{}:{}", one.key, one.effect))
        .collect();
    assert_eq!(
        taints,
        [
            "node.kubernetes.io/not-ready:NoSchedule",
            "node.kubernetes.io/not-ready:NoExecute",
            "node.kubernetes.io/network-unavailable:NoSchedule",
        ]
    );
    assert!(world.told.iter().any(|line| line.starts_with("NodeNotReady Node a")));
}

#[test]
fn nodes_of_one_zone_are_given_up_one_after_the_other() {
    let mut world = world();
    for name in ["c", "d", "e"] {
        world.add_node(name, "r1");
    }
    world.settle(&[]);
    let lost = |world: &World| -> Vec<String> {
        let nodes = world.all::<Node>().into_iter();
        nodes.filter(zone::is_given_up).map(|node| node.metadata.name).collect()
    };
    // Two of four: a node in ten seconds; the first at once.
    world.pass(20, &["c", "d"]);
    assert_eq!(lost(&world), ["c"]);
    world.pass(5, &["c", "d"]);
    assert_eq!(lost(&world), ["c"]);
    world.pass(5, &["c", "d"]);
    assert_eq!(lost(&world), ["c", "d"]);
    // Three of four: perhaps it is the zone, so nobody else goes.
    world.pass(60, &["a", "c", "d"]);
    assert_eq!(lost(&world), ["c", "d"]);
    let silent = node(&world, "a").spec.taints;
    assert_eq!(silent.iter().map(|one| one.effect.as_str()).collect::<Vec<_>>(), ["NoSchedule"]);
    // All of the zone, and another answers: it is the zone, and its pods go elsewhere.
    world.pass(60, &["a", "c", "d", "e"]);
    assert_eq!(lost(&world), ["a", "c", "d", "e"]);
    // Nobody anywhere: all is taken back.
    world.pass(30, &["a", "b", "c", "d", "e"]);
    assert_eq!(lost(&world), Vec::<String>::new());
    world.pass(5, &[]);
    assert!(world.all::<Node>().iter().all(|node| node.spec.taints.is_empty()));
}
