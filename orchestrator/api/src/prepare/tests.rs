use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::request::{Route, parse_request};

const NOW: &str = "2026-01-01T00:00:00Z";
const PODS: &str = "/api/v1/namespaces/a/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

pub(super) fn request(method: &str, url: &str) -> Request {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    match parse_request(method, path, query) {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{url}: {other:?}"),
    }
}

/// Prepares with the stored object as it would be read: with a resourceVersion.
fn prepare(method: &str, url: &str, old: Option<&Value>, body: &Value) -> Result<Prepared, Status> {
    prepare_as("application/json", method, url, old, body)
}

pub(super) fn prepare_as(
    media: &str,
    method: &str,
    url: &str,
    old: Option<&Value>,
    body: &Value,
) -> Result<Prepared, Status> {
    let user = User::named("u").with_group("g");
    let context = Context {
        now: NOW.parse::<Timestamp>().unwrap(),
        uid: "new-uid".to_owned(),
        name_suffix: "bcdfgh".to_owned(),
        user: &user,
        user_agent: "tester/1",
        view: &crate::admission::Nothing,
    };
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    let body = Body { bytes: &bytes, content_type: media };
    let request = request(method, url);
    let read = old.map(|old| {
        let mut old = old.clone();
        old["metadata"]["resourceVersion"] = json!("7");
        old
    });
    match (method, read.as_ref()) {
        ("POST", Some(old)) => prepare_binding(&request, &body, old, &context),
        ("POST", None) => prepare_create(&request, &body, &context),
        ("PUT", Some(old)) => prepare_update(&request, &body, old, &context),
        ("DELETE", Some(old)) => prepare_delete(&request, &body, old, &context),
        (_, old) => prepare_patch(&request, &body, old, &context),
    }
}

/// Without what every write adds.
fn bare(mut object: Value) -> Value {
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

fn pod() -> Value {
    let wish =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    bare(prepare("POST", PODS, None, &wish).unwrap().object)
}

fn deployment() -> Value {
    let wish = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    bare(prepare("POST", DEPLOYMENTS, None, &wish).unwrap().object)
}

fn csr() -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let pem = STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\n");
    let wish = json!({"metadata": {"name": "r"}, "spec": {"request": pem, "signerName": "muster.dev/node",
        "usages": ["client auth"], "username": "root"}});
    bare(prepare("POST", CSRS, None, &wish).unwrap().object)
}

fn changed(object: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = object.clone();
    change(&mut object);
    object
}

#[test]
fn a_new_object_is_marked_by_the_server_alone() {
    let wish = json!({"metadata": {"generateName": "p-", "uid": "mine", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}});
    let made = prepare("POST", PODS, None, &wish).unwrap();
    assert_eq!(made.change, Change::Create);
    let meta = &made.object["metadata"];
    assert_eq!(meta["name"], "p-bcdfg");
    assert_eq!((&meta["uid"], &meta["creationTimestamp"]), (&json!("new-uid"), &json!(NOW)));
    assert_eq!((&meta["namespace"], &meta["generation"]), (&json!("a"), &json!(1)));
    assert_eq!(made.object["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert!(meta.get("resourceVersion").is_none());
}

#[test]
fn creations_that_contradict_themselves_are_refused() {
    let pod = |meta: Value| json!({"metadata": meta, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (meta, code) in [
        (json!({}), 422),
        (json!({"name": "p", "namespace": "b"}), 400),
        (json!({"name": "p", "resourceVersion": "3"}), 400),
        (json!({"name": "P"}), 422),
    ] {
        assert_eq!(
            prepare("POST", PODS, None, &pod(meta.clone())).unwrap_err().code,
            code,
            "{meta}"
        );
    }
}

#[test]
fn a_request_for_a_certificate_says_who_asks() {
    let made = csr();
    assert_eq!((&made["spec"]["username"], &made["spec"]["groups"]), (&json!("u"), &json!(["g"])));
}

#[test]
fn spec_and_status_are_written_apart() {
    let old = deployment();
    let both = changed(&old, |d| {
        d["spec"]["replicas"] = json!(3);
        d["status"]["replicas"] = json!(9);
    });
    let main = prepare("PUT", &format!("{DEPLOYMENTS}/d"), Some(&old), &both).unwrap();
    assert_eq!(main.change, Change::Update);
    assert_eq!(main.object["spec"]["replicas"], 3);
    assert!(main.object["status"].get("replicas").is_none());
    assert_eq!(main.object["metadata"]["generation"], 2);
    let status = prepare("PUT", &format!("{DEPLOYMENTS}/d/status"), Some(&old), &both).unwrap();
    assert_eq!(status.object["spec"]["replicas"], 1);
    assert_eq!(status.object["status"]["replicas"], 9);
    assert_eq!(status.object["metadata"]["generation"], 1);
}

#[test]
fn an_update_that_changes_nothing_is_nothing() {
    let old = deployment();
    let same = prepare("PUT", &format!("{DEPLOYMENTS}/d"), Some(&old), &old).unwrap();
    assert_eq!(same.change, Change::Nothing);
    let patch = json!({"spec": {"replicas": 1}});
    let media = "application/strategic-merge-patch+json";
    let same = prepare_as(media, "PATCH", &format!("{DEPLOYMENTS}/d"), Some(&old), &patch).unwrap();
    assert_eq!((same.change, same.conditional), (Change::Nothing, false));
}

#[test]
fn versions_and_uids_are_preconditions() {
    let old = deployment();
    let url = format!("{DEPLOYMENTS}/d");
    let named = |meta: Value| changed(&old, |d| d["metadata"] = meta);
    let stale =
        prepare("PUT", &url, Some(&old), &named(json!({"name": "d", "resourceVersion": "6"})));
    assert_eq!(stale.unwrap_err().reason, "Conflict");
    let fresh = prepare(
        "PUT",
        &url,
        Some(&old),
        &named(json!({"name": "d", "resourceVersion": "7", "labels": {"a": "b"}})),
    );
    assert!(fresh.unwrap().conditional);
    let other = prepare("PUT", &url, Some(&old), &named(json!({"name": "d", "uid": "other"})));
    assert_eq!(other.unwrap_err().code, 409);
    let renamed = prepare("PUT", &url, Some(&old), &named(json!({"name": "e"})));
    assert_eq!(renamed.unwrap_err().code, 400);
    let media = "application/merge-patch+json";
    let patch = json!({"metadata": {"resourceVersion": "6"}});
    assert_eq!(prepare_as(media, "PATCH", &url, Some(&old), &patch).unwrap_err().code, 409);
}

#[test]
fn a_bound_pod_goes_gracefully_and_others_at_once() {
    let url = format!("{PODS}/p");
    let free = pod();
    assert_eq!(prepare("DELETE", &url, Some(&free), &Value::Null).unwrap().change, Change::Remove);
    let bound = changed(&free, |p| p["spec"]["nodeName"] = json!("n"));
    let going = prepare("DELETE", &url, Some(&bound), &Value::Null).unwrap();
    assert_eq!(going.change, Change::Update);
    assert_eq!(going.object["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
    assert_eq!(going.object["metadata"]["deletionGracePeriodSeconds"], 30);
    let again = prepare("DELETE", &url, Some(&going.object), &Value::Null).unwrap();
    assert_eq!(again.change, Change::Nothing);
    let sooner =
        prepare("DELETE", &url, Some(&going.object), &json!({"gracePeriodSeconds": 5})).unwrap();
    assert_eq!(sooner.object["metadata"]["deletionGracePeriodSeconds"], 5);
    let now = prepare(
        "DELETE",
        &format!("{url}?gracePeriodSeconds=0"),
        Some(&going.object),
        &Value::Null,
    );
    assert_eq!(now.unwrap().change, Change::Remove);
    let done = changed(&bound, |p| p["status"]["phase"] = json!("Succeeded"));
    assert_eq!(prepare("DELETE", &url, Some(&done), &Value::Null).unwrap().change, Change::Remove);
    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(prepare("DELETE", &url, Some(&free), &wrong).unwrap_err().code, 409);
}

#[test]
fn finalizers_hold_an_object_until_the_last_is_gone() {
    let url = format!("{DEPLOYMENTS}/d");
    let held = changed(&deployment(), |d| d["metadata"]["finalizers"] = json!(["a/b"]));
    let marked = prepare("DELETE", &url, Some(&held), &Value::Null).unwrap();
    assert_eq!(marked.change, Change::Update);
    let patch = json!({"metadata": {"finalizers": null}});
    let media = "application/merge-patch+json";
    let gone = prepare_as(media, "PATCH", &url, Some(&marked.object), &patch).unwrap();
    assert_eq!(gone.change, Change::Remove);
    let orphan = prepare(
        "DELETE",
        &format!("{url}?propagationPolicy=Orphan"),
        Some(&deployment()),
        &Value::Null,
    )
    .unwrap();
    assert_eq!(orphan.object["metadata"]["finalizers"], json!(["orphan"]));
}

#[test]
fn a_namespace_goes_when_it_is_finalized() {
    let wish = json!({"metadata": {"name": "n"}});
    let made = bare(prepare("POST", "/api/v1/namespaces", None, &wish).unwrap().object);
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    let going = prepare("DELETE", "/api/v1/namespaces/n", Some(&made), &Value::Null).unwrap();
    assert_eq!(
        (going.change, &going.object["status"]["phase"]),
        (Change::Update, &json!("Terminating"))
    );
    let free = changed(&going.object, |n| n["spec"]["finalizers"] = json!([]));
    let kept = prepare("PUT", "/api/v1/namespaces/n", Some(&going.object), &free).unwrap();
    assert_ne!(kept.change, Change::Remove);
    let gone = prepare("PUT", "/api/v1/namespaces/n/finalize", Some(&going.object), &free).unwrap();
    assert_eq!(gone.change, Change::Remove);
}

#[test]
fn a_pod_is_bound_once() {
    let url = format!("{PODS}/p/binding");
    let binding = json!({"target": {"kind": "Node", "name": "n"}});
    let bound = prepare("POST", &url, Some(&pod()), &binding).unwrap();
    assert_eq!(bound.object["spec"]["nodeName"], "n");
    assert_eq!(bound.object["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(prepare("POST", &url, Some(&bound.object), &binding).unwrap_err().code, 409);
    assert_eq!(prepare("POST", &url, Some(&pod()), &json!({})).unwrap_err().code, 422);
}

#[test]
fn scale_is_a_view_of_replicas() {
    let old = deployment();
    let url = format!("{DEPLOYMENTS}/d/scale");
    let seen = render_scale(&old);
    assert_eq!(
        (&seen["spec"]["replicas"], &seen["status"]["selector"]),
        (&json!(1), &json!("app=x"))
    );
    let put =
        prepare("PUT", &url, Some(&old), &changed(&seen, |s| s["spec"]["replicas"] = json!(4)))
            .unwrap();
    assert_eq!(put.object["spec"]["replicas"], 4);
    assert_eq!(put.object["metadata"]["generation"], 2);
    let owners = put.object["metadata"]["managedFields"].as_array().unwrap();
    let scaler = owners.iter().find(|one| one["subresource"] == "scale").unwrap();
    assert_eq!(scaler["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let media = "application/merge-patch+json";
    let patched =
        prepare_as(media, "PATCH", &url, Some(&old), &json!({"spec": {"replicas": 0}})).unwrap();
    assert_eq!((&patched.object["spec"]["replicas"], patched.conditional), (&json!(0), false));
    let below = json!({"spec": {"replicas": -1}});
    assert_eq!(prepare_as(media, "PATCH", &url, Some(&old), &below).unwrap_err().code, 422);
}

#[test]
fn approval_is_decided_once_and_only_there() {
    let old = csr();
    let yes = changed(&old, |r| {
        r["status"] = json!({"conditions": [{"type": "Approved", "reason": "x"}]})
    });
    let by_status = prepare("PUT", &format!("{CSRS}/r/status"), Some(&old), &yes).unwrap();
    assert_eq!(by_status.change, Change::Nothing);
    let approved = prepare("PUT", &format!("{CSRS}/r/approval"), Some(&old), &yes).unwrap().object;
    assert_eq!(approved["status"]["conditions"][0]["status"], "True");
    assert_eq!(approved["status"]["conditions"][0]["lastUpdateTime"], NOW);
    let both = changed(&approved, |r| {
        r["status"]["conditions"].as_array_mut().unwrap().push(json!({"type": "Denied"}));
    });
    assert_eq!(
        prepare("PUT", &format!("{CSRS}/r/approval"), Some(&approved), &both).unwrap_err().code,
        422
    );
    let issued = changed(&approved, |r| r["status"] = json!({"certificate": "YQ=="}));
    let issued =
        prepare("PUT", &format!("{CSRS}/r/status"), Some(&approved), &issued).unwrap().object;
    assert_eq!(issued["status"]["certificate"], "YQ==");
    assert_eq!(issued["status"]["conditions"][0]["type"], "Approved");
}

#[test]
fn events_are_one_in_both_versions() {
    let url = "/apis/events.k8s.io/v1/namespaces/a/events";
    let wish = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "a"},
        "note": "hello", "type": "Normal", "reason": "r", "eventTime": "2026-01-01T00:00:00.000001Z",
        "action": "a", "reportingController": "example.com/teller", "reportingInstance": "t-1"});
    let made = prepare("POST", url, None, &wish).unwrap().object;
    assert_eq!((&made["apiVersion"], &made["message"]), (&json!("v1"), &json!("hello")));
    let shown = answer(&request("GET", &format!("{url}/e")), &made);
    assert_eq!(
        (&shown["apiVersion"], &shown["note"]),
        (&json!("events.k8s.io/v1"), &json!("hello"))
    );
}

#[test]
fn services_keep_what_they_were_given() {
    let url = "/api/v1/namespaces/a/services";
    let wish =
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let mut old = bare(prepare("POST", url, None, &wish).unwrap().object);
    old["spec"]["clusterIP"] = json!("10.0.0.9");
    old["spec"]["clusterIPs"] = json!(["10.0.0.9"]);
    old["spec"]["ports"][0]["nodePort"] = json!(30001);
    let new = prepare("PUT", &format!("{url}/s"), Some(&old), &wish).unwrap().object;
    assert_eq!(new["spec"]["clusterIP"], "10.0.0.9");
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
}

#[test]
fn an_empty_patch_media_type_is_unsupported() {
    let old = deployment();
    let said =
        prepare_as("text/plain", "PATCH", &format!("{DEPLOYMENTS}/d"), Some(&old), &json!({}));
    assert_eq!(said.unwrap_err().code, 415);
    let missing = prepare_as(
        "application/merge-patch+json",
        "PATCH",
        &format!("{DEPLOYMENTS}/d"),
        None,
        &json!({}),
    );
    assert_eq!(missing.unwrap_err().reason, "NotFound");
}

#[test]
fn objects_cannot_outgrow_the_store() {
    let wish = json!({"metadata": {"name": "d"}, "spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": "i", "args": ["x".repeat(2_000_000)]}]}}}});
    assert_eq!(prepare("POST", DEPLOYMENTS, None, &wish).unwrap_err().code, 413);
    let double = |number: usize| {
        let path = format!("/metadata/annotations/x{number}");
        json!({"op": "copy", "from": "/metadata/annotations", "path": path})
    };
    let bomb: Value = (0..60).map(double).collect();
    let old = changed(&deployment(), |d| d["metadata"]["annotations"] = json!({"a": "b"}));
    let media = "application/json-patch+json";
    let said = prepare_as(media, "PATCH", &format!("{DEPLOYMENTS}/d"), Some(&old), &bomb);
    assert_eq!(said.unwrap_err().code, 413);
}
