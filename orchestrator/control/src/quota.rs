//! What a namespace uses of its quota.
//!
//! Spec: upstream's quota controller. Admission charges writes as they come; this counts
//! anew from what is really there, so that deletions give back. Objects of kinds that come and go
//! are counted at a slow beat. *Limits*: devices keep the number that admission wrote.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use objects::Quantity;
use objects::pod::{Pod, ResourceList};
use objects::policy::ResourceQuota;
use serde_json::{Map, Value, json};

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};

/// How often what wakes nobody is counted.
const BEAT: SignedDuration = SignedDuration::from_secs(30);
/// What a quota for one storage class alone has in its name.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Plans the status of one quota.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(quota) = view.quotas.get(&key.namespace, &key.name) else { return steps };
    let mut used = ResourceList::new();
    if quota.spec.hard.keys().any(|name| name.starts_with("count/")) {
        steps.look_again(now.saturating_add(BEAT).unwrap_or(now));
    }
    for name in quota.spec.hard.keys() {
        let counted = amount(view, quota, name);
        let before = quota.status.used.get(name).cloned();
        used.insert(name.clone(), counted.or(before).unwrap_or_else(|| Quantity::from_whole(0)));
    }
    if used != quota.status.used || quota.spec.hard != quota.status.hard {
        let status = json!({
            "hard": replaced(&quota.status.hard, &quota.spec.hard),
            "used": replaced(&quota.status.used, &used),
        });
        steps.push(Action::patch_status(Target::of(&**quota), status));
    }
    steps
}

/// A merge patch from one list to another.
fn replaced(had: &ResourceList, wanted: &ResourceList) -> Value {
    let gone = had.keys().filter(|name| !wanted.contains_key(*name));
    let mut all: Map<String, Value> = gone.map(|name| (name.clone(), Value::Null)).collect();
    all.extend(wanted.iter().map(|(name, amount)| (name.clone(), json!(amount))));
    Value::Object(all)
}

/// How much of a resource is used; `None` when that cannot be told from the view.
fn amount(view: &View, quota: &ResourceQuota, name: &str) -> Option<Quantity> {
    let ns = &quota.metadata.namespace;
    let number = |count: usize| Quantity::from_whole(i64::try_from(count).unwrap_or(i64::MAX));
    if name == "count/pods" {
        // Those that have ended count as objects, though not for what they used.
        return Some(number(view.pods.inside(ns).count()));
    }
    let name = name.strip_prefix("count/").unwrap_or(name);
    let services = || view.services.inside(ns);
    let count = match name {
        "pods" => pods(view, quota).count(),
        "services" => services().count(),
        "services.loadbalancers" => {
            services().filter(|one| one.spec.kind == "LoadBalancer").count()
        }
        "services.nodeports" => services()
            .filter(|one| matches!(one.spec.kind.as_str(), "NodePort" | "LoadBalancer"))
            .map(|one| one.spec.ports.iter().filter(|port| port.node_port > 0).count())
            .sum(),
        "configmaps" => view.config_maps.inside(ns).count(),
        "persistentvolumeclaims" => view.claims.inside(ns).count(),
        "replicationcontrollers" => view.replication_controllers.inside(ns).count(),
        "resourcequotas" => view.quotas.inside(ns).count(),
        "deployments.apps" => view.deployments.inside(ns).count(),
        "daemonsets.apps" => view.daemon_sets.inside(ns).count(),
        "replicasets.apps" => view.replica_sets.inside(ns).count(),
        "statefulsets.apps" => view.stateful_sets.inside(ns).count(),
        "jobs.batch" => view.jobs.inside(ns).count(),
        "cronjobs.batch" => view.cron_jobs.inside(ns).count(),
        _ => match view.counted.get(&(ns.clone(), name.to_owned())) {
            Some(count) => *count,
            None => return claims(view, ns, name).or_else(|| compute(view, quota, name)),
        },
    };
    Some(number(count))
}

/// What claims ask for, all of them or those of one class; `None` when the name means neither.
fn claims(view: &View, ns: &str, name: &str) -> Option<Quantity> {
    let (class, what) = match name.split_once(OF_CLASS) {
        Some((class, what)) => (Some(class), what),
        None => (None, name),
    };
    let of_class = |one: &&std::sync::Arc<objects::storage::PersistentVolumeClaim>| {
        class.is_none_or(|class| one.spec.storage_class_name.as_deref() == Some(class))
    };
    let all = view.claims.inside(ns).filter(of_class);
    match what {
        "requests.storage" => {
            let sizes = all.filter_map(|one| one.spec.resources.requests.get("storage"));
            Some(sum(sizes.copied()))
        }
        "persistentvolumeclaims" => {
            Some(Quantity::from_whole(i64::try_from(all.count()).unwrap_or(i64::MAX)))
        }
        _ => None,
    }
}

fn sum(all: impl Iterator<Item = Quantity>) -> Quantity {
    all.fold(Quantity::from_whole(0), |sum, one| sum.add(&one))
}

/// CPU, memory and the like of the pods that count.
fn compute(view: &View, quota: &ResourceQuota, name: &str) -> Option<Quantity> {
    let (limits, resource) = match name {
        "cpu" | "memory" | "ephemeral-storage" => (false, name),
        _ => match name.split_once('.')? {
            ("requests", resource) => (false, resource),
            ("limits", resource) => (true, resource),
            _ => return None,
        },
    };
    Some(sum(pods(view, quota).map(|pod| of_pod(pod, resource, limits))))
}

/// What a pod asks for: the sum of its containers, or the largest step of its start.
fn of_pod(pod: &Pod, resource: &str, limits: bool) -> Quantity {
    let zero = || Quantity::from_whole(0);
    let of = |container: &objects::pod::Container| {
        let list = &container.resources;
        let list = if limits { &list.limits } else { &list.requests };
        list.get(resource).cloned().unwrap_or_else(zero)
    };
    let larger = |one: Quantity, other: Quantity| {
        if one.sub(&other).is_negative() { other } else { one }
    };
    let (mut beside, mut peak) = (zero(), zero());
    for container in &pod.spec.init_containers {
        let step = beside.add(&of(container));
        if container.restart_policy.as_deref() == Some("Always") {
            beside = step;
        }
        peak = larger(peak, step);
    }
    let total = pod.spec.containers.iter().fold(beside, |sum, one| sum.add(&of(one)));
    let overhead = pod.spec.overhead.get(resource).cloned().unwrap_or_else(zero);
    larger(total, peak).add(&overhead)
}

/// The pods that count for a quota: those that have not ended, in its scopes.
fn pods<'a>(view: &'a View, quota: &'a ResourceQuota) -> impl Iterator<Item = &'a Pod> {
    let all = view.pods.inside(&quota.metadata.namespace).map(|pod| &**pod);
    all.filter(|pod| !pod.is_finished() && in_scopes(pod, quota))
}

fn in_scopes(pod: &Pod, quota: &ResourceQuota) -> bool {
    let scopes = quota.spec.scopes.iter().all(|scope| in_scope(pod, scope));
    let selected = quota.spec.scope_selector.as_ref().is_none_or(|selector| {
        selector.match_expressions.iter().all(|one| {
            if one.scope_name != "PriorityClass" {
                return in_scope(pod, &one.scope_name) == (one.operator != "DoesNotExist");
            }
            let class = &pod.spec.priority_class_name;
            match one.operator.as_str() {
                "In" => one.values.contains(class),
                "NotIn" => !one.values.contains(class),
                "Exists" => !class.is_empty(),
                _ => class.is_empty(),
            }
        })
    });
    scopes && selected
}

fn in_scope(pod: &Pod, scope: &str) -> bool {
    let ends = pod.spec.active_deadline_seconds.is_some();
    let asks: BTreeMap<&String, &Quantity> = pod
        .spec
        .containers
        .iter()
        .flat_map(|one| one.resources.requests.iter().chain(&one.resources.limits))
        .collect();
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => asks.is_empty(),
        "NotBestEffort" => !asks.is_empty(),
        "PriorityClass" => !pod.spec.priority_class_name.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::kind;

    #[test]
    fn what_no_view_holds_is_counted_by_others_and_claims_by_class() {
        let ns = || "n".to_owned();
        let claim: objects::storage::PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n"},
            "spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "2Gi"}}},
        }))
        .unwrap();
        let quota: ResourceQuota =
            serde_json::from_value(json!({"metadata": {"name": "q", "namespace": "n"}})).unwrap();
        let view = View {
            claims: [std::sync::Arc::new(claim)].into_iter().collect(),
            counted: [((ns(), "secrets".to_owned()), 3), ((ns(), "pumps.x.io".to_owned()), 2)]
                .into(),
            ..View::default()
        };
        for (name, expected) in [
            ("secrets", Some("3")),
            ("count/secrets", Some("3")),
            ("count/pumps.x.io", Some("2")),
            ("count/doors.x.io", None),
            ("requests.storage", Some("2Gi")),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some("2Gi")),
            ("gold.storageclass.storage.k8s.io/persistentvolumeclaims", Some("1")),
            ("tin.storageclass.storage.k8s.io/persistentvolumeclaims", Some("0")),
        ] {
            let found = amount(&view, &quota, name).map(|one| one.to_string());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_is_there_is_counted_and_what_goes_is_given_back() {
        let mut world = World::default();
        let hard = json!({"pods": "5", "requests.cpu": "2", "services": "3", "secrets": "9"});
        world.add(
            &kind::RESOURCE_QUOTA,
            json!({
                "metadata": {"name": "q", "namespace": "n"}, "spec": {"hard": hard},
                "status": {"used": {"secrets": "4", "stale": "1"}},
            }),
        );
        for name in ["a", "b"] {
            let container = json!({"name": "c", "resources": {"requests": {"cpu": "300m"}}});
            let spec = json!({"containers": [container], "schedulerName": "nobody"});
            world.add(
                &kind::POD,
                json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec}),
            );
        }
        let used = |world: &World| json!(world.all::<ResourceQuota>()[0].status.used);
        world.settle(&[]);
        assert_eq!(
            used(&world),
            json!({"pods": "2", "requests.cpu": "600m", "services": "0", "secrets": "4"})
        );
        world.remove(&kind::POD, "n", "a");
        world.settle(&[]);
        assert_eq!(used(&world)["requests.cpu"], "300m");
    }
}
