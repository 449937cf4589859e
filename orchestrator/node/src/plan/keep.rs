//! Steps beside a pod's running: resizing what runs, removing what ended and nobody asks for.

use jiff::Timestamp;
use objects::pod::Pod;

use super::{Action, Plan, StopCause, is_sidecar, setup_retry_at};
use crate::names::grace_seconds;
use crate::resize;
use crate::seen::{Memory, Seen};

/// Lives of a container kept for its logs: the present and the one before.
const LIVES_KEPT: usize = 2;

/// Brings running containers to what they were promised, or ends those that must be restarted.
pub(super) fn plan_resizes(
    pod: &Pod,
    seen: &Seen,
    memory: &Memory,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(failure) = &memory.resize_failure
        && now < setup_retry_at(failure)
    {
        plan.wait(setup_retry_at(failure));
        return;
    }
    let sidecars = pod.spec.init_containers.iter().filter(|init| is_sidecar(init));
    for container in pod.spec.containers.iter().chain(sidecars) {
        let life = seen.lives(&container.name).first().copied();
        let Some(life) = life.filter(|life| life.life.is_running()) else { continue };
        let stops = |action: &Action| matches!(action, Action::Stop { id, .. } if *id == life.id);
        if plan.actions.iter().any(stops) {
            continue;
        }
        match resize::step(pod, container, life, memory) {
            Some(resize::Step::Restart) => plan.stop(life, grace_seconds(pod), StopCause::Resized),
            Some(resize::Step::InPlace) => {
                let (id, container) = (life.id.clone(), container.name.clone());
                plan.actions.push(Action::Resize { id, container });
            }
            None => {}
        }
    }
    // Stops come first in a plan.
    plan.actions.sort_by_key(|action| !matches!(action, Action::Stop { .. }));
}

/// Removes lives and sandboxes that nobody asks for any more.
pub(super) fn plan_sweep(seen: &Seen, plan: &mut Plan) {
    let mut names: Vec<&str> = seen.containers.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut kept: Vec<&str> = Vec::new();
    for name in names {
        let lives = seen.lives(name);
        for (index, container) in lives.iter().enumerate() {
            if index >= LIVES_KEPT && container.life.exit().is_some() {
                plan.actions.push(Action::Remove { id: container.id.clone() });
            } else {
                kept.push(&container.sandbox);
            }
        }
    }
    let newest = seen.sandbox().map_or("", |sandbox| sandbox.id.as_str());
    for sandbox in &seen.sandboxes {
        if !sandbox.ready && sandbox.id != newest && !kept.contains(&sandbox.id.as_str()) {
            plan.actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}
