//! Scheduler and controllers beside our API server, each reached as any client reaches it.

use std::path::PathBuf;
use std::time::Instant;

use runtime::client::{DeleteParams, Patch};
use runtime::pki::{Authority, Kubeconfig, Sans, Subject, Usage};
use runtime::resource::{CONFIG_MAPS, NAMESPACES, NODES, PODS, Resource, SECRETS};
use runtime::{Client, ClientConfig};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{DAY, LIMIT, open_api};

const DEFINITIONS: Resource = Resource::cluster(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
);
const PUMPS: Resource = Resource::namespaced("example.com", "v1", "Pump", "pumps");
const QUOTAS: Resource = Resource::namespaced("", "v1", "ResourceQuota", "resourcequotas");

/// An API server, and managers beside it.
pub(super) struct Site {
    data: tempfile::TempDir,
    admin: Client,
    tasks: JoinSet<()>,
}

impl Site {
    pub(super) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = open_api(data.path()).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.serve().await.unwrap() });
        let admin = Client::from_kubeconfig(data.path().join("admin.kubeconfig")).unwrap();
        Self { data, admin, tasks }
    }

    /// The admin's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.data.path().join("admin.kubeconfig")
    }

    /// Runs all controllers.
    pub(super) fn manage_all(&mut self) {
        self.manage(self.data.path().join("manager.kubeconfig"), "all");
    }

    /// Runs some controllers as the user of a kubeconfig.
    fn manage(&mut self, kubeconfig: PathBuf, controllers: &str) {
        let config = manager::Config {
            kubeconfig,
            authority: None,
            timings: cluster::plan::Timings {
                node_monitor_grace_period_seconds: 40,
                pod_eviction_timeout_seconds: 300,
            },
            zones: manager::ZoneRules::default(),
            controllers: manager::Choice::parse(controllers).unwrap(),
            metrics: manager::Metrics::default(),
            window: None,
            load_balancer_pools: Vec::new(),
            scheduler: manager::SchedulerConfig::default(),
        };
        self.tasks.spawn(async move {
            manager::run(CancellationToken::new(), config).await.unwrap();
        });
    }

    /// A kubeconfig of a user with nothing but the roles that the server gives its name.
    fn identify(&self, user: &str) -> PathBuf {
        let admin = ClientConfig::from_kubeconfig(&self.kubeconfig()).unwrap();
        let authority = Authority::load(&self.data.path().join("pki")).unwrap();
        let sans = Sans { names: Vec::new(), addresses: Vec::new() };
        let made = authority.issue(&Subject::new(user, &[]), &sans, Usage::Client, DAY).unwrap();
        let path = self.data.path().join("user.kubeconfig");
        let kubeconfig = Kubeconfig {
            server: admin.server,
            ca_pem: String::from_utf8(admin.ca_pem).unwrap(),
            identity: Some(made),
        };
        kubeconfig.store(&path).unwrap();
        path
    }

    async fn create(&self, resource: &Resource, namespace: Option<&str>, object: Value) -> Value {
        self.admin.create(resource, namespace, &object).await.unwrap()
    }

    async fn delete(&self, resource: &Resource, namespace: Option<&str>, name: &str) {
        let params = DeleteParams::default();
        self.admin.delete(resource, namespace, name, &params).await.unwrap();
    }

    /// Waits until an object, or its absence, is as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        let limit = Instant::now() + LIMIT;
        loop {
            let answer = self.admin.raw_get(path).await.unwrap();
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let found = answer.status.is_success().then_some(&body);
            if wanted(found) {
                return;
            }
            assert!(Instant::now() < limit, "{path} never came there; last seen: {body:#}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

fn named(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pumps.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Pump", "plural": "pumps", "singular": "pump"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    })
}

fn pump(name: &str, finalizers: &[&str]) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Pump",
        "metadata": {"name": name, "finalizers": finalizers}})
}

/// The life of an operator's objects: what its objects own goes with them, namespaces take them
/// along and say what holds them, and quotas give back what they counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_definitions_are_looked_after_as_built_in_ones_are() {
    let mut site = Site::start().await;
    site.manage_all();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "works"}});
    site.create(&NAMESPACES, None, namespace).await;
    site.create(&DEFINITIONS, None, definition()).await;
    let works = Some("works");
    let hard = json!({"count/pumps.example.com": "2", "secrets": "3"});
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all"},
        "spec": {"hard": hard}});
    site.create(&QUOTAS, works, quota).await;
    let uses = |name: &'static str, count: &'static str| {
        move |found: Option<&Value>| found.is_some_and(|one| one["status"]["used"][name] == count)
    };
    let quota = "/api/v1/namespaces/works/resourcequotas/all";
    site.until(quota, uses("secrets", "0")).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    site.create(&SECRETS, works, secret).await;
    site.until(quota, uses("secrets", "1")).await;
    site.delete(&SECRETS, works, "s").await;
    site.until(quota, uses("secrets", "0")).await;

    let made = site.create(&PUMPS, works, pump("one", &[])).await;
    let mut part = named("part");
    part["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.com/v1", "kind": "Pump",
        "name": "one", "uid": made["metadata"]["uid"], "controller": true}]);
    site.create(&CONFIG_MAPS, works, part).await;
    site.delete(&PUMPS, works, "one").await;
    site.until("/api/v1/namespaces/works/configmaps/part", |found| found.is_none()).await;

    site.create(&PUMPS, works, pump("two", &["example.com/drain"])).await;
    site.create(&CONFIG_MAPS, works, named("notes")).await;
    site.delete(&NAMESPACES, None, "works").await;
    let held = |found: Option<&Value>| {
        let all = found.and_then(|one| one["status"]["conditions"].as_array());
        all.into_iter().flatten().any(|one| {
            one["type"] == "NamespaceFinalizersRemaining"
                && one["message"].as_str().is_some_and(|text| text.contains("example.com/drain"))
        })
    };
    site.until("/api/v1/namespaces/works", held).await;
    let free = Patch::merge(json!({"metadata": {"finalizers": null}}));
    site.admin.patch(&PUMPS, works, "two", &free).await.unwrap();
    site.until("/api/v1/namespaces/works", |found| found.is_none()).await;
}

/// Our scheduler as upstream's user, with upstream's roles and its lease, and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scheduler_needs_no_more_than_upstreams() {
    let mut site = Site::start().await;
    let kubeconfig = site.identify("system:kube-scheduler");
    site.manage(kubeconfig, "scheduler");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "default"}});
    drop(site.admin.create(&runtime::resource::SERVICE_ACCOUNTS, Some("default"), &account).await);
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "10"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
        "status": {"allocatable": room, "capacity": room,
            "conditions": [{"type": "Ready", "status": "True"}]}});
    site.create(&NODES, None, node).await;
    // A new node bears a taint until the controllers, which do not run here, have seen it Ready.
    let ready = Patch::merge(json!({"spec": {"taints": null}}));
    site.admin.patch(&NODES, None, "a", &ready).await.unwrap();
    let pod = |name: &str, cpu: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i",
                "resources": {"requests": {"cpu": cpu}}}]}})
    };
    site.create(&PODS, Some("default"), pod("small", "1")).await;
    site.create(&PODS, Some("default"), pod("big", "9")).await;
    let pods = "/api/v1/namespaces/default/pods";
    let bound = |found: Option<&Value>| found.is_some_and(|one| one["spec"]["nodeName"] == "a");
    site.until(&format!("{pods}/small"), bound).await;
    let refused = |found: Option<&Value>| {
        let all = found.and_then(|one| one["status"]["conditions"].as_array());
        let text = |one: &Value| one["message"].as_str().unwrap_or("").to_owned();
        all.into_iter()
            .flatten()
            .any(|one| text(one).starts_with("0/1 nodes are available: 1 Insufficient cpu."))
    };
    site.until(&format!("{pods}/big"), refused).await;
    let told = |found: Option<&Value>| {
        let all = found.and_then(|one| one["items"].as_array());
        let reasons: Vec<&str> =
            all.into_iter().flatten().filter_map(|one| one["reason"].as_str()).collect();
        reasons.contains(&"Scheduled") && reasons.contains(&"FailedScheduling")
    };
    site.until("/api/v1/namespaces/default/events", told).await;
    let leads = |found: Option<&Value>| {
        found.is_some_and(|one| {
            one["spec"]["holderIdentity"].as_str().is_some_and(|who| !who.is_empty())
        })
    };
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    site.until(&format!("{leases}/kube-scheduler"), leads).await;
}
