//! Who may use a service, whom it stays with, and what outsiders are told of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use ::node::service::{Planner, Ranges, Site, TABLE};
use objects::network::Service;
use serde_json::{Value, json};

use super::alone::{alone, await_until, shell_in};
use super::{
    FAR, Lab, NODE, PODS, PROGRAMS, WEB, api, ask, names, run_services, seen, service, site,
    site_of_the_table, slice, tell,
};

#[test]
fn affinity_keeps_a_client_at_one_endpoint() {
    alone("traffic::affinity_keeps_a_client_at_one_endpoint", &PROGRAMS, || {
        let lab = Lab::build();
        let sticky = |seconds: u32| {
            let config = json!({"clientIP": {"timeoutSeconds": seconds}});
            [service(
                "web",
                json!({"clusterIP": WEB.0, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": config, "ports": [{"port": 80}]}),
            )]
        };
        let client = &lab.pods["client"];
        let all = ["red", "blue", "green"];
        let mut planner = lab.load(&sticky(600), &[slice("web", &all)]);
        let first = lab.asks(client, WEB, 20);
        assert_eq!(first.len(), 1, "{first:?}");
        let chosen = names(&first)[0].to_owned();

        // One of the others goes; whoever was chosen keeps the client.
        let other = all.iter().find(|name| **name != chosen).unwrap();
        let rest: Vec<&str> = all.iter().copied().filter(|name| name != other).collect();
        lab.change(&mut planner, &sticky(600), &[slice("web", &rest)]);
        let after = lab.asks(client, WEB, 20);
        assert_eq!(after.len(), 1, "{after:?}");
        lab.change(&mut planner, &sticky(600), &[slice("web", &all)]);
        assert_eq!(lab.asks(client, WEB, 20), after, "a newcomer changes nothing");

        // The chosen one goes: the client has another at once, and stays there.
        let gone = names(&after)[0].to_owned();
        let rest: Vec<&str> = all.iter().copied().filter(|name| *name != gone).collect();
        lab.change(&mut planner, &sticky(600), &[slice("web", &rest)]);
        let next = lab.asks(client, WEB, 20);
        assert_eq!(next.len(), 1, "{next:?}");
        assert_ne!(names(&next), [gone]);

        // What is remembered is forgotten after the service's time.
        lab.change(&mut planner, &sticky(1), &[slice("web", &all)]);
        lab.asks(client, WEB, 1);
        await_until("the client is forgotten", Duration::from_secs(20), || {
            let list = || {
                std::process::Command::new("nft")
                    .args(["list", "map", "ip", TABLE, "sticky"])
                    .output()
            };
            let text = lab.node.run(list).unwrap().unwrap();
            let text = String::from_utf8_lossy(&text.stdout).into_owned();
            assert!(text.contains("map sticky"), "{text}");
            if text.contains("expires") { Err(text) } else { Ok(()) }
        });
    });
}

#[test]
fn insiders_use_every_endpoint_where_outsiders_meet_local_ones() {
    alone(
        "traffic::insiders_use_every_endpoint_where_outsiders_meet_local_ones",
        &PROGRAMS,
        || {
            let lab = Lab::build();
            let spec = json!({"type": "NodePort", "clusterIP": WEB.0, "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}]});
            let port = (NODE, 30080);
            for endpoints in [["green"].as_slice(), &["red", "green"]] {
                lab.load(&[service("web", spec.clone())], &[slice("web", endpoints)]);
                let answers = lab.asks(&lab.pods["client"], port, 30);
                assert_eq!(names(&answers).len(), endpoints.len(), "{answers:?}");
                assert_eq!(seen(&answers), [IpAddr::V4(PODS[0].1)].into());
                assert_eq!(lab.asks(&lab.node, port, 30).len(), endpoints.len());
                let far = ask(&lab.far, port).map(|(name, _)| name);
                let expected = if endpoints.len() == 1 {
                    Err(ErrorKind::TimedOut)
                } else {
                    Ok("red".to_owned())
                };
                assert_eq!(far, expected);
            }
        },
    );
}

/// A balancer's service of the node, and its address.
fn balancer(more: Value) -> (Service, Ipv4Addr) {
    let address = Ipv4Addr::new(10, 99, 0, 5);
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": WEB.0, "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut service = service("web", spec);
    let status = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
    service.status = serde_json::from_value(status).unwrap();
    (service, address)
}

#[test]
fn balancers_answer_clients_from_their_source_ranges_alone() {
    alone("traffic::balancers_answer_clients_from_their_source_ranges_alone", &PROGRAMS, || {
        let lab = Lab::build();
        let ranges = |ranges: Value| balancer(json!({"loadBalancerSourceRanges": ranges}));
        let (open, address) = ranges(json!([]));
        shell_in("far", &format!("ip route add {address} via {NODE}"));
        let slices = [slice("web", &["red"])];
        let mut planner = lab.load(std::slice::from_ref(&open), &slices);
        assert!(ask(&lab.far, (address, 80)).is_ok());
        for (service, far, client) in [
            (ranges(json!([format!("{FAR}/32"), "10.0.0.0/9"])).0, true, false),
            (ranges(json!(["172.20.0.0/16"])).0, false, true),
            (ranges(json!(["172.20.0.0/17", "10.98.0.0/16"])).0, true, true),
            (open, true, true),
        ] {
            lab.change(&mut planner, &[service], &slices);
            let outcome = |allowed: bool| if allowed { Ok(()) } else { Err(ErrorKind::TimedOut) };
            assert_eq!(ask(&lab.far, (address, 80)).map(drop), outcome(far));
            let by_pod = ask(&lab.pods["client"], (address, 80)).map(drop);
            assert_eq!(by_pod, outcome(client));
            assert!(ask(&lab.pods["client"], WEB).is_ok(), "the cluster address is not guarded");
        }
    });
}

/// The status line and body of an answer.
fn fetch(from: &kernel::netns::Namespace, to: SocketAddr) -> Result<String, String> {
    let text = |err: std::io::Error| err.to_string();
    let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
    let mut stream = stream.unwrap().map_err(text)?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    Ok(answer)
}

#[test]
fn balancers_learn_whether_a_node_has_endpoints() {
    alone("traffic::balancers_learn_whether_a_node_has_endpoints", &PROGRAMS, || {
        let lab = Lab::build();
        let items = api::Items::default();
        site(&items, None);
        let mut places = vec![SocketAddr::from((NODE, 31000))];
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            second_family(&lab);
            places.push("[fd98::11]:31000".parse().unwrap());
        }
        let (service, _) =
            balancer(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}));
        items.set("/api/v1/services", vec![serde_json::to_value(service).unwrap()]);
        let _stop = run_services(&lab, &items, Some(SocketAddr::from(([127, 0, 0, 1], 0))));
        for (endpoints, code, count) in [
            (["red", "blue", "green"].as_slice(), 200, 2),
            (&["green"], 503, 0),
            (&["blue"], 200, 1),
        ] {
            let endpoints = serde_json::to_value(slice("web", endpoints)).unwrap();
            items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![endpoints]);
            for place in &places {
                await_until(&format!("answer {code} at {place}"), Duration::from_secs(20), || {
                    let answer = fetch(&lab.far, *place)?;
                    let fits = answer.starts_with(&format!("HTTP/1.1 {code} "))
                        && answer.contains(&format!("\"localEndpoints\":{count}"))
                        && answer.contains("\"name\":\"web\"");
                    if fits { Ok(()) } else { Err(answer) }
                });
            }
        }
        items.set("/api/v1/services", vec![]);
        await_until("nobody answers", Duration::from_secs(20), || {
            match fetch(&lab.far, SocketAddr::from((NODE, 31000))) {
                Err(_) => Ok(()),
                Ok(answer) => Err(answer),
            }
        });
    });
}

/// Gives the node, the far node and two pods addresses of the other family, and `red` a server.
fn second_family(lab: &Lab) {
    for (name, address) in [("node", "fd98::11"), ("far", "fd98::12")] {
        shell_in(
            name,
            &format!(
                "ip addr add {address}/64 dev eth0 nodad; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
            ),
        );
    }
    // By the loopback device the route would be one that rejects.
    shell_in("node", "ip route add fd21::/112 dev eth0");
    for (pod, address) in [("client", "fd20::2"), ("red", "fd20::3")] {
        shell_in(
            "node",
            &format!("ip addr add fe80::1/64 dev {pod} nodad; ip route add {address} dev {pod}"),
        );
        shell_in(
            pod,
            &format!(
                "ip addr add {address}/128 dev eth0 nodad; ip route add default via fe80::1 dev eth0"
            ),
        );
    }
    let listener = lab.pods["red"].run(|| TcpListener::bind("[::]:8086")).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            drop(write!(stream, "red {peer}"));
        }
    });
}

#[test]
fn a_service_of_two_families_is_reached_by_both() {
    alone("traffic::a_service_of_two_families_is_reached_by_both", &PROGRAMS, || {
        if !std::path::Path::new("/proc/net/if_inet6").exists() {
            return;
        }
        let lab = Lab::build();
        second_family(&lab);
        let ranges = |pods: &str, services: &str| Ranges {
            pods: pods.parse().unwrap(),
            services: services.parse().unwrap(),
            dns: None,
        };
        let dual = Site { v6: Some(ranges("fd20::/64", "fd21::/112")), ..site_of_the_table() };
        let spec = json!({"type": "NodePort", "clusterIP": WEB.0, "clusterIPs": [WEB.0, "fd21::10"],
            "ports": [{"port": 80, "nodePort": 30080}]});
        let service = [service("web", spec)];
        let four = slice("web", &["red"]);
        let mut six = slice("web", &[]);
        six.metadata.name = "web-6".to_owned();
        six.address_type = "IPv6".to_owned();
        let endpoint = json!([{"addresses": ["fd20::3"], "nodeName": "node"}]);
        six.endpoints = serde_json::from_value(endpoint).unwrap();
        six.ports[0].port = Some(8086);
        let mut planner = Planner::new(dual);
        tell(&mut planner, &service, std::slice::from_ref(&four));
        lab.load_whole(&mut planner);
        let (client, cluster) = (&lab.pods["client"], "[fd21::10]:80");
        for from in [client, &lab.node] {
            assert_eq!(ask_any(from, cluster), Err(ErrorKind::ConnectionRefused));
        }
        lab.change(&mut planner, &service, &[four.clone(), six]);
        assert!(ask(client, WEB).is_ok());
        assert_eq!(ask_any(client, cluster), Ok("red fd20::2".to_owned()));
        assert_eq!(ask_any(&lab.node, cluster).map(|text| text.starts_with("red ")), Ok(true));
        let node_port = ask_any(&lab.far, "[fd98::11]:30080");
        assert_eq!(node_port.map(|text| text.starts_with("red ")), Ok(true));
        // A pod reaches itself, as somebody else.
        let itself = ask_any(&lab.pods["red"], cluster).unwrap();
        assert!(itself.starts_with("red ") && itself != "red fd20::3", "{itself}");
        assert_eq!(ask_any(client, "[fd21::77]:80"), Err(ErrorKind::TimedOut), "no such service");
        lab.change(&mut planner, &service, &[four]);
        assert_eq!(ask_any(client, cluster), Err(ErrorKind::ConnectionRefused));
        assert!(ask(client, WEB).is_ok());
    });
}

/// What an address of any family says.
fn ask_any(from: &kernel::netns::Namespace, target: &str) -> Result<String, ErrorKind> {
    let target: SocketAddr = target.parse().unwrap();
    let stream = from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)));
    let mut stream = stream.unwrap().map_err(|err| err.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|err| err.kind())?;
    Ok(text)
}
