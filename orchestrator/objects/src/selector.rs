//! Label and field selectors: which objects of a list are meant.
//!
//! Spec: the query parameters `labelSelector` (equality and set forms, `>` and `<`) and
//! `fieldSelector` (equality only).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde_json::Value;
use thiserror::Error;

use crate::{field, name};

/// One condition on labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label is one of the values.
    In(String, BTreeSet<String>),
    /// The label is missing or none of the values.
    NotIn(String, BTreeSet<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    Missing(String),
    /// The label is a number greater than this.
    Greater(String, i64),
    /// The label is a number less than this.
    Less(String, i64),
}

/// Conditions on labels that must all hold; none at all match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// Conditions on fields that must all hold; none at all match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Path, wanted value, and whether it must be equal.
    terms: Vec<FieldTerm>,
}

/// One condition on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// Dotted path, as in `spec.nodeName`.
    pub path: String,
    /// The value it is compared with.
    pub value: String,
    /// Must the field be equal, or different?
    pub equal: bool,
}

/// The text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSelectorError {
    /// Something else stood where this was needed.
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Unexpected {
        /// What stood there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A label key breaks the rules for keys.
    #[error("key: Invalid value: \"{key}\": {rule}")]
    Key {
        /// The key.
        key: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A label value breaks the rules for values.
    #[error("values[0]: Invalid value: \"{value}\": {rule}")]
    Value {
        /// The value.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A field selector's term has no operator.
    #[error("invalid selector: '{term}'; can't understand '{term}'")]
    Term {
        /// The term.
        term: String,
    },
}

impl Selector {
    /// A selector of these requirements.
    #[must_use]
    pub fn new(requirements: Vec<Requirement>) -> Self {
        Self { requirements }
    }

    /// A selector on labels that must all be equal, as a Service has it.
    #[must_use]
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        Self::new(
            labels.iter().map(|(k, v)| Requirement::In(k.clone(), [v.clone()].into())).collect(),
        )
    }

    /// Parses `a=b,c in (d,e),!f`.
    ///
    /// # Errors
    ///
    /// When the text is not of that form, or a key or value breaks the rules for labels.
    pub fn parse(text: &str) -> Result<Self, ParseSelectorError> {
        Parser { rest: text }.selector()
    }

    /// Does the selector match these labels?
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Does the selector match the labels of this object's JSON?
    #[must_use]
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Does the selector match the labels that `get` tells?
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::Missing(key) => get(key).is_none(),
            Requirement::Greater(key, bound) => {
                get(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *bound)
            }
            Requirement::Less(key, bound) => {
                get(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *bound)
            }
        })
    }

    /// Does it match everything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl FromStr for Selector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            let joined = |values: &BTreeSet<String>| -> String {
                values.iter().map(String::as_str).collect::<Vec<_>>().join(",")
            };
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => {
                    write!(f, "{key}={}", joined(values))?;
                }
                Requirement::In(key, values) => write!(f, "{key} in ({})", joined(values))?,
                Requirement::NotIn(key, values) if values.len() == 1 => {
                    write!(f, "{key}!={}", joined(values))?;
                }
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", joined(values))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::Missing(key) => write!(f, "!{key}")?,
                Requirement::Greater(key, bound) => write!(f, "{key}>{bound}")?,
                Requirement::Less(key, bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

/// What is left of a label selector's text.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn selector(mut self) -> Result<Selector, ParseSelectorError> {
        let mut requirements = Vec::new();
        self.skip_space();
        if self.rest.is_empty() {
            return Ok(Selector::default());
        }
        loop {
            requirements.push(self.requirement()?);
            self.skip_space();
            if self.rest.is_empty() {
                return Ok(Selector { requirements });
            }
            if !self.take(",") {
                return Err(self.unexpected("',' or end of the selector"));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, ParseSelectorError> {
        self.skip_space();
        if self.take("!") {
            return Ok(Requirement::Missing(self.key()?));
        }
        let key = self.key()?;
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement::Exists(key));
        }
        if self.take("!=") {
            return Ok(Requirement::NotIn(key, [self.value()?].into()));
        }
        if self.take("==") || self.take("=") {
            return Ok(Requirement::In(key, [self.value()?].into()));
        }
        if self.take(">") {
            return Ok(Requirement::Greater(key, self.number()?));
        }
        if self.take("<") {
            return Ok(Requirement::Less(key, self.number()?));
        }
        let word = self.word();
        match word {
            "in" => Ok(Requirement::In(key, self.values()?)),
            "notin" => Ok(Requirement::NotIn(key, self.values()?)),
            _ => Err(ParseSelectorError::Unexpected {
                found: word.to_owned(),
                expected: "in, notin, =, ==, !=, > or <",
            }),
        }
    }

    fn key(&mut self) -> Result<String, ParseSelectorError> {
        self.skip_space();
        let word = self.word();
        if word.is_empty() {
            return Err(self.unexpected("a label key"));
        }
        match name::check_label_key(word) {
            Ok(()) => Ok(word.to_owned()),
            Err(rule) => Err(ParseSelectorError::Key { key: word.to_owned(), rule }),
        }
    }

    fn value(&mut self) -> Result<String, ParseSelectorError> {
        self.skip_space();
        let word = self.word();
        match name::check_label_value(word) {
            Ok(()) => Ok(word.to_owned()),
            Err(rule) => Err(ParseSelectorError::Value { value: word.to_owned(), rule }),
        }
    }

    fn number(&mut self) -> Result<i64, ParseSelectorError> {
        let value = self.value()?;
        value
            .parse()
            .map_err(|_| ParseSelectorError::Unexpected { found: value, expected: "an integer" })
    }

    fn values(&mut self) -> Result<BTreeSet<String>, ParseSelectorError> {
        self.skip_space();
        if !self.take("(") {
            return Err(self.unexpected("'('"));
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            self.skip_space();
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(self.unexpected("',' or ')'"));
            }
        }
    }

    fn word(&mut self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "=!,()<>".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, token: &str) -> bool {
        self.rest.strip_prefix(token).map(|rest| self.rest = rest).is_some()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self, expected: &'static str) -> ParseSelectorError {
        let found = self.rest.chars().take(40).collect();
        ParseSelectorError::Unexpected { found, expected }
    }
}

impl FieldSelector {
    /// Parses `metadata.name=a,spec.nodeName!=b`; `\` escapes `,`, `=` and itself in values.
    ///
    /// # Errors
    ///
    /// When a term has no operator.
    pub fn parse(text: &str) -> Result<Self, ParseSelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (path, equal, value) = if let Some((path, value)) = term.split_once("!=") {
                (path, false, value)
            } else if let Some((path, value)) = term.split_once("==") {
                (path, true, value)
            } else if let Some((path, value)) = term.split_once('=') {
                (path, true, value)
            } else {
                return Err(ParseSelectorError::Term { term: term.to_owned() });
            };
            terms.push(FieldTerm { path: path.to_owned(), value: unescape(value), equal });
        }
        Ok(Self { terms })
    }

    /// A selector on one field.
    #[must_use]
    pub fn on(path: &str, value: &str) -> Self {
        let term = FieldTerm { path: path.to_owned(), value: value.to_owned(), equal: true };
        Self { terms: vec![term] }
    }

    /// The conditions.
    #[must_use]
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Does it match everything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `path` must equal, if the selector says so.
    #[must_use]
    pub fn required(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.path == path).map(|t| t.value.as_str())
    }

    /// Does the selector match the fields that `get` tells? A missing field is empty.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (get(&term.path).unwrap_or("") == term.value) == term.equal)
    }

    /// Does the selector match the fields of this object's JSON?
    #[must_use]
    pub fn matches_object(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            (field::text_at(object, &term.path).unwrap_or_default() == term.value) == term.equal
        })
    }
}

impl FromStr for FieldSelector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, term) in self.terms.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.path)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash stands before.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == ',' {
            parts.push(text.get(start..at).unwrap_or(""));
            start = at + 1;
        }
    }
    parts.push(text.get(start..).unwrap_or(""));
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `labels` is `a=b c=d`.
    #[track_caller]
    fn check(selector: &str, labels: &str, expected: bool) {
        let labels: BTreeMap<String, String> = labels
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let parsed = Selector::parse(selector).unwrap();
        assert_eq!(parsed.matches(&labels), expected, "{selector} on {labels:?}");
        let again = Selector::parse(&parsed.to_string()).unwrap();
        assert_eq!(again, parsed, "{selector} does not round-trip");
    }

    #[test]
    fn label_selectors_match_as_upstream_says() {
        check("", "a=b", true);
        check("a=b", "a=b", true);
        check("a==b", "a=c", false);
        check("a!=b", "", true);
        check("a!=b", "a=b", false);
        check("a in (b, c)", "a=c", true);
        check("a in (b,c)", "", false);
        check("a notin (b,c)", "", true);
        check("a notin (b,c),d", "a=x d=1", true);
        check("!a", "a=b", false);
        check("a,!b", "a=b", true);
        check("n>3", "n=4", true);
        check("n<3", "n=x", false);
        check("a=", "a=", true);
        check("app.kubernetes.io/name=x", "app.kubernetes.io/name=x", true);
        check(" a = b , c in ( d ) ", "a=b c=d", true);
        check("in=b", "in=b", true);
    }

    #[test]
    fn broken_label_selectors_are_refused() {
        for text in ["=a", "a in", "a in b", "a b", "a=b,,c", "a=b,", "a=-b", "-a=b", "a in (b"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn field_selectors_match_by_path() {
        let pod = serde_json::json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n,1"}});
        for (text, expected) in [
            ("metadata.name=a", true),
            ("metadata.name==b", false),
            ("spec.nodeName=n\\,1,metadata.name=a", true),
            ("status.phase!=Running", true),
            ("status.phase=", true),
        ] {
            let selector = FieldSelector::parse(text).unwrap();
            assert_eq!(selector.matches_object(&pod), expected, "{text}");
            assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }
        assert!(FieldSelector::parse("metadata.name").is_err());
    }

    #[test]
    fn any_text_parses_or_is_refused() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(selector) = Selector::parse(&text) {
                assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
            }
            if let Ok(selector) = FieldSelector::parse(&text) {
                drop(selector.to_string());
            }
        });
    }
}
