//! Who one is and what one may do, asked of a running server.

use objects::kind;
use runtime::Client;
use runtime::client::ListParams;
use runtime::resource::{CONFIG_MAPS, PODS, Resource};
use serde_json::{Value, json};

use crate::common::Cluster;

const DEFAULT: Option<&str> = Some("default");

fn resource(kind: &kind::Kind) -> Resource {
    Resource::from(kind)
}

/// A client of the cluster with a certificate for this user.
pub(crate) fn person(cluster: &Cluster, name: &str, group: &str) -> Client {
    let ca = runtime::pki::Authority::load(&cluster.path("pki")).unwrap();
    let day = std::time::Duration::from_secs(86_400);
    let subject = runtime::pki::Subject::new(name, &[group]);
    let sans = runtime::pki::Sans::default();
    let made = ca.issue(&subject, &sans, runtime::pki::Usage::Client, day).unwrap();
    cluster.client(Some(runtime::Identity {
        cert_pem: made.cert_pem.into_bytes(),
        key_pem: made.key_pem.expose().as_bytes().to_vec(),
    }))
}

fn rules(verbs: &[&str], resources: &[&str]) -> Value {
    json!([{"apiGroups": [""], "resources": resources, "verbs": verbs}])
}

fn role(name: &str, rules: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
           "metadata": {"name": name}, "rules": rules})
}

fn binding(name: &str, role: (&str, &str), user: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
           "metadata": {"name": name},
           "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1},
           "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]})
}

async fn post(client: &Client, path: &str, body: &Value) -> (u16, Value) {
    let answer = client.raw_post(path, body).await.unwrap();
    (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test]
async fn a_binding_works_with_the_next_request_and_ends_with_its_deletion() {
    let cluster = Cluster::start().await;
    let (admin, ann) = (cluster.admin(), person(&cluster, "ann", "devs"));
    let params = ListParams::default();
    let refused = ann.list(&PODS, DEFAULT, &params).await.unwrap_err();
    assert_eq!(
        refused.status().unwrap().message,
        "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" in the \
         namespace \"default\""
    );
    let bindings = resource(&kind::ROLE_BINDING);
    let view = binding("ann", ("ClusterRole", "view"), "ann");
    admin.create(&bindings, DEFAULT, &view).await.unwrap();
    ann.list(&PODS, DEFAULT, &params).await.unwrap();
    assert!(ann.list(&PODS, None, &params).await.is_err());
    admin.delete(&bindings, DEFAULT, "ann", &Default::default()).await.unwrap();
    assert!(ann.list(&PODS, DEFAULT, &params).await.is_err());
}

#[tokio::test]
async fn an_admin_of_a_namespace_hands_on_what_it_has_and_no_more() {
    let cluster = Cluster::start().await;
    let (admin, ann) = (cluster.admin(), person(&cluster, "ann", "devs"));
    let (roles, bindings) = (resource(&kind::ROLE), resource(&kind::ROLE_BINDING));
    let lead = binding("ann", ("ClusterRole", "admin"), "ann");
    admin.create(&bindings, DEFAULT, &lead).await.unwrap();
    ann.create(&roles, DEFAULT, &role("fine", &rules(&["get"], &["pods"]))).await.unwrap();
    let greedy = role("greedy", &rules(&["get"], &["nodes"]));
    let refused = ann.create(&roles, DEFAULT, &greedy).await.unwrap_err();
    assert!(refused.status().unwrap().message.contains("not currently held"), "{refused:?}");
    ann.create(&bindings, DEFAULT, &binding("bob", ("Role", "fine"), "bob")).await.unwrap();
    let all = binding("all", ("ClusterRole", "cluster-admin"), "bob");
    assert_eq!(ann.create(&bindings, DEFAULT, &all).await.unwrap_err().status().unwrap().code, 403);
    let bob = person(&cluster, "bob", "devs");
    bob.list(&CONFIG_MAPS, DEFAULT, &ListParams::default()).await.unwrap_err();
}

#[tokio::test]
async fn reviews_tell_what_is_so() {
    let cluster = Cluster::start().await;
    let (admin, ann) = (cluster.admin(), person(&cluster, "ann", "devs"));
    let bindings = resource(&kind::ROLE_BINDING);
    let edit = binding("ann", ("ClusterRole", "edit"), "ann");
    admin.create(&bindings, DEFAULT, &edit).await.unwrap();
    let access = "/apis/authorization.k8s.io/v1";
    let asked = |verb: &str, what: &str, namespace: &str| json!({"verb": verb, "resource": what, "namespace": namespace});
    let review = |spec: Value| json!({ "spec": spec });
    for (verb, what, namespace, allowed) in
        [("create", "pods", "default", true), ("create", "pods", "kube-system", false)]
    {
        let attributes = asked(verb, what, namespace);
        let own = review(json!({ "resourceAttributes": attributes }));
        let (code, said) = post(&ann, &format!("{access}/selfsubjectaccessreviews"), &own).await;
        assert_eq!((code, &said["status"]["allowed"]), (201, &json!(allowed)), "{said}");
        let other = review(json!({"resourceAttributes": attributes, "user": "ann"}));
        let (_, said) = post(&admin, &format!("{access}/subjectaccessreviews"), &other).await;
        assert_eq!(said["status"]["allowed"], allowed, "{said}");
        // Ordinary people may not ask about others.
        let (code, _) = post(&ann, &format!("{access}/subjectaccessreviews"), &other).await;
        assert_eq!(code, 403);
        let local = format!("{access}/namespaces/default/localsubjectaccessreviews");
        let (code, said) = post(&admin, &local, &other).await;
        assert_eq!(code, if namespace == "default" { 201 } else { 422 }, "{said}");
    }
    let list = format!("{access}/selfsubjectrulesreviews");
    let (_, said) = post(&ann, &list, &review(json!({"namespace": "default"}))).await;
    let shown = said["status"]["resourceRules"].as_array().unwrap();
    assert!(shown.iter().any(|rule| rule["resources"] == json!(["pods/eviction"])), "{said}");
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (_, said) = post(&ann, who, &json!({})).await;
    let info = &said["status"]["userInfo"];
    assert_eq!(info, &json!({"username": "ann", "groups": ["devs", "system:authenticated"]}));
}
