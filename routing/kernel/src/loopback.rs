//! Loop devices: a file as a block device.
//!
//! Spec: loop(4).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

use crate::mount::Access;

/// linux/loop.h.
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// Where the kernel shows what is behind each device.
const BLOCK: &str = "/sys/block";

/// How often a free device is asked for before giving up: others may take it between the calls.
const TRIES: u32 = 16;

/// Says which step of attaching a loop device failed.
#[derive(Debug, Error)]
pub enum LoopError {
    /// A device or the file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No free loop device was given.
    #[error("the kernel gives no free loop device")]
    Full(#[source] Errno),
    /// The file was refused.
    #[error("cannot attach {file} to {device}")]
    Attach {
        /// The backing file.
        file: PathBuf,
        /// The device that refused it.
        device: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The device was refused what was asked of it.
    #[error("cannot {what} {device}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The device.
        device: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Attaches `file`, read-only, to a free loop device and returns the device's path.
///
/// It stays attached until the machine ends: the one user is the root file system.
///
/// # Errors
///
/// When the loop module is absent, no device is free, or the file cannot be opened.
pub fn attach_read_only(file: &Path) -> Result<PathBuf, LoopError> {
    attach(file, Access::ReadOnly)
}

/// Attaches `file` to a free loop device, until [`detach`], and returns the device's path.
///
/// # Errors
///
/// When the loop module is absent, no device is free, or the file cannot be opened.
pub fn attach(file: &Path, access: Access) -> Result<PathBuf, LoopError> {
    let backing = open(file, access)?;
    let control = open(Path::new("/dev/loop-control"), Access::ReadOnly)?;
    let mut last = Errno::EBUSY;
    for _ in 0..TRIES {
        let number = request(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0).map_err(LoopError::Full)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path, access)?;
        match request(device.as_raw_fd(), LOOP_SET_FD, backing.as_raw_fd()) {
            Ok(_) => return Ok(path),
            Err(Errno::EBUSY) => last = Errno::EBUSY,
            Err(source) => {
                return Err(LoopError::Attach { file: file.to_owned(), device: path, source });
            }
        }
    }
    Err(LoopError::Full(last))
}

/// Finds the device that a file is attached to.
#[must_use]
pub fn attached(file: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(BLOCK).ok()?;
    let behind = |entry: &fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(text.trim_end_matches('\n')) == file
    };
    let found = entries.flatten().find(behind)?;
    Some(Path::new("/dev").join(found.file_name()))
}

/// Takes the file from a device; while the device is in use, as soon as it no longer is.
///
/// # Errors
///
/// When there is no such device or it has no file.
pub fn detach(device: &Path) -> Result<(), LoopError> {
    ask(device, "take the file from", LOOP_CLR_FD)
}

/// Makes a device as large as its file has become.
///
/// # Errors
///
/// When there is no such device or it has no file.
pub fn grow(device: &Path) -> Result<(), LoopError> {
    ask(device, "grow", LOOP_SET_CAPACITY)
}

fn ask(device: &Path, what: &'static str, code: libc::Ioctl) -> Result<(), LoopError> {
    let opened = open(device, Access::ReadOnly)?;
    let refused = |source| LoopError::Refused { what, device: device.to_owned(), source };
    request(opened.as_raw_fd(), code, 0).map(drop).map_err(refused)
}

fn open(path: &Path, access: Access) -> Result<File, LoopError> {
    // A read-only descriptor makes the loop device read-only as well.
    let result = OpenOptions::new().read(true).write(access == Access::ReadWrite).open(path);
    result.map_err(|source| LoopError::Open { path: path.to_owned(), source })
}

fn request(fd: RawFd, code: libc::Ioctl, argument: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: all these requests take their argument by value and touch no memory of ours; the
    // descriptors are owned by the caller and open for the whole call.
    // JUSTIFICATION: neither std nor nix wraps the loop requests.
    let result = unsafe { libc::ioctl(fd, code, argument) };
    Errno::result(result)
}
