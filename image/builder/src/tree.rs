//! A file tree in memory, and its deterministic tar form.
//!
//! Paths are relative, without `./`, and name the real place: Debian's `bin`, `sbin`, `lib` and
//! `lib64` are links into `usr`, so entries below them are put there.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Arc<[u8]>),
    Link(String),
}

/// One entry; its time is the build's epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) kind: Kind,
}

/// All entries by path; parents sort before their children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<String, Node>,
}

/// Directories that are links into `usr`.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

impl Tree {
    /// Puts a file there, owned by root.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Arc<[u8]>>) {
        self.put(path, Node { mode, uid: 0, gid: 0, kind: Kind::File(bytes.into()) });
    }

    /// Puts a text file there, readable by all.
    pub(crate) fn text(&mut self, path: &str, text: &str) {
        self.file(path, 0o644, text.as_bytes());
    }

    /// Puts a symbolic link there.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node { mode: 0o777, uid: 0, gid: 0, kind: Kind::Link(target.to_owned()) });
    }

    /// Makes sure that a directory is there.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.put(path, Node { mode, uid: 0, gid: 0, kind: Kind::Directory });
    }

    /// Puts an entry there; a directory does not replace one that is there already.
    pub(crate) fn put(&mut self, path: &str, node: Node) {
        let path = canonical(path);
        if path.is_empty() {
            return;
        }
        let merged = MERGED.contains(&path.as_str());
        if node.kind == Kind::Directory && (merged || self.nodes.contains_key(&path)) {
            return;
        }
        self.nodes.insert(path, node);
    }

    /// The content of a regular file, links not followed.
    pub(crate) fn bytes(&self, path: &str) -> Option<&Arc<[u8]>> {
        match &self.nodes.get(path)?.kind {
            Kind::File(bytes) => Some(bytes),
            Kind::Directory | Kind::Link(_) => None,
        }
    }

    /// Adds directories that packages took for granted, and sorts out empty parents.
    pub(crate) fn add_parents(&mut self) {
        let paths: Vec<String> = self.nodes.keys().cloned().collect();
        for path in paths {
            let mut parent = path.as_str();
            while let Some((above, _)) = parent.rsplit_once('/') {
                if !self.nodes.contains_key(above) {
                    self.directory(above, 0o755);
                }
                parent = above;
            }
        }
    }

    /// Writes the tree as a tar archive; the same tree gives the same bytes.
    pub(crate) fn write_tar(&self, out: impl Write, epoch: u32) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        for (path, node) in &self.nodes {
            let mut header = tar::Header::new_gnu();
            header.set_mode(node.mode);
            header.set_uid(node.uid);
            header.set_gid(node.gid);
            header.set_mtime(epoch.into());
            header.set_size(0);
            match &node.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    archive.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Kind::File(bytes) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(u64::try_from(bytes.len()).unwrap_or_default());
                    archive.append_data(&mut header, path, bytes.as_ref())?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        archive.into_inner()?.flush()
    }

    /// Reads a tar archive: ours, or that of a package. Devices and pipes are left out.
    pub(crate) fn read_tar(&mut self, from: impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(from);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = text(&entry.path_bytes());
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory => Kind::Directory,
                tar::EntryType::Symlink => {
                    Kind::Link(entry.link_name_bytes().map(|name| text(&name)).unwrap_or_default())
                }
                tar::EntryType::Link => {
                    let target = entry.link_name_bytes().map(|name| text(&name));
                    let target = canonical(&target.unwrap_or_default());
                    let Some(bytes) = self.bytes(&target).cloned() else { continue };
                    Kind::File(bytes)
                }
                tar::EntryType::Regular => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes)?;
                    Kind::File(bytes.into())
                }
                _ => continue,
            };
            let header = entry.header();
            let (mode, uid, gid) = (header.mode()? & 0o7777, header.uid()?, header.gid()?);
            self.put(&path, Node { mode, uid, gid, kind });
        }
        Ok(())
    }
}

impl Node {
    /// Bytes of content; 0 for directories and links.
    pub(crate) fn size_bytes(&self) -> u64 {
        match &self.kind {
            Kind::File(bytes) => u64::try_from(bytes.len()).unwrap_or_default(),
            Kind::Directory | Kind::Link(_) => 0,
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `./lib/x/` → `usr/lib/x`.
fn canonical(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    let path = if path == "." { "" } else { path };
    match path.split_once('/') {
        Some((first, _)) if MERGED.contains(&first) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_places_are_put_into_usr() {
        for (path, expected) in [
            ("./lib/x/", "usr/lib/x"),
            ("lib", "lib"),
            ("./", ""),
            (".", ""),
            ("usr/bin/x", "usr/bin/x"),
            ("./library/x", "library/x"),
        ] {
            assert_eq!(canonical(path), expected);
        }
    }

    #[test]
    fn a_tree_comes_back_from_its_archive() {
        let mut tree = Tree::default();
        tree.text(&format!("usr/share/{}/file", "long".repeat(40)), "hello");
        tree.file("usr/bin/tool", 0o755, *b"\x7fELF");
        tree.link("bin", "usr/bin");
        tree.directory("tmp", 0o1777);
        tree.add_parents();
        let mut first = Vec::new();
        tree.write_tar(&mut first, 5).unwrap();
        let mut again = Tree::default();
        again.read_tar(first.as_slice()).unwrap();
        assert_eq!(again, tree);
        let mut second = Vec::new();
        again.write_tar(&mut second, 5).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn a_directory_never_replaces_the_link_into_usr() {
        let mut tree = Tree::default();
        tree.link("lib", "usr/lib");
        tree.directory("lib", 0o755);
        tree.text("lib/x", "x");
        assert_eq!(tree.nodes["lib"].kind, Kind::Link("usr/lib".into()));
        assert!(tree.nodes.contains_key("usr/lib/x"));
    }
}
