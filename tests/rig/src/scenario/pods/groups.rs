//! Control groups of a node: each pod in one of its own, by its class, as large as it may become.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scenario::workloads::Site;

/// The groups of all pods, as whoever sees all processes of the node sees them.
const GROUPS: &str = "/proc/1/root/sys/fs/cgroup/kubepods";

/// Looks at the groups of pods of three classes on the node that a hand is on.
pub(super) fn pods_are_grouped_by_class(site: &Site, hand: &str) -> Result<()> {
    let cases = [
        ("guaranteed", "", [("cpu.max", "5000 100000"), ("memory.max", "100663296")]),
        ("burstable", "burstable/", [("cpu.max", "max 100000"), ("memory.max", "max")]),
        ("best-effort", "besteffort/", [("cpu.weight", "1"), ("memory.max", "max")]),
    ];
    for (name, class, files) in cases {
        let pod = site.kubectl.json(&["get", "pod", name])?;
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let uid = text("/metadata/uid").context("a pod without a uid")?;
        let id = text("/status/containerStatuses/0/containerID").context("no container yet")?;
        let id = id.rsplit('/').next().unwrap_or_default();
        let group = format!("{GROUPS}/{class}pod{uid}");
        for (file, wanted) in files {
            let said = site.exec(hand, &["cat", &format!("{group}/{file}")])?;
            ensure!(said.trim() == wanted, "{file} of {name} says {said:?}, not {wanted:?}");
        }
        let inside = site.exec(hand, &["cat", &format!("{group}/{id}/cgroup.procs")])?;
        ensure!(!inside.trim().is_empty(), "nothing of {name} runs in its group");
    }
    site.story.ok("each pod is in a control group of its class, as large as it may become")
}
