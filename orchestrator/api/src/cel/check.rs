//! What an expression comes to, and whether it speaks only of what there is.

use std::collections::BTreeMap;

use super::parse::{Expr, Fold, Kind, Loop};
use super::value::Value;
use crate::custom::Structural;
use crate::schema::{Node, Scalar, Type, builtin};

/// What is known of a value before it is there.
#[derive(Debug, Clone)]
pub(crate) enum Sort<'a> {
    /// Anything.
    Dyn,
    /// A scalar by its CEL name.
    Scalar(&'static str),
    /// A list.
    List(Box<Sort<'a>>),
    /// A map from text.
    Map(Box<Sort<'a>>),
    /// What the schema of a custom kind says.
    Shape(&'a Structural),
    /// What the built-in table says.
    Type(&'static Type),
    /// These members and no others.
    Members(BTreeMap<String, Sort<'a>>),
}

type Wrong = (usize, String);

/// Works out the sort of an expression.
pub(crate) fn check<'a>(
    expr: &Expr,
    names: &BTreeMap<String, Sort<'a>>,
) -> Result<Sort<'a>, Wrong> {
    Checker { names, locals: Vec::new() }.sort(expr)
}

/// Does an expression speak of a name?
pub(crate) fn names(expr: &Expr, name: &str) -> bool {
    let mut found = false;
    walk(expr, &mut |one| found |= matches!(&one.kind, Kind::Ident(known) if known == name));
    found
}

/// Visits every part of an expression.
pub(crate) fn walk(expr: &Expr, visit: &mut dyn FnMut(&Expr)) {
    visit(expr);
    match &expr.kind {
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } | Kind::Has { operand, .. } => walk(operand, visit),
        Kind::Index { operand, index, .. } => {
            walk(operand, visit);
            walk(index, visit);
        }
        Kind::Call { target, args, .. } => {
            target.iter().for_each(|target| walk(target, visit));
            args.iter().for_each(|arg| walk(arg, visit));
        }
        Kind::List(items) => items.iter().for_each(|(item, _)| walk(item, visit)),
        Kind::Map(entries) => entries.iter().for_each(|(key, value, _)| {
            walk(key, visit);
            walk(value, visit);
        }),
        Kind::Struct { fields, .. } => {
            fields.iter().for_each(|(_, value, _)| walk(value, visit));
        }
        Kind::And(a, b) | Kind::Or(a, b) => {
            walk(a, visit);
            walk(b, visit);
        }
        Kind::Conditional(a, b, c) => [a, b, c].into_iter().for_each(|one| walk(one, visit)),
        Kind::Loop(one) => {
            walk(&one.range, visit);
            one.filter.iter().chain(&one.body).for_each(|part| walk(part, visit));
        }
        Kind::Bind { value, result, .. } => {
            walk(value, visit);
            walk(result, visit);
        }
    }
}

struct Checker<'n, 'a> {
    names: &'n BTreeMap<String, Sort<'a>>,
    locals: Vec<(String, Sort<'a>)>,
}

/// The sort of a value of a schema.
fn shape_sort<'a>(shape: &'a Structural) -> Sort<'a> {
    if shape.int_or_string {
        return Sort::Dyn;
    }
    match (shape.kind.as_str(), shape.format.as_str()) {
        ("string", "date-time" | "datetime" | "date") => Sort::Scalar("google.protobuf.Timestamp"),
        ("string", "duration") => Sort::Scalar("google.protobuf.Duration"),
        ("string", "byte") => Sort::Scalar("bytes"),
        ("string", _) => Sort::Scalar("string"),
        ("integer", _) => Sort::Scalar("int"),
        ("number", _) => Sort::Scalar("double"),
        ("boolean", _) => Sort::Scalar("bool"),
        ("array", _) => match &shape.items {
            Some(items) => Sort::List(Box::new(shape_sort(items))),
            None => Sort::List(Box::new(Sort::Dyn)),
        },
        ("object", _) => match shape.additional_schema() {
            Some(inner) => Sort::Map(Box::new(shape_sort(inner))),
            None => Sort::Shape(shape),
        },
        _ => Sort::Dyn,
    }
}

/// The sort of a value of a built-in type.
fn node_sort<'a>(node: &'static Node) -> Sort<'a> {
    match node {
        Node::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Quantity => Sort::Scalar("string"),
            Scalar::Byte => Sort::Scalar("bytes"),
            Scalar::Boolean => Sort::Scalar("bool"),
            Scalar::Int32 | Scalar::Int64 | Scalar::Integer => Sort::Scalar("int"),
            Scalar::Number => Sort::Scalar("double"),
            Scalar::Time | Scalar::MicroTime => Sort::Scalar("google.protobuf.Timestamp"),
            Scalar::IntOrString => Sort::Dyn,
        },
        Node::Object(id) => builtin().get(*id).map_or(Sort::Dyn, Sort::Type),
        Node::List(item) => Sort::List(Box::new(node_sort(item))),
        Node::Map(value) => Sort::Map(Box::new(node_sort(value))),
        Node::Any => Sort::Dyn,
    }
}

impl<'a> Sort<'a> {
    /// The sort of what a schema describes.
    pub(crate) fn of(shape: &'a Structural) -> Self {
        shape_sort(shape)
    }

    fn shown(&self) -> String {
        match self {
            Self::Dyn => "dyn".to_owned(),
            Self::Scalar(name) => (*name).to_owned(),
            Self::List(inner) => format!("list({})", inner.shown()),
            Self::Map(inner) => format!("map(string, {})", inner.shown()),
            Self::Shape(_) | Self::Type(_) | Self::Members(_) => "object".to_owned(),
        }
    }

    /// Is it certainly not of the other's sort?
    fn clashes(&self, other: &Self) -> bool {
        let numbers = ["int", "uint", "double"];
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => false,
            (Self::Scalar("null_type"), _) | (_, Self::Scalar("null_type")) => false,
            (Self::Scalar(a), Self::Scalar(b)) => {
                a != b && !(numbers.contains(a) && numbers.contains(b))
            }
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) => a.clashes(b),
            (Self::Scalar(_), _) | (_, Self::Scalar(_)) => true,
            (Self::List(_), _) | (_, Self::List(_)) => true,
            _ => false,
        }
    }
}

impl<'a> Checker<'_, 'a> {
    fn sort(&mut self, expr: &Expr) -> Result<Sort<'a>, Wrong> {
        match &expr.kind {
            Kind::Literal(value) => Ok(literal(value)),
            Kind::Ident(name) => self.name(expr.at, name),
            Kind::Select { operand, field, optional } => {
                if let Kind::Ident(space) = &operand.kind
                    && super::library::type_of_name(&format!("{space}.{field}")).is_some()
                {
                    return Ok(Sort::Scalar("type"));
                }
                let inner = self.sort(operand)?;
                let found = field_sort(&inner, field, expr.at)?;
                Ok(if *optional { Sort::Dyn } else { found })
            }
            Kind::Has { operand, field } => {
                let inner = self.sort(operand)?;
                field_sort(&inner, field, expr.at)?;
                Ok(Sort::Scalar("bool"))
            }
            Kind::Index { operand, index, optional } => {
                let inner = self.sort(operand)?;
                self.sort(index)?;
                Ok(match inner {
                    Sort::List(item) | Sort::Map(item) if !optional => *item,
                    _ => Sort::Dyn,
                })
            }
            Kind::Call { function, target, args } => {
                self.call(expr.at, function, target.as_deref(), args)
            }
            Kind::List(_) | Kind::Map(_) | Kind::Struct { .. } => self.made(expr),
            Kind::And(a, b) | Kind::Or(a, b) => {
                for side in [a, b] {
                    let sort = self.sort(side)?;
                    self.expect_bool(
                        &sort,
                        if matches!(expr.kind, Kind::And(..)) { "_&&_" } else { "_||_" },
                        side.at,
                    )?;
                }
                Ok(Sort::Scalar("bool"))
            }
            Kind::Conditional(condition, yes, no) => {
                let sort = self.sort(condition)?;
                self.expect_bool(&sort, "_?_:_", condition.at)?;
                let (yes, no) = (self.sort(yes)?, self.sort(no)?);
                Ok(if yes.clashes(&no) || matches!(no, Sort::Dyn) { Sort::Dyn } else { yes })
            }
            Kind::Loop(one) => self.fold(one),
            Kind::Bind { name, value, result } => {
                let sort = self.sort(value)?;
                self.locals.push((name.clone(), sort));
                let made = self.sort(result);
                self.locals.pop();
                made
            }
        }
    }

    /// Checks the parts of what is put together in place.
    fn made(&mut self, expr: &Expr) -> Result<Sort<'a>, Wrong> {
        match &expr.kind {
            Kind::List(items) => {
                for (item, _) in items {
                    self.sort(item)?;
                }
                Ok(Sort::List(Box::new(Sort::Dyn)))
            }
            Kind::Map(entries) => {
                for (key, value, _) in entries {
                    self.sort(key)?;
                    self.sort(value)?;
                }
                Ok(Sort::Map(Box::new(Sort::Dyn)))
            }
            Kind::Struct { fields, .. } => {
                for (_, value, _) in fields {
                    self.sort(value)?;
                }
                Ok(Sort::Dyn)
            }
            _ => Ok(Sort::Dyn),
        }
    }

    fn expect_bool(&self, sort: &Sort<'_>, function: &str, at: usize) -> Result<(), Wrong> {
        if sort.clashes(&Sort::Scalar("bool")) {
            let why = format!(
                "found no matching overload for '{function}' applied to '({}, bool)'",
                sort.shown()
            );
            return Err((at, why));
        }
        Ok(())
    }

    fn name(&self, at: usize, name: &str) -> Result<Sort<'a>, Wrong> {
        if let Some((_, sort)) = self.locals.iter().rev().find(|(known, _)| known == name) {
            return Ok(sort.clone());
        }
        if let Some(sort) = self.names.get(name) {
            return Ok(sort.clone());
        }
        if super::library::type_of_name(name).is_some() {
            return Ok(Sort::Scalar("type"));
        }
        Err((at, format!("undeclared reference to '{name}' (in container '')")))
    }

    fn call(
        &mut self,
        at: usize,
        function: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Result<Sort<'a>, Wrong> {
        let mut sorts = Vec::new();
        for part in target.into_iter().chain(args) {
            sorts.push(self.sort(part)?);
        }
        let no_overload = || {
            let list: Vec<String> = sorts.iter().map(Sort::shown).collect();
            let list = list.join(", ");
            Err((at, format!("found no matching overload for '{function}' applied to '({list})'")))
        };
        if let ("_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) = (function, &*sorts) {
            return if a.clashes(b) { no_overload() } else { Ok(Sort::Scalar("bool")) };
        }
        if let ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) = (function, &*sorts) {
            let times = |sort: &Sort<'_>| {
                matches!(
                    sort,
                    Sort::Scalar("google.protobuf.Timestamp" | "google.protobuf.Duration")
                )
            };
            let mixed = matches!((a, b), (Sort::Scalar(a), Sort::Scalar(b)) if a != b);
            if (a.clashes(b) || mixed) && !times(a) && !times(b) {
                return no_overload();
            }
            let open = matches!(a, Sort::Dyn) || matches!(b, Sort::Dyn) || times(a) || times(b);
            return Ok(if open { Sort::Dyn } else { a.clone() });
        }
        let Some(known) = FUNCTIONS.iter().find(|(name, _)| *name == function) else {
            return Err((at, format!("undeclared reference to '{function}' (in container '')")));
        };
        Ok(if known.1.is_empty() { Sort::Dyn } else { Sort::Scalar(known.1) })
    }

    fn fold(&mut self, one: &Loop) -> Result<Sort<'a>, Wrong> {
        let range = self.sort(&one.range)?;
        let (key, item) = match range {
            Sort::List(item) => (Sort::Scalar("int"), *item),
            Sort::Map(item) => (Sort::Scalar("string"), *item),
            Sort::Scalar(name) => {
                let why = format!(
                    "expression of type '{name}' cannot be range of a comprehension \
                                   (must be list, map, or dynamic)"
                );
                return Err((one.range.at, why));
            }
            Sort::Dyn | Sort::Shape(_) | Sort::Type(_) | Sort::Members(_) => (Sort::Dyn, Sort::Dyn),
        };
        let keyed = matches!(key, Sort::Scalar("string"));
        let depth = self.locals.len();
        match &one.second {
            Some(second) => {
                self.locals.push((one.var.clone(), key));
                self.locals.push((second.clone(), item.clone()));
            }
            None => {
                let sort = if keyed { key } else { item.clone() };
                self.locals.push((one.var.clone(), sort));
            }
        }
        let mut last = item;
        for part in one.filter.iter().chain(&one.body) {
            last = self.sort(part)?;
        }
        self.locals.truncate(depth);
        Ok(match one.fold {
            Fold::All | Fold::Exists | Fold::ExistsOne => {
                self.expect_bool(&last, "_&&_", one.range.at)?;
                Sort::Scalar("bool")
            }
            Fold::List if one.body.is_some() => Sort::List(Box::new(last)),
            Fold::List | Fold::Sort => Sort::List(Box::new(Sort::Dyn)),
            Fold::Map | Fold::Entries => Sort::Map(Box::new(Sort::Dyn)),
            Fold::Optional | Fold::OptionalFlat => Sort::Dyn,
        })
    }
}

fn literal<'a>(value: &Value) -> Sort<'a> {
    Sort::Scalar(value.type_name())
}

/// The sort of a field.
fn field_sort<'a>(sort: &Sort<'a>, field: &str, at: usize) -> Result<Sort<'a>, Wrong> {
    let undefined = || Err((at, format!("undefined field '{field}'")));
    match sort {
        Sort::Dyn => Ok(Sort::Dyn),
        Sort::Map(inner) => Ok((**inner).clone()),
        Sort::Shape(shape) => {
            let plain = super::eval::unescape(field);
            match shape.properties.get(&plain) {
                Some(inner) => Ok(shape_sort(inner)),
                None if shape.embedded => Ok(Sort::Dyn),
                None if matches!(field, "metadata" | "apiVersion" | "kind") => Ok(Sort::Dyn),
                // What the schema does not name rules may not speak of, even where it is kept.
                None => undefined(),
            }
        }
        // A type that lists no fields is told apart nowhere.
        Sort::Type(one) if one.fields.is_empty() => Ok(Sort::Dyn),
        Sort::Type(one) => match one.field(&super::eval::unescape(field)) {
            Some(found) => Ok(node_sort(&found.node)),
            None if matches!(field, "apiVersion" | "kind") => Ok(Sort::Scalar("string")),
            None => undefined(),
        },
        Sort::Members(members) => match members.get(field) {
            Some(found) => Ok(found.clone()),
            None => undefined(),
        },
        Sort::Scalar(name) if name.starts_with("kubernetes.") || *name == "type" => Ok(Sort::Dyn),
        Sort::Scalar(_) | Sort::List(_) => {
            Err((at, format!("type '{}' does not support field selection", sort.shown())))
        }
    }
}

/// `a.b.c` as its words.
pub(crate) fn path_of(expr: &Expr) -> Option<Vec<&str>> {
    match &expr.kind {
        Kind::Ident(name) => Some(vec![name]),
        Kind::Select { operand, field, .. } => {
            let mut words = path_of(operand)?;
            words.push(field);
            Some(words)
        }
        _ => None,
    }
}

/// How long a list may be when its schema does not say: what fits into a request.
const ITEMS_GUESSED: u64 = 1 << 20;

/// What an expression may cost at most: loops inside loops over what may be long cost most.
pub(crate) fn estimate(expr: &Expr, size_of: &dyn Fn(&Expr) -> Option<u64>) -> u64 {
    let mut cost: u64 = 1;
    let mut add = |part: &Expr| cost = cost.saturating_add(estimate(part, size_of));
    match &expr.kind {
        Kind::Loop(one) => {
            add(&one.range);
            let inner = one
                .filter
                .iter()
                .chain(&one.body)
                .fold(1_u64, |sum, part| sum.saturating_add(estimate(part, size_of)));
            let times = size_of(&one.range).unwrap_or(ITEMS_GUESSED);
            cost = cost.saturating_add(times.saturating_mul(inner));
        }
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } | Kind::Has { operand, .. } => add(operand),
        Kind::Index { operand, index, .. } => [operand, index].into_iter().for_each(|one| add(one)),
        Kind::Call { target, args, .. } => {
            target.iter().map(|one| &**one).chain(args).for_each(add)
        }
        Kind::List(items) => items.iter().for_each(|(item, _)| add(item)),
        Kind::Map(entries) => entries.iter().for_each(|(key, value, _)| {
            add(key);
            add(value);
        }),
        Kind::Struct { fields, .. } => fields.iter().for_each(|(_, value, _)| add(value)),
        Kind::And(a, b) | Kind::Or(a, b) => [a, b].into_iter().for_each(|one| add(one)),
        Kind::Conditional(a, b, c) => [a, b, c].into_iter().for_each(|one| add(one)),
        Kind::Bind { value, result, .. } => [value, result].into_iter().for_each(|one| add(one)),
    }
    cost
}

/// Every function and what it comes to; empty when that depends.
const FUNCTIONS: &[(&str, &str)] = &[
    ("!_", "bool"),
    ("-_", ""),
    ("@in", "bool"),
    ("size", "int"),
    ("matches", "bool"),
    ("contains", "bool"),
    ("startsWith", "bool"),
    ("endsWith", "bool"),
    ("lowerAscii", "string"),
    ("upperAscii", "string"),
    ("trim", "string"),
    ("reverse", ""),
    ("jsonpatch.escapeKey", "string"),
    ("charAt", "string"),
    ("substring", "string"),
    ("indexOf", "int"),
    ("lastIndexOf", "int"),
    ("replace", "string"),
    ("split", ""),
    ("join", "string"),
    ("find", "string"),
    ("findAll", ""),
    ("format", "string"),
    ("dyn", ""),
    ("type", "type"),
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("string", "string"),
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("timestamp", "google.protobuf.Timestamp"),
    ("duration", "google.protobuf.Duration"),
    ("optional.of", ""),
    ("optional.none", ""),
    ("optional.ofNonZeroValue", ""),
    ("hasValue", "bool"),
    ("value", ""),
    ("orValue", ""),
    ("or", ""),
    ("getFullYear", "int"),
    ("getMonth", "int"),
    ("getDate", "int"),
    ("getDayOfMonth", "int"),
    ("getDayOfWeek", "int"),
    ("getDayOfYear", "int"),
    ("getHours", "int"),
    ("getMinutes", "int"),
    ("getSeconds", "int"),
    ("getMilliseconds", "int"),
    ("sets.contains", "bool"),
    ("sets.equivalent", "bool"),
    ("sets.intersects", "bool"),
    ("math.greatest", ""),
    ("math.least", ""),
    ("lists.range", ""),
    ("isSorted", "bool"),
    ("sum", ""),
    ("min", ""),
    ("max", ""),
    ("distinct", ""),
    ("sort", ""),
    ("flatten", ""),
    ("slice", ""),
    ("first", ""),
    ("last", ""),
    ("base64.encode", "string"),
    ("base64.decode", "bytes"),
    ("strings.quote", "string"),
    ("quantity", ""),
    ("isQuantity", "bool"),
    ("ip", ""),
    ("isIP", "bool"),
    ("ip.isCanonical", "bool"),
    ("cidr", ""),
    ("isCIDR", "bool"),
    ("url", ""),
    ("isURL", "bool"),
    ("semver", ""),
    ("isSemver", "bool"),
    ("compareTo", "int"),
    ("isGreaterThan", "bool"),
    ("isLessThan", "bool"),
    ("add", ""),
    ("sub", ""),
    ("sign", "int"),
    ("isInteger", "bool"),
    ("asInteger", "int"),
    ("asApproximateFloat", "double"),
    ("family", "int"),
    ("isUnspecified", "bool"),
    ("isLoopback", "bool"),
    ("isLinkLocalMulticast", "bool"),
    ("isLinkLocalUnicast", "bool"),
    ("isGlobalUnicast", "bool"),
    ("containsIP", "bool"),
    ("containsCIDR", "bool"),
    ("masked", ""),
    ("prefixLength", "int"),
    ("getScheme", "string"),
    ("getHost", "string"),
    ("getHostname", "string"),
    ("getPort", "string"),
    ("getEscapedPath", "string"),
    ("getQuery", ""),
    ("major", "int"),
    ("minor", "int"),
    ("patch", "int"),
    ("path", ""),
    ("group", ""),
    ("resource", ""),
    ("subresource", ""),
    ("namespace", ""),
    ("name", ""),
    ("serviceAccount", ""),
    ("check", ""),
    ("allowed", "bool"),
    ("reason", "string"),
    ("errored", "bool"),
    ("error", "string"),
];
