//! Distils field numbers from the sources of the crate `k8s-pb` (made from upstream's `.proto`).
//!
//! The numbers are upstream's, the names are matched with the schema's without regard to case and
//! underscores. A message that the schema does not know as a field is one whose fields are its
//! owner's in JSON (`VolumeSource` in `Volume`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::schema::{self, Type};

/// Rust sources by type-name prefix: `io.k8s.api.core.v1` and the text of its module.
pub type Sources = BTreeMap<String, String>;

/// A message as the sources say: number, name in lower case, type when it is a message.
type Fields = Vec<(u32, String, Option<String>)>;

/// Distils the table for the types of the schema.
#[must_use]
pub fn distil(sources: &Sources) -> String {
    let mut messages: BTreeMap<String, Fields> = BTreeMap::new();
    for (prefix, text) in sources {
        read(prefix, text, &mut messages);
    }
    let mut out = String::new();
    let mut written = BTreeSet::new();
    for shape in schema::builtin().types() {
        let name = shape.name.to_ascii_lowercase();
        write_message(&mut out, &name, shape, &messages, &mut written);
    }
    out
}

fn write_message(
    out: &mut String,
    name: &str,
    shape: &Type,
    messages: &BTreeMap<String, Fields>,
    written: &mut BTreeSet<String>,
) {
    // A version that is younger than the sources has the numbers of its beta.
    let beta = name.replace(".v1.", ".v1beta1.");
    let Some(fields) = messages.get(name).or_else(|| messages.get(&beta)) else { return };
    if !written.insert(name.to_owned()) {
        return;
    }
    let mut inlined = Vec::new();
    // Writing to a string cannot fail.
    let _head = writeln!(out, "= {name}").is_ok();
    for (number, field, message) in fields {
        let known = shape.fields.iter().find(|known| known.name.to_ascii_lowercase() == *field);
        let _line = match (known, message) {
            (Some(known), _) => writeln!(out, "{number} {}", known.name).is_ok(),
            (None, Some(message)) if messages.contains_key(message) => {
                // A type that is also used by itself gets a copy under its owner's name.
                inlined.push(message.clone());
                writeln!(out, "{number} +{message}").is_ok()
            }
            (None, _) => false,
        };
    }
    for inner in inlined {
        write_message(out, &inner, shape, messages, written);
    }
}

fn read(prefix: &str, text: &str, messages: &mut BTreeMap<String, Fields>) {
    let mut open: Option<String> = None;
    let mut tag: Option<(u32, bool)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|l| l.split(' ').next()) {
            let name = format!("{prefix}.{name}").to_ascii_lowercase();
            messages.entry(name.clone()).or_default();
            open = Some(name);
        } else if let Some(said) = line.strip_prefix("#[prost(") {
            let number = said.split("tag = \"").nth(1).and_then(|rest| rest.split('"').next());
            let number = number.and_then(|number| number.parse().ok());
            tag = number.map(|number| (number, said.starts_with("message, ")));
        } else if let Some((name, kind)) =
            line.strip_prefix("pub ").and_then(|field| field.split_once(':'))
            && let Some((number, is_message)) = tag.take()
            && let Some(open) = &open
        {
            let name = name.trim_start_matches("r#").replace('_', "").to_ascii_lowercase();
            let message = is_message.then(|| resolve(prefix, kind));
            if let Some(fields) = messages.get_mut(open) {
                fields.push((number, name, message));
            }
        }
    }
}

/// The full name of the message in `Option<super::…::Name>` or `Option<Name>`.
fn resolve(prefix: &str, kind: &str) -> String {
    let path = kind.trim_end_matches([',', '>']).rsplit('<').next().unwrap_or_default();
    let mut base: Vec<&str> = prefix.split('.').collect();
    // `io.k8s` stands for the crate's root.
    let mut rest = path;
    while let Some(up) = rest.strip_prefix("super::") {
        base.pop();
        rest = up;
    }
    let mut name = base.join(".");
    for part in rest.split("::") {
        name.push('.');
        name.push_str(part);
    }
    name.to_ascii_lowercase()
}
