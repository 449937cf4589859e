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
    clock.tell_strangers(&mut steps);
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

/// Was a job made because its time had come?
fn is_run(cron: &CronJob, job: &Job) -> bool {
    job.metadata.annotation(SCHEDULED).is_some()
        || cron.status.active.iter().any(|one| one.uid == job.metadata.uid)
}

/// When a job was due.
fn scheduled(job: &Job) -> Option<Timestamp> {
    job.metadata.annotation(SCHEDULED)?.parse().ok()
}

impl<'a> Clock<'a> {
    /// The runs that have not ended.
    fn active(&self) -> impl Iterator<Item = &'a Arc<Job>> {
        let cron = self.cron;
        let open = self.jobs.iter().copied().filter(|job| job.finished().is_none());
        open.filter(|job| is_run(cron, job))
    }

    /// Says which jobs are its own and yet none of its runs, as those that people made of it by
    /// hand: they are in nobody's way and are left alone.
    fn tell_strangers(&self, steps: &mut Steps) {
        let open = self.jobs.iter().filter(|job| job.finished().is_none());
        for job in open.filter(|job| !is_run(self.cron, job)) {
            let name = &job.metadata.name;
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            steps.tell(Note::warning(&Target::of(self.cron), "UnexpectedJob", message));
        }
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
        let message = format!("Deleted job {}", job.metadata.name);
        steps.tell(Note::normal(&Target::of(self.cron), "SuccessfulDelete", message));
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
        let (schedule, zone) = match self.schedule() {
            Ok(read) => read,
            // The API refuses what does not read; an older object may still hold it.
            Err(err) => {
                self.tell_unreadable(&err, steps);
                return false;
            }
        };
        if let Some(next) = schedule.next(now, &zone) {
            steps.look_again(next);
        }
        let Some(at) = self.due(&schedule, &zone) else {
            self.tell_missed(&schedule, &zone, steps);
            return false;
        };
        let name = run_name(cron, at);
        // Ours, or one of an earlier cron job of this name that is still being collected.
        if self.view.jobs.get(&cron.metadata.namespace, &name).is_some() {
            return false;
        }
        let mut active = self.active().peekable();
        if active.peek().is_some() {
            match cron.spec.concurrency_policy.as_str() {
                // It is looked at again when the job that is in the way has ended.
                "Forbid" => {
                    let message = "Not starting job because prior execution is running and \
                                   concurrency policy is Forbid";
                    steps.tell(Note::normal(&Target::of(cron), "JobAlreadyActive", message));
                    return false;
                }
                "Replace" => active.for_each(|job| self.delete(job, steps)),
                _ => (),
            }
        }
        let local = at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
        steps.push(self.create(&name, &local));
        let unlimited = cron.spec.starting_deadline_seconds.is_none();
        if unlimited && self.missed(&schedule, &zone, at) > MISSED {
            let message = "too many missed start times. Set or decrease \
                           .spec.startingDeadlineSeconds or check clock skew";
            steps.tell(Note::warning(&Target::of(cron), "TooManyMissedTimes", message));
        }
        true
    }

    fn tell_unreadable(&self, err: &ParseScheduleError, steps: &mut Steps) {
        let (target, spec) = (Target::of(self.cron), &self.cron.spec);
        steps.tell(if let ParseScheduleError::Zone(zone) = err {
            let message = format!("invalid timeZone: {zone} : {err}");
            Note::warning(&target, "UnknownTimeZone", message)
        } else {
            let message = format!("unparseable schedule: {} : {err}", spec.schedule);
            Note::warning(&target, "UnparseableSchedule", message)
        });
    }

    /// Says that a run was due and may not start any more.
    fn tell_missed(&self, schedule: &Schedule, zone: &TimeZone, steps: &mut Steps) {
        if self.cron.spec.starting_deadline_seconds.is_none() {
            return;
        }
        if let Some(at) = schedule.previous(self.now, self.last(), zone) {
            let when = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
            let message = format!("Missed scheduled time to start a job: {when}");
            steps.tell(Note::warning(&Target::of(self.cron), "MissSchedule", message));
        }
    }

    /// When it ran last, or came into being.
    fn last(&self) -> Timestamp {
        let created = self.cron.metadata.creation_timestamp.map_or(self.now, |at| at.0);
        self.cron.status.last_schedule_time.map_or(created, |at| at.0)
    }

    /// From when on runs are owed.
    fn since(&self) -> Timestamp {
        let mut since = self.last();
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
    fn missed(&self, schedule: &Schedule, zone: &TimeZone, until: Timestamp) -> usize {
        let (mut count, mut at) = (0, self.since());
        while count <= MISSED {
            match schedule.next(at, zone) {
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
        for one in cron.status.active.iter().filter(|one| !wanted.active.contains(one)) {
            steps.tell(self.what_became_of(one));
        }
        steps.push(Action::patch_status(Target::of(cron), body));
    }

    /// What there is to say of a job that was active.
    fn what_became_of(&self, one: &ObjectReference) -> Note {
        let target = Target::of(self.cron);
        let name = &one.name;
        let job = self.jobs.iter().find(|job| job.metadata.uid == one.uid);
        match job.and_then(|job| job.finished()) {
            Some(end) => {
                let message = format!("Saw completed job: {name}, condition: {}", end.kind);
                Note::normal(&target, "SawCompletedJob", message)
            }
            None => Note::normal(&target, "MissingJob", format!("Active job went missing: {name}")),
        }
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
