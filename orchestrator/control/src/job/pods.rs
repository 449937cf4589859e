//! How many pods a job should have now, and which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::batch::JobStatus;
use objects::condition::find_condition;
use objects::kind;
use objects::pod::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use serde_json::{Value, json};

use super::count::Counted;
use super::{TRACKING, Work, index, policy};
use crate::action::{Action, Note, Steps, Target};
use crate::family;

/// Pods made or deleted in one round.
const BURST: usize = 500;
/// The wait after the first failure; each further one doubles it.
const BACKOFF: i64 = 10;
/// The longest wait.
const BACKOFF_MAX: i64 = 600;
/// The variable by which containers know their index.
const ENV: &str = "JOB_COMPLETION_INDEX";

/// Plans the pods to make or to delete.
pub(super) fn manage(work: &Work<'_>, status: &JobStatus, counted: &Counted, steps: &mut Steps) {
    let spec = &work.job.spec;
    let active: Vec<&Arc<Pod>> = work.active().collect();
    let count = i64::try_from(active.len()).unwrap_or(i64::MAX);
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        None if counted.succeeded > 0 => count.min(parallelism),
        None => parallelism,
        Some(all) => {
            let given_up = i64::try_from(counted.given_up.len()).unwrap_or(i64::MAX);
            (all - counted.succeeded - given_up).clamp(0, parallelism)
        }
    };
    let surplus = usize::try_from(count - wanted).unwrap_or(0);
    let doubled = doubled(work, &active);
    if surplus > 0 || !doubled.is_empty() {
        let mut ranked = active.clone();
        ranked.sort_by_key(|pod| {
            let index = std::cmp::Reverse(index::of(pod));
            (
                !doubled.contains(pod.metadata.uid.as_str()),
                pod.is_ready(),
                pod.is_bound(),
                index,
                std::cmp::Reverse(pod.metadata.creation_timestamp),
            )
        });
        for pod in ranked.into_iter().take(surplus.max(doubled.len()).min(BURST)) {
            let message = format!("Deleted pod: {}", pod.metadata.name);
            let note = Note::normal(&Target::of(work.job), "SuccessfulDelete", message);
            steps.push(Action::delete(Target::of(&**pod)).telling(note));
        }
        return;
    }
    let held = if work.replaces_only_ended() { work.terminating() } else { 0 };
    let room = usize::try_from(wanted - count - held).unwrap_or(0).min(BURST);
    if room == 0 || status.start_time.is_none() {
        return;
    }
    if work.job.is_indexed() {
        add_indexes(work, counted, room, steps);
    } else if let Some(due) = due(work.pods.iter().copied(), work.now) {
        steps.look_again(due);
    } else {
        for _ in 0..room {
            steps.push(create(work, None, 0));
        }
    }
}

/// Pods that work on an index that an older one works on too: it came about when an answer of the
/// server was lost.
fn doubled<'a>(work: &Work<'_>, active: &[&'a Arc<Pod>]) -> BTreeSet<&'a str> {
    if !work.job.is_indexed() {
        return BTreeSet::new();
    }
    let mut oldest: Vec<&'a Arc<Pod>> = active.to_vec();
    oldest.sort_by_key(|pod| (pod.metadata.creation_timestamp, pod.metadata.name.clone()));
    let mut taken = BTreeSet::new();
    oldest.retain(|pod| index::of(pod).is_some_and(|at| !taken.insert(at)));
    oldest.into_iter().map(|pod| pod.metadata.uid.as_str()).collect()
}

/// When a pod ended.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.container_statuses.iter();
    let last = containers
        .filter_map(|one| one.state.terminated.as_ref()?.finished_at)
        .max()
        .map(|at| at.0);
    let ready = || find_condition(&pod.status.conditions, "Ready")?.last_transition_time;
    last.or_else(|| ready().map(|at| at.0))
        .or_else(|| pod.metadata.deletion_timestamp.map(|at| at.0))
        .or_else(|| pod.metadata.creation_timestamp.map(|at| at.0))
}

/// When the next pod may be made, if that is later: failures since the last success count.
fn due<'a>(pods: impl Iterator<Item = &'a Arc<Pod>> + Clone, now: Timestamp) -> Option<Timestamp> {
    let success = pods.clone().filter(|pod| pod.status.phase == "Succeeded");
    let success = success.filter_map(|pod| ended(pod)).max();
    let failed = pods.filter(|pod| pod.status.phase == "Failed").filter_map(|pod| ended(pod));
    let failed: Vec<Timestamp> =
        failed.filter(|at| success.is_none_or(|last| *at > last)).collect();
    let last = failed.iter().max()?;
    wait(*last, failed.len(), now)
}

fn wait(last: Timestamp, failures: usize, now: Timestamp) -> Option<Timestamp> {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let seconds = BACKOFF.saturating_mul(1_i64 << doublings).min(BACKOFF_MAX);
    let due = last.saturating_add(SignedDuration::from_secs(seconds)).ok()?;
    (due > now).then_some(due)
}

/// Makes pods for the lowest indexes that nobody works on.
fn add_indexes(work: &Work<'_>, counted: &Counted, room: usize, steps: &mut Steps) {
    let all = work.job.spec.completions.unwrap_or(0);
    let mut taken: BTreeSet<i64> = counted.completed.union(&counted.given_up).copied().collect();
    let mut failed: BTreeMap<i64, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in &work.pods {
        let Some(at) = index::of(pod) else { continue };
        let ends = pod.metadata.is_deleting() && !work.replaces_only_ended();
        if pod.status.phase == "Failed" {
            failed.entry(at).or_default().push(pod);
        } else if !pod.is_finished() && !ends {
            taken.insert(at);
        }
    }
    let per_index = work.job.spec.backoff_limit_per_index.is_some();
    if !per_index && let Some(due) = due(work.pods.iter().copied(), work.now) {
        steps.look_again(due);
        return;
    }
    let mut left = room;
    for at in (0..all).filter(|at| !taken.contains(at)) {
        if left == 0 {
            return;
        }
        let before = failed.get(&at).map_or(&[][..], Vec::as_slice);
        let counting = before.iter().filter(|pod| !policy::is_ignored(work, pod));
        let failures = counting.map(|pod| policy::failures_before(pod) + 1).max().unwrap_or(0);
        if per_index && let Some(last) = before.iter().filter_map(|pod| ended(pod)).max() {
            let times = usize::try_from(failures).unwrap_or(0);
            if let Some(due) = wait(last, times, work.now) {
                steps.look_again(due);
                continue;
            }
        }
        steps.push(create(work, Some(at), failures));
        left -= 1;
    }
}

fn create(work: &Work<'_>, at: Option<i64>, failures: i64) -> Action {
    let job = work.job;
    let mut template = job.spec.template.clone();
    let stem: String = job.metadata.name.chars().take(if at.is_some() { 50 } else { 57 }).collect();
    let mut stem = format!("{stem}-");
    template.metadata.finalizers.push(TRACKING.to_owned());
    if let Some(at) = at {
        let text = at.to_string();
        template.metadata.annotations.insert(index::INDEX.to_owned(), text.clone());
        template.metadata.labels.insert(index::INDEX.to_owned(), text);
        if job.spec.backoff_limit_per_index.is_some() {
            let annotations = &mut template.metadata.annotations;
            annotations.insert(policy::FAILURES.to_owned(), failures.to_string());
            annotations.entry(policy::IGNORED.to_owned()).or_insert_with(|| "0".to_owned());
        }
        if template.spec.hostname.is_empty() {
            template.spec.hostname = format!("{}-{at}", job.metadata.name);
        }
        stem = format!("{stem}{at}-");
        let path = format!("metadata.labels['{}']", index::INDEX);
        let spec = &mut template.spec;
        for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
            if container.env.iter().any(|one| one.name == ENV) {
                continue;
            }
            let field =
                ObjectFieldSelector { field_path: path.clone(), ..ObjectFieldSelector::default() };
            let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
            let name = ENV.to_owned();
            container.env.push(EnvVar { name, value_from: Some(source), ..EnvVar::default() });
        }
    }
    let mut object = family::pod_of(&template, &job.metadata, &kind::JOB);
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("generateName".to_owned(), json!(stem));
    }
    let note = Note::normal(&Target::of(job), "SuccessfulCreate", "Created pod: ");
    Action::create(&kind::POD, &job.metadata.namespace, object).telling(note)
}
