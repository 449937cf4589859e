//! Links, addresses and routes against the real kernel, in namespaces of the test's own.

#![allow(clippy::unwrap_used, reason = "helpers of tests: clippy's leave does not reach them")]

mod alone;

use std::net::IpAddr;

use kernel::nft::{Element, Elements, Parts, Place, Transaction, Value};
use kernel::sync::{Change, Network};
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
        assert_eq!(
            (link.mtu, link.up, link.carrier),
            (1400, true, false),
            "the peer is not up yet"
        );

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

        // What the boot learnt stays beside it, and comes second to what routers say.
        kernel::packet::set_default_route("here0", "10.0.0.252".parse().unwrap()).unwrap();
        let routes = network.routes(Family::V4).unwrap();
        let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0);
        let mut metrics: Vec<_> = defaults.map(|route| route.metric).collect();
        metrics.sort();
        assert_eq!(metrics, [None, Some(1024)]);

        network.delete_route(&hole).unwrap();
        assert!(network.delete_route(&hole).unwrap_err().is_missing());
        network.delete_link(link.index).unwrap();
        assert!(network.delete_link(link.index).unwrap_err().is_missing());
        assert_eq!(network.link("here0").unwrap(), None);
    });
}

#[test]
fn changes_go_together_and_the_first_failure_is_told() {
    alone("changes_go_together_and_the_first_failure_is_told", &["ip", "nsenter"], || {
        let (network, there) = (Network::open().unwrap(), namespace("there"));
        let veth = Veth { name: "here0", peer: "there0", peer_namespace: &there, mtu: 1400 };
        let ours = network.add_veth(&veth).unwrap();
        assert_eq!((ours.name.as_str(), ours.mtu, ours.up), ("here0", 1400, true));
        let inside = Network::open_in(&there).unwrap();
        let loopback = inside.require_link("lo").unwrap().index;
        let link = inside.apply_and_find(&[Change::SetUp(loopback)], "there0").unwrap().index;
        assert!(inside.require_link("lo").unwrap().up);
        let own =
            Address { address: address("10.7.0.2"), prefix_len: 32, scope: AddressScope::Global };
        let gateway = address("169.254.1.1");
        let near = Route::on_link(gateway.into(), link);
        let hop = NextHop { gateway: Some(gateway), link: Some(link), onlink: false };
        let far = Route::via("0.0.0.0/0".parse().unwrap(), hop);
        // The way to the gateway comes after what leads by it: that fails, and the rest is done.
        let disorder = [
            Change::SetUp(link),
            Change::AddAddress(link, own),
            Change::ReplaceRoute(&far),
            Change::ReplaceRoute(&near),
        ];
        let told = inside.apply(&disorder).unwrap_err();
        assert_eq!(told.to_string(), format!("cannot replace route {far}"));
        let routes = inside.routes(Family::V4).unwrap();
        assert_eq!(routes.iter().map(|one| one.destination).collect::<Vec<_>>(), [gateway.into()]);
        inside.apply(&disorder).unwrap();
        inside.apply(&[]).unwrap();
        assert_eq!(inside.routes(Family::V4).unwrap().len(), 2);
        assert!(inside.apply_and_find(&[], "there9").unwrap_err().is_missing());
        // What failed leaves nothing behind that the next answer could be taken for.
        assert_eq!(inside.require_link("there0").unwrap().index, link);
        assert_eq!(inside.links().unwrap().len(), 2);
        let addresses = inside.addresses(link).unwrap();
        assert_eq!(addresses.iter().filter(|one| one.address.is_ipv4()).count(), 1);
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
        let ours = translated(&conntrack::flows(conntrack::Family::V4).unwrap());
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert_eq!(ours[0].destination, ("10.9.9.9".parse().unwrap(), 53));
        assert_eq!(ours[0].answering, ("127.0.0.1".parse().unwrap(), 5353));
        conntrack::forget(&ours).unwrap();
        conntrack::forget(&ours).unwrap();
        assert_eq!(translated(&conntrack::flows(conntrack::Family::V4).unwrap()), []);
    });
}

fn apply(script: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(nft::apply(script)).unwrap();
}

/// A family of addresses in nft's words, and two of its addresses with the range they are.
struct Words {
    family: nft::Family,
    table: &'static str,
    kind: &'static str,
    first: IpAddr,
    last: IpAddr,
    range: &'static str,
}

fn families() -> [Words; 2] {
    [
        Words {
            family: nft::Family::V4,
            table: "ip",
            kind: "ipv4_addr",
            first: address("10.0.0.0"),
            last: address("10.0.0.255"),
            range: "10.0.0.0/24",
        },
        Words {
            family: nft::Family::V6,
            table: "ip6",
            kind: "ipv6_addr",
            first: address("fd00::"),
            last: address("fd00::ff"),
            range: "fd00::-fd00::ff",
        },
    ]
}

const SETS: [&str; 4] = ["verdicts", "ends", "one", "ranges"];

impl Words {
    fn structure(&self) -> String {
        let Self { table, kind, .. } = self;
        format!(
            "table {table} t {{
                chain there {{ accept; }}
                map verdicts {{ type {kind} . inet_proto . inet_service : verdict; }}
                map ends {{ type inet_proto . inet_service . mark : {kind} . inet_service; }}
                set one {{ type {kind}; }}
                set ranges {{ type {kind} . inet_service . {kind}; flags interval; }}
            }}\n"
        )
    }

    fn by_nft(&self) -> String {
        let Self { table, first, last, range, .. } = self;
        let elements = [
            format!("{first} . udp . 53 : goto there, {first} . udp . 54 : drop"),
            format!("tcp . 30080 . 0 : {last} . 8080, tcp . 30080 . 65536 : {last} . 8080"),
            first.to_string(),
            format!("{first} . 80 . {range}"),
        ];
        let lines = SETS.iter().zip(elements);
        lines.map(|(set, all)| format!("add element {table} t {set} {{ {all} }}\n")).collect()
    }

    /// The same as [`Self::by_nft`].
    fn by_netlink(&self) -> Vec<(&'static str, Element<'static>)> {
        let slot = |mark| Parts::new().protocol(6).port(30080).mark(mark);
        let end = || Value::Parts(Parts::new().address(self.last).port(8080));
        let range = |end| Parts::new().address(self.first).port(80).address(end);
        let (key, key_end) = (range(self.first), Some(range(self.last)));
        vec![
            ("verdicts", element(self.service(53), Value::Goto("there"))),
            ("verdicts", element(self.service(54), Value::Drop)),
            ("ends", element(slot(0), end())),
            ("ends", element(slot(65536), end())),
            ("one", element(Parts::new().address(self.first), Value::None)),
            ("ranges", Element { key, key_end, value: Value::None }),
        ]
    }

    fn service(&self, port: u16) -> Parts {
        Parts::new().address(self.first).protocol(17).port(port)
    }

    fn place(&self, set: &'static str) -> Place<'static> {
        Place { family: self.family, table: "t", set }
    }

    fn held(&self, elements: &mut Elements) -> [Vec<nft::Held>; 4] {
        let mut all = SETS.map(|set| elements.list(self.place(set)).unwrap());
        all.iter_mut().for_each(|set| set.sort());
        all
    }

    fn all(&self, verb: fn(&mut Transaction, Place<'_>, &Element<'_>)) -> Transaction {
        let mut transaction = Transaction::default();
        for (set, element) in self.by_netlink() {
            verb(&mut transaction, self.place(set), &element);
        }
        transaction
    }
}

fn element(key: Parts, value: Value<'static>) -> Element<'static> {
    Element { key, key_end: None, value }
}

#[test]
fn elements_go_in_and_out_as_nft_would_have_them() {
    alone("elements_go_in_and_out_as_nft_would_have_them", &["nft"], || {
        let mut elements = Elements::open().unwrap();
        for words in families() {
            assert!(!elements.has_table(words.family, "t").unwrap());
            apply(&words.structure());
            assert!(elements.has_table(words.family, "t").unwrap());
            apply(&words.by_nft());
            let wanted = words.held(&mut elements);
            assert_eq!(wanted.each_ref().map(Vec::len), [2, 2, 1, 1], "{wanted:?}");

            let before = elements.generation().unwrap();
            elements.commit(words.all(Transaction::remove)).unwrap();
            assert_ne!(elements.generation().unwrap(), before);
            assert_eq!(words.held(&mut elements).map(|set| set.len()), [0; 4]);
            let twice = elements.commit(words.all(Transaction::remove));
            assert_eq!(twice.unwrap_err().refused(), Some(libc::ENOENT));
            elements.commit(words.all(Transaction::add)).unwrap();
            assert_eq!(words.held(&mut elements), wanted);

            // Half of what cannot be is nothing.
            let mut mixed = words.all(Transaction::remove);
            let unknown = element(words.service(55), Value::Drop);
            mixed.remove(words.place("verdicts"), &unknown);
            let outcome = elements.commit(mixed);
            assert_eq!(outcome.unwrap_err().refused(), Some(libc::ENOENT));
            let mut mixed = words.all(Transaction::remove);
            let astray = element(words.service(55), Value::Goto("nowhere"));
            mixed.add(words.place("verdicts"), &astray);
            let outcome = elements.commit(mixed);
            assert_eq!(outcome.unwrap_err().refused(), Some(libc::ENOENT));
            assert_eq!(words.held(&mut elements), wanted);
        }
    });
}

#[test]
fn a_transaction_may_be_larger_than_a_sockets_room() {
    alone("a_transaction_may_be_larger_than_a_sockets_room", &["nft"], || {
        let [words, _] = families();
        apply(&words.structure());
        let mut elements = Elements::open().unwrap();
        let place = words.place("ends");
        let many = |mut transaction: Transaction,
                    verb: fn(&mut Transaction, Place<'_>, &Element<'_>)| {
            for mark in 0..1500 {
                let key = Parts::new().protocol(17).port(53).mark(mark);
                let end = Parts::new().address(words.first).port(53);
                verb(&mut transaction, place, &element(key, Value::Parts(end)));
            }
            transaction
        };
        elements.commit(many(Transaction::default(), Transaction::add)).unwrap();
        assert_eq!(elements.list(place).unwrap().len(), 1500);
        elements.commit(many(Transaction::default(), Transaction::remove)).unwrap();
        assert_eq!(elements.list(place).unwrap(), []);
        apply("add element ip t ends { tcp . 80 . 0 : 10.0.0.1 . 80 }");
        // Everything is another thing at once.
        let mut transaction = Transaction::default();
        transaction.flush(place);
        elements.commit(many(transaction, Transaction::add)).unwrap();
        assert_eq!(elements.list(place).unwrap().len(), 1500);
        let mut transaction = Transaction::default();
        transaction.flush(place);
        elements.commit(transaction).unwrap();
        assert_eq!(elements.list(place).unwrap(), []);
    });
}
