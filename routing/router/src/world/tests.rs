use std::collections::BTreeMap;

use kernel::Link;
use serde_json::Value;

use super::*;

fn everything() -> (Intent, Everything) {
    everything_of(serde_json::json!({}), serde_json::json!({}), serde_json::json!({}))
}

/// The same on a site of two families.
fn dual() -> (Intent, Everything) {
    everything_of(
        serde_json::json!({"podCIDRv6": "fd20:0:0:b::/64", "addressV6": "fd10:0:0:1::b"}),
        serde_json::json!({"subnetV6": "fd10:0:0:1::/64"}),
        serde_json::json!({"podsV6": "fd20::/48", "servicesV6": "fd21::/112"}),
    )
}

fn everything_of(machine_v6: Value, rack_v6: Value, networks_v6: Value) -> (Intent, Everything) {
    let both = |mut first: Value, second: Value| {
        first.as_object_mut().unwrap().extend(second.as_object().unwrap().clone());
        first
    };
    let machine = serde_json::json!({"name": "a", "rack": "r", "node": 11, "role": "worker",
        "address": "10.98.1.11", "prefixLen": 24, "gateway": "10.98.1.1",
        "mac": "52:54:00:00:00:0b", "boot": "bios", "podCIDR": "172.20.11.0/24",
        "asn": 4_200_000_011_u32});
    let machine = both(machine, machine_v6);
    let rack = serde_json::json!({"name": "r", "subnet": "10.98.1.0/24", "gateway": "10.98.1.1",
        "routing": {"mode": "bgp", "torAsn": 65001}});
    let networks = serde_json::json!({"pods": "172.20.0.0/16", "services": "172.21.0.0/24"});
    let (rack, networks) = (both(rack, rack_v6), both(networks, networks_v6));
    let known = Known {
        machines: vec![serde_json::from_value(machine).unwrap()],
        racks: vec![serde_json::from_value(rack).unwrap()],
        networks: serde_json::from_value(networks).unwrap(),
        pods: Some("172.20.11.0/24".parse().unwrap()),
        keys: BTreeMap::new(),
        announce: Vec::new(),
        closed: false,
        api_port: 6443,
        said: None,
    };
    let uplink = Link {
        index: LinkIndex(2),
        name: "eth0".to_owned(),
        mac: String::new(),
        mtu: 1500,
        up: true,
        carrier: true,
        loopback: false,
    };
    let intent = Intent::new(Source {
        node: "a",
        interface: "eth0",
        pods: known.pods,
        racks: &known.racks,
        machines: &known.machines,
        networks: &known.networks,
        keys: &known.keys,
    });
    let seen = Everything {
        settings: vec![false; settings(known.networks.v6().is_some()).count()],
        known,
        kernel: KernelView {
            uplink,
            addresses: Vec::new(),
            loopback: LinkIndex(1),
            routes: Vec::new(),
        },
        api: Api::default(),
        bird: BirdView::default(),
        bird_config: None,
        pod_network: None,
        list: None,
        survey: None,
        configured_for: None,
    };
    (intent.unwrap(), seen)
}

/// Does what an action says to the seen world; BIRD's neighbour comes up when `neighbour`.
fn apply(seen: &mut Everything, action: Action, neighbour: &str) {
    match action {
        Action::Set { name, .. } => {
            let at = settings(true).position(|(setting, _)| setting == name).unwrap();
            seen.settings[at] = true;
        }
        Action::HoldApi { .. } => seen.api.held = true,
        Action::LeaveApi { .. } => seen.api.held = false,
        Action::Address { address, .. } => seen.kernel.addresses.push(address),
        Action::Route { route } => seen.kernel.routes.push(*route),
        Action::Configure { text } => {
            seen.bird_config = Some(text);
            seen.configured_for = Some(Duration::ZERO);
            let row = |name: &str, kind: &str, info: &str| ProtocolRow {
                name: name.to_owned(),
                kind: kind.to_owned(),
                state: "up".to_owned(),
                since: String::new(),
                info: info.to_owned(),
            };
            seen.bird.protocols = vec![row("pods4", "Static", ""), row("tor1", "BGP", neighbour)];
        }
        Action::PublishPodNetwork { text } => seen.pod_network = Some(text),
        Action::PublishList { text } => seen.list = Some(text),
        Action::PublishSurvey { text } => seen.survey = Some(text),
        Action::PublishFigures { .. } => (),
        Action::Say { routes } => seen.known.said = Some(routes.to_owned()),
    }
}

/// Plans and applies until nothing is planned any more; at most ten rounds.
fn settle(intent: &Intent, seen: &mut Everything, neighbour: &str) {
    for _ in 0..10 {
        let actions = plan(intent, seen, &Paths::default()).actions;
        if actions.is_empty() {
            return;
        }
        for action in actions {
            apply(seen, action, neighbour);
        }
    }
    panic!("no fixed point: {:?}", plan(intent, seen, &Paths::default()));
}

#[test]
fn from_nothing_everything_is_set_up_and_the_pod_network_last() {
    let (intent, mut seen) = everything();
    let first = plan(&intent, &seen, &Paths::default()).actions;
    assert!(matches!(first.last(), Some(Action::Configure { .. })), "{first:?}");
    settle(&intent, &mut seen, "Established");
    assert!(seen.list.is_some() && seen.pod_network.is_some());
}

#[test]
fn a_node_of_two_families_has_its_address_before_anything_that_needs_it() {
    let (intent, mut seen) = dual();
    let first = plan(&intent, &seen, &Paths::default()).actions;
    let at = |wanted: fn(&Action) -> bool| first.iter().position(wanted).unwrap();
    let address = at(|one| matches!(one, Action::Address { .. }));
    assert!(address < at(|one| matches!(one, Action::Route { .. })), "{first:?}");
    assert!(address < at(|one| matches!(one, Action::Configure { .. })), "{first:?}");
    settle(&intent, &mut seen, "Established");
    assert_eq!(seen.kernel.routes.len(), 3, "to the services of each family, and out");
    assert!(seen.settings.iter().all(|right| *right) && seen.settings.len() == 7);
    let network: PodNetwork = serde_json::from_str(&seen.pod_network.unwrap()).unwrap();
    let pod = network.address_v6("172.20.11.7".parse().unwrap());
    assert_eq!(pod, Some("fd20:0:0:b::7".parse().unwrap()));
    let (_, first) = everything();
    assert_eq!(first.settings.len(), 5, "a site of IPv4 alone is left alone");
}

#[test]
fn pods_wait_for_a_neighbour_but_not_for_ever() {
    let (intent, mut seen) = everything();
    settle(&intent, &mut seen, "Connect");
    assert!(seen.pod_network.is_some(), "the plugin may know");
    assert_eq!(seen.list, None, "the runtime may not");
    assert_eq!(plan(&intent, &seen, &Paths::default()).again_after, Some(NEIGHBOUR_BEAT));
    seen.configured_for = Some(NEIGHBOUR_WAIT);
    settle(&intent, &mut seen, "Connect");
    assert!(seen.list.is_some());
}

#[test]
fn sessions_come_up_before_the_node_has_its_pod_network() {
    let (intent, mut seen) = everything();
    let pods = seen.known.pods.take();
    settle(&intent, &mut seen, "Established");
    assert!(seen.bird_config.is_some());
    assert_eq!((&seen.pod_network, &seen.list), (&None, &None));
    seen.known.pods = pods;
    settle(&intent, &mut seen, "Established");
    assert!(seen.list.is_some());
}

#[test]
fn a_bird_that_was_restarted_is_told_again_and_pods_stay() {
    let (intent, mut seen) = everything();
    settle(&intent, &mut seen, "Established");
    seen.bird.protocols.clear();
    let actions = plan(&intent, &seen, &Paths::default()).actions;
    assert!(matches!(actions.as_slice(), [Action::Configure { .. }]), "{actions:?}");
}

#[test]
fn a_configuration_is_never_printed() {
    let (intent, seen) = everything();
    let actions = plan(&intent, &seen, &Paths::default()).actions;
    let text = format!("{actions:?}");
    assert!(text.contains("Configure") && !text.contains("router id"), "{text}");
}

#[test]
fn the_apis_address_is_held_before_it_is_announced_and_left_after() {
    let (mut intent, mut seen) = everything();
    let address = Ipv4Addr::new(10, 98, 254, 1);
    seen.api = Api { address: Some(address), held: false, wanted: true };
    intent.announce = vec![Ipv4Net::from(address)];
    let actions = plan(&intent, &seen, &Paths::default()).actions;
    let at = |wanted: fn(&Action) -> bool| actions.iter().position(wanted).unwrap();
    let held = at(|one| matches!(one, Action::HoldApi { .. }));
    assert!(held < at(|one| matches!(one, Action::Configure { .. })), "{actions:?}");
    settle(&intent, &mut seen, "Established");
    assert!(seen.api.held);
    seen.api.wanted = false;
    intent.announce.clear();
    let actions = plan(&intent, &seen, &Paths::default()).actions;
    assert!(matches!(actions.as_slice(), [Action::Configure { .. }]), "{actions:?}");
    settle(&intent, &mut seen, "Established");
    assert!(!seen.api.held);
}
