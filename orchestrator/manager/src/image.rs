//! Makes, grows, copies, snapshots and deletes the Ceph images of volumes, and tells the API
//! afterwards. Asking twice is no failure.

use ::ceph::{CephError, Cluster, Done, Place};
use control::action::{ImageWork, Note, Target};
use control::image_provisioner::PROVISIONER;
use jiff::Timestamp;
use objects::meta::Object;
use objects::storage::PersistentVolume;
use runtime::client::DeleteParams;
use runtime::{ClientError, report, resource};
use serde_json::{Value, json};
use tracing::info;

use crate::apply::{Hand, StepError, overtaken};
use crate::ceph::{AskError, Backing, of_class, of_snapshot};
use crate::hub::Pending;

/// How the images are called that are made for claims: what is swept from a pool's trash.
const IMAGE: &str = "kubernetes-dynamic-pvc-";

/// Does one piece of work on an image.
pub(crate) async fn carry_out(
    hand: &Hand,
    by: &'static str,
    (target, class): (&Target, &str),
    work: &ImageWork,
) -> Result<Option<Pending>, StepError> {
    let done = match work {
        ImageWork::Make { volume, bytes, from } => {
            make(hand, by, (target, class), (volume, *bytes, from.as_deref())).await
        }
        ImageWork::Grow { claim, bytes } => grow(hand, by, (target, class), (claim, *bytes)).await,
        ImageWork::Delete => delete(hand, (target, class)).await,
        ImageWork::Snapshot { handle, volume, exists } => {
            snapshot(hand, (target, class), (handle, volume), *exists).await
        }
        ImageWork::DeleteSnapshot { handle, volume } => {
            delete_snapshot(hand, (target, class), (handle, volume)).await
        }
    };
    if let Err(err) = &done {
        let reason = match work {
            ImageWork::Make { .. } => "ProvisioningFailed",
            ImageWork::Grow { .. } => "VolumeResizeFailed",
            ImageWork::Delete => "VolumeFailedDelete",
            ImageWork::Snapshot { .. } => "SnapshotCreationFailed",
            ImageWork::DeleteSnapshot { .. } => "SnapshotDeleteError",
        };
        hand.events.tell(by, &Note::warning(target, reason, report(err)));
    }
    done
}

async fn make(
    hand: &Hand,
    by: &'static str,
    (target, class): (&Target, &str),
    (object, bytes, from): (&Value, i64, Option<&str>),
) -> Result<Option<Pending>, StepError> {
    let failed = |source| ClientError::Decode { path: target.name.clone(), source };
    let volume = PersistentVolume::decode(object).map_err(failed)?;
    let backing = of_class(hand, &volume, class).await?;
    let name = &volume.metadata.name;
    fill(&backing, bytes, from).await.map_err(refused(name))?;
    let made = hand.client.create(&resource::PERSISTENT_VOLUMES, None, object).await;
    if overtaken(made)?.is_some() {
        info!(volume = name, bytes, "image made");
        let message = format!("Successfully provisioned volume {name} using {PROVISIONER}");
        hand.events.tell(by, &Note::normal(target, "ProvisioningSucceeded", message));
    }
    Ok(None)
}

/// Makes an image, empty or as a copy.
async fn fill(backing: &Backing, bytes: i64, from: Option<&str>) -> Done<()> {
    let Backing { cluster, place } = backing;
    let Some(from) = from else {
        return unless_there(cluster.create(place, bytes).await);
    };
    let from = Place::parse(from).ok_or_else(|| CephError::Missing(from.to_owned()))?;
    if from.snap.is_some() {
        unless_there(cluster.copy(&from, place).await)?;
    } else {
        // A copy of an image is one of a snapshot that nobody sees afterwards.
        let moment = from.at(format!("for-{}", place.image));
        match cluster.info(place).await {
            Ok(_) => {}
            Err(CephError::Missing(_)) => {
                unless_there(cluster.snap(&moment).await)?;
                unless_there(cluster.copy(&moment, place).await)?;
            }
            Err(err) => return Err(err),
        }
        unless_gone(cluster.remove(&moment).await)?;
    }
    let has = cluster.info(place).await?.size;
    if has < bytes { cluster.resize(place, bytes).await } else { Ok(()) }
}

async fn grow(
    hand: &Hand,
    by: &'static str,
    (target, class): (&Target, &str),
    (claim, bytes): (&Target, i64),
) -> Result<Option<Pending>, StepError> {
    let Some(backing) = backing(hand, target, class).await? else { return Ok(None) };
    let Backing { cluster, place } = &backing;
    cluster.resize(place, bytes).await.map_err(refused(&target.name))?;
    let capacity = json!({"storage": format!("{}Mi", bytes >> 20)});
    let done = hand.patch(target, None, &json!({"spec": {"capacity": capacity}})).await?;
    info!(volume = target.name, bytes, "image grown");
    let message = format!("Volume {} has grown", target.name);
    hand.events.tell(by, &Note::normal(claim, "VolumeResizeSuccessful", message));
    Ok(done)
}

async fn delete(
    hand: &Hand,
    (target, class): (&Target, &str),
) -> Result<Option<Pending>, StepError> {
    let Some(backing) = backing(hand, target, class).await? else { return Ok(None) };
    let Backing { cluster, place } = &backing;
    unless_gone(cluster.discard(place, IMAGE).await).map_err(refused(&target.name))?;
    let params = DeleteParams::uid(&target.uid);
    let volumes = &resource::PERSISTENT_VOLUMES;
    overtaken(hand.client.delete(volumes, None, &target.name, &params).await)?;
    info!(volume = target.name, "image deleted");
    Ok(None)
}

async fn snapshot(
    hand: &Hand,
    (target, class): (&Target, &str),
    (handle, volume): (&str, &str),
    exists: bool,
) -> Result<Option<Pending>, StepError> {
    let cluster = of_snapshot(hand, class, volume).await?;
    let size = take(&cluster, handle, exists).await.map_err(refused(volume))?;
    info!(content = target.name, handle, "snapshot is there");
    let created = Timestamp::now().as_second().saturating_mul(1_000_000_000);
    let status = json!({
        "snapshotHandle": handle, "readyToUse": true, "restoreSize": size,
        "creationTime": created, "error": null,
    });
    hand.patch(target, Some("status"), &json!({ "status": status })).await
}

/// Makes a snapshot, or finds one, and gives its size.
async fn take(cluster: &Cluster, handle: &str, exists: bool) -> Done<i64> {
    let missing = || CephError::Missing(handle.to_owned());
    let place = Place::parse(handle).filter(|one| one.snap.is_some()).ok_or_else(missing)?;
    if !exists {
        unless_there(cluster.snap(&place).await)?;
    }
    let snaps = cluster.snaps(&place).await?;
    let own = snaps.into_iter().find(|one| Some(&one.name) == place.snap.as_ref());
    own.map(|one| one.size).ok_or_else(missing)
}

async fn delete_snapshot(
    hand: &Hand,
    (target, class): (&Target, &str),
    (handle, volume): (&str, &str),
) -> Result<Option<Pending>, StepError> {
    let cluster = of_snapshot(hand, class, volume).await?;
    // An id that cannot be one names nothing that is there.
    if let Some(place) = Place::parse(handle).filter(|one| one.snap.is_some()) {
        unless_gone(cluster.remove(&place).await).map_err(refused(volume))?;
    }
    info!(content = target.name, handle, "snapshot deleted");
    hand.patch(target, None, &json!({"metadata": {"finalizers": null}})).await
}

async fn backing(hand: &Hand, target: &Target, class: &str) -> Result<Option<Backing>, StepError> {
    match hand.read::<PersistentVolume>(&resource::PERSISTENT_VOLUMES, &target.name).await? {
        Some(volume) => of_class(hand, &volume, class).await.map(Some),
        None => Ok(None),
    }
}

fn refused(volume: &str) -> impl FnOnce(CephError) -> StepError {
    let volume = volume.to_owned();
    move |source| StepError::Ceph { volume, source: AskError::Cluster(source) }
}

fn unless_there(done: Done<()>) -> Done<()> {
    match done {
        Err(CephError::Exists(_)) => Ok(()),
        done => done,
    }
}

fn unless_gone(done: Done<()>) -> Done<()> {
    match done {
        Err(CephError::Missing(_)) => Ok(()),
        done => done,
    }
}
