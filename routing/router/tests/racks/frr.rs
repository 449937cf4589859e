//! FRR as ToR router, with what `muster export tor-config --format frr` writes.

use std::path::Path;
use std::process::Command;

use cluster::plan::Plan;
use routes::Bfd;
use routes::export::{Format, render_tors};

use crate::families::{everyone_connects, wire};
use crate::site::{
    LIMIT, PROGRAMS, Place, Routers, Setup, Site, bgp, dual, key_of, keyed, ospf, plan,
};
use crate::support::{Running, alone_with_users, await_until, shell, shell_in};

/// Where Debian puts FRR's daemons; they are not on the path.
const DAEMONS: &str = "/usr/lib/frr";
const TWO: [Place; 2] = [("a1", "a", 1, 11), ("a2", "a", 1, 12)];

/// FRR in a router's namespace.
struct Frr {
    _daemons: Vec<Running>,
}

impl Frr {
    fn start(namespace: &str, folder: &Path, config: &str, daemons: &[&str]) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::create_dir_all("/run/frr").unwrap();
        let file = folder.join("frr.conf");
        std::fs::write(&file, config).unwrap();
        let folder = folder.display();
        // Its daemons give up being root before they make their sockets.
        shell(&format!("chmod 755 {folder}/..; chown frr:frr {folder} /run/frr"));
        let start = |daemon: &&str| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{namespace}"));
            command.arg(format!("{DAEMONS}/{daemon}"));
            command.args(["-P", "0", "-f", "/dev/null"]);
            command.arg(format!("--vty_socket={folder}"));
            command.arg(format!("-z{folder}/zserv")).arg(format!("-i{folder}/{daemon}.pid"));
            let log = std::fs::File::create(format!("{folder}/{daemon}.log")).unwrap();
            command.stdout(log.try_clone().unwrap()).stderr(log);
            let running = Running::start(&mut command);
            let socket = format!("{folder}/{daemon}.vty");
            await_until(&format!("{daemon} listens"), LIMIT, || {
                if Path::new(&socket).exists() {
                    Ok(())
                } else {
                    Err(shell(&format!("cat {folder}/{daemon}.log")))
                }
            });
            running
        };
        let frr = Self { _daemons: daemons.iter().map(start).collect() };
        let told =
            shell(&format!("vtysh --vty_socket {folder} -f {} 2>&1 || true", file.display()));
        assert!(!told.contains('%'), "FRR refuses a part of it: {told}\n{config}");
        frr
    }
}

fn ask(site: &Site, command: &str) -> String {
    let folder = site.folder.join("tor-a");
    shell(&format!("vtysh --vty_socket {} -c '{command}' 2>&1 || true", folder.display()))
}

/// Tells the story of a rack whose router is FRR with these daemons.
fn check(test: &str, plan: Plan, daemons: &[&str], body: impl FnOnce(&mut Site)) {
    if !Path::new(DAEMONS).join("zebra").exists() {
        println!("skipped: FRR is not installed here");
        return;
    }
    let programs: Vec<&str> = PROGRAMS.into_iter().chain(["vtysh"]).collect();
    alone_with_users(test, &programs, || {
        runtime::telemetry::init("info", runtime::telemetry::Format::Text);
        let folder = tempfile::tempdir_in("/run").unwrap();
        let setup = Setup { routers: Routers::Other, bfd: Bfd::default() };
        let mut site = Site::with(plan, folder.path(), setup);
        let config = render_tors(&site.plan, None, "rack0", Format::Frr).unwrap();
        // What is left to the person who takes the text over: the key. And a loaded test machine
        // pauses processes for longer than a third of a second.
        let config = config
            .replace("PUT-THE-KEY-OF-RACK-a-HERE", &key_of("a"))
            .replace("detect-multiplier 3", "detect-multiplier 5")
            .replace("interval 100", "interval 400");
        let _frr = Frr::start("tor-a", &folder.path().join("tor-a"), &config, daemons);
        let pods = wire(&site);
        for (net, address) in [
            ("172.20.11.0/24", "via 10.98.1.11 "),
            ("172.20.12.0/24", "via 10.98.1.12 "),
            ("fd20:0:0:b::/64", "via "),
            ("fd20:0:0:c::/64", "via "),
        ] {
            await_until(&format!("FRR's way to {net}"), LIMIT, || {
                let family = if net.contains(':') { "-6" } else { "-4" };
                let route = shell_in("tor-a", &format!("ip {family} route show {net}"));
                if route.contains(address) {
                    Ok(())
                } else {
                    let said = ["show bgp summary", "show ip route", "show ipv6 route"]
                        .map(|command| ask(&site, command))
                        .concat();
                    Err(format!("{route}\n{said}\n{}", site.state()))
                }
            });
        }
        everyone_connects(&site, &pods);
        body(&mut site);
    });
}

/// The session dies with the node's BIRD at BFD's pace, not at the hold time's.
fn bfd_tells_of_a_dead_node(site: &mut Site) {
    await_until("BFD sessions of FRR", LIMIT, || {
        let peers = ask(site, "show bfd peers");
        let up = peers.matches("Status: up").count();
        if up >= 2 && !peers.contains("Status: down") { Ok(()) } else { Err(peers) }
    });
    site.nodes.get_mut("a1").unwrap().bird.kill();
    let gone = await_until("FRR let go of a1", LIMIT, || {
        let route =
            shell_in("tor-a", "ip route show 172.20.11.0/24; ip -6 route show fd20:0:0:b::/64");
        if route.is_empty() { Ok(()) } else { Err(route) }
    });
    println!("FRR let go of a node whose BIRD was killed after {gone:?}");
}

/// Lies reach FRR and go no further; what is told after them and allowed does.
fn a_rogue_is_refused(site: &Site) {
    let node = &site.nodes["a2"];
    let config = std::fs::read_to_string(node.folder.join("bird.conf")).unwrap();
    let file = node.folder.join("rogue.conf");
    let (lies, truth) = (["172.20.11.128/25", "172.20.99.0/24"], "192.0.2.9/32");
    for said in [&lies[..], &[lies[0], lies[1], truth]] {
        let routes: String = said.iter().map(|net| format!(" route {net} blackhole;")).collect();
        std::fs::write(&file, config.replacen("ipv4;", &format!("ipv4;{routes}"), 1)).unwrap();
        site.birdc("a2", &format!("configure '\"{}\"'", file.display()));
        await_until("a2 tells lies, then a truth", LIMIT, || {
            let told = site.birdc("a2", "show route export tor1");
            if said.iter().all(|net| told.contains(net)) { Ok(()) } else { Err(told) }
        });
    }
    // A session keeps the order of what is said: who knows the truth has heard the lies.
    await_until("the truth is in the kernel", LIMIT, || {
        let routes = site.routes("tor-a");
        if routes.contains("192.0.2.9 ") { Ok(()) } else { Err(routes) }
    });
    let said = ask(site, "show bgp ipv4 unicast neighbors 10.98.1.12 prefix-counts");
    // Its pods, its own address, and the truth.
    assert!(said.contains("PfxCt: 3\n"), "{said}");
    let routes = site.routes("tor-a");
    assert!(!lies.iter().any(|lie| routes.contains(lie)), "{routes}");
    the_other_familys_lies_are_refused(site, &config);
    let file = node.folder.join("bird.conf");
    site.birdc("a2", &format!("configure '\"{}\"'", file.display()));
}

/// As above, for IPv6, whose lies are told before a truth of IPv4 by the same session.
fn the_other_familys_lies_are_refused(site: &Site, config: &str) {
    let file = site.nodes["a2"].folder.join("rogue.conf");
    let lies = ["fd20:0:0:b::/65", "fd20:0:0:99::/64", "fd10:0:0:1::99/128"];
    let all: String = lies.iter().map(|net| format!(" route {net} blackhole;")).collect();
    let lying = config.replacen("ipv6;", &format!("ipv6;{all}"), 1);
    let truth = "192.0.2.10/32";
    let after = lying.replacen("ipv4;", &format!("ipv4; route {truth} blackhole;"), 1);
    for (config, said) in [(lying, &lies[..]), (after, &[lies[0], lies[1], lies[2], truth])] {
        std::fs::write(&file, config).unwrap();
        site.birdc("a2", &format!("configure '\"{}\"'", file.display()));
        await_until("a2 tells lies of IPv6, then a truth", LIMIT, || {
            let told = site.birdc("a2", "show route export tor1");
            if said.iter().all(|net| told.contains(net)) { Ok(()) } else { Err(told) }
        });
    }
    await_until("the truth after them is in the kernel", LIMIT, || {
        let routes = site.routes("tor-a");
        if routes.contains("192.0.2.10 ") { Ok(()) } else { Err(routes) }
    });
    let table = ask(site, "show bgp ipv6 unicast");
    assert!(table.contains("fd20:0:0:c::/64"), "{table}");
    assert!(!lies.iter().any(|lie| table.contains(lie)), "{table}");
}

#[test]
fn frr_is_a_router_for_a_bgp_rack() {
    let plan = dual(plan(&[keyed(bgp(65001))], &TWO));
    check("frr::frr_is_a_router_for_a_bgp_rack", plan, &["zebra", "bfdd", "bgpd"], |site| {
        a_rogue_is_refused(site);
        bfd_tells_of_a_dead_node(site);
    });
}

#[test]
fn frr_is_a_router_for_an_ospf_rack() {
    let plan = dual(plan(&[ospf(65001)], &TWO));
    let daemons = ["zebra", "bfdd", "ospfd", "ospf6d"];
    check("frr::frr_is_a_router_for_an_ospf_rack", plan, &daemons, |site| {
        bfd_tells_of_a_dead_node(site);
    });
}
