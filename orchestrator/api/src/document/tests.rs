use super::*;
use crate::request::{Route, parse_request};

fn get(path: &str, accept: &str) -> Result<Document, Status> {
    match parse_request("GET", path, "")? {
        Route::Document(found) => render_document(&found, accept, "", "10.0.0.1:6443"),
        other => panic!("{path}: {other:?}"),
    }
}

fn json_of(path: &str) -> Value {
    serde_json::from_slice(&get(path, "").unwrap().bytes).unwrap()
}

#[test]
fn discovery_lists_what_is_served() {
    let groups = json_of("/apis");
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    for group in ["apps", "events.k8s.io", "muster.dev", "authorization.k8s.io"] {
        assert!(names.contains(&group), "{group} in {names:?}");
    }
    let core = json_of("/api/v1");
    let find = |name: &str| {
        core["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).cloned().unwrap()
    };
    assert_eq!(find("pods")["shortNames"], json!(["po"]));
    assert_eq!(find("pods/binding")["kind"], "Binding");
    assert_eq!(find("pods/eviction")["group"], "policy");
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = get("/apis", accept).unwrap();
    assert!(all.content_type.contains("v=v2;"));
    let all: Value = serde_json::from_slice(&all.bytes).unwrap();
    let apps = all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps");
    let first = &apps.unwrap()["versions"][0]["resources"][0];
    assert_eq!(first["responseKind"]["group"], "apps");
    assert!(first["subresources"].as_array().unwrap().iter().any(|s| s["subresource"] == "status"));
}

#[test]
fn every_reference_of_openapi_resolves() {
    fn check(document: &Value, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(place) = fields.get("$ref").and_then(Value::as_str) {
                    let pointer = place.trim_start_matches('#');
                    assert!(document.pointer(pointer).is_some(), "{place}");
                }
                fields.values().for_each(|inner| check(document, inner));
            }
            Value::Array(items) => items.iter().for_each(|inner| check(document, inner)),
            _ => {}
        }
    }
    let v2 = json_of("/openapi/v2");
    check(&v2, &v2);
    for index in json_of("/openapi/v3")["paths"].as_object().unwrap().values() {
        let url = index["serverRelativeURL"].as_str().unwrap();
        let (path, query) = url.split_once('?').unwrap();
        let Route::Document(found) = parse_request("GET", path, query).unwrap() else { panic!() };
        let document = render_document(&found, "application/json", query, "").unwrap();
        assert!(document.immutable, "{url}");
        let document: Value = serde_json::from_slice(&document.bytes).unwrap();
        check(&document, &document);
    }
}

#[test]
fn operation_ids_are_unique() {
    let v2 = json_of("/openapi/v2");
    let mut seen = std::collections::BTreeSet::new();
    for item in v2["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(seen.insert(id.to_owned()), "{id} twice");
        }
    }
}

#[test]
fn patch_operations_tell_what_kubectl_looks_for() {
    let v3 = json_of("/openapi/v3/apis/apps/v1");
    let patch = &v3["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
}

#[test]
fn old_clients_get_protobuf() {
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let document = get("/openapi/v2", accept).unwrap();
    assert!(document.content_type.ends_with("protobuf"));
    assert_eq!(document.bytes.get(..5), Some(&b"\x0a\x032.0"[..]));
    assert_eq!(get("/apis", "text/html").unwrap_err().code, 406);
}

#[test]
fn our_own_kinds_are_described() {
    let v3 = json_of("/openapi/v3/apis/muster.dev/v1alpha1");
    let spec = &v3["components"]["schemas"]["dev.muster.v1alpha1.MachineSpec"];
    assert!(spec["properties"]["mac"]["description"].as_str().unwrap().contains("boot NIC"));
    assert_eq!(spec["required"], json!(["mac", "rack", "role"]));
}
