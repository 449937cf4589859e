//! End to end: our scheduler against an API server, through public endpoints alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::scheduler::Config;
use manager::Stopwatch;
use objects::node::Node;
use objects::pod::Pod;
use runtime::client::{ListParams, Patch};
use runtime::{Client, Resource};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::process::{Process, serve, ticks};
use crate::workload::{Batch, Workload};
use crate::{Cost, Failure, Outcome};

/// Connections by which objects are made.
const CLIENTS: usize = 4;
/// Objects being made at a time.
const AT_ONCE: usize = 128;
/// Longest time for the pods of one step.
const STEP_MAX: Duration = Duration::from_secs(600);

/// Plays a workload against the server of a kubeconfig, or one of our own.
pub(crate) async fn run(
    workload: &Workload,
    kubeconfig: Option<&Path>,
) -> Result<Outcome, Failure> {
    let server = match kubeconfig {
        Some(_) => None,
        None => Some(serve().await?),
    };
    let own = server.as_ref().and_then(Process::kubeconfig);
    let kubeconfig = kubeconfig.map(Path::to_owned).or(own).ok_or("no server")?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::from_kubeconfig(&kubeconfig)?);
    }
    let (mut nodes, mut pods, mut stranded) = (0, 0, 0);
    let mut outcome = Outcome {
        nodes: workload.nodes(),
        pods: 0,
        elapsed: Duration::ZERO,
        decisions: Vec::new(),
        cost: Cost::default(),
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
            if batch.stranded {
                stranded += batch.count;
                continue;
            }
            schedule(&kubeconfig, server.as_ref(), batch, &mut outcome).await?;
        }
    }
    if let Some(client) = clients.first() {
        verify(client, stranded).await?;
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
                Ok(made) => untaint(&client, &object, &made).await,
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

/// Takes the taint off a new node that says not ready, as the node controller would: no controller
/// runs here.
async fn untaint(client: &Client, wanted: &Value, made: &Value) -> Result<(), Failure> {
    let taints = |object: &Value| object.pointer("/spec/taints").cloned().unwrap_or_default();
    let is_node = text(made, "/kind") == Some("Node");
    let name = text(made, "/metadata/name").unwrap_or_default();
    if is_node && taints(made) != taints(wanted) {
        let patch = Patch::merge(json!({"spec": {"taints": taints(wanted)}}));
        let nodes = Resource::from(&objects::kind::NODE);
        client.patch(&nodes, None, name, &patch).await.map_err(|err| runtime::report(&err))?;
    }
    Ok(())
}

/// Runs the scheduler until the pods of a step are bound.
async fn schedule(
    kubeconfig: &Path,
    server: Option<&Process>,
    batch: &Batch,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let cost = || -> Result<Cost, Failure> {
        let server = server.map(Process::ticks).transpose()?.unwrap_or_default();
        Ok(Cost { server: server / 100.0, scheduler: ticks(std::process::id())? / 100.0 })
    };
    let before = cost()?;
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
        let after = cost()?;
        outcome.cost.server += after.server - before.server;
        outcome.cost.scheduler += after.scheduler - before.scheduler;
        outcome.decisions.extend(stopwatch.take());
    }
    Ok(())
}

/// Reads everything back: no node holds more than it has, and every pod has a node but those that
/// cannot have one.
async fn verify(client: &Client, mut stranded: usize) -> Result<(), Failure> {
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
        if pod.spec.node_name.is_empty() && stranded > 0 {
            stranded -= 1;
            continue;
        }
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
