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

/// What all controllers of requests plan together.
fn decide(request: &Value, facts: RequestFacts, status: Value) -> Steps {
    let machine = json!({"metadata": {"name": "a"}, "spec": plan(), "status": status});
    let view = View {
        machines: Set::from_iter([Arc::new(serde_json::from_value(machine).unwrap())]),
        requests: Set::from_iter([Arc::new(serde_json::from_value(request.clone()).unwrap())]),
        facts: [("node-a-1".to_owned(), facts)].into(),
        ..View::default()
    };
    let (key, now) = (Key::new("", "node-a-1"), Timestamp::UNIX_EPOCH);
    let mut steps = reconcile(&view, &key, now);
    steps.extend(reconcile_upstream(&view, &key, now));
    steps
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
    foreign["spec"]["signerName"] = json!("example.com/signer");
    assert_eq!(decide(&foreign, facts(), json!({})), Steps::none());
    let mut denied = request();
    denied["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]});
    assert_eq!(decide(&denied, facts(), json!({})), Steps::none());
}

/// What becomes of an approved request to one of upstream's signers: signed, or why not.
#[track_caller]
fn check_upstream(signer: &str, usages: &[&str], facts: RequestFacts, expected: Option<&str>) {
    let mut request = request();
    let spec = json!({"signerName": format!("kubernetes.io/{signer}"), "usages": usages});
    request["spec"] = spec;
    assert_eq!(decide(&request, facts.clone(), json!({})), Steps::none(), "nobody approved it");
    request["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    let steps = decide(&request, facts.clone(), json!({}));
    match (steps.actions.as_slice(), expected) {
        ([Action::Sign { .. }], None) => (),
        ([Action::Patch { body, .. }], Some(why)) => {
            let failed = &body["status"]["conditions"][1];
            assert_eq!(failed["reason"], "SignerValidationFailure");
            assert!(failed["message"].as_str().unwrap().contains(why), "{failed}");
            request["status"] = body["status"].clone();
            assert_eq!(decide(&request, facts, json!({})), Steps::none(), "it is final");
        }
        (other, _) => panic!("{other:?} instead of {expected:?}"),
    }
}

#[test]
fn upstreams_signers_sign_what_a_person_approved_and_their_rules_allow() {
    let subject = |name: &str, organization: &str| RequestFacts {
        common_name: name.to_owned(),
        organizations: vec![organization.to_owned()],
        ..RequestFacts::default()
    };
    let (client, serving) = (["digital signature", "client auth"], ["server auth"]);
    let user = "kube-apiserver-client";
    check_upstream(user, &client, subject("jane", "lab"), None);
    check_upstream(user, &client, subject("jane", "system:masters"), Some("system:masters"));
    check_upstream(user, &serving, subject("jane", "lab"), Some("lack"));
    check_upstream(user, &["client auth", "any"], subject("jane", "lab"), Some("beyond"));
    let kubelet = "kube-apiserver-client-kubelet";
    let node = subject("system:node:b", "system:nodes");
    check_upstream(kubelet, &client, node.clone(), None);
    check_upstream(kubelet, &client, facts(), Some("subjectAltNames"));
    check_upstream(kubelet, &client, subject("jane", "lab"), Some("organization"));
    check_upstream("kubelet-serving", &serving, facts(), None);
    check_upstream("kubelet-serving", &serving, node, Some("at least one"));
}

/// Whether a request of this status is there so many seconds after it was made.
#[track_caller]
fn check_kept(status: Value, seconds: i64, kept: bool) {
    let mut request = request();
    request["metadata"]["creationTimestamp"] = json!("1970-01-01T00:00:00Z");
    request["status"] = status;
    let request = Arc::new(serde_json::from_value(request).unwrap());
    let view = View { requests: Set::from_iter([request]), ..View::default() };
    let now = Timestamp::from_second(seconds).unwrap();
    let steps = clean(&view, &Key::new("", "node-a-1"), now);
    assert_eq!(steps.actions.is_empty(), kept, "{steps:?}");
    assert_eq!(steps.again_at.is_some(), kept, "it is looked at again");
}

#[test]
fn old_requests_are_forgotten_sooner_when_they_are_decided() {
    let decided = |kind: &str, certificate: &str| {
        let at = "1970-01-01T01:00:00Z";
        let condition = json!({"type": kind, "status": "True", "lastUpdateTime": at});
        json!({"conditions": [condition], "certificate": certificate})
    };
    check_kept(json!({}), 86_399, true);
    check_kept(json!({}), 86_400, false);
    for status in [decided("Denied", ""), decided("Failed", ""), decided("Approved", "Y2VydA==")] {
        check_kept(status.clone(), 7199, true);
        check_kept(status, 7200, false);
    }
    check_kept(decided("Approved", ""), 7200, true);
}
