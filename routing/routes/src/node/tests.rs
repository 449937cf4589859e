use expect_test::expect_file;

use super::*;
use crate::fixture::{accepted_by_bird, intent};

#[track_caller]
fn check(node: &str, expected: expect_test::ExpectFile) {
    let text = render_node(&intent(node));
    expected.assert_eq(&text);
    accepted_by_bird(&text);
}

#[test]
fn a_node_with_bgp_announces_its_pods_and_believes_the_plan() {
    check("a-worker", expect_file!["../../testdata/node-bgp.conf"]);
}

#[test]
fn a_node_with_ospf_binds_each_prefix_to_its_originator() {
    check("b-one", expect_file!["../../testdata/node-ospf.conf"]);
}

#[test]
fn without_an_ospf_speaking_tor_the_master_and_one_worker_are_eligible() {
    check("c-three", expect_file!["../../testdata/node-ospf-alone.conf"]);
    let priority = |node| match intent(node).protocol {
        Protocol::Ospf { priority, .. } => priority,
        Protocol::Bgp { .. } | Protocol::Ibgp { .. } => panic!("rack c speaks OSPF"),
    };
    assert_eq!((priority("c-three"), priority("c-one"), priority("c-two")), (2, 1, 0));
}

#[test]
fn service_addresses_are_announced_one_by_one() {
    let mut intent = intent("a-worker");
    intent.announce = vec!["172.21.0.10/32".parse().unwrap(), "172.21.0.11/32".parse().unwrap()];
    let text = render_node(&intent);
    assert!(text.contains("    route 172.21.0.10/32 blackhole;\n"), "{text}");
    accepted_by_bird(&text);
}

#[test]
fn two_tors_are_two_sessions() {
    let mut intent = intent("a-worker");
    if let Protocol::Bgp { tors, .. } = &mut intent.protocol {
        tors.push(Tor { address: "10.98.1.2".parse().unwrap(), asn: 65011 });
    }
    let text = render_node(&intent);
    assert!(text.contains("protocol bgp tor2 from tor { neighbor 10.98.1.2 as 65011; }"), "{text}");
    accepted_by_bird(&text);
}

#[test]
fn a_hostile_interface_name_cannot_leave_its_symbol() {
    let mut intent = intent("a-worker");
    if let Protocol::Bgp { numbering, .. } = &mut intent.protocol {
        *numbering = Numbering::Unnumbered;
    }
    intent.interface = "eth0' as 1; }; include '/etc/shadow".to_owned();
    let text = render_node(&intent);
    let session = text.lines().find(|line| line.starts_with("protocol bgp tor1")).unwrap();
    assert_eq!(session.matches('\'').count(), 2, "{session}");
    accepted_by_bird(&text);
}

#[test]
fn a_hostile_interface_name_cannot_leave_its_string() {
    let mut intent = intent("a-worker");
    intent.interface = "eth0\"; }; include \"/etc/shadow".to_owned();
    accepted_by_bird(&render_node(&intent));
    assert!(!render_node(&intent).contains("\"/etc"));
}

#[test]
fn a_pod_network_the_neighbours_would_refuse_is_no_intent() {
    let plan = crate::fixture::plan();
    let source = crate::intent::Source {
        node: "a-worker",
        interface: "eth0",
        pods: Some("172.20.99.0/24".parse().unwrap()),
        racks: &plan.racks,
        machines: &plan.machines,
        networks: &plan.networks,
        keys: &std::collections::BTreeMap::new(),
    };
    let text = Intent::new(source).unwrap_err().to_string();
    assert_eq!(
        text,
        "node a-worker was given pod network 172.20.99.0/24, \
         but its neighbours accept only 172.20.12.0/24"
    );
}

/// The fixture's rack c, made a flat iBGP rack with a key; its nodes' intents.
fn flat(node: &str) -> Result<Intent, crate::IntentError> {
    let mut plan = crate::fixture::plan();
    let reflectors = vec!["c-three".to_owned(), "c-one".to_owned()];
    plan.racks[2].routing = cluster::plan::RackRouting::Ibgp { asn: 65010, reflectors };
    plan.racks[2].authentication = cluster::plan::Authentication::Key;
    plan.networks.load_balancers = vec!["192.0.2.0/27".parse().unwrap()];
    let key = crate::Key::new(if node == "c-one" { "short" } else { "not-in-rack-yaml" });
    let keys = match node {
        "c-none" => std::collections::BTreeMap::new(),
        _ => std::collections::BTreeMap::from([("c".to_owned(), key)]),
    };
    Intent::new(crate::intent::Source {
        node: if node == "c-none" { "c-one" } else { node },
        interface: "eth0",
        pods: None,
        racks: &plan.racks,
        machines: &plan.machines,
        networks: &plan.networks,
        keys: &keys,
    })
}

#[test]
fn a_flat_rack_speaks_by_way_of_its_reflectors() {
    let client = render_node(&flat("c-two").unwrap());
    expect_file!["../../testdata/node-ibgp.conf"].assert_eq(&client);
    accepted_by_bird(&client);
    let reflector = render_node(&flat("c-three").unwrap());
    expect_file!["../../testdata/node-ibgp-reflector.conf"].assert_eq(&reflector);
    accepted_by_bird(&reflector);
}

#[test]
fn without_its_key_a_rack_has_no_intent() {
    let words = |node| flat(node).unwrap_err().to_string();
    let begin = "rack c needs a key in the Secret kube-system/muster-routing: ";
    assert_eq!(words("c-none"), format!("{begin}it has none under c"));
    assert_eq!(
        words("c-one"),
        format!("{begin}the key has 5 characters; it must have from 8 to 64")
    );
}

#[test]
fn keys_sign_every_session_and_show_in_no_debug_output() {
    for node in ["a-worker", "b-one"] {
        let mut intent = intent(node);
        intent.key = Some(crate::Key::new("correct-horse-7").unwrap());
        let text = render_node(&intent);
        accepted_by_bird(&text);
        assert_eq!(text.matches("correct-horse-7").count(), 1, "{text}");
        assert!(!format!("{intent:?}").contains("correct"));
    }
}
