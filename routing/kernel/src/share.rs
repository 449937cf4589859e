//! Mounting and unmounting what a server of the network is behind, and which may be silent.
//!
//! A mount or unmount that waits for a silent server cannot be called back by the thread that
//! made it, but its process can be killed. So each is made by a short-lived child with a limit.
//! What waits already, a container's process among it, is let go by [`abandon`].
//!
//! Spec: mount(2), umount(2), Linux fs/nfs/sysfs.c (`/sys/fs/nfs/DEVICE/shutdown`).

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use thiserror::Error;
use volumes::disk::Options;
use volumes::share::{Attempt, explain};

use crate::disk::{Mounted, flags_of, is_mounted, mounts};

/// How long an unmount may take before its server counts as silent.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(20);

/// Why a share could not be mounted or taken away.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The mount point could not be made.
    #[error("cannot make the directory {path}")]
    Directory {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused the mount.
    #[error("cannot mount {share}: {why}")]
    Refused {
        /// What was to be mounted.
        share: String,
        /// What the error number means here.
        why: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The server said nothing for too long.
    #[error("cannot mount {share}: the server did not answer within {} s", limit.as_secs())]
    Silent {
        /// What was to be mounted.
        share: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// No child could be made.
    #[error("cannot make a process that mounts")]
    Process(#[source] Errno),
    /// It is still in use.
    #[error("cannot unmount {target}")]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

impl ShareError {
    /// The kernel's error number, when it refused a mount.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            // The enumeration's numbers are the kernel's.
            Self::Refused { source, .. } => Some(*source as i32),
            _ => None,
        }
    }
}

/// Mounts a share within a limit, making the mount point when it is missing.
///
/// # Errors
///
/// When the kernel or the server refuses, or the server says nothing; worth retrying.
pub fn mount_within(
    attempt: &Attempt,
    target: &Path,
    options: &Options,
    limit: Duration,
) -> Result<(), ShareError> {
    make_dir(target)?;
    let refused = |source| refused(attempt, source);
    let text = |text: &[u8]| CString::new(text).map_err(|_| refused(Errno::EINVAL));
    let kind = text(attempt.kind.as_bytes())?;
    let source = text(attempt.source.as_bytes())?;
    let place = text(target.as_os_str().as_bytes())?;
    let data = text(attempt.data.as_bytes())?;
    let flags = flags_of(options).bits();
    let mount = || raw_mount(&source, &place, &kind, flags, &data);
    match in_child(limit, mount).map_err(ShareError::Process)? {
        Some(0) => Ok(()),
        Some(number) => Err(refused(Errno::from_raw(number))),
        None => Err(ShareError::Silent { share: attempt.source.clone(), limit }),
    }
}

/// Mounts a share that the kernel itself gives up on, by this very thread: a child would not see
/// this process's keys.
///
/// # Errors
///
/// As [`mount_within`].
pub fn mount_here(attempt: &Attempt, target: &Path, options: &Options) -> Result<(), ShareError> {
    make_dir(target)?;
    let (source, data) = (Some(attempt.source.as_str()), Some(attempt.data.as_str()));
    nix::mount::mount(source, target, Some(attempt.kind), flags_of(options), data)
        .map_err(|source| refused(attempt, source))
}

fn make_dir(target: &Path) -> Result<(), ShareError> {
    fs::create_dir_all(target)
        .map_err(|source| ShareError::Directory { path: target.to_owned(), source })
}

fn refused(attempt: &Attempt, source: Errno) -> ShareError {
    let why = explain(attempt.kind, source as i32);
    ShareError::Refused { share: attempt.source.clone(), why, source }
}

/// Takes a share's mount away; one that is gone already is no error.
///
/// `answers` says whether its server does. Where it does not, and nobody else on this machine sees
/// the share, what still waits for the server fails; what was not written there is lost, as it is
/// when a machine dies.
///
/// # Errors
///
/// When files in it are open and the server answers.
pub fn unmount_share(mount: &Mounted, answers: bool) -> Result<(), ShareError> {
    let all = mounts();
    let alone = is_alone(mount, &all);
    if alone && !answers {
        abandon(mount);
    }
    let way = if answers { MntFlags::empty() } else { MntFlags::MNT_DETACH };
    let done = unmount(&mount.target, way)?;
    // A child that hangs has unmounted, and waits for the server to take the rest.
    if done.is_none() && alone {
        abandon(mount);
    }
    if !is_mounted(&mount.target) {
        return Ok(());
    }
    let number = match done {
        None => unmount(&mount.target, MntFlags::MNT_DETACH)?,
        done => done,
    };
    if is_mounted(&mount.target) {
        let source = number.map_or(Errno::ETIMEDOUT, Errno::from_raw);
        return Err(ShareError::Unmount { target: mount.target.clone(), source });
    }
    Ok(())
}

/// Tells whether no other mount of the machine shows the same share.
#[must_use]
pub fn is_alone(mount: &Mounted, all: &[Mounted]) -> bool {
    !all.iter().any(|one| one.device == mount.device && one.target != mount.target)
}

/// Lets all that waits for a share's server fail, for good: the server is given up.
pub fn abandon(mount: &Mounted) {
    if mount.kind.starts_with("nfs") {
        // Kernels before 6.5 have no such file; the forced unmount ends what waits just now.
        let _missing = fs::write(format!("/sys/fs/nfs/{}/shutdown", mount.device), "1");
    }
    // That it is still in use is expected; what the call is made for is done before.
    let _busy = unmount(&mount.target, MntFlags::MNT_FORCE);
}

/// Unmounts within the limit; the error number is as [`in_child`] has it.
fn unmount(target: &Path, flags: MntFlags) -> Result<Option<i32>, ShareError> {
    let place = CString::new(target.as_os_str().as_bytes()).unwrap_or_default();
    let flags = (flags | MntFlags::UMOUNT_NOFOLLOW).bits();
    in_child(UNMOUNT_LIMIT, move || raw_unmount(&place, flags)).map_err(ShareError::Process)
}

/// Runs a few system calls in a child and gives their error number, 0 for none; `None` when the
/// child had to be killed at the limit.
///
/// `work` must be nothing but system calls: the child has one thread, and locks of the others may
/// be held for ever in it.
fn in_child(limit: Duration, work: impl FnOnce() -> i32) -> Result<Option<i32>, Errno> {
    let parent = nix::unistd::getpid();
    // SAFETY: the child only makes system calls, by `work` and below, and ends by `_exit`.
    // JUSTIFICATION: a thread that hangs in the kernel cannot be ended, a process can.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: as above; prctl takes numbers only, and `_exit` runs no handlers.
            // JUSTIFICATION: nothing of this process may outlive it, and nix wraps neither.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if nix::unistd::getppid() != parent {
                    libc::_exit(libc::ECHILD);
                }
                libc::_exit(work())
            }
        }
        ForkResult::Parent { child } => wait_within(child, limit),
    }
}

fn wait_within(child: Pid, limit: Duration) -> Result<Option<i32>, Errno> {
    // SAFETY: the call takes numbers only; the child is ours and not yet waited for.
    // JUSTIFICATION: neither std nor nix wraps pidfd_open.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it for us, and nobody else closes it.
    // JUSTIFICATION: what a raw system call opened has no owner yet.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut asked, timeout) {
            Err(Errno::EINTR) => {}
            Err(err) => return Err(err),
            Ok(0) => {
                kill(child, Signal::SIGKILL)?;
                // Most waits of the kernel end with it; a child in another stays until then.
                let soon = PollTimeout::from(200u8);
                let _still = poll(&mut asked, soon);
                let _gone = waitpid(child, Some(WaitPidFlag::WNOHANG));
                return Ok(None);
            }
            Ok(_) => {
                return Ok(match waitpid(child, None)? {
                    WaitStatus::Exited(_, number) => Some(number),
                    _ => Some(libc::EINTR),
                });
            }
        }
    }
}

fn raw_mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> i32 {
    // SAFETY: all are strings that end with a zero and live through the call.
    // JUSTIFICATION: nix copies its arguments, which a child of many threads must not.
    let done = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    };
    if done == 0 { 0 } else { Errno::last_raw() }
}

fn raw_unmount(target: &CStr, flags: libc::c_int) -> i32 {
    // SAFETY: the string ends with a zero and lives through the call.
    // JUSTIFICATION: as for the mount.
    let done = unsafe { libc::umount2(target.as_ptr(), flags) };
    if done == 0 { 0 } else { Errno::last_raw() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_hangs_is_ended_at_the_limit() {
        assert_eq!(in_child(Duration::from_secs(60), || 0), Ok(Some(0)));
        assert_eq!(in_child(Duration::from_secs(60), || libc::ENODEV), Ok(Some(libc::ENODEV)));
        let hang = || {
            // SAFETY: takes nothing, waits for a signal.
            // JUSTIFICATION: nothing else hangs so surely.
            unsafe { libc::pause() };
            0
        };
        assert_eq!(in_child(Duration::from_millis(50), hang), Ok(None));
        assert_eq!(in_child(Duration::ZERO, hang), Ok(None));
    }

    #[test]
    fn a_refused_mount_says_what_was_to_be_mounted_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = |data: &str| Attempt {
            kind: "tmpfs",
            source: "10.0.0.1:/srv".to_owned(),
            data: data.to_owned(),
        };
        let target = dir.path().join("made");
        let mount = |data: &str| {
            mount_within(&attempt(data), &target, &Options::default(), Duration::from_secs(60))
        };
        let err = mount("no-such-option").unwrap_err();
        if err.errno() == Some(libc::EPERM) {
            return; // Only root mounts.
        }
        assert_eq!(
            err.to_string(),
            "cannot mount 10.0.0.1:/srv: the kernel does not take one of the mount options"
        );
        mount("size=64k").unwrap();
        let found = mounts().into_iter().find(|one| one.target == target).unwrap();
        assert_eq!((&*found.kind, &*found.source), ("tmpfs", "10.0.0.1:/srv"));
        let open = fs::File::create(target.join("open")).unwrap();
        let busy = unmount_share(&found, true).unwrap_err();
        assert!(busy.to_string().starts_with("cannot unmount"), "{busy}");
        // A silent server is not waited for, whoever still holds a file.
        unmount_share(&found, false).unwrap();
        assert!(!is_mounted(&target));
        drop(open);
        unmount_share(&found, true).unwrap();
    }

    #[test]
    fn a_share_that_others_see_is_not_given_up() {
        let one = |target: &str, device: &str| Mounted {
            target: target.into(),
            source: "10.0.0.1:/srv".to_owned(),
            root: "/".to_owned(),
            kind: "nfs4".to_owned(),
            device: device.to_owned(),
            options: String::new(),
        };
        let all = [one("/a", "0:51"), one("/b", "0:51"), one("/c", "0:52")];
        assert!(!is_alone(&all[0], &all) && is_alone(&all[2], &all));
    }
}
