use expect_test::{Expect, expect, expect_file};

use crate::plan::Plan;

const LAB: &str = include_str!("../../../../examples/lab/rack.yaml");

fn verdict(text: &str) -> String {
    match Plan::parse(text) {
        Ok(plan) => plan.warnings().iter().map(|warning| format!("warning: {warning}\n")).collect(),
        Err(problems) => problems.iter().map(|problem| format!("{problem}\n")).collect(),
    }
}

/// Replaces one piece of the lab's file and compares what is said about it.
#[track_caller]
fn check(from: &str, to: &str, expected: Expect) {
    assert!(LAB.contains(from), "{from} is not in the lab's file");
    expected.assert_eq(&verdict(&LAB.replacen(from, to, 1)));
}

#[test]
fn the_examples_are_sound() {
    check("site: lab", "site: lab", expect![""]);
    assert_eq!(verdict(include_str!("../../../../examples/university/rack.yaml")), "");
    assert_eq!(verdict(include_str!("../../../../examples/campus/rack.yaml")), "");
    assert_eq!(verdict(include_str!("../../../../examples/two-tors/rack.yaml")), "");
    assert_eq!(verdict(include_str!("../../../../examples/two-families/rack.yaml")), "");
    assert_eq!(verdict(include_str!("../../../../examples/database/rack.yaml")), "");
}

#[test]
fn the_apis_address_is_nobodys_own() {
    check(
        "services: 172.21.0.0/24",
        "services: 172.21.0.0/24\n  api: 10.98.1.11",
        expect![[r#"
        line 15: networks.api = 10.98.1.11/32: overlaps racks[0].subnet = 10.98.1.0/24; choose a range of its own
    "#]],
    );
    let free = LAB.replacen("services:", "api: 10.98.254.1\n  services:", 1);
    let plan = Plan::parse(&free).unwrap();
    assert_eq!(plan.networks.api, Some("10.98.254.1".parse().unwrap()));
}

/// The lab with a second family.
fn dual() -> String {
    LAB.replacen("services:", "podsV6: fd20::/48\n  servicesV6: fd21::/112\n  services:", 1)
        .replacen("subnet: 10.98.1.0/24", "subnet: 10.98.1.0/24\n    subnetV6: fd10:0:0:1::/64", 1)
        .replacen("subnet: 10.98.2.0/24", "subnet: 10.98.2.0/24\n    subnetV6: fd10:0:0:2::/64", 1)
}

#[test]
fn a_second_family_follows_from_node_numbers_and_first_addresses() {
    let plan = Plan::parse(&dual()).unwrap();
    // Services that ask for no family get IPv4, as before there was a second one.
    assert_eq!(plan.networks.service_cidrs(), "172.21.0.0/24,fd21::/112");
    assert_eq!(Plan::parse(LAB).unwrap().networks.service_cidrs(), "172.21.0.0/24");
    let machine = plan.machine("b-worker").unwrap();
    assert_eq!(machine.node, 21);
    assert_eq!(machine.pod_cidr_v6, Some("fd20:0:0:15::/64".parse().unwrap()));
    assert_eq!(machine.address_v6, Some("fd10:0:0:2::15".parse().unwrap()));
    let rack = plan.rack("b").unwrap();
    assert_eq!(rack.address_v6(rack.gateway), Some("fd10:0:0:2::1".parse().unwrap()));
    assert_eq!(rack.address_v6("10.98.1.1".parse().unwrap()), None);
    assert_eq!(Plan::parse(LAB).unwrap().machine("b-worker").unwrap().address_v6, None);
}

#[test]
fn a_second_family_is_everywhere_or_nowhere() {
    let verdict_of = |from: &str, to: &str| {
        let text = dual();
        assert!(text.contains(from), "{from} is not in the file");
        verdict(&text.replacen(from, to, 1))
    };
    let without = |line: &str| verdict_of(line, "");
    expect![[r#"
        line 13: networks.podsV6: is missing; give the pods one, too, such as fd20::/48
    "#]]
    .assert_eq(&without("  podsV6: fd20::/48\n"));
    expect![[r#"
        line 13: networks.servicesV6: is missing; give services one, too, such as fd21::/112
    "#]]
    .assert_eq(&without("  servicesV6: fd21::/112\n"));
    expect![[r#"
        line 28: racks[1].subnetV6: is missing; the site has IPv6: give a /64, such as fd10:0:0:2::/64
    "#]].assert_eq(&without("    subnetV6: fd10:0:0:2::/64\n"));
    expect![[r#"
        line 23: racks[0].subnetV6 = fd10:0:0:1::/64: is of no use without IPv6 ranges for pods and services; give networks.podsV6 and networks.servicesV6, or remove it
        line 28: racks[1].subnetV6 = fd10:0:0:2::/64: is of no use without IPv6 ranges for pods and services; give networks.podsV6 and networks.servicesV6, or remove it
    "#]].assert_eq(&without("  podsV6: fd20::/48\n  servicesV6: fd21::/112\n"));
}

#[test]
fn ranges_of_the_second_family_are_checked() {
    let mut verdicts = String::new();
    for (from, to) in [
        ("podsV6: fd20::/48", "podsV6: fd20::/64"),
        ("podsV6: fd20::/48", "podsV6: 'fd20:0:0:{node}::/64'"),
        ("podsV6: fd20::/48", "podsV6: fe80::/48"),
        ("podsV6: fd20::/48", "podsV6: fd20::/60"),
        ("podsV6: fd20::/48", "podsV6: 10.0.0.0/8"),
        ("servicesV6: fd21::/112", "servicesV6: fd20::/112"),
        ("servicesV6: fd21::/112", "servicesV6: fd21::/64"),
        ("subnetV6: fd10:0:0:2::/64", "subnetV6: fd10:0:0:1::/64"),
        ("subnetV6: fd10:0:0:2::/64", "subnetV6: fd10::/60"),
        ("subnetV6: fd10:0:0:2::/64", "subnetV6: fd10:0:0:2::1/64"),
    ] {
        verdicts += &verdict(&dual().replacen(from, to, 1));
    }
    expect![[r#"
        line 14: networks.podsV6 = fd20::/64: must have a prefix from /32 to /60; a /48 holds 65535 nodes
        line 14: networks.podsV6 = fd20:0:0:{node}::/64: must be a whole range, of which node N gets the N-th /64; write it as fd20::/48
        line 14: networks.podsV6 = fe80::/48: is no range that routers carry; take a unique local range, as in fd20::/48, or a global one
        line 39: machines[2].node = 21: has no pod network in fd20::/60; give a number from 1 to 15
        line 14: networks.podsV6 = 10.0.0.0/8: is not an IPv6 network; write it as fd20::/48
        line 15: networks.servicesV6 = fd20::/112: overlaps networks.podsV6 = fd20::/48; choose a range of its own
        line 15: networks.servicesV6 = fd21::/64: must have a prefix from /108 to /124; a /112 holds 65534 services
        line 30: racks[1].subnetV6 = fd10:0:0:1::/64: overlaps racks[0].subnetV6 = fd10:0:0:1::/64; choose a range of its own
        line 30: racks[1].subnetV6 = fd10::/60: is no /64, as the subnet of a link is; try fd10::/64
        line 30: racks[1].subnetV6 = fd10:0:0:2::1/64: has host bits set; try fd10:0:0:2::/64
    "#]].assert_eq(&verdicts);
}

#[test]
fn every_rule_is_reported_with_place_and_hint() {
    let text = include_str!("../../testdata/wrong.yaml");
    expect_file!["../../testdata/wrong.txt"].assert_eq(&verdict(text));
}

#[test]
fn nothing_at_all_lists_what_is_needed() {
    expect![[r#"
        line 1: site: is missing; name the site, as in `site: lab`
        line 1: seed: is missing; give the operator's host an address and a subnet
        line 1: networks: is missing; give pods and services a range each
        line 1: racks: is missing; describe at least one rack
    "#]]
    .assert_eq(&verdict("{}"));
    expect![[r#"
        line 1: document = nothing: must be a mapping; its keys are site, seed, networks, timings, racks, machines, ceph, sim
    "#]].assert_eq(&verdict(""));
    expect![[r#"
        line 1: document = a list: must be a mapping; its keys are site, seed, networks, timings, racks, machines, ceph, sim
    "#]].assert_eq(&verdict("- a\n- b\n"));
    expect![[r#"
        line 2: document: is not readable YAML (illegal placement of ':' indicator at line 2, column 9); mend this first; the rest is checked afterwards
    "#]].assert_eq(&verdict("site: [a\nmachines: }"));
}

#[test]
fn one_mistake_is_reported_once() {
    check(
        "10.98.1.0/24",
        "10.98.1.7/24",
        expect![[r#"
        line 22: racks[0].subnet = 10.98.1.7/24: has host bits set; try 10.98.1.0/24
    "#]],
    );
    check("172.20.{node}.0/24", "172.20.0.0/16", expect![""]);
    check(
        "172.20.{node}.0/24",
        "172.20.{node}.0/16",
        expect![[r#"
        line 13: networks.pods = 172.20.{node}.0/16: must have a prefix from /24 to /30; write it as 172.17.{node}.0/24
    "#]],
    );
    check(
        "172.20.{node}.0/24",
        "172.{node}.{node}.0/24",
        expect![[r#"
        line 13: networks.pods = 172.{node}.{node}.0/24: must have {node} once, as its second or third number; write it as 172.17.{node}.0/24
    "#]],
    );
    check(
        "172.21.0.0/24",
        "172.20.9.0/24",
        expect![[r#"
        line 14: networks.services = 172.20.9.0/24: overlaps networks.pods = 172.20.0.0/16; choose a range of its own
    "#]],
    );
    check(
        "10.98.2.0/24",
        "10.98.0.0/22",
        expect![[r#"
        line 26: racks[1].subnet = 10.98.0.0/22: overlaps seed.subnet = 10.98.0.0/24; choose a range of its own
        line 26: racks[1].subnet = 10.98.0.0/22: overlaps racks[0].subnet = 10.98.1.0/24; choose a range of its own
    "#]],
    );
    check(
        "rack: b, role",
        "rack: c, role",
        expect![[r#"
        line 35: machines[2].rack = c: is an unknown rack; the racks are a, b
    "#]],
    );
}

#[test]
fn what_belongs_together_is_compared() {
    check(
        "node: 21",
        "node: 256",
        expect![[r#"
        line 35: machines[2].node = 256: has no pod network in 172.20.0.0/16; give a number from 1 to 255
        line 35: machines[2].node = 256: has no address in 10.98.2.0/24; give a number from 1 to 254, or an address
    "#]],
    );
    check(
        "node: 12",
        "node: 11",
        expect![[r#"
            line 34: machines[1].node = 11: is a node number used already by machines[0].node; each node number must be unique (line 33)
        "#]],
    );
    check(
        "node: 12",
        "node: 1",
        expect![[r#"
        line 34: machines[1] = 10.98.1.1: is the address of racks[0].gateway already; it follows from the node number; give another, or an address
    "#]],
    );
    check(
        "torAsn: 65002",
        "torAsn: 65001",
        expect![[r#"
        line 28: racks[1].routing = 65001: is a ToR AS number used already by racks[0].routing; each ToR AS number must be unique (line 24)
    "#]],
    );
}

#[test]
fn slips_of_the_pen_are_named() {
    check(
        "gateway: 10.98.2.1",
        "gateway: 10.98.3.1",
        expect![[r#"
        line 27: racks[1].gateway = 10.98.3.1: is outside the subnet 10.98.2.0/24; try 10.98.2.1
    "#]],
    );
    check(
        "rack: a    ",
        "rok: a    ",
        expect![[r#"
        line 9: seed.subnet = 10.98.0.0/24: is no rack's subnet, and no rack is named whose router leads there; name it with seed.rack
        line 10: seed.rok = a: is an unknown key; did you mean rack?
    "#]],
    );
    check(
        "role: master",
        "role: worker, address: 10.98.1.12",
        expect![[r#"
        line 34: machines[1] = 10.98.1.12: is the address of machine a-master already; it follows from the node number; give another, or an address
    "#]],
    );
    check(
        "role: worker",
        "role: master",
        expect![[r#"
        warning: machines = 2 masters: is an even number, which survives no more failures than one master fewer; plan an odd number
    "#]],
    );
    check(
        "boot: bios,",
        "boot: bios, disk: {},",
        expect![[r#"
        line 33: machines[0].disk = {}: selects every disk; give serial, wwn or sizeMin, or leave disk out to run from memory
    "#]],
    );
    check(
        "boot: bios,",
        "boot: bios, boot: bios,",
        expect![[r#"
        line 33: machines[0].boot = bios: is given twice; keep one of the two
    "#]],
    );
}

#[test]
fn every_mode_has_its_own_words() {
    check(
        "{ mode: bgp, torAsn: 65002 }",
        "{ mode: ibgp, torAsn: 65002, reflectors: [nobody], authentication: md5 }",
        expect![[r#"
            line 28: racks[1].routing.asn: is missing; the AS number of the rack's nodes, as in 65010
            line 28: racks[1].routing.torAsn = 65002: belongs to the modes bgp and ospf; remove it, or change the mode
            line 28: racks[1].routing.authentication = md5: is neither none nor key; write key, and put the key into the Secret kube-system/muster-routing
        "#]],
    );
    check(
        "{ mode: bgp, torAsn: 65002 }",
        "{ mode: bgp, torAsn: 65002, tors: [10.98.2.2, 10.98.3.3, 10.98.2.2] }",
        expect![[r#"
            line 28: racks[1].routing.tors[0] = 10.98.2.2: is a list without the rack's gateway 10.98.2.1; list every ToR router of the rack
            line 28: racks[1].routing.tors[1] = 10.98.3.3: is outside the subnet 10.98.2.0/24; try 10.98.2.1
            line 28: racks[1].routing.tors[2] = 10.98.2.2: is listed twice; keep one of the two
        "#]],
    );
    check(
        "{ mode: bgp, torAsn: 65002 }",
        "{ mode: ibgp, asn: 65002, reflectors: [a-worker] }",
        expect![[r#"
            line 28: racks[1].routing.reflectors[0] = a-worker: is no machine of this rack; the machines here are b-worker
        "#]],
    );
    check(
        "{ mode: bgp, torAsn: 65002 }",
        "{ mode: ospf, numbering: unnumbered }",
        expect![[r#"
            line 28: racks[1].routing.numbering = unnumbered: belongs to mode bgp; remove it, or change the mode
        "#]],
    );
    let flat = LAB.replace("{ mode: bgp, torAsn: 65002 }", "{ mode: ibgp, asn: 65002 }");
    let routing = Plan::parse(&flat).unwrap().racks.remove(1).routing;
    let reflectors = vec!["b-worker".to_owned()];
    assert_eq!(routing, crate::plan::RackRouting::Ibgp { asn: 65002, reflectors });
    check(
        "services: 172.21.0.0/24",
        "services: 172.21.0.0/24\n  loadBalancers: [172.21.0.128/25, 10.0.0.0/8, 192.0.2.1/27]",
        expect![[r#"
            line 15: networks.loadBalancers[0] = 172.21.0.128/25: overlaps networks.services = 172.21.0.0/24; choose a range of its own
            line 15: networks.loadBalancers[1] = 10.0.0.0/8: is wider than a /16; a /24 holds 254 outside addresses
            line 15: networks.loadBalancers[2] = 192.0.2.1/27: has host bits set; try 192.0.2.0/27
        "#]],
    );
}

#[test]
fn the_hash_follows_meaning_not_spelling() {
    let hash = Plan::parse(LAB).unwrap().hash();
    let spelled = LAB.replace("role: worker", "role:   worker").replace("  memoryMiB: 1024\n", "");
    assert_eq!(hash, Plan::parse(&spelled).unwrap().hash());
    let moved = LAB.replace("node: 21", "node: 22");
    assert_ne!(hash, Plan::parse(&moved).unwrap().hash());
}

/// Any bytes give a plan or problems, and a plan once made can be rendered.
#[test]
fn any_text_is_answered() {
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(problems) = Plan::parse(&text) {
            assert!(!problems.is_empty());
        }
    });
}

/// The lab's file with a stretch replaced reaches far deeper than random bytes.
#[test]
fn a_mutilated_file_is_answered() {
    bolero::check!().with_iterations(20_000).with_type::<(u16, u8, Vec<u8>)>().for_each(
        |(from, len, middle)| {
            let from = usize::from(*from) % LAB.len();
            let to = (from + usize::from(*len)).min(LAB.len());
            let bytes = [&LAB.as_bytes()[..from], middle, &LAB.as_bytes()[to..]].concat();
            match Plan::parse(&String::from_utf8_lossy(&bytes)) {
                Ok(plan) => {
                    assert!(!crate::preview::render_table(&plan).is_empty());
                    assert!(!crate::inventory::render_list(&plan).is_empty());
                }
                Err(problems) => assert!(!problems.is_empty()),
            }
        },
    );
}
