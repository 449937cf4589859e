//! Protobuf bodies to values and back, led by the schema and a table of field numbers.
//!
//! A body is `k8s\0` and a `runtime.Unknown`: type, then the message. The message's fields are
//! found by number in `schema/protobuf.txt` (`cargo run -p api --example protobuf`), their types
//! and names in JSON are the schema's, so both ways of saying an object end in the same value.
//!
//! Upstream writes fields that hold nothing, because its Go structs cannot leave them out; which
//! of them mean "nothing" and which "zero" the wire does not say. What is below in `ZEROS_MEANT`,
//! `TEXTS_MEANT` and `EMPTIES_UNMEANT` tells them apart.
//!
//! *Limits*: kinds without protobuf (Machine, Rack) are neither read nor written.
//!
//! Spec: Protocol Buffers wire format; `k8s.io/apimachinery/pkg/runtime/generated.proto`.

mod definition;
mod distil;
mod encode;
mod wire;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use objects::Status;
use serde_json::{Map, Value, json};

pub use distil::{Sources, distil};
pub use encode::{
    EncodeError, encode, encode_event, encode_list, encode_partial, encode_partial_list,
    encode_value, has_form,
};
use wire::{Payload, WireError, fields};

use crate::schema::{self, Field, Node, Scalar, Schema, Type, TypeId};

/// The media type of protobuf bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What a body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages inside messages; the deepest kind we serve has about 20.
const DEPTH_MAX: usize = 64;

/// Types with rules of their own.
const DEFINITIONS: &str = "io.k8s.apiextensions-apiserver.";

/// Numbers and flags whose zero is said on purpose: in Go they are pointers.
const ZEROS_MEANT: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "allowed",
    "automountServiceAccountToken",
    "backoffLimit",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseTransitions",
    "maxSurge",
    "maxUnavailable",
    "minReplicas",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];
/// Texts that mean something when empty.
const TEXTS_MEANT: &[&str] = &["storageClassName", "volumeAttributesClassName"];
/// Objects that upstream writes even when nothing was said.
const EMPTIES_UNMEANT: &[&str] = &[
    "daemonEndpoints",
    "involvedObject",
    "kubeletEndpoint",
    "lastState",
    "loadBalancer",
    "metadata",
    "nodeInfo",
    "resources",
    "source",
    "spec",
    "state",
    "status",
    "strategy",
    "template",
    "updateStrategy",
];

/// Field numbers by type name in lower case.
static NUMBERS: LazyLock<BTreeMap<&'static str, Message>> =
    LazyLock::new(|| parse_table(include_str!("../schema/protobuf.txt")));

/// The fields of a message by number.
type Message = BTreeMap<u32, Member>;

/// What a field number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    /// A field of this name in JSON.
    Field(&'static str),
    /// A message whose fields are the outer object's in JSON.
    Inline(&'static str),
}

/// Reads the table: `= TYPE`, then `NUMBER name` or `NUMBER +TYPE`.
fn parse_table(text: &'static str) -> BTreeMap<&'static str, Message> {
    let mut table: BTreeMap<&'static str, Message> = BTreeMap::new();
    let mut open = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(' ') {
            Some(("=", name)) => open = name,
            Some((number, name)) => {
                let Ok(number) = number.parse() else { continue };
                let member = match name.strip_prefix('+') {
                    Some(inline) => Member::Inline(inline),
                    None => Member::Field(name),
                };
                table.entry(open).or_default().insert(number, member);
            }
            None => {}
        }
    }
    table
}

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ProtobufError {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("no Kubernetes protobuf: it does not begin with \"k8s\\x00\"")]
    Magic,
    #[error("{0} has no protobuf form")]
    Kind(String),
    #[error("{0} is not UTF-8")]
    Text(&'static str),
    #[error("{0} has the wrong wire type")]
    Type(&'static str),
    #[error("{0} is no time")]
    Time(&'static str),
    #[error("{0} holds no JSON")]
    Json(&'static str),
    #[error("messages are nested more than {DEPTH_MAX} deep")]
    Depth,
}

/// Reads a protobuf body as the object it says.
///
/// # Errors
///
/// 400 for bytes that are no object.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    decode_unknown(bytes).map_err(|err| {
        Status::bad_request(format!("the body of the request is no protobuf object: {err}"))
    })
}

fn decode_unknown(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind, mut raw): (&str, &str, &[u8]) = ("", "", &[]);
    for field in fields(unknown) {
        match field? {
            (1, Payload::Bytes(meta)) => {
                for field in fields(meta) {
                    match field? {
                        (1, Payload::Bytes(text)) => api_version = utf8(text, "apiVersion")?,
                        (2, Payload::Bytes(text)) => kind = utf8(text, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(message)) => raw = message,
            _ => {}
        }
    }
    let table = schema::builtin();
    // Delete options are registered in every group, and are one type.
    let named = if kind == "DeleteOptions" { "v1" } else { api_version };
    let missing = || ProtobufError::Kind(format!("{api_version}, Kind={kind}"));
    let root = table.root_of(named, kind).ok_or_else(missing)?;
    let numbers = numbers(root.name).ok_or_else(missing)?;
    let mut object = Map::new();
    Reader { table }.message(root, numbers, raw, &mut object, 0)?;
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

fn numbers(name: &str) -> Option<&'static Message> {
    NUMBERS.get(name.to_ascii_lowercase().as_str())
}

fn utf8<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError::Text(what))
}

struct Reader {
    table: &'static Schema,
}

impl Reader {
    fn message(
        &self,
        shape: &'static Type,
        numbers: &'static Message,
        bytes: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if depth > DEPTH_MAX {
            return Err(ProtobufError::Depth);
        }
        for field in fields(bytes) {
            let (number, payload) = field?;
            match numbers.get(&number) {
                Some(Member::Inline(inner)) => {
                    if let (Some(inner), Payload::Bytes(bytes)) = (NUMBERS.get(inner), payload) {
                        self.message(shape, inner, bytes, object, depth + 1)?;
                    }
                }
                Some(Member::Field(name)) => {
                    if let Some(field) = shape.field(name) {
                        if shape.name.starts_with(DEFINITIONS)
                            && self.definition_field(shape, field, payload, object, depth)?
                        {
                            continue;
                        }
                        self.field(field, payload, object, depth)?;
                    }
                }
                // Fields of a later version than ours.
                None => {}
            }
        }
        Ok(())
    }

    fn field(
        &self,
        field: &'static Field,
        payload: Payload<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let name = field.name;
        match &field.node {
            Node::List(inner) => {
                let list = object.entry(name).or_insert_with(|| json!([]));
                let Some(list) = list.as_array_mut() else { return Ok(()) };
                match (payload, &**inner) {
                    // Numbers may come packed into one run of bytes.
                    (Payload::Bytes(packed), Node::Scalar(scalar)) if scalar.is_varint() => {
                        for number in wire::varints(packed) {
                            list.push(varint(*scalar, number?));
                        }
                    }
                    (payload, inner) => list.push(self.value(name, inner, payload, depth)?),
                }
            }
            Node::Map(inner) => {
                let (key, value) = self.entry(name, inner, payload, depth)?;
                let map = object.entry(name).or_insert_with(|| json!({}));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            node => {
                let value = self.value(name, node, payload, depth)?;
                if is_said(field, &value) {
                    object.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    /// A map's entry: key 1, value 2; a value that is a list stands in a message of its own.
    fn entry(
        &self,
        name: &'static str,
        inner: &'static Node,
        payload: Payload<'_>,
        depth: usize,
    ) -> Result<(String, Value), ProtobufError> {
        let Payload::Bytes(entry) = payload else { return Err(ProtobufError::Type(name)) };
        let mut key = String::new();
        let mut value = match inner {
            Node::Scalar(Scalar::String | Scalar::Byte) => json!(""),
            Node::List(_) => json!([]),
            _ => json!({}),
        };
        for field in fields(entry) {
            match (field?, inner) {
                ((1, Payload::Bytes(text)), _) => utf8(text, name)?.clone_into(&mut key),
                ((2, Payload::Bytes(list)), Node::List(item)) => {
                    let mut items = Vec::new();
                    for field in fields(list) {
                        let (_, payload) = field?;
                        items.push(self.value(name, item, payload, depth)?);
                    }
                    value = Value::Array(items);
                }
                ((2, payload), inner) => value = self.value(name, inner, payload, depth)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    fn value(
        &self,
        name: &'static str,
        node: &'static Node,
        payload: Payload<'_>,
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        match (node, payload) {
            (Node::Object(id), Payload::Bytes(bytes)) => self.object(*id, bytes, depth),
            (Node::Any, Payload::Bytes(bytes)) => {
                let raw = first_bytes(bytes)?;
                if raw.is_empty() {
                    return Ok(Value::Null);
                }
                serde_json::from_slice(raw).map_err(|_| ProtobufError::Json(name))
            }
            (Node::Scalar(scalar), payload) => value_of(name, *scalar, payload),
            _ => Err(ProtobufError::Type(name)),
        }
    }

    fn object(&self, id: TypeId, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        let mut object = Map::new();
        if let Some(shape) = self.table.get(id)
            && let Some(numbers) = numbers(shape.name)
        {
            self.message(shape, numbers, bytes, &mut object, depth + 1)?;
        }
        Ok(Value::Object(object))
    }
}

/// Was this said, or only written because Go has no way to leave it out?
fn is_said(field: &Field, value: &Value) -> bool {
    let name = field.name;
    match value {
        Value::Null => false,
        Value::Bool(false) => field.required || ZEROS_MEANT.contains(&name),
        Value::Number(number) if number.as_f64() == Some(0.0) => {
            // A target port or a surge of zero is said by a type of its own.
            matches!(field.node, Node::Scalar(Scalar::IntOrString)) && name != "targetPort"
                || field.required
                || ZEROS_MEANT.contains(&name)
        }
        Value::String(text) if text.is_empty() => TEXTS_MEANT.contains(&name),
        Value::Object(members) if members.is_empty() => {
            field.required || !EMPTIES_UNMEANT.contains(&name)
        }
        _ => true,
    }
}

impl Scalar {
    fn is_varint(self) -> bool {
        matches!(self, Self::Int32 | Self::Int64 | Self::Integer | Self::Boolean)
    }
}

fn varint(scalar: Scalar, number: u64) -> Value {
    match scalar {
        Scalar::Boolean => json!(number != 0),
        // Negative numbers are sign-extended to 64 bits.
        _ => json!(number.cast_signed()),
    }
}

fn value_of(
    name: &'static str,
    scalar: Scalar,
    payload: Payload<'_>,
) -> Result<Value, ProtobufError> {
    Ok(match (scalar, payload) {
        (scalar, Payload::Varint(number)) if scalar.is_varint() => varint(scalar, number),
        (Scalar::Number, Payload::Fixed64(bits)) => json!(f64::from_bits(bits)),
        (Scalar::String, Payload::Bytes(bytes)) => json!(utf8(bytes, name)?),
        (Scalar::Byte, Payload::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Scalar::Quantity, Payload::Bytes(bytes)) => {
            let text = utf8(first_bytes(bytes)?, name)?;
            if text.is_empty() { json!("0") } else { json!(text) }
        }
        (Scalar::Time | Scalar::MicroTime, Payload::Bytes(bytes)) => time(name, scalar, bytes)?,
        (Scalar::IntOrString, Payload::Bytes(bytes)) => int_or_string(name, bytes)?,
        _ => return Err(ProtobufError::Type(name)),
    })
}

/// The first field of a message that holds one run of bytes.
fn first_bytes(bytes: &[u8]) -> Result<&[u8], ProtobufError> {
    let mut found: &[u8] = &[];
    for field in fields(bytes) {
        if let (1, Payload::Bytes(inner)) = field? {
            found = inner;
        }
    }
    Ok(found)
}

/// Seconds and nanoseconds; an empty message is no time.
fn time(name: &'static str, scalar: Scalar, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in fields(bytes) {
        match field? {
            (1, Payload::Varint(number)) => seconds = Some(number.cast_signed()),
            (2, Payload::Varint(number)) => nanos = i32::try_from(number).unwrap_or(0),
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Ok(Value::Null) };
    let at = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Time(name))?;
    Ok(match scalar {
        Scalar::MicroTime => json!(objects::MicroTime(at).to_string()),
        _ => json!(objects::Time(at).to_string()),
    })
}

fn int_or_string(name: &'static str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in fields(bytes) {
        match field? {
            (1, Payload::Varint(kind)) => is_text = kind == 1,
            (2, Payload::Varint(said)) => number = said.cast_signed(),
            (3, Payload::Bytes(said)) => text = utf8(said, name)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

#[cfg(test)]
mod tests;
