//! Rules an object must keep beyond its shape.
//!
//! Paths and reasons are upstream's, since kubectl shows them and programs look at them; the
//! sentences are our own.
//!
//! *Limits*: what the rarer fields of pods may say (windows, ephemeral containers, resource
//! claims, probes over gRPC) is not checked beyond its shape.

mod cluster;
mod metadata;
mod pod;
mod service;
mod update;
mod workload;

use std::collections::BTreeSet;

use objects::{Cause, Kind};
use serde_json::{Value, json};

/// Checks a new object, defaults filled in.
pub(crate) fn validate_create(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut check = Check::default();
    metadata::check(&mut check, kind, object);
    object_rules(&mut check, kind, object);
    check.causes
}

/// Checks the metadata of an object of any kind.
pub(crate) fn validate_metadata(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut check = Check::default();
    metadata::check(&mut check, kind, object);
    check.causes
}

/// Checks a changed object, defaults filled in.
pub(crate) fn validate_update(
    kind: &Kind,
    subresource: &str,
    old: &Value,
    new: &Value,
) -> Vec<Cause> {
    let mut check = Check::default();
    metadata::check(&mut check, kind, new);
    match subresource {
        "" => {
            object_rules(&mut check, kind, new);
            update::check(&mut check, kind, old, new);
        }
        "approval" => cluster::check_approval(&mut check, old, new),
        _ => {}
    }
    check.causes
}

fn object_rules(check: &mut Check, kind: &Kind, object: &Value) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    match kind.kind {
        "Pod" => pod::check_spec(check, "spec", spec),
        "Service" => service::check(check, spec),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            workload::check(check, kind, spec);
        }
        "ReplicationController" => workload::check_older(check, spec),
        "ConfigMap" | "Secret" => cluster::check_data(check, kind, object),
        "Node" => cluster::check_node(check, spec),
        "Event" => cluster::check_event(check, object),
        "EndpointSlice" => cluster::check_slice(check, object),
        "CertificateSigningRequest" => cluster::check_csr(check, spec),
        "Lease" => cluster::check_lease(check, spec),
        "Machine" => cluster::check_machine(check, spec),
        "Rack" => cluster::check_rack(check, spec),
        _ => {}
    }
}

/// Collects mistakes.
#[derive(Debug, Default)]
struct Check {
    causes: Vec<Cause>,
}

impl Check {
    fn required(&mut self, path: impl Into<String>, why: &str) {
        self.causes.push(Cause::required(path, why));
    }

    fn invalid(&mut self, path: impl Into<String>, value: &Value, why: &str) {
        self.causes.push(Cause::invalid(path, value, why));
    }

    fn forbidden(&mut self, path: impl Into<String>, why: &str) {
        self.causes.push(Cause::forbidden(path, why));
    }

    fn duplicate(&mut self, path: impl Into<String>, value: &Value) {
        self.causes.push(Cause::duplicate(path, value));
    }

    /// A text that must be there and keep a rule.
    fn name(&mut self, path: &str, text: &str, rule: fn(&str) -> Result<(), &'static str>) {
        if text.is_empty() {
            self.required(path, "");
        } else {
            self.rule(path, text, rule);
        }
    }

    /// A text that must keep a rule.
    fn rule(&mut self, path: &str, text: &str, rule: fn(&str) -> Result<(), &'static str>) {
        if let Err(why) = rule(text) {
            self.invalid(path, &json!(text), why);
        }
    }

    /// A text that must be one of some, where it is there.
    fn one_of(&mut self, path: &str, value: Option<&Value>, allowed: &[&str]) {
        if let Some(Value::String(text)) = value
            && !allowed.contains(&text.as_str())
        {
            self.causes.push(Cause::unsupported(path, &json!(text), allowed));
        }
    }

    /// A number that must lie in a range, where it is there.
    fn range(&mut self, path: &str, value: Option<&Value>, low: i64, high: i64) {
        let Some(number) = value.and_then(Value::as_i64) else { return };
        if number >= low && number <= high {
            return;
        }
        let why = if high == i64::MAX {
            format!("must be greater than or equal to {low}")
        } else {
            format!("must be between {low} and {high}, inclusive")
        };
        self.invalid(path, &json!(number), &why);
    }

    fn not_negative(&mut self, path: &str, value: Option<&Value>) {
        self.range(path, value, 0, i64::MAX);
    }

    /// A value that may stand once.
    fn once(&mut self, path: &str, text: &str, seen: &mut BTreeSet<String>) {
        if !text.is_empty() && !seen.insert(text.to_owned()) {
            self.duplicate(path, &json!(text));
        }
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    objects::field::str_at(value, path).unwrap_or("")
}

fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    objects::field::value_at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests;
