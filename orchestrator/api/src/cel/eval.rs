//! Trees to values.
//!
//! Evaluation is counted: each step costs something, and an expression that costs more than its
//! budget ends with an error, so that no rule can stop the server. Errors are values of `||` and
//! `&&` in the original's sense: either side may decide alone.

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use super::{
    authorizer::Authorizer,
    library,
    parse::{Expr, Fold, Kind, Loop},
    value::{Key, Own, Value},
};

/// Why there is no value.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum EvalError {
    /// The rule does not fit the values.
    #[error("{0}")]
    Failed(String),
    /// The budget is spent.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
}

/// Shorthand for a failure.
pub(crate) fn failed<T>(why: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::Failed(why.into()))
}

/// How much may still be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) left: u64,
}

impl Budget {
    /// Takes some of the budget.
    pub(crate) fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::Cost)
            }
        }
    }

    /// Pays for looking at so many bytes or items.
    pub(crate) fn spend_size(&mut self, size: usize, per: u64) -> Result<(), EvalError> {
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        self.spend((size / per.max(1)).saturating_add(1))
    }
}

/// A variable: there already, or worked out when first asked for.
#[derive(Debug, Clone)]
pub(crate) enum Variable<'a> {
    Value(Value),
    /// An expression of its own, such as a policy's `variables.x`.
    Lazy(&'a BTreeMap<String, Arc<Expr>>),
}

/// The names an expression may use.
pub(crate) struct Scope<'a> {
    pub(crate) names: BTreeMap<String, Variable<'a>>,
    pub(crate) authorizer: Option<&'a dyn Authorizer>,
}

/// One evaluation.
pub(crate) struct Evaluator<'a, 'b> {
    pub(crate) scope: &'b Scope<'a>,
    pub(crate) budget: &'b mut Budget,
    locals: Vec<(String, Value)>,
    /// What lazy variables came to.
    worked_out: BTreeMap<String, Result<Value, EvalError>>,
    pending: Vec<String>,
}

impl<'a, 'b> Evaluator<'a, 'b> {
    pub(crate) fn new(scope: &'b Scope<'a>, budget: &'b mut Budget) -> Self {
        Self { scope, budget, locals: Vec::new(), worked_out: BTreeMap::new(), pending: Vec::new() }
    }

    /// Evaluates an expression.
    pub(crate) fn eval(&mut self, expr: &Expr) -> Result<Value, EvalError> {
        self.budget.spend(1)?;
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Ident(name) => self.name(name),
            Kind::Select { operand, field, optional } => self.select(operand, field, *optional),
            Kind::Has { operand, field } => {
                let value = self.eval(operand)?;
                has(&value, field).map(Value::Bool)
            }
            Kind::Index { operand, index, optional } => {
                let (value, at) = (self.eval(operand)?, self.eval(index)?);
                index_of(&value, &at, *optional)
            }
            Kind::Call { function, target, args } => self.call(function, target.as_deref(), args),
            Kind::List(items) => {
                let mut made = Vec::new();
                for (item, optional) in items {
                    let value = self.eval(item)?;
                    match (optional, value) {
                        (true, Value::Optional(inner)) => made.extend(inner.map(|v| (*v).clone())),
                        (_, value) => made.push(value),
                    }
                }
                Ok(Value::list(made))
            }
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.structure(name, fields),
            Kind::And(left, right) => self.junction(left, right, false),
            Kind::Or(left, right) => self.junction(left, right, true),
            Kind::Conditional(condition, yes, no) => match self.eval(condition)? {
                Value::Bool(true) => self.eval(yes),
                Value::Bool(false) => self.eval(no),
                _ => failed("no such overload"),
            },
            Kind::Loop(one) => self.fold(one),
            Kind::Bind { name, value, result } => {
                let value = self.eval(value)?;
                self.with(name, value, result)
            }
        }
    }

    fn with(&mut self, name: &str, value: Value, body: &Expr) -> Result<Value, EvalError> {
        self.locals.push((name.to_owned(), value));
        let made = self.eval(body);
        self.locals.pop();
        made
    }

    fn name(&mut self, name: &str) -> Result<Value, EvalError> {
        if let Some((_, value)) = self.locals.iter().rev().find(|(known, _)| known == name) {
            return Ok(value.clone());
        }
        match self.scope.names.get(name) {
            Some(Variable::Value(value)) => Ok(value.clone()),
            Some(Variable::Lazy(_)) => failed(format!("{name} must be followed by a field")),
            None => match library::type_of_name(name) {
                Some(kind) => Ok(Value::Type(kind.into())),
                None => failed(format!("no such attribute(s): {name}")),
            },
        }
    }

    /// A variable of a policy, worked out once.
    fn lazy(
        &mut self,
        table: &'a BTreeMap<String, Arc<Expr>>,
        field: &str,
    ) -> Result<Value, EvalError> {
        if let Some(known) = self.worked_out.get(field) {
            return known.clone();
        }
        let Some(expr) = table.get(field) else {
            return failed(format!("no such key: {field}"));
        };
        if self.pending.iter().any(|name| name == field) {
            return failed(format!("variable {field} refers to itself"));
        }
        self.pending.push(field.to_owned());
        // A variable sees the policy's names, not those of the loop it is used in.
        let locals = std::mem::take(&mut self.locals);
        let made = self.eval(expr);
        self.locals = locals;
        self.pending.pop();
        self.worked_out.insert(field.to_owned(), made.clone());
        made
    }

    fn select(&mut self, operand: &Expr, field: &str, optional: bool) -> Result<Value, EvalError> {
        if let Kind::Ident(name) = &operand.kind
            && let Some(Variable::Lazy(table)) = self.scope.names.get(name)
        {
            return self.lazy(table, field);
        }
        let dotted = |name: &str| format!("{name}.{field}");
        if let Kind::Ident(name) = &operand.kind
            && let Some(Variable::Value(value)) = self.scope.names.get(&dotted(name))
        {
            return Ok(value.clone());
        }
        // A dotted name may be a type's.
        if let Kind::Ident(name) = &operand.kind
            && let Some(kind) = library::type_of_name(&format!("{name}.{field}"))
        {
            return Ok(Value::Type(kind.into()));
        }
        let value = self.eval(operand)?;
        select_field(&value, field, optional)
    }

    fn map(&mut self, entries: &[(Expr, Expr, bool)]) -> Result<Value, EvalError> {
        let mut made = BTreeMap::new();
        for (key, value, optional) in entries {
            let (key, value) = (self.eval(key)?, self.eval(value)?);
            let Some(key) = key.key() else { return failed("unsupported key type") };
            let value = match (optional, value) {
                (true, Value::Optional(None)) => continue,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (_, value) => value,
            };
            if made.insert(key, value).is_some() {
                return failed("Failed with repeated key");
            }
        }
        Ok(Value::Map(Arc::new(made)))
    }

    /// `Object{…}` and `JSONPatch{…}`: maps, for that is what they are in JSON.
    fn structure(
        &mut self,
        name: &str,
        fields: &[(String, Expr, bool)],
    ) -> Result<Value, EvalError> {
        if name != "JSONPatch" && name != "Object" && !name.starts_with("Object.") {
            return failed(format!("undeclared reference to '{name}' (in container '')"));
        }
        let mut made = BTreeMap::new();
        for (field, value, optional) in fields {
            let value = match (optional, self.eval(value)?) {
                (true, Value::Optional(None)) => continue,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (_, value) => value,
            };
            made.insert(Key::String(unescape(field).into()), value);
        }
        Ok(Value::Map(Arc::new(made)))
    }

    /// `&&` and `||`: either side may decide, whatever becomes of the other.
    fn junction(&mut self, left: &Expr, right: &Expr, decides: bool) -> Result<Value, EvalError> {
        let first = self.eval(left);
        match &first {
            Ok(Value::Bool(value)) if *value == decides => return first,
            Err(EvalError::Cost) => return first,
            _ => {}
        }
        let second = self.eval(right);
        match (first, second) {
            (_, Ok(Value::Bool(value))) if value == decides => Ok(Value::Bool(decides)),
            (Ok(Value::Bool(_)), Ok(Value::Bool(value))) => Ok(Value::Bool(value)),
            (_, Err(EvalError::Cost)) => Err(EvalError::Cost),
            (Err(err), _) | (_, Err(err)) => Err(err),
            _ => failed("no such overload"),
        }
    }

    fn call(
        &mut self,
        function: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Result<Value, EvalError> {
        let target = target.map(|target| self.eval(target)).transpose()?;
        // What an optional holds is only replaced when it holds nothing.
        if let (Some(Value::Optional(held)), [other]) = (&target, args) {
            match (function, held) {
                ("orValue", Some(inner)) => return Ok((**inner).clone()),
                ("orValue", None) => return self.eval(other),
                ("or", Some(_)) => return Ok(target.unwrap_or(Value::Null)),
                ("or", None) => return self.eval(other),
                _ => {}
            }
        }
        let mut values = Vec::with_capacity(args.len());
        for arg in args {
            values.push(self.eval(arg)?);
        }
        let authorizer = self.scope.authorizer;
        library::call(function, target.as_ref(), &values, self.budget, authorizer)
    }

    fn fold(&mut self, one: &Loop) -> Result<Value, EvalError> {
        let range = self.eval(&one.range)?;
        if matches!(one.fold, Fold::Optional | Fold::OptionalFlat) {
            return self.fold_optional(one, &range);
        }
        let pairs: Vec<(Value, Value)> = match &range {
            Value::List(items) => {
                items.iter().enumerate().map(|(at, v)| (Value::count(at), v.clone())).collect()
            }
            Value::Map(entries) => entries.iter().map(|(k, v)| (k.value(), v.clone())).collect(),
            _ => return failed("no such overload"),
        };
        let keyed = matches!(range, Value::Map(_));
        match one.fold {
            Fold::All => self.quantify(one, pairs, keyed, false),
            Fold::Exists => self.quantify(one, pairs, keyed, true),
            Fold::ExistsOne => {
                let mut count = 0_usize;
                for (key, value) in pairs {
                    match self.body(one, one.body.as_ref(), key, value, keyed)? {
                        Value::Bool(found) => count = count.saturating_add(usize::from(found)),
                        _ => return failed("no such overload"),
                    }
                }
                Ok(Value::Bool(count == 1))
            }
            _ => self.collect(one, pairs, keyed),
        }
    }

    fn fold_optional(&mut self, one: &Loop, range: &Value) -> Result<Value, EvalError> {
        let Value::Optional(held) = range else { return failed("no such overload") };
        let (Some(held), Some(body)) = (held, &one.body) else { return Ok(Value::Optional(None)) };
        let made = self.with(&one.var, (**held).clone(), body)?;
        match one.fold {
            Fold::Optional => Ok(Value::Optional(Some(Arc::new(made)))),
            _ => Ok(made),
        }
    }

    /// The body with the loop's variables set.
    fn body(
        &mut self,
        one: &Loop,
        body: Option<&Expr>,
        key: Value,
        value: Value,
        keyed: bool,
    ) -> Result<Value, EvalError> {
        let Some(body) = body else { return Ok(value) };
        match &one.second {
            Some(second) => {
                self.locals.push((one.var.clone(), key));
                let made = self.with(second, value, body);
                self.locals.pop();
                made
            }
            // With one variable a map is walked by its keys.
            None => self.with(&one.var, if keyed { key } else { value }, body),
        }
    }

    fn quantify(
        &mut self,
        one: &Loop,
        pairs: Vec<(Value, Value)>,
        keyed: bool,
        decides: bool,
    ) -> Result<Value, EvalError> {
        let mut trouble = None;
        for (key, value) in pairs {
            match self.body(one, one.body.as_ref(), key, value, keyed) {
                Ok(Value::Bool(found)) if found == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => return failed("no such overload"),
                Err(EvalError::Cost) => return Err(EvalError::Cost),
                Err(err) => trouble = Some(err),
            }
        }
        trouble.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn collect(
        &mut self,
        one: &Loop,
        pairs: Vec<(Value, Value)>,
        keyed: bool,
    ) -> Result<Value, EvalError> {
        let mut items = Vec::new();
        let mut entries = BTreeMap::new();
        for (key, value) in pairs {
            if let Some(filter) = &one.filter {
                match self.body(one, Some(filter), key.clone(), value.clone(), keyed)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    _ => return failed("no such overload"),
                }
            }
            let item = if keyed && one.second.is_none() { key.clone() } else { value.clone() };
            let made = match &one.body {
                Some(body) => self.body(one, Some(body), key.clone(), value, keyed)?,
                None => item.clone(),
            };
            match (one.fold, made) {
                (Fold::Map, made) => {
                    entries.extend(key.key().map(|key| (key, made)));
                }
                (Fold::Entries, Value::Map(more)) => {
                    entries.extend(more.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                (Fold::Entries, _) => return failed("no such overload"),
                (Fold::Sort, made) => items.push((made, item)),
                (_, made) => items.push((Value::Null, made)),
            }
        }
        if matches!(one.fold, Fold::Map | Fold::Entries) {
            return Ok(Value::Map(Arc::new(entries)));
        }
        if one.fold == Fold::Sort {
            items.sort_by(|a, b| a.0.order(&b.0).unwrap_or(std::cmp::Ordering::Equal));
        }
        Ok(Value::list(items.into_iter().map(|(_, item)| item).collect()))
    }
}

/// A property's name as it is in JSON: what is no name in CEL is written with marks.
pub(crate) fn unescape(field: &str) -> String {
    if !field.contains("__") {
        return field.to_owned();
    }
    if let Some(word) = field.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && !matches!(word, "underscores" | "dot" | "dash" | "slash")
        && !word.contains("__")
    {
        return word.to_owned();
    }
    field
        .replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace("__underscores__", "__")
}

fn field_of<'v>(entries: &'v BTreeMap<Key, Value>, field: &str) -> Option<&'v Value> {
    entries.get(&Key::String(field.into())).or_else(|| {
        let plain = unescape(field);
        if plain == field { None } else { entries.get(&Key::String(plain.into())) }
    })
}

fn select_field(value: &Value, field: &str, optional: bool) -> Result<Value, EvalError> {
    match value {
        Value::Map(entries) => match (field_of(entries, field), optional) {
            (Some(found), false) => Ok(found.clone()),
            (Some(found), true) => Ok(Value::Optional(Some(Arc::new(found.clone())))),
            (None, true) => Ok(Value::Optional(None)),
            (None, false) => failed(format!("no such key: {field}")),
        },
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => select_field(inner, field, true),
        Value::Own(own) if matches!(**own, Own::Question(_) | Own::Decision(..)) => {
            failed(format!("no such field '{field}'"))
        }
        _ => failed(format!("type '{}' does not support field selection", value.type_name())),
    }
}

fn has(value: &Value, field: &str) -> Result<bool, EvalError> {
    match value {
        Value::Map(entries) => Ok(field_of(entries, field).is_some()),
        Value::Optional(None) => Ok(false),
        Value::Optional(Some(inner)) => has(inner, field),
        _ => failed(format!("type '{}' does not support field selection", value.type_name())),
    }
}

fn index_of(value: &Value, at: &Value, optional: bool) -> Result<Value, EvalError> {
    let found = match value {
        Value::Map(entries) => at.key().and_then(|key| entries.get(&key)),
        Value::List(items) => match at.key() {
            Some(Key::Int(at)) => usize::try_from(at).ok().and_then(|at| items.get(at)),
            _ => return failed("no such overload"),
        },
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => return index_of(inner, at, true),
        _ => return failed("no such overload"),
    };
    match (found, optional) {
        (Some(found), false) => Ok(found.clone()),
        (Some(found), true) => Ok(Value::Optional(Some(Arc::new(found.clone())))),
        (None, true) => Ok(Value::Optional(None)),
        (None, false) if matches!(value, Value::List(_)) => {
            failed(format!("index out of bounds: {at}"))
        }
        (None, false) => failed(format!("no such key: {at}")),
    }
}
