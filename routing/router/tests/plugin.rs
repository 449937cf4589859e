//! The plugin wires pods for real, in namespaces of the test's own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests: clippy's leave for tests does not reach them"
)]

mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kernel::netns::Namespace;
use serde_json::{Value, json};

use support::{alone, await_until, connects, namespace, plugin, shell, shell_in};

fn config(folder: &std::path::Path, version: &str, previous: Option<&Value>) -> String {
    let mut config = json!({
        "cniVersion": version, "name": "muster", "type": "muster-cni",
        "podNetwork": folder.join("pod-network.json"), "addresses": folder.join("ips"),
    });
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    config.to_string()
}

fn publish(folder: &std::path::Path) {
    let network = json!({"podCIDR": "172.20.12.0/24", "gateway": "169.254.1.1", "mtu": 1400,
        "nodeAddress": "10.98.1.12"});
    std::fs::write(folder.join("pod-network.json"), network.to_string()).unwrap();
}

/// A namespace that is a node as far as the plugin can see.
fn node() -> Namespace {
    let node = namespace("node");
    shell_in("node", "ip addr add 10.98.1.12/32 dev lo; echo 1 >/proc/sys/net/ipv4/ip_forward");
    node
}

fn address(result: &Value) -> Ipv4Addr {
    let text = result["ips"][0]["address"].as_str().unwrap();
    text.strip_suffix("/32").unwrap().parse().unwrap()
}

/// Reaches a listener and gives the address it saw. A link that came up this moment may lose a
/// first packet.
#[track_caller]
fn reaches(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Ipv4Addr {
    let mut seen = None;
    await_until(&format!("a connection to {address}"), Duration::from_secs(60), || {
        seen = Some(connects(from, to, address)?);
        Ok(())
    });
    seen.unwrap()
}

#[test]
fn a_pod_is_wired_checked_wired_again_and_taken_off() {
    alone("a_pod_is_wired_checked_wired_again_and_taken_off", &["ip", "nsenter"], || {
        let folder = tempfile::tempdir_in("/run").unwrap();
        publish(folder.path());
        let node = node();
        let (one, two) = (namespace("one"), namespace("two"));
        let config = |previous| config(folder.path(), "1.0.0", previous);

        let latest = self::config(folder.path(), "1.1.0", None);
        assert_eq!(plugin(&node, "STATUS", "one", &latest).0, 0);
        let (code, own) = plugin(&node, "ADD", "node", &config(None));
        assert_eq!((code, &own["code"]), (1, &json!(8)), "{own}");
        let (code, first) = plugin(&node, "ADD", "one", &config(None));
        assert_eq!(code, 0, "{first}");
        let (code, second) = plugin(&node, "ADD", "two", &config(None));
        assert_eq!(code, 0, "{second}");
        assert_eq!(first["interfaces"][1]["sandbox"], "/run/netns/one");
        assert_eq!(first["interfaces"][1]["mac"].as_str().unwrap().len(), 17);

        assert_eq!(reaches(&one, &two, address(&second)), address(&first));
        assert_eq!(reaches(&node, &one, address(&first)), Ipv4Addr::new(10, 98, 1, 12));
        assert_eq!(reaches(&one, &node, "10.98.1.12".parse().unwrap()), address(&first));
        assert!(shell_in("one", "ip link show eth0").contains("mtu 1400"));
        shell_in("one", "ip route get 8.8.8.8 | grep -q 169.254.1.1");

        assert_eq!(plugin(&node, "CHECK", "one", &config(Some(&first))).0, 0);
        let (code, wrong) = plugin(&node, "CHECK", "one", &config(Some(&second)));
        assert_eq!((code, &wrong["code"]), (1, &json!(100)), "{wrong}");

        let (code, again) = plugin(&node, "ADD", "one", &config(None));
        assert_eq!(code, 0, "{again}");
        assert_eq!(address(&again), address(&first), "a repeated ADD keeps the address");
        assert_eq!(reaches(&two, &one, address(&first)), address(&second));

        shell_in("one", "ip route del default");
        let (code, broken) = plugin(&node, "CHECK", "one", &config(Some(&first)));
        assert_eq!(
            (code, broken["msg"].as_str()),
            (1, Some("the default route of eth0 is missing"))
        );

        assert_eq!(plugin(&node, "DEL", "one", &config(None)).0, 0);
        assert_eq!(plugin(&node, "DEL", "one", &config(None)).0, 0, "DEL may come twice");
        let (code, gone) = plugin(&node, "CHECK", "one", &config(Some(&first)));
        assert_eq!((code, &gone["code"]), (1, &json!(3)), "{gone}");
        shell("ip netns del two");
        assert_eq!(plugin(&node, "DEL", "two", &config(None)).0, 0, "the namespace may be gone");
        assert_eq!(
            shell_in("node", "ls /proc/sys/net/ipv4/conf | grep -c ^pod || true").trim(),
            "0"
        );
    });
}

#[test]
fn what_is_not_valid_any_more_is_collected() {
    alone("what_is_not_valid_any_more_is_collected", &["ip", "nsenter"], || {
        let folder = tempfile::tempdir_in("/run").unwrap();
        publish(folder.path());
        let node = node();
        let (_one, _two) = (namespace("one"), namespace("two"));
        let plain = config(folder.path(), "1.1.0", None);
        for pod in ["one", "two"] {
            assert_eq!(plugin(&node, "ADD", pod, &plain).0, 0);
        }
        let mut gc: Value = serde_json::from_str(&plain).unwrap();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "id-two", "ifname": "eth0"}]);
        assert_eq!(plugin(&node, "GC", "one", &gc.to_string()).0, 0);
        let left = shell_in("node", "ip -o link | grep -c pod");
        assert_eq!(left.trim(), "1");
    });
}

#[test]
fn loopback_is_served_for_containerd() {
    alone("loopback_is_served_for_containerd", &["ip", "nsenter"], || {
        let node = node();
        shell("ip netns add quiet");
        let config = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "x"),
            ("CNI_IFNAME", "lo"),
            ("CNI_NETNS", "/run/netns/quiet"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut output = Vec::new();
        let code = node
            .run(|| router::cni::serve(config.to_string().as_bytes(), &mut output, env))
            .unwrap();
        let result: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!((code, &result["ips"][0]["version"]), (0, &json!("4")), "{result}");
        assert!(shell_in("quiet", "ip link show lo").contains("LOWER_UP"));
    });
}

/// Prints what wiring costs; judges only that it works.
#[test]
fn the_cost_of_wiring_is_printed() {
    alone("the_cost_of_wiring_is_printed", &["ip", "nsenter"], || {
        let folder = tempfile::tempdir_in("/run").unwrap();
        publish(folder.path());
        let node = node();
        let config = config(folder.path(), "1.0.0", None);
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for number in 0..50 {
            let pod = format!("p{number}");
            shell(&format!("ip netns add {pod}"));
            let start = Instant::now();
            assert_eq!(plugin(&node, "ADD", &pod, &config).0, 0);
            adds.push(start.elapsed());
        }
        for number in 0..50 {
            let start = Instant::now();
            assert_eq!(plugin(&node, "DEL", &format!("p{number}"), &config).0, 0);
            dels.push(start.elapsed());
        }
        println!("wire a pod: {}", support::figures(adds));
        println!("take it off: {}", support::figures(dels));
    });
}
