//! Lists, watch events and partial objects.

use objects::{Kind, kind};
use serde_json::{Value, json};

use crate::{accept::MetaVersion, json::put, request::Request};

/// The metadata of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// The store's revision at the read.
    pub revision: u64,
    /// The token to go on with; empty at the end.
    pub continue_token: String,
    /// How many more there are, when that is known.
    pub remaining: Option<u64>,
}

impl ListMeta {
    /// The `metadata` of a list.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if !self.continue_token.is_empty() {
            put(&mut meta, "continue", json!(self.continue_token));
            if let Some(remaining) = self.remaining {
                put(&mut meta, "remainingItemCount", json!(remaining));
            }
        }
        meta
    }
}

/// The `kind` of a list of this kind.
#[must_use]
pub fn list_kind(kind: &Kind) -> String {
    format!("{}List", kind.kind)
}

/// What stands before the items of a JSON list; after them comes `]}`.
///
/// Items are written as they are stored, with a comma between.
#[must_use]
pub fn list_head(request: &Request, meta: &ListMeta) -> String {
    format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        list_kind(request.kind),
        request.api_version(),
        meta.to_value()
    )
}

/// An object reduced to its metadata.
#[must_use]
pub fn partial_object(object: &Value, version: MetaVersion) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": version.api_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A list of objects reduced to their metadata.
#[must_use]
pub fn partial_list<'a>(
    objects: impl IntoIterator<Item = &'a Value>,
    meta: &ListMeta,
    version: MetaVersion,
) -> Value {
    let items: Vec<Value> =
        objects.into_iter().map(|object| partial_object(object, version)).collect();
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": version.api_version(),
        "metadata": meta.to_value(),
        "items": items,
    })
}

/// A bookmark: how far a watch has come. `end_of_initial_events` ends the objects that were
/// there before.
#[must_use]
pub fn bookmark(request: &Request, revision: u64, end_of_initial_events: bool) -> Value {
    let mut meta = json!({"resourceVersion": revision.to_string()});
    if end_of_initial_events {
        put(&mut meta, "annotations", json!({"k8s.io/initial-events-end": "true"}));
    }
    json!({"kind": request.kind.kind, "apiVersion": request.api_version(), "metadata": meta})
}

/// An object in the version the client speaks.
#[must_use]
pub fn served(request: &Request, object: &Value) -> Value {
    crate::convert::to_served(request, object)
}

/// Does the object match the request's selectors, name and namespace?
#[must_use]
pub fn selects(request: &Request, object: &Value) -> bool {
    let text = |path: &str| objects::field::str_at(object, path).unwrap_or("");
    let options = &request.options;
    (request.namespace.is_empty() || text("metadata.namespace") == request.namespace)
        && (request.name.is_empty() || text("metadata.name") == request.name)
        && options.label_selector.matches_object(object)
        && fields_match(request, object)
}

fn fields_match(request: &Request, object: &Value) -> bool {
    if request.kind == &kind::EVENT && request.options.field_selector.required("source").is_some() {
        // `source` is short for the component's name.
        return request.options.field_selector.terms().iter().all(|term| {
            let path = if term.path == "source" { "source.component" } else { &term.path };
            let have = objects::field::text_at(object, path).unwrap_or_default();
            (have == term.value) == term.equal
        });
    }
    if request.kind == &kind::NODE {
        // An absent `spec.unschedulable` reads as false.
        return request.options.field_selector.terms().iter().all(|term| {
            let have = objects::field::text_at(object, &term.path).unwrap_or_else(|| {
                if term.path == "spec.unschedulable" { "false".to_owned() } else { String::new() }
            });
            (have == term.value) == term.equal
        });
    }
    request.options.field_selector.matches_object(object)
}
