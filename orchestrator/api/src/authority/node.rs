//! What a node may do: itself, what is bound to it, and what every node needs.
//!
//! Spec: upstream's node authorizer; what it grants to every node alike is the role `system:node`.
//! One thing more: while there is a NetworkPolicy, nodes may list all pods, for they enforce it.
//! What a node writes about itself is checked once more when the object is known
//! ([`check_write`]), because a request to create says no name.

use objects::field::Fields as _;
use objects::{Status, field::str_at, kind};
use serde_json::Value;

use super::{Attributes, Facts, User, policy};
use crate::request::Request;

/// The namespace of nodes' heartbeats.
const LEASES: &str = "kube-node-lease";

/// Allows or not, and why not.
pub(super) fn decide(node: &str, asked: &Attributes, facts: &dyn Facts) -> (bool, String) {
    if !asked.is_resource() {
        return (false, String::new());
    }
    let verb = asked.verb.as_str();
    let reads = matches!(verb, "get" | "list" | "watch");
    let changes = matches!(verb, "update" | "patch");
    let (namespace, name) = (asked.namespace.as_str(), asked.name.as_str());
    let needed = || {
        if name.is_empty() {
            return Err("No Object name found".to_owned());
        }
        let found = facts.node_needs(node, &asked.resource, namespace, name);
        let why = || format!("no relationship found between node '{node}' and this object");
        found.then_some(()).ok_or_else(why)
    };
    let only = |allowed: bool, why: &str| allowed.then_some(()).ok_or_else(|| why.to_owned());
    let by_rules = || only(policy::node_rules().iter().any(|rule| rule.allows(asked)), "");
    let said = match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        // What every node may read comes first: it needs no relationship.
        ("", "configmaps" | "secrets", part) if by_rules().is_err() => {
            only(reads, "can only read resources of this type")
                .and_then(|()| only(part.is_empty(), "cannot read subresource"))
                .and_then(|()| {
                    only(!namespace.is_empty(), "can only read namespaced object of this type")
                })
                .and_then(|()| needed())
        }
        ("", "persistentvolumeclaims", "status") => {
            only(changes, "can only get/update/patch this type").and_then(|()| needed())
        }
        ("", "persistentvolumeclaims" | "persistentvolumes", part)
        | ("resource.k8s.io", "resourceclaims", part)
        | ("storage.k8s.io", "volumeattachments", part) => {
            only(verb == "get", "can only get individual resources of this type")
                .and_then(|()| only(part.is_empty(), "cannot get subresource"))
                .and_then(|()| needed())
        }
        ("", "serviceaccounts", "token") => {
            let why = "can only create tokens for individual service accounts";
            only(verb == "create" && !name.is_empty(), why).and_then(|()| needed())
        }
        ("", "serviceaccounts", "") => {
            only(verb == "get", "can only get individual resources of this type")
                .and_then(|()| needed())
        }
        ("coordination.k8s.io", "leases", _) => own_lease(node, asked),
        ("storage.k8s.io", "csinodes", "") => {
            let known = matches!(verb, "get" | "create" | "update" | "patch" | "delete");
            let why = "can only get, create, update, patch, or delete a CSINode";
            only(known, why).and_then(|()| {
                let why = "can only access CSINode with the same name as the requesting node";
                only(verb == "create" || name == node, why)
            })
        }
        ("", "nodes", part) => own_node(node, asked, part),
        ("", "pods", part) => own_pod(node, asked, part, facts),
        _ => by_rules(),
    };
    match said {
        Ok(()) => (true, String::new()),
        Err(why) => (false, why),
    }
}

fn own_lease(node: &str, asked: &Attributes) -> Result<(), String> {
    let verb = asked.verb.as_str();
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return Err("can only get, create, update, patch, or delete a node lease".to_owned());
    }
    if asked.namespace != LEASES {
        return Err(format!("can only access leases in the \"{LEASES}\" system namespace"));
    }
    if verb != "create" && asked.name != node {
        let why = "can only access node lease with the same name as the requesting node";
        return Err(why.to_owned());
    }
    Ok(())
}

fn own_node(node: &str, asked: &Attributes, part: &str) -> Result<(), String> {
    let own = asked.name == node;
    match (part, asked.verb.as_str()) {
        // A request to create says no name; what is made is checked when it is known.
        ("", "create" | "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if own => Ok(()),
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", asked.name))
        }
        ("status", "get" | "update" | "patch") if own => Ok(()),
        _ => Err(String::new()),
    }
}

fn own_pod(node: &str, asked: &Attributes, part: &str, facts: &dyn Facts) -> Result<(), String> {
    let own = || facts.pod_node(&asked.namespace, &asked.name).as_deref() == Some(node);
    let no_relationship =
        || Err(format!("no relationship found between node '{node}' and this object"));
    match (part, asked.verb.as_str()) {
        ("", "list" | "watch") if asked.fields.required("spec.nodeName") == Some(node) => Ok(()),
        // Not upstream's, where the enforcer of policies is somebody else, who may always do this.
        ("", "list" | "watch") if asked.namespace.is_empty() && facts.has_network_policies() => {
            Ok(())
        }
        ("", "list" | "watch") => {
            Err("can only list/watch pods with spec.nodeName field selector".to_owned())
        }
        ("", "get" | "delete")
        | ("status", "get" | "update" | "patch")
        | ("eviction", "create") => {
            if own() {
                Ok(())
            } else {
                no_relationship()
            }
        }
        _ => Err(String::new()),
    }
}

/// The domain of labels that keep pods apart from each other's nodes; upstream's.
const RESERVED: &str = "node-restriction.kubernetes.io";

/// Checks what a node writes about itself: it is no other node, and says nothing of what the
/// cluster wants of it.
///
/// # Errors
///
/// 403 with the reason.
pub(crate) fn check_write(
    user: &User,
    request: &Request,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    let Some(node) = user.node() else { return Ok(()) };
    if user.is_in(super::MASTERS) {
        return Ok(());
    }
    let name = str_at(new, "metadata.name").unwrap_or("");
    let own = *request.kind == kind::NODE
        || *request.kind == kind::LEASE
        || request.kind.plural == "csinodes";
    if own && name != node {
        let why = format!(
            "node \"{node}\" is not allowed to modify {} \"{name}\"",
            request.kind.singular
        );
        return Err(Status::forbidden(request.kind, name, &why));
    }
    if let Some(old) = old.filter(|_| *request.kind == kind::NODE)
        && old.get("spec") != new.get("spec")
    {
        let why = format!("node \"{node}\" is not allowed to modify its spec");
        return Err(Status::forbidden(request.kind, name, &why));
    }
    if *request.kind == kind::NODE {
        let changed = reserved_labels(old, new);
        if !changed.is_empty() {
            let why =
                format!("node \"{node}\" is not allowed to modify labels: {}", changed.join(", "));
            return Err(Status::forbidden(request.kind, name, &why));
        }
    }
    Ok(())
}

/// The labels that differ and that no node may write, not even its own: pods are kept apart by
/// them.
fn reserved_labels(old: Option<&Value>, new: &Value) -> Vec<String> {
    let labels = |object: Option<&Value>| -> std::collections::BTreeMap<String, Value> {
        let all = object.and_then(|one| one.field("metadata.labels")).and_then(Value::as_object);
        let reserved = all.into_iter().flatten().filter(|(key, _)| {
            let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
            prefix == RESERVED || prefix.ends_with(&format!(".{RESERVED}"))
        });
        reserved.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let (before, after) = (labels(old), labels(Some(new)));
    let mut changed: Vec<String> = before
        .iter()
        .filter(|(key, value)| after.get(*key) != Some(*value))
        .map(|one| one.0.clone())
        .collect();
    changed.extend(after.keys().filter(|key| !before.contains_key(*key)).cloned());
    changed
}
