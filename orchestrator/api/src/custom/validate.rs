//! Whether an object keeps what its schema asks, in upstream's words.

use std::net::IpAddr;

use objects::{Cause, time::parse_time};
use serde_json::{Value, json};

use super::structural::{Additional, Limits, ListType, Structural};

/// Holds an object against its schema.
pub(crate) fn validate(shape: &Structural, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut root = shape.clone();
    for name in ["apiVersion", "kind", "metadata"] {
        // These are the server's own; a definition may only narrow `metadata.name`.
        root.properties.remove(name);
    }
    root.kind = "object".to_owned();
    check(&root, object, "", &mut causes);
    if let Some(metadata) = shape.properties.get("metadata")
        && let Some(value) = object.get("metadata")
    {
        check(metadata, value, "metadata", &mut causes);
    }
    causes
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(kind: &str, value: &Value) -> bool {
    match (kind, value) {
        ("integer", Value::Number(number)) => {
            !number.is_f64() || number.as_f64().is_some_and(|float| float.fract() == 0.0)
        }
        ("number", Value::Number(_))
        | ("boolean", Value::Bool(_))
        | ("string", Value::String(_))
        | ("array", Value::Array(_))
        | ("object", Value::Object(_)) => true,
        _ => false,
    }
}

/// A broken rule about one place.
fn broken(path: &str, value: &Value, why: &str) -> Cause {
    Cause::invalid(path, value, &format!("{path} in body {why}"))
}

fn other(reason: &str, path: &str, message: String) -> Cause {
    Cause { reason: reason.to_owned(), message, field: path.to_owned() }
}

fn wrong_type(path: &str, value: &Value, wanted: &str) -> Cause {
    let shown = format!("\"{}\"", type_of(value));
    let message =
        format!("Invalid value: {shown}: {path} in body must be of type {wanted}: {shown}");
    other("FieldValueTypeInvalid", path, message)
}

fn check(shape: &Structural, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() {
        if !shape.nullable && !shape.kind.is_empty() {
            causes.push(wrong_type(path, value, &shape.kind));
        }
        return;
    }
    if shape.int_or_string {
        if !has_type("integer", value) && !value.is_string() {
            causes.push(wrong_type(path, value, "integer,string"));
            return;
        }
    } else if !shape.kind.is_empty() && !has_type(&shape.kind, value) {
        causes.push(wrong_type(path, value, &shape.kind));
        return;
    }
    check_value(shape, value, path, causes);
    match value {
        Value::Object(fields) => {
            check_counts(&shape.limits, path, fields.len(), "properties", causes);
            for name in &shape.required {
                if !fields.contains_key(name) {
                    causes.push(Cause::required(join(path, name), ""));
                }
            }
            for (name, value) in fields {
                if let Some(inner) = shape.properties.get(name) {
                    check(inner, value, &join(path, name), causes);
                } else if let Additional::Schema(inner) = &shape.additional {
                    check(inner, value, &join(path, name), causes);
                }
            }
            if shape.embedded {
                check_embedded(value, path, causes);
            }
        }
        Value::Array(items) => {
            check_counts(&shape.limits, path, items.len(), "items", causes);
            check_list(shape, items, path, causes);
            if let Some(inner) = &shape.items {
                for (at, item) in items.iter().enumerate() {
                    check(inner, item, &format!("{path}[{at}]"), causes);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    check_junctors(shape, value, path, causes);
}

fn check_embedded(value: &Value, path: &str, causes: &mut Vec<Cause>) {
    for name in ["apiVersion", "kind"] {
        if value.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
            causes.push(Cause::required(join(path, name), "must not be empty"));
        }
    }
}

fn check_counts(limits: &Limits, path: &str, count: usize, what: &str, causes: &mut Vec<Cause>) {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let (low, high) = match what {
        "items" => (limits.items_min, limits.items_max),
        _ => (limits.properties_min, limits.properties_max),
    };
    if let Some(low) = low.filter(|low| count < *low) {
        let why = format!("should have at least {low} {what}");
        causes.push(broken(path, &json!(count), &why));
    }
    if let Some(high) = high.filter(|high| count > *high) {
        let message = format!("Too many: {count}: must have at most {high} items");
        causes.push(other("FieldValueTooMany", path, message));
    }
}

fn check_list(shape: &Structural, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let keys = |item: &Value| -> Value {
        match &shape.list {
            ListType::Map(keys) => {
                let pairs = keys
                    .iter()
                    .filter_map(|key| item.get(key).map(|value| (key.clone(), value.clone())));
                Value::Object(pairs.collect())
            }
            ListType::Set | ListType::Atomic => item.clone(),
        }
    };
    if shape.list == ListType::Atomic {
        if shape.limits.unique
            && items
                .iter()
                .enumerate()
                .any(|(at, one)| items.iter().take(at).any(|before| before == one))
        {
            causes.push(broken(
                path,
                &Value::Array(items.to_vec()),
                "shouldn't contain duplicates",
            ));
        }
        return;
    }
    let mut seen: Vec<Value> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let key = keys(item);
        if seen.contains(&key) {
            causes.push(Cause::duplicate(format!("{path}[{at}]"), &key));
        } else {
            seen.push(key);
        }
    }
}

fn check_value(shape: &Structural, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !shape.allowed.is_empty() && !shape.allowed.contains(value) {
        let allowed: Vec<String> = shape.allowed.iter().map(Value::to_string).collect();
        let message =
            format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        causes.push(other("FieldValueNotSupported", path, message));
    }
    match value {
        Value::Number(_) => check_number(&shape.limits, value, path, causes),
        Value::String(text) => check_text(shape, text, path, causes),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {}
    }
    if let Value::Number(number) = value {
        let fits = match shape.format.as_str() {
            "int32" => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            "int64" => number.as_i64().is_some(),
            _ => true,
        };
        if !fits {
            let why = format!("must be of type {}: {value}", shape.format);
            causes.push(broken(path, value, &why));
        }
    }
}

fn check_number(limits: &Limits, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(number) = value.as_f64() else { return };
    if let Some(high) = limits.maximum {
        if limits.below && number >= high {
            causes.push(broken(path, value, &format!("should be less than {high}")));
        } else if number > high {
            causes.push(broken(path, value, &format!("should be less than or equal to {high}")));
        }
    }
    if let Some(low) = limits.minimum {
        if limits.above && number <= low {
            causes.push(broken(path, value, &format!("should be greater than {low}")));
        } else if number < low {
            causes.push(broken(path, value, &format!("should be greater than or equal to {low}")));
        }
    }
    if let Some(step) = limits.multiple_of.filter(|step| *step != 0.0)
        && (number / step).fract() != 0.0
    {
        causes.push(broken(path, value, &format!("should be a multiple of {step}")));
    }
}

fn check_text(shape: &Structural, text: &str, path: &str, causes: &mut Vec<Cause>) {
    let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    let value = json!(text);
    if let Some(high) = shape.limits.length_max.filter(|high| length > *high) {
        let message = format!("Too long: may not be more than {high} bytes");
        causes.push(other("FieldValueTooLong", path, message));
    }
    if let Some(low) = shape.limits.length_min.filter(|low| length < *low) {
        causes.push(broken(path, &value, &format!("should be at least {low} chars long")));
    }
    if let Some((pattern, regex)) = &shape.pattern
        && !regex.is_match(text)
    {
        causes.push(broken(path, &value, &format!("should match '{pattern}'")));
    }
    if !shape.format.is_empty() && !has_format(&shape.format, text) {
        let why = format!("must be of type {}: {value}", shape.format);
        causes.push(broken(path, &value, &why));
    }
}

/// Does a text have a format? Formats nobody knows fit everything, as in upstream.
fn has_format(format: &str, text: &str) -> bool {
    let digits = |from: usize, to: usize| {
        text.get(from..to).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match format {
        "date-time" | "datetime" => parse_time(text).is_some(),
        "date" => {
            text.len() == 10
                && digits(0, 4)
                && digits(5, 7)
                && digits(8, 10)
                && text.parse::<jiff::civil::Date>().is_ok()
        }
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "ip" => text.parse::<IpAddr>().is_ok(),
        "cidr" => is_cidr(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "email" => text.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && !host.contains('@')
        }),
        "hostname" => objects::name::check_dns_subdomain(&text.to_ascii_lowercase()).is_ok(),
        "uri" => text.split_once(':').is_some_and(|(scheme, rest)| {
            !scheme.is_empty() && !rest.is_empty() && !text.contains(' ')
        }),
        "mac" => text
            .split([':', '-'])
            .all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit())),
        "duration" => is_duration(text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| {
        let max = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u8>().is_ok_and(|length| length <= max)
    })
}

/// Go's durations: `1h15m30.918s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let end = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let tail = rest.get(end..).unwrap_or("");
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h", "d", "w"]
            .into_iter()
            .filter(|unit| tail.starts_with(unit))
            .max_by_key(|unit| unit.len());
        match unit {
            Some(unit) if end > 0 => rest = tail.get(unit.len()..).unwrap_or(""),
            _ => return false,
        }
    }
    true
}

fn fits(shape: &Structural, value: &Value, path: &str) -> bool {
    let mut causes = Vec::new();
    check(shape, value, path, &mut causes);
    causes.is_empty()
}

fn check_junctors(shape: &Structural, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !shape.any_of.is_empty() && !shape.any_of.iter().any(|one| fits(one, value, path)) {
        let why = "must validate at least one schema (anyOf)";
        causes.push(Cause::invalid(path, &shown(value), &format!("{path} in body {why}")));
    }
    if !shape.one_of.is_empty() {
        let count = shape.one_of.iter().filter(|one| fits(one, value, path)).count();
        if count != 1 {
            let found = if count == 0 {
                "Found none valid".to_owned()
            } else {
                format!("Found {count} valid alternatives")
            };
            let why = format!("must validate one and only one schema (oneOf). {found}");
            causes.push(Cause::invalid(path, &shown(value), &format!("{path} in body {why}")));
        }
    }
    let before = causes.len();
    for one in &shape.all_of {
        check(one, value, path, causes);
    }
    if causes.len() > before {
        let why = "must validate all the schemas (allOf)";
        causes.push(Cause::invalid(path, &shown(value), &format!("{path} in body {why}")));
    }
    if let Some(not) = &shape.not
        && fits(not, value, path)
    {
        let why = "must not validate the schema (not)";
        causes.push(Cause::invalid(path, &shown(value), &format!("{path} in body {why}")));
    }
}

/// A value in a message: large ones only by their type.
fn shown(value: &Value) -> Value {
    match value {
        Value::Array(_) | Value::Object(_) => json!(type_of(value)),
        small => small.clone(),
    }
}

/// Holds a part of an object, such as a default, against its schema.
pub(crate) fn validate_part(shape: &Structural, value: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    check(shape, value, path, &mut causes);
    causes
}
