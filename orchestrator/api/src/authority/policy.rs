//! The roles and bindings of every cluster, as objects.
//!
//! `policy.txt` says them in a form people can check; this reads it once. Names and rules are
//! upstream's; `muster:` names belong to our own parts. `system:node` is bound to nobody, as in
//! upstream: its rules are what the node authorizer grants to every node alike.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::rbac::Rule;

const POLICY: &str = include_str!("policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// One role of the table with those who have it.
#[derive(Debug, Default)]
struct Entry {
    /// Empty for a ClusterRole.
    namespace: String,
    name: String,
    /// Where the role is aggregated to.
    labels: Vec<String>,
    /// What it is made of, when it is an aggregate.
    from: Option<String>,
    rules: Vec<Rule>,
    subjects: Vec<String>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| parse(POLICY));
static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let entry = ENTRIES.iter().find(|entry| entry.name == "system:node");
    entry.map(|entry| entry.rules.clone()).unwrap_or_default()
});

/// What every node may do whatever runs on it.
pub(super) fn node_rules() -> &'static [Rule] {
    &NODE_RULES
}

/// Every role and binding of a new cluster, ready to be created.
#[must_use]
pub fn default_objects() -> Vec<Value> {
    ENTRIES.iter().map(Entry::role).chain(ENTRIES.iter().filter_map(Entry::binding)).collect()
}

/// Adds to a stored default role or binding what it should have and lacks.
///
/// As upstream does at each start, unless the annotation
/// `rbac.authorization.kubernetes.io/autoupdate` says `false`. `None` when nothing is missing.
#[must_use]
pub fn reconcile_default(stored: &Value, wanted: &Value) -> Option<Value> {
    let auto = "/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate";
    if stored.pointer(auto).and_then(Value::as_str) == Some("false") {
        return None;
    }
    let mut mended = stored.clone();
    for field in ["labels", "annotations"] {
        let path = format!("/metadata/{field}");
        let Some(members) = wanted.pointer(&path).and_then(Value::as_object) else { continue };
        let metadata = mended.get_mut("metadata")?.as_object_mut()?;
        let have = metadata.entry(field).or_insert_with(|| json!({})).as_object_mut()?;
        for (key, value) in members {
            have.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    if let Some(rule) = wanted.get("aggregationRule") {
        if mended.get("aggregationRule").is_none() {
            mended.as_object_mut()?.insert("aggregationRule".to_owned(), rule.clone());
        }
    } else {
        add_missing_rules(&mut mended, wanted);
    }
    add_missing_subjects(&mut mended, wanted);
    (mended != *stored).then_some(mended)
}

fn add_missing_rules(mended: &mut Value, wanted: &Value) {
    let have = Rule::of_role(mended);
    let missing: Vec<Value> = Rule::of_role(wanted)
        .iter()
        .filter(|rule| !super::rbac::uncovered(&have, std::slice::from_ref(*rule)).is_empty())
        .map(Rule::to_value)
        .collect();
    extend(mended, "rules", missing);
}

fn add_missing_subjects(mended: &mut Value, wanted: &Value) {
    let have = mended.get("subjects").and_then(Value::as_array).cloned().unwrap_or_default();
    let wanted = wanted.get("subjects").and_then(Value::as_array);
    let missing = wanted.into_iter().flatten().filter(|one| !have.contains(one)).cloned();
    let missing = missing.collect();
    extend(mended, "subjects", missing);
}

fn extend(object: &mut Value, field: &str, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    let Some(members) = object.as_object_mut() else { return };
    let list = members.entry(field).or_insert(Value::Null);
    match list.as_array_mut() {
        Some(list) => list.extend(more),
        None => *list = Value::Array(more),
    }
}

impl Entry {
    fn kind(&self) -> &'static str {
        if self.namespace.is_empty() { "ClusterRole" } else { "Role" }
    }

    fn metadata(&self, labels: &[String]) -> Value {
        let mut all = Map::new();
        all.insert("kubernetes.io/bootstrapping".to_owned(), json!("rbac-defaults"));
        for label in labels {
            all.insert(format!("{GROUP}/aggregate-to-{label}"), json!("true"));
        }
        let mut metadata = json!({
            "name": self.name,
            "labels": all,
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        });
        if let (false, Some(fields)) = (self.namespace.is_empty(), metadata.as_object_mut()) {
            fields.insert("namespace".to_owned(), json!(self.namespace));
        }
        metadata
    }

    fn role(&self) -> Value {
        let rules: Vec<Value> = self.rules.iter().map(Rule::to_value).collect();
        let mut role = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": self.kind(),
            "metadata": self.metadata(&self.labels),
            "rules": rules,
        });
        if let (Some(from), Some(fields)) = (&self.from, role.as_object_mut()) {
            let label = format!("{GROUP}/aggregate-to-{from}");
            let rule = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
            fields.insert("aggregationRule".to_owned(), rule);
        }
        role
    }

    fn binding(&self) -> Option<Value> {
        let subjects: Vec<Value> = self.subjects.iter().filter_map(|text| subject(text)).collect();
        (!subjects.is_empty()).then(|| {
            json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": format!("{}Binding", self.kind()),
                "metadata": self.metadata(&[]),
                "roleRef": {"apiGroup": GROUP, "kind": self.kind(), "name": self.name},
                "subjects": subjects,
            })
        })
    }
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once('/')?;
    Some(match kind {
        "group" => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        "user" => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        _ => {
            let (namespace, name) = name.split_once('/')?;
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
    })
}

fn parse(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let labels = || -> Vec<String> {
            words.iter().filter_map(|word| word.strip_prefix('+')).map(str::to_owned).collect()
        };
        let named = |name: &str| Entry { name: name.to_owned(), ..Entry::default() };
        match words.as_slice() {
            [] | ["#", ..] => {}
            ["clusterrole", name, ..] => entries.push(Entry { labels: labels(), ..named(name) }),
            ["aggregate", name, from, ..] => {
                let from = Some((*from).to_owned());
                entries.push(Entry { labels: labels(), from, ..named(name) });
            }
            ["controller", name] => entries.push(Entry {
                subjects: vec![format!("sa/kube-system/{name}")],
                ..named(&format!("system:controller:{name}"))
            }),
            ["role", namespace, name] => {
                entries.push(Entry { namespace: (*namespace).to_owned(), ..named(name) });
            }
            ["bind", subjects @ ..] => {
                if let Some(entry) = entries.last_mut() {
                    entry.subjects.extend(subjects.iter().map(|one| (*one).to_owned()));
                }
            }
            [verbs, what, names @ ..] => {
                if let Some(entry) = entries.last_mut() {
                    entry.rules.push(rule(verbs, what, names.first().copied()));
                }
            }
            [_] => {}
        }
    }
    entries
}

fn rule(verbs: &str, what: &str, names: Option<&str>) -> Rule {
    let list = |text: &str, at: char| text.split(at).map(str::to_owned).collect::<Vec<_>>();
    let mut all = Vec::new();
    for verb in verbs.split(',') {
        match verb {
            "read" => all.extend(["get", "list", "watch"]),
            "write" => all.extend(["create", "delete", "deletecollection", "patch", "update"]),
            verb => all.push(verb),
        }
    }
    let verbs = all.into_iter().map(str::to_owned).collect();
    let (groups, resources) = what.split_once(':').unwrap_or(("", what));
    if groups == "url" {
        return Rule { verbs, urls: list(resources, ','), ..Rule::default() };
    }
    let group = |group: &str| if group == "core" { String::new() } else { group.to_owned() };
    Rule {
        verbs,
        groups: groups.split('+').map(group).collect(),
        resources: list(resources, ','),
        names: names.and_then(|names| names.strip_prefix('=')).map_or(vec![], |n| list(n, ',')),
        urls: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole() {
        let lines = |word: &str| POLICY.lines().filter(|line| line.starts_with(word)).count();
        let roles = ["clusterrole ", "aggregate ", "controller ", "role "];
        assert_eq!(ENTRIES.len(), roles.iter().map(|word| lines(word)).sum::<usize>());
        let rules: usize = ENTRIES.iter().map(|entry| entry.rules.len()).sum();
        let inner = POLICY.lines().filter(|l| l.starts_with("  ") && !l.contains(" bind ")).count();
        assert_eq!(rules, inner);
        let names: std::collections::BTreeSet<_> =
            ENTRIES.iter().map(|entry| (&entry.namespace, &entry.name)).collect();
        assert_eq!(names.len(), ENTRIES.len());
        for entry in ENTRIES.iter() {
            assert_eq!(entry.rules.is_empty(), entry.from.is_some(), "{}", entry.name);
            for subject in &entry.subjects {
                assert!(super::subject(subject).is_some(), "{subject}");
            }
        }
    }

    #[test]
    fn a_default_role_gets_back_what_it_lost_and_keeps_what_was_added() {
        let wanted = ENTRIES.iter().find(|entry| entry.name == "system:basic-user").unwrap();
        let (role, binding) = (wanted.role(), wanted.binding().unwrap());
        assert_eq!(reconcile_default(&role, &role), None);
        let mut changed = role.clone();
        changed["rules"] = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
        let mended = reconcile_default(&changed, &role).unwrap();
        assert_eq!(mended["rules"].as_array().unwrap().len(), 3);
        changed["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] =
            json!("false");
        assert_eq!(reconcile_default(&changed, &role), None);
        let mut empty = binding.clone();
        empty["subjects"] = Value::Null;
        assert_eq!(reconcile_default(&empty, &binding), Some(binding));
    }
}
