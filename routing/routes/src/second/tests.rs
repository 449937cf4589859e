use cluster::plan::{Numbering, Plan, RackRouting};
use expect_test::expect_file;

use crate::fixture::{accepted_by_bird, dual};
use crate::intent::Source;
use crate::{Intent, TorIntent, render_node, render_tor};

fn intent(plan: &Plan, node: &str) -> Intent {
    Intent::new(Source {
        node,
        interface: "eth0",
        pods: None,
        racks: &plan.racks,
        machines: &plan.machines,
        networks: &plan.networks,
        keys: &std::collections::BTreeMap::new(),
    })
    .unwrap()
}

#[track_caller]
fn check(text: &str, expected: expect_test::ExpectFile) {
    expected.assert_eq(text);
    accepted_by_bird(text);
}

/// Rack c as a flat one of route reflectors.
fn flat() -> Plan {
    let mut plan = dual();
    let reflectors = vec!["c-three".to_owned(), "c-one".to_owned()];
    plan.racks[2].routing = RackRouting::Ibgp { asn: 65010, reflectors };
    plan
}

#[test]
fn nodes_of_two_families_say_the_same_of_both() {
    let node = |plan: &Plan, node: &str| render_node(&intent(plan, node));
    check(&node(&dual(), "a-worker"), expect_file!["../../testdata/node-bgp-dual.conf"]);
    check(&node(&dual(), "b-one"), expect_file!["../../testdata/node-ospf-dual.conf"]);
    check(&node(&flat(), "c-two"), expect_file!["../../testdata/node-ibgp-dual.conf"]);
    check(&node(&flat(), "c-three"), expect_file!["../../testdata/node-ibgp-reflector-dual.conf"]);
}

#[test]
fn routers_of_two_families_judge_both() {
    let tor = |plan: &Plan, rack: &str| {
        let mut intent = TorIntent::new(plan, rack, "br0").unwrap();
        intent.uplinks.push(crate::tor::Uplink {
            name: "far".to_owned(),
            interface: "up0".to_owned(),
            address: "10.98.255.1".parse().unwrap(),
            asn: 65099,
        });
        render_tor(&intent)
    };
    check(&tor(&dual(), "a"), expect_file!["../../testdata/tor-bgp-dual.conf"]);
    check(&tor(&dual(), "b"), expect_file!["../../testdata/tor-ospf-dual.conf"]);
    check(&tor(&flat(), "c"), expect_file!["../../testdata/tor-ibgp-dual.conf"]);
}

/// The site with a rack a whose routers have no address but the links' own.
fn unnumbered(mut plan: Plan) -> Plan {
    let tors = vec!["10.98.1.1".parse().unwrap(), "10.98.1.2".parse().unwrap()];
    plan.racks[0].routing =
        RackRouting::Bgp { tor_asn: 65001, tors, numbering: Numbering::Unnumbered };
    plan
}

#[test]
fn without_numbers_routers_judge_by_as_numbers() {
    for (plan, node, tor) in [
        (
            unnumbered(crate::fixture::plan()),
            expect_file!["../../testdata/node-bgp-unnumbered.conf"],
            expect_file!["../../testdata/tor-bgp-unnumbered.conf"],
        ),
        (
            unnumbered(dual()),
            expect_file!["../../testdata/node-bgp-unnumbered-dual.conf"],
            expect_file!["../../testdata/tor-bgp-unnumbered-dual.conf"],
        ),
    ] {
        check(&render_node(&intent(&plan, "a-worker")), node);
        check(&render_tor(&TorIntent::new(&plan, "a", "swp1").unwrap()), tor);
    }
}

#[test]
fn keys_sign_both_instances_of_ospf() {
    let plan = dual();
    let mut node = intent(&plan, "b-one");
    node.key = Some(crate::Key::new("correct-horse-7").unwrap());
    let text = render_node(&node);
    accepted_by_bird(&text);
    assert_eq!(text.matches("correct-horse-7").count(), 2, "{text}");
}
