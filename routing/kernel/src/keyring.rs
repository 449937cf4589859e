//! Keys that the kernel keeps for its own clients.
//!
//! Spec: keyrings(7), add_key(2), keyctl(2).

use std::ffi::CString;

use nix::errno::Errno;

/// Ends with the process; searched by the kernel when it acts for one of our threads.
const PROCESS_KEYRING: libc::c_long = -2;
/// linux/keyctl.h.
const KEYCTL_UNLINK: libc::c_long = 9;

/// A key in the keyring of this process; taken out when dropped.
///
/// A thread that was there before the process had a keyring does not see it: the key is to be
/// used on the thread that added it.
#[derive(Debug)]
pub struct Key {
    serial: libc::c_long,
}

impl Key {
    /// Puts a key of the kernel's type `kind` under `name`.
    ///
    /// # Errors
    ///
    /// When the kernel knows no such type, the bytes are no such key, or the quota is used up.
    pub fn add(kind: &str, name: &str, bytes: &[u8]) -> Result<Self, Errno> {
        let kind = CString::new(kind).map_err(|_| Errno::EINVAL)?;
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        // SAFETY: both strings end with a zero and the bytes are as long as is said; the kernel
        // copies them all before the call returns.
        // JUSTIFICATION: neither std nor nix wraps add_key.
        let serial = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                kind.as_ptr(),
                name.as_ptr(),
                bytes.as_ptr(),
                bytes.len(),
                PROCESS_KEYRING,
            )
        };
        Errno::result(serial).map(|serial| Self { serial })
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: the call takes numbers only. A key that is gone already is what we want.
        // JUSTIFICATION: neither std nor nix wraps keyctl.
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, self.serial, PROCESS_KEYRING) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_there_until_it_is_dropped() {
        let listed = || std::fs::read_to_string("/proc/keys").unwrap_or_default();
        match Key::add("user", "muster-test-key", b"secret") {
            // Some sandboxes forbid keyrings altogether.
            Err(err) => assert!(matches!(err, Errno::EPERM | Errno::ENOSYS | Errno::EACCES)),
            Ok(key) => {
                let key_line = format!("{:08x}", key.serial);
                assert!(listed().contains(&key_line) || listed().is_empty());
                let again = Key::add("user", "muster-test-key", b"other").unwrap();
                assert_eq!(again.serial, key.serial, "a key of the same name is changed");
            }
        }
        assert_eq!(Key::add("no-such-type", "x", b"").map(drop).unwrap_err(), Errno::ENODEV);
        assert_eq!(Key::add("user", "a\0b", b"").map(drop).unwrap_err(), Errno::EINVAL);
    }
}
