//! Rules of the rarer kinds, by what they say.

use objects::kind::{self, Kind};
use serde_json::{Value, json};

use super::{validate_create, validate_update};

/// A good object of the file, changed in one place.
fn changed(kind: &Kind, path: &str, value: Value) -> (Value, Value) {
    let mut good = crate::prepare::every_kind::made(kind);
    let before = good.clone();
    let (parent, field) = path.rsplit_once('/').unwrap();
    let parent = good.pointer_mut(parent).unwrap();
    match (parent, field.parse::<usize>()) {
        (Value::Array(all), Ok(at)) => all[at] = value,
        (Value::Object(fields), _) if value.is_null() => {
            fields.remove(field);
        }
        (Value::Object(fields), _) => {
            fields.insert(field.to_owned(), value);
        }
        (other, _) => panic!("{path}: {other}"),
    }
    (before, good)
}

fn rendered(causes: &[objects::Cause]) -> Vec<String> {
    causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// A kind, what to change in a good object of it, and what is then said.
type Fault<'a> = (&'static Kind, &'a str, Value, &'a str);

fn check_faults(faults: &[Fault]) {
    for (kind, path, value, expected) in faults {
        let (_, bad) = changed(kind, path, value.clone());
        let said = rendered(&validate_create(kind, &bad));
        assert!(said.iter().any(|one| one == expected), "{kind:?} {path}: {said:#?}");
    }
}

#[test]
fn every_kind_of_work_and_network_names_what_is_wrong_and_where() {
    check_faults(&[
        (
            &kind::JOB,
            "/spec/template/spec/restartPolicy",
            json!("Always"),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            &kind::CRON_JOB,
            "/spec/schedule",
            json!("* * * *"),
            "spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]",
        ),
        (
            &kind::CRON_JOB,
            "/spec/schedule",
            json!("61 * * * *"),
            "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61",
        ),
        (
            &kind::POD_DISRUPTION_BUDGET,
            "/spec/minAvailable",
            json!("ten"),
            "spec.minAvailable: Invalid value: \"ten\": a valid percent string must be a numeric \
             string followed by an ending '%'",
        ),
        (
            &kind::HORIZONTAL_POD_AUTOSCALER,
            "/spec/maxReplicas",
            json!(0),
            "spec.maxReplicas: Invalid value: 0: must be greater than 0",
        ),
        (
            &kind::INGRESS,
            "/spec/rules/0/http/paths/0/path",
            json!("x"),
            "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
        ),
        (
            &kind::INGRESS_CLASS,
            "/spec/controller",
            json!("x"),
            "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \
             \"acme.io/foo\")",
        ),
        (
            &kind::NETWORK_POLICY,
            "/spec/ingress/0/from/0/ipBlock/except/0",
            json!("10.0.0.0/8"),
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a \
             strict subset of `cidr` \"192.0.2.0/24\"",
        ),
        (
            &kind::SERVICE_CIDR,
            "/spec/cidrs/0",
            json!("10.5.0.1/24"),
            "spec.cidrs[0]: Invalid value: \"10.5.0.1/24\": must be in canonical form",
        ),
    ]);
}

#[test]
fn every_kind_of_storage_and_rule_names_what_is_wrong_and_where() {
    check_faults(&[
        (
            &kind::PERSISTENT_VOLUME_CLAIM,
            "/spec/accessModes",
            json!([]),
            "spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            &kind::PERSISTENT_VOLUME,
            "/spec/hostPath",
            Value::Null,
            "spec: Required value: must specify a volume type",
        ),
        (
            &kind::PRIORITY_CLASS,
            "/value",
            json!(1_000_000_001),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            &kind::LIMIT_RANGE,
            "/spec/limits/0/min",
            json!({"cpu": "2"}),
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
        ),
        (
            &kind::CLUSTER_ROLE,
            "/rules/0/verbs",
            json!([]),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            &kind::VALIDATING_WEBHOOK_CONFIGURATION,
            "/webhooks/0/timeoutSeconds",
            json!(31),
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 \
             and 30 seconds",
        ),
        (
            &kind::FLOW_SCHEMA,
            "/spec/matchingPrecedence",
            json!(10_001),
            "spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000",
        ),
    ]);
}

#[test]
fn what_is_fixed_stays() {
    for (kind, path, value, expected) in [
        (
            &kind::STORAGE_CLASS,
            "/provisioner",
            json!("other.example.com"),
            "provisioner: Forbidden: updates to provisioner are forbidden.",
        ),
        (
            &kind::PRIORITY_CLASS,
            "/value",
            json!(7),
            "value: Forbidden: may not be changed in an update.",
        ),
        (
            &kind::PERSISTENT_VOLUME,
            "/spec/hostPath",
            json!({"path": "/other", "type": ""}),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable \
             after creation",
        ),
        (
            &kind::INGRESS_CLASS,
            "/spec/controller",
            json!("example.com/other"),
            "spec.controller: Invalid value: \"example.com/other\": field is immutable",
        ),
        (
            &kind::JOB,
            "/spec/completions",
            json!(2),
            "spec.completions: Invalid value: 2: field is immutable",
        ),
        (
            &kind::CONTROLLER_REVISION,
            "/data",
            json!({"other": 1}),
            "data: Invalid value: {\"other\":1}: field is immutable",
        ),
    ] {
        let (old, new) = changed(kind, path, value);
        let said = rendered(&validate_update(kind, "", &old, &new));
        assert!(said.iter().any(|one| one == expected), "{kind:?} {path}: {said:#?}");
    }
}
