use super::*;
use objects::Time;
use serde_json::{Value, json};

use crate::probe::ProbeState;
use crate::seen::{Exit, Sandbox};

/// What time it is in every test.
const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(spec: Value, status: Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "n", "uid": "u"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

/// Reads `+0 a0:run a1:exit 3 5s b0:new` as a ready sandbox of attempt 0, lives of `a`, of which
/// one ended with 3 five seconds ago after a run of one second (or `3 5s 700s` after 700 s).
pub(crate) fn seen(text: &str) -> Seen {
    let mut seen = Seen::default();
    for item in text.split(' ').filter(|item| !item.is_empty()) {
        let (head, rest) = item.split_once(':').unwrap_or((item, ""));
        if let Some(attempt) = head.strip_prefix(['+', '-']) {
            let attempt = attempt.parse().unwrap();
            let addresses = vec![format!("10.0.0.{}", attempt + 1)];
            let ready = head.starts_with('+');
            seen.sandboxes.push(Sandbox { id: format!("s{attempt}"), attempt, ready, addresses });
            continue;
        }
        let (life, sandbox) = rest.split_once('@').unwrap_or((rest, "s0"));
        let (name, attempt) = head.split_at(1);
        let parts: Vec<&str> = life.split(',').collect();
        let number = |index: usize, default: i64| {
            parts.get(index).map_or(default, |text| text.parse().unwrap())
        };
        let life = match parts[0] {
            "run" => Life::Running { started: at(NOW - number(1, 60)) },
            "new" => Life::Created,
            "unknown" => Life::Unknown,
            "exit" => Life::Exited(Exit {
                code: i32::try_from(number(1, 0)).unwrap(),
                reason: String::new(),
                message: String::new(),
                started: Some(at(NOW - number(2, 1) - number(3, 1))),
                finished: Some(at(NOW - number(2, 1))),
            }),
            other => panic!("no such life: {other}"),
        };
        seen.containers.push(seen::Container {
            id: head.to_owned(),
            name: name.to_owned(),
            sandbox: sandbox.to_owned(),
            attempt: attempt.parse().unwrap(),
            life,
            image: String::new(),
            image_id: String::new(),
            hash: String::new(),
            size: None,
        });
    }
    seen
}

fn told(plan: &Plan) -> String {
    let tell = |action: &Action| match action {
        Action::PrepareVolumes => "volumes".to_owned(),
        Action::RunSandbox { attempt } => format!("sandbox {attempt}"),
        Action::StopSandbox { id } => format!("stop-sandbox {id}"),
        Action::RemoveSandbox { id } => format!("remove-sandbox {id}"),
        Action::Start { container, sandbox, attempt } => {
            format!("start {container}{attempt}@{sandbox}")
        }
        Action::Stop { id, grace_seconds, cause, .. } => {
            format!("stop {id} {grace_seconds}s {cause:?}")
        }
        Action::Resize { id, .. } => format!("resize {id}"),
        Action::Remove { id } => format!("remove {id}"),
        Action::Forget => "forget".to_owned(),
    };
    let mut parts: Vec<String> = plan.actions.iter().map(tell).collect();
    parts.extend(plan.again.map(|again| format!("wait {}", again.as_second() - NOW)));
    parts.join("; ")
}

fn ready() -> Memory {
    Memory { volumes: Volumes::Ready, ..Memory::default() }
}

/// A pod with containers named by one letter each; upper-case ones are init containers, `~` after
/// one makes it a sidecar.
fn spec(policy: &str, containers: &str) -> Value {
    let mut inits: Vec<Value> = Vec::new();
    let mut mains = Vec::new();
    for name in containers.chars() {
        let container = json!({"name": name, "image": "i:1"});
        match name {
            '~' => {
                if let Some(init) = inits.last_mut() {
                    init["restartPolicy"] = json!("Always");
                }
            }
            name if name.is_uppercase() => inits.push(container),
            _ => mains.push(container),
        }
    }
    json!({"restartPolicy": policy, "initContainers": inits, "containers": mains, "terminationGracePeriodSeconds": 7})
}

#[track_caller]
fn check(policy: &str, containers: &str, state: &str, expected: &str) {
    let pod = pod(spec(policy, containers), json!({}));
    let mut memory = ready();
    let seen = seen(state);
    remember(&pod, &seen, &mut memory, at(NOW));
    assert_eq!(told(&plan_pod(&pod, &seen, &memory, at(NOW))), expected, "{state:?}");
}

#[test]
fn a_pod_comes_up_step_by_step() {
    let wanted = pod(spec("Always", "a"), json!({}));
    let plan = plan_pod(&wanted, &Seen::default(), &Memory::default(), at(NOW));
    assert_eq!(told(&plan), "volumes; sandbox 0");
    check("Always", "ab", "", "sandbox 0");
    check("Always", "ab", "+0", "start a0@s0; start b0@s0");
    check("Always", "ab", "+0 a0:run", "start b0@s0");
    check("Always", "ab", "+0 a0:run b0:run", "");
    check("Always", "a", "+0 a0:new", "remove a0; start a0@s0");
}

#[test]
fn a_deadline_is_waited_for() {
    let mut spec = spec("Never", "a");
    spec["activeDeadlineSeconds"] = json!(100);
    let pod = pod(spec, json!({"startTime": Time::from(at(NOW - 40))}));
    let mut memory = ready();
    let seen = seen("+0 a0:run");
    remember(&pod, &seen, &mut memory, at(NOW));
    assert_eq!(told(&plan_pod(&pod, &seen, &memory, at(NOW))), "wait 60");
    remember(&pod, &seen, &mut memory, at(NOW + 60));
    assert_eq!(memory.verdict.unwrap().reason, "DeadlineExceeded");
}

#[test]
fn a_crash_loop_slows_down() {
    for (attempt, pause) in [(0, 0), (1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (40, 300)] {
        assert_eq!(crash_pause(attempt, 0), pause, "attempt {attempt}");
    }
    check("Always", "a", "+0 a0:exit,1,0", "start a1@s0");
    check("Always", "a", "+0 a1:exit,1,4", "wait 6");
    check("Always", "a", "+0 a1:exit,0,4", "wait 6");
    check("Always", "a", "+0 a1:exit,1,10", "start a2@s0");
    // A run of ten minutes makes earlier crashes forgotten.
    check("Always", "a", "+0 a9:exit,1,0,700", "start a10@s0");
    check("Always", "ab", "+0 a1:exit,1,4 b0:run", "wait 6");
}

#[test]
fn the_restart_policy_is_kept() {
    check("OnFailure", "a", "+0 a0:exit,0", "stop-sandbox s0");
    check("OnFailure", "a", "+0 a0:exit,1,0", "start a1@s0");
    check("Never", "a", "+0 a0:exit,1", "stop-sandbox s0");
    check("Never", "a", "-0 a0:exit,1", "");
    check("Never", "ab", "+0 a0:exit,1 b0:run", "");
    check("Never", "Ia", "+0 I0:exit,1", "stop-sandbox s0");
}

#[test]
fn a_container_may_be_restarted_by_rules_of_its_own() {
    let rule = |operator: &str, codes: &[i32]| json!([{"action": "Restart", "exitCodes": {"operator": operator, "values": codes}}]);
    let check = |pod_policy: &str, policy: &str, rules: Value, state: &str, expected: &str| {
        let mut spec = spec(pod_policy, "Iab");
        for at in ["/initContainers/0", "/containers/0"] {
            let container = spec.pointer_mut(at).unwrap();
            container["restartPolicy"] = json!(policy);
            container["restartPolicyRules"] = rules.clone();
        }
        let (pod, seen) = (pod(spec, json!({})), seen(state));
        let plan = plan_pod(&pod, &seen, &ready(), at(NOW));
        assert_eq!(told(&plan), expected, "{pod_policy} {policy} {rules} {state}");
    };
    let exit = |code: i32| format!("+0 I0:exit,0 b0:run a0:exit,{code},0");
    for (policy, rules, code, expected) in [
        ("Never", json!([]), 42, ""),
        ("Never", rule("In", &[42]), 42, "start a1@s0"),
        ("Never", rule("In", &[42]), 0, ""),
        ("Never", rule("NotIn", &[42]), 42, ""),
        ("Never", rule("NotIn", &[42]), 0, "start a1@s0"),
        ("OnFailure", json!([]), 0, ""),
        ("OnFailure", json!([]), 1, "start a1@s0"),
        ("OnFailure", rule("In", &[0]), 0, "start a1@s0"),
        (
            "Never",
            json!([{"action": "Reboot", "exitCodes": {"operator": "In", "values": [1]}}]),
            1,
            "",
        ),
        ("Never", json!([{"action": "Restart"}]), 1, ""),
    ] {
        for pod_policy in ["Always", "OnFailure", "Never"] {
            check(pod_policy, policy, rules.clone(), &exit(code), expected);
        }
    }
    // What ends for good ends the pod, as soon as nobody else goes on.
    let ended = "+0 I0:exit,0 b0:exit,0 a0:exit,42,0";
    check("Never", "Never", json!([]), ended, "stop-sandbox s0");
    check("Never", "Never", rule("In", &[42]), ended, "start a1@s0");
    check("Always", "Never", json!([]), ended, "start b1@s0");
    // So does an init container.
    let failed = "+0 I0:exit,42,0";
    check("Always", "Never", json!([]), failed, "stop-sandbox s0");
    check("Never", "Never", rule("In", &[42]), failed, "start I1@s0");
    check("Never", "OnFailure", json!([]), failed, "start I1@s0");
}

#[test]
fn init_containers_run_one_after_another() {
    check("Always", "IJa", "+0", "start I0@s0");
    check("Always", "IJa", "+0 I0:run", "");
    check("Always", "IJa", "+0 I0:exit,0", "start J0@s0");
    check("Always", "IJa", "+0 I0:exit,0 J0:exit,0", "start a0@s0");
    check("Always", "IJa", "+0 I0:exit,0 J0:exit,1,0", "start J1@s0");
    check("Always", "IJa", "+0 I0:exit,0 J0:exit,0 a0:exit,1,0", "start a1@s0");
    // A new sandbox is a new network: they run again, and then the rest.
    check("Always", "Ia", "-0 +1 I0:exit,0 a0:exit,137,0", "start I1@s1");
    check("Always", "Ia", "-0 +1 I1:exit,0@s1 I0:exit,0 a0:exit,137,0", "start a1@s1");
}

#[test]
fn sidecars_stay_beside_the_others() {
    check("Always", "S~a", "+0", "start S0@s0");
    check("Always", "S~a", "+0 S0:run", "start a0@s0");
    check("Never", "S~a", "+0 S0:run a0:run", "");
    check("Never", "S~a", "+0 S0:exit,1,0 a0:run", "start S1@s0");
    check("Never", "S~a", "+0 S0:run a0:exit,0", "stop S0 7s PodEnds");
    // They end one by one, the last first.
    check("Never", "S~T~a", "+0 S0:run T0:run a0:exit,0", "stop T0 7s PodEnds");
    check("Never", "S~T~a", "+0 S0:run T0:exit,0 a0:exit,0", "stop S0 7s PodEnds");
}

#[test]
fn what_is_not_the_pods_any_more_is_stopped() {
    check("Always", "a", "-0 a0:run", "stop a0 7s Stray");
    check("Always", "a", "-0 a0:exit,137,0", "sandbox 1");
    check("Always", "a", "-0 +1 a0:exit,137,0", "start a1@s1");
    check("Always", "a", "+0 +1 a0:run@s1", "stop-sandbox s0");
    check("Always", "a", "+0 a0:unknown", "stop a0 7s Stray");
}

#[test]
fn two_lives_are_kept_for_their_logs() {
    check("Always", "a", "+0 a2:run a1:exit,1 a0:exit,1", "remove a0");
    check("Always", "a", "-0 -1 +2 a2:run@s2 a1:exit,1@s1", "remove-sandbox s0");
}

#[test]
fn deletion_stops_then_forgets() {
    let check_at = |left: i64, state: &str, expected: &str| {
        let mut pod = pod(spec("Always", "S~a"), json!({}));
        pod.metadata.deletion_timestamp = Some(Time(at(NOW + left)));
        pod.metadata.deletion_grace_period_seconds = Some(3);
        assert_eq!(told(&plan_pod(&pod, &seen(state), &ready(), at(NOW))), expected);
    };
    let check = |state: &str, expected: &str| check_at(3, state, expected);
    check("+0 S0:run a0:run", "stop a0 3s PodEnds");
    check("+0 S0:run a0:exit,0", "stop S0 3s PodEnds");
    check_at(-1, "+0 S0:run a0:exit,0", "stop S0 2s PodEnds");
    check("+0 S0:exit,0 a0:exit,0", "stop-sandbox s0");
    check("-0 S0:exit,0 a0:exit,0", "forget");
    check("", "forget");
    assert_eq!(told(&plan_orphan(&seen("+0 a0:run"))), "stop a0 1s PodEnds");
    assert_eq!(told(&plan_orphan(&seen("-0"))), "forget");
}

#[test]
fn a_container_that_the_runtime_lost_counts_as_ended() {
    let check = |policy: &str, state: &str, expected: &str| {
        let status = json!({"phase": "Running", "containerStatuses":
            [{"name": "a", "containerID": "containerd://x", "restartCount": 4, "state": {"running": {}}}]});
        let pod = pod(spec(policy, "a"), status);
        assert_eq!(told(&plan_pod(&pod, &seen(state), &ready(), at(NOW))), expected);
    };
    check("Always", "+0", "start a5@s0");
    check("Always", "", "sandbox 0");
    check("Never", "", "");
    check("Never", "+0", "stop-sandbox s0");
    check("Always", "+0 a5:run", "");
}

#[test]
fn failures_are_retried_with_patience() {
    let pod = pod(spec("Always", "a"), json!({}));
    let check = |state: &str, change: &dyn Fn(&mut Memory), expected: &str| {
        let mut memory = ready();
        change(&mut memory);
        assert_eq!(told(&plan_pod(&pod, &seen(state), &memory, at(NOW))), expected);
    };
    let fail = |count: u32, age: i64| {
        move |memory: &mut Memory| {
            for _ in 0..count {
                memory.fail("a", "ErrImagePull", "no".into(), at(NOW - age));
            }
        }
    };
    check("+0", &fail(1, 0), "wait 2");
    check("+0", &fail(1, 5), "wait 5");
    check("+0", &fail(3, 5), "wait 35");
    check("+0", &fail(1, 10), "start a0@s0");
    check("", &|memory| memory.fail_sandbox("no".into(), at(NOW)), "wait 1");
    check("", &|memory| memory.blocked = Some("network".into()), "wait 30");
    check("+0", &|memory| memory.blocked = Some("network".into()), "start a0@s0");
    check("", &|memory| memory.fail_volumes("FailedMount", "no".into(), at(NOW)), "wait 1");
    check(
        "",
        &|memory| memory.fail_volumes("FailedMount", "no".into(), at(NOW - 1)),
        "volumes; sandbox 0",
    );
}

#[test]
fn a_changed_image_and_a_failed_probe_restart_a_container() {
    let mut spec = spec("Always", "a");
    spec["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["x"]}, "failureThreshold": 1});
    let pod = pod(spec, json!({}));
    let mut now = seen("+0 a0:run");
    now.containers[0].hash = container_hash(&pod.spec.containers[0]);
    let mut memory = ready();
    assert_eq!(told(&plan_pod(&pod, &now, &memory, at(NOW))), "");
    let mut state = ProbeState::default();
    state.record(&pod.spec.containers[0], crate::probe::Kind::Liveness, false, at(NOW));
    memory.probes.insert("a0".to_owned(), state);
    assert_eq!(told(&plan_pod(&pod, &now, &memory, at(NOW))), "stop a0 7s Unhealthy(Liveness)");
    now.containers[0].hash = "other".to_owned();
    assert_eq!(told(&plan_pod(&pod, &now, &memory, at(NOW))), "stop a0 7s SpecChanged");
}

#[test]
fn a_deadline_ends_the_pod() {
    let mut spec = spec("Always", "a");
    spec["activeDeadlineSeconds"] = json!(100);
    let status = json!({"startTime": at(NOW - 100).to_string()});
    let pod = pod(spec, status);
    let (state, mut memory) = (seen("+0 a0:run"), ready());
    remember(&pod, &state, &mut memory, at(NOW - 1));
    assert_eq!(memory.verdict, None);
    remember(&pod, &state, &mut memory, at(NOW));
    assert_eq!(told(&plan_pod(&pod, &state, &memory, at(NOW))), "stop a0 7s PodEnds");
}

/// A runtime that does what is planned, and whose containers end as they like.
struct World {
    seen: Seen,
    now: i64,
}

impl World {
    fn apply(&mut self, action: &Action, code: Option<i32>) {
        let now = at(self.now);
        let exit = |code| {
            Life::Exited(Exit {
                code,
                reason: String::new(),
                message: String::new(),
                started: Some(now),
                finished: Some(now),
            })
        };
        match action {
            Action::RunSandbox { attempt } => self.seen.sandboxes.push(Sandbox {
                id: format!("s{attempt}"),
                attempt: *attempt,
                ready: true,
                addresses: Vec::new(),
            }),
            Action::StopSandbox { id } => {
                for sandbox in self.seen.sandboxes.iter_mut().filter(|s| &s.id == id) {
                    sandbox.ready = false;
                }
                for c in self.seen.containers.iter_mut().filter(|c| &c.sandbox == id) {
                    if c.life.exit().is_none() {
                        c.life = exit(137);
                    }
                }
            }
            Action::RemoveSandbox { id } => {
                self.seen.sandboxes.retain(|s| &s.id != id);
                self.seen.containers.retain(|c| &c.sandbox != id);
            }
            Action::Start { container, sandbox, attempt } => {
                let life = code.map_or(Life::Running { started: now }, exit);
                let id = format!("{container}{attempt}");
                assert!(self.seen.containers.iter().all(|c| c.id != id), "{id} made twice");
                self.seen.containers.push(seen::Container {
                    id,
                    name: container.clone(),
                    sandbox: sandbox.clone(),
                    attempt: *attempt,
                    life,
                    image: String::new(),
                    image_id: String::new(),
                    hash: String::new(),
                    size: None,
                });
            }
            Action::Stop { id, .. } => {
                for c in self.seen.containers.iter_mut().filter(|c| &c.id == id) {
                    c.life = exit(143);
                }
            }
            Action::Remove { id } => self.seen.containers.retain(|c| &c.id != id),
            Action::PrepareVolumes | Action::Resize { .. } | Action::Forget => {}
        }
    }
}

/// From any small state, rounds of plan and apply come to rest: all containers run, or the pod
/// has ended, or it is forgotten; and a container that is as it should be is never stopped.
#[test]
fn every_small_start_comes_to_rest() {
    let lives = ["", "a0:run", "a0:new", "a0:exit,0", "a0:exit,1", "a0:unknown", "a1:run@s1"];
    let inits = ["", "I0:run", "I0:exit,0", "I0:exit,1"];
    let sandboxes = ["", "+0", "-0", "+0 +1", "-0 +1"];
    for policy in ["Always", "OnFailure", "Never"] {
        for life in lives {
            for init in inits {
                for sandbox in sandboxes {
                    rest(policy, &format!("{sandbox} {init} {life}"), false);
                    rest(policy, &format!("{sandbox} {init} {life}"), true);
                }
            }
        }
    }
}

fn rest(policy: &str, start: &str, deleting: bool) {
    let mut pod = pod(spec(policy, "Iab"), json!({}));
    if deleting {
        pod.metadata.deletion_timestamp = Some(Time(at(NOW)));
    }
    let mut world = World { seen: seen(start), now: NOW };
    let mut memory = ready();
    for _ in 0..60 {
        remember(&pod, &world.seen, &mut memory, at(world.now));
        let plan = plan_pod(&pod, &world.seen, &memory, at(world.now));
        if plan.actions == [Action::Forget] {
            assert!(world.seen.is_at_rest());
            return;
        }
        for action in &plan.actions {
            let code = matches!(action, Action::Start { container, .. } if container == "I");
            world.apply(action, code.then_some(0));
        }
        // Init containers seen running end by themselves in the next round.
        let mut moved = false;
        for c in world.seen.containers.iter_mut().filter(|c| c.name == "I") {
            if c.life.is_running() {
                c.life = seen("I0:exit,0").containers[0].life.clone();
                moved = true;
            }
        }
        if moved {
            continue;
        }
        match (plan.actions.is_empty(), plan.again) {
            (true, None) => {
                let runs = |name: &str| {
                    world.seen.lives(name).first().is_some_and(|c| c.life.is_running())
                };
                let ended = outcome(&pod, &world.seen).is_some() && world.seen.is_at_rest();
                let partly = policy != "Always" && (runs("a") || runs("b"));
                assert!(
                    ended || (runs("a") && runs("b")) || partly,
                    "{policy} {start:?} came to rest as {:?}",
                    world.seen
                );
                return;
            }
            (true, Some(again)) => world.now = again.as_second(),
            (false, _) => {}
        }
    }
    panic!("{policy} {start:?} does not come to rest: {:?}", world.seen);
}
