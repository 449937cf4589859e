//! Scales workloads by what their pods use.
//!
//! Spec: upstream's horizontal pod autoscaler, v2: CPU and memory of pods or of one container,
//! as utilisation of what is asked for or as an average; pods that are not ready or not
//! measured are assumed to damp a change; tolerance; behaviour with stabilisation windows and
//! policies. *Limits*: metrics of objects, pods and the outside world are not served by us.

mod pace;

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
    /// What was looked at, in upstream's words.
    name: String,
}

/// What the metrics say together.
struct Reckoning {
    wanted: i64,
    readings: Vec<Reading>,
    /// The metric that asks for most.
    name: String,
}

/// What there is to do about a scaler, and to say.
struct Verdict<'a> {
    conditions: Vec<Condition>,
    /// The size to go to, and why.
    goal: Option<(i64, String)>,
    target: Option<Scaled<'a>>,
    readings: Vec<Reading>,
    notes: Vec<(&'static str, String)>,
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
    let about = Target::of(&**scaler);
    let verdict = judge(view, scaler, now);
    for condition in verdict.conditions {
        set_condition(&mut status.conditions, condition, now);
    }
    for (reason, message) in verdict.notes {
        steps.tell(Note::warning(&about, reason, message));
    }
    if let Some(((goal, why), target)) = verdict.goal.zip(verdict.target) {
        status.current_replicas = Some(target.replicas);
        status.desired_replicas = Some(goal);
        status.current_metrics = verdict.readings.into_iter().map(|one| one.current).collect();
        if goal != target.replicas {
            status.last_scale_time = Some(Time::from(now));
            let message = format!("New size: {goal}; reason: {why}");
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
        steps.push(Action::patch_status(about, body));
    }
    steps
}

fn able(good: bool, reason: &str, message: &str) -> Condition {
    Condition::new("AbleToScale", good, reason, message)
}

fn active(good: bool, reason: &str, message: &str) -> Condition {
    Condition::new("ScalingActive", good, reason, message)
}

/// What there is to say about a scaler, and the size it comes to, if any.
fn judge<'a>(view: &'a View, scaler: &HorizontalPodAutoscaler, now: Timestamp) -> Verdict<'a> {
    let mut verdict = Verdict {
        conditions: Vec::new(),
        goal: None,
        target: None,
        readings: Vec::new(),
        notes: Vec::new(),
    };
    let target = match scaled(view, scaler) {
        Ok(target) => target,
        Err(why) => {
            let message =
                format!("the HPA controller was unable to get the target's current scale: {why}");
            verdict.conditions.push(able(false, "FailedGetScale", &message));
            verdict.notes.push(("FailedGetScale", why));
            return verdict;
        }
    };
    let message = "the HPA controller was able to get the target's current scale";
    verdict.conditions.push(able(true, "SucceededGetScale", message));
    let has = target.replicas;
    let (least, most) = limits(scaler);
    if has == 0 && scaler.spec.min_replicas != Some(0) {
        let message = "scaling is disabled since the replica count of the target is zero";
        verdict.conditions.push(active(false, "ScalingDisabled", message));
    } else if has > most || has < least {
        // Whatever the metrics say: the limits were drawn anew.
        let (goal, why) = if has > most {
            (most, "Current number of replicas above Spec.MaxReplicas")
        } else {
            (least, "Current number of replicas below Spec.MinReplicas")
        };
        verdict.conditions.push(rescaled(goal));
        verdict.goal = Some((goal, why.to_owned()));
    } else {
        match reckon(view, scaler, &target, now) {
            Ok(reckoning) => weigh(view, scaler, has, reckoning, now, &mut verdict),
            Err((reason, why, notes)) => {
                let message = format!("the HPA was unable to compute the replica count: {why}");
                verdict.conditions.push(active(false, reason, &message));
                verdict.notes.extend(notes);
            }
        }
    }
    verdict.target = Some(target);
    verdict
}

/// That the size is changed now.
fn rescaled(goal: i64) -> Condition {
    let message = format!("the HPA controller was able to update the target scale to {goal}");
    able(true, "SucceededRescale", &message)
}

/// Brings what the metrics ask for within limits, calm and pace.
fn weigh(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    has: i64,
    reckoning: Reckoning,
    now: Timestamp,
    verdict: &mut Verdict<'_>,
) {
    let Reckoning { wanted, readings, name } = reckoning;
    let message = format!("the HPA was able to successfully calculate a replica count from {name}");
    verdict.conditions.push(active(true, "ValidMetricFound", &message));
    let settled = pace::settle(view, scaler, has, wanted, now);
    let (limited, reason, message) = settled.limit;
    verdict.conditions.push(Condition::new("ScalingLimited", limited, reason, message));
    let goal = settled.goal;
    verdict.conditions.push(if goal == has { settled.calm } else { rescaled(goal) });
    let why = if goal > has {
        format!("{name} above target")
    } else {
        "All metrics below target".to_owned()
    };
    verdict.goal = Some((goal, why));
    verdict.readings = readings;
}

/// Why there is no size: the condition's reason, the sentence, and what to tell.
type Unknown = (&'static str, String, Vec<(&'static str, String)>);

/// What the metrics ask for together.
///
/// Spec: upstream's: the largest of them; with one of them unknown nothing shrinks.
fn reckon(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    target: &Scaled<'_>,
    now: Timestamp,
) -> Result<Reckoning, Unknown> {
    let (mut readings, mut failures) = (Vec::new(), Vec::new());
    for reading in readings_of(view, scaler, target, now) {
        match reading {
            Ok(reading) => readings.push(reading),
            Err(failure) => failures.push(failure),
        }
    }
    // Of equals the first.
    let first = readings.iter().rev().max_by_key(|one| one.wanted);
    let found = first.map(|one| (one.wanted, one.name.clone()));
    let shrinks = found.as_ref().is_none_or(|(wanted, _)| *wanted < target.replicas);
    match (found, failures.first()) {
        (_, Some((reason, why))) if shrinks => {
            let count = failures.len();
            let all = count + readings.len();
            let mut notes = failures.clone();
            let message =
                format!("invalid metrics ({count} invalid out of {all}), first error is: {why}");
            notes.push(("FailedComputeMetricsReplicas", message));
            Err((*reason, why.clone(), notes))
        }
        (Some((wanted, name)), _) => Ok(Reckoning { wanted, readings, name }),
        // Without any failure there is a reading: every scaler has a metric.
        (None, _) => Err(("InvalidMetricSourceType", "no metric".to_owned(), Vec::new())),
    }
}

/// What the metrics ask for, before limits and calm; `None` when nothing is known.
#[must_use]
pub fn recommend(view: &View, scaler: &HorizontalPodAutoscaler, now: Timestamp) -> Option<i64> {
    let target = scaled(view, scaler).ok()?;
    let (least, most) = limits(scaler);
    let reckoning = reckon(view, scaler, &target, now).ok()?;
    Some(reckoning.wanted.clamp(least, most))
}

fn limits(scaler: &HorizontalPodAutoscaler) -> (i64, i64) {
    let most = scaler.spec.max_replicas.max(1);
    (scaler.spec.min_replicas.unwrap_or(1).clamp(0, most), most)
}

/// The workload a scaler names, or why it cannot be had.
fn scaled<'a>(view: &'a View, scaler: &HorizontalPodAutoscaler) -> Result<Scaled<'a>, String> {
    let target = &scaler.spec.scale_target_ref;
    let (ns, name) = (&scaler.metadata.namespace, &target.name);
    let of = |kind: &'static Kind,
              meta: &'a ObjectMeta,
              replicas: Option<i64>,
              selector: Option<&objects::LabelSelector>|
     -> Result<Scaled<'a>, String> {
        let selector = family::selector(selector);
        let selector = selector.ok_or_else(|| "selector is required".to_owned())?;
        Ok(Scaled { kind, meta, replicas: replicas.unwrap_or(1), selector })
    };
    let missing = |kind: &Kind| format!("{} \"{name}\" not found", kind.qualified_plural());
    match target.kind.as_str() {
        "Deployment" => {
            let one = view.deployments.get(ns, name).ok_or_else(|| missing(&kind::DEPLOYMENT))?;
            of(&kind::DEPLOYMENT, &one.metadata, one.spec.replicas, one.spec.selector.as_ref())
        }
        "ReplicaSet" => {
            let one = view.replica_sets.get(ns, name).ok_or_else(|| missing(&kind::REPLICA_SET))?;
            of(&kind::REPLICA_SET, &one.metadata, one.spec.replicas, one.spec.selector.as_ref())
        }
        "StatefulSet" => {
            let one =
                view.stateful_sets.get(ns, name).ok_or_else(|| missing(&kind::STATEFUL_SET))?;
            of(&kind::STATEFUL_SET, &one.metadata, one.spec.replicas, one.spec.selector.as_ref())
        }
        "ReplicationController" => {
            let found = view.replication_controllers.get(ns, name);
            let one = found.ok_or_else(|| missing(&kind::REPLICATION_CONTROLLER))?;
            let selector = objects::LabelSelector::from_labels(one.spec.selector.clone());
            let kind = &kind::REPLICATION_CONTROLLER;
            of(kind, &one.metadata, one.spec.replicas, Some(&selector))
        }
        other => {
            Err(format!("no matches for kind \"{other}\" in version \"{}\"", target.api_version))
        }
    }
}

/// What a metric says, or the reason and the sentence why it says nothing.
type Read = Result<Reading, (&'static str, String)>;

fn readings_of(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    target: &Scaled<'_>,
    now: Timestamp,
) -> Vec<Read> {
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
    metrics.iter().map(|one| read(view, scaler, target, &pods, one, now)).collect()
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

/// What one metric asks for, or why that is not known.
fn read(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    target: &Scaled<'_>,
    pods: &[&Arc<Pod>],
    spec: &MetricSpec,
    now: Timestamp,
) -> Read {
    let Some(metric) = spec.resource.as_ref().or(spec.container_resource.as_ref()) else {
        let reason = match spec.kind.as_str() {
            "Object" => "FailedGetObjectMetric",
            "External" => "FailedGetExternalMetric",
            _ => "FailedGetPodsMetric",
        };
        let why = format!("metrics of type {:?} are served by nobody here", spec.kind);
        return Err((reason, why));
    };
    let name = name_of(spec, metric);
    let reason = if spec.container_resource.is_some() {
        "FailedGetContainerResourceMetric"
    } else {
        "FailedGetResourceMetric"
    };
    let resource = &metric.name;
    let unknown = |why: String| (reason, format!("failed to get {resource} utilization: {why}"));
    let mut sample = Sample::of(view, pods, metric, now);
    let (missing, unready) =
        (std::mem::take(&mut sample.missing), std::mem::take(&mut sample.unready));
    let aim = metric.target.average_value.as_ref();
    let aim = aim.map(|one| if metric.name == "cpu" { one.milli_value() } else { one.value() });
    let percent = metric.target.average_utilization.unwrap_or(80).max(1);
    if sample.measured == 0 && unready.is_empty() {
        let why = "no metrics returned from resource metrics API";
        return Err(unknown(format!("unable to get metrics for resource {resource}: {why}")));
    }
    if sample.measured == 0 {
        let why = "did not receive metrics for targeted pods (pods might be unready)";
        return Err(unknown(why.to_owned()));
    }
    if let Some(why) = unsaid(pods, metric).filter(|_| aim.is_none()) {
        return Err(unknown(why));
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
    Ok(Reading { wanted: if stays { target.replicas } else { size }, current, name })
}

/// The metric in upstream's words.
fn name_of(spec: &MetricSpec, metric: &ResourceMetric) -> String {
    let what = if spec.container_resource.is_some() { "container resource" } else { "resource" };
    let resource = &metric.name;
    match metric.target.average_value {
        Some(_) => format!("{resource} {what}"),
        None => format!("{resource} {what} utilization (percentage of request)"),
    }
}

/// Which container says not what it asks for; without that there is no share of it.
fn unsaid(pods: &[&Arc<Pod>], metric: &ResourceMetric) -> Option<String> {
    let resource = &metric.name;
    for pod in pods {
        let name = &pod.metadata.name;
        let all = pod.spec.containers.iter();
        let mut looked_at = all
            .filter(|one| metric.container.is_empty() || metric.container == one.name)
            .peekable();
        if looked_at.peek().is_none() {
            return Some(format!("container {} not found in Pod {name}", metric.container));
        }
        let silent = looked_at.find(|one| !one.resources.requests.contains_key(resource));
        if let Some(one) = silent {
            let container = &one.name;
            return Some(format!(
                "missing request for {resource} in container {container} of Pod {name}"
            ));
        }
    }
    None
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
    // A part of what is used is no measure of the whole.
    all.map(|(_, amounts): (_, &BTreeMap<String, i64>)| amounts.get(resource).copied()).sum()
}

#[cfg(test)]
mod tests;
