//! Many who ask at once: a webhook that answers only when it is told to holds requests up, so that
//! it is known who waits behind whom.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use objects::kind;
use runtime::Client;
use runtime::client::DeleteParams;
use runtime::resource::{CONFIG_MAPS, Resource};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{DEFAULT, binding, person};
use crate::common::{Cluster, LIMIT, config_map, listen_tls, soon};

/// Who writes what, and the word that lets it go on.
type Held = (String, oneshot::Sender<()>);

/// A webhook that holds every ConfigMap until it is let go.
struct Gate {
    held: Arc<Mutex<VecDeque<Held>>>,
    url: String,
    bundle: String,
    _serving: JoinSet<()>,
}

impl Gate {
    async fn start() -> Self {
        let (listener, acceptor, authority) = listen_tls().await;
        let url = format!("https://{}", listener.local_addr().unwrap());
        let held: Arc<Mutex<VecDeque<Held>>> = Arc::default();
        let mut serving = JoinSet::new();
        let keeping = Arc::clone(&held);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, keeping) = (acceptor.clone(), Arc::clone(&keeping));
                connections.spawn(async move {
                    let Ok(io) = acceptor.accept(socket).await else { return };
                    let service = service_fn(move |request| answer(Arc::clone(&keeping), request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(io), service);
                    drop(connection.await);
                });
            }
        });
        let bundle = STANDARD.encode(authority.cert_pem());
        Self { held, url, bundle, _serving: serving }
    }

    fn configuration(&self) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "gate"},
            "webhooks": [{
                "name": "gate.example.com", "sideEffects": "None", "timeoutSeconds": 30,
                "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
                "clientConfig": {"url": self.url, "caBundle": self.bundle},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                           "operations": ["CREATE"]}],
            }],
        })
    }

    /// Waits until so many are held, and says whose they are.
    async fn holds(&self, count: usize) -> Vec<String> {
        let limit = Instant::now() + LIMIT;
        loop {
            let names: Vec<_> =
                self.held.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
            if names.len() == count {
                return names;
            }
            assert!(Instant::now() < limit, "{names:?} are held instead of {count}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Lets the first go.
    fn let_go(&self) -> String {
        let (name, word) = self.held.lock().unwrap().pop_front().unwrap();
        word.send(()).unwrap();
        name
    }
}

async fn answer(
    held: Arc<Mutex<VecDeque<Held>>>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let (word, wait) = oneshot::channel();
    let who = review["request"]["userInfo"]["username"].as_str().unwrap().to_owned();
    held.lock().unwrap().push_back((who, word));
    drop(wait.await);
    let response = json!({"uid": review["request"]["uid"], "allowed": true});
    let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": response});
    Ok(http::Response::new(Full::from(answer.to_string())))
}

/// A level with these seats and queues, and the schema that sends the lab's people there.
fn flows(seats: u64, queue_length: u64) -> [(Resource, Value); 2] {
    let version = "flowcontrol.apiserver.k8s.io/v1";
    let level = json!({"apiVersion": version, "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "lab"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": seats, "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Queue", "queuing": {
                "queues": 128, "handSize": 6, "queueLengthLimit": queue_length}}}}});
    let schema = json!({"apiVersion": version, "kind": "FlowSchema", "metadata": {"name": "lab"},
        "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "lab"},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{"subjects": [{"kind": "Group", "group": {"name": "lab"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                    "namespaces": ["*"], "clusterScope": true}]}]}});
    [
        (Resource::from(&kind::PRIORITY_LEVEL_CONFIGURATION), level),
        (Resource::from(&kind::FLOW_SCHEMA), schema),
    ]
}

fn write(tasks: &mut JoinSet<u16>, client: &Client, name: String) {
    let client = client.clone();
    tasks.spawn(async move {
        let body = config_map(&name, "1").to_string();
        let path = "/api/v1/namespaces/default/configmaps";
        let answer = client.raw_post(path, &serde_json::from_str::<Value>(&body).unwrap()).await;
        let answer = answer.unwrap();
        if answer.status.as_u16() == 429 {
            assert_eq!(answer.headers["retry-after"], "1");
            let said: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(
                (said["reason"].as_str(), said["message"].as_str()),
                (Some("TooManyRequests"), Some("Too many requests, please try again later."))
            );
        }
        answer.status.as_u16()
    });
}

/// Waits for a figure of `/metrics`.
async fn until_waiting(admin: &Client, count: usize) {
    let limit = Instant::now() + LIMIT;
    let wanted = format!(
        "apiserver_flowcontrol_current_inqueue_requests{{priority_level=\"lab\"}} {count}\n"
    );
    loop {
        let answer = admin.raw_get("/metrics").await.unwrap();
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        if text.contains(&wanted) {
            return;
        }
        let seen: Vec<_> = text.lines().filter(|line| line.contains("\"lab\"")).collect();
        assert!(Instant::now() < limit, "{seen:?} instead of {wanted}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_much_waits_behind_who_asks_for_little() {
    const NOISE: usize = 12;
    let identity = apiserver::Identity { requests_max: 40, ..apiserver::Identity::default() };
    let cluster = Cluster::start_with(identity).await;
    let admin = cluster.admin();
    let gate = Gate::start().await;
    for (resource, object) in flows(1, 2) {
        admin.create(&resource, None, &object).await.unwrap();
    }
    let bindings = Resource::from(&kind::ROLE_BINDING);
    let mut all = binding("lab", ("ClusterRole", "edit"), "lab");
    all["subjects"][0]["kind"] = json!("Group");
    admin.create(&bindings, DEFAULT, &all).await.unwrap();
    let hooks = Resource::from(&kind::VALIDATING_WEBHOOK_CONFIGURATION);
    admin.create(&hooks, None, &gate.configuration()).await.unwrap();
    let [noisy, quiet] = ["noisy", "quiet"].map(|name| person(&cluster, name, "lab"));

    // One is worked on; a hand of six queues takes two each; the thirteenth that waits is one too
    // many, and is told when to come again.
    let mut noise = JoinSet::new();
    for n in 0..=NOISE {
        write(&mut noise, &noisy, format!("noise-{n}"));
    }
    gate.holds(1).await;
    until_waiting(&admin, NOISE).await;
    let mut refused = JoinSet::new();
    write(&mut refused, &noisy, "too-much".to_owned());
    assert_eq!(soon("a refusal", refused.join_next()).await.unwrap().unwrap(), 429);

    // Who comes now and asks for little is next or nearly so, not the fourteenth.
    let mut calm = JoinSet::new();
    write(&mut calm, &quiet, "calm".to_owned());
    until_waiting(&admin, NOISE + 1).await;
    let mut before = 0;
    while gate.holds(1).await != ["quiet"] {
        assert_eq!(gate.let_go(), "noisy");
        before += 1;
    }
    assert!(before <= 7, "{before} of the noise went first");
    gate.let_go();
    assert_eq!(soon("the quiet one", calm.join_next()).await.unwrap().unwrap(), 201);

    // Meanwhile other levels are served, and whoever gives up leaves no gap.
    admin.raw_get("/api/v1/namespaces/default/configmaps").await.unwrap();
    gate.holds(1).await;
    noise.abort_all();
    while noise.join_next().await.is_some() {}
    until_waiting(&admin, 0).await;
    while !gate.held.lock().unwrap().is_empty() {
        drop(gate.held.lock().unwrap().pop_front());
    }
    let params = DeleteParams::default();
    admin.delete(&hooks, None, "gate", &params).await.unwrap();
    let after = config_map("after", "1");
    soon("a free seat", quiet.create(&CONFIG_MAPS, DEFAULT, &after)).await.unwrap();
}

#[tokio::test]
async fn a_schema_says_when_its_level_is_gone() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let [(levels, level), (schemas, schema)] = flows(1, 1);
    admin.create(&schemas, None, &schema).await.unwrap();
    let until = async |status: &str, reason: &str| {
        let limit = Instant::now() + LIMIT;
        loop {
            let found = admin.get(&schemas, None, "lab").await.unwrap();
            let all = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = |one: &Value| one["type"] == "Dangling" && one["status"] == status;
            if all.iter().any(|one| is(one) && one["reason"] == reason) {
                return;
            }
            assert!(Instant::now() < limit, "{found:#}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    until("True", "NotFound").await;
    admin.create(&levels, None, &level).await.unwrap();
    until("False", "Found").await;
    admin.delete(&levels, None, "lab", &DeleteParams::default()).await.unwrap();
    until("True", "NotFound").await;
}
