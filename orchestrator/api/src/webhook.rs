//! Admission webhooks without their sockets: which are asked, what they are asked, what they said.
//!
//! What matching means is shared with admission policies: the rules of both are the same.
//!
//! *Limits*: objects are sent in the version they are stored in, also when a rule matched another
//! version of the same kind.
//!
//! Spec: upstream's admission.k8s.io/v1 and admissionregistration.k8s.io/v1.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use objects::field::Fields as _;
use objects::{Kind, LabelSelector, Status, field::str_at, kind};
use serde_json::{Value, json};

use crate::{
    admission::View,
    authority::{User, audit::Level},
    cel::{Budget, COST_PER_REQUEST, EvalError, Program, Variable},
    policy::{self, Names},
    request::Request,
    said::Said,
};

/// How long a webhook may take when it does not say.
const TIMEOUT_SECONDS: u64 = 10;

/// What is being admitted.
pub struct Matter<'a> {
    /// The request.
    pub request: &'a Request,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    /// The object as it would be; null for deletions.
    pub object: &'a Value,
    /// The object as it is; null for creations.
    pub old: &'a Value,
    /// Who asks.
    pub user: &'a User,
    /// The cluster around it.
    pub view: &'a dyn View,
    /// A fresh uid for the review.
    pub uid: &'a str,
}

/// A webhook that is to be asked.
#[derive(Debug, Clone)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The name of its configuration.
    pub configuration: String,
    /// Where it is: `clientConfig`.
    pub client: Value,
    /// Seconds it may take.
    pub timeout_seconds: u64,
    /// Does the request go on when it cannot be asked?
    pub ignores_failure: bool,
    /// Is it asked again when a later one changed the object?
    pub reinvoked: bool,
    said: Value,
}

/// What a webhook said.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The object with the webhook's patch, if it sent one.
    pub patched: Option<Value>,
    /// Warnings for the client.
    pub warnings: Vec<String>,
}

/// The labels of a value's metadata.
fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object.field("metadata.labels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn selects(selector: Option<&Value>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector.filter(|one| one.as_object().is_some_and(|all| !all.is_empty()))
    else {
        return true;
    };
    serde_json::from_value::<LabelSelector>(selector.clone())
        .is_ok_and(|selector| selector.matches(labels))
}

fn texts<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn has(value: &Value, key: &str, wanted: &str) -> bool {
    texts(value, key).any(|one| one == "*" || one == wanted)
}

impl Matter<'_> {
    /// The namespace's object, if the request is in one.
    #[must_use]
    pub fn namespace(&self) -> Option<Value> {
        let name = self.request.namespace.as_str();
        (!name.is_empty()).then(|| self.view.get(&kind::NAMESPACE, "", name))?
    }

    /// Does a rule (operations, groups, versions, resources, scope) match? `exact` tells whether
    /// other versions of the same kind count.
    pub(crate) fn fits_rule(&self, rule: &Value, exact: bool) -> bool {
        let kind = self.request.kind;
        if !has(rule, "operations", self.operation) || !fits_scope(rule, self.request) {
            return false;
        }
        let own = [(self.request.served.group, self.request.served.version)];
        let stored = [(kind.group, kind.version)];
        let aliases = kind.aliases.iter().map(|alias| (alias.group, alias.version));
        let mut versions =
            own.into_iter().chain(stored.into_iter().chain(aliases).filter(|_| !exact));
        let resource = texts(rule, "resources").any(|pattern| {
            let (plural, part) = pattern.split_once('/').unwrap_or((pattern, ""));
            let part_fits = match (pattern, part) {
                ("*", _) => self.request.subresource.is_empty(),
                (_, "*") => true,
                (_, part) => part == self.request.subresource,
            };
            (plural == "*" || plural == kind.plural) && part_fits
        });
        let named = rule.get("resourceNames").and_then(Value::as_array);
        let named = named.is_none_or(|all| {
            all.is_empty() || all.iter().any(|one| one.as_str() == Some(self.name().as_str()))
        });
        resource
            && named
            && versions.any(|(group, version)| {
                has(rule, "apiGroups", group) && has(rule, "apiVersions", version)
            })
    }

    /// Do the selectors for namespaces and objects match?
    pub(crate) fn fits_selectors(&self, said: &Value) -> bool {
        let namespaces = said.get("namespaceSelector");
        let in_scope = if *self.request.kind == kind::NAMESPACE {
            let own = if self.object.is_null() { self.old } else { self.object };
            selects(namespaces, &labels(own))
        } else if self.request.namespace.is_empty() {
            true
        } else {
            selects(namespaces, &self.namespace().map(|one| labels(&one)).unwrap_or_default())
        };
        let objects = said.get("objectSelector");
        let either = [self.object, self.old];
        in_scope
            && (objects.is_none()
                || either.iter().any(|one| !one.is_null() && selects(objects, &labels(one))))
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> String {
        let said = |object: &Value| str_at(object, "metadata.name").unwrap_or("").to_owned();
        match said(self.object) {
            name if !name.is_empty() => name,
            _ if !self.request.name.is_empty() => self.request.name.clone(),
            _ => said(self.old),
        }
    }

    /// The `request` of a review, and the variable of that name in expressions.
    #[must_use]
    pub fn to_request(&self) -> Value {
        let request = self.request;
        let kind = request.kind;
        let (group, version) = (request.served.group, request.served.version);
        let gvk = match self.operation {
            // Of a connection its options are the object.
            "CONNECT" => json!({"group": "", "version": "v1",
                "kind": str_at(self.object, "kind").unwrap_or(kind.kind)}),
            _ => json!({"group": group, "version": version, "kind": kind.kind}),
        };
        let gvr = json!({"group": group, "version": version, "resource": kind.plural});
        let extra: BTreeMap<_, _> = self.user.extra.iter().collect();
        let mut made = json!({
            "uid": self.uid,
            "kind": gvk, "requestKind": gvk, "resource": gvr, "requestResource": gvr,
            "name": self.name(), "operation": self.operation,
            "userInfo": {"username": self.user.name, "uid": self.user.uid,
                         "groups": self.user.groups, "extra": extra},
            "dryRun": request.options.dry_run,
            "options": self.options(),
        });
        if let Some(fields) = made.as_object_mut() {
            if !request.namespace.is_empty() {
                fields.insert("namespace".to_owned(), json!(request.namespace));
            }
            if !request.subresource.is_empty() {
                fields.insert("subResource".to_owned(), json!(request.subresource));
                fields.insert("requestSubResource".to_owned(), json!(request.subresource));
            }
        }
        made
    }

    fn options(&self) -> Value {
        let name = match self.operation {
            "CONNECT" => return Value::Null,
            "CREATE" => "CreateOptions",
            "UPDATE" => "UpdateOptions",
            _ => "DeleteOptions",
        };
        let mut made = json!({"kind": name, "apiVersion": "meta.k8s.io/v1"});
        let options = &self.request.options;
        if let Some(fields) = made.as_object_mut() {
            if options.dry_run {
                fields.insert("dryRun".to_owned(), json!(["All"]));
            }
            if !options.field_manager.is_empty() {
                fields.insert("fieldManager".to_owned(), json!(options.field_manager));
            }
        }
        made
    }
}

fn fits_scope(rule: &Value, request: &Request) -> bool {
    // A namespace is an object of the cluster, whatever its own requests look like.
    match str_at(rule, "scope").unwrap_or("*") {
        "Cluster" => !request.kind.namespaced,
        "Namespaced" => request.kind.namespaced,
        _ => true,
    }
}

/// Kinds that decide about admission are not themselves admitted: nobody could mend a mistake.
#[must_use]
pub fn is_exempt(kind: &Kind) -> bool {
    kind.group == "admissionregistration.k8s.io"
}

/// The webhooks of configurations that are to be asked, in order.
///
/// # Errors
///
/// When a match condition cannot be evaluated and the webhook does not ignore failures.
pub fn plan(configurations: &[Value], matter: &Matter<'_>) -> Result<Vec<Hook>, Status> {
    let mut hooks = Vec::new();
    for configuration in configurations {
        let all = configuration.get("webhooks").and_then(Value::as_array);
        for said in all.into_iter().flatten() {
            let exact = str_at(said, "matchPolicy") == Some("Exact");
            let rules = said.get("rules").and_then(Value::as_array);
            let fits = rules.into_iter().flatten().any(|rule| matter.fits_rule(rule, exact));
            if !fits || !matter.fits_selectors(said) {
                continue;
            }
            let hook = read(said, str_at(configuration, "metadata.name").unwrap_or(""));
            if !meets_conditions(&hook, matter)? {
                continue;
            }
            let effects = str_at(said, "sideEffects").unwrap_or("");
            if matter.request.options.dry_run && !matches!(effects, "None" | "NoneOnDryRun") {
                let why = format!("admission webhook \"{}\" does not support dry run", hook.name);
                return Err(Status::bad_request(why));
            }
            hooks.push(hook);
        }
    }
    Ok(hooks)
}

fn read(said: &Value, configuration: &str) -> Hook {
    Hook {
        name: str_at(said, "name").unwrap_or("").to_owned(),
        configuration: configuration.to_owned(),
        client: said.get("clientConfig").cloned().unwrap_or(Value::Null),
        timeout_seconds: said
            .get("timeoutSeconds")
            .and_then(Value::as_u64)
            .unwrap_or(TIMEOUT_SECONDS)
            .clamp(1, 30),
        ignores_failure: str_at(said, "failurePolicy") == Some("Ignore"),
        reinvoked: str_at(said, "reinvocationPolicy") == Some("IfNeeded"),
        said: said.clone(),
    }
}

/// Do all `matchConditions` hold? One that is false decides, even beside one that fails.
fn meets_conditions(hook: &Hook, matter: &Matter<'_>) -> Result<bool, Status> {
    let conditions = hook.said.get("matchConditions").and_then(Value::as_array);
    let Some(conditions) = conditions.filter(|all| !all.is_empty()) else { return Ok(true) };
    match policy::conditions(conditions, matter) {
        Ok(met) => Ok(met),
        Err(_) if hook.ignores_failure => Ok(false),
        Err(why) => {
            let why = format!("admission webhook \"{}\" denied the request: {why}", hook.name);
            Err(Status::failure(403, "Forbidden", why))
        }
    }
}

/// What a client wants of a connection to a pod, service or node, as an object.
#[must_use]
pub fn connect_options(request: &Request) -> Value {
    let part = match request.subresource.as_str() {
        "attach" => "Attach",
        "exec" => "Exec",
        "portforward" => "PortForward",
        _ => "Proxy",
    };
    let mut made = serde_json::Map::new();
    made.insert("kind".to_owned(), json!(format!("{}{part}Options", request.kind.kind)));
    made.insert("apiVersion".to_owned(), json!("v1"));
    for (key, value) in &request.options.raw {
        match key.as_str() {
            "stdin" | "stdout" | "stderr" | "tty" => {
                made.insert(key.clone(), json!(matches!(value.as_str(), "true" | "1" | "t")));
            }
            "container" | "path" => {
                made.insert(key.clone(), json!(value));
            }
            "command" | "ports" => {
                let one = if key == "ports" {
                    value.parse::<u16>().map_or(Value::Null, Value::from)
                } else {
                    json!(value)
                };
                if let Some(list) =
                    made.entry(key.clone()).or_insert_with(|| json!([])).as_array_mut()
                {
                    list.push(one);
                }
            }
            _ => {}
        }
    }
    Value::Object(made)
}

/// The review that is sent.
#[must_use]
pub fn review(matter: &Matter<'_>) -> Value {
    let mut request = matter.to_request();
    if let Some(fields) = request.as_object_mut() {
        fields.insert("object".to_owned(), matter.object.clone());
        fields.insert("oldObject".to_owned(), matter.old.clone());
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

/// Reads a webhook's answer to a review of `object`.
///
/// # Errors
///
/// `Err(Ok(status))` when it refuses the request, `Err(Err(why))` when it makes no sense.
pub fn verdict(
    hook: &Hook,
    uid: &str,
    object: &Value,
    answer: &Value,
) -> Result<Verdict, Result<Status, String>> {
    let Some(response) = answer.get("response") else {
        return Err(Err("webhook response was absent".to_owned()));
    };
    if str_at(response, "uid") != Some(uid) {
        let found = str_at(response, "uid").unwrap_or("");
        return Err(Err(format!("expected response.uid={uid:?}, got {found:?}")));
    }
    let warnings = texts(response, "warnings").map(str::to_owned).collect();
    if response.get("allowed") != Some(&json!(true)) {
        return Err(Ok(refusal(hook, response)));
    }
    let Some(patch) = str_at(response, "patch").filter(|patch| !patch.is_empty()) else {
        return Ok(Verdict { patched: None, warnings });
    };
    if str_at(response, "patchType") != Some("JSONPatch") {
        return Err(Err("unknown patchType".to_owned()));
    }
    let operations = STANDARD
        .decode(patch)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<json_patch::Patch>(&bytes).ok());
    let Some(operations) = operations else {
        return Err(Err("the patch is no JSON patch".to_owned()));
    };
    let mut patched = object.clone();
    if let Err(err) = json_patch::patch(&mut patched, &operations) {
        return Err(Err(err.to_string()));
    }
    Ok(Verdict { patched: Some(patched), warnings })
}

/// What a webhook's answer has for the audit log, also when it refuses the request.
pub fn annotate(hook: &Hook, answer: &Value, said: &mut Said) {
    let all = answer.field("response.auditAnnotations").and_then(Value::as_object);
    for (key, value) in all.into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        said.annotate(Level::Metadata, format!("{}/{key}", hook.name), value);
    }
}

/// Tells the audit log what a mutating webhook did, and what it changed where bodies are noted.
///
/// `round` and `index` say when it was asked: its place among all webhooks of the cluster.
pub fn annotate_mutation(
    hook: &Hook,
    (round, index): (usize, usize),
    answer: &Value,
    said: &mut Said,
) {
    let patch = str_at(answer, "response.patch").and_then(|patch| STANDARD.decode(patch).ok());
    let patch = patch.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let changed = patch.as_ref().and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    let place = format!("webhook.admission.k8s.io/round_{round}_index_{index}");
    let (configuration, webhook) = (&hook.configuration, &hook.name);
    let told = json!({"configuration": configuration, "webhook": webhook, "mutated": changed});
    said.annotate(Level::Metadata, format!("mutation.{place}"), told.to_string());
    if changed {
        let told = json!({"configuration": configuration, "webhook": webhook,
                          "patch": patch, "patchType": "JSONPatch"});
        said.annotate(Level::Request, format!("patch.{place}"), told.to_string());
    }
}

/// Tells the audit log that a webhook could not be asked, and that nobody minded.
pub fn annotate_failure(hook: &Hook, how: &str, (round, index): (usize, usize), said: &mut Said) {
    let key = format!("failed-open.{how}.webhook.admission.k8s.io/round_{round}_index_{index}");
    said.annotate(Level::Metadata, key, hook.name.clone());
}

fn refusal(hook: &Hook, response: &Value) -> Status {
    let by = format!("admission webhook \"{}\" denied the request", hook.name);
    let text = |key: &str| str_at(response, &format!("status.{key}")).unwrap_or("");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = response.field("status.code").and_then(Value::as_u64);
    let code = code.and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    Status::failure(code.unwrap_or(403), text("reason"), message)
}

/// The failure to ask a webhook that must be asked.
#[must_use]
pub fn unreachable(hook: &Hook, why: &str) -> Status {
    Status::internal(format!("failed calling webhook \"{}\": {why}", hook.name))
}

/// Evaluates one condition with the names every webhook's condition may use.
pub(crate) fn condition(text: &str, names: &Names, matter: &Matter<'_>) -> Result<bool, String> {
    let (program, _) = Program::compile(text, &policy::sorts()).map_err(|err| err.to_string())?;
    let mut budget = Budget { left: COST_PER_REQUEST };
    let door = policy::Door { user: matter.user, view: matter.view };
    let names: BTreeMap<String, Variable<'_>> =
        names.iter().map(|(name, value)| (name.clone(), Variable::Value(value.clone()))).collect();
    match program.eval(names, Some(&door), &mut budget) {
        Ok(crate::cel::Value::Bool(met)) => Ok(met),
        Ok(_) => Err(format!("expression '{text}' must evaluate to bool")),
        Err(err @ (EvalError::Failed(_) | EvalError::Cost)) => {
            Err(format!("expression '{text}' resulted in error: {err}"))
        }
    }
}
