//! The plugin's work for a pod, beside the same links, addresses and routes made by `ip`; and what
//! the runtime sees of it when it starts the plugin as a program.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kernel::netns::Namespace;
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
    println!("  processor's time of an ADD: {:.3?}", used / u32::try_from(PODS).unwrap());
    // They take turns, so that a busy machine disturbs all alike.
    let mut programs: Vec<Program> =
        programs.split(',').filter(|one| !one.is_empty()).map(Program::new).collect();
    for number in 0..PODS {
        for (index, program) in programs.iter_mut().enumerate() {
            let pod = format!("r{index}x{number}");
            shell(&format!("ip netns add {pod}"));
            program.adds.push(program.call(&node, "ADD", &pod, &config));
            program.dels.push(program.call(&node, "DEL", &pod, &config));
        }
    }
    for program in &mut programs {
        println!("  by {}:", program.path);
        program.print();
    }
}

/// A plugin as the container runtime has it.
struct Program {
    path: String,
    adds: Vec<[Duration; 2]>,
    dels: Vec<[Duration; 2]>,
}

impl Program {
    fn new(path: &str) -> Self {
        Self { path: path.to_owned(), adds: Vec::new(), dels: Vec::new() }
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
            child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = output.unwrap();
        assert!(output.status.success(), "{}: {output:?}", self.path);
        [start.elapsed(), cpu_of(UsageWho::RUSAGE_CHILDREN).saturating_sub(before)]
    }

    fn print(&mut self) {
        for (name, calls) in [("ADD", &mut self.adds), ("DEL", &mut self.dels)] {
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
