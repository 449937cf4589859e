//! Pods on one node beside what the runtime itself takes for them.
//!
//! `cargo run --release -p agent --example podbench [-- --starts N --idle N --seconds N --full N]`
//! starts a private containerd and an API in memory, and the agent as a process of its own.
//! Printed are, from the same run:
//!
//! - the start of a pod whose image is there, from its creation in the API until the API says
//!   that it is ready, beside `RunPodSandbox` + `CreateContainer` + `StartContainer` alone; the
//!   two take turns, so that a busy host disturbs both alike;
//! - memory and processor time of the agent with pods that do nothing;
//! - how long it takes until a node is full.
//!
//! Needs root and the programs that `cri/tests/support` names. *Limits*: services, names and
//! policies are other tasks of the same program on a real node and are not measured here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench program"
)]

#[path = "../../cri/tests/support/mod.rs"]
mod containerd;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use agent::{Config, Imports, Joined, NodeInfo, Settings};
use clap::Parser;
use containerd::{BUSYBOX, Containerd};
use cri::Runtime;
use cri::message::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};
use runtime::pki::{Authority, Sans, Subject, Usage};
use runtime::{ClientConfig, Identity};
use serde_json::{Value, json};
use support::Api;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a host that has other work, too.
const LIMIT: Duration = Duration::from_secs(600);
/// How often the API in memory is looked at.
const LOOK: Duration = Duration::from_micros(500);
/// Unmeasured starts before the first measured one.
const WARM: usize = 2;

#[derive(Debug, Parser)]
struct Arguments {
    /// How many starts are measured.
    #[arg(long, default_value_t = 20)]
    starts: usize,
    /// How many pods an idle node has.
    #[arg(long, default_value_t = 30)]
    idle: usize,
    /// How long it idles, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many pods a full node has; 0 leaves this out.
    #[arg(long, default_value_t = 110)]
    full: usize,
    /// Be the agent of this directory (used by the bench itself).
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
    /// Where the API is.
    #[arg(long, hide = true, default_value = "")]
    api: String,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(dir) = &arguments.dir {
        // Two threads, as `muster agent` has.
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(be_agent(dir, &arguments.api));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&arguments));
}

async fn be_agent(dir: &Path, server: &str) {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = std::env::var("RUST_LOG").unwrap();
        runtime::telemetry::init(&filter, runtime::telemetry::Format::Text);
    }
    let settings = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100});
    let config = Config {
        pki_dir: dir.join("pki"),
        cri_socket: dir.join("s.sock"),
        data_dir: dir.join("data"),
        log_dir: dir.join("logs"),
        image_dir: dir.join("none"),
        listen: "127.0.0.1:0".parse().unwrap(),
        console: None,
        settings: Settings::decode(&settings).unwrap(),
        ..Config::default()
    };
    let node: NodeInfo = serde_json::from_value(json!({"name": "w1", "mac": "02:00:00:00:00:01",
        "address": "127.0.0.1", "api": server, "caFingerprint": "", "boot": "http://127.0.0.1:1"}))
    .unwrap();
    let day = Duration::from_secs(24 * 3600);
    let authority = Authority::generate("bench", day).unwrap();
    let sans = Sans { names: Vec::new(), addresses: vec!["127.0.0.1".parse().unwrap()] };
    let subject = Subject::new("system:node:w1", &["system:nodes"]);
    let made = authority.issue(&subject, &sans, Usage::Both, day).unwrap();
    let key_pem = made.key_pem.expose().as_bytes().to_vec();
    let identity = Identity { cert_pem: made.cert_pem.into_bytes(), key_pem };
    let ca_pem = authority.cert_pem().as_bytes().to_vec();
    let client_config =
        ClientConfig { server: server.to_owned(), ca_pem, identity: Some(identity), token: None };
    let joined = Joined { client_config, node, imports: Imports::default() };
    agent::run_joined(CancellationToken::new(), config, joined).await.unwrap();
}

/// The agent as a process, killed when dropped.
struct Agent(Child);

impl Agent {
    fn start(dir: &Path, api: &Api) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--dir").arg(dir).arg("--api").arg(format!("http://{}", api.address));
        Self(command.spawn().unwrap())
    }

    /// Resident memory in bytes.
    fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time used so far.
    fn cpu(&self) -> Duration {
        let mut total = 0;
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Duration::from_nanos(total)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Bench {
    api: Api,
    runtime: Runtime,
    logs: PathBuf,
}

async fn measure(arguments: &Arguments) {
    let Some(containerd) = Containerd::start() else { return };
    let api = Api::start().await;
    api.put("/api/v1/namespaces/default/configmaps/m", json!({"data": {"color": "red"}}));
    let runtime = Runtime::at(&containerd.socket()).unwrap();
    let logs = containerd.dir().join("raw");
    let bench = Bench { api, runtime, logs };
    let agent = Agent::start(containerd.dir(), &bench.api);

    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for index in 0..arguments.starts + WARM {
        let (one, other) = (bench.raw(index).await, bench.pod(&format!("start-{index}")).await);
        if index >= WARM {
            raw.push(one);
            ours.push(other);
        }
    }
    let (raw, ours) = (Spread::of(raw), Spread::of(ours));
    println!("start of a pod, image present ({} of each, by turns)", arguments.starts);
    println!("  runtime alone   {raw}");
    println!("  through the API {ours}");
    println!("  ratio of medians {:.2}", ours.median.as_secs_f64() / raw.median.as_secs_f64());

    bench.fill("idle", arguments.idle).await;
    // What starting left behind is not idling.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (before, begun) = (agent.cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let share = (agent.cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let resident = agent.resident_bytes() as f64 / f64::from(1 << 20);
    println!("idle with {} pods for {} s", arguments.idle, arguments.seconds);
    println!("  resident {resident:.1} MiB, {:.2} % of a core", share * 100.0);

    if arguments.full > arguments.idle {
        let (before, begun) = (agent.cpu(), Instant::now());
        bench.fill("full", arguments.full - arguments.idle).await;
        let (wall, cpu) = (begun.elapsed(), agent.cpu() - before);
        println!(
            "{} more pods at once, {} in all",
            arguments.full - arguments.idle,
            arguments.full
        );
        println!("  all ready after {wall:.1?}; processor time of the agent {cpu:.2?}");
        println!("  resident {:.1} MiB", agent.resident_bytes() as f64 / f64::from(1 << 20));
    }
    drop(agent);
}

impl Bench {
    /// Starts a pod by the runtime's own calls, and removes it; only the start is timed.
    async fn raw(&self, index: usize) -> Duration {
        let name = format!("raw-{index}");
        let sandbox = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: "raw".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: self.logs.join(&name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..PodSandboxConfig::default()
        };
        std::fs::create_dir_all(&sandbox.log_directory).unwrap();
        let begun = Instant::now();
        let request =
            RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
        let pod_sandbox_id = self.runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
        let image = BUSYBOX.to_owned();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image, ..ImageSpec::default() }),
            command: ["sleep", "1000"].map(str::to_owned).to_vec(),
            log_path: "0.log".to_owned(),
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let container_id = self.runtime.create_container(request).await.unwrap().container_id;
        self.runtime.start_container(StartContainerRequest { container_id }).await.unwrap();
        let took = begun.elapsed();
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.runtime.stop_pod_sandbox(stop).await.unwrap();
        let remove = RemovePodSandboxRequest { pod_sandbox_id };
        self.runtime.remove_pod_sandbox(remove).await.unwrap();
        took
    }

    /// Starts a pod by creating it, and deletes it; only the start is timed.
    async fn pod(&self, name: &str) -> Duration {
        let begun = Instant::now();
        self.create(name);
        self.await_state(name, is_ready).await;
        let took = begun.elapsed();
        self.api.delete_gracefully(&path(name), 1);
        self.await_state(name, |pod| pod.is_none()).await;
        took
    }

    async fn fill(&self, kind: &str, count: usize) {
        for index in 0..count {
            self.create(&format!("{kind}-{index}"));
        }
        for index in 0..count {
            self.await_state(&format!("{kind}-{index}"), is_ready).await;
        }
    }

    /// A pod as deployments make them: a container, a config map as files, a variable.
    fn create(&self, name: &str) {
        let container = json!({"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"],
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [{"name": "m", "mountPath": "/m"}]});
        let spec = json!({"nodeName": "w1", "terminationGracePeriodSeconds": 1,
            "containers": [container], "volumes": [{"name": "m", "configMap": {"name": "m"}}]});
        let meta = json!({"name": name, "namespace": "default", "uid": format!("uid-{name}")});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec});
        self.api.put(&path(name), pod);
    }

    async fn await_state(&self, name: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        let limit = Instant::now() + LIMIT;
        loop {
            let pod = self.api.get(&path(name));
            if wanted(pod.as_ref()) {
                return;
            }
            let status = pod.map(|pod| pod["status"].clone());
            assert!(Instant::now() < limit, "{name} never came there; last seen: {status:#?}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The least, the middle and the most of several times.
struct Spread {
    least: Duration,
    median: Duration,
    most: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { least: times[0], median: times[times.len() / 2], most: times[times.len() - 1] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { least, median, most } = self;
        write!(f, "median {median:.1?}, from {least:.1?} to {most:.1?}")
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn is_ready(pod: Option<&Value>) -> bool {
    pod.is_some_and(|pod| pod["status"]["containerStatuses"][0]["ready"] == json!(true))
}
