//! The plugin's work for a pod, beside the same links, addresses and routes made by `ip`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{namespace, plugin, shell, shell_in};
use crate::{at, cpu};

const PODS: usize = 60;

pub(crate) fn measure() {
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
