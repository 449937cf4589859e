//! Makes use of a volume that has grown, while pods use it: the kernel looks at the disk's size
//! again, the file system grows to it, and the claim is told what it has.
//!
//! Spec: upstream's node half of expansion (`NodeExpandVolume`): the claim's capacity becomes the
//! volume's, the conditions `Resizing` and `FileSystemResizePending` go.
//!
//! *Limits*: Ceph images and volumes of drivers; drivers are sent no secrets for it.

use std::path::{Path, PathBuf};

use kernel::disk::grow;
use kernel::rbd;
use objects::pod::Pod;
use runtime::client::Patch;
use runtime::{ClientError, report, resource};
use serde_json::{Value, json};
use tracing::info;
use volumes::rbd::Rbd;
use volumes::remote::{Growth, Mode, Remote, RemoteKind};

use super::address::resolve_all;
use super::{RemoteError, driver, file, plugins};
use crate::Shared;
use crate::disk::blocking;

/// Takes up the growth of a volume that is at `place`, when there is any.
///
/// A failure is told and tried again with the next full round of the pod.
pub(super) async fn take_up(shared: &Shared, pod: &Pod, remote: &Remote, place: &Path) {
    let Some(growth) = &remote.growth else { return };
    match attempt(shared, pod, remote, growth, place).await {
        Ok(()) => {
            info!(volume = remote.name, capacity = growth.capacity, "volume grown");
            let (name, node) = (&remote.name, &shared.node.name);
            let message =
                format!("MountVolume.NodeExpandVolume succeeded for volume \"{name}\" {node}");
            shared.events.normal(pod, None, "FileSystemResizeSuccessful", &message);
        }
        Err(err) => shared.events.warning(pod, None, "FileSystemResizeFailed", &report(&err)),
    }
}

async fn attempt(
    shared: &Shared,
    pod: &Pod,
    remote: &Remote,
    growth: &Growth,
    place: &Path,
) -> Result<(), RemoteError> {
    match &remote.kind {
        RemoteKind::Rbd(image) => grow_image(shared, remote, image).await?,
        RemoteKind::Csi(volume) => {
            driver::volume::expand(shared, pod, (remote, volume), (place, growth.bytes)).await?;
        }
        RemoteKind::CephFs(_)
        | RemoteKind::Nfs(_)
        | RemoteKind::Iscsi(_)
        | RemoteKind::Local(_) => return Ok(()),
    }
    let told = tell(shared, growth).await;
    told.map_err(|source| RemoteError::Record { name: remote.name.clone(), source })
}

async fn grow_image(shared: &Shared, remote: &Remote, image: &Rbd) -> Result<(), RemoteError> {
    let monitors = resolve_all(&image.monitors).await?;
    let dir = plugins(shared).join(image.mount_dir());
    let lock = shared.disks.lock(&dir);
    let _held = lock.lock().await;
    let (image, mode, name) = (image.clone(), remote.mode, remote.name.clone());
    blocking(move || {
        let why = "it is not mapped here";
        let missing = || RemoteError::Unsupported { name: name.clone(), why };
        let mapped = rbd::find_mapped(&image, &monitors).ok_or_else(missing)?;
        let device = PathBuf::from(mapped.device());
        rbd::refresh(&mapped).map_err(file(&device))?;
        if mode == Mode::Block {
            return Ok(());
        }
        let failed = |source| RemoteError::Disk { name: name.clone(), source };
        grow(&image.fs_type, &device, &dir).map_err(failed)
    })
    .await
}

/// Writes into the claim what it has now.
async fn tell(shared: &Shared, growth: &Growth) -> Result<(), ClientError> {
    let (claims, namespace) = (&resource::PERSISTENT_VOLUME_CLAIMS, Some(&*growth.namespace));
    let claim = shared.client.get(claims, namespace, &growth.claim).await?;
    let patch = Patch::merge(told(&claim, growth)).on("status");
    shared.client.patch(claims, namespace, &growth.claim, &patch).await.map(drop)
}

/// The change to a claim; of exactly the version that was read, for conditions are others' too.
fn told(claim: &Value, growth: &Growth) -> Value {
    let conditions = claim.pointer("/status/conditions").and_then(Value::as_array);
    let stays = |one: &&Value| {
        let kind = one.get("type").and_then(Value::as_str);
        !matches!(kind, Some("Resizing" | "FileSystemResizePending"))
    };
    let conditions: Vec<&Value> = conditions.into_iter().flatten().filter(stays).collect();
    json!({
        "metadata": {"resourceVersion": claim.pointer("/metadata/resourceVersion")},
        "status": {"capacity": {"storage": growth.capacity}, "conditions": conditions},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_what_it_has_and_nothing_of_others_is_lost() {
        let claim = json!({
            "metadata": {"name": "c", "resourceVersion": "7"},
            "status": {"conditions": [{"type": "FileSystemResizePending", "status": "True"},
                {"type": "ModifyingVolume", "status": "True"}]},
        });
        let growth = Growth {
            namespace: "n".into(),
            claim: "c".into(),
            bytes: 2 << 30,
            capacity: "2Gi".into(),
        };
        let expected = json!({
            "metadata": {"resourceVersion": "7"},
            "status": {"capacity": {"storage": "2Gi"},
                "conditions": [{"type": "ModifyingVolume", "status": "True"}]},
        });
        assert_eq!(told(&claim, &growth), expected);
    }
}
