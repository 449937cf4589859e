//! Roles, webhooks, policies, priorities, limits and quotas.

use std::collections::BTreeSet;

use objects::{Kind, Quantity, name};
use serde_json::{Value, json};

use super::{Check, items, metadata, text};

/// The greatest priority a user may give.
const PRIORITY_MAX: i64 = 1_000_000_000;
const RBAC: &str = "rbac.authorization.k8s.io";

/// Checks a role of a namespace or of the cluster.
pub(super) fn check_role(check: &mut Check, kind: &Kind, object: &Value) {
    for (at, rule) in items(object, "rules").iter().enumerate() {
        let path = format!("rules[{at}]");
        if items(rule, "verbs").is_empty() {
            check.required(format!("{path}.verbs"), "verbs must contain at least one value");
        }
        let (resources, urls) = (items(rule, "resources"), items(rule, "nonResourceURLs"));
        let groups = items(rule, "apiGroups");
        if !urls.is_empty() {
            if kind.namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                check.invalid(format!("{path}.nonResourceURLs"), &json!(urls), why);
            }
            if !resources.is_empty() || !groups.is_empty() {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                check.invalid(format!("{path}.nonResourceURLs"), &json!(urls), why);
            }
            continue;
        }
        if groups.is_empty() {
            let why = "resource rules must supply at least one api group";
            check.required(format!("{path}.apiGroups"), why);
        }
        if resources.is_empty() {
            let why = "resource rules must supply at least one resource";
            check.required(format!("{path}.resources"), why);
        }
    }
}

/// Checks who has a role.
pub(super) fn check_binding(check: &mut Check, kind: &Kind, object: &Value) {
    let role = object.get("roleRef").unwrap_or(&Value::Null);
    check.one_of("roleRef.apiGroup", role.get("apiGroup"), &[RBAC]);
    let kinds: &[&str] = if kind.namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    let said = text(role, "kind");
    if !kinds.contains(&said) {
        check.causes.push(objects::Cause::unsupported("roleRef.kind", &json!(said), kinds));
    }
    check.name("roleRef.name", text(role, "name"), name::check_path_segment);
    for (at, subject) in items(object, "subjects").iter().enumerate() {
        let path = format!("subjects[{at}]");
        if text(subject, "name").is_empty() {
            check.required(format!("{path}.name"), "");
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                if text(subject, "namespace").is_empty() && !kind.namespaced {
                    check.required(format!("{path}.namespace"), "");
                }
                check.one_of(&format!("{path}.apiGroup"), subject.get("apiGroup"), &[""]);
            }
            "User" | "Group" => {
                check.one_of(&format!("{path}.apiGroup"), subject.get("apiGroup"), &[RBAC]);
            }
            other => check.causes.push(objects::Cause::unsupported(
                format!("{path}.kind"),
                &json!(other),
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

/// Checks a webhook configuration.
pub(super) fn check_webhooks(check: &mut Check, object: &Value) {
    let mut names = BTreeSet::new();
    for (at, hook) in items(object, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{at}]");
        let at = |field: &str| format!("{path}.{field}");
        let said = text(hook, "name");
        check.name(&at("name"), said, name::check_dns_subdomain);
        if !said.is_empty() && said.split('.').count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            check.invalid(at("name"), &json!(said), why);
        }
        check.once(&at("name"), said, &mut names);
        if items(hook, "admissionReviewVersions").is_empty() {
            check.required(at("admissionReviewVersions"), "must specify one of v1, v1beta1");
        }
        check.one_of(&at("failurePolicy"), hook.get("failurePolicy"), &["Fail", "Ignore"]);
        check.one_of(&at("matchPolicy"), hook.get("matchPolicy"), &["Equivalent", "Exact"]);
        let again = ["IfNeeded", "Never"];
        check.one_of(&at("reinvocationPolicy"), hook.get("reinvocationPolicy"), &again);
        let allowed = ["None", "NoneOnDryRun"];
        match hook.get("sideEffects") {
            None => check.required(at("sideEffects"), "must specify one of None, NoneOnDryRun"),
            some => check.one_of(&at("sideEffects"), some, &allowed),
        }
        if let Some(seconds) = hook.get("timeoutSeconds").and_then(Value::as_i64)
            && !(1..=30).contains(&seconds)
        {
            let why = "the timeout value must be between 1 and 30 seconds";
            check.invalid(at("timeoutSeconds"), &json!(seconds), why);
        }
        for field in ["namespaceSelector", "objectSelector"] {
            if let Some(selector) = hook.get(field) {
                metadata::selector(check, &at(field), selector);
            }
        }
        check_conditions(check, &at("matchConditions"), items(hook, "matchConditions"));
        check_rules(check, &at("rules"), items(hook, "rules"));
        check_client(check, &at("clientConfig"), hook.get("clientConfig"));
    }
}

/// Conditions have names, and expressions that can be compiled.
fn check_conditions(check: &mut Check, path: &str, conditions: &[Value]) {
    let mut names = BTreeSet::new();
    for (at, condition) in conditions.iter().enumerate() {
        let name = text(condition, "name");
        check.name(&format!("{path}[{at}].name"), name, name::check_label_key);
        check.once(&format!("{path}[{at}].name"), name, &mut names);
        let place = format!("{path}[{at}].expression");
        let expression = text(condition, "expression");
        if expression.trim().is_empty() {
            check.required(place, "");
        } else if let Err(why) = crate::policy::compile(expression) {
            check.invalid(place, &json!(expression), &format!("compilation failed: {why}"));
        }
    }
}

fn check_client(check: &mut Check, path: &str, client: Option<&Value>) {
    let client = client.unwrap_or(&Value::Null);
    match (client.get("url").and_then(Value::as_str), client.get("service")) {
        (None, None) | (Some(_), Some(_)) => {
            check.required(path, "exactly one of url or service is required");
        }
        (Some(url), None) => {
            if !url.starts_with("https://") {
                let why = "'https' is the only allowed URL scheme";
                check.invalid(format!("{path}.url"), &json!(url), why);
            }
        }
        (None, Some(service)) => {
            for (field, why) in [
                ("name", "service name is required"),
                ("namespace", "service namespace is required"),
            ] {
                if text(service, field).is_empty() {
                    check.required(format!("{path}.service.{field}"), why);
                }
            }
            check.range(&format!("{path}.service.port"), service.get("port"), 1, 65_535);
        }
    }
}

fn check_rules(check: &mut Check, path: &str, rules: &[Value]) {
    let verbs = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (at, rule) in rules.iter().enumerate() {
        let place = format!("{path}[{at}]");
        for field in ["apiGroups", "apiVersions", "operations", "resources"] {
            if items(rule, field).is_empty() {
                check.required(format!("{place}.{field}"), "");
            }
        }
        for (number, verb) in items(rule, "operations").iter().enumerate() {
            check.one_of(&format!("{place}.operations[{number}]"), Some(verb), &verbs);
        }
        let scopes = ["*", "Cluster", "Namespaced"];
        check.one_of(&format!("{place}.scope"), rule.get("scope"), &scopes);
    }
}

/// Checks a policy in CEL, but for its expressions.
pub(super) fn check_admission_policy(check: &mut Check, kind: &Kind, spec: &Value) {
    check.one_of("spec.failurePolicy", spec.get("failurePolicy"), &["Fail", "Ignore"]);
    match spec.get("matchConstraints") {
        None => check.required("spec.matchConstraints", ""),
        Some(what) => {
            let rules = items(what, "resourceRules");
            if rules.is_empty() {
                check.required("spec.matchConstraints.resourceRules", "");
            }
            check_rules(check, "spec.matchConstraints.resourceRules", rules);
        }
    }
    if let Some(param) = spec.get("paramKind") {
        for field in ["apiVersion", "kind"] {
            if text(param, field).is_empty() {
                check.required(format!("spec.paramKind.{field}"), "");
            }
        }
    }
    if kind.kind != "ValidatingAdmissionPolicy" {
        if items(spec, "mutations").is_empty() {
            check.required("spec.mutations", "mutations must contain at least one item");
        }
        return;
    }
    let rules = items(spec, "validations");
    if rules.is_empty() && items(spec, "auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must be specified";
        check.required("spec.validations", why);
    }
    for (at, rule) in rules.iter().enumerate() {
        if text(rule, "expression").trim().is_empty() {
            check.required(
                format!("spec.validations[{at}].expression"),
                "expression is not specified",
            );
        }
    }
}

/// Checks where a policy in CEL holds.
pub(super) fn check_policy_binding(check: &mut Check, kind: &Kind, spec: &Value) {
    if text(spec, "policyName").is_empty() {
        check.required("spec.policyName", "");
    }
    if kind.kind != "ValidatingAdmissionPolicyBinding" {
        return;
    }
    let actions = items(spec, "validationActions");
    if actions.is_empty() {
        check.required("spec.validationActions", "at least one validation action is required");
    }
    for (at, action) in actions.iter().enumerate() {
        let path = format!("spec.validationActions[{at}]");
        check.one_of(&path, Some(action), &["Audit", "Deny", "Warn"]);
    }
    let has = |word: &str| actions.iter().any(|action| action == word);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure \
                   information in the API response and headers serves no purpose)";
        check.invalid("spec.validationActions", &json!(actions), why);
    }
}

/// Checks a priority class.
pub(super) fn check_priority(check: &mut Check, object: &Value) {
    let said = text(object, "metadata.name");
    let value = object.get("value").and_then(Value::as_i64).unwrap_or(0);
    let own = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    if said.starts_with("system-") {
        if !own.contains(&(said, value)) {
            let why = format!(
                "priority class names with 'system-' prefix are reserved for system use only. \
                 error: {said} is not a known system priority class"
            );
            check.forbidden("metadata.name", &why);
        }
    } else if value > PRIORITY_MAX {
        let why = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        check.forbidden("value", &why);
    }
    let policies = ["Never", "PreemptLowerPriority"];
    check.one_of("preemptionPolicy", object.get("preemptionPolicy"), &policies);
}

/// Checks a limit range.
pub(super) fn check_limits(check: &mut Check, spec: &Value) {
    let mut seen = BTreeSet::new();
    for (at, limit) in items(spec, "limits").iter().enumerate() {
        let path = format!("spec.limits[{at}]");
        let kind = text(limit, "type");
        if kind.is_empty() {
            check.required(format!("{path}.type"), "");
        }
        check.once(&format!("{path}.type"), kind, &mut seen);
        if kind == "Pod" {
            for field in ["default", "defaultRequest"] {
                let set =
                    limit.get(field).and_then(Value::as_object).is_some_and(|a| !a.is_empty());
                if set {
                    let why = "may not be specified when `type` is 'Pod'";
                    check.forbidden(format!("{path}.{field}"), why);
                }
            }
        }
        let amount = |field: &str, name: &str| -> Option<Quantity> {
            limit.get(field)?.get(name)?.as_str()?.parse().ok()
        };
        for (low, high) in [
            ("min", "max"),
            ("min", "defaultRequest"),
            ("defaultRequest", "max"),
            ("min", "default"),
            ("default", "max"),
            ("defaultRequest", "default"),
        ] {
            let names = limit.get(low).and_then(Value::as_object).into_iter().flatten();
            for (name, _) in names {
                let (Some(less), Some(more)) = (amount(low, name), amount(high, name)) else {
                    continue;
                };
                if less > more {
                    let word = |field: &str| {
                        match field {
                            "defaultRequest" => "default request",
                            other => other,
                        }
                        .to_owned()
                    };
                    let why = format!(
                        "{} value {less} is greater than {} value {more}",
                        word(low),
                        word(high)
                    );
                    check.invalid(format!("{path}.{low}[{name}]"), &json!(less.to_string()), &why);
                }
            }
        }
    }
}

/// The scopes of quotas.
const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// What quotas count by names of upstream's own.
const STANDARD_RESOURCES: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// Checks a quota.
pub(super) fn check_quota(check: &mut Check, spec: &Value) {
    for (name, amount) in spec.get("hard").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("spec.hard[{name}]");
        if name::check_label_key(name).is_err() {
            check.invalid(path.clone(), &json!(name), "must be a standard resource for quota");
        }
        let amount: Option<Quantity> = amount.as_str().and_then(|text| text.parse().ok());
        if let Some(amount) = amount.filter(Quantity::is_negative) {
            check.invalid(path, &json!(amount.to_string()), "must be greater than or equal to 0");
        }
    }
    let all = items(spec, "scopes");
    for scope in all.iter().filter_map(Value::as_str) {
        check_scope(check, "spec.scopes", &json!(all), scope, spec);
    }
    let has = |word: &str| all.iter().any(|scope| scope == word);
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(one) && has(other) {
            check.invalid("spec.scopes", &json!(all), "conflicting scopes");
        }
    }
    let selector = spec.get("scopeSelector").unwrap_or(&Value::Null);
    let path = "spec.scopeSelector.matchExpressions";
    for one in items(selector, "matchExpressions") {
        let (scope, operator) = (text(one, "scopeName"), text(one, "operator"));
        let values = items(one, "values");
        if SCOPES.contains(&scope) {
            check_scope(check, path, selector, scope, spec);
        } else {
            check.invalid(format!("{path}.scopeName"), &json!(scope), "unsupported scope");
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && operator != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                       ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                       ResourceQuotaScopeNotBestEffort or \
                       ResourceQuotaScopeCrossNamespacePodAffinity";
            check.invalid(format!("{path}.operator"), &json!(operator), why);
        }
        match (operator, values.is_empty()) {
            ("In" | "NotIn", true) => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for \
                           scope selector";
                check.required(format!("{path}.values"), why);
            }
            ("Exists" | "DoesNotExist", false) => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for \
                           scope selector";
                check.invalid(format!("{path}.values"), &json!(values), why);
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            _ => {
                let why = "not a valid selector operator";
                check.invalid(format!("{path}.operator"), &json!(operator), why);
            }
        }
    }
}

/// Checks a quota's scope, and that what is counted can be of it.
fn check_scope(check: &mut Check, path: &str, shown: &Value, scope: &str, spec: &Value) {
    let fits = |resource: &str| match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ if SCOPES.contains(&scope) => matches!(
            resource,
            "pods"
                | "cpu"
                | "memory"
                | "requests.cpu"
                | "requests.memory"
                | "limits.cpu"
                | "limits.memory"
        ),
        _ => true,
    };
    if !SCOPES.contains(&scope) {
        check.invalid(path, shown, "unsupported scope");
    }
    let hard = spec.get("hard").and_then(Value::as_object).into_iter().flatten();
    for (resource, _) in hard {
        if STANDARD_RESOURCES.contains(&resource.as_str()) && !fits(resource) {
            check.invalid(path, shown, "unsupported scope applied to resource");
        }
    }
}

/// Checks a flow schema.
pub(super) fn check_flow_schema(check: &mut Check, spec: &Value) {
    let level = "spec.priorityLevelConfiguration.name";
    if text(spec, "priorityLevelConfiguration.name").is_empty() {
        check.required(level, "must reference a priority level");
    }
    let order = spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0);
    if order <= 0 {
        check.invalid("spec.matchingPrecedence", &json!(order), "must be a positive value");
    } else if order > 10_000 {
        let why = "must not be greater than 10000";
        check.invalid("spec.matchingPrecedence", &json!(order), why);
    }
    for (at, rule) in items(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        if items(rule, "subjects").is_empty() {
            check.required(format!("{path}.subjects"), "subjects must contain at least one value");
        }
        if items(rule, "resourceRules").is_empty() && items(rule, "nonResourceRules").is_empty() {
            let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
            check.required(path.clone(), why);
        }
        let required = [
            ("verbs", "verbs must contain at least one value"),
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ];
        for (number, one) in items(rule, "resourceRules").iter().enumerate() {
            let place = format!("{path}.resourceRules[{number}]");
            for (field, why) in required {
                if items(one, field).is_empty() {
                    check.required(format!("{place}.{field}"), why);
                }
            }
            let everywhere = one.get("clusterScope").and_then(Value::as_bool).unwrap_or(false);
            if items(one, "namespaces").is_empty() && !everywhere {
                let why = "resource rules that are not cluster scoped must supply at least one \
                           namespace";
                check.required(format!("{place}.namespaces"), why);
            }
        }
        for (number, one) in items(rule, "nonResourceRules").iter().enumerate() {
            let place = format!("{path}.nonResourceRules[{number}]");
            for (field, why) in [
                ("verbs", "verbs must contain at least one value"),
                ("nonResourceURLs", "nonResourceURLs must contain at least one value"),
            ] {
                if items(one, field).is_empty() {
                    check.required(format!("{place}.{field}"), why);
                }
            }
        }
    }
}

/// Checks a priority level.
pub(super) fn check_priority_level(check: &mut Check, spec: &Value) {
    match (text(spec, "type"), spec.get("limited")) {
        ("Exempt", Some(_)) => {
            let why = "must be nil if the type is not Limited";
            check.forbidden("spec.limited", why);
        }
        ("Exempt", None) => {}
        ("Limited", None) => {
            check.required("spec.limited", "must not be empty when type is Limited")
        }
        ("Limited", Some(limited)) => {
            let path = "spec.limited.nominalConcurrencyShares";
            check.not_negative(path, limited.get("nominalConcurrencyShares"));
            check.range("spec.limited.lendablePercent", limited.get("lendablePercent"), 0, 100);
            let response = limited.get("limitResponse").unwrap_or(&Value::Null);
            let kind = "spec.limited.limitResponse.type";
            check.one_of(kind, response.get("type"), &["Queue", "Reject"]);
            if response.get("type").is_none() {
                check.required(kind, "");
            }
            let path = "spec.limited.limitResponse.queuing";
            match (text(response, "type"), response.get("queuing")) {
                ("Reject", Some(_)) => {
                    check.forbidden(
                        path,
                        "must be nil if limited.limitResponse.type is not Limited",
                    );
                }
                ("Queue", Some(queuing)) => check_queuing(check, path, queuing),
                _ => {}
            }
        }
        (other, _) => check.causes.push(objects::Cause::unsupported(
            "spec.type",
            &json!(other),
            &["Exempt", "Limited"],
        )),
    }
}

/// Checks how requests wait.
fn check_queuing(check: &mut Check, path: &str, queuing: &Value) {
    let number = |field: &str| queuing.get(field).and_then(Value::as_i64);
    for (field, most) in [("queueLengthLimit", None), ("queues", Some(10_000_000))] {
        let Some(found) = number(field) else { continue };
        if found <= 0 {
            check.invalid(format!("{path}.{field}"), &json!(found), "must be positive");
        } else if most.is_some_and(|most| found > most) {
            let why = "must not be greater than 10000000";
            check.invalid(format!("{path}.{field}"), &json!(found), why);
        }
    }
    if let (Some(hand), queues) = (number("handSize"), number("queues")) {
        if hand <= 0 {
            check.invalid(format!("{path}.handSize"), &json!(hand), "must be positive");
        } else if let Some(queues) = queues.filter(|queues| hand > *queues) {
            let why = format!("should not be greater than queues ({queues})");
            check.invalid(format!("{path}.handSize"), &json!(hand), &why);
        }
    }
}
