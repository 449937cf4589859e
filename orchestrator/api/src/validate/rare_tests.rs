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
fn quotas_flows_and_endpoints_name_what_is_wrong_and_where() {
    check_faults(&[
        (
            &kind::RESOURCE_QUOTA,
            "/spec",
            json!({"hard": {"services": "1"}, "scopes": ["BestEffort"]}),
            "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
        ),
        (
            &kind::RESOURCE_QUOTA,
            "/spec",
            json!({"hard": {"count/x.example.com": "1"}, "scopes": ["What"]}),
            "spec.scopes: Invalid value: [\"What\"]: unsupported scope",
        ),
        (
            &kind::RESOURCE_QUOTA,
            "/spec",
            json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In"}]}}),
            "spec.scopeSelector.matchExpressions.values: Required value: must be at least one \
             value when `operator` is 'In' or 'NotIn' for scope selector",
        ),
        (
            &kind::FLOW_SCHEMA,
            "/spec/rules/0/resourceRules",
            json!([{"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"]}]),
            "spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are \
             not cluster scoped must supply at least one namespace",
        ),
        (
            &kind::PRIORITY_LEVEL_CONFIGURATION,
            "/spec/limited/limitResponse",
            json!({"type": "Queue", "queuing": {"queues": 4, "handSize": 5, "queueLengthLimit": 1}}),
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 5: should not be greater \
             than queues (4)",
        ),
        (
            &kind::ENDPOINTS,
            "/subsets/0/addresses/0/ip",
            json!("169.254.0.7"),
            "subsets[0].addresses[0].ip: Invalid value: \"169.254.0.7\": may not be in the link-local \
             range (169.254.0.0/16, fe80::/10)",
        ),
        (
            &kind::ENDPOINTS,
            "/subsets/0/ports/0/port",
            json!(0),
            "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            &kind::ENDPOINT_SLICE,
            "/endpoints",
            json!([{"addresses": ["::1"]}]),
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
        ),
        (
            &kind::EVENT,
            "/eventTime",
            json!("2026-01-01T00:00:00.000000Z"),
            "reportingController: Required value",
        ),
        (
            &kind::CSI_STORAGE_CAPACITY,
            "/storageClassName",
            json!("A_b"),
            "storageClassName: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist \
             of lower case letters, digits, '-' and '.', and must start and end with a letter or \
             digit (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
    ]);
}

#[test]
fn devices_and_workloads_name_what_is_wrong_and_where() {
    check_faults(&[
        (
            &kind::DEVICE_CLASS,
            "/spec/selectors/0/cel/expression",
            json!("1"),
            "spec.selectors[0].cel.expression: Invalid value: \"1\": must evaluate to bool",
        ),
        (
            &kind::RESOURCE_CLAIM,
            "/spec/devices/requests/0/exactly",
            Value::Null,
            "spec.devices.requests[0]: Required value: exactly one of `exactly` or \
             `firstAvailable` is required",
        ),
        (
            &kind::RESOURCE_CLAIM_TEMPLATE,
            "/spec/spec/devices/requests/0/exactly/deviceClassName",
            json!(""),
            "spec.spec.devices.requests[0].exactly.deviceClassName: Required value",
        ),
        (
            &kind::RESOURCE_SLICE,
            "/spec/pool/resourceSliceCount",
            json!(0),
            "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
        ),
        (
            &kind::RESOURCE_SLICE,
            "/spec/nodeName",
            Value::Null,
            "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, \
             `perDeviceNodeSelection` is required",
        ),
        (
            &kind::STATEFUL_SET,
            "/spec/podManagementPolicy",
            json!("Odd"),
            "spec.podManagementPolicy: Invalid value: \"Odd\": must be 'OrderedReady' or 'Parallel'",
        ),
        (
            &kind::DAEMON_SET,
            "/spec/updateStrategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0 when \
             maxSurge is 0",
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
