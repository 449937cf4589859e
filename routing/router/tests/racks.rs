//! Two racks of namespaces: real BIRDs as nodes and ToR routers, the real router, real pods.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests: clippy's leave for tests does not reach them"
)]

mod support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::plan::Plan;
use kernel::netns::Namespace;
use routes::tor::Uplink;
use routes::{Bfd, TorIntent, render_tor};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use support::api::{self, Items};
use support::{Running, alone, await_until, connects, namespace, plugin, shell, shell_in};

/// Everything converges in seconds; a loaded machine may take longer.
const LIMIT: Duration = Duration::from_secs(60);
const PROGRAMS: [&str; 5] = ["ip", "nsenter", "bird", "birdc", "nft"];

fn plan(rack_a: Value, rack_b: Value) -> Plan {
    let machine = |name: &str, rack: &str, third: u8, node: u32| {
        json!({"name": name, "rack": rack, "node": node, "role": "worker",
            "address": format!("10.98.{third}.{node}"), "prefixLen": 24,
            "gateway": format!("10.98.{third}.1"), "mac": format!("52:54:00:00:00:{node:02x}"),
            "boot": "bios", "podCIDR": format!("172.20.{node}.0/24"), "asn": 4_200_000_000 + node})
    };
    serde_json::from_value(json!({
        "site": "lab",
        "seed": {"address": "10.98.0.1", "subnet": "10.98.0.0/24", "rack": "a", "apiPort": 6443, "httpPort": 8080},
        "networks": {"pods": "172.20.0.0/16", "services": "172.21.0.0/24", "loadBalancers": ["192.0.2.0/27"]},
        "timings": {"nodeMonitorGracePeriodSeconds": 40, "podEvictionTimeoutSeconds": 30},
        "racks": [
            {"name": "a", "subnet": "10.98.1.0/24", "gateway": "10.98.1.1", "routing": rack_a},
            {"name": "b", "subnet": "10.98.2.0/24", "gateway": "10.98.2.1", "routing": rack_b}],
        "machines": [machine("a1", "a", 1, 11), machine("a2", "a", 1, 12), machine("b1", "b", 2, 21)],
    }))
    .unwrap()
}

fn bgp(tor_asn: u32) -> Value {
    json!({"mode": "bgp", "torAsn": tor_asn})
}

fn ospf(tor_asn: u32) -> Value {
    json!({"mode": "ospf", "area": 0, "torAsn": tor_asn})
}

/// A node: its namespace, its BIRD, and its router.
struct Node {
    name: String,
    namespace: Namespace,
    folder: PathBuf,
    bird: Running,
    items: Items,
}

struct Site {
    plan: Plan,
    folder: PathBuf,
    tors: Vec<Running>,
    nodes: BTreeMap<String, Node>,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn bird(namespace: &str, folder: &Path) -> Running {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).args(["bird", "-f", "-c"]);
    command.arg(folder.join("start.conf")).arg("-s").arg(folder.join("bird.ctl"));
    let log = std::fs::File::create(folder.join("bird.log")).unwrap();
    Running::start(command.stderr(log))
}

/// A node that is Ready.
fn node_object(name: &str, spec: &Value) -> Value {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    json!({"metadata": {"name": name}, "spec": spec, "status": {"conditions": ready}})
}

impl Site {
    fn build(plan: Plan, folder: &Path) -> Self {
        let mut site = Self {
            plan,
            folder: folder.to_owned(),
            tors: Vec::new(),
            nodes: BTreeMap::new(),
            stop: CancellationToken::new(),
        };
        for rack in ["a", "b"] {
            let tor = format!("tor-{rack}");
            namespace(&tor);
            shell_in(
                &tor,
                "echo 1 >/proc/sys/net/ipv4/ip_forward; ip link add br0 type bridge; ip link set br0 up",
            );
            let gateway = site.plan.rack(rack).unwrap().gateway;
            shell_in(&tor, &format!("ip addr add {gateway}/24 dev br0"));
        }
        shell("ip link add up0 netns tor-a type veth peer name up0 netns tor-b");
        shell_in("tor-a", "ip addr add 10.98.255.0/31 dev up0; ip link set up0 up");
        shell_in("tor-b", "ip addr add 10.98.255.1/31 dev up0; ip link set up0 up");
        for (rack, other, address, asn) in [("a", "b", 1, 65002), ("b", "a", 0, 65001)] {
            site.start_tor(rack, other, Ipv4Addr::new(10, 98, 255, address), asn);
        }
        for machine in site.plan.machines.clone() {
            site.start_node(&machine.name);
        }
        site
    }

    fn start_tor(&mut self, rack: &str, other: &str, address: Ipv4Addr, asn: u32) {
        let mut intent = TorIntent::new(&self.plan, rack, "br0").unwrap();
        let uplink = Uplink { name: other.to_owned(), interface: "up0".to_owned(), address, asn };
        intent.uplinks.push(uplink);
        // A loaded test machine pauses processes for longer than a third of a second.
        intent.bfd = Bfd { interval_ms: 400, multiplier: 5 };
        let folder = self.folder.join(format!("tor-{rack}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("start.conf"), render_tor(&intent)).unwrap();
        self.tors.push(bird(&format!("tor-{rack}"), &folder));
    }

    fn start_node(&mut self, name: &str) {
        let machine = self.plan.machine(name).unwrap().clone();
        let tor = format!("tor-{}", machine.rack);
        let inside = namespace(name);
        shell(&format!("ip link add {name} netns {tor} type veth peer name eth0 netns {name}"));
        shell_in(&tor, &format!("ip link set {name} master br0 up"));
        let (address, gateway) = (machine.address, machine.gateway);
        shell_in(
            name,
            &format!(
                "ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {gateway}"
            ),
        );
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("start.conf"), "protocol device {}\n").unwrap();
        let bird = bird(name, &folder);
        let items = self.items(name);
        let server = api::serve(&inside, &items);
        self.start_router(name, server, &folder);
        let node = Node { name: name.to_owned(), namespace: inside, folder, bird, items };
        self.nodes.insert(name.to_owned(), node);
    }

    /// What the API says to a node.
    fn items(&self, node: &str) -> Items {
        let planned = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
        let machines = self.plan.machines.iter();
        let machines = machines.map(|one| planned(&one.name, json!(one))).collect();
        let racks = self.plan.racks.iter().map(|one| planned(&one.name, json!(one))).collect();
        let cidr = self.plan.machine(node).unwrap().pod_cidr;
        let networks = json!(self.plan.networks).to_string();
        let site = json!({
            "metadata": {"name": "muster-site", "namespace": "kube-system"},
            "data": {"networks": networks}});
        let items = Items::default();
        items.set("/apis/muster.dev/v1alpha1/machines", machines);
        items.set("/apis/muster.dev/v1alpha1/racks", racks);
        items.set("/api/v1/nodes", vec![node_object(node, &json!({"podCIDR": cidr}))]);
        items.set("/api/v1/namespaces/kube-system/configmaps", vec![site]);
        items
    }

    /// Runs the router on a thread inside the node's namespace, as the agent would.
    fn start_router(&self, name: &str, server: String, folder: &Path) {
        let config = router::Config {
            client: runtime::ClientConfig { server, ..Default::default() },
            node: name.to_owned(),
            paths: router::Paths {
                bird_socket: folder.join("bird.ctl"),
                bird_config: folder.join("bird.conf"),
                pod_network: folder.join("pod-network.json"),
                cni_config: folder.join("net.d/10-muster.conflist"),
                survey: folder.join("routes.json"),
            },
            services: None,
        };
        let (stop, path) = (self.stop.clone(), support::path(name));
        std::thread::spawn(move || {
            let namespace = Namespace::open(&path).unwrap();
            namespace.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(router::run(stop, config)).unwrap();
            })
        });
    }

    /// Wires a pod on a node once the node's router has published its network.
    fn pod(&self, node: &str, pod: &str) -> (Namespace, Ipv4Addr) {
        let node = &self.nodes[node];
        let list = node.folder.join("net.d/10-muster.conflist");
        await_until(&format!("pod network of {}", node.name), LIMIT, || {
            if list.exists() { Ok(()) } else { Err(self.state()) }
        });
        let inside = namespace(pod);
        let config = json!({"cniVersion": "1.0.0", "name": "muster", "type": "muster-cni",
            "podNetwork": node.folder.join("pod-network.json"), "addresses": node.folder.join("ips")});
        let (code, result) = plugin(&node.namespace, "ADD", pod, &config.to_string());
        assert_eq!(code, 0, "{result}");
        let address = result["ips"][0]["address"].as_str().unwrap();
        (inside, address.strip_suffix("/32").unwrap().parse().unwrap())
    }

    /// What every BIRD says, for a person.
    fn state(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.folder).unwrap().flatten() {
            let folder = entry.path().display().to_string();
            text += &shell(&format!(
                "echo; echo {folder}; birdc -s {folder}/bird.ctl show protocols 2>&1 || true; \
                 birdc -s {folder}/bird.ctl show route 2>&1 || true; tail -5 {folder}/bird.log"
            ));
        }
        text
    }

    fn routes(&self, of: &str) -> String {
        shell_in(of, "ip route")
    }
}

/// Pods of every node reach each other with their own addresses.
fn pods_reach_each_other(site: &Site) {
    let start = Instant::now();
    let pods: Vec<_> =
        ["a1", "a2", "b1"].iter().map(|node| site.pod(node, &format!("pod-{node}"))).collect();
    for (from, from_address) in &pods {
        for (to, to_address) in &pods {
            if from_address == to_address {
                continue;
            }
            await_until(&format!("{from_address} to {to_address}"), LIMIT, || {
                match connects(from, to, *to_address) {
                    // No one on the way may put his own address in the place of the pod's.
                    Ok(seen) if seen == *from_address => Ok(()),
                    Ok(seen) => panic!("{from_address} was seen as {seen}"),
                    Err(err) => Err(format!("{err}\n{}", site.state())),
                }
            });
        }
    }
    println!("three nodes, all pods reach each other: {:?} after the wait began", start.elapsed());
}

/// What `muster routes` shows of every node: all neighbours up, all told, nothing astray.
fn surveys_find_no_difference(site: &Site) {
    for node in site.nodes.values() {
        let file = node.folder.join("routes.json");
        await_until(&format!("an untroubled survey of {}", node.name), LIMIT, || {
            let text = std::fs::read_to_string(&file).map_err(|err| err.to_string())?;
            let survey: routes::Survey = serde_json::from_str(&text).unwrap();
            let others = survey.routes.iter().filter(|row| row.purpose.starts_with("pods of"));
            let complete = others.clone().count() == 2
                && others.clone().all(|row| row.bird.is_some() && row.bird == row.kernel);
            let told = survey.announced.iter().all(|one| !one.to.is_empty());
            if survey.is_well() && complete && told { Ok(()) } else { Err(survey.render()) }
        });
    }
}

/// A node that claims what is another's is not believed by its ToR.
fn a_rogue_is_not_believed(site: &Site, tor: &str) {
    let rogue = &site.nodes["a2"];
    let config = std::fs::read_to_string(rogue.folder.join("bird.conf")).unwrap();
    let lie = "ipv4; route 172.20.21.0/24 blackhole; route 172.20.11.128/25 blackhole; route 172.20.99.0/24 blackhole;";
    std::fs::write(rogue.folder.join("rogue.conf"), config.replacen("ipv4;", lie, 1)).unwrap();
    let socket = rogue.folder.join("bird.ctl");
    let (socket, file) = (socket.display(), rogue.folder.join("rogue.conf"));
    let told = shell(&format!("birdc -s {socket} configure '\"{}\"'", file.display()));
    assert!(told.contains("Reconfig"), "{told}");
    // The lie has arrived: BGP keeps what the filter refused, OSPF floods it whatever the filter.
    let ear = site.folder.join(tor).join("bird.ctl");
    await_until("the lie at the ToR", LIMIT, || {
        let ask = |what| shell(&format!("birdc -s {} show {what} || true", ear.display()));
        let heard = ask("route filtered") + &ask("ospf lsadb");
        if heard.contains("172.20.99.0") { Ok(()) } else { Err(heard) }
    });
    let routes = site.routes(tor);
    assert!(!routes.contains("172.20.11.128/25") && !routes.contains("172.20.99.0/24"), "{routes}");
    let right = routes.lines().find(|line| line.starts_with("172.20.21.0/24")).unwrap();
    assert!(!right.contains("10.98.1.12"), "{routes}");
    shell(&format!(
        "birdc -s {socket} configure '\"{}\"'",
        rogue.folder.join("bird.conf").display()
    ));
}

/// An outside address of a service leads to every node that has somebody behind it, and leaves a
/// node that is drained before its pods do.
fn outside_addresses_follow_health(site: &Site) {
    let service = json!({"metadata": {"name": "shop", "namespace": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    let slice = |ready: &[&str]| {
        let endpoints: Vec<Value> = ready
            .iter()
            .map(|node| json!({"nodeName": node, "addresses": ["172.20.1.2"], "conditions": {"ready": true}}))
            .collect();
        json!({"metadata": {"name": "shop-1", "namespace": "web",
            "labels": {"kubernetes.io/service-name": "shop"}},
            "addressType": "IPv4", "endpoints": endpoints})
    };
    let tell = |ready: &[&str]| {
        for node in site.nodes.values() {
            let slices = vec![slice(ready)];
            node.items.set("/apis/discovery.k8s.io/v1/endpointslices", slices);
            node.items.set("/api/v1/services", vec![service.clone()]);
        }
    };
    // Which nodes of rack a its router sends the address to.
    let leads = |wanted: &[&str]| {
        let gateways = |node: &&str| site.plan.machine(node).unwrap().address.to_string();
        let wanted: Vec<String> = wanted.iter().map(gateways).collect();
        await_until(&format!("192.0.2.7 by {wanted:?}"), LIMIT, || {
            let route = shell_in("tor-a", "ip route show 192.0.2.7/32");
            let words: Vec<&str> = route.split_whitespace().collect();
            let here = ["10.98.1.11", "10.98.1.12"].iter().filter(|one| words.contains(one));
            let found: Vec<String> = here.map(|one| (*one).to_owned()).collect();
            if found == wanted { Ok(()) } else { Err(format!("{route}\n{}", site.state())) }
        })
    };
    tell(&["a1", "a2"]);
    // Not before the packets would be understood.
    shell_in("a1", "nft add table ip muster-services");
    leads(&["a1"]);
    shell_in("a2", "nft add table ip muster-services");
    site.nodes["a2"].items.set("/api/v1/services", vec![service.clone()]);
    leads(&["a1", "a2"]);
    tell(&["a2"]);
    let unhealthy = leads(&["a2"]);
    tell(&["a1", "a2"]);
    leads(&["a1", "a2"]);
    let spec = json!({"podCIDR": site.plan.machine("a2").unwrap().pod_cidr, "unschedulable": true});
    site.nodes["a2"].items.set("/api/v1/nodes", vec![node_object("a2", &spec)]);
    let drained = leads(&["a1"]);
    println!("no endpoint: withdrawn after {unhealthy:?}; drained: after {drained:?}");
    tell(&[]);
    leads(&[]);
}

/// A BIRD that dies takes its node off the fabric, and the router brings it back.
fn a_killed_bird_comes_back(site: &mut Site) {
    let has_route = |site: &Site, wanted: bool| {
        let routes = site.routes("tor-a");
        if routes.contains("172.20.21.0/24") == wanted { Ok(()) } else { Err(routes) }
    };
    let folder = site.nodes["b1"].folder.clone();
    site.nodes.get_mut("b1").unwrap().bird.kill();
    let gone = await_until("the dead node's route is gone", LIMIT, || has_route(site, false));
    std::fs::remove_file(folder.join("bird.ctl")).unwrap();
    site.nodes.get_mut("b1").unwrap().bird = bird("b1", &folder);
    let back = await_until("the node's route is back", LIMIT, || has_route(site, true));
    println!("BIRD killed: withdrawn after {gone:?}; started again: back after {back:?}");
}

fn check(test: &str, rack_a: Value, rack_b: Value) {
    alone(test, &PROGRAMS, || {
        runtime::telemetry::init("info", runtime::telemetry::Format::Text);
        let folder = tempfile::tempdir_in("/run").unwrap();
        let mut site = Site::build(plan(rack_a, rack_b), folder.path());
        pods_reach_each_other(&site);
        surveys_find_no_difference(&site);
        outside_addresses_follow_health(&site);
        a_rogue_is_not_believed(&site, "tor-a");
        a_killed_bird_comes_back(&mut site);
    });
}

#[test]
fn racks_that_speak_bgp_reach_each_other() {
    check("racks_that_speak_bgp_reach_each_other", bgp(65001), bgp(65002));
}

#[test]
fn racks_that_speak_ospf_reach_each_other() {
    check("racks_that_speak_ospf_reach_each_other", ospf(65001), ospf(65002));
}

#[test]
fn a_bgp_rack_and_an_ospf_rack_reach_each_other() {
    check("a_bgp_rack_and_an_ospf_rack_reach_each_other", bgp(65001), ospf(65002));
}
