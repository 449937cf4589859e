//! Brings volumes of drivers to the nodes of their pods, and takes them away; Ceph images are in
//! [`image`].
//!
//! Spec: upstream's attach/detach controller for CSI volumes: a `VolumeAttachment` per volume and
//! node, under the name that node agents and attachers compute too. A volume that only one node
//! may have is not asked for at a second one while the first has it. Differs: a volume that a
//! node says it uses is not taken away after some minutes of waiting; only when the node says it
//! is free, is deleted, or is declared out of service. Two writers would tear it.

pub mod image;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use objects::kind;
use objects::node::Node;
use objects::pod::Pod;
use objects::storage::{PersistentVolume, PersistentVolumeClaim, VolumeAttachment};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::action::{Action, Steps, Target};
use crate::lifecycle::OUT_OF_SERVICE;
use crate::view::{Key, View};
use crate::volume_binder::claim_names;
use crate::wake::Touch;

/// Every node, and those that are gone but still have volumes.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    let had = view.attachments.iter().map(|one| Key::new("", &one.spec.node_name));
    let mut keys: Vec<Key> = view.nodes.keys().into_iter().chain(had).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// The nodes of the pods that name a claim.
#[must_use]
pub fn nodes_of_claim(view: &View, touch: &Touch) -> Vec<Key> {
    let bound = touch.typed::<PersistentVolumeClaim>().map(|one| &one.spec.volume_name);
    let names: BTreeSet<&String> = bound.collect();
    if names.len() < 2 && touch.before.is_some() && touch.after.is_some() {
        return Vec::new();
    }
    users(view, &touch.key)
}

/// The nodes of the pods that name a volume's claim.
#[must_use]
pub fn nodes_of_volume(view: &View, touch: &Touch) -> Vec<Key> {
    let claims = touch.typed::<PersistentVolume>().filter_map(|one| one.spec.claim_ref.as_ref());
    claims.flat_map(|one| users(view, &Key::new(&one.namespace, &one.name))).collect()
}

/// The node of an attachment; when it went, also those that wait for its volume.
#[must_use]
pub fn nodes_of_attachment(view: &View, touch: &Touch) -> Vec<Key> {
    let mut keys = Vec::new();
    for one in touch.typed::<VolumeAttachment>() {
        keys.push(Key::new("", &one.spec.node_name));
        let name = one.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let claim = view.volumes.get("", name).and_then(|one| one.spec.claim_ref.as_ref());
        if let Some(claim) = claim.filter(|_| touch.after.is_none()) {
            keys.extend(users(view, &Key::new(&claim.namespace, &claim.name)));
        }
    }
    keys
}

fn users(view: &View, claim: &Key) -> Vec<Key> {
    let pods = view.pods.inside(&claim.namespace);
    let pods = pods.filter(|pod| pod.is_bound() && claim_names(pod).contains(&claim.name));
    pods.map(|pod| Key::new("", &pod.spec.node_name)).collect()
}

/// A volume as its driver knows it.
struct Volume<'a> {
    object: &'a Arc<PersistentVolume>,
    driver: &'a str,
    handle: &'a str,
}

/// Plans the attachments of one node.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = image::reconcile(view, key, now);
    let node = view.nodes.get("", &key.name);
    let mut wanted: BTreeMap<String, Volume<'_>> = BTreeMap::new();
    for pod in view.pods_on(&key.name).filter(|pod| node.is_some() && !pod.is_finished()) {
        for volume in volumes(view, pod) {
            wanted.insert(attachment_name(&volume, &key.name), volume);
        }
    }
    for had in view.attachments.iter().filter(|one| one.spec.node_name == key.name) {
        let is_wanted = wanted.remove(&had.metadata.name).is_some();
        if !is_wanted && !had.metadata.is_deleting() && is_ours(had) && is_free(view, node, had) {
            steps.push(Action::delete(Target::of(&**had)));
        }
    }
    for (name, volume) in wanted {
        if !is_elsewhere(view, &volume, &key.name) {
            let object = json!({
                "apiVersion": "storage.k8s.io/v1",
                "kind": "VolumeAttachment",
                "metadata": {"name": name},
                "spec": {
                    "attacher": volume.driver,
                    "nodeName": key.name,
                    "source": {"persistentVolumeName": volume.object.metadata.name},
                },
            });
            steps.push(Action::create(&kind::VOLUME_ATTACHMENT, "", object));
        }
    }
    told::tell(view, &key.name, &mut steps);
    steps
}

/// The volumes of a pod that must be brought to its node.
fn volumes<'a>(view: &'a View, pod: &Pod) -> Vec<Volume<'a>> {
    let find = |name: String| {
        let claim = view.claims.get(&pod.metadata.namespace, &name)?;
        let object = view.volumes.get("", &claim.spec.volume_name)?;
        let driver = object.spec.csi.as_ref()?.get("driver")?.as_str()?;
        let handle = object.spec.csi.as_ref()?.get("volumeHandle")?.as_str()?;
        let known = view.csi_drivers.get("", driver);
        // A driver that says nothing wants to attach.
        let attaches = known.is_none_or(|one| one.spec.attach_required != Some(false));
        attaches.then_some(Volume { object, driver, handle })
    };
    claim_names(pod).into_iter().filter_map(find).collect()
}

/// The name that attachers and node agents compute as well.
fn attachment_name(volume: &Volume<'_>, node: &str) -> String {
    let text = format!("{}{}{node}", volume.handle, volume.driver);
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

fn is_ours(one: &VolumeAttachment) -> bool {
    let name = one.metadata.name.strip_prefix("csi-");
    name.is_some_and(|hex| hex.len() == 64) && one.spec.source.persistent_volume_name.is_some()
}

/// Has the node let go of a volume, or can it not use it any more?
fn is_free(view: &View, node: Option<&Arc<Node>>, one: &VolumeAttachment) -> bool {
    let Some(node) = node else { return true };
    if node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
        return true;
    }
    let name = one.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let volume = view.volumes.get("", name);
    let handle = volume.and_then(|one| one.spec.csi.as_ref()?.get("volumeHandle")?.as_str());
    let Some(handle) = handle else { return true };
    let unique = format!("kubernetes.io/csi/{}^{handle}", one.spec.attacher);
    let used = node.status.extra.get("volumesInUse").and_then(Value::as_array);
    !used.into_iter().flatten().any(|one| one.as_str() == Some(&unique))
}

/// May several nodes have a volume?
fn is_shared(volume: &PersistentVolume) -> bool {
    let shared = |mode: &String| mode == "ReadWriteMany" || mode == "ReadOnlyMany";
    volume.spec.access_modes.iter().any(shared)
}

/// Is a volume for one node at another?
fn is_elsewhere(view: &View, volume: &Volume<'_>, node: &str) -> bool {
    if is_shared(volume.object) {
        return false;
    }
    let name = Some(&volume.object.metadata.name);
    view.attachments.iter().any(|one| {
        one.spec.source.persistent_volume_name.as_ref() == name && one.spec.node_name != node
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

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
                    "csi": {"driver": "disks", "volumeHandle": "h"},
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

    fn run(world: &mut World, name: &str, node: &str) {
        let spec = json!({
            "nodeName": node, "containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
        });
        let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
        world.add(&kind::POD, object);
        world.settle(&[]);
    }

    fn nodes(world: &World) -> Vec<String> {
        world.all::<VolumeAttachment>().iter().map(|one| one.spec.node_name.clone()).collect()
    }

    #[test]
    fn a_volume_for_one_node_moves_only_when_the_first_let_go() {
        let mut world = site();
        run(&mut world, "one", "a");
        assert_eq!(nodes(&world), ["a"]);
        run(&mut world, "two", "b");
        assert_eq!(nodes(&world), ["a"], "the first still has it");
        let told = "FailedAttachVolume Multi-Attach error for volume \"v\" Volume is already used by \
                    pod(s) one";
        assert!(world.told.contains(&told.to_owned()), "{:?}", world.told);
        let used = json!({"status": {"volumesInUse": ["kubernetes.io/csi/disks^h"]}});
        world.change(&kind::NODE, "", "a", &used);
        world.remove(&kind::POD, "n", "one");
        world.settle(&[]);
        assert_eq!(nodes(&world), ["a"], "its node says it is in use");
        world.change(&kind::NODE, "", "a", &json!({"status": {"volumesInUse": null}}));
        world.settle(&[]);
        assert_eq!(nodes(&world), ["b"]);
    }

    #[test]
    fn a_node_out_of_service_loses_its_volumes() {
        let mut world = site();
        run(&mut world, "one", "a");
        let used = json!({"status": {"volumesInUse": ["kubernetes.io/csi/disks^h"]}});
        world.change(&kind::NODE, "", "a", &used);
        world.remove(&kind::POD, "n", "one");
        world.settle(&[]);
        assert_eq!(nodes(&world), ["a"]);
        let taint = json!([{"key": OUT_OF_SERVICE, "value": "off", "effect": "NoExecute"}]);
        world.change(&kind::NODE, "", "a", &json!({"spec": {"taints": taint}}));
        world.settle(&[]);
        assert_eq!(nodes(&world), [""; 0]);
    }

    #[test]
    fn names_are_those_that_attachers_compute() {
        let volume = PersistentVolume::blank();
        let object = &Arc::new(volume);
        let name = attachment_name(&Volume { object, driver: "d", handle: "h" }, "n");
        // sha256("hdn")
        let digest = Sha256::digest(b"hdn");
        assert!(name.starts_with(&format!("csi-{:02x}", digest[0])));
        assert_eq!(name.len(), 68);
    }

    #[test]
    fn drivers_that_do_not_attach_are_left_alone() {
        let mut world = site();
        world.add(
            &kind::CSI_DRIVER,
            json!({"metadata": {"name": "disks"}, "spec": {"attachRequired": false}}),
        );
        run(&mut world, "one", "a");
        assert_eq!(nodes(&world), [""; 0]);
    }
}
