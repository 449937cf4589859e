//! Others have a say: a webhook that listens on a real port, and policies.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use objects::kind;
use runtime::client::{DeleteParams, ListParams, Patch, WatchEvent};
use runtime::resource::{CONFIG_MAPS, Resource};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::answers::{Player, testdata};
use crate::common::{Cluster, config_map, listen_tls, soon, version, watch_from};

const DEFAULT: Option<&str> = Some("default");

/// A webhook: where it is, and what to trust.
struct Hook {
    url: String,
    bundle: String,
    serving: JoinSet<()>,
}

/// Times in one text in v1, in two fields in v2.
fn convert(review: &Value) -> Value {
    let request = &review["request"];
    let convert = |object: &Value| {
        let mut object = object.clone();
        object["apiVersion"] = request["desiredAPIVersion"].clone();
        let text = |key: &str| object["spec"][key].as_str().map(str::to_owned);
        object["spec"] = match (text("at"), text("hour"), text("minute")) {
            (Some(at), ..) => {
                let (hour, minute) = at.split_once(':').unwrap_or((&at, ""));
                json!({"hour": hour, "minute": minute})
            }
            (None, hour, minute) => {
                json!({"at": format!("{}:{}", hour.unwrap_or_default(), minute.unwrap_or_default())})
            }
        };
        object
    };
    let objects: Vec<Value> = request["objects"].as_array().unwrap().iter().map(convert).collect();
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {
        "uid": request["uid"], "convertedObjects": objects, "result": {"status": "Success"}}})
}

fn answer(path: &str, review: &Value) -> Value {
    if path == "/convert" {
        return convert(review);
    }
    let request = &review["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    let has = |key: &str| request["object"]["data"][key] == "yes";
    let add = |key: &str| json!([{"op": "add", "path": format!("/data/{key}"), "value": "yes"}]);
    let patch = match path {
        "/mutate" => {
            Some(json!([{"op": "add", "path": "/metadata/labels/touched", "value": "yes"}]))
        }
        "/stage-1" if has("start") => Some(add("stage-1")),
        "/stage-2" if has("stage-1") => Some(add("stage-2")),
        "/init" => {
            let added = json!([{"name": "added", "image": "busybox"}]);
            Some(json!([{"op": "add", "path": "/spec/initContainers", "value": added}]))
        }
        _ => None,
    };
    let said = |object: &Value, word: &str| {
        object["data"]["e2e"] == word || object["metadata"]["labels"]["e2e"] == word
    };
    let refused = match path {
        "/refuse" => Some("never"),
        "/deny" if said(&request["object"], "disallow") => Some("this contains unwanted data"),
        "/deny" if request["operation"] == "DELETE" && said(&request["oldObject"], "keep") => {
            Some("this is to be kept")
        }
        "/validate" if request["object"]["data"]["value"] == "bad" => Some("no bad values"),
        _ => None,
    };
    if let Some(patch) = patch {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch.to_string()));
    } else if let Some(why) = refused {
        response["allowed"] = json!(false);
        response["status"] = json!({"message": why, "code": 403});
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

impl Hook {
    async fn start() -> Self {
        let (listener, acceptor, authority) = listen_tls().await;
        let url = format!("https://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(io) = acceptor.accept(socket).await else { continue };
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async {
                    let path = request.uri().path().to_owned();
                    if path == "/never" {
                        return std::future::pending().await;
                    }
                    let body = request.into_body().collect().await?.to_bytes();
                    let review = serde_json::from_slice(&body).unwrap_or_default();
                    let answer = answer(&path, &review).to_string();
                    Ok::<_, hyper::Error>(http::Response::new(Full::<Bytes>::from(answer)))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(io), service);
                connections.spawn(async move { drop(connection.await) });
            }
        });
        let bundle = STANDARD.encode(authority.cert_pem());
        Self { url, bundle, serving }
    }

    fn configuration(&self, kind: &str, name: &str, path: &str) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name},
            "webhooks": [{
                "name": format!("{name}.example.com"), "sideEffects": "None",
                "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
                "clientConfig": {"url": format!("{}{path}", self.url), "caBundle": self.bundle},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                           "operations": ["CREATE", "UPDATE"]}],
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "default"}},
            }],
        })
    }
}

#[tokio::test]
async fn webhooks_change_refuse_and_are_missed() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut hook = Hook::start().await;
    let mutating = Resource::from(&kind::MUTATING_WEBHOOK_CONFIGURATION);
    let validating = Resource::from(&kind::VALIDATING_WEBHOOK_CONFIGURATION);
    let wanted = hook.configuration("MutatingWebhookConfiguration", "mutate", "/mutate");
    admin.create(&mutating, None, &wanted).await.unwrap();
    let wanted = hook.configuration("ValidatingWebhookConfiguration", "validate", "/validate");
    admin.create(&validating, None, &wanted).await.unwrap();
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "good")).await.unwrap();
    assert_eq!(made["metadata"]["labels"], json!({"app": "good", "touched": "yes"}));
    let mut bad = made.clone();
    bad["data"]["value"] = json!("bad");
    let refused = admin.update(&CONFIG_MAPS, DEFAULT, "a", &bad).await.unwrap_err();
    let said = format!("{refused:?}");
    assert!(
        said.contains(
            r#"admission webhook \"validate.example.com\" denied the request: no bad values"#
        ),
        "{said}"
    );
    hook.serving.shutdown().await;
    let missed = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("b", "good")).await.unwrap_err();
    assert!(format!("{missed:?}").contains("failed calling webhook"), "{missed:?}");
    for (resource, name) in [(&mutating, "mutate"), (&validating, "validate")] {
        admin.delete(resource, None, name, &DeleteParams::default()).await.unwrap();
    }
    admin.create(&CONFIG_MAPS, DEFAULT, &config_map("b", "bad")).await.unwrap();
    soon("stopping", cluster.stop()).await;
}

#[tokio::test]
async fn webhooks_see_change_and_refuse_what_upstream_says() {
    let cluster = Cluster::start().await;
    let mut hook = Hook::start().await;
    let mut player = Player::new(&cluster).await;
    player.keep("URL", &hook.url);
    player.keep("BUNDLE", &hook.bundle);
    let wrong = player.play(&testdata("webhooks.txt")).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    hook.serving.shutdown().await;
}

#[tokio::test]
async fn webhooks_are_asked_again_when_others_change_the_object() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut hook = Hook::start().await;
    let mutating = Resource::from(&kind::MUTATING_WEBHOOK_CONFIGURATION);
    // In the order of their names, the second stage is asked before the first.
    for (name, path) in [("a", "/stage-2"), ("b", "/stage-1")] {
        let wanted = hook.configuration("MutatingWebhookConfiguration", name, path);
        admin.create(&mutating, None, &wanted).await.unwrap();
    }
    let started = |name: &str| {
        let mut made = config_map(name, "x");
        made["data"] = json!({"start": "yes"});
        made
    };
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &started("once")).await.unwrap();
    assert_eq!(made["data"], json!({"start": "yes", "stage-1": "yes"}));
    let again = json!([{"op": "replace", "path": "/webhooks/0/reinvocationPolicy",
                        "value": "IfNeeded"}]);
    admin.patch(&mutating, None, "a", &Patch::json(again)).await.unwrap();
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &started("again")).await.unwrap();
    assert_eq!(made["data"], json!({"start": "yes", "stage-1": "yes", "stage-2": "yes"}));
    hook.serving.shutdown().await;
    soon("stopping", cluster.stop()).await;
}

#[tokio::test]
async fn policies_need_no_webhook() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let rules = json!({"resourceRules": [{
        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
        "operations": ["CREATE", "UPDATE"]}]});
    let create = async |kind: &kind::Kind, object: Value| {
        admin.create(&Resource::from(kind), None, &object).await.unwrap();
    };
    let version = "admissionregistration.k8s.io/v1";
    create(&kind::VALIDATING_ADMISSION_POLICY, json!({
        "apiVersion": version, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "good"},
        "spec": {"matchConstraints": rules, "failurePolicy": "Fail",
                 "validations": [{"expression": "object.data.value != 'bad'"}]},
    }))
    .await;
    create(
        &kind::VALIDATING_ADMISSION_POLICY_BINDING,
        json!({
            "apiVersion": version, "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "good"},
            "spec": {"policyName": "good", "validationActions": ["Deny"]},
        }),
    )
    .await;
    create(&kind::MUTATING_ADMISSION_POLICY, json!({
        "apiVersion": version, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "label"},
        "spec": {"matchConstraints": rules, "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                 "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
                     "expression":
                         "Object{metadata: Object.metadata{labels: {'by': request.userInfo.username}}}"}}]},
    }))
    .await;
    create(
        &kind::MUTATING_ADMISSION_POLICY_BINDING,
        json!({
            "apiVersion": version, "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": "label"}, "spec": {"policyName": "label"},
        }),
    )
    .await;
    let made = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("a", "fine")).await.unwrap();
    assert_eq!(made["metadata"]["labels"]["by"], "admin");
    let refused = admin.create(&CONFIG_MAPS, DEFAULT, &config_map("b", "bad")).await.unwrap_err();
    assert!(
        format!("{refused:?}").contains("failed expression: object.data.value != 'bad'"),
        "{refused:?}"
    );
    soon("stopping", cluster.stop()).await;
}

fn bells(hook: &Hook) -> Value {
    let served = |name: &str, storage: bool, fields: Value| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}}})
    };
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "bells.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "bells", "singular": "bell", "kind": "Bell"},
            "versions": [served("v1", true, json!({"at": text})),
                         served("v2", false, json!({"hour": text, "minute": text}))],
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("{}/convert", hook.url), "caBundle": hook.bundle}}},
        },
    })
}

#[tokio::test]
async fn a_webhook_converts_between_versions() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut hook = Hook::start().await;
    let definitions = Resource::from(&kind::CUSTOM_RESOURCE_DEFINITION);
    admin.create(&definitions, None, &bells(&hook)).await.unwrap();
    let [old, new] =
        ["v1", "v2"].map(|version| Resource::namespaced("example.com", version, "Bell", "bells"));
    let bell = |version: &str, name: &str, spec: Value| {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Bell",
               "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    };
    let made = admin.create(&old, DEFAULT, &bell("v1", "a", json!({"at": "7:30"}))).await.unwrap();
    let mut watch = admin.watch(&new, DEFAULT, &watch_from(&version(&made))).await.unwrap();
    let spec = json!({"hour": "8", "minute": "00"});
    let made = admin.create(&new, DEFAULT, &bell("v2", "b", spec.clone())).await.unwrap();
    assert_eq!((&made["apiVersion"], &made["spec"]), (&json!("example.com/v2"), &spec));
    let told = soon("the event", watch.next()).await.unwrap().unwrap();
    let WatchEvent::Added(told) = told else { panic!("{told:?}") };
    assert_eq!(told["spec"], spec);
    // The one is stored as the other sees it, and each sees all in its own version.
    let seen = admin.get(&old, DEFAULT, "b").await.unwrap();
    assert_eq!(
        (&seen["apiVersion"], &seen["spec"]),
        (&json!("example.com/v1"), &json!({"at": "8:00"}))
    );
    let all = admin.list(&new, DEFAULT, &ListParams::default()).await.unwrap();
    let specs: Vec<&Value> = all.items.iter().map(|one| &one["spec"]).collect();
    assert_eq!(specs, [&json!({"hour": "7", "minute": "30"}), &spec]);
    let patch = Patch::merge(json!({"spec": {"minute": "45"}}));
    let changed = admin.patch(&new, DEFAULT, "a", &patch).await.unwrap();
    assert_eq!(changed["spec"], json!({"hour": "7", "minute": "45"}));
    let seen = admin.get(&old, DEFAULT, "a").await.unwrap();
    assert_eq!(seen["spec"], json!({"at": "7:45"}));
    hook.serving.shutdown().await;
    assert_eq!(admin.get(&old, DEFAULT, "a").await.unwrap()["spec"], json!({"at": "7:45"}));
    let missed = admin.get(&new, DEFAULT, "a").await.unwrap_err();
    let said = "conversion webhook for example.com/v1, Kind=Bell failed: Post";
    assert!(format!("{missed:?}").contains(said), "{missed:?}");
    soon("stopping", cluster.stop()).await;
}
