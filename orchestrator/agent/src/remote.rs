//! Volumes outside the node's own directories: brought to the node, shown to pods, taken away.
//!
//! A disk is mounted once for the node below `DATA/plugins`, and each pod sees that mount at
//! `DATA/pods/UID/volumes/KIND/NAME`; a share is mounted for each pod; a raw device is a link at
//! `DATA/pods/UID/volumeDevices/KIND/NAME`. What is in use is read from the kernel's own tables,
//! so an agent that was killed goes on where it stopped: a disk that no pod sees is taken away.
//!
//! The kernel client with which Ceph images are written stands in the node's annotation before
//! anything is mounted: whoever fences this node knows what to fence ([`clients`]). A volume that
//! has grown is made use of while pods use it ([`growth`]).

mod address;
mod clients;
mod collect;
mod driver;
mod group;
mod growth;
mod share;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::disk::{
    DiskError, bind_opened, grow, is_mounted, mount_disk, mounts, open_beneath, unmount_now,
};
use kernel::mount::{Access, MountError, bind};
use kernel::rbd::{self, RbdError};
use kernel::share::ShareError;
use objects::config::Secret;
use objects::pod::Pod;
use runtime::{ClientError, report, resource};
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::warn;
use volumes::disk::{Flag, Options, split_options};
use volumes::owner::Policy;
use volumes::rbd::{Grip, Rbd};
use volumes::remote::{Local, Mode, Remote, RemoteKind, SecretName};

use crate::Shared;
use crate::disk::{blocking, pod_dir};

use address::resolve_all;
pub(crate) use clients::tell_now as tell_clients;
use clients::{await_attached, check_attached, record};
pub(crate) use collect::{collect, release};
pub(crate) use driver::run as run_drivers;
pub(crate) use driver::volume::in_use;
use group::{Group, give};
pub(crate) use share::end_within;

/// Below `DATA`: what is there once for all pods.
const PLUGINS: &str = "plugins";
/// Below [`PLUGINS`]: images that are mounted, and raw ones in use.
const RBD_MOUNTS: &str = "kubernetes.io/rbd/mounts";
const RBD_DEVICES: &str = "kubernetes.io/rbd/volumeDevices";
const LOCAL_MOUNTS: &str = "kubernetes.io/local-volume/mounts";

/// Why a volume could not be brought to a pod, or taken away.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    /// An image could not be mapped.
    #[error("MountVolume.MountDevice failed for volume \"{name}\"")]
    Rbd {
        /// The volume.
        name: String,
        /// Why.
        #[source]
        source: RbdError,
    },
    /// A share could not be mounted or taken away.
    #[error("MountVolume.SetUp failed for volume \"{name}\"")]
    Share {
        /// The volume.
        name: String,
        /// Why.
        #[source]
        source: ShareError,
    },
    /// A share's server does not answer, so it is not even tried.
    #[error(
        "MountVolume.SetUp failed for volume \"{name}\": cannot mount {share}: the NFS server \
         {server} does not answer: {why}"
    )]
    Silent {
        /// The volume.
        name: String,
        /// What was to be mounted.
        share: String,
        /// Who was asked.
        server: std::net::SocketAddr,
        /// What came instead of an answer.
        why: String,
    },
    /// A disk could not be mounted.
    #[error("MountVolume.SetUp failed for volume \"{name}\"")]
    Disk {
        /// The volume.
        name: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A file, link or directory could not be made or removed.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a mount.
    #[error("cannot show or hide a volume")]
    Mount(#[from] MountError),
    /// A name cannot be resolved.
    #[error("cannot find the address of {host}")]
    Address {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A secret is not there or holds no key.
    #[error("couldn't get secret {namespace}/{name}: {why}")]
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// The API does not take the record of a mapping, so the mapping was ended.
    #[error("cannot record the mapping of volume \"{name}\"")]
    Record {
        /// The volume.
        name: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// The volume is not this node's to write.
    #[error("MountVolume.WaitForAttach failed for volume \"{name}\": {why}")]
    Unattached {
        /// The volume.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The volume's driver has not registered.
    #[error(
        "volume \"{name}\": driver name {driver} not found in the list of registered CSI drivers"
    )]
    NoDriver {
        /// The volume.
        name: String,
        /// The driver.
        driver: String,
    },
    /// The driver has no volumes that live so.
    #[error("volume \"{name}\": volume mode {mode:?} not supported by driver {driver} ({known})")]
    Life {
        /// The volume.
        name: String,
        /// What it would be.
        mode: &'static str,
        /// The driver.
        driver: String,
        /// What is known of the driver.
        known: String,
    },
    /// A driver refused.
    #[error("volume \"{name}\": its driver refused")]
    Driver {
        /// The volume.
        name: String,
        /// What it said.
        #[source]
        source: csi::CallError,
    },
    /// The kind cannot be had here.
    #[error("volume \"{name}\": {why}")]
    Unsupported {
        /// The volume.
        name: String,
        /// Why.
        why: &'static str,
    },
}

/// What the agent keeps about volumes in use: one lock for each disk.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    locks: StdMutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>,
    /// The clients that the node's object names; `None` until it was told by us.
    told: Mutex<Option<BTreeMap<String, String>>>,
    /// Drivers that are not ours.
    drivers: driver::Drivers,
}

impl Disks {
    fn lock(&self, dir: &Path) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(locks.entry(dir.to_owned()).or_default())
    }
}

fn group(pod: &Pod) -> Option<Group> {
    let context = pod.spec.security_context.as_ref()?;
    let id = u32::try_from(context.fs_group?).ok()?;
    Some(Group { id, policy: Policy::parse(context.fs_group_change_policy.as_deref()) })
}

/// Where a pod sees a volume, or finds the link to its device.
pub(crate) fn place(shared: &Shared, uid: &str, remote: &Remote) -> PathBuf {
    let kind = match remote.mode {
        Mode::Filesystem => "volumes",
        Mode::Block => "volumeDevices",
    };
    pod_dir(shared, uid).join(kind).join(remote.plugin()).join(&remote.name)
}

fn plugins(shared: &Shared) -> PathBuf {
    shared.config.data_dir.join(PLUGINS)
}

/// Brings a volume to a pod; may be done again at any time.
///
/// A half-done one is finished by doing it again, or taken away with the pod.
pub(crate) async fn set_up(
    shared: &Shared,
    pod: &Pod,
    remote: &Remote,
) -> Result<PathBuf, RemoteError> {
    let place = place(shared, &pod.metadata.uid, remote);
    let secret = secret(shared, pod, remote).await?;
    let job = Job { remote: remote.clone(), place: place.clone(), group: group(pod) };
    match &remote.kind {
        RemoteKind::Rbd(image) => set_up_rbd(shared, pod, job, image, secret).await?,
        RemoteKind::Local(local) => {
            let dir = plugins(shared).join(LOCAL_MOUNTS).join(&remote.name);
            let lock = shared.disks.lock(&dir);
            let _held = lock.lock().await;
            let local = local.clone();
            blocking(move || job.local(&local, &dir)).await?;
        }
        RemoteKind::Nfs(nfs) => share::set_up_nfs(job, nfs).await?,
        RemoteKind::CephFs(files) => share::set_up_cephfs(job, files, secret).await?,
        RemoteKind::Iscsi(_) => {
            let why = "iSCSI disks need an initiator, which this node does not have";
            return Err(RemoteError::Unsupported { name: remote.name.clone(), why });
        }
        RemoteKind::Csi(volume) => {
            let target = driver::volume::inner_place(place, remote);
            driver::volume::set_up(shared, pod, (remote, volume), &target).await?;
            growth::take_up(shared, pod, remote, &target).await;
            return Ok(target);
        }
    }
    growth::take_up(shared, pod, remote, &place).await;
    Ok(place)
}

async fn set_up_rbd(
    shared: &Shared,
    pod: &Pod,
    job: Job,
    image: &Rbd,
    secret: Option<Vec<u8>>,
) -> Result<(), RemoteError> {
    let monitors = resolve_all(&image.monitors).await?;
    let dir = plugins(shared).join(image.mount_dir());
    let lock = shared.disks.lock(&dir);
    let _held = lock.lock().await;
    let grip = match (job.remote.read_only, job.remote.attached) {
        (true, _) => Grip::Reader,
        (false, true) => Grip::Attached,
        (false, false) => Grip::Writer,
    };
    // What marks an image as ours is there before the image is: a kill leaves nothing unknown.
    let devices = plugins(shared).join(image.device_dir());
    for dir in [&dir, &devices] {
        make_dir(dir)?;
    }
    let (asked, name) = (image.clone(), job.remote.name.clone());
    let attachment = match grip {
        Grip::Attached => Some(await_attached(shared, &name).await?),
        Grip::Reader | Grip::Writer => None,
    };
    let (at, used) = (dir.clone(), devices.clone());
    let guarded = attachment.is_some();
    let mapped = blocking(move || {
        // What an earlier attachment left here may be fenced: a mapping that nobody uses goes.
        if guarded
            && !is_mounted(&at)
            && names(&used).is_empty()
            && let Some(old) = rbd::find_mapped(&asked, &monitors)
        {
            rbd::unmap(&old)?;
        }
        rbd::map(&asked, &monitors, secret.as_deref(), grip)
    })
    .await
    .map_err(|source| RemoteError::Rbd { name: name.clone(), source })?;
    if grip != Grip::Reader {
        let mut allowed = record(shared, &mapped)
            .await
            .map_err(|source| RemoteError::Record { name: name.clone(), source });
        if let (Ok(()), Some(uid)) = (&allowed, &attachment) {
            allowed = check_attached(shared, &name, uid).await;
        }
        if let Err(refused) = allowed {
            if !is_mounted(&dir) {
                let undone = blocking(move || rbd::unmap(&mapped)).await;
                undone.map_err(|source| RemoteError::Rbd { name: name.clone(), source })?;
            }
            return Err(refused);
        }
    }
    let marker = devices.join(&pod.metadata.uid);
    let fs_type = image.fs_type.clone();
    blocking(move || {
        let device = PathBuf::from(mapped.device());
        match job.remote.mode {
            Mode::Filesystem => job.disk(&device, &dir, &fs_type),
            Mode::Block => {
                fs::write(&marker, "").map_err(file(&marker))?;
                job.link(&device)
            }
        }
    })
    .await
}

/// What is done for one pod and volume on the disk, off the async threads.
struct Job {
    remote: Remote,
    place: PathBuf,
    group: Option<Group>,
}

impl Job {
    fn options(&self) -> Options {
        let mut options = split_options(&self.remote.mount_options);
        if self.remote.read_only && !options.flags.contains(&Flag::ReadOnly) {
            options.flags.push(Flag::ReadOnly);
        }
        options
    }

    fn failed(&self) -> impl Fn(DiskError) -> RemoteError {
        let name = self.remote.name.clone();
        move |source| RemoteError::Disk { name: name.clone(), source }
    }

    /// Mounts a disk at `dir` for the node, and shows it to the pod.
    fn disk(&self, device: &Path, dir: &Path, fs_type: &str) -> Result<(), RemoteError> {
        match mounts().into_iter().rev().find(|mount| mount.target == dir) {
            None => {
                mount_disk(device, dir, fs_type, &self.options()).map_err(self.failed())?;
                if !self.remote.read_only
                    && let Err(err) = grow(fs_type, device, dir)
                {
                    warn!(
                        volume = self.remote.name,
                        err = report(&err),
                        "cannot grow a file system"
                    );
                }
            }
            // Numbers are used again: what is mounted may be a disk that is gone.
            Some(mount) if Path::new(&mount.source) != device => {
                let why = "another disk is still mounted in its place";
                return Err(RemoteError::Unsupported { name: self.remote.name.clone(), why });
            }
            Some(_) => {}
        }
        self.show(dir)
    }

    /// Shows what is at `source` to the pod.
    fn show(&self, source: &Path) -> Result<(), RemoteError> {
        if is_mounted(&self.place) {
            return Ok(());
        }
        let read_only = self.remote.read_only;
        if let Some(group) = self.group.filter(|_| !read_only && !self.remote.shared) {
            give(source, group).map_err(file(source))?;
        }
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        Ok(bind(source, &self.place, access)?)
    }

    /// Links the device for the pod.
    fn link(&self, device: &Path) -> Result<(), RemoteError> {
        if fs::read_link(&self.place).is_ok_and(|found| found == device) {
            return Ok(());
        }
        if let Some(above) = self.place.parent() {
            make_dir(above)?;
        }
        remove_file(&self.place)?;
        symlink(device, &self.place).map_err(file(&self.place))
    }

    fn local(&self, local: &Local, dir: &Path) -> Result<(), RemoteError> {
        let path = Path::new(&local.path);
        let meta = fs::metadata(path).map_err(file(path))?;
        let is_disk = meta.file_type().is_block_device();
        match self.remote.mode {
            Mode::Block if is_disk => self.link(path),
            Mode::Block => {
                let why = "volumeMode is Block, but the path is no block device";
                Err(RemoteError::Unsupported { name: self.remote.name.clone(), why })
            }
            Mode::Filesystem if is_disk => self.disk(path, dir, &local.fs_type),
            Mode::Filesystem => self.show(path),
        }
    }
}

/// Shows a part of a volume to a container, and never what a link in it points at outside.
pub(crate) async fn show_part(
    base: PathBuf,
    part: String,
    target: PathBuf,
) -> Result<(), RemoteError> {
    share::check(&base).await?;
    blocking(move || {
        let name = target.to_string_lossy().into_owned();
        let opened =
            open_beneath(&base, &part).map_err(|source| RemoteError::Disk { name, source })?;
        // What an earlier life of the container saw may be gone since.
        unmount_now(&target)?;
        if let Some(above) = target.parent() {
            make_dir(above)?;
        }
        let link =
            PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened)));
        if !target.exists() && !link.is_dir() {
            fs::write(&target, "").map_err(file(&target))?;
        }
        Ok(bind_opened(&opened, &target)?)
    })
    .await
}

/// The key in the secret of a volume, decoded for the kernel.
async fn secret(
    shared: &Shared,
    pod: &Pod,
    remote: &Remote,
) -> Result<Option<Vec<u8>>, RemoteError> {
    let asked = match &remote.kind {
        RemoteKind::Rbd(image) => image.secret.as_ref(),
        RemoteKind::CephFs(share) => share.secret.as_ref(),
        RemoteKind::Nfs(_) | RemoteKind::Iscsi(_) | RemoteKind::Local(_) | RemoteKind::Csi(_) => {
            None
        }
    };
    let Some(SecretName { namespace, name }) = asked else { return Ok(None) };
    let namespace =
        if namespace.is_empty() { pod.metadata.namespace.clone() } else { namespace.clone() };
    let failed =
        |why: String| RemoteError::Secret { namespace: namespace.clone(), name: name.clone(), why };
    let found = shared.client.get(&resource::SECRETS, Some(&namespace), name).await;
    let found = found.map_err(|err| failed(report(&err)))?;
    let found: Secret = serde_json::from_value(found).map_err(|err| failed(report(&err)))?;
    // Upstream takes whatever key there is; `key` is the one its documents name.
    let value = found.data.get("key").or_else(|| found.data.values().next_back());
    let value = value.ok_or_else(|| failed("it holds no key".to_owned()))?;
    decode_key(value).map(Some).ok_or_else(|| failed("its key is no Ceph key".to_owned()))
}

/// Secrets hold base64 of what people paste, and that is base64 again.
fn decode_key(value: &str) -> Option<Vec<u8>> {
    let text = STANDARD.decode(value).ok()?;
    STANDARD.decode(String::from_utf8(text).ok()?.trim()).ok()
}

fn file(path: &Path) -> impl Fn(io::Error) -> RemoteError {
    let path = path.to_owned();
    move |source| RemoteError::File { path: path.clone(), source }
}

fn make_dir(path: &Path) -> Result<(), RemoteError> {
    fs::create_dir_all(path).map_err(file(path))
}

fn remove_file(path: &Path) -> Result<(), RemoteError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(file(path)(err)),
        _ => Ok(()),
    }
}

/// Removes a directory that is empty; one that is not stays, whatever is in it.
fn remove_dir(path: &Path, free: bool) -> Result<(), RemoteError> {
    if !free {
        return Ok(());
    }
    match fs::remove_dir(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(file(path)(err)),
        _ => Ok(()),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests;
