//! Lifecycle hooks: what a container wants done right after its start and before its stop.
//!
//! Spec: upstream: a failed `postStart` kills the container; a `preStop` has the grace of the
//! stop and its failure holds nothing up.

use std::time::Duration;

use objects::pod::{Container, Pod};
use runtime::report;
use serde_json::Value;

use crate::{Shared, probe};

/// Limit of a hook after the start; upstream has none, but nothing may wait for ever.
const AFTER_START: Duration = Duration::from_secs(120);

/// Runs a container's `postStart`.
///
/// `address` is the pod's own, which its status may not tell yet.
pub(crate) async fn after_start(
    shared: &Shared,
    pod: &Pod,
    (container, id): (&Container, &str),
    address: Option<&str>,
) {
    let Some(hook) = hook_of(container, "postStart") else { return };
    let address = address.map_or_else(|| shared.node.address.to_string(), str::to_owned);
    if let Err(why) = run(shared, (container, id), (hook, &address), AFTER_START).await {
        tracing::info!(pod = pod.metadata.name, why, "a hook after the start failed");
        let message = "PostStartHook failed";
        shared.events.warning(pod, Some(&container.name), "FailedPostStartHook", message);
        // The stop is seen as the container's end; what follows is its restart policy.
        if let Err(err) = shared.runtime.stop_container(id, Duration::from_secs(2)).await {
            tracing::warn!(err = report(&err), "cannot stop a container whose hook failed");
        }
    }
}

/// Runs a container's `preStop`, within the grace.
pub(crate) async fn before_stop(
    shared: &Shared,
    pod: &Pod,
    container: &str,
    id: &str,
    grace: Duration,
) {
    let found = node::plan::containers(pod).find(|c| c.name == container);
    let Some(container) = found else { return };
    let Some(hook) = hook_of(container, "preStop") else { return };
    if grace.is_zero() {
        return;
    }
    let address = match pod.status.pod_ip.as_str() {
        "" => shared.node.address.to_string(),
        known => known.to_owned(),
    };
    if let Err(why) = run(shared, (container, id), (hook, &address), grace).await {
        tracing::info!(pod = pod.metadata.name, why, "a hook before the stop failed");
        let message = "PreStopHook failed";
        shared.events.warning(pod, Some(&container.name), "FailedPreStopHook", message);
    }
}

fn hook_of<'a>(container: &'a Container, name: &str) -> Option<&'a Value> {
    container.lifecycle.as_ref()?.get(name)
}

async fn run(
    shared: &Shared,
    (container, id): (&Container, &str),
    (hook, address): (&Value, &str),
    limit: Duration,
) -> Result<(), String> {
    if let Some(seconds) = hook.pointer("/sleep/seconds").and_then(Value::as_u64) {
        tokio::time::sleep(Duration::from_secs(seconds).min(limit)).await;
        return Ok(());
    }
    if let Some(action) = hook.get("exec") {
        let action = serde_json::from_value(action.clone()).map_err(|err| report(&err))?;
        return probe::exec(shared, id, &action, limit).await;
    }
    if let Some(action) = hook.get("httpGet") {
        let action = serde_json::from_value(action.clone()).map_err(|err| report(&err))?;
        return probe::http(container, &action, address, limit).await;
    }
    // Older specs may still hold a TCP hook, which upstream treats as one that cannot succeed.
    if hook.get("tcpSocket").is_some() {
        return Err("a hook by TCP is not supported".to_owned());
    }
    Ok(())
}
