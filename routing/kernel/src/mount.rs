//! Mounts: what to put where, and giving the machine a new root.
//!
//! Thin and typed over mount(2). Decides nothing: callers say every place and flag.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use thiserror::Error;

/// Says which mount step failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// The mount point could not be made.
    #[error("cannot make the directory {path}")]
    Directory {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("cannot mount {kind} on {target}")]
    Mount {
        /// The file system's name.
        kind: String,
        /// The mount point.
        target: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The kernel refused to take a mount away.
    #[error("cannot unmount {target}")]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The root could not be changed.
    #[error("cannot enter {root} as the new root")]
    Root {
        /// The new root.
        root: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Whether a mount may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody writes.
    ReadOnly,
    /// Writing is allowed.
    ReadWrite,
}

/// Mounts a file system, making the mount point when it is missing.
///
/// `options` is the file system's own option string and may be empty.
///
/// # Errors
///
/// When the directory cannot be made or the kernel refuses.
pub fn mount(
    kind: &str,
    source: &str,
    target: &Path,
    access: Access,
    options: &str,
) -> Result<(), MountError> {
    let flags = match access {
        Access::ReadOnly => MsFlags::MS_RDONLY,
        Access::ReadWrite => MsFlags::empty(),
    };
    mount_with(kind, source, target, flags, options)
}

/// Makes the tree at `source` visible at `target` too.
///
/// # Errors
///
/// When the directory cannot be made or the kernel refuses.
pub fn bind(source: &Path, target: &Path, access: Access) -> Result<(), MountError> {
    let text = source.to_string_lossy();
    mount_with("bind", &text, target, MsFlags::MS_BIND | MsFlags::MS_REC, "")?;
    if access == Access::ReadOnly {
        // Flags are ignored by the first call of a bind mount; only a remount sets them.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount_with("bind", &text, target, flags, "")?;
    }
    Ok(())
}

/// Moves a mount elsewhere; programs with open files in it do not notice.
///
/// # Errors
///
/// When the directory cannot be made or the kernel refuses.
pub fn move_mount(source: &Path, target: &Path) -> Result<(), MountError> {
    mount_with("move", &source.to_string_lossy(), target, MsFlags::MS_MOVE, "")
}

/// Lets mounts made below `target` reach no other namespace, and none reach it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn make_private(target: &Path) -> Result<(), MountError> {
    mount_with("private", "none", target, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")
}

/// Takes a mount away now; files still open in it stay usable until they are closed.
///
/// Something that is not mounted is no error.
///
/// # Errors
///
/// When the kernel refuses.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(source) => Err(MountError::Unmount { target: target.to_owned(), source }),
    }
}

/// Makes `root` the root of this process by moving it over `/`.
///
/// `pivot_root` does not work on the initramfs, hence this older way. The files of the initramfs
/// stay in memory unless the caller deleted them before.
///
/// # Errors
///
/// When any of the steps is refused; the caller's root is then undefined.
pub fn switch_root(root: &Path) -> Result<(), MountError> {
    let fail = |source| MountError::Root { root: root.to_owned(), source };
    nix::unistd::chdir(root).map_err(fail)?;
    move_mount(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").map_err(fail)?;
    nix::unistd::chdir("/").map_err(fail)
}

pub(crate) fn mount_with(
    kind: &str,
    source: &str,
    target: &Path,
    flags: MsFlags,
    options: &str,
) -> Result<(), MountError> {
    if !target.exists() {
        fs::create_dir_all(target)
            .map_err(|source| MountError::Directory { path: target.to_owned(), source })?;
    }
    let data = (!options.is_empty()).then_some(options);
    nix::mount::mount(Some(source), target, Some(kind), flags, data).map_err(|source| {
        MountError::Mount { kind: kind.to_owned(), target: target.to_owned(), source }
    })
}
