//! After which ends a container gets another life.
//!
//! Spec: upstream's restart policies of pods and of single containers, and the latter's
//! `restartPolicyRules`: the first rule that fits an exit code decides, then the container's own
//! policy, and the pod's for a container without one.
//! *Limits*: a rule's only action is `Restart`; one with another is no rule.

use objects::pod::{Container, Pod};
use serde_json::Value;

/// After which ends a container gets another life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Restart<'a> {
    policy: &'a str,
    rules: &'a [Value],
}

impl<'a> Restart<'a> {
    /// After any.
    pub(crate) const ALWAYS: Self = Self { policy: "Always", rules: &[] };
    /// After none.
    pub(crate) const NEVER: Self = Self { policy: "Never", rules: &[] };

    /// As an init container or one of the pod's own says, or its pod.
    pub(crate) fn of(pod: &'a Pod, container: &'a Container) -> Self {
        match container.restart_policy.as_deref() {
            None | Some("") => Self { policy: policy_of(pod), rules: &[] },
            // A sidecar has no rules, and needs none.
            Some("Always") => Self::ALWAYS,
            Some(policy) => {
                let rules = container.extra.get("restartPolicyRules").and_then(Value::as_array);
                Self { policy, rules: rules.map_or(&[], Vec::as_slice) }
            }
        }
    }

    /// Whether it gets one after an end with this code.
    pub(crate) fn wants(self, code: i32) -> bool {
        self.rules.iter().any(|rule| restarts(rule, code))
            || match self.policy {
                "Never" => false,
                "OnFailure" => code != 0,
                _ => true,
            }
    }
}

/// Whether a rule fits an exit code, and says so.
fn restarts(rule: &Value, code: i32) -> bool {
    let text = |at: &str| rule.pointer(at).and_then(Value::as_str);
    let values = rule.pointer("/exitCodes/values").and_then(Value::as_array);
    let has = || values.is_some_and(|all| all.iter().any(|one| one.as_i64() == Some(code.into())));
    text("/action") == Some("Restart")
        && match text("/exitCodes/operator") {
            Some("In") => has(),
            Some("NotIn") => !has(),
            _ => false,
        }
}

/// The pod's restart policy, with its default.
#[must_use]
pub fn policy_of(pod: &Pod) -> &str {
    match pod.spec.restart_policy.as_str() {
        "" => "Always",
        given => given,
    }
}

/// Tells whether an init container runs beside the pod's containers instead of before them.
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}
