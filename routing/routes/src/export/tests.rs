use std::io::Write as _;
use std::process::{Command, Stdio};

use cluster::plan::{Ceph, Plan};
use expect_test::{ExpectFile, expect_file};

use super::*;
use crate::fixture::{accepted_by_bird, dual, plan};

/// Lets FRR's own shell judge a configuration, where FRR is installed.
#[track_caller]
fn accepted_by_frr(config: &str) {
    let child = Command::new("vtysh")
        .args(["-C", "-f", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("no vtysh here: the configuration was compared, not parsed");
        return;
    };
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    assert!(output.status.success() && !words.contains("% "), "{words}\n{config}");
}

fn tors(plan: &Plan, rack: &str, format: Format) -> String {
    render_tors(plan, Some(rack), "swp1", format).unwrap()
}

#[track_caller]
fn check(rack: &str, format: Format, expected: ExpectFile) {
    let text = tors(&plan(), rack, format);
    expected.assert_eq(&text);
    match format {
        Format::Bird => accepted_by_bird(&text),
        Format::Frr => accepted_by_frr(&text),
        Format::Text => (),
    }
}

#[test]
fn frr_takes_from_each_node_only_that_nodes_pods() {
    check("a", Format::Frr, expect_file!["../../testdata/tor-bgp.frr"]);
}

#[test]
fn frr_speaks_ospf_with_the_rack() {
    check("b", Format::Frr, expect_file!["../../testdata/tor-ospf.frr"]);
}

#[test]
fn frr_and_a_person_are_told_of_both_families() {
    let mut plan = dual();
    plan.racks[2].routing = cluster::plan::RackRouting::Ibgp {
        asn: 65010,
        reflectors: vec!["c-three".to_owned(), "c-one".to_owned()],
    };
    for (rack, expected) in [
        ("a", expect_file!["../../testdata/tor-bgp-dual.frr"]),
        ("b", expect_file!["../../testdata/tor-ospf-dual.frr"]),
        ("c", expect_file!["../../testdata/tor-ibgp-dual.frr"]),
    ] {
        let text = tors(&plan, rack, Format::Frr);
        expected.assert_eq(&text);
        accepted_by_frr(&text);
    }
    let told = ["a", "b", "c"].map(|rack| tors(&plan, rack, Format::Text)).join("\n");
    expect_file!["../../testdata/tor-dual.txt"].assert_eq(&told);
}

#[test]
fn a_person_reads_what_to_set_up() {
    check("a", Format::Text, expect_file!["../../testdata/tor-bgp.txt"]);
    check("c", Format::Text, expect_file!["../../testdata/tor-ospf.txt"]);
}

#[test]
fn all_racks_come_in_the_plans_order_and_an_unknown_one_not_at_all() {
    let plan = plan();
    for format in [Format::Bird, Format::Frr, Format::Text] {
        let all = render_tors(&plan, None, "swp1", format).unwrap();
        let each: Vec<String> = ["a", "b", "c"].map(|rack| tors(&plan, rack, format)).into();
        assert_eq!(all, each.join("\n"));
        assert_eq!(render_tors(&plan, Some("z"), "swp1", format), None);
    }
}

#[test]
fn crush_knows_every_rack_and_moves_no_pool_that_would_not_fit() {
    let mut plan = plan();
    plan.ceph = Some(Ceph { monitors: vec!["10.98.1.2:6789".to_owned()], pool: "kube".to_owned() });
    plan.racks[1].name = "b-one".to_owned();
    for machine in &mut plan.machines {
        if machine.rack == "b" {
            machine.rack = "b-one".to_owned();
        }
    }
    expect_file!["../../testdata/crush.txt"].assert_eq(&render_crush(&plan));
    plan.machines.retain(|machine| machine.rack != "c");
    assert!(render_crush(&plan).contains("\n# ceph osd pool set kube"));
}

#[test]
fn two_routers_with_a_key_have_a_file_each_and_the_key_is_left_out() {
    let mut plan = plan();
    let two = vec!["10.98.1.1".parse().unwrap(), "10.98.1.2".parse().unwrap()];
    plan.racks[0].routing = cluster::plan::RackRouting::Bgp {
        tor_asn: 65001,
        tors: two,
        numbering: cluster::plan::Numbering::Numbered,
    };
    plan.racks[0].authentication = cluster::plan::Authentication::Key;
    for (format, begin) in [(Format::Bird, "# ToR router of"), (Format::Frr, "! ToR router of")] {
        let text = tors(&plan, "a", format);
        let files: Vec<&str> = text.split(begin).skip(1).collect();
        assert_eq!(files.len(), 2, "{text}");
        for (file, address) in files.iter().zip(["10.98.1.1", "10.98.1.2"]) {
            assert!(
                file.contains(&format!("router id {address};"))
                    || file.contains(&format!("router-id {address}")),
                "{file}"
            );
            assert!(file.contains("PUT-THE-KEY-OF-RACK-a-HERE"), "{file}");
            match format {
                Format::Bird => accepted_by_bird(&format!("{begin}{file}")),
                Format::Frr | Format::Text => accepted_by_frr(&format!("{begin}{file}")),
            }
        }
    }
    assert!(tors(&plan, "a", Format::Text).contains("TCP MD5"));
}
