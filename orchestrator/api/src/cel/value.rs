//! Values of expressions, and how they come from and go to JSON.

use std::{cmp::Ordering, collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use crate::custom::Structural;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Value>>),
    Map(Arc<BTreeMap<Key, Value>>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i128),
    Type(Arc<str>),
    Optional(Option<Arc<Value>>),
    /// A value of one of Kubernetes' own types.
    Own(Arc<Own>),
}

/// The keys of maps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

/// Kubernetes' own types.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Own {
    Quantity(objects::Quantity),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Url),
    Semver(Semver),
    /// A question to the authorizer, as far as it was put together.
    Question(Question),
    /// The authorizer's answer: allowed, and why (not).
    Decision(bool, String),
}

/// A URL in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) query: String,
}

/// A semantic version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Semver {
    pub(crate) numbers: [u64; 3],
    pub(crate) pre: Vec<String>,
}

/// What the authorizer is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) path: Option<String>,
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Namespace and name of the service account that is asked about; the requester when absent.
    pub(crate) account: Option<(String, String)>,
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<Own> for Value {
    fn from(value: Own) -> Self {
        Self::Own(Arc::new(value))
    }
}

impl Value {
    /// A list of these.
    pub(crate) fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    /// A count as a number.
    pub(crate) fn count(count: usize) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// The name of the value's type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Own(own) => match **own {
                Own::Quantity(_) => "kubernetes.Quantity",
                Own::Ip(_) => "net.IP",
                Own::Cidr(..) => "net.CIDR",
                Own::Url(_) => "kubernetes.URL",
                Own::Semver(_) => "kubernetes.Semver",
                Own::Question(_) => "kubernetes.authorization.Authorizer",
                Own::Decision(..) => "kubernetes.authorization.Decision",
            },
        }
    }

    /// The value as a key, if it may be one. Whole numbers are one key whatever their type.
    pub(crate) fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(value) => Key::Bool(*value),
            Self::Int(number) => Key::Int(*number),
            Self::Uint(number) => i64::try_from(*number).map_or(Key::Uint(*number), Key::Int),
            Self::Double(number) if number.fract() == 0.0 => {
                // Only a whole number can be equal to one.
                Key::Int(format!("{number}").parse().ok()?)
            }
            Self::String(text) => Key::String(Arc::clone(text)),
            _ => return None,
        })
    }

    /// Equality across the types of numbers.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, value)| b.get(key).is_some_and(|b| value.equals(b)))
            }
            (Self::Optional(Some(a)), Self::Optional(Some(b))) => a.equals(b),
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), _) => {
                self.order(other) == Some(Ordering::Equal)
            }
            _ => self == other,
        }
    }

    /// The order of two values, where they have one.
    pub(crate) fn order(&self, other: &Self) -> Option<Ordering> {
        let wide = |value: &Self| match value {
            Self::Int(number) => Some(i128::from(*number)),
            Self::Uint(number) => Some(i128::from(*number)),
            _ => None,
        };
        if let (Some(a), Some(b)) = (wide(self), wide(other)) {
            return Some(a.cmp(&b));
        }
        match (self, other) {
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Double(a), _) => a.partial_cmp(&float(wide(other)?)),
            (_, Self::Double(b)) => float(wide(self)?).partial_cmp(b),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// A value of what JSON says, without a schema.
    pub(crate) fn of_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(whole) => Self::Int(whole),
                None => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::from(text.as_str()),
            Json::Array(items) => Self::list(items.iter().map(Self::of_json).collect()),
            Json::Object(fields) => {
                let pairs = fields
                    .iter()
                    .map(|(name, value)| (Key::String(name.as_str().into()), Self::of_json(value)));
                Self::Map(Arc::new(pairs.collect()))
            }
        }
    }

    /// A value of what JSON says where a schema tells more: numbers, times, bytes.
    pub(crate) fn of_schema(shape: &Structural, json: &Json) -> Self {
        match json {
            Json::Number(number) if shape.kind == "number" => {
                Self::Double(number.as_f64().unwrap_or(f64::NAN))
            }
            Json::String(text) => match shape.format.as_str() {
                "date-time" | "datetime" => objects::time::parse_time(text)
                    .map_or_else(|| Self::from(text.as_str()), Self::Timestamp),
                "date" => objects::time::parse_time(&format!("{text}T00:00:00Z"))
                    .map_or_else(|| Self::from(text.as_str()), Self::Timestamp),
                "duration" => super::library::parse_duration(text)
                    .map_or_else(|| Self::from(text.as_str()), Self::Duration),
                "byte" => STANDARD
                    .decode(text)
                    .map_or_else(|_| Self::from(text.as_str()), |bytes| Self::Bytes(bytes.into())),
                _ => Self::from(text.as_str()),
            },
            Json::Array(items) => match &shape.items {
                Some(inner) => {
                    Self::list(items.iter().map(|item| Self::of_schema(inner, item)).collect())
                }
                None => Self::of_json(json),
            },
            Json::Object(fields) => {
                let pairs = fields.iter().map(|(name, value)| {
                    let made = match (shape.properties.get(name), shape.additional_schema()) {
                        (Some(inner), _) | (None, Some(inner)) => Self::of_schema(inner, value),
                        (None, None) => Self::of_json(value),
                    };
                    (Key::String(name.as_str().into()), made)
                });
                Self::Map(Arc::new(pairs.collect()))
            }
            other => Self::of_json(other),
        }
    }

    /// The value as JSON; `None` for what JSON has no words for.
    pub(crate) fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null | Self::Optional(None) => Json::Null,
            Self::Bool(value) => json!(value),
            Self::Int(number) => json!(number),
            Self::Uint(number) => json!(number),
            Self::Double(number) => json!(number),
            Self::String(text) => Json::String(text.to_string()),
            Self::Bytes(bytes) => json!(STANDARD.encode(bytes)),
            Self::List(items) => {
                Json::Array(items.iter().map(Self::to_json).collect::<Option<_>>()?)
            }
            Self::Map(entries) => {
                let mut fields = serde_json::Map::new();
                for (key, value) in entries.iter() {
                    fields.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(fields)
            }
            Self::Timestamp(at) => json!(at.to_string()),
            Self::Duration(_) => json!(self.to_string()),
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Own(own) => match &**own {
                Own::Quantity(quantity) => json!(quantity.to_string()),
                Own::Ip(address) => json!(address.to_string()),
                Own::Cidr(address, bits) => json!(format!("{address}/{bits}")),
                Own::Url(_) | Own::Semver(_) | Own::Question(_) | Own::Decision(..) => return None,
            },
            Self::Type(_) => return None,
        })
    }
}

fn float(number: i128) -> f64 {
    // Through text, for a lossy cast is a lossy cast wherever it stands; rare enough to be slow.
    number.to_string().parse().unwrap_or(f64::NAN)
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Uint(number) => write!(f, "{number}"),
            Self::String(text) => f.write_str(text),
        }
    }
}

impl Key {
    /// The key as a value.
    pub(crate) fn value(&self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(number) => Value::Int(*number),
            Self::Uint(number) => Value::Uint(*number),
            Self::String(text) => Value::String(Arc::clone(text)),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            Self::Type(name) => f.write_str(name),
            Self::Double(number) => write!(f, "{number}"),
            Self::Duration(nanos) => {
                let (whole, rest) = (nanos / 1_000_000_000, (nanos % 1_000_000_000).abs());
                let sign = if *nanos < 0 && whole == 0 { "-" } else { "" };
                let fraction = format!("{rest:09}");
                let fraction = fraction.trim_end_matches('0');
                let dot = if fraction.is_empty() { "" } else { "." };
                write!(f, "{sign}{whole}{dot}{fraction}s")
            }
            other => match other.to_json() {
                Some(json) => write!(f, "{json}"),
                None => f.write_str(other.type_name()),
            },
        }
    }
}
