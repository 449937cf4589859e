//! Many nodes of one flat rack start at once; then one more does.

use std::time::{Duration, Instant};

use routes::intent::Source;
use routes::{Bfd, Intent, render_node};
use serde_json::json;

use crate::site::{Place, bgp, bird, plan};
use crate::support::{Running, namespace, shell, shell_in};

/// A node that has not learnt all by then never will.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn measure(count: u32) {
    let count = count.clamp(3, 250);
    let names: Vec<&'static str> =
        (1..=count).map(|number| &*Box::leak(format!("n{number}").into_boxed_str())).collect();
    let places: Vec<Place> =
        (1..=count).zip(&names).map(|(number, name)| (*name, "a", 1, number + 1)).collect();
    let rack_a = json!({"mode": "ibgp", "asn": 65001, "reflectors": ["n1", "n2"]});
    let plan = plan(&[rack_a, bgp(65002)], &places);
    let folder = tempfile::tempdir_in("/run").unwrap();
    namespace("switch");
    shell_in("switch", "ip link add br0 type bridge; ip link set br0 up");
    for machine in &plan.machines {
        let (name, address) = (&machine.name, machine.address);
        namespace(name);
        shell(&format!("ip link add {name} netns switch type veth peer name eth0 netns {name}"));
        shell_in("switch", &format!("ip link set {name} master br0 up"));
        shell_in(name, &format!("ip addr add {address}/24 dev eth0; ip link set eth0 up"));
        let intent = Intent::new(Source {
            node: name,
            interface: "eth0",
            pods: Some(machine.pod_cidr),
            racks: &plan.racks,
            machines: &plan.machines,
            networks: &plan.networks,
            keys: &std::collections::BTreeMap::new(),
        });
        // So many on two processors pause for longer than a third of a second when they start.
        let intent = Intent { bfd: Bfd { interval_ms: 1000, multiplier: 5 }, ..intent.unwrap() };
        let own = folder.path().join(name);
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("start.conf"), render_node(&intent)).unwrap();
    }
    let start = Instant::now();
    let (late, early) = names.split_last().unwrap();
    let _birds: Vec<Running> =
        early.iter().map(|name| bird(name, &folder.path().join(name))).collect();
    let started = start.elapsed();
    for name in early {
        learns(name, early.len());
    }
    let all = start.elapsed();
    println!(
        "crowd: {} nodes, two of them reflectors: all know all {:.1} s after the first BIRD was \
         started, {:.1} s after the last",
        early.len(),
        all.as_secs_f64(),
        all.saturating_sub(started).as_secs_f64()
    );
    let start = Instant::now();
    let _bird = bird(late, &folder.path().join(late));
    for name in early {
        learns(name, names.len());
    }
    learns(late, names.len());
    println!(
        "crowd: one more, known to all and knowing all after {:.2} s",
        start.elapsed().as_secs_f64()
    );
}

/// Waits until a node's kernel has a route to every pod network.
fn learns(name: &str, count: usize) {
    let start = Instant::now();
    loop {
        // A file is cheaper than a process, of which hundreds would be the load that is measured.
        let namespace = kernel::netns::Namespace::open(&crate::support::path(name)).unwrap();
        let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/route"));
        let text = text.unwrap().unwrap();
        // 172.20.x.0 as the kernel prints it: bytes turned round.
        let known = text
            .lines()
            .filter(|line| line.split_whitespace().nth(1).is_some_and(|net| net.ends_with("14AC")));
        // Its own is a blackhole, which that list leaves out or not by the kernel's version.
        if known.filter(|line| line.contains("eth0")).count() >= count - 1 {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{name} lacks routes:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
