//! Rolling updates of daemon sets: old pods make room, or new ones come beside them.

use std::sync::Arc;

use jiff::Timestamp;
use objects::int_or_string::{IntOrString, Rounding};
use objects::pod::Pod;

use super::Fleet;
use crate::action::Steps;
use crate::family;

/// The new and the old pod of a node, as far as there are.
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

impl<'a> Fleet<'a> {
    /// `maxUnavailable` and `maxSurge` in pods; when both round to zero one may be missing.
    pub(super) fn limits(&self) -> (i64, i64) {
        let desired = self.nodes.values().filter(|(belongs, _)| belongs.run).count();
        let desired = i64::try_from(desired).unwrap_or(i64::MAX);
        let update = self.set.spec.update_strategy.rolling_update.as_ref();
        let share = |value: Option<&IntOrString>, default: i64| {
            value.map_or(default, |one| one.resolve(desired, Rounding::Up).unwrap_or(default))
        };
        let surge = share(update.and_then(|one| one.max_surge.as_ref()), 0).max(0);
        let unavailable = share(update.and_then(|one| one.max_unavailable.as_ref()), 1).max(0);
        if surge == 0 && unavailable == 0 { (1, 0) } else { (unavailable, surge) }
    }

    /// The pods of a node that are not on their way out; `None` when there are too many.
    fn pair(&self, pods: &[&'a Arc<Pod>]) -> Option<Pair<'a>> {
        let mut pair = Pair { new: None, old: None };
        for pod in pods.iter().copied().filter(|pod| !pod.metadata.is_deleting()) {
            let place = if self.is_new(pod) { &mut pair.new } else { &mut pair.old };
            if place.replace(pod).is_some() {
                return None;
            }
        }
        Some(pair)
    }
}

/// Plans the next steps of an update.
pub(super) fn roll(fleet: &Fleet<'_>, now: Timestamp, steps: &mut Steps) {
    let (unavailable, surge) = fleet.limits();
    if surge > 0 {
        add_new(fleet, surge, now, steps)
    } else {
        remove_old(fleet, unavailable, now, steps)
    }
}

/// Deletes old pods, those that are not available first, as many as may be missing.
fn remove_old(fleet: &Fleet<'_>, most: i64, now: Timestamp, steps: &mut Steps) {
    let seconds = fleet.set.spec.min_ready_seconds;
    let (mut missing, mut candidates) = (0, Vec::new());
    for (belongs, pods) in fleet.nodes.values().filter(|(belongs, _)| belongs.stay) {
        match fleet.pair(pods) {
            Some(Pair { new: Some(new), old: None }) => {
                missing += i64::from(!family::is_available(new, seconds, now, steps));
            }
            Some(Pair { new: None, old: Some(old) }) => {
                if family::is_available(old, seconds, now, steps) {
                    candidates.push(old);
                } else {
                    // It serves nobody, so nobody loses it.
                    missing += 1;
                    fleet.delete(old, steps);
                }
            }
            Some(Pair { new: None, old: None }) => missing += i64::from(belongs.run),
            Some(Pair { new: Some(_), old: Some(_) }) | None => missing += 1,
        }
    }
    let room = usize::try_from((most - missing).max(0)).unwrap_or(0);
    for old in candidates.into_iter().take(room) {
        fleet.delete(old, steps);
    }
}

/// Makes new pods beside old ones; an old one goes when its successor is available.
fn add_new(fleet: &Fleet<'_>, most: i64, now: Timestamp, steps: &mut Steps) {
    let seconds = fleet.set.spec.min_ready_seconds;
    let (mut beside, mut candidates) = (0, Vec::new());
    for (node, (belongs, pods)) in &fleet.nodes {
        if !belongs.run {
            continue;
        }
        match fleet.pair(pods) {
            Some(Pair { new: None, old: Some(old) }) => {
                if family::is_available(old, seconds, now, steps) {
                    candidates.push(node);
                } else {
                    steps.push(fleet.create(node));
                }
            }
            Some(Pair { new: Some(new), old: Some(old) }) => {
                if family::is_available(new, seconds, now, steps) {
                    fleet.delete(old, steps);
                } else {
                    beside += 1;
                }
            }
            Some(Pair { old: None, .. }) => (),
            None => beside += 1,
        }
    }
    let room = usize::try_from((most - beside).max(0)).unwrap_or(0);
    for node in candidates.into_iter().take(room) {
        steps.push(fleet.create(node));
    }
}
