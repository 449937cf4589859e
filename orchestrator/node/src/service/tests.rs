use std::io::Write as _;
use std::process::{Command, Stdio};

use expect_test::{Expect, expect, expect_file};
use serde_json::{Value, json};

use super::*;

fn site() -> Site {
    Site {
        node: "here".to_owned(),
        pods: "172.20.0.0/16".parse().unwrap(),
        services: "172.21.0.0/24".parse().unwrap(),
        zone: Some("z1".to_owned()),
        dns: None,
    }
}

fn service(name: &str, spec: Value) -> Service {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// Endpoints are `ADDRESS@NODE`, with `!` in front when not ready, `~` when ending but serving.
fn slice(service: &str, port: u16, endpoints: &str) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .split_whitespace()
        .map(|text| {
            let (ready, ending) = (!text.starts_with(['!', '~']), text.starts_with('~'));
            let (address, node) = text.trim_start_matches(['!', '~']).split_once('@').unwrap();
            let conditions =
                json!({"ready": ready, "serving": ready || ending, "terminating": ending});
            json!({"addresses": [address], "nodeName": node, "conditions": conditions})
        })
        .collect();
    let object = json!({
        "metadata": {"namespace": "default", "name": format!("{service}-x"),
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "", "protocol": "TCP", "port": port}]});
    serde_json::from_value(object).unwrap()
}

/// Prints frontend → target, one a line.
#[track_caller]
fn check(services: &[Service], slices: &[EndpointSlice], expected: Expect) {
    let planned = plan_services(&site(), services, slices);
    let mut lines: Vec<String> = planned
        .frontends
        .iter()
        .map(|(frontend, target)| {
            let front = match frontend {
                Frontend::Address(address, transport, port) => {
                    format!("{address} {transport} {port}")
                }
                Frontend::NodePort(transport, port) => format!("node {transport} {port}"),
            };
            let list = |backends: &[Backend]| {
                let all = backends.iter().map(|one| format!("{}:{}", one.address, one.port));
                all.collect::<Vec<_>>().join(" ")
            };
            let target = match target {
                Target::Refused => "refused".to_owned(),
                Target::Dropped => "dropped".to_owned(),
                Target::Balanced { backends, local, choice } if local.is_empty() => {
                    let none = matches!(choice.reach, Reach::Local { .. });
                    format!("{}{}", list(backends), if none { " local none" } else { "" })
                }
                Target::Balanced { backends, local, .. } => {
                    format!("{} local {}", list(backends), list(local))
                }
            };
            format!("{front} -> {target}")
        })
        .collect();
    lines.extend(planned.skipped.iter().map(|one| format!("{}: {}", one.service, one.reason)));
    expected.assert_eq(&lines.join("\n"));
    accepted_by_nft(&render_table(&site(), &planned));
}

/// Lets nft judge a script inside a fresh user and network namespace, where the host allows one.
#[track_caller]
pub(crate) fn accepted_by_nft(script: &str) {
    let child = Command::new("unshare")
        .args([
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            "command -v nft >/dev/null || exit 77; nft -f -",
        ])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("no unshare here: the table was compared, not loaded");
        return;
    };
    let written = child.stdin.take().unwrap().write_all(script.as_bytes());
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || words.starts_with("unshare:") {
        eprintln!("no nft or no namespaces here: the table was compared, not loaded");
        return;
    }
    written.unwrap();
    assert!(output.status.success(), "nft: {words}\n{script}");
}

#[test]
fn a_cluster_address_has_all_ready_endpoints() {
    let web = || service("web", json!({"clusterIP": "172.21.0.10", "ports": [{"port": 80}]}));
    check(
        &[web()],
        &[slice("web", 8080, "172.20.2.2@there 172.20.1.2@here !172.20.3.2@there")],
        expect!["172.21.0.10 tcp 80 -> 172.20.1.2:8080 172.20.2.2:8080"],
    );
    check(&[web()], &[], expect!["172.21.0.10 tcp 80 -> refused"]);
    check(
        &[web()],
        &[slice("web", 8080, "~172.20.2.2@there !172.20.3.2@there")],
        expect!["172.21.0.10 tcp 80 -> 172.20.2.2:8080"],
    );
}

#[test]
fn headless_and_external_name_services_need_no_rules() {
    check(
        &[
            service("headless", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
            service("alias", json!({"type": "ExternalName", "externalName": "example.org"})),
        ],
        &[],
        expect![""],
    );
}

#[test]
fn the_local_policy_keeps_outsiders_on_this_node() {
    let spec = json!({"type": "NodePort", "clusterIP": "172.21.0.11", "externalTrafficPolicy": "Local",
        "externalIPs": ["10.99.0.5"], "ports": [{"port": 80, "nodePort": 30080}]});
    check(
        &[service("local", spec.clone())],
        &[slice("local", 80, "172.20.1.2@here 172.20.2.2@there")],
        expect![[r#"
            10.99.0.5 tcp 80 -> 172.20.1.2:80 172.20.2.2:80 local 172.20.1.2:80
            172.21.0.11 tcp 80 -> 172.20.1.2:80 172.20.2.2:80
            node tcp 30080 -> 172.20.1.2:80 172.20.2.2:80 local 172.20.1.2:80"#]],
    );
    check(
        &[service("local", spec)],
        &[slice("local", 80, "172.20.2.2@there")],
        expect![[r#"
            10.99.0.5 tcp 80 -> 172.20.2.2:80 local none
            172.21.0.11 tcp 80 -> 172.20.2.2:80
            node tcp 30080 -> 172.20.2.2:80 local none"#]],
    );
}

#[test]
fn insiders_bound_to_their_node_are_dropped_where_nobody_is() {
    let spec = json!({"clusterIP": "172.21.0.12", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    check(
        &[service("inside", spec)],
        &[slice("inside", 80, "172.20.2.2@there")],
        expect!["172.21.0.12 tcp 80 -> dropped"],
    );
}

#[test]
fn local_endpoints_that_end_serve_until_the_next_is_ready() {
    let spec = json!({"type": "NodePort", "clusterIP": "172.21.0.11", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}]});
    check(
        &[service("local", spec.clone())],
        &[slice("local", 80, "~172.20.1.2@here 172.20.2.2@there")],
        expect![[r#"
            172.21.0.11 tcp 80 -> 172.20.2.2:80
            node tcp 30080 -> 172.20.2.2:80 local 172.20.1.2:80"#]],
    );
    check(
        &[service("local", spec)],
        &[slice("local", 80, "~172.20.1.2@here 172.20.1.3@here")],
        expect![[r#"
            172.21.0.11 tcp 80 -> 172.20.1.3:80
            node tcp 30080 -> 172.20.1.3:80 local 172.20.1.3:80"#]],
    );
}

#[test]
fn hints_keep_traffic_near_when_every_endpoint_has_one() {
    let web = || service("web", json!({"clusterIP": "172.21.0.10", "ports": [{"port": 80}]}));
    let hinted = |hints: [Value; 3]| {
        let mut slice = slice("web", 80, "172.20.1.2@here 172.20.2.2@there 172.20.3.2@there");
        for (endpoint, hint) in slice.endpoints.iter_mut().zip(hints) {
            endpoint.hints = Some(hint);
        }
        slice
    };
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let both = json!({"forZones": [{"name": "z2"}, {"name": "z1"}]});
    for (hints, expected) in [
        ([zone("z1"), zone("z2"), both.clone()], "172.20.1.2:80 172.20.3.2:80"),
        ([zone("z2"), zone("z2"), zone("z3")], "172.20.1.2:80 172.20.2.2:80 172.20.3.2:80"),
        ([zone("z1"), json!({}), both], "172.20.1.2:80 172.20.2.2:80 172.20.3.2:80"),
        (
            ["here", "there", "there"]
                .map(|node| json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": node}]})),
            "172.20.1.2:80",
        ),
    ] {
        let planned = plan_services(&site(), &[web()], &[hinted(hints)]);
        let Some(Target::Balanced { backends, .. }) = planned.frontends.values().next() else {
            panic!("{planned:?}")
        };
        let found: Vec<String> =
            backends.iter().map(|one| format!("{}:{}", one.address, one.port)).collect();
        assert_eq!(found.join(" "), expected);
    }
}

#[test]
fn balancers_are_guarded_and_told_of_local_endpoints() {
    let mut balancer = service(
        "lb",
        json!({"type": "LoadBalancer", "clusterIP": "172.21.0.11", "externalTrafficPolicy": "Local",
            "externalIPs": ["10.99.0.9"], "healthCheckNodePort": 31000,
            "loadBalancerSourceRanges": ["10.1.0.0/17", " 10.1.128.0/17", "fd00::/8"],
            "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    balancer.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
        {"ip": "10.99.0.5"}, {"ip": "10.99.0.6", "ipMode": "Proxy"}, {"hostname": "x"}]}}))
    .unwrap();
    let planned = plan_services(
        &site(),
        &[balancer],
        &[slice("lb", 80, "172.20.1.2@here !172.20.1.3@here 172.20.2.2@there")],
    );
    let frontend = |address: &str| Frontend::Address(address.parse().unwrap(), Transport::Tcp, 80);
    let nets = vec!["10.1.0.0/16".parse().unwrap()];
    assert_eq!(planned.guarded, [(frontend("10.99.0.5"), nets)].into());
    assert!(planned.frontends.contains_key(&frontend("10.99.0.9")));
    assert!(!planned.frontends.contains_key(&frontend("10.99.0.6")), "its balancer is a proxy");
    let (namespace, name) = ("default".to_owned(), "lb".to_owned());
    assert_eq!(planned.health, [(31000, Health { namespace, name, local: 1 })].into());
    accepted_by_nft(&render_table(&site(), &planned));
}

#[test]
fn endpoints_keep_the_slots_that_clients_are_remembered_with() {
    let planned = |endpoints: &str| {
        let spec = json!({"clusterIP": "172.21.0.11", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [{"port": 80}]});
        plan_services(&site(), &[service("sticky", spec)], &[slice("sticky", 80, endpoints)])
    };
    let mut loaded =
        Loaded::whole(site(), planned("172.20.1.3@here 172.20.1.5@here 172.20.1.7@here"));
    for (endpoints, slots) in [
        (
            "172.20.1.1@here 172.20.1.3@here 172.20.1.5@here 172.20.1.7@here",
            [3, 5, 7, 1].as_slice(),
        ),
        ("172.20.1.1@here 172.20.1.5@here 172.20.1.7@here", &[1, 5, 7]),
        ("172.20.1.1@here 172.20.1.2@here 172.20.1.7@here", &[1, 2, 7]),
        ("172.20.1.7@here", &[7]),
    ] {
        let wanted = planned(endpoints);
        let (script, next) = loaded.render_change(&site(), &wanted).unwrap();
        assert!(next.is(&site(), &wanted), "{endpoints}");
        let text = format!("{next:?}");
        let mut order: Vec<(usize, u32)> = [1, 2, 3, 5, 7]
            .into_iter()
            .filter_map(|last| Some((text.find(&format!("address: 172.20.1.{last},"))?, last)))
            .collect();
        order.sort_unstable();
        assert_eq!(order.into_iter().map(|(_, last)| last).collect::<Vec<_>>(), slots, "{script}");
        loaded = next;
    }
}

#[test]
fn what_makes_no_sense_is_named_and_harms_nobody_else() {
    check(
        &[
            service(
                "b",
                json!({"clusterIP": "172.21.0.2", "externalIPs": ["10.99.0.5"], "ports": [{"port": 80}]}),
            ),
            service(
                "a",
                json!({"clusterIP": "172.21.0.1", "externalIPs": ["10.99.0.5"], "ports": [{"port": 80}]}),
            ),
            service("c", json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]})),
            service(
                "d",
                json!({"clusterIP": "172.21.0.4", "ports": [{"port": 99999}, {"port": 53, "protocol": "UDP"}]}),
            ),
        ],
        &[],
        expect![[r#"
            10.99.0.5 tcp 80 -> refused
            172.21.0.1 tcp 80 -> refused
            172.21.0.2 tcp 80 -> refused
            172.21.0.4 udp 53 -> refused
            default/b: Address(10.99.0.5, Tcp, 80) belongs to another service
            default/c: clusterIP fd00::1 is no IPv4 address
            default/d: port  99999 is unknown"#]],
    );
}

#[test]
fn ports_are_joined_by_name() {
    let two = service(
        "two",
        json!({"clusterIP": "172.21.0.3", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
    );
    let mut slice = slice("two", 0, "172.20.1.2@here");
    slice.ports = serde_json::from_value(json!([
        {"name": "dns", "protocol": "UDP", "port": 5353}, {"name": "http", "port": 8080}]))
    .unwrap();
    check(
        &[two],
        &[slice],
        expect![[r#"
            172.21.0.3 tcp 80 -> 172.20.1.2:8080
            172.21.0.3 udp 53 -> 172.20.1.2:5353"#]],
    );
}

#[test]
fn the_table_holds_every_kind_of_frontend() {
    let services = [
        service("web", json!({"clusterIP": "172.21.0.10", "ports": [{"port": 80}]})),
        service(
            "sticky",
            json!({"clusterIP": "172.21.0.11", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}),
        ),
        service(
            "inside",
            json!({"clusterIP": "172.21.0.12", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        ),
        service(
            "open",
            json!({"type": "NodePort", "clusterIP": "172.21.0.13", "externalIPs": ["10.99.0.6"],
            "ports": [{"port": 80, "nodePort": 30080}]}),
        ),
        service(
            "near",
            json!({"type": "NodePort", "clusterIP": "172.21.0.14", "externalTrafficPolicy": "Local",
            "externalIPs": ["10.99.0.5"], "ports": [{"port": 80, "nodePort": 30081}]}),
        ),
        service("gone", json!({"clusterIP": "172.21.0.99", "ports": [{"port": 80}]})),
    ];
    let slices = ["web", "sticky", "inside", "open", "near"]
        .map(|name| slice(name, 8080, "172.20.1.2@here 172.20.2.2@there"));
    let planned = plan_services(&site(), &services, &slices);
    let text = render_table(&site(), &planned);
    expect_file!["../../testdata/services.nft"].assert_eq(&text);
    accepted_by_nft(&text);
}

#[test]
fn rules_do_not_grow_with_services() {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for number in 0..1000_u32 {
        let name = format!("s{number}");
        let address = Ipv4Addr::from(0xac15_0000 + number);
        services.push(service(&name, json!({"clusterIP": address, "ports": [{"port": 80}]})));
        slices.push(slice(&name, 8080, "172.20.1.2@here 172.20.2.2@there 172.20.3.2@there"));
    }
    let planned = plan_services(&site(), &services, &slices);
    assert_eq!(table::chains(&planned), 1);
    let slots = table::slots_of(&planned);
    assert_eq!(slots.len(), 1000);
    assert!(slots.values().all(|count| *count == 3));
}

#[test]
fn flows_to_endpoints_that_are_gone_are_stale() {
    let spec = json!({"type": "NodePort", "clusterIP": "172.21.0.10",
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]});
    let mut slice = slice("dns", 5353, "172.20.1.2@here");
    slice.ports[0].protocol = Some("UDP".to_owned());
    let udp = plan_services(&site(), &[service("dns", spec)], &[slice]).udp();
    let stale = |destination: &str, answering: &str| {
        let pair = |text: &str| {
            let (address, port) = text.split_once(':').unwrap();
            (address.parse::<Ipv4Addr>().unwrap(), port.parse().unwrap())
        };
        let (address, port) = pair(answering);
        let flow = Flow { destination: pair(destination), answering: Backend { address, port } };
        is_stale(&site(), &udp, &flow)
    };
    assert!(!stale("172.21.0.10:53", "172.20.1.2:5353"), "the endpoint that is there");
    assert!(stale("172.21.0.10:53", "172.20.9.9:5353"), "one that is gone");
    assert!(stale("172.21.0.10:53", "172.21.0.10:53"), "from before there was one");
    assert!(stale("172.21.0.77:53", "172.20.1.2:5353"), "a service that is gone");
    assert!(stale("10.98.1.11:30053", "172.20.9.9:5353"), "by the node's port");
    assert!(!stale("10.98.1.11:30053", "172.20.1.2:5353"));
    assert!(!stale("8.8.8.8:30053", "8.8.8.8:30053"), "not ours");
    assert!(!stale("8.8.8.8:53", "8.8.8.8:53"), "not ours");
}
