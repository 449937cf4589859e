use super::*;
use crate::world::World;
use objects::storage::StorageClass;

fn site() -> World {
    let mut world = World::default();
    world.add_node("a", "r1");
    world.add(
        &kind::STORAGE_CLASS,
        json!({"metadata": {"name": "fast"}, "provisioner": PROVISIONER,
            "parameters": {"monitors": "10.0.0.1", "pool": "p"}}),
    );
    class(&mut world, "snaps", "Delete", "true");
    claim(&mut world, "c", "1Mi", Value::Null);
    world.settle(&[]);
    world
}

fn class(world: &mut World, name: &str, policy: &str, default: &str) {
    let object = json!({"metadata": {"name": name, "annotations": {DEFAULT: default}},
        "driver": PROVISIONER, "deletionPolicy": policy});
    world.add(&kind::VOLUME_SNAPSHOT_CLASS, object);
}

fn claim(world: &mut World, name: &str, size: &str, source: Value) {
    world.add(
        &kind::PERSISTENT_VOLUME_CLAIM,
        json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "dataSource": source, "resources": {"requests": {"storage": size}}},
        }),
    );
}

fn snapshot(world: &mut World, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
    world.add(&kind::VOLUME_SNAPSHOT, object);
    world.settle(&[]);
}

fn of_claim(claim: &str) -> Value {
    json!({"source": {"persistentVolumeClaimName": claim}})
}

fn read(world: &World, name: &str) -> VolumeSnapshot {
    let all = world.all::<VolumeSnapshot>();
    all.into_iter().find(|one| one.metadata.name == name).unwrap()
}

fn delete(world: &mut World, name: &str) {
    let target = Target::of(&read(world, name));
    world.delete(&target, None);
}

fn volume_of(world: &World, claim: &str) -> String {
    let all = world.all::<PersistentVolumeClaim>();
    all.into_iter().find(|one| one.metadata.name == claim).unwrap().spec.volume_name
}

#[test]
fn a_wish_becomes_a_snapshot_that_a_claim_can_start_from() {
    let mut world = site();
    assert_eq!(world.all::<StorageClass>().len(), 1);
    snapshot(&mut world, "s", of_claim("c"));
    let made = read(&world, "s");
    assert_eq!(made.spec.volume_snapshot_class_name.as_deref(), Some("snaps"), "the default");
    assert_eq!(made.status.ready_to_use, Some(true));
    assert_eq!(made.status.restore_size.as_ref().unwrap().value(), 1 << 20);
    let content = world.all::<VolumeSnapshotContent>().remove(0);
    assert_eq!(made.status.bound_volume_snapshot_content_name, Some(content.metadata.name));
    let handle = content.status.snapshot_handle.unwrap();
    assert_eq!(world.images.last().unwrap(), &format!("snapshot {handle}"));

    let source =
        json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    claim(&mut world, "copy", "2Mi", source);
    world.settle(&[]);
    assert_eq!(world.images.last().unwrap(), &format!("make 2097152 from {handle}"));
    assert_ne!(volume_of(&world, "copy"), "");

    delete(&mut world, "s");
    world.settle(&[]);
    assert_eq!(world.images.last().unwrap(), &format!("delete {handle}"));
    assert_eq!(world.all::<VolumeSnapshot>().len() + world.all::<VolumeSnapshotContent>().len(), 0);
}

#[test]
fn a_claim_starts_as_a_copy_of_another_and_never_smaller() {
    let mut world = site();
    let source = || json!({"kind": "PersistentVolumeClaim", "name": "c"});
    claim(&mut world, "copy", "1Mi", source());
    world.settle(&[]);
    let image =
        format!("p/kubernetes-dynamic-pvc-{}", volume_of(&world, "c").trim_start_matches("pvc-"));
    assert_eq!(world.images.last().unwrap(), &format!("make 1048576 from {image}"));
    let count = world.images.len();
    let more = json!({"spec": {"capacity": {"storage": "4Mi"}}});
    let volume = volume_of(&world, "c");
    world.change(&kind::PERSISTENT_VOLUME, "", &volume, &more);
    claim(&mut world, "small", "1Mi", source());
    world.settle(&[]);
    assert_eq!(world.images.len(), count);
    let told = "ProvisioningFailed a copy cannot be smaller than what it is made of";
    assert!(world.told.iter().any(|line| line == told), "{:?}", world.told);
}

#[test]
fn a_snapshot_that_is_kept_outlives_its_wish_and_can_be_given_to_another() {
    let mut world = site();
    class(&mut world, "keep", "Retain", "false");
    let mut spec = of_claim("c");
    spec["volumeSnapshotClassName"] = json!("keep");
    snapshot(&mut world, "s", spec);
    let handle = world.all::<VolumeSnapshotContent>().remove(0).status.snapshot_handle.unwrap();
    delete(&mut world, "s");
    world.settle(&[]);
    assert_eq!(world.all::<VolumeSnapshot>().len(), 0);
    assert_eq!(world.all::<VolumeSnapshotContent>().len(), 1);
    assert!(!world.images.iter().any(|line| line.starts_with("delete")), "{:?}", world.images);

    world.add(
        &kind::VOLUME_SNAPSHOT_CONTENT,
        json!({"metadata": {"name": "brought"}, "spec": {
            "driver": PROVISIONER, "deletionPolicy": "Retain",
            "source": {"snapshotHandle": handle},
            "volumeSnapshotRef": {"namespace": "n", "name": "t"}}}),
    );
    snapshot(&mut world, "t", json!({"source": {"volumeSnapshotContentName": "brought"}}));
    assert_eq!(read(&world, "t").status.ready_to_use, Some(true));
    assert_eq!(world.images.last().unwrap(), &format!("find {handle}"));
    snapshot(&mut world, "u", json!({"source": {"volumeSnapshotContentName": "brought"}}));
    let said = read(&world, "u").status.error.unwrap();
    let why = "VolumeSnapshotContent brought is bound to a different snapshot";
    assert!(said["message"].as_str().unwrap().ends_with(why), "{said}");
}

#[test]
fn what_cannot_be_snapshotted_says_why_and_is_tried_again() {
    let mut world = site();
    snapshot(&mut world, "s", of_claim("later"));
    let said = read(&world, "s").status.error.unwrap();
    let why = "Failed to create snapshot content with error the claim later does not exist";
    assert_eq!(said["message"], why);
    claim(&mut world, "later", "1Mi", Value::Null);
    world.settle(&[]);
    let made = read(&world, "s").status;
    assert_eq!((made.ready_to_use, made.error), (Some(true), None));
}

#[test]
fn a_snapshot_waits_for_claims_that_are_being_made_of_it() {
    let mut world = site();
    snapshot(&mut world, "s", of_claim("c"));
    // Of another class: nobody here makes it, so it stays without a volume.
    let source =
        json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    claim(&mut world, "copy", "1Mi", source);
    let other = json!({"spec": {"storageClassName": "other"}});
    world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "copy", &other);
    delete(&mut world, "s");
    world.settle(&[]);
    assert!(read(&world, "s").metadata.is_deleting());
    world.remove(&kind::PERSISTENT_VOLUME_CLAIM, "n", "copy");
    world.settle(&[]);
    assert_eq!(world.all::<VolumeSnapshot>().len(), 0);
}

#[test]
fn drivers_of_others_get_contents_and_make_the_rest_themselves() {
    let mut world = site();
    world.add(
        &kind::VOLUME_SNAPSHOT_CLASS,
        json!({"metadata": {"name": "theirs"}, "driver": "disks.example", "deletionPolicy": "Delete",
            "parameters": {"csi.storage.k8s.io/snapshotter-secret-name": "key"}}),
    );
    world.add(
        &kind::PERSISTENT_VOLUME,
        json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "csi": {"driver": "disks.example", "volumeHandle": "h"}}}),
    );
    world.add(
        &kind::PERSISTENT_VOLUME_CLAIM,
        json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"volumeName": "v",
            "storageClassName": "", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}),
    );
    world.settle(&[]);
    let mut spec = of_claim("d");
    spec["volumeSnapshotClassName"] = json!("theirs");
    snapshot(&mut world, "s", spec);
    let content = world.all::<VolumeSnapshotContent>().remove(0);
    assert_eq!(content.spec.source.volume_handle.as_deref(), Some("h"));
    assert_eq!(content.metadata.annotation(SECRETS[0].1), Some("key"));
    assert_eq!(content.status.ready_to_use, None, "that is their sidecar's");
    assert_eq!(read(&world, "s").status.ready_to_use, Some(false));
}
