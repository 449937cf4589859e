use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn world(service: Value) -> World {
    let mut world = World::default();
    world.add_node("a", "r1");
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "n", "labels": {"team": "x"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    crate::world::merge(&mut object, &service);
    world.add(&kind::SERVICE, object);
    world
}

fn pod(name: &str, address: &str, ready: bool) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": address, "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }},
        ]},
    })
}

/// Only the endpoint controllers, until they plan nothing.
fn settle(world: &mut World) {
    let ours = |name: &str| name.starts_with("endpoint");
    let controllers = crate::controller::CONTROLLERS.iter().filter(|one| ours(one.name));
    for controller in controllers {
        for _ in 0..5 {
            if !world.round(controller) {
                break;
            }
        }
        assert!(!world.round(controller), "{} does not rest", controller.name);
    }
}

#[test]
fn ready_pods_are_addresses_with_their_own_port_and_rack() {
    let mut world = world(json!({}));
    world.add(&kind::POD, pod("one", "172.20.1.1", true));
    world.add(&kind::POD, pod("two", "172.20.1.2", false));
    world.add(&kind::POD, pod("none", "", true));
    settle(&mut world);
    let endpoints = &world.all::<Endpoints>()[0];
    let subset = &endpoints.subsets[0];
    assert_eq!((subset.addresses.len(), subset.not_ready_addresses.len()), (1, 1));
    assert_eq!(subset.ports[0].port, Some(8080));
    assert_eq!(endpoints.metadata.label("team"), Some("x"));
    let slice = &world.all::<EndpointSlice>()[0];
    assert_eq!(slice.endpoints.len(), 2);
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("r1"));
    assert_eq!(slice.endpoints[1].conditions.ready, Some(false));
    assert_eq!(slice.metadata.label(SERVICE_NAME), Some("web"));
    assert_eq!(slice.ports[0].name.as_deref(), Some(""));
}

#[test]
fn a_stopping_pod_gets_no_new_requests() {
    let mut world = world(json!({}));
    let mut stopping = pod("one", "172.20.1.1", true);
    stopping["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.add(&kind::POD, stopping);
    settle(&mut world);
    assert!(world.all::<Endpoints>()[0].subsets.is_empty());
    let conditions = &world.all::<EndpointSlice>()[0].endpoints[0].conditions;
    let all = (conditions.ready, conditions.serving, conditions.terminating);
    assert_eq!(all, (Some(false), Some(true), Some(true)));
}

#[test]
fn many_backends_fill_several_slices() {
    let mut world = world(json!({}));
    for number in 0..250 {
        world.add(&kind::POD, pod(&format!("p{number}"), &format!("172.20.1.{number}"), true));
    }
    settle(&mut world);
    let mut sizes: Vec<usize> =
        world.all::<EndpointSlice>().iter().map(|slice| slice.endpoints.len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    for number in 0..240 {
        world.remove(&kind::POD, "n", &format!("p{number}"));
    }
    settle(&mut world);
    assert_eq!(world.all::<EndpointSlice>().len(), 1);
}

#[test]
fn services_without_selector_are_left_alone_and_endpoints_go_with_their_service() {
    let mut loose = world(json!({"spec": {"selector": null}}));
    settle(&mut loose);
    assert!(loose.all::<Endpoints>().is_empty() && loose.all::<EndpointSlice>().is_empty());
    let mut world = world(json!({}));
    settle(&mut world);
    assert_eq!(world.all::<EndpointSlice>()[0].endpoints, []);
    world.remove(&kind::SERVICE, "n", "web");
    settle(&mut world);
    assert!(world.all::<Endpoints>().is_empty());
}

/// The slices by family and the addresses they hold, and those of the Endpoints object.
fn addresses(world: &World) -> (Vec<String>, Vec<String>) {
    let mut slices: Vec<String> = Vec::new();
    for slice in world.all::<EndpointSlice>() {
        let all: Vec<String> =
            slice.endpoints.iter().flat_map(|one| one.addresses.clone()).collect();
        slices.push(format!("{} {}", slice.address_type, all.join(" ")));
    }
    slices.sort();
    let subsets = world.all::<Endpoints>()[0].subsets.clone();
    let endpoints = subsets.iter().flat_map(|subset| &subset.addresses);
    (slices, endpoints.map(|address| address.ip.clone()).collect())
}

#[test]
fn a_service_of_two_families_has_slices_of_both_and_endpoints_of_its_first() {
    let mut world = world(json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}));
    let dual = |name: &str, four: &str, six: &str| {
        let mut pod = pod(name, four, true);
        pod["status"]["podIPs"] = json!([{"ip": four}, {"ip": six}]);
        pod
    };
    world.add(&kind::POD, dual("one", "172.20.1.1", "fd20::1"));
    world.add(&kind::POD, pod("older", "172.20.1.2", true));
    settle(&mut world);
    let (slices, endpoints) = addresses(&world);
    assert_eq!(slices, ["IPv4 172.20.1.2 172.20.1.1", "IPv6 fd20::1"]);
    assert_eq!(endpoints, ["fd20::1"]);
    // Ready in one family is ready in both, and so is everything else of an endpoint.
    let all = world.all::<EndpointSlice>();
    let mut ends = all.iter().flat_map(|slice| &slice.endpoints);
    assert!(ends.all(|one| one.conditions.ready == Some(true) && one.zone.is_some()));

    let single = json!({"spec": {"ipFamilies": ["IPv4"]}});
    world.change(&kind::SERVICE, "n", "web", &single);
    settle(&mut world);
    let (slices, endpoints) = addresses(&world);
    assert_eq!(slices, ["IPv4 172.20.1.2 172.20.1.1"]);
    assert_eq!(endpoints, ["172.20.1.2", "172.20.1.1"]);
}

#[test]
fn a_family_without_backends_has_one_empty_slice() {
    let mut world = world(json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}));
    world.add(&kind::POD, pod("older", "172.20.1.2", true));
    settle(&mut world);
    assert_eq!(addresses(&world).0, ["IPv4 172.20.1.2", "IPv6 "]);
    world.remove(&kind::POD, "n", "older");
    settle(&mut world);
    assert_eq!(addresses(&world).0, ["IPv4 ", "IPv6 "]);
}
