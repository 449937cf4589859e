//! Racks with two routers each: one loses its power, its cable is cut, its cable drops everything.
//! Pods keep answering, and everything is spread over both again when it is mended. A node that
//! announces what is another's is not believed by either.

mod rogue;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use serde_json::Value;

use super::kubectl::{Kubectl, Pod};
use super::light;
use super::story::Story;
use crate::wait::{Seen, await_until};
use crate::{Place, Rig};

/// Routers of a rig notice silence after five seconds; then routes change, on a busy host.
const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// Between two questions to a pod.
const BEAT: Duration = Duration::from_millis(50);

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.come_up()?;
    let kubectl = story.kubectl()?;
    let rig = story.rig()?;
    let pods = light::deploy(story, &kubectl)?;
    light::everyone_reaches_everyone(story, &rig, &pods)?;
    ways(story, &rig, &kubectl, 2)?;
    story.ok("both routers of each rack are in use, there and back")?;
    rogue::is_not_believed(story, &rig, &kubectl, &pods)?;

    let trouble = |what: &str, begin: &dyn Fn() -> Result<()>, end: &dyn Fn() -> Result<()>| {
        let gap = while_asking(&rig, &pods, || {
            begin()?;
            ways(story, &rig, &kubectl, 1)?;
            // What is asked now goes by the other router.
            light::everyone_reaches_everyone(story, &rig, &pods)
        })?;
        end()?;
        ways(story, &rig, &kubectl, 2)?;
        let seconds = gap.as_secs_f64();
        story.ok(format_args!("{what}: pods answer again after {seconds:.1} s at most"))
    };
    trouble("a router without power", &|| rig.power_cut_router("a2"), &|| {
        rig.power_on_router("a2")
    })?;
    trouble("a cable cut", &|| rig.set_router_cable("a2", "down"), &|| {
        rig.set_router_cable("a2", "up")
    })?;
    trouble("a cable that drops everything", &|| rig.silence_router("a2", true), &|| {
        rig.silence_router("a2", false)
    })?;
    for machine in &story.plan().machines {
        let ready = kubectl.node_ready(&machine.name)?;
        ensure!(ready == "True", "{} was lost meanwhile: Ready={ready}", machine.name);
    }
    story.ok("no node was lost meanwhile")
}

/// Waits until the routers of rack b have so many ways to each node of rack a and to its pods, and
/// these nodes as many sessions that are up.
fn ways(story: &Story, rig: &Rig, kubectl: &Kubectl, count: usize) -> Result<()> {
    for machine in story.plan().machines.iter().filter(|machine| machine.rack == "a") {
        for (router, net) in [
            ("b", machine.pod_cidr),
            ("b2", machine.pod_cidr),
            ("b", Ipv4Net::from(machine.address)),
            ("b2", Ipv4Net::from(machine.address)),
        ] {
            let net = net.to_string();
            await_until(&format!("{count} ways from {router} to {net}"), HEAL_LIMIT, || {
                let text = routes(rig, router, &["show", &net])?;
                let found = text.split_whitespace().filter(|word| *word == "via").count();
                Ok(if found == count { Seen::There(()) } else { Seen::NotYet(text) })
            })?;
        }
        let name = &machine.name;
        await_until(&format!("{count} sessions of {name}"), HEAL_LIMIT, || {
            let survey = survey(kubectl, name)?;
            let sessions = survey.pointer("/neighbours").and_then(Value::as_array);
            let up = |one: &&Value| one.get("running").and_then(Value::as_bool) == Some(true);
            let found = sessions.context("a list of neighbours")?.iter().filter(up).count();
            Ok(if found == count { Seen::There(()) } else { Seen::NotYet(survey.to_string()) })
        })?;
    }
    Ok(())
}

/// What `ip route` says in a router.
fn routes(rig: &Rig, router: &str, args: &[&str]) -> Result<String> {
    let mut ip = crate::process::command("ip");
    ip.arg("route").args(args);
    let output = rig.exec(Place::Tor(router), &ip)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `muster routes` shows of a node.
fn survey(kubectl: &Kubectl, node: &str) -> Result<Value> {
    let path = format!("/api/v1/nodes/{node}/proxy/muster/routes");
    let text = kubectl.run(&["get", "--raw", &path])?;
    serde_json::from_str(&text).with_context(|| format!("{node} tells no survey: {text}"))
}

/// Asks every pod all the time while `work` is done; gives the longest time that one was silent.
fn while_asking(rig: &Rig, pods: &[Pod], work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let stop = AtomicBool::new(false);
    let addresses: Vec<Ipv4Addr> = pods
        .iter()
        .map(|pod| pod.address.parse().with_context(|| format!("{} has no address", pod.name)))
        .collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let ask = |address: Ipv4Addr| {
            let stop = &stop;
            move || {
                let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let answer = rig.ask(SocketAddrV4::new(address, 8080), "/", None);
                    if answer.is_ok_and(|answer| answer.status == 200) {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    std::thread::sleep(BEAT);
                }
                longest.max(last.elapsed())
            }
        };
        let asking: Vec<_> =
            addresses.into_iter().map(|address| scope.spawn(ask(address))).collect();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let gaps = asking.into_iter().map(|thread| thread.join().unwrap_or_default());
        let longest = gaps.max().unwrap_or_default();
        done.map(|()| longest)
    })
}
