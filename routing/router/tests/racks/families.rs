//! Racks of two families: pods have an address of each, and reach each other by both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cluster::plan::Plan;
use kernel::netns::Namespace;
use serde_json::json;

use crate::site::{LIMIT, PROGRAMS, Place, Site, dual, keyed, ospf, plan};
use crate::support::{await_until, connects_any, shell_in};
use crate::{surveys_find_no_difference, tell};

/// A rack of each protocol.
const FIVE: [Place; 5] = [
    ("a1", "a", 1, 11),
    ("a2", "a", 1, 12),
    ("b1", "b", 2, 21),
    ("c1", "c", 3, 31),
    ("c2", "c", 3, 32),
];

pub(crate) struct Pod {
    pub(crate) inside: Namespace,
    pub(crate) addresses: [IpAddr; 2],
}

pub(crate) fn wire(site: &Site) -> Vec<Pod> {
    let wire = |node: &String| {
        let (inside, address) = site.pod(node, &format!("pod-{node}"));
        Pod { inside, addresses: [address.into(), second(&site.plan, node, address).into()] }
    };
    site.nodes.keys().map(wire).collect()
}

/// What the plan says of a pod's other address.
fn second(plan: &Plan, node: &str, address: Ipv4Addr) -> Ipv6Addr {
    let machine = plan.machine(node).unwrap();
    let offset = u32::from(address) - u32::from(machine.pod_cidr.network());
    Ipv6Addr::from(u128::from(machine.pod_cidr_v6.unwrap().network()) + u128::from(offset))
}

/// Waits until every pod has reached every other by both families, seen with its own address.
pub(crate) fn everyone_connects(site: &Site, pods: &[Pod]) {
    for (index, from) in pods.iter().enumerate() {
        for to in pods.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, to)| to) {
            for family in [0, 1] {
                let (own, target) = (from.addresses[family], to.addresses[family]);
                await_until(&format!("{own} to {target}"), LIMIT, || {
                    match connects_any(&from.inside, &to.inside, target) {
                        Ok(seen) if seen == own => Ok(()),
                        Ok(seen) => panic!("{own} was seen as {seen}"),
                        Err(err) => Err(format!("{err}\n{}", site.state())),
                    }
                });
            }
        }
    }
}

/// A node that claims another's IPv6 pods, and somebody's who is not there, is heard and refused.
fn a_rogue_is_not_believed(site: &Site) {
    let node = &site.nodes["a2"];
    let lies = ["fd20:0:0:15::/64", "fd20:0:0:99::/64"];
    let config = std::fs::read_to_string(node.folder.join("bird.conf")).unwrap();
    let all: String = lies.iter().map(|net| format!(" route {net} blackhole;")).collect();
    let file = node.folder.join("rogue.conf");
    std::fs::write(&file, config.replacen("ipv6;", &format!("ipv6;{all}"), 1)).unwrap();
    let told = site.birdc("a2", &format!("configure '\"{}\"'", file.display()));
    assert!(told.contains("Reconfig"), "{told}");
    await_until("the lies at tor-a", LIMIT, || {
        let refused = site.birdc("tor-a", "show route filtered");
        if lies.iter().all(|lie| refused.contains(lie)) { Ok(()) } else { Err(refused) }
    });
    let own = node_address(site, "a2");
    for lie in lies {
        let way = shell_in("tor-a", &format!("ip -6 route show {lie}"));
        assert!(!way.split_whitespace().any(|word| word == own), "{way}");
    }
    let file = node.folder.join("bird.conf");
    let told = site.birdc("a2", &format!("configure '\"{}\"'", file.display()));
    assert!(told.contains("Reconfig"), "{told}");
}

fn node_address(site: &Site, node: &str) -> String {
    site.plan.machine(node).unwrap().address_v6.unwrap().to_string()
}

#[test]
fn pods_of_two_families_reach_each_other_whatever_their_racks_speak() {
    let rack_a = json!({"mode": "bgp", "torAsn": 65001, "tors": ["10.98.1.1", "10.98.1.2"]});
    let rack_c = json!({"mode": "ibgp", "asn": 65003, "reflectors": ["c1", "c2"]});
    let plan = dual(plan(&[rack_a, ospf(65002), rack_c], &FIVE));
    let test = "families::pods_of_two_families_reach_each_other_whatever_their_racks_speak";
    tell(test, &PROGRAMS, plan, |site| {
        let pods = wire(site);
        everyone_connects(site, &pods);
        surveys_find_no_difference(site);
        // The node itself is seen as itself by its pods, and reaches those of others.
        let own: IpAddr = node_address(site, "a1").parse().unwrap();
        let node = &site.nodes["a1"].namespace;
        for pod in [&pods[0], &pods[2]] {
            assert_eq!(connects_any(node, &pod.inside, pod.addresses[1]), Ok(own));
        }
        a_rogue_is_not_believed(site);
        // A router without power takes neither family with it.
        let tor = site.tor("tor-a2");
        let mut bird = site.tors[tor].bird.take().unwrap();
        bird.kill();
        shell_in("tor-a2", "ip link set rack0 down; ip link set to-tor-b down");
        await_until("a1 goes by the other router alone", LIMIT, || {
            let routes = shell_in("a1", "ip -6 route show fd20:0:0:15::/64 proto bird");
            let right = routes.contains("fd10:0:0:1::1 ") && !routes.contains("fd10:0:0:1::2 ");
            if right { Ok(()) } else { Err(format!("{routes}\n{}", site.state())) }
        });
        everyone_connects(site, &pods);
    });
}

#[test]
fn pods_reach_each_other_over_links_without_numbers() {
    let rack_a = json!({"mode": "bgp", "torAsn": 65001, "numbering": "unnumbered",
        "tors": ["10.98.1.1", "10.98.1.2"]});
    let rack_b = json!({"mode": "bgp", "torAsn": 65002, "numbering": "unnumbered"});
    let plan = dual(plan(&[keyed(rack_a), rack_b], &FIVE[..3]));
    let test = "families::pods_reach_each_other_over_links_without_numbers";
    tell(test, &PROGRAMS, plan, |site| {
        let pods = wire(site);
        everyone_connects(site, &pods);
        surveys_find_no_difference(site);
        // IPv4 goes by both routers, each known by the link's own address alone.
        let route = shell_in("a1", "ip route show 172.20.21.0/24 proto bird");
        let by = |router: &str| route.contains(&format!("via inet6 {router} dev eth0"));
        assert!(by("fe80::1") && by("fe80::2"), "{route}");
        a_rogue_is_not_believed(site);
        let tor = site.tor("tor-a2");
        let mut bird = site.tors[tor].bird.take().unwrap();
        bird.kill();
        shell_in("tor-a2", "ip link set rack0 down; ip link set to-tor-b down");
        await_until("a1 goes by the other router alone", LIMIT, || {
            let routes = shell_in("a1", "ip route show 172.20.21.0/24 proto bird");
            let right = routes.contains("fe80::1 ") && !routes.contains("fe80::2 ");
            if right { Ok(()) } else { Err(format!("{routes}\n{}", site.state())) }
        });
        everyone_connects(site, &pods);
    });
}
