//! A directory of files that changes in one step.
//!
//! The files live in a directory whose name begins with two dots; `..data` is a symbolic link
//! to it, and each visible name is a link through `..data`. A change writes a new directory and
//! renames the link, so a reader sees either all of the old files or all of the new ones.
//!
//! Spec: upstream's atomic writer, whose names programs know and watch.

use std::collections::BTreeSet;

use crate::files::{File, FileSet};

/// The link that is swapped.
pub const DATA: &str = "..data";
/// The link before it is renamed.
pub const DATA_NEW: &str = "..data_tmp";

/// What is in a volume's directory now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Existing {
    /// Where `..data` points, if it is there.
    pub data: Option<String>,
    /// The files behind it.
    pub files: FileSet,
    /// All other names in the directory: visible links and leftovers.
    pub names: BTreeSet<String>,
}

/// One step of a change; done in order, each may be done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes a directory, and those above it, below the volume's.
    MakeDir {
        /// Its relative path.
        path: String,
    },
    /// Writes a new file.
    Write {
        /// Its relative path.
        path: String,
        /// What it is.
        file: File,
    },
    /// Makes a symbolic link, replacing what has its name.
    Link {
        /// The link's name.
        path: String,
        /// Where it points.
        target: String,
    },
    /// Renames, replacing what has the new name.
    Rename {
        /// The old name.
        from: String,
        /// The new one.
        to: String,
    },
    /// Removes a link, or a directory with all that is in it.
    Remove {
        /// Its name.
        path: String,
    },
}

impl Existing {
    /// Adds a file that was found behind `..data`.
    pub fn add(&mut self, path: &str, file: File) {
        // A path that cannot have come from us makes the sets differ, which is what is needed.
        if self.files.put(path, file).is_err() {
            self.data = None;
        }
    }
}

/// Plans the steps from what is there to `wanted`; no steps when nothing differs.
///
/// `stamp` names the new directory and must differ from all earlier ones.
#[must_use]
pub fn plan_update(existing: &Existing, wanted: &FileSet, stamp: &str) -> Vec<Step> {
    let visible: BTreeSet<&str> =
        wanted.iter().map(|(path, _)| path.split('/').next().unwrap_or(path)).collect();
    let same = existing.data.is_some() && existing.files == *wanted;
    let mut steps = Vec::new();
    if !same {
        let dir = format!("..{stamp}");
        steps.push(Step::MakeDir { path: dir.clone() });
        for (path, file) in wanted.iter() {
            if let Some((above, _)) = path.rsplit_once('/') {
                steps.push(Step::MakeDir { path: format!("{dir}/{above}") });
            }
            steps.push(Step::Write { path: format!("{dir}/{path}"), file: file.clone() });
        }
        steps.push(Step::Link { path: DATA_NEW.to_owned(), target: dir });
        steps.push(Step::Rename { from: DATA_NEW.to_owned(), to: DATA.to_owned() });
    }
    for name in &visible {
        if !existing.names.contains(*name) {
            let target = format!("{DATA}/{name}");
            steps.push(Step::Link { path: (*name).to_owned(), target });
        }
    }
    let keep = |name: &str| {
        visible.contains(name) || (same && existing.data.as_deref() == Some(name)) || name == DATA
    };
    for name in existing.names.iter().filter(|name| !keep(name)) {
        steps.push(Step::Remove { path: name.clone() });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn set(files: &[(&str, &str)]) -> FileSet {
        let mut set = FileSet::default();
        for (path, text) in files {
            set.put(path, File { bytes: text.as_bytes().to_vec(), mode: 0o644 }).unwrap();
        }
        set
    }

    /// A disk in memory: names to contents, links as `-> target`.
    #[derive(Default)]
    struct Disk(BTreeMap<String, String>);

    impl Disk {
        fn apply(&mut self, step: &Step) {
            match step {
                Step::MakeDir { path } => drop(self.0.insert(path.clone(), "dir".into())),
                Step::Write { path, file } => {
                    let text = String::from_utf8(file.bytes.clone()).unwrap();
                    self.0.insert(path.clone(), text);
                }
                Step::Link { path, target } => {
                    self.0.insert(path.clone(), format!("-> {target}"));
                }
                Step::Rename { from, to } => {
                    let moved = self.0.remove(from).unwrap();
                    self.0.insert(to.clone(), moved);
                }
                Step::Remove { path } => {
                    let below = format!("{path}/");
                    self.0.retain(|name, _| name != path && !name.starts_with(&below));
                }
            }
        }

        fn observe(&self) -> Existing {
            let data = self.0.get(DATA).map(|link| link.trim_start_matches("-> ").to_owned());
            let mut existing = Existing { data: data.clone(), ..Existing::default() };
            for (name, text) in &self.0 {
                if let Some(path) = data.as_ref().and_then(|d| name.strip_prefix(&format!("{d}/")))
                    && text != "dir"
                {
                    existing.add(path, File { bytes: text.clone().into_bytes(), mode: 0o644 });
                }
                if !name.contains('/') && name != DATA {
                    existing.names.insert(name.clone());
                }
            }
            existing
        }

        /// What a program sees: visible names resolved through the links.
        fn read(&self) -> BTreeMap<String, String> {
            let data = self.0.get(DATA).map(|link| link.trim_start_matches("-> ").to_owned());
            let Some(data) = data else { return BTreeMap::new() };
            let visible = self.0.keys().filter(|n| !n.starts_with("..") && !n.contains('/'));
            let mut seen = BTreeMap::new();
            for name in visible {
                for (path, text) in &self.0 {
                    let Some(rest) = path.strip_prefix(&format!("{data}/")) else { continue };
                    if text != "dir" && (rest == name || rest.starts_with(&format!("{name}/"))) {
                        seen.insert(rest.to_owned(), text.clone());
                    }
                }
            }
            seen
        }
    }

    fn told(set: &FileSet) -> BTreeMap<String, String> {
        let text = |file: &File| String::from_utf8(file.bytes.clone()).unwrap();
        set.iter().map(|(path, file)| (path.to_owned(), text(file))).collect()
    }

    /// However often a change is cut short, the next one ends at what is wanted, and a reader of
    /// a name that both versions have never sees a mixture.
    #[test]
    fn a_change_may_be_cut_short_at_every_step() {
        let old = set(&[("a", "1"), ("b/c", "1")]);
        let new = set(&[("a", "2"), ("d", "2")]);
        let steps = plan_update(&Existing::default(), &old, "one");
        let change = {
            let mut disk = Disk::default();
            steps.iter().for_each(|step| disk.apply(step));
            assert_eq!(disk.read(), told(&old));
            assert!(plan_update(&disk.observe(), &old, "again").is_empty());
            plan_update(&disk.observe(), &new, "two")
        };
        for cut in 0..=change.len() {
            let mut disk = Disk::default();
            steps.iter().chain(&change[..cut]).for_each(|step| disk.apply(step));
            let a = disk.read().remove("a");
            assert!(matches!(a.as_deref(), Some("1" | "2")), "cut {cut}: {a:?}");
            let rest = plan_update(&disk.observe(), &new, "three");
            rest.iter().for_each(|step| disk.apply(step));
            assert_eq!(disk.read(), told(&new), "cut {cut}");
            assert!(plan_update(&disk.observe(), &new, "four").is_empty(), "cut {cut}");
        }
    }
}
