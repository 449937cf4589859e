//! Sets of fields, and the `FieldsV1` form they are stored in.
//!
//! A path is a list of steps in upstream's spelling: `f:NAME` a field or key of a map,
//! `k:{…}` the item of a list with these keys, `v:…` the item with this value.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// A path to a field.
pub(super) type Path = Vec<String>;

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set(BTreeSet<Path>);

impl Set {
    pub(super) fn insert(&mut self, path: &[String]) {
        if !path.is_empty() {
            self.0.insert(path.to_vec());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.0.iter()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).cloned().collect())
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).cloned().collect())
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).cloned().collect())
    }

    pub(super) fn retain(mut self, keep: impl Fn(&Path) -> bool) -> Self {
        self.0.retain(|path| keep(path));
        self
    }

    /// Is the field, or anything below it, in the set?
    pub(super) fn holds(&self, path: &[String]) -> bool {
        // Whatever begins with the path follows it in the order of the set.
        self.0.range(path.to_vec()..).next().is_some_and(|found| found.starts_with(path))
    }

    /// The set with everything its fields are inside of.
    pub(super) fn closure(&self) -> Self {
        let prefixes = self.0.iter().flat_map(|path| {
            (1..=path.len()).filter_map(|length| path.get(..length).map(<[String]>::to_vec))
        });
        Self(prefixes.collect())
    }

    /// Reads `FieldsV1`.
    pub(super) fn decode(fields: &Value) -> Self {
        fn walk(value: &Value, path: &mut Path, set: &mut Set) {
            let Some(fields) = value.as_object() else { return };
            if fields.is_empty() {
                set.insert(path);
            }
            for (step, inner) in fields {
                if step == "." {
                    set.insert(path);
                    continue;
                }
                path.push(step.clone());
                walk(inner, path, set);
                path.pop();
            }
        }
        let mut set = Self::default();
        walk(fields, &mut Vec::new(), &mut set);
        set
    }

    /// Writes `FieldsV1`.
    pub(super) fn encode(&self) -> Value {
        /// A node of the tree: is it a member, and what is below it.
        #[derive(Default)]
        struct Tree {
            member: bool,
            below: std::collections::BTreeMap<String, Tree>,
        }
        fn render(tree: &Tree) -> Value {
            let mut fields = Map::new();
            if tree.member && !tree.below.is_empty() {
                fields.insert(".".to_owned(), json!({}));
            }
            for (step, inner) in &tree.below {
                fields.insert(step.clone(), render(inner));
            }
            Value::Object(fields)
        }
        let mut root = Tree::default();
        for path in &self.0 {
            let mut at = &mut root;
            for step in path {
                at = at.below.entry(step.clone()).or_default();
            }
            at.member = true;
        }
        render(&root)
    }
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub(super) fn render_path(path: &[String]) -> String {
    let mut text = String::new();
    for step in path {
        match step.split_at_checked(2) {
            Some(("f:", name)) => {
                text.push('.');
                text.push_str(name);
            }
            Some(("k:", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> =
                    keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                text.push_str(&format!("[{}]", keys.join(",")));
            }
            Some((_, value)) => text.push_str(&format!("[={value}]")),
            None => {}
        }
    }
    text
}
