//! Another server behind ours: found, described, asked in the requester's name, missed.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use objects::kind;
use runtime::Client;
use runtime::client::{DeleteParams, WatchEvent, WatchParams};
use runtime::pki::{Authority, Sans, Subject, Usage};
use runtime::resource::{CONFIG_MAPS, Resource};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::{Cluster, soon};

const DEFAULT: Option<&str> = Some("default");
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";

/// A server that believes the front proxy, and tells who asked for what.
struct Other {
    port: u16,
    bundle: String,
    serving: JoinSet<()>,
}

fn answer(request: &http::Request<hyper::body::Incoming>) -> Value {
    let path = request.uri().path();
    let header = |name: &str| -> Vec<&str> {
        let all = request.headers().get_all(name).iter();
        all.filter_map(|value| value.to_str().ok()).collect()
    };
    let item = format!("{ROOT}/flunders");
    if path == ROOT {
        return json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": "wardle.example.com/v1alpha1", "resources": [
                {"name": "flunders", "singularName": "flunder", "namespaced": false,
                 "kind": "Flunder", "verbs": ["get", "list"], "shortNames": ["fl"]}]});
    }
    if path.starts_with("/openapi/v3") {
        return json!({"openapi": "3.0.0", "info": {"title": "wardle", "version": "1"},
            "paths": {item: {}}, "components": {"schemas": {}}});
    }
    if path == "/openapi/v2" {
        return json!({"swagger": "2.0", "info": {"title": "wardle", "version": "1"},
            "paths": {item: {}}, "definitions": {"com.example.wardle.Flunder": {"type": "object"}}});
    }
    json!({"kind": "Flunder", "apiVersion": "wardle.example.com/v1alpha1",
        "metadata": {"name": "one"},
        "asked": format!("{} {path}", request.method()),
        "user": header("x-remote-user"), "groups": header("x-remote-group"),
        "authorization": header("authorization")})
}

impl Other {
    async fn start(front_proxy_ca: &str) -> Self {
        let day = Duration::from_secs(86_400);
        let authority = Authority::generate("wardle-ca", day).unwrap();
        let sans = Sans { names: vec!["wardle.default.svc".to_owned()], addresses: Vec::new() };
        let identity =
            authority.issue(&Subject::new("wardle", &[]), &sans, Usage::Server, day).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(front_proxy_ca.as_bytes()) {
            roots.add(cert.unwrap()).unwrap();
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(io) = acceptor.accept(socket).await else { continue };
                let service =
                    service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                        let mut response =
                            http::Response::new(Full::<Bytes>::from(answer(&request).to_string()));
                        let json = http::HeaderValue::from_static("application/json");
                        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
                        Ok::<_, hyper::Error>(response)
                    });
                let connection = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(io), service);
                drop(connection.await);
            }
        });
        Self { port, bundle: STANDARD.encode(authority.cert_pem()), serving }
    }

    /// The service, where it is, and what is served there.
    async fn register(&self, admin: &Client) {
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "wardle", "namespace": "default"},
            "spec": {"ports": [{"port": 443, "targetPort": self.port}]}});
        admin.create(&Resource::from(&kind::SERVICE), DEFAULT, &service).await.unwrap();
        // Nobody listens in the family that is not the service's first.
        for (name, family, address) in
            [("wardle-0", "IPv6", "::1"), ("wardle-1", "IPv4", "127.0.0.1")]
        {
            let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "wardle"}},
                "addressType": family, "endpoints": [{"addresses": [address]}],
                "ports": [{"name": "", "port": self.port}]});
            admin.create(&Resource::from(&kind::ENDPOINT_SLICE), DEFAULT, &slice).await.unwrap();
        }
        let api = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1alpha1.wardle.example.com"},
            "spec": {"group": "wardle.example.com", "version": "v1alpha1", "caBundle": self.bundle,
                "groupPriorityMinimum": 2000, "versionPriority": 15,
                "service": {"name": "wardle", "namespace": "default"}}});
        admin.create(&Resource::from(&kind::API_SERVICE), None, &api).await.unwrap();
    }
}

/// Waits until the APIService says this of itself.
async fn await_condition(admin: &Client, status: &str, reason: &str) -> Value {
    let services = Resource::from(&kind::API_SERVICE);
    let params = WatchParams {
        field_selector: "metadata.name=v1alpha1.wardle.example.com".to_owned(),
        ..WatchParams::default()
    };
    let mut watch = admin.watch(&services, None, &params).await.unwrap();
    loop {
        let event = soon(reason, watch.next()).await.unwrap().unwrap();
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else { continue };
        let condition = &object["status"]["conditions"][0];
        if condition["status"] == status && condition["reason"] == reason {
            return condition.clone();
        }
    }
}

async fn text(admin: &Client, path: &str) -> (u16, String) {
    let answer = admin.raw_get(path).await.unwrap();
    (answer.status.as_u16(), String::from_utf8_lossy(&answer.body).into_owned())
}

#[tokio::test]
async fn another_server_serves_a_group_behind_ours() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let known = admin
        .get(&CONFIG_MAPS, Some("kube-system"), "extension-apiserver-authentication")
        .await
        .unwrap();
    let ca = known["data"]["requestheader-client-ca-file"].as_str().unwrap();
    let mut other = Other::start(ca).await;
    assert_eq!(text(&admin, ROOT).await.0, 404);
    other.register(&admin).await;
    await_condition(&admin, "True", "Passed").await;
    // What it serves stands among ours.
    for (path, expected) in [
        ("/apis", "\"name\":\"wardle.example.com\""),
        ("/apis/wardle.example.com", "wardle.example.com/v1alpha1"),
        (ROOT, "flunders"),
        ("/openapi/v3", "/openapi/v3/apis/wardle.example.com/v1alpha1?hash="),
        ("/openapi/v3/apis/wardle.example.com/v1alpha1", "\"title\":\"wardle\""),
        ("/openapi/v2", "com.example.wardle.Flunder"),
    ] {
        let (code, said) = text(&admin, path).await;
        assert!(code == 200 && said.contains(expected), "{path}: {code} {said:.2000}");
    }
    // It is told who asks, and never the secret that proves it.
    let flunders = Resource::cluster("wardle.example.com", "v1alpha1", "Flunder", "flunders");
    let one = admin.get(&flunders, None, "one").await.unwrap();
    assert_eq!(one["asked"], format!("GET {ROOT}/flunders/one"));
    assert_eq!(one["user"], json!(["admin"]));
    assert_eq!(one["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(one["authorization"], json!([]));
    // Who may not ask ours is not handed on.
    let refused = cluster.boot().get(&flunders, None, "one").await.unwrap_err();
    assert!(format!("{refused:?}").contains("flunders.wardle.example.com"), "{refused:?}");
    // One that is gone is said to be.
    other.serving.shutdown().await;
    let (code, _) = text(&admin, &format!("{ROOT}/flunders")).await;
    assert_eq!(code, 503);
    let condition = await_condition(&admin, "False", "FailedDiscoveryCheck").await;
    let said = condition["message"].as_str().unwrap().to_owned();
    assert!(said.starts_with("failing or missing response from https://"), "{said}");
    let services = Resource::from(&kind::API_SERVICE);
    let name = "v1alpha1.wardle.example.com";
    admin.delete(&services, None, name, &DeleteParams::default()).await.unwrap();
    soon("stopping", cluster.stop()).await;
}
