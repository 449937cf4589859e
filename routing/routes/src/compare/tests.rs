use expect_test::{Expect, expect};

use super::*;
use crate::fixture::intent;

/// Lines are `PREFIX blackhole|link|via A B ...`, `bird` in front for routes of BIRD's.
#[track_caller]
fn check(node: &str, table: &str, expected: Expect) {
    let table: Vec<KernelRoute> = table
        .lines()
        .map(|line| {
            let (by_bird, line) = match line.trim().strip_prefix("bird ") {
                Some(rest) => (true, rest),
                None => (false, line.trim()),
            };
            let mut words = line.split(' ');
            let destination = words.next().unwrap().parse().unwrap();
            let way = match words.next().unwrap() {
                "blackhole" => Way::Blackhole,
                "link" => Way::Link,
                _ => Way::Via(words.map(|word| word.parse().unwrap()).collect()),
            };
            KernelRoute { destination, way, by_bird }
        })
        .collect();
    let text: Vec<String> =
        compare(&intent(node), &table).iter().map(ToString::to_string).collect();
    expected.assert_eq(&text.join("\n"));
}

const GOOD: &str = "172.20.12.0/24 blackhole\n172.21.0.0/24 link\n";

#[test]
fn a_silent_node_is_no_difference() {
    check("a-worker", GOOD.trim_end(), expect![""]);
    check(
        "a-worker",
        &format!("{GOOD}bird 172.20.21.0/24 via 10.98.1.1\nbird 172.20.11.0/24 via 10.98.1.11"),
        expect![""],
    );
}

#[test]
fn what_is_missing_or_astray_is_named() {
    check(
        "a-worker",
        "bird 172.20.21.0/24 via 10.98.1.99\nbird 172.20.77.0/24 via 10.98.1.1",
        expect![[r#"
            172.20.12.0/24: wanted blackhole, found no route
            172.20.21.0/24: wanted via 10.98.1.1, found via 10.98.1.99
            172.20.77.0/24: wanted no route, found via 10.98.1.1
            172.21.0.0/24: wanted on a link, found no route"#]],
    );
}

#[test]
fn ospf_nodes_of_a_rack_are_reached_directly() {
    let own = "172.20.21.0/24 blackhole\n172.21.0.0/24 link\n";
    check("b-one", &format!("{own}bird 172.20.22.0/24 via 10.98.2.22"), expect![""]);
    check(
        "b-one",
        &format!("{own}bird 172.20.11.0/24 via 10.98.2.22"),
        expect!["172.20.11.0/24: wanted via 10.98.2.1, found via 10.98.2.22"],
    );
}
