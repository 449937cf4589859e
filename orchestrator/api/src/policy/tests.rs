use serde_json::json;

use super::*;
use crate::{
    admission::Nothing,
    request::{Request, Route, parse_request},
    webhook,
};

fn request() -> Request {
    match parse_request("POST", "/apis/apps/v1/namespaces/n/deployments", "") {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{other:?}"),
    }
}

fn deployment(replicas: i64) -> Json {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "n", "labels": {"app": "web"}},
        "spec": {"replicas": replicas, "paused": false},
    })
}

fn with_matter<T>(object: &Json, ask: impl FnOnce(&Matter<'_>) -> T) -> T {
    let request = request();
    let user = User { name: "ann".to_owned(), ..User::default() };
    let matter = Matter {
        request: &request,
        operation: "CREATE",
        object,
        old: &Json::Null,
        user: &user,
        view: &Nothing,
        uid: "u-1",
    };
    ask(&matter)
}

fn policy(spec: Json) -> Json {
    let mut policy = json!({
        "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "limit"},
        "spec": {"matchConstraints": {"resourceRules": [{
            "apiGroups": ["apps"], "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]}},
    });
    let fields = policy["spec"].as_object_mut().unwrap();
    fields.extend(spec.as_object().unwrap().clone());
    policy
}

fn binding(spec: Json) -> Json {
    let mut binding = json!({"metadata": {"name": "here"}, "spec": {"policyName": "limit"}});
    binding["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    binding
}

fn ask(spec: Json, bound: Json, replicas: i64) -> Result<Vec<String>, String> {
    with_matter(&deployment(replicas), |matter| {
        let mut said = Said::default();
        validate(&[policy(spec)], &[binding(bound)], Registry::builtin(), matter, &mut said)
            .map(|()| said.warnings)
            .map_err(|status| format!("{} {} {}", status.code, status.reason, status.message))
    })
}

#[test]
fn a_policy_denies_or_warns_as_its_binding_says() {
    let spec = json!({"validations": [{"expression": "object.spec.replicas <= 5"}]});
    let deny = json!({"validationActions": ["Deny"]});
    assert_eq!(ask(spec.clone(), deny.clone(), 3), Ok(Vec::new()));
    assert_eq!(
        ask(spec.clone(), deny.clone(), 6).unwrap_err(),
        "422 Invalid deployments.apps \"web\" is forbidden: ValidatingAdmissionPolicy 'limit' with \
         binding 'here' denied request: failed expression: object.spec.replicas <= 5"
    );
    assert_eq!(
        ask(spec, json!({"validationActions": ["Warn"]}), 6).unwrap(),
        ["Validation failed for ValidatingAdmissionPolicy 'limit' with binding 'here': failed \
          expression: object.spec.replicas <= 5"]
    );
    let variables = json!({
        "variables": [{"name": "most", "expression": "2 + 3"},
                      {"name": "fits", "expression": "object.spec.replicas <= variables.most"}],
        "validations": [{
            "expression": "variables.fits", "reason": "Forbidden",
            "messageExpression": "'at most %d, said %s'.format([variables.most, request.userInfo.username])",
        }],
    });
    let said = ask(variables, deny.clone(), 6).unwrap_err();
    assert!(said.starts_with("403 Forbidden"), "{said}");
    assert!(said.ends_with("denied request: at most 5, said ann"), "{said}");
    let broken = json!({"validations": [{"expression": "object.spec.none > 1"}]});
    assert!(ask(broken.clone(), deny.clone(), 1).unwrap_err().contains("no such key: none"));
    let mut forgiving = broken;
    forgiving["failurePolicy"] = json!("Ignore");
    assert_eq!(ask(forgiving, deny.clone(), 1), Ok(Vec::new()));
    let elsewhere = json!({
        "validations": [{"expression": "false"}],
        "matchConditions": [{"name": "c", "expression": "request.userInfo.username != 'ann'"}],
    });
    assert_eq!(ask(elsewhere, deny.clone(), 1), Ok(Vec::new()));
    let mut other = deny;
    other["matchResources"] = json!({"objectSelector": {"matchLabels": {"app": "db"}}});
    assert_eq!(ask(json!({"validations": [{"expression": "false"}]}), other, 1), Ok(Vec::new()));
    let asks = json!({"validations": [
        {"expression": "authorizer.requestResource.check('create').allowed()"},
        {"expression": "authorizer.group('').resource('pods').namespace('n').check('get').allowed()"},
    ]});
    assert_eq!(ask(asks, json!({}), 1), Ok(Vec::new()));
}

#[test]
fn a_policy_changes_what_comes_in() {
    let spec = json!({"mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{metadata: Object.metadata{labels: {'team': 'x'}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {
            "expression": "[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]"}},
    ]});
    let ask = |spec: &Json, round: Round| {
        with_matter(&deployment(1), |matter| {
            let merge = |object: &Json, applied: &Json| {
                let mut merged = object.clone();
                json_patch::merge(&mut merged, applied);
                merged
            };
            let (policies, bindings) = ([policy(spec.clone())], [binding(json!({}))]);
            mutate(&policies, &bindings, Registry::builtin(), matter, round, &merge)
        })
        .unwrap()
    };
    let made = ask(&spec, Round::First);
    assert_eq!(made["metadata"]["labels"], json!({"app": "web", "team": "x"}));
    assert_eq!(made["spec"]["replicas"], 2);
    // After a webhook changed the object, only those are asked that want to be.
    assert_eq!(ask(&spec, Round::Again)["spec"]["replicas"], 1);
    let mut again = spec;
    again["reinvocationPolicy"] = json!("IfNeeded");
    assert_eq!(ask(&again, Round::Again)["spec"]["replicas"], 2);
}

#[test]
fn mistakes_are_seen_when_a_policy_is_written() {
    let causes = check(&policy(json!({
        "validations": [{"expression": "object.spec. > 1"}],
        "variables": [{"name": "x", "expression": "nothing"}],
    })));
    let paths: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
    assert_eq!(paths, ["spec.variables[0].expression", "spec.validations[0].expression"]);
}

#[test]
fn webhooks_are_asked_about_what_their_rules_name() {
    let hook = |rule: Json, more: Json| {
        let mut hook = json!({"name": "h.example.com", "rules": [rule], "sideEffects": "None"});
        hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": "c"}, "webhooks": [hook]})
    };
    let count = |rule: Json, more: Json| {
        with_matter(&deployment(1), |matter| {
            webhook::plan(&[hook(rule, more)], matter).unwrap().len()
        })
    };
    let rule = |group: &str, resource: &str, operation: &str| {
        json!({"apiGroups": [group], "apiVersions": ["*"], "operations": [operation],
               "resources": [resource]})
    };
    assert_eq!(count(rule("apps", "deployments", "CREATE"), json!({})), 1);
    assert_eq!(count(rule("*", "*", "*"), json!({})), 1);
    assert_eq!(count(rule("apps", "deployments/*", "CREATE"), json!({})), 1);
    assert_eq!(count(rule("apps", "deployments/scale", "CREATE"), json!({})), 0);
    assert_eq!(count(rule("", "deployments", "CREATE"), json!({})), 0);
    assert_eq!(count(rule("apps", "deployments", "DELETE"), json!({})), 0);
    let labelled = json!({"objectSelector": {"matchLabels": {"app": "db"}}});
    assert_eq!(count(rule("apps", "*", "*"), labelled), 0);
    let conditional = json!({"matchConditions": [
        {"name": "c", "expression": "object.spec.replicas > 3"}]});
    assert_eq!(count(rule("apps", "*", "*"), conditional), 0);
}

#[test]
fn what_a_webhook_says_is_done() {
    let hooks = with_matter(&deployment(1), |matter| {
        let configuration = json!({"metadata": {"name": "c"}, "webhooks": [{
            "name": "h.example.com", "rules": [{"apiGroups": ["*"], "apiVersions": ["*"],
            "operations": ["*"], "resources": ["*"]}]}]});
        let review = webhook::review(matter);
        assert_eq!(review["request"]["resource"]["resource"], "deployments");
        assert_eq!(review["request"]["userInfo"]["username"], "ann");
        webhook::plan(&[configuration], matter).unwrap()
    });
    let hook = &hooks[0];
    let answer = |response: Json| {
        webhook::verdict(hook, "u-1", &json!({"a": 1}), &json!({"response": response}))
    };
    let patch = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD
            .encode(r#"[{"op": "add", "path": "/b", "value": 2}]"#)
    };
    let changed = answer(json!({"uid": "u-1", "allowed": true, "patchType": "JSONPatch",
        "patch": patch, "warnings": ["w"]}))
    .unwrap();
    assert_eq!(changed.patched, Some(json!({"a": 1, "b": 2})));
    assert_eq!(changed.warnings, ["w"]);
    let no =
        answer(json!({"uid": "u-1", "allowed": false, "status": {"message": "no", "code": 400}}));
    let no = no.unwrap_err().unwrap();
    assert_eq!(
        (no.code, no.message.as_str()),
        (400, "admission webhook \"h.example.com\" denied the request: no")
    );
    assert!(answer(json!({"uid": "other", "allowed": true})).unwrap_err().is_err());
}

#[test]
fn expressions_are_held_against_the_kinds_they_match() {
    let told = |resources: &[&str], more: Json, texts: &[&str]| {
        let validations: Vec<Json> = texts.iter().map(|text| json!({"expression": text})).collect();
        let mut spec = json!({"validations": validations, "matchConstraints": {"resourceRules": [{
            "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": resources}]}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let policy = json!({"metadata": {"name": "p", "generation": 2}, "spec": spec,
            "status": {"observedGeneration": 1}});
        assert_eq!(check(&policy), Vec::new(), "what is told is not refused");
        let planned = plan_typing(&policy, Registry::builtin()).unwrap();
        assert_eq!(planned["status"]["observedGeneration"], 2);
        assert_eq!(plan_typing(&planned, Registry::builtin()), None);
        planned["status"]["typeChecking"].clone()
    };
    let one = ["deployments"];
    for fine in [
        "object.spec.replicas > 1",
        "object.metadata.name.startsWith('a') && object.kind == 'Deployment'",
        "object.spec.template.spec.containers.all(c, c.image != '' && has(c.resources))",
        "object.metadata.?labels['a'].orValue('') == 'b' || 'x' in object.metadata.labels",
        "object.spec.strategy.rollingUpdate.maxSurge == 1",
        "oldObject == null || object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
        "request.userInfo.username == 'ann' && namespaceObject.metadata.name != ''",
    ] {
        assert_eq!(told(&one, json!({}), &[fine]), json!({}), "{fine}");
    }
    let wrong = told(&one, json!({}), &["true", "object.spec.replicas > '1'"]);
    assert_eq!(
        wrong,
        json!({"expressionWarnings": [{"fieldRef": "spec.validations[1].expression", "warning":
            "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' \
             applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n"}]})
    );
    let text =
        |found: &Json| found["expressionWarnings"][0]["warning"].as_str().unwrap().to_owned();
    let wrong = told(&["daemonsets", "deployments"], json!({}), &["object.spec.replicas > 1"]);
    let wrong = text(&wrong);
    assert!(wrong.contains("Kind=DaemonSet") && !wrong.contains("Kind=Deployment"), "{wrong}");
    assert!(wrong.contains("undefined field 'replicas'"), "{wrong}");
    let variables = json!({"variables": [{"name": "image", "expression":
        "object.spec.template.spec.containers[0].image"}]});
    let wrong = told(&one, variables, &["variables.image > 1"]);
    assert!(text(&wrong).contains("applied to '(string, int)'"), "{wrong}");
    let params = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}});
    let wrong = told(&one, params, &["params.data.max == '1' && params.max == '1'"]);
    assert!(text(&wrong).contains("undefined field 'max'"), "{wrong}");
    // What is matched by any word cannot be held against anything.
    assert_eq!(told(&["*"], json!({}), &["object.nothing == 1"]), json!({}));
}

#[test]
fn variables_and_parameters_that_are_not_there_are_refused() {
    let paths = |spec: Json| -> Vec<String> {
        check(&policy(spec)).into_iter().map(|cause| cause.field).collect()
    };
    let variables = json!([{"name": "a", "expression": "variables.b"}, {"name": "b",
        "expression": "1"}]);
    let spec = json!({"variables": variables, "validations": [{"expression": "variables.b == 1"},
        {"expression": "variables.c == 1"}, {"expression": "params.x"}],
        "matchConditions": [{"name": "m", "expression": "variables.b == 1"}]});
    assert_eq!(
        paths(spec),
        [
            "spec.matchConditions[0].expression",
            "spec.variables[0].expression",
            "spec.validations[1].expression",
            "spec.validations[2].expression"
        ]
    );
}
