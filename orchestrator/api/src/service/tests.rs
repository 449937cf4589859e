//! Stories of services that are given addresses and ports.

use super::*;

/// What some services hold.
#[derive(Default)]
struct Others(Vec<Holding>);

impl Taken for Others {
    fn has_address(&self, address: IpAddr) -> bool {
        self.0.iter().any(|one| one.addresses.contains(&address))
    }

    fn has_port(&self, port: u16) -> bool {
        self.0.iter().any(|one| one.ports.contains(&port))
    }
}

/// One cluster with its ranges.
struct Site {
    range: ServiceRange,
    ranges: Vec<Value>,
    others: Others,
}

impl Site {
    fn new(cidrs: &str) -> Self {
        let range: ServiceRange = cidrs.parse().unwrap();
        let mut site = Self { range, ranges: Vec::new(), others: Others::default() };
        for cidr in site.range.cidrs() {
            site.extend(&cidr, json!({}));
        }
        site
    }

    fn extend(&mut self, cidr: &str, status: Value) {
        self.ranges.push(json!({"spec": {"cidrs": [cidr]}, "status": status}));
    }

    /// Assigns as for a service that did not exist, and remembers it.
    fn give(&mut self, spec: Value) -> Result<Value, Status> {
        self.change(None, spec)
    }

    /// Assigns as for an update, with what the client left out, and remembers it.
    fn change(&mut self, old: Option<Value>, spec: Value) -> Result<Value, Status> {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        let old = old.map(|spec| json!({"metadata": {"name": "s"}, "spec": spec}));
        if let Some(old) = &old {
            family::keep(old, service["spec"].as_object_mut().unwrap());
        }
        let networks = networks(&self.ranges);
        let supply =
            Supply { networks: &networks, range: &self.range, taken: &self.others, seed: 7 };
        assign(&mut service, old.as_ref(), &supply)?;
        self.others.0.push(Holding::of(&service));
        Ok(service["spec"].take())
    }

    #[track_caller]
    fn refuses(&mut self, spec: Value, code: u16, why: &str) {
        let refused = self.give(spec).unwrap_err();
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.message.contains(why), "{}", refused.message);
    }
}

/// Policy, families, and the range of each address.
fn shape(spec: &Value) -> String {
    let address = |address: &Value| match address.as_str().unwrap() {
        four if four.contains('.') => "4",
        "None" => "None",
        _ => "6",
    };
    let list = |field: &str| spec[field].as_array().cloned().unwrap_or_default();
    let addresses: Vec<&str> = list("clusterIPs").iter().map(address).collect();
    let families: Vec<String> =
        list("ipFamilies").iter().map(|family| family.as_str().unwrap().to_owned()).collect();
    assert_eq!(spec["clusterIP"], list("clusterIPs").first().cloned().unwrap_or_default());
    let policy = spec["ipFamilyPolicy"].as_str().unwrap_or("-");
    format!("{policy} {} {}", families.join(","), addresses.join(","))
}

/// What becomes of services in a cluster: what is said, and the shape or the refusal.
#[track_caller]
fn check(cidrs: &str, old: Option<&Value>, said: Value, expected: &str) {
    let mut site = Site::new(cidrs);
    let old = old.map(|old| {
        let given = site.give(old.clone()).unwrap();
        assert_ne!(shape(&given), "", "what was there before");
        given
    });
    let given = match site.change(old, said.clone()) {
        Ok(spec) => shape(&spec),
        Err(status) => status.message.replace("Service \"s\" is invalid: ", ""),
    };
    assert_eq!(given, expected, "{cidrs} {said}");
}

const FOUR: &str = "172.21.0.0/24";
const SIX: &str = "fd21::/112";
const BOTH: &str = "172.21.0.0/24,fd21::/112";
const SIX_FIRST: &str = "fd21::/112,172.21.0.0/24";

#[test]
fn new_services_get_the_families_they_ask_for_as_far_as_the_cluster_has_them() {
    let policy = |policy: &str| json!({"ipFamilyPolicy": policy});
    let not_here = "spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster";
    for (cidrs, said, expected) in [
        (FOUR, json!({}), "SingleStack IPv4 4"),
        (SIX, json!({}), "SingleStack IPv6 6"),
        (BOTH, json!({}), "SingleStack IPv4 4"),
        (SIX_FIRST, json!({}), "SingleStack IPv6 6"),
        (FOUR, policy("PreferDualStack"), "PreferDualStack IPv4 4"),
        (BOTH, policy("PreferDualStack"), "PreferDualStack IPv4,IPv6 4,6"),
        (SIX_FIRST, policy("RequireDualStack"), "RequireDualStack IPv6,IPv4 6,4"),
        (
            FOUR,
            policy("RequireDualStack"),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
             configured for dual-stack services",
        ),
        (BOTH, json!({"ipFamilies": ["IPv6"]}), "SingleStack IPv6 6"),
        (
            BOTH,
            json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv6,IPv4 6,4",
        ),
        (
            BOTH,
            json!({"ipFamilies": ["IPv6", "IPv4"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or \
             'PreferDualStack' when multiple IP families are specified",
        ),
        (
            FOUR,
            json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
            not_here,
        ),
        (BOTH, json!({"clusterIP": "fd21::7"}), "SingleStack IPv6 6"),
        (
            BOTH,
            json!({"clusterIP": "fd21::7", "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv6,IPv4 6,4",
        ),
        (
            BOTH,
            json!({"clusterIP": "172.21.0.7", "clusterIPs": ["172.21.0.7", "fd21::7"],
                "ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv4,IPv6 4,6",
        ),
        (
            FOUR,
            json!({"clusterIP": "fd21::7"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd21::7\"]: IPv6 is not configured on this \
             cluster",
        ),
        (
            BOTH,
            json!({"clusterIP": "fd22::7"}),
            "spec.clusterIPs: Invalid value: [\"fd22::7\"]: failed to allocate IP fd22::7: the \
             provided network does not match the current range",
        ),
        (BOTH, json!({"type": "ExternalName"}), "-  "),
    ] {
        check(cidrs, None, said, expected);
    }
}

#[test]
fn headless_services_have_families_and_no_addresses() {
    let app = || json!({"app": "a"});
    let headless = |selector: Value| json!({"clusterIP": "None", "selector": selector});
    for (cidrs, said, expected) in [
        (BOTH, headless(app()), "SingleStack IPv4 None"),
        (FOUR, headless(json!({})), "RequireDualStack IPv4,IPv6 None"),
        (SIX_FIRST, headless(json!({})), "RequireDualStack IPv6,IPv4 None"),
        (
            FOUR,
            json!({"clusterIP": "None", "selector": app(), "ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
             configured for dual-stack services",
        ),
    ] {
        check(cidrs, None, said, expected);
    }
}

#[test]
fn services_gain_and_lose_their_second_family_when_they_are_told_to() {
    let single = json!({});
    let dual = json!({"ipFamilyPolicy": "RequireDualStack"});
    let policy = |policy: &str| json!({"ipFamilyPolicy": policy});
    let release = |what: &str| {
        format!(
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to \
             release the secondary {what}"
        )
    };
    for (old, said, expected) in [
        (&single, policy("PreferDualStack"), "PreferDualStack IPv4,IPv6 4,6".to_owned()),
        (&single, policy("RequireDualStack"), "RequireDualStack IPv4,IPv6 4,6".to_owned()),
        (&single, json!({}), "SingleStack IPv4 4".to_owned()),
        (
            &single,
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}),
            "PreferDualStack IPv4,IPv6 4,6".to_owned(),
        ),
        (&dual, policy("SingleStack"), "SingleStack IPv4 4".to_owned()),
        (&dual, json!({}), "RequireDualStack IPv4,IPv6 4,6".to_owned()),
        (&dual, policy("PreferDualStack"), "PreferDualStack IPv4,IPv6 4,6".to_owned()),
        (&dual, json!({"ipFamilies": ["IPv4"]}), release("IP family")),
        (
            &dual,
            json!({"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
            "SingleStack IPv4 4".to_owned(),
        ),
    ] {
        check(BOTH, Some(old), said, &expected);
    }
}

#[test]
fn who_prefers_two_families_gets_the_second_only_when_asked_again() {
    let mut site = Site::new(FOUR);
    let prefers = json!({"ipFamilyPolicy": "PreferDualStack"});
    let alone = site.give(prefers.clone()).unwrap();
    assert_eq!(shape(&alone), "PreferDualStack IPv4 4");
    // The cluster gets its second family, and the service stays as it is.
    site.range = BOTH.parse().unwrap();
    site.extend(SIX, json!({}));
    let same = site.change(Some(alone.clone()), prefers.clone()).unwrap();
    assert_eq!(same, alone);
    let asked = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]});
    let both = site.change(Some(alone), asked).unwrap();
    assert_eq!(shape(&both), "PreferDualStack IPv4,IPv6 4,6");
    // Nor does it lose one with its cluster.
    site.range = FOUR.parse().unwrap();
    assert_eq!(site.change(Some(both.clone()), prefers).unwrap(), both);
}

#[test]
fn each_address_of_a_service_is_held_and_given_once() {
    let mut site = Site::new(BOTH);
    let asked = json!({"clusterIP": "172.21.0.9", "clusterIPs": ["172.21.0.9", "FD21:0::9"],
        "ipFamilyPolicy": "RequireDualStack"});
    let given = site.give(asked.clone()).unwrap();
    // As it was said, but it is the same address however it is written.
    assert_eq!(given["clusterIPs"][1], "FD21:0::9");
    let held: Vec<String> =
        Holding::of(&json!({"spec": given})).addresses.iter().map(ToString::to_string).collect();
    assert_eq!(held, ["172.21.0.9", "fd21::9"]);
    let other = json!({"clusterIP": "fd21::9"});
    site.refuses(other, 422, "failed to allocate IP fd21::9: provided IP is already allocated");
    // A service that moves to one family frees the other address.
    let single = site.change(Some(given.clone()), json!({"ipFamilyPolicy": "SingleStack"}));
    let freed = Holding::of(&json!({"spec": given}))
        .without(&Holding::of(&json!({"spec": single.unwrap()})));
    assert_eq!(freed.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["fd21::9"]);
}

#[test]
fn addresses_are_given_once_until_a_range_is_added() {
    let mut site = Site::new("172.21.0.0/30");
    let asked = json!({"type": "ClusterIP", "clusterIP": "172.21.0.1"});
    site.give(asked.clone()).unwrap();
    let any = || json!({"type": "ClusterIP"});
    assert_eq!(site.give(any()).unwrap()["clusterIPs"], json!(["172.21.0.2"]));
    site.refuses(any(), 500, "range is full");
    site.refuses(asked, 422, "failed to allocate IP 172.21.0.1: provided IP is already");
    let at = |address: &str| json!({"type": "ClusterIP", "clusterIP": address});
    site.refuses(at("172.21.0.3"), 422, "provided IP 172.21.0.3 is not in the valid range");
    site.refuses(at("10.0.0.1"), 422, "the provided network does not match the current range");
    site.refuses(at("fd00::1"), 422, "IPv6 is not configured on this cluster");
    // Another range gives addresses once it is ready.
    let ready = |word: &str| json!({"conditions": [{"type": "Ready", "status": word}]});
    site.extend("10.0.0.0/28", ready("False"));
    site.refuses(any(), 500, "range is full");
    site.ranges[1]["status"] = ready("True");
    assert!(site.give(any()).unwrap()["clusterIP"].as_str().unwrap().starts_with("10.0.0."));
    site.ranges[1]["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    site.refuses(any(), 500, "range is full");
}

#[test]
fn the_lower_addresses_and_ports_stay_for_those_who_ask() {
    let mut site = Site::new("172.21.0.0/27");
    let spec = || json!({"type": "NodePort", "ports": [{"port": 80}]});
    let given: Vec<Value> = (0..30).map(|_| site.give(spec()).unwrap()).collect();
    let last = |spec: &Value| -> u8 {
        spec["clusterIP"].as_str().unwrap().rsplit('.').next().unwrap().parse().unwrap()
    };
    let (upper, lower) = given.split_at(14);
    assert!(upper.iter().all(|spec| (17..=30).contains(&last(spec))));
    assert!(lower.iter().all(|spec| (1..=16).contains(&last(spec))));
    assert!(given.iter().all(|spec| spec["ports"][0]["nodePort"].as_u64() >= Some(30_086)));
    site.refuses(spec(), 500, "range is full");
}

#[test]
fn headless_services_get_no_address_and_what_one_has_it_keeps() {
    let mut site = Site::new("172.21.0.0/24");
    let headless = json!({"type": "ClusterIP", "clusterIP": "None"});
    assert_eq!(site.give(headless).unwrap()["clusterIP"], "None");
    // An address from a range that is gone by now.
    let old = json!({
        "type": "NodePort", "clusterIP": "10.9.9.9", "clusterIPs": ["10.9.9.9"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{"port": 1, "nodePort": 20}],
    });
    assert_eq!(site.change(Some(old.clone()), old.clone()).unwrap(), old);
}

#[test]
fn node_ports_are_given_once() {
    let mut site = Site::new("172.21.0.0/24");
    let ports = |ports: Value| json!({"type": "NodePort", "ports": ports});
    let spec = ports(json!([{"port": 80}, {"port": 81, "nodePort": 30001}]));
    let given = site.give(spec).unwrap();
    assert_eq!(given["ports"][1]["nodePort"], 30001);
    assert_ne!(given["ports"][0]["nodePort"], 30001);
    let taken = ports(json!([{"port": 80, "nodePort": 30001}]));
    site.refuses(taken, 422, "provided port is already allocated");
    let outside = ports(json!([{"port": 80, "nodePort": 70000}]));
    site.refuses(outside, 422, "The range of valid ports is 30000-32767");
    // One number for both protocols of a service.
    let both = json!([
        {"port": 53, "protocol": "UDP", "nodePort": 30053},
        {"port": 53, "protocol": "TCP", "nodePort": 30053},
    ]);
    site.give(ports(both)).unwrap();
}

#[test]
fn balancers_get_a_port_for_health_and_may_go_without_the_others() {
    let mut site = Site::new("172.21.0.0/24");
    let given = site.give(json!({
        "type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": false,
    }));
    let given = given.unwrap();
    assert!(given["healthCheckNodePort"].as_u64() >= Some(30_086));
    assert_eq!(given["ports"], json!([{"port": 80}]));
    let cluster = json!({
        "type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": "Cluster",
    });
    let given = site.give(cluster).unwrap();
    assert_eq!(given.get("healthCheckNodePort"), None);
    assert!(given["ports"][0]["nodePort"].is_u64());
}
