//! Makes, grows and deletes Ceph images for claims of classes of the old in-tree kind.
//!
//! Spec: upstream's in-tree provisioner `kubernetes.io/rbd` and its class parameters: `monitors`,
//! `pool`, `adminId`, `adminSecretName`, `adminSecretNamespace`, `userId`, `userSecretName`,
//! `userSecretNamespace`, `fsType`. Differs: images have the features `layering` and
//! `exclusive-lock` whatever the class says, because one writer is what the lock gives; the image
//! and the volume are named after the claim's uid, so that asking twice makes one.
//!
//! A claim may start as a copy of a snapshot or of another claim of this kind. An image grows at
//! once; the claim has it when the node has grown the file system too.
//!
//! *Limits*: an image is deleted when nothing is made of it any more: its snapshots and the
//! volumes that started as copies of it go first.

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::kind;
use objects::storage::{PersistentVolume, PersistentVolumeClaim, StorageClass, VolumeAttachment};
use serde_json::{Map, Value, json};

use crate::action::{Action, ImageWork, Note, Steps, Target};
use crate::view::{Key, View};
use crate::wake::Touch;

/// The provisioner's name in classes.
pub const PROVISIONER: &str = "kubernetes.io/rbd";
/// Annotation of claims: who is to make the volume.
const ASKED: &str = "volume.kubernetes.io/storage-provisioner";
/// Annotation of claims: the node the scheduler chose for the first consumer.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of volumes: who made it.
const MADE_BY: &str = "pv.kubernetes.io/provisioned-by";
/// How soon a cluster that refused is asked again.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// Images are counted in this.
const STEP_BYTES: i64 = 1 << 20;
/// The condition of a claim whose file system is to grow, and what upstream says of it.
const RESIZE_PENDING: &str = "FileSystemResizePending";
const RESIZE_MESSAGE: &str =
    "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";

/// The claim of a volume.
#[must_use]
pub fn claim_of_volume(_view: &View, touch: &Touch) -> Vec<Key> {
    let claims = touch.typed::<PersistentVolume>().filter_map(|one| one.spec.claim_ref.as_ref());
    claims.map(|one| Key::new(&one.namespace, &one.name)).collect()
}

/// The volume of an attachment.
#[must_use]
pub fn volume_of_attachment(_view: &View, touch: &Touch) -> Vec<Key> {
    let all = touch.typed::<VolumeAttachment>();
    let names = all.filter_map(|one| one.spec.source.persistent_volume_name.as_deref());
    names.map(|name| Key::new("", name)).collect()
}

/// The claims of a snapshot's namespace that wait for a volume.
#[must_use]
pub fn claims_of_snapshot(view: &View, touch: &Touch) -> Vec<Key> {
    let here = view.claims.inside(&touch.key.namespace);
    let waits = here.filter(|claim| claim.spec.volume_name.is_empty());
    waits.map(|claim| Key::of(&claim.metadata)).collect()
}

/// Plans the image of one claim: to be made, or to grow.
#[must_use]
pub fn reconcile_claim(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(claim) = view.claims.get(&key.namespace, &key.name) else { return steps };
    let class = claim.spec.storage_class_name.as_ref();
    let class = class.and_then(|name| view.storage_classes.get("", name));
    let Some(class) = class.filter(|class| class.provisioner == PROVISIONER) else { return steps };
    if claim.metadata.is_deleting() {
        return steps;
    }
    let work = if claim.spec.volume_name.is_empty() {
        make(view, claim, class, &mut steps).map(|work| (Target::of(&**claim), work))
    } else {
        tell_growth(view, claim, now, &mut steps);
        grow(view, claim, class)
    };
    if let Some((target, work)) = work {
        steps.push(Action::Image { target, class: class.metadata.name.clone(), work });
        steps.look_again(now.saturating_add(AGAIN).unwrap_or(now));
    }
    steps
}

fn make(
    view: &View,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    steps: &mut Steps,
) -> Option<ImageWork> {
    let meta = &claim.metadata;
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    if meta.annotation(ASKED) != Some(PROVISIONER)
        || (waits && meta.annotation(SELECTED_NODE).is_none())
        || view.volumes.get("", &volume_name(claim)).is_some()
    {
        return None;
    }
    let made = origin(view, claim).and_then(|from| Ok((render(claim, class)?, from)));
    match made {
        Ok((volume, from)) => {
            let (volume, bytes) = (Box::new(volume), asked_bytes(claim));
            Some(ImageWork::Make { volume, bytes, from })
        }
        Err(Hindrance::NotYet) => None,
        Err(Hindrance::Wrong(why)) => {
            if claim.status.phase.is_empty() {
                let target = Target::of(claim);
                let note = Note::warning(&target, "ProvisioningFailed", why);
                steps.push(Action::patch_status(target, json!({"phase": "Pending"})).telling(note));
            }
            None
        }
    }
}

/// Why no image is made now.
enum Hindrance {
    /// What it is to be a copy of is not ready.
    NotYet,
    /// A sentence about class or claim.
    Wrong(String),
}

impl From<String> for Hindrance {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

/// What a claim is to be a copy of.
fn origin(view: &View, claim: &PersistentVolumeClaim) -> Result<Option<String>, Hindrance> {
    let source = claim.spec.data_source_ref.as_ref().or(claim.spec.data_source.as_ref());
    let Some(source) = source else { return Ok(None) };
    let text = |name: &str| source.get(name).and_then(Value::as_str).unwrap_or_default();
    let own = &claim.metadata.namespace;
    let wrong = |why: &str| Err(Hindrance::Wrong(why.to_owned()));
    if !["", own].contains(&text("namespace")) {
        return wrong("this provisioner copies within a namespace only");
    }
    let name = text("name");
    match (text("apiGroup"), text("kind")) {
        ("", "PersistentVolumeClaim") => {
            let from = view.claims.get(own, name).ok_or(Hindrance::NotYet)?;
            let volume = view.volumes.get("", &from.spec.volume_name).ok_or(Hindrance::NotYet)?;
            if from.spec.storage_class_name != claim.spec.storage_class_name {
                return wrong("the claim to be copied is of another class");
            }
            let has = volume.spec.capacity.get("storage").map_or(0, |one| one.value());
            if asked_bytes(claim) < has {
                return wrong("a copy cannot be smaller than what it is made of");
            }
            volume.rbd_image().map(Some).ok_or(Hindrance::NotYet)
        }
        ("snapshot.storage.k8s.io", "VolumeSnapshot") => {
            let from = view.snapshots.get(own, name).ok_or(Hindrance::NotYet)?;
            let content = from.status.bound_volume_snapshot_content_name.as_deref();
            let content = content.filter(|_| from.status.ready_to_use == Some(true));
            let content = view.snapshot_contents.get("", content.ok_or(Hindrance::NotYet)?);
            let content = content.ok_or(Hindrance::NotYet)?;
            if content.spec.driver != PROVISIONER {
                return wrong("the snapshot was made by another driver");
            }
            let has = content.status.restore_size.unwrap_or_default();
            let asked = asked_bytes(claim);
            if asked < has {
                return Err(Hindrance::Wrong(format!(
                    "requested volume size {asked} is less than the size {has} for the source \
                     snapshot {name}"
                )));
            }
            content.status.snapshot_handle.clone().map(Some).ok_or(Hindrance::NotYet)
        }
        _ => wrong("this provisioner copies claims and snapshots only"),
    }
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid)
}

/// What a claim asks for, in whole steps.
fn asked_bytes(claim: &PersistentVolumeClaim) -> i64 {
    let asked = claim.spec.resources.requests.get("storage").map_or(0, |one| one.value());
    let steps = asked.max(1).saturating_add(STEP_BYTES - 1) / STEP_BYTES;
    steps.saturating_mul(STEP_BYTES)
}

/// The volume of a claim.
///
/// # Errors
///
/// A sentence about the class or the claim.
fn render(claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Value, String> {
    let given = |name: &str| {
        class.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty())
    };
    let monitors: Vec<&str> =
        given("monitors").unwrap_or_default().split(',').map(str::trim).collect();
    if monitors.iter().all(|one| one.is_empty()) {
        return Err("missing Ceph monitors in the class's parameters".to_owned());
    }
    let mut rbd = Map::from_iter([
        ("monitors".to_owned(), json!(monitors)),
        ("pool".to_owned(), json!(given("pool").unwrap_or("rbd"))),
        ("image".to_owned(), json!(format!("kubernetes-dynamic-pvc-{}", claim.metadata.uid))),
        ("user".to_owned(), json!(given("userId").or(given("adminId")).unwrap_or("admin"))),
        ("fsType".to_owned(), json!(given("fsType").unwrap_or("ext4"))),
    ]);
    if let Some(name) = given("userSecretName") {
        let namespace = given("userSecretNamespace").unwrap_or(&claim.metadata.namespace);
        rbd.insert("secretRef".to_owned(), json!({"name": name, "namespace": namespace}));
    }
    let quantity = format!("{}Mi", asked_bytes(claim) / STEP_BYTES);
    let meta = &claim.metadata;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(claim), "annotations": {MADE_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": quantity},
            "accessModes": claim.spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "volumeMode": claim.spec.volume_mode.as_deref().unwrap_or("Filesystem"),
            "mountOptions": class.mount_options,
            "claimRef": {
                "apiVersion": "v1", "kind": kind::PERSISTENT_VOLUME_CLAIM.kind,
                "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
            },
            "rbd": rbd,
        },
    }))
}

fn grow(
    view: &View,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
) -> Option<(Target, ImageWork)> {
    let volume = view.volumes.get("", &claim.spec.volume_name).filter(|one| is_ours(one))?;
    let has = volume.spec.capacity.get("storage").map_or(0, |one| one.value());
    let wants = asked_bytes(claim);
    let may = class.allow_volume_expansion == Some(true) && claim.status.phase == "Bound";
    let due = may && wants > has;
    let claim = Target::of(claim);
    due.then(|| (Target::of(&**volume), ImageWork::Grow { claim, bytes: wants }))
}

/// Tells a claim that its volume has grown: at once what a raw device is, and otherwise that the
/// file system is to follow, which the node does and tells.
fn tell_growth(view: &View, claim: &PersistentVolumeClaim, now: Timestamp, steps: &mut Steps) {
    let Some(volume) = view.volumes.get("", &claim.spec.volume_name).filter(|one| is_ours(one))
    else {
        return;
    };
    let (Some(is), Some(told)) =
        (volume.spec.capacity.get("storage"), claim.status.capacity.get("storage"))
    else {
        return;
    };
    if is <= told || find_condition(&claim.status.conditions, RESIZE_PENDING).is_some() {
        return;
    }
    let target = Target::of(claim);
    let name = &volume.metadata.name;
    if volume.spec.volume_mode.as_deref() == Some("Block") {
        let message = format!("Resize volume {name} succeeded");
        let note = Note::normal(&target, "VolumeResizeSuccessful", message);
        let status = json!({"capacity": {"storage": is}});
        steps.push(Action::patch_status(target, status).telling(note));
        return;
    }
    let mut conditions = claim.status.conditions.clone();
    let pending = Condition::new(RESIZE_PENDING, true, "", RESIZE_MESSAGE);
    set_condition(&mut conditions, pending, now);
    let message = "Require file system resize of volume on node";
    let note = Note::normal(&target, "FileSystemResizeRequired", message);
    steps.push(Action::patch_status(target, json!({"conditions": conditions})).telling(note));
}

fn is_ours(volume: &PersistentVolume) -> bool {
    volume.spec.rbd.is_some() && volume.metadata.annotation(MADE_BY) == Some(PROVISIONER)
}

fn is_attached(view: &View, volume: &PersistentVolume) -> bool {
    let name = VolumeAttachment::name_of_image(&volume.metadata.name);
    view.attachments.get("", &name).is_some()
}

/// Plans the end of one volume.
#[must_use]
pub fn reconcile_volume(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(volume) = view.volumes.get("", &key.name).filter(|one| is_ours(one)) else {
        return steps;
    };
    let spec = &volume.spec;
    let unwanted = volume.status.phase == "Released"
        && spec.persistent_volume_reclaim_policy == "Delete"
        && !volume.metadata.is_deleting();
    if unwanted && !is_attached(view, volume) {
        let (target, class) = (Target::of(&**volume), spec.storage_class_name.clone());
        steps.push(Action::Image { target, class, work: ImageWork::Delete });
        steps.look_again(now.saturating_add(AGAIN).unwrap_or(now));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn site(parameters: Value) -> World {
        let mut world = World::default();
        world.add_node("a", "r1");
        world.add(
            &kind::STORAGE_CLASS,
            json!({"metadata": {"name": "fast"}, "provisioner": PROVISIONER,
                "allowVolumeExpansion": true, "parameters": parameters}),
        );
        world
    }

    fn ask(world: &mut World, size: &str) {
        world.add(
            &kind::PERSISTENT_VOLUME_CLAIM,
            json!({
                "metadata": {"name": "c", "namespace": "n"},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                    "resources": {"requests": {"storage": size}}},
            }),
        );
        world.settle(&[]);
    }

    fn monitors() -> Value {
        json!({"monitors": "10.0.0.1:6789, 10.0.0.2", "pool": "p", "userId": "k8s",
            "userSecretName": "s"})
    }

    #[test]
    fn a_claim_gets_an_image_that_grows_and_goes_with_it() {
        let mut world = site(monitors());
        ask(&mut world, "1500k");
        let volume = world.all::<PersistentVolume>().remove(0);
        let rbd = volume.spec.rbd.as_ref().unwrap();
        assert_eq!(rbd["monitors"], json!(["10.0.0.1:6789", "10.0.0.2"]));
        assert_eq!(rbd["secretRef"], json!({"name": "s", "namespace": "n"}));
        assert_eq!((&rbd["pool"], &rbd["user"]), (&json!("p"), &json!("k8s")));
        let claim = world.all::<PersistentVolumeClaim>().remove(0);
        assert_eq!(
            (&*claim.status.phase, &claim.spec.volume_name),
            ("Bound", &volume.metadata.name)
        );
        assert_eq!(world.images, ["make 2097152"]);

        let more = json!({"spec": {"resources": {"requests": {"storage": "4Mi"}}}});
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &more);
        world.settle(&[]);
        assert_eq!(world.images.last().unwrap(), "grow 4194304");
        let claim = world.all::<PersistentVolumeClaim>().remove(0);
        let pending = find_condition(&claim.status.conditions, RESIZE_PENDING).unwrap();
        assert_eq!((&*pending.status, &*pending.message), ("True", RESIZE_MESSAGE));
        assert_eq!(claim.status.capacity["storage"].value(), 2 << 20, "until a node has grown it");

        world.remove(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c");
        world.settle(&[]);
        assert_eq!(world.images.last().unwrap(), "delete");
        assert_eq!(world.all::<PersistentVolume>().len(), 0);
    }

    #[test]
    fn an_image_grows_while_a_node_has_it_and_stays_until_it_let_go() {
        let mut world = site(monitors());
        ask(&mut world, "1Mi");
        let spec = json!({"nodeName": "a", "containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
        world.add(&kind::POD, json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}));
        world.settle(&[]);
        let more = json!({"spec": {"resources": {"requests": {"storage": "4Mi"}}}});
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &more);
        world.settle(&[]);
        assert_eq!(world.images, ["make 1048576", "grow 4194304"]);
        let claim = world.all::<PersistentVolumeClaim>().remove(0);
        world.delete(&Target::of(&claim), None);
        world.settle(&[]);
        assert_eq!(world.images.len(), 2, "a pod uses it");
        world.remove(&kind::POD, "n", "p");
        world.settle(&[]);
        assert_eq!(world.images.last().unwrap(), "delete", "once nobody has it");
    }

    #[test]
    fn a_raw_device_is_the_claims_at_once() {
        let mut world = site(monitors());
        world.add(
            &kind::PERSISTENT_VOLUME_CLAIM,
            json!({
                "metadata": {"name": "c", "namespace": "n"},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                    "volumeMode": "Block", "resources": {"requests": {"storage": "1Mi"}}},
            }),
        );
        world.settle(&[]);
        let more = json!({"spec": {"resources": {"requests": {"storage": "4Mi"}}}});
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &more);
        world.settle(&[]);
        let claim = world.all::<PersistentVolumeClaim>().remove(0);
        assert_eq!(claim.status.capacity["storage"].value(), 4 << 20);
        assert!(claim.status.conditions.is_empty());
    }

    #[test]
    fn a_class_that_names_no_cluster_is_told() {
        let mut world = site(json!({}));
        ask(&mut world, "1Mi");
        assert_eq!(world.images, [""; 0]);
        let told = "ProvisioningFailed missing Ceph monitors in the class's parameters";
        assert!(world.told.iter().any(|line| line == told), "{:?}", world.told);
    }
}
