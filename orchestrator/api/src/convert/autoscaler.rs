//! Autoscalers: autoscaling/v1, which knows one figure, and v2, which knows any.
//!
//! What v1 has no words for it carries as JSON in annotations, as upstream does, so that a client
//! that reads v1 and writes it back loses nothing.
//!
//! *Limits*: metrics in the annotation keep their v2 form; upstream's v1 programs do not look
//! into them.

use objects::field::Fields as _;
use objects::field::value_at;
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// What v1 wants when nobody says.
const CPU_PERCENT: i64 = 80;

/// From v1 to v2.
pub(super) fn to_v2(object: &mut Value) {
    let mut carried = |name: &str| -> Option<Value> {
        let annotations = object.field_mut("metadata.annotations")?.as_object_mut()?;
        let said = annotations.remove(name)?;
        serde_json::from_str(said.as_str()?).ok()
    };
    let (metrics, current) = (carried(METRICS), carried(CURRENT));
    let (conditions, behavior) = (carried(CONDITIONS), carried(BEHAVIOR));
    drop_empty_annotations(object);
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut all = list(metrics);
        let percent = spec.remove("targetCPUUtilizationPercentage");
        let percent = percent.filter(|percent| !percent.is_null());
        if let Some(percent) = percent.or_else(|| all.is_empty().then(|| json!(CPU_PERCENT))) {
            let cpu = json!({"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": percent}}});
            all.insert(0, cpu);
        }
        spec.insert("metrics".to_owned(), Value::Array(all));
        if let Some(behavior) = behavior {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut all = list(current);
        if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
            let cpu = json!({"type": "Resource", "resource": {"name": "cpu",
                "current": {"averageUtilization": percent}}});
            all.insert(0, cpu);
        }
        if !all.is_empty() {
            status.insert("currentMetrics".to_owned(), Value::Array(all));
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".to_owned(), conditions);
        }
    }
}

/// From v2 to v1.
pub(super) fn to_v1(object: &mut Value) {
    let mut carried = Map::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let path = "resource.target.averageUtilization";
        let (percent, rest) = split_cpu(list(spec.remove("metrics")), path);
        if let Some(percent) = percent {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), percent);
        }
        carry(&mut carried, METRICS, rest);
        if let Some(behavior) = spec.remove("behavior") {
            carried.insert(BEHAVIOR.to_owned(), json!(behavior.to_string()));
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let path = "resource.current.averageUtilization";
        let (percent, rest) = split_cpu(list(status.remove("currentMetrics")), path);
        if let Some(percent) = percent {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
        }
        carry(&mut carried, CURRENT, rest);
        carry(&mut carried, CONDITIONS, list(status.remove("conditions")));
    }
    if carried.is_empty() {
        return;
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = meta.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.extend(carried);
        }
    }
}

/// Takes the one figure v1 has a word for out of a list of metrics.
fn split_cpu(all: Vec<Value>, path: &str) -> (Option<Value>, Vec<Value>) {
    let mut percent = None;
    let mut rest = Vec::new();
    for metric in all {
        let figure = value_at(&metric, path).cloned();
        match (metric.field("resource.name") == Some(&json!("cpu")), figure) {
            (true, Some(figure)) if percent.is_none() => percent = Some(figure),
            _ => rest.push(metric),
        }
    }
    (percent, rest)
}

fn carry(annotations: &mut Map<String, Value>, name: &str, all: Vec<Value>) {
    if !all.is_empty() {
        annotations.insert(name.to_owned(), json!(Value::Array(all).to_string()));
    }
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(all)) => all,
        _ => Vec::new(),
    }
}

fn drop_empty_annotations(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && meta.get("annotations").and_then(Value::as_object).is_some_and(Map::is_empty)
    {
        meta.remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_older_version_cannot_say_comes_back_from_it() {
        let stored = json!({
            "metadata": {"name": "h"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 4,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 50}}},
                    {"type": "Resource", "resource": {"name": "memory",
                        "target": {"type": "Utilization", "averageUtilization": 70}}},
                ],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 9}},
            },
            "status": {"desiredReplicas": 1, "conditions": [{"type": "AbleToScale"}]},
        });
        let mut served = stored.clone();
        to_v1(&mut served);
        assert_eq!(served["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(served["spec"].get("metrics").is_none());
        assert!(served["metadata"]["annotations"][CONDITIONS].is_string());
        to_v2(&mut served);
        assert_eq!(served, stored);
    }

    #[test]
    fn an_older_autoscaler_without_a_wish_wants_four_fifths() {
        let mut object = json!({"metadata": {}, "spec": {"maxReplicas": 2}});
        to_v2(&mut object);
        let target = &object["spec"]["metrics"][0]["resource"]["target"];
        assert_eq!(target["averageUtilization"], 80);
    }
}
