//! The cache directory: downloads, and results of steps named by their inputs.
//!
//! A result is written under another name and then renamed, so whatever has the right name is
//! whole. Old results of a step are removed when a new one is made.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::BuildError;

/// Changes when the meaning of cached results does.
const FORMAT: &str = "1";

/// Enough of a digest to tell results apart.
const KEY_CHARS: usize = 24;

/// The directory.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) dir: PathBuf,
    /// Held while a build runs: two builds would remove each other's results.
    _lock: File,
}

/// A digest over everything a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) String);

impl Key {
    /// Makes the key of these inputs; their order and borders count.
    pub(crate) fn of(inputs: &[&[u8]]) -> Self {
        let mut digest = Sha256::new_with_prefix(FORMAT);
        for input in inputs {
            digest.update(u64::try_from(input.len()).unwrap_or_default().to_le_bytes());
            digest.update(input);
        }
        let text = hex::encode(digest.finalize());
        Self(text.chars().take(KEY_CHARS).collect())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Cache {
    pub(crate) fn open(dir: &Path) -> Result<Self, BuildError> {
        fs::create_dir_all(dir).map_err(BuildError::write(dir))?;
        // Tools are started in other directories, so names must not depend on ours.
        let dir = dir.canonicalize().map_err(BuildError::read(dir))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(BuildError::write(&path))?;
        lock.lock().map_err(BuildError::write(&path))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Where the result of a step lies, whether it is there or not.
    pub(crate) fn path(&self, step: &str, key: &Key) -> PathBuf {
        self.dir.join(format!("{step}.{}", key.0))
    }

    /// Keeps a result and forgets older ones of the same step.
    pub(crate) fn keep(&self, step: &str, key: &Key, bytes: &[u8]) -> Result<PathBuf, BuildError> {
        let path = self.path(step, key);
        write_file(&path, bytes)?;
        self.forget_others(step, &path);
        Ok(path)
    }

    /// Removes results of a step other than this one; those in use elsewhere are hard links.
    pub(crate) fn forget_others(&self, step: &str, keep: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            let same_step = name.rsplit_once('.').is_some_and(|(head, _)| head == step);
            if same_step && path != keep {
                drop(fs::remove_file(&path));
            }
        }
    }
}

/// Writes a whole file or none.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    fs::write(&temporary, bytes).map_err(BuildError::write(&temporary))?;
    fs::rename(&temporary, path).map_err(BuildError::write(path))
}

/// Reads a whole file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(BuildError::read(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_between_inputs_count() {
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_eq!(Key::of(&[b"ab"]), Key::of(&[b"ab"]));
    }

    #[test]
    fn a_new_result_replaces_the_old_one_of_its_step_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let other = cache.keep("base.tar", &Key::of(&[b"x"]), b"x").unwrap();
        let old = cache.keep("base", &Key::of(&[b"1"]), b"1").unwrap();
        let new = cache.keep("base", &Key::of(&[b"2"]), b"2").unwrap();
        assert!(!old.exists() && new.exists() && other.exists());
    }
}
