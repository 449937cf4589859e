//! How much a pod asks for and may use.

use std::collections::BTreeMap;

use objects::Quantity;
use serde_json::{Map, Value, json};

/// Amounts by resource.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// Reads a map of quantities; what cannot be read is left out.
pub(super) fn amounts(value: Option<&Value>) -> Amounts {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?))).collect()
}

/// A quantity as JSON says it: a text or a number.
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Adds all of `more`.
pub(super) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).map_or(*amount, |had| had.add(amount));
        to.insert(name.clone(), sum);
    }
}

/// The `requests` or `limits` of one container.
pub(super) fn of_container(container: &Value, half: &str) -> Amounts {
    amounts(container.get("resources").and_then(|all| all.get(half)))
}

/// The `requests` or `limits` of a whole pod: all containers together, or the first ones where
/// those need more, with what is said of the pod itself before all.
pub(super) fn of_pod(spec: &Value, half: &str) -> Amounts {
    let list = |name: &str| spec.get(name).and_then(Value::as_array).into_iter().flatten();
    let mut sum = Amounts::new();
    for container in list("containers") {
        add(&mut sum, &of_container(container, half));
    }
    let (mut beside, mut most) = (Amounts::new(), Amounts::new());
    for container in list("initContainers") {
        let own = of_container(container, half);
        let mut now = beside.clone();
        add(&mut now, &own);
        // One that starts again runs beside all later ones.
        if container.get("restartPolicy") == Some(&json!("Always")) {
            add(&mut beside, &own);
            add(&mut sum, &own);
        }
        for (name, amount) in now {
            if most.get(&name).is_none_or(|had| *had < amount) {
                most.insert(name, amount);
            }
        }
    }
    for (name, amount) in most {
        if sum.get(&name).is_none_or(|had| *had < amount) {
            sum.insert(name, amount);
        }
    }
    for (name, amount) in amounts(spec.get("resources").and_then(|all| all.get(half))) {
        sum.insert(name, amount);
    }
    let overhead = amounts(spec.get("overhead"));
    if half == "requests" {
        add(&mut sum, &overhead);
    } else {
        // A pod without a limit keeps none.
        for (name, amount) in overhead {
            if let Some(had) = sum.get(&name).copied() {
                sum.insert(name, had.add(&amount));
            }
        }
    }
    sum
}

/// Amounts as JSON.
pub(super) fn render(all: &Amounts) -> Value {
    let fields: Map<String, Value> =
        all.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect();
    Value::Object(fields)
}

/// Amounts as messages show them: `cpu=1,memory=2Gi`.
pub(super) fn shown(all: &Amounts) -> String {
    let words: Vec<String> = all.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    words.join(",")
}
