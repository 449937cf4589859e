//! The road from a machine to a node, against a boot server and an enrolment door in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test program"
)]

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Config, JoinError, Joined, join};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use runtime::pki::{Authority, Usage, parse_request};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the server knows and has heard.
struct State {
    authority: Authority,
    request: Option<Value>,
    polls: usize,
    /// Everything that came in, for searching.
    heard: Vec<u8>,
    paths: Vec<String>,
}

struct Site {
    address: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Site {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let authority = Authority::generate("test", YEAR).unwrap();
        let state =
            State { authority, request: None, polls: 0, heard: Vec::new(), paths: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                    let server = hyper::server::conn::http1::Builder::new();
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// Joins as the machine whose hand-over file names this fingerprint.
    async fn join(&self, dir: &Path, fingerprint: &str) -> Result<Option<Joined>, JoinError> {
        let node = json!({"name": "w1", "mac": "02:00:00:00:00:01", "uuid": "u", "serial": "s",
            "address": "10.98.1.12", "prefixLen": 24, "gateway": "10.98.1.1", "interface": "eth0",
            "api": self.address, "caFingerprint": fingerprint, "boot": self.address});
        std::fs::write(dir.join("node.json"), node.to_string()).unwrap();
        let config = Config {
            node_json: dir.join("node.json"),
            pki_dir: dir.join("pki"),
            cri_socket: dir.join("none"),
            image_dir: dir.join("none"),
            data_dir: dir.to_owned(),
            console: Some(dir.join("console")),
            ..Config::default()
        };
        join(&CancellationToken::new(), &config).await
    }

    fn fingerprint(&self) -> String {
        self.state.lock().unwrap().authority.fingerprint()
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut state = state.lock().unwrap();
    state.heard.extend_from_slice(&body);
    state.paths.push(path.clone());
    let text = match path.as_str() {
        "/ca.pem" => state.authority.cert_pem().to_owned(),
        "/muster/v1/enroll" => {
            state.request = Some(serde_json::from_slice(&body).unwrap());
            json!({"request": "node-w1-00000000"}).to_string()
        }
        "/muster/v1/enroll/node-w1-00000000" => {
            state.polls += 1;
            let csr = state.request.as_ref().unwrap()["csr"].as_str().unwrap().to_owned();
            // Long enough for the machine to tell people that it waits.
            if state.polls < 6 {
                json!({"state": "pending", "certificate": null}).to_string()
            } else {
                let certificate = state.authority.sign(&csr, Usage::Both, YEAR).unwrap();
                json!({"state": "issued", "certificate": certificate}).to_string()
            }
        }
        _ => String::new(),
    };
    Ok(Response::new(Full::new(text.into())))
}

#[tokio::test]
async fn a_machine_waits_for_approval_and_then_joins() {
    let (site, dir) = (Site::start().await, tempfile::tempdir().unwrap());
    let joined = site.join(dir.path(), &site.fingerprint()).await.unwrap().unwrap();
    assert_eq!(joined.node.name, "w1");
    let identity = joined.client_config.identity.unwrap();
    let console = std::fs::read_to_string(dir.path().join("console")).unwrap();
    assert!(console.contains("muster approve w1"), "{console}");
    {
        let state = site.state.lock().unwrap();
        let request = state.request.as_ref().unwrap();
        let evidence = json!({"mac": "02:00:00:00:00:01", "uuid": "u", "serial": "s"});
        assert_eq!((&request["name"], &request["evidence"]), (&json!("w1"), &evidence));
        let claims = parse_request(request["csr"].as_str().unwrap()).unwrap();
        assert_eq!(claims.subject.common_name, "system:node:w1");
        assert_eq!(claims.subject.organizations, ["system:nodes"]);
        assert_eq!(claims.sans.addresses, ["10.98.1.12".parse::<std::net::IpAddr>().unwrap()]);
        assert!(state.paths.contains(&"/report".to_owned()));
        // The key stays here: neither its text nor its armour was heard outside.
        let key = String::from_utf8(identity.key_pem.clone()).unwrap();
        let heard = String::from_utf8_lossy(&state.heard);
        assert!(!heard.contains("PRIVATE KEY") && !heard.contains(key.lines().nth(1).unwrap()));
    }
    for file in ["ca.crt", "node.crt", "node.key"] {
        let mode =
            std::fs::metadata(dir.path().join("pki").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // A second start finds the certificate and asks nobody.
    let before = site.state.lock().unwrap().polls;
    let again = site.join(dir.path(), &site.fingerprint()).await.unwrap().unwrap();
    assert_eq!(again.client_config.identity.unwrap().cert_pem, identity.cert_pem);
    assert_eq!(site.state.lock().unwrap().polls, before);
}

#[tokio::test]
async fn a_strange_authority_is_refused_on_the_console() {
    let (site, dir) = (Site::start().await, tempfile::tempdir().unwrap());
    let err = site.join(dir.path(), "00ff").await.unwrap_err();
    assert!(matches!(&err, JoinError::Fingerprint { wanted, .. } if wanted == "00ff"), "{err:?}");
    let console = std::fs::read_to_string(dir.path().join("console")).unwrap();
    assert!(console.contains("refusing to join"), "{console}");
    assert!(site.state.lock().unwrap().request.is_none(), "nothing may be asked of a stranger");
}

#[tokio::test]
async fn a_hand_over_that_is_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("node.json"), "{}").unwrap();
    for name in ["node.json", "absent.json"] {
        let config = Config { node_json: dir.path().join(name), ..Config::default() };
        let err = join(&CancellationToken::new(), &config).await.unwrap_err();
        assert!(err.to_string().contains(name), "{err}");
    }
}
