//! Files in a volume: contents, modes, and the paths they may have.

use std::collections::BTreeMap;
use std::fmt;

use objects::pod::KeyToPath;

use crate::owner::READ_BITS;
use crate::source::Problem;

/// The mode of files unless said otherwise.
pub(crate) const DEFAULT_MODE: u32 = 0o644;

/// One file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

impl fmt::Debug for File {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Contents may be secret, and long.
        let mode = format_args!("{:o}", self.mode);
        out.debug_struct("File")
            .field("size_bytes", &self.bytes.len())
            .field("mode", &mode)
            .finish()
    }
}

/// Files by relative path; the paths are clean: no `..`, nothing absolute, nothing empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSet {
    files: BTreeMap<String, File>,
}

impl FileSet {
    /// The files in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// The file at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }

    /// The same files as a group may read them.
    #[must_use]
    pub fn readable_by_group(&self) -> Self {
        let mut set = self.clone();
        set.files.values_mut().for_each(|file| file.mode |= READ_BITS);
        set
    }

    /// Tells whether there are no files.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Adds a file; a later one with the same path wins, as upstream lets it.
    pub(crate) fn put(&mut self, path: &str, file: File) -> Result<(), Problem> {
        let clean = clean_path(path).ok_or_else(|| Problem::Path { path: path.to_owned() })?;
        self.files.insert(clean, file);
        Ok(())
    }

    /// Adds what a config map or secret holds, all of it or the `items` of it.
    pub(crate) fn put_all(
        &mut self,
        data: &BTreeMap<String, Vec<u8>>,
        (items, mode, optional): (&[KeyToPath], u32, bool),
        owner: (&'static str, &str),
    ) -> Result<(), Problem> {
        if items.is_empty() {
            for (key, bytes) in data {
                self.put(key, File { bytes: bytes.clone(), mode })?;
            }
            return Ok(());
        }
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => {
                    let mode = item.mode.map_or(mode, mode_bits);
                    self.put(&item.path, File { bytes: bytes.clone(), mode })?;
                }
                None if optional => {}
                None => {
                    let (kind, name) = (owner.0, owner.1.to_owned());
                    return Err(Problem::Key { kind, name, key: item.key.clone() });
                }
            }
        }
        Ok(())
    }
}

/// The permission bits of a number in an object; anything else in it is dropped.
pub(crate) fn mode_bits(mode: i64) -> u32 {
    u32::try_from(mode & 0o777).unwrap_or(DEFAULT_MODE)
}

/// A relative path without `.`, empty steps and a way out; `None` when it cannot be one.
pub(crate) fn clean_path(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let steps: Vec<&str> = path.split('/').filter(|s| !s.is_empty() && *s != ".").collect();
    // A name beginning with two dots would clash with those of the layout.
    let escapes =
        steps.contains(&"..") || steps.first().is_none_or(|first| first.starts_with(".."));
    (!escapes).then(|| steps.join("/"))
}
