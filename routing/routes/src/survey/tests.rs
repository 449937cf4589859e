use expect_test::{Expect, expect};

use super::*;
use crate::birdc::{Reader, Reply, parse_protocols, parse_routes};
use crate::fixture::intent;

fn reply(text: &str) -> Reply {
    Reader::default().read(text.as_bytes()).unwrap().remove(0)
}

const PROTOCOLS: &str = "\
2002-Name       Proto      Table      State  Since         Info\n\
1002-pods4      Static     master4    up     2026-11-21 08:00:01  \n\
\x20tor1       BGP        ---        up     2026-11-21 08:00:02  Established   \n\
0000 \n";

/// As BIRD 2.0.12 answers `show route export kernel4`.
const ROUTES: &str = "\
1007-Table master4:\n\
\x20172.20.12.0/24       blackhole [pods4 14:56:11.905] * (200)\n\
\x20172.20.11.0/24       unicast [tor1 14:56:12.1] * (100) [AS4200000011i]\n\
\x20\tvia 10.98.1.11 on eth0\n\
\x20172.20.21.0/24       unicast [tor1 14:56:12.1] (100) [AS4200000021i]\n\
\x20\tvia 10.98.1.1 on eth0 weight 1\n\
\x20\tvia 10.98.1.2 on eth0 weight 1\n\
0000 \n";

fn bird() -> BirdView {
    let told = ["172.20.12.0/24", "10.98.1.12/32"].map(|net| net.parse().unwrap());
    let told = BTreeSet::from(told);
    BirdView {
        protocols: parse_protocols(&reply(PROTOCOLS)),
        counts: BTreeMap::new(),
        routes: parse_routes(&reply(ROUTES)),
        told: BTreeMap::from([("tor1".to_owned(), told)]),
    }
}

fn route(destination: &str, way: Way, by_bird: bool) -> KernelRoute {
    KernelRoute { destination: destination.parse().unwrap(), way, by_bird }
}

fn via(gateways: &[&str]) -> Way {
    Way::Via(gateways.iter().map(|one| one.parse().unwrap()).collect())
}

fn table() -> Vec<KernelRoute> {
    vec![
        route("172.20.12.0/24", Way::Blackhole, true),
        route("172.21.0.0/24", Way::Link, false),
        route("172.20.12.5/32", Way::Link, false),
        route("172.20.11.0/24", via(&["10.98.1.11"]), true),
        route("172.20.21.0/24", via(&["10.98.1.2", "10.98.1.1"]), true),
    ]
}

#[track_caller]
fn check(bird: &BirdView, table: &[KernelRoute], expected: Expect) {
    let mut intent = intent("a-worker");
    if let Protocol::Bgp { tors, .. } = &mut intent.protocol {
        tors.push(crate::intent::Tor { address: "10.98.1.2".parse().unwrap(), asn: 65001 });
    }
    let survey = Survey::new(&intent, bird, table);
    let text = serde_json::to_string(&survey).unwrap();
    assert_eq!(serde_json::from_str::<Survey>(&text).unwrap(), survey);
    expected.assert_eq(&survey.render());
}

#[test]
fn three_views_stand_side_by_side() {
    check(
        &bird(),
        &table(),
        expect![[r#"
            a-worker: BGP, AS 4200000012, 1 of 1 neighbours up, no difference
              NEIGHBOUR  KIND  STATE  SINCE                BIRD SAYS
              tor1       BGP   up     2026-11-21 08:00:02  Established
              ANNOUNCED       WHAT         TO
              10.98.1.12/32   own address  tor1
              172.20.12.0/24  own pods     tor1
              DESTINATION     WHAT              INTENT                              BIRD                     KERNEL
              10.98.2.0/24    another rack      -                                   -                        -
              10.98.3.0/24    another rack      -                                   -                        -
              172.20.11.0/24  pods of a-master  via 10.98.1.1 10.98.1.2 10.98.1.11  via 10.98.1.11           via 10.98.1.11
              172.20.12.0/24  own pods          blackhole                           blackhole                blackhole
              172.20.21.0/24  pods of b-one     via 10.98.1.1 10.98.1.2             via 10.98.1.1 10.98.1.2  via 10.98.1.2 10.98.1.1
              172.20.22.0/24  pods of b-two     via 10.98.1.1 10.98.1.2             -                        -
              172.20.31.0/24  pods of c-one     via 10.98.1.1 10.98.1.2             -                        -
              172.20.32.0/24  pods of c-two     via 10.98.1.1 10.98.1.2             -                        -
              172.20.33.0/24  pods of c-three   via 10.98.1.1 10.98.1.2             -                        -
              172.21.0.0/24   services          on a link                           -                        on a link
        "#]],
    );
}

#[test]
fn every_disagreement_is_named() {
    let mut bird = bird();
    let lie = BTreeSet::from(["172.20.21.0/24".parse().unwrap()]);
    bird.told.insert("tor1".to_owned(), lie);
    let mut table = table();
    table.remove(4);
    table.push(route("10.0.0.0/8", via(&["10.98.1.1"]), true));
    table.push(route("172.20.77.0/24", via(&["10.98.1.1"]), true));
    check(
        &bird,
        &table,
        expect![[r#"
            a-worker: BGP, AS 4200000012, 1 of 1 neighbours up, 6 differences
              NEIGHBOUR  KIND  STATE  SINCE                BIRD SAYS
              tor1       BGP   up     2026-11-21 08:00:02  Established
              ANNOUNCED       WHAT         TO
              10.98.1.12/32   own address  nobody
              172.20.12.0/24  own pods     nobody
              172.20.21.0/24  not ours     tor1
              DESTINATION     WHAT              INTENT                              BIRD                     KERNEL
              10.0.0.0/8      not in the plan   -                                   -                        via 10.98.1.1
              10.98.2.0/24    another rack      -                                   -                        -
              10.98.3.0/24    another rack      -                                   -                        -
              172.20.11.0/24  pods of a-master  via 10.98.1.1 10.98.1.2 10.98.1.11  via 10.98.1.11           via 10.98.1.11
              172.20.12.0/24  own pods          blackhole                           blackhole                blackhole
              172.20.21.0/24  pods of b-one     via 10.98.1.1 10.98.1.2             via 10.98.1.1 10.98.1.2  -
              172.20.22.0/24  pods of b-two     via 10.98.1.1 10.98.1.2             -                        -
              172.20.31.0/24  pods of c-one     via 10.98.1.1 10.98.1.2             -                        -
              172.20.32.0/24  pods of c-two     via 10.98.1.1 10.98.1.2             -                        -
              172.20.33.0/24  pods of c-three   via 10.98.1.1 10.98.1.2             -                        -
              172.20.77.0/24  nobody's pods     -                                   -                        via 10.98.1.1
              172.21.0.0/24   services          on a link                           -                        on a link
              difference: 10.0.0.0/8: wanted no route, found via 10.98.1.1 from an earlier BIRD
              difference: 10.98.1.12/32: wanted announced to tor1, found not announced
              difference: 172.20.12.0/24: wanted announced to tor1, found not announced
              difference: 172.20.21.0/24: wanted not announced, found announced to tor1
              difference: 172.20.21.0/24: wanted via 10.98.1.1 10.98.1.2 as BIRD says, found no route
              difference: 172.20.77.0/24: wanted no route, found via 10.98.1.1
        "#]],
    );
}

#[test]
fn without_bird_the_rest_is_still_shown() {
    check(
        &BirdView::default(),
        &[],
        expect![[r#"
            a-worker: BGP, AS 4200000012, 0 of 0 neighbours up, 2 differences
              ANNOUNCED       WHAT         TO
              10.98.1.12/32   own address  nobody
              172.20.12.0/24  own pods     nobody
              DESTINATION     WHAT              INTENT                              BIRD  KERNEL
              10.98.2.0/24    another rack      -                                   -     -
              10.98.3.0/24    another rack      -                                   -     -
              172.20.11.0/24  pods of a-master  via 10.98.1.1 10.98.1.2 10.98.1.11  -     -
              172.20.12.0/24  own pods          blackhole                           -     -
              172.20.21.0/24  pods of b-one     via 10.98.1.1 10.98.1.2             -     -
              172.20.22.0/24  pods of b-two     via 10.98.1.1 10.98.1.2             -     -
              172.20.31.0/24  pods of c-one     via 10.98.1.1 10.98.1.2             -     -
              172.20.32.0/24  pods of c-two     via 10.98.1.1 10.98.1.2             -     -
              172.20.33.0/24  pods of c-three   via 10.98.1.1 10.98.1.2             -     -
              172.21.0.0/24   services          on a link                           -     -
              difference: 172.20.12.0/24: wanted blackhole, found no route
              difference: 172.21.0.0/24: wanted on a link, found no route
        "#]],
    );
}
