//! YAML text as a tree of nodes that know their line.
//!
//! Reading straight into structs would stop at the first unknown key or mistyped value; a tree
//! lets the checker go on and report everything. Scalars keep the text the operator wrote: a
//! serial number `0123` must not become the number 123, nor a name `no` the boolean false.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::problem::{Place, Problem};

/// Nesting that no `rack.yaml` needs; bounds the recursion of reader and converter.
const DEPTH_MAX: usize = 32;

/// A value and the line it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) column: u64,
    pub(crate) value: Value,
}

/// The shapes a value can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Empty,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Names this node's place, known to the operator as `path`.
    pub(crate) fn place(&self, path: impl Into<String>) -> Place {
        Place { line: self.line, column: self.column, path: path.into() }
    }

    /// Says in a word what stands here.
    pub(crate) fn shape(&self) -> String {
        match &self.value {
            Value::Empty => "nothing".to_owned(),
            Value::Text(text) => text.clone(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Reads `text`, whatever keys it may have.
///
/// # Errors
///
/// The one place where the text stops being YAML.
pub(crate) fn parse(text: &str) -> Result<Node, Problem> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options)
        .map(|root| convert(text, root))
        .map_err(|err| unreadable(&err))
}

fn unreadable(err: &serde_saphyr::Error) -> Problem {
    let (line, column) = err.location().map_or((0, 0), |place| (place.line(), place.column()));
    let rule = err.without_snippet().to_string();
    Problem {
        place: Place { line, column, path: String::new() },
        found: String::new(),
        rule: format!("is not readable YAML ({})", rule.lines().next().unwrap_or_default()),
        hint: "mend this first; the rest is checked afterwards".to_owned(),
    }
}

/// What the YAML reader hands over, before scalars get their own text back.
#[derive(Debug)]
enum Raw {
    Empty,
    /// Quoted, or plain and read as a string.
    Text(String),
    /// Plain and read as a number or boolean, in the reader's spelling.
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(String, Spanned<Raw>)>),
}

fn convert(text: &str, node: Spanned<Raw>) -> Node {
    let place = node.referenced;
    let value = match node.value {
        Raw::Empty => Value::Empty,
        Raw::Text(found) => Value::Text(found),
        Raw::Typed(found) => {
            let span = node.defined.span();
            let own = span.byte_offset().zip(span.byte_len()).and_then(|(from, len)| {
                let from = usize::try_from(from).ok()?;
                text.get(from..from.checked_add(usize::try_from(len).ok()?)?)
            });
            Value::Text(own.map_or(found, |own| own.trim().to_owned()))
        }
        Raw::List(items) => {
            Value::List(items.into_iter().map(|item| convert(text, item)).collect())
        }
        Raw::Map(entries) => Value::Map(
            entries.into_iter().map(|(key, value)| (key, convert(text, value))).collect(),
        ),
    };
    Node { line: place.line(), column: place.column(), value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Empty)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Empty)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, found: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(found.to_string()))
    }

    fn visit_i64<E>(self, found: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(found.to_string()))
    }

    fn visit_u64<E>(self, found: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(found.to_string()))
    }

    fn visit_i128<E>(self, found: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(found.to_string()))
    }

    fn visit_u128<E>(self, found: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(found.to_string()))
    }

    fn visit_f64<E>(self, found: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(found.to_string()))
    }

    fn visit_str<E>(self, found: &str) -> Result<Raw, E> {
        Ok(Raw::Text(found.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(node: &'a Node, key: &str) -> &'a Node {
        let Value::Map(entries) = &node.value else { panic!("not a mapping: {node:?}") };
        &entries.iter().find(|(found, _)| found == key).expect("key").1
    }

    #[test]
    fn scalars_keep_the_text_the_operator_wrote() {
        let root =
            parse("a: 0123\nb: no\nc: 1e3\nd: \"x y\"\ne: 52:54:00:00:01:10\nf: ~\ng: .inf\n");
        let root = match root {
            Ok(root) => root,
            Err(problem) => {
                // Infinity may be refused by the reader; it must then say where.
                assert_eq!(problem.place.line, 7, "{problem}");
                parse("a: 0123\nb: no\nc: 1e3\nd: \"x y\"\ne: 52:54:00:00:01:10\nf: ~\n").unwrap()
            }
        };
        for (key, text) in
            [("a", "0123"), ("b", "no"), ("c", "1e3"), ("d", "x y"), ("e", "52:54:00:00:01:10")]
        {
            assert_eq!(entry(&root, key).value, Value::Text(text.to_owned()), "{key}");
        }
        assert_eq!(entry(&root, "f").value, Value::Empty);
        assert_eq!(entry(&root, "e").line, 5);
    }

    #[test]
    fn broken_text_names_its_line() {
        let problem = parse("site: lab\nracks: [a, b\nmachines: {\n").unwrap_err();
        assert!(problem.place.line >= 2, "{problem}");
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(50_000)).is_err());
    }
}
