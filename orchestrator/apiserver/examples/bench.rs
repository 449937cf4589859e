//! Measures a Kubernetes API server: `bench KUBECONFIG [CLIENTS] [OBJECTS]`.
//!
//! Creates config maps of about 2 kB, reads each, lists them all, follows creations with a watch,
//! and removes them. Prints rates and latencies. Any server a kubeconfig opens will do.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runtime::Client;
use runtime::client::{DeleteParams, ListParams, WatchEvent, WatchParams};
use runtime::resource::CONFIG_MAPS;
use serde_json::json;
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let kubeconfig = arguments.next().ok_or("usage: bench KUBECONFIG [CLIENTS] [OBJECTS]")?;
    let clients: usize = arguments.next().unwrap_or_else(|| "16".to_owned()).parse()?;
    let objects: usize = arguments.next().unwrap_or_else(|| "2000".to_owned()).parse()?;
    let open = || Client::from_kubeconfig(&kubeconfig);
    let mut pool = Vec::new();
    for _ in 0..clients {
        pool.push(open()?);
    }
    let filler = "x".repeat(1800);
    let create = move |client: Client, n: usize| {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("bench-{n}"), "namespace": "default"},
            "data": {"filler": filler},
        });
        async move { client.create(&CONFIG_MAPS, Some("default"), &object).await.map(drop) }
    };
    run("create", &pool, objects, create.clone()).await?;
    run("get", &pool, objects, |client, n| async move {
        let name = format!("bench-{n}");
        client.get(&CONFIG_MAPS, Some("default"), &name).await.map(drop)
    })
    .await?;
    run("list all", &pool, clients * 4, |client, _| async move {
        client.list(&CONFIG_MAPS, Some("default"), &ListParams::default()).await.map(drop)
    })
    .await?;
    follow(&open()?, objects, &create).await?;
    run("delete", &pool, objects + FOLLOWED, |client, n| async move {
        let name = format!("bench-{n}");
        let params = DeleteParams::default();
        client.delete(&CONFIG_MAPS, Some("default"), &name, &params).await.map(drop)
    })
    .await
}

/// Does `count` calls as fast as the clients can.
async fn run<F, T>(
    what: &str,
    pool: &[Client],
    count: usize,
    call: impl Fn(Client, usize) -> F + Clone + Send + Sync + 'static,
) -> Result<(), Failure>
where
    F: Future<Output = Result<T, runtime::ClientError>> + Send,
    T: Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for client in pool {
        let (client, next, call) = (client.clone(), Arc::clone(&next), call.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok::<_, runtime::ClientError>(times);
                }
                let begun = Instant::now();
                call(client.clone(), n).await?;
                times.push(begun.elapsed());
            }
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    tell(what, started.elapsed(), times)
}

/// Creations followed one by one.
const FOLLOWED: usize = 200;

/// From the call of a creation to the sight of its event.
async fn follow<F>(
    client: &Client,
    first: usize,
    create: &impl Fn(Client, usize) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), runtime::ClientError>>,
{
    let list = client.list(&CONFIG_MAPS, Some("default"), &ListParams::default()).await?;
    let params =
        WatchParams { resource_version: Some(list.resource_version), ..WatchParams::default() };
    let mut watch = client.watch(&CONFIG_MAPS, Some("default"), &params).await?;
    let started = Instant::now();
    let mut times = Vec::new();
    for n in 0..FOLLOWED {
        let begun = Instant::now();
        let (created, event) = tokio::join!(create(client.clone(), first + n), async {
            loop {
                match watch.next().await {
                    Some(Ok(WatchEvent::Added(_))) => return Some(begun.elapsed()),
                    Some(Ok(_)) => {}
                    _ => return None,
                }
            }
        });
        created?;
        times.push(event.ok_or("the watch ended")?);
    }
    tell("create to event", started.elapsed(), times)
}

fn tell(what: &str, elapsed: Duration, mut times: Vec<Duration>) -> Result<(), Failure> {
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied();
    let each = elapsed.checked_div(times.len().try_into()?).unwrap_or_default();
    let rate = 1.0 / each.as_secs_f64().max(f64::MIN_POSITIVE);
    writeln!(
        std::io::stdout(),
        "{what:16} {:6} calls  {rate:9.0}/s  p50 {:?}  p99 {:?}",
        times.len(),
        at(50).unwrap_or_default(),
        at(99).unwrap_or_default(),
    )?;
    Ok(())
}
