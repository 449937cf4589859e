//! The node half: the kernel maps, we mount.

use std::fs;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ceph::Place;
use csi::Status;
use csi::message::*;
use kernel::disk::{grow, is_mounted, mount_disk, mounts, unmount_now};
use kernel::mount::{Access, bind};
use nix::sys::statvfs::{FsFlags, Statvfs, statvfs};
use volumes::disk::{Flag, split_options};
use volumes::rbd::{Grip, Rbd};

use crate::controller::{COPY, check_capability, word};
use crate::door::{Door, internal};
use crate::images::Images;
use crate::publish::READ_ONLY;
use crate::{Driver, required};

/// Runs kernel work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(err) => std::panic::resume_unwind(err.into_panic()),
    }
}

/// What it takes to bring an image here.
struct Stage {
    door: Door,
    image: Rbd,
    key: Option<String>,
    grip: Grip,
    /// The file system may be smaller than the image.
    copy: bool,
    target: PathBuf,
    capability: VolumeCapability,
}

impl Stage {
    fn run(self) -> Result<(), Status> {
        let disk = self.door.bring(&self.image, self.key.as_deref(), self.grip)?;
        let device = disk.device();
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
            .map_err(|err| internal(&err))?;
        if self.copy && self.grip != Grip::Reader {
            let grown = grow(&self.image.fs_type, &device, &self.target);
            if let Err(err) = grown {
                // Half a step is none: the next try mounts and grows it again.
                drop(unmount_now(&self.target));
                return Err(internal(&err));
            }
        }
        Ok(())
    }
}

/// What it takes to show a staged volume to a pod.
struct Publish {
    door: Door,
    at: Place,
    staged: PathBuf,
    target: PathBuf,
    capability: VolumeCapability,
    access: Access,
}

impl Publish {
    fn run(self) -> Result<(), Status> {
        let unstaged = || Status::failed_precondition("the volume is not staged here");
        let device = self.door.find(&self.at).ok_or_else(unstaged)?.device();
        let block = self.capability.block.is_some();
        if !block && !is_mounted(&self.staged) {
            return Err(unstaged());
        }
        let shown = self.shown(&device);
        if is_mounted(&self.target) {
            return if shown.contains(&self.target) {
                self.check_access()
            } else {
                Err(Status::failed_precondition("something else is mounted at the target path"))
            };
        }
        let mode = self.capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        if mode == access::SINGLE_NODE_SINGLE_WRITER
            && let Some(other) = shown.first()
        {
            let why = format!("the volume has one writer, at {}", other.display());
            return Err(Status::failed_precondition(why));
        }
        if let Some(above) = self.target.parent() {
            fs::create_dir_all(above).map_err(|err| internal(&err))?;
        }
        let source = if block {
            // A file to show the device's node at.
            fs::write(&self.target, "").map_err(|err| internal(&err))?;
            device
        } else {
            self.staged
        };
        bind(&source, &self.target, self.access).map_err(|err| internal(&err))
    }

    /// Where else than at its staging path the volume is to be seen.
    fn shown(&self, device: &Path) -> Vec<PathBuf> {
        let name = device.file_name().map(|name| format!("/{}", name.to_string_lossy()));
        let ours = |one: &kernel::disk::Mounted| {
            let by_node = name.as_deref() == Some(&one.root);
            (Path::new(&one.source) == device || by_node) && one.target != self.staged
        };
        mounts().into_iter().filter(ours).map(|one| one.target).collect()
    }

    /// A target that is there already serves only who wants to use it the same way.
    fn check_access(&self) -> Result<(), Status> {
        if self.capability.block.is_some() {
            return Ok(());
        }
        let reads = |path: &Path| {
            let found = statvfs(path).map_err(|err| internal(&err))?;
            Ok::<_, Status>(found.flags().contains(FsFlags::ST_RDONLY))
        };
        let wanted = self.access == Access::ReadOnly || reads(&self.staged)?;
        if reads(&self.target)? == wanted {
            return Ok(());
        }
        Err(Status::already_exists("the target path is there, to be used otherwise"))
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
        let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        let reads = [access::SINGLE_NODE_READER_ONLY, access::MULTI_NODE_READER_ONLY]
            .contains(&mode)
            || word(&request.publish_context, READ_ONLY) == Some("true");
        let fs_type = capability.mount.as_ref().map(|mount| mount.fs_type.clone());
        let stage = Stage {
            door: self.door.clone(),
            image: Rbd {
                monitors: named.unwrap_or(self.config.monitors.clone()),
                pool: at.pool,
                image: at.image,
                user: request.secrets.get("userID").cloned().unwrap_or(self.config.user.clone()),
                secret: None,
                fs_type: fs_type.filter(|name| !name.is_empty()).unwrap_or("ext4".to_owned()),
            },
            key: request.secrets.get("userKey").map(|key| key.trim().to_owned()),
            copy: word(context, COPY).is_some(),
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
        let door = self.door.clone();
        blocking(move || {
            unmount_now(&target).map_err(|err| internal(&err))?;
            door.release(&at)
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
        let door = self.door.clone();
        let publish = Publish { door, at, staged, target, capability, access };
        blocking(move || publish.run()).await.map(|()| Empty {})
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
        let door = self.door.clone();
        let look = move || (usage(&path), door.find(&at).is_some());
        let (found, is_there) = blocking(look).await;
        // A file system that gave up, or lost its disk, is told as ill and not as an error.
        let ill = match (&found, is_there) {
            (Err(err), _) => Some(format!("the volume does not answer: {err}")),
            (Ok(_), false) => Some("the image behind the volume is no disk here".to_owned()),
            (Ok(_), true) => None,
        };
        let condition = VolumeCondition {
            abnormal: ill.is_some(),
            message: ill.unwrap_or_else(|| "the volume is well".to_owned()),
        };
        let volume_condition = Some(condition);
        Ok(NodeGetVolumeStatsResponse { usage: found.unwrap_or_default(), volume_condition })
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
        let door = self.door.clone();
        blocking(move || {
            let missing = || Status::not_found("the volume is not there");
            let disk = door.find(&at).filter(|_| is_mounted(&path)).ok_or_else(missing)?;
            disk.refresh()?;
            if path.is_dir() {
                let fs_type = fs_type.filter(|name| !name.is_empty());
                let fs_type = fs_type.or_else(|| kind(&path)).unwrap_or_default();
                grow(&fs_type, &disk.device(), &path).map_err(|err| internal(&err))?;
            }
            Ok(NodeExpandVolumeResponse { capacity_bytes })
        })
        .await
    }
}

/// How much of a volume is used: of a block device, only how large it is.
fn usage(path: &Path) -> io::Result<Vec<VolumeUsage>> {
    let long = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    if fs::metadata(path)?.file_type().is_block_device() {
        let total = long(fs::File::open(path)?.seek(SeekFrom::End(0))?);
        return Ok(vec![VolumeUsage { total, unit: unit::BYTES, ..VolumeUsage::default() }]);
    }
    let found: Statvfs = statvfs(path)?;
    let bytes = |blocks: u64| long(blocks.saturating_mul(found.fragment_size()));
    let (free, used) = (found.blocks_free(), found.blocks().saturating_sub(found.blocks_free()));
    let space = VolumeUsage {
        available: bytes(found.blocks_available().min(free)),
        total: bytes(found.blocks()),
        used: bytes(used),
        unit: unit::BYTES,
    };
    let files = VolumeUsage {
        available: long(found.files_free()),
        total: long(found.files()),
        used: long(found.files().saturating_sub(found.files_free())),
        unit: unit::INODES,
    };
    Ok(vec![space, files])
}

/// The kind of the file system at a path.
fn kind(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let path = path.to_str()?;
    let own = table.lines().rev().find(|line| line.split(' ').nth(4) == Some(path))?;
    own.split_once(" - ")?.1.split(' ').next().map(str::to_owned)
}
