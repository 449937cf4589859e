use std::collections::BTreeMap;

use super::*;
use crate::{
    prepare::{Body, Prepared, prepare_create},
    request::{Route, parse_request},
};

const PODS: &str = "/api/v1/namespaces/a/pods";

/// A cluster in a map, in which `narrow` users may do nothing besides.
#[derive(Debug, Default)]
struct Cluster(BTreeMap<(String, String, String), Value>);

impl Cluster {
    fn with(mut self, kind: &Kind, object: Value) -> Self {
        let text = |path: &str| str_at(&object, path).unwrap_or("").to_owned();
        let key = (kind.qualified_plural(), text("metadata.namespace"), text("metadata.name"));
        self.0.insert(key, object);
        self
    }

    fn namespace(labels: Value) -> Self {
        let object = json!({"metadata": {"name": "a", "labels": labels}});
        Self::default().with(&kind::NAMESPACE, object)
    }
}

impl View for Cluster {
    fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Value> {
        let key = (kind.qualified_plural(), namespace.to_owned(), name.to_owned());
        self.0.get(&key).cloned()
    }

    fn list(&self, kind: &Kind, namespace: &str) -> Vec<Value> {
        let plural = kind.qualified_plural();
        let fits = |key: &(String, String, String)| {
            key.0 == plural && (namespace.is_empty() || key.1 == namespace)
        };
        self.0.iter().filter(|(key, _)| fits(key)).map(|(_, object)| object.clone()).collect()
    }

    fn allows(&self, user: &User, _attributes: &Attributes) -> bool {
        user.name != "narrow"
    }

    fn settings(&self) -> Settings {
        Settings::default()
    }
}

fn request(method: &str, url: &str) -> Request {
    match parse_request(method, url, "") {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{url}: {other:?}"),
    }
}

fn create(view: &Cluster, url: &str, object: &Value) -> Result<Prepared, Status> {
    let user = User::named("u");
    let context = Context {
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
        uid: "uid".to_owned(),
        name_suffix: "bcdfg".to_owned(),
        user: &user,
        user_agent: "tester",
        view,
    };
    let bytes = serde_json::to_vec(object).unwrap();
    let body = Body { bytes: &bytes, content_type: "application/json" };
    prepare_create(&request("POST", url), &body, &context)
}

fn pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({"metadata": {"name": "p"},
        "spec": {"containers": [{"name": "main", "image": "i"}]}});
    change(&mut pod);
    pod
}

#[track_caller]
fn refused(result: Result<Prepared, Status>, message: &str) {
    let status = result.expect_err(message);
    assert_eq!((status.code, status.message.as_str()), (403, message));
}

#[test]
fn a_pod_gets_its_accounts_token_and_secrets() {
    let account = json!({"metadata": {"name": "default", "namespace": "a"},
        "imagePullSecrets": [{"name": "registry"}]});
    let cluster = Cluster::namespace(json!({})).with(&kind::SERVICE_ACCOUNT, account);
    let made = create(&cluster, PODS, &pod(|_| ())).unwrap().object;
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(spec["volumes"][0]["name"], "kube-api-access-bcdfg");
    let sources = &spec["volumes"][0]["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"]["expirationSeconds"], 3607);
    assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");

    let without = pod(|pod| pod["spec"]["automountServiceAccountToken"] = json!(false));
    let made = create(&cluster, PODS, &without).unwrap().object;
    assert!(made["spec"].get("volumes").is_none());

    let unknown = pod(|pod| pod["spec"]["serviceAccountName"] = json!("x"));
    refused(
        create(&cluster, PODS, &unknown),
        "pods \"p\" is forbidden: error looking up service account a/x: serviceaccount \"x\" not \
         found",
    );
}

#[test]
fn pods_stay_five_minutes_on_a_silent_node_unless_they_say() {
    let cluster = Cluster::default();
    let made = create(&cluster, PODS, &pod(|_| ())).unwrap().object;
    let all = made["spec"]["tolerations"].as_array().unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[0]["tolerationSeconds"], 300);
    let own = json!([{"operator": "Exists"}]);
    let made = create(&cluster, PODS, &pod(|pod| pod["spec"]["tolerations"] = own.clone()));
    assert_eq!(made.unwrap().object["spec"]["tolerations"], own);
}

#[test]
fn priorities_come_from_classes_alone() {
    let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
    let cluster = Cluster::default()
        .with(&kind::PRIORITY_CLASS, class("high", 1000, false))
        .with(&kind::PRIORITY_CLASS, class("usual", 5, true));
    let named = |name: &str| pod(|pod| pod["spec"]["priorityClassName"] = json!(name));
    let made = create(&cluster, PODS, &named("high")).unwrap().object;
    assert_eq!(made["spec"]["priority"], 1000);
    let made = create(&cluster, PODS, &pod(|_| ())).unwrap().object;
    assert_eq!(made["spec"]["priority"], 5);
    assert_eq!(made["spec"]["priorityClassName"], "usual");
    refused(
        create(&cluster, PODS, &named("x")),
        "pods \"p\" is forbidden: no PriorityClass with name x was found",
    );
    let by_hand = pod(|pod| pod["spec"]["priority"] = json!(7));
    assert_eq!(create(&cluster, PODS, &by_hand).unwrap_err().code, 403);
}

#[test]
fn limit_ranges_fill_in_and_bound() {
    let range = json!({"metadata": {"name": "r", "namespace": "a"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
            "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "5"}},
        {"type": "Pod", "max": {"cpu": "1500m"}},
    ]}});
    let cluster = Cluster::default().with(&kind::LIMIT_RANGE, range);
    let made = create(&cluster, PODS, &pod(|_| ())).unwrap().object;
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}));
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container main; cpu limit for container main"
    );
    let wants = |request: &str, limit: &str| {
        let resources = json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        create(&cluster, PODS, &pod(|pod| pod["spec"]["containers"][0]["resources"] = resources))
    };
    refused(
        wants("10m", "50m"),
        "pods \"p\" is forbidden: minimum cpu usage per Container is 50m, but request is 10m",
    );
    refused(
        wants("1", "2"),
        "pods \"p\" is forbidden: [maximum cpu usage per Container is 1, but limit is 2, maximum \
         cpu usage per Pod is 1500m, but limit is 2]",
    );
    refused(
        wants("100m", "900m"),
        "pods \"p\" is forbidden: cpu max limit to request ratio per Container is 5, but provided \
         ratio is 9.000000",
    );
}

#[test]
fn namespaces_say_how_secure_pods_must_be() {
    let strict = Cluster::namespace(json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    refused(
        create(&strict, PODS, &pod(|_| ())),
        "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": \
         allowPrivilegeEscalation != false (container \"main\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \
         \"main\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true \
         (pod or container \"main\" must set securityContext.runAsNonRoot=true), seccompProfile \
         (pod or container \"main\" must set securityContext.seccompProfile.type to \
         \"RuntimeDefault\" or \"Localhost\")",
    );
    let good = pod(|pod| {
        pod["spec"]["securityContext"] =
            json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        pod["spec"]["containers"][0]["securityContext"] =
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    });
    create(&strict, PODS, &good).unwrap();
    let privileged = pod(|pod| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    });
    let baseline = Cluster::namespace(json!({"pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/enforce-version": "v1.30"}));
    refused(
        create(&baseline, PODS, &privileged),
        "pods \"p\" is forbidden: violates PodSecurity \"baseline:v1.30\": host namespaces \
         (hostNetwork=true), privileged (container \"main\" must not set \
         securityContext.privileged=true)",
    );
    // Templates are let in, with a word about what will become of their pods.
    let warns = Cluster::namespace(json!({"pod-security.kubernetes.io/warn": "baseline"}));
    let set = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": privileged["spec"]}}});
    let made = create(&warns, "/apis/apps/v1/namespaces/a/deployments", &set).unwrap();
    assert_eq!(made.warnings.len(), 1);
    assert!(made.warnings[0].starts_with("would violate PodSecurity \"baseline:latest\": host"));
}

#[test]
fn claims_get_the_newest_default_class_and_are_held() {
    let class = |name: &str, born: &str| {
        let mark = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        json!({"metadata": {"name": name, "creationTimestamp": born, "annotations": mark}})
    };
    let cluster = Cluster::default()
        .with(&kind::STORAGE_CLASS, class("old", "2025-01-01T00:00:00Z"))
        .with(&kind::STORAGE_CLASS, class("new", "2026-01-01T00:00:00Z"));
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let url = "/api/v1/namespaces/a/persistentvolumeclaims";
    let made = create(&cluster, url, &claim).unwrap().object;
    assert_eq!(made["spec"]["storageClassName"], "new");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
}

#[test]
fn quotas_are_charged_or_refuse() {
    let quota = |hard: Value, used: Value| {
        json!({"metadata": {"name": "q", "namespace": "a"}, "spec": {"hard": hard.clone()},
            "status": {"hard": hard, "used": used}})
    };
    let made = |cpu: &str| {
        pod(|pod| pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}}))
    };
    let request = request("POST", PODS);
    let hard = json!({"pods": "2", "requests.cpu": "1"});
    let used = json!({"pods": "1", "requests.cpu": "500m"});
    let quotas = [quota(hard.clone(), used.clone())];
    let changed = quota::charge(&request, &quotas, None, &made("250m")).unwrap();
    assert_eq!(changed[0]["status"]["used"], json!({"pods": "2", "requests.cpu": "750m"}));
    let why = quota::charge(&request, &quotas, None, &made("750m")).unwrap_err();
    assert_eq!(
        why.message,
        "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=750m, used: \
         requests.cpu=500m, limited: requests.cpu=1"
    );
    let why = quota::charge(&request, &quotas, None, &pod(|_| ())).unwrap_err();
    assert_eq!(
        why.message,
        "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: main"
    );
    let fresh = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}, "status": {}});
    let why = quota::charge(&request, &[fresh], None, &made("1")).unwrap_err();
    assert!(why.message.ends_with("status unknown for quota: q, resources: pods"), "{why:?}");
    // One for pods that end counts no other.
    let mut ending = quota(json!({"pods": "0"}), json!({"pods": "0"}));
    ending["spec"]["scopes"] = json!(["Terminating"]);
    assert!(quota::charge(&request, &[ending.clone()], None, &made("1")).unwrap().is_empty());
    let mut short = made("1");
    short["spec"]["activeDeadlineSeconds"] = json!(5);
    assert_eq!(quota::charge(&request, &[ending], None, &short).unwrap_err().code, 403);
}
