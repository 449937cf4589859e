//! Which claim has which volume, and what must not be deleted while it is in use.
//!
//! Spec: upstream's volume binder and protection controllers. A claim takes the smallest free
//! volume of its class that fits; classes that wait for the first consumer are bound where
//! the scheduler says (`volume.kubernetes.io/selected-node`). Making volumes is the drivers'
//! business: a claim whose class has a provisioner is annotated for it.

use std::sync::Arc;

use jiff::Timestamp;
use objects::kind;
use objects::meta::ObjectReference;
use objects::pod::Pod;
use objects::storage::{PersistentVolume, PersistentVolumeClaim, StorageClass};
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::family::owner_reference;
use crate::placement;
use crate::view::{Key, View};
use crate::wake::Touch;

/// Annotation: the binder chose the volume of a claim.
const BOUND_BY_US: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotation: claim and volume know each other.
const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation: who is to make the volume.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Annotation: the node the scheduler chose for the first consumer.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Finalizer of claims that pods use.
const CLAIM_IN_USE: &str = "kubernetes.io/pvc-protection";
/// Finalizer of volumes that claims have.
const VOLUME_IN_USE: &str = "kubernetes.io/pv-protection";
/// The provisioner of classes whose volumes people make.
const NONE: &str = "kubernetes.io/no-provisioner";

/// The claims that pods name, or named.
#[must_use]
pub fn claims_of_pod(_view: &View, touch: &Touch) -> Vec<Key> {
    let pods = touch.typed::<Pod>();
    let names = pods.flat_map(|pod| claim_names(pod).into_iter());
    names.map(|name| Key::new(&touch.key.namespace, &name)).collect()
}

/// The claims of a pod, generic ephemeral ones included.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    let of = |volume: &objects::pod::Volume| {
        let named = volume.persistent_volume_claim.as_ref().and_then(|one| one.get("claimName"));
        match named.and_then(Value::as_str) {
            Some(name) => Some(name.to_owned()),
            None => ephemeral(volume).map(|_| ephemeral_name(pod, volume)),
        }
    };
    pod.spec.volumes.iter().filter_map(of).collect()
}

fn ephemeral(volume: &objects::pod::Volume) -> Option<&Value> {
    volume.extra.get("ephemeral")?.get("volumeClaimTemplate")
}

fn ephemeral_name(pod: &Pod, volume: &objects::pod::Volume) -> String {
    format!("{}-{}", pod.metadata.name, volume.name)
}

/// Every claim without a volume, and the one that has this: a volume came, changed or went.
#[must_use]
pub fn claims_of_volume(view: &View, touch: &Touch) -> Vec<Key> {
    let open = view.claims.iter().filter(|claim| claim.spec.volume_name.is_empty());
    let mut keys: Vec<Key> = open.map(|claim| Key::of(&claim.metadata)).collect();
    for volume in touch.typed::<PersistentVolume>() {
        if let Some(claim) = &volume.spec.claim_ref {
            keys.push(Key::new(&claim.namespace, &claim.name));
        }
    }
    keys
}

/// Plans the steps for one claim.
#[must_use]
pub fn reconcile_claim(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(claim) = view.claims.get(&key.namespace, &key.name) else { return steps };
    protect_claim(view, claim, &mut steps);
    if claim.metadata.is_deleting() {
        return steps;
    }
    if claim.spec.volume_name.is_empty() {
        find_volume(view, claim, &mut steps);
    } else {
        keep_bound(view, claim, &mut steps);
    }
    steps
}

/// Writes or removes a finalizer.
fn finalize(target: Target, finalizers: &[String], name: &str, wanted: bool, steps: &mut Steps) {
    let has = finalizers.iter().any(|one| one == name);
    if has == wanted {
        return;
    }
    let mut all: Vec<&str> = finalizers.iter().map(String::as_str).collect();
    if wanted {
        all.push(name);
    } else {
        all.retain(|one| *one != name);
    }
    steps.push(Action::patch(target, json!({"metadata": {"finalizers": all}})));
}

fn protect_claim(view: &View, claim: &Arc<PersistentVolumeClaim>, steps: &mut Steps) {
    let meta = &claim.metadata;
    // One without a node does not use it yet, and will not: a claim that goes keeps pods waiting.
    let uses = |pod: &Arc<Pod>| {
        pod.is_bound() && !pod.is_finished() && claim_names(pod).contains(&meta.name)
    };
    let wanted = !meta.is_deleting() || view.pods.inside(&meta.namespace).any(uses);
    if meta.is_deleting() && !meta.finalizers.iter().any(|one| one == CLAIM_IN_USE) {
        return;
    }
    finalize(Target::of(&**claim), &meta.finalizers, CLAIM_IN_USE, wanted, steps);
}

fn class<'a>(view: &'a View, name: Option<&str>) -> Option<&'a Arc<StorageClass>> {
    name.filter(|name| !name.is_empty()).and_then(|name| view.storage_classes.get("", name))
}

fn waits_for_consumer(class: Option<&Arc<StorageClass>>) -> bool {
    class.is_some_and(|one| one.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// Does a volume satisfy a claim?
fn fits(view: &View, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let spec = &claim.spec;
    let storage =
        |list: &objects::pod::ResourceList| list.get("storage").map_or(0, |one| one.value());
    let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    let selector = spec.selector.as_ref();
    let node = claim.metadata.annotation(SELECTED_NODE).and_then(|name| view.nodes.get("", name));
    let required = volume.spec.node_affinity.as_ref().and_then(|one| one.required.as_ref());
    let near = match (required, node) {
        (Some(required), Some(node)) => {
            required.node_selector_terms.iter().any(|term| placement::term_matches(term, node))
        }
        _ => true,
    };
    !volume.metadata.is_deleting()
        && volume.spec.storage_class_name == spec.storage_class_name.clone().unwrap_or_default()
        && spec.access_modes.iter().all(|one| volume.spec.access_modes.contains(one))
        && storage(&volume.spec.capacity) >= storage(&spec.resources.requests)
        && mode(volume.spec.volume_mode.as_ref()) == mode(spec.volume_mode.as_ref())
        && selector.is_none_or(|one| one.matches(&volume.metadata.labels))
        && near
}

/// Is a volume promised to this claim: by name alone, or by uid too?
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.spec.claim_ref.as_ref().is_some_and(|one| {
        one.namespace == claim.metadata.namespace
            && one.name == claim.metadata.name
            && (one.uid.is_empty() || one.uid == claim.metadata.uid)
    })
}

/// The class for claims that name none: of several the newest.
fn default_class(view: &View) -> Option<&Arc<StorageClass>> {
    let marked = |one: &&Arc<StorageClass>| {
        let marks = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        marks.iter().any(|mark| one.metadata.annotation(mark) == Some("true"))
    };
    let age = |one: &&Arc<StorageClass>| {
        (one.metadata.creation_timestamp, std::cmp::Reverse(one.metadata.name.clone()))
    };
    view.storage_classes.iter().filter(marked).max_by_key(age)
}

fn find_volume(view: &View, claim: &Arc<PersistentVolumeClaim>, steps: &mut Steps) {
    let old_way = claim.metadata.annotation("volume.beta.kubernetes.io/storage-class").is_some();
    if claim.spec.storage_class_name.is_none()
        && !old_way
        && let Some(class) = default_class(view)
    {
        // There was no default when the claim came.
        let body = json!({"spec": {"storageClassName": class.metadata.name}});
        steps.push(Action::patch(Target::of(&**claim), body));
        return;
    }
    let class = class(view, claim.spec.storage_class_name.as_deref());
    let promised = view.volumes.iter().find(|volume| is_for(volume, claim));
    let waits = waits_for_consumer(class) && claim.metadata.annotation(SELECTED_NODE).is_none();
    if promised.is_none() && waits {
        tell_pending(
            claim,
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
            steps,
        );
        return;
    }
    let free = view
        .volumes
        .iter()
        .filter(|volume| volume.spec.claim_ref.is_none() && fits(view, claim, volume));
    let size = |volume: &&Arc<PersistentVolume>| {
        let capacity = volume.spec.capacity.get("storage").map_or(0, |one| one.value());
        (capacity, volume.metadata.name.clone())
    };
    let Some(volume) = promised.or_else(|| free.min_by_key(size)) else {
        let provisioner = class.map(|one| one.provisioner.as_str()).filter(|one| *one != NONE);
        if let Some(provisioner) = provisioner {
            wait_for_driver(claim, provisioner, steps);
        } else {
            tell_unbound(claim, class, steps);
        }
        return;
    };
    // The volume first: that decides between two claims.
    if volume.spec.claim_ref.as_ref().is_none_or(|one| one.uid.is_empty()) {
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.metadata.namespace, "name": claim.metadata.name,
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
        });
        let body = json!({
            "metadata": {"annotations": {BOUND_BY_US: "yes"}},
            "spec": {"claimRef": reference},
        });
        steps.push(Action::patch(Target::of(&**volume), body));
        return;
    }
    let body = json!({
        "metadata": {"annotations": {COMPLETED: "yes", BOUND_BY_US: "yes"}},
        "spec": {"volumeName": volume.metadata.name},
    });
    steps.push(Action::patch(Target::of(&**claim), body));
}

/// Names the driver that is to make a claim's volume, and says that it is waited for.
fn wait_for_driver(claim: &Arc<PersistentVolumeClaim>, driver: &str, steps: &mut Steps) {
    let target = Target::of(&**claim);
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{driver}' or \
         manually by the system administrator. If volume creation is delayed, please verify that \
         the provisioner is running and correctly registered."
    );
    steps.tell(Note::normal(&target, "ExternalProvisioning", message));
    if claim.metadata.annotation(PROVISIONER) != Some(driver) {
        let body = json!({"metadata": {"annotations": {
            PROVISIONER: driver,
            "volume.beta.kubernetes.io/storage-provisioner": driver,
        }}});
        steps.push(Action::patch(target, body));
    }
}

/// Says that nobody makes a volume for a claim, and why.
fn tell_unbound(
    claim: &Arc<PersistentVolumeClaim>,
    class: Option<&Arc<StorageClass>>,
    steps: &mut Steps,
) {
    match claim.spec.storage_class_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if class.is_none() => {
            let message = format!("storageclass.storage.k8s.io \"{name}\" not found");
            tell_pending(claim, "ProvisioningFailed", &message, steps);
        }
        _ => {
            let message =
                "no persistent volumes available for this claim and no storage class is set";
            tell_pending(claim, "FailedBinding", message, steps);
        }
    }
}

/// Says why a claim waits.
fn tell_pending(
    claim: &Arc<PersistentVolumeClaim>,
    reason: &'static str,
    message: &str,
    steps: &mut Steps,
) {
    let target = Target::of(&**claim);
    steps.tell(if reason == "ProvisioningFailed" {
        Note::warning(&target, reason, message)
    } else {
        Note::normal(&target, reason, message)
    });
    if claim.status.phase != "Pending" {
        steps.push(Action::patch_status(target, json!({"phase": "Pending"})));
    }
}

fn keep_bound(view: &View, claim: &Arc<PersistentVolumeClaim>, steps: &mut Steps) {
    let target = Target::of(&**claim);
    let Some(volume) = view.volumes.get("", &claim.spec.volume_name) else {
        if claim.metadata.annotation(COMPLETED).is_some() && claim.status.phase != "Lost" {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            let note = Note::warning(&target, "ClaimLost", message);
            steps.push(Action::patch_status(target, json!({"phase": "Lost"})).telling(note));
        }
        return;
    };
    if volume.spec.claim_ref.is_none() {
        // A person named the volume; it takes the claim.
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.metadata.namespace, "name": claim.metadata.name,
            "uid": claim.metadata.uid,
        });
        steps.push(Action::patch(Target::of(&**volume), json!({"spec": {"claimRef": reference}})));
        return;
    }
    if !is_for(volume, claim) {
        tell_taken(claim, target, steps);
        return;
    }
    // A volume that has grown is told by those who grew what is on it.
    let same = claim.status.phase == "Bound"
        && claim.status.access_modes == volume.spec.access_modes
        && !claim.status.capacity.is_empty();
    if !same {
        let status = json!({
            "phase": "Bound",
            "accessModes": volume.spec.access_modes,
            "capacity": volume.spec.capacity,
        });
        steps.push(Action::patch_status(target, status));
    }
}

/// Says that the volume a claim names is another's.
fn tell_taken(claim: &Arc<PersistentVolumeClaim>, target: Target, steps: &mut Steps) {
    if claim.metadata.annotation(COMPLETED).is_none() {
        let name = &claim.spec.volume_name;
        let message = format!("volume \"{name}\" already bound to a different claim.");
        steps.tell(Note::warning(&target, "FailedBinding", message));
        return;
    }
    let message = "Two claims are bound to the same volume, this one is bound incorrectly";
    steps.tell(Note::warning(&target, "ClaimMisbound", message));
    if claim.status.phase != "Lost" {
        steps.push(Action::patch_status(target, json!({"phase": "Lost"})));
    }
}

/// Plans the steps for one volume.
#[must_use]
pub fn reconcile_volume(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(volume) = view.volumes.get("", &key.name) else { return steps };
    let meta = &volume.metadata;
    let claim = volume.spec.claim_ref.as_ref();
    let found = claim.and_then(|one| holder(view, one));
    let used = volume.status.phase == "Bound" || found.is_some();
    if !meta.is_deleting() || meta.finalizers.iter().any(|one| one == VOLUME_IN_USE) {
        let wanted = !meta.is_deleting() || used;
        finalize(Target::of(&**volume), &meta.finalizers, VOLUME_IN_USE, wanted, &mut steps);
    }
    let phase = match (claim, &found) {
        (None, _) => "Available",
        (Some(one), None) if one.uid.is_empty() => "Available",
        (Some(_), None) => "Released",
        (Some(_), Some(found)) if found.spec.volume_name == meta.name => "Bound",
        // The claim has not taken it yet.
        (Some(_), Some(_)) if volume.status.phase.is_empty() => "Available",
        (Some(_), Some(_)) => return steps,
    };
    // Failed stands until a person acts.
    if volume.status.phase != phase && volume.status.phase != "Failed" {
        steps.push(Action::patch_status(Target::of(&**volume), json!({ "phase": phase })));
    } else if phase == "Released"
        && volume.spec.persistent_volume_reclaim_policy == "Delete"
        && volume.spec.csi.is_none()
        && volume.spec.rbd.is_none()
        && !meta.is_deleting()
        && meta.annotation("pv.kubernetes.io/provisioned-by").is_none()
    {
        let message = "no driver deletes volumes of this kind";
        let status = json!({"phase": "Failed", "message": message});
        let target = Target::of(&**volume);
        let note = Note::warning(&target, "VolumeFailedDelete", message);
        steps.push(Action::patch_status(target, status).telling(note));
    }
    steps
}

/// The claim a volume is promised to, if it is still the same one.
fn holder<'a>(view: &'a View, one: &ObjectReference) -> Option<&'a Arc<PersistentVolumeClaim>> {
    let claim = view.claims.get(&one.namespace, &one.name)?;
    (one.uid.is_empty() || one.uid == claim.metadata.uid).then_some(claim)
}

/// The volume a claim names, and those promised to it.
#[must_use]
pub fn volumes_of_claim(view: &View, touch: &Touch) -> Vec<Key> {
    let named = touch.typed::<PersistentVolumeClaim>().map(|one| one.spec.volume_name.clone());
    let mut keys: Vec<Key> =
        named.filter(|name| !name.is_empty()).map(|name| Key::new("", &name)).collect();
    if touch.came_or_went() {
        let promised = view.volumes.iter().filter(|volume| {
            volume.spec.claim_ref.as_ref().is_some_and(|one| {
                one.namespace == touch.key.namespace && one.name == touch.key.name
            })
        });
        keys.extend(promised.map(|volume| Key::of(&volume.metadata)));
    }
    keys
}

/// Plans the claims of one pod's generic ephemeral volumes.
#[must_use]
pub fn reconcile_ephemeral(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(pod) = view.pods.get(&key.namespace, &key.name) else { return steps };
    if pod.metadata.is_deleting() || pod.is_finished() {
        return steps;
    }
    for volume in &pod.spec.volumes {
        let Some(template) = ephemeral(volume) else { continue };
        let name = ephemeral_name(pod, volume);
        if let Some(had) = view.claims.get(&key.namespace, &name) {
            if !had.metadata.is_controlled_by(&pod.metadata.uid) {
                let (ns, own) = (&key.namespace, &key.name);
                let message = format!(
                    "ephemeral volume {}: PVC {ns}/{name} was not created for pod {ns}/{own} (pod \
                     is not owner)",
                    volume.name
                );
                steps.tell(Note::warning(&Target::of(&**pod), "FailedBinding", message));
            }
            continue;
        }
        let empty = json!({});
        let object = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": name, "namespace": key.namespace,
                "labels": template.pointer("/metadata/labels").unwrap_or(&empty),
                "annotations": template.pointer("/metadata/annotations").unwrap_or(&empty),
                "ownerReferences": [owner_reference(&pod.metadata, &kind::POD)],
            },
            "spec": template.get("spec"),
        });
        steps.push(Action::create(&kind::PERSISTENT_VOLUME_CLAIM, &key.namespace, object));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn volume(name: &str, size: &str, patch: Value) -> Value {
        let mut object = json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
            },
        });
        crate::world::merge(&mut object["spec"], &patch);
        object
    }

    fn claim(name: &str, size: &str, patch: Value) -> Value {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "resources": {"requests": {"storage": size}},
            },
        });
        crate::world::merge(&mut object["spec"], &patch);
        object
    }

    fn state(world: &World) -> (Vec<String>, Vec<String>) {
        let claims = world.all::<PersistentVolumeClaim>();
        let volumes = world.all::<PersistentVolume>();
        (
            claims
                .iter()
                .map(|one| {
                    format!("{} {} {}", one.metadata.name, one.status.phase, one.spec.volume_name)
                })
                .collect(),
            volumes
                .iter()
                .map(|one| format!("{} {}", one.metadata.name, one.status.phase))
                .collect(),
        )
    }

    #[test]
    fn the_smallest_that_fits_is_taken_and_kept_while_in_use() {
        let mut world = World::default();
        world.add_node("a", "r1");
        world.add(&kind::PERSISTENT_VOLUME, volume("big", "9Gi", json!({})));
        world.add(&kind::PERSISTENT_VOLUME, volume("fit", "3Gi", json!({})));
        world.add(&kind::PERSISTENT_VOLUME, volume("small", "1Gi", json!({})));
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim("c", "2Gi", json!({})));
        world.settle(&[]);
        assert_eq!(state(&world).0, ["c Bound fit"]);
        assert_eq!(state(&world).1, ["big Available", "fit Bound", "small Available"]);
        let gone = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        world.add(
            &kind::POD,
            json!({
                "metadata": {"name": "p", "namespace": "n"},
                "spec": {
                    "nodeName": "a",
                    "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
                },
            }),
        );
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &gone);
        world.change(&kind::PERSISTENT_VOLUME, "", "fit", &gone);
        world.settle(&[]);
        assert_eq!(state(&world).0.len(), 1, "a pod uses it");
        world.remove(&kind::POD, "n", "p");
        world.settle(&[]);
        assert_eq!(state(&world).0, [""; 0]);
    }

    #[test]
    fn a_class_that_waits_is_bound_near_the_first_consumer() {
        let mut world = World::default();
        world.add_node("a", "r1");
        world.add_node("b", "r2");
        world.add(
            &kind::STORAGE_CLASS,
            json!({
                "metadata": {"name": "local"}, "provisioner": NONE,
                "volumeBindingMode": "WaitForFirstConsumer",
            }),
        );
        for (name, zone) in [("one", "r1"), ("two", "r2")] {
            let term = json!({"matchExpressions": [
                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]},
            ]});
            let near = json!({"required": {"nodeSelectorTerms": [term]}});
            let patch = json!({"storageClassName": "local", "nodeAffinity": near});
            world.add(&kind::PERSISTENT_VOLUME, volume(name, "3Gi", patch));
        }
        let local = json!({"storageClassName": "local"});
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim("c", "2Gi", local));
        world.settle(&[]);
        assert_eq!(state(&world).0, ["c Pending "]);
        let told = "WaitForFirstConsumer waiting for first consumer to be created before binding";
        assert!(world.told.contains(&told.to_owned()));
        let chosen = json!({"metadata": {"annotations": {SELECTED_NODE: "b"}}});
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &chosen);
        world.settle(&[]);
        assert_eq!(state(&world).0, ["c Bound two"]);
    }

    #[test]
    fn a_claim_from_before_there_was_a_default_class_gets_it() {
        let mut world = World::default();
        let none = json!({"storageClassName": null});
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim("old", "2Gi", none));
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim("bare", "2Gi", json!({})));
        world.settle(&[]);
        let class = |name: &str, default: &str| {
            let mark = json!({"storageclass.kubernetes.io/is-default-class": default});
            json!({"metadata": {"name": name, "annotations": mark}, "provisioner": "disks"})
        };
        world.add(&kind::STORAGE_CLASS, class("other", "false"));
        world.add(&kind::STORAGE_CLASS, class("usual", "true"));
        world.settle(&[]);
        let classes: Vec<Option<String>> = world
            .all::<PersistentVolumeClaim>()
            .into_iter()
            .map(|one| one.spec.storage_class_name)
            .collect();
        assert_eq!(classes, [Some(String::new()), Some("usual".to_owned())]);
    }

    #[test]
    fn a_released_volume_is_not_given_to_the_next() {
        let mut world = World::default();
        world.add(&kind::PERSISTENT_VOLUME, volume("v", "3Gi", json!({})));
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim("c", "2Gi", json!({})));
        world.settle(&[]);
        world.remove(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c");
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, claim("c", "2Gi", json!({})));
        world.settle(&[]);
        assert_eq!(state(&world), (vec!["c Pending ".to_owned()], vec!["v Released".to_owned()]));
    }

    #[test]
    fn a_claim_and_a_pod_without_a_node_that_both_go_do_not_wait_for_each_other() {
        let mut world = World::default();
        let going = |finalizer: &str| {
            json!({"metadata": {
                "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer],
            }})
        };
        world.add(
            &kind::POD,
            json!({
                "metadata": {"name": "p", "namespace": "n"},
                "spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
            }),
        );
        let mut made = claim("c", "2Gi", json!({}));
        made["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-1",
            "blockOwnerDeletion": true,
        }]);
        world.add(&kind::PERSISTENT_VOLUME_CLAIM, made);
        world.change(&kind::POD, "n", "p", &going("foregroundDeletion"));
        world.change(&kind::PERSISTENT_VOLUME_CLAIM, "n", "c", &going(CLAIM_IN_USE));
        world.settle(&[]);
        assert_eq!(state(&world).0, [""; 0]);
        assert!(world.all::<Pod>().is_empty());
    }

    #[test]
    fn ephemeral_volumes_get_claims_of_their_pod() {
        let mut world = World::default();
        world.add(
            &kind::POD,
            json!({
                "metadata": {"name": "p", "namespace": "n"},
                "spec": {"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]},
                }}}]},
            }),
        );
        world.settle(&[]);
        let made = world.all::<PersistentVolumeClaim>()[0].clone();
        assert_eq!(made.metadata.name, "p-scratch");
        assert!(!world.told.iter().any(|line| line.starts_with("FailedBinding ephemeral")));
        assert_eq!(made.metadata.owner_references[0].kind, "Pod");
    }
}
