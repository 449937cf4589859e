//! Sets of fields, and the `FieldsV1` form they are stored in.
//!
//! A path is a list of steps in upstream's spelling: `f:NAME` a field or key of a map,
//! `k:{…}` the item of a list with these keys, `v:…` the item with this value.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A path to a field.
pub(super) type Path = Vec<String>;

/// A set of fields, as the tree that `FieldsV1` is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set(Tree);

/// A field: is it in the set, and what of what is below it is.
///
/// No tree has a branch without a member, so equal sets are equal trees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tree {
    member: bool,
    below: BTreeMap<String, Tree>,
}

impl Tree {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, theirs) in &other.below {
            match self.below.get_mut(step) {
                Some(ours) => ours.add(theirs),
                None => {
                    self.below.insert(step.clone(), theirs.clone());
                }
            }
        }
    }

    fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (step, theirs) in &other.below {
            if let Some(ours) = self.below.get_mut(step) {
                ours.subtract(theirs);
                if ours.is_empty() {
                    self.below.remove(step);
                }
            }
        }
    }

    fn intersection(&self, other: &Self) -> Self {
        let both = self.below.iter().filter_map(|(step, ours)| {
            let both = ours.intersection(other.below.get(step)?);
            (!both.is_empty()).then(|| (step.clone(), both))
        });
        Self { member: self.member && other.member, below: both.collect() }
    }

    fn visit(&self, path: &mut Path, found: &mut Vec<Path>) {
        if self.member {
            found.push(path.clone());
        }
        for (step, inner) in &self.below {
            path.push(step.clone());
            inner.visit(path, found);
            path.pop();
        }
    }

    fn retain(&mut self, path: &mut Path, keep: &impl Fn(&[String]) -> bool) {
        self.member = self.member && keep(path);
        self.below.retain(|step, inner| {
            path.push(step.clone());
            inner.retain(path, keep);
            path.pop();
            !inner.is_empty()
        });
    }

    /// Makes every field that is there a member.
    fn close(&mut self) {
        self.member = true;
        self.below.values_mut().for_each(Self::close);
    }

    fn encode(&self) -> Value {
        let mut fields = Map::new();
        if self.member && !self.below.is_empty() {
            fields.insert(".".to_owned(), json!({}));
        }
        for (step, inner) in &self.below {
            fields.insert(step.clone(), inner.encode());
        }
        Value::Object(fields)
    }

    fn decode(fields: &Value) -> Self {
        let mut tree = Self::default();
        let Some(fields) = fields.as_object() else { return tree };
        tree.member = fields.is_empty();
        for (step, inner) in fields {
            if step == "." {
                tree.member = true;
            } else {
                let inner = Self::decode(inner);
                if !inner.is_empty() {
                    tree.below.insert(step.clone(), inner);
                }
            }
        }
        tree
    }
}

impl Set {
    pub(super) fn insert(&mut self, path: &[String]) {
        if path.is_empty() {
            return;
        }
        let mut at = &mut self.0;
        for step in path {
            // Most steps are there already, and looking first spares a copy of their name.
            if !at.below.contains_key(step) {
                at.below.insert(step.clone(), Tree::default());
            }
            match at.below.get_mut(step) {
                Some(inner) => at = inner,
                None => return,
            }
        }
        at.member = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields in order, those that hold others before what they hold.
    pub(super) fn iter(&self) -> impl Iterator<Item = Path> + use<> {
        let mut found = Vec::new();
        self.0.visit(&mut Vec::new(), &mut found);
        found.into_iter()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.0.add(&other.0);
        all
    }

    /// Adds the fields of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        self.0.add(&other.0);
    }

    /// Takes the fields of another set away.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.0.subtract(&other.0);
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.0.subtract(&other.0);
        rest
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0))
    }

    pub(super) fn retain(mut self, keep: impl Fn(&[String]) -> bool) -> Self {
        self.0.retain(&mut Vec::new(), &keep);
        self
    }

    /// Is the field, or anything below it, in the set?
    pub(super) fn holds(&self, path: &[String]) -> bool {
        let mut at = &self.0;
        for step in path {
            match at.below.get(step) {
                Some(inner) => at = inner,
                None => return false,
            }
        }
        !at.is_empty()
    }

    /// The set with everything its fields are inside of.
    pub(super) fn closure(&self) -> Self {
        let mut all = self.clone();
        all.0.below.values_mut().for_each(Tree::close);
        all
    }

    /// Reads `FieldsV1`.
    pub(super) fn decode(fields: &Value) -> Self {
        let mut tree = Tree::decode(fields);
        // The whole object is nobody's.
        tree.member = false;
        Self(tree)
    }

    /// Writes `FieldsV1`.
    pub(super) fn encode(&self) -> Value {
        self.0.encode()
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
