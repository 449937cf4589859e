//! Lists and sets.

use std::cmp::Ordering;

use super::{Answer, Budget, EvalError, Value, failed, operator};

pub(super) fn call(
    function: &str,
    target: Option<&Value>,
    args: &[Value],
    budget: &mut Budget,
) -> Answer {
    match (target, function, args) {
        (None, "sets.contains" | "sets.equivalent" | "sets.intersects", [a, b]) => {
            let (Value::List(a), Value::List(b)) = (a, b) else { return None };
            if let Err(err) = budget.spend_size(a.len().saturating_mul(b.len()), 1) {
                return Some(Err(err));
            }
            let within = |a: &[Value], b: &[Value]| b.iter().all(|x| a.iter().any(|y| y.equals(x)));
            Some(Ok(Value::Bool(match function {
                "sets.contains" => within(a, b),
                "sets.equivalent" => within(a, b) && within(b, a),
                _ => a.iter().any(|x| b.iter().any(|y| y.equals(x))),
            })))
        }
        (None, "math.greatest" | "math.least", _) => {
            let all = match args {
                [Value::List(items)] => items.as_slice(),
                other => other,
            };
            Some(extreme(all, function == "math.greatest"))
        }
        (None, "lists.range", [Value::Int(count)]) => Some(
            budget
                .spend(u64::try_from(*count).unwrap_or(0))
                .map(|()| Value::list((0..*count).map(Value::Int).collect())),
        ),
        (Some(Value::List(items)), _, _) => {
            if let Err(err) = budget.spend_size(items.len(), 1) {
                return Some(Err(err));
            }
            of_list(function, items, args, budget)
        }
        _ => None,
    }
}

fn extreme(items: &[Value], greatest: bool) -> Result<Value, EvalError> {
    let mut best: Option<&Value> = None;
    for item in items {
        let better = match best {
            None => true,
            Some(best) => match item.order(best) {
                Some(Ordering::Greater) => greatest,
                Some(Ordering::Less) => !greatest,
                Some(Ordering::Equal) => false,
                None => return failed("no such overload"),
            },
        };
        if better {
            best = Some(item);
        }
    }
    match best {
        Some(best) => Ok(best.clone()),
        None => failed(format!("{} called on empty list", if greatest { "max" } else { "min" })),
    }
}

fn of_list(function: &str, items: &[Value], args: &[Value], budget: &mut Budget) -> Answer {
    Some(match (function, args) {
        ("isSorted", []) => Ok(Value::Bool(items.windows(2).all(|pair| match pair {
            [a, b] => a.order(b).is_some_and(Ordering::is_le),
            _ => true,
        }))),
        ("sum", []) => sum(items, budget),
        ("min", []) => extreme(items, false),
        ("max", []) => extreme(items, true),
        ("indexOf", [one]) => {
            Ok(items.iter().position(|item| item.equals(one)).map_or(Value::Int(-1), Value::count))
        }
        ("lastIndexOf", [one]) => {
            Ok(items.iter().rposition(|item| item.equals(one)).map_or(Value::Int(-1), Value::count))
        }
        ("reverse", []) => Ok(Value::list(items.iter().rev().cloned().collect())),
        ("distinct", []) => {
            let mut kept: Vec<Value> = Vec::new();
            for item in items {
                if let Err(err) = budget.spend_size(kept.len(), 1) {
                    return Some(Err(err));
                }
                if !kept.iter().any(|one| one.equals(item)) {
                    kept.push(item.clone());
                }
            }
            Ok(Value::list(kept))
        }
        ("sort", []) => {
            let mut sorted = items.to_vec();
            sorted.sort_by(|a, b| a.order(b).unwrap_or(Ordering::Equal));
            Ok(Value::list(sorted))
        }
        ("flatten", []) => Ok(Value::list(
            items
                .iter()
                .flat_map(|item| match item {
                    Value::List(inner) => inner.to_vec(),
                    other => vec![other.clone()],
                })
                .collect(),
        )),
        ("slice", [Value::Int(from), Value::Int(to)]) => {
            let at = |number: i64| usize::try_from(number).ok();
            match at(*from).zip(at(*to)).and_then(|(from, to)| items.get(from..to)) {
                Some(part) => Ok(Value::list(part.to_vec())),
                None => failed(format!("cannot slice({from}, {to}): out of range")),
            }
        }
        ("first", []) => Ok(Value::Optional(items.first().cloned().map(std::sync::Arc::new))),
        ("last", []) => Ok(Value::Optional(items.last().cloned().map(std::sync::Arc::new))),
        _ => return None,
    })
}

fn sum(items: &[Value], budget: &mut Budget) -> Result<Value, EvalError> {
    let mut items = items.iter();
    let Some(first) = items.next() else { return Ok(Value::Int(0)) };
    items.try_fold(first.clone(), |sum, item| {
        operator("_+_", &[sum, item.clone()], budget).unwrap_or_else(|| failed("no such overload"))
    })
}
