//! Roles and bindings, compiled: who may do what.
//!
//! Rules only add up; nothing takes away. A binding whose role is missing grants nothing and is
//! named in the reason of a refusal. Aggregated ClusterRoles are made of the rules of all that
//! their selectors find, whatever stands in their own `rules`.
//!
//! Spec: rbac.authorization.k8s.io/v1 and upstream's documented evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use objects::field::Fields as _;
use objects::{LabelSelector, Selector, field::str_at};
use serde_json::{Value, json};

use super::{Attributes, User};

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Verbs; `*` is every one.
    pub verbs: Vec<String>,
    /// API groups; `*` is every one, the empty one is core.
    pub groups: Vec<String>,
    /// Resources as `pods`, `pods/log`, `*/scale` or `*`.
    pub resources: Vec<String>,
    /// Names of objects; none at all are all.
    pub names: Vec<String>,
    /// Paths that are no resources; a `*` at the end stands for any rest.
    pub urls: Vec<String>,
}

/// A role that a binding gives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RoleRef {
    cluster: bool,
    name: String,
}

/// Who has something: users and groups. ServiceAccounts are users.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    User(String),
    Group(String),
}

/// A binding as one of its subjects sees it.
#[derive(Debug, Clone)]
struct Grant {
    /// The binding's name.
    binding: String,
    role: RoleRef,
    /// The subject as messages name it.
    subject: String,
}

type Grants = BTreeMap<Subject, Vec<Grant>>;

/// All roles and bindings of a cluster.
#[derive(Debug, Default)]
pub struct Rbac {
    cluster_roles: BTreeMap<String, Vec<Rule>>,
    roles: BTreeMap<(String, String), Vec<Rule>>,
    cluster_grants: Grants,
    grants: BTreeMap<String, Grants>,
}

impl Rule {
    /// The rules of a role object.
    #[must_use]
    pub fn of_role(role: &Value) -> Vec<Self> {
        let rules = role.get("rules").and_then(Value::as_array);
        rules.into_iter().flatten().map(Self::of).collect()
    }

    fn of(rule: &Value) -> Self {
        let list = |key: &str| -> Vec<String> {
            let list = rule.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rule as a role object carries it.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut value = json!({ "verbs": self.verbs });
        if let Some(fields) = value.as_object_mut() {
            if self.urls.is_empty() {
                fields.insert("apiGroups".to_owned(), json!(self.groups));
                fields.insert("resources".to_owned(), json!(self.resources));
            } else {
                fields.insert("nonResourceURLs".to_owned(), json!(self.urls));
            }
            if !self.names.is_empty() {
                fields.insert("resourceNames".to_owned(), json!(self.names));
            }
        }
        value
    }

    /// Does the rule allow this?
    #[must_use]
    pub fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if !asked.is_resource() {
            return self.urls.iter().any(|url| covers_url(url, &asked.path));
        }
        let whole = asked.qualified_resource();
        let any_part = format!("*/{}", asked.subresource);
        has(&self.groups, &asked.group)
            && self.resources.iter().any(|have| {
                have == "*"
                    || *have == whole
                    || (!asked.subresource.is_empty() && *have == any_part)
            })
            && (self.names.is_empty()
                || (!asked.name.is_empty() && self.names.contains(&asked.name)))
    }

    /// The rule as pieces of one verb, one group, one resource, one name or one path each.
    fn pieces(&self) -> Vec<Self> {
        let mut pieces = Vec::new();
        let one = |text: &String| vec![text.clone()];
        for verb in &self.verbs {
            for url in &self.urls {
                pieces.push(Self { verbs: one(verb), urls: one(url), ..Self::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let piece = Self {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.names.is_empty() {
                        pieces.push(piece.clone());
                    }
                    for name in &self.names {
                        pieces.push(Self { names: one(name), ..piece.clone() });
                    }
                }
            }
        }
        pieces
    }

    /// Does this rule say all that a piece says?
    fn covers(&self, piece: &Self) -> bool {
        let all = |have: &[String], wanted: &[String]| wanted.iter().all(|one| has(have, one));
        let resource = |wanted: &String| {
            let part = wanted.split_once('/').map(|(_, part)| format!("*/{part}"));
            has(&self.resources, wanted) || part.is_some_and(|part| self.resources.contains(&part))
        };
        let names = if piece.names.is_empty() {
            self.names.is_empty()
        } else {
            self.names.is_empty() || piece.names.iter().all(|name| self.names.contains(name))
        };
        let urls = piece.urls.iter().all(|url| self.urls.iter().any(|have| covers_url(have, url)));
        all(&self.verbs, &piece.verbs)
            && all(&self.groups, &piece.groups)
            && piece.resources.iter().all(resource)
            && names
            && urls
    }
}

/// As upstream writes rules into messages.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// `["a" "b"]`, as Go's `%q` writes a list.
pub(super) fn quoted(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|one| format!("{one:?}")).collect();
    format!("[{}]", list.join(" "))
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|have| have == "*" || have == wanted)
}

fn covers_url(have: &str, wanted: &str) -> bool {
    have == "*"
        || have == wanted
        || have.strip_suffix('*').is_some_and(|start| wanted.starts_with(start))
}

/// What of `wanted` none of the rules `held` covers, gathered by what it is about.
#[must_use]
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for piece in wanted.iter().flat_map(Rule::pieces) {
        if held.iter().any(|rule| rule.covers(&piece)) {
            continue;
        }
        let about = |rule: &Rule| {
            (rule.groups.clone(), rule.resources.clone(), rule.names.clone(), rule.urls.clone())
        };
        match missing.iter_mut().find(|rule| about(rule) == about(&piece)) {
            Some(rule) if rule.verbs.contains(&piece.verbs.concat()) => {}
            Some(rule) => rule.verbs.extend(piece.verbs),
            None => missing.push(piece),
        }
    }
    missing
}

impl Rbac {
    /// Compiles all roles and bindings; what is broken grants nothing.
    pub fn compile<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut rbac = Self::default();
        let mut sources: BTreeMap<String, Source> = BTreeMap::new();
        for object in objects {
            let text = |path: &str| str_at(object, path).unwrap_or("").to_owned();
            let (namespace, name) = (text("metadata.namespace"), text("metadata.name"));
            match object.get("kind").and_then(Value::as_str) {
                Some("ClusterRole") => {
                    sources.insert(name, Source::of(object));
                }
                Some("Role") => {
                    rbac.roles.insert((namespace, name), Rule::of_role(object));
                }
                Some("ClusterRoleBinding") => bind(&mut rbac.cluster_grants, "", &name, object),
                Some("RoleBinding") => {
                    let grants = rbac.grants.entry(namespace.clone()).or_default();
                    bind(grants, &namespace, &name, object);
                }
                _ => {}
            }
        }
        for name in sources.keys() {
            let mut seen = BTreeSet::new();
            let rules = gather(&sources, name, &mut seen);
            rbac.cluster_roles.insert(name.clone(), rules);
        }
        rbac
    }

    /// Allows or not, and why: the binding that allows, or what is broken.
    #[must_use]
    pub fn decide(&self, user: &User, asked: &Attributes) -> (bool, String) {
        let mut broken = Vec::new();
        for (namespace, grant) in self.grants_of(user, &asked.namespace) {
            match self.rules_of(namespace, &grant.role) {
                Some(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                    return (true, allowed_by(namespace, grant));
                }
                Some(_) => {}
                None => broken.push(missing_role(&grant.role)),
            }
        }
        broken.dedup();
        let reason = match broken.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        };
        (false, reason)
    }

    /// All rules a user has in a namespace (empty = in the whole cluster only).
    #[must_use]
    pub fn rules_for(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut broken) = (Vec::new(), Vec::new());
        for (place, grant) in self.grants_of(user, namespace) {
            match self.rules_of(place, &grant.role) {
                Some(found) => rules.extend(found.iter().cloned()),
                None => broken.push(missing_role(&grant.role)),
            }
        }
        (rules, broken)
    }

    /// The rules of a role: a ClusterRole, or a Role of a namespace; `None` when there is none.
    #[must_use]
    pub fn role(&self, namespace: &str, kind: &str, name: &str) -> Option<&[Rule]> {
        self.rules_of(namespace, &RoleRef { cluster: kind == "ClusterRole", name: name.to_owned() })
    }

    fn rules_of(&self, namespace: &str, role: &RoleRef) -> Option<&[Rule]> {
        if role.cluster {
            return self.cluster_roles.get(&role.name).map(Vec::as_slice);
        }
        self.roles.get(&(namespace.to_owned(), role.name.clone())).map(Vec::as_slice)
    }

    /// The grants of a user, each with the namespace of its binding.
    fn grants_of<'a>(
        &'a self,
        user: &User,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Grant)> {
        let mut subjects = vec![Subject::User(user.name.clone())];
        subjects.extend(user.groups.iter().cloned().map(Subject::Group));
        let places = [("", Some(&self.cluster_grants)), (namespace, self.grants.get(namespace))];
        let places: Vec<_> =
            places.into_iter().filter_map(|(place, grants)| Some((place, grants?))).collect();
        places.into_iter().flat_map(move |(place, grants)| {
            let found: Vec<_> = subjects
                .iter()
                .filter_map(|subject| grants.get(subject))
                .flatten()
                .map(|grant| (place, grant))
                .collect();
            found
        })
    }
}

/// A ClusterRole before it is known what it is made of.
struct Source {
    labels: BTreeMap<String, String>,
    /// `None` for a role with rules of its own.
    selectors: Option<Vec<Selector>>,
    rules: Vec<Rule>,
}

impl Source {
    fn of(role: &Value) -> Self {
        let labels = role.field("metadata.labels").and_then(Value::as_object);
        let labels = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        let selectors = role.get("aggregationRule").filter(|rule| !rule.is_null()).map(|rule| {
            let list = rule.get("clusterRoleSelectors").and_then(Value::as_array);
            let list = list.into_iter().flatten();
            list.filter_map(selector).collect()
        });
        Self { labels: labels.collect(), selectors, rules: Rule::of_role(role) }
    }
}

/// A selector of an aggregation; one that cannot be read selects nothing.
fn selector(value: &Value) -> Option<Selector> {
    serde_json::from_value::<LabelSelector>(value.clone()).ok()?.compile()
}

fn gather(
    sources: &BTreeMap<String, Source>,
    name: &str,
    seen: &mut BTreeSet<String>,
) -> Vec<Rule> {
    let Some(source) = sources.get(name).filter(|_| seen.insert(name.to_owned())) else {
        return Vec::new();
    };
    let Some(selectors) = &source.selectors else { return source.rules.clone() };
    let mut rules: Vec<Rule> = Vec::new();
    for selector in selectors {
        for (other, candidate) in sources {
            let labels = &candidate.labels;
            if other != name && selector.matches_with(|key| labels.get(key).map(String::as_str)) {
                for rule in gather(sources, other, seen) {
                    if !rules.contains(&rule) {
                        rules.push(rule);
                    }
                }
            }
        }
    }
    rules
}

fn bind(grants: &mut Grants, namespace: &str, name: &str, binding: &Value) {
    let text = |value: &Value, key: &str| str_at(value, key).unwrap_or("").to_owned();
    let role = RoleRef {
        cluster: text(binding, "roleRef.kind") == "ClusterRole",
        name: text(binding, "roleRef.name"),
    };
    let subjects = binding.get("subjects").and_then(Value::as_array);
    for one in subjects.into_iter().flatten() {
        let who = text(one, "name");
        let (subject, shown) = match text(one, "kind").as_str() {
            "User" => (Subject::User(who.clone()), format!("User {who:?}")),
            "Group" => (Subject::Group(who.clone()), format!("Group {who:?}")),
            "ServiceAccount" => {
                let stated = text(one, "namespace");
                let home = if stated.is_empty() { namespace } else { &stated };
                if home.is_empty() {
                    continue;
                }
                let shown = format!("ServiceAccount \"{who}/{home}\"");
                (Subject::User(format!("system:serviceaccount:{home}:{who}")), shown)
            }
            _ => continue,
        };
        let grant = Grant { binding: name.to_owned(), role: role.clone(), subject: shown };
        grants.entry(subject).or_default().push(grant);
    }
}

fn allowed_by(namespace: &str, grant: &Grant) -> String {
    let binding = if namespace.is_empty() {
        format!("ClusterRoleBinding {:?}", grant.binding)
    } else {
        format!("RoleBinding \"{}/{namespace}\"", grant.binding)
    };
    let kind = if grant.role.cluster { "ClusterRole" } else { "Role" };
    format!("RBAC: allowed by {binding} of {kind} {:?} to {}", grant.role.name, grant.subject)
}

fn missing_role(role: &RoleRef) -> String {
    let kind = if role.cluster { "clusterrole" } else { "role" };
    format!("{kind}.rbac.authorization.k8s.io {:?} not found", role.name)
}
