use expect_test::expect_file;

use super::*;

#[test]
fn the_lab_is_listed_as_recorded() {
    let plan = Plan::parse(include_str!("../../../../examples/lab/rack.yaml")).unwrap();
    expect_file!["../../testdata/lab-inventory.json"].assert_eq(&render_list(&plan));
}

#[test]
fn one_host_has_the_variables_of_the_list() {
    let plan = Plan::parse(include_str!("../../../../examples/university/rack.yaml")).unwrap();
    let list: Value = serde_json::from_str(&render_list(&plan)).unwrap();
    let host: Value = serde_json::from_str(&render_host(&plan, "compute-1").unwrap()).unwrap();
    assert_eq!(list["_meta"]["hostvars"]["compute-1"], host);
    assert_eq!(host["muster_uuid"], "4c4c4544-0042-3510-8053-b4c04f303233");
    assert_eq!(render_host(&plan, "nobody"), None);
}
