use serde_json::json;

use super::*;

fn node(zone: &str, state: &str) -> Node {
    let labels = match zone.split_once('/') {
        Some((region, zone)) => json!({PLACES[0][0]: region, PLACES[1][0]: zone}),
        None => json!({PLACES[1][1]: zone}),
    };
    let (ready, rest) = state.split_once(' ').unwrap_or((state, ""));
    let mut object = json!({
        "metadata": {"labels": labels},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    });
    match rest {
        "excluded" => object["metadata"]["labels"][EXCLUDED] = json!(""),
        "tainted" => {
            object["spec"]["taints"] = json!([{"key": UNREACHABLE, "effect": "NoExecute"}]);
        }
        _ => assert_eq!(rest, ""),
    }
    serde_json::from_value(object).unwrap()
}

/// Nodes `first..first + count` of a zone, in one state.
fn fill(zones: &mut Zones, zone: &str, (first, count): (usize, usize), state: &str, at: i64) {
    for number in first..first + count {
        let name = format!("{zone}-{number:03}");
        zones.note(&name, Some(&node(zone, state)), time(at));
    }
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// After so many seconds, so many nodes are given up.
type GivenUp = (i64, usize);

#[track_caller]
fn check(zones: &mut Zones, expected: &[GivenUp]) {
    for (at, count) in expected {
        zones.turn(&ZoneRules::default(), time(*at));
        assert_eq!(zones.verdicts().given_up.len(), *count, "after {at} s");
    }
}

#[test]
fn the_state_of_a_zone_is_upstreams() {
    use ZoneState::{Full, Normal, Partial};
    for (nodes, unready, state) in [
        (10, 0, Normal),
        (1, 1, Full),
        (2, 1, Normal),
        (3, 2, Normal),
        (3, 3, Full),
        (4, 3, Partial),
        (5, 3, Partial),
        (6, 3, Normal),
        (20, 10, Normal),
        (20, 11, Partial),
        (20, 20, Full),
    ] {
        let zone = Zone { nodes, unready, ..Zone::default() };
        assert_eq!(zone.state(&ZoneRules::default()), state, "{unready} of {nodes}");
    }
}

#[test]
fn each_zone_goes_at_the_pace_of_its_state() {
    // Nodes of the first zone, those of them that fail, nodes given up after so many seconds.
    let cases: [(usize, usize, &[GivenUp]); 6] = [
        (10, 1, &[(0, 1), (100, 1)]),
        (10, 3, &[(0, 1), (9, 1), (10, 2), (19, 2), (20, 3), (90, 3)]),
        // Small and mostly broken: nobody.
        (10, 6, &[(0, 0), (1000, 0)]),
        // Large and mostly broken: slowly.
        (60, 40, &[(0, 1), (99, 1), (100, 2), (199, 2), (200, 3)]),
        // Wholly silent while another zone answers: as if it were well.
        (3, 3, &[(0, 1), (10, 2), (20, 3)]),
        (60, 60, &[(0, 1), (10, 2), (95, 3)]),
    ];
    for (nodes, failing, expected) in cases {
        let mut zones = Zones::default();
        fill(&mut zones, "b", (0, 4), "True", 0);
        fill(&mut zones, "a", (failing, nodes - failing), "True", 0);
        fill(&mut zones, "a", (0, failing), "Unknown", 0);
        check(&mut zones, expected);
    }
}

#[test]
fn zones_do_not_wait_for_each_other_and_the_longest_waiting_goes_first() {
    let mut zones = Zones::default();
    for zone in ["east/a", "west/a"] {
        fill(&mut zones, zone, (0, 10), "True", 0);
        fill(&mut zones, zone, (7, 1), "False", 1);
        fill(&mut zones, zone, (2, 2), "Unknown", 2);
    }
    check(&mut zones, &[(3, 2)]);
    let verdicts = zones.verdicts();
    let names: Vec<&str> = verdicts.given_up.iter().map(String::as_str).collect();
    assert_eq!(names, ["east/a-007", "west/a-007"]);
    let turns: Vec<_> = verdicts.turns.iter().map(|(name, at)| (name.as_str(), *at)).collect();
    assert_eq!(turns, [("east/a-002", time(13)), ("west/a-002", time(13))]);
    // One comes back before its turn; the next takes it.
    fill(&mut zones, "east/a", (2, 1), "True", 5);
    let woken = zones.turn(&ZoneRules::default(), time(5));
    assert_eq!(woken.into_iter().map(|key| key.name).collect::<Vec<_>>(), ["east/a-003"]);
    check(&mut zones, &[(13, 4), (23, 5)]);
    let figures = |zone: &str, unready, evictions| ZoneFigures {
        zone: zone.to_owned(),
        nodes: 10,
        unready,
        evictions,
    };
    assert_eq!(zones.figures(), [figures("east/a", 2, 2), figures("west/a", 3, 3)]);
}

#[test]
fn while_no_zone_has_a_ready_node_nobody_is_given_up() {
    let mut zones = Zones::default();
    fill(&mut zones, "a", (0, 4), "True", 0);
    fill(&mut zones, "b", (0, 2), "True", 0);
    fill(&mut zones, "a", (0, 1), "Unknown", 0);
    check(&mut zones, &[(1, 1)]);
    fill(&mut zones, "a", (0, 1), "Unknown tainted", 1);
    fill(&mut zones, "a", (1, 3), "Unknown", 2);
    fill(&mut zones, "b", (0, 2), "Unknown", 2);
    // Ready or not, this one says nothing about its zone.
    fill(&mut zones, "b", (9, 1), "True excluded", 2);
    let woken = zones.turn(&ZoneRules::default(), time(3));
    assert_eq!(woken.len(), 6, "{woken:?}");
    assert!(zones.verdicts().all_dark && zones.verdicts().given_up.is_empty());
    check(&mut zones, &[(1000, 0)]);
    // The taint has been taken back; then one node answers, and everyone's time begins anew.
    fill(&mut zones, "a", (0, 1), "Unknown", 1001);
    fill(&mut zones, "b", (0, 1), "True", 1002);
    let woken = zones.turn(&ZoneRules::default(), time(1002));
    assert_eq!(woken.len(), 5, "{woken:?}");
    assert!(!zones.verdicts().all_dark && zones.verdicts().given_up.is_empty());
    check(&mut zones, &[(1011, 0), (1012, 2), (1022, 3)]);
}

#[test]
fn a_node_whose_taint_was_taken_away_waits_again() {
    let mut zones = Zones::default();
    fill(&mut zones, "a", (0, 3), "True", 0);
    fill(&mut zones, "a", (0, 1), "Unknown", 0);
    check(&mut zones, &[(0, 1)]);
    fill(&mut zones, "a", (0, 1), "Unknown tainted", 1);
    check(&mut zones, &[(1, 0)]);
    fill(&mut zones, "a", (0, 1), "Unknown", 2);
    check(&mut zones, &[(2, 0), (9, 0), (10, 1)]);
    zones.note("a-000", None, time(11));
    check(&mut zones, &[(11, 0)]);
    assert_eq!(zones.figures()[0].nodes, 2);
    for number in 1..3 {
        zones.note(&format!("a-{number:03}"), None, time(12));
    }
    check(&mut zones, &[(12, 0)]);
    assert!(zones.figures().is_empty());
}

#[test]
fn a_pace_of_none_is_never() {
    let mut zones = Zones::default();
    fill(&mut zones, "a", (0, 3), "True", 0);
    fill(&mut zones, "a", (0, 1), "False", 0);
    let rules = ZoneRules { eviction_interval: None, ..ZoneRules::default() };
    zones.turn(&rules, time(10_000));
    assert_eq!(*zones.verdicts(), Verdicts::default());
}
