//! Which certificate requests of nodes are approved without a person, and when to sign.
//!
//! Only requests that came through the enrolment door count: there the server, not the
//! client, wrote who asks. Everything that does not fit the plan waits for
//! `muster approve`; a quarantined machine waits too. Requests to upstream's signers are signed
//! when a person approved them and upstream's rules hold (`upstream`).

mod upstream;

use jiff::{SignedDuration, Timestamp};
use objects::certificate::CertificateSigningRequest;
use objects::condition::{Condition, set_condition};
use objects::machine::Machine;
use objects::time::Time;
use serde_json::json;

use crate::action::{Action, Steps, Target, encode};
use crate::view::{Key, RequestFacts, View};

pub use upstream::{is_client, is_serving};

/// The signer of node certificates.
pub const SIGNER: &str = "muster.dev/node";
/// The user name the enrolment door writes into requests.
pub const ENROLLING: &str = "muster:enrolling";
/// Prefix of annotations with the hardware's evidence.
const EVIDENCE: &str = "muster.dev/evidence-";
/// Annotation that says why a request waits.
pub const WAITS_FOR: &str = "muster.dev/waits-for";
/// How long a request without a decision is kept, in seconds.
const KEEP: i64 = 24 * 3600;
/// How long one with a decision is.
const KEEP_DECIDED: i64 = 3600;

/// Plans the step for one request to our own signer.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(request) = view.requests.get("", &key.name).filter(|one| is_open(one)) else {
        return steps;
    };
    if request.spec.signer_name != SIGNER {
        return steps;
    }
    if request.is_approved() {
        if !has_failed(request) {
            steps.push(sign(view, request, now));
        }
        return steps;
    }
    match judge(view, request) {
        Ok(()) => steps.push(approve(request, now)),
        Err(why) => {
            if request.metadata.annotation(WAITS_FOR) != Some(why) {
                let body = json!({"metadata": {"annotations": {WAITS_FOR: why}}});
                steps.push(Action::patch(Target::of(&**request), body));
            }
        }
    }
    steps
}

fn is_open(request: &CertificateSigningRequest) -> bool {
    !request.metadata.is_deleting() && !request.is_issued() && !request.is_denied()
}

/// Forgets old requests: an hour after they were decided, or a day after they were made.
///
/// Spec: upstream's cleaner.
#[must_use]
pub fn clean(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(request) = view.requests.get("", &key.name) else { return steps };
    let Some(created) = request.metadata.creation_timestamp else { return steps };
    let end = |kind: &str| {
        let found = request.status.conditions.iter().find(|one| one.kind == kind)?;
        found.last_update_time.or(found.last_transition_time)
    };
    let decided = end("Denied").or_else(|| end("Failed"));
    let issued = end("Approved").filter(|_| request.is_issued());
    let (since, keep) = match decided.or(issued) {
        Some(at) => (at, KEEP_DECIDED),
        None => (created, KEEP),
    };
    let due = since.0.saturating_add(SignedDuration::from_secs(keep));
    let due = due.unwrap_or(Timestamp::MAX);
    if now < due {
        steps.look_again(due);
    } else if !request.metadata.is_deleting() {
        steps.push(Action::delete(Target::of(&**request)));
    }
    steps
}

/// Signs, unless even a person's approval must not be enough: this signer makes nodes, never
/// an administrator.
fn sign(view: &View, request: &CertificateSigningRequest, now: Timestamp) -> Action {
    let target = Target::of(request);
    if view.facts.get(&request.metadata.name).and_then(node_name).is_some() {
        return Action::Sign { target };
    }
    refuse(request, "The request is not for a node: the subject must be a node's.", now)
}

fn has_failed(request: &CertificateSigningRequest) -> bool {
    request.status.conditions.iter().any(|one| one.kind == "Failed")
}

/// Signs what a person approved for one of upstream's signers.
#[must_use]
pub fn reconcile_upstream(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(request) = view.requests.get("", &key.name).filter(|one| is_open(one)) else {
        return steps;
    };
    if !request.is_approved() || has_failed(request) {
        return steps;
    }
    match upstream::judge(request, view.facts.get(&request.metadata.name)) {
        Some(Ok(())) => steps.push(Action::Sign { target: Target::of(&**request) }),
        Some(Err(why)) => steps.push(refuse(request, why, now)),
        None => (),
    }
    steps
}

/// Writes down why nothing was signed; that is final.
fn refuse(request: &CertificateSigningRequest, message: &str, now: Timestamp) -> Action {
    let mut failed = Condition::new("Failed", true, "SignerValidationFailure", message);
    failed.last_update_time = Some(Time::from(now));
    let mut conditions = request.status.conditions.clone();
    set_condition(&mut conditions, failed, now);
    Action::patch_status(Target::of(request), json!({ "conditions": conditions }))
}

fn approve(request: &CertificateSigningRequest, now: Timestamp) -> Action {
    let mut object = request.clone();
    let message = "The machine is in the plan and its evidence matches.";
    let mut condition = Condition::new("Approved", true, "PlannedMachine", message);
    condition.last_update_time = Some(Time::from(now));
    set_condition(&mut object.status.conditions, condition, now);
    Action::Replace {
        target: Target::of(request),
        subresource: Some("approval"),
        object: Box::new(encode(&object)),
    }
}

/// Says what keeps a request from being approved without a person.
fn judge(view: &View, request: &CertificateSigningRequest) -> Result<(), &'static str> {
    if request.spec.username != ENROLLING {
        return Err("a person: it did not come through the enrolment door");
    }
    let Some(facts) = view.facts.get(&request.metadata.name) else {
        return Err("a person: its body is not a certificate request");
    };
    let name = node_name(facts).ok_or("a person: its subject is not that of a node")?;
    if !facts.names.iter().all(|one| one == name) {
        return Err("a person: it asks for names that are not the machine's");
    }
    let machine = view.machines.get("", name).ok_or("a person: no such machine in the plan")?;
    fits(request, facts, machine)
}

/// The node a request is for; `None` when the subject claims anything else.
fn node_name(facts: &RequestFacts) -> Option<&str> {
    let nodes = facts.organizations.as_slice() == ["system:nodes"];
    facts.common_name.strip_prefix("system:node:").filter(|name| nodes && !name.is_empty())
}

fn fits(
    request: &CertificateSigningRequest,
    facts: &RequestFacts,
    machine: &Machine,
) -> Result<(), &'static str> {
    if machine.status.quarantined {
        return Err("a person: the machine is quarantined");
    }
    let Ok(plan) = serde_json::from_value::<cluster::plan::Machine>(machine.spec.clone()) else {
        return Err("a person: the machine's plan does not read");
    };
    let evidence =
        |name: &str| request.metadata.annotation(&format!("{EVIDENCE}{name}")).unwrap_or_default();
    if !evidence("mac").eq_ignore_ascii_case(&plan.mac) {
        return Err("a person: the hardware address is not the planned one");
    }
    let differs = |planned: &Option<String>, name: &str| {
        planned.as_ref().is_some_and(|planned| !evidence(name).eq_ignore_ascii_case(planned))
    };
    if differs(&plan.uuid, "uuid") {
        return Err("a person: the system UUID is not the planned one");
    }
    if differs(&plan.serial, "serial") {
        return Err("a person: the serial number is not the planned one");
    }
    if facts.addresses != [plan.address.to_string()] {
        return Err("a person: the address is not the planned one");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
