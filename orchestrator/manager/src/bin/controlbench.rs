//! Measures controllers: `controlbench [--kubeconfig DIR/admin.kubeconfig [--pid MASTER]]`.
//!
//! Three figures: until all pods of a deployment of a thousand exist; until ten thousand
//! objects are gone after their owner; what the control plane costs while five thousand nodes
//! do nothing but renew their leases.
//!
//! Without `--kubeconfig` our own API server and manager are started for the occasion (the
//! examples `serve` of `apiserver` and `manage` of `manager`). With it, whatever runs there is
//! measured, and the cost of one process of it with `--pid`.

#[path = "schedbench/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use objects::kind;
use runtime::client::{DeleteParams, ListParams, Patch, WatchEvent, WatchParams};
use runtime::{Client, Resource};
use serde_json::{Value, json};

use process::Process;

/// Requests of ours under way at a time.
const AT_ONCE: usize = 64;
/// The namespace everything happens in.
const NAMESPACE: &str = "controlbench";
/// The longest any figure may take.
const LIMIT: Duration = Duration::from_secs(300);

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// What the command line asks for.
struct Args {
    kubeconfig: Option<PathBuf>,
    pid: Option<u32>,
    replicas: usize,
    owned: usize,
    nodes: usize,
}

fn args() -> Outcome<Args> {
    let mut args = Args { kubeconfig: None, pid: None, replicas: 1000, owned: 10_000, nodes: 5000 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or("every option wants a value")?;
        match word.as_str() {
            "--kubeconfig" => args.kubeconfig = Some(value.into()),
            "--pid" => args.pid = Some(value.parse()?),
            "--replicas" => args.replicas = value.parse()?,
            "--owned" => args.owned = value.parse()?,
            "--nodes" => args.nodes = value.parse()?,
            other => return Err(format!("no option {other}").into()),
        }
    }
    Ok(args)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let args = args()?;
    let server = match args.kubeconfig {
        Some(_) => None,
        None => Some(process::serve().await?),
    };
    let own = server.as_ref().and_then(Process::kubeconfig);
    let manager = own.as_deref().and_then(Path::parent).map(process::manage).transpose()?;
    let kubeconfig = args.kubeconfig.clone().or(own).ok_or("no server")?;
    let client = Client::from_kubeconfig(&kubeconfig)?;
    if manager.is_some() {
        managed(&client).await?;
    }
    let cost = || -> Outcome<f64> {
        let other = args.pid.map(process::ticks).transpose()?.unwrap_or_default();
        let own = [&server, &manager].into_iter().flatten().map(Process::ticks);
        Ok(other + own.sum::<Outcome<f64>>()?)
    };
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    match client.create(&Resource::from(&kind::NAMESPACE), None, &namespace).await {
        Err(err) if !err.is_already_exists() => return Err(err.into()),
        _ => (),
    }
    let took = deployment(&client, args.replicas).await?;
    tell(&format!("deployment of {}: every pod object after {took:.3} s", args.replicas))?;
    let took = owned(&client, args.owned).await?;
    tell(&format!("{} owned objects: gone {took:.3} s after their owner", args.owned))?;
    if args.pid.is_some() || server.is_some() {
        let share = idle(&client, &cost, args.nodes).await?;
        tell(&format!("{} idle nodes: {share:.1} % of one core", args.nodes))?;
    }
    let params = DeleteParams::default();
    client.delete(&Resource::from(&kind::NAMESPACE), None, NAMESPACE, &params).await?;
    Ok(())
}

fn tell(line: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// Seconds until a watch has told of so many objects, made or gone.
async fn count(
    client: &Client,
    resource: &Resource,
    revision: String,
    goal: usize,
    gone: bool,
) -> Outcome<()> {
    let params = WatchParams { resource_version: Some(revision), ..WatchParams::default() };
    let mut events = client.watch(resource, Some(NAMESPACE), &params).await?;
    let mut names = BTreeSet::new();
    while let Some(event) = events.next().await {
        let object = match event? {
            WatchEvent::Added(object) if !gone => object,
            WatchEvent::Deleted(object) if gone => object,
            _ => continue,
        };
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        names.insert(name.to_owned());
        if names.len() == goal {
            return Ok(());
        }
    }
    Err("the watch ended too soon".into())
}

async fn revision(client: &Client, resource: &Resource) -> Outcome<String> {
    let params = ListParams { limit: Some(1), ..ListParams::default() };
    Ok(client.list(resource, Some(NAMESPACE), &params).await?.resource_version)
}

async fn deployment(client: &Client, replicas: usize) -> Outcome<f64> {
    let (pods, deployments) = (Resource::from(&kind::POD), Resource::from(&kind::DEPLOYMENT));
    let from = revision(client, &pods).await?;
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "many", "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}},
                "spec": {"containers": [{"name": "c", "image": "example.com/none"}]},
            },
        },
    });
    let begun = Instant::now();
    client.create(&deployments, Some(NAMESPACE), &object).await?;
    tokio::time::timeout(LIMIT, count(client, &pods, from, replicas, false)).await??;
    let took = begun.elapsed().as_secs_f64();
    client.delete(&deployments, Some(NAMESPACE), "many", &DeleteParams::default()).await?;
    Ok(took)
}

async fn owned(client: &Client, number: usize) -> Outcome<f64> {
    let maps = Resource::from(&kind::CONFIG_MAP);
    let owner = json!({"metadata": {"name": "owner", "namespace": NAMESPACE}});
    let owner = client.create(&maps, Some(NAMESPACE), &owner).await?;
    let uid = owner.pointer("/metadata/uid").cloned().unwrap_or_default();
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid});
    let objects: Vec<Value> = (0..number)
        .map(|at| {
            json!({"metadata": {
                "name": format!("owned-{at}"), "namespace": NAMESPACE,
                "ownerReferences": [reference],
            }})
        })
        .collect();
    let mut writes = Vec::new();
    for object in &objects {
        writes.push(client.create(&maps, Some(NAMESPACE), object));
    }
    let made: Vec<_> = stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
    made.into_iter().collect::<Result<Vec<_>, _>>()?;
    let from = revision(client, &maps).await?;
    let begun = Instant::now();
    client.delete(&maps, Some(NAMESPACE), "owner", &DeleteParams::default()).await?;
    // The owner's own end is told too.
    tokio::time::timeout(LIMIT, count(client, &maps, from, number + 1, true)).await??;
    Ok(begun.elapsed().as_secs_f64())
}

/// Waits until the manager has made what it makes in every namespace.
async fn managed(client: &Client) -> Outcome<()> {
    let accounts = Resource::from(&kind::SERVICE_ACCOUNT);
    let begun = Instant::now();
    while client.get(&accounts, Some("default"), "default").await.is_err() {
        if begun.elapsed() > LIMIT {
            return Err("the manager does not work".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn idle(client: &Client, cost: &dyn Fn() -> Outcome<f64>, number: usize) -> Outcome<f64> {
    let (nodes, leases) = (Resource::from(&kind::NODE), Resource::from(&kind::LEASE));
    let space = "kube-node-lease";
    let names: Vec<String> = (0..number).map(|at| format!("bench-{at}")).collect();
    let now = || objects::MicroTime::from(jiff::Timestamp::now());
    for name in &names {
        let at = objects::Time::from(jiff::Timestamp::now());
        let node = json!({
            "metadata": {"name": name},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": at},
            ]},
        });
        let lease = json!({
            "metadata": {"name": name, "namespace": space},
            "spec": {"holderIdentity": name, "renewTime": now()},
        });
        client.create(&nodes, None, &node).await?;
        client.create(&leases, Some(space), &lease).await?;
    }
    // What the making of nodes set off comes to rest first.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (begun, before) = (Instant::now(), cost()?);
    // Every node renews once in ten seconds, as agents do; for twenty seconds.
    let pause = Duration::from_secs(10).div_f64(f64::from(u32::try_from(number)?));
    let mut beat = tokio::time::interval(pause);
    let renew = async |name: &str| {
        let body = Patch::merge(json!({"spec": {"renewTime": now()}}));
        client.patch(&leases, Some(space), name, &body).await
    };
    // No node waits for another one's answer.
    let mut renewals = stream::FuturesUnordered::new();
    for name in names.iter().cycle().take(number * 2) {
        loop {
            tokio::select! {
                _ = beat.tick() => break,
                Some(renewed) = renewals.next() => { renewed?; }
            }
        }
        renewals.push(renew(name));
    }
    while let Some(renewed) = renewals.next().await {
        renewed?;
    }
    let share = (cost()? - before) / begun.elapsed().as_secs_f64();
    for name in &names {
        client.delete(&nodes, None, name, &DeleteParams::default()).await?;
    }
    Ok(share)
}
