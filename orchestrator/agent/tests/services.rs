//! The table of services at work: pods, the node itself and outsiders reach what they should, and
//! learn at once what they cannot.
//!
//! Here is a node with three pods; `far` is another node's network behind the uplink, where one
//! more pod lives.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: clippy's leave for tests does not reach them"
)]

#[path = "../../../routing/kernel/tests/alone/mod.rs"]
mod alone;
#[path = "../../../routing/router/tests/support/api.rs"]
mod api;
#[path = "services/policy.rs"]
mod policy;
#[path = "services/traffic.rs"]
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::node::service::{Planner, Ranges, Site, TABLE};
use agent::services::{self, DnsConfig};
use agent::tables::{TableError, Tables};
use kernel::conntrack;
use kernel::netns::Namespace;
use objects::network::{EndpointSlice, Service};
use serde_json::{Value, json};
use tokio::sync::watch;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio_util::sync::{CancellationToken, DropGuard};

use alone::{alone, await_until, namespace, shell, shell_in};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 11);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 12);
const PROGRAMS: [&str; 3] = ["ip", "nsenter", "nft"];

/// The node's pods, and one on the far node.
const PODS: [(&str, Ipv4Addr); 4] = [
    ("client", Ipv4Addr::new(172, 20, 11, 2)),
    ("red", Ipv4Addr::new(172, 20, 11, 3)),
    ("blue", Ipv4Addr::new(172, 20, 11, 4)),
    ("green", Ipv4Addr::new(172, 20, 12, 2)),
];

struct Lab {
    node: Namespace,
    far: Namespace,
    pods: BTreeMap<&'static str, Namespace>,
}

impl Lab {
    fn build() -> Self {
        let (node, far) = (namespace("node"), namespace("far"));
        shell("ip link add eth0 netns node type veth peer name eth0 netns far");
        let mut pods = BTreeMap::new();
        for (name, address) in [("node", NODE), ("far", FAR)] {
            shell_in(
                name,
                &format!(
                    "ip addr add {address}/24 dev eth0; ip link set eth0 up; echo 1 >/proc/sys/net/ipv4/ip_forward"
                ),
            );
            shell_in(name, &format!("ip route add 172.21.0.0/24 dev lo src {address}"));
        }
        shell_in("node", &format!("ip route add 172.20.12.0/24 via {FAR}"));
        shell_in("far", &format!("ip route add 172.20.11.0/24 via {NODE}"));
        for (pod, address) in PODS {
            let (host, source) = if pod == "green" { ("far", FAR) } else { ("node", NODE) };
            pods.insert(pod, namespace(pod));
            shell(&format!("ip link add {pod} netns {host} type veth peer name eth0 netns {pod}"));
            shell_in(
                host,
                &format!(
                    "ip link set {pod} up; ip addr add 169.254.1.1/32 dev {pod} scope link; ip route add {address} dev {pod} src {source}"
                ),
            );
            shell_in(
                pod,
                &format!(
                    "ip link set eth0 up; ip addr add {address}/32 dev eth0; ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 onlink dev eth0"
                ),
            );
            serve(&pods[pod], pod);
        }
        Self { node, far, pods }
    }

    /// Loads the table for these services into the node.
    fn load(&self, services: &[Service], slices: &[EndpointSlice]) -> Planner {
        let mut planner = Planner::new(site_of_the_table());
        tell(&mut planner, services, slices);
        self.load_whole(&mut planner);
        planner
    }

    /// Loads what is planned into the node, all of it.
    fn load_whole(&self, planner: &mut Planner) {
        let script = planner.render_whole();
        let apply = || run(async || kernel::nft::apply(&script).await.unwrap());
        self.node.run(apply).unwrap();
    }

    /// Makes the node serve these instead of those before, element by element.
    fn change(&self, planner: &mut Planner, services: &[Service], slices: &[EndpointSlice]) {
        tell(planner, services, slices);
        let change = planner.change();
        let apply = || run(async || Tables::default().change(&change).await.unwrap());
        self.node.run(apply).unwrap();
    }

    /// Who answered, of so many connections from a namespace, and as whom the client was seen.
    fn asks(
        &self,
        from: &Namespace,
        to: (Ipv4Addr, u16),
        times: usize,
    ) -> BTreeSet<(String, IpAddr)> {
        let all = (0..times).map(|_| ask(from, to).unwrap_or_else(|err| panic!("{to:?}: {err}")));
        all.collect()
    }
}

fn run<T>(work: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work())
}

fn tell(planner: &mut Planner, services: &[Service], slices: &[EndpointSlice]) {
    planner.behind().replace_services(services.iter().cloned().map(Arc::new));
    planner.behind().replace_slices(slices.iter().cloned().map(Arc::new));
}

fn site_of_the_table() -> Site {
    let ranges = |pods: &str, services: &str| Ranges {
        pods: pods.parse().unwrap(),
        services: services.parse().unwrap(),
        dns: None,
    };
    Site {
        node: "node".to_owned(),
        zone: None,
        v4: ranges("172.20.0.0/16", "172.21.0.0/24"),
        v6: None,
    }
}

/// A pod that tells its name and the client's address on port 8080.
fn serve(pod: &Namespace, name: &'static str) {
    let listener = pod.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            drop(write!(stream, "{name} {peer}"));
        }
    });
}

fn ask(from: &Namespace, (address, port): (Ipv4Addr, u16)) -> Result<(String, IpAddr), ErrorKind> {
    let target = SocketAddr::from((address, port));
    let stream = from.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(800)));
    let mut stream = stream.unwrap().map_err(|err| err.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|err| err.kind())?;
    let (name, peer) = text.split_once(' ').ok_or(ErrorKind::InvalidData)?;
    Ok((name.to_owned(), peer.parse().unwrap()))
}

fn service(name: &str, spec: Value) -> Service {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn slice(service: &str, pods: &[&str]) -> EndpointSlice {
    let endpoint = |pod: &&str| {
        let address = PODS.iter().find(|(name, _)| name == pod).unwrap().1;
        let node = if *pod == "green" { "far" } else { "node" };
        json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
    };
    let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"protocol": "TCP", "port": 8080}]}))
    .unwrap()
}

fn names(answers: &BTreeSet<(String, IpAddr)>) -> Vec<&str> {
    answers.iter().map(|(name, _)| name.as_str()).collect()
}

fn seen(answers: &BTreeSet<(String, IpAddr)>) -> BTreeSet<IpAddr> {
    answers.iter().map(|(_, address)| *address).collect()
}

const WEB: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 21, 0, 10), 80);

#[test]
fn pods_the_node_and_outsiders_reach_every_endpoint() {
    alone("pods_the_node_and_outsiders_reach_every_endpoint", &PROGRAMS, || {
        let lab = Lab::build();
        let spec = json!({"type": "NodePort", "clusterIP": "172.21.0.10", "ports": [{"port": 80, "nodePort": 30080}]});
        lab.load(&[service("web", spec)], &[slice("web", &["red", "blue", "green"])]);

        // A pod is seen as itself, here and on the other node.
        let answers = lab.asks(&lab.pods["client"], WEB, 40);
        assert_eq!(names(&answers), ["blue", "green", "red"]);
        assert_eq!(seen(&answers), [IpAddr::V4(PODS[0].1)].into());
        // The node itself, which has no default route.
        let answers = lab.asks(&lab.node, WEB, 40);
        assert_eq!(names(&answers), ["blue", "green", "red"]);
        assert_eq!(seen(&answers), [IpAddr::V4(NODE)].into());
        // An outsider by the node's port: answers must come back by this node.
        let answers = lab.asks(&lab.far, (NODE, 30080), 40);
        assert_eq!(names(&answers), ["blue", "green", "red"]);
        assert_eq!(seen(&answers), [IpAddr::V4(NODE)].into());
        // A pod and the node by the node's port.
        assert_eq!(lab.asks(&lab.pods["client"], (NODE, 30080), 40).len(), 3);
        assert_eq!(lab.asks(&lab.node, (NODE, 30080), 40).len(), 3);
    });
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    alone("a_pod_reaches_itself_by_its_service", &PROGRAMS, || {
        let lab = Lab::build();
        let web = service("web", json!({"clusterIP": "172.21.0.10", "ports": [{"port": 80}]}));
        lab.load(&[web], &[slice("web", &["red"])]);
        let answers = lab.asks(&lab.pods["red"], WEB, 5);
        assert_eq!(names(&answers), ["red"]);
        assert_eq!(
            seen(&answers),
            [IpAddr::V4(NODE)].into(),
            "its own address would be answered in vain"
        );
    });
}

#[test]
fn what_is_not_served_is_refused_or_dropped() {
    alone("what_is_not_served_is_refused_or_dropped", &PROGRAMS, || {
        let lab = Lab::build();
        let empty = service("empty", json!({"clusterIP": "172.21.0.10", "ports": [{"port": 80}]}));
        lab.load(&[empty], &[]);
        for from in [&lab.pods["client"], &lab.node] {
            assert_eq!(ask(from, WEB), Err(ErrorKind::ConnectionRefused), "no endpoints");
            assert_eq!(ask(from, (WEB.0, 81)), Err(ErrorKind::ConnectionRefused), "no such port");
            let nobody = (Ipv4Addr::new(172, 21, 0, 200), 80);
            assert_eq!(ask(from, nobody), Err(ErrorKind::TimedOut), "no such service");
        }
    });
}

/// What the maps and sets of the node's table hold; chains that nobody uses are no difference.
fn held(lab: &Lab) -> Vec<String> {
    let list = || {
        let arguments = ["-n", "list", "table", "ip", TABLE];
        let output = std::process::Command::new("nft").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = lab.node.run(list).unwrap();
    let sets = text.split("\n\t}").filter(|part| part.contains("map ") || part.contains("set "));
    // The kernel lists elements in no order.
    let sorted = |part: &str| {
        let (head, elements) = part.split_once("elements = {").unwrap_or((part, ""));
        let mut elements: Vec<String> = elements
            .split([',', '}'])
            .map(|one| one.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        elements.sort();
        format!("{} {elements:?}", head.trim())
    };
    sets.filter(|part| part.contains("type ")).map(sorted).collect()
}

#[test]
fn changes_element_by_element_end_where_a_whole_load_does() {
    alone("changes_element_by_element_end_where_a_whole_load_does", &PROGRAMS, || {
        let lab = Lab::build();
        let web = |more: Value| {
            let mut spec = json!({"clusterIP": "172.21.0.10", "ports": [{"port": 80}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            service("web", spec)
        };
        let db = || service("db", json!({"clusterIP": "172.21.0.11", "ports": [{"port": 80}]}));
        let node_port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
        let local = json!({"type": "NodePort", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}]});
        let steps: [(Vec<Service>, Vec<EndpointSlice>); 8] = [
            (vec![web(json!({}))], vec![slice("web", &["red"])]),
            (vec![web(json!({})), db()], vec![slice("web", &["blue"]), slice("db", &["red"])]),
            (vec![web(json!({})), db()], vec![slice("web", &["red", "blue", "green"])]),
            (vec![web(node_port)], vec![slice("web", &["red", "blue", "green"])]),
            (vec![web(local)], vec![slice("web", &["green"])]),
            (vec![web(json!({"sessionAffinity": "ClientIP"}))], vec![slice("web", &["red"])]),
            (vec![web(json!({}))], vec![slice("web", &["red"])]),
            (vec![], vec![]),
        ];
        let mut planner = lab.load(&steps[0].0, &steps[0].1);
        for (services, slices) in steps.iter().chain(steps.iter().rev()) {
            lab.change(&mut planner, services, slices);
            let by_elements = held(&lab);
            assert!(by_elements.len() >= 7, "{by_elements:?}");
            lab.load_whole(&mut planner);
            assert_eq!(by_elements, held(&lab));
            // Over the tables of an earlier run, which hold something else.
            lab.load(&steps[3].0, &steps[3].1);
            let load = || run(async || Tables::default().load(&mut planner).await.unwrap());
            lab.node.run(load).unwrap();
            assert_eq!(by_elements, held(&lab));
        }
        let mut planner = lab.load(&steps[2].0, &steps[2].1);
        lab.change(&mut planner, &steps[1].0, &steps[1].1);
        let answers = lab.asks(&lab.pods["client"], WEB, 10);
        assert_eq!(names(&answers), ["blue"]);

        // The slots of a run are known to the next one.
        let slots = lab.node.run(|| Tables::default().slots(planner.site())).unwrap();
        assert_eq!(slots.len(), 2, "{slots:?}");
        for (frontend, slot, backend) in slots {
            let there = planner.target(&frontend).unwrap().backends().nth(slot as usize);
            assert_eq!(there, Some(&backend));
        }

        // Somebody else's hand in the tables: the change is refused whole, and a load mends it.
        let key = "172.21.0.10 . tcp . 80 . 0";
        shell_in("node", &format!("nft delete element ip {TABLE} endpoints \\{{ {key} \\}}"));
        tell(&mut planner, &steps[0].0, &steps[0].1);
        let change = planner.change();
        let outcome = lab.node.run(|| run(async || Tables::default().change(&change).await));
        assert!(matches!(outcome.unwrap(), Err(TableError::Elements(_))));
        lab.node.run(|| run(async || Tables::default().load(&mut planner).await.unwrap())).unwrap();
        assert_eq!(names(&lab.asks(&lab.pods["client"], WEB, 10)), ["red"]);
        let by_elements = held(&lab);
        lab.load_whole(&mut planner);
        assert_eq!(by_elements, held(&lab));
    });
}

/// A pod that tells its name to everyone who sends a datagram to port 5353.
fn serve_datagrams(pod: &Namespace, name: &'static str) {
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:5353")).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(name.as_bytes(), peer));
        }
    });
}

/// What the API says of a name server's service with one endpoint.
fn dns(items: &api::Items, pod: &str) {
    let mut endpoints = serde_json::to_value(slice("dns", &[pod])).unwrap();
    endpoints["ports"] = json!([{"protocol": "UDP", "port": 5353}]);
    items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![endpoints]);
    let ports = json!([{"port": 53, "protocol": "UDP"}]);
    let service = service("dns", json!({"clusterIP": "172.21.0.10", "ports": ports}));
    items.set("/api/v1/services", vec![serde_json::to_value(service).unwrap()]);
}

/// What the API says of the site: its ranges, name servers for foreign names, a Ready node.
fn site(items: &api::Items, upstream: Option<SocketAddr>) {
    let networks = json!({"pods": "172.20.0.0/16", "services": "172.21.0.0/24"}).to_string();
    let upstreams = json!(upstream.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string();
    let data = json!({"networks": networks, "upstreamNameservers": upstreams});
    let site =
        json!({"metadata": {"name": "muster-site", "namespace": "kube-system"}, "data": data});
    items.set("/api/v1/namespaces/kube-system/configmaps", vec![site]);
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    items.set("/api/v1/nodes", vec![json!({"metadata": {"name": "node"}, "status": ready})]);
}

/// Runs services and names on the node until the guard goes.
fn run_services(lab: &Lab, items: &api::Items, listen: Option<SocketAddr>) -> DropGuard {
    run_guarded_services(lab, items, listen, agent::Gate::default(), agent::Served::default())
}

/// The same, with a gate before the node's new pods, and somebody who waits for the table.
fn run_guarded_services(
    lab: &Lab,
    items: &api::Items,
    listen: Option<SocketAddr>,
    gate: agent::Gate,
    served: agent::Served,
) -> DropGuard {
    let server = api::serve(&lab.node, items);
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    std::thread::spawn(move || {
        let node = Namespace::open(&alone::path("node")).unwrap();
        let client = runtime::ClientConfig { server, ..Default::default() };
        let mut dns = DnsConfig::new(watch::channel(Vec::new()).0);
        dns.listen = listen;
        dns.resolv_conf = "/nonexistent".into();
        let node_name = "node".to_owned();
        let config =
            services::Config { client, node: node_name, dns, services: None, gate, served };
        node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(services::run(stop, config)).unwrap();
        })
    });
    guard
}

#[test]
fn a_node_is_held_until_its_services_answer() {
    alone("a_node_is_held_until_its_services_answer", &PROGRAMS, || {
        let lab = Lab::build();
        let look = || lab.node.run(agent::Served::look).unwrap();
        let items = api::Items::default();
        let web = service("web", json!({"clusterIP": WEB.0, "ports": [{"port": 80}]}));
        items.set("/api/v1/services", vec![serde_json::to_value(web).unwrap()]);
        let red = serde_json::to_value(slice("web", &["red"])).unwrap();
        items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![red]);
        site(&items, None);
        let served = look();
        let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        assert!(served.problem().is_some(), "there is no table");
        let gate = agent::Gate::default();
        let stop = run_guarded_services(&lab, &items, listen, gate, served.clone());
        await_until("the table", Duration::from_secs(20), || served.problem().map_or(Ok(()), Err));
        // Whoever hears of it comes at once.
        assert_eq!(ask(&lab.pods["client"], WEB).unwrap().0, "red");
        drop(stop);
        // The next run of the agent finds the table at work.
        assert_eq!(look().problem(), None);
    });
}

#[test]
fn a_client_that_goes_on_sending_is_moved_to_the_new_endpoint() {
    alone("a_client_that_goes_on_sending_is_moved_to_the_new_endpoint", &PROGRAMS, || {
        let lab = Lab::build();
        for pod in ["red", "blue"] {
            serve_datagrams(&lab.pods[pod], pod);
        }
        let items = api::Items::default();
        site(&items, None);
        dns(&items, "red");
        let _stop = run_services(&lab, &items, Some(SocketAddr::from(([127, 0, 0, 1], 0))));

        let client = lab.pods["client"].run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let answers = |wanted: &str| {
            await_until(&format!("an answer of {wanted}"), Duration::from_secs(20), || {
                let mut buffer = [0; 16];
                client.send_to(b"who?", (WEB.0, 53)).map_err(|err| err.to_string())?;
                let (length, _) = client.recv_from(&mut buffer).map_err(|err| err.to_string())?;
                let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if name == wanted { Ok(()) } else { Err(name) }
            })
        };
        answers("red");
        dns(&items, "blue");
        answers("blue");
    });
}

/// Where the node answers as cluster DNS.
fn dns_address() -> IpAddr {
    IpAddr::from([172, 21, 0, 10])
}

/// How many questions the node's kernel keeps as connections.
fn questions(lab: &Lab) -> usize {
    let flows = lab.node.run(|| conntrack::flows(conntrack::Family::V4)).unwrap().unwrap();
    flows.iter().filter(|flow| flow.destination == (dns_address(), 53)).count()
}

/// What cluster DNS answers a client in a namespace, by UDP, and by TCP where that was cut off.
fn look_up(from: &Namespace, kind: RecordType, name: &str) -> Result<Vec<String>, String> {
    let server = SocketAddr::from((dns_address(), 53));
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.parse().unwrap(), kind));
    let bytes = question.to_vec().unwrap();
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = vec![0; 65_536];
    socket.send_to(&bytes, server).map_err(|err| err.to_string())?;
    let (mut len, _) = socket.recv_from(&mut buffer).map_err(|err| err.to_string())?;
    let mut reply = Message::from_vec(&buffer[..len]).map_err(|err| err.to_string())?;
    if reply.metadata.truncation {
        let mut stream = from.run(|| TcpStream::connect(server)).unwrap().unwrap();
        stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut head = [0; 2];
        stream.read_exact(&mut head).unwrap();
        len = usize::from(u16::from_be_bytes(head));
        stream.read_exact(&mut buffer[..len]).unwrap();
        reply = Message::from_vec(&buffer[..len]).unwrap();
    }
    assert_eq!(reply.metadata.id, question.metadata.id);
    assert_eq!(reply.queries, question.queries);
    match reply.metadata.response_code {
        ResponseCode::NoError => {
            let mut data: Vec<String> =
                reply.answers.iter().map(|record| record.data.to_string()).collect();
            data.sort();
            Ok(data)
        }
        code => Err(format!("{code:?}")),
    }
}

/// A name server in a namespace that knows `example.org` alone, and counts who asks.
fn serve_names(inside: &Namespace, address: SocketAddr) -> Arc<AtomicUsize> {
    let socket = inside.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let question = Message::from_vec(&buffer[..len]).unwrap();
            let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
            reply.queries.clone_from(&question.queries);
            let name = question.queries[0].name().clone();
            if name.to_string() == "example.org." {
                let data = RData::A(A::new(192, 0, 2, 7));
                reply.add_answer(Record::from_rdata(name, 60, data));
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&reply.to_vec().unwrap(), peer).unwrap();
        }
    });
    asked
}

/// Services of each kind that has names.
fn named_services(items: &api::Items) {
    let many: Vec<String> = (1..=200).map(|host| format!("172.20.12.{host}")).collect();
    let mut crowd = serde_json::to_value(slice("crowd", &[])).unwrap();
    crowd["endpoints"] = many.iter().map(|ip| json!({"addresses": [ip]})).collect();
    items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![crowd]);
    let services = [
        service("web", json!({"clusterIP": "172.21.0.20", "ports": [{"port": 80}]})),
        service("crowd", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
        service("site", json!({"type": "ExternalName", "externalName": "example.org"})),
        service(
            "kube-dns",
            json!({"clusterIP": "172.21.0.10", "ports": [{"port": 53, "protocol": "UDP"}]}),
        ),
    ];
    let services = services.iter().map(|one| serde_json::to_value(one).unwrap()).collect();
    items.set("/api/v1/services", services);
}

#[test]
fn pods_look_names_up_at_their_node_even_while_the_api_is_gone() {
    alone("pods_look_names_up_at_their_node_even_while_the_api_is_gone", &PROGRAMS, || {
        let lab = Lab::build();
        let upstream = SocketAddr::from((FAR, 5300));
        let asked = serve_names(&lab.far, upstream);
        let items = api::Items::default();
        site(&items, Some(upstream));
        named_services(&items);
        let _stop = run_services(&lab, &items, None);

        let client = &lab.pods["client"];
        await_until("the first answer", Duration::from_secs(20), || {
            look_up(client, RecordType::A, "web.default.svc.cluster.local.").map(drop)
        });
        let check = |from: &Namespace, kind, name: &str, wanted: Result<&[&str], &str>| {
            let found = look_up(from, kind, name);
            let wanted = wanted
                .map(|data| data.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
                .map_err(str::to_owned);
            assert_eq!(found, wanted, "{kind} {name}");
        };
        // The table of services leaves the name server alone, though its service has no endpoint.
        await_until("the table", Duration::from_secs(20), || {
            let listed = lab.node.run(|| {
                let list = ["list", "table", "ip", "muster-services"];
                std::process::Command::new("nft").args(list).output().unwrap().status.success()
            });
            listed.unwrap().then_some(()).ok_or_else(|| "no table".to_owned())
        });
        for from in [client, &lab.node] {
            check(from, RecordType::A, "web.default.svc.cluster.local.", Ok(&["172.21.0.20"]));
        }
        check(client, RecordType::AAAA, "web.default.svc.cluster.local.", Ok(&[]));
        check(client, RecordType::A, "nobody.default.svc.cluster.local.", Err("NXDomain"));
        check(client, RecordType::A, "example.org.", Ok(&["192.0.2.7"]));
        check(client, RecordType::A, "EXAMPLE.org.", Ok(&["192.0.2.7"]));
        assert_eq!(asked.load(Ordering::SeqCst), 1, "an answer is kept");
        check(
            client,
            RecordType::A,
            "site.default.svc.cluster.local.",
            Ok(&["192.0.2.7", "example.org."]),
        );
        check(client, RecordType::A, "nobody.example.", Err("NXDomain"));
        let all = look_up(client, RecordType::A, "crowd.default.svc.cluster.local.").unwrap();
        assert_eq!(all.len(), 200, "what does not fit a datagram comes by TCP");

        // Questions are no connections to keep, once everything is loaded.
        await_until("questions leave no flows", Duration::from_secs(20), || {
            let before = questions(&lab);
            look_up(client, RecordType::A, "web.default.svc.cluster.local.")?;
            look_up(&lab.node, RecordType::A, "web.default.svc.cluster.local.")?;
            let after = questions(&lab);
            if after <= before { Ok(()) } else { Err(format!("{after} flows, were {before}")) }
        });

        items.close();
        check(client, RecordType::A, "web.default.svc.cluster.local.", Ok(&["172.21.0.20"]));
        check(
            client,
            RecordType::PTR,
            "20.0.21.172.in-addr.arpa.",
            Ok(&["web.default.svc.cluster.local."]),
        );
    });
}
