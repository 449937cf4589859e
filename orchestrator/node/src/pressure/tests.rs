//! Thresholds, pressures and the order of evictions, as data.

use super::*;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn memory(available: i64) -> BTreeMap<Signal, Reading> {
    BTreeMap::from([(Signal::Memory, Reading { available, capacity: 1000 })])
}

fn limits(grace: Option<i64>, reclaim: i64) -> Limits {
    let grace = grace.map(SignedDuration::from_secs);
    let below = Amount::Whole(100);
    let reclaim = Amount::Whole(reclaim);
    Limits {
        thresholds: vec![Threshold { signal: Signal::Memory, below, grace, reclaim }],
        transition: SignedDuration::from_secs(30),
        soft_grace_seconds: 5,
    }
}

/// Readings ten seconds apart; `p` is told pressure, `!` is an eviction.
#[track_caller]
fn check(limits: &Limits, available: &[i64], expected: &str) {
    let mut watch = Watch::default();
    let mut told = Vec::new();
    for (index, available) in available.iter().enumerate() {
        let now = at(1000 + 10 * i64::try_from(index).unwrap());
        let judgement = watch.judge(limits, &memory(*available), now);
        let pressed = if judgement.pressures.is_empty() { "." } else { "p" };
        told.push(format!("{pressed}{}", if judgement.relief.is_some() { "!" } else { "" }));
    }
    assert_eq!(told.join(" "), expected);
}

#[test]
fn a_threshold_acts_at_once_and_its_pressure_stays_a_while() {
    check(&limits(None, 0), &[100, 99, 100, 100, 100, 100], ". p! p p . .");
}

#[test]
fn a_soft_threshold_waits_for_its_grace() {
    check(&limits(Some(20), 0), &[99, 99, 99, 100], "p p p! p");
    check(&limits(Some(20), 0), &[99, 100, 99, 99, 99], "p p p p p!");
}

#[test]
fn more_than_the_threshold_is_reclaimed() {
    check(&limits(None, 50), &[120, 99, 120, 149, 150, 120], ". p! p! p! p p");
}

#[test]
fn parts_are_of_the_capacity_and_memory_comes_first() {
    let readings = BTreeMap::from([
        (Signal::Memory, Reading { available: 1, capacity: 1 << 30 }),
        (Signal::DiskBytes, Reading { available: 99, capacity: 1000 }),
        (Signal::ImageBytes, Reading { available: 150, capacity: 1000 }),
        (Signal::Pids, Reading { available: 5, capacity: 9 }),
    ]);
    let judgement = Watch::default().judge(&Limits::default(), &readings, at(0));
    let pressures: Vec<_> = judgement.pressures.iter().map(|p| p.condition()).collect();
    assert_eq!(pressures, ["MemoryPressure", "DiskPressure", "PIDPressure"]);
    assert_eq!(judgement.relief.unwrap().signal, Signal::Memory);
    assert_eq!(Limits::default().kept(Signal::DiskBytes, 1000), 100);
}

#[test]
fn what_cannot_be_read_is_left_as_it_was() {
    let (limits, mut watch) = (limits(None, 0), Watch::default());
    assert!(watch.judge(&limits, &memory(1), at(0)).relief.is_some());
    let blind = watch.judge(&limits, &BTreeMap::new(), at(1));
    assert_eq!((blind.pressures.len(), blind.relief), (1, None));
}

fn pod(name: &str, priority: i64, request: &str, limit: &str) -> Pod {
    let amounts = |amount: &str| match amount {
        "" => json!({}),
        amount => json!({"memory": amount, "ephemeral-storage": amount}),
    };
    let resources = json!({"requests": amounts(request), "limits": amounts(limit)});
    serde_json::from_value(json!({"metadata": {"name": name, "uid": name},
        "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]}}))
    .unwrap()
}

fn usage(bytes: i64) -> Usage {
    let share = Share { memory_bytes: bytes, disk_bytes: bytes };
    Usage { containers: BTreeMap::from([("c".to_owned(), share)]), volumes: BTreeMap::new() }
}

#[test]
fn pods_end_in_the_order_of_excess_priority_and_usage() {
    let mut pods = vec![
        (pod("system", SYSTEM_PRIORITY, "", ""), usage(900)),
        (pod("guaranteed", 0, "500", "500"), usage(500)),
        (pod("modest", 0, "500", ""), usage(10)),
        (pod("important", 10, "", ""), usage(800)),
        (pod("best-small", 0, "", ""), usage(5)),
        (pod("best-large", 0, "", ""), usage(50)),
        (pod("burst", 0, "100", ""), usage(130)),
        (pod("low", -1, "100", ""), usage(101)),
    ];
    for signal in [Signal::Memory, Signal::ImageBytes] {
        let mut left = pods.clone();
        let mut order = Vec::new();
        loop {
            let all: Vec<_> = left.iter().map(|(pod, usage)| (pod, usage)).collect();
            let Some(name) = choose(&all, signal).map(|pod| pod.metadata.name.clone()) else {
                break;
            };
            left.retain(|(pod, _)| pod.metadata.name != name);
            order.push(name);
        }
        assert_eq!(
            order,
            ["low", "best-large", "burst", "best-small", "important", "guaranteed", "modest"]
        );
    }
    pods.truncate(1);
    assert_eq!(choose(&[(&pods[0].0, &pods[0].1)], Signal::Pids), None);
}

#[test]
fn the_verdict_says_who_used_what() {
    let relief =
        Relief { signal: Signal::Memory, wanted: 100 << 20, available: 64 << 20, grace_seconds: 1 };
    let verdict = evict(&pod("p", 0, "1Mi", ""), &usage(3 << 20), relief);
    assert_eq!(
        verdict.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 64Mi. \
         Container c was using 3Mi, request is 1Mi, has larger consumption of memory. "
    );
    assert_eq!((verdict.reason.as_str(), verdict.grace_seconds), ("Evicted", Some(1)));
}

#[test]
fn limits_of_local_storage_end_a_pod() {
    let told = |pod: &Pod, usage: &Usage| overdrawn(pod, usage).map(|verdict| verdict.message);
    let limited = pod("p", 0, "", "1k");
    assert!(is_limited(&limited) && !is_limited(&pod("p", 0, "", "")));
    assert_eq!(told(&limited, &usage(1000)), None);
    let message = told(&limited, &usage(1001)).unwrap();
    assert!(message.starts_with("Pod ephemeral local storage usage exceeds"), "{message}");
    let mut scratch = pod("p", 0, "", "");
    let volume: Value = json!({"name": "v", "emptyDir": {"sizeLimit": "1Ki"}});
    scratch.spec.volumes = vec![serde_json::from_value(volume).unwrap()];
    let mut used = usage(1 << 30);
    used.volumes.insert("v".to_owned(), 1025);
    assert_eq!(
        told(&scratch, &used).unwrap(),
        "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". "
    );
}

#[test]
fn a_pressed_node_takes_only_what_it_must() {
    let check = |pod: &Pod, pressures: &[Pressure], expected: Option<&str>| {
        let refused = refuse(pod, &pressures.iter().copied().collect());
        assert_eq!(refused.map(|verdict| verdict.message).as_deref(), expected);
    };
    let best = pod("p", 0, "", "");
    check(&best, &[], None);
    let words = "Pod was rejected: The node had condition: [MemoryPressure]. ";
    check(&best, &[Pressure::Memory], Some(words));
    check(&pod("p", 0, "1", ""), &[Pressure::Memory], None);
    check(&pod("p", SYSTEM_PRIORITY, "", ""), &[Pressure::Disk], None);
    let words = "Pod was rejected: The node had condition: [DiskPressure]. ";
    check(&pod("p", 0, "1", ""), &[Pressure::Disk], Some(words));
    let mut bears = best.clone();
    let toleration = json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"});
    bears.spec.tolerations = vec![serde_json::from_value(toleration).unwrap()];
    check(&bears, &[Pressure::Memory], None);
}
