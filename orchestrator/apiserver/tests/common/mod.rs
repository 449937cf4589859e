//! A server in this process, on a free port, in a directory that vanishes.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Config, RunError, Storage};
use runtime::client::WatchParams;
use runtime::pki::{Authority, Kubeconfig, Sans, Subject, Usage};
use runtime::{Client, ClientConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use store::suite::Members;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Where addresses of services come from, unless a test says otherwise.
const RANGES: &str = "172.21.0.0/24";
/// How long a test waits for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    storage: Storage,
    identity: apiserver::Identity,
    /// The ranges of service addresses.
    ranges: &'static str,
    stop: CancellationToken,
    serving: JoinSet<Result<(), RunError>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Storage::Embedded).await
    }

    /// A server whose services have addresses of these ranges.
    pub(crate) async fn start_in_ranges(ranges: &'static str) -> Self {
        let (dir, storage) = (tempfile::tempdir().unwrap(), Storage::Embedded);
        let (stop, serving) = (CancellationToken::new(), JoinSet::new());
        let identity = apiserver::Identity::default();
        let mut cluster = Self { dir, storage, identity, ranges, stop, serving };
        cluster.open().await;
        cluster
    }

    /// A server with these settings about who may come in.
    pub(crate) async fn start_with(identity: apiserver::Identity) -> Self {
        let (dir, storage) = (tempfile::tempdir().unwrap(), Storage::Embedded);
        let (stop, serving) = (CancellationToken::new(), JoinSet::new());
        let mut cluster = Self { dir, storage, identity, ranges: RANGES, stop, serving };
        cluster.open().await;
        cluster
    }

    /// A server on an etcd cluster; with the same authority as one that is there already.
    pub(crate) async fn start_on(members: &Members, like: Option<&Self>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(like) = like {
            std::fs::create_dir(dir.path().join("pki")).unwrap();
            for entry in std::fs::read_dir(like.path("pki")).unwrap() {
                let from = entry.unwrap().path();
                if from.is_file() {
                    let to = dir.path().join("pki").join(from.file_name().unwrap());
                    std::fs::copy(from, to).unwrap();
                }
            }
        }
        Self::start_in(dir, Storage::Etcd(members.options())).await
    }

    async fn start_in(dir: TempDir, storage: Storage) -> Self {
        let (stop, serving) = (CancellationToken::new(), JoinSet::new());
        let identity = apiserver::Identity::default();
        let mut cluster = Self { dir, storage, identity, ranges: RANGES, stop, serving };
        cluster.open().await;
        cluster
    }

    async fn open(&mut self) {
        self.stop = CancellationToken::new();
        let config = Config {
            data_dir: self.dir.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: Vec::new(),
            service_cidr: self.ranges.parse().unwrap(),
            storage: self.storage.clone(),
            identity: self.identity.clone(),
            toleration_seconds: Some(300),
        };
        let server = ApiServer::open(self.stop.clone(), &config).await.unwrap();
        self.serving.spawn(server.serve());
    }

    /// Ends the server without a chance to tidy up, and starts it on what is on disk.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.serving.abort_all();
        while self.serving.join_next().await.is_some() {}
        self.open().await;
    }

    /// Ends the server and starts it with other ranges for services.
    pub(crate) async fn restart_with(&mut self, ranges: &'static str) {
        self.ranges = ranges;
        self.kill_and_restart().await;
    }

    /// Stops the server as a signal would.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        while let Some(ended) = self.serving.join_next().await {
            ended.unwrap().unwrap();
        }
        self.dir
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn kubeconfig(&self) -> Kubeconfig {
        Kubeconfig::load(&self.path("admin.kubeconfig")).unwrap()
    }

    pub(crate) fn admin(&self) -> Client {
        Client::from_kubeconfig(self.path("admin.kubeconfig")).unwrap()
    }

    pub(crate) fn boot(&self) -> Client {
        Client::from_kubeconfig(self.path("boot.kubeconfig")).unwrap()
    }

    /// A client that shows this certificate, or none.
    pub(crate) fn client(&self, identity: Option<runtime::Identity>) -> Client {
        let config = self.kubeconfig();
        let ca_pem = config.ca_pem.into_bytes();
        Client::new(ClientConfig { server: config.server, ca_pem, identity, token: None }).unwrap()
    }
}

pub(crate) fn config_map(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": value}},
        "data": {"value": value},
    })
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "muster.dev/busybox:1"}]},
    })
}

pub(crate) fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

pub(crate) fn watch_from(revision: &str) -> WatchParams {
    WatchParams { resource_version: Some(revision.to_owned()), ..WatchParams::default() }
}

/// Awaits something that must happen soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(done) = tokio::time::timeout(LIMIT, future).await else {
        panic!("{what} did not happen in {LIMIT:?}");
    };
    done
}

/// A port on loopback where TLS is spoken, with the authority that its certificate is by.
pub(crate) async fn listen_tls() -> (TcpListener, TlsAcceptor, Authority) {
    let day = Duration::from_secs(86_400);
    let authority = Authority::generate("other-ca", day).unwrap();
    let names = vec!["localhost".to_owned()];
    let sans = Sans { names, addresses: vec!["127.0.0.1".parse().unwrap()] };
    let made = authority.issue(&Subject::new("other", &[]), &sans, Usage::Server, day).unwrap();
    let chain = CertificateDer::pem_slice_iter(made.cert_pem.as_bytes());
    let chain: Vec<_> = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.key_pem.expose().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener, Arc::new(tls).into(), authority)
}
