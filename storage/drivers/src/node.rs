//! The node half: the kernel maps, we mount.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ceph::Place;
use csi::Status;
use csi::message::*;
use kernel::disk::{grow, is_mounted, mount_disk, mounts, unmount_now};
use kernel::mount::{Access, bind};
use kernel::rbd;
use nix::sys::statvfs::statvfs;
use runtime::report;
use volumes::disk::{Flag, split_options};
use volumes::rbd::{Grip, Mapped, Monitor, Rbd};

use crate::controller::{check_capability, word};
use crate::images::Images;
use crate::{Driver, required};

fn internal<E: std::error::Error + 'static>(err: &E) -> Status {
    Status::internal(report(err))
}

/// Runs kernel work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(err) => std::panic::resume_unwind(err.into_panic()),
    }
}

fn mapped(at: &Place) -> Option<Mapped> {
    rbd::list().into_iter().find(|one| {
        one.pool == at.pool && one.image == at.image && one.snap == "-" && one.namespace.is_empty()
    })
}

/// What it takes to bring an image here.
struct Stage {
    image: Rbd,
    secret: Option<Vec<u8>>,
    grip: Grip,
    target: PathBuf,
    capability: VolumeCapability,
}

impl Stage {
    fn run(self) -> Result<(), Status> {
        let monitors = resolve(&self.image.monitors)?;
        let device = rbd::map(&self.image, &monitors, self.secret.as_deref(), self.grip);
        let device = PathBuf::from(device.map_err(|err| internal(&err))?.device());
        let Some(mount) = &self.capability.mount else { return Ok(()) };
        if let Some(found) = mounts().iter().rev().find(|one| one.target == self.target) {
            let same = Path::new(&found.source) == device;
            let why = "something else is mounted at the staging path";
            return if same { Ok(()) } else { Err(Status::failed_precondition(why)) };
        }
        let mut options = split_options(&mount.mount_flags);
        if self.grip == Grip::Reader {
            options.flags.push(Flag::ReadOnly);
        }
        mount_disk(&device, &self.target, &self.image.fs_type, &options)
            .map_err(|err| internal(&err))
    }
}

impl<I: Images> Driver<I> {
    fn place(id: &str) -> Result<Place, Status> {
        let missing = || Status::not_found(format!("volume {id} does not exist"));
        Place::parse(required("volume id", id)?).ok_or_else(missing)
    }

    fn capability(given: Option<VolumeCapability>) -> Result<VolumeCapability, Status> {
        let missing = || Status::invalid_argument("volume capability missing in request");
        let given = given.ok_or_else(missing)?;
        check_capability(&given).map(|()| given)
    }

    pub(crate) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<Empty, Status> {
        required("volume id", &request.volume_id)?;
        required("staging target path", &request.staging_target_path)?;
        let capability = Self::capability(request.volume_capability)?;
        let at = Self::place(&request.volume_id)?;
        let _claim = self.claim(&at.id())?;
        let context = &request.volume_context;
        let named = word(context, "monitors")
            .map(|list| list.split(',').map(|one| one.trim().to_owned()).collect());
        let key = request.secrets.get("userKey").map(|key| STANDARD.decode(key.trim()));
        let bad = |_| Status::invalid_argument("the secret's userKey is no Ceph key");
        let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        let reads =
            [access::SINGLE_NODE_READER_ONLY, access::MULTI_NODE_READER_ONLY].contains(&mode);
        let fs_type = capability.mount.as_ref().map(|mount| mount.fs_type.clone());
        let stage = Stage {
            image: Rbd {
                monitors: named.unwrap_or(self.config.monitors.clone()),
                pool: at.pool,
                image: at.image,
                user: request.secrets.get("userID").cloned().unwrap_or(self.config.user.clone()),
                secret: None,
                fs_type: fs_type.filter(|name| !name.is_empty()).unwrap_or("ext4".to_owned()),
            },
            secret: key.transpose().map_err(bad)?,
            grip: if reads { Grip::Reader } else { Grip::Writer },
            target: PathBuf::from(&request.staging_target_path),
            capability,
        };
        blocking(move || stage.run()).await.map(|()| Empty {})
    }

    pub(crate) async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<Empty, Status> {
        required("volume id", &request.volume_id)?;
        let target = PathBuf::from(required("staging target path", &request.staging_target_path)?);
        let at = Self::place(&request.volume_id)?;
        let _claim = self.claim(&at.id())?;
        blocking(move || {
            unmount_now(&target).map_err(|err| internal(&err))?;
            match mapped(&at) {
                Some(one) => rbd::unmap(&one).map_err(|err| internal(&err)),
                None => Ok(()),
            }
        })
        .await
        .map(|()| Empty {})
    }

    pub(crate) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<Empty, Status> {
        required("volume id", &request.volume_id)?;
        let target = PathBuf::from(required("target path", &request.target_path)?);
        let capability = Self::capability(request.volume_capability)?;
        let staged = PathBuf::from(required("staging target path", &request.staging_target_path)?);
        let at = Self::place(&request.volume_id)?;
        let _claim = self.claim(&at.id())?;
        let access = if request.readonly { Access::ReadOnly } else { Access::ReadWrite };
        blocking(move || {
            let unstaged = || Status::failed_precondition("the volume is not staged here");
            if is_mounted(&target) {
                return Ok(());
            }
            if let Some(above) = target.parent() {
                fs::create_dir_all(above).map_err(|err| internal(&err))?;
            }
            let source = if capability.block.is_some() {
                // A file to show the device's node at.
                fs::write(&target, "").map_err(|err| internal(&err))?;
                PathBuf::from(mapped(&at).ok_or_else(unstaged)?.device())
            } else if is_mounted(&staged) {
                staged
            } else {
                return Err(unstaged());
            };
            bind(&source, &target, access).map_err(|err| internal(&err))
        })
        .await
        .map(|()| Empty {})
    }

    pub(crate) async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<Empty, Status> {
        required("volume id", &request.volume_id)?;
        let target = PathBuf::from(required("target path", &request.target_path)?);
        let _claim = self.claim(&request.volume_id)?;
        blocking(move || {
            unmount_now(&target).map_err(|err| internal(&err))?;
            let gone =
                if target.is_dir() { fs::remove_dir(&target) } else { fs::remove_file(&target) };
            match gone {
                Err(err) if err.kind() != io::ErrorKind::NotFound => Err(internal(&err)),
                _ => Ok(Empty {}),
            }
        })
        .await
    }

    pub(crate) async fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        required("volume id", &request.volume_id)?;
        let path = PathBuf::from(required("volume path", &request.volume_path)?);
        let at = Place::parse(&request.volume_id).filter(|_| is_mounted(&path));
        let at = at.ok_or_else(|| Status::not_found("the volume is not there"))?;
        let (found, is_mapped) = blocking(move || (statvfs(&path), mapped(&at).is_some())).await;
        // A file system that gave up, or lost its disk, is told as ill and not as an error.
        let ill = match (&found, is_mapped) {
            (Err(err), _) => Some(format!("the file system does not answer: {err}")),
            (Ok(_), false) => Some("the image behind the file system is not mapped".to_owned()),
            (Ok(_), true) => None,
        };
        let condition = VolumeCondition {
            abnormal: ill.is_some(),
            message: ill.unwrap_or_else(|| "the volume is well".to_owned()),
        };
        let volume_condition = Some(condition);
        let Ok(found) = found else {
            return Ok(NodeGetVolumeStatsResponse { usage: Vec::new(), volume_condition });
        };
        let long = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let bytes = |blocks: u64| long(blocks.saturating_mul(found.fragment_size()));
        let (free, used) =
            (found.blocks_free(), found.blocks().saturating_sub(found.blocks_free()));
        let inodes = found.files().saturating_sub(found.files_free());
        let space = VolumeUsage {
            available: bytes(found.blocks_available().min(free)),
            total: bytes(found.blocks()),
            used: bytes(used),
            unit: unit::BYTES,
        };
        let files = VolumeUsage {
            available: long(found.files_free()),
            total: long(found.files()),
            used: long(inodes),
            unit: unit::INODES,
        };
        Ok(NodeGetVolumeStatsResponse { usage: vec![space, files], volume_condition })
    }

    pub(crate) async fn grow(
        &self,
        request: NodeExpandVolumeRequest,
    ) -> Result<NodeExpandVolumeResponse, Status> {
        required("volume id", &request.volume_id)?;
        let path = PathBuf::from(required("volume path", &request.volume_path)?);
        let at = Self::place(&request.volume_id)?;
        let _claim = self.claim(&at.id())?;
        let fs_type = request.volume_capability.and_then(|one| one.mount).map(|one| one.fs_type);
        let capacity_bytes = request.capacity_range.map_or(0, |range| range.required_bytes);
        blocking(move || {
            let missing = || Status::not_found("the volume is not mapped here");
            let one = mapped(&at).ok_or_else(missing)?;
            rbd::refresh(&one).map_err(|err| internal(&err))?;
            let fs_type = fs_type.unwrap_or_default();
            if is_mounted(&path) && path.is_dir() {
                grow(&fs_type, Path::new(&one.device()), &path).map_err(|err| internal(&err))?;
            }
            Ok(NodeExpandVolumeResponse { capacity_bytes })
        })
        .await
    }
}

fn resolve(monitors: &[String]) -> Result<Vec<SocketAddr>, Status> {
    let known = monitors.iter().filter_map(|one| Monitor::parse(one));
    let found: Vec<SocketAddr> = known
        .filter_map(|one| (one.host.as_str(), one.port).to_socket_addrs().ok()?.next())
        .collect();
    if found.is_empty() {
        return Err(Status::invalid_argument("no monitor has an address"));
    }
    Ok(found)
}
