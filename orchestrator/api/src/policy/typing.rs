//! Whether what a policy's expressions speak of is there in the kinds they match.
//!
//! Nothing is refused: a policy may know better than the schemas. What looks wrong is told in
//! `status.typeChecking`, as upstream's controller does.

use std::collections::{BTreeMap, BTreeSet};

use objects::{
    field::{int_at, str_at},
    kind::{self, KINDS},
};
use serde_json::{Value as Json, json};

use super::{list, sorts};
use crate::{
    cel::{Program, Sort},
    custom::Registry,
    schema::builtin,
};

/// As many kinds are looked at.
const KINDS_MAX: usize = 10;
/// What stands for any word in a rule.
const ANY: &str = "*";

/// A kind that a policy matches, and how the check names it.
struct Matched<'a> {
    name: String,
    sort: Sort<'a>,
}

/// The policy with what its status should say of its types; `None` when its status is of this
/// generation already.
#[must_use]
pub fn plan_typing(policy: &Json, registry: &Registry) -> Option<Json> {
    let generation = int_at(policy, "metadata.generation").unwrap_or(0);
    let observed = int_at(policy, "status.observedGeneration").unwrap_or(0);
    if generation <= observed {
        return None;
    }
    let mut planned = policy.clone();
    let mut status = policy.get("status").cloned().unwrap_or_default();
    if !status.is_object() {
        status = json!({});
    }
    let found = warnings(policy, registry);
    let typing = if found.is_empty() { json!({}) } else { json!({"expressionWarnings": found}) };
    let members = status.as_object_mut()?;
    members.insert("observedGeneration".to_owned(), json!(generation));
    members.insert("typeChecking".to_owned(), typing);
    planned.as_object_mut()?.insert("status".to_owned(), status);
    Some(planned)
}

fn warnings(policy: &Json, registry: &Registry) -> Vec<Json> {
    let kinds = matched(policy, registry);
    let params = str_at(policy, "spec.paramKind.kind").and_then(|kind| {
        let version = str_at(policy, "spec.paramKind.apiVersion").unwrap_or_default();
        let (group, version) = kind::split_api_version(version);
        sort_of(registry, group, version, kind)
    });
    let mut told: BTreeMap<(usize, &str), Vec<String>> = BTreeMap::new();
    for one in &kinds {
        let mut names = sorts();
        names.insert("object".to_owned(), one.sort.clone());
        names.insert("oldObject".to_owned(), one.sort.clone());
        match &params {
            Some(sort) => drop(names.insert("params".to_owned(), sort.clone())),
            None if str_at(policy, "spec.paramKind.kind").is_none() => drop(names.remove("params")),
            None => {}
        }
        let mut members = BTreeMap::new();
        for variable in list(policy, "spec.variables") {
            names.insert("variables".to_owned(), Sort::Members(members.clone()));
            let text = str_at(variable, "expression").unwrap_or_default();
            let sort = Program::compile(text, &names).map_or(Sort::Dyn, |(_, sort)| sort);
            members.insert(str_at(variable, "name").unwrap_or_default().to_owned(), sort);
        }
        names.insert("variables".to_owned(), Sort::Members(members));
        for (at, validation) in list(policy, "spec.validations").iter().enumerate() {
            for key in ["expression", "messageExpression"] {
                let Some(text) = str_at(validation, key).filter(|text| !text.is_empty()) else {
                    continue;
                };
                if let Err(err) = Program::compile(text, &names) {
                    let line = format!("{}: {err}\n", one.name);
                    told.entry((at, key)).or_default().push(line);
                }
            }
        }
    }
    let told = told.into_iter().map(|((at, key), lines)| {
        json!({"fieldRef": format!("spec.validations[{at}].{key}"), "warning": lines.join("\n")})
    });
    told.collect()
}

/// The kinds that a policy names in full; what it matches by `*` cannot be told.
fn matched<'a>(policy: &Json, registry: &'a Registry) -> Vec<Matched<'a>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for rule in list(policy, "spec.matchConstraints.resourceRules") {
        let words = |key: &str| -> Vec<&str> {
            let mut words: Vec<&str> = list(rule, key).iter().filter_map(Json::as_str).collect();
            words.sort_unstable();
            if words.contains(&ANY) { Vec::new() } else { words }
        };
        for group in words("apiGroups") {
            for version in words("apiVersions") {
                for resource in words("resources").into_iter().filter(|one| !one.contains('/')) {
                    let Some(kind) = kind_name(registry, group, version, resource) else {
                        continue;
                    };
                    let name = match group {
                        "" => format!("{version}, Kind={kind}"),
                        group => format!("{group}/{version}, Kind={kind}"),
                    };
                    if found.len() < KINDS_MAX
                        && seen.insert(name.clone())
                        && let Some(sort) = sort_of(registry, group, version, &kind)
                    {
                        found.push(Matched { name, sort });
                    }
                }
            }
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

fn kind_name(registry: &Registry, group: &str, version: &str, plural: &str) -> Option<String> {
    let builtin = KINDS.iter().find(|one| one.plural == plural && one.is_served_in(group, version));
    let custom = || registry.custom(group, version, plural).map(|custom| custom.kind);
    builtin.copied().or_else(custom).map(|kind| kind.kind.to_owned())
}

fn sort_of<'a>(registry: &'a Registry, group: &str, version: &str, kind: &str) -> Option<Sort<'a>> {
    match builtin().root(group, version, kind) {
        Some(root) => Some(Sort::Type(root)),
        None => registry.custom_kind(group, version, kind).map(|one| Sort::of(&one.structural)),
    }
}
