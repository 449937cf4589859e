//! Admission policies: rules in CEL that need no webhook.
//!
//! A policy says what is right, a binding where that holds and what happens when it does not.
//!
//! What expressions say of the kinds they match is held against these kinds' schemas apart, by
//! [`plan_typing`]: such mistakes are told in the status, and refuse nothing.
//!
//! Spec: upstream's ValidatingAdmissionPolicy and MutatingAdmissionPolicy
//! (admissionregistration.k8s.io/v1).

mod typing;

use std::{collections::BTreeMap, sync::Arc};

pub use typing::plan_typing;

use objects::{
    Cause, Kind, Status,
    field::{str_at, value_at},
    kind::{self, KINDS},
    status::Details,
};
use serde_json::{Value as Json, json};

use crate::{
    admission::View,
    authority::{Attributes, User, audit::Level},
    cel::{
        Asked, Authorizer, Budget, COST_PER_REQUEST, Own, Program, Question, Sort, Value, Variable,
    },
    custom::Registry,
    said::Said,
    webhook::Matter,
};

/// Can an expression over these names be compiled?
pub(crate) fn compile(text: &str) -> Result<(), String> {
    Program::compile(text, &sorts()).map(drop).map_err(|err| err.to_string())
}

/// The values of names.
pub(crate) type Names = BTreeMap<String, Value>;

/// The names expressions of policies may use; all are anything, for a policy may match any kind.
pub(crate) fn sorts() -> BTreeMap<String, Sort<'static>> {
    let names =
        ["object", "oldObject", "request", "params", "namespaceObject", "variables", "authorizer"];
    names.into_iter().map(|name| (name.to_owned(), Sort::Dyn)).collect()
}

/// Answers expressions what the requester may do.
pub(crate) struct Door<'a> {
    pub(crate) user: &'a User,
    pub(crate) view: &'a dyn View,
}

impl Authorizer for Door<'_> {
    fn ask(&self, asked: &Asked<'_>) -> (bool, String) {
        let attributes = Attributes {
            verb: asked.verb.to_owned(),
            group: asked.group.to_owned(),
            resource: asked.resource.to_owned(),
            subresource: asked.subresource.to_owned(),
            namespace: asked.namespace.to_owned(),
            name: asked.name.to_owned(),
            path: asked.path.unwrap_or("").to_owned(),
            ..Attributes::default()
        };
        let account = asked.account.map(|(namespace, name)| User {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            ..User::default()
        });
        let user = account.as_ref().unwrap_or(self.user);
        (self.view.allows(user, &attributes), String::new())
    }
}

/// The values of the names for a request.
pub(crate) fn names(matter: &Matter<'_>, params: &Json) -> Names {
    let value = Value::of_json;
    let request = matter.request;
    let question = Question {
        group: request.kind.group.to_owned(),
        resource: request.kind.plural.to_owned(),
        subresource: request.subresource.clone(),
        namespace: request.namespace.clone(),
        name: matter.name(),
        ..Question::default()
    };
    [
        ("object", value(matter.object)),
        ("oldObject", value(matter.old)),
        ("request", value(&matter.to_request())),
        ("params", value(params)),
        ("namespaceObject", value(&matter.namespace().unwrap_or(Json::Null))),
        ("authorizer", Value::from(Own::Question(Question::default()))),
        ("authorizer.requestResource", Value::from(Own::Question(question))),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Do all conditions hold? One that is false decides, even beside one that fails.
pub(crate) fn conditions(all: &[Json], matter: &Matter<'_>) -> Result<bool, String> {
    let names = names(matter, &Json::Null);
    let mut trouble = None;
    for one in all {
        let text = str_at(one, "expression").unwrap_or("");
        match crate::webhook::condition(text, &names, matter) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => trouble = Some(why),
        }
    }
    trouble.map_or(Ok(true), Err)
}

/// A policy with one of its bindings and one object of parameters.
struct Case<'a> {
    policy: &'a Json,
    binding: &'a Json,
    params: Json,
}

fn list<'a>(value: &'a Json, path: &str) -> &'a [Json] {
    value_at(value, path).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

fn name_of(object: &Json) -> &str {
    str_at(object, "metadata.name").unwrap_or("")
}

/// Does `matchConstraints` or `matchResources` match?
fn fits(said: Option<&Json>, matter: &Matter<'_>) -> bool {
    let Some(said) = said else { return true };
    let exact = str_at(said, "matchPolicy") == Some("Exact");
    let any = |key: &str| list(said, key).iter().any(|rule| matter.fits_rule(rule, exact));
    let rules = said.get("resourceRules").and_then(Json::as_array);
    (rules.is_none_or(Vec::is_empty) || any("resourceRules"))
        && !any("excludeResourceRules")
        && matter.fits_selectors(said)
}

fn ignores(policy: &Json) -> bool {
    str_at(policy, "spec.failurePolicy") == Some("Ignore")
}

/// The cases of policies that a request is one of.
fn cases<'a>(
    policies: &'a [Json],
    bindings: &'a [Json],
    registry: &Registry,
    matter: &Matter<'_>,
) -> Result<Vec<Case<'a>>, Status> {
    let mut found = Vec::new();
    for policy in policies {
        if !fits(value_at(policy, "spec.matchConstraints"), matter) {
            continue;
        }
        let own = bindings.iter().filter(|one| {
            str_at(one, "spec.policyName") == Some(name_of(policy))
                && fits(value_at(one, "spec.matchResources"), matter)
        });
        let own: Vec<&Json> = own.collect();
        if own.is_empty() {
            continue;
        }
        match conditions(list(policy, "spec.matchConditions"), matter) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) if ignores(policy) => continue,
            Err(why) => return Err(denied(matter, policy, None, &why, "Invalid")),
        }
        for binding in own {
            match params(policy, binding, registry, matter) {
                Ok(all) => {
                    found.extend(all.into_iter().map(|params| Case { policy, binding, params }))
                }
                Err(_) if ignores(policy) => {}
                Err(why) => return Err(denied(matter, policy, Some(binding), &why, "Invalid")),
            }
        }
    }
    Ok(found)
}

/// The objects of parameters a binding names; one null when the policy has none.
fn params(
    policy: &Json,
    binding: &Json,
    registry: &Registry,
    matter: &Matter<'_>,
) -> Result<Vec<Json>, String> {
    let (Some(wanted), Some(reference)) =
        (value_at(policy, "spec.paramKind"), value_at(binding, "spec.paramRef"))
    else {
        return Ok(vec![Json::Null]);
    };
    let api_version = str_at(wanted, "apiVersion").unwrap_or("");
    let name = str_at(wanted, "kind").unwrap_or("");
    let kind = kind_of(registry, api_version, name).ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{api_version}, Kind={name}'")
    })?;
    let namespace = match str_at(reference, "namespace") {
        _ if !kind.namespaced => "",
        Some(namespace) => namespace,
        None => matter.request.namespace.as_str(),
    };
    let found = match str_at(reference, "name") {
        Some(name) => matter.view.get(kind, namespace, name).into_iter().collect(),
        None => {
            let selector = reference.get("selector").cloned().unwrap_or_else(|| json!({}));
            let selector: objects::LabelSelector =
                serde_json::from_value(selector).map_err(|err| err.to_string())?;
            let mut all = matter.view.list(kind, namespace);
            all.retain(|one| {
                selector.compile().is_some_and(|selector| selector.matches_object(one))
            });
            all
        }
    };
    if found.is_empty() && str_at(reference, "parameterNotFoundAction") != Some("Allow") {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned()
        );
    }
    Ok(found)
}

fn kind_of(registry: &Registry, api_version: &str, name: &str) -> Option<&'static Kind> {
    let (group, version) = kind::split_api_version(api_version);
    let builtin = KINDS.iter().find(|one| one.kind == name && one.is_served_in(group, version));
    builtin
        .copied()
        .or_else(|| registry.custom_kind(group, version, name).map(|custom| custom.kind))
}

/// Evaluates the expressions of one case, its variables worked out when they are asked for.
struct Evaluation<'a> {
    names: Names,
    variables: BTreeMap<String, Arc<crate::cel::Expr>>,
    door: Door<'a>,
    budget: Budget,
}

impl<'a> Evaluation<'a> {
    fn new(case: &Case<'_>, matter: &Matter<'a>, object: Option<&Json>) -> Result<Self, String> {
        let mut names = names(matter, &case.params);
        if let Some(object) = object {
            names.insert("object".to_owned(), Value::of_json(object));
        }
        let mut variables = BTreeMap::new();
        for one in list(case.policy, "spec.variables") {
            let (name, text) =
                (str_at(one, "name").unwrap_or(""), str_at(one, "expression").unwrap_or(""));
            let (program, _) = Program::compile(text, &sorts())
                .map_err(|err| format!("composited variable \"{name}\": {err}"))?;
            variables.insert(name.to_owned(), program.expr);
        }
        let door = Door { user: matter.user, view: matter.view };
        Ok(Self { names, variables, door, budget: Budget { left: COST_PER_REQUEST } })
    }

    fn eval(&mut self, text: &str) -> Result<Value, String> {
        let (program, _) = Program::compile(text, &sorts()).map_err(|err| err.to_string())?;
        let mut names: BTreeMap<String, Variable<'_>> = self
            .names
            .iter()
            .map(|(name, value)| (name.clone(), Variable::Value(value.clone())))
            .collect();
        names.insert("variables".to_owned(), Variable::Lazy(&self.variables));
        program
            .eval(names, Some(&self.door), &mut self.budget)
            .map_err(|err| format!("expression '{text}' resulted in error: {err}"))
    }
}

fn denied(
    matter: &Matter<'_>,
    policy: &Json,
    binding: Option<&Json>,
    why: &str,
    reason: &str,
) -> Status {
    let title = format!("{} '{}'", str_at(policy, "kind").unwrap_or("policy"), name_of(policy));
    let message = match binding {
        Some(binding) => {
            format!("{title} with binding '{}' denied request: {why}", name_of(binding))
        }
        None => format!("{title} denied request: {why}"),
    };
    let mut status = Status::forbidden(matter.request.kind, &matter.name(), &message);
    status.code = match reason {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    reason.clone_into(&mut status.reason);
    let cause = Cause { reason: String::new(), message, field: String::new() };
    status.details.get_or_insert_with(Details::default).causes.push(cause);
    status
}

/// A rule that does not hold, as the audit log has it.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure<'a> {
    message: String,
    policy: &'a str,
    binding: &'a str,
    expression_index: usize,
    validation_actions: &'a [Json],
}

/// Where the audit log has the rules that do not hold.
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

/// What the cases of a request add up to.
#[derive(Default)]
struct Heard<'a> {
    /// The first reason to deny it.
    denial: Option<Status>,
    failures: Vec<Failure<'a>>,
    /// Values for the audit log by key; of several bindings each value is told once.
    annotations: BTreeMap<String, Vec<String>>,
}

impl<'a> Heard<'a> {
    fn deny(&mut self, matter: &Matter<'_>, case: &Case<'_>, why: &str, reason: &str) {
        self.denial
            .get_or_insert_with(|| denied(matter, case.policy, Some(case.binding), why, reason));
    }

    /// Hears one case.
    fn hear(&mut self, case: &Case<'a>, matter: &Matter<'_>, said: &mut Said) {
        let mut evaluation = match Evaluation::new(case, matter, None) {
            Ok(evaluation) => evaluation,
            Err(_) if ignores(case.policy) => return,
            Err(why) => return self.deny(matter, case, &why, "Invalid"),
        };
        let actions = list(case.binding, "spec.validationActions");
        let does = |action: &str| actions.iter().any(|one| one == action);
        let (policy, binding) = (name_of(case.policy), name_of(case.binding));
        for (at, validation) in list(case.policy, "spec.validations").iter().enumerate() {
            let text = str_at(validation, "expression").unwrap_or("");
            let why = match evaluation.eval(text) {
                Ok(Value::Bool(true)) => continue,
                Ok(_) => explain(&mut evaluation, validation, text),
                Err(_) if ignores(case.policy) => continue,
                Err(why) => why,
            };
            if does("Deny") || actions.is_empty() {
                let reason = str_at(validation, "reason").unwrap_or("Invalid");
                self.deny(matter, case, &why, reason);
            }
            if does("Warn") {
                said.warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding \
                     '{binding}': {why}"
                ));
            }
            if does("Audit") {
                let (message, expression_index, validation_actions) = (why, at, actions);
                let failure =
                    Failure { message, policy, binding, expression_index, validation_actions };
                self.failures.push(failure);
            }
        }
        for one in list(case.policy, "spec.auditAnnotations") {
            match annotation(&mut evaluation, one) {
                Ok(Some(value)) => {
                    let key = format!("{policy}/{}", str_at(one, "key").unwrap_or(""));
                    let all = self.annotations.entry(key).or_default();
                    if !all.contains(&value) {
                        all.push(value);
                    }
                }
                Ok(None) => {}
                Err(_) if ignores(case.policy) => {}
                Err(why) => self.deny(matter, case, &why, "Invalid"),
            }
        }
    }
}

/// Holds a request against validating policies; all of them speak, also when one denies it.
///
/// # Errors
///
/// When a policy denies it; the first one's reason.
pub fn validate(
    policies: &[Json],
    bindings: &[Json],
    registry: &Registry,
    matter: &Matter<'_>,
    said: &mut Said,
) -> Result<(), Status> {
    let mut heard = Heard::default();
    for case in cases(policies, bindings, registry, matter)? {
        heard.hear(&case, matter, said);
    }
    for (key, values) in heard.annotations {
        said.annotate(Level::Metadata, key, values.join(", "));
    }
    if !heard.failures.is_empty() {
        let text = serde_json::to_string(&heard.failures).unwrap_or_default();
        said.annotate(Level::Metadata, FAILURES, text);
    }
    heard.denial.map_or(Ok(()), Err)
}

/// What a policy has for the audit log; `None` when its expression is null or blank.
fn annotation(evaluation: &mut Evaluation<'_>, said: &Json) -> Result<Option<String>, String> {
    let text = str_at(said, "valueExpression").unwrap_or("");
    match evaluation.eval(text)? {
        Value::String(value) => {
            let value = value.trim();
            Ok((!value.is_empty()).then(|| value.to_owned()))
        }
        Value::Null => Ok(None),
        _ => Err(format!("valueExpression '{text}' resulted in unsupported return type")),
    }
}

/// What is said of a rule that does not hold.
fn explain(evaluation: &mut Evaluation<'_>, validation: &Json, text: &str) -> String {
    let computed = str_at(validation, "messageExpression")
        .and_then(|text| evaluation.eval(text).ok())
        .and_then(|value| match value {
            Value::String(text) if !text.trim().is_empty() => Some(text.to_string()),
            _ => None,
        });
    let fixed = str_at(validation, "message").filter(|text| !text.is_empty()).map(str::to_owned);
    computed.or(fixed).unwrap_or_else(|| format!("failed expression: {}", text.trim()))
}

/// Which policies are asked: all, or after webhooks changed the object those that want to see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// All that match.
    First,
    /// Those with `reinvocationPolicy: IfNeeded`.
    Again,
}

/// The object after mutating policies; `merge` lays an apply configuration over an object.
///
/// # Errors
///
/// When an expression fails and its policy does not ignore that.
pub fn mutate(
    policies: &[Json],
    bindings: &[Json],
    registry: &Registry,
    matter: &Matter<'_>,
    round: Round,
    merge: &dyn Fn(&Json, &Json) -> Json,
) -> Result<Json, Status> {
    let mut object = matter.object.clone();
    for case in cases(policies, bindings, registry, matter)? {
        let again = str_at(case.policy, "spec.reinvocationPolicy") == Some("IfNeeded");
        if round == Round::Again && !again {
            continue;
        }
        for mutation in list(case.policy, "spec.mutations") {
            match mutate_once(&case, matter, mutation, &object, merge) {
                Ok(changed) => object = changed,
                Err(_) if ignores(case.policy) => {}
                Err(why) => {
                    return Err(denied(matter, case.policy, Some(case.binding), &why, "Invalid"));
                }
            }
        }
    }
    Ok(object)
}

fn mutate_once(
    case: &Case<'_>,
    matter: &Matter<'_>,
    mutation: &Json,
    object: &Json,
    merge: &dyn Fn(&Json, &Json) -> Json,
) -> Result<Json, String> {
    let mut evaluation = Evaluation::new(case, matter, Some(object))?;
    if let Some(text) = str_at(mutation, "applyConfiguration.expression") {
        let made = evaluation.eval(text)?.to_json().filter(Json::is_object);
        let made = made.ok_or("applyConfiguration must evaluate to Object")?;
        return Ok(merge(object, &made));
    }
    let text = str_at(mutation, "jsonPatch.expression").unwrap_or("");
    let made = evaluation.eval(text)?.to_json().ok_or("jsonPatch must evaluate to JSONPatch")?;
    let patch: json_patch::Patch =
        serde_json::from_value(made).map_err(|err| format!("invalid JSON patch: {err}"))?;
    let mut changed = object.clone();
    json_patch::patch(&mut changed, &patch).map_err(|err| format!("JSON Patch: {err}"))?;
    Ok(changed)
}

/// The mistakes in a policy that can be seen when it is written.
#[must_use]
pub fn check(policy: &Json) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut names = sorts();
    if value_at(policy, "spec.paramKind").is_none_or(Json::is_null) {
        names.remove("params");
    }
    let mut try_out = |path: String, text: &str, names: &BTreeMap<String, Sort<'static>>| {
        let made = Program::compile(text, names);
        if let Err(err) = &made {
            let why = format!("compilation failed: {err}");
            causes.push(Cause::invalid(path, &json!(text), &why));
        }
        made.map_or(Sort::Dyn, |(_, sort)| sort)
    };
    // Conditions come before variables, and variables know those before them.
    names.remove("variables");
    for (at, one) in list(policy, "spec.matchConditions").iter().enumerate() {
        let path = format!("spec.matchConditions[{at}].expression");
        try_out(path, str_at(one, "expression").unwrap_or_default(), &names);
    }
    let mut members = BTreeMap::new();
    for (at, one) in list(policy, "spec.variables").iter().enumerate() {
        names.insert("variables".to_owned(), Sort::Members(members.clone()));
        let path = format!("spec.variables[{at}].expression");
        let sort = try_out(path, str_at(one, "expression").unwrap_or_default(), &names);
        members.insert(str_at(one, "name").unwrap_or_default().to_owned(), sort);
    }
    names.insert("variables".to_owned(), Sort::Members(members));
    for (key, inner) in [
        ("validations", "expression"),
        ("validations", "messageExpression"),
        ("auditAnnotations", "valueExpression"),
        ("mutations", "applyConfiguration.expression"),
        ("mutations", "jsonPatch.expression"),
    ] {
        for (at, one) in list(policy, &format!("spec.{key}")).iter().enumerate() {
            if let Some(text) = str_at(one, inner) {
                try_out(format!("spec.{key}[{at}].{inner}"), text, &names);
            }
        }
    }
    causes
}

#[cfg(test)]
mod tests;
