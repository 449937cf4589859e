//! The workload of the stories: a few pods that say their name and ask others on our behalf.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::{Kubectl, Pod};
use super::story::Story;
use crate::Rig;
use crate::wait::{Seen, await_until};

const MANIFEST: &str = include_str!("light.yaml");
/// Selects its pods.
pub(super) const SELECTOR: &str = "app=light";
/// How many there are, unless a story scales them.
pub(super) const REPLICAS: usize = 4;
/// Starting a container on an emulated machine, several at once.
pub(super) const POD_LIMIT: Duration = Duration::from_secs(300);
/// An answer across racks; the first one after a change may wait for routes.
pub(super) const REACH_LIMIT: Duration = Duration::from_secs(60);

/// Deploys it and waits until every replica is ready.
pub(super) fn deploy(story: &Story, kubectl: &Kubectl) -> Result<Vec<Pod>> {
    let manifest = story.dir().join("light.yaml");
    fs::write(&manifest, MANIFEST).context("writing the manifest")?;
    if story.options().resume {
        kubectl.run(&["delete", "deployment,service", "light", "--ignore-not-found"])?;
        kubectl.await_pods(SELECTOR, 0, POD_LIMIT, |_| true)?;
    }
    kubectl.run(&["create", "-f", manifest.to_str().context("a path that is no UTF-8")?])?;
    let pods = kubectl.await_pods(SELECTOR, REPLICAS, POD_LIMIT, |_| true)?;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(nodes.len() == story.plan().machines.len(), "pods are on {nodes:?} only");
    story.say(kubectl.run(&["get", "pods", "-o", "wide"])?)?;
    story.ok(format_args!("{REPLICAS} replicas run, spread over {nodes:?}"))?;
    Ok(pods)
}

/// Asks pod `from` to ask `target`, and gives the answer.
fn ask_through(rig: &Rig, from: &Pod, target: impl Display) -> Result<String> {
    let address: Ipv4Addr =
        from.address.parse().with_context(|| format!("{} has no address", from.name))?;
    let path = format!("/cgi-bin/ask?{target}/");
    let answer = rig.ask(SocketAddrV4::new(address, 8080), &path, None)?;
    ensure!(answer.status == 200, "{} answers {}", from.name, answer.status);
    Ok(answer.body.trim().to_owned())
}

/// Lets every pod ask every pod.
pub(super) fn everyone_reaches_everyone(story: &Story, rig: &Rig, pods: &[Pod]) -> Result<()> {
    all_reach(rig, pods, pods)?;
    story.ok(format_args!("each of {} pods reaches each, itself included", pods.len()))
}

/// Lets each pod of `all` ask each of `whom`.
pub(super) fn all_reach(rig: &Rig, all: &[Pod], whom: &[Pod]) -> Result<()> {
    for from in all {
        for to in whom {
            let address =
                to.address.parse().with_context(|| format!("{} has no address", to.name))?;
            let what =
                format!("{} on {} to reach {} on {}", from.name, from.node, to.name, to.node);
            await_until(&what, REACH_LIMIT, || {
                let answer = ask_through(rig, from, SocketAddrV4::new(address, 8080))?;
                let right = answer == to.name;
                Ok(if right { Seen::There(()) } else { Seen::NotYet(format!("answer: {answer}")) })
            })?;
        }
    }
    Ok(())
}

/// Lets every pod ask the Service, often enough to hear several pods.
pub(super) fn everyone_reaches_the_service(
    story: &Story,
    rig: &Rig,
    kubectl: &Kubectl,
    pods: &[Pod],
) -> Result<()> {
    let service = kubectl.json(&["get", "service", "light"])?;
    let address = service.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap_or_default();
    let address: Ipv4Addr = address.parse().with_context(|| format!("clusterIP is {address:?}"))?;
    let names: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let mut heard = BTreeSet::new();
    for from in pods {
        for _ in 0..REPLICAS {
            let what = format!("{} to reach the service", from.name);
            let answer = await_until(&what, REACH_LIMIT, || {
                let answer = ask_through(rig, from, SocketAddrV4::new(address, 80))?;
                let right = names.contains(answer.as_str());
                Ok(if right {
                    Seen::There(answer)
                } else {
                    Seen::NotYet(format!("answer: {answer}"))
                })
            })?;
            heard.insert(answer);
        }
    }
    // Sixteen throws at four: that all hit one is a coincidence of one in a hundred million.
    ensure!(heard.len() > 1, "the service always answers as {heard:?}");
    let count = heard.len();
    story.ok(format_args!("every pod reaches the service at {address}; {count} pods answered"))
}

/// Lets every pod ask the Service by its names, which its node must know.
pub(super) fn everyone_knows_the_name(story: &Story, rig: &Rig, pods: &[Pod]) -> Result<()> {
    let names: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    for from in pods {
        for name in ["light", "light.default", "light.default.svc.cluster.local"] {
            let what = format!("{} on {} to reach http://{name}", from.name, from.node);
            await_until(&what, REACH_LIMIT, || {
                let answer = ask_through(rig, from, name)?;
                let right = names.contains(answer.as_str());
                Ok(if right { Seen::There(()) } else { Seen::NotYet(format!("answer: {answer}")) })
            })?;
        }
    }
    story.ok("every pod reaches the service by its short and its long names")
}
