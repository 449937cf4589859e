//! Lets a pod on every node call a pod on every other, and says who was reached.
//!
//! Works through the API alone, so that it needs no foot in the pod network: a target pod
//! per node answers HTTP with its node's name, then a probe pod per node asks them all and
//! writes what it heard to its log.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use objects::pod::Pod;
use runtime::Client;
use runtime::client::DeleteParams;
use runtime::resource::{NAMESPACES, PODS};
use serde_json::{Value, json};
use tokio::time::Instant;

/// The image that every node carries.
const IMAGE: &str = "muster.dev/busybox:1";

/// How long pods may take to start; emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(300);

/// Time between looks at the pods.
const PACE: Duration = Duration::from_millis(500);

/// One answered or missed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// The calling pod's node.
    pub from: String,
    /// The called pod's node.
    pub to: String,
    /// The called pod's address.
    pub address: String,
    /// Whether the right pod answered.
    pub answered: bool,
}

/// Checks every pair of nodes; what it made is removed again.
pub(crate) async fn reach(client: &Client, nodes: &[String]) -> Result<Vec<Call>> {
    let wanted = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"generateName": "muster-check-"}});
    let made = client.create(&NAMESPACES, None, &wanted).await?;
    let name = made.pointer("/metadata/name").and_then(Value::as_str);
    let namespace = name.context("a namespace without a name")?;
    let calls = call_all(client, namespace, nodes).await;
    // Pods first: their end should not wait for a namespace to be emptied.
    let removed = client.delete(&NAMESPACES, None, namespace, &DeleteParams::default()).await;
    let calls = calls?;
    removed.with_context(|| format!("cannot remove namespace {namespace}"))?;
    Ok(calls)
}

async fn call_all(client: &Client, namespace: &str, nodes: &[String]) -> Result<Vec<Call>> {
    for node in nodes {
        let script =
            format!("mkdir /www && echo {node} > /www/index.html && exec httpd -f -p 8080 -h /www");
        create(client, namespace, &format!("target-{node}"), node, &script).await?;
    }
    let mut addresses = BTreeMap::new();
    for node in nodes {
        let name = format!("target-{node}");
        let pod = wait(client, namespace, &name, |pod| {
            pod.status.phase == "Running" && !pod.status.pod_ip.is_empty()
        });
        addresses.insert(node.clone(), pod.await?.status.pod_ip);
    }
    let calls = addresses.values().map(|address| {
        format!("echo {address} $(wget -q -T 10 -O - http://{address}:8080/ 2>/dev/null)")
    });
    let script = calls.collect::<Vec<_>>().join("; ");
    for node in nodes {
        create(client, namespace, &format!("probe-{node}"), node, &script).await?;
    }
    let mut answers = Vec::new();
    for node in nodes {
        let name = format!("probe-{node}");
        wait(client, namespace, &name, |pod| {
            matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
        })
        .await?;
        let heard = log(client, namespace, &name).await?;
        answers.extend(read_calls(node, &addresses, &heard));
    }
    Ok(answers)
}

/// Reads a probe's log: one line per call, the address and the name that answered.
fn read_calls(from: &str, addresses: &BTreeMap<String, String>, log: &str) -> Vec<Call> {
    let call = |(to, address): (&String, &String)| Call {
        from: from.to_owned(),
        to: to.clone(),
        address: address.clone(),
        answered: log.lines().any(|line| line.trim() == format!("{address} {to}")),
    };
    addresses.iter().map(call).collect()
}

async fn create(
    client: &Client,
    namespace: &str,
    name: &str,
    node: &str,
    script: &str,
) -> Result<()> {
    let container = json!({
        "name": "main", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "muster-check"}},
        "spec": {"nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}], "containers": [container]},
    });
    let created = client.create(&PODS, Some(namespace), &pod).await;
    created.with_context(|| format!("cannot create pod {name}")).map(drop)
}

async fn wait(
    client: &Client,
    namespace: &str,
    name: &str,
    done: impl Fn(&Pod) -> bool,
) -> Result<Pod> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let object = client.get(&PODS, Some(namespace), name).await?;
        let pod: Pod = serde_json::from_value(object)?;
        if done(&pod) {
            return Ok(pod);
        }
        if Instant::now() > deadline {
            let seen = serde_json::to_string(&pod.status)?;
            bail!("pod {name} came no further in {LIMIT:?}; last seen: {seen}");
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn log(client: &Client, namespace: &str, name: &str) -> Result<String> {
    let path = PODS.render_path(Some(namespace), Some(name), Some("log"));
    let answer = client.raw_get(&path).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status.is_success(), "cannot read the log of {name}: {text}");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answer_counts() {
        let addresses = BTreeMap::from([
            ("a".to_owned(), "10.0.0.1".to_owned()),
            ("b".to_owned(), "10.0.0.2".to_owned()),
            ("c".to_owned(), "10.0.0.3".to_owned()),
        ]);
        let calls = read_calls("a", &addresses, "10.0.0.1 a\n10.0.0.2\n10.0.0.3 b\n");
        let answered: Vec<bool> = calls.iter().map(|call| call.answered).collect();
        assert_eq!(answered, [true, false, false]);
    }
}
