//! Racks with two ToR routers, racks of route reflectors, and racks with keys: what breaks, and
//! who goes on.

use cluster::plan::Role;
use serde_json::json;

use crate::site::{
    LIMIT, PROGRAMS, Place, Site, THREE, bgp, key_of, keyed, keys_object, ospf, plan,
};
use crate::support::{await_until, connects, shell_in};
use crate::{
    a_rogue_is_not_believed, everyone_connects, surveys_find_no_difference, tell, tell_lies,
    wire_pods,
};

/// Waits until a machine's way to `net` leads through exactly these gateways.
#[track_caller]
fn leads(site: &Site, from: &str, net: &str, gateways: &[&str]) -> std::time::Duration {
    await_until(&format!("{from}: {net} by {gateways:?}"), LIMIT, || {
        let route = shell_in(from, &format!("ip route show {net} proto bird"));
        let words: Vec<&str> = route.split_whitespace().collect();
        let mut found: Vec<&str> =
            words.windows(2).filter_map(|pair| (pair[0] == "via").then_some(pair[1])).collect();
        found.sort_unstable();
        if found == gateways { Ok(()) } else { Err(format!("{route}\n{}", site.state())) }
    })
}

const BOTH: [&str; 2] = ["10.98.1.1", "10.98.1.2"];

#[test]
fn a_rack_outlives_either_of_its_two_routers() {
    let rack_a = json!({"mode": "bgp", "torAsn": 65001, "tors": BOTH});
    let plan = plan(&[rack_a, bgp(65002)], &THREE);
    tell("stories::a_rack_outlives_either_of_its_two_routers", &PROGRAMS, plan, |site| {
        let pods = wire_pods(site);
        everyone_connects(site, &pods);
        for node in ["a1", "a2"] {
            leads(site, node, "172.20.21.0/24", &BOTH);
        }
        // The way back is spread, too.
        leads(site, "tor-b", "172.20.11.0/24", &["10.98.255.0", "10.98.255.2"]);
        surveys_find_no_difference(site);
        a_rogue_is_not_believed(site, "a2", &["tor-a", "tor-a2"]);

        // Power fails: no goodbye, no carrier.
        let tor = site.tor("tor-a2");
        let mut bird = site.tors[tor].bird.take().unwrap();
        bird.kill();
        shell_in("tor-a2", "ip link set rack0 down; ip link set to-tor-b down");
        let gone = leads(site, "a1", "172.20.21.0/24", &["10.98.1.1"]);
        everyone_connects(site, &pods);
        shell_in("tor-a2", "ip link set to-tor-b up; ip link set rack0 up");
        std::fs::remove_file(site.folder.join("tor-a2/bird.ctl")).unwrap();
        site.start_tor(tor);
        let back = leads(site, "a1", "172.20.21.0/24", &BOTH);
        println!("router without power: left after {gone:?}; with power: back after {back:?}");

        // The gateway's cable to the switch is cut.
        shell_in("switch-a", "ip link set tor-a down");
        let cut = leads(site, "a1", "172.20.21.0/24", &["10.98.1.2"]);
        leads(site, "tor-b", "172.20.11.0/24", &["10.98.255.2"]);
        everyone_connects(site, &pods);
        shell_in("switch-a", "ip link set tor-a up");
        leads(site, "a1", "172.20.21.0/24", &BOTH);

        // It drops everything, carrier up: only BFD can tell.
        let swallow = "nft add table netdev swallow; \
            nft add chain netdev swallow everything \"{ type filter hook ingress device tor-a2 priority 0; policy drop; }\"";
        shell_in("switch-a", swallow);
        let silent = leads(site, "a1", "172.20.21.0/24", &["10.98.1.1"]);
        everyone_connects(site, &pods);
        shell_in("switch-a", "nft delete table netdev swallow");
        leads(site, "a1", "172.20.21.0/24", &BOTH);
        surveys_find_no_difference(site);
        println!("cable cut: left after {cut:?}; silent: left after {silent:?}");
    });
}

const FOUR: [Place; 4] =
    [("a1", "a", 1, 11), ("a2", "a", 1, 12), ("a3", "a", 1, 13), ("b1", "b", 2, 21)];

#[test]
fn a_flat_rack_outlives_either_of_its_reflectors() {
    let rack_a = json!({"mode": "ibgp", "asn": 65001, "reflectors": ["a1", "a2"]});
    let plan = plan(&[rack_a, bgp(65002)], &FOUR);
    tell("stories::a_flat_rack_outlives_either_of_its_reflectors", &PROGRAMS, plan, |site| {
        let pods = wire_pods(site);
        everyone_connects(site, &pods);
        // Straight to the node, not by way of the reflector.
        leads(site, "a3", "172.20.12.0/24", &["10.98.1.12"]);
        leads(site, "a2", "172.20.13.0/24", &["10.98.1.13"]);
        a_rogue_is_not_believed(site, "a3", &["a1", "a2"]);

        let folder = site.nodes["a1"].folder.clone();
        site.nodes.get_mut("a1").unwrap().bird.kill();
        await_until("a3 lost the reflector's own word", LIMIT, || {
            let route = shell_in("a3", "ip route show 172.20.11.0/24 proto bird");
            if route.is_empty() { Ok(()) } else { Err(route) }
        });
        leads(site, "a3", "172.20.12.0/24", &["10.98.1.12"]);
        leads(site, "a2", "172.20.13.0/24", &["10.98.1.13"]);
        everyone_connects(site, &pods);
        std::fs::remove_file(folder.join("bird.ctl")).unwrap();
        site.nodes.get_mut("a1").unwrap().bird = crate::bird("a1", &folder);
        leads(site, "a3", "172.20.11.0/24", &["10.98.1.11"]);
        everyone_connects(site, &pods);
    });
}

#[test]
fn who_has_a_wrong_key_is_nobody() {
    let plan = plan(&[keyed(bgp(65001)), keyed(ospf(65002))], &THREE);
    tell("stories::who_has_a_wrong_key_is_nobody", &PROGRAMS, plan, |site| {
        let pods = wire_pods(site);
        everyone_connects(site, &pods);
        for (node, rack, tor, net, address) in [
            ("a2", "a", "tor-a", "172.20.12.0/24", "10.98.1.12"),
            ("b1", "b", "tor-b", "172.20.21.0/24", "10.98.2.21"),
        ] {
            let secrets = "/api/v1/namespaces/kube-system/secrets";
            let wrong = keys_object(&[(rack, "a-key-from-last-year".to_owned())]);
            site.nodes[node].items.set(secrets, vec![wrong]);
            await_until(&format!("{tor} let go of {node}"), LIMIT, || {
                let route = shell_in(tor, &format!("ip route show {net} proto bird"));
                if route.is_empty() { Ok(()) } else { Err(site.state()) }
            });
            site.nodes[node].items.set(secrets, vec![keys_object(&[(rack, key_of(rack))])]);
            leads(site, tor, net, &[address]);
        }
        everyone_connects(site, &pods);
    });
}

#[test]
fn the_apis_address_follows_the_masters_that_are_ready() {
    let mut plan = plan(&[bgp(65001), ospf(65002)], &THREE);
    plan.networks.api = Some("10.98.254.1".parse().unwrap());
    for master in &mut plan.machines[..2] {
        master.role = Role::Master;
    }
    let test = "stories::the_apis_address_follows_the_masters_that_are_ready";
    tell(test, &PROGRAMS, plan, |site| {
        let api = "10.98.254.1/32";
        let pods = wire_pods(site);
        everyone_connects(site, &pods);
        leads(site, "tor-a", api, &[]);
        let reaches = |from: &str, to: &str| {
            await_until(&format!("{from} reaches the API at {to}"), LIMIT, || {
                let (from, to) = (&site.nodes[from].namespace, &site.nodes[to].namespace);
                connects(from, to, "10.98.254.1".parse().unwrap()).map(drop)
            })
        };
        let holds = |node: &str| shell_in(node, "ip -o addr show dev lo").contains(api);

        site.nodes["a1"].items.set_ready(true);
        leads(site, "tor-a", api, &["10.98.1.11"]);
        reaches("b1", "a1");
        reaches("a2", "a1");
        site.nodes["a2"].items.set_ready(true);
        leads(site, "tor-a", api, &["10.98.1.11", "10.98.1.12"]);
        assert!(holds("a1") && holds("a2") && !holds("b1"));

        // Its server says that it is not ready, or says nothing at all any more.
        site.nodes["a1"].items.set_ready(false);
        let unready = leads(site, "tor-a", api, &["10.98.1.12"]);
        reaches("b1", "a2");
        reaches("a1", "a2");
        assert!(!holds("a1"));
        site.nodes["a1"].items.set_ready(true);
        leads(site, "tor-a", api, &["10.98.1.11", "10.98.1.12"]);
        site.nodes["a2"].items.close();
        let dead = leads(site, "tor-a", api, &["10.98.1.11"]);
        println!("not ready: withdrawn after {unready:?}; dead: after {dead:?}");

        // A worker has no business with it.
        tell_lies(site, "b1", &[api], &["tor-b"]);
        leads(site, "tor-b", api, &["10.98.255.0"]);
    });
}
