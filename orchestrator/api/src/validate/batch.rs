//! Jobs and cron jobs, autoscalers and disruption budgets.

use objects::LabelSelector;
use objects::field::Fields as _;
use serde_json::{Value, json};

use super::{Check, metadata, pod, text};

/// A cron job's name must leave room for the time of its jobs.
const CRON_NAME_MAX: usize = 52;

/// Checks a job.
pub(super) fn check_job(check: &mut Check, spec: &Value) {
    job_spec(check, "spec", spec);
    let path = "spec.selector";
    let Some(selector) = spec.get("selector") else {
        check.required(path, "");
        return;
    };
    metadata::selector(check, path, selector);
    let labels = spec.field("template.metadata.labels").cloned().unwrap_or_else(|| json!({}));
    let parsed = serde_json::from_value::<LabelSelector>(selector.clone());
    let fits = parsed.is_ok_and(|selector| {
        serde_json::from_value(labels.clone()).is_ok_and(|labels| selector.matches(&labels))
    });
    if !fits {
        let why = "`selector` does not match template `labels`";
        check.invalid("spec.template.metadata.labels", &labels, why);
    }
}

fn job_spec(check: &mut Check, path: &str, spec: &Value) {
    let at = |field: &str| format!("{path}.{field}");
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        check.not_negative(&at(field), spec.get(field));
    }
    check.one_of(&at("completionMode"), spec.get("completionMode"), &["Indexed", "NonIndexed"]);
    check.one_of(
        &at("podReplacementPolicy"),
        spec.get("podReplacementPolicy"),
        &["Failed", "TerminatingOrFailed"],
    );
    let indexed = text(spec, "completionMode") == "Indexed";
    if indexed && spec.get("completions").is_none() {
        check.required(at("completions"), "when completion mode is Indexed");
    }
    if !indexed {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if let Some(value) = spec.get(field) {
                check.invalid(at(field), value, "requires indexed completion mode");
            }
        }
    }
    if spec.get("maxFailedIndexes").is_some() && spec.get("backoffLimitPerIndex").is_none() {
        check.required(at("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    let template = spec.get("template").unwrap_or(&Value::Null);
    let inner = at("template");
    let meta = template.get("metadata").unwrap_or(&Value::Null);
    metadata::labels(check, &format!("{inner}.metadata.labels"), meta.get("labels"));
    metadata::annotations(check, &format!("{inner}.metadata.annotations"), meta.get("annotations"));
    let pods = template.get("spec").unwrap_or(&Value::Null);
    pod::check_spec(check, &format!("{inner}.spec"), pods);
    let policy = format!("{inner}.spec.restartPolicy");
    match text(pods, "restartPolicy") {
        "" | "Always" => check.required(policy, "valid values: \"OnFailure\", \"Never\""),
        said if said != "Never" && spec.get("podFailurePolicy").is_some() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            check.invalid(policy, &json!(said), why);
        }
        _ => check.one_of(&policy, pods.get("restartPolicy"), &["Never", "OnFailure"]),
    }
}

/// Checks a cron job.
pub(super) fn check_cron_job(check: &mut Check, object: &Value, spec: &Value) {
    let name = text(object, "metadata.name");
    if name.len() > CRON_NAME_MAX {
        let why = format!("must be no more than {CRON_NAME_MAX} characters");
        check.invalid("metadata.name", &json!(name), &why);
    }
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        check.required("spec.schedule", "");
    } else if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        check.invalid("spec.schedule", &json!(schedule), why);
    } else if let Err(why) = check_schedule(schedule) {
        check.invalid("spec.schedule", &json!(schedule), &why);
    }
    if spec.get("timeZone").is_some() {
        match text(spec, "timeZone") {
            "" => check.invalid(
                "spec.timeZone",
                &json!(""),
                "timeZone must be nil or non-empty string",
            ),
            zone if zone.eq_ignore_ascii_case("local") => {
                let why = "timeZone must be an explicit time zone as defined in \
                           https://www.iana.org/time-zones";
                check.invalid("spec.timeZone", &json!(zone), why);
            }
            _ => {}
        }
    }
    check.one_of(
        "spec.concurrencyPolicy",
        spec.get("concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
    );
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]
    {
        check.not_negative(&format!("spec.{field}"), spec.get(field));
    }
    let job = spec.field("jobTemplate.spec").unwrap_or(&Value::Null);
    job_spec(check, "spec.jobTemplate.spec", job);
    if job.get("manualSelector") == Some(&json!(true)) {
        let path = "spec.jobTemplate.spec.manualSelector";
        check.causes.push(objects::Cause::unsupported(path, &json!(true), &["nil", "false"]));
    }
}

/// A schedule of five fields, or one of the words that stand for one.
fn check_schedule(schedule: &str) -> Result<(), String> {
    if let Some(word) = schedule.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let every = word.strip_prefix("every ").is_some_and(|rest| {
            rest.trim().ends_with(['s', 'm', 'h']) && rest.starts_with(|c: char| c.is_ascii_digit())
        });
        if known.contains(&word) || every {
            return Ok(());
        }
        return Err(format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    for (field, (low, high)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            check_part(part, low, high)?;
        }
    }
    Ok(())
}

fn check_part(part: &str, low: u32, high: u32) -> Result<(), String> {
    let (range, step) =
        part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step
        && step.parse::<u32>().map_or(true, |step| step == 0)
    {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let number = |word: &str| -> Result<u32, String> {
        let names = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
        let months =
            ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        let lower = word.to_ascii_lowercase();
        let named = match high {
            7 => names.iter().position(|name| *name == lower),
            12 => months.iter().position(|name| *name == lower).map(|at| at.saturating_add(1)),
            _ => None,
        };
        match named {
            Some(at) => u32::try_from(at).map_err(|err| err.to_string()),
            None => {
                word.parse().map_err(|_| format!("failed to parse int from {word}: invalid syntax"))
            }
        }
    };
    let (from, to) = range.split_once('-').unwrap_or((range, range));
    let (from, to) = (number(from)?, number(to)?);
    if from < low {
        return Err(format!("beginning of range ({from}) below minimum ({low}): {part}"));
    }
    if to > high {
        return Err(format!("end of range ({to}) above maximum ({high}): {part}"));
    }
    if from > to {
        return Err(format!("beginning of range ({from}) beyond end of range ({to}): {part}"));
    }
    Ok(())
}

/// Checks an autoscaler.
pub(super) fn check_autoscaler(check: &mut Check, spec: &Value) {
    for field in ["kind", "name"] {
        if text(spec, &format!("scaleTargetRef.{field}")).is_empty() {
            check.required(format!("spec.scaleTargetRef.{field}"), "");
        }
    }
    let number = |field: &str| spec.get(field).and_then(Value::as_i64);
    let (least, most) = (number("minReplicas"), number("maxReplicas").unwrap_or(0));
    check.range("spec.minReplicas", spec.get("minReplicas"), 1, i64::MAX);
    if most < 1 {
        check.invalid("spec.maxReplicas", &json!(most), "must be greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        let why = "must be greater than or equal to `minReplicas`";
        check.invalid("spec.maxReplicas", &json!(most), why);
    }
    for (at, metric) in super::items(spec, "metrics").iter().enumerate() {
        let path = format!("spec.metrics[{at}]");
        let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        match text(metric, "type") {
            "" => check.required(format!("{path}.type"), "must specify a metric source type"),
            _ => check.one_of(&format!("{path}.type"), metric.get("type"), &kinds),
        }
    }
}

/// Checks a disruption budget.
pub(super) fn check_budget(check: &mut Check, spec: &Value) {
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if least.is_some() && most.is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        check.invalid("spec", spec, why);
    }
    for (field, value) in [("minAvailable", least), ("maxUnavailable", most)] {
        let path = format!("spec.{field}");
        match value {
            Some(Value::String(said)) => {
                let percent = said.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
                match percent {
                    None => check.invalid(
                        path,
                        &json!(said),
                        "a valid percent string must be a numeric string followed by an ending '%'",
                    ),
                    Some(over) if over > 100 => {
                        check.invalid(path, &json!(said), "must not be greater than 100%");
                    }
                    Some(_) => {}
                }
            }
            other => check.not_negative(&path, other),
        }
    }
    if let Some(selector) = spec.get("selector") {
        metadata::selector(check, "spec.selector", selector);
    }
    check.one_of(
        "spec.unhealthyPodEvictionPolicy",
        spec.get("unhealthyPodEvictionPolicy"),
        &["AlwaysAllow", "IfHealthyBudget"],
    );
}
