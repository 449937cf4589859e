//! Racks with two routers each: one loses its power, its cable is cut, its cable drops everything.
//! Pods keep answering, and everything is spread over both again when it is mended.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::kubectl::Pod;
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
    ways(story, &rig, 2)?;
    story.ok("both routers of each rack are in use, there and back")?;

    let trouble = |what: &str, begin: &dyn Fn() -> Result<()>, end: &dyn Fn() -> Result<()>| {
        let gap = while_asking(&rig, &pods, || {
            begin()?;
            ways(story, &rig, 1)?;
            // What is asked now goes by the other router.
            light::everyone_reaches_everyone(story, &rig, &pods)
        })?;
        end()?;
        ways(story, &rig, 2)?;
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

/// Waits until rack b's router has so many ways to each pod network of rack a, and the nodes of
/// rack a as many sessions that are up.
fn ways(story: &Story, rig: &Rig, count: usize) -> Result<()> {
    for machine in story.plan().machines.iter().filter(|machine| machine.rack == "a") {
        let net = machine.pod_cidr.to_string();
        await_until(&format!("{count} ways to {net}"), HEAL_LIMIT, || {
            let mut ip = crate::process::command("ip");
            ip.args(["route", "show", &net]);
            let output = rig.exec(Place::Tor("b"), &ip)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let found = text.split_whitespace().filter(|word| *word == "via").count();
            Ok(if found == count { Seen::There(()) } else { Seen::NotYet(text) })
        })?;
    }
    Ok(())
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
