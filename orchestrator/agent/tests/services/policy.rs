//! Network policies at work: the node lets through what they permit, and follows what changes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::alone::{alone, await_until, shell_in};
use super::{
    Lab, NODE, PODS, PROGRAMS, WEB, api, ask, run, run_guarded_services, service, site, slice,
};

/// The lab's pods as the API tells them; `tier` is a label of each.
fn tell_pods(items: &api::Items, tiers: [&str; 4]) {
    let pods = PODS.iter().zip(tiers).map(|((name, address), tier)| {
        let node = if *name == "green" { "far" } else { "node" };
        let ports = json!([{"name": "web", "protocol": "TCP", "containerPort": 8080}]);
        json!({"metadata": {"namespace": "default", "name": name, "labels": {"app": name, "tier": tier}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
    });
    items.set("/api/v1/pods", pods.collect());
}

fn tell_policies(items: &api::Items, specs: &[Value]) {
    let policies = specs.iter().enumerate().map(|(at, spec)| {
        json!({"metadata": {"namespace": "default", "name": format!("p{at}")}, "spec": spec})
    });
    items.set("/apis/networking.k8s.io/v1/networkpolicies", policies.collect());
}

/// A running node with a service in front of `red`, and no policy.
fn running(lab: &Lab) -> (api::Items, tokio_util::sync::DropGuard) {
    running_behind(lab, agent::Gate::default())
}

fn running_behind(lab: &Lab, gate: agent::Gate) -> (api::Items, tokio_util::sync::DropGuard) {
    let items = api::Items::default();
    site(&items, None);
    let web = service("web", json!({"clusterIP": WEB.0, "ports": [{"port": 80}]}));
    items.set("/api/v1/services", vec![serde_json::to_value(web).unwrap()]);
    let red = serde_json::to_value(slice("web", &["red"])).unwrap();
    items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![red]);
    items.set("/api/v1/namespaces", vec![json!({"metadata": {"name": "default"}})]);
    tell_pods(&items, ["front", "back", "back", "front"]);
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let stop = run_guarded_services(lab, &items, listen, gate, agent::Served::default());
    await_until("the service", Duration::from_secs(20), || {
        ask(&lab.pods["client"], WEB).map(drop).map_err(|err| err.to_string())
    });
    (items, stop)
}

/// Waits until a pod's connection to an address fares so; blocked means no answer at all.
#[track_caller]
fn fares(lab: &Lab, from: &str, to: (std::net::Ipv4Addr, u16), allowed: bool) {
    let from = lab.pods.get(from).unwrap_or(if from == "far" { &lab.far } else { &lab.node });
    await_until(&format!("{to:?} allowed: {allowed}"), Duration::from_secs(20), || {
        match (ask(from, to), allowed) {
            (Ok(_), true) | (Err(ErrorKind::TimedOut), false) => Ok(()),
            (other, _) => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn policies_block_and_allow_and_follow_labels() {
    alone("policy::policies_block_and_allow_and_follow_labels", &PROGRAMS, || {
        let lab = Lab::build();
        let (items, _stop) = running(&lab);
        let (red, blue) = ((PODS[1].1, 8080), (PODS[2].1, 8080));

        // Nobody may speak to the back, but for the front at the port called web.
        let back = json!({"matchLabels": {"tier": "back"}});
        let front = json!({"podSelector": {"matchLabels": {"tier": "front"}}});
        let isolate = json!({"podSelector": back});
        let allow = json!({"podSelector": back, "ingress": [{"from": [front], "ports": [{"port": "web"}]}]});
        tell_policies(&items, std::slice::from_ref(&isolate));
        fares(&lab, "client", red, false);
        fares(&lab, "green", red, false);
        fares(&lab, "far", red, false);
        fares(&lab, "client", WEB, false);
        // The node's own probes pass, as do answers to what the isolated pod asks.
        fares(&lab, "node", red, true);
        fares(&lab, "red", (PODS[3].1, 8080), true);

        tell_policies(&items, &[isolate.clone(), allow.clone()]);
        fares(&lab, "client", red, true);
        fares(&lab, "client", WEB, true);
        fares(&lab, "green", red, true);
        fares(&lab, "blue", red, false);
        fares(&lab, "far", red, false);

        // A label changes: blue is of the front now, and no longer isolated itself.
        tell_pods(&items, ["front", "back", "front", "other"]);
        fares(&lab, "blue", red, true);
        fares(&lab, "far", blue, true);
        fares(&lab, "green", red, false);

        // What leaves: only the far node's addresses, without the service's endpoint.
        let out = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "172.20.0.0/16", "except": ["172.20.11.0/24"]}}],
                        "ports": [{"port": 8000, "endPort": 8100}]}]});
        tell_policies(&items, &[out]);
        fares(&lab, "client", WEB, false);
        fares(&lab, "client", (PODS[3].1, 8080), true);
        fares(&lab, "far", red, true);

        tell_policies(&items, &[]);
        fares(&lab, "client", WEB, true);
        let tables = lab.node.run(|| {
            let output = std::process::Command::new("nft").args(["list", "tables"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        });
        assert_eq!(tables.unwrap().trim(), "table ip muster-services");
    });
}

/// The lab's pods, `red` with another address than at first.
fn tell_red_at(items: &api::Items, address: Option<&str>) {
    let at = |name: &str, ip: std::net::Ipv4Addr| match (name, address) {
        ("red", address) => address.map(|ip| json!({"ip": ip})).into_iter().collect(),
        _ => vec![json!({"ip": ip})],
    };
    let mut pods: Vec<Value> =
        PODS.iter().map(|(name, ip)| red_pod(name, json!(at(name, *ip)))).collect();
    pods[0]["metadata"]["labels"]["told"] = json!("yes");
    items.set("/api/v1/pods", pods);
}

fn red_pod(name: &str, ips: Value) -> Value {
    let node = if name == "green" { "far" } else { "node" };
    json!({"metadata": {"namespace": "default", "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": ips}})
}

#[test]
fn a_pod_that_starts_anew_is_isolated_before_its_containers_run() {
    alone(
        "policy::a_pod_that_starts_anew_is_isolated_before_its_containers_run",
        &PROGRAMS,
        || {
            let lab = Lab::build();
            let gate = agent::Gate::guarded();
            let (items, _stop) = running_behind(&lab, gate.clone());
            let pass = |address: &str| {
                let pod = serde_json::from_value(red_pod("red", json!([]))).unwrap();
                let guest = ::node::policy::Guest::of(&pod, [address]);
                let key = runtime::cache::Key::new("default", "red");
                run(async || gate.pass("red", key, guest).await)
            };
            // Without a policy nobody waits.
            assert!(pass("172.20.11.3"));
            let isolate = json!({"podSelector": {"matchLabels": {"app": "red"}},
            "policyTypes": ["Ingress", "Egress"]});
            tell_policies(&items, std::slice::from_ref(&isolate));
            let green = (PODS[3].1, 8080);
            fares(&lab, "client", (PODS[1].1, 8080), false);

            // Its sandbox is made anew with another address, which the API does not know yet.
            let address = std::net::Ipv4Addr::new(172, 20, 11, 33);
            shell_in("node", &format!("ip route add {address} dev red src {NODE}"));
            let swap = format!(
                "ip addr flush dev eth0 scope global; ip addr add {address}/32 dev eth0; \
            ip route replace 169.254.1.1 dev eth0; \
            ip route replace default via 169.254.1.1 onlink dev eth0"
            );
            shell_in("red", &swap);
            assert!(ask(&lab.pods["red"], green).is_ok(), "nobody has told of this address");
            assert!(pass(&address.to_string()));
            // No waiting here: the container may run now.
            assert_eq!(ask(&lab.pods["red"], green), Err(ErrorKind::TimedOut));
            assert_eq!(ask(&lab.pods["client"], (address, 8080)), Err(ErrorKind::TimedOut));

            // The API learns of it, and forgets it: then its word counts alone. Only with it comes the
            // client's label.
            tell_red_at(&items, Some(&address.to_string()));
            let allow = json!({"podSelector": {"matchLabels": {"app": "red"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"told": "yes"}}}]}]});
            tell_policies(&items, &[isolate, allow]);
            fares(&lab, "client", (address, 8080), true);
            fares(&lab, "blue", (address, 8080), false);
            tell_red_at(&items, None);
            fares(&lab, "blue", (address, 8080), true);
        },
    );
}

#[test]
fn services_and_nodes_are_met_as_what_is_behind_them() {
    alone("policy::services_and_nodes_are_met_as_what_is_behind_them", &PROGRAMS, || {
        let lab = Lab::build();
        let (items, _stop) = running(&lab);
        let client = (PODS[0].1, 8080);
        let labels = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
        let out = |peer: Value, ports: Value| {
            json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
                "egress": [{"to": [peer], "ports": ports}]})
        };
        // Who leaves by a service is judged by the pod and the port it arrives at.
        for (peer, ports, web) in [
            (labels("red"), json!([]), true),
            (labels("blue"), json!([]), false),
            (labels("red"), json!([{"port": 8080}]), true),
            (labels("red"), json!([{"port": 80}]), false),
            (labels("red"), json!([{"protocol": "UDP", "port": 8080}]), false),
            (labels("red"), json!([{"port": "web"}]), true),
            (labels("red"), json!([{"port": 8000, "endPort": 8079}]), false),
            (labels("red"), json!([{"port": 8000, "endPort": 8080}]), true),
            (json!({"ipBlock": {"cidr": format!("{}/32", WEB.0)}}), json!([]), false),
            (json!({"ipBlock": {"cidr": format!("{}/32", PODS[1].1)}}), json!([]), true),
        ] {
            tell_policies(&items, &[out(peer.clone(), ports.clone())]);
            fares(&lab, "client", WEB, web);
        }
        // Nodes are addresses: no selector of pods means them, a block does.
        let hear = |peer: Value| json!({"podSelector": {"matchLabels": {"app": "client"}}, "ingress": [{"from": [peer]}]});
        tell_policies(&items, &[hear(json!({"podSelector": {}}))]);
        fares(&lab, "green", client, true);
        fares(&lab, "far", client, false);
        fares(&lab, "node", client, true);
        tell_policies(&items, &[hear(json!({"ipBlock": {"cidr": "10.98.1.0/24"}}))]);
        fares(&lab, "far", client, true);
        fares(&lab, "green", client, false);
        tell_policies(
            &items,
            &[hear(json!({"ipBlock": {"cidr": "10.98.1.0/24",
            "except": [format!("{}/32", super::FAR)]}}))],
        );
        fares(&lab, "far", client, false);
        fares(&lab, "node", client, true);
    });
}
