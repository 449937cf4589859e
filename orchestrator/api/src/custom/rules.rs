//! Rules in CEL that definitions put beside their schemas (`x-kubernetes-validations`).
//!
//! A rule sees its part of the object as `self`, and the stored part as `oldSelf`: a rule that
//! speaks of `oldSelf` holds for changes only, unless it asks for it as an optional.

use std::{collections::BTreeMap, sync::Arc};

use objects::{Cause, field::str_at};
use serde_json::{Value as Json, json};

use super::structural::{ListType, Structural};
use crate::cel::{
    Budget, COST_PER_CALL, COST_PER_REQUEST, EvalError, Program, Sort, Value, Variable, estimate,
};

/// A compiled rule.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    text: String,
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: String,
    field_path: String,
    /// Does it speak of the stored state?
    transition: bool,
    optional_old: bool,
}

/// The names a rule may use.
fn names(shape: &Structural) -> BTreeMap<String, Sort<'_>> {
    let sort = Sort::of(shape);
    [("self".to_owned(), sort.clone()), ("oldSelf".to_owned(), sort)].into()
}

fn names_of<'a>(shape: &'a Structural, said: &Json) -> BTreeMap<String, Sort<'a>> {
    let mut names = names(shape);
    if said.get("optionalOldSelf") == Some(&json!(true)) {
        names.insert("oldSelf".to_owned(), Sort::Dyn);
    }
    names
}

/// Compiles the rules of a part of a schema; those that cannot be compiled were refused before.
pub(crate) fn compile(shape: &Structural) -> Vec<Rule> {
    shape.rules.iter().filter_map(|said| compile_one(shape, said)).collect()
}

fn compile_one(shape: &Structural, said: &Json) -> Option<Rule> {
    let text = str_at(said, "rule")?.to_owned();
    let names = names_of(shape, said);
    let (program, _) = Program::compile(&text, &names).ok()?;
    let message_program = str_at(said, "messageExpression")
        .and_then(|text| Some(Program::compile(text, &names).ok()?.0));
    let own = |key: &str| str_at(said, key).unwrap_or("").to_owned();
    Some(Rule {
        transition: program.names("oldSelf"),
        optional_old: said.get("optionalOldSelf") == Some(&json!(true)),
        text,
        program,
        message: own("message"),
        message_program,
        reason: own("reason"),
        field_path: own("fieldPath"),
    })
}

/// Compiles the rules of a schema and all its parts.
pub(crate) fn compile_all(shape: &mut Structural) {
    shape.compiled = Arc::new(compile(shape));
    shape.properties.values_mut().for_each(compile_all);
    if let Some(items) = &mut shape.items {
        compile_all(items);
    }
    if let Some(inner) = shape.additional_schema_mut() {
        compile_all(inner);
    }
}

/// Checks that the rules of a schema can be compiled, and are not too costly.
pub(crate) fn check(schema: &Json, path: &str, causes: &mut Vec<Cause>) {
    let shape = Structural::read(schema);
    check_part(&shape, path, 1, causes);
}

/// More than this at most, by estimation, is refused.
const ESTIMATE_MAX: u64 = 10_000_000;

fn check_part(shape: &Structural, path: &str, times: u64, causes: &mut Vec<Cause>) {
    for (at, said) in shape.rules.iter().enumerate() {
        check_rule(shape, said, &format!("{path}.x-kubernetes-validations[{at}]"), times, causes);
    }
    for (name, inner) in &shape.properties {
        check_part(inner, &format!("{path}.properties[{name}]"), times, causes);
    }
    let many = |limit: Option<u64>| times.saturating_mul(limit.unwrap_or(1 << 20));
    if let Some(inner) = &shape.items {
        check_part(inner, &format!("{path}.items"), many(shape.limits.items_max), causes);
    }
    if let Some(inner) = shape.additional_schema() {
        let times = many(shape.limits.properties_max);
        check_part(inner, &format!("{path}.additionalProperties"), times, causes);
    }
}

fn check_rule(shape: &Structural, said: &Json, path: &str, times: u64, causes: &mut Vec<Cause>) {
    let text = str_at(said, "rule").unwrap_or("");
    if text.trim().is_empty() {
        causes.push(Cause::required(format!("{path}.rule"), "rule is not specified"));
        return;
    }
    let names = names_of(shape, said);
    match Program::compile(text, &names) {
        Err(err) => {
            let why = format!("compilation failed: {err}");
            causes.push(Cause::invalid(format!("{path}.rule"), &json!(text), &why));
        }
        Ok((_, sort)) if !matches!(sort, Sort::Scalar("bool") | Sort::Dyn) => {
            let why = "cel expression must evaluate to a bool";
            causes.push(Cause::invalid(format!("{path}.rule"), &json!(text), why));
        }
        Ok((program, _)) => {
            let size = |range: &crate::cel::Expr| size_of(shape, range);
            let cost = estimate(&program.expr, &size).saturating_mul(times);
            if cost > ESTIMATE_MAX {
                let factor = cost / ESTIMATE_MAX;
                let by = if factor >= 100 {
                    "more than 100x".to_owned()
                } else {
                    format!("a factor of {factor:.1}x")
                };
                let why = format!(
                    "estimated rule cost exceeds budget by {by} (try simplifying the rule, or \
                     adding maxItems, maxProperties, and maxLength where arrays, maps, and strings \
                     are declared)"
                );
                causes.push(Cause::forbidden(format!("{path}.rule"), &why));
            }
        }
    }
    if let Some(text) = str_at(said, "messageExpression") {
        let path = format!("{path}.messageExpression");
        match Program::compile(text, &names) {
            Err(err) => {
                let why = format!("messageExpression compilation failed: {err}");
                causes.push(Cause::invalid(path, &json!(text), &why));
            }
            Ok((_, sort)) if !matches!(sort, Sort::Scalar("string") | Sort::Dyn) => {
                let why = "messageExpression must evaluate to a string";
                causes.push(Cause::invalid(path, &json!(text), why));
            }
            Ok(_) => {}
        }
    }
    let message = str_at(said, "message").unwrap_or("x");
    if message.trim().is_empty() || message.contains('\n') {
        let why = "message must not be empty or contain line breaks";
        causes.push(Cause::invalid(format!("{path}.message"), &json!(message), why));
    }
    let reasons =
        ["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"];
    if let Some(reason) = str_at(said, "reason").filter(|reason| !reasons.contains(reason)) {
        causes.push(Cause::unsupported(format!("{path}.reason"), &json!(reason), &reasons));
    }
}

/// The most items a loop's range may have, where the schema says.
fn size_of(shape: &Structural, range: &crate::cel::Expr) -> Option<u64> {
    let found = find(shape, range)?;
    match found.kind.as_str() {
        "array" => found.limits.items_max,
        "object" => found
            .limits
            .properties_max
            .or_else(|| u64::try_from(found.properties.len()).ok().filter(|count| *count > 0)),
        _ => None,
    }
}

fn find<'a>(shape: &'a Structural, expr: &crate::cel::Expr) -> Option<&'a Structural> {
    match crate::cel::path_of(expr)?.as_slice() {
        [first, rest @ ..] if matches!(*first, "self" | "oldSelf") => {
            rest.iter().try_fold(shape, |shape, word| shape.properties.get(*word))
        }
        _ => None,
    }
}

/// Holds an object against the rules of its schema.
pub(crate) fn validate(shape: &Structural, new: &Json, old: Option<&Json>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut budget = Budget { left: COST_PER_REQUEST };
    walk(shape, new, old, "", &mut budget, &mut causes);
    causes
}

fn walk(
    shape: &Structural,
    new: &Json,
    old: Option<&Json>,
    path: &str,
    budget: &mut Budget,
    causes: &mut Vec<Cause>,
) {
    for rule in shape.compiled.iter() {
        if let Some(cause) = ask(rule, shape, new, old, path, budget) {
            causes.push(cause);
        }
    }
    let join =
        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match new {
        Json::Object(fields) => {
            for (name, value) in fields {
                let inner = shape.properties.get(name).or_else(|| shape.additional_schema());
                if let Some(inner) = inner {
                    let before = old.and_then(|old| old.get(name));
                    walk(inner, value, before, &join(name), budget, causes);
                }
            }
        }
        Json::Array(items) => {
            let Some(inner) = &shape.items else { return };
            for (at, item) in items.iter().enumerate() {
                let before = old.and_then(|old| same_item(shape, item, old));
                walk(inner, item, before, &format!("{path}[{at}]"), budget, causes);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// The item of the old list that an item is the successor of: only keyed lists have such.
fn same_item<'o>(shape: &Structural, item: &Json, old: &'o Json) -> Option<&'o Json> {
    let ListType::Map(keys) = &shape.list else { return None };
    old.as_array()?.iter().find(|one| keys.iter().all(|key| one.get(key) == item.get(key)))
}

fn ask(
    rule: &Rule,
    shape: &Structural,
    new: &Json,
    old: Option<&Json>,
    path: &str,
    budget: &mut Budget,
) -> Option<Cause> {
    let mut names = BTreeMap::new();
    names.insert("self".to_owned(), Variable::Value(Value::of_schema(shape, new)));
    if rule.transition {
        let before = old.map(|old| Value::of_schema(shape, old));
        let before = match (before, rule.optional_old) {
            (before, true) => Value::Optional(before.map(Arc::new)),
            (Some(before), false) => before,
            (None, false) => return None,
        };
        names.insert("oldSelf".to_owned(), Variable::Value(before));
    }
    let mut own = Budget { left: budget.left.min(COST_PER_CALL) };
    let before = own.left;
    let outcome = rule.program.eval(names.clone(), None, &mut own);
    let message = rule.message_program.as_ref().and_then(|program| {
        match program.eval(names, None, &mut own) {
            Ok(Value::String(text)) if !text.trim().is_empty() => Some(text.to_string()),
            _ => None,
        }
    });
    budget.left = budget.left.saturating_sub(before.saturating_sub(own.left));
    let shown = json!(if shape.kind.is_empty() { "object" } else { shape.kind.as_str() });
    match outcome {
        Ok(Value::Bool(true)) => None,
        Ok(_) => {
            let said = message.or_else(|| (!rule.message.is_empty()).then(|| rule.message.clone()));
            let said = said.unwrap_or_else(|| format!("failed rule: {}", rule.text.trim()));
            let field = format!("{path}{}", rule.field_path);
            let field = field.trim_start_matches('.').to_owned();
            Some(match rule.reason.as_str() {
                "FieldValueForbidden" => Cause::forbidden(field, &said),
                "FieldValueRequired" => Cause::required(field, &said),
                "FieldValueDuplicate" => Cause::duplicate(field, &shown),
                _ => Cause::invalid(field, &shown, &said),
            })
        }
        Err(EvalError::Cost) => {
            let why = "validation failed due to running out of cost budget, no further validation \
                       rules will be run";
            Some(Cause::invalid(path, &shown, &format!("{}: {why}", rule.text.trim())))
        }
        Err(EvalError::Failed(why)) => {
            let why = format!("{why} evaluating rule: {}", rule.text.trim());
            Some(Cause::invalid(path, &shown, &why))
        }
    }
}
