//! Makes, grows and deletes Ceph images for claims of classes of the old in-tree kind.
//!
//! Spec: upstream's in-tree provisioner `kubernetes.io/rbd` and its class parameters: `monitors`,
//! `pool`, `adminId`, `adminSecretName`, `adminSecretNamespace`, `userId`, `userSecretName`,
//! `userSecretNamespace`, `fsType`. Differs: images have the features `layering` and
//! `exclusive-lock` whatever the class says, because one writer is what the lock gives; the image
//! and the volume are named after the claim's uid, so that asking twice makes one.
//!
//! *Limits*: an image grows while no node has it, for its one writer holds the lock; the file
//! system follows at the next mount. No data sources.

use jiff::{SignedDuration, Timestamp};
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

/// The claim of an attachment's volume.
#[must_use]
pub fn claim_of_attachment(view: &View, touch: &Touch) -> Vec<Key> {
    let volumes = volume_of_attachment(view, touch).into_iter();
    let find = |key: Key| view.volumes.get("", &key.name)?.spec.claim_ref.clone();
    volumes.filter_map(find).map(|one| Key::new(&one.namespace, &one.name)).collect()
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
    let made = render(claim, class).map_err(|why| {
        if claim.status.phase.is_empty() {
            let target = Target::of(claim);
            let note = Note::warning(&target, "ProvisioningFailed", why);
            steps.push(Action::patch_status(target, json!({"phase": "Pending"})).telling(note));
        }
    });
    Some(ImageWork::Make { volume: Box::new(made.ok()?), bytes: asked_bytes(claim) })
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
    if claim.spec.data_source.is_some() || claim.spec.data_source_ref.is_some() {
        return Err("this provisioner makes empty volumes only".to_owned());
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
    let due = may && wants > has && !is_attached(view, volume);
    let claim = Target::of(claim);
    due.then(|| (Target::of(&**volume), ImageWork::Grow { claim, bytes: wants }))
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

        world.remove(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c");
        world.settle(&[]);
        assert_eq!(world.images.last().unwrap(), "delete");
        assert_eq!(world.all::<PersistentVolume>().len(), 0);
    }

    #[test]
    fn an_image_that_a_node_has_does_not_grow_and_stays() {
        let mut world = site(monitors());
        ask(&mut world, "1Mi");
        let spec = json!({"nodeName": "a", "containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
        world.add(&kind::POD, json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}));
        world.settle(&[]);
        let more = json!({"spec": {"resources": {"requests": {"storage": "4Mi"}}}});
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &more);
        world.settle(&[]);
        assert_eq!(world.images, ["make 1048576"]);
        world.remove(&kind::POD, "n", "p");
        world.settle(&[]);
        assert_eq!(world.images.last().unwrap(), "grow 4194304", "once nobody has it");
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
