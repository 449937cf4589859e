//! Loop devices: a file as a block device.
//!
//! Spec: loop(4).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

/// linux/loop.h.
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

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
}

/// Attaches `file`, read-only, to a free loop device and returns the device's path.
///
/// It stays attached until the machine ends: the one user is the root file system.
///
/// # Errors
///
/// When the loop module is absent, no device is free, or the file cannot be opened.
pub fn attach_read_only(file: &Path) -> Result<PathBuf, LoopError> {
    let backing = open(file)?;
    let control = open(Path::new("/dev/loop-control"))?;
    let mut last = Errno::EBUSY;
    for _ in 0..TRIES {
        let number = request(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0).map_err(LoopError::Full)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path)?;
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

fn open(path: &Path) -> Result<File, LoopError> {
    // A read-only descriptor makes the loop device read-only as well.
    let result = OpenOptions::new().read(true).open(path);
    result.map_err(|source| LoopError::Open { path: path.to_owned(), source })
}

fn request(fd: RawFd, code: libc::Ioctl, argument: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: both requests take their argument by value and touch no memory of ours; the
    // descriptors are owned by the caller and open for the whole call.
    // JUSTIFICATION: neither std nor nix wraps the loop requests.
    let result = unsafe { libc::ioctl(fd, code, argument) };
    Errno::result(result)
}
