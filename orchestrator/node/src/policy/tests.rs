mod machine;
mod naive;

use serde_json::{Value, json};

use super::*;
use machine::Machine;
use naive::Cluster;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    /// In small letters.
    protocol: &'static str,
    port: u16,
}

impl Cluster {
    fn plan(&self) -> Policies {
        let read = |one: &Value| serde_json::from_value::<NetworkPolicy>(one.clone()).unwrap();
        let policies: Vec<NetworkPolicy> = self.policies.iter().map(read).collect();
        let pods = self.pods.iter().map(|one| serde_json::from_value(one.clone()).unwrap());
        let pods: Vec<Guest> = pods.collect();
        let rooms = self.namespaces.iter().map(|one| serde_json::from_value(one.clone()).unwrap());
        let rooms: Vec<Room> = rooms.collect();
        plan_policies("here", &policies, &pods, &rooms)
    }
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

fn pod(namespace: &str, app: &str, node: &str, ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let port = json!({"name": "http", "protocol": "TCP", "containerPort": 8080});
    json!({"metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [port]}]},
        "status": {"phase": "Running", "podIPs": ips}})
}

const NAMES: [(&str, &str); 7] = [
    ("web", "172.20.1.2"),
    ("db", "172.20.1.3"),
    ("client", "172.20.2.2"),
    ("stranger", "172.20.2.3"),
    ("host", "10.0.0.1"),
    ("out", "203.0.113.9"),
    ("near", "203.0.113.130"),
];

/// Two pods here; `client` of the same namespace and `stranger` of another one elsewhere.
fn small_cluster(policies: &Value) -> Cluster {
    let mut host = pod("default", "host", "here", &["10.0.0.1"]);
    host["spec"]["hostNetwork"] = json!(true);
    let named = |(at, spec): (usize, &Value)| json!({"metadata": {"namespace": "default", "name": format!("p{at}")}, "spec": spec});
    Cluster {
        namespaces: vec![
            namespace("default", json!({"team": "a"})),
            namespace("other", json!({"team": "b"})),
        ],
        pods: vec![
            pod("default", "web", "here", &["172.20.1.2"]),
            pod("default", "db", "here", &["172.20.1.3"]),
            pod("default", "client", "there", &["172.20.2.2"]),
            pod("other", "stranger", "there", &["172.20.2.3"]),
            host,
        ],
        policies: policies.as_array().unwrap().iter().enumerate().map(named).collect(),
    }
}

/// Each expectation is `FROM > TO PROTOCOL PORT`; the list says all that pass, of those asked.
#[track_caller]
fn check(policies: Value, asked: &[(&str, bool)]) {
    let cluster = small_cluster(&policies);
    let planned = cluster.plan();
    let (script, _) = Loaded::render_whole(&planned);
    let mut machine = Machine::default();
    machine.apply(&script);
    for (question, expected) in asked {
        let words: Vec<&str> = question.split_whitespace().collect();
        let [from, ">", to, protocol, port] = words.as_slice() else { panic!("{question}") };
        let address =
            |name: &str| NAMES.iter().find(|one| one.0 == name).unwrap().1.parse().unwrap();
        let protocol = ["tcp", "udp", "sctp", "icmp"].into_iter().find(|one| one == protocol);
        let (protocol, port) = (protocol.unwrap(), port.parse().unwrap());
        let packet = Packet { from: address(from), to: address(to), protocol, port };
        assert_eq!(cluster.allows("here", &packet), *expected, "documentation: {question}");
        assert_eq!(machine.forwards(&packet), *expected, "{question}\n{script}");
    }
    crate::service::tests::accepted_by_nft(&script);
}

#[test]
fn nobody_is_isolated_without_a_policy() {
    check(json!([]), &[("out > web tcp 80", true), ("web > out udp 53", true)]);
}

#[test]
fn a_policy_isolates_in_the_directions_it_speaks_of() {
    let empty = json!([{"podSelector": {}}]);
    check(
        empty,
        &[
            ("client > web tcp 80", false),
            ("out > db icmp 0", false),
            ("web > out tcp 80", true),
            ("web > db tcp 80", false),
            ("web > web tcp 80", true),
            ("out > client tcp 80", true),
            ("out > host tcp 80", true),
        ],
    );
    let egress = json!([{"podSelector": {}, "policyTypes": ["Egress"]}]);
    check(egress, &[("client > web tcp 80", true), ("web > out tcp 80", false)]);
    // Egress rules alone imply both directions.
    let implied = json!([{"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{}]}]);
    check(
        implied,
        &[("client > web tcp 80", false), ("web > out tcp 80", true), ("client > db tcp 80", true)],
    );
}

#[test]
fn peers_are_pods_namespaces_or_both() {
    let from = |peers: Value| json!([{"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": peers}]}]);
    check(
        from(json!([{"podSelector": {"matchLabels": {"app": "client"}}}])),
        &[
            ("client > web tcp 80", true),
            ("stranger > web tcp 80", false),
            ("db > web tcp 80", false),
            ("out > web tcp 80", false),
        ],
    );
    check(
        from(json!([{"namespaceSelector": {"matchLabels": {"team": "b"}}}])),
        &[("client > web tcp 80", false), ("stranger > web tcp 80", true)],
    );
    check(
        from(json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions":
            [{"key": "app", "operator": "NotIn", "values": ["db"]}]}}])),
        &[
            ("client > web tcp 80", true),
            ("stranger > web tcp 80", true),
            ("db > web tcp 80", false),
            ("host > web tcp 80", false),
            ("out > web tcp 80", false),
        ],
    );
    // Two peers are either, one peer with both selectors is both.
    check(
        from(json!([{"namespaceSelector": {"matchLabels": {"team": "b"}},
            "podSelector": {"matchLabels": {"app": "client"}}}])),
        &[("client > web tcp 80", false), ("stranger > web tcp 80", false)],
    );
}

#[test]
fn blocks_of_addresses_may_have_holes() {
    check(
        json!([{"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24",
            "except": ["203.0.113.128/25", "203.0.113.192/26"]}}]}],
        "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["172.20.0.0/16"]}}]}]}]),
        &[
            ("web > out tcp 80", true),
            ("web > near tcp 80", false),
            ("web > client tcp 80", false),
            ("out > web tcp 80", true),
            ("host > web tcp 80", true),
            ("client > web tcp 80", false),
        ],
    );
}

#[test]
fn ports_are_numbers_ranges_or_the_pods_own_names() {
    check(
        json!([{"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [
            {"port": 80}, {"port": 81, "endPort": 90}, {"port": 85, "endPort": 99},
            {"protocol": "UDP", "port": 53}, {"protocol": "SCTP"}, {"port": "http"}]}]}]),
        &[
            ("out > web tcp 80", true),
            ("out > web tcp 99", true),
            ("out > web tcp 100", false),
            ("out > web tcp 8080", true),
            ("out > web udp 8080", false),
            ("out > web udp 53", true),
            ("out > web udp 80", false),
            ("out > web sctp 7", true),
            ("out > web icmp 0", false),
        ],
    );
    check(
        json!([{"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}]}]),
        &[
            ("web > client tcp 8080", true),
            ("web > client tcp 80", false),
            ("web > stranger tcp 8080", false),
        ],
    );
}

#[test]
fn permissions_of_all_policies_add_up_and_both_ends_must_permit() {
    let web = json!({"matchLabels": {"app": "web"}});
    check(
        json!([
            {"podSelector": web},
            {"podSelector": web, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]},
            {"podSelector": {}, "ingress": [{"ports": [{"port": 443}]}]},
            {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"],
             "egress": [{"ports": [{"port": 80}]}]},
        ]),
        &[
            ("db > web tcp 80", true),
            ("db > web tcp 443", false),
            ("client > web tcp 443", true),
            ("client > web tcp 80", false),
        ],
    );
}

#[test]
fn what_makes_no_sense_permits_nothing_and_is_told() {
    let cluster =
        small_cluster(&json!([{"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
        {"from": [{"ipBlock": {"cidr": "nowhere"}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]},
        {"ports": [{"protocol": "GRE"}, {"port": 70000}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]}]}]));
    let planned = cluster.plan();
    assert_eq!(planned.ingress.values().map(BTreeSet::len).collect::<Vec<_>>(), [0]);
    let reasons: Vec<&str> = planned.skipped.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "a selector has an unknown operator",
            "nowhere is no block of addresses",
            "ports 70000 to 70000 are none",
            "protocol GRE is unknown",
            "x is no block of addresses",
        ]
    );
}

#[test]
fn a_pod_that_comes_changes_elements_and_no_rules() {
    let policies = json!([{"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}]);
    let mut cluster = small_cluster(&policies);
    let (_, loaded) = Loaded::render_whole(&cluster.plan());
    cluster.pods.push(pod("default", "new", "there", &["172.20.2.9"]));
    cluster.pods.push(pod("default", "here", "here", &["172.20.1.9"]));
    let planned = cluster.plan();
    assert!(!loaded.is(&planned));
    let (script, loaded) = loaded.render_change(&planned);
    assert!(script.lines().all(|line| line.starts_with("add element ip ")), "{script}");
    assert!(loaded.is(&planned));
    assert_eq!(loaded.render_change(&planned), (String::new(), loaded.clone()));
}

#[test]
fn the_second_family_has_a_table_of_its_own_when_it_is_needed() {
    let mut cluster = small_cluster(&json!([{"podSelector": {}, "ingress": [{"from": [
        {"podSelector": {}}, {"ipBlock": {"cidr": "2001:db8::/32"}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}]));
    let (script, loaded) = Loaded::render_whole(&cluster.plan());
    assert!(!script.contains("table ip6 muster-policies {"), "{script}");
    cluster.pods.push(pod("default", "both", "here", &["172.20.1.9", "fd00::9"]));
    let mut machine = Machine::default();
    machine.apply(&script);
    let (change, _) = loaded.render_change(&cluster.plan());
    machine.apply(&change);
    for (from, expected) in [("2001:db8::1", true), ("2001:db9::1", false), ("fd00::9", true)] {
        let (from, to) = (from.parse().unwrap(), "fd00::9".parse().unwrap());
        let packet = Packet { from, to, protocol: "tcp", port: 80 };
        assert_eq!(machine.forwards(&packet), expected, "{packet:?}\n{change}");
    }
    crate::service::tests::accepted_by_nft(&(script + &change));
}

/// Numbers that look random; the same for the same seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.throw(items.len() as u64)).unwrap()].clone()
    }

    fn some<T>(&mut self, max: u64, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.throw(max + 1)).map(|_| make(self)).collect()
    }

    fn labels(&mut self) -> Value {
        let mut labels = json!({"app": self.pick(&["p", "q", "r"])});
        if self.throw(2) == 0 {
            labels["tier"] = json!(self.pick(&["one", "two"]));
        }
        labels
    }

    fn selector(&mut self) -> Value {
        let values = ["p", "q"];
        match self.throw(5) {
            0 => json!({}),
            1 => json!({"matchLabels": {"tier": "one"}}),
            2 => {
                json!({"matchExpressions": [{"key": "tier", "operator": self.pick(&["Exists", "DoesNotExist"])}]})
            }
            3 => {
                json!({"matchExpressions": [{"key": "app", "operator": self.pick(&["In", "NotIn"]), "values": values}]})
            }
            _ => json!({"matchLabels": {"app": self.pick(&["p", "q", "r"])}}),
        }
    }

    fn peer(&mut self) -> Value {
        match self.throw(4) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.selector()}),
            2 => json!({"namespaceSelector": self.selector(), "podSelector": self.selector()}),
            _ => {
                let holes = ["172.20.0.0/28", "172.20.0.4/30", "172.20.0.16/28"];
                json!({"ipBlock": {"cidr": self.pick(&["172.20.0.0/27", "0.0.0.0/0"]),
                    "except": self.some(2, |dice| dice.pick(&holes))}})
            }
        }
    }

    fn port(&mut self) -> Value {
        let mut port = json!({"protocol": self.pick(&["TCP", "UDP"])});
        match self.throw(4) {
            0 => (),
            1 => port["port"] = json!("http"),
            2 => port["port"] = json!(self.pick(&[79, 80, 8080])),
            _ => {
                let first = 70 + self.throw(20);
                port["port"] = json!(first);
                port["endPort"] = json!(first + self.throw(20));
            }
        }
        port
    }

    fn policy(&mut self, rooms: &[&str]) -> Value {
        let mut rules = |peers: &str| {
            self.some(
                2,
                |dice| json!({peers: dice.some(2, Self::peer), "ports": dice.some(2, Self::port)}),
            )
        };
        let (ingress, egress) = (rules("from"), rules("to"));
        let types =
            [json!([]), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])];
        json!({"metadata": {"namespace": self.pick(rooms), "name": "p"}, "spec": {
            "podSelector": self.selector(), "policyTypes": self.pick(&types),
            "ingress": ingress, "egress": egress}})
    }

    fn cluster(&mut self) -> Cluster {
        let rooms = ["a", "b", "c"];
        let namespaces = rooms.iter().map(|name| namespace(name, self.labels())).collect();
        let pods = (0..20).map(|number| {
            let ip = format!("172.20.0.{number}");
            let mut pod = pod(self.pick(&rooms), "", self.pick(&["here", "there"]), &[&ip]);
            pod["metadata"]["labels"] = self.labels();
            pod["spec"]["hostNetwork"] = json!(self.throw(10) == 0);
            pod["status"]["phase"] = json!(self.pick(&["Running", "Running", "Pending", "Failed"]));
            let port = json!({"name": "http", "protocol": self.pick(&["TCP", "UDP"]),
                "containerPort": self.pick(&[80, 8080])});
            pod["spec"]["containers"][0]["ports"] = json!([port]);
            pod
        });
        let pods = pods.collect();
        Cluster { namespaces, pods, policies: self.some(5, |dice| dice.policy(&rooms)) }
    }

    fn packet(&mut self) -> Packet {
        let mut end = || IpAddr::from([172, 20, 0, u8::try_from(self.throw(34)).unwrap()]);
        let (from, to) = (end(), end());
        let protocol = self.pick(&["tcp", "tcp", "udp", "icmp"]);
        Packet { from, to, protocol, port: self.pick(&[79, 80, 85, 8080]) }
    }
}

#[test]
fn tables_mean_what_the_documentation_says_also_after_changes() {
    for seed in 1..=60_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut machine = Machine::default();
        let mut loaded: Option<Loaded> = None;
        let mut cluster = dice.cluster();
        for step in 0..5 {
            let planned = cluster.plan();
            assert!(planned.skipped.is_empty(), "{:?}", planned.skipped);
            let (whole, fresh) = Loaded::render_whole(&planned);
            let (script, next) = match &loaded {
                Some(loaded) => loaded.render_change(&planned),
                None => (whole.clone(), fresh),
            };
            machine.apply(&script);
            for _ in 0..150 {
                let packet = dice.packet();
                let (expected, found) =
                    (cluster.allows("here", &packet), machine.forwards(&packet));
                assert_eq!(found, expected, "seed {seed} step {step} {packet:?}\n{cluster:#?}");
            }
            // What nobody uses any more is gone.
            let mut other = Machine::default();
            other.apply(&whole);
            assert_eq!(machine.size(), other.size(), "seed {seed} step {step}\n{script}");
            loaded = Some(next);
            match dice.throw(3) {
                0 => cluster.policies = dice.cluster().policies,
                1 => cluster.namespaces = dice.cluster().namespaces,
                _ => cluster.pods = dice.cluster().pods,
            }
        }
    }
}
