//! Who may do what: fixed identities with as few rights as their work needs.
//!
//! *Limits*: there are no RBAC objects yet. Besides `system:masters` only the identities of the
//! cluster's own parts may do anything; everybody else is refused.

use objects::{Status, field::str_at, kind};
use serde_json::Value;

use crate::request::{Request, Verb};

/// Who asks, as the client certificate says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The common name.
    pub name: String,
    /// The organisations.
    pub groups: Vec<String>,
}

/// What a decision about a node's request depends on besides the request.
pub trait Facts {
    /// The node a pod is bound to; `None` when there is no such pod or it is not bound.
    fn pod_node(&self, namespace: &str, pod: &str) -> Option<String>;

    /// Does a pod bound to `node` name this object (`secrets`, `configmaps`, …)?
    fn node_needs(&self, node: &str, plural: &str, namespace: &str, name: &str) -> bool;
}

impl User {
    /// Is the user in this group?
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|have| have == group)
    }

    /// The node's name when the user is a node.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        if self.is_in("system:nodes") { self.name.strip_prefix("system:node:") } else { None }
    }
}

/// Decides whether `user` may make `request`.
///
/// # Errors
///
/// 403, worded as upstream words it.
pub fn authorize(user: &User, request: &Request, facts: &dyn Facts) -> Result<(), Status> {
    let allowed = user.is_in("system:masters")
        || match user.name.as_str() {
            "system:kube-controller-manager" => true,
            "muster:boot" => may_boot(request),
            _ => user.node().is_some_and(|node| may_node(node, request, facts)),
        };
    if allowed { Ok(()) } else { Err(refuse(user, request)) }
}

/// Decides whether `user` may read a path that is no resource.
///
/// # Errors
///
/// 403, worded as upstream words it.
pub fn authorize_path(user: &User, verb: &str, path: &str) -> Result<(), Status> {
    let read = matches!(verb, "get" | "GET" | "HEAD");
    let known = !user.name.is_empty() && user.name != "system:anonymous";
    let open = ["/healthz", "/livez", "/readyz", "/version"];
    let documents = ["/api", "/apis", "/openapi"];
    let under = |roots: &[&str]| {
        roots.iter().any(|root| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    if user.is_in("system:masters") || (read && under(&open)) {
        return Ok(());
    }
    if known && read && (under(&documents) || path == "/") {
        return Ok(());
    }
    Err(Status::forbidden_path(&user.name, &verb.to_ascii_lowercase(), path))
}

/// The boot server tells how far machines have come.
fn may_boot(request: &Request) -> bool {
    let reads = matches!(request.verb, Verb::Get | Verb::List | Verb::Watch);
    match (request.kind, request.subresource.as_str()) {
        (kind, "") if *kind == kind::MACHINE || *kind == kind::NODE || *kind == kind::RACK => reads,
        (kind, "status") if *kind == kind::MACHINE => {
            matches!(request.verb, Verb::Get | Verb::Update | Verb::Patch)
        }
        _ => false,
    }
}

/// A node touches itself and what is bound to it.
fn may_node(node: &str, request: &Request, facts: &dyn Facts) -> bool {
    let reads = matches!(request.verb, Verb::Get | Verb::List | Verb::Watch);
    let changes = matches!(request.verb, Verb::Update | Verb::Patch);
    let creates = request.verb == Verb::Create;
    let (namespace, name) = (request.namespace.as_str(), request.name.as_str());
    let own_pod = || facts.pod_node(namespace, name).as_deref() == Some(node);
    match (request.kind.plural, request.subresource.as_str()) {
        // What a node makes must bear its own name, see `check_node_write`.
        ("nodes", "") => reads || creates || (changes && name == node),
        ("nodes", "status") => name == node && (changes || reads),
        ("leases", "") => {
            namespace == "kube-node-lease"
                && (creates || (name == node && (changes || request.verb == Verb::Get)))
        }
        ("pods", "") => reads || (request.verb == Verb::Delete && own_pod()),
        ("pods", "status") => (changes || request.verb == Verb::Get) && own_pod(),
        ("services" | "endpoints" | "endpointslices" | "machines" | "racks" | "namespaces", "") => {
            reads
        }
        ("configmaps" | "secrets" | "serviceaccounts" | "persistentvolumeclaims", "") => {
            let wanted = match name {
                // A watch or list of one object by name, as caches of single objects do.
                "" => request.options.field_selector.required("metadata.name").unwrap_or(""),
                name => name,
            };
            // The site's ranges, which every router needs before the first pod comes.
            let site = (request.kind.plural, namespace, wanted)
                == ("configmaps", "kube-system", "muster-site");
            let needed = !wanted.is_empty()
                && facts.node_needs(node, request.kind.plural, namespace, wanted);
            reads && (site || needed)
        }
        ("events", "") => creates || changes,
        ("certificatesigningrequests", "") => creates || request.verb == Verb::Get,
        _ => false,
    }
}

/// Checks what a node writes about itself: it is no other node, and says nothing of what the
/// cluster wants of it.
///
/// # Errors
///
/// 403 with the reason.
pub(crate) fn check_node_write(
    user: &User,
    request: &Request,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Status> {
    let Some(node) = user.node() else { return Ok(()) };
    if user.is_in("system:masters") {
        return Ok(());
    }
    let name = str_at(new, "metadata.name").unwrap_or("");
    let own = *request.kind == kind::NODE || *request.kind == kind::LEASE;
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
    Ok(())
}

fn refuse(user: &User, request: &Request) -> Status {
    let place = if request.namespace.is_empty() {
        " at the cluster scope".to_owned()
    } else {
        format!(" in the namespace \"{}\"", request.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{}\" in API group \"{}\"{place}",
        user.name,
        request.verb.as_str(),
        request.resource(),
        request.served.group,
    );
    Status::forbidden(request.kind, &request.name, &why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request::{Route, parse_request};

    /// `p1` runs on `n1` and names the secret `s1`.
    struct Fixed;

    impl Facts for Fixed {
        fn pod_node(&self, _: &str, pod: &str) -> Option<String> {
            (pod == "p1").then(|| "n1".to_owned())
        }

        fn node_needs(&self, node: &str, plural: &str, _: &str, name: &str) -> bool {
            (node, plural, name) == ("n1", "secrets", "s1")
        }
    }

    #[track_caller]
    fn check(user: &str, groups: &[&str], method: &str, url: &str, allowed: bool) {
        let user = User {
            name: user.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        };
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let Ok(Route::Resource(request)) = parse_request(method, path, query) else {
            panic!("{url} is no resource");
        };
        let said = authorize(&user, &request, &Fixed);
        assert_eq!(said.is_ok(), allowed, "{} {method} {url}: {said:?}", user.name);
    }

    #[test]
    fn a_node_touches_itself_and_what_is_bound_to_it() {
        let node = |method: &str, url: &str, allowed: bool| {
            check("system:node:n1", &["system:nodes"], method, url, allowed);
        };
        node("PATCH", "/api/v1/nodes/n1/status", true);
        node("PATCH", "/api/v1/nodes/n2/status", false);
        node("PUT", "/api/v1/namespaces/a/pods/p1/status", true);
        node("PUT", "/api/v1/namespaces/a/pods/p2/status", false);
        node("DELETE", "/api/v1/namespaces/a/pods/p1", true);
        node("DELETE", "/api/v1/namespaces/a/pods", false);
        node("POST", "/api/v1/namespaces/a/pods", false);
        node("GET", "/api/v1/namespaces/a/secrets/s1", true);
        node("GET", "/api/v1/namespaces/a/secrets/s2", false);
        node("GET", "/api/v1/namespaces/kube-system/configmaps/muster-site", true);
        node("GET", "/api/v1/namespaces/a/configmaps/muster-site", false);
        node("GET", "/api/v1/secrets", false);
        node("GET", "/api/v1/namespaces/a/secrets?watch=1&fieldSelector=metadata.name=s1", true);
        node("GET", "/apis/muster.dev/v1alpha1/machines", true);
        node("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", true);
        node("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2", false);
        node("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/n1", false);
        node("POST", "/api/v1/namespaces/a/events", true);
        // The name alone does not make a node.
        check("system:node:n1", &[], "PATCH", "/api/v1/nodes/n1/status", false);
    }

    #[test]
    fn a_node_is_no_other_node_and_does_not_rule_itself() {
        let user =
            User { name: "system:node:n1".to_owned(), groups: vec!["system:nodes".to_owned()] };
        let Ok(Route::Resource(request)) = parse_request("POST", "/api/v1/nodes", "") else {
            panic!("nodes are no resource");
        };
        let node = |name: &str, taints: &str| json!({"metadata": {"name": name}, "spec": {"taints": taints}});
        let check =
            |old: Option<&Value>, new: &Value| check_node_write(&user, &request, old, new).is_ok();
        assert!(check(None, &node("n1", "")));
        assert!(!check(None, &node("n2", "")));
        assert!(check(Some(&node("n1", "a")), &node("n1", "a")));
        assert!(!check(Some(&node("n1", "a")), &node("n1", "")));
    }

    #[test]
    fn the_boot_server_tells_of_machines_only() {
        let boot = |method: &str, url: &str, allowed: bool| {
            check("muster:boot", &[], method, url, allowed);
        };
        boot("PATCH", "/apis/muster.dev/v1alpha1/machines/m/status", true);
        boot("PATCH", "/apis/muster.dev/v1alpha1/machines/m", false);
        boot("GET", "/api/v1/nodes", true);
        boot("GET", "/api/v1/secrets", false);
    }

    #[test]
    fn strangers_get_nothing_and_masters_everything() {
        check("eve", &["system:authenticated"], "GET", "/api/v1/pods", false);
        check("admin", &["system:masters"], "DELETE", "/api/v1/nodes/n", true);
        let anonymous = User { name: "system:anonymous".to_owned(), groups: Vec::new() };
        assert!(authorize_path(&anonymous, "GET", "/readyz").is_ok());
        assert!(authorize_path(&anonymous, "GET", "/version").is_ok());
        assert!(authorize_path(&anonymous, "GET", "/apis").is_err());
        assert!(authorize_path(&anonymous, "GET", "/metrics").is_err());
    }
}
