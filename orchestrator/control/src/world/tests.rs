//! Random lives of a cluster: whatever happens, it comes to rest as it should be.

use objects::node::Node;
use objects::pod::Pod;
use objects::workload::{Deployment, ReplicaSet};
use proptest::prelude::*;

use super::*;

/// Something that happens to the cluster.
#[derive(Debug, Clone)]
enum Happening {
    /// `replicas` of a deployment.
    Scale(u8, u8),
    /// Another image, or back to an earlier one.
    Roll(u8, u8),
    /// `maxSurge` and `maxUnavailable`, or recreate.
    Strategy(u8, Option<(u8, u8)>),
    Pause(u8, bool),
    /// A pod vanishes.
    Lose(u8),
    /// A pod fails.
    Fail(u8),
    /// A node falls silent or comes back.
    Silence(u8, bool),
    Cordon(u8, bool),
    /// One round of one controller.
    Round(u8),
    /// One round of scheduler and agents.
    Step,
    Time(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::{Cordon, Fail, Lose, Pause, Roll, Round, Scale, Silence, Step, Time};
    let limits = proptest::option::of((0_u8..3, 0_u8..3));
    prop_oneof![
        (0_u8..2, 0_u8..7).prop_map(|(one, size)| Scale(one, size)),
        (0_u8..2, 0_u8..3).prop_map(|(one, image)| Roll(one, image)),
        (0_u8..2, limits).prop_map(|(one, limits)| Happening::Strategy(one, limits)),
        (0_u8..2, any::<bool>()).prop_map(|(one, paused)| Pause(one, paused)),
        any::<u8>().prop_map(Lose),
        any::<u8>().prop_map(Fail),
        (0_u8..3, any::<bool>()).prop_map(|(node, silent)| Silence(node, silent)),
        (0_u8..3, any::<bool>()).prop_map(|(node, cordoned)| Cordon(node, cordoned)),
        any::<u8>().prop_map(Round),
        Just(Step),
        (1_u8..60).prop_map(Time),
    ]
}

const NODES: [&str; 3] = ["n0", "n1", "n2"];
const NAMES: [&str; 2] = ["web", "db"];

fn start() -> World {
    let mut world = World::default();
    world.settings.node_monitor_grace_period = std::time::Duration::from_secs(20);
    world.settings.pod_eviction_timeout = std::time::Duration::from_secs(20);
    for node in NODES {
        world.add_node(node, node);
    }
    for name in NAMES {
        let deployment = json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "c", "image": "0"}]},
                },
            },
        });
        world.add(&kind::DEPLOYMENT, deployment);
        let service = json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
        });
        world.add(&kind::SERVICE, service);
    }
    world
}

fn pick<T>(all: Vec<T>, choice: u8) -> Option<T> {
    let place = usize::from(choice).checked_rem(all.len())?;
    all.into_iter().nth(place)
}

fn happen(world: &mut World, silent: &mut Vec<&'static str>, what: &Happening) {
    let name = |one: u8| NAMES[usize::from(one)];
    let patch = |world: &mut World, one: u8, spec: Value| {
        world.change(&kind::DEPLOYMENT, "n", name(one), &json!({ "spec": spec }));
    };
    match what {
        Happening::Scale(one, size) => patch(world, *one, json!({ "replicas": size })),
        Happening::Roll(one, image) => {
            let containers = json!([{"name": "c", "image": image.to_string()}]);
            patch(world, *one, json!({"template": {"spec": {"containers": containers}}}));
        }
        Happening::Strategy(one, limits) => {
            let strategy = match limits {
                // The API refuses two zeros.
                Some((surge, unavailable)) => json!({
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": surge + u8::from(*unavailable == 0), "maxUnavailable": unavailable},
                }),
                None => json!({"type": "Recreate", "rollingUpdate": null}),
            };
            patch(world, *one, json!({ "strategy": strategy }));
        }
        Happening::Pause(one, paused) => patch(world, *one, json!({ "paused": paused })),
        Happening::Lose(choice) => {
            if let Some(pod) = pick(world.all::<Pod>(), *choice) {
                world.remove(&kind::POD, "n", &pod.metadata.name);
            }
        }
        Happening::Fail(choice) => {
            if let Some(pod) = pick(world.all::<Pod>(), *choice) {
                let failed = json!({"status": {"phase": "Failed", "conditions": []}});
                world.change(&kind::POD, "n", &pod.metadata.name, &failed);
            }
        }
        Happening::Silence(node, true) => silent.push(NODES[usize::from(*node)]),
        Happening::Silence(node, false) => silent.retain(|one| *one != NODES[usize::from(*node)]),
        Happening::Cordon(node, cordoned) => {
            let spec = json!({"spec": {"unschedulable": cordoned}});
            world.change(&kind::NODE, "", NODES[usize::from(*node)], &spec);
        }
        Happening::Round(choice) => {
            world.round(&CONTROLLERS[usize::from(*choice) % CONTROLLERS.len()]);
        }
        Happening::Step => {
            world.step(silent);
        }
        Happening::Time(seconds) => {
            world.now =
                world.now.saturating_add(SignedDuration::from_secs((*seconds).into())).unwrap();
        }
    }
}

/// Everything is healed, time passes, and the cluster must be what was declared.
fn check_rest(world: &mut World) -> Result<(), TestCaseError> {
    for node in NODES {
        world.change(&kind::NODE, "", node, &json!({"spec": {"unschedulable": false}}));
    }
    for name in NAMES {
        world.change(&kind::DEPLOYMENT, "n", name, &json!({"spec": {"paused": false}}));
    }
    world.pass(100, &[]);
    for node in world.all::<Node>() {
        prop_assert!(node.is_ready() && node.spec.taints.is_empty(), "{node:?}");
    }
    let pods = world.all::<Pod>();
    for deployment in world.all::<Deployment>() {
        let name = &deployment.metadata.name;
        let wanted = deployment.spec.replicas.unwrap();
        let image = &deployment.spec.template.spec.containers[0].image;
        let mine = pods.iter().filter(|pod| pod.metadata.label("app") == Some(name));
        let running: Vec<_> = mine.filter(|pod| pod.is_ready()).collect();
        prop_assert_eq!(i64::try_from(running.len()).unwrap(), wanted, "{}", name);
        prop_assert!(running.iter().all(|pod| pod.spec.containers[0].image == *image));
        let status = &deployment.status;
        prop_assert_eq!(status.available_replicas, wanted);
        prop_assert_eq!(status.updated_replicas, wanted);
        prop_assert_eq!(status.replicas, wanted);
        prop_assert_eq!(status.observed_generation, deployment.metadata.generation);
        let sets = world.all::<ReplicaSet>();
        let live = sets.iter().filter(|set| {
            set.metadata.is_controlled_by(&deployment.metadata.uid) && set.spec.replicas != Some(0)
        });
        prop_assert!(live.count() <= 1);
        let endpoints = world.all::<objects::network::Endpoints>();
        let found = endpoints.iter().find(|one| one.metadata.name == *name).unwrap();
        let ready: usize = found.subsets.iter().map(|subset| subset.addresses.len()).sum();
        prop_assert_eq!(i64::try_from(ready).unwrap(), wanted);
    }
    Ok(())
}

#[test]
fn whatever_happens_the_cluster_comes_to_rest_as_declared() {
    let config =
        ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(life in proptest::collection::vec(happening(), 0..60))| {
        let mut world = start();
        let mut silent = Vec::new();
        for what in &life {
            happen(&mut world, &mut silent, what);
        }
        check_rest(&mut world)?;
    });
}

/// Lives that once did not come to rest.
#[test]
fn lives_that_failed_before_come_to_rest_too() {
    use Happening::{Round, Scale};
    for life in [vec![Round(2), Scale(0, 0)]] {
        let mut world = start();
        let mut silent = Vec::new();
        for what in &life {
            happen(&mut world, &mut silent, what);
        }
        check_rest(&mut world).unwrap();
    }
}
