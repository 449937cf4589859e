//! Kernel modules: dependency order, aliases, coldplug.
//!
//! A small `modprobe`: it reads `modules.dep` and `modules.alias` as depmod writes them and loads
//! files with `finit_module`. It knows no options, blacklists or install commands; whoever builds
//! the tree leaves unwanted modules out.
//!
//! Spec: depmod(8), modules.dep(5); alias patterns are fnmatch(3) without flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use thiserror::Error;

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel decompresses the file itself.
const COMPRESSED_FILE: u32 = 4;

/// How deep below `/sys/devices` a modalias is looked for; real trees stay far below it.
const SYSFS_DEPTH_MAX: usize = 24;

/// Says why a module could not be loaded.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// An index of the module tree cannot be read.
    #[error("cannot read {path}")]
    Index {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The tree has no module of this name.
    #[error("no module {name} in the tree")]
    Unknown {
        /// The name as asked for.
        name: String,
    },
    /// The file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The module's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the module.
    #[error("the kernel refused {path}")]
    Refused {
        /// The module's file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// A module tree (`/lib/modules/VERSION`) and what was loaded from it.
#[derive(Debug)]
pub struct Modules {
    root: PathBuf,
    index: Index,
    done: BTreeSet<String>,
}

/// The two indexes of depmod, as values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Module name → its file and the files it needs, relative to the tree, nearest first.
    files: BTreeMap<String, Vec<String>>,
    /// Bus prefix of the pattern (`pci:`) → (pattern, module name), in file order.
    aliases: BTreeMap<String, Vec<(String, String)>>,
}

impl Modules {
    /// Reads the indexes of the tree at `root`.
    ///
    /// # Errors
    ///
    /// When `modules.dep` or `modules.alias` cannot be read.
    pub fn open(root: &Path) -> Result<Self, ModuleError> {
        let index = Index::parse(&read(root, "modules.dep")?, &read(root, "modules.alias")?);
        Ok(Self { root: root.to_owned(), index, done: BTreeSet::new() })
    }

    /// Reads of the tree at `root` only what loading by name needs; the list of aliases is long.
    ///
    /// # Errors
    ///
    /// When `modules.dep` cannot be read.
    pub fn open_names(root: &Path) -> Result<Self, ModuleError> {
        let index = Index::parse(&read(root, "modules.dep")?, "");
        Ok(Self { root: root.to_owned(), index, done: BTreeSet::new() })
    }

    /// Loads a module by name, after everything it needs.
    ///
    /// A module that is loaded already, or built in and therefore absent from sight, is no error.
    ///
    /// # Errors
    ///
    /// When the tree does not have it or the kernel refuses it; not worth retrying.
    pub fn load(&mut self, name: &str) -> Result<(), ModuleError> {
        let key = normal(name);
        let Some(files) = self.index.files.get(&key) else {
            return Err(ModuleError::Unknown { name: name.to_owned() });
        };
        // depmod writes needs nearest first, so the farthest must be loaded first.
        for file in files.iter().rev() {
            if self.done.insert(module_name(file)) {
                insert(&self.root.join(file))?;
            }
        }
        Ok(())
    }

    /// Loads the modules of every device the kernel knows, and returns how many files were tried.
    ///
    /// Bus drivers bring new devices, so callers run it again until it returns 0. A driver that
    /// does not load is skipped: one odd device must not stop a machine from booting.
    pub fn coldplug(&mut self) -> usize {
        let before = self.done.len();
        let mut aliases = BTreeSet::new();
        collect_aliases(Path::new("/sys/devices"), 0, &mut aliases);
        for alias in &aliases {
            for name in self.index.matching(alias) {
                let _refused = self.load(&name);
            }
        }
        self.done.len() - before
    }
}

impl Index {
    /// Parses the text of `modules.dep` and `modules.alias`; odd lines are skipped.
    #[must_use]
    pub fn parse(dep: &str, alias: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((file, needs)) = line.split_once(':') else { continue };
            let files: Vec<String> = std::iter::once(file)
                .chain(needs.split_ascii_whitespace())
                .map(str::to_owned)
                .collect();
            index.files.insert(module_name(file), files);
        }
        for line in alias.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("alias"), Some(pattern), Some(name)) =
                (words.next(), words.next(), words.next())
            {
                let entry = (pattern.to_owned(), normal(name));
                index.aliases.entry(bus(pattern)).or_default().push(entry);
            }
        }
        index
    }

    /// Returns the names of the modules whose patterns match a device's alias.
    #[must_use]
    pub fn matching(&self, alias: &str) -> BTreeSet<String> {
        let patterns = self.aliases.get(&bus(alias)).map(Vec::as_slice).unwrap_or_default();
        patterns
            .iter()
            .filter(|(pattern, _)| fnmatch(pattern.as_bytes(), alias.as_bytes()))
            .map(|(_, name)| name.clone())
            .collect()
    }
}

fn read(root: &Path, name: &str) -> Result<String, ModuleError> {
    let path = root.join(name);
    fs::read_to_string(&path).map_err(|source| ModuleError::Index { path, source })
}

fn insert(path: &Path) -> Result<(), ModuleError> {
    let file =
        File::open(path).map_err(|source| ModuleError::Open { path: path.to_owned(), source })?;
    let compressed = path.extension().is_some_and(|end| end != "ko");
    let bits = if compressed { COMPRESSED_FILE } else { 0 };
    match finit_module(&file, c"", ModuleInitFlags::from_bits_retain(bits)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Refused { path: path.to_owned(), source }),
    }
}

fn collect_aliases(dir: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < SYSFS_DEPTH_MAX {
            collect_aliases(&entry.path(), depth + 1, found);
        } else if kind.is_file()
            && entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            let text = text.trim();
            if !text.is_empty() {
                found.insert(text.to_owned());
            }
        }
    }
}

/// The part before the first colon, with it: patterns of other buses need not be tried.
fn bus(alias: &str) -> String {
    alias.split_inclusive(':').next().unwrap_or_default().to_owned()
}

/// `kernel/drivers/net/virtio_net.ko.xz` → `virtio_net`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    normal(name.split_once(".ko").map_or(name, |(name, _)| name))
}

/// The kernel takes `-` and `_` in module names for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Matches `*`, `?` and `[a-z]`; linear in memory, backtracks only to the last star.
fn fnmatch(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (pattern, text);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (p.split_first(), t.split_first()) {
            (Some((b'*', rest)), _) => {
                retry = Some((rest, t));
                p = rest;
                continue;
            }
            (None, None) => return true,
            (Some((_, _)), Some((byte, text_rest))) => {
                if let Some(rest) = match_one(p, *byte) {
                    (p, t) = (rest, text_rest);
                    continue;
                }
            }
            (None, Some(_)) | (Some(_), None) => (),
        }
        let Some((after_star, from)) = retry else { return false };
        let Some((_, shorter)) = from.split_first() else { return false };
        retry = Some((after_star, shorter));
        (p, t) = (after_star, shorter);
    }
}

/// Matches one pattern element against one byte and returns what is left of the pattern.
fn match_one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (first, rest) = pattern.split_first()?;
    match first {
        b'?' => Some(rest),
        b'[' => {
            let end = rest.iter().position(|b| *b == b']')?;
            let (set, rest) = (rest.get(..end)?, rest.get(end + 1..)?);
            let mut hit = false;
            let mut at = set;
            while let Some((low, tail)) = at.split_first() {
                at = tail;
                if let [b'-', high, tail @ ..] = tail {
                    hit |= (*low..=*high).contains(&byte);
                    at = tail;
                } else {
                    hit |= *low == byte;
                }
            }
            hit.then_some(rest)
        }
        _ => (*first == byte).then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, text, expected) in [
            (
                "pci:v00001AF4d00001000sv*sd*bc*sc*i*",
                "pci:v00001AF4d00001000sv1sd2bc02sc00i00",
                true,
            ),
            ("pci:v00001AF4d00001000sv*", "pci:v00001AF4d00001041sv1", false),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a[0-9b]c", "a7c", true),
            ("a[0-9b]c", "abc", true),
            ("a[0-9b]c", "axc", false),
            ("a?c", "abc", true),
            ("*", "", true),
            ("", "x", false),
            ("a[", "a[", false),
        ] {
            assert_eq!(fnmatch(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn dependencies_and_aliases_are_found_by_normal_name() {
        let index = Index::parse(
            "kernel/net/failover.ko.xz:\nkernel/a/virtio-net.ko.xz: kernel/b/net_failover.ko.xz kernel/net/failover.ko.xz\n",
            "# comment\nalias virtio:d00000001v* virtio_net\nalias pci:v1* other-one\n",
        );
        assert_eq!(index.files["virtio_net"].len(), 3);
        let found: Vec<_> = index.matching("virtio:d00000001v00001AF4").into_iter().collect();
        assert_eq!(found, ["virtio_net"]);
        assert_eq!(index.matching("usb:v1"), BTreeSet::new());
    }
}
