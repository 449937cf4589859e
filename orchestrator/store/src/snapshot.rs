//! A store as one file, to be kept elsewhere: the same for every kind of store.
//!
//! All numbers are little-endian. The head is `MUSTERS1`, the revision and the number of records,
//! 8 bytes each, and a checksum of these. A record is the lengths of shelf, name and value, 4
//! bytes each, the revisions of creation and last change, 8 bytes each, then shelf, name and
//! value, and a checksum of all this. Nothing follows the last record.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::checksum::Checksum;
use crate::contents::Contents;
use crate::item::Item;

const MAGIC: [u8; 8] = *b"MUSTERS1";

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be written or read.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a whole snapshot.
    #[error("{path} is no whole snapshot: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Malformed,
    },
    /// A name or value is too long for the format.
    #[error("{shelf}/{name} is too long for a snapshot")]
    TooLong {
        /// The shelf.
        shelf: String,
        /// The name.
        name: String,
    },
}

/// Where bytes stop to be a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where it begins.
    pub at: usize,
}

/// Writes contents to a file that is complete before it has its name, and readable by nobody
/// else, for there are secrets in it.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_snapshot(contents: &Contents, path: &Path) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::File { path: path.to_owned(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut options = std::fs::File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&new).map_err(failed)?;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
    file.write_all(&render_head(contents)).map_err(failed)?;
    let mut record = Vec::new();
    for (shelf, item) in &contents.items {
        render_record(shelf, item, &mut record).ok_or_else(|| SnapshotError::TooLong {
            shelf: shelf.to_string(),
            name: item.name().to_owned(),
        })?;
        file.write_all(&record).map_err(failed)?;
    }
    let file = file.into_inner().map_err(|err| failed(err.into_error()))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Reads a file that [`write_snapshot`] wrote.
///
/// # Errors
///
/// When it cannot be read, is cut off or damaged.
pub fn read_snapshot(path: &Path) -> Result<Contents, SnapshotError> {
    let bytes = std::fs::read(path)
        .map_err(|source| SnapshotError::File { path: path.to_owned(), source })?;
    decode(&bytes).map_err(|source| SnapshotError::Malformed { path: path.to_owned(), source })
}

fn render_head(contents: &Contents) -> Vec<u8> {
    let count = u64::try_from(contents.items.len()).unwrap_or(u64::MAX);
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&contents.revision.to_le_bytes());
    head.extend_from_slice(&count.to_le_bytes());
    seal(&mut head);
    head
}

fn seal(bytes: &mut Vec<u8>) {
    let sum = Checksum::new().with(bytes).value();
    bytes.extend_from_slice(&sum.to_le_bytes());
}

fn render_record(shelf: &str, item: &Item, record: &mut Vec<u8>) -> Option<()> {
    record.clear();
    for length in [shelf.len(), item.name().len(), item.value().len()] {
        record.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    }
    record.extend_from_slice(&item.created().to_le_bytes());
    record.extend_from_slice(&item.modified().to_le_bytes());
    record.extend_from_slice(shelf.as_bytes());
    record.extend_from_slice(item.name().as_bytes());
    record.extend_from_slice(item.value());
    seal(record);
    Some(())
}

/// What is left to read, and where that is.
struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let cut = Malformed { what: "the file ends early", at: self.at };
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(cut)?;
        self.rest = rest;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let at = self.at;
        let cut = Malformed { what: "the file ends early", at };
        self.take(N)?.try_into().map_err(|_| cut)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let at = self.at;
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| Malformed { what: "a length is too large", at })
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Checks the sum of what was read since `whole` was all there was.
    fn check(&mut self, whole: &'a [u8], at: usize) -> Result<(), Malformed> {
        let damaged = Malformed { what: "a checksum is wrong", at };
        let covered = whole.get(..self.at - at).ok_or(damaged)?;
        let sum = Checksum::new().with(covered).value();
        if self.array()? == sum.to_le_bytes() { Ok(()) } else { Err(damaged) }
    }

    fn text(&mut self, length: usize) -> Result<&'a str, Malformed> {
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed { what: "no text", at })
    }

    fn record(&mut self) -> Result<(Box<str>, Arc<Item>), Malformed> {
        let (whole, at) = (self.rest, self.at);
        let (shelf, name, value) = (self.length()?, self.length()?, self.length()?);
        let (created, modified) = (self.number()?, self.number()?);
        let (shelf, name, value) = (self.text(shelf)?, self.text(name)?, self.take(value)?);
        self.check(whole, at)?;
        let item = Item::new(name, Bytes::copy_from_slice(value), created, modified, None);
        Ok((shelf.into(), Arc::new(item)))
    }
}

fn decode(bytes: &[u8]) -> Result<Contents, Malformed> {
    let mut reader = Reader { rest: bytes, at: 0 };
    if reader.array()? != MAGIC {
        return Err(Malformed { what: "not the beginning of a snapshot", at: 0 });
    }
    let (revision, count) = (reader.number()?, reader.number()?);
    reader.check(bytes, 0)?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(reader.record()?);
    }
    if !reader.rest.is_empty() {
        return Err(Malformed { what: "more than there should be", at: reader.at });
    }
    Ok(Contents { revision, items })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let item = |name: &str, value: &str, created, modified| {
            let value = Bytes::copy_from_slice(value.as_bytes());
            Arc::new(Item::new(name, value, created, modified, None))
        };
        let items = vec![
            ("core/pods".into(), item("default/a", "{\"a\":1}", 3, 9)),
            ("core/pods".into(), item("default/b", "", 4, 4)),
            ("apps/deployments".into(), item("x/ü", "text", 5, 7)),
        ];
        Contents { revision: 12, items }
    }

    fn render(contents: &Contents) -> Vec<u8> {
        let mut bytes = render_head(contents);
        let mut record = Vec::new();
        for (shelf, item) in &contents.items {
            render_record(shelf, item, &mut record).unwrap();
            bytes.extend_from_slice(&record);
        }
        bytes
    }

    type Plain = (u64, Vec<(String, String, Bytes, u64, u64)>);

    fn plain(contents: &Contents) -> Plain {
        let items = contents.items.iter().map(|(shelf, item)| {
            let (name, value) = (item.name().to_owned(), item.value().clone());
            (shelf.to_string(), name, value, item.created(), item.modified())
        });
        (contents.revision, items.collect())
    }

    #[test]
    fn a_snapshot_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        write_snapshot(&contents(), &path).unwrap();
        assert_eq!(plain(&read_snapshot(&path).unwrap()), plain(&contents()));
        assert_eq!(std::fs::read(&path).unwrap(), render(&contents()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_snapshot_that_was_cut_or_changed_anywhere_is_refused() {
        let whole = render(&contents());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(decode(&changed).is_err(), "changed at {at}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert_eq!(decode(&longer).unwrap_err().at, whole.len());
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        bolero::check!().with_iterations(2_000).for_each(|bytes: &[u8]| {
            if let Ok(contents) = decode(bytes) {
                assert_eq!(render(&contents), bytes);
            }
        });
    }
}
