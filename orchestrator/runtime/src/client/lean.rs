//! Reads JSON without what no reader of a cache wants.
//!
//! `metadata.managedFields` is often half of an object, and only the server reads it. Members that
//! are null are left out too: Go programs write an empty list so, and typed views know empty lists
//! only. Neither is ever made, which is most of the cost of reading a watch.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};

/// Reads an object as a cache wants it; for `deserialize_with`.
pub(super) fn read<'de, D: Deserializer<'de>>(object: D) -> Result<Value, D::Error> {
    Part::Object.deserialize(object)
}

/// Reads an object's metadata and nothing else of it.
///
/// # Errors
///
/// When the bytes are no JSON object.
pub(super) fn read_metadata(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    #[derive(Deserialize)]
    struct Brief {
        #[serde(default, deserialize_with = "read_part")]
        metadata: Value,
    }
    fn read_part<'de, D: Deserializer<'de>>(part: D) -> Result<Value, D::Error> {
        Part::Metadata.deserialize(part)
    }
    let Brief { metadata } = serde_json::from_slice(bytes)?;
    Ok(json!({ "metadata": metadata }))
}

/// Which part of an object is read.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
    Other,
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self::Other)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let part = match (self, key.as_str()) {
                (Self::Metadata, "managedFields") => {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
                (Self::Object, "metadata") => Self::Metadata,
                _ => Self::Other,
            };
            let value = members.next_value_seed(part)?;
            if value.is_null() {
                // A member that stands twice is what it was last.
                object.remove(&key);
            } else {
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        let mut reader = serde_json::Deserializer::from_str(text);
        let found = read(&mut reader).unwrap();
        reader.end().unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn owners_and_nulls_are_left_out_and_nothing_else() {
        check(
            r#"{"metadata": {"name": "a", "managedFields": [{"fieldsV1": {"f:x": {}}}], "uid": "u"}}"#,
            json!({"metadata": {"name": "a", "uid": "u"}}),
        );
        check(
            r#"{"spec": {"template": {"metadata": {"creationTimestamp": null, "managedFields": [1]}}}}"#,
            json!({"spec": {"template": {"metadata": {"managedFields": [1]}}}}),
        );
        check(
            r#"{"a": null, "b": [null, {"c": null}], "a": 1, "d": {"x": 1, "x": null}}"#,
            json!({"a": 1, "b": [null, {}], "d": {}}),
        );
        check(
            r#"{"n": [0, -1, 18446744073709551615, 1.5, 1e300, true, "\u00e4\"", ""]}"#,
            json!({"n": [0, -1, 18_446_744_073_709_551_615_u64, 1.5, 1e300, true, "ä\"", ""]}),
        );
        check(r#""text""#, json!("text"));
    }

    #[test]
    fn metadata_is_read_alone() {
        let text = r#"{"kind": "Pod", "metadata": {"uid": "u", "managedFields": [1], "x": null},
            "spec": {"metadata": {"uid": "v"}}}"#;
        assert_eq!(read_metadata(text.as_bytes()).unwrap(), json!({"metadata": {"uid": "u"}}));
        let status = br#"{"kind": "Status", "status": "Success"}"#;
        assert_eq!(read_metadata(status).unwrap(), json!({"metadata": null}));
        assert!(read_metadata(br#"{"metadata": {}"#).is_err());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["{", r#"{"a" 1}"#, r#"{"metadata": {"managedFields": [}}"#, "[1,]"] {
            assert!(read(&mut serde_json::Deserializer::from_str(text)).is_err(), "{text}");
        }
    }
}
