use serde_json::Value;

use super::*;
use crate::world::{World, merge};

fn world(patch: Value) -> World {
    let mut world = World::default();
    world.now = "2026-01-01T00:00:30Z".parse().unwrap();
    world.add_node("a", "r1");
    let mut spec = json!({
        "schedule": "*/10 * * * *",
        "concurrencyPolicy": "Allow",
        "jobTemplate": {"spec": {
            "completions": 1, "parallelism": 1,
            "selector": {"matchLabels": {"job": "w"}},
            "template": {
                "metadata": {"labels": {"job": "w"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "one"}]},
            },
        }},
    });
    merge(&mut spec, &patch);
    world.add(
        &kind::CRON_JOB,
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "tick", "namespace": "n"},
            "spec": spec,
        }),
    );
    world.settle(&[]);
    world
}

fn jobs(world: &World) -> Vec<String> {
    world
        .all::<Job>()
        .into_iter()
        .filter_map(|job| job.metadata.annotation(SCHEDULED).map(str::to_owned))
        .collect()
}

/// Ends every job without its pods.
fn finish(world: &mut World, kind_: &str) {
    for job in world.all::<Job>().iter().filter(|job| job.finished().is_none()) {
        let at = objects::Time::from(world.now);
        let status = json!({"status": {
            "completionTime": at,
            "startTime": at,
            "conditions": [{"type": kind_, "status": "True", "lastTransitionTime": at}],
        }});
        world.change(&kind::JOB, "n", &job.metadata.name, &status);
    }
    world.settle(&[]);
}

#[test]
fn a_job_is_made_when_it_is_due() {
    let mut world = world(json!({"timeZone": "Europe/Berlin"}));
    assert!(jobs(&world).is_empty());
    world.pass(600, &[]);
    assert_eq!(jobs(&world), ["2026-01-01T01:10:00+01:00"]);
    let cron = world.all::<CronJob>()[0].clone();
    assert_eq!(cron.status.active.len(), 1);
    assert_eq!(cron.status.last_schedule_time.unwrap().to_string(), "2026-01-01T00:10:00Z");
    finish(&mut world, "Complete");
    let cron = world.all::<CronJob>()[0].clone();
    assert!(cron.status.active.is_empty() && cron.status.last_successful_time.is_some());
}

#[test]
fn of_missed_runs_only_the_latest_is_made_up() {
    let mut world = world(json!({"suspend": true}));
    world.pass(3600, &[]);
    assert!(jobs(&world).is_empty());
    world.change(&kind::CRON_JOB, "n", "tick", &json!({"spec": {"suspend": false}}));
    world.settle(&[]);
    assert_eq!(jobs(&world), ["2026-01-01T01:00:00+00:00"]);
}

#[test]
fn a_run_that_would_start_too_late_is_left_out() {
    let mut world = world(json!({"suspend": true, "startingDeadlineSeconds": 10}));
    world.pass(900, &[]);
    world.change(&kind::CRON_JOB, "n", "tick", &json!({"spec": {"suspend": false}}));
    world.settle(&[]);
    assert!(jobs(&world).is_empty());
}

#[test]
fn jobs_run_beside_each_other_only_if_they_may() {
    for (policy, expected) in [("Allow", 2), ("Forbid", 1), ("Replace", 1)] {
        let mut world = world(json!({"concurrencyPolicy": policy}));
        world.pass(1200, &[]);
        let all = jobs(&world);
        assert_eq!(all.len(), expected, "{policy}");
        let last = if policy == "Forbid" {
            "2026-01-01T00:10:00+00:00"
        } else {
            "2026-01-01T00:20:00+00:00"
        };
        assert_eq!(all.last().unwrap(), last, "{policy}");
    }
}

#[test]
fn ended_jobs_are_kept_as_many_as_asked() {
    let mut world = world(json!({"successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 0}));
    for end in ["Complete", "Complete", "Failed", "Complete"] {
        world.pass(600, &[]);
        finish(&mut world, end);
    }
    assert_eq!(jobs(&world), ["2026-01-01T00:20:00+00:00", "2026-01-01T00:40:00+00:00"]);
}

#[test]
fn a_broken_schedule_does_nothing_but_say_so() {
    for (patch, reason) in [
        (json!({"schedule": "often"}), "UnparseableSchedule unparseable schedule: often : "),
        (json!({"timeZone": "Mars/Base"}), "UnknownTimeZone invalid timeZone: Mars/Base : "),
    ] {
        let mut world = world(patch);
        world.pass(600, &[]);
        assert!(jobs(&world).is_empty());
        assert!(world.told.iter().any(|line| line.starts_with(reason)), "{:?}", world.told);
    }
}

/// Everything that was told of runs, but of the nodes and pods around them.
fn told(world: &World) -> Vec<&str> {
    let words = ["RegisteredNode", "Completed", "SuccessfulCreate"];
    let all = world.told.iter().map(String::as_str);
    all.filter(|line| !words.iter().any(|word| line.starts_with(word))).collect()
}

#[test]
fn people_are_told_what_becomes_of_runs() {
    let mut forbidden = world(json!({"concurrencyPolicy": "Forbid"}));
    forbidden.pass(1200, &[]);
    finish(&mut forbidden, "Failed");
    let first = "tick-29453770";
    assert_eq!(
        told(&forbidden),
        [
            "JobAlreadyActive Not starting job because prior execution is running and concurrency \
             policy is Forbid",
            &format!("SawCompletedJob Saw completed job: {first}, condition: Failed"),
        ]
    );
    let mut late = world(json!({"suspend": true, "startingDeadlineSeconds": 10}));
    late.pass(600, &[]);
    late.pass(5, &[]);
    late.change(&kind::CRON_JOB, "n", "tick", &json!({"spec": {"suspend": false}}));
    late.settle(&[]);
    let when = "Thu, 01 Jan 2026 00:10:00 +0000";
    let missed = format!("MissSchedule Missed scheduled time to start a job: {when}");
    assert_eq!(told(&late), [missed]);
    let mut replaced = world(json!({"concurrencyPolicy": "Replace"}));
    replaced.pass(1200, &[]);
    assert_eq!(told(&replaced)[0], format!("SuccessfulDelete Deleted job {first}"));
    let mut idle = world(json!({"schedule": "* * * * *", "suspend": true}));
    idle.pass(7200, &[]);
    idle.change(&kind::CRON_JOB, "n", "tick", &json!({"spec": {"suspend": false}}));
    idle.settle(&[]);
    assert!(told(&idle)[0].starts_with("TooManyMissedTimes too many missed start times."));
}

#[test]
fn a_run_whose_name_an_earlier_cron_job_still_has_waits() {
    let mut world = world(json!({}));
    let name = format!("tick-{}", world.now.as_second().div_euclid(600) * 10 + 10);
    let owner = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "earlier",
        "controller": true,
    });
    let meta = json!({
        "name": name, "namespace": "n", "ownerReferences": [owner],
        "finalizers": ["example.com/hold"],
    });
    world.add(&kind::JOB, json!({"metadata": meta, "spec": {"suspend": true, "template": {}}}));
    world.pass(660, &[]);
    assert!(jobs(&world).is_empty(), "nothing is made beside it");
    world.remove(&kind::JOB, "n", &name);
    world.pass(5, &[]);
    assert_eq!(jobs(&world).len(), 1);
}

#[test]
fn a_job_that_people_made_of_it_is_in_nobodys_way() {
    for policy in ["Forbid", "Replace"] {
        let mut world = world(json!({"concurrencyPolicy": policy}));
        let cron = world.all::<CronJob>()[0].clone();
        let owner = owner_reference(&cron.metadata, &kind::CRON_JOB);
        let mut spec = encode(&cron.spec.job_template.spec);
        spec["selector"] = json!({"matchLabels": {"job": "by-hand"}});
        spec["template"]["metadata"]["labels"] = json!({"job": "by-hand"});
        let meta = json!({"name": "by-hand", "namespace": "n", "ownerReferences": [owner]});
        world.add(&kind::JOB, json!({"metadata": meta, "spec": spec}));
        world.pass(600, &[]);
        assert_eq!(jobs(&world).len(), 1, "{policy}");
        let names: Vec<String> =
            world.all::<Job>().into_iter().map(|job| job.metadata.name).collect();
        assert!(names.contains(&"by-hand".to_owned()), "{names:?}");
        assert_eq!(world.all::<CronJob>()[0].status.active.len(), 1);
        let told = "UnexpectedJob Saw a job that the controller did not create or forgot: by-hand";
        assert!(world.told.contains(&told.to_owned()), "{:?}", world.told);
    }
}
