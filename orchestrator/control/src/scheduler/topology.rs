//! Node labels as numbers: which value of a key each node has.
//!
//! Only keys that some rule names are kept. Values are never forgotten; a value without nodes
//! is told apart by its count.

use std::collections::BTreeMap;

/// A node's place in the table.
pub(super) type NodeId = usize;
/// A key's place in this table.
pub(super) type KeyId = usize;
/// A value's place among those of its key.
pub(super) type ValueId = usize;

/// One key.
#[derive(Debug, Default)]
pub(super) struct Column {
    values: BTreeMap<String, ValueId>,
    /// The value of each node.
    of: Vec<Option<ValueId>>,
    /// Nodes with each value.
    nodes: Vec<usize>,
}

impl Column {
    /// The value of a node.
    pub(super) fn of(&self, node: NodeId) -> Option<ValueId> {
        self.of.get(node).copied().flatten()
    }

    /// How many values were ever seen.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes with each value.
    pub(super) fn nodes(&self) -> &[usize] {
        &self.nodes
    }

    fn set(&mut self, node: NodeId, value: Option<&String>) {
        if self.of.len() <= node {
            self.of.resize(node + 1, None);
        }
        let id = value.map(|value| match self.values.get(value) {
            Some(id) => *id,
            None => {
                let id = self.nodes.len();
                self.values.insert(value.clone(), id);
                self.nodes.push(0);
                id
            }
        });
        let Some(place) = self.of.get_mut(node) else { return };
        let old = std::mem::replace(place, id);
        for (id, gained) in [(old, false), (id, true)] {
            if let Some(count) = id.and_then(|id| self.nodes.get_mut(id)) {
                *count = if gained { *count + 1 } else { count.saturating_sub(1) };
            }
        }
    }
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Topology {
    ids: BTreeMap<String, KeyId>,
    columns: Vec<Column>,
}

impl Topology {
    /// The number of a key; a new one reads the labels of all nodes.
    pub(super) fn key<'a>(
        &mut self,
        key: &str,
        nodes: impl Iterator<Item = (NodeId, &'a BTreeMap<String, String>)>,
    ) -> KeyId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let mut column = Column::default();
        for (node, labels) in nodes {
            column.set(node, labels.get(key));
        }
        let id = self.columns.len();
        self.columns.push(column);
        self.ids.insert(key.to_owned(), id);
        id
    }

    /// One key's values.
    pub(super) fn column(&self, key: KeyId) -> Option<&Column> {
        self.columns.get(key)
    }

    /// The value a node has.
    pub(super) fn value(&self, key: KeyId, node: NodeId) -> Option<ValueId> {
        self.columns.get(key)?.of(node)
    }

    /// Reads the labels of a node; without labels the node is forgotten.
    pub(super) fn set(&mut self, node: NodeId, labels: Option<&BTreeMap<String, String>>) {
        for (key, id) in &self.ids {
            if let Some(column) = self.columns.get_mut(*id) {
                column.set(node, labels.and_then(|labels| labels.get(key)));
            }
        }
    }
}
