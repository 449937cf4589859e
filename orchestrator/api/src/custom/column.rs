//! Printer columns, and the JSON paths they and others use.
//!
//! The paths are kubectl's: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`,
//! `.metadata.annotations['a\.b']`, `.spec.list[0].name`, `.spec.list[*].name`.

use jiff::Timestamp;
use objects::field::Fields as _;
use objects::{field::str_at, time::parse_time};
use serde_json::{Value, json};

use super::CustomVersion;

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items whose field at these steps is, or is not, this value.
    Where(Vec<Step>, bool, String),
}

/// Is a text a path?
pub(super) fn is_path(text: &str) -> bool {
    parse(text).is_some()
}

/// The first value at a path.
pub(crate) fn path_value<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    find(&parse(path)?, object).into_iter().next()
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let text = text.trim();
    let text = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let (name, tail) = word(after);
            if name.is_empty() {
                return if after.is_empty() && steps.is_empty() { Some(steps) } else { None };
            }
            steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            rest = tail;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (inner, tail) = bracket(after)?;
            steps.push(bracket_step(inner)?);
            rest = tail;
        } else if steps.is_empty() {
            let (name, tail) = word(rest);
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Field(name));
            rest = tail;
        } else {
            return None;
        }
    }
    Some(steps)
}

/// A name up to the next unescaped `.` or `[`.
fn word(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, letter)) = chars.next() {
        match letter {
            '\\' => name.extend(chars.next().map(|(_, next)| next)),
            '.' | '[' => return (name, text.get(at..).unwrap_or("")),
            _ => name.push(letter),
        }
    }
    (name, "")
}

/// What stands up to the closing bracket, quotes respected.
fn bracket(text: &str) -> Option<(&str, &str)> {
    let (mut quote, mut depth, mut escaped) = (None, 0_u32, false);
    for (at, letter) in text.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match (quote, letter) {
            (_, '\\') => escaped = true,
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            (None, '[' | '(') => depth = depth.saturating_add(1),
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ']') if depth == 0 => return Some((text.get(..at)?, text.get(at + 1..)?)),
            (None, ']') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<String> {
    let text = text.trim();
    let quote = text.chars().next().filter(|letter| matches!(letter, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(inner.replace("\\.", ".").replace("\\'", "'").replace("\\\"", "\""))
}

fn bracket_step(inner: &str) -> Option<Step> {
    let inner = inner.trim();
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquote(inner) {
        return Some(Step::Field(name));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (path, equal, value) = match filter.split_once("==") {
            Some((path, value)) => (path, true, value),
            None => filter.split_once("!=").map(|(path, value)| (path, false, value))?,
        };
        let path = path.trim().strip_prefix('@')?;
        let value = unquote(value).unwrap_or_else(|| value.trim().to_owned());
        return Some(Step::Where(parse(path)?, equal, value));
    }
    inner.parse().ok().map(Step::Index)
}

fn find<'v>(steps: &[Step], value: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            match (step, value) {
                (Step::Field(name), Value::Object(fields)) => next.extend(fields.get(name)),
                (Step::All, Value::Array(items)) => next.extend(items),
                (Step::All, Value::Object(fields)) => next.extend(fields.values()),
                (Step::Index(at), Value::Array(items)) => {
                    let len = i64::try_from(items.len()).unwrap_or(i64::MAX);
                    let at = if *at < 0 { at.saturating_add(len) } else { *at };
                    next.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
                }
                (Step::Where(path, equal, wanted), Value::Array(items)) => {
                    next.extend(items.iter().filter(|item| {
                        let have = find(path, item).into_iter().next().map(text);
                        have.is_some_and(|have| (have == *wanted) == *equal)
                    }));
                }
                _ => {}
            }
        }
        found = next;
    }
    found
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The column definitions of a version: the name first, the age where none are said.
pub(crate) fn render_columns(custom: &CustomVersion) -> Vec<Value> {
    let mut columns = vec![json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name must be unique within a namespace.",
    })];
    for column in &custom.columns {
        let said = |key: &str| str_at(column, key).unwrap_or("");
        columns.push(json!({
            "name": said("name"), "type": said("type"), "format": said("format"),
            "description": said("description"),
            "priority": column.get("priority").cloned().unwrap_or_else(|| json!(0)),
        }));
    }
    if custom.columns.is_empty() {
        columns.push(json!({
            "name": "Age", "type": "date", "format": "", "priority": 0,
            "description": "When the object was created.",
        }));
    }
    columns
}

/// The cells of an object's row.
pub(crate) fn render_cells(custom: &CustomVersion, object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object.field("metadata.name").cloned().unwrap_or(Value::Null);
    let mut cells = vec![name];
    for column in &custom.columns {
        let path = str_at(column, "jsonPath").unwrap_or("");
        let found = parse(path).map(|steps| find(&steps, object)).unwrap_or_default();
        cells.push(cell(str_at(column, "type").unwrap_or(""), &found, now));
    }
    if custom.columns.is_empty() {
        let created = object.field("metadata.creationTimestamp");
        cells.push(cell("date", &created.into_iter().collect::<Vec<_>>(), now));
    }
    cells
}

fn cell(kind: &str, found: &[&Value], now: Timestamp) -> Value {
    let Some(first) = found.first() else { return Value::Null };
    match (kind, *first) {
        ("integer", Value::Number(number)) => {
            number.as_i64().map_or_else(|| json!(number), |whole| json!(whole))
        }
        ("number" | "boolean", value) if !value.is_string() => (*value).clone(),
        ("date", Value::String(said)) => match parse_time(said) {
            Some(at) => json!(crate::table::age_since(at, now)),
            None => json!("<invalid>"),
        },
        ("string", _) => {
            let all: Vec<String> = found.iter().map(|one| text(one)).collect();
            json!(all.join(","))
        }
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Option<Value>) {
        let object = json!({
            "spec": {"replicas": 3, "list": [{"name": "a", "n": 1}, {"name": "b"}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"},
            ]},
            "metadata": {"annotations": {"a.b/c": "x"}},
        });
        assert_eq!(path_value(&object, path).cloned(), expected, "{path}");
    }

    #[test]
    fn paths_find_what_kubectl_finds() {
        check(".spec.replicas", Some(json!(3)));
        check("{.spec.replicas}", Some(json!(3)));
        check(".spec.list[1].name", Some(json!("b")));
        check(".spec.list[-1].name", Some(json!("b")));
        check(".spec.list[*].n", Some(json!(1)));
        check(".status.conditions[?(@.type==\"Ready\")].status", Some(json!("True")));
        check(".status.conditions[?(@.type!='Ready')].status", Some(json!("False")));
        check(".metadata.annotations.a\\.b/c", Some(json!("x")));
        check(".metadata.annotations['a.b/c']", Some(json!("x")));
        check(".spec.none", None);
        check(".spec..", None);
        check("[", None);
    }

    #[test]
    fn any_text_is_a_path_or_none() {
        bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
            let _found = path_value(&json!({"a": [1]}), &String::from_utf8_lossy(bytes)).is_some();
        });
    }
}
