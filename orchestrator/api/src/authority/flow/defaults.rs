//! The priority levels and flow schemas of every cluster, as objects.

use objects::field::Fields as _;
use serde_json::{Value, json};

const TABLE: &str = include_str!("defaults.txt");
const VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";

/// Every level and schema of a new cluster, ready to be created.
#[must_use]
pub fn default_objects() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in TABLE.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] | ["#", ..] => {}
            ["level", name, shares, lendable, how @ ..] => {
                objects.push(level(name, number(shares), number(lendable), how));
            }
            ["schema", name, level, precedence, by] => {
                objects.push(schema(name, level, number(precedence), by));
            }
            _ => {
                let rules = objects.last_mut().and_then(|last| last.field_mut("spec.rules"));
                if let Some(Value::Array(rules)) = rules {
                    rules.push(rule(line));
                }
            }
        }
    }
    objects
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": VERSION, "kind": kind,
        "metadata": {
            "name": name,
            "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"},
        },
        "spec": spec,
    })
}

fn level(name: &str, shares: u64, lendable: u64, how: &[&str]) -> Value {
    let kind = "PriorityLevelConfiguration";
    let response = match how {
        ["exempt"] => {
            let exempt = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable});
            return object(kind, name, &json!({"type": "Exempt", "exempt": exempt}));
        }
        ["queue", queues, hand, length] => json!({
            "type": "Queue",
            "queuing": {
                "queues": number(queues), "handSize": number(hand),
                "queueLengthLimit": number(length),
            },
        }),
        _ => json!({"type": "Reject"}),
    };
    let limited = json!({
        "nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": response,
    });
    object(kind, name, &json!({"type": "Limited", "limited": limited}))
}

fn schema(name: &str, level: &str, precedence: u64, by: &str) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level},
        "matchingPrecedence": precedence,
        "rules": [],
    });
    let by = match by {
        "user" => "ByUser",
        "namespace" => "ByNamespace",
        _ => "",
    };
    if let (false, Some(fields)) = (by.is_empty(), spec.as_object_mut()) {
        fields.insert("distinguisherMethod".to_owned(), json!({ "type": by }));
    }
    object("FlowSchema", name, &spec)
}

fn rule(line: &str) -> Value {
    let mut parts = line.split('|').map(str::trim);
    let subjects: Vec<Value> = parts.next().unwrap_or("").split(',').map(subject).collect();
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for part in parts {
        let (verbs, what) = part.rsplit_once(' ').unwrap_or(("*", part));
        let verbs: Vec<&str> = verbs.split(',').collect();
        let list = |text: &str, at: char| -> Vec<String> {
            text.split(at).map(|one| if one == "core" { "" } else { one }.to_owned()).collect()
        };
        match what.split_once(':') {
            Some(("url", urls)) => {
                paths.push(json!({"verbs": verbs, "nonResourceURLs": list(urls, ',')}));
            }
            Some((groups, names)) => resources.push(json!({
                "verbs": verbs, "apiGroups": list(groups, '+'), "resources": list(names, ','),
                "clusterScope": true, "namespaces": ["*"],
            })),
            None => {}
        }
    }
    let mut rule = json!({ "subjects": subjects });
    if let Some(fields) = rule.as_object_mut() {
        for (key, list) in [("resourceRules", resources), ("nonResourceRules", paths)] {
            if !list.is_empty() {
                fields.insert(key.to_owned(), Value::Array(list));
            }
        }
    }
    rule
}

fn subject(text: &str) -> Value {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        ["group", name] => json!({"kind": "Group", "group": {"name": name}}),
        ["sa", namespace, name] => json!({
            "kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name},
        }),
        [_, name] => json!({"kind": "User", "user": {"name": name}}),
        _ => Value::Null,
    }
}
