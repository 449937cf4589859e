use expect_test::expect_file;

use super::*;
use crate::fixture::{accepted_by_bird, plan};

#[track_caller]
fn check(rack: &str, uplink: Option<Uplink>, expected: expect_test::ExpectFile) {
    let mut intent = TorIntent::new(&plan(), rack, "br0").unwrap();
    intent.uplinks.extend(uplink);
    intent.advertisement = Advertisement::Presence;
    let text = render_tor(&intent);
    expected.assert_eq(&text);
    accepted_by_bird(&text);
}

fn uplink(name: &str, address: &str, asn: u32) -> Option<Uplink> {
    let interface = "up0".to_owned();
    Some(Uplink { name: name.to_owned(), interface, address: address.parse().unwrap(), asn })
}

#[test]
fn a_tor_takes_from_each_node_only_that_nodes_pods() {
    check("a", uplink("tor-b", "10.98.255.1", 65002), expect_file!["../../testdata/tor-bgp.conf"]);
}

#[test]
fn an_ospf_tor_redistributes_between_rack_and_other_tors() {
    check("b", uplink("tor-a", "10.98.255.0", 65001), expect_file!["../../testdata/tor-ospf.conf"]);
}

#[test]
fn an_ospf_tor_may_stand_alone() {
    check("c", None, expect_file!["../../testdata/tor-ospf-alone.conf"]);
}

#[test]
fn there_is_no_tor_without_a_rack() {
    assert_eq!(TorIntent::new(&plan(), "nowhere", "br0"), None);
}

#[test]
fn only_masters_may_announce_the_apis_address() {
    let mut plan = plan();
    plan.networks.api = Some("10.98.254.1".parse().unwrap());
    let text = render_tor(&TorIntent::new(&plan, "a", "br0").unwrap());
    accepted_by_bird(&text);
    let takes = |node: &str| {
        let block = text.split(&format!("# {node}\n")).nth(1).unwrap();
        block.split("\n}").next().unwrap().contains("10.98.254.1/32")
    };
    assert!(takes("a-master") && !takes("a-worker"), "{text}");

    plan.machines.iter_mut().find(|one| one.name == "b-one").unwrap().role = Role::Master;
    let text = render_tor(&TorIntent::new(&plan, "b", "br0").unwrap());
    accepted_by_bird(&text);
    let line = |address: &str| {
        text.contains(&format!(
            "if net = 10.98.254.1/32 && ospf_router_id = {address} then accept;"
        ))
    };
    assert!(line("10.98.2.21") && !line("10.98.2.22"), "{text}");
}
