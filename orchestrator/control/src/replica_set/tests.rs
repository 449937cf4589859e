use super::*;
use crate::world::World;

fn set(replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "web", "namespace": "n"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    })
}

fn world(replicas: i64) -> World {
    let mut world = World::default();
    world.add_node("a", "r1");
    world.add_node("b", "r2");
    world.add(&kind::REPLICA_SET, set(replicas));
    world
}

fn names(world: &World) -> Vec<String> {
    world.all::<Pod>().into_iter().map(|pod| pod.metadata.name).collect()
}

#[test]
fn the_number_of_pods_follows_the_wish() {
    let mut world = world(3);
    for wish in [3, 5, 1, 0, 2] {
        world.change(&kind::REPLICA_SET, "n", "web", &json!({"spec": {"replicas": wish}}));
        world.settle(&[]);
        assert_eq!(i64::try_from(names(&world).len()).unwrap(), wish);
        let status = &world.all::<ReplicaSet>()[0].status;
        assert_eq!((status.replicas, status.available_replicas), (Some(wish), wish));
    }
}

#[test]
fn a_pod_that_fits_is_adopted_and_one_that_no_longer_fits_is_let_go() {
    let mut world = world(2);
    let loose = json!({"metadata": {"name": "loose", "namespace": "n", "labels": {"app": "web"}}, "spec": {}});
    world.add(&kind::POD, loose);
    world.settle(&[]);
    assert_eq!(names(&world).len(), 2);
    world.change(&kind::POD, "n", "loose", &json!({"metadata": {"labels": {"app": "other"}}}));
    world.settle(&[]);
    assert_eq!(names(&world).len(), 3);
    let loose = world.all::<Pod>().into_iter().find(|pod| pod.metadata.name == "loose").unwrap();
    assert_eq!(loose.metadata.controller(), None);
}

#[test]
fn an_empty_or_broken_selector_touches_nothing() {
    for selector in [json!({}), json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})] {
        let mut world = world(2);
        world.add(&kind::POD, json!({"metadata": {"name": "x", "namespace": "n"}, "spec": {}}));
        let patch = json!({"spec": {"selector": null}});
        world.change(&kind::REPLICA_SET, "n", "web", &patch);
        let patch = json!({"spec": {"selector": selector}});
        world.change(&kind::REPLICA_SET, "n", "web", &patch);
        world.settle(&[]);
        assert_eq!(names(&world), ["x"]);
    }
}

/// Each line is a pod: name, node, phase, ready; the result is the order of their deletion.
#[track_caller]
fn check(pods: &[(&str, &str, &str, bool)], expected: &[&str]) {
    let make = |(name, node, phase, ready): &(&str, &str, &str, bool)| {
        Arc::new(
            serde_json::from_value::<Pod>(json!({
                "metadata": {"name": name},
                "spec": {"nodeName": node},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": if *ready { "True" } else { "False" }},
                ]},
            }))
            .unwrap(),
        )
    };
    let pods: Vec<Arc<Pod>> = pods.iter().map(make).collect();
    let active: Vec<&Arc<Pod>> = pods.iter().collect();
    let order = rank_for_deletion(&active, Timestamp::UNIX_EPOCH);
    let order: Vec<&str> = order.iter().map(|pod| pod.metadata.name.as_str()).collect();
    assert_eq!(order, expected);
}

#[test]
fn what_hurts_least_is_deleted_first() {
    check(
        &[
            ("ready", "a", "Running", true),
            ("unready", "a", "Running", false),
            ("pending", "a", "Pending", false),
            ("homeless", "", "Pending", false),
        ],
        &["homeless", "pending", "unready", "ready"],
    );
    check(
        &[
            ("alone", "a", "Running", true),
            ("one", "b", "Running", true),
            ("two", "b", "Running", true),
        ],
        &["one", "two", "alone"],
    );
}

#[test]
fn replacements_come_on_other_nodes_when_a_node_dies_and_nothing_is_left_behind() {
    let mut world = world(4);
    world.settings.node_monitor_grace_period = std::time::Duration::from_secs(20);
    world.settings.pod_eviction_timeout = std::time::Duration::from_secs(30);
    world.settle(&[]);
    let on = |world: &World, node: &str| {
        world.all::<Pod>().iter().filter(|pod| pod.spec.node_name == node).count()
    };
    assert_eq!((on(&world, "a"), on(&world, "b")), (2, 2));
    world.pass(45, &["a"]);
    assert_eq!(on(&world, "a"), 2, "patience");
    world.pass(60, &["a"]);
    assert_eq!((on(&world, "a"), on(&world, "b")), (0, 4));
    world.pass(20, &[]);
    let node = &world.all::<objects::node::Node>()[0];
    assert!(node.is_ready() && node.spec.taints.is_empty(), "{node:?}");
}

#[test]
fn a_set_whose_pods_are_refused_says_why_and_asks_for_one_at_a_time() {
    let mut world = World::default();
    world.add(
        &kind::REPLICA_SET,
        json!({
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {
                "replicas": 5, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}},
            },
        }),
    );
    let key = Key::new("n", "web");
    let mut look = |refused: Option<&str>| -> (usize, Value) {
        let seen = world.view();
        let view = View {
            replica_sets: seen.replica_sets.clone(),
            refused: refused.map(|why| (key.clone(), why.to_owned())).into_iter().collect(),
            ..View::default()
        };
        let steps = reconcile(&view, &key, world.now);
        let creates = |one: &&Action| matches!(one, Action::Create { .. });
        let count = steps.actions.iter().filter(creates).count();
        let status = steps.actions.iter().find_map(|one| match one {
            Action::Patch { body, .. } => Some(Value::clone(body)),
            _ => None,
        });
        let status = status.unwrap_or_default();
        world.change(&kind::REPLICA_SET, "n", "web", &status);
        (count, status["status"]["conditions"].clone())
    };
    assert_eq!(look(None), (5, json!([])));
    let (count, conditions) = look(Some("exceeded quota"));
    assert_eq!((count, &conditions[0]["reason"]), (1, &json!("FailedCreate")));
    assert_eq!(conditions[0]["message"], "exceeded quota");
    assert_eq!(look(None), (5, json!([])), "it is over");
}
