use super::*;
use serde_json::{Value, json};

use crate::plan::remember;
use crate::plan::tests::seen;
use crate::seen::Verdict;

/// What time it is in every test.
const NOW: i64 = 1_000_000;

fn place() -> Place<'static> {
    Place {
        host: "10.98.1.12".parse().unwrap(),
        runtime: "containerd",
        now: Timestamp::from_second(NOW).unwrap(),
    }
}

fn pod(policy: &str, names: &str, status: Value) -> Pod {
    let container = |name: char| json!({"name": name, "image": "i:1"});
    let (inits, mains): (Vec<char>, Vec<char>) = names.chars().partition(|c| c.is_uppercase());
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"restartPolicy": policy,
            "initContainers": inits.into_iter().map(container).collect::<Vec<_>>(),
            "containers": mains.into_iter().map(container).collect::<Vec<_>>()},
        "status": status,
    }))
    .unwrap()
}

/// `Phase ready=a,b | a: state reason code last=reason restarts` for each container.
fn tell(status: &PodStatus) -> String {
    let state = |state: &ContainerState| {
        let waiting = state.waiting.as_ref().map(|w| format!("waiting {}", w.reason));
        let running = state.running.as_ref().map(|_| "running".to_owned());
        let ended = state.terminated.as_ref();
        let ended = ended.map(|t| format!("{} {}", t.reason, t.exit_code.unwrap()));
        waiting.or(running).or(ended).unwrap_or_else(|| "nothing".to_owned())
    };
    let one = |c: &ContainerStatus| {
        let last = c.last_state.terminated.as_ref().map(|_| state(&c.last_state));
        let last = last.map(|last| format!(" last={last}")).unwrap_or_default();
        let ready = if c.ready == Some(true) { " ready" } else { "" };
        format!("{}{}: {}{last}{ready}", c.name, c.restart_count.unwrap(), state(&c.state))
    };
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    let ready = if objects::condition::is_condition_true(&status.conditions, "Ready") {
        " ready"
    } else {
        ""
    };
    format!("{}{ready} | {}", status.phase, all.map(one).collect::<Vec<_>>().join("; "))
}

#[track_caller]
fn check_with(pod: &Pod, state: &str, memory: &mut Memory, expected: &str) {
    let seen = seen(state);
    remember(pod, &seen, memory, place().now);
    let status = compute_status(pod, &seen, memory, place());
    assert_eq!(tell(&status), expected);
    // What was told once is told again: nothing differs when nothing has changed.
    let mut told = pod.clone();
    told.status = status.clone();
    assert_eq!(compute_status(&told, &seen, memory, place()), status, "{state:?} is not stable");
}

#[track_caller]
fn check(policy: &str, names: &str, state: &str, expected: &str) {
    check_with(&pod(policy, names, json!({})), state, &mut Memory::default(), expected);
}

#[test]
fn a_pod_that_comes_up_is_pending_then_running_then_ready() {
    check("Always", "a", "", "Pending | a0: waiting ContainerCreating");
    check(
        "Always",
        "ab",
        "+0 a0:run",
        "Pending | a0: running ready; b0: waiting ContainerCreating",
    );
    check("Always", "a", "+0 a0:run", "Running ready | a0: running ready");
    check("Always", "Ia", "+0 I0:run", "Pending | I0: running; a0: waiting PodInitializing");
    check(
        "Always",
        "Ia",
        "+0 I0:exit,0 a0:run",
        "Running ready | I0: Completed 0 ready; a0: running ready",
    );
}

#[test]
fn ends_are_named() {
    check("Always", "a", "+0 a0:exit,3,0", "Running | a0: Error 3");
    check(
        "Always",
        "a",
        "+0 a1:exit,3,4 a0:exit,3",
        "Running | a1: waiting CrashLoopBackOff last=Error 3",
    );
    check("Always", "a", "+0 a1:run a0:exit,3", "Running ready | a1: running last=Error 3 ready");
    check("Never", "a", "+0 a0:exit,0", "Succeeded | a0: Completed 0");
    check("Never", "a", "+0 a0:exit,1", "Failed | a0: Error 1");
    check("Never", "ab", "+0 a0:exit,1 b0:run", "Running | a0: Error 1; b0: running ready");
    check(
        "OnFailure",
        "a",
        "+0 a1:exit,1,4",
        "Running | a1: waiting CrashLoopBackOff last=Error 1",
    );
    check("Never", "Ia", "+0 I0:exit,1", "Failed | I0: Error 1; a0: waiting PodInitializing");
    check(
        "Always",
        "Ia",
        "+0 I1:exit,1,4",
        "Pending | I1: waiting CrashLoopBackOff last=Error 1; a0: waiting PodInitializing",
    );
}

#[test]
fn a_deleted_pod_tells_how_it_ended() {
    let mut pod = pod("Always", "a", json!({"phase": "Running"}));
    pod.metadata.deletion_timestamp = Some(Time::from(place().now));
    check_with(&pod, "+0 a0:run", &mut Memory::default(), "Running ready | a0: running ready");
    check_with(&pod, "-0 a0:exit,0", &mut Memory::default(), "Succeeded | a0: Completed 0");
    check_with(&pod, "-0 a0:exit,143", &mut Memory::default(), "Failed | a0: Error 143");
}

#[test]
fn what_the_runtime_lost_is_not_forgotten() {
    let told = json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 2,
        "containerID": "containerd://x", "state": {"running": {}}}]});
    let lost = "a2: ContainerStatusUnknown 137";
    check_with(
        &pod("Never", "a", told.clone()),
        "",
        &mut Memory::default(),
        &format!("Failed | {lost}"),
    );
    let again = "Running | a2: ContainerStatusUnknown 137";
    check_with(&pod("Always", "a", told), "", &mut Memory::default(), again);
}

#[test]
fn failures_give_their_reasons() {
    let check = |age: i64, expected: &str| {
        let mut memory = Memory::default();
        let at = Timestamp::from_second(NOW - age).unwrap();
        memory.fail("a", "ErrImagePull", "no".into(), at);
        check_with(&pod("Always", "a", json!({})), "+0", &mut memory, expected);
    };
    check(0, "Pending | a0: waiting ErrImagePull");
    check(5, "Pending | a0: waiting ImagePullBackOff");
    let mut memory = Memory {
        verdict: Some(Verdict {
            reason: "Evicted".into(),
            message: "full".into(),
            grace_seconds: Some(1),
        }),
        ..Memory::default()
    };
    // Whoever replaces the pod waits until the last of it has ended.
    for (state, expected) in [
        ("+0 a0:run", "Running ready | a0: running ready"),
        ("+0 a0:exit,137", "Failed | a0: Error 137"),
    ] {
        check_with(&pod("Always", "a", json!({})), state, &mut memory, expected);
    }
}

#[test]
fn addresses_and_conditions_follow_the_sandbox() {
    let wanted =
        pod("Always", "a", json!({"conditions": [{"type": "PodScheduled", "status": "True"}]}));
    let status = compute_status(&wanted, &seen("+0"), &Memory::default(), place());
    assert_eq!((status.pod_ip.as_str(), status.host_ip.as_str()), ("10.0.0.1", "10.98.1.12"));
    let told: Vec<String> =
        status.conditions.iter().map(|c| format!("{}={}", c.kind, c.status)).collect();
    let expected = "PodScheduled=True PodReadyToStartContainers=True Initialized=True Ready=False ContainersReady=False";
    assert_eq!(told.join(" "), expected);
    let message = &find_condition(&status.conditions, "Ready").unwrap().message;
    assert_eq!(message, "containers with unready status: [a]");
    let mut wanted = wanted;
    wanted.status = status;
    let status = compute_status(&wanted, &seen("-0"), &Memory::default(), place());
    assert_eq!(status.pod_ip, "");
}
