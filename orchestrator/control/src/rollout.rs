//! The arithmetic of rollouts: how many replicas each replica set of a deployment should have.

use std::sync::Arc;

use objects::int_or_string::{IntOrString, Rounding};
use objects::workload::{Deployment, ReplicaSet};

/// Annotation: the deployment's `replicas` when a set was last scaled.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation: `replicas` plus surge at that time.
pub(crate) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// How far a rollout may stray from `replicas`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What is wanted in the end.
    pub(crate) replicas: i64,
    /// More than that meanwhile.
    pub(crate) surge: i64,
    /// Fewer available than that meanwhile.
    pub(crate) unavailable: i64,
}

impl Limits {
    /// Reads a deployment's strategy; recreating has no surge.
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1).max(0);
        if is_recreate(deployment) {
            return Self { replicas, surge: 0, unavailable: 0 };
        }
        let quarter = IntOrString::from("25%");
        let update = deployment.spec.strategy.rolling_update.as_ref();
        let share = |value: Option<&IntOrString>, rounding| {
            value.unwrap_or(&quarter).resolve(replicas, rounding).unwrap_or(0).max(0)
        };
        let surge = share(update.and_then(|one| one.max_surge.as_ref()), Rounding::Up);
        let unavailable =
            share(update.and_then(|one| one.max_unavailable.as_ref()), Rounding::Down);
        // Both zero would never move; the API refuses it, rounding may still lead here.
        let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// The most pods at any time.
    pub(crate) const fn most(&self) -> i64 {
        self.replicas.saturating_add(self.surge)
    }

    /// The fewest available pods at any time.
    pub(crate) const fn fewest(&self) -> i64 {
        self.replicas.saturating_sub(self.unavailable)
    }
}

/// Does the deployment stop everything old before it starts anything new?
pub(crate) fn is_recreate(deployment: &Deployment) -> bool {
    deployment.spec.strategy.kind == "Recreate"
}

/// What a set is asked to have.
pub(crate) fn asked(set: &ReplicaSet) -> i64 {
    set.spec.replicas.unwrap_or(1).max(0)
}

/// What all sets are asked to have.
pub(crate) fn asked_of_all(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|set| asked(set)).sum()
}

/// The next size of the new set.
///
/// `others` is what the old sets are asked to have, `own` what the new one is.
pub(crate) fn next_of_new(limits: &Limits, own: i64, others: i64) -> i64 {
    if own >= limits.replicas {
        return limits.replicas;
    }
    let room = limits.most().saturating_sub(own.saturating_add(others)).max(0);
    own.saturating_add(room).min(limits.replicas)
}

/// The next sizes of the old sets, oldest first, in the order given.
///
/// First what is not available anyway goes, then as much of the rest as availability allows.
pub(crate) fn next_of_old(
    limits: &Limits,
    old: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
) -> Vec<i64> {
    let mut sizes: Vec<i64> = old.iter().map(|set| asked(set)).collect();
    let new_asked = new.map_or(0, asked);
    let new_available = new.map_or(0, |set| set.status.available_replicas);
    let all: i64 = sizes.iter().sum::<i64>() + new_asked;
    // New pods that are not available yet may still fail: old ones must not be taken for them.
    let new_missing = (new_asked - new_available).max(0);
    let mut may_go = (all - limits.fewest() - new_missing).max(0);
    for (size, set) in sizes.iter_mut().zip(old) {
        let broken = (*size - set.status.available_replicas).clamp(0, may_go);
        *size -= broken;
        may_go -= broken;
    }
    let available: i64 =
        old.iter().map(|set| set.status.available_replicas).sum::<i64>() + new_available;
    let mut may_go = (available - limits.fewest()).max(0);
    for size in &mut sizes {
        let gone = (*size).min(may_go);
        *size -= gone;
        may_go -= gone;
    }
    sizes
}

/// Spreads a change of `replicas` over several live sets in proportion to their sizes.
///
/// `None` when no scaling happened or one live set takes it all by itself.
/// Spec: upstream `scale`; the rounding rest goes to the largest, then newest set.
pub(crate) fn spread_scaling(limits: &Limits, live: &[Arc<ReplicaSet>]) -> Option<Vec<i64>> {
    let desired = |set: &ReplicaSet| {
        set.metadata.annotation(DESIRED).and_then(|text| text.parse::<i64>().ok())
    };
    let scaled = live.iter().any(|set| desired(set).is_some_and(|had| had != limits.replicas));
    if !scaled || live.len() < 2 {
        return None;
    }
    let allowed = if limits.replicas > 0 { limits.most() } else { 0 };
    let total = asked_of_all(live);
    let mut to_add = allowed - total;
    let mut sizes: Vec<i64> = live.iter().map(|set| asked(set)).collect();
    for (size, set) in sizes.iter_mut().zip(live) {
        if to_add == 0 {
            break;
        }
        let most = set.metadata.annotation(MAXIMUM).and_then(|text| text.parse().ok());
        let most: i64 = most.filter(|most| *most > 0).unwrap_or(limits.replicas).max(1);
        // Rounded to the nearest, as upstream.
        let fair = (*size * allowed * 2 + most) / (most * 2) - *size;
        let change = if to_add > 0 { fair.clamp(0, to_add) } else { fair.clamp(to_add, 0) };
        *size += change;
        to_add -= change;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add).max(0);
    }
    Some(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(replicas: i64, surge: i64, unavailable: i64) -> Limits {
        Limits { replicas, surge, unavailable }
    }

    fn set(asked: i64, available: i64) -> Arc<ReplicaSet> {
        let mut set = ReplicaSet::blank();
        set.spec.replicas = Some(asked);
        set.status.available_replicas = available;
        Arc::new(set)
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        for (own, others, expected) in [(0, 10, 3), (3, 10, 3), (3, 8, 5), (10, 0, 10), (12, 0, 10)]
        {
            assert_eq!(next_of_new(&limits(10, 3, 2), own, others), expected, "{own} {others}");
        }
    }

    #[test]
    fn old_sets_shrink_as_far_as_availability_allows() {
        let check = |old: &[(i64, i64)], new: (i64, i64), expected: &[i64]| {
            let old: Vec<_> = old.iter().map(|(asked, up)| set(*asked, *up)).collect();
            let new = set(new.0, new.1);
            assert_eq!(next_of_old(&limits(10, 3, 2), &old, Some(&new)), expected);
        };
        check(&[(10, 10)], (0, 0), &[8]);
        check(&[(10, 10)], (3, 0), &[8]);
        check(&[(8, 8)], (5, 3), &[5]);
        check(&[(10, 4)], (3, 0), &[8]);
        check(&[(3, 0), (5, 5)], (5, 5), &[0, 3]);
    }

    #[test]
    fn defaults_are_a_quarter_and_never_stand_still() {
        let mut deployment = Deployment::blank();
        deployment.spec.replicas = Some(4);
        assert_eq!(Limits::of(&deployment), limits(4, 1, 1));
        deployment.spec.replicas = Some(1);
        assert_eq!(Limits::of(&deployment), limits(1, 1, 0));
        deployment.spec.replicas = Some(0);
        assert_eq!(Limits::of(&deployment), limits(0, 0, 0));
    }
}
