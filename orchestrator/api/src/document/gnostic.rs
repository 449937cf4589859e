//! OpenAPI version 2 in the protobuf form kubectl before 1.27 reads.
//!
//! Written from the JSON form, entry by entry and field by field; numbers are those of
//! `openapi.v2.Document`.
//!
//! *Limits*: only what our documents contain is written.

use serde_json::{Map, Value};

use super::entry::{Sink, info};

/// A protobuf message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            let low = u8::try_from(number & 0x7f).unwrap_or(0);
            self.0.push(low | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or(0));
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn yes(&mut self, field: u64, yes: bool) {
        if yes {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    fn texts(&mut self, field: u64, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            self.bytes(field, text.as_bytes());
        }
    }

    /// Vendor extensions: every key that begins with `x-`, its value as YAML (which JSON is).
    fn extensions(&mut self, field: u64, fields: &Map<String, Value>) {
        for (name, value) in fields.iter().filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Self::default();
            any.text(2, &value.to_string());
            let mut named = Self::default();
            named.text(1, name);
            named.message(2, &any);
            self.message(field, &named);
        }
    }
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> &'a str {
    fields.get(key).and_then(Value::as_str).unwrap_or("")
}

fn yes(fields: &Map<String, Value>, key: &str) -> bool {
    fields.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn objects(value: Option<&Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    value
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key, value.as_object()?)))
}

/// A document of version 2 as protobuf.
#[derive(Default)]
pub(super) struct Gnostic {
    paths: Message,
    definitions: Message,
}

impl Gnostic {
    pub(super) fn finish(self) -> Vec<u8> {
        let mut out = Message::default();
        out.text(1, "2.0");
        if let Some(info) = info().as_object() {
            let mut said = Message::default();
            said.text(1, text(info, "title"));
            said.text(2, text(info, "version"));
            out.message(2, &said);
        }
        out.message(8, &self.paths);
        out.message(9, &self.definitions);
        out.0
    }
}

impl Sink for Gnostic {
    fn path(&mut self, path: &str, item: &Value) {
        if let Some(item) = item.as_object() {
            let mut named = Message::default();
            named.text(1, path);
            named.message(2, &path_item(item));
            self.paths.message(2, &named);
        }
    }

    fn definition(&mut self, name: &str, shape: &Value) {
        if let Some(shape) = shape.as_object() {
            let mut named = Message::default();
            named.text(1, name);
            named.message(2, &schema(shape));
            self.definitions.message(1, &named);
        }
    }
}

fn path_item(item: &Map<String, Value>) -> Message {
    let mut out = Message::default();
    for (method, field) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(said) = item.get(method).and_then(Value::as_object) {
            out.message(field, &operation(said));
        }
    }
    out
}

fn operation(said: &Map<String, Value>) -> Message {
    let mut out = Message::default();
    out.text(5, text(said, "operationId"));
    out.texts(6, said.get("produces"));
    out.texts(7, said.get("consumes"));
    let parameters = said.get("parameters").and_then(Value::as_array);
    for one in parameters.into_iter().flatten().filter_map(Value::as_object) {
        let mut item = Message::default();
        item.message(1, &parameter(one));
        out.message(8, &item);
    }
    let mut responses = Message::default();
    for (code, response) in objects(said.get("responses")) {
        let mut plain = Message::default();
        plain.text(1, text(response, "description"));
        if let Some(shape) = response.get("schema").and_then(Value::as_object) {
            let mut item = Message::default();
            item.message(1, &schema(shape));
            plain.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &plain);
        let mut named = Message::default();
        named.text(1, code);
        named.message(2, &value);
        responses.message(1, &named);
    }
    out.message(9, &responses);
    out.extensions(13, said);
    out
}

fn parameter(one: &Map<String, Value>) -> Message {
    let mut out = Message::default();
    if text(one, "in") == "body" {
        let mut body = Message::default();
        body.text(2, text(one, "name"));
        body.text(3, "body");
        body.yes(4, yes(one, "required"));
        if let Some(shape) = one.get("schema").and_then(Value::as_object) {
            body.message(5, &schema(shape));
        }
        out.message(1, &body);
        return out;
    }
    let mut plain = Message::default();
    plain.yes(1, yes(one, "required"));
    plain.text(2, text(one, "in"));
    plain.text(4, text(one, "name"));
    // Parameters in the query have one more field before their type than those in the path.
    let (case, kind, unique) = if text(one, "in") == "path" { (4, 5, 19) } else { (3, 6, 20) };
    plain.text(kind, text(one, "type"));
    plain.yes(unique, yes(one, "uniqueItems"));
    let mut choice = Message::default();
    choice.message(case, &plain);
    out.message(2, &choice);
    out
}

fn schema(shape: &Map<String, Value>) -> Message {
    let mut out = Message::default();
    out.text(1, text(shape, "$ref"));
    out.text(2, text(shape, "format"));
    out.text(4, text(shape, "description"));
    out.texts(19, shape.get("required"));
    if let Some(inner) = shape.get("additionalProperties").and_then(Value::as_object) {
        let mut item = Message::default();
        item.message(1, &schema(inner));
        out.message(21, &item);
    }
    if let Some(kind) = shape.get("type").and_then(Value::as_str) {
        let mut item = Message::default();
        item.text(1, kind);
        out.message(22, &item);
    }
    if let Some(inner) = shape.get("items").and_then(Value::as_object) {
        let mut item = Message::default();
        item.message(1, &schema(inner));
        out.message(23, &item);
    }
    if let Some(fields) = shape.get("properties") {
        let mut properties = Message::default();
        for (name, inner) in objects(Some(fields)) {
            let mut named = Message::default();
            named.text(1, name);
            named.message(2, &schema(inner));
            properties.message(1, &named);
        }
        out.message(25, &properties);
    }
    out.extensions(31, shape);
    out
}
