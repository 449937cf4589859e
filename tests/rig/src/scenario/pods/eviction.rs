//! A disk that fills up, and who pays for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scenario::workloads::{LIMIT, Site};
use crate::wait::{Seen, await_until};

const HAND: &str = "hand-b";
/// Readings every ten seconds, one pod at a time, on a machine that has other work.
const EVICTION_LIMIT: Duration = Duration::from_secs(300);
/// The node's disk during the story, in KiB; it is memory, so it is made small first.
const DISK_KIB: u64 = 300 << 10;
/// Below this part of the disk, in percent, images make room, and then pods.
const THRESHOLD_PERCENT: u64 = 15;
/// How far below the disk is brought: less than each pod that is to go gives back.
const SHORT_KIB: u64 = 12 << 10;

/// A disk that is full costs the pod without requests, then the one beyond its requests, and
/// never the one within them.
pub(super) fn a_full_disk_costs_the_greediest(site: &Site) -> Result<()> {
    let size = format!("remount,size={DISK_KIB}k");
    site.exec(HAND, &["nsenter", "-t", "1", "-m", "--", "mount", "-o", &size, "/var"])?;
    site.apply("eaters", include_str!("eaters.yaml"))?;
    site.kubectl.await_pods("app=eaters", 3, LIMIT, |_| true)?;
    let best = await_eviction(site, "best-effort")?;
    let pressed = |node: &Value| condition(node, "DiskPressure") == Some("True");
    site.await_object("the node's pressure", &["get", "node", "b-worker"], pressed)?;
    let burst = await_eviction(site, "burstable")?;
    ensure!(best < burst, "burstable went at {burst}, best-effort at {best}");
    let kept = site.kubectl.json(&["get", "pod", "guaranteed"])?;
    let phase = kept.pointer("/status/phase").and_then(Value::as_str);
    ensure!(phase == Some("Running"), "the pod within its requests is {phase:?}");
    site.story.ok("a full disk evicts in order: best-effort, burstable; guaranteed stays")
}

/// Fills the disk for as long as a pod is alive, and says when it was evicted.
fn await_eviction(site: &Site, name: &str) -> Result<String> {
    await_until(&format!("{name} to be evicted"), EVICTION_LIMIT, || {
        let pod = site.kubectl.json(&["get", "pod", name])?;
        let reason = pod.pointer("/status/reason").and_then(Value::as_str);
        if reason == Some("Evicted") {
            let message = pod.pointer("/status/message").and_then(Value::as_str);
            let message = message.unwrap_or_default();
            ensure!(message.contains("ephemeral-storage"), "{name} was told {message:?}");
            let time = disruption(&pod).context("no condition tells of the eviction")?;
            return Ok(Seen::There(time));
        }
        // Garbage that the node removes first is made up for; a dead pod's room is not.
        let script = format!(
            "ps -o args | grep -q '[#] eats-{name}' || exit 0; set -- $(df -k /host/var | tail -n 1); \
             more=$(($4 - $2 * {THRESHOLD_PERCENT} / 100 + {SHORT_KIB})); \
             [ $more -le 0 ] || dd if=/dev/zero bs=1024 count=$more >>/host/var/fill 2>/dev/null; \
             df -k /host/var | tail -n 1"
        );
        let room = site.exec(HAND, &["sh", "-c", &script])?;
        Ok(Seen::NotYet(format!("{reason:?} with {}", room.trim())))
    })
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(kind));
    found?.get("status")?.as_str()
}

/// When the pod was told to go.
fn disruption(pod: &Value) -> Option<String> {
    let conditions = pod.pointer("/status/conditions")?.as_array()?;
    let is_told =
        |one: &&Value| one.get("type").and_then(Value::as_str) == Some("DisruptionTarget");
    let found = conditions.iter().find(is_told)?;
    found.get("lastTransitionTime")?.as_str().map(str::to_owned)
}
