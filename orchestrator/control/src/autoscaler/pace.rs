//! How fast a workload may follow its metrics: limits, calm and pace.

use jiff::{SignedDuration, Timestamp};
use objects::condition::Condition;
use objects::policy::{HorizontalPodAutoscaler, ScalingRules};

use super::{able, limits};
use crate::view::View;

/// Calm before shrinking, when the autoscaler does not say; upstream's.
const CALM: i64 = 300;

/// What became of what the metrics ask for.
pub(super) struct Settled {
    pub(super) goal: i64,
    /// Whether it was waited, and for what.
    pub(super) calm: Condition,
    /// Whether something held it back, and what.
    pub(super) limit: (bool, &'static str, &'static str),
}

/// Applies limits, calm and pace to what the metrics ask for.
pub(super) fn settle(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    now_has: i64,
    wanted: i64,
    now: Timestamp,
) -> Settled {
    let (least, most) = limits(scaler);
    let asked = wanted;
    let behavior = scaler.spec.behavior.as_ref();
    let up = behavior.and_then(|one| one.scale_up.as_ref());
    let down = behavior.and_then(|one| one.scale_down.as_ref());
    let wanted = wanted.clamp(least, most);
    let window = |rules: Option<&ScalingRules>, default| {
        rules.and_then(|one| one.stabilization_window_seconds).unwrap_or(default)
    };
    let past = view.observed.recommendations.get(&scaler.metadata.uid);
    let since = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(now);
    let within = |seconds: i64| {
        let border = since(seconds);
        past.into_iter().flatten().filter(move |(at, _)| *at > border).map(|(_, size)| *size)
    };
    // Growing waits for the least asked for in its window, shrinking for the most.
    let lowest = within(window(up, 0)).fold(wanted, i64::min);
    let highest = within(window(down, CALM)).fold(wanted, i64::max);
    let calm = now_has.clamp(lowest.min(highest), highest.max(lowest));
    let goal = if now_has < lowest {
        lowest
    } else if now_has > highest {
        highest
    } else {
        calm
    };
    let waits = if goal > wanted {
        let message = "recent recommendations were higher than current one, applying the highest \
                       recent recommendation";
        able(true, "ScaleDownStabilized", message)
    } else if goal < wanted {
        let message = "recent recommendations were lower than current one, applying the lowest \
                       recent recommendation";
        able(true, "ScaleUpStabilized", message)
    } else {
        able(true, "ReadyForNewScale", "recommended size matches current size")
    };
    let floor = pace_down(view, scaler, down, now_has, now).min(now_has);
    let ceiling = pace_up(view, scaler, up, now_has, now).max(now_has);
    let paced = goal.clamp(floor, ceiling);
    let limit = limit((goal, paced), asked, (least, most));
    Settled { goal: paced.clamp(least, most), calm: waits, limit }
}

/// What held back what was asked for.
fn limit(
    (goal, paced): (i64, i64),
    asked: i64,
    (least, most): (i64, i64),
) -> (bool, &'static str, &'static str) {
    if paced < goal {
        let message = "the desired replica count is increasing faster than the maximum scale rate";
        (true, "ScaleUpLimit", message)
    } else if paced > goal {
        let message = "the desired replica count is decreasing faster than the maximum scale rate";
        (true, "ScaleDownLimit", message)
    } else if asked > most {
        let message = "the desired replica count is more than the maximum replica count";
        (true, "TooManyReplicas", message)
    } else if asked < least {
        let message = "the desired replica count is less than the minimum replica count";
        (true, "TooFewReplicas", message)
    } else {
        (false, "DesiredWithinRange", "the desired count is within the acceptable range")
    }
}

/// By how much a workload grew, or shrank, within so many seconds.
fn moved(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    seconds: i64,
    now: Timestamp,
) -> (i64, i64) {
    let border = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(now);
    let all = view.observed.changes.get(&scaler.metadata.uid);
    let recent = all.into_iter().flatten().filter(|(at, _)| *at > border);
    recent.fold((0, 0), |(grown, shrunk), (_, change)| {
        (grown + change.max(&0), shrunk - change.min(&0))
    })
}

/// The least or the most of what policies allow, or what the default allows.
fn choose(
    rules: Option<&ScalingRules>,
    default: &[(&str, i64, i64)],
    by: impl Fn(&str, i64, i64) -> i64,
    widest: fn(i64, i64) -> i64,
    narrowest: fn(i64, i64) -> i64,
) -> Option<i64> {
    let own = rules.map_or(&[][..], |one| one.policies.as_slice());
    let select = rules.and_then(|one| one.select_policy.as_deref());
    let pick = if select == Some("Min") { narrowest } else { widest };
    let own = own.iter().map(|one| by(&one.kind, one.value, one.period_seconds));
    let default = default.iter().map(|(kind, value, period)| by(kind, *value, *period));
    own.reduce(pick).or_else(|| default.reduce(pick))
}

fn is_off(rules: Option<&ScalingRules>) -> bool {
    rules.is_some_and(|one| one.select_policy.as_deref() == Some("Disabled"))
}

/// The most there may be now: each policy counts from the size at the beginning of its period.
/// Without policies the double or four more in 15 seconds, as upstream's default.
fn pace_up(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    rules: Option<&ScalingRules>,
    now_has: i64,
    now: Timestamp,
) -> i64 {
    if is_off(rules) {
        return now_has;
    }
    let by = |kind: &str, value: i64, period: i64| {
        let start = now_has - moved(view, scaler, period, now).0;
        match kind {
            "Pods" => start.saturating_add(value),
            _ => start.saturating_add(start.saturating_mul(value).saturating_add(99) / 100),
        }
    };
    let default = [("Percent", 100, 15), ("Pods", 4, 15)];
    choose(rules, &default, by, i64::max, i64::min).unwrap_or(now_has)
}

/// The fewest there may be now; without policies none at all.
fn pace_down(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    rules: Option<&ScalingRules>,
    now_has: i64,
    now: Timestamp,
) -> i64 {
    if is_off(rules) {
        return now_has;
    }
    let by = |kind: &str, value: i64, period: i64| {
        let start = now_has + moved(view, scaler, period, now).1;
        match kind {
            "Pods" => start.saturating_sub(value),
            _ => start.saturating_mul(100_i64.saturating_sub(value)) / 100,
        }
    };
    choose(rules, &[("Percent", 100, 15)], by, i64::min, i64::max).unwrap_or(0)
}
