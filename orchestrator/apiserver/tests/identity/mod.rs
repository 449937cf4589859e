//! Who one is and what one may do, asked of a running server.

mod fairness;
mod oidc;

use objects::kind;
use runtime::Client;
use runtime::client::ListParams;
use runtime::resource::{CONFIG_MAPS, NAMESPACES, PODS, Resource};
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

/// A client of the cluster that shows this token and no certificate.
fn bearer(cluster: &Cluster, token: &str) -> Client {
    let config = cluster.kubeconfig();
    let token = Some(token.to_owned());
    let ca_pem = config.ca_pem.into_bytes();
    let config = runtime::ClientConfig { server: config.server, ca_pem, identity: None, token };
    Client::new(config).unwrap()
}

async fn whoami(client: &Client) -> Result<Value, u16> {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (code, said) = post(client, path, &json!({})).await;
    if code == 201 { Ok(said["status"]["userInfo"].clone()) } else { Err(code) }
}

#[tokio::test]
async fn a_pods_token_dies_with_the_pod() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let accounts = resource(&kind::SERVICE_ACCOUNT);
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    admin.create(&accounts, DEFAULT, &account).await.unwrap();
    let mut pod = crate::common::pod("p");
    pod["spec"]["serviceAccountName"] = json!("robot");
    let pod = admin.create(&PODS, DEFAULT, &pod).await.unwrap();
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let ask = |spec: Value| {
        let admin = admin.clone();
        async move { post(&admin, path, &json!({ "spec": spec })).await }
    };
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    let (code, made) = ask(json!({"boundObjectRef": bound, "expirationSeconds": 900})).await;
    assert_eq!((code, &made["spec"]["expirationSeconds"]), (201, &json!(900)), "{made}");
    let token = made["status"]["token"].as_str().unwrap().to_owned();
    let robot = bearer(&cluster, &token);
    let info = whoami(&robot).await.unwrap();
    assert_eq!(info["username"], "system:serviceaccount:default:robot");
    assert_eq!(
        info["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    let extra = &info["extra"]["authentication.kubernetes.io/pod-uid"][0];
    assert_eq!(extra, &pod["metadata"]["uid"]);
    for (spec, code) in [
        (json!({"expirationSeconds": 5}), 422),
        (json!({"boundObjectRef": {"kind": "Pod", "name": "q"}}), 404),
        (json!({"boundObjectRef": {"kind": "Pod", "name": "p", "uid": "other"}}), 409),
        (json!({"boundObjectRef": {"kind": "ConfigMap", "name": "c"}}), 400),
    ] {
        assert_eq!(ask(spec.clone()).await.0, code, "{spec}");
    }
    // A token for others opens nothing here, and reviews say for whom it is.
    let (_, other) = ask(json!({"audiences": ["vault"]})).await;
    let other = other["status"]["token"].as_str().unwrap();
    assert_eq!(whoami(&bearer(&cluster, other)).await, Err(401));
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let spec = json!({"spec": {"token": other, "audiences": ["vault", "x"]}});
    let (_, said) = post(&admin, reviews, &spec).await;
    assert_eq!(said["status"]["audiences"], json!(["vault"]), "{said}");
    let spec = json!({"spec": {"token": format!("{other}x")}});
    let (_, said) = post(&admin, reviews, &spec).await;
    assert_eq!(said["status"]["authenticated"], false);
    // Whoever changes a token has none.
    let mut forged = token.clone();
    forged.replace_range(40..41, if &token[40..41] == "A" { "B" } else { "A" });
    assert_eq!(whoami(&bearer(&cluster, &forged)).await, Err(401));
    let grace = runtime::client::DeleteParams::default().grace(0);
    admin.delete(&PODS, DEFAULT, "p", &grace).await.unwrap();
    assert_eq!(whoami(&robot).await, Err(401));
}

#[tokio::test]
async fn tokens_kept_in_secrets_work_while_the_secret_is_there() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (accounts, secrets) = (resource(&kind::SERVICE_ACCOUNT), resource(&kind::SECRET));
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    admin.create(&accounts, DEFAULT, &account).await.unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "kept",
                     "annotations": {"kubernetes.io/service-account.name": "robot"}}});
    let made = admin.create(&secrets, DEFAULT, &secret).await.unwrap();
    let token = decode(made["data"]["token"].as_str().unwrap());
    let robot = bearer(&cluster, &token);
    let info = whoami(&robot).await.unwrap();
    assert_eq!(info["username"], "system:serviceaccount:default:robot");
    assert!(decode(made["data"]["ca.crt"].as_str().unwrap()).contains("BEGIN CERTIFICATE"));
    admin.delete(&secrets, DEFAULT, "kept", &Default::default()).await.unwrap();
    assert_eq!(whoami(&robot).await, Err(401));
    // Newcomers: a bootstrap token is a user until its end.
    let start = |id: &str, end: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
               "metadata": {"name": format!("bootstrap-token-{id}")},
               "stringData": {"token-id": id, "token-secret": "0123456789abcdef", "expiration": end,
                              "usage-bootstrap-authentication": "true",
                              "auth-extra-groups": "system:bootstrappers:racks,other"}})
    };
    let system = Some("kube-system");
    admin.create(&secrets, system, &start("abcdef", "2999-01-01T00:00:00Z")).await.unwrap();
    admin.create(&secrets, system, &start("fedcba", "2020-01-01T00:00:00Z")).await.unwrap();
    let info = whoami(&bearer(&cluster, "abcdef.0123456789abcdef")).await.unwrap();
    assert_eq!(info["username"], "system:bootstrap:abcdef");
    assert_eq!(
        info["groups"],
        json!(["system:bootstrappers", "system:bootstrappers:racks", "system:authenticated"])
    );
    for bad in ["fedcba.0123456789abcdef", "abcdef.0123456789abcdee", "nonsense"] {
        assert_eq!(whoami(&bearer(&cluster, bad)).await, Err(401), "{bad}");
    }
}

fn decode(text: &str) -> String {
    use base64::Engine as _;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
}

#[tokio::test]
async fn others_can_check_our_tokens_by_themselves() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let get = |path: &'static str| {
        let admin = admin.clone();
        async move {
            let answer = admin.raw_get(path).await.unwrap();
            serde_json::from_slice::<Value>(&answer.body).unwrap()
        }
    };
    let found = get("/.well-known/openid-configuration").await;
    assert_eq!(found["issuer"], "https://kubernetes.default.svc.cluster.local");
    assert!(found["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"));
    let keys = get("/openid/v1/jwks").await;
    assert_eq!(keys["keys"][0]["crv"], "P-256");
    let stranger = cluster.client(None);
    assert_eq!(stranger.raw_get("/openid/v1/jwks").await.unwrap().status.as_u16(), 401);
}

#[tokio::test]
async fn what_the_policy_wants_is_noted_and_every_request_has_its_level() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                - level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n\
                - level: Metadata\n  resources: [{group: '', resources: [secrets]}]\n";
    std::fs::write(&policy, text).unwrap();
    let log_path = dir.path().join("audit.log");
    let audit = apiserver::Audit {
        policy_file: policy,
        log_path: log_path.clone(),
        megabytes_max: 1,
        backups_max: 1,
    };
    let identity = apiserver::Identity { audit: Some(audit), ..apiserver::Identity::default() };
    let cluster = Cluster::start_with(identity).await;
    let (admin, ann) = (cluster.admin(), person(&cluster, "ann", "devs"));
    let map = crate::common::config_map("noted", "1");
    admin.create(&CONFIG_MAPS, DEFAULT, &map).await.unwrap();
    let secrets = resource(&kind::SECRET);
    ann.list(&secrets, DEFAULT, &ListParams::default()).await.unwrap_err();
    admin.list(&PODS, DEFAULT, &ListParams::default()).await.unwrap();
    cluster.stop().await;
    let text = std::fs::read_to_string(&log_path).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let own: Vec<_> = events
        .iter()
        .filter(|event| ["admin", "ann"].contains(&event["user"]["username"].as_str().unwrap()))
        .collect();
    let [made, refused] = own.as_slice() else { panic!("{text}") };
    assert_eq!((&made["verb"], &made["responseStatus"]["code"]), (&json!("create"), &json!(201)));
    assert_eq!(made["requestObject"]["data"], map["data"]);
    assert_eq!(made["responseObject"]["metadata"]["name"], "noted");
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert!(refused.get("responseObject").is_none());
}

/// A policy with something for the audit log.
fn size_policy() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "size"},
        "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                                 "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": "object.data.value != 'bad'"},
                            {"expression": "object.data.value != 'odd'", "message": "odd"}],
            "auditAnnotations": [
                {"key": "value", "valueExpression": "'value is ' + object.data.value"},
                {"key": "never", "valueExpression": "object.data.value == 'x' ? 'x' : null"}],
        },
    })
}

#[tokio::test]
async fn what_policies_say_for_the_log_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let policy_file = dir.path().join("policy.yaml");
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                - {level: Metadata, verbs: [create], resources: [{group: '', resources: [configmaps, pods]}]}\n";
    std::fs::write(&policy_file, text).unwrap();
    let log_path = dir.path().join("audit.log");
    let audit = apiserver::Audit {
        policy_file,
        log_path: log_path.clone(),
        megabytes_max: 1,
        backups_max: 1,
    };
    let identity = apiserver::Identity { audit: Some(audit), ..apiserver::Identity::default() };
    let cluster = Cluster::start_with(identity).await;
    let admin = cluster.admin();
    let version = "admissionregistration.k8s.io/v1";
    let policy = size_policy();
    admin.create(&resource(&kind::VALIDATING_ADMISSION_POLICY), None, &policy).await.unwrap();
    for (name, actions) in [("deny", json!(["Deny"])), ("note", json!(["Audit", "Warn"]))] {
        let mut binding = json!({
            "apiVersion": version, "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": "size", "validationActions": actions},
        });
        // One only notes what is in a namespace of its own.
        let place = if name == "note" { "kube-public" } else { "default" };
        binding["spec"]["matchResources"] = json!({"namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": place}}});
        let bindings = resource(&kind::VALIDATING_ADMISSION_POLICY_BINDING);
        admin.create(&bindings, None, &binding).await.unwrap();
    }
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "baseline"}}});
    let patch = runtime::client::Patch::merge(labels);
    admin.patch(&NAMESPACES, None, "default", &patch).await.unwrap();
    let map = |place: &str, value: &str| {
        let mut map = crate::common::config_map(value, value);
        map["metadata"]["namespace"] = json!(place);
        map
    };
    admin.create(&CONFIG_MAPS, DEFAULT, &map("default", "good")).await.unwrap();
    admin.create(&CONFIG_MAPS, DEFAULT, &map("default", "bad")).await.unwrap_err();
    let public = Some("kube-public");
    admin.create(&CONFIG_MAPS, public, &map("kube-public", "odd")).await.unwrap();
    let mut pod = crate::common::pod("p");
    pod["spec"]["hostPID"] = json!(true);
    admin.create(&PODS, DEFAULT, &pod).await.unwrap();
    cluster.stop().await;
    let text = std::fs::read_to_string(&log_path).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let own: Vec<_> = events.iter().filter(|event| event["user"]["username"] == "admin").collect();
    let [good, bad, odd, pod] = own.as_slice() else { panic!("{text}") };
    let said = |event: &Value, key: &str| event["annotations"][key].clone();
    for (event, value) in [(good, "good"), (bad, "bad"), (odd, "odd")] {
        assert_eq!(said(event, "size/value"), format!("value is {value}"), "{event}");
        assert_eq!(said(event, "size/never"), Value::Null);
    }
    let failures = "validation.policy.admission.k8s.io/validation_failure";
    assert_eq!(bad["responseStatus"]["code"], 422);
    assert_eq!((said(good, failures), said(bad, failures)), (Value::Null, Value::Null));
    let told: Value = serde_json::from_str(said(odd, failures).as_str().unwrap()).unwrap();
    let expected = json!([{"message": "odd", "policy": "size", "binding": "note",
                           "expressionIndex": 1, "validationActions": ["Audit", "Warn"]}]);
    assert_eq!(told, expected);
    let violations = said(pod, "pod-security.kubernetes.io/audit-violations");
    let expected = "would violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
    assert_eq!(violations, expected);
    assert_eq!(said(pod, "pod-security.kubernetes.io/enforce-policy"), "privileged:latest");
}

#[tokio::test]
async fn secrets_are_unreadable_on_disk_and_keys_change_with_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("encryption.yaml");
    let key = |name: &str, byte: &str| {
        use base64::Engine as _;
        let secret = base64::engine::general_purpose::STANDARD.encode(byte.repeat(32));
        format!("{{name: {name}, secret: {secret}}}")
    };
    let configure = |keys: &[String]| {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers:\n  - aesgcm: {{keys: [{}]}}\n  - identity: {{}}\n",
            keys.join(", ")
        );
        std::fs::write(&path, text).unwrap();
    };
    configure(&[key("one", "a")]);
    let identity = apiserver::Identity {
        encryption_config: Some(path.clone()),
        ..apiserver::Identity::default()
    };
    let mut cluster = Cluster::start_with(identity).await;
    let secrets = resource(&kind::SECRET);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
                        "stringData": {"word": "open-sesame"}});
    cluster.admin().create(&secrets, DEFAULT, &secret).await.unwrap();
    let on_disk = |cluster: &Cluster, text: &str| {
        let bytes = std::fs::read(cluster.path("store").join("store.redb")).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let word = |found: &Value| decode(found["data"]["word"].as_str().unwrap());
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode("open-sesame");
    assert!(!on_disk(&cluster, &encoded) && on_disk(&cluster, "k8s:enc:aesgcm:v1:one:"));
    // A new key comes first, and after the start the old one is needed no more.
    configure(&[key("two", "b"), key("one", "a")]);
    cluster.kill_and_restart().await;
    let found = cluster.admin().get(&secrets, DEFAULT, "s").await.unwrap();
    assert_eq!(word(&found), "open-sesame");
    assert!(on_disk(&cluster, "k8s:enc:aesgcm:v1:two:"));
    configure(&[key("two", "b")]);
    cluster.kill_and_restart().await;
    let listed = cluster.admin().list(&secrets, DEFAULT, &ListParams::default()).await.unwrap();
    assert!(
        listed.items.iter().any(|one| one["metadata"]["name"] == "s" && word(one) == "open-sesame")
    );
}
