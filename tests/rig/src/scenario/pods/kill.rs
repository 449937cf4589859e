//! The node's daemons are killed while its pods are in every phase of their lives.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scenario::workloads::{LIMIT, Site};
use crate::wait::{Seen, await_until};

/// Who sees the node from the inside.
const HAND: &str = "hand-a";

/// agent and containerd are killed the hard way: each pod goes on from where it was, once.
pub(super) fn daemons_die_and_no_pod_does(site: &Site) -> Result<()> {
    for daemon in ["muster", "containerd"] {
        site.apply("lives", include_str!("lives.yaml"))?;
        await_processes(site, "life-init", 1)?;
        await_processes(site, "life-running", 1)?;
        await_processes(site, "life-ending", 1)?;
        site.kubectl.run(&["delete", "pod", "ending", "--wait=false"])?;
        await_until("the ending pod to be asked to", LIMIT, || {
            let asked = site.exec("ending", &["ls", "/tmp"])?;
            Ok(if asked.contains("asked") { Seen::There(()) } else { Seen::NotYet(asked) })
        })?;
        let before = containers(site)?;
        let old = pids(site, daemon)?;
        site.apply("born", include_str!("born.yaml"))?;
        kill(site, daemon, &old)?;
        settle(site, daemon, &before)?;
        site.story.ok(format_args!("{daemon}, killed on a node: no pod lost, none doubled"))?;
        site.delete(&["pod/in-init", "pod/running", "pod/born"])?;
        for word in ["life-init", "life-after-init", "life-running", "life-born"] {
            await_processes(site, word, 0)?;
        }
    }
    Ok(())
}

/// What every pod must have come to after its node's daemon is back.
fn settle(site: &Site, daemon: &str, before: &[(String, String)]) -> Result<()> {
    // One that was being made is made, once.
    await_processes(site, "life-born", 1)?;
    let ready = |pod: &Value| {
        pod.pointer("/status/containerStatuses/0/ready").and_then(Value::as_bool) == Some(true)
    };
    site.await_object("the pod that was being made", &["get", "pod", "born"], ready)?;
    let after = containers(site)?;
    ensure!(before == after, "{daemon} killed: containers were {before:?} and are {after:?}");
    // One in its init container is still there, and goes on to its main one.
    await_processes(site, "life-init", 1)?;
    site.kubectl.run(&["exec", "in-init", "-c", "first", "--", "touch", "/gate/open"])?;
    await_processes(site, "life-after-init", 1)?;
    let pod = site.await_object("the pod after its init", &["get", "pod", "in-init"], ready)?;
    let restarts = |list: &str| pod.pointer(list).and_then(Value::as_u64);
    let counts = [
        restarts("/status/initContainerStatuses/0/restartCount"),
        restarts("/status/containerStatuses/0/restartCount"),
    ];
    ensure!(counts == [Some(0), Some(0)], "restarts after {daemon} was killed: {counts:?}");
    // One that was ending has the grace it was given, and then is gone.
    await_processes(site, "life-ending", 1)?;
    site.exec("ending", &["touch", "/tmp/go"])?;
    await_until("the end of the ending pod", LIMIT, || {
        let left = site.kubectl.run(&["get", "pod", "ending", "--ignore-not-found"])?;
        Ok(if left.is_empty() { Seen::There(()) } else { Seen::NotYet(left) })
    })?;
    await_processes(site, "life-ending", 0)
}

/// Container and restarts of the pods that stay, as the API tells them.
fn containers(site: &Site) -> Result<Vec<(String, String)>> {
    ["running", "server", HAND]
        .into_iter()
        .map(|name| {
            let pod = site.kubectl.json(&["get", "pod", name])?;
            let status = pod.pointer("/status/containerStatuses/0").context("a container")?;
            let part = |key: &str| status.get(key).map(Value::to_string).unwrap_or_default();
            let identity = ["containerID", "restartCount", "state"].map(part).join(" ");
            Ok((name.to_owned(), identity))
        })
        .collect()
}

/// Waits until so many containers of the node run a shell with this word in its script.
fn await_processes(site: &Site, word: &str, count: usize) -> Result<()> {
    await_until(&format!("{count} of {word}"), LIMIT, || {
        let all = site.exec(HAND, &["ps", "-o", "args"])?;
        let mark = format!("# {word}");
        let found = all.lines().filter(|line| line.trim_end().ends_with(&mark)).count();
        Ok(if found == count { Seen::There(()) } else { Seen::NotYet(all) })
    })
}

/// Kills a daemon of the node and waits until another runs.
fn kill(site: &Site, daemon: &str, old: &[String]) -> Result<()> {
    ensure!(!old.is_empty(), "no {daemon} runs on the node");
    let mut command = vec!["kill", "-9"];
    command.extend(old.iter().map(String::as_str));
    // What the kill says comes back through what is killed, so it may be lost.
    drop(site.exec(HAND, &command));
    await_until(&format!("another {daemon}"), LIMIT, || {
        let now = pids(site, daemon)?;
        let fresh = !now.is_empty() && now.iter().all(|pid| !old.contains(pid));
        Ok(if fresh { Seen::There(()) } else { Seen::NotYet(format!("{now:?}")) })
    })
}

fn pids(site: &Site, daemon: &str) -> Result<Vec<String>> {
    let path = format!("/usr/bin/{daemon}");
    let all = site.exec(HAND, &["ps", "-o", "pid,args"])?;
    let mine = all.lines().filter_map(|line| line.trim().split_once(' '));
    let mine = mine.filter(|(_, args)| args.trim().split(' ').next() == Some(&path));
    Ok(mine.map(|(pid, _)| pid.to_owned()).collect())
}
