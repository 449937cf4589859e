//! Logs come from the node's agent, over TLS in both directions, as they come.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where its expectation does"
)]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Cluster, pod, soon};
use futures_util::StreamExt as _;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use runtime::pki::{Authority, Sans, Subject, Usage};
use runtime::resource::{NODES, PODS};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const DAY: Duration = Duration::from_secs(86_400);

/// An agent that tells who asked what, then passes on lines as they are given to it.
async fn agent(
    cluster: &Cluster,
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, mpsc::Sender<Bytes>, mpsc::Receiver<String>) {
    let ca = Authority::load(&cluster.path("pki")).unwrap();
    let sans = Sans { names: vec![], addresses: vec!["127.0.0.1".parse().unwrap()] };
    let subject = Subject::new("system:node:w1", &["system:nodes"]);
    let identity = ca.issue(&subject, &sans, Usage::Both, DAY).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (lines, given) = mpsc::channel::<Bytes>(16);
    let (asked, questions) = mpsc::channel(16);
    let given = Arc::new(tokio::sync::Mutex::new(Some(given)));
    tasks.spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(socket).await.unwrap();
            let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
            let user = runtime::pki::parse_certificate(&certificate).unwrap().subject.common_name;
            let (asked, given) = (asked.clone(), Arc::clone(&given));
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (asked, given, user) = (asked.clone(), Arc::clone(&given), user.clone());
                async move {
                    asked.send(format!("{user} {}", request.uri())).await.unwrap();
                    let given = given.lock().await.take().unwrap();
                    let lines = futures_util::stream::unfold(given, |mut given| async move {
                        given.recv().await.map(|line| (line, given))
                    });
                    let body = StreamBody::new(lines.map(|l| Ok::<_, Infallible>(Frame::data(l))));
                    Ok::<_, Infallible>(http::Response::new(body))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            let served = connection.serve_connection(TokioIo::new(stream), service).await;
            drop(served);
        }
    });
    (address, lines, questions)
}

#[tokio::test]
async fn a_followed_log_passes_on_each_line_at_once() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut tasks = JoinSet::new();
    let (address, lines, mut questions) = agent(&cluster, &mut tasks).await;
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}});
    admin.create(&NODES, None, &node).await.unwrap();
    node["status"] = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
    });
    admin.update_status(&NODES, None, "w1", &node).await.unwrap();
    let mut object = pod("p");
    object["spec"]["nodeName"] = json!("w1");
    admin.create(&PODS, Some("default"), &object).await.unwrap();

    let path = "/api/v1/namespaces/default/pods/p/log?follow=true&tailLines=5&container=main";
    let client = admin.clone();
    let mut reading = JoinSet::new();
    reading.spawn(async move { client.raw_get(path).await.unwrap() });
    let question = soon("the agent being asked", questions.recv()).await.unwrap();
    assert_eq!(question, "muster:apiserver /containerLogs/default/p/main?follow=true&tailLines=5");
    lines.send(Bytes::from_static(b"one\n")).await.unwrap();
    lines.send(Bytes::from_static(b"two\n")).await.unwrap();
    drop(lines);
    let answer = soon("the log's end", reading.join_next()).await.unwrap().unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.body, "one\ntwo\n");
    for (path, code) in [
        ("/api/v1/namespaces/default/pods/p/log?container=other", 400),
        ("/api/v1/namespaces/default/pods/nobody/log", 404),
    ] {
        assert_eq!(admin.raw_get(path).await.unwrap().status.as_u16(), code, "{path}");
    }
}
