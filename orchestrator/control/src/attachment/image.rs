//! Brings Ceph images to the one node that may write them, and takes them away, from a silent
//! node too.
//!
//! An image has one attachment, named after its volume, so that two nodes never have it at once.
//! A node maps it only while the attachment names that node and is not being deleted, and says
//! in its annotation which kernel client it writes with before it mounts anything. To take the
//! image away the attachment is deleted; a finalizer keeps it until the node says that it has
//! unmapped the image, or, when the node is silent, until its client is fenced. What has to be
//! fenced and when is `volumes::attach`'s decision, made with what the cluster says then.
//!
//! Differs from upstream, where an in-tree image of a silent node waits for six minutes and is
//! then mapped elsewhere without any fence: here a pod that is deleted, or evicted, from a silent
//! node holds its images no longer. Once they are fenced such a pod is removed: what it still
//! writes goes nowhere, and a set may have its next pod of that name.
//!
//! What was fenced stands in the node's annotations ([`FENCED`]). The fence is lifted when the node
//! answers and the client has ended: it runs another boot, or names that client no longer.
//!
//! *Limits*: images named in pods themselves are not attached; only the kernel's own lock keeps a
//! second writer away from them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::find_condition;
use objects::kind;
use objects::node::Node;
use objects::pod::Pod;
use objects::storage::{PersistentVolume, RBD_CLIENTS, VolumeAttachment};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::action::{Action, Fence, Note, Steps, Target};
use crate::lifecycle::OUT_OF_SERVICE;
use crate::view::{Key, View};
use crate::volume_binder::claim_names;

/// Who attaches: by its form a driver's name, as upstream's rules for attachments ask. No driver
/// has it, so that nobody else's attacher takes these for its own.
const ATTACHER: &str = "images.storage.muster.dev";
/// Keeps an attachment until nothing on its node can write.
pub const FENCE: &str = "storage.muster.dev/fence";
/// In an attachment's metadata: the kernel client of the node.
pub const CLIENT: &str = "client";
/// How annotations of a node begin that tell of a fenced client each, as [`Fenced`] in JSON.
/// Every client has its own: those who fence at the same time do not get in each other's way.
pub const FENCED: &str = "fenced.storage.muster.dev/";
/// How soon a detachment that had to wait is looked at again, when nothing changes meanwhile.
const AGAIN: SignedDuration = SignedDuration::from_secs(2);
/// How much longer than its grace a pod may take to vanish from a silent node.
const SLACK: SignedDuration = SignedDuration::from_secs(5);

/// What is remembered of a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// The client.
    pub client: String,
    /// The volume whose cluster knows of it.
    pub volume: String,
    /// The node's boot that the client belonged to; empty when nobody knew.
    pub boot: String,
    /// The node had named the client itself, so that its silence about it means something.
    pub named: bool,
}

impl Fenced {
    /// The annotation of the node that tells of it.
    #[must_use]
    pub fn key(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '.' };
        let name: String = self.client.chars().map(plain).collect();
        format!("{FENCED}{}", name.trim_matches('.'))
    }
}

/// The fenced clients of a node, by annotation.
#[must_use]
pub fn fenced(node: &Node) -> BTreeMap<String, Fenced> {
    let all = node.metadata.annotations.iter().filter(|(key, _)| key.starts_with(FENCED));
    all.filter_map(|(key, text)| Some((key.clone(), serde_json::from_str(text).ok()?))).collect()
}

/// Every client that a node names.
#[must_use]
pub fn clients_of(node: &Node) -> BTreeSet<String> {
    let text = node.metadata.annotation(RBD_CLIENTS);
    let all: Option<BTreeMap<String, String>> =
        text.and_then(|text| serde_json::from_str(text).ok());
    all.unwrap_or_default().into_values().collect()
}

/// Is a node not heard of, gone, or declared to be off?
#[must_use]
pub fn is_silent(node: Option<&Node>) -> bool {
    let Some(node) = node else { return true };
    let ready = find_condition(&node.status.conditions, "Ready");
    ready.is_some_and(|one| one.status == "Unknown")
        || node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The client with which a node says it writes an image.
#[must_use]
pub fn client_of(node: &Node, image: &str) -> Option<String> {
    let text = node.metadata.annotation(RBD_CLIENTS)?;
    let mut all: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
    all.remove(image)
}

/// Plans the attachments of images for one node.
pub(super) fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let node = view.nodes.get("", &key.name);
    let silent = is_silent(node.map(|node| &**node));
    let mut wanted: BTreeMap<&str, &Arc<PersistentVolume>> = BTreeMap::new();
    for pod in view.pods_on(&key.name).filter(|pod| node.is_some() && !pod.is_finished()) {
        if silent && pod.metadata.is_deleting() {
            continue;
        }
        wanted.extend(images(view, pod).map(|volume| (volume.metadata.name.as_str(), volume)));
    }
    for had in view.attachments.iter().filter(|one| one.spec.node_name == key.name) {
        let Some(volume) = volume_of(had) else { continue };
        if had.metadata.is_deleting() {
            let_go(view, node, silent, had, volume, now, &mut steps);
        } else if !wanted.contains_key(volume) {
            steps.push(Action::delete(Target::of(&**had)));
        } else if let Some(node) = node {
            tell_client(view, node, had, volume, &mut steps);
        }
    }
    for volume in wanted.into_values() {
        attach(view, volume, &key.name, &mut steps);
    }
    match node {
        Some(_) if silent => remove_fenced(view, &key.name, now, &mut steps),
        Some(node) => lift_fences(node, now, &mut steps),
        None => {}
    }
    steps
}

/// The images of a pod that must be attached.
fn images<'a>(view: &'a View, pod: &Pod) -> impl Iterator<Item = &'a Arc<PersistentVolume>> {
    claimed(view, pod).into_iter().flatten().filter(|volume| volume.is_attached_to_write())
}

/// The volumes of a pod's claims; `None` for those that are not there.
fn claimed<'a>(view: &'a View, pod: &Pod) -> Vec<Option<&'a Arc<PersistentVolume>>> {
    let find = |name: String| {
        let claim = view.claims.get(&pod.metadata.namespace, &name)?;
        view.volumes.get("", &claim.spec.volume_name)
    };
    claim_names(pod).into_iter().map(find).collect()
}

/// The volume of an attachment of ours.
fn volume_of(one: &VolumeAttachment) -> Option<&str> {
    let volume = one.spec.source.persistent_volume_name.as_deref()?;
    let ours = one.spec.attacher == ATTACHER
        && one.metadata.name == VolumeAttachment::name_of_image(volume);
    ours.then_some(volume)
}

fn attach(view: &View, volume: &PersistentVolume, node: &str, steps: &mut Steps) {
    let name = VolumeAttachment::name_of_image(&volume.metadata.name);
    // Here already, or still elsewhere: its end wakes those who wait.
    if view.attachments.get("", &name).is_some() {
        return;
    }
    let object = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": name, "finalizers": [FENCE]},
        "spec": {
            "attacher": ATTACHER,
            "nodeName": node,
            "source": {"persistentVolumeName": volume.metadata.name},
        },
    });
    steps.push(Action::create(&kind::VOLUME_ATTACHMENT, "", object));
}

/// Copies the node's word about its client to the attachment: the node's object may be deleted
/// while the machine still writes.
fn tell_client(
    view: &View,
    node: &Node,
    had: &Arc<VolumeAttachment>,
    volume: &str,
    steps: &mut Steps,
) {
    let image = view.volumes.get("", volume).and_then(|volume| volume.rbd_image());
    let client = image.and_then(|image| client_of(node, &image));
    let mut metadata = had.status.attachment_metadata.clone();
    metadata.extend(client.map(|client| (CLIENT.to_owned(), client)));
    if had.status.attached == Some(true) && metadata == had.status.attachment_metadata {
        return;
    }
    let status = json!({"attached": true, "attachmentMetadata": metadata});
    steps.push(Action::patch_status(Target::of(&**had), status));
}

fn let_go(
    view: &View,
    node: Option<&Arc<Node>>,
    silent: bool,
    had: &Arc<VolumeAttachment>,
    volume: &str,
    now: Timestamp,
    steps: &mut Steps,
) {
    if !had.metadata.finalizers.iter().any(|one| one == FENCE) {
        return;
    }
    let image = view.volumes.get("", volume).and_then(|volume| volume.rbd_image());
    let writes = node.zip(image).and_then(|(node, image)| client_of(node, &image));
    // The node is at it, and its word wakes us.
    if writes.is_some() && !silent {
        return;
    }
    let target = Target::of(&**had);
    let (node, volume) = (had.spec.node_name.clone(), volume.to_owned());
    steps.push(Action::Detach { target, node, volume });
    steps.look_again(now.saturating_add(AGAIN).unwrap_or(now));
}

/// Lifts the fences of clients that have ended; a node that answers says so.
fn lift_fences(node: &Arc<Node>, now: Timestamp, steps: &mut Steps) {
    let names = clients_of(node);
    let boot = node.status.node_info.boot_id.as_deref().unwrap_or_default();
    let ended = |one: &Fenced| {
        let rebooted = !one.boot.is_empty() && !boot.is_empty() && one.boot != boot;
        !names.contains(&one.client) && (one.named || rebooted)
    };
    let lift = |(key, one): (String, Fenced)| {
        ended(&one).then_some(Fence { key, client: one.client, volume: one.volume })
    };
    let fences: Vec<Fence> = fenced(node).into_iter().filter_map(lift).collect();
    if !fences.is_empty() {
        steps.push(Action::Unfence { target: Target::of(&**node), fences });
        steps.look_again(now.saturating_add(AGAIN).unwrap_or(now));
    }
}

/// Removes pods that were deleted from a silent node and whose images are all taken from it.
fn remove_fenced(view: &View, node: &str, now: Timestamp, steps: &mut Steps) {
    let here: BTreeSet<&str> = view
        .attachments
        .iter()
        .filter(|one| one.spec.node_name == node)
        .filter_map(|one| one.spec.source.persistent_volume_name.as_deref())
        .collect();
    for pod in view.pods_on(node).filter(|pod| pod.metadata.is_deleting()) {
        let volumes = claimed(view, pod);
        let fenced = |volume: &Option<&Arc<PersistentVolume>>| {
            volume.is_some_and(|volume| {
                volume.is_attached_to_write() && !here.contains(volume.metadata.name.as_str())
            })
        };
        // Pods without claims are the node controller's.
        if volumes.is_empty() || !volumes.iter().all(fenced) {
            continue;
        }
        let ends = pod.metadata.deletion_timestamp.map_or(now, |at| at.0);
        let due = ends.saturating_add(SLACK).unwrap_or(Timestamp::MAX);
        if now < due {
            steps.look_again(due);
            continue;
        }
        let target = Target::of(&**pod);
        let message = format!("Removed pod: node {node} is silent and its volumes are fenced");
        let note = Note::warning(&target, "FencedPodRemoved", message);
        steps.push(Action::remove_pod(pod).telling(note));
    }
}

#[cfg(test)]
mod tests;
