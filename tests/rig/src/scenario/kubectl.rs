//! Stock kubectl, run as a user runs it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;
use crate::wait::{Seen, await_until};

/// kubectl gives up on a request after this; a master on a busy host is slow, not dead.
const REQUEST_LIMIT: &str = "--request-timeout=60s";

/// One kubectl with the site's credentials.
pub(super) struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

/// A pod, as far as the stories care.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) address: String,
    pub(super) is_ready: bool,
}

impl Kubectl {
    pub(super) fn new(program: PathBuf, config: PathBuf) -> Self {
        Self { program, config }
    }

    /// What runs it with the site's credentials.
    pub(super) fn command(&self, args: &[&str]) -> Result<Command> {
        let program = self.program.to_str().context("a path that is no UTF-8")?;
        let mut command = process::command(program);
        command.arg("--kubeconfig").arg(&self.config).arg(REQUEST_LIMIT).args(args);
        // Discovery is cached below HOME, where a service may have none.
        command.env("HOME", self.config.parent().unwrap_or(&self.config));
        Ok(command)
    }

    /// Runs it and gives what it printed; failure carries what it said.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        let output = process::output(&mut self.command(args)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it with `-o json` and reads what it printed.
    pub(super) fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl {} printed no JSON", args.join(" ")))
    }

    /// Its own version, as in `v1.32.3`.
    pub(super) fn version(&self) -> Result<String> {
        let version = self.json(&["version", "--client"])?;
        let git = version.pointer("/clientVersion/gitVersion").and_then(Value::as_str);
        Ok(git.unwrap_or("unknown").to_owned())
    }

    /// Pods of the default namespace that match a label, are not on their way out and have not
    /// ended: those a node ended when it went off stay to be read.
    pub(super) fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        let list = self.json(&["get", "pods", "-l", selector])?;
        let items = list.get("items").and_then(Value::as_array).context("a list of pods")?;
        let alive = |pod: &&Value| {
            let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
            pod.pointer("/metadata/deletionTimestamp").is_none()
                && !["Succeeded", "Failed"].contains(&phase)
        };
        Ok(items.iter().filter(alive).map(Pod::read).collect())
    }

    /// Waits until exactly `count` pods match and all are ready.
    pub(super) fn await_pods(
        &self,
        selector: &str,
        count: usize,
        limit: Duration,
        good: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Pod>> {
        await_until(&format!("{count} pods of {selector}"), limit, || {
            let pods = self.pods(selector)?;
            let done = pods.len() == count && pods.iter().all(|pod| pod.is_ready && good(pod));
            Ok(if done { Seen::There(pods) } else { Seen::NotYet(format!("{pods:?}")) })
        })
    }

    /// The status of a node's Ready condition; `Absent` when there is no such node.
    pub(super) fn node_ready(&self, name: &str) -> Result<String> {
        let list = self.json(&["get", "nodes"])?;
        let items = list.get("items").and_then(Value::as_array).context("a list of nodes")?;
        let named =
            |node: &&Value| node.pointer("/metadata/name").and_then(Value::as_str) == Some(name);
        let Some(node) = items.iter().find(named) else { return Ok("Absent".to_owned()) };
        Ok(condition(node, "Ready").unwrap_or("Unset").to_owned())
    }

    /// Waits until a node's Ready condition satisfies `good`.
    pub(super) fn await_node(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        good: impl Fn(&str) -> bool,
    ) -> Result<()> {
        await_until(&format!("node {name} {what}"), limit, || {
            let ready = self.node_ready(name)?;
            Ok(if good(&ready) { Seen::There(()) } else { Seen::NotYet(format!("Ready={ready}")) })
        })
    }
}

impl Pod {
    fn read(pod: &Value) -> Self {
        let text =
            |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            name: text("/metadata/name"),
            node: text("/spec/nodeName"),
            address: text("/status/podIP"),
            is_ready: condition(pod, "Ready") == Some("True"),
        }
    }
}

/// The status of an object's condition.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(kind));
    found?.get("status")?.as_str()
}
