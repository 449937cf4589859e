//! Writes what the desk knows into `Machine.status`, and tells the desk which nodes are Ready.
//!
//! Creates nothing and touches no other field. The API may be away for any time: the desk goes on
//! without it, and the next round writes what is true then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use boot::{MachineView, Moment};
use runtime::cache::CacheParams;
use runtime::client::Patch;
use runtime::{Cache, Client, Resource, report};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::desk::{DeskHandle, Stopping};

/// A new phase is in the API within a second.
const PACE: Duration = Duration::from_secs(1);
/// The kubeconfig may be written after the boot server was started.
const KUBECONFIG_PACE: Duration = Duration::from_secs(2);
/// Everything is written again at this beat, in case someone else changed it.
const FULL_ROUND: u32 = 300;
/// Writes of one round; a storm is spread over rounds instead of flooding the API.
const WRITES_MAX: usize = 200;

const MACHINES: Resource = Resource::cluster("muster.dev", "v1alpha1", "Machine", "machines");
const NODES: Resource = Resource::cluster("", "v1", "Node", "nodes");

/// Reports until `stop`.
pub(crate) async fn run(stop: CancellationToken, kubeconfig: PathBuf, desk: DeskHandle) {
    let reporting = async {
        let client = connect(kubeconfig).await;
        let (nodes, reflector) = Cache::<Value>::new(client.clone(), NODES, CacheParams::default());
        let stop_nodes = CancellationToken::new();
        tokio::join!(reflector.run(stop_nodes), rounds(&client, &nodes, &desk))
    };
    let _stopped = stop.run_until_cancelled(reporting).await;
}

async fn connect(kubeconfig: PathBuf) -> Client {
    loop {
        match Client::from_kubeconfig(&kubeconfig) {
            Ok(client) => return client,
            Err(err) => {
                tracing::debug!(path = %kubeconfig.display(), err = report(&err), "no API yet");
                tokio::time::sleep(KUBECONFIG_PACE).await;
            }
        }
    }
}

/// Ends only when the desk has.
async fn rounds(client: &Client, nodes: &Cache, desk: &DeskHandle) {
    let mut written = BTreeMap::new();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0_u32.. {
        pace.tick().await;
        if number % FULL_ROUND == 0 {
            written.clear();
        }
        if tell_ready(nodes, desk).await.is_err() {
            return;
        }
        let Ok(view) = desk.view().await else {
            return;
        };
        write_all(client, &view.machines, &mut written).await;
    }
}

async fn tell_ready(nodes: &Cache, desk: &DeskHandle) -> Result<(), Stopping> {
    for node in nodes.list() {
        if let Some((name, heartbeat)) = ready(&node) {
            desk.ready(name, heartbeat).await?;
        }
    }
    Ok(())
}

/// The name of a node and its last sign of life, when it is Ready.
fn ready(node: &Value) -> Option<(String, Moment)> {
    let name = node.pointer("/metadata/name")?.as_str()?;
    let conditions = node.pointer("/status/conditions")?.as_array()?;
    let ready = conditions.iter().find(|condition| {
        condition.get("type").and_then(Value::as_str) == Some("Ready")
            && condition.get("status").and_then(Value::as_str) == Some("True")
    })?;
    let time = |key: &str| ready.get(key)?.as_str()?.parse::<Moment>().ok();
    Some((name.to_owned(), time("lastHeartbeatTime").max(time("lastTransitionTime"))?))
}

async fn write_all(
    client: &Client,
    machines: &[MachineView],
    written: &mut BTreeMap<String, Value>,
) {
    let mut writes = 0;
    for machine in machines {
        let Some(name) = &machine.name else {
            continue;
        };
        let status = render_status(machine);
        if written.get(name) == Some(&status) {
            continue;
        }
        if writes == WRITES_MAX {
            return;
        }
        writes += 1;
        let patch = Patch::merge(json!({ "status": status })).on("status");
        match client.patch(&MACHINES, None, name, &patch).await {
            Ok(_) => {
                written.insert(name.clone(), status);
            }
            // `muster up` makes the objects, maybe later than we see the machine.
            Err(err) if err.is_not_found() => {}
            Err(err) => {
                tracing::debug!(name, err = report(&err), "status not written");
                return;
            }
        }
    }
}

/// Keys that do not hold are null: a merge patch leaves out nothing by itself.
fn render_status(machine: &MachineView) -> Value {
    json!({
        "phase": machine.phase,
        "phases": machine.phases,
        "cause": machine.cause,
        "addresses": machine.addresses,
        "evidence": machine.evidence,
        "quarantined": machine.quarantined,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_by_its_condition_alone() {
        let node = |status: &str| {
            json!({
                "metadata": { "name": "a" },
                "status": { "conditions": [
                    { "type": "MemoryPressure", "status": "False" },
                    { "type": "Ready", "status": status,
                      "lastHeartbeatTime": "1970-01-01T00:00:09Z",
                      "lastTransitionTime": "1970-01-01T00:00:05Z" },
                ]},
            })
        };
        let at = Moment::from_unix_ms(9000);
        assert_eq!(ready(&node("True")), Some(("a".to_owned(), at)));
        assert_eq!(ready(&node("Unknown")), None);
        assert_eq!(ready(&json!({})), None);
    }
}
