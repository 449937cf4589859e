//! Copies the Endpoints of services without a selector into EndpointSlices.
//!
//! Spec: upstream's mirroring controller: whoever writes Endpoints by hand is found by those
//! who read only slices. Endpoints of elections, those labelled not to be copied, and those of
//! services that select their pods are left alone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use objects::kind;
use objects::meta::{ObjectMeta, OwnerReference};
use objects::network::{
    Endpoint, EndpointAddress, EndpointConditions, EndpointPort, EndpointSlice, EndpointSubset,
    Endpoints,
};

use crate::action::{Action, Steps, Target, encode};
use crate::endpoints::{SERVICE_NAME, SLICE_MANAGED, port_key, replace};
use crate::hash;
use crate::view::{Key, View};
use crate::wake::Touch;

/// The value of the slices' label that says who keeps them.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that are not to be copied.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are somebody's election.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What kubectl notes for itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses copied of one subset; upstream's.
const MOST: usize = 1000;

/// The Endpoints of a copied slice.
#[must_use]
pub fn endpoints_of_slice(_view: &View, touch: &Touch) -> Vec<Key> {
    let ours = touch.sides().filter(|side| side.meta().label(SLICE_MANAGED) == Some(MANAGER));
    let names = ours.filter_map(|side| side.meta().label(SERVICE_NAME));
    names.map(|name| Key::new(&touch.key.namespace, name)).collect()
}

/// Every Endpoints object, and every service that has copies.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    let ours = view.slices.iter().filter(|one| one.metadata.label(SLICE_MANAGED) == Some(MANAGER));
    let named = ours.filter_map(|one| {
        Some(Key::new(&one.metadata.namespace, one.metadata.label(SERVICE_NAME)?))
    });
    let mut keys: Vec<Key> = view.endpoints.keys().into_iter().chain(named).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Plans the slices of one Endpoints object.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let mut wanted: BTreeMap<String, EndpointSlice> = BTreeMap::new();
    if let Some(endpoints) = source(view, key) {
        for subset in &endpoints.subsets {
            for is_v6 in [false, true] {
                let slice = copy(endpoints, subset, is_v6);
                if !slice.endpoints.is_empty() {
                    wanted.insert(slice.metadata.name.clone(), slice);
                }
            }
        }
    }
    for had in view.slices.inside(&key.namespace) {
        let ours = had.metadata.label(SERVICE_NAME) == Some(&key.name)
            && had.metadata.label(SLICE_MANAGED) == Some(MANAGER);
        match wanted.remove(&had.metadata.name) {
            _ if had.metadata.is_deleting() => (),
            Some(slice) if ours => replace(had, slice, &mut steps),
            Some(_) => (),
            None if ours => steps.push(Action::delete(Target::of(&**had))),
            None => (),
        }
    }
    for slice in wanted.into_values() {
        steps.push(Action::create(&kind::ENDPOINT_SLICE, &key.namespace, encode(&slice)));
    }
    steps
}

/// The Endpoints to copy, if they are to be.
fn source<'a>(view: &'a View, key: &Key) -> Option<&'a Arc<Endpoints>> {
    let endpoints = view.endpoints.get(&key.namespace, &key.name)?;
    let service = view.services.get(&key.namespace, &key.name)?;
    let meta = &endpoints.metadata;
    let wanted = service.spec.selector.is_empty()
        && !service.metadata.is_deleting()
        && !meta.is_deleting()
        && meta.label(SKIP) != Some("true")
        && meta.annotation(LEADER).is_none();
    wanted.then_some(endpoints)
}

fn copy(endpoints: &Endpoints, subset: &EndpointSubset, is_v6: bool) -> EndpointSlice {
    let of = |all: &[EndpointAddress], ready: bool| -> Vec<Endpoint> {
        let fits =
            |one: &&EndpointAddress| one.ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == is_v6);
        all.iter()
            .filter(fits)
            .map(|one| Endpoint {
                addresses: vec![one.ip.clone()],
                conditions: EndpointConditions {
                    ready: Some(ready),
                    ..EndpointConditions::default()
                },
                hostname: Some(one.hostname.clone()).filter(|name| !name.is_empty()),
                target_ref: one.target_ref.clone(),
                node_name: one.node_name.clone(),
                ..Endpoint::default()
            })
            .collect()
    };
    let mut all = of(&subset.addresses, true);
    all.extend(of(&subset.not_ready_addresses, false));
    all.truncate(MOST);
    let meta = &endpoints.metadata;
    let salt = u64::from(is_v6);
    let hash: String =
        hash::short(port_key(&subset.ports).as_bytes(), salt).chars().take(5).collect();
    let stem: String = meta.name.chars().take(57).collect();
    let mut labels = meta.labels.clone();
    labels.insert(SLICE_MANAGED.to_owned(), MANAGER.to_owned());
    labels.insert(SERVICE_NAME.to_owned(), meta.name.clone());
    let mut annotations = meta.annotations.clone();
    annotations.remove(LAST_APPLIED);
    let metadata = ObjectMeta {
        labels,
        annotations,
        owner_references: vec![OwnerReference::controlled_by(endpoints)],
        ..ObjectMeta::in_namespace(&meta.namespace, &format!("{stem}-{hash}"))
    };
    let named = |port: &EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        ..port.clone()
    };
    EndpointSlice {
        metadata,
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: all,
        ports: subset.ports.iter().map(named).collect(),
        ..EndpointSlice::blank()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use serde_json::{Value, json};

    /// Addresses of the copies, by kind.
    #[track_caller]
    fn check(service: Value, endpoints: Value, expected: &[&str]) {
        let mut world = World::default();
        let meta = json!({"name": "s", "namespace": "n"});
        world.add(&kind::SERVICE, json!({"metadata": meta, "spec": service}));
        let mut object = json!({
            "metadata": meta,
            "subsets": [{
                "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}],
            }],
        });
        crate::world::merge(&mut object, &endpoints);
        world.add(&kind::ENDPOINTS, object);
        world.settle(&[]);
        let copies = |world: &World| -> Vec<String> {
            let all = world.all::<EndpointSlice>();
            let ours = all.iter().filter(|one| one.metadata.label(SLICE_MANAGED) == Some(MANAGER));
            let line = |one: &EndpointSlice| {
                let ips: Vec<String> = one
                    .endpoints
                    .iter()
                    .map(|end| format!("{}={}", end.addresses[0], end.conditions.ready.unwrap()))
                    .collect();
                format!("{} {}", one.address_type, ips.join(" "))
            };
            let mut lines: Vec<String> = ours.map(line).collect();
            lines.sort();
            lines
        };
        assert_eq!(copies(&world), expected);
        world.remove(&kind::ENDPOINTS, "n", "s");
        world.settle(&[]);
        assert_eq!(copies(&world), [""; 0]);
    }

    #[test]
    fn endpoints_written_by_hand_are_copied() {
        let both = ["IPv4 10.0.0.1=true 10.0.0.2=false", "IPv6 fd00::1=true"];
        check(json!({}), json!({}), &both);
        let label = json!({"metadata": {"labels": {SKIP: "true"}}});
        check(json!({}), label, &[]);
        let election = json!({"metadata": {"annotations": {LEADER: "{}"}}});
        check(json!({}), election, &[]);
        check(json!({"selector": {"a": "b"}}), json!({}), &[]);
    }
}
