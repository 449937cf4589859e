//! The plugin's work for a pod, beside the same links, addresses and routes made by `ip`; and what
//! the runtime sees of it when it starts the plugin as a program.
//!
//! What nobody can do without is measured beside it: the kernel's work for the same requests from
//! sockets that are open, and a program's start and end (CNI's VERSION, which does nothing).

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kernel::netns::Namespace;
use kernel::sync::{Change, Network};
use kernel::{Address, AddressScope, LinkIndex, NextHop, Route, Veth};
use nix::sys::resource::UsageWho;

use serde_json::json;

use crate::support::{self, namespace, plugin, shell, shell_in};
use crate::{at, cpu, cpu_of};

const PODS: usize = 60;

/// Measures, and then each of `programs`: paths with commas between them.
pub(crate) fn measure(programs: &str) {
    let folder = tempfile::tempdir_in("/run").unwrap();
    let node = namespace("node");
    shell_in("node", "ip addr add 10.98.1.12/32 dev lo; echo 1 >/proc/sys/net/ipv4/ip_forward");
    let network = json!({"podCIDR": "172.20.12.0/24", "gateway": "169.254.1.1", "mtu": 1500,
        "nodeAddress": "10.98.1.12"});
    std::fs::write(folder.path().join("pod-network.json"), network.to_string()).unwrap();
    let config = json!({"cniVersion": "1.0.0", "name": "muster", "type": "muster-cni",
        "podNetwork": folder.path().join("pod-network.json"),
        "addresses": folder.path().join("ips")})
    .to_string();
    let (mut adds, mut dels, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    let mut used = Duration::ZERO;
    for number in 0..PODS {
        let (pod, peer) = (format!("p{number}"), format!("q{number}"));
        shell(&format!("ip netns add {pod}; ip netns add {peer}"));
        let before = cpu();
        let start = Instant::now();
        assert_eq!(plugin(&node, "ADD", &pod, &config).0, 0);
        adds.push(start.elapsed());
        used += cpu() - before;
        let start = Instant::now();
        shell_in("node", &by_ip(&peer, number));
        peers.push(start.elapsed());
    }
    for number in 0..PODS {
        let start = Instant::now();
        assert_eq!(plugin(&node, "DEL", &format!("p{number}"), &config).0, 0);
        dels.push(start.elapsed());
    }
    println!("wiring: {PODS} pods, without the start of the plugin's process");
    for (name, mut all) in [("ADD", adds), ("the same by ip", peers), ("DEL", dels)] {
        all.sort_unstable();
        println!("  {name:<16} p50 {:>10.3?}  p99 {:>10.3?}", at(&all, 50), at(&all, 99));
    }
    let each = u32::try_from(PODS).unwrap();
    println!("  processor's time of an ADD: {:.3?}", used / each);
    println!("  of that the kernel's work:  {:.3?}", kernels_work(&node) / each);
    // They take turns, so that a busy machine disturbs all alike.
    let mut programs: Vec<Program> =
        programs.split(',').filter(|one| !one.is_empty()).map(Program::new).collect();
    for number in 0..PODS {
        for (index, program) in programs.iter_mut().enumerate() {
            let pod = format!("r{index}x{number}");
            shell(&format!("ip netns add {pod}"));
            program.starts.push(program.call(&node, "VERSION", &pod, &config));
            program.adds.push(program.call(&node, "ADD", &pod, &config));
            program.dels.push(program.call(&node, "DEL", &pod, &config));
        }
    }
    for program in &mut programs {
        println!("  by {}:", program.path);
        program.print();
    }
}

/// Processor's time for the links, addresses and routes of as many pods, by requests on sockets
/// that are open already: what the kernel makes of them, and hardly anything else.
fn kernels_work(node: &Namespace) -> Duration {
    let spaces: Vec<Namespace> = (0..PODS).map(|number| namespace(&format!("k{number}"))).collect();
    let theirs: Vec<Network> =
        spaces.iter().map(|space| Network::open_in(space).unwrap()).collect();
    let here = Network::open_in(node).unwrap();
    let gateway = IpAddr::from([169, 254, 1, 1]);
    let single = |address, scope| Address { address, prefix_len: 32, scope };
    let before = cpu();
    for (number, (space, there)) in spaces.iter().zip(&theirs).enumerate() {
        let own = IpAddr::from([172, 20, 14, u8::try_from(number + 2).unwrap()]);
        let name = format!("k{number}");
        let veth = Veth { name: &name, peer: "eth0", peer_namespace: space, mtu: 1500 };
        let ours = here.add_veth(&veth).unwrap();
        let link = there.apply_and_find(&[Change::SetUp(LinkIndex(1))], "eth0").unwrap().index;
        let hop = NextHop { gateway: Some(gateway), link: Some(link), onlink: true };
        let default = Route::via("0.0.0.0/0".parse().unwrap(), hop);
        let on_link = Route::on_link(gateway.into(), link);
        let address = single(own, AddressScope::Global);
        let changes = [
            Change::SetUp(link),
            Change::AddAddress(link, address),
            Change::ReplaceRoute(&on_link),
            Change::ReplaceRoute(&default),
        ];
        there.apply(&changes).unwrap();
        let route = Route::on_link(own.into(), ours.index);
        let held = Change::AddAddress(ours.index, single(gateway, AddressScope::Link));
        here.apply(&[held, Change::ReplaceRoute(&route)]).unwrap();
    }
    cpu() - before
}

/// A plugin as the container runtime has it.
struct Program {
    path: String,
    starts: Vec<[Duration; 2]>,
    adds: Vec<[Duration; 2]>,
    dels: Vec<[Duration; 2]>,
}

impl Program {
    fn new(path: &str) -> Self {
        Self { path: path.to_owned(), starts: Vec::new(), adds: Vec::new(), dels: Vec::new() }
    }

    /// Calls it; gives the time from its start to its end, and the processor's time of that.
    fn call(&self, node: &Namespace, command: &str, pod: &str, config: &str) -> [Duration; 2] {
        let before = cpu_of(UsageWho::RUSAGE_CHILDREN);
        let start = Instant::now();
        let output = node.run(|| {
            let mut child = Command::new(&self.path)
                .env_clear()
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", format!("id-{pod}"))
                .env("CNI_NETNS", support::path(pod))
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", "/opt/cni/bin")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // VERSION asks for nothing, and may be gone before it is told.
            drop(child.stdin.take().unwrap().write_all(config.as_bytes()));
            child.wait_with_output().unwrap()
        });
        let output = output.unwrap();
        assert!(output.status.success(), "{}: {output:?}", self.path);
        [start.elapsed(), cpu_of(UsageWho::RUSAGE_CHILDREN).saturating_sub(before)]
    }

    fn print(&mut self) {
        for (name, calls) in
            [("VERSION", &mut self.starts), ("ADD", &mut self.adds), ("DEL", &mut self.dels)]
        {
            let mut all: Vec<Duration> = calls.iter().map(|call| call[0]).collect();
            let used: Duration = calls.iter().map(|call| call[1]).sum();
            let used = used / u32::try_from(calls.len()).unwrap();
            all.sort_unstable();
            let (half, most) = (at(&all, 50), at(&all, 99));
            println!("  {name:<16} p50 {half:>10.3?}  p99 {most:>10.3?}  processor {used:>10.3?}");
        }
    }
}

/// What the plugin does, in the words a person would type.
fn by_ip(pod: &str, number: usize) -> String {
    let address = format!("172.20.13.{}", number + 2);
    format!(
        "ip link add v{number} type veth peer name eth0 netns {pod}; \
         ip -n {pod} link set lo up; ip -n {pod} link set eth0 up; \
         ip -n {pod} addr add {address}/32 dev eth0; \
         ip -n {pod} route add 169.254.1.1 dev eth0; \
         ip -n {pod} route add default via 169.254.1.1 dev eth0 onlink; \
         ip link set v{number} up; ip addr add 169.254.1.1/32 dev v{number} scope link; \
         ip route add {address}/32 dev v{number} src 10.98.1.12"
    )
}
