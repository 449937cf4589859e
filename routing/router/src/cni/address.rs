//! Addresses as files: one file per address in use, named by it, holding its owner.
//!
//! Beside each lies the way back: a file named by the owner, holding the address. It is a short
//! cut, written first and believed only if the address's own file agrees, so that a call need not
//! read what every other pod has.
//!
//! The folder lies on tmpfs, so a reboot forgets exactly what it should. A lock file orders
//! concurrent plugins; a plugin that dies loses its lock with its life.

use std::fmt;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::pod_network::FileError;

/// Addresses at the start of a pod network that are never given: the network's own, and one for
/// the node should it ever need it.
const RESERVED: u32 = 2;
/// Remembers the address given last.
const LAST: &str = "last";
/// Taken while the folder is read or changed.
const LOCK: &str = "lock";

/// Who holds an address: a container and one of its links.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The container's id.
    pub container: String,
    /// The link's name inside the container.
    pub interface: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.container, self.interface)
    }
}

/// Why no address could be given or taken back.
#[derive(Debug, Error)]
pub(super) enum AddressError {
    #[error("all addresses of {0} are in use")]
    Full(Ipv4Net),
    #[error(transparent)]
    File(#[from] FileError),
}

/// The folder of addresses.
#[derive(Debug)]
pub(super) struct Addresses {
    folder: PathBuf,
}

impl Addresses {
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Gives `owner` an address of `range`: the one it has already, or the next free one after
    /// the one given last. An address rests as long as it can before it is given again, because
    /// peers may still talk to the pod that had it.
    pub(super) fn take(&self, owner: &Owner, range: Ipv4Net) -> Result<Ipv4Addr, AddressError> {
        let _lock = self.lock()?;
        if let Some(address) = self.known(owner).filter(|address| range.contains(address)) {
            return Ok(address);
        }
        let last = fs::read_to_string(self.folder.join(LAST)).unwrap_or_default();
        let last: Option<Ipv4Addr> = last.trim().parse().ok();
        let free = candidates(range, last)
            .find(|candidate| !self.folder.join(candidate.to_string()).exists());
        let address = free.ok_or(AddressError::Full(range))?;
        let way_back = self.folder.join(way_back(owner));
        fs::write(&way_back, address.to_string())
            .map_err(|err| FileError::io("write", &way_back, err))?;
        self.write(&address.to_string(), &format!("{owner}\n"))?;
        // What is read of it after a crash may be nonsense, and then counts as nothing.
        let last = self.folder.join(LAST);
        fs::write(&last, address.to_string()).map_err(|err| FileError::io("write", &last, err))?;
        Ok(address)
    }

    /// The address of an owner by the short cut.
    fn known(&self, owner: &Owner) -> Option<Ipv4Addr> {
        let text = fs::read_to_string(self.folder.join(way_back(owner))).ok()?;
        let address: Ipv4Addr = text.parse().ok()?;
        let holder = fs::read_to_string(self.folder.join(address.to_string())).ok()?;
        (parse_owner(&holder) == *owner).then_some(address)
    }

    /// The address of an owner.
    pub(super) fn find(&self, owner: &Owner) -> Result<Option<Ipv4Addr>, AddressError> {
        let _lock = self.lock()?;
        Ok(self.known(owner))
    }

    /// Takes an owner's addresses back; none is fine.
    pub(super) fn release(&self, owner: &Owner) -> Result<(), AddressError> {
        let _lock = self.lock()?;
        if let Some(address) = self.known(owner) {
            self.remove(address)?;
        }
        self.forget(owner);
        Ok(())
    }

    /// Takes back the addresses of everybody else, and returns who that was.
    pub(super) fn retain(&self, valid: &[Owner]) -> Result<Vec<Owner>, AddressError> {
        let _lock = self.lock()?;
        let mut gone = Vec::new();
        for (address, holder) in self.held()? {
            if !valid.contains(&holder) {
                self.remove(address)?;
                self.forget(&holder);
                gone.push(holder);
            }
        }
        Ok(gone)
    }

    /// Holds the lock until the file is dropped.
    fn lock(&self) -> Result<File, AddressError> {
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| FileError::Io { operation, path, source }
        };
        fs::create_dir_all(&self.folder).map_err(io("create", &self.folder))?;
        let path = self.folder.join(LOCK);
        let file = File::create(&path).map_err(io("open", &path))?;
        file.lock().map_err(io("lock", &path))?;
        Ok(file)
    }

    /// Everything given, in order of address.
    fn held(&self) -> Result<Vec<(Ipv4Addr, Owner)>, AddressError> {
        let io = |source| FileError::io("list", &self.folder, source);
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let Some(Ok(address)) = name.to_str().map(str::parse::<Ipv4Addr>) else { continue };
            let path = entry.path();
            let text =
                fs::read_to_string(&path).map_err(|err| FileError::io("read", &path, err))?;
            held.push((address, parse_owner(&text)));
        }
        held.sort();
        Ok(held)
    }

    /// Writes beside and renames, so that a plugin that dies here leaves no half owner.
    fn write(&self, name: &str, content: &str) -> Result<(), AddressError> {
        crate::pod_network::write_file(&self.folder.join(name), content).map_err(Into::into)
    }

    /// Takes the short cut away; without it, or with a wrong one, all is as well.
    fn forget(&self, owner: &Owner) {
        drop(fs::remove_file(self.folder.join(way_back(owner))));
    }

    fn remove(&self, address: Ipv4Addr) -> Result<(), AddressError> {
        let path = self.folder.join(address.to_string());
        fs::remove_file(&path).map_err(|err| FileError::io("remove", &path, err).into())
    }
}

/// The name of the file that leads from an owner to its address.
fn way_back(owner: &Owner) -> String {
    format!("of-{}", super::wire::host_name(&owner.container, &owner.interface))
}

fn parse_owner(text: &str) -> Owner {
    let (container, interface) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    Owner { container: container.to_owned(), interface: interface.to_owned() }
}

/// All addresses that may be given, beginning after `last`.
fn candidates(range: Ipv4Net, last: Option<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
    let first = u32::from(range.network()).saturating_add(RESERVED);
    // The broadcast address would work on a routed link, but people would not believe it.
    let end = u32::from(range.broadcast());
    let start = match last {
        Some(last) if range.contains(&last) => u32::from(last).saturating_add(1).clamp(first, end),
        _ => first,
    };
    (start..end).chain(first..start).map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner { container: name.to_owned(), interface: "eth0".to_owned() }
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let addresses = Addresses::at(folder.path());
        let range = "172.20.7.0/29".parse().unwrap();
        let take = |name| addresses.take(&owner(name), range).map(|address| address.octets()[3]);
        assert_eq!(take("a").unwrap(), 2);
        assert_eq!(take("b").unwrap(), 3);
        assert_eq!(take("a").unwrap(), 2, "the same owner keeps its address");
        addresses.release(&owner("a")).unwrap();
        assert_eq!(take("c").unwrap(), 4);
        assert_eq!((take("d").unwrap(), take("e").unwrap()), (5, 6));
        assert_eq!(take("f").unwrap(), 2);
        assert_eq!(take("g").unwrap_err().to_string(), "all addresses of 172.20.7.0/29 are in use");
        addresses.release(&owner("nobody")).unwrap();
        assert_eq!(addresses.find(&owner("f")).unwrap(), Some("172.20.7.2".parse().unwrap()));
    }

    #[test]
    fn only_valid_owners_are_retained() {
        let folder = tempfile::tempdir().unwrap();
        let addresses = Addresses::at(folder.path());
        let range = "172.20.7.0/24".parse().unwrap();
        for name in ["a", "b", "c"] {
            addresses.take(&owner(name), range).unwrap();
        }
        assert_eq!(addresses.retain(&[owner("b")]).unwrap(), [owner("a"), owner("c")]);
        assert_eq!(addresses.find(&owner("a")).unwrap(), None);
        assert!(addresses.find(&owner("b")).unwrap().is_some());
    }

    #[test]
    fn plugins_at_the_same_time_never_share_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let range = "172.20.7.0/24".parse().unwrap();
        let take = |number: usize| {
            Addresses::at(folder.path()).take(&owner(&format!("c{number}")), range).unwrap()
        };
        let given: std::collections::BTreeSet<Ipv4Addr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..40).map(|number| scope.spawn(move || take(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 40);
    }
}
