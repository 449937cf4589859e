use expect_test::expect_file;

use super::*;

#[track_caller]
fn plan(text: &str) -> Plan {
    Plan::parse(text).unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>())
    })
}

#[test]
fn the_lab_is_shown_as_recorded() {
    let plan = plan(include_str!("../../../../examples/lab/rack.yaml"));
    expect_file!["../../testdata/lab.txt"].assert_eq(&render_table(&plan));
    expect_file!["../../testdata/lab.json"].assert_eq(&render_json(&plan));
}

#[test]
fn the_university_is_shown_as_recorded() {
    let plan = plan(include_str!("../../../../examples/university/rack.yaml"));
    expect_file!["../../testdata/university.txt"].assert_eq(&render_table(&plan));
    expect_file!["../../testdata/university.json"].assert_eq(&render_json(&plan));
}

#[test]
fn a_plan_survives_its_own_json() {
    let plan = plan(include_str!("../../../../examples/university/rack.yaml"));
    let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(plan, again);
    assert_eq!(plan.hash(), again.hash());
}
