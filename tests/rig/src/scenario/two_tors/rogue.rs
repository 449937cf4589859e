//! A node that was taken over claims the pods of another, whole and in part.

use std::fs;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use serde_json::Value;

use super::{HEAL_LIMIT, routes, survey};
use crate::Rig;
use crate::scenario::kubectl::{Kubectl, Pod};
use crate::scenario::light;
use crate::scenario::story::Story;
use crate::wait::{Seen, await_until};

const MANIFEST: &str = include_str!("rogue.yaml");
/// The node that lies, whom it lies about, and who hears it.
const ROGUE: &str = "a-two";
const VICTIM: &str = "b-one";
const JUDGES: [&str; 2] = ["a", "a2"];

/// Tells that part of the story.
pub(super) fn is_not_believed(
    story: &Story,
    rig: &Rig,
    kubectl: &Kubectl,
    pods: &[Pod],
) -> Result<()> {
    let manifest = story.dir().join("rogue.yaml");
    fs::write(&manifest, MANIFEST).context("writing the manifest")?;
    kubectl.run(&["apply", "-f", manifest.to_str().context("a path that is no UTF-8")?])?;
    kubectl.await_pods("app=rogue", 1, light::POD_LIMIT, |_| true)?;

    let own = story.plan().machine(ROGUE).context("the rogue's machine")?.address.to_string();
    let whole = story.plan().machine(VICTIM).context("the victim's machine")?.pod_cidr;
    let half = Ipv4Net::new(whole.addr(), whole.prefix_len() + 1).context("half of it")?;
    let lies = [whole.to_string(), half.to_string()];
    let lie = format!("route {whole} blackhole; route {half} blackhole;");
    let edit = format!(
        "sed 's|^    ipv4;|    ipv4; {lie}|' /host/run/bird/bird.conf > /host/run/bird/rogue.conf"
    );
    kubectl.run(&["exec", "rogue", "--", "sh", "-c", &edit])?;
    configure(kubectl, "rogue.conf")?;
    for judge in JUDGES {
        await_until(&format!("router {judge} to hear the lies"), HEAL_LIMIT, || {
            let heard = rig.ask_router(judge, "show route filtered")?;
            let all = lies.iter().all(|lie| heard.contains(lie));
            Ok(if all { Seen::There(()) } else { Seen::NotYet(heard) })
        })?;
        // What it heard and refused is not in its table.
        let half = routes(rig, judge, &["show", &half.to_string()])?;
        ensure!(half.is_empty(), "{judge} believes a part: {half}");
        let whole = routes(rig, judge, &["show", &whole.to_string()])?;
        let astray = whole.split_whitespace().any(|word| word == own);
        ensure!(!whole.is_empty() && !astray, "{judge} believes the lie: {whole}");
    }
    // The liar may have lost the way to its victim; nobody else has.
    let honest: Vec<Pod> = pods.iter().filter(|pod| pod.node != ROGUE).cloned().collect();
    light::all_reach(rig, &honest, pods)?;
    await_until("`muster routes` to name the lies", HEAL_LIMIT, || {
        let survey = survey(kubectl, ROGUE)?;
        let found = survey.pointer("/differences").and_then(Value::as_array);
        let found = found.context("a list of differences")?;
        let text = |one: &Value, key: &str| {
            one.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let named = |lie: &String| {
            found.iter().any(|one| {
                text(one, "destination") == *lie && text(one, "found").starts_with("announced to")
            })
        };
        let all = lies.iter().all(named);
        Ok(if all { Seen::There(()) } else { Seen::NotYet(format!("{found:?}")) })
    })?;
    story.ok(format_args!("{ROGUE} announces {whole} and {half}: heard, named, not believed"))?;

    configure(kubectl, "bird.conf")?;
    let dir = story.dir().to_str().context("a path that is no UTF-8")?;
    await_until("`muster routes` to find no difference", HEAL_LIMIT, || {
        story.muster_output(&["routes", "--dir", dir]).map(Seen::There)
    })?;
    kubectl.run(&["delete", "pod", "rogue"])?;
    story.ok("`muster routes` finds every node as intended")
}

/// Has the node's BIRD take a configuration.
fn configure(kubectl: &Kubectl, file: &str) -> Result<()> {
    let path = format!("\"/run/bird/{file}\"");
    let mut command = vec!["exec", "rogue", "--", "chroot", "/host", "/usr/sbin/birdc"];
    command.extend(["-s", "/run/bird/bird.ctl", "configure", &path]);
    let said = kubectl.run(&command)?;
    ensure!(said.contains("Reconfig"), "BIRD did not take {file}: {said}");
    Ok(())
}
