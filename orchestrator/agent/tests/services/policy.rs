//! Network policies at work: the node lets through what they permit, and follows what changes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::alone::{alone, await_until};
use super::{Lab, PODS, PROGRAMS, WEB, api, ask, run_services, service, site, slice};

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
    let items = api::Items::default();
    site(&items, None);
    let web = service("web", json!({"clusterIP": WEB.0, "ports": [{"port": 80}]}));
    items.set("/api/v1/services", vec![serde_json::to_value(web).unwrap()]);
    let red = serde_json::to_value(slice("web", &["red"])).unwrap();
    items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![red]);
    items.set("/api/v1/namespaces", vec![json!({"metadata": {"name": "default"}})]);
    tell_pods(&items, ["front", "back", "back", "front"]);
    let stop = run_services(lab, &items, Some(SocketAddr::from(([127, 0, 0, 1], 0))));
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
