//! What groups, versions and resources there are: one by one, and all at once.

use objects::Kind;
use serde_json::{Value, json};

use crate::{custom::Registry, json::put};

/// What can be done with the objects of every kind.
const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What can be done with namespaces: they go one by one.
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

/// Reviews: posted, answered, never stored. Group, plural, kind, namespaced.
const REVIEWS: &[(&str, &str, &str, bool)] = &[
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview", false),
    ("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    ("authorization.k8s.io", "localsubjectaccessreviews", "LocalSubjectAccessReview", true),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview", false),
];

/// What is measured and only read: group, version, and plural, kind, namespaced of each.
const FIGURES: (&str, &str, [(&str, &str, bool); 2]) =
    ("metrics.k8s.io", "v1beta1", [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)]);

/// A resource or subresource of a group-version.
struct Row {
    /// `pods` or `pods/status`.
    name: String,
    /// What its objects are: group and version (empty = the resource's own), kind.
    answers: (&'static str, &'static str, &'static str),
    singular: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
}

/// The versions a group is served in, newest first.
pub(crate) fn versions(registry: &Registry, group: &str) -> impl Iterator<Item = &'static str> {
    group_versions(registry)
        .into_iter()
        .filter(move |(known, _)| *known == group)
        .map(|(_, version)| version)
}

/// Are there reviews, or figures, in this group-version?
pub(crate) fn has_reviews(group: &str, version: &str) -> bool {
    (group, version) == (FIGURES.0, FIGURES.1)
        || version == "v1" && REVIEWS.iter().any(|review| review.0 == group)
}

/// The kind of the reviews of this resource name, and whether they are posted to a namespace.
pub(crate) fn review(group: &str, version: &str, plural: &str) -> Option<(&'static str, bool)> {
    let found = REVIEWS.iter().find(|review| (review.0, review.1) == (group, plural));
    found.filter(|_| version == "v1").map(|review| (review.2, review.3))
}

/// Every group-version, core first, the rest in the order of the tables.
pub(crate) fn group_versions(registry: &Registry) -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    let mut add = |group, version| {
        if !all.contains(&(group, version)) {
            all.push((group, version));
        }
    };
    for kind in objects::kind::KINDS {
        add(kind.group, kind.version);
        for alias in kind.aliases {
            add(alias.group, alias.version);
        }
    }
    for review in REVIEWS {
        add(review.0, "v1");
    }
    add(FIGURES.0, FIGURES.1);
    for (group, version) in registry.group_versions() {
        add(group, version);
    }
    // Core comes first whatever the table begins with.
    all.sort_by_key(|(group, _)| !group.is_empty());
    all
}

/// `/api/v1` or `/apis/GROUP/VERSION`.
pub(super) fn root_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// The kinds of a group-version, alias versions included.
pub(super) fn kinds_in<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static Kind> + 'a {
    registry.kinds_in(group, version)
}

/// What a subresource answers with, and what can be done with it.
pub(super) fn subresource(
    kind: &Kind,
    name: &str,
) -> ((&'static str, &'static str, &'static str), &'static [&'static str]) {
    let own = ("", "", kind.kind);
    match name {
        "scale" => (("autoscaling", "v1", "Scale"), &["get", "patch", "update"]),
        "binding" => (("", "v1", "Binding"), &["create"]),
        "eviction" => (("policy", "v1", "Eviction"), &["create"]),
        "token" => (("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
        "attach" => (("", "v1", "PodAttachOptions"), &["create", "get"]),
        "exec" => (("", "v1", "PodExecOptions"), &["create", "get"]),
        "portforward" => (("", "v1", "PodPortForwardOptions"), &["create", "get"]),
        "proxy" => {
            let options = match kind.kind {
                "Node" => "NodeProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            };
            (("", "v1", options), &["create", "delete", "get", "patch", "update"])
        }
        "log" => (own, &["get"]),
        "finalize" => (own, &["update"]),
        _ => (own, &["get", "patch", "update"]),
    }
}

fn rows(registry: &Registry, group: &str, version: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in kinds_in(registry, group, version) {
        rows.push(Row {
            name: kind.plural.to_owned(),
            answers: ("", "", kind.kind),
            singular: kind.singular,
            namespaced: kind.namespaced,
            verbs: if *kind == objects::kind::NAMESPACE { NAMESPACE_VERBS } else { VERBS },
            short_names: kind.short_names,
            categories: kind.categories,
        });
        for name in kind.subresources {
            let (answers, verbs) = subresource(kind, name);
            rows.push(Row {
                name: format!("{}/{name}", kind.plural),
                answers,
                singular: "",
                namespaced: kind.namespaced,
                verbs,
                short_names: &[],
                categories: &[],
            });
        }
    }
    for (_, plural, kind, namespaced) in REVIEWS.iter().filter(|review| review.0 == group) {
        rows.push(Row {
            name: (*plural).to_owned(),
            answers: ("", "", kind),
            singular: "",
            namespaced: *namespaced,
            verbs: &["create"],
            short_names: &[],
            categories: &[],
        });
    }
    let figures = FIGURES.2.iter().filter(|_| (group, version) == (FIGURES.0, FIGURES.1));
    rows.extend(figures.map(|(plural, kind, namespaced)| Row {
        name: (*plural).to_owned(),
        answers: ("", "", kind),
        singular: "",
        namespaced: *namespaced,
        verbs: &["get", "list"],
        short_names: &[],
        categories: &[],
    }));
    rows
}

/// `/api`.
pub(super) fn core(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [
            {"clientCIDR": "0.0.0.0/0", "serverAddress": server_address},
        ],
    })
}

fn group_entry(registry: &Registry, group: &str) -> Value {
    let entries: Vec<Value> = versions(registry, group)
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let preferred = entries.first().cloned().unwrap_or(Value::Null);
    json!({"name": group, "versions": entries, "preferredVersion": preferred})
}

fn group_names(registry: &Registry) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for (group, _) in group_versions(registry) {
        if !group.is_empty() && !names.contains(&group) {
            names.push(group);
        }
    }
    names
}

/// `/apis`.
pub(super) fn groups(registry: &Registry) -> Value {
    let names = group_names(registry).into_iter();
    let groups: Vec<Value> = names.map(|name| group_entry(registry, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub(super) fn group(registry: &Registry, group: &str) -> Value {
    let mut entry = group_entry(registry, group);
    put(&mut entry, "kind", json!("APIGroup"));
    put(&mut entry, "apiVersion", json!("v1"));
    entry
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(super) fn resources(registry: &Registry, group: &str, version: &str) -> Value {
    let list: Vec<Value> = rows(registry, group, version)
        .into_iter()
        .map(|row| {
            let (answer_group, answer_version, kind) = row.answers;
            let mut entry = json!({
                "name": row.name,
                "singularName": row.singular,
                "namespaced": row.namespaced,
                "kind": kind,
                "verbs": row.verbs,
            });
            if !answer_version.is_empty() && (answer_group, answer_version) != (group, version) {
                put(&mut entry, "group", json!(answer_group));
                put(&mut entry, "version", json!(answer_version));
            }
            if !row.short_names.is_empty() {
                put(&mut entry, "shortNames", json!(row.short_names));
            }
            if !row.categories.is_empty() {
                put(&mut entry, "categories", json!(row.categories));
            }
            entry
        })
        .collect();
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": objects::kind::join_api_version(group, version),
        "resources": list,
    })
}

/// Everything at once: of `/api` or of `/apis`.
pub(super) fn aggregated(registry: &Registry, core: bool, beta: bool) -> Value {
    let names = if core { vec![""] } else { group_names(registry) };
    let items: Vec<Value> = names
        .into_iter()
        .map(|group| {
            let all: Vec<Value> = versions(registry, group)
                .map(|version| {
                    if let Some(remote) = registry.remote(group, version) {
                        return remote.entry();
                    }
                    json!({
                        "version": version,
                        "resources": aggregated_resources(registry, group, version),
                        "freshness": "Current",
                    })
                })
                .collect();
            let mut meta = json!({"creationTimestamp": null});
            if !group.is_empty() {
                put(&mut meta, "name", json!(group));
            }
            json!({"metadata": meta, "versions": all})
        })
        .collect();
    let version = if beta { "v2beta1" } else { "v2" };
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(registry: &Registry, group: &str, version: &str) -> Vec<Value> {
    let mut list: Vec<Value> = Vec::new();
    for row in rows(registry, group, version) {
        let (answer_group, answer_version, kind) = row.answers;
        let response_kind = if answer_version.is_empty() {
            json!({"group": group, "version": version, "kind": kind})
        } else {
            json!({"group": answer_group, "version": answer_version, "kind": kind})
        };
        if let Some((_, subresource)) = row.name.split_once('/') {
            let entry = json!({
                "subresource": subresource, "responseKind": response_kind, "verbs": row.verbs,
            });
            if let Some(parts) = list
                .last_mut()
                .and_then(Value::as_object_mut)
                .map(|last| last.entry("subresources").or_insert_with(|| json!([])))
                .and_then(Value::as_array_mut)
            {
                parts.push(entry);
            }
            continue;
        }
        let mut entry = json!({
            "resource": row.name,
            "responseKind": response_kind,
            "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": row.singular,
            "verbs": row.verbs,
        });
        if !row.short_names.is_empty() {
            put(&mut entry, "shortNames", json!(row.short_names));
        }
        if !row.categories.is_empty() {
            put(&mut entry, "categories", json!(row.categories));
        }
        list.push(entry);
    }
    list
}
