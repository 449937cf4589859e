//! Every machine in its turn is emptied, switched off, and started again, while clients go on
//! asking by the machines that stay. No request may fail.

use std::fs;
use std::net::SocketAddrV4;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::Kubectl;
use super::story::Story;
use crate::Rig;
use crate::wait::{Seen, await_until};

const MANIFEST: &str = include_str!("shop.yaml");
/// Pods that start, a machine that boots: emulated, on a host that has other work.
const LIMIT: Duration = Duration::from_secs(600);
/// How many clients ask at once, and how often each would like to: a thousand times a second in
/// all. One that waits for an answer asks the next time when it has it, and does not catch up, so
/// a host that emulates its machines is asked as often as it can answer; the rate is told.
const CLIENTS: usize = 16;
const PACE: Duration = Duration::from_millis(16);
/// Faults that are told in full; more of them would say the same.
const FAULTS_TOLD: usize = 10;

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.come_up()?;
    let kubectl = story.kubectl()?;
    let rig = story.rig()?;
    let manifest = story.dir().join("shop.yaml");
    fs::write(&manifest, MANIFEST).context("writing the manifest")?;
    kubectl.run(&["apply", "-f", manifest.to_str().context("a path that is no UTF-8")?])?;
    kubectl.await_pods("app=shop", 3, LIMIT, |_| true)?;
    let service = kubectl.json(&["get", "service", "shop"])?;
    let port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
    let port = u16::try_from(port.context("a node port")?).context("a node port")?;
    for machine in story.plan().machines.clone() {
        let stay = story.plan().machines.iter().filter(|other| other.name != machine.name);
        let doors: Vec<SocketAddrV4> =
            stay.map(|other| SocketAddrV4::new(other.address, port)).collect();
        let load = Load::default();
        let start = Instant::now();
        load.during(&rig, &doors, || one(story, &rig, &kubectl, &machine.name))?;
        await_door(&rig, SocketAddrV4::new(machine.address, port))?;
        let (asked, failed) = load.counts();
        let whole = u32::try_from(asked).unwrap_or(u32::MAX);
        let rate = f64::from(whole) / start.elapsed().as_secs_f64();
        ensure!(failed == 0, "{failed} of {asked} requests failed: {:?}", load.faults());
        story.ok(format_args!(
            "{} was emptied, switched off and is back: {asked} requests, {rate:.0} a second of \
             1000 wanted, none failed",
            machine.name
        ))?;
    }
    Ok(())
}

/// Waits until a machine that came back is a door again, as a load balancer does before it sends
/// clients there: a node is Ready when it has loaded its services, but its router may learn the ways
/// to pods of others a moment later.
fn await_door(rig: &Rig, door: SocketAddrV4) -> Result<()> {
    await_until(&format!("an answer at {door}"), LIMIT, || {
        let answer = rig.ask(door, "/", None)?;
        let status = answer.status;
        Ok(if status == 200 { Seen::There(()) } else { Seen::NotYet(format!("status {status}")) })
    })
}

/// One machine's maintenance.
fn one(story: &Story, rig: &Rig, kubectl: &Kubectl, name: &str) -> Result<()> {
    let dir = story.dir().to_str().context("a path that is no UTF-8")?;
    story.muster(&["drain", name, "--dir", dir, "--limit", "600"])?;
    let left = kubectl.pods("app=shop")?;
    ensure!(left.iter().all(|pod| pod.node != name), "{name} is not empty: {left:?}");
    rig.power_off(name)?;
    kubectl.await_node(name, "to be missed", LIMIT, |ready| ready != "True")?;
    rig.power_on(name)?;
    kubectl.await_node(name, "to be back", LIMIT, |ready| ready == "True")?;
    story.muster(&["uncordon", name, "--dir", dir])?;
    kubectl.await_pods("app=shop", 3, LIMIT, |_| true).map(drop)
}

/// What clients ask and what becomes of it.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    asked: AtomicU64,
    failed: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Load {
    /// Asks by all doors in turn while `work` is done.
    fn during(
        &self,
        rig: &Rig,
        doors: &[SocketAddrV4],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                scope.spawn(move || self.ask(rig, doors, client));
            }
            let done = work();
            self.stop.store(true, Ordering::Relaxed);
            done
        })
    }

    fn ask(&self, rig: &Rig, doors: &[SocketAddrV4], client: usize) {
        for door in doors.iter().cycle().skip(client) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let start = Instant::now();
            let answer = rig.ask(*door, "/", None);
            std::thread::sleep(PACE.saturating_sub(start.elapsed()));
            self.asked.fetch_add(1, Ordering::Relaxed);
            let fault = match answer {
                Ok(answer) if answer.status == 200 => continue,
                Ok(answer) => format!("{door}: status {}", answer.status),
                Err(err) => format!("{door}: {err:#}"),
            };
            self.failed.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut faults) = self.faults.lock()
                && faults.len() < FAULTS_TOLD
            {
                faults.push(fault);
            }
        }
    }

    fn counts(&self) -> (u64, u64) {
        (self.asked.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    fn faults(&self) -> Vec<String> {
        self.faults.lock().map(|faults| faults.clone()).unwrap_or_default()
    }
}
