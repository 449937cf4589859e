use serde_json::{Value, json};

use super::*;
use crate::{
    authority::User,
    prepare::{Body, Context, Prepared, prepare_create, prepare_patch, prepare_update},
    request::{Request, Route, parse_request_in},
};

/// The definition the stories are about.
fn crontab() -> Value {
    serde_json::from_str(include_str!("testdata/crontab.json")).unwrap()
}

fn registry() -> Registry {
    Registry::new(&[Definition::read(&crontab()).unwrap()])
}

fn request(method: &str, path: &str, query: &str) -> Request {
    match parse_request_in(&registry(), method, path, query) {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{method} {path}: {other:?}"),
    }
}

const LIST: &str = "/apis/stable.example.com/v1/namespaces/n/crontabs";
const ONE: &str = "/apis/stable.example.com/v1/namespaces/n/crontabs/a";

fn context(user: &User) -> Context<'_> {
    Context {
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
        uid: "u-1".to_owned(),
        name_suffix: "bcdfg".to_owned(),
        user,
        user_agent: "test/1",
        view: &crate::admission::Nothing,
    }
}

fn admin() -> User {
    crate::authority::User { name: "admin".to_owned(), ..User::default() }
}

fn create(query: &str, spec: &Value) -> Result<Prepared, objects::Status> {
    let body = json!({
        "apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "metadata": {"name": "a"}, "spec": spec,
    });
    let bytes = body.to_string();
    let body = Body { bytes: bytes.as_bytes(), content_type: "application/json" };
    prepare_create(&request("POST", LIST, query), &body, &context(&admin()))
}

#[test]
fn a_definition_that_keeps_the_rules_passes() {
    let mut object = crontab();
    default_definition(&mut object);
    assert_eq!(check_definition(&object, None), []);
}

#[track_caller]
fn broken(change: impl Fn(&mut Value), expected: &[&str]) {
    let mut object = crontab();
    change(&mut object);
    default_definition(&mut object);
    let found: Vec<String> = check_definition(&object, None)
        .into_iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn definitions_that_break_rules_hear_which() {
    broken(
        |o| o["metadata"]["name"] = json!("x.stable.example.com"),
        &["metadata.name: Invalid value: \"x.stable.example.com\": must be \
           spec.names.plural+\".\"+spec.group"],
    );
    let schema = "/spec/versions/0/schema/openAPIV3Schema";
    let at = |o: &mut Value, path: &str, value: Value| {
        let (parent, key) = path.rsplit_once('/').unwrap();
        o.pointer_mut(&format!("{schema}{parent}")).unwrap()[key] = value;
    };
    let base = "spec.versions[0].schema.openAPIV3Schema";
    broken(
        |o| at(o, "/properties/spec/properties/x", json!({})),
        &[&format!(
            "{base}.properties[spec].properties[x].type: Required value: must not be empty for \
             specified object fields"
        )],
    );
    broken(
        |o| at(o, "/properties/spec/properties/x", json!({"type": "array"})),
        &[&format!(
            "{base}.properties[spec].properties[x].items: Required value: must be specified"
        )],
    );
    broken(
        |o| at(o, "/properties/spec/properties/x", json!({"type": "string", "default": 3})),
        &[&format!(
            "{base}.properties[spec].properties[x].default: Invalid value: \"integer\": \
             {base}.properties[spec].properties[x].default in body must be of type string: \
             \"integer\""
        )],
    );
    broken(
        |o| o["spec"]["versions"][1]["storage"] = json!(true),
        &["spec.versions: Invalid value: [\"v1\",\"v1beta1\"]: must have exactly one version \
           marked as storage version"],
    );
    broken(
        |o| {
            o["spec"]["group"] = json!("x.k8s.io");
            o["metadata"]["name"] = json!("crontabs.x.k8s.io");
        },
        &["metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups \
           must have approval annotation \"api-approved.kubernetes.io\", see \
           https://github.com/kubernetes/enhancements/pull/1111"],
    );
}

#[test]
fn what_comes_in_is_pruned_and_defaulted() {
    let made = create(
        "fieldValidation=Warn",
        &json!({
            "cron": "* *", "none": 1, "free": {"x": 1}, "labels": {"k": "v"},
            "hosts": [{"name": "h", "gone": 1}],
        }),
    )
    .unwrap();
    assert_eq!(
        made.object["spec"],
        json!({
            "cron": "* *", "free": {"x": 1}, "labels": {"k": "v"}, "replicas": 1,
            "hosts": [{"name": "h", "weight": 5}],
        })
    );
    assert_eq!(
        made.warnings,
        ["unknown field \"spec.hosts[0].gone\"", "unknown field \"spec.none\"",]
    );
    assert_eq!(made.object["metadata"]["generation"], 1);
    let strict = create("fieldValidation=Strict", &json!({"cron": "*", "none": 1})).unwrap_err();
    assert_eq!(
        strict.message,
        "CronTab in version \"v1\" cannot be handled as a CronTab: strict decoding error: unknown \
         field \"spec.none\""
    );
}

#[track_caller]
fn refused(spec: &Value, expected: &[&str]) {
    let status = create("", spec).unwrap_err();
    let found: Vec<String> = status
        .details
        .unwrap()
        .causes
        .into_iter()
        .map(|cause| format!("{} {}: {}", cause.reason, cause.field, cause.message))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn values_that_break_the_schema_hear_it_in_upstreams_words() {
    refused(&json!({}), &["FieldValueRequired spec.cron: Required value"]);
    refused(
        &json!({"cron": "x"}),
        &["FieldValueInvalid spec.cron: Invalid value: \"x\": spec.cron in body should match \
           '^[0-9* ]+$'"],
    );
    refused(
        &json!({"cron": "*", "replicas": 11}),
        &["FieldValueInvalid spec.replicas: Invalid value: 11: spec.replicas in body should be \
           less than or equal to 10"],
    );
    refused(
        &json!({"cron": "*", "replicas": "x"}),
        &["FieldValueTypeInvalid spec.replicas: Invalid value: \"string\": spec.replicas in body \
           must be of type integer: \"string\""],
    );
    refused(
        &json!({"cron": "*", "mode": "c"}),
        &["FieldValueNotSupported spec.mode: Unsupported value: \"c\": supported values: \"a\", \
           \"b\""],
    );
    refused(
        &json!({"cron": "*", "hosts": [{"name": "h"}, {"name": "h"}]}),
        &["FieldValueDuplicate spec.hosts[1]: Duplicate value: {\"name\":\"h\"}"],
    );
    refused(
        &json!({"cron": "*", "port": true}),
        &[
            "FieldValueTypeInvalid spec.port: Invalid value: \"boolean\": spec.port in body must be \
           of type integer,string: \"boolean\"",
        ],
    );
}

#[test]
fn apply_follows_the_list_keys_of_the_schema() {
    let apply = |old: Option<&Value>, manager: &str, hosts: Value| {
        let body = json!({
            "apiVersion": "stable.example.com/v1", "kind": "CronTab",
            "metadata": {"name": "a"}, "spec": {"cron": "*", "hosts": hosts},
        })
        .to_string();
        let body = Body { bytes: body.as_bytes(), content_type: "application/apply-patch+yaml" };
        let request = request("PATCH", ONE, &format!("fieldManager={manager}"));
        prepare_patch(&request, &body, old, &context(&admin()))
    };
    let first = apply(None, "one", json!([{"name": "x", "weight": 1}])).unwrap().object;
    let both = apply(Some(&first), "two", json!([{"name": "y"}])).unwrap().object;
    assert_eq!(
        both["spec"]["hosts"],
        json!([{"name": "x", "weight": 1}, {"name": "y", "weight": 5}])
    );
    let conflict = apply(Some(&both), "two", json!([{"name": "x", "weight": 2}])).unwrap_err();
    assert_eq!(conflict.reason, "Conflict");
    assert!(conflict.message.contains(".spec.hosts[name=\"x\"].weight"), "{}", conflict.message);
    let unknown = apply(Some(&both), "two", json!([{"name": "x", "none": 2}])).unwrap_err();
    assert!(unknown.message.contains(".spec.hosts[0].none: field not declared in schema"));
}

#[test]
fn scale_reads_and_writes_where_the_definition_says() {
    let object = create("", &json!({"cron": "*", "replicas": 3})).unwrap().object;
    let get = request("GET", &format!("{ONE}/scale"), "");
    let scale = crate::answer(&get, &object);
    assert_eq!(scale["spec"], json!({"replicas": 3}));
    let put = request("PUT", &format!("{ONE}/scale"), "");
    let body = json!({"spec": {"replicas": 7}, "metadata": {"name": "a"}}).to_string();
    let body = Body { bytes: body.as_bytes(), content_type: "application/json" };
    let scaled = prepare_update(&put, &body, &object, &context(&admin())).unwrap();
    assert_eq!(scaled.object["spec"]["replicas"], 7);
    assert_eq!(scaled.object["metadata"]["generation"], 2);
}

#[test]
fn discovery_and_openapi_say_what_a_definition_adds() {
    let registry = registry();
    let get = |path: &str| {
        let Ok(Route::Document(found)) = parse_request_in(&registry, "GET", path, "") else {
            panic!("{path}");
        };
        let document = crate::render_document_in(&registry, &found, "", "", "").unwrap();
        serde_json::from_slice::<Value>(&document.bytes).unwrap()
    };
    let group = get("/apis/stable.example.com");
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let names: Vec<Value> = get("/apis/stable.example.com/v1")["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].clone())
        .collect();
    assert_eq!(names, ["crontabs", "crontabs/scale", "crontabs/status"]);
    let v3 = get("/openapi/v3/apis/stable.example.com/v1");
    let shape = &v3["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(shape["properties"]["spec"]["properties"]["cron"]["type"], "string");
    assert_eq!(shape["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    let v2 = get("/openapi/v2");
    assert!(v2["definitions"]["com.example.stable.v1.CronTab"].is_object());
    assert!(get("/openapi/v3")["paths"]["apis/stable.example.com/v1"].is_object());
    assert!(crate::parse_request("GET", "/apis/stable.example.com/v1/crontabs", "").is_err());
}

/// The definition with a rule beside its spec.
fn ruled(rule: Value) -> Value {
    let mut object = crontab();
    let at = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    object.pointer_mut(at).unwrap()["x-kubernetes-validations"] = json!([rule]);
    default_definition(&mut object);
    object
}

#[test]
fn rules_are_checked_when_they_are_defined() {
    let says = |rule: Value, expected: &str| {
        let causes = check_definition(&ruled(rule), None);
        match causes.as_slice() {
            [] => assert_eq!(expected, ""),
            [cause] => assert!(cause.message.contains(expected), "{}", cause.message),
            many => panic!("{many:?}"),
        }
    };
    says(json!({"rule": "self.replicas > 0 && self.cron != ''"}), "");
    says(json!({"rule": "self.replicas >= oldSelf.replicas"}), "");
    says(json!({"rule": "self.z == 100"}), "undefined field 'z'");
    says(json!({"rule": "self.replicas =="}), "Syntax error");
    says(json!({"rule": "self.replicas == 'x'"}), "no matching overload for '_==_'");
    says(json!({"rule": "self.replicas"}), "must evaluate to a bool");
    says(json!({"rule": "true", "messageExpression": "1"}), "must evaluate to a string");
    says(
        json!({"rule": "self.hosts.all(a, self.hosts.all(b, a.name != '' || b.name != ''))"}),
        "estimated rule cost exceeds budget by more than 100x",
    );
}

#[test]
fn rules_are_asked_of_objects_and_of_changes() {
    let ask = |rule: Value, old: Option<Value>, new: Value| -> Vec<String> {
        let definition = Definition::read(&ruled(rule)).unwrap();
        let old = old.map(|spec| json!({"spec": spec}));
        definition.versions()[0]
            .validate(&json!({"spec": new}), old.as_ref())
            .into_iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    };
    let spec = |replicas: i64| json!({"cron": "*", "replicas": replicas});
    let rule = json!({"rule": "self.replicas > 2"});
    assert!(ask(rule.clone(), None, spec(3)).is_empty());
    assert_eq!(
        ask(rule, None, spec(1)),
        ["spec: Invalid value: \"object\": failed rule: self.replicas > 2"]
    );
    let grow = json!({
        "rule": "self.replicas >= oldSelf.replicas", "fieldPath": ".replicas",
        "reason": "FieldValueForbidden",
        "messageExpression": "'not below %d'.format([oldSelf.replicas])",
    });
    assert!(ask(grow.clone(), None, spec(1)).is_empty());
    assert_eq!(ask(grow, Some(spec(5)), spec(1)), ["spec.replicas: Forbidden: not below 5"]);
    let first = json!({
        "rule": "oldSelf.hasValue() || self.replicas == 1", "optionalOldSelf": true,
        "message": "begin small",
    });
    assert_eq!(ask(first.clone(), None, spec(5)), ["spec: Invalid value: \"object\": begin small"]);
    assert!(ask(first, Some(spec(1)), spec(5)).is_empty());
}

#[test]
fn names_belong_to_who_had_them_first() {
    let now = objects::Time::from("2026-01-02T03:04:05Z".parse::<jiff::Timestamp>().unwrap());
    let mut first = crontab();
    let planned = plan_status(&first, &[], now);
    assert!(planned.established);
    first["status"] = planned.status.unwrap();
    assert_eq!(first["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(plan_status(&first, &[first.clone()], now).status, None);
    let mut second = crontab();
    second["metadata"]["name"] = json!("others.stable.example.com");
    second["spec"]["names"]["plural"] = json!("others");
    second["spec"]["names"]["singular"] = json!("other");
    let planned = plan_status(&second, &[first], now);
    assert!(!planned.established);
    let status = planned.status.unwrap();
    assert_eq!(status["conditions"][0]["reason"], "ShortNamesConflict");
    assert_eq!(status["conditions"][1]["reason"], "NotAccepted");
}

#[test]
fn newer_versions_come_first() {
    let mut names = vec!["v1beta1", "foo", "v10", "v1", "v2alpha1", "v1beta2", "bar", "v2"];
    names.sort_by_key(|name| std::cmp::Reverse(rank(name)));
    assert_eq!(names, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v2alpha1", "bar", "foo"]);
}
