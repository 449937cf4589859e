//! The journal file: one JSON line per record, on disk before anyone relies on it.
//!
//! It is rewritten from the state at each start and when it has grown, by a new file and a rename,
//! so a crash leaves either the old or the new one. A torn last line is left out on reading: its
//! record had no answer yet.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use boot::{Journal, Record, parse_record, render_record};

const NAME: &str = "journal.jsonl";
/// A thousand machines write about 2 MB in a boot.
const LEN_MAX: u64 = 8 << 20;

/// A journal that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct JournalError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct FileJournal {
    dir: PathBuf,
    file: File,
    len: u64,
    unsynced: bool,
}

impl FileJournal {
    /// Opens the journal of a directory and reads what it holds, oldest first.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Vec<Record>), JournalError> {
        std::fs::create_dir_all(dir).map_err(failed("make", dir))?;
        let path = dir.join(NAME);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&path);
        let mut file = file.map_err(failed("open", &path))?;
        let mut records = Vec::new();
        let mut unreadable = 0_u64;
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(failed("read", &path))? > 0 {
            match std::str::from_utf8(&line).ok().and_then(parse_record) {
                Some(record) => records.push(record),
                None => unreadable += 1,
            }
            line.clear();
        }
        if unreadable > 0 {
            tracing::warn!(unreadable, path = %path.display(), "journal lines left out");
        }
        let len = file.metadata().map_err(failed("read", &path))?.len();
        Ok((Self { dir: dir.to_owned(), file, len, unsynced: false }, records))
    }

    /// Says whether the file has grown so much that it should be rewritten.
    pub(crate) const fn is_long(&self) -> bool {
        self.len > LEN_MAX
    }

    /// Puts these records in the place of all before.
    pub(crate) fn rewrite(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let path = self.dir.join(NAME);
        let new_path = self.dir.join("journal.new");
        let mut file = File::create(&new_path).map_err(failed("make", &new_path))?;
        let text = render(records);
        file.write_all(text.as_bytes()).map_err(failed("write", &new_path))?;
        file.sync_all().map_err(failed("sync", &new_path))?;
        std::fs::rename(&new_path, &path).map_err(failed("replace", &path))?;
        let dir = File::open(&self.dir).map_err(failed("open", &self.dir))?;
        dir.sync_all().map_err(failed("sync", &self.dir))?;
        self.file = file;
        self.len = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.unsynced = false;
        Ok(())
    }

    /// Makes all that was appended survive the loss of power.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        if self.unsynced {
            self.file.sync_data().map_err(failed("sync", &self.dir.join(NAME)))?;
            self.unsynced = false;
        }
        Ok(())
    }
}

impl Journal for FileJournal {
    type Error = JournalError;

    fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let text = render(records);
        let written = self.file.write_all(text.as_bytes());
        written.map_err(failed("write", &self.dir.join(NAME)))?;
        self.len = self.len.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        self.unsynced = true;
        if records.iter().any(Record::is_promise) { self.sync() } else { Ok(()) }
    }
}

fn render(records: &[Record]) -> String {
    let mut text = String::with_capacity(records.len() * 128);
    for record in records {
        text.push_str(&render_record(record));
        text.push('\n');
    }
    text
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError { action, path, source }
}

#[cfg(test)]
mod tests {
    use boot::{Mac, Moment, Phase};

    use super::*;

    fn record(last: u8) -> Record {
        let mac = Mac::new([2, 0, 0, 0, 0, last]);
        Record::Phase { at: Moment::from_unix_ms(7), mac, phase: Phase::Loader }
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, records) = FileJournal::open(dir.path()).unwrap();
        assert_eq!(records, []);
        journal.append(&[record(1), record(2)]).unwrap();
        journal.append(&[record(3)]).unwrap();
        let (mut journal, records) = FileJournal::open(dir.path()).unwrap();
        assert_eq!(records, [record(1), record(2), record(3)]);
        journal.rewrite(&[record(4)]).unwrap();
        journal.append(&[record(5)]).unwrap();
        let (_, records) = FileJournal::open(dir.path()).unwrap();
        assert_eq!(records, [record(4), record(5)]);
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = FileJournal::open(dir.path()).unwrap();
        journal.append(&[record(1), record(2)]).unwrap();
        let path = dir.path().join(NAME);
        let text = std::fs::read(&path).unwrap();
        for cut in 0..text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let (_, records) = FileJournal::open(dir.path()).unwrap();
            let whole = text[..cut].split_inclusive(|byte| *byte == b'\n');
            let whole = whole.filter(|line| parse_record(&String::from_utf8_lossy(line)).is_some());
            assert_eq!(records.len(), whole.count(), "cut at {cut}");
        }
    }
}
