//! Snapshots of volumes: every driver's wishes become contents, and contents of Ceph images of
//! the old in-tree kind are made, found and deleted.
//!
//! Spec: `snapshot.storage.k8s.io/v1`; upstream's snapshot controller (names, finalizers,
//! annotations, the order of deletion) for all drivers, and the part of its sidecar for
//! [`PROVISIONER`].
//!
//! *Limits*: the names of secrets in classes are taken as they are, without `${…}`; a claim is not
//! kept from being deleted while it is snapshotted; no groups of snapshots.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::kind;
use objects::storage::{
    PersistentVolume, PersistentVolumeClaim, VolumeSnapshot, VolumeSnapshotClass,
    VolumeSnapshotContent,
};
use objects::time::Time;
use serde_json::{Map, Value, json};

use crate::action::{Action, ImageWork, Note, Steps, Target};
use crate::image_provisioner::PROVISIONER;
use crate::view::{Key, View};
use crate::wake::Touch;

/// Finalizers of a snapshot: it has a content, and it may be what a claim is made of.
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
const SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// Finalizer of a content: a snapshot has it, or its driver still keeps something.
const CONTENT: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// Annotation of a content whose snapshot is being deleted: drivers delete only then.
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// Annotation of the class that is used where none is named.
const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// Parameters of classes, and what they become in a content's annotations.
const SECRETS: [(&str, &str); 2] = [
    (
        "csi.storage.k8s.io/snapshotter-secret-name",
        "snapshot.storage.kubernetes.io/deletion-secret-name",
    ),
    (
        "csi.storage.k8s.io/snapshotter-secret-namespace",
        "snapshot.storage.kubernetes.io/deletion-secret-namespace",
    ),
];
/// Annotations of a content of ours: the volume, and the class that says who may do it.
const VOLUME: &str = "storage.muster.dev/volume";
const CLASS: &str = "storage.muster.dev/class";
/// How soon a cluster that refused is asked again.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// The snapshot of a content.
#[must_use]
pub fn snapshot_of_content(_view: &View, touch: &Touch) -> Vec<Key> {
    let all = touch.typed::<VolumeSnapshotContent>().map(|one| &one.spec.volume_snapshot_ref);
    all.map(|one| Key::new(&one.namespace, &one.name)).collect()
}

/// The snapshots of a claim's namespace that wait for it, or that it is made of.
#[must_use]
pub fn snapshots_of_claim(view: &View, touch: &Touch) -> Vec<Key> {
    let here = view.snapshots.inside(&touch.key.namespace);
    let waits = |one: &&Arc<VolumeSnapshot>| {
        one.metadata.is_deleting() || one.status.ready_to_use != Some(true)
    };
    here.filter(waits).map(|one| Key::of(&one.metadata)).collect()
}

/// The content of a snapshot.
#[must_use]
pub fn content_of_snapshot(_view: &View, touch: &Touch) -> Vec<Key> {
    let all = touch.typed::<VolumeSnapshot>();
    let bound = all.filter_map(|one| one.status.bound_volume_snapshot_content_name.as_deref());
    bound.map(|name| Key::new("", name)).collect()
}

/// Plans the steps for one snapshot.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(snapshot) = view.snapshots.get(&key.namespace, &key.name) else { return steps };
    if snapshot.metadata.is_deleting() {
        end(view, snapshot, &mut steps);
        return steps;
    }
    if ![BOUND, SOURCE].iter().all(|name| has(&snapshot.metadata.finalizers, name)) {
        let mut all = snapshot.metadata.finalizers.clone();
        all.retain(|one| one != BOUND && one != SOURCE);
        all.extend([SOURCE.to_owned(), BOUND.to_owned()]);
        let body = json!({"metadata": {"finalizers": all}});
        steps.push(Action::patch(Target::of(&**snapshot), body));
        return steps;
    }
    let found = match &snapshot.spec.source.volume_snapshot_content_name {
        Some(name) => given(view, snapshot, name, &mut steps),
        None => made(view, snapshot, &mut steps),
    };
    match found {
        Ok(Some(content)) => tell(snapshot, &content, &mut steps),
        Ok(None) => {}
        Err(why) => complain(snapshot, why, now, &mut steps),
    }
    steps
}

fn has(finalizers: &[String], name: &str) -> bool {
    finalizers.iter().any(|one| one == name)
}

/// The content that somebody made before and named.
fn given(
    view: &View,
    snapshot: &VolumeSnapshot,
    name: &str,
    steps: &mut Steps,
) -> Result<Option<Arc<VolumeSnapshotContent>>, String> {
    let content = view.snapshot_contents.get("", name);
    let content = content.ok_or_else(|| format!("VolumeSnapshotContent {name} is missing"))?;
    let (own, meta) = (&content.spec.volume_snapshot_ref, &snapshot.metadata);
    if (&own.namespace, &own.name) != (&meta.namespace, &meta.name)
        || !(own.uid.is_empty() || own.uid == meta.uid)
    {
        return Err(format!("VolumeSnapshotContent {name} is bound to a different snapshot"));
    }
    if own.uid.is_empty() || !has(&content.metadata.finalizers, CONTENT) {
        let mut all = content.metadata.finalizers.clone();
        all.retain(|one| one != CONTENT);
        all.push(CONTENT.to_owned());
        let body = json!({
            "metadata": {"finalizers": all},
            "spec": {"volumeSnapshotRef": {"uid": meta.uid}},
        });
        steps.push(Action::patch(Target::of(&**content), body));
        return Ok(None);
    }
    Ok(Some(Arc::clone(content)))
}

/// The content made for the snapshot, or the step that makes it.
fn made(
    view: &View,
    snapshot: &VolumeSnapshot,
    steps: &mut Steps,
) -> Result<Option<Arc<VolumeSnapshotContent>>, String> {
    let name = format!("snapcontent-{}", snapshot.metadata.uid);
    if let Some(content) = view.snapshot_contents.get("", &name) {
        return Ok(Some(Arc::clone(content)));
    }
    let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref().unwrap_or_default();
    let found = view.claims.get(&snapshot.metadata.namespace, claim);
    let found = found.ok_or_else(|| format!("the claim {claim} does not exist"))?;
    let volume = bound_volume(view, found);
    let volume = volume.ok_or_else(|| format!("the PVC {claim} is not yet bound to a PV"))?;
    let (driver, handle) = source(volume).ok_or_else(|| {
        format!("the driver of the volume {} makes no snapshots", volume.metadata.name)
    })?;
    let Some(class) = class(view, snapshot, driver, steps)? else { return Ok(None) };
    let object = render(&name, snapshot, class, volume, handle);
    let target = Target::of(snapshot);
    let message = format!(
        "Waiting for a snapshot {}/{} to be created by the CSI driver.",
        snapshot.metadata.namespace, snapshot.metadata.name
    );
    let note = Note::normal(&target, "CreatingSnapshot", message);
    steps.push(Action::create(&kind::VOLUME_SNAPSHOT_CONTENT, "", object).telling(note));
    Ok(None)
}

fn bound_volume<'a>(
    view: &'a View,
    claim: &PersistentVolumeClaim,
) -> Option<&'a Arc<PersistentVolume>> {
    let bound = claim.status.phase == "Bound" && !claim.spec.volume_name.is_empty();
    view.volumes.get("", &claim.spec.volume_name).filter(|_| bound)
}

/// Who makes snapshots of a volume, and what the volume is called there.
fn source(volume: &PersistentVolume) -> Option<(&str, String)> {
    if let Some(image) = volume.rbd_image() {
        return Some((PROVISIONER, image));
    }
    let csi = volume.spec.csi.as_ref()?;
    let text = |name: &str| csi.get(name).and_then(Value::as_str);
    Some((text("driver")?, text("volumeHandle")?.to_owned()))
}

/// The class of a snapshot; one that names none is given its driver's default first.
fn class<'a>(
    view: &'a View,
    snapshot: &VolumeSnapshot,
    driver: &str,
    steps: &mut Steps,
) -> Result<Option<&'a Arc<VolumeSnapshotClass>>, String> {
    if let Some(name) = snapshot.spec.volume_snapshot_class_name.as_deref() {
        let found = view.snapshot_classes.get("", name);
        let found = found.ok_or_else(|| {
            format!("failed to get input parameters to create snapshot: class {name} not found")
        })?;
        if found.driver != driver {
            let own = &found.driver;
            return Err(format!("class {name} is of driver {own}, the volume of {driver}"));
        }
        return Ok(Some(found));
    }
    let default = |one: &&Arc<VolumeSnapshotClass>| {
        one.metadata.annotation(DEFAULT) == Some("true") && one.driver == driver
    };
    let mut all = view.snapshot_classes.iter().filter(default);
    let found = all.next().ok_or_else(|| "cannot find default snapshot class".to_owned())?;
    if all.next().is_some() {
        return Err("more than one default snapshot class".to_owned());
    }
    let body = json!({"spec": {"volumeSnapshotClassName": found.metadata.name}});
    steps.push(Action::patch(Target::of(snapshot), body));
    Ok(None)
}

fn render(
    name: &str,
    snapshot: &VolumeSnapshot,
    class: &VolumeSnapshotClass,
    volume: &PersistentVolume,
    handle: String,
) -> Value {
    let mut annotations = Map::new();
    let given = |name: &str| class.parameters.get(name).cloned();
    for (parameter, annotation) in SECRETS {
        annotations.extend(given(parameter).map(|value| (annotation.to_owned(), json!(value))));
    }
    if class.driver == PROVISIONER {
        annotations.insert(VOLUME.to_owned(), json!(volume.metadata.name));
        annotations.insert(CLASS.to_owned(), json!(volume.spec.storage_class_name));
    }
    let meta = &snapshot.metadata;
    json!({
        "apiVersion": kind::VOLUME_SNAPSHOT_CONTENT.api_version(),
        "kind": kind::VOLUME_SNAPSHOT_CONTENT.kind,
        "metadata": {"name": name, "annotations": annotations, "finalizers": [CONTENT]},
        "spec": {
            "volumeSnapshotRef": {
                "apiVersion": kind::VOLUME_SNAPSHOT.api_version(),
                "kind": kind::VOLUME_SNAPSHOT.kind,
                "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
            },
            "source": {"volumeHandle": handle},
            "sourceVolumeMode": volume.spec.volume_mode.as_deref().unwrap_or("Filesystem"),
            "volumeSnapshotClassName": class.metadata.name,
            "deletionPolicy": class.deletion_policy,
            "driver": class.driver,
        },
    })
}

/// Tells the snapshot what its content says.
fn tell(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent, steps: &mut Steps) {
    let (before, said) = (&snapshot.status, &content.status);
    let ready = said.ready_to_use.unwrap_or_default() && said.snapshot_handle.is_some();
    let mut wanted = before.clone();
    wanted.bound_volume_snapshot_content_name = Some(content.metadata.name.clone());
    wanted.ready_to_use = Some(ready);
    wanted.error.clone_from(&said.error);
    let created = said.creation_time.and_then(|at| Timestamp::from_nanosecond(at.into()).ok());
    // Written to the second, as every time in metadata.
    let created = created.and_then(|at| Timestamp::from_second(at.as_second()).ok());
    wanted.creation_time = created.map(Time::from).or(before.creation_time);
    let size = said.restore_size.and_then(|size| quantity(size).parse().ok());
    wanted.restore_size = size.or(before.restore_size);
    if wanted == *before {
        return;
    }
    let target = Target::of(snapshot);
    let status = json!({
        "boundVolumeSnapshotContentName": wanted.bound_volume_snapshot_content_name,
        "readyToUse": wanted.ready_to_use,
        "creationTime": wanted.creation_time,
        "restoreSize": wanted.restore_size,
        "error": wanted.error,
    });
    let mut step = Action::patch_status(target.clone(), status);
    if ready && before.ready_to_use != Some(true) {
        let name = format!("{}/{}", snapshot.metadata.namespace, snapshot.metadata.name);
        let message = format!("Snapshot {name} is ready to use.");
        step = step.telling(Note::normal(&target, "SnapshotReady", message));
    }
    steps.push(step);
}

/// A size as people write it.
fn quantity(bytes: i64) -> String {
    const MEBI: i64 = 1 << 20;
    if bytes > 0 && bytes % MEBI == 0 { format!("{}Mi", bytes / MEBI) } else { bytes.to_string() }
}

/// Writes down why there is no snapshot, once for each reason.
fn complain(snapshot: &VolumeSnapshot, why: String, now: Timestamp, steps: &mut Steps) {
    let why = format!("Failed to create snapshot content with error {why}");
    let said = snapshot.status.error.as_ref().and_then(|one| one.get("message")?.as_str());
    if said != Some(&why) {
        let target = Target::of(snapshot);
        let error = json!({"message": why, "time": Time::from(now)});
        let note = Note::warning(&target, "SnapshotContentCreationFailed", why);
        let status = json!({"readyToUse": false, "error": error});
        steps.push(Action::patch_status(target, status).telling(note));
    }
    steps.look_again(now.saturating_add(AGAIN).unwrap_or(now));
}

/// The end of a snapshot: the claims made of it first, then its content, then itself.
fn end(view: &View, snapshot: &VolumeSnapshot, steps: &mut Steps) {
    let meta = &snapshot.metadata;
    if ![BOUND, SOURCE].iter().any(|name| has(&meta.finalizers, name)) {
        return;
    }
    let uses = |claim: &Arc<PersistentVolumeClaim>| {
        let source = claim.spec.data_source_ref.as_ref().or(claim.spec.data_source.as_ref());
        let text = |name: &str| source.and_then(|one| one.get(name)?.as_str());
        claim.spec.volume_name.is_empty()
            && !claim.metadata.is_deleting()
            && text("kind") == Some("VolumeSnapshot")
            && text("name") == Some(&meta.name)
    };
    if view.claims.inside(&meta.namespace).any(uses) {
        return;
    }
    let mine = |one: &&Arc<VolumeSnapshotContent>| one.spec.volume_snapshot_ref.uid == meta.uid;
    let content = view.snapshot_contents.iter().find(mine);
    if let Some(content) = content.filter(|one| one.spec.deletion_policy == "Delete") {
        let target = Target::of(&**content);
        if content.metadata.annotation(BEING_DELETED) != Some("yes") {
            let body = json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}});
            steps.push(Action::patch(target, body));
        } else if !content.metadata.is_deleting() {
            steps.push(Action::delete(target));
        }
        return;
    }
    let mut rest = meta.finalizers.clone();
    rest.retain(|one| one != BOUND && one != SOURCE);
    steps.push(Action::patch(Target::of(snapshot), json!({"metadata": {"finalizers": rest}})));
}

/// Plans the steps for one content of ours.
#[must_use]
pub fn reconcile_content(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let found = view.snapshot_contents.get("", &key.name);
    let Some(content) = found.filter(|one| one.spec.driver == PROVISIONER) else { return steps };
    if let Some(work) = work(view, content, &mut steps) {
        let class = content.metadata.annotation(CLASS).unwrap_or_default().to_owned();
        steps.push(Action::Image { target: Target::of(&**content), class, work });
        steps.look_again(now.saturating_add(AGAIN).unwrap_or(now));
    }
    steps
}

fn work(view: &View, content: &VolumeSnapshotContent, steps: &mut Steps) -> Option<ImageWork> {
    let (meta, spec) = (&content.metadata, &content.spec);
    let volume = meta.annotation(VOLUME).unwrap_or_default().to_owned();
    if meta.is_deleting() {
        let own = &spec.volume_snapshot_ref;
        let snapshot = view.snapshots.get(&own.namespace, &own.name);
        let held =
            snapshot.is_some_and(|one| one.metadata.uid == own.uid && !one.metadata.is_deleting());
        if held || !has(&meta.finalizers, CONTENT) {
            return None;
        }
        let handle = content.status.snapshot_handle.clone();
        let handle = handle.filter(|_| spec.deletion_policy == "Delete");
        if handle.is_none() {
            let mut rest = meta.finalizers.clone();
            rest.retain(|one| one != CONTENT);
            let body = json!({"metadata": {"finalizers": rest}});
            steps.push(Action::patch(Target::of(content), body));
        }
        return handle.map(|handle| ImageWork::DeleteSnapshot { handle, volume });
    }
    if content.status.ready_to_use == Some(true) {
        return None;
    }
    match (&spec.source.volume_handle, &spec.source.snapshot_handle) {
        (Some(image), _) => {
            let handle = format!("{image}@snapshot-{}", spec.volume_snapshot_ref.uid);
            Some(ImageWork::Snapshot { handle, volume, exists: false })
        }
        (None, Some(handle)) => {
            Some(ImageWork::Snapshot { handle: handle.clone(), volume, exists: true })
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests;
