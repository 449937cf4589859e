use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::view::Set;

fn plan() -> Value {
    json!({
        "name": "a", "rack": "r1", "node": 11, "role": "worker", "address": "10.98.1.11",
        "prefixLen": 24, "gateway": "10.98.1.1", "mac": "52:54:00:00:01:0b", "boot": "bios",
        "podCIDR": "172.20.11.0/24", "asn": 4_200_000_011_u32, "uuid": "aa-bb",
    })
}

fn facts() -> RequestFacts {
    RequestFacts {
        common_name: "system:node:a".to_owned(),
        organizations: vec!["system:nodes".to_owned()],
        addresses: vec!["10.98.1.11".to_owned()],
        names: vec![],
    }
}

fn request() -> Value {
    json!({
        "metadata": {"name": "node-a-1", "uid": "u", "annotations": {
            "muster.dev/evidence-mac": "52:54:00:00:01:0B", "muster.dev/evidence-uuid": "AA-BB",
        }},
        "spec": {"signerName": SIGNER, "username": ENROLLING},
    })
}

fn decide(request: &Value, facts: RequestFacts, status: Value) -> Steps {
    let machine = json!({"metadata": {"name": "a"}, "spec": plan(), "status": status});
    let view = View {
        machines: Set::from_iter([Arc::new(serde_json::from_value(machine).unwrap())]),
        requests: Set::from_iter([Arc::new(serde_json::from_value(request.clone()).unwrap())]),
        facts: [("node-a-1".to_owned(), facts)].into(),
        ..View::default()
    };
    reconcile(&view, &Key::new("", "node-a-1"), Timestamp::UNIX_EPOCH)
}

#[track_caller]
fn waits(steps: &Steps, why: &str) {
    let [Action::Patch { body, .. }] = steps.actions.as_slice() else { panic!("{steps:?}") };
    let said = body["metadata"]["annotations"][WAITS_FOR].as_str().unwrap();
    assert!(said.contains(why), "{said}");
}

#[test]
fn a_planned_machine_is_approved_then_signed_then_left_alone() {
    let steps = decide(&request(), facts(), json!({}));
    let [Action::Replace { subresource: Some("approval"), object, .. }] = steps.actions.as_slice()
    else {
        panic!("{steps:?}");
    };
    let mut next = Value::clone(object);
    let steps = decide(&next, facts(), json!({}));
    assert!(matches!(steps.actions.as_slice(), [Action::Sign { .. }]), "{steps:?}");
    next["status"]["certificate"] = json!("Y2VydA==");
    assert_eq!(decide(&next, facts(), json!({})), Steps::none());
}

#[test]
fn everything_else_waits_for_a_person_and_says_why() {
    let other = |change: fn(&mut RequestFacts)| {
        let mut facts = facts();
        change(&mut facts);
        decide(&request(), facts, json!({}))
    };
    waits(&other(|facts| facts.addresses = vec!["10.98.1.12".to_owned()]), "address");
    waits(&other(|facts| facts.addresses.clear()), "address");
    waits(&other(|facts| facts.common_name = "system:node:b".to_owned()), "no such machine");
    waits(&other(|facts| facts.common_name = "admin".to_owned()), "subject");
    waits(&other(|facts| facts.organizations.push("system:masters".to_owned())), "subject");
    waits(&other(|facts| facts.names.push("kubernetes".to_owned())), "names");
    waits(&decide(&request(), facts(), json!({"quarantined": true})), "quarantined");
    for (name, why) in [("mac", "hardware address"), ("uuid", "UUID")] {
        let mut request = request();
        request["metadata"]["annotations"][format!("muster.dev/evidence-{name}")] = json!("x");
        waits(&decide(&request, facts(), json!({})), why);
    }
    let mut stranger = request();
    stranger["spec"]["username"] = json!("system:node:a");
    waits(&decide(&stranger, facts(), json!({})), "enrolment door");
}

#[test]
fn not_even_a_person_makes_this_signer_sign_an_administrator() {
    let mut approved = request();
    approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    let admin = RequestFacts {
        common_name: "admin".to_owned(),
        organizations: vec!["system:masters".to_owned()],
        ..RequestFacts::default()
    };
    let steps = decide(&approved, admin, json!({}));
    let [Action::Patch { subresource: Some("status"), body, .. }] = steps.actions.as_slice() else {
        panic!("{steps:?}");
    };
    approved["status"] = body["status"].clone();
    assert_eq!(decide(&approved, facts(), json!({})), Steps::none());
}

#[test]
fn other_signers_and_denied_requests_are_not_ours() {
    let mut foreign = request();
    foreign["spec"]["signerName"] = json!("kubernetes.io/kube-apiserver-client");
    assert_eq!(decide(&foreign, facts(), json!({})), Steps::none());
    let mut denied = request();
    denied["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]});
    assert_eq!(decide(&denied, facts(), json!({})), Steps::none());
}
