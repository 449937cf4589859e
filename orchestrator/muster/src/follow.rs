//! Waiting, with the last state seen; and registering what the plan names.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cluster::plan::{Networks, Plan};
use comfy_table::{Table, presets};
use objects::node::Node;
use runtime::client::{DeleteParams, ListParams, Patch};
use runtime::resource::{CONFIG_MAPS, MACHINES, NODES, RACKS, Resource};
use runtime::{Client, ClientError};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::process::Daemon;
use crate::say;
use crate::status;
use crate::waterfall::{self, Progress};

/// Time between looks.
const PACE: Duration = Duration::from_millis(500);

/// Marks what `muster up` put into the API because the plan names it.
const PLAN_LABEL: (&str, &str) = ("muster.dev/origin", "plan");

/// How often progress is said when nobody's terminal shows it live.
const BEAT: Duration = Duration::from_secs(30);

/// Waits for a daemon to answer; a dead daemon ends the wait with its last words.
pub(crate) fn wait_for(
    what: &str,
    limit: Duration,
    daemon: &Daemon,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut waited = Duration::ZERO;
    while !done()? {
        if !daemon.is_running() {
            bail!(
                "{what} ended; its last words, from {}:\n{}",
                daemon.log().display(),
                daemon.last_words()
            );
        }
        if waited > limit {
            bail!("{what} does not answer after {limit:?}; last words:\n{}", daemon.last_words());
        }
        std::thread::sleep(Duration::from_millis(100));
        waited += Duration::from_millis(100);
    }
    Ok(())
}

/// Puts the plan's racks and machines into the API; what is there is brought up to date, and
/// what an earlier plan put there and this one does not name is removed.
pub(crate) async fn register(client: &Client, plan: &Plan) -> Result<()> {
    // Where router and proxy of each node look for the address ranges.
    let data = json!({ "networks": serde_json::to_string(&plan.networks)? });
    let (namespace, name) = Networks::CONFIG_MAP;
    put(client, &CONFIG_MAPS, Some(namespace), name, json!({ "data": data })).await?;
    for rack in &plan.racks {
        put(client, &RACKS, None, &rack.name, from_plan(json!(rack))).await?;
    }
    for machine in &plan.machines {
        put(client, &MACHINES, None, &machine.name, from_plan(json!(machine))).await?;
    }
    let is_named = |name: &str| plan.machines.iter().any(|machine| machine.name == name);
    for name in forget(client, &MACHINES, is_named).await? {
        say(&format!(
            "{name} is in the plan no more and is not let in again; \
             remove its node with: kubectl delete node {name}"
        ));
    }
    let is_named = |name: &str| plan.racks.iter().any(|rack| rack.name == name);
    forget(client, &RACKS, is_named).await?;
    Ok(())
}

/// The content of an object that stands in the plan.
fn from_plan(spec: Value) -> Value {
    let (key, value) = PLAN_LABEL;
    json!({ "metadata": { "labels": { key: value } }, "spec": spec })
}

/// Deletes the objects that came from a plan and are not named by this one; returns their names.
async fn forget(
    client: &Client,
    resource: &Resource,
    is_named: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let (key, value) = PLAN_LABEL;
    let mut gone = Vec::new();
    let params = ListParams::labels(format!("{key}={value}"));
    for item in client.list(resource, None, &params).await?.items {
        let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if is_named(name) {
            continue;
        }
        match client.delete(resource, None, name, &DeleteParams::default()).await {
            Err(err) if !err.is_not_found() => {
                return Err(err).with_context(|| format!("cannot remove {resource} {name}"));
            }
            _ => gone.push(name.to_owned()),
        }
    }
    Ok(gone)
}

/// Creates an object, or merges `content` into the one that is there.
async fn put(
    client: &Client,
    resource: &Resource,
    namespace: Option<&str>,
    name: &str,
    content: Value,
) -> Result<()> {
    let mut object = json!({
        "apiVersion": resource.api_version(), "kind": resource.kind, "metadata": {"name": name},
    });
    json_patch::merge(&mut object, &content);
    let answer = match client.create(resource, namespace, &object).await {
        Err(err) if err.is_already_exists() => {
            client.patch(resource, namespace, name, &Patch::merge(content)).await
        }
        other => other,
    };
    answer.with_context(|| format!("cannot register {resource} {name}")).map(drop)
}

/// Follows machines until all are Ready; each phase is said once.
pub(crate) async fn until_ready(
    client: &Client,
    plan: &Plan,
    limit: Duration,
) -> Result<Vec<Progress>> {
    let deadline = Instant::now() + limit;
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let mut last_beat = Instant::now();
    loop {
        let machines = observe(client).await?;
        let wanted: Vec<Progress> =
            machines.into_iter().filter(|m| plan.machine(&m.name).is_some()).collect();
        for machine in &wanted {
            tell(machine, &mut said);
        }
        if wanted.len() == plan.machines.len() && wanted.iter().all(Progress::is_ready) {
            return Ok(wanted);
        }
        if Instant::now() > deadline {
            let table = waterfall::render_table(&wanted);
            bail!("not every machine is Ready after {limit:?}; last seen:\n{table}");
        }
        if last_beat.elapsed() > BEAT && !std::io::stderr().is_terminal() {
            last_beat = Instant::now();
            let waiting = wanted.iter().filter(|machine| !machine.is_ready());
            let names: Vec<&str> = waiting.map(|machine| machine.name.as_str()).collect();
            say(&format!("  waiting for {}", names.join(", ")));
        }
        tokio::time::sleep(PACE).await;
    }
}

/// A control plane that restarts meanwhile is waited for, not reported.
async fn observe(client: &Client) -> Result<Vec<Progress>> {
    match status::observe(client).await {
        Ok(machines) => Ok(machines),
        Err(err) if err.downcast_ref::<ClientError>().is_some_and(|e| e.status().is_none()) => {
            Ok(Vec::new())
        }
        Err(err) => Err(err),
    }
}

fn tell(machine: &Progress, said: &mut BTreeMap<String, String>) {
    let at = machine.reached.iter().rev().find_map(|seconds| *seconds).unwrap_or_default();
    let line = match machine.cause.as_str() {
        "" if machine.phase.is_empty() => return,
        "" => format!("{} {}", machine.name, machine.phase),
        cause => format!("{} hangs: {cause}", machine.name),
    };
    if said.insert(machine.name.clone(), line.clone()).as_ref() != Some(&line) {
        say(&format!("  {at:6.1}s  {line}"));
    }
}

/// Renders the cluster's nodes for people.
pub(crate) async fn render_nodes(client: &Client) -> Result<String> {
    let list = client.list(&NODES, None, &ListParams::default()).await?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NODE", "STATUS", "ROLE", "RACK", "ADDRESS", "PODS"]);
    for item in list.items {
        let node: Node = serde_json::from_value(item)?;
        let ready = node.status.conditions.iter().find(|c| c.kind == "Ready");
        let ready = if ready.is_some_and(|c| c.status == "True") { "Ready" } else { "NotReady" };
        let labels = &node.metadata.labels;
        let role = labels.keys().find_map(|key| key.strip_prefix("node-role.kubernetes.io/"));
        let rack = labels.get("topology.kubernetes.io/zone").map_or("", String::as_str);
        let address = node.status.addresses.first().map_or("", |a| a.address.as_str());
        table.add_row([
            &node.metadata.name,
            ready,
            role.unwrap_or("worker"),
            rack,
            address,
            &node.spec.pod_cidr,
        ]);
    }
    Ok(table.to_string())
}
