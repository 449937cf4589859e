//! `muster drain NODE` and `muster uncordon NODE`: a node is emptied for maintenance, and opened.
//!
//! The work is the cluster's: its routers and controllers follow an annotation of the Node. Here
//! it is set, and what comes of it is told.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use control::drain::{STATE, WANTED};
use objects::node::{ROUTES, ROUTES_ANNOUNCED, ROUTES_WITHDRAWN};
use runtime::Client;
use runtime::client::{ListParams, Patch};
use runtime::resource::{NODES, PODS};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::SiteArgs;
use crate::site::Site;

/// How often the node is looked at.
const BEAT: Duration = Duration::from_millis(250);

/// Empty a node for maintenance.
///
/// The node is closed to new pods; its router takes back what it announced and waits until the
/// neighbours have let go; then its pods are evicted as their disruption budgets allow. When the
/// command ends well the node may be switched off. The cluster goes on if the command is stopped.
#[derive(Debug, ClapArgs)]
pub(crate) struct DrainArgs {
    /// The node
    pub node: String,
    /// End pods, too, that no controller would make anew
    #[arg(long)]
    pub force: bool,
    /// Stop waiting after this many seconds; the node stays closed
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub limit: u64,
    #[command(flatten)]
    pub site: SiteArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UncordonArgs {
    /// The node
    pub node: String,
    #[command(flatten)]
    pub site: SiteArgs,
}

/// Empties a node and waits until it may be switched off.
pub(crate) fn run(args: &DrainArgs) -> Result<()> {
    let client = Site::find(&args.site)?.client()?;
    crate::daemon::block_on(drain(&client, args))
}

/// Opens a node again.
pub(crate) fn uncordon(args: &UncordonArgs) -> Result<()> {
    let client = Site::find(&args.site)?.client()?;
    let open =
        json!({"metadata": {"annotations": {WANTED: null}}, "spec": {"unschedulable": null}});
    crate::daemon::block_on(async {
        let name = &args.node;
        client.patch(&NODES, None, name, &Patch::merge(open)).await.with_context(|| {
            format!("cannot open {name}; `kubectl get nodes` shows which nodes there are")
        })
    })?;
    writeln!(std::io::stdout(), "{} is open to pods", args.node)?;
    Ok(())
}

async fn drain(client: &Client, args: &DrainArgs) -> Result<()> {
    let name = &args.node;
    let wanted = if args.force { "force" } else { "drain" };
    let patch = Patch::merge(json!({"metadata": {"annotations": {WANTED: wanted}}}));
    client.patch(&NODES, None, name, &patch).await.with_context(|| {
        format!("cannot drain {name}; `kubectl get nodes` shows which nodes there are")
    })?;
    let start = Instant::now();
    let mut told = String::new();
    loop {
        let node = client.get(&NODES, None, name).await.context("cannot ask for the node")?;
        let stage = describe(&node, args.force);
        if stage != told {
            let seconds = start.elapsed().as_secs_f64();
            writeln!(std::io::stdout(), "{seconds:6.1} s  {name}: {stage}")?;
            told = stage;
        }
        if annotation(&node, STATE) == Some("ready") {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(args.limit) {
            let left = left_on(client, name).await?;
            bail!(
                "{name} is not empty after {} s, and stays closed; still there: {}",
                args.limit,
                left.join(", ")
            );
        }
        tokio::time::sleep(BEAT).await;
    }
}

fn annotation<'a>(node: &'a Value, key: &str) -> Option<&'a str> {
    node.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// What happens to the node at the moment.
fn describe(node: &Value, force: bool) -> String {
    let routes = annotation(node, ROUTES);
    match annotation(node, STATE) {
        Some("ready") => "empty; it may be switched off".to_owned(),
        Some("blocked") if !force => {
            "waits for pods that nobody would make anew; --force ends them".to_owned()
        }
        Some(_) if routes == Some(ROUTES_ANNOUNCED) => "withdraws its routes".to_owned(),
        Some(_) if routes == Some(ROUTES_WITHDRAWN) => {
            "draws no traffic any more; its pods leave".to_owned()
        }
        Some(_) => "its pods leave".to_owned(),
        None => "is closed".to_owned(),
    }
}

async fn left_on(client: &Client, name: &str) -> Result<Vec<String>> {
    let params = ListParams::fields(format!("spec.nodeName={name}"));
    let pods = client.list(&PODS, None, &params).await.context("cannot ask for pods")?;
    let text = |pod: &Value, at: &str| {
        pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let name = |pod: &Value| text(pod, "/metadata/namespace") + "/" + &text(pod, "/metadata/name");
    Ok(pods.items.iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_of_a_drain_is_told() {
        let check = |state: Value, routes: Value, told: &str| {
            let node = json!({"metadata": {"annotations": {STATE: state, ROUTES: routes}}});
            assert_eq!(describe(&node, false), told);
        };
        check(json!(null), json!("announced"), "is closed");
        check(json!("draining"), json!("announced"), "withdraws its routes");
        check(json!("draining"), json!("withdrawn"), "draws no traffic any more; its pods leave");
        check(json!("draining"), json!(null), "its pods leave");
        check(
            json!("blocked"),
            json!("withdrawn"),
            "waits for pods that nobody would make anew; --force ends them",
        );
        check(json!("ready"), json!("withdrawn"), "empty; it may be switched off");
    }
}
