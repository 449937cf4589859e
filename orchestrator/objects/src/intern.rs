//! Rows of the table of kinds that come at run time.
//!
//! Built-in rows live for the whole process, and everything that speaks of a kind relies on it.
//! A custom resource definition adds rows of the same sort: they are interned, so one that comes
//! back is the same row again, and code need not know where a row came from.
//!
//! *Limits*: what was interned is kept until the process ends: some hundred bytes for each
//! definition that differs in names, versions or subresources, and each name of a field once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use crate::kind::{GroupVersion, Kind};

static TEXTS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
static ROWS: Mutex<BTreeMap<Row, &'static Kind>> = Mutex::new(BTreeMap::new());

/// A row as it is put together at run time; see [`Kind`] for what its parts mean.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The API group.
    pub group: String,
    /// The version objects are stored in.
    pub version: String,
    /// The kind's name in objects.
    pub kind: String,
    /// The resource name in paths.
    pub plural: String,
    /// The singular resource name.
    pub singular: String,
    /// Names kubectl accepts for short.
    pub short_names: Vec<String>,
    /// Groups of kinds kubectl knows by one word.
    pub categories: Vec<String>,
    /// Do objects live in a namespace?
    pub namespaced: bool,
    /// Subresources by path name.
    pub subresources: Vec<String>,
    /// Field paths that field selectors may use.
    pub selectable: Vec<String>,
    /// Other versions of the same group that objects are served in.
    pub others: Vec<String>,
}

/// The one copy of a text that lives as long as the process.
#[must_use]
pub fn intern(text: &str) -> &'static str {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = texts.get(text) {
        return known;
    }
    let kept: &'static str = Box::leak(Box::from(text));
    texts.insert(kept);
    kept
}

fn intern_all(texts: &[String]) -> &'static [&'static str] {
    let all: Vec<&'static str> = texts.iter().map(|text| intern(text)).collect();
    Box::leak(all.into_boxed_slice())
}

impl Row {
    /// The one row of this content that lives as long as the process.
    #[must_use]
    pub fn intern(self) -> &'static Kind {
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = rows.get(&self) {
            return known;
        }
        let group = intern(&self.group);
        let others: Vec<GroupVersion> = self
            .others
            .iter()
            .map(|version| GroupVersion { group, version: intern(version) })
            .collect();
        let kept: &'static Kind = Box::leak(Box::new(Kind {
            group,
            version: intern(&self.version),
            kind: intern(&self.kind),
            plural: intern(&self.plural),
            singular: intern(&self.singular),
            short_names: intern_all(&self.short_names),
            categories: intern_all(&self.categories),
            namespaced: self.namespaced,
            has_status: self.subresources.iter().any(|name| name == "status"),
            has_generation: true,
            put_creates: false,
            subresources: intern_all(&self.subresources),
            selectable: intern_all(&self.selectable),
            aliases: Box::leak(others.into_boxed_slice()),
        }));
        rows.insert(self, kept);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_comes_back_is_the_same_row() {
        let row = Row {
            group: "example.com".to_owned(),
            version: "v1".to_owned(),
            kind: "Foo".to_owned(),
            plural: "foos".to_owned(),
            subresources: vec!["status".to_owned()],
            others: vec!["v2".to_owned()],
            ..Row::default()
        };
        let first = row.clone().intern();
        assert!(std::ptr::eq(first, row.clone().intern()));
        assert!(first.has_status && first.is_served_in("example.com", "v2"));
        let other = Row { subresources: Vec::new(), ..row }.intern();
        assert!(!other.has_status);
        assert!(std::ptr::eq(intern("foos"), intern(first.plural)));
    }
}
