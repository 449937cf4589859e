//! From pod to pod over one cable between two nodes: by plain routes, by VXLAN, and by a tunnel
//! that a program forwards, as meshes in user space do.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kernel::netns::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::support::{namespace, shell, shell_in};
use crate::{at, cpu};

const ROUNDS: usize = 5_000;
const PACKETS: u32 = 100_000;
/// Sent before one waits for the far end: what a socket's queue holds.
const BURST: u32 = 64;
const PORT: u16 = 7000;
const TUNNEL: u16 = 7001;

/// How packets get from node to node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Routed,
    Vxlan,
    Program,
}

struct Figures {
    name: &'static str,
    round_trip: Duration,
    packet: Duration,
}

pub(crate) fn measure() {
    let ways = [
        (Way::Routed, "plain routes"),
        (Way::Vxlan, "VXLAN"),
        (Way::Program, "a program's tunnel"),
    ];
    let all: Vec<Figures> = ways.map(|(way, name)| one(way, name)).into();
    println!(
        "path: pod to pod over two nodes, 64 bytes, {ROUNDS} round trips and {PACKETS} packets"
    );
    println!(
        "  {:<20} {:>14} {:>7} {:>18} {:>7}",
        "", "round trip p50", "", "processor/packet", ""
    );
    let ratio =
        |one: Duration, first: Duration| format!("x{:.2}", one.as_secs_f64() / first.as_secs_f64());
    for one in &all {
        println!(
            "  {:<20} {:>14.2?} {:>7} {:>18.2?} {:>7}",
            one.name,
            one.round_trip,
            ratio(one.round_trip, all[0].round_trip),
            one.packet,
            ratio(one.packet, all[0].packet)
        );
    }
}

fn one(way: Way, name: &'static str) -> Figures {
    let nodes = [namespace("left"), namespace("right")];
    let pods = [namespace("pod-left"), namespace("pod-right")];
    shell("ip link add wire netns left type veth peer name wire netns right");
    for (number, node) in ["left", "right"].into_iter().enumerate() {
        let (own, far) = (number + 1, 2 - number);
        shell(&format!("ip link add pod netns {node} type veth peer name eth0 netns pod-{node}"));
        shell_in(
            node,
            &format!(
                "echo 1 >/proc/sys/net/ipv4/ip_forward; \
                 ip addr add 10.9.0.{own}/24 dev wire; ip link set wire up; ip link set pod up; \
                 ip addr add 169.254.1.1/32 dev pod scope link; \
                 ip route add 172.20.{own}.2/32 dev pod src 10.9.0.{own}"
            ),
        );
        shell_in(
            &format!("pod-{node}"),
            &format!(
                "ip link set eth0 up; ip addr add 172.20.{own}.2/32 dev eth0; \
                 ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 dev eth0"
            ),
        );
        let there = match way {
            Way::Routed => format!("ip route add 172.20.{far}.0/24 via 10.9.0.{far}"),
            Way::Vxlan => format!(
                "ip link add vx0 address 02:00:00:00:00:0{own} type vxlan id 7 dstport 4789 local 10.9.0.{own} remote 10.9.0.{far} dev wire; \
                 ip addr add 10.10.0.{own}/24 dev vx0; ip link set vx0 up; \
                 ip route add 172.20.{far}.0/24 via 10.10.0.{far}"
            ),
            Way::Program => format!(
                "ip link add mesh0 address 02:00:00:00:00:0{own} type veth peer name mesh1; \
                 ip addr add 10.10.0.{own}/24 dev mesh0; ip link set mesh0 up; ip link set mesh1 up; \
                 ip route add 172.20.{far}.0/24 via 10.10.0.{far}"
            ),
        };
        shell_in(node, &there);
    }
    if way == Way::Program {
        for (number, node) in nodes.iter().enumerate() {
            forward(node, u8::try_from(number).unwrap() + 1);
        }
    }
    let figures = Figures { name, round_trip: round_trip(&pods), packet: packet(&pods) };
    shell("for n in left right pod-left pod-right; do ip netns del $n; done");
    figures
}

/// The tunnel's program on one node: frames out of the link into datagrams, and back.
fn forward(node: &Namespace, own: u8) {
    let open = || -> (OwnedFd, UdpSocket) {
        let frames =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
        let frames = frames.unwrap();
        let links = nix::ifaddrs::getifaddrs().unwrap();
        let address = links.filter(|one| one.interface_name == "mesh1").find_map(|one| {
            let address = one.address?;
            address.as_link_addr().is_some().then_some(address)
        });
        bind(frames.as_raw_fd(), &address.unwrap()).unwrap();
        let datagrams = UdpSocket::bind((Ipv4Addr::new(10, 9, 0, own), TUNNEL)).unwrap();
        datagrams.connect((Ipv4Addr::new(10, 9, 0, 3 - own), TUNNEL)).unwrap();
        (frames, datagrams)
    };
    let (frames, datagrams) = node.run(open).unwrap();
    let (out, sender) = (frames.try_clone().unwrap(), datagrams.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            match recv(out.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // A far end that does not listen yet refuses; the link goes with its namespace.
                Ok(length) => {
                    let frame = &mut buffer[..length];
                    // The kernel leaves a datagram's checksum to the card, and there is none:
                    // zero says so.
                    if length > 42 && frame[12..14] == [8, 0] && frame[23] == 17 {
                        frame[40..42].fill(0);
                    }
                    drop(sender.send(frame));
                }
                Err(_) => return,
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            match datagrams.recv(&mut buffer) {
                Ok(length) => {
                    if send(frames.as_raw_fd(), &buffer[..length], MsgFlags::empty()).is_err() {
                        return;
                    }
                }
                Err(err) if err.kind() == ErrorKind::ConnectionRefused => (),
                Err(_) => return,
            }
        }
    });
}

fn sockets(pods: &[Namespace; 2]) -> (UdpSocket, UdpSocket) {
    let server = pods[1].run(|| UdpSocket::bind(("172.20.2.2", PORT))).unwrap().unwrap();
    let client = pods[0].run(|| UdpSocket::bind(("172.20.1.2", 0))).unwrap().unwrap();
    client.connect(("172.20.2.2", PORT)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    (client, server)
}

fn round_trip(pods: &[Namespace; 2]) -> Duration {
    let (client, server) = sockets(pods);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while let Ok((length, peer)) = server.recv_from(&mut buffer) {
                drop(server.send_to(&buffer[..length], peer));
            }
        });
        let mut buffer = [0; 64];
        for _ in 0..ROUNDS {
            let start = Instant::now();
            client.send(&[0; 64]).unwrap();
            // The first ones may meet a tunnel that is not there yet.
            if client.recv(&mut buffer).is_ok() {
                times.push(start.elapsed());
            }
        }
    });
    times.sort_unstable();
    at(&times, 50)
}

/// The processor's time for a packet that arrives: bursts, and a word back after each.
fn packet(pods: &[Namespace; 2]) -> Duration {
    let (client, server) = sockets(pods);
    let before = cpu();
    let arrived = std::thread::scope(|scope| {
        let count = scope.spawn(|| {
            let mut buffer = [0; 64];
            let mut count = 0_u32;
            while let Ok((length, peer)) = server.recv_from(&mut buffer) {
                count += 1;
                if length == 1 {
                    drop(server.send_to(&[1], peer));
                }
            }
            count
        });
        for _ in 0..PACKETS / BURST {
            for _ in 1..BURST {
                drop(client.send(&[0; 64]));
            }
            drop(client.send(&[0; 1]));
            drop(client.recv(&mut [0; 8]));
        }
        count.join().unwrap()
    });
    (cpu() - before) / arrived.max(1)
}
