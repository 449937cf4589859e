//! Writes that would hand out power: nobody gives away what it does not have.
//!
//! A role may hold only what its author holds, unless the author may `escalate`; a binding may
//! give only a role whose rules its author holds, unless the author may `bind` it; a certificate
//! request is approved or signed only by who may do so for its signer.
//!
//! Spec: upstream's privilege escalation prevention and its certificate admission.

use objects::field::Fields as _;
use objects::{Cause, Status, field::str_at, status::Details};
use serde_json::Value;

use super::rbac::{Rbac, Rule, quoted, uncovered};
use super::{Attributes, Facts, MASTERS, User, decide};
use crate::request::Request;

const RBAC: &str = "rbac.authorization.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";

/// Can a write to this resource hand out power at all?
#[must_use]
pub fn concerns(request: &Request) -> bool {
    matches!(request.kind.group, RBAC | CERTIFICATES)
}

/// Checks a write against what its author holds; `old` is `None` for a new object.
///
/// # Errors
///
/// 403 when it would give away what the author does not hold, 404 when a bound role is missing.
pub fn check(
    user: &User,
    request: &Request,
    old: Option<&Value>,
    new: &Value,
    rbac: &Rbac,
    facts: &dyn Facts,
) -> Result<(), Status> {
    if user.is_in(MASTERS) {
        return Ok(());
    }
    let asks = Asks { user, request, rbac, facts };
    match (request.kind.group, request.kind.plural, request.subresource.as_str()) {
        (RBAC, "roles" | "clusterroles", "") => asks.role(old, new),
        (RBAC, "rolebindings" | "clusterrolebindings", "") => asks.binding(old, new),
        (CERTIFICATES, "certificatesigningrequests", "approval") => asks.signer(new, "approve"),
        (CERTIFICATES, "certificatesigningrequests", "status") => {
            let certificate = |object: Option<&Value>| {
                object.and_then(|one| one.field("status.certificate").cloned())
            };
            let failed = |object: Option<&Value>| object.is_some_and(has_failed);
            let signs =
                certificate(old) != certificate(Some(new)) || failed(old) != failed(Some(new));
            if signs { asks.signer(new, "sign") } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

fn has_failed(request: &Value) -> bool {
    let conditions = request.field("status.conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|one| str_at(one, "type") == Some("Failed"))
}

struct Asks<'a> {
    user: &'a User,
    request: &'a Request,
    rbac: &'a Rbac,
    facts: &'a dyn Facts,
}

impl Asks<'_> {
    fn may(&self, asked: &Attributes) -> bool {
        decide(self.user, asked, self.rbac, self.facts).allowed
    }

    fn role(&self, old: Option<&Value>, new: &Value) -> Result<(), Status> {
        let rules = Rule::of_role(new);
        let aggregates =
            |role: &Value| role.get("aggregationRule").filter(|r| !r.is_null()).cloned();
        let unchanged = old
            .is_some_and(|old| Rule::of_role(old) == rules && aggregates(old) == aggregates(new));
        let name = str_at(new, "metadata.name").unwrap_or("");
        let escalate = Attributes::on("escalate", RBAC, self.request.kind.plural, name);
        if unchanged || self.may(&escalate.in_namespace(&self.request.namespace)) {
            return Ok(());
        }
        if aggregates(new).is_some() && old.and_then(aggregates) != aggregates(new) {
            // What it will gather nobody knows yet, so its author must hold everything.
            let every = |text: &str| vec![text.to_owned()];
            let everything = [
                Rule {
                    verbs: every("*"),
                    groups: every("*"),
                    resources: every("*"),
                    ..Rule::default()
                },
                Rule { verbs: every("*"), urls: every("*"), ..Rule::default() },
            ];
            let missing = self.missing(&everything);
            if !missing.is_empty() {
                return Err(self.refuse(
                    name,
                    "must have cluster-admin privileges to use the aggregationRule",
                ));
            }
        }
        self.hold(name, &rules)
    }

    fn binding(&self, old: Option<&Value>, new: &Value) -> Result<(), Status> {
        let same = |key: &str| old.is_some_and(|old| old.get(key) == new.get(key));
        let (kind, role) =
            (str_at(new, "roleRef.kind").unwrap_or(""), str_at(new, "roleRef.name").unwrap_or(""));
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        let bind = Attributes::on("bind", RBAC, plural, role).in_namespace(&self.request.namespace);
        if (same("subjects") && same("roleRef")) || self.may(&bind) {
            return Ok(());
        }
        let Some(rules) = self.rbac.role(&self.request.namespace, kind, role) else {
            let message = format!("{plural}.{RBAC} \"{role}\" not found");
            return Err(Status::failure(404, "NotFound", message).with(Details {
                name: role.to_owned(),
                group: RBAC.to_owned(),
                kind: plural.to_owned(),
                ..Details::default()
            }));
        };
        self.hold(str_at(new, "metadata.name").unwrap_or(""), rules)
    }

    fn missing(&self, rules: &[Rule]) -> Vec<Rule> {
        let (held, _) = self.rbac.rules_for(self.user, &self.request.namespace);
        uncovered(&held, rules)
    }

    fn hold(&self, name: &str, rules: &[Rule]) -> Result<(), Status> {
        let missing = self.missing(rules);
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let why = format!(
            "user \"{}\" (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            self.user.name,
            quoted(&self.user.groups),
            missing.join("\n"),
        );
        Err(self.refuse(name, &why))
    }

    fn refuse(&self, name: &str, why: &str) -> Status {
        Status::forbidden(self.request.kind, name, why)
    }

    fn signer(&self, request: &Value, verb: &str) -> Result<(), Status> {
        let signer = str_at(request, "spec.signerName").unwrap_or("");
        let domain = format!("{}/*", signer.split('/').next().unwrap_or(""));
        let on = |name: &str| Attributes::on(verb, CERTIFICATES, "signers", name);
        if self.may(&on(signer)) || self.may(&on(&domain)) {
            return Ok(());
        }
        let why = format!("user not permitted to {verb} requests with signerName \"{signer}\"");
        Err(self.refuse(str_at(request, "metadata.name").unwrap_or(""), &why))
    }
}

/// A bound role never changes: delete the binding and make another.
#[must_use]
pub fn changed_role(old: &Value, new: &Value) -> Option<Cause> {
    let role = |object: &Value| object.get("roleRef").cloned().unwrap_or(Value::Null);
    (role(old) != role(new)).then(|| Cause::invalid("roleRef", &role(new), "cannot change roleRef"))
}
