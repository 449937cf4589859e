//! What people are told of volumes on their way to a pod that waits for them.
//!
//! Spec: the events of upstream's attach/detach controller: `SuccessfulAttachVolume`, and
//! `FailedAttachVolume` when a volume for one node is still at another, with the pods that hold it
//! there as far as they are of the same namespace.

use std::sync::Arc;

use objects::pod::Pod;
use objects::storage::{PersistentVolume, VolumeAttachment};

use super::is_shared;
use crate::action::{Note, Steps, Target};
use crate::view::View;
use crate::volume_binder::claim_names;

/// Says of every waiting pod of a node how its volumes are.
pub(super) fn tell(view: &View, node: &str, steps: &mut Steps) {
    if view.attachments.is_empty() {
        return;
    }
    let waits = |pod: &&Arc<Pod>| {
        !pod.metadata.is_deleting() && matches!(pod.status.phase.as_str(), "" | "Pending")
    };
    for pod in view.pods_on(node).filter(waits) {
        for volume in volumes(view, pod) {
            tell_one(view, pod, node, volume, steps);
        }
    }
}

/// The volumes of a pod's claims.
fn volumes<'a>(view: &'a View, pod: &Pod) -> impl Iterator<Item = &'a Arc<PersistentVolume>> {
    let find = move |name: String| {
        let claim = view.claims.get(&pod.metadata.namespace, &name)?;
        view.volumes.get("", &claim.spec.volume_name)
    };
    claim_names(pod).into_iter().filter_map(find)
}

fn tell_one(view: &View, pod: &Arc<Pod>, node: &str, volume: &PersistentVolume, steps: &mut Steps) {
    let name = &volume.metadata.name;
    let of_it = |one: &&Arc<VolumeAttachment>| {
        one.spec.source.persistent_volume_name.as_ref() == Some(name)
    };
    let all: Vec<&Arc<VolumeAttachment>> = view.attachments.iter().filter(of_it).collect();
    let target = Target::of(&**pod);
    let here = all.iter().find(|one| one.spec.node_name == node);
    if let Some(here) = here {
        if here.status.attached == Some(true) && !here.metadata.is_deleting() {
            let message = format!("AttachVolume.Attach succeeded for volume \"{name}\" ");
            steps.tell(Note::normal(&target, "SuccessfulAttachVolume", message));
        }
        return;
    }
    let Some(there) = all.first().filter(|_| !is_shared(volume)) else { return };
    let users = users(view, pod, &there.spec.node_name, name);
    let why = if users.is_empty() {
        "Volume is already exclusively attached to one node and can't be attached to another"
            .to_owned()
    } else {
        format!("Volume is already used by pod(s) {}", users.join(", "))
    };
    let message = format!("Multi-Attach error for volume \"{name}\" {why}");
    steps.tell(Note::warning(&target, "FailedAttachVolume", message));
}

/// Pods of the same namespace that hold a volume at a node.
fn users(view: &View, pod: &Pod, node: &str, volume: &str) -> Vec<String> {
    let near = |other: &&Arc<Pod>| other.metadata.namespace == pod.metadata.namespace;
    let uses = |other: &&Arc<Pod>| volumes(view, other).any(|one| one.metadata.name == volume);
    let all = view.pods_on(node).filter(near).filter(uses);
    all.map(|other| other.metadata.name.clone()).collect()
}
