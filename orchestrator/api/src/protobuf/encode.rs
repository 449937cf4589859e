//! Objects to protobuf: JSON in, messages out, nothing kept in between.
//!
//! The bytes are read once, led by the schema; each field is written where it stands, so the
//! order of fields is that of the JSON. Readers of protobuf take them in any order. Zeros and
//! empty texts are written when they are said, and left out when they are not, which to a reader
//! is the same.
//!
//! *Limits*: what the schema does not know is left out, as a typed server could not know it.

use std::fmt;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::time::parse_time;
use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{MAGIC, Member, NUMBERS, numbers};
use crate::list::ListMeta;
use crate::schema::{self, Node, Scalar, Schema, Type};

/// Why an object has no protobuf form, or cannot be brought into it.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The kind is not one of those with numbered fields.
    #[error("{0} has no protobuf form")]
    Kind(String),
    /// The bytes are not what the schema says.
    #[error("the object does not fit its schema")]
    Shape(#[from] serde_json::Error),
}

/// What a message is made of: how to reach each field of a type, by the field's place.
struct Ways {
    schema: &'static Schema,
    /// By type, then by field: the numbers of the messages it stands in, its own last.
    paths: Vec<Vec<Vec<u32>>>,
    /// What an object's metadata is.
    metadata: Option<Node>,
}

static WAYS: LazyLock<Ways> = LazyLock::new(|| {
    let schema = schema::builtin();
    let of_type = |shape: &Type| {
        let Some(message) = numbers(shape.name) else { return Vec::new() };
        let way = |name: &str| {
            message
                .iter()
                .find_map(|(number, member)| match member {
                    Member::Field(field) => (*field == name).then(|| vec![*number]),
                    Member::Inline(inner) => {
                        NUMBERS.get(inner)?.iter().find_map(|(own, member)| {
                            (*member == Member::Field(field_name(shape, name)?))
                                .then(|| vec![*number, *own])
                        })
                    }
                })
                .unwrap_or_default()
        };
        shape.fields.iter().map(|field| way(field.name)).collect()
    };
    let metadata = schema.types().iter().position(|one| one.name.ends_with(".v1.ObjectMeta"));
    Ways {
        schema,
        paths: schema.types().iter().map(of_type).collect(),
        metadata: metadata.map(|at| Node::Object(schema::TypeId::new(at))),
    }
});

fn field_name(shape: &Type, name: &str) -> Option<&'static str> {
    shape.field(name).map(|field| field.name)
}

impl Ways {
    fn of(&'static self, id: schema::TypeId) -> Option<Shape> {
        Some(Shape { shape: self.schema.get(id)?, paths: self.paths.get(id.index())? })
    }

    fn root(&'static self, api_version: &str, kind: &str) -> Option<Shape> {
        // Schemas of definitions have unions that only the reader knows.
        if kind == "CustomResourceDefinition" {
            return None;
        }
        let shape = self.schema.root_of(api_version, kind)?;
        let at = self.schema.types().iter().position(|one| std::ptr::eq(one, shape))?;
        let paths = self.paths.get(at)?;
        (!paths.is_empty()).then_some(Shape { shape, paths })
    }
}

/// A type and the ways to its fields.
#[derive(Clone, Copy)]
struct Shape {
    shape: &'static Type,
    paths: &'static [Vec<u32>],
}

/// Do objects of this kind have a protobuf form?
#[must_use]
pub fn has_form(api_version: &str, kind: &str) -> bool {
    WAYS.root(api_version, kind).is_some()
}

/// Writes an object, given as JSON, with its envelope.
///
/// # Errors
///
/// When the kind has no protobuf form or the bytes do not fit it.
pub fn encode(
    out: &mut Vec<u8>,
    api_version: &str,
    kind: &str,
    json: &[u8],
) -> Result<(), EncodeError> {
    let shape = WAYS.root(api_version, kind).ok_or_else(|| no_form(api_version, kind))?;
    envelope(out, api_version, kind, |out| object(out, shape, json))
}

/// Writes an object that is at hand as a value and says its own kind.
///
/// # Errors
///
/// As [`encode`].
pub fn encode_value(value: &Value) -> Result<Vec<u8>, EncodeError> {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or("");
    let json = serde_json::to_vec(value)?;
    let mut out = Vec::new();
    encode(&mut out, text("apiVersion"), text("kind"), &json)?;
    Ok(out)
}

/// Writes a list of objects of one kind, each given as JSON, with its envelope.
///
/// # Errors
///
/// As [`encode`].
pub fn encode_list<'a>(
    api_version: &str,
    kind: &str,
    meta: &ListMeta,
    items: impl IntoIterator<Item = std::borrow::Cow<'a, [u8]>>,
) -> Result<Vec<u8>, EncodeError> {
    let shape = WAYS.root(api_version, kind).ok_or_else(|| no_form(api_version, kind))?;
    let mut out = Vec::new();
    envelope(&mut out, api_version, &format!("{kind}List"), |out| {
        list_meta(out, meta)?;
        items.into_iter().try_for_each(|json| nested(out, 2, |out| object(out, shape, &json)))
    })?;
    Ok(out)
}

/// Writes the metadata of an object of any kind as `PartialObjectMetadata`, with its envelope.
///
/// # Errors
///
/// When the bytes are no object with metadata.
pub fn encode_partial(
    out: &mut Vec<u8>,
    api_version: &str,
    json: &[u8],
) -> Result<(), EncodeError> {
    envelope(out, api_version, "PartialObjectMetadata", |out| partial(out, json))
}

/// Writes the metadata of objects as `PartialObjectMetadataList`, with its envelope.
///
/// # Errors
///
/// As [`encode_partial`].
pub fn encode_partial_list<'a>(
    api_version: &str,
    meta: &ListMeta,
    items: impl IntoIterator<Item = std::borrow::Cow<'a, [u8]>>,
) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    envelope(&mut out, api_version, "PartialObjectMetadataList", |out| {
        list_meta(out, meta)?;
        items.into_iter().try_for_each(|json| nested(out, 2, |out| partial(out, &json)))
    })?;
    Ok(out)
}

/// Writes one frame of a watch: four bytes of length, then the event with an enveloped object.
pub fn encode_event(out: &mut Vec<u8>, what: &str, object: &[u8]) {
    let mut event = Vec::with_capacity(object.len().saturating_add(32));
    bytes_field(&mut event, 1, what.as_bytes());
    let wrote: Result<(), EncodeError> = nested(&mut event, 2, |out| {
        bytes_field(out, 1, object);
        Ok(())
    });
    debug_assert!(wrote.is_ok(), "nothing in here fails");
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&event);
}

fn no_form(api_version: &str, kind: &str) -> EncodeError {
    EncodeError::Kind(format!("{api_version}, Kind={kind}"))
}

/// Magic, type, and the message that `write` writes.
fn envelope(
    out: &mut Vec<u8>,
    api_version: &str,
    kind: &str,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    out.extend_from_slice(MAGIC);
    nested(out, 1, |out| {
        bytes_field(out, 1, api_version.as_bytes());
        bytes_field(out, 2, kind.as_bytes());
        Ok(())
    })?;
    nested(out, 2, write)
}

fn list_meta(out: &mut Vec<u8>, meta: &ListMeta) -> Result<(), EncodeError> {
    nested(out, 1, |out| {
        bytes_field(out, 2, meta.revision.to_string().as_bytes());
        bytes_field(out, 3, meta.continue_token.as_bytes());
        if let Some(remaining) = meta.remaining {
            tag(out, 4, 0);
            varint(out, remaining);
        }
        Ok(())
    })
}

fn object(out: &mut Vec<u8>, shape: Shape, json: &[u8]) -> Result<(), EncodeError> {
    let mut source = serde_json::Deserializer::from_slice(json);
    source.deserialize_map(Message { out, shape: Some(shape) })?;
    Ok(source.end()?)
}

/// The `metadata` of an object as the first field of a message.
fn partial(out: &mut Vec<u8>, json: &[u8]) -> Result<(), EncodeError> {
    let mut source = serde_json::Deserializer::from_slice(json);
    source.deserialize_map(Metadata { out })?;
    Ok(source.end()?)
}

/// Writes the `metadata` of an object and skips the rest.
struct Metadata<'o> {
    out: &'o mut Vec<u8>,
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<(), A::Error> {
        while let Some(key) = source.next_key::<std::borrow::Cow<'de, str>>()? {
            match &WAYS.metadata {
                Some(node) if key == "metadata" => {
                    source.next_value_seed(Slot { out: &mut *self.out, number: 1, node })?;
                }
                _ => {
                    source.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Writes the fields of an object, or skips all of them when nobody knows its shape.
struct Message<'o> {
    out: &'o mut Vec<u8>,
    shape: Option<Shape>,
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<(), A::Error> {
        while let Some(key) = source.next_key::<std::borrow::Cow<'de, str>>()? {
            let way = self.shape.and_then(|Shape { shape, paths }| {
                let at = shape.fields.binary_search_by_key(&&*key, |field| field.name).ok()?;
                Some((&shape.fields.get(at)?.node, paths.get(at)?.as_slice()))
            });
            match way {
                Some((node, [number])) => {
                    source.next_value_seed(Slot { out: &mut *self.out, number: *number, node })?;
                }
                Some((node, [outer, number])) => {
                    let start = begin(self.out, *outer);
                    source.next_value_seed(Slot { out: &mut *self.out, number: *number, node })?;
                    end(self.out, start);
                }
                _ => {
                    source.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// One field and its value.
struct Slot<'o> {
    out: &'o mut Vec<u8>,
    number: u32,
    node: &'static Node,
}

impl<'de> DeserializeSeed<'de> for Slot<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        match self.node {
            Node::Any => {
                let value: Value = serde::Deserialize::deserialize(source)?;
                if !value.is_null() {
                    let json = serde_json::to_vec(&value).map_err(D::Error::custom)?;
                    let start = begin(self.out, self.number);
                    bytes_field(self.out, 1, &json);
                    end(self.out, start);
                }
                Ok(())
            }
            // Nulls may stand anywhere and say nothing.
            _ => source.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Slot<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value for {:?}", self.node)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        match self.node {
            Node::Scalar(Scalar::Boolean) => {
                tag(self.out, self.number, 0);
                varint(self.out, u64::from(value));
                Ok(())
            }
            _ => Err(E::custom("a flag where none is expected")),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        match self.node {
            Node::Scalar(Scalar::Number) => {
                #[expect(clippy::cast_precision_loss, reason = "the field is a float")]
                return self.visit_f64(value as f64);
            }
            Node::Scalar(Scalar::IntOrString) => {
                let start = begin(self.out, self.number);
                tag(self.out, 1, 0);
                varint(self.out, 0);
                tag(self.out, 2, 0);
                varint(self.out, value.cast_unsigned());
                end(self.out, start);
            }
            Node::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Integer) => {
                tag(self.out, self.number, 0);
                varint(self.out, value.cast_unsigned());
            }
            _ => return Err(E::custom("a number where none is expected")),
        }
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        let value = i64::try_from(value).map_err(|_| E::custom("a number too large"))?;
        self.visit_i64(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.node {
            Node::Scalar(Scalar::Number) => {
                tag(self.out, self.number, 1);
                self.out.extend_from_slice(&value.to_bits().to_le_bytes());
                Ok(())
            }
            _ => Err(E::custom("a fraction where none is expected")),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        let Self { out, number, node } = self;
        match node {
            Node::Scalar(Scalar::String) => bytes_field(out, number, value.as_bytes()),
            Node::Scalar(Scalar::Byte) => {
                let bytes = STANDARD.decode(value).map_err(E::custom)?;
                bytes_field(out, number, &bytes);
            }
            Node::Scalar(Scalar::Quantity) => {
                let start = begin(out, number);
                bytes_field(out, 1, value.as_bytes());
                end(out, start);
            }
            Node::Scalar(Scalar::Time | Scalar::MicroTime) => {
                let at = parse_time(value).ok_or_else(|| E::custom("a time that is none"))?;
                let start = begin(out, number);
                tag(out, 1, 0);
                varint(out, at.as_second().cast_unsigned());
                let nanos = at.subsec_nanosecond();
                if nanos != 0 {
                    tag(out, 2, 0);
                    varint(out, i64::from(nanos).cast_unsigned());
                }
                end(out, start);
            }
            Node::Scalar(Scalar::IntOrString) => {
                let start = begin(out, number);
                tag(out, 1, 0);
                varint(out, 1);
                bytes_field(out, 3, value.as_bytes());
                end(out, start);
            }
            _ => return Err(E::custom("a text where none is expected")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<(), A::Error> {
        let Node::List(inner) = self.node else {
            return Err(A::Error::custom("a list where none is expected"));
        };
        loop {
            let item = Slot { out: &mut *self.out, number: self.number, node: inner };
            if source.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<(), A::Error> {
        let Self { out, number, node } = self;
        match node {
            Node::Object(id) => {
                let start = begin(out, number);
                Message { out: &mut *out, shape: WAYS.of(*id) }.visit_map(source)?;
                end(out, start);
                Ok(())
            }
            Node::Map(inner) => {
                while let Some(key) = source.next_key::<std::borrow::Cow<'de, str>>()? {
                    let start = begin(out, number);
                    bytes_field(out, 1, key.as_bytes());
                    if let Node::List(item) = &**inner {
                        let list = begin(out, 2);
                        source.next_value_seed(Items { out: &mut *out, node: item })?;
                        end(out, list);
                    } else {
                        source.next_value_seed(Slot { out: &mut *out, number: 2, node: inner })?;
                    }
                    end(out, start);
                }
                Ok(())
            }
            _ => Err(A::Error::custom("an object where none is expected")),
        }
    }
}

/// The items of a list that is a message of its own: each is its first field.
struct Items<'o> {
    out: &'o mut Vec<u8>,
    node: &'static Node,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<(), A::Error> {
        loop {
            let item = Slot { out: &mut *self.out, number: 1, node: self.node };
            if source.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
    }
}

fn tag(out: &mut Vec<u8>, number: u32, wire: u64) {
    varint(out, u64::from(number) << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn bytes_field(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    tag(out, number, 2);
    varint(out, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    out.extend_from_slice(bytes);
}

fn nested(
    out: &mut Vec<u8>,
    number: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = begin(out, number);
    write(out)?;
    end(out, start);
    Ok(())
}

/// Begins a message; [`end`] needs what this returns.
fn begin(out: &mut Vec<u8>, number: u32) -> usize {
    tag(out, number, 2);
    out.len()
}

/// Puts the length before what was written since [`begin`].
fn end(out: &mut Vec<u8>, start: usize) {
    let length = out.len().saturating_sub(start);
    let body_end = out.len();
    varint(out, u64::try_from(length).unwrap_or(u64::MAX));
    let width = out.len().saturating_sub(body_end);
    // The length was written behind the body; turning both round puts it before.
    if let Some(both) = out.get_mut(start..) {
        both.rotate_right(width);
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn comes_back(object: &Value) {
        let bytes = encode_value(object).unwrap();
        assert_eq!(decode(&bytes).unwrap(), *object);
    }

    #[test]
    fn what_is_written_is_read_back() {
        comes_back(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "12",
                "creationTimestamp": "2026-11-21T11:00:00Z",
                "labels": {"app": "x", "long": "é\n\"quoted\""},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "o",
                                     "controller": true, "blockOwnerDeletion": false}],
                "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1",
                    "time": "2026-11-21T11:00:00Z", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:nodeName": {}}}}],
            },
            "spec": {
                "containers": [{
                    "name": "main", "image": "i", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 10},
                    "readinessProbe": {"tcpSocket": {"port": 8080}},
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                }],
                "volumes": [{"name": "v", "emptyDir": {}},
                            {"name": "w", "configMap": {"name": "c", "defaultMode": 420}}],
                "terminationGracePeriodSeconds": 0,
                "priority": -5,
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }));
        comes_back(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
            "data": {"a": "aGVsbG8=", "b": ""}, "type": "Opaque",
        }));
        comes_back(&json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"holderIdentity": "me", "renewTime": "2026-11-21T11:00:00.123456Z",
                     "leaseDurationSeconds": 15},
        }));
        comes_back(&json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": "c"},
            "spec": {"request": "eA==", "signerName": "x/y", "usages": ["client auth"],
                     "extra": {"a": ["b", "c"], "d": ["e"]}, "username": "me"},
        }));
    }

    #[test]
    fn lists_and_events_have_the_frames_that_clients_read() {
        let item = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#;
        let meta = ListMeta { revision: 7, continue_token: "t".to_owned(), remaining: Some(300) };
        let items = [std::borrow::Cow::Borrowed(item.as_slice())];
        let list = encode_list("v1", "Pod", &meta, items.clone()).unwrap();
        assert_eq!(
            list,
            b"k8s\0\x0a\x0d\x0a\x02v1\x12\x07PodList\
              \x12\x12\x0a\x09\x12\x017\x1a\x01t\x20\xac\x02\x12\x05\x0a\x03\x0a\x01a"
        );
        let partial = encode_partial_list("meta.k8s.io/v1", &meta, items).unwrap();
        assert!(partial.ends_with(b"\x12\x05\x0a\x03\x0a\x01a"), "{partial:?}");
        let mut event = Vec::new();
        encode_event(&mut event, "ADDED", b"xyz");
        assert_eq!(event, b"\0\0\0\x0e\x0a\x05ADDED\x12\x05\x0a\x03xyz");
        assert!(!has_form("muster.dev/v1alpha1", "Machine"));
        assert!(has_form("apps/v1", "Deployment"));
    }

    #[test]
    fn any_json_is_written_or_refused() {
        bolero::check!().with_iterations(5_000).for_each(|bytes: &[u8]| {
            let mut out = Vec::new();
            let _outcome = encode(&mut out, "v1", "Pod", bytes).is_ok();
        });
    }
}
