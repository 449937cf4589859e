//! Objects as they are stored, and what is known about them without reading them.
//!
//! Stored bytes are compact JSON that begins with kind, version and metadata, and metadata begins
//! with an empty resourceVersion. A read puts the revision there while it copies; nothing is
//! parsed. Selectors look at the head: labels and selectable fields, worked out once per version.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use objects::field::Fields as _;
use objects::{FieldSelector, Kind, Selector, field};
use serde::Serialize;
use serde_json::{Map, Value};
use store::{Head, Item};

use crate::seal::opened;

/// What stands before the revision in stored bytes.
const MARK: &[u8] = b"\"metadata\":{\"resourceVersion\":\"";

/// What is known about an object without reading it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    labels: BTreeMap<String, String>,
    fields: Vec<(&'static str, String)>,
    name: String,
    namespace: String,
}

impl Known {
    fn of(kind: &Kind, object: &Value) -> Self {
        let labels = object.field("metadata.labels").and_then(Value::as_object);
        let labels = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| value.as_str().map(|value| (key.clone(), value.to_owned())));
        let fields = kind
            .selectable
            .iter()
            .filter_map(|&path| field::text_at(object, path).map(|text| (path, text)));
        let text = |path| field::str_at(object, path).unwrap_or_default().to_owned();
        Self {
            labels: labels.collect(),
            fields: fields.collect(),
            name: text("metadata.name"),
            namespace: text("metadata.namespace"),
        }
    }

    /// Do both selectors match?
    pub(crate) fn matches(&self, labels: &Selector, fields: &FieldSelector) -> bool {
        labels.matches_with(|key| self.labels.get(key).map(String::as_str))
            && fields.matches_with(|path| self.field(path))
    }

    /// The text of a selectable field.
    pub(crate) fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => {
                let found = self.fields.iter().find(|(known, _)| *known == path);
                found.map(|(_, text)| text.as_str())
            }
        }
    }
}

/// The head of an item, worked out now if nobody has yet.
pub(crate) fn known<'a>(kind: &Kind, item: &'a Item) -> &'a Known {
    let head = item.head(|item| Arc::new(Known::of(kind, &parse(&opened(item)))) as Head);
    let any: &(dyn Any + Send + Sync) = &**head;
    // Nobody but this module puts heads on items.
    any.downcast_ref::<Known>().unwrap_or(&NOTHING)
}

static NOTHING: Known = Known {
    labels: BTreeMap::new(),
    fields: Vec::new(),
    name: String::new(),
    namespace: String::new(),
};

/// A buffer larger than this is not kept for the next object.
const SCRATCH_BYTES_MAX: usize = 256 << 10;

thread_local! {
    /// Objects are written here first and then copied to a piece of memory of just their size:
    /// what is stored stays for long, and room to grow or holes beside it would stay with it.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Renders an object for the store, with its head.
pub(crate) fn render_stored(kind: &Kind, object: &Value) -> (Bytes, Head) {
    let head: Head = Arc::new(Known::of(kind, object));
    let bytes = SCRATCH.with_borrow_mut(|out| {
        out.clear();
        write_object(out, kind, object);
        let bytes = Bytes::copy_from_slice(out);
        if out.capacity() > SCRATCH_BYTES_MAX {
            *out = Vec::new();
        }
        bytes
    });
    (bytes, head)
}

fn write_object(out: &mut Vec<u8>, kind: &Kind, object: &Value) {
    out.extend_from_slice(b"{\"kind\":");
    write_json(out, kind.kind);
    out.extend_from_slice(b",\"apiVersion\":");
    write_json(out, &kind.api_version());
    out.push(b',');
    out.extend_from_slice(MARK);
    out.push(b'"');
    let empty = Map::new();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    write_members(out, metadata, &["resourceVersion"]);
    out.push(b'}');
    let members = object.as_object().unwrap_or(&empty);
    write_members(out, members, &["kind", "apiVersion", "metadata"]);
    out.push(b'}');
}

fn write_members(out: &mut Vec<u8>, members: &Map<String, Value>, without: &[&str]) {
    for (key, value) in members {
        if !without.contains(&key.as_str()) {
            out.push(b',');
            write_json(out, key);
            out.push(b':');
            write_json(out, value);
        }
    }
}

fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // Writing JSON values into memory cannot fail.
    let _written = serde_json::to_writer(out, value).is_ok();
}

/// Appends an object as it is answered: the stored bytes with the revision in their place.
pub(crate) fn append(out: &mut Vec<u8>, item: &Item, revision: u64) {
    let value = opened(item);
    let value: &[u8] = &value;
    let at = value.windows(MARK.len()).position(|window| window == MARK);
    let at = at.map_or(0, |at| at + MARK.len());
    let (before, after) = value.split_at(at.min(value.len()));
    out.extend_from_slice(before);
    if at > 0 {
        out.extend_from_slice(revision.to_string().as_bytes());
    }
    out.extend_from_slice(after);
}

/// The bytes of an item as answered.
pub(crate) fn render(item: &Item) -> Bytes {
    let mut out = Vec::with_capacity(item.value().len() + 24);
    append(&mut out, item, item.modified());
    Bytes::from(out)
}

/// The bytes of an item as answered at a revision, with nothing but its metadata.
pub(crate) fn append_partial(out: &mut Vec<u8>, item: &Item, revision: u64, api_version: &str) {
    let mut whole = Vec::with_capacity(item.value().len() + 24);
    append(&mut whole, item, revision);
    let start = whole.windows(MARK.len()).position(|window| window == MARK);
    let start = start.map_or(whole.len(), |at| at + b"\"metadata\":".len());
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.extend_from_slice(api_version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    let rest = whole.get(start..).unwrap_or_default();
    out.extend_from_slice(rest.get(..object_length(rest)).unwrap_or_default());
    out.push(b'}');
}

/// The length of the JSON object that bytes begin with.
fn object_length(bytes: &[u8]) -> usize {
    let mut depth = 0_usize;
    let (mut in_text, mut escaped) = (false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    bytes.len()
}

/// Reads an item with its resourceVersion.
pub(crate) fn decode(item: &Item, revision: u64) -> Value {
    let mut object = parse(&opened(item));
    if let Some(version) = object.field_mut("metadata.resourceVersion") {
        *version = Value::from(revision.to_string());
    }
    object
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|err| {
        // We wrote these bytes ourselves and the engine has checksums below them.
        tracing::error!(%err, "a stored object is not JSON");
        Value::Null
    })
}

/// The shelf of a kind.
pub(crate) fn shelf(kind: &Kind) -> Arc<str> {
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    format!("{group}/{}", kind.plural).into()
}

/// The name of an object on its shelf.
pub(crate) fn place(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use objects::kind;
    use serde_json::json;

    #[test]
    fn a_stored_object_reads_back_with_its_revision() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"app": "x"},
                         "resourceVersion": "7", "annotations": {"q": "\"metadata\":{"}},
            "spec": {"nodeName": "n1", "hostNetwork": true}, "status": {"phase": "Running"}
        });
        let (value, head) = render_stored(&kind::POD, &object);
        let item = Item::detached("n/a", value, 12, Some(head));
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = json!("12");
        assert_eq!(serde_json::from_slice::<Value>(&render(&item)).unwrap(), expected);
        assert_eq!(decode(&item, 12), expected);
        let mut partial = Vec::new();
        append_partial(&mut partial, &item, 13, "meta.k8s.io/v1");
        expected["metadata"]["resourceVersion"] = json!("13");
        assert_eq!(
            serde_json::from_slice::<Value>(&partial).unwrap(),
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                   "metadata": expected["metadata"]})
        );
        let known = known(&kind::POD, &item);
        let matches = |labels: &str, fields: &str| {
            known.matches(&Selector::parse(labels).unwrap(), &FieldSelector::parse(fields).unwrap())
        };
        assert!(matches("app=x", "spec.nodeName=n1,metadata.name=a,status.phase!=Failed"));
        assert!(matches("", "spec.hostNetwork=true"));
        assert!(!matches("app=y", ""));
        assert!(!matches("", "spec.nodeName="));
    }
}
