//! Makes jobs at given times.
//!
//! Spec: upstream's cron job controller: time zones, concurrency policy, a deadline for
//! starting late, only the latest of several missed runs, history limits. The name of a run
//! follows from its time, so that no time runs twice.

mod schedule;

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use objects::batch::{CronJob, Job};
use objects::kind;
use objects::meta::ObjectReference;
use objects::time::Time;
use serde_json::json;

use crate::action::{Action, Note, Propagation, Steps, Target, encode};
use crate::family::owner_reference;
use crate::view::{Key, View};

pub use schedule::{ParseScheduleError, Schedule};

/// Annotation of jobs: the time they were due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed runs than that deserve a warning; upstream's.
const MISSED: usize = 100;

/// A cron job with its jobs.
struct Clock<'a> {
    view: &'a View,
    cron: &'a CronJob,
    jobs: Vec<&'a Arc<Job>>,
    now: Timestamp,
}

/// Plans the steps for one cron job.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(cron) = view.cron_jobs.get(&key.namespace, &key.name) else { return steps };
    let jobs = view.jobs.inside(&key.namespace);
    let jobs = jobs.filter(|job| job.metadata.is_controlled_by(&cron.metadata.uid)).collect();
    let clock = Clock { view, cron, jobs, now };
    clock.forget(&mut steps);
    let started = clock.start(&mut steps);
    if !started {
        clock.tell(&mut steps);
    }
    steps
}

/// The name of the run of a time.
fn run_name(cron: &CronJob, at: Timestamp) -> String {
    let stem: String = cron.metadata.name.chars().take(52).collect();
    format!("{stem}-{}", at.as_second().div_euclid(60))
}

/// When a job was due.
fn scheduled(job: &Job) -> Option<Timestamp> {
    job.metadata.annotation(SCHEDULED)?.parse().ok()
}

impl<'a> Clock<'a> {
    fn active(&self) -> impl Iterator<Item = &'a Arc<Job>> {
        self.jobs.iter().copied().filter(|job| job.finished().is_none())
    }

    /// Deletes the oldest ended jobs beyond the limits.
    fn forget(&self, steps: &mut Steps) {
        let spec = &self.cron.spec;
        for (kind, keep) in [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ] {
            let ended = |job: &&&Arc<Job>| {
                job.finished().is_some_and(|one| one.kind == kind) && !job.metadata.is_deleting()
            };
            let mut ended: Vec<_> = self.jobs.iter().filter(ended).collect();
            ended.sort_by_key(|job| (job.status.start_time, job.metadata.name.clone()));
            let surplus = ended.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
            for job in ended.into_iter().take(surplus) {
                self.delete(job, steps);
            }
        }
    }

    fn delete(&self, job: &Arc<Job>, steps: &mut Steps) {
        let (target, absent) = (Target::of(&**job), Vec::new());
        let propagation = Propagation::Background;
        steps.push(Action::Collect { target, absent, propagation });
    }

    /// The schedule in its zone.
    fn schedule(&self) -> Result<(Schedule, TimeZone), ParseScheduleError> {
        let spec = &self.cron.spec;
        let (zone, text) = match &spec.time_zone {
            Some(name) => (name.as_str(), spec.schedule.as_str()),
            None => Schedule::split_zone(&spec.schedule),
        };
        let zone = if zone.is_empty() {
            TimeZone::UTC
        } else {
            TimeZone::get(zone).map_err(|_| ParseScheduleError::Zone(zone.to_owned()))?
        };
        Ok((Schedule::parse(text)?, zone))
    }

    /// Starts the run that is due; `true` when it asked for one.
    fn start(&self, steps: &mut Steps) -> bool {
        let (cron, now) = (self.cron, self.now);
        if cron.metadata.is_deleting() || cron.spec.suspend == Some(true) {
            return false;
        }
        // The API refuses what does not read; an older object may still hold it.
        let Ok((schedule, zone)) = self.schedule() else { return false };
        if let Some(next) = schedule.next(now, &zone) {
            steps.look_again(next);
        }
        let Some(at) = self.due(&schedule, &zone) else { return false };
        let deadline = cron.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        let late =
            deadline.and_then(|limit| at.checked_add(limit).ok()).is_some_and(|end| end < now);
        let name = run_name(cron, at);
        // Ours, or one of an earlier cron job of this name that is still being collected.
        if late || self.view.jobs.get(&cron.metadata.namespace, &name).is_some() {
            return false;
        }
        let mut active = self.active().peekable();
        if active.peek().is_some() {
            match cron.spec.concurrency_policy.as_str() {
                // It is looked at again when the job that is in the way has ended.
                "Forbid" => return false,
                "Replace" => active.for_each(|job| self.delete(job, steps)),
                _ => (),
            }
        }
        let local = at.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
        steps.push(self.create(&name, &local));
        if self.missed(&schedule, at) > MISSED && deadline.is_none() {
            warn_of_missed(cron, steps);
        }
        true
    }

    /// From when on runs are owed.
    fn since(&self) -> Timestamp {
        let created = self.cron.metadata.creation_timestamp.map_or(self.now, |at| at.0);
        let mut since = self.cron.status.last_schedule_time.map_or(created, |at| at.0);
        if let Some(limit) = self.cron.spec.starting_deadline_seconds {
            let border = self.now.checked_sub(SignedDuration::from_secs(limit));
            since = border.map_or(since, |border| since.max(border));
        }
        since
    }

    /// The latest time that is due and was not run.
    fn due(&self, schedule: &Schedule, zone: &TimeZone) -> Option<Timestamp> {
        schedule.previous(self.now, self.since(), zone)
    }

    /// How many runs were missed, as far as that matters.
    fn missed(&self, schedule: &Schedule, until: Timestamp) -> usize {
        let (mut count, mut at) = (0, self.since());
        while count <= MISSED {
            match schedule.next(at, &TimeZone::UTC) {
                Some(next) if next <= until => (count, at) = (count + 1, next),
                _ => break,
            }
        }
        count
    }

    fn create(&self, name: &str, local: &str) -> Action {
        let cron = self.cron;
        let template = &cron.spec.job_template;
        let mut annotations = template.metadata.annotations.clone();
        annotations.insert(SCHEDULED.to_owned(), local.to_owned());
        let object = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name,
                "namespace": cron.metadata.namespace,
                "labels": template.metadata.labels,
                "annotations": annotations,
                "ownerReferences": [owner_reference(&cron.metadata, &kind::CRON_JOB)],
            },
            "spec": encode(&template.spec),
        });
        let message = format!("Created job {name}");
        let note = Note::normal(&Target::of(cron), "SuccessfulCreate", message);
        Action::create(&kind::JOB, &cron.metadata.namespace, object).telling(note)
    }

    fn tell(&self, steps: &mut Steps) {
        let cron = self.cron;
        let mut wanted = cron.status.clone();
        wanted.active = self.active().map(|job| reference(job)).collect();
        let last = self.jobs.iter().filter_map(|job| scheduled(job)).max();
        wanted.last_schedule_time = wanted.last_schedule_time.max(last.map(Time::from));
        let good =
            self.jobs.iter().filter(|job| job.finished().is_some_and(|one| one.kind == "Complete"));
        let good = good.filter_map(|job| job.status.completion_time).max();
        wanted.last_successful_time = wanted.last_successful_time.max(good);
        if wanted == cron.status {
            return;
        }
        let body = json!({
            "active": wanted.active,
            "lastScheduleTime": wanted.last_schedule_time,
            "lastSuccessfulTime": wanted.last_successful_time,
        });
        let ended = cron.status.active.iter().find(|one| !wanted.active.contains(one));
        let step = Action::patch_status(Target::of(cron), body);
        steps.push(match ended {
            Some(one) => {
                let message = format!("Saw completed job: {}", one.name);
                step.telling(Note::normal(&Target::of(cron), "SawCompletedJob", message))
            }
            None => step,
        });
    }
}

/// Says that runs were missed; the note travels with the run that is made.
fn warn_of_missed(cron: &CronJob, steps: &mut Steps) {
    let message = "too many missed start times. Set or decrease \
                   .spec.startingDeadlineSeconds or check clock skew";
    if let Some(Action::Create { note, .. }) = steps.actions.last_mut() {
        *note = Some(Box::new(Note::warning(&Target::of(cron), "TooManyMissedTimes", message)));
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: kind::JOB.api_version(),
        kind: kind::JOB.kind.to_owned(),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
