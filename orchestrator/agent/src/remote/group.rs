//! Gives the files of a volume to the pod's group: `fsGroup`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use volumes::owner::{Policy, Rights, is_needed, wanted};

/// A group that the files of a volume are given to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) id: u32,
    pub(super) policy: Policy,
}

/// Gives the files of a volume to the pod's group.
pub(super) fn give(top: &Path, group: Group) -> io::Result<()> {
    let meta = fs::metadata(top)?;
    let root = Rights { group: meta.gid(), mode: meta.mode() & 0o7777 };
    if !is_needed(group.policy, root, false, group.id) {
        return Ok(());
    }
    give_below(top, group)?;
    give_one(top, &meta, group)
}

/// The top comes last: a walk that is cut short is done again, for the top is not yet right.
fn give_below(dir: &Path, group: Group) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            give_below(&entry.path(), group)?;
        }
        give_one(&entry.path(), &meta, group)?;
    }
    Ok(())
}

fn give_one(path: &Path, meta: &fs::Metadata, group: Group) -> io::Result<()> {
    let rights = wanted(meta.mode() & 0o7777, meta.is_dir(), false, group.id);
    if meta.gid() != rights.group {
        lchown(path, None, Some(rights.group))?;
    }
    // The rights of a link are those of what it points at, which may be anywhere.
    if meta.is_symlink() || meta.mode() & 0o7777 == rights.mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(rights.mode))
}
