use super::*;
use crate::request::{Route, parse_request};

fn request(url: &str) -> Request {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    match parse_request("POST", path, query) {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{url}: {other:?}"),
    }
}

#[track_caller]
fn check(url: &str, content_type: &str, body: &str, expected: Result<Value, &str>) {
    let body = Body { bytes: body.as_bytes(), content_type };
    match (decode_object(&request(url), &body), expected) {
        (Ok(found), Ok(wanted)) => assert_eq!(found.value, wanted),
        (Err(status), Err(wanted)) => {
            assert!(status.message.contains(wanted), "{}", status.message);
        }
        (found, wanted) => panic!("{found:?}, wanted {wanted:?}"),
    }
}

const PODS: &str = "/api/v1/namespaces/a/pods";

#[test]
fn values_take_the_one_form() {
    check(
        PODS,
        "application/json",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"creationTimestamp":null,"labels":{"a":null}},
            "spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":1.5,"memory":"1024Ki"}},
            "ports":[{"containerPort":80.0}]}],"volumes":null}}"#,
        Ok(json!({"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"a":""}},
            "spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1500m","memory":"1Mi"}},
            "ports":[{"containerPort":80}]}]}})),
    );
}

#[test]
fn yaml_bodies_are_read() {
    check(
        PODS,
        "application/yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    args: ['1']\n",
        Ok(json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},
            "spec":{"containers":[{"name":"c","args":["1"]}]}})),
    );
}

#[test]
fn wrong_types_are_turned_down() {
    let pod = |spec: &str| format!(r#"{{"apiVersion":"v1","kind":"Pod","spec":{spec}}}"#);
    for (spec, why) in [
        (
            r#"{"nodeName":3}"#,
            "cannot unmarshal number into Go struct field Pod.spec.nodeName of type string",
        ),
        (r#"{"containers":{}}"#, "Pod.spec.containers of type list"),
        (r#"{"terminationGracePeriodSeconds":"x"}"#, "of type int64"),
        (r#"{"overhead":{"cpu":"x"}}"#, "quantities must match the regular expression"),
        (r#"{"overhead":{"cpu":true}}"#, "of type quantity"),
        ("3", "Pod.spec of type object"),
    ] {
        check(PODS, "application/json", &pod(spec), Err(why));
    }
    check(PODS, "application/json", "{", Err("not JSON"));
    check(PODS, "application/json", "[]", Err("not an object"));
    check(PODS, "text/plain", "{}", Err("accepted media types"));
    check(
        PODS,
        "application/json",
        r#"{"apiVersion":"v1","kind":"Node"}"#,
        Err("Kind=Pod is expected"),
    );
    let event = "/apis/events.k8s.io/v1/namespaces/a/events";
    check(
        event,
        "application/json",
        r#"{"apiVersion":"v1","kind":"Event"}"#,
        Err("does not match the expected API version"),
    );
}

#[test]
fn unknown_and_doubled_fields_follow_field_validation() {
    let body = Body {
        bytes: br#"{"spec":{"containers":[{"name":"c","nam":1}],"hostNetwork":true,"hostNetwork":false},"x":1}"#,
        content_type: "",
    };
    let all = [
        "duplicate field \"spec.hostNetwork\"",
        "unknown field \"spec.containers[0].nam\"",
        "unknown field \"x\"",
    ];
    let warned = decode_object(&request(PODS), &body).unwrap();
    assert_eq!(warned.warnings, all);
    assert!(warned.value.pointer("/spec/containers/0/nam").is_none());
    let ignored =
        decode_object(&request(&format!("{PODS}?fieldValidation=Ignore")), &body).unwrap();
    assert_eq!(ignored.warnings, Vec::<String>::new());
    let strict =
        decode_object(&request(&format!("{PODS}?fieldValidation=Strict")), &body).unwrap_err();
    assert_eq!(strict.code, 400);
    assert!(
        strict.message.ends_with(&format!("strict decoding error: {}", all.join(", "))),
        "{}",
        strict.message
    );
}

#[test]
fn any_bytes_decode_or_are_refused() {
    let request = request(PODS);
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        drop(decode_object(&request, &Body { bytes, content_type: "application/json" }));
        drop(decode_object(&request, &Body { bytes, content_type: "application/yaml" }));
    });
}

/// What is not in the schema is dropped without a word to the node, which would then route as if
/// nobody had planned it.
#[test]
fn a_rack_keeps_every_way_of_routing() {
    for routing in [
        r#"{"mode":"bgp","torAsn":65001,"tors":["10.0.0.1","10.0.0.2"]}"#,
        r#"{"mode":"ibgp","asn":65001,"reflectors":["a","b"]}"#,
        r#"{"mode":"ospf","area":3,"torAsn":65001}"#,
    ] {
        let text = format!(
            r#"{{"apiVersion":"muster.dev/v1alpha1","kind":"Rack","metadata":{{"name":"a"}},
                "spec":{{"name":"a","subnet":"10.0.0.0/24","gateway":"10.0.0.1",
                "routing":{routing},"authentication":"key"}}}}"#
        );
        let body = Body { bytes: text.as_bytes(), content_type: "" };
        let decoded = decode_object(&request("/apis/muster.dev/v1alpha1/racks"), &body).unwrap();
        assert_eq!(decoded.warnings, Vec::<String>::new());
        let sent: serde_json::Value = serde_json::from_str(routing).unwrap();
        assert_eq!(decoded.value.pointer("/spec/routing"), Some(&sent));
        assert_eq!(decoded.value.pointer("/spec/authentication"), Some(&"key".into()));
    }
}
