//! Deployments and their like: a selector, a template, a number.

use objects::field::Fields as _;
use objects::{Kind, LabelSelector};
use serde_json::{Value, json};

use super::{Check, metadata, pod, text};

/// Checks the spec of a workload of apps/v1.
pub(super) fn check(check: &mut Check, kind: &Kind, spec: &Value) {
    check.not_negative("spec.replicas", spec.get("replicas"));
    check.not_negative("spec.minReadySeconds", spec.get("minReadySeconds"));
    check.not_negative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"));
    check.not_negative("spec.progressDeadlineSeconds", spec.get("progressDeadlineSeconds"));
    let number = |field: &str| spec.get(field).and_then(Value::as_i64).unwrap_or(0);
    if spec.get("progressDeadlineSeconds").is_some()
        && number("progressDeadlineSeconds") <= number("minReadySeconds")
    {
        let value = json!(number("progressDeadlineSeconds"));
        check.invalid(
            "spec.progressDeadlineSeconds",
            &value,
            "must be greater than minReadySeconds",
        );
    }
    check_selector(check, kind, spec);
    check_template(check, spec);
    let part = |field: &str| spec.get(field).unwrap_or(&Value::Null);
    match kind.kind {
        "Deployment" => check_strategy(check, part("strategy")),
        "DaemonSet" => check_daemons(check, part("updateStrategy")),
        "StatefulSet" => {
            let said = text(spec, "podManagementPolicy");
            if !matches!(said, "" | "OrderedReady" | "Parallel") {
                let why = "must be 'OrderedReady' or 'Parallel'";
                check.invalid("spec.podManagementPolicy", &json!(said), why);
            }
            let said = text(spec, "updateStrategy.type");
            if !matches!(said, "" | "OnDelete" | "RollingUpdate") {
                let why = "must be 'RollingUpdate' or 'OnDelete'";
                check.invalid("spec.updateStrategy", part("updateStrategy"), why);
            }
            let partition = spec.field("updateStrategy.rollingUpdate.partition");
            check.not_negative("spec.updateStrategy.rollingUpdate.partition", partition);
        }
        _ => {}
    }
}

/// Checks how daemons are renewed: one after the other, or beside the old.
fn check_daemons(check: &mut Check, strategy: &Value) {
    let kinds = ["OnDelete", "RollingUpdate"];
    check.one_of("spec.updateStrategy.type", strategy.get("type"), &kinds);
    let Some(rolling) = strategy.get("rollingUpdate") else { return };
    let is_zero = |field: &str| match rolling.get(field) {
        None => field == "maxSurge",
        Some(Value::String(text)) => text == "0%",
        Some(number) => number == &json!(0),
    };
    let path = "spec.updateStrategy.rollingUpdate";
    let shown = |field: &str| rolling.get(field).cloned().unwrap_or_default();
    match (is_zero("maxUnavailable"), is_zero("maxSurge")) {
        (true, true) => {
            let why = "cannot be 0 when maxSurge is 0";
            check.invalid(format!("{path}.maxUnavailable"), &shown("maxUnavailable"), why);
        }
        (false, false) => {
            let why = "may not be set when maxUnavailable is non-zero";
            check.invalid(format!("{path}.maxSurge"), &shown("maxSurge"), why);
        }
        _ => {}
    }
}

fn check_selector(check: &mut Check, kind: &Kind, spec: &Value) {
    let Some(selector) = spec.get("selector") else {
        check.required("spec.selector", "");
        return;
    };
    metadata::selector(check, "spec.selector", selector);
    let Ok(parsed) = serde_json::from_value::<LabelSelector>(selector.clone()) else { return };
    if parsed.match_labels.is_empty() && parsed.match_expressions.is_empty() {
        let why = format!("empty selector is invalid for {}", kind.kind.to_ascii_lowercase());
        check.invalid("spec.selector", selector, &why);
        return;
    }
    let labels = spec.field("template.metadata.labels").cloned().unwrap_or_else(|| json!({}));
    let fits = serde_json::from_value(labels.clone()).is_ok_and(|labels| parsed.matches(&labels));
    if !fits {
        let why = "`selector` does not match template `labels`";
        check.invalid("spec.template.metadata.labels", &labels, why);
    }
}

fn check_template(check: &mut Check, spec: &Value) {
    let path = "spec.template.metadata";
    let Some(template) = spec.get("template") else {
        check.required("spec.template", "");
        return;
    };
    let meta = template.get("metadata").unwrap_or(&Value::Null);
    metadata::labels(check, &format!("{path}.labels"), meta.get("labels"));
    metadata::annotations(check, &format!("{path}.annotations"), meta.get("annotations"));
    let pod_spec = template.get("spec").unwrap_or(&Value::Null);
    pod::check_spec(check, "spec.template.spec", pod_spec);
    check.one_of("spec.template.spec.restartPolicy", pod_spec.get("restartPolicy"), &["Always"]);
    if pod_spec.get("activeDeadlineSeconds").is_some() {
        let why = "activeDeadlineSeconds in pods of a workload is not supported";
        check.forbidden("spec.template.spec.activeDeadlineSeconds", why);
    }
}

fn check_strategy(check: &mut Check, strategy: &Value) {
    check.one_of("spec.strategy.type", strategy.get("type"), &["Recreate", "RollingUpdate"]);
    let Some(rolling) = strategy.get("rollingUpdate") else { return };
    if text(strategy, "type") == "Recreate" {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        check.forbidden("spec.strategy.rollingUpdate", why);
        return;
    }
    let mut zeros = 0;
    for field in ["maxUnavailable", "maxSurge"] {
        let path = format!("spec.strategy.rollingUpdate.{field}");
        match rolling.get(field) {
            Some(Value::String(said)) => {
                match said.strip_suffix('%').and_then(|number| number.parse::<u32>().ok()) {
                    Some(0) => zeros += 1,
                    Some(_) => {}
                    None => {
                        let why = "a valid percent string must be a number followed by '%' (e.g. \
                                   '1%' or '93%')";
                        check.invalid(path, &json!(said), why);
                    }
                }
            }
            Some(number) => {
                check.not_negative(&path, Some(number));
                zeros += i32::from(number == &json!(0));
            }
            None => {}
        }
    }
    if zeros == 2 {
        let value = rolling.get("maxUnavailable").unwrap_or(&Value::Null);
        let why = "may not be 0 when `maxSurge` is 0";
        check.invalid("spec.strategy.rollingUpdate.maxUnavailable", value, why);
    }
}

/// Checks the spec of a replication controller, whose selector is a map.
pub(super) fn check_older(check: &mut Check, spec: &Value) {
    check.not_negative("spec.replicas", spec.get("replicas"));
    check_template(check, spec);
    let selector = spec.get("selector").and_then(Value::as_object);
    if selector.is_none_or(serde_json::Map::is_empty) {
        check.required("spec.selector", "");
        return;
    }
    let labels = spec.field("template.metadata.labels").and_then(Value::as_object);
    let fits = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value));
    if !fits {
        let shown = labels.map_or_else(|| json!({}), |labels| json!(labels));
        let why = "`selector` does not match template `labels`";
        check.invalid("spec.template.metadata.labels", &shown, why);
    }
}
