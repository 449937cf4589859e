//! Services and what stands behind them: one copy for everybody in a process who needs them.
//!
//! Packets, names and routes on a node all follow from these two lists, the largest there are on a
//! node; what none of them reads is left out.

use objects::network::{EndpointSlice, Service};
use serde_json::{Map, Value};

use super::{Cache, CacheParams};
use crate::client::Client;
use crate::resource::{ENDPOINT_SLICES, SERVICES};
use crate::supervise::Supervisor;

/// The label by which a slice names its service; the only one that is read.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The cluster's services and endpoints; cheap to clone, and all clones are one.
#[derive(Debug, Clone)]
pub struct ServiceCaches {
    /// All services.
    pub services: Cache<Service>,
    /// All slices of endpoints.
    pub slices: Cache<EndpointSlice>,
}

impl ServiceCaches {
    /// Follows them until `tasks` stop.
    #[must_use]
    pub fn follow<E: std::error::Error + Send + 'static>(
        client: &Client,
        tasks: &mut Supervisor<E>,
    ) -> Self {
        let params = |trim| CacheParams { trim: Some(trim), ..CacheParams::default() };
        let (services, each_service) = Cache::new(client.clone(), SERVICES, params(trim_service));
        let (slices, each_slice) = Cache::new(client.clone(), ENDPOINT_SLICES, params(trim_slice));
        tasks.spawn(format!("cache of {SERVICES}"), each_service.run(tasks.stop()));
        tasks.spawn(format!("cache of {ENDPOINT_SLICES}"), each_slice.run(tasks.stop()));
        Self { services, slices }
    }

    /// Says whether both first lists have come.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.services.synced() && self.slices.synced()
    }
}

fn trim_metadata(object: &mut Map<String, Value>, kept: &[&str]) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|key, _| kept.contains(&key.as_str()));
    }
}

fn trim_service(service: &mut Value) {
    let Some(service) = service.as_object_mut() else { return };
    let kept =
        ["name", "namespace", "annotations", "labels", "resourceVersion", "deletionTimestamp"];
    trim_metadata(service, &kept);
    if let Some(annotations) =
        service.get_mut("metadata").and_then(|meta| meta.get_mut("annotations"))
        && let Some(annotations) = annotations.as_object_mut()
    {
        // A copy of the whole object, by whoever applied it.
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("selector");
    }
}

fn trim_slice(slice: &mut Value) {
    let Some(slice) = slice.as_object_mut() else { return };
    trim_metadata(slice, &["name", "namespace", "labels", "resourceVersion"]);
    let labels = slice.get_mut("metadata").and_then(|meta| meta.get_mut("labels"));
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.retain(|key, _| key == SERVICE_NAME);
    }
    let endpoints = slice.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten().filter_map(Value::as_object_mut) {
        endpoint.remove("targetRef");
        endpoint.remove("zone");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_reads_is_left_out() {
        let mut slice = json!({"metadata": {"name": "a-x", "namespace": "n", "uid": "1",
                "ownerReferences": [{"name": "a"}], "labels": {SERVICE_NAME: "a", "app": "b"}},
            "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "here", "zone": "z",
                "targetRef": {"kind": "Pod"}, "conditions": {"ready": true}}]});
        trim_slice(&mut slice);
        let expected = json!({"metadata": {"name": "a-x", "namespace": "n",
                "labels": {SERVICE_NAME: "a"}},
            "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "here",
                "conditions": {"ready": true}}]});
        assert_eq!(slice, expected);
        let mut service = json!({"metadata": {"name": "a", "uid": "1", "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}", "x": "y"}},
            "spec": {"clusterIP": "10.0.0.1", "selector": {"app": "b"}}});
        trim_service(&mut service);
        let expected = json!({"metadata": {"name": "a", "annotations": {"x": "y"}},
            "spec": {"clusterIP": "10.0.0.1"}});
        assert_eq!(service, expected);
        trim_slice(&mut json!("nonsense"));
        trim_service(&mut json!({"metadata": 1, "spec": []}));
    }
}
