use super::*;
use crate::{
    authority::User,
    prepare::{Body, Change, Prepared, prepare_create, prepare_patch, prepare_update},
    request::{Route, parse_request},
};

const URL: &str = "/apis/apps/v1/namespaces/a/deployments";

fn request(method: &str, url: &str) -> Request {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    match parse_request(method, path, query) {
        Ok(Route::Resource(request)) => *request,
        other => panic!("{other:?}"),
    }
}

fn context(user: &User) -> Context<'_> {
    Context {
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
        uid: "u".to_owned(),
        name_suffix: "bcdfg".to_owned(),
        user,
        user_agent: "tester/1.0 (linux)",
        view: &crate::admission::Nothing,
    }
}

fn deployment(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"a": "1"}},
        "spec": {"selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}},
                "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}});
    change(&mut object);
    object
}

fn apply(
    old: Option<&Value>,
    manager: &str,
    force: bool,
    applied: &Value,
) -> Result<Prepared, Status> {
    let user = User::default();
    let request = request("PATCH", &format!("{URL}/d?fieldManager={manager}&force={force}"));
    let bytes = serde_json::to_vec(applied).unwrap();
    let body = Body { bytes: &bytes, content_type: "application/apply-patch+yaml" };
    prepare_patch(&request, &body, old, &context(&user))
}

fn put_back(old: &Value, manager: &str, new: &Value) -> Prepared {
    let user = User::default();
    let request = request("PUT", &format!("{URL}/d?fieldManager={manager}"));
    let bytes = serde_json::to_vec(new).unwrap();
    let body = Body { bytes: &bytes, content_type: "" };
    prepare_update(&request, &body, old, &context(&user)).unwrap()
}

/// The managers of an object and how many fields each owns.
fn owners(object: &Value) -> Vec<(String, usize)> {
    Managers::decode(object)
        .iter()
        .map(|m| (format!("{} {}", m.name, m.operation), m.fields.iter().count()))
        .collect()
}

fn owns(object: &Value, manager: &str, path: &[&str]) -> bool {
    let path: Path = path.iter().map(|s| (*s).to_owned()).collect();
    Managers::decode(object)
        .iter()
        .any(|m| m.name == manager && m.fields.iter().any(|p| *p == path))
}

use super::set::Path;

#[test]
fn an_apply_owns_what_it_says_and_defaults_belong_to_nobody() {
    let made = apply(None, "x", false, &deployment(|_| {})).unwrap();
    assert_eq!(made.change, Change::Create);
    assert!(owns(&made.object, "x", &["f:metadata", "f:labels", "f:a"]));
    let port = "k:{\"containerPort\":80,\"protocol\":\"TCP\"}";
    let container = ["f:spec", "f:template", "f:spec", "f:containers", "k:{\"name\":\"c\"}"];
    assert!(owns(&made.object, "x", &[&container[..], &["f:image"]].concat()));
    assert!(owns(
        &made.object,
        "x",
        &[&container[..], &["f:ports", port, "f:containerPort"]].concat()
    ));
    assert!(!owns(&made.object, "x", &["f:spec", "f:replicas"]));
    assert_eq!(owners(&made.object).len(), 1);
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let made = apply(None, "x", false, &deployment(|_| {})).unwrap();
    let again = apply(Some(&made.object), "x", false, &deployment(|_| {})).unwrap();
    assert_eq!(again.change, Change::Nothing);
    assert!(!again.conditional);
}

#[test]
fn changing_anothers_field_is_a_conflict_unless_forced() {
    let made = apply(None, "x", false, &deployment(|d| d["spec"]["replicas"] = json!(1))).unwrap();
    let wish = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 3}});
    let status = apply(Some(&made.object), "y", false, &wish).unwrap_err();
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"x\": .spec.replicas");
    let forced = apply(Some(&made.object), "y", true, &wish).unwrap().object;
    assert_eq!(forced["spec"]["replicas"], 3);
    assert!(owns(&forced, "y", &["f:spec", "f:replicas"]));
    assert!(!owns(&forced, "x", &["f:spec", "f:replicas"]));
    // The same value is shared without a conflict.
    let shared = apply(Some(&forced), "z", false, &wish).unwrap().object;
    assert!(
        owns(&shared, "z", &["f:spec", "f:replicas"])
            && owns(&shared, "y", &["f:spec", "f:replicas"])
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_another_owns_it() {
    let both = deployment(|d| {
        d["metadata"]["labels"]["b"] = json!("2");
        d["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "side", "image": "s"}));
    });
    let made = apply(None, "x", false, &both).unwrap().object;
    let label = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"b": "2"}}});
    let shared = apply(Some(&made), "y", false, &label).unwrap().object;
    let less = apply(Some(&shared), "x", false, &deployment(|_| {})).unwrap().object;
    assert_eq!(less["metadata"]["labels"], json!({"a": "1", "b": "2"}));
    assert_eq!(less["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    let gone = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
    let last = apply(Some(&less), "y", false, &gone).unwrap().object;
    assert_eq!(last["metadata"]["labels"], json!({"a": "1"}));
    assert_eq!(owners(&last).len(), 1);
}

#[test]
fn other_verbs_take_over_what_they_change() {
    let made =
        apply(None, "x", false, &deployment(|d| d["spec"]["replicas"] = json!(1))).unwrap().object;
    let mut scaled = made.clone();
    scaled["spec"]["replicas"] = json!(5);
    let updated = put_back(&made, "hand", &scaled);
    assert!(owns(&updated.object, "hand", &["f:spec", "f:replicas"]));
    assert!(!owns(&updated.object, "x", &["f:spec", "f:replicas"]));
    let same = put_back(&updated.object, "other", &updated.object);
    assert_eq!(same.change, Change::Nothing);
}

#[test]
fn a_create_owns_defaults_too_and_is_named_after_the_client() {
    let user = User::default();
    let bytes = serde_json::to_vec(&deployment(|_| {})).unwrap();
    let body = Body { bytes: &bytes, content_type: "" };
    let made = prepare_create(&request("POST", URL), &body, &context(&user)).unwrap().object;
    assert!(owns(&made, "tester", &["f:spec", "f:replicas"]));
    assert!(!owns(&made, "tester", &["f:metadata", "f:name"]));
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Update");
    let fields = &made["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(fields["f:metadata"]["f:labels"], json!({".": {}, "f:a": {}}));
}

#[test]
fn sets_round_trip() {
    let made = apply(None, "x", false, &deployment(|_| {})).unwrap().object;
    for manager in Managers::decode(&made).iter() {
        assert_eq!(Set::decode(&manager.fields.encode()), manager.fields);
    }
}

#[test]
fn any_object_can_be_applied_or_is_refused() {
    let made = apply(None, "x", false, &deployment(|_| {})).unwrap().object;
    bolero::check!().with_iterations(5_000).for_each(|bytes: &[u8]| {
        if let Ok(spec) = serde_json::from_slice::<Value>(bytes) {
            let wish = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec});
            drop(apply(Some(&made), "y", true, &wish));
        }
    });
}

#[test]
fn many_updaters_become_one() {
    let mut object = apply(None, "x", false, &deployment(|_| {})).unwrap().object;
    for number in 0..30 {
        let mut new = object.clone();
        new["metadata"]["labels"][format!("l{number}")] = json!("v");
        object = put_back(&object, &format!("m{number}"), &new).object;
    }
    let names = owners(&object);
    assert!(names.len() <= 12, "{names:?}");
    assert!(owns(&object, "ancient-changes", &["f:metadata", "f:labels", "f:l0"]));
    assert!(owns(&object, "m29", &["f:metadata", "f:labels", "f:l29"]));
}

#[test]
fn clients_may_move_owners() {
    let mut old = apply(None, "x", false, &deployment(|_| {})).unwrap().object;
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["manager"] = json!("y");
    let moved = put_back(&old, "hand", &new);
    assert_eq!(moved.change, Change::Update);
    assert!(owns(&moved.object, "y", &["f:metadata", "f:labels", "f:a"]));
    new["metadata"]["managedFields"] = json!([{}]);
    assert_eq!(owners(&put_back(&old, "hand", &new).object), []);
    old["metadata"].as_object_mut().unwrap().remove("managedFields");
    let first =
        apply(Some(&old), "z", true, &deployment(|d| d["spec"]["replicas"] = json!(7))).unwrap();
    let defaulted = ["f:spec", "f:revisionHistoryLimit"];
    assert!(owns(&first.object, "before-first-apply", &defaulted), "{:?}", owners(&first.object));
}

#[test]
fn what_holds_fields_goes_with_the_last_of_them() {
    let probed = deployment(|d| {
        d["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] =
            json!({"httpGet": {"port": 80}});
    });
    let made = apply(None, "x", false, &probed).unwrap().object;
    let less = apply(Some(&made), "x", false, &deployment(|_| {})).unwrap().object;
    assert!(less.pointer("/spec/template/spec/containers/0/livenessProbe").is_none());
}

#[test]
fn going_over_from_client_side_apply_keeps_and_prunes() {
    let user = User::default();
    let with_label = deployment(|d| d["metadata"]["labels"]["gone"] = json!("soon"));
    let bytes = serde_json::to_vec(&with_label).unwrap();
    let body = Body { bytes: &bytes, content_type: "" };
    let url = format!("{URL}?fieldManager=client");
    let made = prepare_create(&request("POST", &url), &body, &context(&user)).unwrap().object;
    let mut moved = made.clone();
    moved["metadata"]["managedFields"][0]["manager"] = json!("x");
    moved["metadata"]["managedFields"][0]["operation"] = json!("Apply");
    let moved = put_back(&made, "hand", &moved).object;
    let less = apply(Some(&moved), "x", false, &deployment(|_| {})).unwrap().object;
    assert_eq!(less["metadata"]["labels"], json!({"a": "1"}));
    assert_eq!(less["spec"]["replicas"], 1);
}

#[test]
fn conflicts_name_each_manager_once_and_say_when_it_wrote() {
    let made = put_back(
        &deployment(|_| {}),
        "editor",
        &deployment(|d| {
            d["spec"]["replicas"] = json!(3);
            d["spec"]["minReadySeconds"] = json!(7);
        }),
    );
    let wanted = deployment(|d| {
        d["spec"]["replicas"] = json!(4);
        d["spec"]["minReadySeconds"] = json!(8);
    });
    let refused = apply(Some(&made.object), "me", false, &wanted).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        refused.message,
        "Apply failed with 2 conflicts: conflicts with \"editor\" using apps/v1 at \
         2026-01-01T00:00:00Z:\n- .spec.minReadySeconds\n- .spec.replicas"
    );
    let causes = refused.details.unwrap().causes;
    assert_eq!(causes[1].field, ".spec.replicas");
    assert_eq!(causes[1].message, "conflict with \"editor\" using apps/v1 at 2026-01-01T00:00:00Z");
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_clients_side() {
    let note = |replicas: u64| {
        let said = deployment(|d| d["spec"]["replicas"] = json!(replicas));
        json!({"kubectl.kubernetes.io/last-applied-configuration": said.to_string()})
    };
    let live = |noted: u64| {
        put_back(
            &deployment(|_| {}),
            "kubectl-client-side-apply",
            &deployment(|d| {
                d["spec"]["replicas"] = json!(3);
                d["metadata"]["annotations"] = note(noted);
            }),
        )
    };
    let wanted = deployment(|d| d["spec"]["replicas"] = json!(4));
    // What the note says and is still so may be taken; what someone changed since may not.
    let taken = apply(Some(&live(3).object), "kubectl", false, &wanted).unwrap();
    assert_eq!(taken.object["spec"]["replicas"], 4);
    let notes = &taken.object["metadata"]["annotations"];
    let noted = notes["kubectl.kubernetes.io/last-applied-configuration"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(noted).unwrap()["spec"]["replicas"], 4);
    assert!(apply(Some(&live(2).object), "kubectl", false, &wanted).is_err());
    assert!(apply(Some(&live(3).object), "another", false, &wanted).is_err());
}
