//! Scales workloads by what their pods use.
//!
//! Spec: upstream's horizontal pod autoscaler, v2: CPU and memory of pods or of one container,
//! as utilisation of what is asked for or as an average; pods that are not ready or not
//! measured are assumed to damp a change; tolerance; behaviour with stabilisation windows and
//! policies. *Limits*: metrics of objects, pods and the outside world are not served by us.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::kind::{self, Kind};
use objects::meta::ObjectMeta;
use objects::pod::Pod;
use objects::policy::{HorizontalPodAutoscaler, MetricSpec, ResourceMetric, ScalingRules};
use objects::selector::Selector;
use objects::time::Time;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::family;
use crate::scaling::Usage;
use crate::view::{Key, View};

/// How often a workload is looked at; upstream's.
const PERIOD: SignedDuration = SignedDuration::from_secs(15);
/// A change smaller than this share is none, in thousandths; upstream's.
const TOLERANCE: i64 = 100;
/// Calm before shrinking, when the autoscaler does not say; upstream's.
const CALM: i64 = 300;

/// Seconds after its start during which what a pod uses may not be what it will use; upstream's.
const START: i64 = 300;
/// A pod that was last found unready this soon after its start was never ready; upstream's.
const NEVER: i64 = 30;

/// What is scaled.
struct Scaled<'a> {
    kind: &'static Kind,
    meta: &'a ObjectMeta,
    replicas: i64,
    selector: Selector,
}

/// What one metric says.
struct Reading {
    wanted: i64,
    current: Value,
}

/// Plans the steps for one autoscaler.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(scaler) = view.autoscalers.get(&key.namespace, &key.name) else { return steps };
    if scaler.metadata.is_deleting() {
        return steps;
    }
    steps.look_again(now.saturating_add(PERIOD).unwrap_or(now));
    let mut status = scaler.status.clone();
    status.observed_generation = Some(scaler.metadata.generation);
    let (said, resized) = judge(view, scaler, now);
    for condition in said {
        set_condition(&mut status.conditions, condition, now);
    }
    if let Some((goal, target, readings)) = resized {
        status.current_replicas = Some(target.replicas);
        status.desired_replicas = Some(goal);
        status.current_metrics = readings.into_iter().map(|one| one.current).collect();
        if goal != target.replicas {
            status.last_scale_time = Some(Time::from(now));
            let about = Target::of(&**scaler);
            let message = format!("New size: {goal}; reason: resource utilization");
            let note = Note::normal(&about, "SuccessfulRescale", message);
            let object = Target::of_kind(target.kind, target.meta);
            steps.push(Action::patch(object, json!({"spec": {"replicas": goal}})).telling(note));
        }
    }
    if status != scaler.status {
        let body = json!({
            "observedGeneration": status.observed_generation,
            "lastScaleTime": status.last_scale_time,
            "currentReplicas": status.current_replicas.unwrap_or(0),
            "desiredReplicas": status.desired_replicas.unwrap_or(0),
            "currentMetrics": status.current_metrics,
            "conditions": status.conditions,
        });
        steps.push(Action::patch_status(Target::of(&**scaler), body));
    }
    steps
}

/// A size to go to, what is to change size, and why.
type Resizing<'a> = (i64, Scaled<'a>, Vec<Reading>);

/// What there is to say about a scaler, and the size it comes to, if any.
fn judge<'a>(
    view: &'a View,
    scaler: &HorizontalPodAutoscaler,
    now: Timestamp,
) -> (Vec<Condition>, Option<Resizing<'a>>) {
    let able = |good, reason, message| Condition::new("AbleToScale", good, reason, message);
    let active = |good, reason, message| Condition::new("ScalingActive", good, reason, message);
    let Some(target) = scaled(view, scaler) else {
        let message = "the HPA controller was unable to get the target's current scale";
        return (vec![able(false, "FailedGetScale", message)], None);
    };
    let message = "the HPA controller was able to get the target's current scale";
    let mut said = vec![able(true, "SucceededGetScale", message)];
    if target.replicas == 0 && scaler.spec.min_replicas != Some(0) {
        let message = "scaling is disabled since the replica count of the target is zero";
        said.push(active(false, "ScalingDisabled", message));
        return (said, None);
    }
    let (least, most) = limits(scaler);
    if target.replicas > most || target.replicas < least {
        // Whatever the metrics say: the limits were drawn anew.
        let (reason, message) = if target.replicas > most {
            ("TooManyReplicas", "the desired replica count is more than the maximum replica count")
        } else {
            ("TooFewReplicas", "the desired replica count is less than the minimum replica count")
        };
        said.push(Condition::new("ScalingLimited", true, reason, message));
        return (said, Some((target.replicas.clamp(least, most), target, Vec::new())));
    }
    let readings = readings(view, scaler, &target, now);
    let Some(wanted) = readings.iter().map(|one| one.wanted).max() else {
        let message =
            "the HPA was unable to compute the replica count: no metrics of its pods are known";
        said.push(active(false, "FailedGetResourceMetric", message));
        return (said, None);
    };
    let message =
        "the HPA was able to successfully calculate a replica count from a resource metric";
    said.push(active(true, "ValidMetricFound", message));
    let (limited, reason, message) = if wanted > most {
        let message = "the desired replica count is more than the maximum replica count";
        (true, "TooManyReplicas", message)
    } else if wanted < least {
        let message = "the desired replica count is less than the minimum replica count";
        (true, "TooFewReplicas", message)
    } else {
        (false, "DesiredWithinRange", "the desired count is within the acceptable range")
    };
    said.push(Condition::new("ScalingLimited", limited, reason, message));
    let goal = settle(view, scaler, target.replicas, wanted, now);
    (said, Some((goal, target, readings)))
}

/// What the metrics ask for, before limits and calm; `None` when nothing is known.
#[must_use]
pub fn recommend(view: &View, scaler: &HorizontalPodAutoscaler, now: Timestamp) -> Option<i64> {
    let target = scaled(view, scaler)?;
    let readings = readings(view, scaler, &target, now);
    let (least, most) = limits(scaler);
    readings.into_iter().map(|one| one.wanted).max().map(|wanted| wanted.clamp(least, most))
}

fn limits(scaler: &HorizontalPodAutoscaler) -> (i64, i64) {
    let most = scaler.spec.max_replicas.max(1);
    (scaler.spec.min_replicas.unwrap_or(1).clamp(0, most), most)
}

fn scaled<'a>(view: &'a View, scaler: &HorizontalPodAutoscaler) -> Option<Scaled<'a>> {
    let target = &scaler.spec.scale_target_ref;
    let (ns, name) = (&scaler.metadata.namespace, &target.name);
    let of = |kind, meta, replicas: Option<i64>, selector: Option<&objects::LabelSelector>| {
        let selector = family::selector(selector)?;
        Some(Scaled { kind, meta, replicas: replicas.unwrap_or(1), selector })
    };
    match target.kind.as_str() {
        "Deployment" => {
            let one = view.deployments.get(ns, name)?;
            of(&kind::DEPLOYMENT, &one.metadata, one.spec.replicas, one.spec.selector.as_ref())
        }
        "ReplicaSet" => {
            let one = view.replica_sets.get(ns, name)?;
            of(&kind::REPLICA_SET, &one.metadata, one.spec.replicas, one.spec.selector.as_ref())
        }
        "StatefulSet" => {
            let one = view.stateful_sets.get(ns, name)?;
            of(&kind::STATEFUL_SET, &one.metadata, one.spec.replicas, one.spec.selector.as_ref())
        }
        _ => None,
    }
}

fn readings(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    target: &Scaled<'_>,
    now: Timestamp,
) -> Vec<Reading> {
    let pods = view.pods.inside(&scaler.metadata.namespace);
    let pods: Vec<&Arc<Pod>> = pods
        .filter(|pod| {
            !pod.is_finished()
                && !pod.metadata.is_deleting()
                && target.selector.matches(&pod.metadata.labels)
        })
        .collect();
    // An autoscaler without metrics goes by 80 % of the CPU asked for, as upstream's default.
    let default = [default_metric()];
    let metrics = if scaler.spec.metrics.is_empty() { &default[..] } else { &scaler.spec.metrics };
    metrics.iter().filter_map(|one| read(view, scaler, target, &pods, one, now)).collect()
}

fn default_metric() -> MetricSpec {
    let mut metric = ResourceMetric { name: "cpu".to_owned(), ..ResourceMetric::default() };
    metric.target.average_utilization = Some(80);
    MetricSpec { kind: "Resource".to_owned(), resource: Some(metric), ..MetricSpec::default() }
}

/// Pods by what is known of them, for one metric.
#[derive(Default)]
struct Sample {
    used: i64,
    asked: i64,
    /// Pods that are measured and count.
    measured: i64,
    /// What those ask for that are not measured.
    missing: Vec<i64>,
    /// What those ask for that are on their way up.
    unready: Vec<i64>,
}

impl Sample {
    fn of(view: &View, pods: &[&Arc<Pod>], metric: &ResourceMetric, now: Timestamp) -> Self {
        let mut sample = Self::default();
        let container = (!metric.container.is_empty()).then_some(metric.container.as_str());
        for pod in pods {
            let asked = request(pod, &metric.name, container);
            let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            let known = view.observed.usage.get(&key);
            let amount = known.and_then(|one| usage(one, &metric.name, container));
            if pod.status.phase == "Pending" {
                sample.unready.push(asked);
                continue;
            }
            let (Some(known), Some(amount)) = (known, amount) else {
                sample.missing.push(asked);
                continue;
            };
            // A pod on its way up burns what it will not burn later.
            if metric.name == "cpu" && is_starting(pod, known, now) {
                sample.unready.push(asked);
                continue;
            }
            sample.used = sample.used.saturating_add(amount);
            sample.asked = sample.asked.saturating_add(asked);
            sample.measured += 1;
        }
        sample
    }

    /// Adds pods as if they used so much.
    fn add(&mut self, asked: &[i64], used: impl Fn(i64) -> i64) {
        for one in asked {
            self.used = self.used.saturating_add(used(*one));
            self.asked = self.asked.saturating_add(*one);
            self.measured += 1;
        }
    }
}

/// Is what a pod uses not yet what it will use?
///
/// Spec: upstream's: within five minutes of its start a pod must be ready, and measured since;
/// later it must have been ready at least once.
fn is_starting(pod: &Pod, usage: &Usage, now: Timestamp) -> bool {
    let ready = find_condition(&pod.status.conditions, "Ready");
    let (Some(ready), Some(start)) = (ready, pod.status.start_time) else { return true };
    let after = |seconds: i64| start.0.saturating_add(SignedDuration::from_secs(seconds)).ok();
    let unready = ready.status == "False";
    let since = ready.last_transition_time.map(|at| at.0);
    if after(START).is_some_and(|end| end > now) {
        let window = SignedDuration::from_secs(usage.window_seconds);
        let fresh = since.and_then(|at| at.saturating_add(window).ok());
        unready || usage.at.zip(fresh).is_some_and(|(at, fresh)| at < fresh)
    } else {
        unready && since.zip(after(NEVER)).is_some_and(|(since, early)| early > since)
    }
}

/// How much is used of what is wanted, as a fraction.
#[derive(Clone, Copy)]
struct Ratio(i64, i64);

impl Ratio {
    fn of(sample: &Sample, aim: Option<i64>, percent: i64) -> Self {
        let count = sample.measured.max(1);
        match aim {
            Some(aim) => Self(sample.used / count, aim.max(1)),
            None => Self(sample.used.saturating_mul(100) / sample.asked.max(1), percent),
        }
    }

    const fn is_below(self) -> bool {
        self.0 < self.1
    }

    const fn is_above(self) -> bool {
        self.0 > self.1
    }

    /// Is it near enough to one? Up and down in thousandths.
    const fn is_borne(self, up: i64, down: i64) -> bool {
        let thousands = self.0.saturating_mul(1000);
        thousands <= self.1.saturating_mul(1000 + up)
            && thousands >= self.1.saturating_mul(1000 - down)
    }

    /// So many pods times it; a part of a pod is a pod.
    const fn of_pods(self, count: i64) -> i64 {
        self.0.saturating_mul(count).saturating_add(self.1 - 1) / self.1
    }
}

/// What one metric asks for; `None` when none of the pods is measured.
fn read(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    target: &Scaled<'_>,
    pods: &[&Arc<Pod>],
    spec: &MetricSpec,
    now: Timestamp,
) -> Option<Reading> {
    let metric = spec.resource.as_ref().or(spec.container_resource.as_ref())?;
    let mut sample = Sample::of(view, pods, metric, now);
    let (missing, unready) =
        (std::mem::take(&mut sample.missing), std::mem::take(&mut sample.unready));
    let aim = metric.target.average_value.as_ref();
    let aim = aim.map(|one| if metric.name == "cpu" { one.milli_value() } else { one.value() });
    let percent = metric.target.average_utilization.unwrap_or(80).max(1);
    if sample.measured == 0 || (aim.is_none() && sample.asked == 0) {
        return None;
    }
    let first = Ratio::of(&sample, aim, percent);
    let current = current(spec, metric, &sample);
    let behavior = scaler.spec.behavior.as_ref();
    let borne = |rules: Option<&ScalingRules>| {
        rules.and_then(|one| one.tolerance.as_ref()).map_or(TOLERANCE, |one| one.milli_value())
    };
    let up = borne(behavior.and_then(|one| one.scale_up.as_ref()));
    let down = borne(behavior.and_then(|one| one.scale_down.as_ref()));
    if first.is_below() {
        // Shrinking: the unmeasured might use all they ask for.
        let full = |asked: i64| aim.unwrap_or(asked.saturating_mul(percent.max(100)) / 100);
        sample.add(&missing, full);
    } else if first.is_above() {
        // Growing: they, and those on their way up, might be idle.
        sample.add(&missing, |_| 0);
        sample.add(&unready, |_| 0);
    }
    let second = Ratio::of(&sample, aim, percent);
    let turned = (first.is_below() && second.is_above()) || (first.is_above() && second.is_below());
    let size = second.of_pods(sample.measured);
    let against = (second.is_below() && size > target.replicas)
        || (second.is_above() && size < target.replicas);
    let stays = second.is_borne(up, down) || turned || against;
    Some(Reading { wanted: if stays { target.replicas } else { size }, current })
}

fn current(spec: &MetricSpec, metric: &ResourceMetric, sample: &Sample) -> Value {
    let (used, asked) = (sample.used, sample.asked);
    let average = used / sample.measured.max(1);
    let average = if metric.name == "cpu" { format!("{average}m") } else { average.to_string() };
    let mut now = json!({"averageValue": average});
    if metric.target.average_utilization.is_some()
        && asked > 0
        && let Some(fields) = now.as_object_mut()
    {
        fields.insert("averageUtilization".to_owned(), json!(used.saturating_mul(100) / asked));
    }
    if spec.container_resource.is_some() {
        let (name, container) = (&metric.name, &metric.container);
        return json!({"type": "ContainerResource", "containerResource": {"name": name, "container": container, "current": now}});
    }
    json!({"type": "Resource", "resource": {"name": metric.name, "current": now}})
}

fn request(pod: &Pod, resource: &str, container: Option<&str>) -> i64 {
    let all =
        pod.spec.containers.iter().filter(|one| container.is_none_or(|name| name == one.name));
    all.filter_map(|one| one.resources.requests.get(resource))
        .map(|one| if resource == "cpu" { one.milli_value() } else { one.value() })
        .sum()
}

fn usage(usage: &Usage, resource: &str, container: Option<&str>) -> Option<i64> {
    let all = usage.containers.iter();
    let mut all = all.filter(|(name, _)| container.is_none_or(|wanted| wanted == *name)).peekable();
    all.peek()?;
    Some(all.filter_map(|(_, amounts): (_, &BTreeMap<String, i64>)| amounts.get(resource)).sum())
}

/// Applies limits, calm and pace to what the metrics ask for.
fn settle(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    now_has: i64,
    wanted: i64,
    now: Timestamp,
) -> i64 {
    let (least, most) = limits(scaler);
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
    let floor = pace_down(view, scaler, down, now_has, now);
    let ceiling = pace_up(view, scaler, up, now_has, now);
    goal.clamp(floor.min(now_has), ceiling.max(now_has)).clamp(least, most)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::Observed;
    use crate::view::Set;

    /// Pods of 100m each that use so many thousandths; returns the size after this round.
    #[track_caller]
    fn check(spec: Value, used: &[i64], past: &[(i64, i64)], expected: i64) {
        check_paced(spec, used, past, &[], expected);
    }

    /// The same after the size changed so many seconds ago by so much.
    #[track_caller]
    fn check_paced(
        spec: Value,
        used: &[i64],
        past: &[(i64, i64)],
        changes: &[(i64, i64)],
        expected: i64,
    ) {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let mut scaler = json!({
            "metadata": {"name": "s", "namespace": "n", "uid": "u"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 10,
                "metrics": [{"type": "Resource", "resource": {
                    "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50},
                }}],
            },
        });
        crate::world::merge(&mut scaler["spec"], &spec);
        let deployment = json!({
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {"replicas": used.len(), "selector": {"matchLabels": {"app": "web"}}},
        });
        let mut observed = Observed::default();
        let mut pods = Vec::new();
        for (at, amount) in used.iter().enumerate() {
            let name = format!("web-{at}");
            pods.push(serde_json::from_value::<Pod>(json!({
                "metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
                "status": {
                    "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            })).unwrap());
            if *amount >= 0 {
                let amounts = [("cpu".to_owned(), *amount)].into();
                let usage =
                    Usage { containers: [("c".to_owned(), amounts)].into(), ..Usage::default() };
                observed.usage.insert(("n".to_owned(), name), usage);
            }
        }
        let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap();
        let past = past.iter().map(|(seconds, size)| (ago(*seconds), *size)).collect();
        observed.recommendations.insert("u".to_owned(), past);
        let changes = changes.iter().map(|(seconds, by)| (ago(*seconds), *by)).collect();
        observed.changes.insert("u".to_owned(), changes);
        let view = View {
            pods: pods.into_iter().map(Arc::new).collect(),
            deployments: Set::from_iter([Arc::new(serde_json::from_value(deployment).unwrap())]),
            autoscalers: Set::from_iter([Arc::new(serde_json::from_value(scaler).unwrap())]),
            observed: Arc::new(observed),
            ..View::default()
        };
        let steps = reconcile(&view, &Key::new("n", "s"), now);
        let mut sizes = steps.actions.iter().filter_map(|action| match action {
            Action::Patch { body, .. } => body.pointer("/spec/replicas").and_then(Value::as_i64),
            _ => None,
        });
        assert_eq!(sizes.next_back().unwrap_or(i64::try_from(used.len()).unwrap()), expected);
    }

    #[test]
    fn the_size_follows_what_is_used() {
        check(json!({}), &[100, 100], &[], 4);
        check(json!({}), &[52, 53], &[], 2);
        check(json!({}), &[90], &[], 2);
        check(json!({"maxReplicas": 3}), &[100, 100], &[], 3);
        check(json!({}), &[20, 20, 20, 20], &[], 2);
        check(json!({"minReplicas": 3}), &[1, 1, 1, 1], &[], 3);
        check(json!({}), &[-1, -1], &[], 2);
    }

    #[test]
    fn unmeasured_pods_damp_a_change() {
        check(json!({}), &[100, -1], &[], 2);
        check(json!({}), &[100, 100, 100, -1], &[], 6);
        check(json!({}), &[10, -1], &[], 2);
    }

    #[test]
    fn shrinking_waits_for_calm_and_growth_keeps_a_pace() {
        check(json!({}), &[20, 20, 20, 20], &[(200, 4)], 4);
        check(json!({}), &[20, 20, 20, 20], &[(400, 4)], 2);
        let calm = json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}});
        check(calm, &[20, 20, 20, 20], &[(200, 4)], 2);
        let slow = json!({"behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}});
        check(slow, &[20, 20, 20, 20], &[], 3);
        let off = json!({"behavior": {"scaleUp": {"selectPolicy": "Disabled"}}});
        check(off, &[100, 100], &[], 2);
        check(json!({"maxReplicas": 100}), &[500, 500], &[], 6);
    }

    #[test]
    fn a_policy_counts_from_the_size_at_the_beginning_of_its_period() {
        let up = |policies: Value, select: &str| {
            json!({"maxReplicas": 50, "behavior": {"scaleUp": {
                "policies": policies, "selectPolicy": select,
            }}})
        };
        let pods = json!([{"type": "Pods", "value": 3, "periodSeconds": 60}]);
        check_paced(up(pods.clone(), "Max"), &[500; 5], &[], &[], 8);
        check_paced(up(pods.clone(), "Max"), &[500; 5], &[], &[(30, 2)], 6);
        check_paced(up(pods.clone(), "Max"), &[500; 5], &[], &[(30, 3)], 5);
        check_paced(up(pods, "Max"), &[500; 5], &[], &[(90, 3)], 8);
        let both = json!([
            {"type": "Pods", "value": 1, "periodSeconds": 60},
            {"type": "Percent", "value": 50, "periodSeconds": 60},
        ]);
        check_paced(up(both.clone(), "Max"), &[500; 5], &[], &[], 8);
        check_paced(up(both, "Min"), &[500; 5], &[], &[], 6);
        let down = json!({"behavior": {"scaleDown": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
        }}});
        check_paced(down.clone(), &[1; 9], &[], &[], 8);
        check_paced(down, &[1; 9], &[], &[(20, -1)], 9);
    }

    #[test]
    fn tolerance_is_what_the_rules_say() {
        check(json!({}), &[54, 54, 54], &[], 3);
        let strict = json!({"behavior": {"scaleUp": {"tolerance": "50m"}}});
        check(strict, &[54, 54, 54], &[], 4);
        let loose = json!({"behavior": {"scaleUp": {"tolerance": "1"}}});
        check(loose, &[90, 90, 90], &[], 3);
    }

    #[test]
    fn limits_hold_also_without_metrics() {
        check(json!({"maxReplicas": 2}), &[-1, -1, -1], &[], 2);
        check(json!({"minReplicas": 4}), &[-1, -1, -1], &[], 4);
    }
}
