//! Links, addresses and routes against the real kernel, in namespaces of the test's own.

#![allow(clippy::unwrap_used, reason = "helpers of tests: clippy's leave does not reach them")]

mod alone;

use std::net::IpAddr;

use kernel::sync::Network;
use kernel::{
    Address, AddressScope, Family, NextHop, Route, RouteKind, RouteOrigin, Veth, conntrack, nft,
    sysctl,
};

use alone::{alone, namespace, shell};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn links_addresses_and_routes_are_what_was_asked_for() {
    alone("links_addresses_and_routes_are_what_was_asked_for", &["ip", "nsenter"], || {
        let (network, there) = (Network::open().unwrap(), namespace("there"));
        let veth = Veth { name: "here0", peer: "there0", peer_namespace: &there, mtu: 1400 };
        network.add_veth(&veth).unwrap();
        assert!(network.add_veth(&veth).unwrap_err().is_exists());
        assert_eq!(network.link("there0").unwrap(), None, "the peer never was here");
        let link = network.require_link("here0").unwrap();
        assert_eq!((link.mtu, link.up, link.carrier), (1400, false, false));

        network.set_up(link.index).unwrap();
        there.enter(|there| there.set_up(there.require_link("there0")?.index)).unwrap().unwrap();
        let link = network.require_link("here0").unwrap();
        assert_eq!((link.up, link.carrier, link.mac.len()), (true, true, 17));

        let own =
            Address { address: address("10.0.0.1"), prefix_len: 24, scope: AddressScope::Global };
        network.add_address(link.index, own).unwrap();
        network.add_address(link.index, own).unwrap();
        let v4 = |one: &&Address| one.address.is_ipv4();
        let addresses = network.addresses(link.index).unwrap();
        assert_eq!(addresses.iter().filter(v4).collect::<Vec<_>>(), [&own]);

        network.set_default_route(link.index, address("10.0.0.254")).unwrap();
        network.set_default_route(link.index, address("10.0.0.253")).unwrap();
        let hole = Route::blackhole("172.20.1.0/24".parse().unwrap());
        network.replace_route(&hole).unwrap();
        let hop =
            NextHop { gateway: Some(address("169.254.1.1")), link: Some(link.index), onlink: true };
        network.replace_route(&Route::via("10.9.0.0/16".parse().unwrap(), hop)).unwrap();
        let hops = ["10.0.0.2", "10.0.0.3"].map(|gateway| NextHop {
            gateway: Some(address(gateway)),
            link: Some(link.index),
            onlink: false,
        });
        let kind = RouteKind::Unicast(hops.to_vec());
        network
            .replace_route(&Route {
                kind: kind.clone(),
                ..Route::via("10.8.0.0/16".parse().unwrap(), hop)
            })
            .unwrap();

        let routes = network.routes(Family::V4).unwrap();
        let find = |text: &str| {
            routes.iter().find(|route| route.destination.to_string() == text).unwrap().clone()
        };
        assert_eq!(find("172.20.1.0/24"), hole);
        assert_eq!(find("10.8.0.0/16").kind, kind);
        assert_eq!(find("10.9.0.0/16").kind, RouteKind::Unicast(vec![hop]));
        assert_eq!(find("10.0.0.0/24").origin, RouteOrigin::Kernel);
        let gateway =
            NextHop { gateway: Some(address("10.0.0.253")), link: Some(link.index), onlink: false };
        assert_eq!(find("0.0.0.0/0").kind, RouteKind::Unicast(vec![gateway]));

        network.delete_route(&hole).unwrap();
        assert!(network.delete_route(&hole).unwrap_err().is_missing());
        network.delete_link(link.index).unwrap();
        assert!(network.delete_link(link.index).unwrap_err().is_missing());
        assert_eq!(network.link("here0").unwrap(), None);
    });
}

#[test]
fn settings_and_transactions_take_effect_or_say_why() {
    alone("settings_and_transactions_take_effect_or_say_why", &["ip", "nft"], || {
        sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(sysctl::read("net/ipv4/ip_forward").unwrap(), "1");
        assert!(sysctl::write("net/ipv4/no_such_thing", "1").unwrap_err().is_missing());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            nft::apply("table ip one {\n}\n").await.unwrap();
            assert!(nft::has_table("ip", "one").await.unwrap());
            let half = "table ip two {\n}\ndelete table ip three\n";
            let refused = nft::apply(half).await.unwrap_err();
            assert!(refused.to_string().starts_with("nft refused: "), "{refused}");
            assert!(!nft::has_table("ip", "two").await.unwrap(), "all or nothing");
            assert_eq!(nft::list_table("ip", "two").await.unwrap(), None);
        });
        assert!(shell("nft list tables").contains("table ip one"));
    });
}

#[test]
fn translated_flows_are_listed_and_forgotten() {
    alone("translated_flows_are_listed_and_forgotten", &["ip", "nft"], || {
        let rules = "table ip t {\n chain c { type nat hook output priority -100; \
            ip daddr 10.9.9.9 udp dport 53 dnat to 127.0.0.1:5353; }\n}\n";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(nft::apply(rules)).unwrap();
        shell("ip addr add 10.9.9.1/24 dev lo");
        let client = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
        client.send_to(b"?", "10.9.9.9:53").unwrap();
        client.send_to(b"?", "127.0.0.1:9").unwrap_or_default();
        let translated = |flows: &[conntrack::Flow]| -> Vec<conntrack::Flow> {
            flows.iter().filter(|flow| flow.destination.1 == 53).cloned().collect()
        };
        let ours = translated(&conntrack::flows().unwrap());
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert_eq!(ours[0].destination, ("10.9.9.9".parse().unwrap(), 53));
        assert_eq!(ours[0].answering, ("127.0.0.1".parse().unwrap(), 5353));
        conntrack::forget(&ours).unwrap();
        conntrack::forget(&ours).unwrap();
        assert_eq!(translated(&conntrack::flows().unwrap()), []);
    });
}
