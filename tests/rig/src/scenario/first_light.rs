//! The first hour of a new user: a site comes up, pods run on it and reach each other across
//! racks, a worker dies and comes back.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::{Kubectl, Pod};
use super::light::{self, POD_LIMIT, REACH_LIMIT, REPLICAS, SELECTOR};
use super::story::{Story, UP_LIMIT_SECONDS};
use super::{measure, secret};
use crate::wait::{Seen, await_until};
use crate::{Rig, pcap};

/// The worker that is lost.
const VICTIM: &str = "a-worker";
/// Grace period and eviction timeout of the plan, and new containers.
const REPLACE_LIMIT: Duration = Duration::from_secs(420);
/// A whole boot, beside machines that work.
const RETURN_LIMIT: Duration = Duration::from_secs(600);

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    let (rig, kubectl) =
        if story.options().resume { (story.rig()?, story.kubectl()?) } else { rise(story)? };
    let pods = light::deploy(story, &kubectl)?;
    light::everyone_reaches_everyone(story, &rig, &pods)?;
    light::everyone_reaches_the_service(story, &rig, &kubectl, &pods)?;
    light::everyone_knows_the_name(story, &rig, &pods)?;
    nothing_is_wrapped(story, &rig, &pods)?;
    routes_are_as_intended(story)?;
    for kubectl in story.kubectls() {
        everyday_commands(story, &kubectl)?;
    }

    worker_is_lost(story, &rig, &kubectl)?;
    worker_returns(story, &rig, &kubectl)?;

    story.clear().context("muster down")?;
    ensure!(story.rig().is_err(), "a rig is left after muster down");
    story.ok("muster down leaves nothing behind")
}

/// From nothing to a site whose nodes are all Ready.
fn rise(story: &mut Story) -> Result<(Rig, Kubectl)> {
    let bare = baseline(story)?;

    let rig = story.build_rig().context("building the racks")?;
    let captures: Vec<String> = story.plan().racks.iter().map(|rack| rack.name.clone()).collect();
    for rack in &captures {
        rig.capture_rack(rack)?;
    }
    rig.capture_inter_rack()?;
    story.ok(format_args!("racks stand, machines run by {:?}", rig.accelerator()))?;

    let machines: Vec<String> = story.plan().machines.iter().map(|one| one.name.clone()).collect();
    let up = || story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS])?);
    let (up, meter) = measure::metered(&rig, &machines, up)?;
    up?;
    let kubectl = story.kubectl()?;
    for machine in &story.plan().machines {
        let ready = kubectl.node_ready(&machine.name)?;
        ensure!(ready == "True", "after muster up, {} has Ready={ready}", machine.name);
    }
    story.ok("muster up ends with every node Ready")?;
    let phases = measure::phases(&kubectl)?;
    story.report(&measure::render(&phases, bare.as_ref(), &meter)?)?;
    let dir = story.dir().to_str().context("a path that is no UTF-8")?.to_owned();
    story.say(format_args!(
        "muster status:\n{}",
        story.muster_output(&["status", "--dir", &dir])?
    ))?;
    no_secret_on_the_wire(story, &rig, &captures)?;
    Ok((rig, kubectl))
}

fn baseline(story: &Story) -> Result<Option<measure::Boots>> {
    if story.options().no_baseline {
        return Ok(None);
    }
    match measure::bare_boot(story) {
        Ok(bare) => {
            story.say(format_args!("bare boot, seconds from power-on: {:?}", bare.wall))?;
            Ok(Some(bare))
        }
        // A figure to compare with is not worth the story.
        Err(err) => {
            story.say(format_args!("no bare boot to compare with: {err:#}"))?;
            story.clear()?;
            Ok(None)
        }
    }
}

fn no_secret_on_the_wire(story: &Story, rig: &Rig, racks: &[String]) -> Result<()> {
    let secrets = secret::find(story.dir(), rig.dir())?;
    ensure!(secrets.len() > 3, "only {} private keys on the seed: where are they?", secrets.len());
    let ca = fs::read_to_string(story.dir().join("master/pki/ca.crt")).context("reading the CA")?;
    let mut seen = false;
    for rack in racks {
        let path = rig.dir().join(format!("captures/rack-{rack}.pcap"));
        let capture = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let leaked = secret::leaked(&secrets, &capture);
        ensure!(leaked.is_empty(), "private keys on the wire of rack {rack}: {leaked:?}");
        seen |= secret::is_seen(&ca, &capture);
    }
    ensure!(seen, "the CA certificate was not seen either: the search does not work");
    let count = secrets.len();
    story.ok(format_args!("none of {count} private keys crossed the boot network; the CA did"))
}

/// `muster routes` sees intent, BIRD and the kernel of every node agree.
fn routes_are_as_intended(story: &Story) -> Result<()> {
    let dir = story.dir().to_str().context("a path that is no UTF-8")?;
    let said = await_until("muster routes to name no difference", REACH_LIMIT, || {
        story.muster_output(&["routes", "--dir", dir]).map(Seen::There)
    })?;
    let verdict = said.lines().last().unwrap_or_default();
    story.ok(format_args!("muster routes: {verdict}"))
}

fn nothing_is_wrapped(story: &Story, rig: &Rig, pods: &[Pod]) -> Result<()> {
    let path = rig.dir().join("captures/inter-rack.pcap");
    let rack = |pod: &Pod| {
        story.plan().machine(&pod.node).map(|machine| machine.rack.clone()).unwrap_or_default()
    };
    let expected: BTreeSet<(Ipv4Addr, Ipv4Addr)> = pods
        .iter()
        .flat_map(|from| pods.iter().map(move |to| (from, to)))
        .filter(|(from, to)| rack(from) != rack(to))
        .filter_map(|(from, to)| Some((from.address.parse().ok()?, to.address.parse().ok()?)))
        .collect();
    ensure!(!expected.is_empty(), "all pods are in one rack");
    let packets = await_until("pod addresses between the racks", REACH_LIMIT, || {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let packets = pcap::packets(&bytes).context("an unreadable capture")?;
        let seen: BTreeSet<_> = packets.iter().map(|one| (one.source, one.target)).collect();
        let missing: Vec<_> = expected.difference(&seen).collect();
        Ok(if missing.is_empty() {
            Seen::There(packets)
        } else {
            Seen::NotYet(format!("no packets yet of {missing:?}"))
        })
    })?;
    let wrapped: BTreeSet<_> = packets.iter().filter_map(pcap::Packet::encapsulation).collect();
    ensure!(wrapped.is_empty(), "packets between the racks are wrapped in {wrapped:?}");
    story.ok(format_args!(
        "{} packets between the racks: pods' own addresses, nothing wrapped",
        packets.len()
    ))
}

/// What a user types all day, with one release of kubectl.
fn everyday_commands(story: &Story, kubectl: &Kubectl) -> Result<()> {
    let version = kubectl.version()?;
    let pods = kubectl.await_pods(SELECTOR, REPLICAS, POD_LIMIT, |_| true)?;
    let pod = pods.first().context("a pod")?;
    let logs = kubectl.run(&["logs", &pod.name])?;
    ensure!(logs.contains(&format!("serving as {}", pod.name)), "logs of {}: {logs}", pod.name);
    let described = kubectl.run(&["describe", "pod", &pod.name])?;
    for part in [&pod.name, &pod.node, &pod.address] {
        ensure!(described.contains(part.as_str()), "describe lacks {part}: {described}");
    }
    for what in ["node", "deployment", "service"] {
        let name = if what == "node" { pod.node.as_str() } else { "light" };
        let described = kubectl.run(&["describe", what, name])?;
        ensure!(described.contains(name), "describe {what} {name}: {described}");
    }
    let table = kubectl.run(&["get", "nodes", "-o", "wide"])?;
    for machine in &story.plan().machines {
        ensure!(table.contains(&machine.name), "get nodes lacks {}: {table}", machine.name);
    }
    let manifest = story.dir().join("settings.yaml");
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: settings }\ndata: { a: ";
    for value in ["one", "two"] {
        fs::write(&manifest, format!("{settings}{value} }}\n")).context("writing a manifest")?;
        kubectl.run(&["apply", "-f", manifest.to_str().context("a path that is no UTF-8")?])?;
        let found = kubectl.json(&["get", "configmap", "settings"])?;
        let found = found.pointer("/data/a").and_then(Value::as_str);
        ensure!(found == Some(value), "after apply, a is {found:?}, not {value}");
    }
    kubectl.run(&["delete", "configmap", "settings"])?;
    for count in [REPLICAS + 1, REPLICAS] {
        kubectl.run(&["scale", "deployment", "light", &format!("--replicas={count}")])?;
        kubectl.await_pods(SELECTOR, count, POD_LIMIT, |_| true)?;
    }
    story.ok(format_args!("kubectl {version}: logs, describe, get, apply, delete and scale"))
}

fn worker_is_lost(story: &Story, rig: &Rig, kubectl: &Kubectl) -> Result<()> {
    rig.power_cut(VICTIM)?;
    story.say(format_args!("power of {VICTIM} is cut"))?;
    kubectl.await_node(VICTIM, "to be missed", REPLACE_LIMIT, |ready| ready != "True")?;
    story.ok(format_args!("{VICTIM} is no longer Ready"))?;
    let elsewhere = |pod: &Pod| pod.node != VICTIM;
    let pods = kubectl.await_pods(SELECTOR, REPLICAS, REPLACE_LIMIT, elsewhere)?;
    story.ok("its pods are replaced on other nodes")?;
    light::everyone_reaches_everyone(story, rig, &pods)?;
    light::everyone_reaches_the_service(story, rig, kubectl, &pods)
}

fn worker_returns(story: &Story, rig: &Rig, kubectl: &Kubectl) -> Result<()> {
    rig.power_on(VICTIM)?;
    story.say(format_args!("power of {VICTIM} is back"))?;
    kubectl.await_node(VICTIM, "to come back", RETURN_LIMIT, |ready| ready == "True")?;
    story.ok(format_args!("{VICTIM} is Ready again by itself"))?;
    let count = REPLICAS + 2;
    kubectl.run(&["scale", "deployment", "light", &format!("--replicas={count}")])?;
    let pods = kubectl.await_pods(SELECTOR, count, POD_LIMIT, |_| true)?;
    let back = pods.iter().filter(|pod| pod.node == VICTIM).count();
    ensure!(back > 0, "no pod runs on {VICTIM}: {pods:?}");
    light::everyone_reaches_everyone(story, rig, &pods)?;
    story.ok(format_args!("{back} new pods run on {VICTIM}"))
}
