//! End to end: our scheduler against an API server, through public endpoints alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::scheduler::Config;
use manager::Stopwatch;
use objects::node::Node;
use objects::pod::Pod;
use runtime::client::ListParams;
use runtime::{Client, Resource};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::workload::{Batch, Workload};
use crate::{Failure, Outcome};

/// Connections by which objects are made.
const CLIENTS: usize = 4;
/// Objects being made at a time.
const AT_ONCE: usize = 128;
/// Longest time for the pods of one step.
const STEP_MAX: Duration = Duration::from_secs(600);
/// Longest start of the server, its build included.
const START_MAX: Duration = Duration::from_secs(1200);

/// Our API server, as a process with a directory of its own; both end with this value.
struct Served {
    child: Child,
    dir: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It holds nothing that must be saved.
        drop(self.child.start_kill());
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// Starts the server and waits until it listens.
async fn serve() -> Result<Served, Failure> {
    let dir = std::env::temp_dir().join(format!("schedbench-{}", std::process::id()));
    let built = std::env::current_exe()?.parent().map(|dir| dir.join("examples/serve"));
    let mut command = match built.filter(|path| path.exists()) {
        Some(path) => Command::new(path),
        None => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut command = Command::new(cargo);
            command.args(["run", "-q", "--release", "-p", "apiserver", "--example", "serve", "--"]);
            command
        }
    };
    let mut child = command
        .arg(&dir)
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("the server has no output")?;
    let served = Served { child, dir };
    let mut lines = BufReader::new(stdout).lines();
    let first = tokio::time::timeout(START_MAX, lines.next_line()).await??;
    if !first.is_some_and(|line| line.starts_with("https://")) {
        return Err("the server ended before it listened".into());
    }
    Ok(served)
}

/// Plays a workload against the server of a kubeconfig, or one of our own.
pub(crate) async fn run(
    workload: &Workload,
    kubeconfig: Option<&Path>,
) -> Result<Outcome, Failure> {
    let server = match kubeconfig {
        Some(_) => None,
        None => Some(serve().await?),
    };
    let own = server.as_ref().map(|server| server.dir.join("admin.kubeconfig"));
    let kubeconfig = kubeconfig.map(Path::to_owned).or(own).ok_or("no server")?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::from_kubeconfig(&kubeconfig)?);
    }
    let (mut nodes, mut pods) = (0, 0);
    let mut outcome = Outcome {
        nodes: workload.nodes(),
        pods: 0,
        elapsed: Duration::ZERO,
        decisions: Vec::new(),
    };
    for step in &workload.steps {
        if let Some(object) = &step.object {
            make(&clients, vec![object.clone()]).await?;
        }
        if let Some(batch) = &step.nodes {
            make(&clients, (0..batch.count).map(|n| batch.node(nodes + n)).collect()).await?;
            nodes += batch.count;
        }
        if let Some(batch) = &step.pods {
            make(&clients, (0..batch.count).map(|n| batch.pod(pods + n)).collect()).await?;
            pods += batch.count;
            schedule(&kubeconfig, batch, &mut outcome).await?;
        }
    }
    if let Some(client) = clients.first() {
        verify(client).await?;
    }
    Ok(outcome)
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

/// Makes objects, many at a time; those that are there already are fine.
async fn make(clients: &[Client], objects: Vec<Value>) -> Result<(), Failure> {
    let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
    for (number, object) in objects.into_iter().enumerate() {
        if tasks.len() >= AT_ONCE
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let client = clients.get(number % clients.len()).ok_or("no client")?.clone();
        tasks.spawn(async move {
            let (version, name) = (text(&object, "/apiVersion"), text(&object, "/kind"));
            let kind = objects::kind::by_gvk(version.unwrap_or("v1"), name.unwrap_or_default());
            let kind = kind.ok_or("a kind nobody knows")?;
            let namespace = text(&object, "/metadata/namespace");
            match client.create(&Resource::from(kind), namespace, &object).await {
                Ok(_) => Ok(()),
                Err(err) if err.is_already_exists() => Ok(()),
                Err(err) => Err(runtime::report(&err).into()),
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Runs the scheduler until the pods of a step are bound.
async fn schedule(kubeconfig: &Path, batch: &Batch, outcome: &mut Outcome) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let stopwatch = Arc::new(Stopwatch::default());
    let client = Client::from_kubeconfig(kubeconfig)?;
    let mut tasks = JoinSet::new();
    let scheduler =
        manager::schedule(stop.clone(), client, Config::default(), Some(Arc::clone(&stopwatch)));
    tasks.spawn(scheduler);
    let limit = Instant::now() + STEP_MAX;
    while stopwatch.bound() < batch.count {
        if Instant::now() > limit {
            let bound = stopwatch.bound();
            return Err(format!("{bound} of {} pods were bound in time", batch.count).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    if batch.measured {
        outcome.pods += batch.count;
        outcome.elapsed += stopwatch.span();
        outcome.decisions.extend(stopwatch.take());
    }
    Ok(())
}

/// Reads everything back: no node holds more than it has, and every pod has a node.
async fn verify(client: &Client) -> Result<(), Failure> {
    let everything = ListParams { limit: Some(2000), ..ListParams::default() };
    let mut room: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for node in list(client, &objects::kind::NODE, &everything).await? {
        let node: Node = serde_json::from_value(node)?;
        let amount = |name: &str| node.status.allocatable.get(name).copied().unwrap_or_default();
        room.insert(
            node.metadata.name.clone(),
            (amount("cpu").milli_value(), amount("pods").value()),
        );
    }
    for pod in list(client, &objects::kind::POD, &everything).await? {
        let pod: Pod = serde_json::from_value(pod)?;
        let left = room.get_mut(&pod.spec.node_name);
        let (cpu, pods) = left.ok_or_else(|| format!("{} has no node", pod.metadata.name))?;
        let all = pod.spec.containers.iter();
        let asked = all.filter_map(|one| one.resources.requests.get("cpu"));
        *cpu -= asked.map(|amount| amount.milli_value()).sum::<i64>();
        *pods -= 1;
        if *cpu < 0 || *pods < 0 {
            return Err(format!("{} is too full", pod.spec.node_name).into());
        }
    }
    Ok(())
}

async fn list(
    client: &Client,
    kind: &'static objects::Kind,
    params: &ListParams,
) -> Result<Vec<Value>, Failure> {
    let mut params = params.clone();
    let mut items = Vec::new();
    loop {
        let page = client.list(&Resource::from(kind), None, &params).await?;
        items.extend(page.items);
        if page.continue_token.is_none() {
            return Ok(items);
        }
        params.continue_token = page.continue_token;
    }
}
