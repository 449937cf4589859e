//! Defaults of the rarer kinds that depend on other fields.

use objects::Kind;
use serde_json::{Map, Value, json};

use crate::json::put_in;

/// Defaults that look at a whole object.
pub(super) fn of_kind(kind: &Kind, fields: &mut Map<String, Value>) {
    match kind.kind {
        "Job" => {
            labels_from_template(fields);
            if let Some(spec) = inner(fields, "spec") {
                job_spec(spec);
            }
        }
        "LimitRange" => {
            let limits = inner(fields, "spec").and_then(|spec| spec.get_mut("limits"));
            let limits = limits.and_then(Value::as_array_mut);
            for limit in limits.into_iter().flatten().filter_map(Value::as_object_mut) {
                limit_range_item(limit);
            }
        }
        "Node" => {
            if let Some(spec) = inner(fields, "spec") {
                pair(spec, "podCIDR", "podCIDRs", |one| one);
            }
        }
        "Pod" => {
            if let Some(status) = inner(fields, "status") {
                pair(status, "podIP", "podIPs", |one| json!({"ip": one}));
                pair(status, "hostIP", "hostIPs", |one| json!({"ip": one}));
            }
        }
        "Service" => {
            // An address of a balancer is by itself one that nodes answer for.
            let balanced = fields.get("spec").and_then(|spec| spec.get("type"))
                == Some(&json!("LoadBalancer"));
            let ingress = inner(fields, "status")
                .and_then(|status| status.get_mut("loadBalancer")?.get_mut("ingress"))
                .and_then(Value::as_array_mut);
            for point in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
                if balanced
                    && point.get("ip").and_then(Value::as_str).is_some_and(|ip| !ip.is_empty())
                {
                    point.entry("ipMode").or_insert_with(|| json!("VIP"));
                }
            }
        }
        _ => {}
    }
}

/// Defaults that look at one type's fields.
pub(super) fn of_type(name: &str, fields: &mut Map<String, Value>) {
    match name {
        "autoscaling.v2.HorizontalPodAutoscalerSpec" => autoscaler_spec(fields),
        "networking.v1.NetworkPolicySpec" => {
            let mut types = vec![json!("Ingress")];
            if fields.get("egress").and_then(Value::as_array).is_some_and(|all| !all.is_empty()) {
                types.push(json!("Egress"));
            }
            if fields.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
                fields.insert("policyTypes".to_owned(), Value::Array(types));
            }
        }
        "storage.v1.CSIDriverSpec" => {
            let modes = fields.get("volumeLifecycleModes").and_then(Value::as_array);
            if modes.is_none_or(Vec::is_empty) {
                fields.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
            }
        }
        "flowcontrol.v1.PriorityLevelConfigurationSpec"
            if fields.get("type") == Some(&json!("Exempt")) =>
        {
            let own = json!({"nominalConcurrencyShares": 0, "lendablePercent": 0});
            fields.entry("exempt").or_insert(own);
        }
        "flowcontrol.v1.LimitResponse" if fields.get("type") == Some(&json!("Queue")) => {
            let own = json!({"queues": 64, "handSize": 8, "queueLengthLimit": 50});
            fields.entry("queuing").or_insert(own);
        }
        "apps.v1.StatefulSetSpec" => {
            let claims = fields.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut);
            for claim in claims.into_iter().flatten().filter_map(Value::as_object_mut) {
                claim.entry("apiVersion").or_insert(json!("v1"));
                claim.entry("kind").or_insert(json!("PersistentVolumeClaim"));
                claim.entry("status").or_insert(json!({"phase": "Pending"}));
            }
        }
        "resource.v1.ExactDeviceRequest" | "resource.v1.DeviceSubRequest"
            if fields.get("allocationMode") == Some(&json!("ExactCount")) =>
        {
            fields.entry("count").or_insert(json!(1));
        }
        other if other.ends_with("apiextensions.v1.CustomResourceDefinitionSpec") => {
            definition(fields);
        }
        _ => {}
    }
}

/// A definition's names that follow from its kind.
fn definition(spec: &mut Map<String, Value>) {
    spec.entry("conversion").or_insert(json!({"strategy": "None"}));
    let Some(names) = inner(spec, "names") else { return };
    let Some(kind) = names.get("kind").and_then(Value::as_str).map(str::to_owned) else { return };
    let missing = |said: Option<&Value>| said.is_none_or(|said| said == &json!(""));
    if missing(names.get("singular")) {
        names.insert("singular".to_owned(), json!(kind.to_ascii_lowercase()));
    }
    if missing(names.get("listKind")) {
        names.insert("listKind".to_owned(), json!(format!("{kind}List")));
    }
}

fn inner<'a>(fields: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    fields.get_mut(key).and_then(Value::as_object_mut)
}

/// A field and its plural, of which old clients write only the first and new ones both.
fn pair(fields: &mut Map<String, Value>, one: &str, many: &str, item: fn(Value) -> Value) {
    let first = fields.get(one).filter(|value| value.as_str().is_some_and(|t| !t.is_empty()));
    let listed = fields.get(many).and_then(Value::as_array).and_then(|all| all.first());
    match (first.cloned(), listed.cloned()) {
        (Some(first), None) => put_in(fields, many, Some(json!([item(first)]))),
        (None, Some(listed)) => {
            let plain = listed.get("ip").cloned().unwrap_or(listed);
            put_in(fields, one, Some(plain));
        }
        _ => {}
    }
}

/// What has no labels is found by those of its pods.
pub(super) fn labels_from_template(fields: &mut Map<String, Value>) {
    let labels =
        fields.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let (Some(meta), Some(labels)) = (inner(fields, "metadata"), labels) else { return };
    if meta.get("labels").and_then(Value::as_object).is_none_or(Map::is_empty) {
        meta.insert("labels".to_owned(), labels);
    }
}

fn job_spec(spec: &mut Map<String, Value>) {
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        spec.insert("completions".to_owned(), json!(1));
    }
    spec.entry("parallelism").or_insert(json!(1));
    let patience = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    spec.entry("backoffLimit").or_insert(json!(patience));
    spec.entry("completionMode").or_insert(json!("NonIndexed"));
    spec.entry("suspend").or_insert(json!(false));
    spec.entry("manualSelector").or_insert(json!(false));
    let when = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    spec.entry("podReplacementPolicy").or_insert(json!(when));
}

fn autoscaler_spec(spec: &mut Map<String, Value>) {
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        spec.insert("metrics".to_owned(), cpu);
    }
    let Some(behavior) = inner(spec, "behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    for (direction, window, policies) in
        [("scaleUp", Some(0), json!([pods, percent])), ("scaleDown", None, json!([percent]))]
    {
        let rules = behavior.entry(direction).or_insert_with(|| json!({}));
        let Some(rules) = rules.as_object_mut() else { continue };
        if let Some(window) = window {
            rules.entry("stabilizationWindowSeconds").or_insert(json!(window));
        }
        rules.entry("selectPolicy").or_insert(json!("Max"));
        rules.entry("policies").or_insert(policies);
    }
}

/// What a container may use at most is what it gets, and that is what it asks for; else the least.
fn limit_range_item(limit: &mut Map<String, Value>) {
    if limit.get("type") != Some(&json!("Container")) {
        return;
    }
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
    {
        let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
        let target = limit.entry(to).or_insert_with(|| json!({}));
        if let Some(target) = target.as_object_mut() {
            for (resource, amount) in source {
                target.entry(resource).or_insert(amount);
            }
        }
    }
}
