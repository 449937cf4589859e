//! JSON and YAML into one kind of value, remembering fields that stand twice.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::Place;

/// Deeper nesting is refused; no object of ours comes near.
const DEPTH_MAX: usize = 100;

/// Parses JSON.
pub(super) fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut doubled = Vec::new();
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let tree = Tree { place: Place::ROOT, depth: 0, doubled: &mut doubled };
    let value = tree.deserialize(&mut source)?;
    source.end()?;
    Ok((value, doubled))
}

/// Parses YAML, of which JSON is a part.
pub(super) fn parse_yaml(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_saphyr::Error> {
    let mut doubled = Vec::new();
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let value =
        serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |source| {
            Tree { place: Place::ROOT, depth: 0, doubled: &mut doubled }.deserialize(source)
        })?;
    Ok((value, doubled))
}

/// Where in the tree we are, and what was seen twice.
struct Tree<'a> {
    place: Place<'a>,
    depth: usize,
    doubled: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(D::Error::custom("nested too deeply"));
        }
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
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
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let inner = Tree {
                place: Place::Item(&self.place, items.len()),
                depth: self.depth.saturating_add(1),
                doubled: self.doubled,
            };
            match source.next_element_seed(inner)? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = source.next_key::<String>()? {
            let inner = Tree {
                place: Place::Field(&self.place, &key),
                depth: self.depth.saturating_add(1),
                doubled: self.doubled,
            };
            let value = source.next_value_seed(inner)?;
            if fields.contains_key(&key) {
                self.doubled.push(Place::Field(&self.place, &key).to_string());
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}
