//! Limit ranges: what a container gets when it says nothing, and the bounds of what it may say.

use std::collections::BTreeMap;

use objects::field::Fields as _;
use objects::{Quantity, Status, kind};
use serde_json::{Map, Value, json};

use super::{
    Admission,
    amount::{Amounts, amounts, of_container, of_pod},
};
use crate::json::put;

/// Where it is written what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The items of all limit ranges of a namespace for one type of objects.
fn items(admission: &Admission<'_>, wanted: &str) -> Vec<Value> {
    let ranges = admission.view().list(&kind::LIMIT_RANGE, &admission.request.namespace);
    let mut all = Vec::new();
    for range in ranges {
        let limits = range.field("spec.limits").and_then(Value::as_array);
        let fits =
            limits.into_iter().flatten().filter(|one| one.get("type") == Some(&json!(wanted)));
        all.extend(fits.cloned());
    }
    all
}

/// Fills in what containers leave unsaid, and notes it down.
pub(super) fn fill_in(admission: &Admission<'_>, pod: &mut Value) {
    let (mut limits, mut requests) = (BTreeMap::new(), BTreeMap::new());
    for item in items(admission, "Container") {
        for (from, to) in [("default", &mut limits), ("defaultRequest", &mut requests)] {
            let all = item.get(from).and_then(Value::as_object).into_iter().flatten();
            to.extend(all.map(|(name, amount)| (name.clone(), amount.clone())));
        }
    }
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for (list, word) in [("initContainers", "init container"), ("containers", "container")] {
        let path = format!("/spec/{list}");
        let containers = pod.pointer_mut(&path).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
            for (half, defaults) in [("requests", &requests), ("limits", &limits)] {
                let set = fill_half(container, half, defaults);
                if !set.is_empty() {
                    let half = half.trim_end_matches('s');
                    notes.push(format!("{} {half} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    let said = format!("LimitRanger plugin set: {}", notes.join("; "));
    if let Some(meta) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = meta.entry("annotations").or_insert_with(|| json!({}));
        put(annotations, ANNOTATION, json!(said));
    }
}

/// Fills in one half of a container's resources; the names of what was added.
fn fill_half(container: &mut Value, half: &str, defaults: &BTreeMap<String, Value>) -> Vec<String> {
    let Some(container) = container.as_object_mut() else { return Vec::new() };
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    let Some(resources) = resources.as_object_mut() else { return Vec::new() };
    let mut own = match resources.get(half) {
        Some(Value::Object(own)) => own.clone(),
        _ => Map::new(),
    };
    let mut added = Vec::new();
    for (name, amount) in defaults {
        if !own.contains_key(name) {
            own.insert(name.clone(), amount.clone());
            added.push(name.clone());
        }
    }
    if !own.is_empty() {
        resources.insert(half.to_owned(), Value::Object(own));
    }
    added
}

/// Does a new pod keep the bounds of its namespace?
pub(super) fn check_pod(admission: &Admission<'_>, pod: &Value) -> Result<(), Status> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let mut faults = Vec::new();
    for item in items(admission, "Container") {
        for list in ["containers", "initContainers"] {
            for container in spec.get(list).and_then(Value::as_array).into_iter().flatten() {
                let asked = of_container(container, "requests");
                check_item(&item, &asked, &of_container(container, "limits"), &mut faults);
            }
        }
    }
    for item in items(admission, "Pod") {
        check_item(&item, &of_pod(spec, "requests"), &of_pod(spec, "limits"), &mut faults);
    }
    verdict(admission, pod, &faults)
}

/// Does a claim keep the bounds of its namespace?
pub(super) fn check_claim(admission: &Admission<'_>, claim: &Value) -> Result<(), Status> {
    let asked = amounts(claim.field("spec.resources.requests"));
    let mut faults = Vec::new();
    for item in items(admission, "PersistentVolumeClaim") {
        for (name, bound) in amounts(item.get("min")) {
            least("PersistentVolumeClaim", &name, bound, &asked, &Amounts::new(), &mut faults);
        }
        for (name, bound) in amounts(item.get("max")) {
            let why = match asked.get(&name) {
                None => ".  No request is specified".to_owned(),
                Some(amount) if *amount > bound => format!(", but request is {amount}"),
                Some(_) => continue,
            };
            faults.push(format!("maximum {name} usage per PersistentVolumeClaim is {bound}{why}"));
        }
    }
    verdict(admission, claim, &faults)
}

fn verdict(admission: &Admission<'_>, object: &Value, faults: &[String]) -> Result<(), Status> {
    match faults {
        [] => Ok(()),
        [one] => Err(admission.forbid(object, one)),
        many => Err(admission.forbid(object, &format!("[{}]", many.join(", ")))),
    }
}

fn check_item(item: &Value, asked: &Amounts, limited: &Amounts, faults: &mut Vec<String>) {
    let what = item.get("type").and_then(Value::as_str).unwrap_or("");
    for (name, bound) in amounts(item.get("min")) {
        least(what, &name, bound, asked, limited, faults);
    }
    for (name, bound) in amounts(item.get("max")) {
        let why = match (limited.get(&name), asked.get(&name)) {
            (None, _) => ".  No limit is specified".to_owned(),
            (Some(limit), _) if *limit > bound => format!(", but limit is {limit}"),
            (_, Some(request)) if *request > bound => format!(", but request is {request}"),
            _ => continue,
        };
        faults.push(format!("maximum {name} usage per {what} is {bound}{why}"));
    }
    for (name, bound) in amounts(item.get("maxLimitRequestRatio")) {
        let zero = |amount: Option<&Quantity>| amount.is_none_or(Quantity::is_zero);
        let (request, limit) = (asked.get(&name), limited.get(&name));
        let why = if zero(request) {
            "but no request is specified or request is 0".to_owned()
        } else if zero(limit) {
            "but no limit is specified or limit is 0".to_owned()
        } else {
            let thousandths = |amount: Option<&Quantity>| {
                amount.map_or(0, |amount| i128::from(amount.milli_value()))
            };
            // Both sides in thousandths: limit / request > bound.
            let over = thousandths(limit).saturating_mul(1000);
            let most = thousandths(request).saturating_mul(i128::from(bound.milli_value()));
            if over <= most {
                continue;
            }
            let ratio = over.saturating_mul(1000).checked_div(thousandths(request)).unwrap_or(0);
            format!("but provided ratio is {}.{:06}", ratio / 1_000_000, ratio % 1_000_000)
        };
        faults.push(format!("{name} max limit to request ratio per {what} is {bound}, {why}"));
    }
}

fn least(
    what: &str,
    name: &str,
    bound: Quantity,
    asked: &Amounts,
    limited: &Amounts,
    faults: &mut Vec<String>,
) {
    let why = match (asked.get(name), limited.get(name)) {
        (None, _) => ".  No request is specified".to_owned(),
        (Some(request), _) if *request < bound => format!(", but request is {request}"),
        (_, Some(limit)) if *limit < bound => format!(", but limit is {limit}"),
        _ => return,
    };
    faults.push(format!("minimum {name} usage per {what} is {bound}{why}"));
}
