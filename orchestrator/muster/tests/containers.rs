//! Stock kubectl, our API server, our agent and a real containerd, end to end.
//!
//! Skipped where containerd cannot run; each kubectl that is there tells the same stories.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test ends where its expectation does"
)]

#[path = "../../cri/tests/support/mod.rs"]
mod containerd;
mod control;
mod images;
mod operator;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent::{Config, Imports, Joined, NodeInfo, Settings};
use containerd::{BUSYBOX, Containerd};
use runtime::pki::{Authority, Sans, Subject, Usage};
use runtime::resource::{ENDPOINT_SLICES, PODS, SERVICE_ACCOUNTS, SERVICES};
use runtime::{Client, ClientConfig, Identity};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(86_400);
const LIMIT: Duration = Duration::from_secs(60);

/// Settings under which the machine that tests run on is never short of anything.
fn roomy() -> Settings {
    let value = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100});
    Settings::decode(&value).unwrap()
}

/// An API server with its data here, on a port of its own.
async fn open_api(data: &Path) -> apiserver::ApiServer {
    let config = apiserver::Config {
        data_dir: data.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Vec::new(),
        service_cidr: "172.21.0.0/24".parse().unwrap(),
        storage: apiserver::Storage::Embedded,
        identity: apiserver::Identity::default(),
        toleration_seconds: Some(300),
    };
    apiserver::ApiServer::open(CancellationToken::new(), &config).await.unwrap()
}

/// A cluster of one node.
struct Cluster {
    containerd: Containerd,
    data: tempfile::TempDir,
    admin: Client,
    tasks: JoinSet<()>,
}

impl Cluster {
    async fn start() -> Option<Self> {
        let containerd = Containerd::start()?;
        let data = tempfile::tempdir().unwrap();
        let server = open_api(data.path()).await;
        let mut tasks = JoinSet::new();
        let address = server.address();
        tasks.spawn(async move { server.serve().await.unwrap() });
        let admin = Client::from_kubeconfig(data.path().join("admin.kubeconfig")).unwrap();
        let mut cluster = Self { containerd, data, admin, tasks };
        cluster.start_agent(&format!("https://{address}"));
        cluster.make_default_account().await;
        cluster.await_node().await;
        Some(cluster)
    }

    fn start_agent(&mut self, server: &str) {
        let dir = self.containerd.dir();
        let config = Config {
            pki_dir: dir.join("pki"),
            cgroups: dir.join("none"),
            cri_socket: self.containerd.socket(),
            data_dir: dir.join("data"),
            log_dir: dir.join("logs"),
            image_dir: dir.join("none"),
            mirror_dir: Some(dir.join("certs.d")),
            listen: "127.0.0.1:0".parse().unwrap(),
            console: None,
            settings: roomy(),
            ..Config::default()
        };
        let authority = Authority::load(&self.data.path().join("pki")).unwrap();
        let sans = Sans { names: Vec::new(), addresses: vec!["127.0.0.1".parse().unwrap()] };
        let subject = Subject::new("system:node:w1", &["system:nodes"]);
        let made = authority.issue(&subject, &sans, Usage::Both, DAY).unwrap();
        let identity = Identity {
            cert_pem: made.cert_pem.into_bytes(),
            key_pem: made.key_pem.expose().as_bytes().to_vec(),
        };
        let node: NodeInfo = serde_json::from_value(json!({"name": "w1", "mac": "02:00:00:00:00:01",
            "address": "127.0.0.1", "api": server, "caFingerprint": "", "boot": "http://127.0.0.1:1"}))
        .unwrap();
        let ca_pem = authority.cert_pem().as_bytes().to_vec();
        std::fs::create_dir(dir.join("pki")).unwrap();
        for (name, bytes) in
            [("ca.crt", &ca_pem), ("node.crt", &identity.cert_pem), ("node.key", &identity.key_pem)]
        {
            std::fs::write(dir.join("pki").join(name), bytes).unwrap();
        }
        let client_config = ClientConfig {
            server: server.to_owned(),
            ca_pem,
            identity: Some(identity),
            token: None,
        };
        let joined = Joined { client_config, node, imports: Imports::default() };
        self.tasks.spawn(async move {
            let ended = agent::run_joined(CancellationToken::new(), config, joined).await;
            println!("agent ended: {ended:?}");
        });
    }

    /// The service account that pods without one get; a controller makes it too.
    async fn make_default_account(&self) {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": "default"}});
        let made = self.admin.create(&SERVICE_ACCOUNTS, Some("default"), &account).await;
        assert!(
            made.as_ref().err().is_none_or(runtime::ClientError::is_already_exists),
            "{made:?}"
        );
    }

    /// Pods of a node that the API does not know are swept away.
    async fn await_node(&self) {
        let limit = Instant::now() + LIMIT;
        while self.admin.raw_get("/api/v1/nodes/w1").await.unwrap().status != 200 {
            assert!(Instant::now() < limit, "the node was never registered");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn create(&self, name: &str, spec: Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": name, "namespace": "default"}});
        self.admin.create(&PODS, Some("default"), &pod).await.unwrap();
    }

    /// A service whose only endpoint is this node.
    async fn expose(&self, name: &str, port: u16) {
        let ports = json!([{"name": "web", "port": port, "protocol": "TCP"}]);
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"ports": ports}});
        self.admin.create(&SERVICES, Some("default"), &service).await.unwrap();
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default",
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": ports,
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
        self.admin.create(&ENDPOINT_SLICES, Some("default"), &slice).await.unwrap();
    }

    async fn await_pod(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let limit = Instant::now() + LIMIT;
        loop {
            let pod = self.admin.get(&PODS, Some("default"), name).await.unwrap();
            if wanted(&pod) {
                return pod;
            }
            assert!(Instant::now() < limit, "{name} never came there: {:#}", pod["status"]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn command(&self, kubectl: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.data.path().join("admin.kubeconfig"))
            .arg("--cache-dir")
            .arg(self.data.path().join("cache"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl with some input; gives its exit code and what it said.
    async fn run(&self, kubectl: &Path, words: &[&str], input: &str) -> (i32, String, String) {
        let child = self.command(kubectl, words).spawn().unwrap();
        finish(child, input, &format!("{kubectl:?} {words:?}")).await
    }

    fn text(&self) -> String {
        self.data.path().join("admin.kubeconfig").display().to_string()
    }
}

async fn finish(
    mut child: tokio::process::Child,
    input: &str,
    what: &str,
) -> (i32, String, String) {
    let mut stdin = child.stdin.take().unwrap();
    let input = input.as_bytes().to_vec();
    let feed = async move {
        // A command may end before it has read everything.
        drop(stdin.write_all(&input).await);
        drop(stdin);
    };
    let done = async { tokio::join!(feed, child.wait_with_output()).1 };
    let Ok(output) = tokio::time::timeout(LIMIT, done).await else {
        panic!("{what} did not end in {LIMIT:?}");
    };
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Every kubectl that is there: those that `cargo xtask` fetches.
fn kubectls() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let tools = root.join("target/tools");
    let found = ["1.20", "1.32", "1.36"]
        .map(|version| tools.join(format!("kubectl-{version}/usr/bin/kubectl")));
    found.into_iter().filter(|path| path.exists()).collect()
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["ready"] == json!(true)
}

/// Runs kubectl until it says what is wanted.
async fn await_said(cluster: &Cluster, kubectl: &Path, words: &[&str], wanted: &[&str]) {
    let limit = Instant::now() + LIMIT;
    loop {
        let (code, stdout, stderr) = cluster.run(kubectl, words, "").await;
        if code == 0 && wanted.iter().all(|word| stdout.contains(word)) {
            return;
        }
        assert!(Instant::now() < limit, "{kubectl:?} {words:?}: {code} {stdout} {stderr}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What is seen of a node and its pods without entering a container.
async fn looks(cluster: &Cluster, kubectl: &Path, at: usize, port: u16) {
    await_said(cluster, kubectl, &["top", "node"], &["w1", "Mi"]).await;
    await_said(cluster, kubectl, &["top", "pod", "box", "--containers"], &["box", "main", "Mi"])
        .await;
    let raw = async |path: &str, wanted: &[&str]| {
        await_said(cluster, kubectl, &["get", "--raw", path], wanted).await;
    };
    raw("/api/v1/nodes/w1/proxy/healthz", &["ok"]).await;
    raw("/api/v1/nodes/w1/proxy/metrics/resource", &["pod_cpu_usage_seconds_total{"]).await;
    raw(&format!("/api/v1/namespaces/default/pods/host:{port}/proxy/page"), &["a page"]).await;
    raw(&format!("/api/v1/namespaces/default/services/host:{port}/proxy/page"), &["a page"]).await;
    // Before 1.30 debugging was another command, and another API.
    if at == 0 {
        return;
    }
    let name = format!("look{at}");
    let words = [
        "debug",
        "box",
        "--image",
        BUSYBOX,
        "--image-pull-policy=Never",
        "--profile=general",
        "--target=main",
        "-c",
        &name,
        "--",
        "sh",
        "-c",
        "ps; echo looked at $KUBERNETES_SERVICE_PORT",
    ];
    let (code, _, stderr) = cluster.run(kubectl, &words, "").await;
    assert_eq!(code, 0, "{kubectl:?} debug: {stderr}");
    await_said(cluster, kubectl, &["logs", "box", "-c", &name], &["httpd", "looked at 443"]).await;
    let pod = cluster.await_pod("box", is_ready).await;
    let added = pod["status"]["ephemeralContainerStatuses"].as_array().unwrap();
    assert!(added.iter().any(|status| status["name"] == json!(name)), "{added:?}");
}

/// Port-forward: the first line names the port; then HTTP through it.
async fn fetch_forwarded(cluster: &Cluster, kubectl: &Path) -> String {
    let words = ["port-forward", "pod/box", ":8080"];
    let mut child = cluster.command(kubectl, &words).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
    let line = line.expect("port-forward says where it listens");
    let port = line.split(" -> ").next().unwrap().rsplit(':').next().unwrap();
    let mut got = Vec::new();
    // Twice, for each connection is a pair of streams of its own.
    for _ in 0..2 {
        got.clear();
        let mut socket = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
        socket.write_all(b"GET /page HTTP/1.0\r\n\r\n").await.unwrap();
        tokio::time::timeout(LIMIT, socket.read_to_end(&mut got)).await.unwrap().unwrap();
    }
    child.kill().await.unwrap();
    String::from_utf8_lossy(&got).into_owned()
}

/// Commands with their input, output, errors and exit codes.
async fn commands(cluster: &Cluster, kubectl: &Path, big: &str) {
    let checks: [(&[&str], &str, i32, &str, &str); 7] = [
        (&["exec", "box", "--", "echo", "a b", "&c=%41"], "", 0, "a b &c=%41\n", ""),
        (&["exec", "-i", "box", "--", "cat"], "to the end", 0, "to the end", ""),
        (&["exec", "-i", "box", "--", "wc", "-c"], big, 0, "320000\n", ""),
        (&["exec", "box", "--", "cat", "/big"], "", 0, big, ""),
        (&["exec", "box", "--", "sh", "-c", "echo no >&2; exit 7"], "", 7, "", "no\n"),
        (
            &["exec", "box", "-c", "none", "--", "true"],
            "",
            1,
            "",
            "container none is not valid for pod box",
        ),
        (&["exec", "nobody", "--", "true"], "", 1, "", "pods \"nobody\" not found"),
    ];
    cluster
        .run(kubectl, &["exec", "-i", "box", "--", "sh", "-c", "cat > /big; wc -c < /big"], big)
        .await;
    let mut wrong = Vec::new();
    for (words, input, code, stdout, stderr) in checks {
        let got = cluster.run(kubectl, words, input).await;
        let what = format!(
            "{} {words:?}: exit {}, {} of {} bytes: {:.40} {:.300}",
            kubectl.display(),
            got.0,
            got.1.len(),
            stdout.len(),
            got.1,
            got.2
        );
        if got.0 != code || got.1 != stdout || !got.2.contains(stderr) {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn streams(cluster: &Cluster, kubectl: &Path, at: usize) {
    let big = "0123456789abcde\n".repeat(20_000);
    commands(cluster, kubectl, &big).await;
    // A terminal has its size and one stream for all.
    let line = format!(
        "stty rows 33 cols 111; {} --kubeconfig {} exec -it box -- sh -c 'until stty size | grep 33.111; do :; done; tty >&2; exit 3'",
        kubectl.display(),
        cluster.text(),
    );
    let child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (code, said, _) = finish(child, "", "a terminal").await;
    assert!(said.contains("33 111") && said.contains("/dev/pts/"), "{said}");
    assert_eq!(code, 3, "{said}");
    assert!(fetch_forwarded(cluster, kubectl).await.ends_with("a page"), "{kubectl:?}");
    // Copies go through tar at both ends.
    let (here, back) = (cluster.data.path().join("here"), cluster.data.path().join("back"));
    std::fs::write(&here, &big).unwrap();
    let (here, back) = (here.display().to_string(), back.display().to_string());
    let there = format!("default/box:/tmp/there{at}");
    for (from, to) in [(&here, &there), (&there, &back)] {
        let (code, _, stderr) = cluster.run(kubectl, &["cp", from, to], "").await;
        assert_eq!(code, 0, "{kubectl:?} cp {from} {to}: {stderr}");
    }
    assert_eq!(std::fs::read_to_string(&back).unwrap(), big);
    std::fs::remove_file(&back).unwrap();
    // A pod that lives as long as its input.
    let name = format!("once{at}");
    let overrides = json!({"spec": {"nodeName": "w1", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0}});
    let words = [
        "run",
        &name,
        "--image",
        BUSYBOX,
        "--restart=Never",
        "-i",
        "--rm",
        "--quiet",
        "--overrides",
        &overrides.to_string(),
        "--command",
        "--",
        "sh",
        "-c",
        "read x; echo got $x",
    ];
    let (code, said, stderr) = cluster.run(kubectl, &words, "it\n").await;
    assert!(code == 0 && said.contains("got it"), "{kubectl:?} run: {code} {said} {stderr}");
    // Attached to a process that was there before; input that ends would detach at once.
    let mut child = cluster.command(kubectl, &["attach", "-i", "echo"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hey\n").await.unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = tokio::time::timeout(LIMIT, lines.next_line()).await;
    assert_eq!(said.unwrap().unwrap().as_deref(), Some("heard hey"), "{kubectl:?} attach");
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kubectl_reaches_into_containers() {
    let Some(cluster) = Cluster::start().await else { return };
    let spec = |script: &str| {
        json!({"nodeName": "w1", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0, "containers":
            [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]}]})
    };
    let script = "mkdir /www; printf 'a page' > /www/page; httpd -p 8080 -h /www; sleep 10000";
    cluster.create("box", spec(script)).await;
    let mut echo = spec("while true; do read x && echo heard $x; done");
    echo["containers"][0]["stdin"] = json!(true);
    cluster.create("echo", echo).await;
    // Only the node's own network can be reached from outside here.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let script =
        format!("mkdir /www; printf 'a page' > /www/page; httpd -f -p 127.0.0.1:{port} -h /www");
    let mut host = spec(&script);
    host["hostNetwork"] = json!(true);
    cluster.create("host", host).await;
    cluster.expose("host", port).await;
    cluster.await_pod("host", is_ready).await;
    cluster.await_pod("box", is_ready).await;
    cluster.await_pod("echo", is_ready).await;
    for (at, kubectl) in kubectls().iter().enumerate() {
        println!("{}", kubectl.display());
        streams(&cluster, kubectl, at).await;
        looks(&cluster, kubectl, at, port).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hollow_nodes_take_pods_and_give_them_back() {
    let data = tempfile::tempdir().unwrap();
    let server = open_api(data.path()).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { server.serve().await.unwrap() });
    let kubeconfig = data.path().join("admin.kubeconfig");
    let admin = Client::from_kubeconfig(&kubeconfig).unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "default"}});
    drop(admin.create(&SERVICE_ACCOUNTS, Some("default"), &account).await);
    let client = ClientConfig::from_kubeconfig(&kubeconfig).unwrap();
    let config = agent::hollow::HollowConfig::new(client, 50);
    tasks.spawn(async move { agent::hollow::run(CancellationToken::new(), config).await.unwrap() });
    let items = async |path: &str| -> Vec<Value> {
        let body = admin.raw_get(path).await.unwrap().body;
        let list: Value = serde_json::from_slice(&body).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    let await_all = async |path: &str, count: usize, wanted: &dyn Fn(&Value) -> bool| {
        let limit = Instant::now() + LIMIT;
        loop {
            let found = items(path).await;
            if found.len() == count && found.iter().all(wanted) {
                return;
            }
            assert!(
                Instant::now() < limit,
                "{path}: {} of {count}, {:?}",
                found.len(),
                found.first()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ready = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    await_all("/api/v1/nodes", 50, &ready).await;
    let pods = "/api/v1/namespaces/default/pods";
    for number in 0..200 {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{number}")},
            "spec": {"nodeName": format!("hollow-{}", number % 50), "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": BUSYBOX}]}});
        admin.create(&PODS, Some("default"), &pod).await.unwrap();
    }
    await_all(pods, 200, &ready).await;
    for number in 0..200 {
        let params = runtime::client::DeleteParams::default();
        admin.delete(&PODS, Some("default"), &format!("p{number}"), &params).await.unwrap();
    }
    await_all(pods, 0, &ready).await;
}
