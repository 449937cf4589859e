//! How long traffic is lost when something falls silent.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kernel::netns::Namespace;
use routes::Bfd;
use serde_json::{Value, json};

use crate::at;
use crate::site::{LIMIT, Routers, Setup, Site, THREE, bgp, ospf, plan};
use crate::support::{await_until, shell_in};

/// How often each flow sends.
const BEAT: Duration = Duration::from_millis(2);
/// How many flows: enough that every way has some.
const FLOWS: u16 = 8;
/// How often each thing fails.
const TRIALS: usize = 3;
/// How long is looked on after a failure.
const LOOK: Duration = Duration::from_secs(8);
const PORT: u16 = 7777;

pub(crate) fn measure() {
    println!(
        "failover: longest gap over {FLOWS} flows, a datagram each every {BEAT:?}; BFD 100 ms x 3"
    );
    println!("  {:<44} {:>9} {:>9} {:>9}", "", "least", "median", "most");
    let two = json!({"mode": "bgp", "torAsn": 65001, "tors": ["10.98.1.1", "10.98.1.2"]});
    with("BGP", two, bgp(65002), |site| {
        let echo = site.pod("a1", "server");
        let client = site.pod("b1", "client");
        let _echo = Echo::start(&echo.0, Ipv4Addr::UNSPECIFIED);
        line("BGP, one of two routers silent, to a pod", || {
            let probe = Probe::start(&client.0, echo.1);
            let restore = silence("switch-a", "tor-a2", "tor-a2", "rack0");
            std::thread::sleep(LOOK);
            let gap = probe.longest();
            restore();
            await_until("both routers again", LIMIT, || {
                let route = shell_in("a1", "ip route show 172.20.21.0/24 proto bird");
                if route.matches("nexthop").count() == 2 { Ok(()) } else { Err(route) }
            });
            gap
        });
        anycast(site, &client.0, "BGP, one of two nodes of an address silent");
    });
    with("OSPF", ospf(65001), bgp(65002), |site| {
        let client = site.pod("b1", "client");
        anycast(site, &client.0, "OSPF, one of two nodes of an address silent");
    });
}

fn with(name: &str, rack_a: Value, rack_b: Value, body: impl FnOnce(&Site)) {
    let folder = tempfile::tempdir_in("/run").unwrap();
    let setup = Setup { routers: Routers::Bird, bfd: Bfd::default() };
    let site = Site::with(plan(&[rack_a, rack_b], &THREE), folder.path(), setup);
    for pod in [("a1", "warm-a1"), ("a2", "warm-a2"), ("b1", "warm-b1")] {
        site.pod(pod.0, pod.1);
    }
    await_until(&format!("{name} settled"), LIMIT, || {
        let route = shell_in("b1", "ip route show proto bird");
        if route.contains("172.20.11.0/24") && route.contains("172.20.12.0/24") {
            Ok(())
        } else {
            Err(site.state())
        }
    });
    body(&site);
    drop(site);
    crate::support::shell("for n in $(ip netns list | cut -d\" \" -f1); do ip netns del $n; done");
}

/// An address that two nodes announce; the one that answers falls silent.
fn anycast(site: &Site, client: &Namespace, name: &str) {
    let address = Ipv4Addr::new(192, 0, 2, 7);
    let service = json!({"metadata": {"name": "shop", "namespace": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
        "status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    let endpoint = |node: &str| json!({"nodeName": node, "addresses": ["172.20.1.2"], "conditions": {"ready": true}});
    let slice = json!({"metadata": {"name": "shop-1", "namespace": "web",
            "labels": {"kubernetes.io/service-name": "shop"}},
        "addressType": "IPv4", "endpoints": [endpoint("a1"), endpoint("a2")]});
    let mut echoes = Vec::new();
    for node in ["a1", "a2"] {
        shell_in(node, "ip addr add 192.0.2.7/32 dev lo; nft add table ip muster-services");
        echoes.push(Echo::start(&site.nodes[node].namespace, address));
        let items = &site.nodes[node].items;
        items.set("/apis/discovery.k8s.io/v1/endpointslices", vec![slice.clone()]);
        items.set("/api/v1/services", vec![service.clone()]);
    }
    let both = || {
        await_until("both nodes announce it", LIMIT, || {
            let route = shell_in("tor-a", "ip route show 192.0.2.7/32");
            if route.matches("nexthop").count() == 2 { Ok(()) } else { Err(site.state()) }
        })
    };
    both();
    line(name, || {
        let probe = Probe::start(client, address);
        let restore = silence("switch-a", "a2", "a2", "eth0");
        std::thread::sleep(LOOK);
        let gap = probe.longest();
        restore();
        both();
        gap
    });
}

fn line(name: &str, mut trial: impl FnMut() -> Duration) {
    let mut gaps: Vec<Duration> = (0..TRIALS).map(|_| trial()).collect();
    gaps.sort_unstable();
    let shown = [0, 50, 100].map(|percent| format!("{:.3} s", at(&gaps, percent).as_secs_f64()));
    println!("  {name:<44} {:>9} {:>9} {:>9}", shown[0], shown[1], shown[2]);
}

/// Drops everything on a cable, both ways, carrier up; returns what undoes it.
fn silence(switch: &str, port: &str, far: &str, link: &str) -> impl FnOnce() {
    let swallow = |device: &str| {
        format!(
            "nft add table netdev swallow; nft add chain netdev swallow everything \
             \"{{ type filter hook ingress device {device} priority 0; policy drop; }}\""
        )
    };
    shell_in(switch, &swallow(port));
    shell_in(far, &swallow(link));
    let places = [switch.to_owned(), far.to_owned()];
    move || {
        for place in places {
            shell_in(&place, "nft delete table netdev swallow");
        }
    }
}

/// Sends back what comes, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
}

impl Echo {
    fn start(inside: &Namespace, address: Ipv4Addr) -> Self {
        let socket = inside.run(|| UdpSocket::bind((address, PORT))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(&buffer[..length], peer));
                }
            }
        });
        Self { stop }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Flows that run until they are asked for their longest gap.
struct Probe {
    stop: Arc<AtomicBool>,
    flows: Vec<std::thread::JoinHandle<Duration>>,
}

impl Probe {
    /// Starts the flows, and returns when each has had an answer.
    fn start(inside: &Namespace, to: Ipv4Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, readies) = std::sync::mpsc::channel();
        let flow = |_| {
            let socket = inside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            socket.connect((to, PORT)).unwrap();
            socket.set_read_timeout(Some(BEAT)).unwrap();
            let (stop, ready) = (Arc::clone(&stop), ready.clone());
            std::thread::spawn(move || flow(&socket, &stop, &ready))
        };
        let flows: Vec<_> = (0..FLOWS).map(flow).collect();
        for _ in 0..FLOWS {
            readies.recv().unwrap();
        }
        Self { stop, flows }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.flows.into_iter().map(|flow| flow.join().unwrap()).max().unwrap()
    }
}

fn flow(socket: &UdpSocket, stop: &AtomicBool, ready: &std::sync::mpsc::Sender<()>) -> Duration {
    let mut buffer = [0; 64];
    let mut last = None;
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        drop(socket.send(b"are you there"));
        if socket.recv(&mut buffer).is_ok() {
            let now = Instant::now();
            match last {
                None => ready.send(()).unwrap(),
                Some(last) => longest = longest.max(now - last),
            }
            last = Some(now);
            std::thread::sleep(BEAT);
        }
    }
    // Who never came back was cut off until the end.
    longest.max(last.map_or(LOOK, |last| last.elapsed()))
}
