use jiff::SignedDuration;
use objects::kind;
use serde_json::{Value, json};

use super::*;
use crate::world::{World, merge};

fn world(patch: Value) -> World {
    let mut world = World::default();
    world.add_node("a", "r1");
    let mut spec = json!({
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 6,
        "selector": {"matchLabels": {"job": "w"}},
        "template": {
            "metadata": {"labels": {"job": "w"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "one"}]},
        },
    });
    merge(&mut spec, &patch);
    world.add(
        &kind::JOB,
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "w", "namespace": "n"},
            "spec": spec,
        }),
    );
    world.settle(&[]);
    world
}

fn job(world: &World) -> Job {
    world.all::<Job>()[0].clone()
}

fn active(world: &World) -> Vec<Pod> {
    let mut pods = world.all::<Pod>();
    pods.retain(|pod| !pod.is_finished() && !pod.metadata.is_deleting());
    pods
}

/// Ends a pod as its node would, with an exit code.
fn end(world: &mut World, pod: &Pod, code: i64) {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let at = objects::Time::from(world.now);
    let status = json!({"status": {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [
            {"name": "c", "state": {"terminated": {"exitCode": code, "finishedAt": at}}},
        ],
    }});
    world.change(&kind::POD, "n", &pod.metadata.name, &status);
}

fn end_all(world: &mut World, code: i64) {
    for pod in active(world) {
        end(world, &pod, code);
    }
    world.settle(&[]);
}

fn conditions(world: &World) -> Vec<String> {
    let job = job(world);
    let all = job.status.conditions.iter().filter(|one| one.is_true());
    all.map(|one| format!("{} {}", one.kind, one.reason)).collect()
}

#[test]
fn a_job_runs_as_many_as_it_may_until_enough_succeeded() {
    let mut world = world(json!({"parallelism": 2, "completions": 3}));
    assert_eq!(active(&world).len(), 2);
    end_all(&mut world, 0);
    assert_eq!(active(&world).len(), 1);
    assert_eq!(job(&world).status.succeeded, 2);
    end_all(&mut world, 0);
    let done = job(&world);
    assert_eq!((done.status.succeeded, done.status.active), (3, 0));
    assert_eq!(
        conditions(&world),
        ["SuccessCriteriaMet CompletionsReached", "Complete CompletionsReached"]
    );
    assert!(done.status.completion_time.is_some());
    let open = done.status.uncounted_terminated_pods.unwrap();
    assert!(open.succeeded.is_empty() && open.failed.is_empty());
    assert!(world.all::<Pod>().iter().all(|pod| pod.metadata.finalizers.is_empty()));
}

#[test]
fn failures_are_waited_after_and_limited() {
    let mut world = world(json!({"backoffLimit": 1}));
    end_all(&mut world, 3);
    assert_eq!(active(&world).len(), 0, "not at once");
    world.pass(10, &[]);
    assert_eq!(active(&world).len(), 1);
    end_all(&mut world, 3);
    assert_eq!(job(&world).status.failed, 2);
    assert_eq!(
        conditions(&world),
        ["FailureTarget BackoffLimitExceeded", "Failed BackoffLimitExceeded"]
    );
    assert!(world.told.iter().any(|line| line.starts_with("BackoffLimitExceeded")));
}

#[test]
fn a_lost_pod_is_counted_once_although_nobody_saw_it_end() {
    let mut world = world(json!({}));
    let pod = active(&world)[0].clone();
    let gone = json!({"metadata": {"deletionTimestamp": objects::Time::from(world.now)}});
    world.change(&kind::POD, "n", &pod.metadata.name, &gone);
    world.settle(&[]);
    assert_eq!(job(&world).status.failed, 1);
    world.pass(15, &[]);
    end_all(&mut world, 0);
    assert_eq!((job(&world).status.failed, job(&world).status.succeeded), (1, 1));
}

#[test]
fn every_index_is_worked_on() {
    let mut world = world(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2}));
    let pods = active(&world);
    let at = |pod: &Pod| pod.metadata.annotation(index::INDEX).unwrap().to_owned();
    assert_eq!(pods.iter().map(at).collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(pods[0].spec.hostname, "w-0");
    assert_eq!(pods[0].spec.containers[0].env[0].name, "JOB_COMPLETION_INDEX");
    end(&mut world, &pods[1], 0);
    world.settle(&[]);
    assert_eq!(job(&world).status.completed_indexes, "1");
    end_all(&mut world, 0);
    assert_eq!(job(&world).status.completed_indexes, "0-2");
    assert_eq!(job(&world).status.succeeded, 3);
    assert_eq!(conditions(&world).len(), 2);
}

#[test]
fn an_index_may_fail_by_itself() {
    let mut world = world(json!({
        "completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 0,
    }));
    let pods = active(&world);
    end(&mut world, &pods[0], 1);
    world.settle(&[]);
    assert_eq!(job(&world).status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(active(&world).len(), 1);
    end_all(&mut world, 0);
    assert_eq!(conditions(&world), ["FailureTarget FailedIndexes", "Failed FailedIndexes"]);
    assert_eq!(job(&world).status.completed_indexes, "1");
}

#[test]
fn exit_codes_may_decide() {
    let rule = |action: &str| {
        json!({"podFailurePolicy": {"rules": [
            {"action": action, "onExitCodes": {"operator": "In", "values": [42]}},
        ]}})
    };
    let mut failing = world(rule("FailJob"));
    end_all(&mut failing, 42);
    assert_eq!(conditions(&failing), ["FailureTarget PodFailurePolicy", "Failed PodFailurePolicy"]);
    let message = &job(&failing).status.conditions[1].message;
    assert!(
        message.contains("failed with exit code 42 matching FailJob rule at index 0"),
        "{message}"
    );
    let mut ignoring = world(rule("Ignore"));
    end_all(&mut ignoring, 42);
    ignoring.pass(15, &[]);
    assert_eq!(job(&ignoring).status.failed, 0);
    assert_eq!(active(&ignoring).len(), 1);
}

#[test]
fn some_successes_may_be_enough() {
    let mut world = world(json!({
        "completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]},
    }));
    let pods = active(&world);
    end(&mut world, &pods[2], 0);
    world.settle(&[]);
    assert_eq!(conditions(&world), ["SuccessCriteriaMet SuccessPolicy", "Complete SuccessPolicy"]);
    assert!(active(&world).is_empty());
}

#[test]
fn a_suspended_job_has_no_pods_and_its_deadline_rests() {
    let mut world = world(json!({"suspend": true, "activeDeadlineSeconds": 60}));
    assert!(active(&world).is_empty());
    assert_eq!(conditions(&world), ["Suspended JobSuspended"]);
    world.pass(100, &[]);
    world.change(&kind::JOB, "n", "w", &json!({"spec": {"suspend": false}}));
    world.settle(&[]);
    assert_eq!(active(&world).len(), 1);
    assert!(conditions(&world).is_empty());
    world.pass(70, &[]);
    assert_eq!(conditions(&world), ["FailureTarget DeadlineExceeded", "Failed DeadlineExceeded"]);
    assert!(active(&world).is_empty());
}

#[test]
fn pods_are_let_go_with_their_job_and_ended_jobs_go_after_their_time() {
    let mut world = world(json!({"ttlSecondsAfterFinished": 30}));
    end_all(&mut world, 0);
    assert_eq!(world.all::<Job>().len(), 1);
    world.pass(40, &[]);
    assert!(world.all::<Job>().is_empty());
    assert!(world.all::<Pod>().is_empty());
}

#[test]
fn a_job_of_someone_else_is_left_alone() {
    let world = world(json!({"managedBy": "example.com/queue"}));
    assert!(active(&world).is_empty());
    assert_eq!(job(&world).status, JobStatus::default());
}

#[test]
fn of_two_pods_of_one_index_the_older_stays() {
    let mut world = world(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2}));
    let first = active(&world).remove(0);
    world.now = world.now.saturating_add(SignedDuration::from_secs(5)).unwrap();
    let mut twin = crate::action::encode(&first);
    merge(&mut twin, &json!({"metadata": {"name": "twin", "uid": null, "resourceVersion": null}}));
    world.add(&kind::POD, twin);
    world.settle(&[]);
    let names: Vec<String> = active(&world).into_iter().map(|pod| pod.metadata.name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&first.metadata.name) && !names.contains(&"twin".to_owned()));
}
