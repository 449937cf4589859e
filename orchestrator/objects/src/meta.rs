//! What every object has: names, labels, owners, versions.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    kind::Kind,
    selector::{Requirement, Selector},
    time::Time,
    view::views,
};

/// A typed view of one kind of object.
pub trait Object: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The kind's row in the table.
    const KIND: &'static Kind;

    /// The object's metadata.
    fn meta(&self) -> &ObjectMeta;

    /// The object's metadata, to change.
    fn meta_mut(&mut self) -> &mut ObjectMeta;

    /// Reads the view from an object's JSON.
    ///
    /// # Errors
    ///
    /// When a named field has another type than the view expects.
    fn decode(value: &Value) -> Result<Self, serde_json::Error> {
        serde::Deserialize::deserialize(value)
    }

    /// Writes the view as JSON.
    ///
    /// # Errors
    ///
    /// Never for the views of this crate; the signature is serde's.
    fn encode(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self)
    }

    /// `namespace/name`, or `name` for cluster-scoped objects: the key caches use.
    fn key(&self) -> String {
        self.meta().key()
    }
}

views! {
    /// Standard metadata of an object.
    pub struct ObjectMeta {
        pub name: String,
        pub generate_name: String,
        pub namespace: String,
        pub uid: String,
        pub resource_version: String,
        pub generation: i64,
        pub creation_timestamp: Option<Time>,
        pub deletion_timestamp: Option<Time>,
        pub deletion_grace_period_seconds: Option<i64>,
        pub labels: BTreeMap<String, String>,
        pub annotations: BTreeMap<String, String>,
        pub owner_references: Vec<OwnerReference>,
        pub finalizers: Vec<String>,
        pub managed_fields: Vec<Value>,
    }

    /// Who an object belongs to: it goes when its owners go.
    pub struct OwnerReference {
        pub api_version: String,
        pub kind: String,
        pub name: String,
        pub uid: String,
        pub controller: Option<bool>,
        pub block_owner_deletion: Option<bool>,
    }

    /// A selector as objects carry it.
    pub struct LabelSelector {
        pub match_labels: BTreeMap<String, String>,
        pub match_expressions: Vec<LabelSelectorRequirement>,
    }

    /// One expression of a [`LabelSelector`].
    pub struct LabelSelectorRequirement {
        pub key: String,
        pub operator: String,
        pub values: Vec<String>,
    }

    /// A reference to some object.
    pub struct ObjectReference {
        pub api_version: String,
        pub kind: String,
        pub namespace: String,
        pub name: String,
        pub uid: String,
        pub resource_version: String,
        pub field_path: String,
    }

    /// A reference to an object of a known kind in the same namespace.
    pub struct LocalObjectReference {
        pub name: String,
    }
}

impl ObjectMeta {
    /// Metadata with a name alone.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Metadata with namespace and name.
    #[must_use]
    pub fn in_namespace(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// `namespace/name`, or `name` for cluster-scoped objects.
    #[must_use]
    pub fn key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// The owner that controls this object, if any.
    #[must_use]
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller == Some(true))
    }

    /// Is the object controlled by the one with this uid?
    #[must_use]
    pub fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller().is_some_and(|owner| owner.uid == uid)
    }

    /// Has deletion been asked for?
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The numeric resource version; 0 when absent or not a number.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }

    /// A label's value.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// An annotation's value.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

impl OwnerReference {
    /// The reference by which `owner` controls an object, blocking the owner's deletion.
    #[must_use]
    pub fn controlled_by<T: Object>(owner: &T) -> Self {
        Self {
            api_version: T::KIND.api_version(),
            kind: T::KIND.kind.to_owned(),
            name: owner.meta().name.clone(),
            uid: owner.meta().uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
            ..Self::default()
        }
    }
}

impl LabelSelector {
    /// A selector on labels that must all be equal.
    #[must_use]
    pub fn from_labels(labels: BTreeMap<String, String>) -> Self {
        Self { match_labels: labels, ..Self::default() }
    }

    /// The compiled form; `None` when an operator is unknown, which matches nothing.
    #[must_use]
    pub fn compile(&self) -> Option<Selector> {
        let mut requirements: Vec<Requirement> = self
            .match_labels
            .iter()
            .map(|(key, value)| Requirement::In(key.clone(), [value.clone()].into()))
            .collect();
        for expression in &self.match_expressions {
            let key = expression.key.clone();
            let values = expression.values.iter().cloned().collect();
            requirements.push(match expression.operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::Missing(key),
                _ => return None,
            });
        }
        Some(Selector::new(requirements))
    }

    /// Does the selector match these labels? An empty selector matches everything.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.compile().is_some_and(|selector| selector.matches(labels))
    }
}
