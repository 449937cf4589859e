//! Random lives of claims, volumes, snapshots and the pods that use them: whatever happens, they
//! come to rest as declared, nothing is left over, and nobody plans anything more.

use std::collections::BTreeMap;

use objects::pod::Pod;
use objects::storage::{
    PersistentVolume, PersistentVolumeClaim, RBD_CLIENTS, VolumeAttachment, VolumeSnapshot,
    VolumeSnapshotContent,
};
use proptest::prelude::*;

use super::*;
use crate::image_provisioner::PROVISIONER;

/// Something that happens to the cluster.
#[derive(Debug, Clone)]
enum Happening {
    /// A claim is made, of a class and a size, perhaps from a snapshot.
    Ask(usize, usize, u8, Option<usize>),
    Grow(usize, u8),
    Drop(usize),
    /// A snapshot of a claim is asked for.
    Snapshot(usize, usize),
    Forget(usize),
    /// A pod uses a claim.
    Run(usize, usize),
    End(usize),
    /// A node falls silent or comes back.
    Silence(usize, bool),
    /// The nodes' agents map and unmap.
    Agents,
    /// One round of one controller.
    Round(u8),
    /// One round of scheduler and agents.
    Step,
    Time(u8),
}

const NODES: [&str; 2] = ["n0", "n1"];
const CLASSES: [&str; 3] = ["fast", "kept", "late"];
const CLAIMS: [&str; 3] = ["c0", "c1", "c2"];
const SNAPSHOTS: [&str; 2] = ["s0", "s1"];
const PODS: [&str; 3] = ["p0", "p1", "p2"];

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::{
        Agents, Ask, Drop, End, Forget, Grow, Round, Run, Silence, Snapshot, Step, Time,
    };
    let source = proptest::option::weighted(0.2, 0..SNAPSHOTS.len());
    prop_oneof![
        3 => (0..CLAIMS.len(), 0..CLASSES.len(), 1_u8..4, source)
            .prop_map(|(claim, class, size, from)| Ask(claim, class, size, from)),
        1 => (0..CLAIMS.len(), 1_u8..9).prop_map(|(claim, size)| Grow(claim, size)),
        1 => (0..CLAIMS.len()).prop_map(Drop),
        2 => (0..SNAPSHOTS.len(), 0..CLAIMS.len()).prop_map(|(one, claim)| Snapshot(one, claim)),
        1 => (0..SNAPSHOTS.len()).prop_map(Forget),
        3 => (0..PODS.len(), 0..CLAIMS.len()).prop_map(|(pod, claim)| Run(pod, claim)),
        1 => (0..PODS.len()).prop_map(End),
        1 => (0..NODES.len(), any::<bool>()).prop_map(|(node, silent)| Silence(node, silent)),
        2 => Just(Agents),
        4 => any::<u8>().prop_map(Round),
        1 => Just(Step),
        1 => (1_u8..60).prop_map(Time),
    ]
}

fn start() -> World {
    let mut world = World::default();
    world.settings.node_monitor_grace_period = std::time::Duration::from_secs(20);
    world.settings.pod_eviction_timeout = std::time::Duration::from_secs(20);
    for node in NODES {
        world.add_node(node, "r1");
    }
    for (name, policy, binding) in [
        ("fast", "Delete", "Immediate"),
        ("kept", "Retain", "Immediate"),
        ("late", "Delete", "WaitForFirstConsumer"),
    ] {
        let class = json!({
            "metadata": {"name": name}, "provisioner": PROVISIONER, "reclaimPolicy": policy,
            "volumeBindingMode": binding, "allowVolumeExpansion": true,
            "parameters": {"monitors": "10.0.0.1", "pool": "p"},
        });
        world.add(&kind::STORAGE_CLASS, class);
    }
    let class = json!({
        "metadata": {"name": "snaps",
            "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"}},
        "driver": PROVISIONER, "deletionPolicy": "Delete",
    });
    world.add(&kind::VOLUME_SNAPSHOT_CLASS, class);
    world
}

fn named<T: Object>(world: &World, name: &str) -> Option<T> {
    world.all::<T>().into_iter().find(|one| one.meta().name == name)
}

fn end<T: Object>(world: &mut World, name: &str) {
    if let Some(one) = named::<T>(world, name) {
        world.delete(&Target::of(&one), None);
    }
}

fn ask(world: &mut World, name: &str, class: &str, size: u8, from: Option<&str>) {
    let source = |name| json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name});
    let claim = json!({
        "metadata": {"name": name, "namespace": "n"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "dataSource": from.map(source),
            "resources": {"requests": {"storage": format!("{size}Mi")}}},
    });
    world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim);
}

/// Plays the agents that answer: each maps what is attached to it, under a client of its own, and
/// names those that it has.
fn play_agents(world: &mut World, silent: &[&str]) {
    for node in NODES.into_iter().filter(|node| !silent.contains(node)) {
        let object: objects::node::Node = named(world, node).unwrap();
        let text = object.metadata.annotation(RBD_CLIENTS).unwrap_or("{}");
        let before: BTreeMap<String, String> = serde_json::from_str(text).unwrap();
        let mut after = BTreeMap::new();
        for one in world.all::<VolumeAttachment>() {
            let volume = one.spec.source.persistent_volume_name.unwrap_or_default();
            let Some(volume) = named::<PersistentVolume>(world, &volume) else { continue };
            if one.spec.node_name != node || one.metadata.is_deleting() {
                continue;
            }
            let rbd = volume.spec.rbd.as_ref().unwrap();
            let word = |name: &str| rbd[name].as_str().unwrap().to_owned();
            let image = format!("{}/{}", word("pool"), word("image"));
            let fresh = || format!("10.0.0.9:0/{}", world.serial);
            let client = before.get(&image).cloned().unwrap_or_else(fresh);
            after.insert(image, client);
        }
        if after != before {
            let patch =
                json!({"metadata": {"annotations": {RBD_CLIENTS: json!(after).to_string()}}});
            world.change(&kind::NODE, "", node, &patch);
        }
    }
}

/// Plays what the scheduler says of claims before it binds their pods: the simple scheduler of this
/// world binds pods alone.
fn choose_nodes(world: &mut World) {
    const CHOSEN: &str = "volume.kubernetes.io/selected-node";
    for claim in world.all::<PersistentVolumeClaim>() {
        let name = claim.metadata.name.as_str();
        let late = claim.spec.storage_class_name.as_deref() == Some("late");
        let used = world.all::<Pod>().iter().any(|pod| uses(pod, name));
        if late && used && claim.metadata.annotation(CHOSEN).is_none() {
            let patch = json!({"metadata": {"annotations": {CHOSEN: NODES[0]}}});
            world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", name, &patch);
        }
    }
}

fn happen(world: &mut World, silent: &mut Vec<&'static str>, what: &Happening) {
    match what {
        Happening::Ask(claim, class, size, from) => {
            if named::<PersistentVolumeClaim>(world, CLAIMS[*claim]).is_none() {
                let from = from.map(|one| SNAPSHOTS[one]);
                ask(world, CLAIMS[*claim], CLASSES[*class], *size, from);
            }
        }
        Happening::Grow(claim, size) => {
            let Some(one) = named::<PersistentVolumeClaim>(world, CLAIMS[*claim]) else { return };
            // The API lets claims grow once they are bound, and never shrink.
            let bytes = i64::from(*size) << 20;
            if one.status.phase == "Bound" && one.spec.resources.requests["storage"].value() < bytes
            {
                let more =
                    json!({"spec": {"resources": {"requests": {"storage": format!("{size}Mi")}}}});
                world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", CLAIMS[*claim], &more);
            }
        }
        Happening::Drop(claim) => end::<PersistentVolumeClaim>(world, CLAIMS[*claim]),
        Happening::Snapshot(one, claim) => {
            if named::<VolumeSnapshot>(world, SNAPSHOTS[*one]).is_none() {
                let spec = json!({"source": {"persistentVolumeClaimName": CLAIMS[*claim]}});
                let meta = json!({"name": SNAPSHOTS[*one], "namespace": "n"});
                world.add(&kind::VOLUME_SNAPSHOT, json!({"metadata": meta, "spec": spec}));
            }
        }
        Happening::Forget(one) => end::<VolumeSnapshot>(world, SNAPSHOTS[*one]),
        Happening::Run(pod, claim) => {
            if named::<Pod>(world, PODS[*pod]).is_none() {
                let volumes =
                    json!([{"name": "v", "persistentVolumeClaim": {"claimName": CLAIMS[*claim]}}]);
                let spec = json!({"containers": [{"name": "c", "image": "0"}], "volumes": volumes});
                let meta = json!({"name": PODS[*pod], "namespace": "n"});
                world.add(&kind::POD, json!({"metadata": meta, "spec": spec}));
            }
        }
        Happening::End(pod) => end::<Pod>(world, PODS[*pod]),
        Happening::Silence(node, true) => silent.push(NODES[*node]),
        Happening::Silence(node, false) => silent.retain(|one| *one != NODES[*node]),
        Happening::Agents => play_agents(world, silent),
        Happening::Round(choice) => {
            world.round(&CONTROLLERS[usize::from(*choice) % CONTROLLERS.len()]);
        }
        Happening::Step => {
            choose_nodes(world);
            world.step(silent);
        }
        Happening::Time(seconds) => {
            world.now =
                world.now.saturating_add(SignedDuration::from_secs((*seconds).into())).unwrap();
        }
    }
}

/// Everybody answers, time passes, and then nobody plans anything any more.
fn rest(world: &mut World) -> Result<(), TestCaseError> {
    for _ in 0..6 {
        play_agents(world, &[]);
        choose_nodes(world);
        world.pass(20, &[]);
    }
    let (done, images, version) = (world.done.len(), world.images.clone(), world.version);
    play_agents(world, &[]);
    world.settle(&[]);
    prop_assert_eq!(&world.done[done..], &[""; 0], "a second run plans");
    prop_assert_eq!((&world.images, world.version), (&images, version));
    Ok(())
}

fn uses(pod: &Pod, claim: &str) -> bool {
    crate::volume_binder::claim_names(pod).iter().any(|name| name == claim)
}

/// What is there is what was declared, and nothing of what went is left.
fn check(world: &World) -> Result<(), TestCaseError> {
    let (claims, pods) = (world.all::<PersistentVolumeClaim>(), world.all::<Pod>());
    let volumes = world.all::<PersistentVolume>();
    for claim in &claims {
        let name = &claim.metadata.name;
        let used = pods.iter().any(|pod| uses(pod, name) && !pod.is_finished());
        prop_assert!(!claim.metadata.is_deleting() || used, "{name} is gone when nobody uses it");
        let waits = claim.spec.storage_class_name.as_deref() == Some("late") && !used;
        if claim.spec.data_source.is_some() || waits || claim.metadata.is_deleting() {
            continue;
        }
        prop_assert_eq!(&claim.status.phase, "Bound", "{}", name);
        let volume = volumes.iter().find(|one| one.metadata.name == claim.spec.volume_name);
        let volume = volume.unwrap();
        prop_assert_eq!(&volume.status.phase, "Bound");
        let asked = claim.spec.resources.requests["storage"].value();
        prop_assert!(volume.spec.capacity["storage"].value() >= asked, "{name} has grown");
    }
    for volume in &volumes {
        let owner = volume.spec.claim_ref.as_ref().unwrap();
        let held = claims.iter().any(|claim| claim.metadata.uid == owner.uid);
        let kept = volume.spec.persistent_volume_reclaim_policy == "Retain";
        prop_assert!(held || kept, "{} was deleted with its claim", volume.metadata.name);
        let phase = if held { "Bound" } else { "Released" };
        prop_assert_eq!(&volume.status.phase, phase);
    }
    let count = |what: &str| world.images.iter().filter(|line| line.starts_with(what)).count();
    let ended = world.images.iter().filter(|line| *line == "delete").count();
    prop_assert_eq!(count("make "), volumes.len() + ended, "an image for each volume");
    let contents = world.all::<VolumeSnapshotContent>();
    prop_assert_eq!(count("snapshot "), contents.len() + count("delete "), "and for each snapshot");
    for content in &contents {
        let name = content.spec.volume_snapshot_ref.name.as_str();
        prop_assert!(named::<VolumeSnapshot>(world, name).is_some(), "{name} is wanted");
    }
    check_attachments(world, &pods, &volumes)
}

/// Who runs has its volume, and only who runs.
fn check_attachments(
    world: &World,
    pods: &[Pod],
    volumes: &[PersistentVolume],
) -> Result<(), TestCaseError> {
    let attachments = world.all::<VolumeAttachment>();
    for volume in volumes {
        let claim = volume.spec.claim_ref.as_ref().unwrap().name.as_str();
        let live = volume.status.phase == "Bound";
        let users: Vec<&str> = pods
            .iter()
            .filter(|pod| live && pod.is_bound() && !pod.is_finished() && uses(pod, claim))
            .map(|pod| pod.spec.node_name.as_str())
            .collect();
        let name = Some(&volume.metadata.name);
        let at: Vec<&VolumeAttachment> = attachments
            .iter()
            .filter(|one| one.spec.source.persistent_volume_name.as_ref() == name)
            .collect();
        prop_assert_eq!(at.len(), usize::from(!users.is_empty()), "{:?} for {:?}", at, users);
        for one in at {
            prop_assert!(users.contains(&one.spec.node_name.as_str()), "{one:?} for {users:?}");
            prop_assert_eq!(one.status.attached, Some(true));
        }
    }
    prop_assert!(attachments.len() <= volumes.len(), "of volumes that are gone: {attachments:?}");
    prop_assert_eq!(&world.fenced, &[""; 0], "everybody answers: no fence stands");
    Ok(())
}

#[test]
fn whatever_happens_volumes_come_to_rest_and_nothing_is_left_over() {
    let config =
        ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(life in proptest::collection::vec(happening(), 0..60))| {
        let mut world = start();
        let mut silent = Vec::new();
        for what in &life {
            happen(&mut world, &mut silent, what);
        }
        rest(&mut world)?;
        check(&world)?;
    });
}
