//! Reading one mapping: which keys it may have, which it must have, and what each may say.

use std::fmt::Display;

use crate::document::{Node, Value};
use crate::problem::{Place, Problem};

/// A value that could be read, and where; later checks point back to the place.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Why a text will not do.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) rule: String,
    pub(super) hint: String,
}

impl Refusal {
    pub(super) fn new(rule: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { rule: rule.into(), hint: hint.into() }
    }
}

/// Collects problems while checking goes on.
#[derive(Debug, Default)]
pub(super) struct Problems(pub(super) Vec<Problem>);

impl Problems {
    pub(super) fn add(
        &mut self,
        place: &Place,
        found: impl Display,
        rule: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Problem {
            place: place.clone(),
            found: found.to_string(),
            rule: rule.into(),
            hint: hint.into(),
        });
    }
}

/// One mapping of the document, opened for reading.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) place: Place,
    entries: &'a [(String, Node)],
}

impl<'a> Fields<'a> {
    /// Opens `node` as a mapping that knows the keys `known`; all others are reported.
    pub(super) fn open(
        path: &str,
        node: &'a Node,
        known: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let place = node.place(path);
        let Value::Map(entries) = &node.value else {
            let keys = known.join(", ");
            problems.add(&place, node.shape(), "must be a mapping", format!("its keys are {keys}"));
            return None;
        };
        for (at, (key, value)) in entries.iter().enumerate() {
            let place = value.place(join(path, key));
            if !known.contains(&key.as_str()) {
                problems.add(&place, value.shape(), "is an unknown key", hint_key(key, known));
            } else if entries.iter().take(at).any(|(earlier, _)| earlier == key) {
                problems.add(&place, value.shape(), "is given twice", "keep one of the two");
            }
        }
        Some(Self { place, entries })
    }

    /// The node under `key` and its path; a key without a value counts as absent.
    pub(super) fn node(&self, key: &str) -> Option<(&'a Node, String)> {
        let (_, node) = self.entries.iter().find(|(found, _)| found == key)?;
        (node.value != Value::Empty).then(|| (node, join(&self.place.path, key)))
    }

    /// Reads an optional scalar.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        problems: &mut Problems,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<Found<T>> {
        let (node, path) = self.node(key)?;
        scalar(&path, node, problems, parse)
    }

    /// Reads a scalar that must be there; `hint` says what to write when it is not.
    pub(super) fn required<T>(
        &self,
        key: &str,
        hint: &str,
        problems: &mut Problems,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<Found<T>> {
        if self.node(key).is_none() {
            self.missing(key, hint, problems);
        }
        self.optional(key, problems, parse)
    }

    /// The items of a list under `key`, each with its path; empty when absent.
    pub(super) fn list(&self, key: &str, problems: &mut Problems) -> Vec<(&'a Node, String)> {
        let Some((node, path)) = self.node(key) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            problems.add(
                &node.place(path),
                node.shape(),
                "must be a list",
                "write items with `- `",
            );
            return Vec::new();
        };
        items.iter().enumerate().map(|(at, item)| (item, format!("{path}[{at}]"))).collect()
    }

    /// Where `key` would stand, if it is not there.
    pub(super) fn absent(&self, key: &str) -> Option<Place> {
        let place = Place { path: join(&self.place.path, key), ..self.place.clone() };
        self.node(key).is_none().then_some(place)
    }

    /// Reports that `key` is not there.
    pub(super) fn missing(&self, key: &str, hint: &str, problems: &mut Problems) {
        let place = Place { path: join(&self.place.path, key), ..self.place.clone() };
        problems.add(&place, "", "is missing", hint);
    }
}

/// Reads one scalar node.
pub(super) fn scalar<T>(
    path: &str,
    node: &Node,
    problems: &mut Problems,
    parse: impl FnOnce(&str) -> Result<T, Refusal>,
) -> Option<Found<T>> {
    let place = node.place(path);
    let Value::Text(text) = &node.value else {
        problems.add(&place, node.shape(), "must be a single value", "write `key: value`");
        return None;
    };
    match parse(text) {
        Ok(value) => Some(Found { value, place }),
        Err(refusal) => {
            problems.add(&place, text, refusal.rule, refusal.hint);
            None
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Suggests the known key that is nearest to what was written.
fn hint_key(found: &str, known: &[&str]) -> String {
    let near = known.iter().min_by_key(|key| distance(&key.to_lowercase(), &found.to_lowercase()));
    match near {
        Some(near) if distance(&near.to_lowercase(), &found.to_lowercase()) <= 3 => {
            format!("did you mean {near}?")
        }
        Some(_) | None => format!("the keys here are {}", known.join(", ")),
    }
}

/// Edit distance, over bytes; long texts are simply far away.
fn distance(left: &str, right: &str) -> usize {
    if left.len() > 64 || right.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (done, a) in left.bytes().enumerate() {
        let mut diagonal = done;
        let mut before = done + 1;
        let mut next = vec![before];
        for (b, above) in right.bytes().zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *above;
            before = replaced.min(before + 1).min(above + 1);
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}
