use serde_json::{Value, json};

use super::*;

fn service(name: &str, policy: &str, address: &str, more: Value) -> Service {
    let mut value = json!({"metadata": {"name": name, "namespace": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy},
        "status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    if let (Value::Object(spec), Value::Object(more)) = (&mut value["spec"], more) {
        spec.extend(more);
    }
    serde_json::from_value(value).unwrap()
}

/// Endpoints are `NODE` or `NODE!` when not ready.
fn slice(service: &str, endpoints: &[&str]) -> EndpointSlice {
    let one = |endpoint: &&str| {
        let node = endpoint.trim_end_matches('!');
        json!({"addresses": ["172.20.1.2"], "nodeName": node,
            "conditions": {"ready": !endpoint.ends_with('!')}})
    };
    let endpoints: Vec<Value> = endpoints.iter().map(one).collect();
    serde_json::from_value(json!({"metadata": {"name": format!("{service}-1"), "namespace": "web",
        "labels": {SERVICE_NAME: service}}, "addressType": "IPv4", "endpoints": endpoints}))
    .unwrap()
}

#[track_caller]
fn check(standing: Standing, policy: &str, endpoints: &[&str], announced: bool) {
    let networks: Networks = serde_json::from_value(json!({"pods": "172.20.0.0/16",
        "services": "172.21.0.0/24", "loadBalancers": ["192.0.2.0/27"]}))
    .unwrap();
    let services = [service("shop", policy, "192.0.2.1", json!({}))];
    let slice = slice("shop", endpoints);
    let chosen = choose("a", standing, &networks, &services, &[&slice]);
    let wanted = announced.then(|| "192.0.2.1/32".parse().unwrap());
    assert_eq!(chosen, wanted.into_iter().collect(), "{standing:?} {policy} {endpoints:?}");
}

#[test]
fn a_node_announces_what_it_may_send_on() {
    use Standing::{Draining, Out, Serving};
    for (standing, policy, endpoints, announced) in [
        (Serving, "Cluster", &["a"][..], true),
        (Serving, "Cluster", &["b"], true),
        (Serving, "Cluster", &["a!", "b!"], false),
        (Serving, "Cluster", &[], false),
        (Serving, "Local", &["a", "b"], true),
        (Serving, "Local", &["a!", "b"], false),
        (Serving, "Local", &["b"], false),
        (Draining, "Cluster", &["a", "b"], false),
        (Draining, "Local", &["a", "b"], false),
        (Draining, "Local", &["a", "b!"], true),
        (Out, "Cluster", &["a", "b"], false),
        (Out, "Local", &["a"], false),
    ] {
        check(standing, policy, endpoints, announced);
    }
}

#[test]
fn foreign_classes_and_addresses_outside_the_plan_are_left_alone() {
    let networks: Networks = serde_json::from_value(json!({"pods": "172.20.0.0/16",
        "services": "172.21.0.0/24", "loadBalancers": ["192.0.2.0/27"]}))
    .unwrap();
    let services = [
        service("shop", "Cluster", "192.0.2.1", json!({"loadBalancerClass": "other.io/lb"})),
        service("shop", "Cluster", "198.51.100.1", json!({})),
        service("shop", "Cluster", "192.0.2.2", json!({"loadBalancerClass": CLASS})),
        service("shop", "Cluster", "", json!({"type": "ClusterIP", "externalIPs": ["192.0.2.3"]})),
        service("shop", "Cluster", "192.0.2.4", json!({"type": "NodePort"})),
    ];
    let slice = slice("shop", &["a"]);
    let chosen = choose("a", Standing::Serving, &networks, &services, &[&slice]);
    let chosen: Vec<String> = chosen.iter().map(ToString::to_string).collect();
    assert_eq!(chosen, ["192.0.2.2/32", "192.0.2.3/32"]);
}
