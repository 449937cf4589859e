//! Texts: CEL's own functions, the strings extension, regular expressions, formats.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use regex::Regex;

use super::{Answer, Budget, EvalError, Value, failed};

pub(super) fn call(
    function: &str,
    target: Option<&Value>,
    args: &[Value],
    budget: &mut Budget,
) -> Answer {
    match (target, function, args) {
        (None, "size", [value]) | (Some(value), "size", []) => {
            let size = match value {
                Value::String(text) => text.chars().count(),
                Value::Bytes(bytes) => bytes.len(),
                Value::List(items) => items.len(),
                Value::Map(entries) => entries.len(),
                _ => return None,
            };
            Some(Ok(Value::count(size)))
        }
        (None, "matches", [Value::String(text), Value::String(pattern)]) => {
            Some(matches(text, pattern, budget))
        }
        (None, "base64.encode", [Value::Bytes(bytes)]) => {
            Some(Ok(Value::from(STANDARD.encode(bytes))))
        }
        (None, "base64.decode", [Value::String(text)]) => Some(match STANDARD.decode(&**text) {
            Ok(bytes) => Ok(Value::Bytes(bytes.into())),
            Err(_) => failed("illegal base64 data"),
        }),
        (None, "strings.quote", [Value::String(text)]) => {
            Some(Ok(Value::from(format!("{text:?}"))))
        }
        (Some(Value::List(items)), "join", _) => {
            let between = match args {
                [] => "",
                [Value::String(text)] => text,
                _ => return None,
            };
            let texts: Option<Vec<&str>> = items
                .iter()
                .map(|item| if let Value::String(text) = item { Some(&**text) } else { None })
                .collect();
            let joined = texts?.join(between);
            Some(budget.spend_size(joined.len(), 10).map(|()| Value::from(joined)))
        }
        (Some(Value::String(text)), _, _) => {
            if let Err(err) = budget.spend_size(text.len(), 10) {
                return Some(Err(err));
            }
            of_text(function, text, args, budget)
        }
        _ => None,
    }
}

fn compile(pattern: &str) -> Result<Regex, EvalError> {
    Regex::new(pattern).map_err(|err| EvalError::Failed(format!("error parsing regexp: {err}")))
}

fn matches(text: &str, pattern: &str, budget: &mut Budget) -> Result<Value, EvalError> {
    let work = text.len().saturating_mul(pattern.len().max(1));
    budget.spend_size(work, 40)?;
    compile(pattern).map(|regex| Value::Bool(regex.is_match(text)))
}

fn number(value: &Value) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

fn of_text(function: &str, text: &Arc<str>, args: &[Value], budget: &mut Budget) -> Answer {
    let ok = |text: String| Some(Ok(Value::from(text)));
    match (function, args) {
        ("contains", [Value::String(part)]) => Some(Ok(Value::Bool(text.contains(&**part)))),
        ("startsWith", [Value::String(part)]) => Some(Ok(Value::Bool(text.starts_with(&**part)))),
        ("endsWith", [Value::String(part)]) => Some(Ok(Value::Bool(text.ends_with(&**part)))),
        ("matches", [Value::String(pattern)]) => Some(matches(text, pattern, budget)),
        ("lowerAscii", []) => ok(text.to_ascii_lowercase()),
        ("upperAscii", []) => ok(text.to_ascii_uppercase()),
        ("trim", []) => ok(text.trim().to_owned()),
        ("reverse", []) => ok(text.chars().rev().collect()),
        ("charAt", [at]) => {
            let count = text.chars().count();
            match number(at) {
                Some(at) if at == count => ok(String::new()),
                Some(at) if at < count => ok(text.chars().skip(at).take(1).collect()),
                _ => Some(failed(format!("index out of range: {at}"))),
            }
        }
        ("substring", [from]) => Some(cut(text, number(from), None, from)),
        ("substring", [from, to]) => Some(cut(text, number(from), Some(number(to)?), from)),
        ("indexOf" | "lastIndexOf", [Value::String(_)] | [Value::String(_), Value::Int(_)]) => {
            Some(index_of(function, text, args))
        }
        ("replace", [Value::String(from), Value::String(to)]) => ok(text.replace(&**from, to)),
        ("replace", [Value::String(from), Value::String(to), Value::Int(count)]) => {
            ok(match usize::try_from(*count) {
                Ok(count) => text.replacen(&**from, to, count),
                Err(_) => text.replace(&**from, to),
            })
        }
        ("split", [Value::String(at)]) => Some(Ok(split(text, at, None))),
        ("split", [Value::String(at), Value::Int(count)]) => {
            Some(Ok(split(text, at, usize::try_from(*count).ok())))
        }
        ("find", [Value::String(pattern)]) => Some(
            compile(pattern)
                .map(|regex| Value::from(regex.find(text).map_or("", |found| found.as_str()))),
        ),
        ("findAll", [Value::String(pattern)]) => {
            Some(compile(pattern).map(|regex| find_all(&regex, text, usize::MAX)))
        }
        ("findAll", [Value::String(pattern), Value::Int(count)]) => {
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            Some(compile(pattern).map(|regex| find_all(&regex, text, count)))
        }
        ("format", [Value::List(values)]) => Some(render(text, values)),
        _ => None,
    }
}

fn find_all(regex: &Regex, text: &str, count: usize) -> Value {
    Value::list(regex.find_iter(text).take(count).map(|one| Value::from(one.as_str())).collect())
}

fn cut(
    text: &str,
    from: Option<usize>,
    to: Option<usize>,
    shown: &Value,
) -> Result<Value, EvalError> {
    let count = text.chars().count();
    let to = to.unwrap_or(count);
    match from {
        Some(from) if from <= to && to <= count => Ok(Value::from(
            text.chars().skip(from).take(to.saturating_sub(from)).collect::<String>(),
        )),
        _ => failed(format!("index out of range: {shown}")),
    }
}

fn index_of(function: &str, text: &str, args: &[Value]) -> Result<Value, EvalError> {
    let Some(Value::String(part)) = args.first() else { return failed("no such overload") };
    let letters: Vec<char> = text.chars().collect();
    let wanted: Vec<char> = part.chars().collect();
    let bound = match args.get(1) {
        None => None,
        Some(at) => match number(at).filter(|at| *at <= letters.len()) {
            Some(at) => Some(at),
            None => return failed(format!("index out of range: {at}")),
        },
    };
    let last = letters.len().checked_sub(wanted.len());
    let fits =
        |at: &usize| letters.get(*at..at.saturating_add(wanted.len())) == Some(wanted.as_slice());
    let found = match (function, last) {
        (_, None) => None,
        ("indexOf", Some(last)) => (bound.unwrap_or(0)..=last).find(fits),
        (_, Some(last)) => (0..=bound.unwrap_or(last).min(last)).rev().find(fits),
    };
    Ok(found.map_or(Value::Int(-1), Value::count))
}

fn split(text: &str, at: &str, count: Option<usize>) -> Value {
    let parts: Vec<&str> = match count {
        Some(0) => Vec::new(),
        Some(count) => text.splitn(count, at).collect(),
        None => text.split(at).collect(),
    };
    // Split at nothing means letter by letter, without the empty ends Rust adds.
    let parts = parts.into_iter().filter(|part| !at.is_empty() || !part.is_empty());
    Value::list(parts.map(Value::from).collect())
}

/// `"%s is %d".format([a, b])`.
fn render(template: &str, values: &[Value]) -> Result<Value, EvalError> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = template.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut precision = String::new();
        if letters.next_if_eq(&'.').is_some() {
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                precision.push(digit);
            }
        }
        let Some(verb) = letters.next() else { return failed("unexpected end of format") };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            return failed("index out of range: too few arguments");
        };
        let precision = precision.parse().unwrap_or(6_usize);
        match (verb, value) {
            ('s', value) => out.push_str(&shown(value)),
            ('d', Value::Int(number)) => out.push_str(&number.to_string()),
            ('d', Value::Uint(number)) => out.push_str(&number.to_string()),
            ('f', Value::Double(number)) => out.push_str(&format!("{number:.precision$}")),
            ('f', Value::Int(number)) => out.push_str(&format!("{number}.{:0<precision$}", "")),
            ('e', Value::Double(number)) => out.push_str(&format!("{number:.precision$e}")),
            ('b', Value::Int(number)) => out.push_str(&format!("{number:b}")),
            ('b', Value::Bool(value)) => out.push(if *value { '1' } else { '0' }),
            ('o', Value::Int(number)) => out.push_str(&format!("{number:o}")),
            ('x', Value::Int(number)) => out.push_str(&format!("{number:x}")),
            ('X', Value::Int(number)) => out.push_str(&format!("{number:X}")),
            ('x', Value::String(text)) => {
                text.bytes().for_each(|byte| out.push_str(&format!("{byte:02x}")));
            }
            ('X', Value::String(text)) => {
                text.bytes().for_each(|byte| out.push_str(&format!("{byte:02X}")));
            }
            (verb, value) => {
                return failed(format!(
                    "error during formatting: %{verb} does not fit {}",
                    value.type_name()
                ));
            }
        }
    }
    Ok(Value::from(out))
}

/// A value as `%s` shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::List(items) => {
            let all: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Map(entries) => {
            let all: Vec<String> =
                entries.iter().map(|(key, value)| format!("{key}: {}", shown(value))).collect();
            format!("{{{}}}", all.join(", "))
        }
        Value::Null => "null".to_owned(),
        other => other.to_string().trim_matches('"').to_owned(),
    }
}
