//! Decisions as tables: who, what, whether.

use objects::field::str_at;
use serde_json::{Value, json};

use super::*;
use crate::request::{Route, parse_request};

/// `p1` runs on `n1`, names the secret `s1` and runs as the ServiceAccount `robot`.
struct Fixed;

impl Facts for Fixed {
    fn pod_node(&self, _: &str, pod: &str) -> Option<String> {
        (pod == "p1").then(|| "n1".to_owned())
    }

    fn node_needs(&self, node: &str, plural: &str, _: &str, name: &str) -> bool {
        node == "n1"
            && [("secrets", "s1"), ("serviceaccounts", "robot"), ("persistentvolumeclaims", "c1")]
                .contains(&(plural, name))
    }

    fn has_network_policies(&self) -> bool {
        false
    }
}

/// The same, with a NetworkPolicy.
struct Guarded;

impl Facts for Guarded {
    fn pod_node(&self, namespace: &str, pod: &str) -> Option<String> {
        Fixed.pod_node(namespace, pod)
    }

    fn node_needs(&self, node: &str, plural: &str, namespace: &str, name: &str) -> bool {
        Fixed.node_needs(node, plural, namespace, name)
    }

    fn has_network_policies(&self) -> bool {
        true
    }
}

fn user(name: &str, groups: &[&str]) -> User {
    User { groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..User::named(name) }
        .with_group(AUTHENTICATED)
}

fn request(method: &str, url: &str) -> Request {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    match parse_request(method, path, query) {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{url} is no resource: {other:?}"),
    }
}

/// A cluster with the default roles and these objects besides.
fn cluster(more: &[Value]) -> Rbac {
    let defaults = policy::default_objects();
    Rbac::compile(defaults.iter().chain(more))
}

#[track_caller]
fn check(rbac: &Rbac, user: &User, method: &str, url: &str, allowed: bool) {
    let said = decide(user, &Attributes::of(&request(method, url)), rbac, &Fixed);
    assert_eq!(said.allowed, allowed, "{} {method} {url}: {said:?}", user.name);
}

fn role(kind: &str, name: &str, rules: Value) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "namespace": "a"}, "rules": rules})
}

fn binding(kind: &str, name: &str, role: (&str, &str), subjects: Value) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "namespace": "a"},
           "roleRef": {"kind": role.0, "name": role.1}, "subjects": subjects})
}

#[test]
fn roles_allow_what_they_say_where_they_are_bound() {
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
        {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["c"], "verbs": ["*"]},
    ]);
    let who = json!([{"kind": "User", "name": "ann"}, {"kind": "Group", "name": "devs"},
                     {"kind": "ServiceAccount", "name": "robot"}]);
    let rbac = cluster(&[
        role("Role", "reader", rules),
        binding("RoleBinding", "read", ("Role", "reader"), who),
        binding("RoleBinding", "lost", ("Role", "gone"), json!([{"kind": "User", "name": "bob"}])),
    ]);
    for (name, groups) in
        [("ann", &[][..]), ("cleo", &["devs"]), ("system:serviceaccount:a:robot", &[])]
    {
        let user = user(name, groups);
        for (method, url, allowed) in [
            ("GET", "/api/v1/namespaces/a/pods", true),
            ("GET", "/api/v1/namespaces/a/pods/p", true),
            ("GET", "/api/v1/namespaces/a/pods?watch=1", false),
            ("GET", "/api/v1/namespaces/a/pods/p/log", true),
            ("GET", "/api/v1/namespaces/a/pods/p/status", false),
            ("GET", "/api/v1/namespaces/b/pods", false),
            ("GET", "/api/v1/pods", false),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", true),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d", false),
            ("PATCH", "/api/v1/namespaces/a/replicationcontrollers/d/scale", false),
            ("GET", "/api/v1/namespaces/a/configmaps/c", true),
            ("GET", "/api/v1/namespaces/a/configmaps/d", false),
            ("GET", "/api/v1/namespaces/a/configmaps", false),
            ("GET", "/api/v1/namespaces/a/configmaps?fieldSelector=metadata.name=c&watch=1", true),
            ("POST", "/api/v1/namespaces/a/configmaps", false),
        ] {
            check(&rbac, &user, method, url, allowed);
        }
    }
    check(&rbac, &user("ann2", &["dev"]), "GET", "/api/v1/namespaces/a/pods", false);
    let asked = Attributes::of(&request("GET", "/api/v1/namespaces/a/pods"));
    let said = authorize(&user("bob", &[]), &asked, &rbac, &Fixed).unwrap_err();
    assert_eq!(
        said.message,
        "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the \
         namespace \"a\": RBAC: role.rbac.authorization.k8s.io \"gone\" not found"
    );
    let said = authorize(&user("ann", &[]), &asked, &rbac, &Fixed).unwrap();
    assert_eq!(
        said.reason,
        "RBAC: allowed by RoleBinding \"read/a\" of Role \"reader\" to User \"ann\""
    );
}

#[test]
fn refusals_read_as_upstream_writes_them() {
    let rbac = cluster(&[]);
    for (method, url, message) in [
        (
            "GET",
            "/api/v1/nodes",
            "nodes is forbidden: User \"x\" cannot list resource \"nodes\" in API group \"\" at the \
             cluster scope",
        ),
        (
            "DELETE",
            "/apis/apps/v1/namespaces/y/deployments/d",
            "deployments.apps \"d\" is forbidden: User \"x\" cannot delete resource \
             \"deployments\" in API group \"apps\" in the namespace \"y\"",
        ),
        (
            "GET",
            "/api/v1/namespaces/y/pods/p/log",
            "pods \"p\" is forbidden: User \"x\" cannot get resource \"pods/log\" in API group \
             \"\" in the namespace \"y\"",
        ),
    ] {
        let asked = Attributes::of(&request(method, url));
        let status = authorize(&user("x", &[]), &asked, &rbac, &Fixed).unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (403, message));
    }
    let asked = Attributes::of_path("GET", "/metrics");
    let status = authorize(&user("x", &[]), &asked, &rbac, &Fixed).unwrap_err();
    assert_eq!(status.message, "forbidden: User \"x\" cannot get path \"/metrics\"");
}

#[test]
fn the_usual_roles_are_as_wide_as_their_names() {
    let bind = |role: &str, who: &str| {
        let subjects = json!([{"kind": "User", "name": who}]);
        binding("RoleBinding", who, ("ClusterRole", role), subjects)
    };
    let rbac = cluster(&[bind("view", "v"), bind("edit", "e"), bind("admin", "a")]);
    for (method, url, [view, edit, admin]) in [
        ("GET", "/api/v1/namespaces/a/pods", [true, true, true]),
        ("GET", "/api/v1/namespaces/a", [true, true, true]),
        ("GET", "/api/v1/namespaces/a/secrets", [false, true, true]),
        ("POST", "/apis/apps/v1/namespaces/a/deployments", [false, true, true]),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles", [false, false, true]),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles", [false, false, true]),
        ("POST", "/api/v1/namespaces/b/pods", [false, false, false]),
        ("GET", "/api/v1/nodes", [false, false, false]),
        ("DELETE", "/api/v1/namespaces/a", [false, false, false]),
    ] {
        for (who, allowed) in [("v", view), ("e", edit), ("a", admin)] {
            check(&rbac, &user(who, &[]), method, url, allowed);
        }
    }
}

#[test]
fn a_role_added_by_label_widens_the_role_that_gathers_it() {
    let mut more = role(
        "ClusterRole",
        "gadgets",
        json!([{"apiGroups": ["muster.dev"], "resources": ["racks"], "verbs": ["list"]}]),
    );
    more["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    let who = json!([{"kind": "User", "name": "v"}]);
    let bound = binding("ClusterRoleBinding", "v", ("ClusterRole", "admin"), who);
    let racks = "/apis/muster.dev/v1alpha1/racks";
    check(&cluster(std::slice::from_ref(&bound)), &user("v", &[]), "GET", racks, false);
    // View is gathered into edit, and edit into admin.
    check(&cluster(&[bound, more]), &user("v", &[]), "GET", racks, true);
}

#[test]
fn paths_are_for_those_who_may_see_them() {
    let rbac = cluster(&[]);
    let monitor = user("m", &["system:monitoring"]);
    let robot = user("system:serviceaccount:a:r", &["system:serviceaccounts"]);
    for (who, path, allowed) in [
        (User::anonymous(), "/readyz", true),
        (User::anonymous(), "/version", true),
        (User::anonymous(), "/apis", false),
        (User::anonymous(), "/metrics", false),
        (user("u", &[]), "/apis/apps/v1", true),
        (user("u", &[]), "/openapi/v3", true),
        (user("u", &[]), "/metrics", false),
        (monitor, "/metrics", true),
        (robot, "/openid/v1/jwks", true),
        (user("u", &[]), "/openid/v1/jwks", false),
        (user("root", &[MASTERS]), "/anything", true),
    ] {
        let said = decide(&who, &Attributes::of_path("GET", path), &rbac, &Fixed);
        assert_eq!(said.allowed, allowed, "{} {path}", who.name);
    }
    let write = Attributes::of_path("POST", "/readyz");
    assert!(!decide(&User::anonymous(), &write, &rbac, &Fixed).allowed);
}

/// What our own parts ask of the server: they must come up with nothing more than this.
#[test]
fn every_part_of_ours_gets_what_it_asks_for() {
    let rbac = cluster(&[]);
    let node = user("system:node:n1", &["system:nodes"]);
    let manager = user("system:kube-controller-manager", &[]);
    let boot = user("muster:boot", &[]);
    let machines = "/apis/muster.dev/v1alpha1/machines";
    let leases = "/apis/coordination.k8s.io/v1/namespaces";
    let asked = [
        // The agent: heartbeat, its pods and what they name, its events.
        (&node, "GET", "/api/v1/nodes/n1"),
        (&node, "POST", "/api/v1/nodes"),
        (&node, "PATCH", "/api/v1/nodes/n1"),
        (&node, "PATCH", "/api/v1/nodes/n1/status"),
        (&node, "PATCH", &format!("{leases}/kube-node-lease/leases/n1")),
        (&node, "POST", &format!("{leases}/kube-node-lease/leases")),
        (&node, "GET", "/api/v1/pods?fieldSelector=spec.nodeName=n1"),
        (&node, "GET", "/api/v1/pods?watch=1&fieldSelector=spec.nodeName=n1"),
        (&node, "PATCH", "/api/v1/namespaces/a/pods/p1/status"),
        (&node, "DELETE", "/api/v1/namespaces/a/pods/p1"),
        (&node, "GET", "/api/v1/namespaces/a/secrets/s1"),
        (&node, "POST", "/api/v1/namespaces/a/events"),
        (&node, "PATCH", "/api/v1/namespaces/a/events/e"),
        (&node, "GET", &format!("{machines}/n1")),
        // The router and the proxy, which share the node's name.
        (&node, "GET", "/api/v1/nodes?watch=1&fieldSelector=metadata.name=n1"),
        (&node, "GET", machines),
        (&node, "GET", "/apis/muster.dev/v1alpha1/racks?watch=1"),
        (
            &node,
            "GET",
            "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name=muster-site",
        ),
        (&node, "GET", "/api/v1/services?watch=1"),
        (&node, "GET", "/apis/discovery.k8s.io/v1/endpointslices?watch=1"),
        (&node, "GET", "/apis/networking.k8s.io/v1/networkpolicies?watch=1"),
        (&node, "GET", "/api/v1/namespaces?watch=1"),
        // The boot server.
        (&boot, "GET", "/api/v1/nodes?watch=1"),
        (&boot, "PATCH", &format!("{machines}/m/status")),
        // The manager: leader's lease, all kinds seen, what controllers make and mend.
        (&manager, "GET", &format!("{leases}/kube-system/leases/muster-manager")),
        (&manager, "POST", &format!("{leases}/kube-system/leases")),
        (&manager, "PUT", &format!("{leases}/kube-system/leases/muster-manager")),
        (&manager, "POST", "/api/v1/namespaces/a/pods"),
        (&manager, "POST", "/api/v1/namespaces/a/pods/p/binding"),
        (&manager, "PATCH", "/api/v1/namespaces/a/pods/p/status"),
        (&manager, "DELETE", "/api/v1/namespaces/a/pods/p"),
        (&manager, "POST", "/api/v1/namespaces/a/endpoints"),
        (&manager, "POST", "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices"),
        (&manager, "POST", "/apis/apps/v1/namespaces/a/replicasets"),
        (&manager, "PATCH", "/api/v1/nodes/n"),
        (&manager, "PUT", "/api/v1/namespaces/a/finalize"),
        (&manager, "POST", "/api/v1/namespaces/a/events"),
        (&manager, "POST", "/api/v1/namespaces/a/serviceaccounts"),
        (&manager, "POST", "/api/v1/namespaces/a/configmaps"),
        (&manager, "PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval"),
    ];
    for (who, method, url) in asked {
        check(&rbac, who, method, url, true);
    }
    for kind in objects::kind::KINDS {
        let path = kind.path(None, None);
        check(&rbac, &manager, "GET", &path, true);
        check(&rbac, &manager, "GET", &format!("{path}?watch=1"), true);
    }
}

/// Network policies speak of pods anywhere; without any, pods of others are nobody's business.
#[test]
fn nodes_see_all_pods_only_while_there_is_a_policy() {
    let rbac = cluster(&[]);
    let node = user("system:node:n1", &["system:nodes"]);
    let stranger = user("eve", &[]);
    for (who, method, url, guarded) in [
        (&node, "GET", "/api/v1/pods", true),
        (&node, "GET", "/api/v1/pods?watch=1", true),
        (&node, "GET", "/api/v1/pods?fieldSelector=spec.nodeName=n2", true),
        (&node, "GET", "/api/v1/namespaces/a/pods", false),
        (&node, "GET", "/api/v1/namespaces/a/pods/p2", false),
        (&node, "GET", "/api/v1/namespaces/a/pods/p2/log", false),
        (&node, "DELETE", "/api/v1/namespaces/a/pods/p2", false),
        (&node, "GET", "/api/v1/secrets", false),
        (&stranger, "GET", "/api/v1/pods", false),
    ] {
        let asked = Attributes::of(&request(method, url));
        let name = &who.name;
        assert!(!decide(who, &asked, &rbac, &Fixed).allowed, "{name} {method} {url}");
        let said = decide(who, &asked, &rbac, &Guarded);
        assert_eq!(said.allowed, guarded, "{name} {method} {url}: {said:?}");
    }
}

#[test]
fn no_part_of_ours_gets_more_than_its_work() {
    let rbac = cluster(&[]);
    let node = user("system:node:n1", &["system:nodes"]);
    let manager = user("system:kube-controller-manager", &[]);
    let boot = user("muster:boot", &[]);
    let leases = "/apis/coordination.k8s.io/v1/namespaces";
    for (who, method, url) in [
        (&node, "PATCH", "/api/v1/nodes/n2/status"),
        (&node, "GET", "/api/v1/nodes"),
        (&node, "GET", "/api/v1/namespaces/a/pods/p2"),
        (&node, "PUT", "/api/v1/namespaces/a/pods/p2/status"),
        (&node, "DELETE", "/api/v1/namespaces/a/pods"),
        (&node, "POST", "/api/v1/namespaces/a/pods"),
        (&node, "GET", "/api/v1/namespaces/a/secrets/s2"),
        (&node, "GET", "/api/v1/namespaces/a/secrets"),
        (&node, "PUT", "/api/v1/namespaces/a/secrets/s1"),
        (&node, "GET", "/api/v1/secrets"),
        (&node, "GET", "/api/v1/namespaces/a/persistentvolumeclaims"),
        (&node, "PUT", &format!("{leases}/kube-node-lease/leases/n2")),
        (&node, "PUT", &format!("{leases}/kube-system/leases/n1")),
        (&boot, "PATCH", "/apis/muster.dev/v1alpha1/machines/m"),
        (&boot, "GET", "/api/v1/secrets"),
        (&manager, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        (&manager, "POST", "/api/v1/nodes"),
        (&manager, "POST", "/apis/apps/v1/namespaces/a/deployments"),
    ] {
        check(&rbac, who, method, url, false);
    }
    // The name alone does not make a node.
    check(&rbac, &user("system:node:n1", &[]), "PATCH", "/api/v1/nodes/n1/status", false);
    let token = |account: &str| {
        Attributes::on("create", "", "serviceaccounts/token", account).in_namespace("a")
    };
    assert!(decide(&node, &token("robot"), &rbac, &Fixed).allowed);
    assert!(!decide(&node, &token("default"), &rbac, &Fixed).allowed);
    check(&rbac, &user("eve", &[]), "GET", "/api/v1/pods", false);
    check(&rbac, &user("admin", &[MASTERS]), "DELETE", "/api/v1/nodes/n", true);
}

#[test]
fn a_node_is_no_other_node_and_does_not_rule_itself() {
    let user = user("system:node:n1", &["system:nodes"]);
    let request = request("POST", "/api/v1/nodes");
    let node =
        |name: &str, taints: &str| json!({"metadata": {"name": name}, "spec": {"taints": taints}});
    let check =
        |old: Option<&Value>, new: &Value| check_node_write(&user, &request, old, new).is_ok();
    assert!(check(None, &node("n1", "")));
    assert!(!check(None, &node("n2", "")));
    assert!(check(Some(&node("n1", "a")), &node("n1", "a")));
    assert!(!check(Some(&node("n1", "a")), &node("n1", "")));
    let labelled = |key: &str| {
        let mut node = node("n1", "a");
        node["metadata"]["labels"] = json!({key: "x"});
        node
    };
    let reserved = labelled("team.node-restriction.kubernetes.io/secret");
    assert!(check(Some(&node("n1", "a")), &labelled("kubernetes.io/hostname")));
    assert!(check(Some(&reserved), &reserved));
    for (old, new) in [(Some(&reserved), &node("n1", "a")), (Some(&node("n1", "a")), &reserved)] {
        assert!(!check(old, new));
    }
    assert!(!check(None, &reserved));
}

#[test]
fn nobody_gives_away_what_it_does_not_have() {
    let who = |name: &str| json!([{"kind": "User", "name": name}]);
    let rbac = cluster(&[
        binding("RoleBinding", "ann", ("ClusterRole", "admin"), who("ann")),
        role(
            "ClusterRole",
            "giver",
            json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
                    "resourceNames": ["view"], "verbs": ["bind"]},
                   {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"],
                    "verbs": ["escalate"]}]),
        ),
        binding("RoleBinding", "gus", ("ClusterRole", "giver"), who("gus")),
    ]);
    let rules = |verb: &str, resource: &str| {
        role(
            "Role",
            "r",
            json!([{"apiGroups": [""], "resources": [resource], "verbs": [verb, "get"]}]),
        )
    };
    let roles = request("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles");
    let bindings = request("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings");
    let give = |role: &str| binding("RoleBinding", "b", ("ClusterRole", role), who("bob"));
    let try_as = |name: &str, request: &Request, new: &Value| {
        grant::check(&user(name, &[]), request, None, new, &rbac, &Fixed)
    };
    assert!(try_as("ann", &roles, &rules("list", "pods")).is_ok());
    let refused = try_as("ann", &roles, &rules("list", "nodes")).unwrap_err();
    assert_eq!(
        refused.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"ann\" \
         (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently \
         held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"list\" \"get\"]}"
    );
    assert!(try_as("gus", &roles, &rules("list", "nodes")).is_ok());
    assert!(try_as("ann", &bindings, &give("edit")).is_ok());
    assert_eq!(try_as("ann", &bindings, &give("cluster-admin")).unwrap_err().code, 403);
    assert_eq!(try_as("ann", &bindings, &give("no-such-role")).unwrap_err().code, 404);
    assert!(try_as("gus", &bindings, &give("view")).is_ok());
    assert_eq!(try_as("gus", &bindings, &give("edit")).unwrap_err().code, 403);
    // What is as it was may stay.
    let old = rules("list", "nodes");
    let again = grant::check(&user("ann", &[]), &roles, Some(&old), &old, &rbac, &Fixed);
    assert!(again.is_ok());
    let mut gathers = rules("list", "pods");
    gathers["aggregationRule"] = json!({"clusterRoleSelectors": []});
    assert_eq!(try_as("ann", &roles, &gathers).unwrap_err().code, 403);
}

#[test]
fn a_certificate_is_signed_by_who_may() {
    let rbac = cluster(&[]);
    let request =
        request("PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval");
    let csr = |signer: &str| json!({"metadata": {"name": "c"}, "spec": {"signerName": signer}});
    let try_as = |name: &str, signer: &str| {
        grant::check(&user(name, &[]), &request, None, &csr(signer), &rbac, &Fixed)
    };
    assert!(try_as("system:kube-controller-manager", "muster.dev/node").is_ok());
    let refused = try_as("system:kube-controller-manager", "example.com/x").unwrap_err();
    assert_eq!(
        refused.message,
        "certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: user not permitted to \
         approve requests with signerName \"example.com/x\""
    );
    assert_eq!(try_as("eve", "muster.dev/node").unwrap_err().code, 403);
}

#[test]
fn reviews_are_read_as_they_are_written() {
    let asked = review::parse_attributes(
        "SelfSubjectAccessReview",
        &json!({"resourceAttributes": {"verb": "get", "resource": "pods", "subresource": "log",
                                       "namespace": "a", "name": "p"}}),
    )
    .unwrap();
    assert_eq!(asked.qualified_resource(), "pods/log");
    let path = json!({"nonResourceAttributes": {"verb": "get", "path": "/metrics"}});
    assert!(!review::parse_attributes("SelfSubjectAccessReview", &path).unwrap().is_resource());
    let neither = review::parse_attributes("SubjectAccessReview", &json!({})).unwrap_err();
    assert_eq!(
        neither.message,
        "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes: \
         Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be \
         specified"
    );
    assert_eq!(review::parse_subject("SubjectAccessReview", &json!({})).unwrap_err().code, 422);
    let rbac = cluster(&[]);
    let (rules, broken) = rbac.rules_for(&user("u", &[]), "a");
    let status = review::rules_status(&rules, &broken, false);
    assert_eq!(status["incomplete"], false);
    let shown = status["resourceRules"].as_array().unwrap();
    assert!(shown.iter().any(|rule| rule["resources"] == json!(["selfsubjectreviews"])));
    assert_eq!(str_at(&status, "evaluationError"), None);
}
