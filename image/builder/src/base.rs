//! The packages' part of the root: unpacked, stripped, with what maintainer scripts would have
//! made.

use std::fs::File;
use std::io::{BufReader, BufWriter};

use layout::manifest::PackageEntry;

use crate::cache::{Cache, Key, read_file, write_file};
use crate::debian::Downloads;
use crate::rules::{STRIPPED, UNITS, entries};
use crate::tree::{Kind, Tree};
use crate::{BuildError, Progress, say, say_cached};

const UNIT_DIR: &str = "usr/lib/systemd/system/";
const CERTIFICATES: &str = "usr/share/ca-certificates/";

/// The stripped packages.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) key: Key,
    pub(crate) packages: Vec<PackageEntry>,
    path: std::path::PathBuf,
}

impl Base {
    /// Reads the tree from the cache.
    pub(crate) fn tree(&self) -> Result<Tree, BuildError> {
        let file = File::open(&self.path).map_err(BuildError::read(&self.path))?;
        let mut tree = Tree::default();
        tree.read_tar(BufReader::new(file)).map_err(BuildError::read(&self.path))?;
        Ok(tree)
    }
}

/// Makes the tree, or finds it in the cache.
pub(crate) fn build(
    cache: &Cache,
    downloads: &Downloads,
    progress: &dyn Fn(Progress),
) -> Result<Base, BuildError> {
    let rules = format!("{STRIPPED}{UNITS} links 1");
    let key = Key::of(&[downloads.key.bytes(), rules.as_bytes()]);
    let (path, list) = (cache.path("base", &key), cache.path("base-packages", &key));
    if path.exists() && list.exists() {
        say_cached(progress, "unpacking packages");
        let packages = serde_json::from_slice(&read_file(&list)?);
        let packages = packages.map_err(|_| BuildError::Cache { path: list })?;
        return Ok(Base { key, packages, path });
    }
    say(progress, "unpacking packages", &format!("{} packages", downloads.root.len()));
    let mut whole = Tree::default();
    let mut packages = Vec::new();
    for (name, mut tree) in downloads.unpack_root()? {
        tree.nodes.retain(|path, _| is_kept(path));
        let file = downloads.root.get(&name).map(String::as_str).unwrap_or_default();
        let size_bytes = tree.nodes.values().map(crate::tree::Node::size_bytes).sum();
        let version = Downloads::version(file);
        packages.push(PackageEntry { name, version, size_bytes });
        for (path, node) in tree.nodes {
            whole.put(&path, node);
        }
    }
    drop_empty_directories(&mut whole);
    finish(&mut whole)?;
    let temporary = path.with_extension("new");
    let file = File::create(&temporary).map_err(BuildError::write(&temporary))?;
    whole.write_tar(BufWriter::new(file), 0).map_err(BuildError::write(&temporary))?;
    std::fs::rename(&temporary, &path).map_err(BuildError::write(&path))?;
    cache.forget_others("base", &path);
    let text = serde_json::to_vec(&packages).unwrap_or_default();
    write_file(&list, &text)?;
    cache.forget_others("base-packages", &list);
    Ok(Base { key, packages, path })
}

fn is_kept(path: &str) -> bool {
    if entries(STRIPPED).any(|prefix| is_below(path, prefix)) {
        return false;
    }
    if let Some(unit) = path.strip_prefix(UNIT_DIR) {
        return entries(UNITS).any(|name| name == unit);
    }
    // Licences must travel with the programs; nothing else of the documentation does.
    if path.starts_with("usr/share/doc/") {
        return path.ends_with("/copyright");
    }
    true
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Directories that only held what was stripped. Those of the system itself are made again.
fn drop_empty_directories(tree: &mut Tree) {
    let mut used = std::collections::BTreeSet::new();
    for (path, node) in &tree.nodes {
        if node.kind != Kind::Directory {
            let mut parent = path.as_str();
            while let Some((above, _)) = parent.rsplit_once('/') {
                used.insert(above.to_owned());
                parent = above;
            }
        }
    }
    tree.nodes.retain(|path, node| {
        node.kind != Kind::Directory || used.contains(path) || !path.starts_with("usr/")
    });
}

/// Does what the packages' own scripts would have done.
fn finish(tree: &mut Tree) -> Result<(), BuildError> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        tree.nodes.remove(name);
        tree.link(name, &format!("usr/{name}"));
    }
    for (from, to) in [
        ("usr/share/base-passwd/passwd.master", "etc/passwd"),
        ("usr/share/base-passwd/group.master", "etc/group"),
        ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ] {
        let bytes = tree.bytes(from).cloned();
        let bytes = bytes.ok_or_else(|| BuildError::NoFile { path: from.to_owned() })?;
        tree.file(to, 0o644, bytes);
    }
    let mut bundle = Vec::new();
    for (path, node) in &tree.nodes {
        if let Kind::File(bytes) = &node.kind
            && path.starts_with(CERTIFICATES)
            && path.ends_with(".crt")
        {
            bundle.extend_from_slice(bytes);
        }
    }
    tree.nodes.retain(|path, _| !path.starts_with(CERTIFICATES));
    tree.file("etc/ssl/certs/ca-certificates.crt", 0o644, bundle);
    tree.link("etc/os-release", "../usr/lib/os-release");
    tree.link("etc/mtab", "../proc/self/mounts");
    tree.link("usr/bin/sh", "dash");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chosen_units_and_licences_stay() {
        for (path, kept) in [
            ("usr/lib/systemd/system/basic.target", true),
            ("usr/lib/systemd/system/getty@.service", false),
            ("usr/lib/systemd/system/sysinit.target.wants/x.service", false),
            ("usr/share/doc/bash/copyright", true),
            ("usr/share/doc/bash/README.gz", false),
            ("boot/config", false),
            ("bootstrap", true),
            ("usr/bin/bash", true),
        ] {
            assert_eq!(is_kept(path), kept, "{path}");
        }
    }
}
