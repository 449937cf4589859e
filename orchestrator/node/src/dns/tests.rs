use std::sync::Arc;

use expect_test::{Expect, expect};
use objects::network::{EndpointSlice, Service};
use serde_json::json;

use super::*;

fn zone() -> Zone {
    let services: Vec<Service> = [
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
            "clusterIP": "172.21.0.20", "clusterIPs": ["172.21.0.20", "fd00::20"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80},
                      {"name": "dns", "protocol": "UDP", "port": 53}]}}),
        json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "None",
            "ports": [{"name": "sql", "protocol": "TCP", "port": 3306}]}}),
        json!({"metadata": {"name": "peers", "namespace": "shop"}, "spec": {"clusterIP": "None",
            "publishNotReadyAddresses": true}}),
        json!({"metadata": {"name": "mail", "namespace": "shop"}, "spec": {
            "type": "ExternalName", "externalName": "smtp.example.org"}}),
        json!({"metadata": {"name": "lost", "namespace": "void"}, "spec": {"clusterIP": ""}}),
    ]
    .into_iter()
    .map(|service| serde_json::from_value(service).unwrap())
    .collect();
    let slice = |service: &str, ready: bool, endpoints: serde_json::Value| -> EndpointSlice {
        let mut endpoints = endpoints;
        for endpoint in endpoints.as_array_mut().unwrap() {
            endpoint["conditions"] = json!({"ready": ready});
        }
        serde_json::from_value(json!({
            "metadata": {"name": format!("{service}-{ready}"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "sql", "protocol": "TCP", "port": 3306}],
        }))
        .unwrap()
    };
    let slices = [
        slice(
            "db",
            true,
            json!([{"addresses": ["172.20.12.4"], "hostname": "db-0"},
                   {"addresses": ["172.20.21.7"]}]),
        ),
        slice("db", false, json!([{"addresses": ["172.20.11.9"], "hostname": "db-1"}])),
        slice("peers", false, json!([{"addresses": ["172.20.11.9"], "hostname": "p-0"}])),
    ];
    let ranges = vec!["172.20.0.0/16".parse().unwrap(), "172.21.0.0/24".parse().unwrap()];
    let mut zone = Zone::new("cluster.local", ranges).unwrap();
    zone.behind().replace_services(services.into_iter().map(Arc::new));
    zone.behind().replace_slices(slices.into_iter().map(Arc::new));
    assert!(zone.refresh());
    zone
}

#[test]
fn a_zone_that_followed_changes_is_as_one_made_anew() {
    let service = |name: &str, cluster_ip: &str| -> Arc<Service> {
        let spec = json!({"clusterIP": cluster_ip, "ports": [{"name": "sql", "port": 3306}]});
        let meta = json!({"namespace": "shop", "name": name});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap())
    };
    let slice = |name: &str, service: &str, hosts: &[(&str, &str)]| -> Arc<EndpointSlice> {
        let endpoints: Vec<_> = hosts
            .iter()
            .map(|(host, address)| json!({"hostname": host, "addresses": [address]}))
            .collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": name,
                    "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "sql", "protocol": "TCP", "port": 3306}]}))
            .unwrap(),
        )
    };
    let steps: [Step; 8] = [
        (vec![service("db", "None")], vec![slice("a", "db", &[("db-0", "172.20.1.2")])], true),
        // Only the order of a service's endpoints counts for names of headless ones.
        (
            vec![service("db", "None"), service("web", "172.21.0.7")],
            vec![
                slice("a", "db", &[("db-0", "172.20.1.2"), ("db-1", "172.20.1.3")]),
                slice("b", "web", &[("", "172.20.1.9")]),
            ],
            true,
        ),
        (
            vec![service("db", "None"), service("web", "172.21.0.7")],
            vec![
                slice("a", "db", &[("db-0", "172.20.1.2"), ("db-1", "172.20.1.3")]),
                slice("b", "web", &[("", "172.20.1.8")]),
            ],
            false,
        ),
        // One address with two names loses one of them.
        (
            vec![service("db", "None"), service("twin", "None")],
            vec![
                slice("a", "db", &[("db-0", "172.20.1.2")]),
                slice("b", "twin", &[("t-0", "172.20.1.2")]),
            ],
            true,
        ),
        (
            vec![service("twin", "None")],
            vec![
                slice("a", "db", &[("db-0", "172.20.1.2")]),
                slice("b", "twin", &[("t-0", "172.20.1.2")]),
            ],
            true,
        ),
        (vec![service("twin", "172.21.0.9")], vec![slice("a", "twin", &[])], true),
        (vec![service("twin", "172.21.0.9")], vec![], false),
        (vec![], vec![], true),
    ];
    follow(steps);
}

/// Services, slices of endpoints, and whether names change by them.
type Step = (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>, bool);

#[track_caller]
fn follow(steps: impl IntoIterator<Item = Step>) {
    let empty = || Zone::new("cluster.local", Vec::new()).unwrap();
    let mut zone = empty();
    for (services, slices, changes) in steps {
        zone.behind().replace_services(services.clone());
        zone.behind().replace_slices(slices.clone());
        assert_eq!(zone.refresh(), changes, "{services:?}");
        let mut fresh = empty();
        fresh.behind().replace_services(services);
        fresh.behind().replace_slices(slices);
        fresh.refresh();
        assert_eq!(zone.contents(), fresh.contents());
    }
    assert_eq!(zone.contents(), empty().contents());
}

/// Asks `TYPE NAME` for each line and writes what is answered.
#[track_caller]
fn check(questions: &str, expected: Expect) {
    check_in(&zone(), questions, expected);
}

#[track_caller]
fn check_in(zone: &Zone, questions: &str, expected: Expect) {
    let mut text = String::new();
    for question in questions.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (kind, name) = question.split_once(' ').unwrap();
        let query = Query::query(Name::from_ascii(name).unwrap(), kind.parse().unwrap());
        text += &format!("{question}\n");
        match zone.answer(&query, 0) {
            Verdict::Foreign => text += "  foreign\n",
            Verdict::Alias { record, target } => {
                text += &format!("  {}\n  look up {target}\n", record.data);
            }
            Verdict::Answer(answer) => {
                text += &format!("  {:?}\n", answer.code);
                for (section, records) in
                    [("", &answer.answers), ("additional ", &answer.additionals)]
                {
                    for record in records {
                        let (name, data) = (&record.name, &record.data);
                        text += &format!("  {section}{name} {} {data}\n", record.record_type());
                    }
                }
                assert_eq!(answer.authority.is_some(), answer.answers.is_empty());
            }
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn a_service_has_its_address_and_one_service_record_per_port() {
    check(
        "A web.shop.svc.cluster.local.
         A WEB.Shop.svc.CLUSTER.local.
         AAAA web.shop.svc.cluster.local.
         SRV _http._tcp.web.shop.svc.cluster.local.
         SRV _http._udp.web.shop.svc.cluster.local.
         A _http._tcp.web.shop.svc.cluster.local.
         MX web.shop.svc.cluster.local.
         PTR 20.0.21.172.in-addr.arpa.",
        expect![[r#"
            A web.shop.svc.cluster.local.
              NoError
              web.shop.svc.cluster.local. A 172.21.0.20
            A WEB.Shop.svc.CLUSTER.local.
              NoError
              WEB.Shop.svc.CLUSTER.local. A 172.21.0.20
            AAAA web.shop.svc.cluster.local.
              NoError
              web.shop.svc.cluster.local. AAAA fd00::20
            SRV _http._tcp.web.shop.svc.cluster.local.
              NoError
              _http._tcp.web.shop.svc.cluster.local. SRV 0 100 80 web.shop.svc.cluster.local.
              additional web.shop.svc.cluster.local. A 172.21.0.20
              additional web.shop.svc.cluster.local. AAAA fd00::20
            SRV _http._udp.web.shop.svc.cluster.local.
              NXDomain
            A _http._tcp.web.shop.svc.cluster.local.
              NoError
            MX web.shop.svc.cluster.local.
              NoError
            PTR 20.0.21.172.in-addr.arpa.
              NoError
              20.0.21.172.in-addr.arpa. PTR web.shop.svc.cluster.local.
        "#]],
    );
}

#[test]
fn a_headless_service_is_its_ready_endpoints() {
    check(
        "A db.shop.svc.cluster.local.
         A db-0.db.shop.svc.cluster.local.
         A db-1.db.shop.svc.cluster.local.
         A 172-20-21-7.db.shop.svc.cluster.local.
         SRV _sql._tcp.db.shop.svc.cluster.local.
         A peers.shop.svc.cluster.local.
         PTR 4.12.20.172.in-addr.arpa.
         PTR 7.21.20.172.in-addr.arpa.",
        expect![[r#"
            A db.shop.svc.cluster.local.
              NoError
              db.shop.svc.cluster.local. A 172.20.21.7
              db.shop.svc.cluster.local. A 172.20.12.4
            A db-0.db.shop.svc.cluster.local.
              NoError
              db-0.db.shop.svc.cluster.local. A 172.20.12.4
            A db-1.db.shop.svc.cluster.local.
              NXDomain
            A 172-20-21-7.db.shop.svc.cluster.local.
              NoError
              172-20-21-7.db.shop.svc.cluster.local. A 172.20.21.7
            SRV _sql._tcp.db.shop.svc.cluster.local.
              NoError
              _sql._tcp.db.shop.svc.cluster.local. SRV 0 100 3306 172-20-21-7.db.shop.svc.cluster.local.
              _sql._tcp.db.shop.svc.cluster.local. SRV 0 100 3306 db-0.db.shop.svc.cluster.local.
              additional 172-20-21-7.db.shop.svc.cluster.local. A 172.20.21.7
              additional db-0.db.shop.svc.cluster.local. A 172.20.12.4
            A peers.shop.svc.cluster.local.
              NoError
              peers.shop.svc.cluster.local. A 172.20.11.9
            PTR 4.12.20.172.in-addr.arpa.
              NoError
              4.12.20.172.in-addr.arpa. PTR db-0.db.shop.svc.cluster.local.
            PTR 7.21.20.172.in-addr.arpa.
              NXDomain
        "#]],
    );
}

/// A zone with services of two families, and of IPv6 alone.
fn dual_zone() -> Zone {
    let service = |name: &str, spec: serde_json::Value| -> Arc<Service> {
        let service = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        Arc::new(serde_json::from_value(service).unwrap())
    };
    let ports = || json!([{"name": "sql", "protocol": "TCP", "port": 3306}]);
    let services = [
        service(
            "six",
            json!({"clusterIP": "fd21::6", "clusterIPs": ["fd21::6"],
            "ipFamilies": ["IPv6"], "ports": ports()}),
        ),
        service(
            "pair",
            json!({"clusterIP": "None", "clusterIPs": ["None"],
            "ipFamilies": ["IPv6", "IPv4"], "ports": ports()}),
        ),
    ];
    let slice = |family: &str, addresses: [&str; 2]| -> Arc<EndpointSlice> {
        let endpoints = json!([
            {"addresses": [addresses[0]], "hostname": "pair-0", "conditions": {"ready": true}},
            {"addresses": [addresses[1]], "conditions": {"ready": true}},
        ]);
        let slice = json!({
            "metadata": {"name": format!("pair-{family}"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "pair"}},
            "addressType": family, "endpoints": endpoints, "ports": ports(),
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    };
    let slices =
        [slice("IPv4", ["172.20.1.4", "172.20.1.5"]), slice("IPv6", ["fd20::4", "fd20::5"])];
    let ranges = ["172.20.0.0/16", "172.21.0.0/24", "fd20::/48", "fd21::/112"];
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let mut zone = Zone::new("cluster.local", ranges).unwrap();
    zone.behind().replace_services(services);
    zone.behind().replace_slices(slices);
    assert!(zone.refresh());
    zone
}

/// The name under which an address is looked up.
fn reverse(address: &str) -> String {
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    let digits: Vec<String> =
        (0..32).map(|at| format!("{:x}", (address.to_bits() >> (4 * at)) & 15)).collect();
    format!("{}.ip6.arpa.", digits.join("."))
}

#[test]
fn names_have_addresses_of_both_families_and_the_other_way_round() {
    let (six, pair, loose) = (reverse("fd21::6"), reverse("fd20::4"), reverse("fd20::5"));
    let outside = reverse("2001:db8::1");
    let questions = format!(
        "AAAA six.shop.svc.cluster.local.
         A six.shop.svc.cluster.local.
         AAAA pair.shop.svc.cluster.local.
         A pair.shop.svc.cluster.local.
         AAAA pair-0.pair.shop.svc.cluster.local.
         A pair-0.pair.shop.svc.cluster.local.
         AAAA fd20--5.pair.shop.svc.cluster.local.
         SRV _sql._tcp.pair.shop.svc.cluster.local.
         AAAA fd20--9.shop.pod.cluster.local.
         PTR {six}
         PTR {pair}
         PTR {loose}
         PTR {outside}"
    );
    check_in(
        &dual_zone(),
        &questions,
        expect![[r#"
        AAAA six.shop.svc.cluster.local.
          NoError
          six.shop.svc.cluster.local. AAAA fd21::6
        A six.shop.svc.cluster.local.
          NoError
        AAAA pair.shop.svc.cluster.local.
          NoError
          pair.shop.svc.cluster.local. AAAA fd20::5
          pair.shop.svc.cluster.local. AAAA fd20::4
        A pair.shop.svc.cluster.local.
          NoError
          pair.shop.svc.cluster.local. A 172.20.1.5
          pair.shop.svc.cluster.local. A 172.20.1.4
        AAAA pair-0.pair.shop.svc.cluster.local.
          NoError
          pair-0.pair.shop.svc.cluster.local. AAAA fd20::4
        A pair-0.pair.shop.svc.cluster.local.
          NoError
          pair-0.pair.shop.svc.cluster.local. A 172.20.1.4
        AAAA fd20--5.pair.shop.svc.cluster.local.
          NoError
          fd20--5.pair.shop.svc.cluster.local. AAAA fd20::5
        SRV _sql._tcp.pair.shop.svc.cluster.local.
          NoError
          _sql._tcp.pair.shop.svc.cluster.local. SRV 0 100 3306 172-20-1-5.pair.shop.svc.cluster.local.
          _sql._tcp.pair.shop.svc.cluster.local. SRV 0 100 3306 fd20--5.pair.shop.svc.cluster.local.
          _sql._tcp.pair.shop.svc.cluster.local. SRV 0 100 3306 pair-0.pair.shop.svc.cluster.local.
          additional 172-20-1-5.pair.shop.svc.cluster.local. A 172.20.1.5
          additional fd20--5.pair.shop.svc.cluster.local. AAAA fd20::5
          additional pair-0.pair.shop.svc.cluster.local. A 172.20.1.4
          additional pair-0.pair.shop.svc.cluster.local. AAAA fd20::4
        AAAA fd20--9.shop.pod.cluster.local.
          NoError
          fd20--9.shop.pod.cluster.local. AAAA fd20::9
        PTR 6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.2.d.f.ip6.arpa.
          NoError
          6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.2.d.f.ip6.arpa. PTR six.shop.svc.cluster.local.
        PTR 4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.d.f.ip6.arpa.
          NoError
          4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.d.f.ip6.arpa. PTR pair-0.pair.shop.svc.cluster.local.
        PTR 5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.d.f.ip6.arpa.
          NXDomain
        PTR 1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.
          foreign
    "#]],
    );
}

#[test]
fn names_that_are_not_there_are_told_from_names_without_such_records() {
    check(
        "A nobody.shop.svc.cluster.local.
         A web.elsewhere.svc.cluster.local.
         A shop.svc.cluster.local.
         A elsewhere.svc.cluster.local.
         A svc.cluster.local.
         A cluster.local.
         NS cluster.local.
         A x.y.web.shop.svc.cluster.local.
         A lost.void.svc.cluster.local.
         A 172-20-12-4.shop.pod.cluster.local.
         A postgres.shop.pod.cluster.local.
         TXT dns-version.cluster.local.
         PTR 9.9.21.172.in-addr.arpa.
         PTR 8.8.8.8.in-addr.arpa.
         A example.org.
         CNAME mail.shop.svc.cluster.local.
         A mail.shop.svc.cluster.local.",
        expect![[r#"
            A nobody.shop.svc.cluster.local.
              NXDomain
            A web.elsewhere.svc.cluster.local.
              NXDomain
            A shop.svc.cluster.local.
              NoError
            A elsewhere.svc.cluster.local.
              NXDomain
            A svc.cluster.local.
              NoError
            A cluster.local.
              NoError
            NS cluster.local.
              NoError
              cluster.local. NS ns.dns.cluster.local.
            A x.y.web.shop.svc.cluster.local.
              NXDomain
            A lost.void.svc.cluster.local.
              NXDomain
            A 172-20-12-4.shop.pod.cluster.local.
              NoError
              172-20-12-4.shop.pod.cluster.local. A 172.20.12.4
            A postgres.shop.pod.cluster.local.
              NXDomain
            TXT dns-version.cluster.local.
              NoError
              dns-version.cluster.local. TXT 1.1.0
            PTR 9.9.21.172.in-addr.arpa.
              foreign
            PTR 8.8.8.8.in-addr.arpa.
              foreign
            A example.org.
              foreign
            CNAME mail.shop.svc.cluster.local.
              NoError
              mail.shop.svc.cluster.local. CNAME smtp.example.org.
            A mail.shop.svc.cluster.local.
              smtp.example.org.
              look up smtp.example.org.
        "#]],
    );
}

#[test]
fn several_addresses_take_turns_at_being_first() {
    let query =
        Query::query(Name::from_ascii("db.shop.svc.cluster.local.").unwrap(), RecordType::A);
    let first = |turn| match zone().answer(&query, turn) {
        Verdict::Answer(answer) => answer.answers[0].data.to_string(),
        other => panic!("{other:?}"),
    };
    assert_ne!(first(0), first(1));
    assert_eq!(first(0), first(2));
}

#[test]
fn any_message_that_can_be_read_gets_a_verdict() {
    let zone = zone();
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        if let Ok(message) = hickory_proto::op::Message::from_vec(bytes) {
            for query in &message.queries {
                let _verdict = zone.answer(query, bytes.len());
            }
        }
    });
}
