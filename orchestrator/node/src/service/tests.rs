use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use expect_test::{Expect, expect, expect_file};
use objects::network::{EndpointSlice, Service};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn site() -> Site {
    Site {
        node: "here".to_owned(),
        zone: Some("z1".to_owned()),
        v4: ranges("172.20.0.0/16", "172.21.0.0/24"),
        v6: None,
    }
}

fn dual() -> Site {
    Site { v6: Some(ranges("fd20::/48", "fd21::/112")), ..site() }
}

fn ranges(pods: &str, services: &str) -> Ranges {
    Ranges { pods: pods.parse().unwrap(), services: services.parse().unwrap(), dns: None }
}

/// What follows from these, from scratch, and what of it cannot be served.
fn plan(site: Site, services: &[Service], slices: &[EndpointSlice]) -> (Planner, Vec<Skipped>) {
    let mut planner = Planner::new(site);
    planner.behind().replace_services(services.iter().cloned().map(Arc::new));
    planner.behind().replace_slices(slices.iter().cloned().map(Arc::new));
    let skipped = planner.change().skipped;
    (planner, skipped)
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
    let (mut planned, skipped) = plan(dual(), services, slices);
    let mut lines: Vec<String> = planned
        .targets()
        .map(|(frontend, target)| {
            let front = match frontend {
                Frontend::Address(address, transport, port) => {
                    format!("{address} {transport} {port}")
                }
                Frontend::NodePort(Family::V4, transport, port) => {
                    format!("node {transport} {port}")
                }
                Frontend::NodePort(Family::V6, transport, port) => {
                    format!("node6 {transport} {port}")
                }
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
    lines.extend(skipped.iter().map(|one| format!("{}: {}", one.service, one.reason)));
    expected.assert_eq(&lines.join("\n"));
    accepted_by_nft(&planned.render_whole());
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
        let (planned, _) = plan(site(), &[web()], &[hinted(hints)]);
        let Some((_, Target::Balanced { backends, .. })) = planned.targets().next() else {
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
    let (mut planned, _) = plan(
        site(),
        &[balancer],
        &[slice("lb", 80, "172.20.1.2@here !172.20.1.3@here 172.20.2.2@there")],
    );
    let frontend = |address: &str| Frontend::Address(address.parse().unwrap(), Transport::Tcp, 80);
    let elements = planned.elements();
    let guards: Vec<&Key> = elements
        .iter()
        .filter(|one| matches!(one.set, Set::Guarded | Set::Sources))
        .map(|one| &one.key)
        .collect();
    let guarded = frontend("10.99.0.5");
    let net = "10.1.0.0/16".parse().unwrap();
    assert_eq!(guards, [&Key::Frontend(guarded), &Key::Source(guarded, net)]);
    assert!(planned.target(&frontend("10.99.0.9")).is_some());
    assert!(planned.target(&frontend("10.99.0.6")).is_none(), "its balancer is a proxy");
    let (namespace, name) = ("default".to_owned(), "lb".to_owned());
    assert_eq!(*planned.health(), [(31000, Health { namespace, name, local: 1 })].into());
    accepted_by_nft(&planned.render_whole());
}

#[test]
fn endpoints_keep_the_slots_that_clients_are_remembered_with() {
    let spec = || {
        json!({"clusterIP": "172.21.0.11", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [{"port": 80}]})
    };
    let endpoints = |endpoints: &str| slice("sticky", 80, endpoints);
    let first = "172.20.1.3@here 172.20.1.5@here 172.20.1.7@here";
    let (mut planner, _) = plan(site(), &[service("sticky", spec())], &[endpoints(first)]);
    let frontend = Frontend::Address("172.21.0.11".parse().unwrap(), Transport::Tcp, 80);
    for (all, slots, changed) in [
        (
            "172.20.1.1@here 172.20.1.3@here 172.20.1.5@here 172.20.1.7@here",
            [3, 5, 7, 1].as_slice(),
            1,
        ),
        ("172.20.1.1@here 172.20.1.5@here 172.20.1.7@here", &[1, 5, 7], 2),
        ("172.20.1.1@here 172.20.1.2@here 172.20.1.7@here", &[1, 2, 7], 1),
        ("172.20.1.7@here", &[7], 3),
    ] {
        planner.behind().set_slice("default", "sticky-x", Some(Arc::new(endpoints(all))));
        let change = planner.change();
        let backends = planner.target(&frontend).unwrap().backends();
        let order: Vec<String> = backends.map(|one| one.address.to_string()).collect();
        let expected: Vec<String> = slots.iter().map(|last| format!("172.20.1.{last}")).collect();
        assert_eq!(order, expected, "{change:?}");
        let moved = change.removed.iter().chain(&change.added);
        let keys: BTreeSet<&Key> =
            moved.filter(|one| one.set == Set::Endpoints).map(|one| &one.key).collect();
        assert_eq!(keys.len(), changed, "{change:?}");
    }

    // Another planner, which learns from the kernel what the first one did.
    let held: Vec<(Frontend, u32, Backend)> = [9, 8, 7, 6]
        .into_iter()
        .zip(0..)
        .map(|(last, slot)| {
            let address = IpAddr::V4(Ipv4Addr::new(172, 20, 1, last));
            (frontend, slot, Backend { address, port: 80 })
        })
        .collect();
    let mut next = Planner::new(site());
    next.remember(held);
    next.behind().set_service("default", "sticky", Some(Arc::new(service("sticky", spec()))));
    let all = "172.20.1.6@here 172.20.1.7@here 172.20.1.8@here 172.20.1.5@here";
    next.behind().set_slice("default", "sticky-x", Some(Arc::new(endpoints(all))));
    next.change();
    let backends = next.target(&frontend).unwrap().backends();
    let order: Vec<String> = backends.map(|one| one.address.to_string()).collect();
    assert_eq!(order, ["172.20.1.5", "172.20.1.8", "172.20.1.7", "172.20.1.6"]);
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
            service("c", json!({"clusterIP": "172.21.0.300", "ports": [{"port": 80}]})),
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
            default/c: clusterIP 172.21.0.300 is of no family of this site
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
    let (mut planned, _) = plan(site(), &services, &slices);
    let text = planned.render_whole();
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
    let (planned, _) = plan(site(), &services, &slices);
    assert_eq!(planned.chains(), 4, "for one to four endpoints");
    let mut slots: BTreeMap<Frontend, BTreeSet<u32>> = BTreeMap::new();
    for element in planned.elements() {
        if let Key::Slot(frontend, slot) = element.key {
            slots.entry(frontend).or_default().insert(slot);
        }
    }
    assert_eq!(slots.len(), 1000);
    assert!(slots.values().all(|all| *all == (0..3).collect()));
}

#[test]
fn flows_to_endpoints_that_are_gone_are_stale() {
    let spec = json!({"type": "NodePort", "clusterIP": "172.21.0.10",
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]});
    let mut slice = slice("dns", 5353, "172.20.1.2@here");
    slice.ports[0].protocol = Some("UDP".to_owned());
    let (mut planned, _) = plan(site(), &[service("dns", spec)], &[slice]);
    let dns = IpAddr::V4(Ipv4Addr::new(172, 21, 0, 10));
    let stale = |destination: &str, answering: &str| {
        let pair = |text: &str| {
            let (address, port) = text.split_once(':').unwrap();
            (address.parse::<IpAddr>().unwrap(), port.parse().unwrap())
        };
        let (address, port) = pair(answering);
        let flow = Flow { destination: pair(destination), answering: Backend { address, port } };
        planned.is_stale(&flow)
    };
    assert!(!stale("172.21.0.10:53", "172.20.1.2:5353"), "the endpoint that is there");
    assert!(stale("172.21.0.10:53", "172.20.9.9:5353"), "one that is gone");
    assert!(stale("172.21.0.10:53", "172.21.0.10:53"), "from before there was one");
    assert!(stale("172.21.0.77:53", "172.20.1.2:5353"), "a service that is gone");
    assert!(stale("10.98.1.11:30053", "172.20.9.9:5353"), "by the node's port");
    assert!(!stale("10.98.1.11:30053", "172.20.1.2:5353"));
    assert!(!stale("8.8.8.8:30053", "8.8.8.8:30053"), "not ours");
    assert!(!stale("8.8.8.8:53", "8.8.8.8:53"), "not ours");
    // Where this node answers names itself, nothing is translated.
    planned.set_site(Site { v4: Ranges { dns: Some(dns), ..site().v4 }, ..site() });
    accepted_by_nft(&planned.render_whole());
    let own = |answering| Flow { destination: (dns, 53), answering };
    assert!(!planned.is_stale(&own(Backend { address: dns, port: 53 })));
    let gone = IpAddr::V4(Ipv4Addr::new(172, 20, 9, 9));
    assert!(planned.is_stale(&own(Backend { address: gone, port: 5353 })));
}

#[test]
fn a_service_of_two_families_has_a_table_in_each() {
    let spec = json!({"type": "NodePort", "clusterIP": "172.21.0.10",
        "clusterIPs": ["172.21.0.10", "fd21::10"], "externalTrafficPolicy": "Local",
        "externalIPs": ["10.99.0.5", "fd99::5"], "ports": [{"port": 80, "nodePort": 30080}]});
    let mut six = slice("web", 8080, "");
    six.metadata.name = "web-6".to_owned();
    six.address_type = "IPv6".to_owned();
    six.endpoints = serde_json::from_value(json!([
        {"addresses": ["fd20:0:0:1::2"], "nodeName": "here"},
        {"addresses": ["fd20:0:0:2::2"], "nodeName": "there"}]))
    .unwrap();
    let four = slice("web", 8080, "172.20.1.2@here");
    check(
        &[service("web", spec.clone())],
        &[four.clone(), six.clone()],
        expect![[r#"
            10.99.0.5 tcp 80 -> 172.20.1.2:8080 local 172.20.1.2:8080
            172.21.0.10 tcp 80 -> 172.20.1.2:8080
            fd21::10 tcp 80 -> fd20:0:0:1::2:8080 fd20:0:0:2::2:8080
            fd99::5 tcp 80 -> fd20:0:0:1::2:8080 fd20:0:0:2::2:8080 local fd20:0:0:1::2:8080
            node tcp 30080 -> 172.20.1.2:8080 local 172.20.1.2:8080
            node6 tcp 30080 -> fd20:0:0:1::2:8080 fd20:0:0:2::2:8080 local fd20:0:0:1::2:8080"#]],
    );
    // Where the site has one family only, the other half is told of and does no harm.
    let (planned, skipped) = plan(site(), &[service("web", spec)], &[four, six]);
    assert!(planned.targets().all(|(frontend, _)| frontend.family() == Family::V4));
    assert_eq!(planned.targets().count(), 3);
    assert_eq!(skipped.len(), 1, "{skipped:?}");
}

/// What a kernel would hold, which refuses what `nft` would.
#[derive(Default)]
struct Kernel(BTreeMap<(Set, Key), Data>);

impl Kernel {
    fn apply(&mut self, change: &Change) {
        for Element { set, key, data } in &change.removed {
            assert_eq!(
                self.0.remove(&(*set, *key)),
                Some(*data),
                "{key:?} of {set:?} is not there"
            );
        }
        for Element { set, key, data } in &change.added {
            assert_eq!(self.0.insert((*set, *key), *data), None, "{key:?} of {set:?} is there");
        }
    }
}

/// What was told of a step of a history: a service or a slice, of one of a few names.
fn told() -> impl Strategy<Value = (bool, usize, Option<(usize, Vec<u8>)>)> {
    let object = (0..24_usize, prop::collection::vec(0..12_u8, 0..6));
    (any::<bool>(), 0..4_usize, prop::option::weighted(0.8, object))
}

/// One of some services, which claim frontends of each other.
fn some_service(name: usize, kind: usize) -> Service {
    let mut spec = json!({"clusterIP": format!("172.21.0.{}", 10 + name), "ports": [
        {"port": 80, "name": "a", "nodePort": if kind.is_multiple_of(2) { 0 } else { 30080 + kind % 3 }},
        {"port": 53, "name": "b", "protocol": "UDP"}]});
    if kind.is_multiple_of(3) {
        spec["externalIPs"] = json!(["10.99.0.5"]);
        spec["externalTrafficPolicy"] = json!("Local");
    }
    if kind.is_multiple_of(5) {
        spec["sessionAffinity"] = json!("ClientIP");
    }
    if kind.is_multiple_of(4) {
        spec["clusterIPs"] = json!([spec["clusterIP"], format!("fd21::{name}")]);
        spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8"]);
    }
    if kind == 23 {
        spec["clusterIP"] = json!("None");
    }
    let mut service = service(&format!("s{name}"), spec);
    let status = json!({"loadBalancer": {"ingress": [{"ip": "10.99.0.6"}]}});
    service.status = serde_json::from_value(status).unwrap();
    service
}

/// A slice of some service with some endpoints in some state.
fn some_slice(name: usize, kind: usize, endpoints: &[u8]) -> EndpointSlice {
    let text: Vec<String> = endpoints
        .iter()
        .map(|one| {
            let mark = ["", "", "!", "~"][usize::from(*one) % 4];
            let node = if one % 3 == 0 { "here" } else { "there" };
            format!("{mark}172.20.1.{one}@{node}")
        })
        .collect();
    let mut slice = slice(&format!("s{}", kind % 4), 8080, &text.join(" "));
    slice.metadata.name = format!("slice{name}");
    slice.ports = serde_json::from_value(json!([{"name": "a", "protocol": "TCP", "port": 8080},
        {"name": "b", "protocol": "UDP", "port": 5353}]))
    .unwrap();
    slice
}

/// Frontends and what becomes of them, whatever the slots.
fn unordered(planner: &Planner) -> BTreeMap<Frontend, String> {
    let sorted = |list: &[Backend]| list.iter().copied().collect::<BTreeSet<_>>();
    let text = |target: &Target| match target {
        Target::Balanced { choice, backends, local } => {
            format!("{choice:?} {:?} {:?}", sorted(backends), sorted(local))
        }
        other => format!("{other:?}"),
    };
    planner.targets().map(|(frontend, target)| (*frontend, text(target))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_history_ends_where_a_fresh_start_does(
        history in prop::collection::vec(prop::collection::vec(told(), 1..4), 1..12)
    ) {
        let mut planner = Planner::new(dual());
        let mut kernel = Kernel::default();
        let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
        for step in history {
            for (is_service, name, object) in step {
                if is_service {
                    let one = object.map(|(kind, _)| Arc::new(some_service(name, kind)));
                    planner.behind().set_service("default", &format!("s{name}"), one.clone());
                    services.insert(name, one);
                } else {
                    let one = object.map(|(kind, all)| Arc::new(some_slice(name, kind, &all)));
                    planner.behind().set_slice("default", &format!("slice{name}"), one.clone());
                    slices.insert(name, one);
                }
            }
            kernel.apply(&planner.change());
            prop_assert_eq!(planner.change(), Change::default());
            let held: BTreeSet<Element> = planner.elements().into_iter().collect();
            let there = kernel.0.iter().map(|((set, key), data)| Element {
                set: *set, key: *key, data: *data,
            });
            prop_assert_eq!(&held, &there.collect());
            let mut fresh = Planner::new(dual());
            fresh.behind().replace_services(services.values().flatten().cloned());
            fresh.behind().replace_slices(slices.values().flatten().cloned());
            fresh.change();
            prop_assert_eq!(unordered(&planner), unordered(&fresh));
            prop_assert_eq!(planner.health(), fresh.health());
            let rest = |planner: &Planner| -> BTreeSet<Element> {
                let elements = planner.elements().into_iter();
                elements.filter(|one| !matches!(one.key, Key::Slot(..))).collect()
            };
            prop_assert_eq!(rest(&planner), rest(&fresh));
            // Every slot that a chain may choose leads somewhere.
            for (frontend, target) in planner.targets() {
                if let Target::Balanced { choice, backends, local } = target {
                    let (all, here) = match choice.reach {
                        Reach::All(all) => (all, 0),
                        Reach::Local { local, all } => (all, local),
                    };
                    prop_assert_eq!((all as usize, here as usize), (backends.len(), local.len()));
                    let by_address = matches!(frontend, Frontend::Address(..));
                    let set = if by_address { Set::Services } else { Set::NodePorts };
                    let there = kernel.0.contains_key(&(set, Key::Frontend(*frontend)));
                    prop_assert!(there, "{:?} has no verdict", frontend);
                }
            }
        }
    }
}
