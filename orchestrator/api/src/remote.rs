//! Groups that other servers serve: what an APIService says of them, and what they say of
//! themselves.
//!
//! It asks nobody: the API server fetches the documents, here they are read and put beside ours.
//!
//! *Limits*: two servers that describe one type by the same name but differently are not told
//! apart in OpenAPI version 2; the first description stays.
//!
//! Spec: upstream's apiregistration.k8s.io/v1 and kube-aggregator.

use std::time::Duration;

use objects::field::Fields as _;
use objects::{
    Time,
    field::{int_at, str_at, value_at},
    intern::intern,
    kind::KINDS,
};
use serde_json::{Map, Value, json};

use crate::{authority::Attributes, custom::Registry, json::put, request::verb};

/// How long a server may take to say what it serves; upstream's.
pub const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// A group-version that another server serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    /// The group.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// Its entry in aggregated discovery; `None` while the server does not answer.
    pub discovery: Option<Value>,
    /// Its OpenAPI v3 document, if it has one.
    pub openapi_v3: Option<Value>,
    /// Its share of OpenAPI v2, if it has one.
    pub openapi_v2: Option<Value>,
}

impl Remote {
    /// What an APIService says that names a service; `None` for groups that are served here,
    /// which nobody may take away.
    #[must_use]
    pub fn read(object: &Value) -> Option<Self> {
        value_at(object, "spec.service").filter(|service| service.is_object())?;
        let (group, version) = (str_at(object, "spec.group")?, str_at(object, "spec.version")?);
        if group.is_empty() || KINDS.iter().any(|kind| kind.is_served_in(group, version)) {
            return None;
        }
        Some(Self {
            group: intern(group),
            version: intern(version),
            discovery: None,
            openapi_v3: None,
            openapi_v2: None,
        })
    }

    /// Its entry in aggregated discovery, stale while the server does not answer.
    pub(crate) fn entry(&self) -> Value {
        self.discovery.clone().unwrap_or_else(
            || json!({"version": self.version, "resources": [], "freshness": "Stale"}),
        )
    }
}

/// The label that says who keeps an APIService.
const KEPT: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Groups whose place among the others upstream fixes, with that place; what is not listed comes
/// behind them.
const PRIORITIES: &[(&str, i64)] = &[
    ("", 18_000),
    ("apiregistration.k8s.io", 18_000),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apps", 17_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("resource.k8s.io", 15_900),
];

/// The APIServices of all that is served here: who serves a group-version stands in one place.
#[must_use]
pub fn local_services(registry: &Registry) -> Vec<Value> {
    let built_in = crate::document::group_versions(Registry::builtin());
    let customs = registry.custom_versions();
    let customs =
        customs.into_iter().filter(|pair| !built_in.contains(pair)).map(|one| (one, true));
    let own = built_in.iter().map(|one| (*one, false)).chain(customs);
    own.map(|((group, version), custom)| {
        let place = PRIORITIES.iter().find(|(known, _)| *known == group).map_or(1000, |row| row.1);
        // The version that is preferred within its group stands first.
        let rank = match (custom, version.contains("alpha"), version.contains("beta")) {
            (true, ..) => 100,
            (_, true, _) => 1,
            (_, _, true) => 9,
            _ => 15,
        };
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {
                "name": format!("{version}.{group}"),
                "labels": {KEPT: if custom { "true" } else { "onstart" }},
            },
            "spec": {
                "group": group, "version": version,
                "groupPriorityMinimum": if custom { 1000 } else { place },
                "versionPriority": rank,
            },
        })
    })
    .collect()
}

/// Is this the APIService of custom resources, made by us?
#[must_use]
pub fn is_of_custom(object: &Value) -> bool {
    let label = object.field("metadata.labels").and_then(|labels| labels.get(KEPT));
    label.and_then(Value::as_str) == Some("true")
        && value_at(object, "spec.service").is_none_or(Value::is_null)
}

/// An `APIResourceList` as the entry of its version in aggregated discovery.
#[must_use]
pub fn entry(group: &str, version: &str, list: &Value) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    let mut parts: Vec<(&str, Value)> = Vec::new();
    for row in list.get("resources").and_then(Value::as_array).into_iter().flatten() {
        let text = |key: &str| str_at(row, key).filter(|text| !text.is_empty());
        let Some(name) = text("name") else { continue };
        let kind = json!({
            "group": text("group").unwrap_or(group), "version": text("version").unwrap_or(version),
            "kind": text("kind").unwrap_or(""),
        });
        let verbs = row.get("verbs").cloned().unwrap_or_else(|| json!([]));
        if let Some((resource, part)) = name.split_once('/') {
            let entry = json!({"subresource": part, "responseKind": kind, "verbs": verbs});
            parts.push((resource, entry));
            continue;
        }
        let namespaced = row.get("namespaced") == Some(&json!(true));
        let mut entry = json!({
            "resource": name, "responseKind": kind, "verbs": verbs,
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": text("singularName").unwrap_or(""),
        });
        for key in ["shortNames", "categories"] {
            if let Some(said) = row.get(key).filter(|said| said.is_array()) {
                put(&mut entry, key, said.clone());
            }
        }
        resources.push(entry);
    }
    for (name, part) in parts {
        let of = resources.iter_mut().find(|one| str_at(one, "resource") == Some(name));
        if let Some(fields) = of.and_then(Value::as_object_mut)
            && let Some(list) =
                fields.entry("subresources").or_insert_with(|| json!([])).as_array_mut()
        {
            list.push(part);
        }
    }
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

/// Lays another server's OpenAPI v2 beside ours: the paths of its group, and types we lack.
pub(crate) fn merge_v2(
    remote: &Remote,
    paths: &mut Map<String, Value>,
    definitions: &mut Map<String, Value>,
) {
    let Some(document) = &remote.openapi_v2 else { return };
    let members = |key: &str| document.get(key).and_then(Value::as_object).into_iter().flatten();
    let root = format!("/apis/{}/{}/", remote.group, remote.version);
    for (path, said) in members("paths").filter(|(path, _)| path.starts_with(&root)) {
        paths.insert(path.clone(), said.clone());
    }
    for (name, said) in members("definitions") {
        if !definitions.contains_key(name) {
            definitions.insert(name.clone(), said.clone());
        }
    }
}

/// What a request to another server asks, in the words of roles.
#[must_use]
pub fn attributes(method: &str, path: &str, query: &str) -> Attributes {
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let lower = if method == "HEAD" { "GET" } else { method }.to_lowercase();
    let ["apis", group, version, rest @ ..] = words.as_slice() else {
        return Attributes::of_path(&lower, path);
    };
    let (rest, watched) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
        _ => (rest, false),
    };
    let (namespace, resource, tail): (&str, &str, &[&str]) = match rest {
        ["namespaces", namespace, resource, tail @ ..] => (namespace, resource, tail),
        [resource, tail @ ..] => ("", resource, tail),
        [] => return Attributes::of_path(&lower, path),
    };
    let (name, subresource) = match tail {
        [] => ("", ""),
        [name] => (*name, ""),
        [name, subresource, ..] => (*name, *subresource),
    };
    let asks = |pair: &str| matches!(pair, "watch=true" | "watch=1");
    let watched = watched || query.split('&').any(asks);
    let verb = match verb(method, name, subresource, watched) {
        Ok(verb) => verb.as_str().to_owned(),
        Err(_) => lower,
    };
    Attributes {
        verb,
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

/// The status of an APIService after its condition `Available` was worked out; `None` when that
/// says nothing new.
#[must_use]
pub fn status(
    object: &Value,
    available: bool,
    reason: &str,
    message: &str,
    now: Time,
) -> Option<Value> {
    let wanted = if available { "True" } else { "False" };
    let said = value_at(object, "status.conditions").and_then(Value::as_array);
    let mut conditions: Vec<Value> = said.cloned().unwrap_or_default();
    let at = conditions.iter().position(|one| str_at(one, "type") == Some("Available"));
    let old = at.and_then(|at| conditions.get(at)).cloned().unwrap_or(Value::Null);
    let text = |key: &str| str_at(&old, key).unwrap_or("");
    if (text("status"), text("reason"), text("message")) == (wanted, reason, message) {
        return None;
    }
    let since =
        if text("status") == wanted { old.get("lastTransitionTime").cloned() } else { None };
    let made = json!({
        "type": "Available", "status": wanted, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| json!(now)),
    });
    match at.and_then(|at| conditions.get_mut(at)) {
        Some(place) => *place = made,
        None => conditions.push(made),
    }
    Some(json!({ "conditions": conditions }))
}

/// The port of the service an APIService names.
#[must_use]
pub fn port(object: &Value) -> i64 {
    int_at(object, "spec.service.port").unwrap_or(443)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_resources_becomes_an_entry_of_discovery() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
             "verbs": ["get"], "shortNames": ["fl"]},
            {"name": "flunders/scale", "namespaced": true, "group": "autoscaling",
             "version": "v1", "kind": "Scale", "verbs": ["update"]},
        ]});
        let expected = json!({"version": "v1", "freshness": "Current", "resources": [{
            "resource": "flunders", "singularResource": "flunder", "scope": "Namespaced",
            "responseKind": {"group": "w.io", "version": "v1", "kind": "Flunder"},
            "verbs": ["get"], "shortNames": ["fl"],
            "subresources": [{"subresource": "scale", "verbs": ["update"],
                "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}],
        }]});
        assert_eq!(entry("w.io", "v1", &list), expected);
    }

    #[test]
    fn a_path_tells_what_is_asked() {
        for (method, path, query, expected) in [
            ("GET", "/apis/w.io/v1/flunders", "", "list /flunders/ in  named "),
            ("GET", "/apis/w.io/v1/flunders", "watch=true", "watch /flunders/ in  named "),
            ("GET", "/apis/w.io/v1/namespaces/n/flunders/a", "", "get /flunders/ in n named a"),
            (
                "PUT",
                "/apis/w.io/v1/namespaces/n/flunders/a/status",
                "",
                "update /flunders/status in n named a",
            ),
            ("GET", "/apis/w.io/v1", "", "get /apis/w.io/v1// in  named "),
        ] {
            let got = attributes(method, path, query);
            let got = format!(
                "{} {}/{}/{} in {} named {}",
                got.verb, got.path, got.resource, got.subresource, got.namespace, got.name
            );
            assert_eq!(got, expected, "{method} {path}");
        }
    }

    #[test]
    fn nobody_takes_a_group_of_ours() {
        let object = |group: &str| json!({"spec": {"group": group, "version": "v1", "service": {"name": "a"}}});
        assert!(Remote::read(&object("apps")).is_none());
        assert!(Remote::read(&object("")).is_none());
        assert!(Remote::read(&object("w.io")).is_some());
    }
}
