//! Custom resources: kinds that come at run time, by CustomResourceDefinition.
//!
//! A [`Definition`] is read from the stored object once per change; a [`Registry`] is a snapshot of
//! all that are served. Requests are parsed against a snapshot and carry the version they speak
//! ([`CustomVersion`]) with them, so a definition that changes meanwhile does no harm.
//!
//! The schema of a version is read three times: as [`structural`] tree, which prunes, defaults and
//! validates; as the arena server-side apply walks; and as OpenAPI.
//!
//! Spec: upstream's apiextensions.k8s.io/v1, structural schemas.

mod check;
mod column;
pub mod conversion;
mod plan;
mod publish;
mod rules;
mod shape;
mod structural;
mod validate;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

pub use check::{check_definition, default_definition};
pub(crate) use column::{path_value, render_cells, render_columns};
use objects::field::Fields as _;
use objects::{
    Cause, Kind,
    field::{str_at, value_at},
    intern::{Row, intern},
    kind::{self, KINDS},
};
pub(crate) use plan::remember_stored;
pub use plan::{Conditions, FINALIZER, plan_status, release_names};
use serde_json::{Value, json};
pub(crate) use shape::{embedded, prune};
pub use structural::Structural;

use crate::{
    document::Shelf,
    remote::Remote,
    schema::{Schema, TypeId},
};

/// Everything that is served: the built-in kinds and those of definitions.
#[derive(Debug, Default)]
pub struct Registry {
    /// By group, version and plural.
    served: BTreeMap<(String, String, String), Arc<CustomVersion>>,
    /// Group-versions of definitions, groups sorted, the preferred version of each first.
    group_versions: Vec<(&'static str, &'static str)>,
    /// Group-versions that other servers serve.
    remotes: Vec<Arc<Remote>>,
    /// Discovery and OpenAPI of this snapshot.
    pub(crate) documents: Shelf,
}

/// What a CustomResourceDefinition says.
#[derive(Debug)]
pub struct Definition {
    /// Its name, `PLURAL.GROUP`.
    pub name: String,
    /// Its API group.
    pub group: String,
    /// Is it being deleted? Then nothing new may be created.
    pub terminating: bool,
    /// How objects come from one version to another.
    pub conversion: Conversion,
    versions: Vec<Arc<CustomVersion>>,
}

/// How objects come from one version to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    /// A webhook does it: `spec.conversion.webhook`.
    Webhook(Value),
}

/// One served version of a definition.
#[derive(Debug)]
pub struct CustomVersion {
    /// Its row.
    pub kind: &'static Kind,
    /// The version's name.
    pub version: &'static str,
    /// The kind of lists of its objects.
    pub list_kind: String,
    /// The name of the definition.
    pub definition: String,
    /// Is the definition being deleted?
    pub terminating: bool,
    /// How objects come from the stored version and back.
    pub conversion: Conversion,
    /// What clients of a deprecated version are told.
    pub warning: Option<String>,
    /// The shape of objects.
    pub structural: Structural,
    /// `additionalPrinterColumns`.
    columns: Vec<Value>,
    /// JSON paths of `subresources.scale`, if it is served.
    scale: Option<Scale>,
    schema: Schema,
    root: TypeId,
    published: Value,
    has_defaults: bool,
}

/// Where `scale` finds its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) spec: String,
    pub(crate) status: String,
    pub(crate) selector: Option<String>,
}

impl PartialEq for CustomVersion {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for CustomVersion {}

static BUILTIN: LazyLock<Registry> = LazyLock::new(Registry::default);

impl Registry {
    /// The registry that has only the built-in kinds.
    #[must_use]
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// A registry of the built-in kinds and these definitions.
    #[must_use]
    pub fn new(definitions: &[Arc<Definition>]) -> Self {
        let mut registry = Self::default();
        for version in definitions.iter().flat_map(|one| &one.versions) {
            let kind = version.kind;
            if kind::by_resource(kind.group, version.version, kind.plural).is_some() {
                continue;
            }
            let pair = (kind.group, version.version);
            if !registry.group_versions.contains(&pair) {
                registry.group_versions.push(pair);
            }
            let key = (kind.group.to_owned(), version.version.to_owned(), kind.plural.to_owned());
            registry.served.insert(key, Arc::clone(version));
        }
        registry.sort();
        registry
    }

    /// The same registry with what other servers serve.
    #[must_use]
    pub fn beside(mut self, remotes: &[Arc<Remote>]) -> Self {
        for remote in remotes {
            let pair = (remote.group, remote.version);
            // What a definition says here, nobody else says.
            if self.group_versions.contains(&pair) {
                continue;
            }
            self.group_versions.push(pair);
            self.remotes.push(Arc::clone(remote));
        }
        self.sort();
        self
    }

    fn sort(&mut self) {
        self.group_versions.sort_by(|a, b| a.0.cmp(b.0).then_with(|| rank(b.1).cmp(&rank(a.1))));
    }

    /// A group-version that another server serves.
    #[must_use]
    pub fn remote(&self, group: &str, version: &str) -> Option<&Arc<Remote>> {
        self.remotes.iter().find(|one| (one.group, one.version) == (group, version))
    }

    /// All of them.
    pub(crate) fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.iter()
    }

    /// What a definition says of a resource.
    #[must_use]
    pub fn custom(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<CustomVersion>> {
        if self.served.is_empty() {
            return None;
        }
        self.served.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// A served version of a custom kind.
    #[must_use]
    pub fn custom_kind(
        &self,
        group: &str,
        version: &str,
        name: &str,
    ) -> Option<&Arc<CustomVersion>> {
        self.served
            .values()
            .find(|one| one.kind.group == group && one.version == version && one.kind.kind == name)
    }

    /// All served versions of custom kinds.
    pub fn customs(&self) -> impl Iterator<Item = &Arc<CustomVersion>> {
        self.served.values()
    }

    /// The group-versions of custom kinds, each once, in order.
    #[must_use]
    pub fn custom_versions(&self) -> Vec<(&'static str, &'static str)> {
        let mut all: Vec<_> =
            self.served.values().map(|one| (one.kind.group, one.version)).collect();
        all.dedup();
        all
    }

    /// A resource's row, and what its definition says when it is a custom one.
    pub(crate) fn resource(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<(&'static Kind, Option<Arc<CustomVersion>>)> {
        match kind::by_resource(group, version, plural) {
            Some(kind) => Some((kind, None)),
            None => {
                let custom = self.custom(group, version, plural)?;
                Some((custom.kind, Some(Arc::clone(custom))))
            }
        }
    }

    /// The rows of a group-version, alias versions included.
    pub(crate) fn kinds_in<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'static Kind> + 'a {
        let builtin = KINDS.iter().copied().filter(move |kind| kind.is_served_in(group, version));
        let custom = self
            .served
            .values()
            .filter(move |one| one.kind.group == group && one.version == version)
            .map(|one| one.kind);
        builtin.chain(custom)
    }

    /// The group-versions definitions add, groups sorted, the preferred version of each first.
    pub(crate) fn group_versions(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.group_versions.iter().copied()
    }
}

/// The order of versions: releases before betas before alphas, later before earlier.
fn rank(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let plain = (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return plain };
    let digits = |text: &str| -> Option<(u64, usize)> {
        let end = text.bytes().take_while(u8::is_ascii_digit).count();
        Some((text.get(..end)?.parse().ok()?, end))
    };
    let Some((major, end)) = digits(rest) else { return plain };
    let rest = rest.get(end..).unwrap_or("");
    let same = std::cmp::Reverse(String::new());
    if rest.is_empty() {
        return (3, major, 0, same);
    }
    for (word, class) in [("beta", 2), ("alpha", 1)] {
        if let Some((minor, end)) = rest.strip_prefix(word).and_then(digits)
            && rest.len() == word.len().saturating_add(end)
        {
            return (class, major, minor, same);
        }
    }
    plain
}

fn texts(value: &Value, path: &str) -> Vec<String> {
    let all = value_at(value, path).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Definition {
    /// Reads a stored definition; parts that cannot be read are as if they were not there, for
    /// only checked definitions are stored. `None` when it has no stored version.
    #[must_use]
    pub fn read(object: &Value) -> Option<Arc<Self>> {
        let text = |path: &str| str_at(object, path).unwrap_or("").to_owned();
        let versions: Vec<&Value> =
            value_at(object, "spec.versions").and_then(Value::as_array)?.iter().collect();
        let is = |version: &Value, key: &str| version.get(key) == Some(&json!(true));
        let storage = versions.iter().find(|one| is(one, "storage"))?;
        let storage = str_at(storage, "name")?.to_owned();
        let conversion = match str_at(object, "spec.conversion.strategy") {
            Some("Webhook") => Conversion::Webhook(
                value_at(object, "spec.conversion.webhook").cloned().unwrap_or(Value::Null),
            ),
            _ => Conversion::None,
        };
        let terminating = object.field("metadata.deletionTimestamp").is_some();
        let mut selectable: Vec<String> = versions.iter().flat_map(|one| selectable(one)).collect();
        selectable.sort();
        selectable.dedup();
        let served = versions.iter().filter(|one| is(one, "served"));
        let others: Vec<String> = served
            .clone()
            .filter_map(|one| str_at(one, "name"))
            .filter(|name| *name != storage)
            .map(str::to_owned)
            .collect();
        let group = text("spec.group");
        let made = served
            .filter_map(|one| {
                let row = Row {
                    group: group.clone(),
                    version: storage.clone(),
                    kind: text("spec.names.kind"),
                    plural: text("spec.names.plural"),
                    singular: text("spec.names.singular"),
                    short_names: texts(object, "spec.names.shortNames"),
                    categories: texts(object, "spec.names.categories"),
                    namespaced: text("spec.scope") == "Namespaced",
                    subresources: ["scale", "status"]
                        .into_iter()
                        .filter(|name| value_at(one, &format!("subresources.{name}")).is_some())
                        .map(str::to_owned)
                        .collect(),
                    selectable: selectable.clone(),
                    others: others.clone(),
                };
                let lists = text("spec.names.listKind");
                let lists = if lists.is_empty() { format!("{}List", row.kind) } else { lists };
                let names = (text("metadata.name"), lists);
                read_version(one, row.intern(), names, terminating, &conversion).map(Arc::new)
            })
            .collect();
        Some(Arc::new(Self {
            name: text("metadata.name"),
            group,
            terminating,
            conversion,
            versions: made,
        }))
    }

    /// Its served versions.
    #[must_use]
    pub fn versions(&self) -> &[Arc<CustomVersion>] {
        &self.versions
    }
}

/// The fields of a version that selectors may name, as selectors name them.
fn selectable(version: &Value) -> Vec<String> {
    let all = version.get("selectableFields").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|one| str_at(one, "jsonPath"))
        .map(|path| path.trim_start_matches('.').to_owned())
        .collect()
}

fn read_version(
    said: &Value,
    kind: &'static Kind,
    (definition, list_kind): (String, String),
    terminating: bool,
    conversion: &Conversion,
) -> Option<CustomVersion> {
    let version = intern(str_at(said, "name")?);
    let empty = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let source = value_at(said, "schema.openAPIV3Schema").unwrap_or(&empty);
    let mut structural = Structural::read(source);
    rules::compile_all(&mut structural);
    let (schema, root) = publish::arena(&structural, kind);
    let published = publish::openapi(source, kind, version);
    let scale = value_at(said, "subresources.scale").map(|scale| Scale {
        spec: str_at(scale, "specReplicasPath").unwrap_or("").to_owned(),
        status: str_at(scale, "statusReplicasPath").unwrap_or("").to_owned(),
        selector: str_at(scale, "labelSelectorPath").map(str::to_owned),
    });
    let warning = (said.get("deprecated") == Some(&json!(true))).then(|| {
        str_at(said, "deprecationWarning").map_or_else(
            || format!("{}/{version} {} is deprecated", kind.group, kind.kind),
            str::to_owned,
        )
    });
    let columns = said.get("additionalPrinterColumns").and_then(Value::as_array).cloned();
    Some(CustomVersion {
        kind,
        version,
        list_kind,
        definition,
        terminating,
        conversion: conversion.clone(),
        warning,
        has_defaults: structural.has_defaults(),
        structural,
        columns: columns.unwrap_or_default(),
        scale,
        schema,
        root,
        published,
    })
}

impl CustomVersion {
    /// Fills in what the schema says of absent fields.
    pub(crate) fn fill_defaults(&self, object: &mut Value) {
        if self.has_defaults {
            shape::fill_defaults(&self.structural, object);
        }
    }

    /// Holds an object against the schema; `old` is the stored one on an update.
    pub(crate) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = validate::validate(&self.structural, object);
        // Rules may rely on values of the right types, so they are asked of nothing else.
        if causes.is_empty() {
            causes = rules::validate(&self.structural, object, old);
        }
        causes
    }

    /// Do reads need more than the stored bytes: defaults that came later, or another version?
    #[must_use]
    pub fn shapes_reads(&self) -> bool {
        self.has_defaults || self.kind.version != self.version
    }

    /// The `apiVersion` clients of this version speak.
    #[must_use]
    pub fn api_version(&self) -> String {
        kind::join_api_version(self.kind.group, self.version)
    }

    /// Where `scale` finds its numbers.
    pub(crate) fn scale(&self) -> Option<&Scale> {
        self.scale.as_ref()
    }

    /// The shape server-side apply walks.
    pub(crate) fn schema(&self) -> (&Schema, TypeId) {
        (&self.schema, self.root)
    }

    /// The name of the kind in OpenAPI: the group's words turned round, version, kind.
    #[must_use]
    pub fn definition_name(&self) -> String {
        let mut words: Vec<&str> = self.kind.group.split('.').collect();
        words.reverse();
        format!("{}.{}.{}", words.join("."), self.version, self.kind.kind)
    }

    /// The schema as OpenAPI says it, version 2 or 3.
    pub(crate) fn publish(&self, v2: bool) -> Value {
        publish::dialect(&self.published, v2)
    }
}

#[cfg(test)]
mod tests;
