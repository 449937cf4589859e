//! Every kind of the table, from its creation to its end.

use std::collections::BTreeMap;

use jiff::Timestamp;
use objects::field::Fields as _;
use objects::kind::KINDS;
use serde_json::json;

use super::tests::{prepare_as, request};
use super::*;
use crate::{
    accept::MetaVersion,
    list::{ListMeta, list_head, served},
    table::render_table,
};

/// One valid object of each kind.
const OBJECTS: &str = include_str!("../../testdata/objects.yaml");

/// The documents by kind, as JSON.
fn objects() -> BTreeMap<&'static Kind, Value> {
    let documents = OBJECTS.split("\n---\n").skip(1);
    let read = |text: &str| -> Value {
        let body = Body { bytes: text.as_bytes(), content_type: "application/yaml" };
        crate::decode::decode_any(&body).unwrap_or_else(|status| panic!("{text}: {status:?}"))
    };
    documents
        .map(read)
        .map(|object| {
            let version = object["apiVersion"].as_str().unwrap();
            let kind = kind::by_gvk(version, object["kind"].as_str().unwrap());
            (kind.unwrap_or_else(|| panic!("{object}")), object)
        })
        .collect()
}

/// The object of a kind as it is stored.
pub(crate) fn made(kind: &Kind) -> Value {
    let wish = objects().remove(kind).unwrap();
    let result = prepare_as("application/json", "POST", &url(kind, None), None, &wish);
    done(kind, "create", result).object
}

fn url(kind: &Kind, name: Option<&str>) -> String {
    kind.path(Some("a"), name)
}

#[track_caller]
fn done(kind: &Kind, what: &str, result: Result<Prepared, Status>) -> Prepared {
    let prepared = result.unwrap_or_else(|status| panic!("{what} {kind:?}: {status:?}"));
    assert!(prepared.warnings.is_empty(), "{what} {kind:?}: {:?}", prepared.warnings);
    prepared
}

#[test]
fn every_kind_has_an_object_in_the_file() {
    let all = objects();
    let missing: Vec<_> = KINDS.iter().filter(|kind| !all.contains_key(*kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_kind_is_made_read_changed_and_removed() {
    for (kind, wish) in objects() {
        let name = wish["metadata"]["name"].as_str().unwrap().to_owned();
        let strict = format!("{}?fieldValidation=Strict", url(kind, None));
        let json = "application/json";
        let made = done(kind, "create", prepare_as(json, "POST", &strict, None, &wish)).object;
        assert_eq!(made["metadata"]["uid"], "new-uid", "{kind:?}");
        let generation = made["metadata"].get("generation").cloned();
        assert_eq!(generation, kind.has_generation.then(|| json!(1)), "{kind:?}");

        // Making it again from what is stored changes nothing: defaults are complete.
        let own = url(kind, Some(&name));
        let again = done(kind, "put", prepare_as(json, "PUT", &own, Some(&made), &made));
        assert_eq!(again.change, Change::Nothing, "{kind:?}: {} {made}", again.object);

        // Read, listed, tabled.
        let list = request("GET", &url(kind, None));
        let meta = ListMeta { revision: 7, ..ListMeta::default() };
        let head: Value = serde_json::from_str(&format!("{}]}}", list_head(&list, &meta))).unwrap();
        assert_eq!(head["kind"], format!("{}List", kind.kind));
        assert_eq!(served(&list, &made)["kind"], kind.kind);
        let now = "2026-01-01T00:01:00Z".parse::<Timestamp>().unwrap();
        let table = render_table(&list, [&made], &meta, MetaVersion::V1, true, now);
        let (columns, cells) = (&table["columnDefinitions"], &table["rows"][0]["cells"]);
        assert_eq!(columns.as_array().unwrap().len(), cells.as_array().unwrap().len(), "{kind:?}");
        assert!(cells.to_string().contains(name.as_str()), "{kind:?}: {cells}");

        for media in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
            let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
            let patched = done(kind, media, prepare_as(media, "PATCH", &own, Some(&made), &patch));
            assert_eq!(patched.change, Change::Update, "{kind:?}");
            assert_eq!(patched.object["metadata"]["labels"]["patched"], "yes");
        }
        change_status(kind, &own, &made);

        let removed =
            done(kind, "delete", prepare_as(json, "DELETE", &own, Some(&made), &json!(null)));
        let finalizers = removed.object.field("metadata.finalizers");
        let held = finalizers.is_some() || *kind == kind::NAMESPACE;
        let expected = if held { Change::Update } else { Change::Remove };
        assert_eq!(removed.change, expected, "{kind:?}");
    }
}

/// A status is written apart, and only there.
fn change_status(kind: &Kind, own: &str, made: &Value) {
    if !kind.has_status {
        return;
    }
    let media = "application/merge-patch+json";
    let condition = json!([{"type": "Tried", "status": "True", "reason": "Tried", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let (field, value) = match kind.kind {
        "Machine" | "Namespace" | "PersistentVolume" | "PersistentVolumeClaim" => {
            ("phase", json!("Tried"))
        }
        "ResourceQuota" => ("used", json!({"pods": "1"})),
        "HorizontalPodAutoscaler" => ("currentReplicas", json!(3)),
        "Ingress" => ("loadBalancer", json!({"ingress": [{"ip": "192.0.2.1"}]})),
        "VolumeAttachment" => ("attached", json!(true)),
        "ResourceClaim" => ("reservedFor", json!([{"resource": "pods", "name": "p", "uid": "u"}])),
        "CronJob" => ("lastScheduleTime", json!("2026-01-01T00:00:00Z")),
        "NodeImage" => ("said", json!(true)),
        "ValidatingAdmissionPolicy" => ("observedGeneration", json!(1)),
        _ => ("conditions", condition),
    };
    let patch = json!({"metadata": {"labels": {"x": "y"}}, "status": {field: value},
        "spec": {"ignored": 1}});
    let status = format!("{own}/status?fieldValidation=Ignore");
    let result = prepare_as(media, "PATCH", &status, Some(made), &patch);
    let changed = done(kind, "status", result).object;
    let path = format!("/status/{field}");
    assert_eq!(changed.pointer(&path), Some(&value), "{kind:?}: {changed}");
    assert_eq!(changed.get("spec"), made.get("spec"), "{kind:?}");
    let main = prepare_as(media, "PATCH", own, Some(made), &json!({"status": {field: value}}));
    let unchanged = done(kind, "main", main);
    assert_eq!(unchanged.object.get("status"), made.get("status"), "{kind:?}");
}
