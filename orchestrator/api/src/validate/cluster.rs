//! The smaller kinds.

use std::{collections::BTreeSet, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use objects::field::Fields as _;
use objects::{Cause, Kind, name};
use serde_json::{Value, json};

use super::{Check, items, text};

/// The data of a config map or secret.
const DATA_BYTES_MAX: usize = 1024 * 1024;
/// Words of an event.
const EVENT_WORD_BYTES_MAX: usize = 128;
const EVENT_NOTE_BYTES_MAX: usize = 1024;

pub(super) fn check_data(check: &mut Check, kind: &Kind, object: &Value) {
    let mut size: usize = 0;
    for half in ["data", "binaryData"] {
        for (key, value) in object.get(half).and_then(Value::as_object).into_iter().flatten() {
            check.rule(&format!("{half}[{key}]"), key, name::check_config_key);
            size = size.saturating_add(value.as_str().map_or(0, str::len));
            if half == "binaryData" && object.field("data").is_some_and(|d| d.get(key).is_some()) {
                let why = "duplicate of key present in data";
                check.invalid(format!("binaryData[{key}]"), &json!(key), why);
            }
        }
    }
    // Base64 is a third longer than what it stands for.
    let limit = if kind.kind == "Secret" { DATA_BYTES_MAX / 3 * 4 + 4 } else { DATA_BYTES_MAX };
    if size > limit {
        check.causes.push(Cause {
            reason: "FieldValueTooLong".to_owned(),
            message: format!("Too long: may not be more than {DATA_BYTES_MAX} bytes"),
            field: if kind.kind == "Secret" { "data".to_owned() } else { String::new() },
        });
    }
    if kind.kind == "Secret" {
        check_secret_type(check, object);
    }
}

/// Some types of secrets promise keys.
fn check_secret_type(check: &mut Check, object: &Value) {
    let needed: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if object.get("data").and_then(|data| data.get(*key)).is_none() {
            check.required(format!("data[{key}]"), "");
        }
    }
    if text(object, "type") == "kubernetes.io/dockerconfigjson"
        && let Some(said) = object.pointer("/data/.dockerconfigjson").and_then(Value::as_str)
        && let Err(err) =
            serde_json::from_slice::<Value>(&STANDARD.decode(said).unwrap_or_default())
    {
        let hidden = json!("<secret contents redacted>");
        check.invalid("data[.dockerconfigjson]", &hidden, &err.to_string());
    }
}

/// Who serves a group: the name says which, and places are within bounds.
pub(super) fn check_api_service(check: &mut Check, object: &Value, spec: &Value) {
    let name = text(object, "metadata.name");
    let wanted = format!("{}.{}", text(spec, "version"), text(spec, "group"));
    if name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        check.invalid("metadata.name", &json!(name), &why);
    }
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let value = spec.get(field).and_then(Value::as_i64).unwrap_or(0);
        if !(1..=most).contains(&value) {
            let why = format!("must be positive and less than {most}");
            check.invalid(format!("spec.{field}"), &json!(value), &why);
        }
    }
    let bundle = text(spec, "caBundle");
    if spec.get("insecureSkipTLSVerify") == Some(&json!(true)) && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        check.invalid("spec.insecureSkipTLSVerify", &json!(true), why);
    }
}

pub(super) fn check_node(check: &mut Check, spec: &Value) {
    let mut seen = BTreeSet::new();
    for (at, taint) in items(spec, "taints").iter().enumerate() {
        let path = format!("spec.taints[{at}]");
        check.name(&format!("{path}.key"), text(taint, "key"), name::check_label_key);
        check.rule(&format!("{path}.value"), text(taint, "value"), name::check_label_value);
        let effect = text(taint, "effect");
        if effect.is_empty() {
            check.required(format!("{path}.effect"), "");
        }
        let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        check.one_of(&format!("{path}.effect"), taint.get("effect"), &effects);
        check.once(&path, &format!("{}:{effect}", text(taint, "key")), &mut seen);
    }
    for (at, range) in items(spec, "podCIDRs").iter().enumerate() {
        let fits = range.as_str().and_then(|text| text.split_once('/')).is_some_and(|(ip, len)| {
            ip.parse::<IpAddr>().is_ok() && len.parse::<u8>().is_ok_and(|len| len <= 128)
        });
        if !fits {
            check.invalid(format!("spec.podCIDRs[{at}]"), range, "must be a valid CIDR value");
        }
    }
}

pub(super) fn check_event(check: &mut Check, object: &Value) {
    let own = text(object, "metadata.namespace");
    let about = text(object, "involvedObject.namespace");
    // Events about things without a namespace live in `default`.
    let fits =
        if about.is_empty() { own == "default" || own == "kube-system" } else { own == about };
    if !fits {
        let why = "does not match event.namespace";
        check.invalid("involvedObject.namespace", &json!(about), why);
    }
    if object.get("eventTime").is_none_or(Value::is_null) {
        return;
    }
    // Events with a time of their own say who tells what.
    let teller = text(object, "reportingComponent");
    check.name("reportingController", teller, name::check_label_key);
    for field in ["reportingInstance", "action", "reason"] {
        let said = text(object, field);
        if said.is_empty() {
            check.required(field, "");
        } else if said.len() > EVENT_WORD_BYTES_MAX {
            let why = format!("can have at most {EVENT_WORD_BYTES_MAX} characters");
            check.invalid(field, &json!(""), &why);
        }
    }
    if text(object, "message").len() > EVENT_NOTE_BYTES_MAX {
        let why = format!("can have at most {EVENT_NOTE_BYTES_MAX} characters");
        check.invalid("message", &json!(""), &why);
    }
}

/// What an event of events.k8s.io says: its time, and nothing in the older fields.
pub(super) fn check_newer_event(check: &mut Check, object: &Value) {
    if object.get("eventTime").is_none_or(Value::is_null) {
        check.required("eventTime", "");
    }
    let kind = text(object, "type");
    if !matches!(kind, "Normal" | "Warning") {
        check.invalid("type", &json!(""), &format!("has invalid value: {kind}"));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if object.get(field).is_some_and(|time| !time.is_null()) {
            check.invalid(field, &json!(""), "needs to be unset");
        }
    }
    if object.get("count").is_some_and(|count| count != 0) {
        check.invalid("count", &json!(""), "needs to be unset");
    }
    if ["source.component", "source.host"].iter().any(|path| !text(object, path).is_empty()) {
        check.invalid("source", &json!(""), "needs to be unset");
    }
}

pub(super) fn check_csr(check: &mut Check, spec: &Value) {
    let request = text(spec, "request");
    let pem = STANDARD.decode(request).unwrap_or_default();
    if request.is_empty() {
        check.required("spec.request", "");
    } else if !pem.starts_with(b"-----BEGIN CERTIFICATE REQUEST-----") {
        let why = "PEM block type must be CERTIFICATE REQUEST";
        check.invalid("spec.request", &json!("..."), why);
    }
    let signer = text(spec, "signerName");
    match signer.split_once('/') {
        None if signer.is_empty() => check.required("spec.signerName", ""),
        Some((domain, rest)) if name::check_dns_subdomain(domain).is_ok() && !rest.is_empty() => {}
        _ => {
            let why = "must be a fully qualified domain and path of the form \
                       'example.com/signer-name'";
            check.invalid("spec.signerName", &json!(signer), why);
        }
    }
    if items(spec, "usages").is_empty() {
        check.required("spec.usages", "usages must be specified");
    }
    check.range("spec.expirationSeconds", spec.get("expirationSeconds"), 600, i64::MAX);
}

/// A request is approved or denied, never both, and never taken back.
pub(super) fn check_approval(check: &mut Check, old: &Value, new: &Value) {
    let has = |object: &Value, kind: &str| {
        items(object, "status.conditions").iter().any(|condition| text(condition, "type") == kind)
    };
    let conditions = items(new, "status.conditions");
    if has(new, "Approved") && has(new, "Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        check.invalid("status.conditions", &json!(conditions.len()), why);
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if has(old, kind) && !has(new, kind) {
            let why = format!("updates may not remove a condition of type \"{kind}\"");
            check.forbidden("status.conditions", &why);
        }
    }
    for (at, condition) in conditions.iter().enumerate() {
        if text(condition, "type").is_empty() {
            check.required(format!("status.conditions[{at}].type"), "");
        }
    }
}

pub(super) fn check_lease(check: &mut Check, spec: &Value) {
    if let Some(seconds) = spec.get("leaseDurationSeconds").filter(|it| it.as_i64() < Some(1)) {
        check.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    check.not_negative("spec.leaseTransitions", spec.get("leaseTransitions"));
}

pub(super) fn check_machine(check: &mut Check, spec: &Value) {
    for field in ["rack", "role", "mac"] {
        if text(spec, field).is_empty() {
            check.required(format!("spec.{field}"), "");
        }
    }
    check.one_of("spec.role", spec.get("role"), &["master", "worker"]);
    check.one_of("spec.boot", spec.get("boot"), &["bios", "uefi-http", "uefi-pxe"]);
    for field in ["address", "gateway"] {
        check_address(check, &format!("spec.{field}"), text(spec, field));
    }
    check.range("spec.node", spec.get("node"), 0, i64::MAX);
}

pub(super) fn check_rack(check: &mut Check, spec: &Value) {
    for field in ["subnet", "gateway"] {
        if text(spec, field).is_empty() {
            check.required(format!("spec.{field}"), "");
        }
    }
    check_address(check, "spec.gateway", text(spec, "gateway"));
    let modes = ["bgp", "ibgp", "ospf"];
    check.one_of("spec.routing.mode", spec.field("routing.mode"), &modes);
}

fn check_address(check: &mut Check, path: &str, said: &str) {
    if !said.is_empty() && said.parse::<IpAddr>().is_err() {
        check.invalid(path, &json!(said), "must be a valid IP address");
    }
}
