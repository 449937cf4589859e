//! Options of requests, and the shape of lists.

use serde_json::{Map, Value, json};

use crate::resource::{Resource, escape};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListParams {
    /// Label selector; empty for all.
    pub label_selector: String,
    /// Field selector; empty for all.
    pub field_selector: String,
    /// Page size; `None` for everything at once.
    pub limit: Option<u32>,
    /// Token of the page before.
    pub continue_token: Option<String>,
    /// `None` most recent; `Some("0")` any.
    pub resource_version: Option<String>,
}

impl ListParams {
    /// Selects by labels.
    #[must_use]
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { label_selector: selector.into(), ..Self::default() }
    }

    /// Selects by fields.
    #[must_use]
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: selector.into(), ..Self::default() }
    }

    pub(super) fn render_onto(&self, path: String) -> String {
        let mut query = Query::new(path);
        query.text("labelSelector", &self.label_selector);
        query.text("fieldSelector", &self.field_selector);
        query.text("limit", &self.limit.map(|limit| limit.to_string()).unwrap_or_default());
        query.text("continue", self.continue_token.as_deref().unwrap_or_default());
        query.text("resourceVersion", self.resource_version.as_deref().unwrap_or_default());
        query.path
    }
}

/// Appends query parameters to a path.
pub(super) struct Query {
    pub(super) path: String,
    glue: char,
}

impl Query {
    pub(super) const fn new(path: String) -> Self {
        Self { path, glue: '?' }
    }

    /// Adds a parameter unless it is empty.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.path.push(self.glue);
        self.path.push_str(name);
        self.path.push('=');
        self.path.push_str(&escape(value));
        self.glue = '&';
    }
}

/// An answered list.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The objects, each with `apiVersion` and `kind`.
    pub items: Vec<Value>,
    /// Revision of the whole list; start a watch here.
    pub resource_version: String,
    /// Token of the next page, when there is one.
    pub continue_token: Option<String>,
}

impl List {
    pub(super) fn from_value(mut answer: Value, resource: &Resource) -> Self {
        let mut items = match answer.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        // Items of a list may leave out what the list says once.
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            if !item.contains_key("kind") {
                item.insert("apiVersion".to_owned(), Value::String(resource.api_version()));
                item.insert("kind".to_owned(), Value::String(resource.kind.to_string()));
            }
        }
        let text = |name: &str| {
            let value = answer.get("metadata").and_then(|meta| meta.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let token = text("continue");
        Self {
            items,
            resource_version: text("resourceVersion"),
            continue_token: (!token.is_empty()).then_some(token),
        }
    }
}

/// How a patch body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 7396.
    Merge,
    /// Kubernetes' strategic merge.
    Strategic,
    /// RFC 6902.
    Json,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Json => "application/json-patch+json",
            // JSON is YAML, so a JSON body is right here.
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A change to an object.
#[derive(Debug, Clone)]
pub struct Patch {
    /// How to read `body`.
    pub kind: PatchKind,
    /// The change.
    pub body: Value,
    /// `status`, `scale`…; `None` for the object itself.
    pub subresource: Option<String>,
    /// Who we are to server-side apply; needed for [`PatchKind::Apply`].
    pub field_manager: Option<String>,
    /// Whether apply takes fields over from other managers.
    pub force: bool,
}

impl Patch {
    /// A merge patch of the object itself.
    #[must_use]
    pub const fn merge(body: Value) -> Self {
        Self { kind: PatchKind::Merge, body, subresource: None, field_manager: None, force: false }
    }

    /// A strategic merge patch of the object itself.
    #[must_use]
    pub fn strategic(body: Value) -> Self {
        Self { kind: PatchKind::Strategic, ..Self::merge(body) }
    }

    /// A JSON patch of the object itself.
    #[must_use]
    pub fn json(body: Value) -> Self {
        Self { kind: PatchKind::Json, ..Self::merge(body) }
    }

    /// A server-side apply that takes over what others own, as controllers do.
    #[must_use]
    pub fn apply(manager: impl Into<String>, body: Value) -> Self {
        Self {
            kind: PatchKind::Apply,
            body,
            subresource: None,
            field_manager: Some(manager.into()),
            force: true,
        }
    }

    /// The same change to a subresource.
    #[must_use]
    pub fn on(mut self, subresource: impl Into<String>) -> Self {
        self.subresource = Some(subresource.into());
        self
    }

    pub(super) fn render_onto(&self, path: String) -> String {
        let mut query = Query::new(path);
        query.text("fieldManager", self.field_manager.as_deref().unwrap_or_default());
        query.text("force", if self.force { "true" } else { "" });
        query.path
    }
}

/// What must still be true for a delete to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// The object's uid: not another object of the same name.
    pub uid: Option<String>,
    /// The object's version: nobody has changed it.
    pub resource_version: Option<String>,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteParams {
    /// What must still be true.
    pub preconditions: Preconditions,
    /// Seconds of grace; `None` leaves it to the object, 0 removes at once.
    pub grace_period_seconds: Option<u32>,
    /// `Background`, `Foreground` or `Orphan`; `None` leaves it to the server.
    pub propagation: Option<&'static str>,
}

impl DeleteParams {
    /// Deletes only the object with this uid.
    #[must_use]
    pub fn uid(uid: impl Into<String>) -> Self {
        Self {
            preconditions: Preconditions { uid: Some(uid.into()), resource_version: None },
            ..Self::default()
        }
    }

    /// The same with a grace period.
    #[must_use]
    pub const fn grace(mut self, seconds: u32) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }

    pub(super) fn render(&self) -> Value {
        let mut body = Map::new();
        body.insert("kind".to_owned(), json!("DeleteOptions"));
        body.insert("apiVersion".to_owned(), json!("v1"));
        let mut conditions = Map::new();
        if let Some(uid) = &self.preconditions.uid {
            conditions.insert("uid".to_owned(), json!(uid));
        }
        if let Some(version) = &self.preconditions.resource_version {
            conditions.insert("resourceVersion".to_owned(), json!(version));
        }
        if !conditions.is_empty() {
            body.insert("preconditions".to_owned(), Value::Object(conditions));
        }
        if let Some(grace) = self.grace_period_seconds {
            body.insert("gracePeriodSeconds".to_owned(), json!(grace));
        }
        if let Some(propagation) = self.propagation {
            body.insert("propagationPolicy".to_owned(), json!(propagation));
        }
        Value::Object(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped_and_only_what_is_set() {
        let params = ListParams { limit: Some(5), ..ListParams::labels("app in (a,b)") };
        assert_eq!(
            params.render_onto("/api/v1/pods".to_owned()),
            "/api/v1/pods?labelSelector=app%20in%20%28a%2Cb%29&limit=5"
        );
        assert_eq!(ListParams::default().render_onto("/x".to_owned()), "/x");
        let apply = Patch::apply("me", json!({})).on("status");
        assert_eq!(apply.render_onto("/x".to_owned()), "/x?fieldManager=me&force=true");
    }

    #[test]
    fn list_items_learn_their_kind() {
        let answer = json!({"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {}}, 3]});
        let list = List::from_value(answer, &crate::resource::PODS);
        assert_eq!(list.resource_version, "7");
        assert_eq!(list.items[0]["kind"], "Pod");
        assert_eq!(list.continue_token, None);
    }
}
