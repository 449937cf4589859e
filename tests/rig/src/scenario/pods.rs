//! What a node owes its pods: images that only the master has, network policies, kubectl's eyes
//! and hands, daemons that are killed under them, and a disk that fills up.
//!
//! The rest is told elsewhere: probes, config maps, memory limits, `exec`, `cp` and `port-forward`
//! by `workloads`, as are node ports on nodes without an endpoint; names while no API server
//! answers by `faults`.

mod eviction;
mod image;
mod kill;
mod policy;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::kubectl::Kubectl;
use super::story::Story;
use super::workloads::{LIMIT, Site};
use crate::wait::{Seen, await_until};

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.come_up()?;
    let site = Site::of(story)?;
    // Those who do things to nodes from the inside, and the pods that things are done to.
    site.apply("hands", include_str!("pods/hands.yaml"))?;
    site.apply("policy", include_str!("pods/policy.yaml"))?;
    image::pods_run_what_only_the_master_has(&site)?;
    policy::a_policy_blocks_and_allows(&site)?;
    for kubectl in site.story.kubectls() {
        kubectl_looks_on(&site, &kubectl)?;
    }
    kill::daemons_die_and_no_pod_does(&site)?;
    eviction::a_full_disk_costs_the_greediest(&site)
}

/// Whether this kubectl's `debug` speaks of ephemeral containers as servers do since 1.23.
fn adds_containers(version: &str) -> bool {
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= 23)
}

/// debug, logs -f and top.
fn kubectl_looks_on(site: &Site, kubectl: &Kubectl) -> Result<()> {
    let version = kubectl.version()?;
    let tag = version.replace('.', "-");
    let said = format!("looked by {tag}");
    let script = format!("ps -o args | grep '[h]ttpd -f'; echo {said}");
    let name = format!("eye-{tag}");
    let image = "--image=muster.dev/busybox:1";
    let (pod, made) = if adds_containers(&version) {
        let container = format!("--container={name}");
        let target = "--target=server";
        kubectl.run(&["debug", "server", image, &container, target, "--", "sh", "-c", &script])?;
        ("server", name.clone())
    } else {
        // Before, it made a copy of the pod with one container more.
        let (copy, container) = (format!("--copy-to={name}"), format!("--container={name}"));
        kubectl.run(&["debug", "server", image, &copy, &container, "--", "sh", "-c", &script])?;
        (name.as_str(), name.clone())
    };
    let log = await_until("the debug container's words", LIMIT, || {
        let log = kubectl.run(&["logs", pod, "-c", &made])?;
        Ok(if log.contains(&said) { Seen::There(log) } else { Seen::NotYet(log) })
    })?;
    let sees = log.contains("httpd -f");
    ensure!(sees == (pod == "server"), "a debug container at the server's processes saw: {log}");
    if pod != "server" {
        site.delete(&["pod", pod, "--now"])?;
    }
    follows_a_log(site, kubectl, &tag)?;
    let top = await_until("kubectl top", LIMIT, || {
        let (nodes, pods) = (
            kubectl.run(&["top", "nodes", "--no-headers"])?,
            kubectl.run(&["top", "pod", "server", "--no-headers"])?,
        );
        let whole = nodes.lines().count() == site.story.plan().machines.len();
        let known = !nodes.contains("<unknown>") && pods.lines().count() == 1;
        Ok(if whole && known { Seen::There(pods) } else { Seen::NotYet(nodes + &pods) })
    })?;
    ensure!(top.starts_with("server"), "top pod says {top}");
    site.story.ok(format_args!("kubectl {version}: debug, logs -f and top look on"))
}

/// What a container says arrives at once with whoever follows its log.
fn follows_a_log(site: &Site, kubectl: &Kubectl, tag: &str) -> Result<()> {
    let mut command = kubectl.command(&["logs", "-f", "server", "-c", "server", "--tail=1"])?;
    // Longer than single requests take, and an end all the same.
    command.arg(format!("--request-timeout={}s", LIMIT.as_secs()));
    let mut child = command.stdout(Stdio::piped()).spawn().context("running kubectl")?;
    let words = child.stdout.take().map(BufReader::new).context("kubectl's words")?;
    let said = format!("heard {tag}");
    let told = site.exec("server", &["sh", "-c", &format!("echo {said} >/proc/1/fd/1")]);
    let mut lines = words.lines().map_while(Result::ok);
    let heard = told.is_ok() && lines.any(|line| line == said);
    child.kill().context("stopping kubectl")?;
    child.wait().context("waiting for kubectl")?;
    told?;
    ensure!(heard, "logs -f ended without {said:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kubectls_debug_copies() {
        for (version, adds) in
            [("v1.20.2", false), ("v1.32.3", true), ("v1.36.0", true), ("unknown", false)]
        {
            assert_eq!(adds_containers(version), adds, "{version}");
        }
    }
}
