//! Fairness as stories.

use serde_json::json;

use super::*;

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    User { groups, ..User::named(name) }.with_group(super::super::AUTHENTICATED)
}

fn get_pods(namespace: &str) -> Attributes {
    Attributes::on("list", "", "pods", "").in_namespace(namespace)
}

fn defaults(seats: u64) -> Flows {
    let mut flows = Flows::default();
    flows.configure(&default_objects(), seats);
    flows
}

#[test]
fn requests_belong_where_upstream_puts_them() {
    let flows = defaults(600);
    let lease = Attributes::on("update", "coordination.k8s.io", "leases", "l").in_namespace("n");
    let status = Attributes::on("patch", "", "nodes/status", "n1");
    for (who, asked, schema, level) in [
        (user("admin", &["system:masters"]), get_pods("a"), "exempt", "exempt"),
        (User::anonymous(), Attributes::of_path("get", "/readyz"), "probes", "exempt"),
        (
            user("system:kube-controller-manager", &[]),
            lease.clone(),
            "system-leader-election",
            "leader-election",
        ),
        (
            user("system:kube-controller-manager", &[]),
            get_pods("a"),
            "kube-controller-manager",
            "workload-high",
        ),
        (user("system:node:n1", &["system:nodes"]), status, "system-node-high", "node-high"),
        (user("system:node:n1", &["system:nodes"]), get_pods("a"), "system-nodes", "system"),
        (
            user("system:serviceaccount:kube-system:x", &["system:serviceaccounts"]),
            get_pods("a"),
            "kube-system-service-accounts",
            "workload-high",
        ),
        (
            user("system:serviceaccount:a:x", &["system:serviceaccounts"]),
            get_pods("a"),
            "service-accounts",
            "workload-low",
        ),
        (user("ann", &[]), get_pods("a"), "global-default", "global-default"),
        (user("ann", &[]), Attributes::of_path("get", "/api"), "global-default", "global-default"),
    ] {
        let class = flows.classify(&who, &asked);
        assert_eq!((&*class.schema.0, &*class.level.0), (schema, level), "{} {asked:?}", who.name);
        assert_eq!(class.exempt, level == "exempt");
    }
}

/// A level `l` with these seats and queues, and one schema per user.
fn single(queues: u64, hand: u64, length: u64) -> Flows {
    let mut flows = Flows::default();
    let level = json!({"kind": "PriorityLevelConfiguration", "metadata": {"name": "l", "uid": "u"},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {
            "type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}}}});
    let schema = json!({"kind": "FlowSchema", "metadata": {"name": "s", "uid": "v"},
        "spec": {"priorityLevelConfiguration": {"name": "l"}, "matchingPrecedence": 1,
                 "distinguisherMethod": {"type": "ByUser"},
                 "rules": [{"subjects": [{"kind": "Group", "group": {"name": "*"}}],
                            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"],
                                               "resources": ["*"], "namespaces": ["*"],
                                               "clusterScope": true}]}]}});
    flows.configure(&[level, schema], 2);
    flows
}

#[test]
fn who_asks_for_little_does_not_wait_behind_who_asks_for_much() {
    let mut flows = single(64, 4, 100);
    let greedy = flows.classify(&user("greedy", &[]), &get_pods("a"));
    let modest = flows.classify(&user("modest", &[]), &get_pods("a"));
    assert_eq!(greedy.schema.1, "v");
    for ticket in 0..2 {
        assert_eq!(flows.arrive(&greedy, ticket), Arrival::Runs);
    }
    for ticket in 2..50 {
        assert_eq!(flows.arrive(&greedy, ticket), Arrival::Waits);
    }
    assert_eq!(flows.arrive(&modest, 1000), Arrival::Waits);
    let mut turns = 0;
    loop {
        let called = flows.leave(&greedy);
        assert_eq!(called.len(), 1);
        turns += 1;
        if called == [1000] {
            break;
        }
    }
    // At most one turn for each queue of the greedy one's hand comes before.
    assert!(turns <= 5, "{turns} turns");
}

#[test]
fn a_full_queue_refuses_and_a_ticket_given_up_frees_its_place() {
    let mut flows = single(1, 1, 2);
    let class = flows.classify(&user("ann", &[]), &get_pods("a"));
    let arrivals: Vec<Arrival> = (0..5).map(|ticket| flows.arrive(&class, ticket)).collect();
    use Arrival::{Refused, Runs, Waits};
    assert_eq!(arrivals, [Runs, Runs, Waits, Waits, Refused]);
    assert!(flows.give_up(&class, 2));
    assert!(!flows.give_up(&class, 2));
    assert_eq!(flows.arrive(&class, 5), Waits);
    assert_eq!(flows.leave(&class), [3]);
    assert_eq!(flows.leave(&class), [5]);
    assert!(flows.leave(&class).is_empty());
    assert!(flows.leave(&class).is_empty());
    assert_eq!(flows.usage().next(), Some(("l", 0, 0)));
}

#[test]
fn an_idle_level_lends_and_gets_back_what_it_needs() {
    let mut flows = defaults(60);
    let robot = user("system:serviceaccount:a:x", &["system:serviceaccounts"]);
    let low = flows.classify(&robot, &get_pods("a"));
    let mut ran = 0;
    while flows.arrive(&low, ran) == Arrival::Runs {
        ran += 1;
    }
    let own = (60_u64 * 100).div_ceil(245);
    assert!(ran > own, "{ran} ran, {own} seats are its own");
    // What was not lent is there for its owner.
    let lease = Attributes::on("update", "coordination.k8s.io", "leases", "l").in_namespace("n");
    let leader = flows.classify(&user("system:kube-scheduler", &[]), &lease);
    assert_eq!(flows.arrive(&leader, 10_000), Arrival::Runs);
    assert_eq!(leader.level.0, "leader-election");
}

#[test]
fn what_runs_survives_a_new_configuration() {
    let mut flows = single(1, 1, 2);
    let class = flows.classify(&user("ann", &[]), &get_pods("a"));
    for ticket in 0..3 {
        flows.arrive(&class, ticket);
    }
    flows.configure(&default_objects(), 600);
    assert_eq!(flows.leave(&class), [2]);
    flows.leave(&class);
    flows.leave(&class);
    flows.configure(&default_objects(), 600);
    assert!(flows.usage().all(|(name, _, _)| name != "l"));
}

#[test]
fn hands_are_dealt_without_doubles() {
    for flow in 0..200_u64 {
        let mut hand = deal(hash("s", &flow.to_string()), 64, 6);
        assert!(hand.len() == 6 && hand.iter().all(|card| *card < 64));
        hand.sort_unstable();
        hand.dedup();
        assert_eq!(hand.len(), 6);
    }
    assert_eq!(deal(7, 2, 6).len(), 2);
    assert!(deal(7, 0, 6).is_empty());
}
