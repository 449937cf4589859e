//! Which addresses stand behind a service: Endpoints and EndpointSlices.
//!
//! Services without a selector are left to those who wrote their endpoints; `mirror` copies
//! those. A service of two families has slices of both, and Endpoints of its first one, as
//! upstream does. *Limits*: hints follow `trafficDistribution`, not the older annotation.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use objects::int_or_string::IntOrString;
use objects::kind;
use objects::meta::{ObjectMeta, ObjectReference, OwnerReference};
use objects::network::{
    Endpoint, EndpointAddress, EndpointConditions, EndpointPort, EndpointSlice, EndpointSubset,
    Endpoints, Service, ServicePort,
};
use objects::pod::Pod;
use objects::selector::Selector;
use serde_json::{Value, json};

use crate::action::{Action, Steps, Target, encode};
use crate::address::Family;
use crate::hash;
use crate::view::{Key, View};
use crate::wake::{Touch, node_matters};

/// Marks the Endpoints objects that are ours to delete.
const MANAGED: &str = "endpoints.kubernetes.io/managed-by";
/// Says that an Endpoints object could not hold everything.
const OVER: &str = "endpoints.kubernetes.io/over-capacity";
/// The value of [`MANAGED`].
const MANAGER: &str = "endpoint-controller";
/// Marks our slices; other managers' are left alone.
pub(crate) const SLICE_MANAGED: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`SLICE_MANAGED`], upstream's, because clients select by it.
const SLICE_MANAGER: &str = "endpointslice-controller.k8s.io";
/// Names the service of a slice.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Marks endpoints of services without a cluster address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Backends per slice, upstream's.
const SLICE_SIZE: usize = 100;
/// Addresses per Endpoints object, upstream's; the rest is only in slices.
const ENDPOINTS_SIZE: usize = 1000;

/// The services, and Endpoints objects of ours whose service may be gone.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    let mut keys = view.services.keys();
    let ours = view.endpoints.iter().filter(|one| one.metadata.label(MANAGED) == Some(MANAGER));
    keys.extend(ours.map(|one| Key::of(&one.metadata)));
    keys.sort();
    keys.dedup();
    keys
}

/// The services that select, or selected, a pod.
#[must_use]
pub fn services_of_pod(view: &View, touch: &Touch) -> Vec<Key> {
    let mut pods = touch.typed::<Pod>();
    if let (Some(before), Some(after)) = (pods.next(), pods.next())
        && before.metadata.labels == after.metadata.labels
        && before.metadata.deletion_timestamp == after.metadata.deletion_timestamp
        && before.spec.node_name == after.spec.node_name
        && before.status.pod_ip == after.status.pod_ip
        && before.status.pod_ips == after.status.pod_ips
        && before.is_ready() == after.is_ready()
        && before.is_finished() == after.is_finished()
    {
        return Vec::new();
    }
    let selects = |service: &&Arc<Service>| {
        let wanted = &service.spec.selector;
        !wanted.is_empty()
            && touch.sides().any(|side| {
                let labels = &side.meta().labels;
                wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
            })
    };
    let services = view.services.inside(&touch.key.namespace).filter(selects);
    services.map(|service| Key::of(&service.metadata)).collect()
}

/// The service of a slice.
#[must_use]
pub fn service_of_slice(_view: &View, touch: &Touch) -> Vec<Key> {
    let names = touch.sides().filter_map(|side| side.meta().label(SERVICE_NAME));
    names.map(|name| Key::new(&touch.key.namespace, name)).collect()
}

/// Every service when a node's place or fitness changed; heartbeats change neither.
#[must_use]
pub fn services_by_zone(view: &View, touch: &Touch) -> Vec<Key> {
    if node_matters(touch) { view.services.keys() } else { Vec::new() }
}

/// The selector of a service whose endpoints are ours to write.
fn selector(service: &Service) -> Option<Selector> {
    let ours = service.spec.kind != "ExternalName" && !service.spec.selector.is_empty();
    ours.then(|| Selector::from_labels(&service.spec.selector))
}

/// Pods with an address that match, in name order.
fn backends<'a>(
    view: &'a View,
    service: &Service,
    selector: &Selector,
) -> impl Iterator<Item = &'a Arc<Pod>> {
    view.pods.inside(&service.metadata.namespace).filter(move |pod| {
        !pod.status.pod_ip.is_empty()
            && !pod.is_finished()
            && selector.matches(&pod.metadata.labels)
    })
}

/// The ports of a service as this pod serves them; a named port may differ from pod to pod.
fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let resolve = |port: &ServicePort| {
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(number)) if *number == 0 => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => named_port(pod, name, protocol(port))?,
        };
        Some(EndpointPort {
            name: (!port.name.is_empty()).then(|| port.name.clone()),
            port: Some(number),
            protocol: Some(protocol(port).to_owned()),
            app_protocol: port.app_protocol.clone(),
            ..EndpointPort::default()
        })
    };
    service.spec.ports.iter().filter_map(resolve).collect()
}

fn protocol(port: &ServicePort) -> &str {
    if port.protocol.is_empty() { "TCP" } else { &port.protocol }
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i64> {
    // Containers that run beside the others from before their start serve too.
    let beside = pod.spec.init_containers.iter();
    let beside = beside.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let mut all = pod.spec.containers.iter().chain(beside).flat_map(|one| &one.ports);
    let found = all.find(|port| {
        let spoken = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        port.name == name && spoken == protocol
    })?;
    Some(found.container_port)
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: "Pod".to_owned(),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The name by which a pod is found under a headless service.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let named = !pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name;
    named.then(|| pod.spec.hostname.clone())
}

fn labels(service: &Service, mark: (&str, &str)) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone();
    labels.insert(mark.0.to_owned(), mark.1.to_owned());
    if service.spec.cluster_ip == "None" {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// Ports in a form that can be ordered and compared.
pub(crate) fn port_key(ports: &[EndpointPort]) -> String {
    encode(&ports).to_string()
}

/// Plans the Endpoints object of one service.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let found = view.endpoints.get(&key.namespace, &key.name);
    let Some(service) = view.services.get(&key.namespace, &key.name) else {
        if let Some(stale) = found.filter(|one| one.metadata.label(MANAGED) == Some(MANAGER)) {
            steps.push(Action::delete(Target::of(&**stale)));
        }
        return steps;
    };
    let Some(selector) = selector(service).filter(|_| !service.metadata.is_deleting()) else {
        return steps;
    };
    let subsets = subsets(view, service, &selector);
    let labels = labels(service, (MANAGED, MANAGER));
    let over = backends(view, service, &selector).nth(ENDPOINTS_SIZE).is_some();
    let over = over.then_some("truncated");
    match found {
        Some(had)
            if had.subsets == subsets
                && had.metadata.labels == labels
                && had.metadata.annotation(OVER) == over => {}
        Some(had) => {
            let mut object = Endpoints::clone(had);
            object.subsets = subsets;
            object.metadata.labels = labels;
            tell_over(&mut object.metadata, over);
            let (target, object) = (Target::of(&**had), Box::new(encode(&object)));
            steps.push(Action::Replace { target, subresource: None, object });
        }
        None => {
            let mut metadata =
                ObjectMeta { labels, ..ObjectMeta::in_namespace(&key.namespace, &key.name) };
            tell_over(&mut metadata, over);
            let object = Endpoints { metadata, subsets, ..Endpoints::blank() };
            steps.push(Action::Create {
                kind: &kind::ENDPOINTS,
                namespace: key.namespace.clone(),
                object: Box::new(encode(&object)),
                note: None,
            });
        }
    }
    steps
}

fn tell_over(metadata: &mut ObjectMeta, over: Option<&str>) {
    match over {
        Some(text) => _ = metadata.annotations.insert(OVER.to_owned(), text.to_owned()),
        None => _ = metadata.annotations.remove(OVER),
    }
}

fn subsets(view: &View, service: &Service, selector: &Selector) -> Vec<EndpointSubset> {
    let mut by_ports: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let family = Family::of_service(service).first().copied().unwrap_or(Family::V4);
    for pod in backends(view, service, selector).take(ENDPOINTS_SIZE) {
        let Some(address) = family.address(pod) else { continue };
        let always = service.spec.publish_not_ready_addresses;
        if pod.metadata.is_deleting() && !always {
            continue;
        }
        let ports = ports(service, pod);
        if ports.is_empty() && !service.spec.ports.is_empty() {
            continue;
        }
        let address = EndpointAddress {
            ip: address.to_owned(),
            hostname: hostname(service, pod).unwrap_or_default(),
            node_name: Some(pod.spec.node_name.clone()).filter(|name| !name.is_empty()),
            target_ref: Some(pod_reference(pod)),
            ..EndpointAddress::default()
        };
        let subset = by_ports
            .entry(port_key(&ports))
            .or_insert_with(|| EndpointSubset { ports, ..EndpointSubset::default() });
        if always || pod.is_ready() {
            subset.addresses.push(address);
        } else {
            subset.not_ready_addresses.push(address);
        }
    }
    by_ports.into_values().collect()
}

/// Plans the slices of one service.
#[must_use]
pub fn reconcile_slices(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(service) = view.services.get(&key.namespace, &key.name) else { return steps };
    let Some(selector) = selector(service).filter(|_| !service.metadata.is_deleting()) else {
        // Slices of a deleted service go with their owner.
        return steps;
    };
    let mut wanted: BTreeMap<String, EndpointSlice> = BTreeMap::new();
    for family in Family::of_service(service) {
        let mut groups = grouped(view, service, &selector, family);
        if groups.is_empty() {
            // One empty slice says that we have looked.
            groups.push((ports(service, &Pod::blank()), Vec::new()));
        }
        for (ports, endpoints) in groups {
            let parts: Vec<&[Endpoint]> = match endpoints.as_slice() {
                [] => vec![&[]],
                all => all.chunks(SLICE_SIZE).collect(),
            };
            for (number, part) in parts.into_iter().enumerate() {
                let slice = slice(service, &ports, (family, number), part.to_vec());
                wanted.insert(slice.metadata.name.clone(), slice);
            }
        }
    }
    for had in view.slices.inside(&key.namespace) {
        let ours = had.metadata.label(SERVICE_NAME) == Some(&key.name)
            && had.metadata.label(SLICE_MANAGED) == Some(SLICE_MANAGER);
        match wanted.remove(&had.metadata.name) {
            _ if had.metadata.is_deleting() => (),
            Some(slice) if ours => replace(had, slice, &mut steps),
            // A stranger has the name; its owner knows why.
            Some(_) => (),
            None if ours => steps.push(Action::delete(Target::of(&**had))),
            None => (),
        }
    }
    for slice in wanted.into_values() {
        steps.push(Action::Create {
            kind: &kind::ENDPOINT_SLICE,
            namespace: key.namespace.clone(),
            object: Box::new(encode(&slice)),
            note: None,
        });
    }
    steps
}

pub(crate) fn replace(had: &Arc<EndpointSlice>, slice: EndpointSlice, steps: &mut Steps) {
    let same = had.endpoints == slice.endpoints
        && had.ports == slice.ports
        && had.metadata.labels == slice.metadata.labels
        && had.metadata.owner_references == slice.metadata.owner_references;
    if same {
        return;
    }
    let mut object = EndpointSlice::clone(had);
    object.metadata.labels = slice.metadata.labels;
    object.metadata.owner_references = slice.metadata.owner_references;
    object.endpoints = slice.endpoints;
    object.ports = slice.ports;
    let (target, object) = (Target::of(&**had), Box::new(encode(&object)));
    steps.push(Action::Replace { target, subresource: None, object });
}

fn grouped(
    view: &View,
    service: &Service,
    selector: &Selector,
    family: Family,
) -> Vec<(Vec<EndpointPort>, Vec<Endpoint>)> {
    let mut groups: BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for pod in backends(view, service, selector) {
        let Some(address) = family.address(pod) else { continue };
        let ports = ports(service, pod);
        if ports.is_empty() && !service.spec.ports.is_empty() {
            continue;
        }
        let node = view.nodes.get("", &pod.spec.node_name);
        let zone = node.and_then(|node| node.metadata.label("topology.kubernetes.io/zone"));
        let stopping = pod.metadata.is_deleting();
        let serving = pod.is_ready();
        let ready = service.spec.publish_not_ready_addresses || (serving && !stopping);
        let endpoint = Endpoint {
            addresses: vec![address.to_owned()],
            conditions: EndpointConditions {
                ready: Some(ready),
                serving: Some(serving),
                terminating: Some(stopping),
                ..EndpointConditions::default()
            },
            hostname: hostname(service, pod),
            target_ref: Some(pod_reference(pod)),
            node_name: Some(pod.spec.node_name.clone()).filter(|name| !name.is_empty()),
            zone: zone.map(str::to_owned),
            hints: hints(service, ready, zone, &pod.spec.node_name),
            ..Endpoint::default()
        };
        groups.entry(port_key(&ports)).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
    }
    groups.into_values().collect()
}

/// Whom an endpoint is for first: those of its zone, or of its node.
fn hints(service: &Service, ready: bool, zone: Option<&str>, node: &str) -> Option<Value> {
    let wish = service.spec.extra.get("trafficDistribution").and_then(Value::as_str);
    let zone = zone.filter(|zone| ready && !zone.is_empty());
    let zones: Vec<Value> = zone.iter().map(|zone| json!({ "name": zone })).collect();
    match wish {
        Some("PreferClose" | "PreferSameZone") if !zones.is_empty() => {
            Some(json!({ "forZones": zones }))
        }
        Some("PreferSameNode") if ready && !node.is_empty() => {
            let mut hints = json!({"forNodes": [{"name": node}]});
            if let Some(fields) = hints.as_object_mut().filter(|_| !zones.is_empty()) {
                fields.insert("forZones".to_owned(), json!(zones));
            }
            Some(hints)
        }
        _ => None,
    }
}

fn slice(
    service: &Service,
    ports: &[EndpointPort],
    (family, number): (Family, usize),
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    // A slice's family cannot change, so that each family has names of its own.
    let first = if family == Family::V6 { 1 << 32 } else { 0 };
    let salt = u64::try_from(number).unwrap_or(u64::MAX).saturating_add(first);
    let hash: String = hash::short(port_key(ports).as_bytes(), salt).chars().take(5).collect();
    let stem: String = service.metadata.name.chars().take(57).collect();
    let mut labels = labels(service, (SLICE_MANAGED, SLICE_MANAGER));
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone());
    let metadata = ObjectMeta {
        labels,
        owner_references: vec![OwnerReference::controlled_by(service)],
        ..ObjectMeta::in_namespace(&service.metadata.namespace, &format!("{stem}-{hash}"))
    };
    // Slices name their ports even when the name is empty.
    let ports = ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            ..port.clone()
        })
        .collect();
    EndpointSlice {
        metadata,
        address_type: family.name().to_owned(),
        endpoints,
        ports,
        ..EndpointSlice::blank()
    }
}

#[cfg(test)]
mod tests;
