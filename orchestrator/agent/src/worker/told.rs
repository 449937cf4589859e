//! What the API is told of a pod: written beside the worker's steps, one write at a time.

use std::sync::Arc;

use jiff::Timestamp;
use node::manifest::{self, is_static};
use node::seen::Seen;
use node::status::{Place, compute_status};
use objects::meta::Object;
use objects::pod::{ContainerStatus, Pod, PodStatus};
use runtime::client::Patch;
use runtime::{report, resource};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{UNTOLD, Worker};
use crate::{Shared, manifests};

/// What came of a status on its way to the API.
pub(super) enum Told {
    /// The API has it; its pod as it is now.
    Written(PodStatus, Arc<Pod>),
    /// The API will never take it: the pod is another one, or gone.
    Refused(PodStatus),
    /// The API cannot be reached, or was busy.
    Failed,
}

impl Worker {
    /// Begins to write the status when it differs; tells whether the API has it already.
    pub(super) fn tell(&mut self, pod: &Arc<Pod>, seen: &Seen, now: Timestamp) -> bool {
        let runtime = self.shared.runtime_name.get().map_or("containerd", String::as_str);
        let place = Place { host: self.shared.node.address, runtime, now };
        let status = compute_status(pod, seen, &self.memory, place);
        // An API that keeps less than it was told must not make us tell it for ever.
        let version = &pod.metadata.resource_version;
        let told = self.written.as_ref().is_some_and(|(s, v)| *s == status && v == version);
        if (status == pod.status || told) && self.is_shown(pod) {
            return self.telling.is_empty();
        }
        if !self.telling.is_empty() || self.untold.is_some_and(|then| Instant::now() < then) {
            return false;
        }
        self.tell_back_offs(pod, &status);
        let (shared, pod) = (Arc::clone(&self.shared), Arc::clone(pod));
        self.telling.spawn(async move { write_status(&shared, &pod, status).await });
        false
    }

    /// Tells whether the API has an object to tell of this pod.
    fn is_shown(&self, pod: &Pod) -> bool {
        let meta = &pod.metadata;
        let mirror = || self.shared.pods.get(&meta.namespace, &meta.name);
        !is_static(pod) || manifest::plan_mirror(pod, mirror().as_deref()) == manifest::Step::Tell
    }

    pub(super) fn take_told(&mut self, told: Option<Told>) {
        self.untold = None;
        match told {
            Some(Told::Written(status, answer)) if answer.metadata.uid == self.uid => {
                self.written = Some((status, answer.metadata.resource_version.clone()));
                let newer =
                    |have: &Arc<Pod>| have.metadata.revision() <= answer.metadata.revision();
                if self.pod.as_ref().is_some_and(newer) {
                    self.pod = Some(answer);
                }
            }
            // The pod is gone, or another one has its name; the watch says so soon.
            Some(Told::Written(status, _) | Told::Refused(status)) => {
                let version = self.pod.as_ref().map(|pod| pod.metadata.resource_version.clone());
                self.written = Some((status, version.unwrap_or_default()));
            }
            Some(Told::Failed) | None => self.untold = Some(Instant::now() + UNTOLD),
        }
    }

    /// Tells people once when a container begins to wait for its next try.
    fn tell_back_offs(&self, pod: &Pod, status: &PodStatus) {
        let reason = |status: &ContainerStatus| {
            let waiting = status.state.waiting.as_ref()?;
            waiting.reason.ends_with("BackOff").then(|| waiting.clone())
        };
        let all = status.init_container_statuses.iter().chain(&status.container_statuses);
        let before =
            || pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses);
        for container in all {
            let Some(waiting) = reason(container) else { continue };
            let told = before().find(|c| c.name == container.name).and_then(reason);
            if told.is_some_and(|told| told.reason == waiting.reason) {
                continue;
            }
            let (name, events) = (Some(container.name.as_str()), &self.shared.events);
            if waiting.reason == "CrashLoopBackOff" {
                let message = format!(
                    "Back-off restarting failed container {} in pod {}_{}({})",
                    container.name, pod.metadata.name, pod.metadata.namespace, self.uid
                );
                events.warning(pod, name, "BackOff", &message);
            } else {
                let image = container.image.as_deref().unwrap_or_default();
                let message = format!("Back-off pulling image \"{image}\"");
                events.normal(pod, name, "BackOff", &message);
                events.warning(pod, name, "Failed", &format!("Error: {}", waiting.reason));
            }
        }
    }
}

/// Writes a status to the API.
async fn write_status(shared: &Shared, pod: &Pod, status: PodStatus) -> Told {
    let meta = &pod.metadata;
    if is_static(pod) {
        return match manifests::show(shared, pod, &status).await {
            Ok(true) => {
                let pod = Pod { status: status.clone(), ..pod.clone() };
                Told::Written(status, Arc::new(pod))
            }
            Ok(false) => Told::Failed,
            Err(err) => {
                debug!(pod = pod.key(), err = report(&err), "a mirror was not told; retrying");
                Told::Failed
            }
        };
    }
    let Some(body) = status_patch(&meta.uid, &status) else { return Told::Refused(status) };
    let patch = Patch::merge(body).on("status");
    let answer =
        shared.client.patch(&resource::PODS, Some(&meta.namespace), &meta.name, &patch).await;
    match answer.map(|answer| Pod::decode(&answer)) {
        Ok(Ok(answer)) => Told::Written(status, Arc::new(answer)),
        Ok(Err(_)) => Told::Refused(status),
        Err(err) if err.is_not_found() || err.is_conflict() => Told::Refused(status),
        Err(err) => {
            warn!(pod = pod.key(), err = report(&err), "cannot write a pod's status; retrying");
            Told::Failed
        }
    }
}

/// A merge patch of the status that also takes away what is no longer there.
fn status_patch(uid: &str, status: &PodStatus) -> Option<Value> {
    let mut value = serde_json::to_value(status).ok()?;
    let fields = value.as_object_mut()?;
    for name in [
        "podIP",
        "podIPs",
        "reason",
        "message",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ] {
        fields.entry(name).or_insert(Value::Null);
    }
    Some(json!({"metadata": {"uid": uid}, "status": value}))
}
