//! A whole store at one revision, and what a look at all of it found.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::item::Item;

/// Everything in a store at one revision.
#[derive(Debug)]
pub struct Contents {
    /// The revision it was read at; no item is newer.
    pub revision: u64,
    /// Shelf and item.
    pub items: Vec<(Box<str>, Arc<Item>)>,
}

/// What a look at a whole store found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The newest revision.
    pub revision: u64,
    /// Items and bytes by shelf.
    pub shelves: BTreeMap<String, Count>,
    /// What is wrong, for people; empty when all is well.
    pub faults: Vec<String>,
}

/// How much lies on a shelf.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// The number of items.
    pub items: usize,
    /// The length of their values.
    pub size_bytes: usize,
}

impl Report {
    /// Looks at contents that could be read as a whole.
    #[must_use]
    pub fn of(contents: &Contents) -> Self {
        let mut report = Self { revision: contents.revision, ..Self::default() };
        for (shelf, item) in &contents.items {
            report.add(shelf, item);
        }
        report
    }

    pub(crate) fn add(&mut self, shelf: &str, item: &Item) {
        let count = self.shelves.entry(shelf.to_owned()).or_default();
        count.items += 1;
        count.size_bytes += item.value().len();
        let (created, modified) = (item.created(), item.modified());
        if modified > self.revision || created > modified {
            let (name, newest) = (item.name(), self.revision);
            self.faults.push(format!(
                "{shelf}/{name} was created at {created} and modified at {modified}, \
                 the newest revision is {newest}"
            ));
        }
    }
}
