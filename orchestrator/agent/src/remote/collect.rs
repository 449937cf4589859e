//! Takes away what no pod sees any more: the kernel's tables say what is in use.

use std::path::Path;

use kernel::disk::{mounts, unmount_now};
use kernel::rbd;
use runtime::report;
use tracing::{info, warn};
use volumes::rbd::Mapped;

use super::clients::tell_now;
use super::share::{deepest_first, is_share, take_away};
use super::{
    LOCAL_MOUNTS, RBD_DEVICES, RBD_MOUNTS, RemoteError, names, plugins, remove_dir, remove_file,
};
use crate::Shared;
use crate::disk::{blocking, pod_dir};

/// Takes everything of a pod away, and disks that no other pod sees.
pub(crate) async fn release(shared: &Shared, uid: &str) -> Result<(), RemoteError> {
    // Drivers take away themselves what they brought.
    super::driver::volume::release(shared, uid).await?;
    let dir = pod_dir(shared, uid);
    let markers = plugins(shared).join(RBD_DEVICES);
    let uid = uid.to_owned();
    let below = deepest_first(&dir);
    let touched = !below.is_empty() || dir.join("volumeDevices").exists();
    for mount in below {
        if is_share(&mount) {
            take_away(mount).await?;
        } else {
            blocking(move || unmount_now(&mount.target)).await?;
        }
    }
    blocking(move || {
        for image in names(&markers) {
            remove_file(&markers.join(image).join(&uid))?;
        }
        Ok::<_, RemoteError>(())
    })
    .await?;
    if touched { collect(shared).await } else { Ok(()) }
}

/// Takes away the disks of the node that no pod sees.
pub(crate) async fn collect(shared: &Shared) -> Result<(), RemoteError> {
    let root = plugins(shared);
    for name in names(&root.join(RBD_MOUNTS)) {
        let dir = root.join(RBD_MOUNTS).join(&name);
        let devices = root.join(RBD_DEVICES).join(&name);
        let lock = shared.disks.lock(&dir);
        // Who holds the lock is setting it up, or is here already.
        let Ok(_held) = lock.try_lock() else { continue };
        let gone = blocking(move || collect_image(&dir, &devices, &name)).await?;
        if let Some(image) = gone {
            info!(image, "image unmapped");
        }
    }
    // Whoever waits for an image to be free goes by this word; at the next beat it is said again.
    if let Err(err) = tell_now(shared).await {
        warn!(err = report(&err), "cannot tell which images are mapped here; retrying");
    }
    for name in names(&root.join(LOCAL_MOUNTS)) {
        let dir = root.join(LOCAL_MOUNTS).join(&name);
        let lock = shared.disks.lock(&dir);
        let Ok(_held) = lock.try_lock() else { continue };
        blocking(move || collect_mount(&dir).and_then(|free| remove_dir(&dir, free))).await?;
    }
    Ok(())
}

/// Takes away an image's mount, then its mapping; gives the image's name when it is gone.
pub(super) fn collect_image(
    dir: &Path,
    devices: &Path,
    name: &str,
) -> Result<Option<String>, RemoteError> {
    if !collect_mount(dir)? || !names(devices).is_empty() {
        return Ok(None);
    }
    let ours = |one: &Mapped| format!("{}-image-{}", one.pool, one.image) == name;
    let mapped = rbd::list().into_iter().find(ours);
    if let Some(mapped) = &mapped {
        rbd::unmap(mapped).map_err(|source| RemoteError::Rbd { name: name.to_owned(), source })?;
    }
    remove_dir(devices, true)?;
    remove_dir(dir, true)?;
    Ok(mapped.map(|mapped| format!("{}/{}", mapped.pool, mapped.image)))
}

/// Unmounts what is at `dir` when nothing else shows the same disk; tells whether it is free.
pub(super) fn collect_mount(dir: &Path) -> Result<bool, RemoteError> {
    let all = mounts();
    let Some(own) = all.iter().find(|mount| mount.target == dir) else { return Ok(true) };
    let shown = all.iter().any(|mount| mount.source == own.source && mount.target != dir);
    if !shown {
        unmount_now(dir)?;
    }
    Ok(!shown)
}
