//! Ceph images as block devices: the kernel's own client, by sysfs and keyring.
//!
//! No Ceph program is needed. The lines and what they mean are `volumes::rbd`'s; here they are
//! written and read. A map may take as long as its time limit: call it off the async threads.
//!
//! Spec: Linux Documentation/ABI/testing/sysfs-bus-rbd.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;
use volumes::rbd::{Grip, Mapped, Rbd, explain, find, render_add, render_remove};

use crate::keyring;

use crate::module::{ModuleError, Modules};

/// Where the bus is.
const BUS: &str = "/sys/bus/rbd";
/// Where the modules of all kernels are.
const MODULES: &str = "/lib/modules";

/// Why an image could not be mapped or unmapped.
#[derive(Debug, Error)]
pub enum RbdError {
    /// The kernel has no such client.
    #[error("the kernel knows no Ceph images: {path} is not there")]
    NoBus {
        /// What was looked for.
        path: PathBuf,
    },
    /// The kernel's client cannot be loaded.
    #[error("cannot load the kernel module {name}")]
    Module {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: ModuleError,
    },
    /// The key was refused by the keyring.
    #[error("the kernel's keyring refuses the key of {user}")]
    Key {
        /// Whose.
        user: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The kernel refused to map.
    #[error("cannot map image {pool}/{image}: {why}")]
    Map {
        /// The pool.
        pool: String,
        /// The image.
        image: String,
        /// What the error number means here.
        why: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It was mapped, but is not to be seen, or only to be read.
    #[error("image {pool}/{image} is mapped {how}")]
    Odd {
        /// The pool.
        pool: String,
        /// The image.
        image: String,
        /// What is wrong.
        how: &'static str,
    },
    /// The kernel refused to unmap.
    #[error("cannot unmap {device}: {why}")]
    Unmap {
        /// The device.
        device: String,
        /// What the error number means here.
        why: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Lists the mappings of this machine; none when the kernel has no such client.
#[must_use]
pub fn list() -> Vec<Mapped> {
    list_below(Path::new(BUS))
}

fn list_below(bus: &Path) -> Vec<Mapped> {
    let Ok(entries) = fs::read_dir(bus.join("devices")) else { return Vec::new() };
    let observe = |entry: fs::DirEntry| {
        let text = |name: &str| {
            let text = fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        Some(Mapped {
            id: entry.file_name().to_str()?.parse().ok()?,
            pool: text("pool"),
            namespace: text("pool_ns"),
            image: text("name"),
            snap: text("current_snap"),
            client: text("client_addr"),
            cluster: text("cluster_fsid"),
            config: text("config_info"),
        })
    };
    entries.flatten().filter_map(observe).collect()
}

/// Finds the mapping of an image made through one of these monitors.
#[must_use]
pub fn find_mapped(rbd: &Rbd, monitors: &[SocketAddr]) -> Option<Mapped> {
    find(&list(), rbd, monitors).cloned()
}

/// Maps an image, or finds it mapped already; the caller lets one image be mapped once at a time.
///
/// `secret` is the user's key, decoded. It stands in the keyring for the time of the call only.
///
/// # Errors
///
/// When the kernel has no such client or refuses; worth retrying, for the cause may heal.
pub fn map(
    rbd: &Rbd,
    monitors: &[SocketAddr],
    secret: Option<&[u8]>,
    grip: Grip,
) -> Result<Mapped, RbdError> {
    let odd = |how| RbdError::Odd { pool: rbd.pool.clone(), image: rbd.image.clone(), how };
    if let Some(found) = find(&list(), rbd, monitors) {
        if grip != Grip::Reader && !found.is_writer() {
            return Err(odd("only to be read, and in use"));
        }
        return Ok(found.clone());
    }
    if !Path::new(BUS).exists() {
        load("rbd")?;
    }
    let file = control("add")?;
    let name = rbd.key_name();
    let key = match secret {
        Some(secret) => Some(
            keyring::Key::add("ceph", &name, secret)
                .map_err(|source| RbdError::Key { user: rbd.user.clone(), source })?,
        ),
        None => None,
    };
    let line = render_add(rbd, monitors, key.as_ref().map(|_| name.as_str()), grip);
    let done = write(&file, &line);
    drop(key);
    done.map_err(|source| RbdError::Map {
        pool: rbd.pool.clone(),
        image: rbd.image.clone(),
        why: explain(source.raw_os_error().unwrap_or_default()),
        source,
    })?;
    find(&list(), rbd, monitors).cloned().ok_or_else(|| odd("but cannot be found in sysfs"))
}

/// Loads a client of Ceph: `rbd` for images, `ceph` for file systems.
///
/// The keyring knows keys of Ceph only from then on, so this comes before the key. Nothing is
/// done where the client is there already.
///
/// # Errors
///
/// When the kernel's tree of modules is not there, lacks it, or the kernel refuses it.
pub fn load(name: &'static str) -> Result<(), RbdError> {
    if Path::new("/sys/module").join(name).exists() {
        return Ok(());
    }
    let failed = |source| RbdError::Module { name, source };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut modules =
        Modules::open_names(&Path::new(MODULES).join(release.trim())).map_err(failed)?;
    modules.load(name).map_err(failed)
}

/// Ends a mapping; one that is gone already is no error.
///
/// # Errors
///
/// When the device is in use or the kernel refuses.
pub fn unmap(mapped: &Mapped) -> Result<(), RbdError> {
    // Numbers are used again: only the very mapping that was meant may go.
    let still = list().into_iter().any(|one| {
        one.id == mapped.id
            && one.client == mapped.client
            && one.image == mapped.image
            && one.pool == mapped.pool
    });
    if !still {
        return Ok(());
    }
    write(&control("remove")?, &render_remove(mapped.id)).map_err(|source| RbdError::Unmap {
        device: mapped.device(),
        why: explain(source.raw_os_error().unwrap_or_default()),
        source,
    })
}

/// Makes the kernel read the image's size again.
///
/// # Errors
///
/// When the mapping is gone.
pub fn refresh(mapped: &Mapped) -> io::Result<()> {
    write(&Path::new(BUS).join(format!("devices/{}/refresh", mapped.id)), "1")
}

/// The file that takes lines; the newer one is absent from older kernels.
fn control(verb: &str) -> Result<PathBuf, RbdError> {
    let bus = Path::new(BUS);
    let files = [bus.join(format!("{verb}_single_major")), bus.join(verb)];
    let found = files.into_iter().find(|path| path.exists());
    found.ok_or_else(|| RbdError::NoBus { path: bus.join(verb) })
}

/// One line is one write: the kernel takes no half lines.
fn write(path: &Path, line: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    match file.write(line.as_bytes()) {
        Ok(written) if written == line.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_as_sysfs_shows_them() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("devices/3");
        fs::create_dir_all(&device).unwrap();
        let files = [
            ("pool", "rbd\n"),
            ("name", "db\n"),
            ("current_snap", "-\n"),
            ("client_addr", "10.231.0.101:0/1227678652\n"),
            ("config_info", "10.231.0.11:6789 name=k8s,key=x,exclusive rbd db -\n"),
        ];
        for (name, text) in files {
            fs::write(device.join(name), text).unwrap();
        }
        let all = list_below(dir.path());
        assert_eq!((all[0].id, &*all[0].client), (3, "10.231.0.101:0/1227678652"));
        assert!(all[0].is_writer() && all.len() == 1);
        assert_eq!(list_below(&dir.path().join("none")), []);
    }
}
