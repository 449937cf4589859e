//! A site of namespaces: a switch for each rack, one or two ToR routers on it, nodes with the real
//! BIRD and the real router, pods wired by the real plugin.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cluster::plan::{Plan, RackRouting};
use kernel::netns::Namespace;
use routes::tor::Uplink;
use routes::{Bfd, Key, TorIntent, render_tor};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::api::{self, Items};
use crate::support::{self, Running, await_until, namespace, plugin, shell, shell_in};

/// Everything converges in seconds; a loaded machine may take longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const PROGRAMS: [&str; 5] = ["ip", "nsenter", "bird", "birdc", "nft"];

/// A machine of the tests' plans: its name, its rack, the rack's number, its own number.
pub(crate) type Place = (&'static str, &'static str, u8, u32);
/// The machines of most tests.
pub(crate) const THREE: [Place; 3] = [("a1", "a", 1, 11), ("a2", "a", 1, 12), ("b1", "b", 2, 21)];

/// A plan of racks `a`, `b` and so on, with their `routing` each, and machines.
pub(crate) fn plan(racks: &[Value], machines: &[Place]) -> Plan {
    let machine = |(name, rack, third, node): &Place| {
        json!({"name": name, "rack": rack, "node": node, "role": "worker",
            "address": format!("10.98.{third}.{node}"), "prefixLen": 24,
            "gateway": format!("10.98.{third}.1"), "mac": format!("52:54:00:00:00:{node:02x}"),
            "boot": "bios", "podCIDR": format!("172.20.{node}.0/24"), "asn": 4_200_000_000 + node})
    };
    let rack = |(index, routing): (usize, &Value)| {
        let (name, third) = (["a", "b", "c"][index], index + 1);
        let mut rack = json!({"name": name, "subnet": format!("10.98.{third}.0/24"),
            "gateway": format!("10.98.{third}.1"), "routing": routing});
        if let Some(kind) = rack["routing"].as_object_mut().unwrap().remove("authentication") {
            rack["authentication"] = kind;
        }
        rack
    };
    serde_json::from_value(json!({
        "site": "lab",
        "seed": {"address": "10.98.0.1", "subnet": "10.98.0.0/24", "rack": "a", "apiPort": 6443, "httpPort": 8080},
        "networks": {"pods": "172.20.0.0/16", "services": "172.21.0.0/24", "loadBalancers": ["192.0.2.0/27"]},
        "timings": {"nodeMonitorGracePeriodSeconds": 40, "podEvictionTimeoutSeconds": 30},
        "racks": racks.iter().enumerate().map(rack).collect::<Vec<_>>(),
        "machines": machines.iter().map(machine).collect::<Vec<_>>(),
    }))
    .unwrap()
}

/// The same site with IPv6 beside IPv4.
pub(crate) fn dual(mut plan: Plan) -> Plan {
    plan.networks.pods_v6 = Some("fd20::/48".parse().unwrap());
    plan.networks.services_v6 = Some("fd21::/112".parse().unwrap());
    for (index, rack) in plan.racks.iter_mut().enumerate() {
        rack.subnet_v6 = Some(format!("fd10:0:0:{}::/64", index + 1).parse().unwrap());
        for machine in plan.machines.iter_mut().filter(|one| one.rack == rack.name) {
            machine.address_v6 = rack.address_v6(machine.address);
            let pods = format!("fd20:0:0:{:x}::/64", machine.node);
            machine.pod_cidr_v6 = Some(pods.parse().unwrap());
        }
    }
    plan
}

pub(crate) fn bgp(tor_asn: u32) -> Value {
    json!({"mode": "bgp", "torAsn": tor_asn})
}

pub(crate) fn ospf(tor_asn: u32) -> Value {
    json!({"mode": "ospf", "area": 0, "torAsn": tor_asn})
}

/// The same, with a key.
pub(crate) fn keyed(mut routing: Value) -> Value {
    routing["authentication"] = json!("key");
    routing
}

/// The key of a rack, while nobody has a wrong one.
pub(crate) fn key_of(rack: &str) -> String {
    format!("the-key-of-rack-{rack}")
}

/// A node: its namespace, its BIRD, and its router.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) folder: PathBuf,
    pub(crate) bird: Running,
    pub(crate) items: Items,
}

/// A ToR router.
pub(crate) struct Tor {
    pub(crate) name: String,
    /// Its BIRD; `None` while it is without power, or when something else routes in its place.
    pub(crate) bird: Option<Running>,
    intent: TorIntent,
}

/// Who plays the ToR routers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Routers {
    Bird,
    /// The test brings its own.
    Other,
}

/// How a site is built.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) routers: Routers,
    /// How fast routers notice silence; nodes follow the slower of both.
    pub(crate) bfd: Bfd,
}

pub(crate) struct Site {
    pub(crate) plan: Plan,
    pub(crate) folder: PathBuf,
    pub(crate) tors: Vec<Tor>,
    pub(crate) nodes: BTreeMap<String, Node>,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn bird(namespace: &str, folder: &Path) -> Running {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).args(["bird", "-f", "-c"]);
    command.arg(folder.join("start.conf")).arg("-s").arg(folder.join("bird.ctl"));
    let log = std::fs::File::create(folder.join("bird.log")).unwrap();
    Running::start(command.stderr(log))
}

/// A node that is Ready.
pub(crate) fn node_object(name: &str, spec: &Value) -> Value {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    json!({"metadata": {"name": name}, "spec": spec, "status": {"conditions": ready}})
}

/// The Secret that holds racks' keys.
pub(crate) fn keys_object(keys: &[(&str, String)]) -> Value {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let data: BTreeMap<_, _> =
        keys.iter().map(|(rack, key)| (*rack, BASE64_STANDARD.encode(key))).collect();
    json!({"metadata": {"name": "muster-routing", "namespace": "kube-system"}, "data": data})
}

impl Site {
    pub(crate) fn build(plan: Plan, folder: &Path) -> Self {
        // A loaded test machine pauses processes for longer than a third of a second.
        let bfd = Bfd { interval_ms: 400, multiplier: 5 };
        Self::with(plan, folder, Setup { routers: Routers::Bird, bfd })
    }

    pub(crate) fn with(plan: Plan, folder: &Path, setup: Setup) -> Self {
        let mut site = Self {
            plan,
            folder: folder.to_owned(),
            tors: Vec::new(),
            nodes: BTreeMap::new(),
            stop: CancellationToken::new(),
        };
        for rack in site.plan.racks.clone() {
            site.cable_rack(&rack.name, setup.bfd);
        }
        site.cable_routers();
        if setup.routers == Routers::Bird {
            for index in 0..site.tors.len() {
                site.start_tor(index);
            }
        }
        for machine in site.plan.machines.clone() {
            site.start_node(&machine.name);
        }
        site
    }

    /// A rack's switch, and its ToR routers with one port on it each: `tor-a`, `tor-a2`.
    fn cable_rack(&mut self, rack: &str, bfd: Bfd) {
        let switch = format!("switch-{rack}");
        namespace(&switch);
        shell_in(&switch, "ip link add br0 type bridge; ip link set br0 up");
        for (index, mut intent) in TorIntent::all(&self.plan, rack, "rack0").into_iter().enumerate()
        {
            let name = if index == 0 { format!("tor-{rack}") } else { format!("tor-{rack}2") };
            namespace(&name);
            shell(&format!(
                "ip link add {name} netns {switch} type veth peer name rack0 netns {name}"
            ));
            shell_in(&switch, &format!("ip link set {name} master br0 up"));
            let address = intent.address;
            shell_in(
                &name,
                &format!(
                    "echo 1 >/proc/sys/net/ipv4/ip_forward; ip link set rack0 addrgenmode none; \
                     ip addr add {address}/24 dev rack0; ip link set rack0 up"
                ),
            );
            // The only one of its kind on the port: with two, FRR's ospf6d may say hello from one
            // and await BFD at the other.
            let local = cluster::plan::Numbering::link_local(index);
            shell_in(&name, &format!("ip addr add {local}/64 dev rack0 nodad"));
            if let Some(address) = self.plan.rack(rack).unwrap().address_v6(address) {
                shell_in(
                    &name,
                    &format!(
                        "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; \
                         ip addr add {address}/64 dev rack0 nodad"
                    ),
                );
            }
            intent.bfd = bfd;
            if !self.plan.rack(rack).unwrap().authentication.is_none() {
                intent.key = Some(Key::new(&key_of(rack)).unwrap());
            }
            self.tors.push(Tor { name, bird: None, intent });
        }
    }

    /// A cable between each two routers of different racks.
    fn cable_routers(&mut self) {
        let asn = |tor: &Tor| match tor.intent.routing {
            RackRouting::Bgp { tor_asn, .. } => tor_asn,
            RackRouting::Ibgp { asn, .. } => asn,
            RackRouting::Ospf { tor_asn, .. } => tor_asn.unwrap_or_default(),
        };
        let mut number = 0;
        for left in 0..self.tors.len() {
            for right in left + 1..self.tors.len() {
                let ends = [&self.tors[left], &self.tors[right]];
                if ends[0].intent.rack == ends[1].intent.rack {
                    continue;
                }
                let names = ends.map(|tor| tor.name.clone());
                let asns = ends.map(asn);
                let addresses = [0, 1].map(|end| Ipv4Addr::new(10, 98, 255, number + end));
                let addresses_v6 = [0, 1].map(|end| format!("fd10:0:0:ff::{:x}", number + end));
                number += 2;
                let [near, far] = &names;
                shell(&format!(
                    "ip link add to-{far} netns {near} type veth peer name to-{near} netns {far}"
                ));
                for (here, there) in [(0, 1), (1, 0)] {
                    let interface = format!("to-{}", names[there]);
                    shell_in(
                        &names[here],
                        &format!(
                            "ip addr add {}/31 dev {interface}; ip link set {interface} up",
                            addresses[here]
                        ),
                    );
                    if self.plan.networks.v6().is_some() {
                        let address = &addresses_v6[here];
                        let add = format!("ip addr add {address}/127 dev {interface} nodad");
                        shell_in(&names[here], &add);
                    }
                    let name = names[there].clone();
                    let (address, asn) = (addresses[there], asns[there]);
                    let tor = if here == 0 { left } else { right };
                    let uplink = Uplink { name, interface, address, asn };
                    self.tors[tor].intent.uplinks.push(uplink);
                }
            }
        }
    }

    /// Starts a router's BIRD, as at power-on.
    pub(crate) fn start_tor(&mut self, index: usize) {
        let tor = &mut self.tors[index];
        let folder = self.folder.join(&tor.name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("start.conf"), render_tor(&tor.intent)).unwrap();
        tor.bird = Some(bird(&tor.name, &folder));
    }

    /// The number of a router.
    pub(crate) fn tor(&self, name: &str) -> usize {
        self.tors.iter().position(|tor| tor.name == name).unwrap()
    }

    pub(crate) fn start_node(&mut self, name: &str) {
        let machine = self.plan.machine(name).unwrap().clone();
        let switch = format!("switch-{}", machine.rack);
        let inside = namespace(name);
        shell(&format!("ip link add {name} netns {switch} type veth peer name eth0 netns {name}"));
        shell_in(&switch, &format!("ip link set {name} master br0 up"));
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
        let keys: Vec<_> =
            self.plan.racks.iter().map(|one| (one.name.as_str(), key_of(&one.name))).collect();
        let items = Items::default();
        items.set("/apis/muster.dev/v1alpha1/machines", machines);
        items.set("/apis/muster.dev/v1alpha1/racks", racks);
        items.set("/api/v1/nodes", vec![node_object(node, &json!({"podCIDR": cidr}))]);
        items.set("/api/v1/namespaces/kube-system/configmaps", vec![site]);
        items.set("/api/v1/namespaces/kube-system/secrets", vec![keys_object(&keys)]);
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
    pub(crate) fn pod(&self, node: &str, pod: &str) -> (Namespace, Ipv4Addr) {
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

    /// Asks a BIRD; what it says when it is not there counts, too.
    pub(crate) fn birdc(&self, of: &str, command: &str) -> String {
        let socket = self.folder.join(of).join("bird.ctl");
        shell(&format!("birdc -s {} {command} 2>&1 || true", socket.display()))
    }

    /// What every BIRD says, for a person.
    pub(crate) fn state(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.folder).unwrap().flatten() {
            let folder = entry.path().display().to_string();
            text += &shell(&format!(
                "echo; echo {folder}; birdc -s {folder}/bird.ctl show protocols 2>&1 || true; \
                 birdc -s {folder}/bird.ctl show route 2>&1 || true; tail -5 {folder}/bird.log 2>&1 || true"
            ));
        }
        text
    }

    pub(crate) fn routes(&self, of: &str) -> String {
        shell_in(of, "ip route")
    }
}
