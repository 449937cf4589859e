//! Racks of namespaces: real BIRDs as nodes and ToR routers, the real router, real pods.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests: clippy's leave for tests does not reach them"
)]

#[path = "../support/mod.rs"]
mod support;

mod families;
mod frr;
mod site;
mod stories;

use std::net::Ipv4Addr;
use std::time::Instant;

use cluster::plan::Plan;
use kernel::netns::Namespace;
use serde_json::{Value, json};

use site::{LIMIT, PROGRAMS, Site, THREE, bgp, bird, node_object, ospf, plan};
use support::{alone, await_until, connects, shell_in};

/// Pods of every node reach each other with their own addresses.
fn pods_reach_each_other(site: &Site) {
    let start = Instant::now();
    let pods = wire_pods(site);
    everyone_connects(site, &pods);
    println!("all pods reach each other: {:?} after the wait began", start.elapsed());
}

/// A pod on each node, in the order of their names.
fn wire_pods(site: &Site) -> Vec<(Namespace, Ipv4Addr)> {
    site.nodes.keys().map(|node| site.pod(node, &format!("pod-{node}"))).collect()
}

/// Waits until every pod has reached every other, seen with its own address.
fn everyone_connects(site: &Site, pods: &[(Namespace, Ipv4Addr)]) {
    for (from, from_address) in pods {
        for (to, to_address) in pods {
            if from_address == to_address {
                continue;
            }
            await_until(&format!("{from_address} to {to_address}"), LIMIT, || {
                match connects(from, to, *to_address) {
                    // No one on the way may put his own address in the place of the pod's.
                    Ok(seen) if seen == *from_address => Ok(()),
                    Ok(seen) => panic!("{from_address} was seen as {seen}"),
                    Err(err) => Err(format!("{err}\n{}", site.state())),
                }
            });
        }
    }
}

/// Of how many others a node hears: inside an AS of its own only of its rack's, the gateway has the
/// rest.
fn peers(plan: &Plan, node: &str) -> usize {
    let rack = plan.rack(&plan.machine(node).unwrap().rack).unwrap();
    let inside = matches!(rack.routing, cluster::plan::RackRouting::Ibgp { .. });
    let others = plan.machines.iter().filter(|one| one.name != node);
    others.filter(|one| !inside || one.rack == rack.name).count()
}

/// What `muster routes` shows of every node: all neighbours up, all told, nothing astray.
fn surveys_find_no_difference(site: &Site) {
    for node in site.nodes.values() {
        let file = node.folder.join("routes.json");
        await_until(&format!("an untroubled survey of {}", node.name), LIMIT, || {
            let text = std::fs::read_to_string(&file).map_err(|err| err.to_string())?;
            let survey: routes::Survey = serde_json::from_str(&text).unwrap();
            let others = survey.routes.iter().filter(|row| row.purpose.starts_with("pods of"));
            let families = if site.plan.networks.v6().is_some() { 2 } else { 1 };
            let reached = others.clone().filter(|row| row.bird.is_some()).count();
            let complete = reached == peers(&site.plan, &node.name) * families
                && others.clone().all(|row| row.bird == row.kernel);
            let told = survey.announced.iter().all(|one| !one.to.is_empty());
            if survey.is_well() && complete && told { Ok(()) } else { Err(survey.render()) }
        });
    }
}

/// What a scrape of the node's agent shows of its routing.
fn figures_are_kept(site: &Site, node: &str, session: &str) {
    let file = site.nodes[node].folder.join("routes.prom");
    await_until(&format!("figures of {node}"), LIMIT, || {
        let text = std::fs::read_to_string(&file).map_err(|err| err.to_string())?;
        let value = |name: &str| {
            let line = text.lines().find(|line| {
                line.starts_with(&format!("muster_routing_{name}"))
                    && (!line.contains("session=") || line.contains(session))
            });
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(-1.0)
        };
        let well = value("session_up") == 1.0
            && value("session_flaps_total") >= 0.0
            && value("session_prefixes") >= 1.0
            && value("differences") == 0.0
            && value("convergence_seconds") > 0.0;
        if well { Ok(()) } else { Err(text.clone()) }
    });
}

/// What nobody minds: any node may answer for a service.
const TRUTH: &str = "192.0.2.9/32";

/// Has a node announce what is not its own, and waits until each judge has heard it and made up
/// its mind.
///
/// The mind is made up when a truth that was told after the lies is in the kernel: a BGP session
/// keeps their order, and OSPF works out all it has heard at once.
fn tell_lies(site: &Site, rogue: &str, lies: &[&str], judges: &[&str]) {
    let node = &site.nodes[rogue];
    let own = site.plan.machine(rogue).unwrap().address.to_string();
    let config = std::fs::read_to_string(node.folder.join("bird.conf")).unwrap();
    let file = node.folder.join("rogue.conf");
    let say = |nets: &[&str]| {
        let all: String = nets.iter().map(|net| format!(" route {net} blackhole;")).collect();
        std::fs::write(&file, config.replacen("ipv4;", &format!("ipv4;{all}"), 1)).unwrap();
        let told = site.birdc(rogue, &format!("configure '\"{}\"'", file.display()));
        assert!(told.contains("Reconfig"), "{told}");
    };
    say(lies);
    for judge in judges {
        await_until(&format!("the lies at {judge}"), LIMIT, || {
            // BGP keeps what the filter refused, OSPF floods it whatever the filter.
            let refused = site.birdc(judge, "show route filtered");
            let flooded = site.birdc(judge, "show ospf lsadb");
            let heard = |lie: &&str| {
                let address = lie.split('/').next().unwrap();
                let by_rogue = |line: &str| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    words.contains(&address) && words.contains(&own.as_str())
                };
                refused.contains(*lie) || flooded.lines().any(by_rogue)
            };
            if lies.iter().all(heard) { Ok(()) } else { Err(refused + &flooded) }
        });
    }
    say(&[lies, &[TRUTH]].concat());
    for judge in judges {
        await_until(&format!("the truth at {judge}"), LIMIT, || {
            let route = shell_in(judge, &format!("ip route show {TRUTH} proto bird"));
            if route.contains(&own) { Ok(()) } else { Err(format!("{route}\n{}", site.state())) }
        });
    }
}

/// Has a node say what it is meant to.
fn tell_no_lies(site: &Site, rogue: &str) {
    let file = site.nodes[rogue].folder.join("bird.conf");
    let told = site.birdc(rogue, &format!("configure '\"{}\"'", file.display()));
    assert!(told.contains("Reconfig"), "{told}");
}

/// A node that claims what is another's is not believed by those who judge it.
fn a_rogue_is_not_believed(site: &Site, rogue: &str, judges: &[&str]) {
    let own = site.plan.machine(rogue).unwrap().address.to_string();
    let unheard_of = ["172.20.11.128/25", "172.20.99.0/24"];
    tell_lies(site, rogue, &[&["172.20.21.0/24"][..], &unheard_of].concat(), judges);
    for judge in judges {
        let routes = site.routes(judge);
        assert!(!unheard_of.iter().any(|lie| routes.contains(lie)), "{routes}");
        let way = shell_in(judge, "ip route show 172.20.21.0/24");
        assert!(!way.split_whitespace().any(|word| word == own), "{way}");
    }
    tell_no_lies(site, rogue);
}

/// An outside address of a service leads to every node that has somebody behind it, and leaves a
/// node that is drained before its pods do.
fn outside_addresses_follow_health(site: &Site) {
    let service = json!({"metadata": {"name": "shop", "namespace": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    let slice = |ready: &[&str]| {
        let endpoints: Vec<Value> = ready
            .iter()
            .map(|node| json!({"nodeName": node, "addresses": ["172.20.1.2"], "conditions": {"ready": true}}))
            .collect();
        json!({"metadata": {"name": "shop-1", "namespace": "web",
            "labels": {"kubernetes.io/service-name": "shop"}},
            "addressType": "IPv4", "endpoints": endpoints})
    };
    let tell = |ready: &[&str]| {
        for node in site.nodes.values() {
            let slices = vec![slice(ready)];
            node.items.set("/apis/discovery.k8s.io/v1/endpointslices", slices);
            node.items.set("/api/v1/services", vec![service.clone()]);
        }
    };
    // Which nodes of rack a its router sends the address to.
    let leads = |wanted: &[&str]| {
        let gateways = |node: &&str| site.plan.machine(node).unwrap().address.to_string();
        let wanted: Vec<String> = wanted.iter().map(gateways).collect();
        await_until(&format!("192.0.2.7 by {wanted:?}"), LIMIT, || {
            let route = shell_in("tor-a", "ip route show 192.0.2.7/32");
            let words: Vec<&str> = route.split_whitespace().collect();
            let here = ["10.98.1.11", "10.98.1.12"].iter().filter(|one| words.contains(one));
            let found: Vec<String> = here.map(|one| (*one).to_owned()).collect();
            if found == wanted { Ok(()) } else { Err(format!("{route}\n{}", site.state())) }
        })
    };
    tell(&["a1", "a2"]);
    // Not before the packets would be understood.
    shell_in("a1", "nft add table ip muster-services");
    leads(&["a1"]);
    shell_in("a2", "nft add table ip muster-services");
    site.nodes["a2"].items.set("/api/v1/services", vec![service.clone()]);
    leads(&["a1", "a2"]);
    tell(&["a2"]);
    let unhealthy = leads(&["a2"]);
    tell(&["a1", "a2"]);
    leads(&["a1", "a2"]);
    let spec = json!({"podCIDR": site.plan.machine("a2").unwrap().pod_cidr, "unschedulable": true});
    site.nodes["a2"].items.set("/api/v1/nodes", vec![node_object("a2", &spec)]);
    let drained = leads(&["a1"]);
    // Whoever ends pods waits for this word.
    let says = |node: &str, wanted: &str| {
        await_until(&format!("{node} says that its routes are {wanted}"), LIMIT, || {
            let word = site.nodes[node].items.annotation("/api/v1/nodes", "muster.dev/routes");
            if word.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{word:?}")) }
        })
    };
    let said = says("a2", "withdrawn");
    says("a1", "announced");
    println!("drained: its word came {said:?} after the route had gone");
    println!("no endpoint: withdrawn after {unhealthy:?}; drained: after {drained:?}");
    tell(&[]);
    leads(&[]);
}

/// A BIRD that dies takes its node off the fabric, and the router brings it back.
fn a_killed_bird_comes_back(site: &mut Site) {
    let has_route = |site: &Site, wanted: bool| {
        let routes = site.routes("tor-a");
        if routes.contains("172.20.21.0/24") == wanted { Ok(()) } else { Err(routes) }
    };
    let folder = site.nodes["b1"].folder.clone();
    site.nodes.get_mut("b1").unwrap().bird.kill();
    let gone = await_until("the dead node's route is gone", LIMIT, || has_route(site, false));
    std::fs::remove_file(folder.join("bird.ctl")).unwrap();
    site.nodes.get_mut("b1").unwrap().bird = bird("b1", &folder);
    let back = await_until("the node's route is back", LIMIT, || has_route(site, true));
    println!("BIRD killed: withdrawn after {gone:?}; started again: back after {back:?}");
}

/// Tells a story with a site to itself.
fn tell(test: &str, programs: &[&str], plan: Plan, story: impl FnOnce(&mut Site)) {
    alone(test, programs, || {
        runtime::telemetry::init("info", runtime::telemetry::Format::Text);
        let folder = tempfile::tempdir_in("/run").unwrap();
        let mut site = Site::build(plan, folder.path());
        story(&mut site);
    });
}

fn check(test: &str, rack_a: Value, rack_b: Value) {
    tell(test, &PROGRAMS, plan(&[rack_a, rack_b], &THREE), |site| {
        pods_reach_each_other(site);
        surveys_find_no_difference(site);
        let ospf = site
            .plan
            .rack("b")
            .is_some_and(|rack| matches!(rack.routing, cluster::plan::RackRouting::Ospf { .. }));
        figures_are_kept(site, "b1", if ospf { "rack4" } else { "tor1" });
        outside_addresses_follow_health(site);
        a_rogue_is_not_believed(site, "a2", &["tor-a"]);
        a_killed_bird_comes_back(site);
    });
}

#[test]
fn racks_that_speak_bgp_reach_each_other() {
    check("racks_that_speak_bgp_reach_each_other", bgp(65001), bgp(65002));
}

#[test]
fn racks_that_speak_ospf_reach_each_other() {
    check("racks_that_speak_ospf_reach_each_other", ospf(65001), ospf(65002));
}

#[test]
fn a_bgp_rack_and_an_ospf_rack_reach_each_other() {
    check("a_bgp_rack_and_an_ospf_rack_reach_each_other", bgp(65001), ospf(65002));
}
