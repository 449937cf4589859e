//! What is noted of requests: which, how much, and in what words.
//!
//! A policy's first rule that matches a request says its level; an event is noted at each stage
//! that is not omitted. This writes no files: it renders events.
//!
//! Spec: audit.k8s.io/v1 (Policy, Event).

use std::collections::BTreeMap;

use jiff::Timestamp;
use objects::{MicroTime, field::str_at};
use serde_json::{Map, Value, json};

use super::review::user_info;
use super::{Attributes, User};
use crate::prepare::Body;

/// How much is noted of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who asked what, and how it went.
    Metadata,
    /// Also what was sent.
    Request,
    /// Also what was answered.
    RequestResponse,
}

/// When something is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before anything is done.
    RequestReceived,
    /// A long answer begins, such as a watch.
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// The server failed.
    Panic,
}

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is no YAML.
    #[error("the audit policy cannot be read: {0}")]
    Unreadable(String),
    /// It is something else.
    #[error("the audit policy must be a Policy of audit.k8s.io/v1 with rules")]
    Kind,
    /// A word nobody knows.
    #[error("rules[{rule}]: {word:?} is no {what}")]
    Word {
        /// Which rule, from 0.
        rule: usize,
        /// What was found.
        word: String,
        /// What was expected.
        what: &'static str,
    },
}

/// What is noted of which requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Rule {
    level: Level,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    namespaces: Vec<String>,
    resources: Vec<Resources>,
    urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

/// What is noted of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How much.
    pub level: Level,
    /// Stages at which nothing is noted.
    pub omit: Vec<Stage>,
    /// Are managed fields left out of bodies?
    pub omit_managed_fields: bool,
}

/// A request as far as it is known when an event is rendered.
#[derive(Debug, Clone)]
pub struct Noted<'a> {
    /// What to note.
    pub verdict: &'a Verdict,
    /// The request's id.
    pub id: &'a str,
    /// Path and query.
    pub uri: &'a str,
    /// Who asked.
    pub user: &'a User,
    /// As whom, when that is another.
    pub impersonated: Option<&'a User>,
    /// From where.
    pub address: &'a str,
    /// The client's name for itself.
    pub agent: &'a str,
    /// What was asked.
    pub asked: &'a Attributes,
    /// When it came.
    pub received: Timestamp,
}

/// How a request went.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The HTTP status.
    pub code: u16,
    /// What was sent, as JSON.
    pub sent: Option<Value>,
    /// What was answered, as JSON.
    pub answered: Option<Value>,
    /// Was it allowed, and why? `None` when nobody got so far as to decide.
    pub decision: Option<(bool, String)>,
    /// What admission has for the log, by name.
    pub annotations: BTreeMap<String, String>,
}

impl Policy {
    /// Reads a policy from YAML or JSON.
    ///
    /// # Errors
    ///
    /// When it is none, or a rule has words that mean nothing.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Value =
            serde_saphyr::from_str(text).map_err(|err| PolicyError::Unreadable(err.to_string()))?;
        let rules = policy.get("rules").and_then(Value::as_array).ok_or(PolicyError::Kind)?;
        if str_at(&policy, "kind") != Some("Policy")
            || str_at(&policy, "apiVersion") != Some("audit.k8s.io/v1")
        {
            return Err(PolicyError::Kind);
        }
        let parsed: Result<_, _> =
            rules.iter().enumerate().map(|(at, rule)| Rule::parse(at, rule)).collect();
        let omit_managed = flag(&policy, "omitManagedFields").unwrap_or(false);
        let mut rules: Vec<Rule> = parsed?;
        for (rule, raw) in rules
            .iter_mut()
            .zip(policy.get("rules").and_then(Value::as_array).into_iter().flatten())
        {
            rule.omit_managed_fields = flag(raw, "omitManagedFields").unwrap_or(omit_managed);
        }
        Ok(Self { rules, omit_stages: stages(0, &policy)? })
    }

    /// What is to be noted of a request.
    #[must_use]
    pub fn verdict(&self, user: &User, asked: &Attributes) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, asked)) else {
            return Verdict { omit: self.omit_stages.clone(), ..Verdict::default() };
        };
        Verdict {
            level: rule.level,
            omit: [self.omit_stages.clone(), rule.omit_stages.clone()].concat(),
            omit_managed_fields: rule.omit_managed_fields,
        }
    }
}

impl Verdict {
    /// Is anything noted at this stage?
    #[must_use]
    pub fn notes(&self, stage: Stage) -> bool {
        self.level > Level::None && !self.omit.contains(&stage)
    }
}

fn flag(value: &Value, key: &str) -> Option<bool> {
    value.get(key)?.as_bool()
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn stages(rule: usize, value: &Value) -> Result<Vec<Stage>, PolicyError> {
    let stage = |word: String| match word.as_str() {
        "RequestReceived" => Ok(Stage::RequestReceived),
        "ResponseStarted" => Ok(Stage::ResponseStarted),
        "ResponseComplete" => Ok(Stage::ResponseComplete),
        "Panic" => Ok(Stage::Panic),
        _ => Err(PolicyError::Word { rule, word, what: "stage" }),
    };
    texts(value, "omitStages").into_iter().map(stage).collect()
}

impl Rule {
    fn parse(at: usize, rule: &Value) -> Result<Self, PolicyError> {
        let level = match str_at(rule, "level").unwrap_or("") {
            "None" => Level::None,
            "Metadata" => Level::Metadata,
            "Request" => Level::Request,
            "RequestResponse" => Level::RequestResponse,
            word => {
                let word = word.to_owned();
                return Err(PolicyError::Word { rule: at, word, what: "level" });
            }
        };
        let resources = rule.get("resources").and_then(Value::as_array);
        let resources = resources.into_iter().flatten().map(|one| Resources {
            group: str_at(one, "group").unwrap_or("").to_owned(),
            resources: texts(one, "resources"),
            names: texts(one, "resourceNames"),
        });
        Ok(Self {
            level,
            users: texts(rule, "users"),
            groups: texts(rule, "userGroups"),
            verbs: texts(rule, "verbs"),
            namespaces: texts(rule, "namespaces"),
            resources: resources.collect(),
            urls: texts(rule, "nonResourceURLs"),
            omit_stages: stages(at, rule)?,
            omit_managed_fields: false,
        })
    }

    fn matches(&self, user: &User, asked: &Attributes) -> bool {
        let any = |list: &[String], wanted: &str| {
            list.is_empty() || list.iter().any(|have| have == wanted)
        };
        let about = if !self.namespaces.is_empty() || !self.resources.is_empty() {
            asked.is_resource()
                && any(&self.namespaces, &asked.namespace)
                && (self.resources.is_empty()
                    || self.resources.iter().any(|one| one.matches(asked)))
        } else if self.urls.is_empty() {
            true
        } else {
            !asked.is_resource() && self.urls.iter().any(|url| covers(url, &asked.path))
        };
        any(&self.users, &user.name)
            && (self.groups.is_empty() || self.groups.iter().any(|group| user.is_in(group)))
            && any(&self.verbs, &asked.verb)
            && about
    }
}

fn covers(url: &str, path: &str) -> bool {
    url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

impl Resources {
    fn matches(&self, asked: &Attributes) -> bool {
        let named = self.names.is_empty() || self.names.contains(&asked.name);
        self.group == asked.group
            && (self.resources.is_empty()
                || (named && self.resources.iter().any(|one| is_resource(one, asked))))
    }
}

fn is_resource(wanted: &str, asked: &Attributes) -> bool {
    match wanted.split_once('/') {
        _ if wanted == "*" => true,
        None => asked.subresource.is_empty() && wanted == asked.resource,
        Some(("*", part)) => !part.is_empty() && part == asked.subresource,
        Some((resource, "*")) => resource == asked.resource,
        Some((resource, part)) => resource == asked.resource && part == asked.subresource,
    }
}

/// Renders the event of a stage; `outcome` is `None` while nothing is known of it.
#[must_use]
pub fn render(noted: &Noted<'_>, stage: Stage, outcome: Option<&Outcome>, now: Timestamp) -> Value {
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1",
        "level": format!("{:?}", noted.verdict.level),
        "auditID": noted.id,
        "stage": format!("{stage:?}"),
        "requestURI": noted.uri,
        "verb": noted.asked.verb,
        "user": user_info(noted.user),
        "sourceIPs": [noted.address],
        "requestReceivedTimestamp": MicroTime::from(noted.received),
        "stageTimestamp": MicroTime::from(now),
    });
    let Some(fields) = event.as_object_mut() else { return event };
    let mut put = |key: &str, value: Value| {
        fields.insert(key.to_owned(), value);
    };
    if !noted.agent.is_empty() {
        put("userAgent", json!(noted.agent));
    }
    if let Some(user) = noted.impersonated {
        put("impersonatedUser", user_info(user));
    }
    if noted.asked.is_resource() {
        put("objectRef", reference(noted.asked));
    }
    let Some(outcome) = outcome else { return event };
    let level = noted.verdict.level;
    let body = |body: &Option<Value>, from: Level| {
        let mut body = body.clone().filter(|_| level >= from)?;
        if noted.verdict.omit_managed_fields {
            forget_managed_fields(&mut body);
        }
        Some(body)
    };
    put("responseStatus", response_status(outcome));
    if let Some(sent) = body(&outcome.sent, Level::Request) {
        put("requestObject", sent);
    }
    if let Some(answered) = body(&outcome.answered, Level::RequestResponse) {
        put("responseObject", answered);
    }
    let mut annotations = outcome.annotations.clone();
    if let Some((allowed, reason)) = &outcome.decision {
        let decision = if *allowed { "allow" } else { "forbid" };
        for (key, value) in [("decision", decision), ("reason", reason.as_str())] {
            annotations.insert(format!("authorization.k8s.io/{key}"), value.to_owned());
        }
    }
    if !annotations.is_empty() {
        put("annotations", json!(annotations));
    }
    event
}

fn reference(asked: &Attributes) -> Value {
    let parts = [
        ("resource", &asked.resource),
        ("namespace", &asked.namespace),
        ("name", &asked.name),
        ("apiGroup", &asked.group),
        ("apiVersion", &asked.version),
        ("subresource", &asked.subresource),
    ];
    let parts = parts.into_iter().filter(|(_, text)| !text.is_empty());
    Value::Object(parts.map(|(key, text)| (key.to_owned(), json!(text))).collect())
}

fn response_status(outcome: &Outcome) -> Value {
    let mut status = Map::new();
    status.insert("metadata".to_owned(), json!({}));
    status.insert("code".to_owned(), json!(outcome.code));
    let answered = outcome.answered.as_ref().filter(|body| str_at(body, "kind") == Some("Status"));
    for key in ["status", "message", "reason"] {
        if let Some(text) = answered.and_then(|body| body.get(key)) {
            status.insert(key.to_owned(), text.clone());
        }
    }
    Value::Object(status)
}

fn forget_managed_fields(body: &mut Value) {
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    if let Some(items) = body.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(forget_managed_fields);
    }
}

/// A body as events carry it; `None` when it cannot be read.
#[must_use]
pub fn parse_body(content_type: &str, bytes: &[u8]) -> Option<Value> {
    let body = Body { bytes, content_type };
    match body.media_type() {
        crate::protobuf::MEDIA_TYPE => crate::protobuf::decode(bytes).ok(),
        "application/json" | "" => serde_json::from_slice(bytes).ok(),
        media if media.ends_with("+json") => serde_json::from_slice(bytes).ok(),
        _ => serde_saphyr::from_slice(bytes).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ["system:kube-scheduler"]
  verbs: [watch]
- level: Metadata
  resources:
  - group: ""
    resources: [secrets, "pods/*"]
- level: RequestResponse
  omitManagedFields: false
  namespaces: [prod]
  omitStages: [ResponseStarted]
- level: None
  nonResourceURLs: ["/healthz*", /version]
- level: Request
  userGroups: [devs]
"#;

    fn user(name: &str, groups: &[&str]) -> User {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        User { groups, ..User::named(name) }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let on = |verb: &str, resource: &str, namespace: &str| {
            Attributes::on(verb, "", resource, "x").in_namespace(namespace)
        };
        for (who, asked, level) in [
            (user("system:kube-scheduler", &[]), on("watch", "pods", "a"), Level::None),
            (user("u", &[]), on("get", "secrets", "prod"), Level::Metadata),
            (user("u", &[]), on("get", "pods/log", "prod"), Level::Metadata),
            (user("u", &[]), on("get", "pods", "prod"), Level::Metadata),
            (user("u", &[]), on("get", "services", "prod"), Level::RequestResponse),
            (user("u", &["devs"]), on("get", "services", "a"), Level::Request),
            (user("u", &["devs"]), Attributes::of_path("get", "/healthz/ping"), Level::None),
            (user("u", &["devs"]), Attributes::of_path("get", "/metrics"), Level::Request),
            (user("u", &[]), on("get", "services", "a"), Level::None),
        ] {
            assert_eq!(policy.verdict(&who, &asked).level, level, "{} {asked:?}", who.name);
        }
        let verdict = policy.verdict(&user("u", &[]), &on("get", "services", "prod"));
        assert!(!verdict.notes(Stage::RequestReceived) && !verdict.notes(Stage::ResponseStarted));
        assert!(verdict.notes(Stage::ResponseComplete) && !verdict.omit_managed_fields);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let rule = |text: &str| {
            Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{text}]"))
        };
        assert!(rule("{level: None}").is_ok());
        assert!(matches!(rule("{level: Some}"), Err(PolicyError::Word { rule: 0, .. })));
        assert!(rule("{level: None, omitStages: [Never]}").is_err());
        assert!(rule("{}").is_err());
        assert_eq!(Policy::parse("kind: Policy\nrules: []"), Err(PolicyError::Kind));
        assert!(Policy::parse("a: [").is_err());
    }

    #[test]
    fn an_event_says_no_more_than_its_level() {
        let asked = Attributes::on("create", "apps", "deployments", "d").in_namespace("a");
        let (ann, bob) = (user("ann", &["devs"]), user("bob", &[]));
        let outcome = Outcome {
            code: 201,
            sent: Some(json!({"metadata": {"managedFields": [1]}, "spec": 1})),
            answered: Some(json!({"kind": "Deployment"})),
            decision: Some((true, "because".to_owned())),
            annotations: BTreeMap::from([("limit/by".to_owned(), "ann".to_owned())]),
        };
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let event = |level: Level| {
            let verdict = Verdict { level, omit: Vec::new(), omit_managed_fields: true };
            let noted = Noted {
                verdict: &verdict,
                id: "id",
                uri: "/apis",
                user: &ann,
                impersonated: Some(&bob),
                address: "192.0.2.1",
                agent: "kubectl",
                asked: &asked,
                received: at,
            };
            render(&noted, Stage::ResponseComplete, Some(&outcome), at)
        };
        let plain = event(Level::Metadata);
        assert_eq!(plain["user"], json!({"username": "ann", "groups": ["devs"]}));
        assert_eq!(plain["impersonatedUser"]["username"], "bob");
        assert_eq!(plain["objectRef"]["apiGroup"], "apps");
        assert_eq!(plain["annotations"]["authorization.k8s.io/decision"], "allow");
        assert_eq!(plain["annotations"]["limit/by"], "ann");
        assert_eq!(plain["requestReceivedTimestamp"], "2026-01-02T03:04:05.000000Z");
        assert!(plain.get("requestObject").is_none() && plain.get("responseObject").is_none());
        let more = event(Level::Request);
        assert_eq!(more["requestObject"], json!({"metadata": {}, "spec": 1}));
        assert!(more.get("responseObject").is_none());
        assert_eq!(event(Level::RequestResponse)["responseObject"]["kind"], "Deployment");
    }
}
