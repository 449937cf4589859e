//! A site of two racks, one of each protocol, for the tests; and BIRD as the judge of goldens.

use std::io::Write as _;
use std::process::{Command, Stdio};

use cluster::plan::{Machine, Networks, Plan};

/// Rack a speaks BGP, rack b OSPF behind a BGP-speaking ToR, rack c OSPF alone.
pub(crate) fn plan() -> Plan {
    let machine = |name: &str, rack: &str, third: u8, node: u32, role: &str| {
        format!(
            r#"{{"name":"{name}","rack":"{rack}","node":{node},"role":"{role}",
            "address":"10.98.{third}.{node}","prefixLen":24,"gateway":"10.98.{third}.1",
            "mac":"52:54:00:00:00:{node:02x}","boot":"bios",
            "podCIDR":"172.20.{node}.0/24","asn":{}}}"#,
            4_200_000_000 + node
        )
    };
    let machines = [
        machine("a-master", "a", 1, 11, "master"),
        machine("a-worker", "a", 1, 12, "worker"),
        machine("b-one", "b", 2, 21, "worker"),
        machine("b-two", "b", 2, 22, "worker"),
        machine("c-one", "c", 3, 31, "worker"),
        machine("c-two", "c", 3, 32, "worker"),
        machine("c-three", "c", 3, 33, "master"),
    ];
    let text = format!(
        r#"{{"site":"lab",
        "seed":{{"address":"10.98.0.1","subnet":"10.98.0.0/24","rack":"a","apiPort":6443,"httpPort":8080}},
        "networks":{{"pods":"172.20.0.0/16","services":"172.21.0.0/24"}},
        "timings":{{"nodeMonitorGracePeriodSeconds":40,"podEvictionTimeoutSeconds":30}},
        "racks":[
          {{"name":"a","subnet":"10.98.1.0/24","gateway":"10.98.1.1","routing":{{"mode":"bgp","torAsn":65001}}}},
          {{"name":"b","subnet":"10.98.2.0/24","gateway":"10.98.2.1","routing":{{"mode":"ospf","area":0,"torAsn":65002}}}},
          {{"name":"c","subnet":"10.98.3.0/24","gateway":"10.98.3.1","routing":{{"mode":"ospf","area":0}}}}],
        "machines":[{}]}}"#,
        machines.join(",")
    );
    serde_json::from_str(&text).expect("the fixture is a plan")
}

/// The same site with a second family.
pub(crate) fn dual() -> Plan {
    let mut plan = plan();
    plan.networks.pods_v6 = Some("fd20::/48".parse().expect("a range"));
    plan.networks.services_v6 = Some("fd21::/112".parse().expect("a range"));
    for (index, rack) in plan.racks.iter_mut().enumerate() {
        let subnet = format!("fd10:0:0:{}::/64", index + 1);
        rack.subnet_v6 = Some(subnet.parse().expect("a subnet"));
        for machine in plan.machines.iter_mut().filter(|one| one.rack == rack.name) {
            machine.address_v6 = rack.address_v6(machine.address);
            let pods = format!("fd20:0:0:{:x}::/64", machine.node);
            machine.pod_cidr_v6 = Some(pods.parse().expect("a pod network"));
        }
    }
    plan
}

/// The intent of a machine of the fixture.
pub(crate) fn intent(node: &str) -> crate::Intent {
    let plan = plan();
    let machine: &Machine = plan.machines.iter().find(|one| one.name == node).expect("a machine");
    let networks: Networks = plan.networks.clone();
    let source = crate::intent::Source {
        node,
        interface: "eth0",
        pods: Some(machine.pod_cidr),
        racks: &plan.racks,
        machines: &plan.machines,
        networks: &networks,
        keys: &std::collections::BTreeMap::new(),
    };
    crate::Intent::new(source).expect("plan and node fit")
}

/// Lets `bird -p` judge a configuration, where BIRD is installed.
#[track_caller]
pub(crate) fn accepted_by_bird(config: &str) {
    let child = Command::new("bird")
        .args(["-p", "-c", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("no bird here: the configuration was compared, not parsed");
        return;
    };
    child.stdin.take().expect("piped").write_all(config.as_bytes()).expect("bird reads");
    let output = child.wait_with_output().expect("bird ends");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bird -p: {words}\n{config}");
}
