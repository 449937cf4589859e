//! Containers seen and touched from outside: probes, config, limits, exec, cp, port-forward.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LIMIT, Site};
use crate::http;
use crate::scenario::kubectl::Kubectl;
use crate::wait::{Seen, await_until};

const PATIENT: &[&str] = &["get", "pod", "patient"];

fn is_ready(pod: &Value) -> bool {
    pod.pointer("/status/containerStatuses/0/ready").and_then(Value::as_bool) == Some(true)
}

fn restarts(pod: &Value) -> u64 {
    let count = pod.pointer("/status/containerStatuses/0/restartCount");
    count.and_then(Value::as_u64).unwrap_or_default()
}

fn is_running(pod: &Value) -> bool {
    pod.pointer("/status/containerStatuses/0/state/running").is_some()
}

/// A readiness probe makes ready and unready, a liveness probe restarts.
pub(super) fn probes_decide(site: &Site) -> Result<()> {
    site.apply("patient", include_str!("patient.yaml"))?;
    let pod = site.await_object("the patient to run", PATIENT, is_running)?;
    ensure!(!is_ready(&pod), "ready before its probe passed");
    site.exec("patient", &["touch", "/tmp/ready"])?;
    site.await_object("the patient to be ready", PATIENT, is_ready)?;
    site.exec("patient", &["rm", "/tmp/ready"])?;
    site.await_object("the patient to be unready", PATIENT, |pod| !is_ready(pod))?;
    let pod = site.kubectl.json(PATIENT)?;
    ensure!(restarts(&pod) == 0, "restarted before its liveness probe failed: {pod}");
    site.exec("patient", &["rm", "/tmp/alive"])?;
    let back = |pod: &Value| restarts(pod) == 1 && is_running(pod);
    site.await_object("the patient's new container", PATIENT, back)?;
    let before = site.kubectl.run(&["logs", "patient", "--previous"])?;
    ensure!(before.contains("awake"), "the log before the restart: {before:?}");
    site.exec("patient", &["touch", "/tmp/ready"])?;
    site.await_object("the patient to be ready again", PATIENT, is_ready)?;
    site.story.ok("probes make a pod ready and unready, and restart it")
}

/// A config map's new word reaches a running container.
pub(super) fn a_config_map_changes_inside_a_pod(site: &Site) -> Result<()> {
    let word = site.exec("patient", &["cat", "/etc/word/word"])?;
    ensure!(word == "first", "the word is {word:?}");
    let patch = r#"{"data":{"word":"second"}}"#;
    site.kubectl.run(&["patch", "configmap", "word", "--type=merge", "-p", patch])?;
    await_until("the second word inside the pod", LIMIT, || {
        let word = site.exec("patient", &["cat", "/etc/word/word"])?;
        Ok(if word == "second" { Seen::There(()) } else { Seen::NotYet(word) })
    })?;
    let pod = site.kubectl.json(PATIENT)?;
    ensure!(restarts(&pod) == 1, "it was restarted for the word");
    site.story.ok("a config map changes inside a running pod")
}

/// Who takes more memory than its limit is killed, and it is told why.
pub(super) fn too_much_memory_is_told(site: &Site) -> Result<()> {
    let ended = |pod: &Value| pod.pointer("/status/containerStatuses/0/state/terminated").is_some();
    let pod = site.await_object("the glutton's end", &["get", "pod", "glutton"], ended)?;
    let end = pod.pointer("/status/containerStatuses/0/state/terminated").unwrap_or(&Value::Null);
    let reason = end.get("reason").and_then(Value::as_str);
    ensure!(reason == Some("OOMKilled"), "the glutton ended so: {end}");
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    ensure!(phase == Some("Failed"), "the glutton's phase is {phase:?}");
    site.story.ok("a pod over its memory limit is killed and reported as OOMKilled")?;
    site.delete(&["pod/glutton"])
}

/// exec, cp both ways, logs and port-forward.
pub(super) fn kubectl_reaches_inside(site: &Site, kubectl: &Kubectl) -> Result<()> {
    let version = kubectl.version()?;
    let said = kubectl.run(&["exec", "patient", "--", "sh", "-c", "echo from $(hostname)"])?;
    ensure!(said.trim() == "from patient", "exec says {said:?}");
    let (there, back) = (site.story.dir().join("there"), site.story.dir().join("back"));
    let text = format!("carried by {version}\n");
    fs::write(&there, &text).context("writing a file to carry")?;
    let path = |path: &std::path::Path| path.to_str().map(str::to_owned).context("a path");
    kubectl.run(&["cp", &path(&there)?, "patient:/tmp/carried"])?;
    kubectl.run(&["cp", "patient:/tmp/carried", &path(&back)?])?;
    let came = fs::read_to_string(&back).context("reading what came back")?;
    ensure!(came == text, "{text:?} came back as {came:?}");
    let log = kubectl.run(&["logs", "patient", "--tail=1"])?;
    ensure!(log.trim() == "awake", "the log says {log:?}");
    forwards_a_port(kubectl)?;
    site.story.ok(format_args!("kubectl {version}: exec, cp, logs and port-forward reach inside"))
}

fn forwards_a_port(kubectl: &Kubectl) -> Result<()> {
    // kubectl chooses the port and prints it.
    let mut command = kubectl.command(&["port-forward", "pod/patient", ":8080"])?;
    let mut child = command.stdout(Stdio::piped()).spawn().context("running kubectl")?;
    // It ends when nobody hears what it says, so its words are held until it has served.
    let mut words = child.stdout.take().map(BufReader::new).context("kubectl's words")?;
    let asked = ask_through(&mut words);
    child.kill().context("stopping kubectl")?;
    child.wait().context("waiting for kubectl")?;
    let answer = asked?;
    ensure!(answer.body == "second", "through the forwarded port: {answer:?}");
    Ok(())
}

fn ask_through(words: &mut impl BufRead) -> Result<http::Response> {
    let mut line = String::new();
    words.read_line(&mut line).context("reading kubectl's words")?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
    let port = port.and_then(|port| port.parse().ok());
    let port = port.with_context(|| format!("kubectl names no port: {line:?}"))?;
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    http::send(http::Request { server, path: "/word", json: None, limit: LIMIT })
}
