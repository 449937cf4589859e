//! Disks with mount options: what is on them, making a file system, mounting. Shares are
//! [`crate::share`]'s.
//!
//! What is done to a disk is decided by `volumes::disk`; nothing here overwrites one by itself.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};
use thiserror::Error;
use volumes::disk::{Flag, HEAD_BYTES, Options, Prepare, plan_format, recognise};

use crate::mount::MountError;

/// Why a disk could not be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It has something on it that does not suit.
    #[error("{device}: {why}")]
    Refused {
        /// The disk.
        device: PathBuf,
        /// Why.
        why: String,
    },
    /// A program failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Which.
        program: &'static str,
        /// Its own last words.
        said: String,
    },
    /// The kernel refused the mount.
    #[error("the mount was refused")]
    Mount(#[from] MountError),
    /// A path in a volume leads out of it, or cannot be made.
    #[error("cannot reach {path} inside of the volume")]
    Beneath {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// A mount as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is.
    pub target: PathBuf,
    /// The device or share.
    pub source: String,
    /// The part of it that is seen.
    pub root: String,
    /// The file system.
    pub kind: String,
    /// The number of what is mounted, as `0:51`; mounts of the same have the same.
    pub device: String,
    /// The file system's own options.
    pub options: String,
}

/// Lists the mounts this process sees, the oldest first.
#[must_use]
pub fn mounts() -> Vec<Mounted> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse_mounts(table: &str) -> Vec<Mounted> {
    let parse = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(2);
        let device = head.next()?.to_owned();
        let root = unescape(head.next()?);
        let target = PathBuf::from(unescape(head.next()?));
        let mut tail = tail.split(' ');
        let (kind, source) = (tail.next()?.to_owned(), unescape(tail.next()?));
        let options = tail.next().unwrap_or_default().to_owned();
        Some(Mounted { target, source, root, kind, device, options })
    };
    table.lines().filter_map(parse).collect()
}

/// The kernel writes blanks and backslashes as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                out.push(char::from(code));
                out.push_str(rest);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// Tells whether something is mounted at a path.
#[must_use]
pub fn is_mounted(target: &Path) -> bool {
    mounts().iter().any(|mount| mount.target == target)
}

/// Mounts a disk, after making a file system on one that is blank.
///
/// # Errors
///
/// When the disk cannot be read, has something else on it, or the kernel refuses.
pub fn mount_disk(
    device: &Path,
    target: &Path,
    fs_type: &str,
    options: &Options,
) -> Result<(), DiskError> {
    let read_only = options.flags.contains(&Flag::ReadOnly);
    let head =
        read_head(device).map_err(|source| DiskError::Read { path: device.to_owned(), source })?;
    match plan_format(&recognise(&head), fs_type, read_only) {
        Prepare::Nothing => {}
        Prepare::Refuse(why) => return Err(DiskError::Refused { device: device.to_owned(), why }),
        Prepare::Format(program, arguments) => run(program, &arguments, device)?,
    }
    let (source, data) = (device.to_string_lossy(), options.data.join(","));
    crate::mount::mount_with(fs_type, &source, target, flags_of(options), &data)?;
    Ok(())
}

/// The flags of mount(2) among options.
pub(crate) fn flags_of(options: &Options) -> MsFlags {
    options.flags.iter().fold(MsFlags::empty(), |all, flag| all | bits(*flag))
}

/// Makes the file system of a disk that has grown use all of it; mounted disks only.
///
/// # Errors
///
/// When the program fails; it changes nothing when there is nothing to do.
pub fn grow(fs_type: &str, device: &Path, target: &Path) -> Result<(), DiskError> {
    match fs_type {
        "xfs" => run("xfs_growfs", &["-d"], target),
        _ => run("resize2fs", &[], device),
    }
}

/// Takes a mount away now, or says that it is in use.
///
/// Something that is not mounted is no error.
///
/// # Errors
///
/// When files in it are open or the kernel refuses.
pub fn unmount_now(target: &Path) -> Result<(), MountError> {
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(source) => Err(MountError::Unmount { target: target.to_owned(), source }),
    }
}

/// Opens a path below `root` that never leads out of it, whatever links containers have made;
/// directories that are missing are made.
///
/// # Errors
///
/// When a link leads out, or a directory cannot be made.
pub fn open_beneath(root: &Path, path: &str) -> Result<OwnedFd, DiskError> {
    let whole = Path::new(path);
    let fail = |source| DiskError::Beneath { path: whole.to_owned(), source };
    let top =
        File::open(root).map_err(|source| DiskError::Read { path: root.to_owned(), source })?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&top, whole, how) {
        Ok(found) => return Ok(found),
        Err(Errno::ENOENT) => {}
        Err(source) => return Err(fail(source)),
    }
    let mut at: OwnedFd = top.into();
    for step in whole.components() {
        let Component::Normal(name) = step else { continue };
        at = match openat2(&at, name, how) {
            Err(Errno::ENOENT) => {
                match mkdirat(&at, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(source) => return Err(fail(source)),
                }
                openat2(&at, name, how).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
    }
    Ok(at)
}

/// Makes an opened file or directory visible at `target`.
///
/// # Errors
///
/// When the kernel refuses.
pub fn bind_opened(opened: &OwnedFd, target: &Path) -> Result<(), MountError> {
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    crate::mount::mount_with("bind", &source, target, MsFlags::MS_BIND | MsFlags::MS_REC, "")
}

fn read_head(device: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let max = u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX);
    File::open(device)?.take(max).read_to_end(&mut head)?;
    Ok(head)
}

fn run(program: &'static str, arguments: &[&str], last: &Path) -> Result<(), DiskError> {
    let output = Command::new(program).args(arguments).arg(last).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(DiskError::Program { program, said })
        }
        Err(err) => Err(DiskError::Program { program, said: err.to_string() }),
    }
}

fn bits(flag: Flag) -> MsFlags {
    match flag {
        Flag::ReadOnly => MsFlags::MS_RDONLY,
        Flag::NoAccessTime => MsFlags::MS_NOATIME,
        Flag::NoDirectoryAccessTime => MsFlags::MS_NODIRATIME,
        Flag::RelativeAccessTime => MsFlags::MS_RELATIME,
        Flag::StrictAccessTime => MsFlags::MS_STRICTATIME,
        Flag::NoDevices => MsFlags::MS_NODEV,
        Flag::NoPrograms => MsFlags::MS_NOEXEC,
        Flag::NoSetUser => MsFlags::MS_NOSUID,
        Flag::Synchronous => MsFlags::MS_SYNCHRONOUS,
        Flag::SynchronousDirectories => MsFlags::MS_DIRSYNC,
        Flag::LazyTime => MsFlags::MS_LAZYTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_listed_with_blanks_in_their_names() {
        let table = "36 35 98:0 /mnt1 /a\\040b rw,noatime shared:1 - ext4 /dev/rbd0 rw\nodd line\n";
        let wanted = Mounted {
            target: "/a b".into(),
            source: "/dev/rbd0".into(),
            root: "/mnt1".into(),
            kind: "ext4".into(),
            device: "98:0".into(),
            options: "rw".into(),
        };
        assert_eq!(parse_mounts(table), [wanted]);
        assert_eq!(unescape("\\1\\\\040"), "\\1\\ ");
    }

    #[test]
    fn a_link_never_leads_out_of_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        std::os::unix::fs::symlink("real", root.join("in")).unwrap();
        let seen = |path: &str| {
            let opened = open_beneath(&root, path).ok()?;
            fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()
        };
        assert_eq!(seen("in/made/deep"), Some(root.join("real/made/deep")));
        assert!(root.join("real/made/deep").is_dir());
        for path in ["out", "etc/passwd", "etc/new", "real/../../secret", "out/x"] {
            assert_eq!(seen(path), None, "{path}");
        }
    }
}
