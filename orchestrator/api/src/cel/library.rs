//! The functions: CEL's own, and those Kubernetes adds.
//!
//! Grouped as upstream groups its libraries: operators and conversions here, texts, lists, sets and
//! Kubernetes' own types below.
//!
//! Spec: the Common Expression Language definition, "Standard definitions"; Kubernetes' CEL
//! libraries (strings, lists, regex, url, quantity, ip, cidr, semver, sets, format, authorizer).

mod list;
mod own;
mod text;

use std::sync::Arc;

use super::{
    authorizer::Authorizer,
    eval::{Budget, EvalError, failed},
    value::Value,
};

pub(crate) use own::parse_duration;

/// What a library says to a call: its value, or that the function is not one of its own.
type Answer = Option<Result<Value, EvalError>>;

/// Nanoseconds in a second.
const SECOND: i128 = 1_000_000_000;

/// The type a name stands for.
pub(crate) fn type_of_name(name: &str) -> Option<&'static str> {
    [
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "optional_type",
    ]
    .into_iter()
    .find(|known| *known == name)
}

/// Calls a function.
pub(crate) fn call(
    function: &str,
    target: Option<&Value>,
    args: &[Value],
    budget: &mut Budget,
    authorizer: Option<&dyn Authorizer>,
) -> Result<Value, EvalError> {
    let answer = operator(function, args, budget)
        .or_else(|| conversion(function, target, args))
        .or_else(|| text::call(function, target, args, budget))
        .or_else(|| list::call(function, target, args, budget))
        .or_else(|| own::call(function, target, args))
        .or_else(|| own::ask(function, target, args, budget, authorizer));
    answer.unwrap_or_else(|| {
        let mut types: Vec<&str> = args.iter().map(Value::type_name).collect();
        let receiver = target.map(|target| format!("{}.", target.type_name()));
        let list = std::mem::take(&mut types).join(", ");
        failed(format!(
            "found no matching overload for '{function}' applied to '{}({list})'",
            receiver.unwrap_or_default()
        ))
    })
}

fn overflow<T>(value: Option<T>, kind: &str) -> Result<T, EvalError> {
    value.ok_or_else(|| EvalError::Failed(format!("{kind} overflow")))
}

fn operator(function: &str, args: &[Value], budget: &mut Budget) -> Answer {
    match (function, args) {
        ("!_", [Value::Bool(value)]) => Some(Ok(Value::Bool(!value))),
        ("-_", [Value::Int(number)]) => {
            Some(overflow(number.checked_neg(), "integer").map(Value::Int))
        }
        ("-_", [Value::Double(number)]) => Some(Ok(Value::Double(-number))),
        ("_==_", [a, b]) => Some(pay(a, b, budget).map(|()| Value::Bool(a.equals(b)))),
        ("_!=_", [a, b]) => Some(pay(a, b, budget).map(|()| Value::Bool(!a.equals(b)))),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            let order = a.order(b)?;
            Some(pay(a, b, budget).map(|()| {
                Value::Bool(match function {
                    "_<_" => order.is_lt(),
                    "_<=_" => order.is_le(),
                    "_>_" => order.is_gt(),
                    _ => order.is_ge(),
                })
            }))
        }
        ("@in", [one, Value::List(items)]) => Some(
            budget
                .spend_size(items.len(), 1)
                .map(|()| Value::Bool(items.iter().any(|item| item.equals(one)))),
        ),
        ("@in", [one, Value::Map(entries)]) => {
            Some(Ok(Value::Bool(one.key().is_some_and(|key| entries.contains_key(&key)))))
        }
        ("_+_", [a, b]) => add(a, b, budget),
        ("_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(function, a, b),
        _ => None,
    }
}

/// Comparing long values costs more.
fn pay(a: &Value, b: &Value, budget: &mut Budget) -> Result<(), EvalError> {
    let size = |value: &Value| match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items) => items.len().saturating_mul(10),
        Value::Map(entries) => entries.len().saturating_mul(10),
        _ => 1,
    };
    budget.spend_size(size(a).min(size(b)), 10)
}

fn add(a: &Value, b: &Value, budget: &mut Budget) -> Answer {
    Some(match (a, b) {
        (Value::String(a), Value::String(b)) => budget
            .spend_size(a.len().saturating_add(b.len()), 10)
            .map(|()| Value::from(format!("{a}{b}"))),
        (Value::Bytes(a), Value::Bytes(b)) => budget
            .spend_size(a.len().saturating_add(b.len()), 10)
            .map(|()| Value::Bytes([&**a, &**b].concat().into())),
        (Value::List(a), Value::List(b)) => budget
            .spend_size(a.len().saturating_add(b.len()), 10)
            .map(|()| Value::list(a.iter().chain(b.iter()).cloned().collect())),
        (Value::Timestamp(at), Value::Duration(by))
        | (Value::Duration(by), Value::Timestamp(at)) => moved(*at, *by),
        (Value::Duration(a), Value::Duration(b)) => Ok(Value::Duration(a.saturating_add(*b))),
        _ => return arithmetic("_+_", a, b),
    })
}

fn moved(at: jiff::Timestamp, by: i128) -> Result<Value, EvalError> {
    let nanos = at.as_nanosecond().saturating_add(by);
    overflow(jiff::Timestamp::from_nanosecond(nanos).ok(), "timestamp").map(Value::Timestamp)
}

fn arithmetic(function: &str, a: &Value, b: &Value) -> Answer {
    let by_zero = |what: &str| failed(format!("{what} by zero"));
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => match function {
            "_+_" => overflow(a.checked_add(*b), "integer"),
            "_-_" => overflow(a.checked_sub(*b), "integer"),
            "_*_" => overflow(a.checked_mul(*b), "integer"),
            "_/_" if *b == 0 => return Some(by_zero("division")),
            "_%_" if *b == 0 => return Some(by_zero("modulus")),
            "_/_" => overflow(a.checked_div(*b), "integer"),
            _ => overflow(a.checked_rem(*b), "integer"),
        }
        .map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => match function {
            "_+_" => overflow(a.checked_add(*b), "unsigned integer"),
            "_-_" => overflow(a.checked_sub(*b), "unsigned integer"),
            "_*_" => overflow(a.checked_mul(*b), "unsigned integer"),
            "_/_" if *b == 0 => return Some(by_zero("division")),
            "_%_" if *b == 0 => return Some(by_zero("modulus")),
            "_/_" => overflow(a.checked_div(*b), "unsigned integer"),
            _ => overflow(a.checked_rem(*b), "unsigned integer"),
        }
        .map(Value::Uint),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match function {
            "_+_" => a + b,
            "_-_" => a - b,
            "_*_" => a * b,
            "_/_" => a / b,
            _ => return None,
        })),
        (Value::Timestamp(at), Value::Duration(by)) if function == "_-_" => {
            moved(*at, by.saturating_neg())
        }
        (Value::Timestamp(a), Value::Timestamp(b)) if function == "_-_" => {
            Ok(Value::Duration(a.as_nanosecond().saturating_sub(b.as_nanosecond())))
        }
        (Value::Duration(a), Value::Duration(b)) if function == "_-_" => {
            Ok(Value::Duration(a.saturating_sub(*b)))
        }
        _ => return None,
    })
}

fn conversion(function: &str, target: Option<&Value>, args: &[Value]) -> Answer {
    if let Some(target) = target {
        return time_part(function, target, args);
    }
    let [value] = args else {
        return match (function, args) {
            ("optional.none", []) => Some(Ok(Value::Optional(None))),
            _ => None,
        };
    };
    Some(match (function, value) {
        ("dyn", value) => Ok(value.clone()),
        ("type", value) => Ok(Value::Type(value.type_name().into())),
        ("optional.of", value) => Ok(Value::Optional(Some(Arc::new(value.clone())))),
        ("optional.ofNonZeroValue", value) => {
            Ok(Value::Optional((!is_zero(value)).then(|| Arc::new(value.clone()))))
        }
        ("int", value) => to_int(value)?,
        ("uint", Value::Uint(_))
        | ("double", Value::Double(_))
        | ("string", Value::String(_))
        | ("bool", Value::Bool(_))
        | ("bytes", Value::Bytes(_))
        | ("timestamp", Value::Timestamp(_))
        | ("duration", Value::Duration(_)) => Ok(value.clone()),
        ("uint", Value::Int(number)) => {
            overflow(u64::try_from(*number).ok(), "unsigned integer").map(Value::Uint)
        }
        ("uint", Value::Double(number)) => {
            overflow(format!("{}", number.trunc()).parse().ok(), "unsigned integer")
                .map(Value::Uint)
        }
        ("uint", Value::String(text)) => parsed(text, "uint").map(Value::Uint),
        ("double", Value::Int(number)) => parsed(&number.to_string(), "double").map(Value::Double),
        ("double", Value::Uint(number)) => parsed(&number.to_string(), "double").map(Value::Double),
        ("double", Value::String(text)) => parsed(text, "double").map(Value::Double),
        ("string", Value::Bytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::from(text)),
            Err(_) => failed("invalid UTF-8 in bytes, cannot convert to string"),
        },
        ("string", Value::List(_) | Value::Map(_) | Value::Null | Value::Type(_)) => return None,
        ("string", value) => {
            let shown = value.to_string();
            Ok(Value::from(shown.trim_matches('"')))
        }
        ("bytes", Value::String(text)) => Ok(Value::Bytes(text.as_bytes().into())),
        ("bool", Value::String(text)) => match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
            _ => failed("type conversion error from 'string' to 'bool'"),
        },
        ("timestamp", Value::String(text)) => match objects::time::parse_time(text) {
            Some(at) => Ok(Value::Timestamp(at)),
            None => failed(format!("parsing time \"{text}\": not RFC 3339")),
        },
        ("timestamp", Value::Int(seconds)) => {
            overflow(jiff::Timestamp::from_second(*seconds).ok(), "timestamp").map(Value::Timestamp)
        }
        ("duration", Value::String(text)) => match parse_duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => failed(format!("time: invalid duration \"{text}\"")),
        },
        _ => return None,
    })
}

fn parsed<T: std::str::FromStr>(text: &str, kind: &str) -> Result<T, EvalError> {
    text.parse()
        .map_err(|_| EvalError::Failed(format!("type conversion error from 'string' to '{kind}'")))
}

fn to_int(value: &Value) -> Answer {
    Some(match value {
        Value::Int(_) => Ok(value.clone()),
        Value::Uint(number) => overflow(i64::try_from(*number).ok(), "integer").map(Value::Int),
        Value::Double(number) => {
            overflow(format!("{}", number.trunc()).parse().ok(), "integer").map(Value::Int)
        }
        Value::String(text) => parsed(text, "int").map(Value::Int),
        Value::Timestamp(at) => Ok(Value::Int(at.as_second())),
        Value::Duration(nanos) => {
            overflow(i64::try_from(nanos / SECOND).ok(), "integer").map(Value::Int)
        }
        _ => return None,
    })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(value) => !value,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        Value::Duration(nanos) => *nanos == 0,
        Value::Timestamp(_) | Value::Type(_) | Value::Optional(Some(_)) | Value::Own(_) => false,
    }
}

/// `getHours()` and its kin, and what optionals are asked.
fn time_part(function: &str, target: &Value, args: &[Value]) -> Answer {
    match (target, function, args) {
        (Value::Optional(held), "hasValue", []) => Some(Ok(Value::Bool(held.is_some()))),
        (Value::Optional(held), "value", []) => Some(match held {
            Some(inner) => Ok((**inner).clone()),
            None => failed("optional.none() dereference"),
        }),
        (Value::Duration(nanos), _, []) => {
            let seconds = nanos / SECOND;
            let number = match function {
                "getHours" => seconds / 3600,
                "getMinutes" => seconds / 60,
                "getSeconds" => seconds,
                "getMilliseconds" => nanos / 1_000_000 % 1000,
                _ => return None,
            };
            Some(overflow(i64::try_from(number).ok(), "integer").map(Value::Int))
        }
        (Value::Timestamp(at), _, [] | [Value::String(_)]) if function.starts_with("get") => {
            let zone = match args {
                [Value::String(zone)] => match zone_of(zone) {
                    Some(zone) => zone,
                    None => return Some(failed(format!("unknown time zone {zone}"))),
                },
                _ => jiff::tz::TimeZone::UTC,
            };
            let at = at.to_zoned(zone);
            let number = match function {
                "getFullYear" => i64::from(at.year()),
                "getMonth" => i64::from(at.month()).saturating_sub(1),
                "getDate" => i64::from(at.day()),
                "getDayOfMonth" => i64::from(at.day()).saturating_sub(1),
                "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
                "getDayOfYear" => i64::from(at.day_of_year()).saturating_sub(1),
                "getHours" => i64::from(at.hour()),
                "getMinutes" => i64::from(at.minute()),
                "getSeconds" => i64::from(at.second()),
                "getMilliseconds" => i64::from(at.millisecond()),
                _ => return None,
            };
            Some(Ok(Value::Int(number)))
        }
        _ => None,
    }
}

/// `UTC` and fixed offsets (`-08:00`); there is no database of zones here.
fn zone_of(name: &str) -> Option<jiff::tz::TimeZone> {
    if name == "UTC" {
        return Some(jiff::tz::TimeZone::UTC);
    }
    let (sign, rest) = match name.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, name.strip_prefix('+').unwrap_or(name)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
    let offset = jiff::tz::Offset::from_seconds(seconds.checked_mul(sign)?).ok()?;
    Some(jiff::tz::TimeZone::fixed(offset))
}
