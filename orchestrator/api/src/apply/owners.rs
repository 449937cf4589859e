//! `metadata.managedFields`: one entry per manager, verb and half of the object.

use objects::field::Fields as _;
use objects::{Time, field::str_at};
use serde_json::{Value, json};

use super::set::Set;

/// As many managers by update are told apart.
const UPDATERS_MAX: usize = 10;
/// The name of those that no longer are.
const ANCIENT: &str = "ancient-changes";

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: String,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) fields: Set,
}

/// All entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Managers(Vec<Manager>);

impl Manager {
    /// Adds fields; the time is that of the last change.
    pub(super) fn gain(&mut self, fields: &Set, now: Time) {
        self.fields.extend(fields);
        self.time = now.to_string();
    }
}

impl Managers {
    /// Reads an object's entries; those in no known form are left out.
    pub(super) fn decode(object: &Value) -> Self {
        let list = object.field("metadata.managedFields").and_then(Value::as_array);
        let entries = list.into_iter().flatten().filter_map(|entry| {
            let text = |key: &str| str_at(entry, key).unwrap_or("").to_owned();
            let fields = entry.get("fieldsV1")?;
            Some(Manager {
                name: text("manager"),
                operation: text("operation"),
                api_version: text("apiVersion"),
                subresource: text("subresource"),
                time: text("time"),
                fields: Set::decode(fields),
            })
        });
        Self(entries.collect())
    }

    pub(super) fn encode(&self) -> Value {
        let entries = self.0.iter().map(|manager| {
            let mut entry = json!({
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": manager.api_version,
                "time": manager.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": manager.fields.encode(),
            });
            if !manager.subresource.is_empty() {
                crate::json::put(&mut entry, "subresource", json!(manager.subresource));
            }
            entry
        });
        Value::Array(entries.collect())
    }

    /// The entry of a manager, made when missing.
    pub(super) fn entry(
        &mut self,
        name: &str,
        operation: &str,
        api_version: &str,
        subresource: &str,
        now: Time,
    ) -> &mut Manager {
        let same = |have: &Manager| {
            have.name == name && have.operation == operation && have.subresource == subresource
        };
        let at = match self.0.iter().position(same) {
            Some(at) => at,
            None => {
                self.0.push(Manager {
                    name: name.to_owned(),
                    operation: operation.to_owned(),
                    api_version: api_version.to_owned(),
                    subresource: subresource.to_owned(),
                    time: now.to_string(),
                    fields: Set::default(),
                });
                self.0.len().saturating_sub(1)
            }
        };
        #[expect(clippy::expect_used, reason = "found or pushed just above")]
        self.0.get_mut(at).expect("an entry")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Manager> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Manager> {
        self.0.iter_mut()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets managers that own nothing, and puts the oldest together when there are many.
    ///
    /// Only owners by update are put together: an apply needs to know its own fields.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|manager| !manager.fields.is_empty());
        loop {
            let updates = self.0.iter().filter(|manager| manager.operation == "Update").count();
            let oldest = |managers: &[Manager]| {
                let updates = managers.iter().enumerate();
                let updates = updates.filter(|(_, m)| m.operation == "Update" && m.name != ANCIENT);
                updates.min_by(|a, b| a.1.time.cmp(&b.1.time)).map(|(at, _)| at)
            };
            let Some(at) = oldest(&self.0).filter(|_| updates > UPDATERS_MAX) else { return };
            let gone = self.0.remove(at);
            match self
                .0
                .iter_mut()
                .find(|have| have.name == ANCIENT && have.subresource == gone.subresource)
            {
                Some(have) => have.fields.extend(&gone.fields),
                None => self.0.insert(0, Manager { name: ANCIENT.to_owned(), ..gone }),
            }
        }
    }
}
