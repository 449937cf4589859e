use super::*;
use serde_json::json;

/// Prints one line per file or directory of the only volume, or the problem.
#[track_caller]
fn check(volume: serde_json::Value, expected: &str) {
    let mut volume = volume;
    volume["name"] = json!("v");
    let pod: Pod = serde_json::from_value(json!({"spec": {"volumes": [volume]}})).unwrap();
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}});
    let secret = json!({"metadata": {"name": "s"}, "data": {"k": "aHVudGVy", "bad": "%"}});
    let maps = [("m".to_owned(), serde_json::from_value(map).unwrap())].into();
    let mut secrets: BTreeMap<String, Secret> =
        [("s".to_owned(), serde_json::from_value(secret).unwrap())].into();
    secrets.get_mut("s").unwrap().data.remove("bad");
    let facts = Facts {
        config_maps: &maps,
        secrets: &secrets,
        field: &|field| (field.field_path == "metadata.name").then(|| "p".to_owned()),
        resource: &|field| (field.resource == "limits.cpu").then(|| "2".to_owned()),
        claims: &BTreeMap::new(),
        token: &|request| {
            let is_api = request.audience.is_empty();
            is_api.then(|| format!("token for {} s", request.seconds))
        },
    };
    let got = match &plan_volumes(&pod, facts)[0].source {
        Ok(Source::Files { files, memory }) => {
            let lines = files.iter().map(|(path, file)| {
                format!(
                    "{path} {:o} {}",
                    file.mode,
                    String::from_utf8_lossy(&file.bytes).escape_debug()
                )
            });
            let kind = if *memory { "memory" } else { "disk" };
            std::iter::once(kind.to_owned()).chain(lines).collect::<Vec<_>>().join("|")
        }
        Ok(other) => format!("{other:?}"),
        Err(problem) => problem.to_string(),
    };
    assert_eq!(got, expected);
}

#[test]
fn directories_and_paths() {
    check(json!({"emptyDir": {}}), "EmptyDir { memory: false, size_bytes_max: None }");
    check(json!({}), "EmptyDir { memory: false, size_bytes_max: None }");
    check(
        json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        "EmptyDir { memory: true, size_bytes_max: Some(1048576) }",
    );
    check(
        json!({"hostPath": {"path": "/srv", "type": "Directory"}}),
        "HostPath { path: \"/srv\", kind: Directory }",
    );
    check(
        json!({"hostPath": {"path": "/srv/../etc"}}),
        "invalid path \"/srv/../etc\" in the volume: must be relative and stay below it",
    );
    check(
        json!({"nfs": {"server": "x", "path": "y"}}),
        "nfs.path: \"y\" is not a name that can be used here",
    );
    check(json!({"local": {"path": "/x"}}), "volumes of kind local are not supported yet");
    check(json!({"flocker": {}}), "volumes of kind flocker are not supported yet");
}

#[test]
fn files_from_config_maps_and_secrets() {
    check(json!({"configMap": {"name": "m"}}), "disk|a 644 1|b 644 2|c 644 \\0\\u{1}");
    check(
        json!({"configMap": {"name": "m", "defaultMode": 256, "items": [{"key": "a", "path": "x/y"}, {"key": "b", "path": "z", "mode": 511}]}}),
        "disk|x/y 400 1|z 777 2",
    );
    check(
        json!({"configMap": {"name": "m", "items": [{"key": "no", "path": "x"}]}}),
        "configmap \"m\" references non-existent key: no",
    );
    check(
        json!({"configMap": {"name": "m", "items": [{"key": "a", "path": "../x"}]}}),
        "invalid path \"../x\" in the volume: must be relative and stay below it",
    );
    check(json!({"configMap": {"name": "none"}}), "configmap \"none\" not found");
    check(json!({"configMap": {"name": "none", "optional": true}}), "disk");
    check(json!({"secret": {"secretName": "s"}}), "memory|k 644 hunter");
}

#[test]
fn files_from_the_pod_itself() {
    let items = json!([{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "cpu", "mode": 256, "resourceFieldRef": {"containerName": "a", "resource": "limits.cpu"}}]);
    check(json!({"downwardAPI": {"items": items}}), "disk|cpu 400 2|name 644 p");
    check(
        json!({"downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "spec.x"}}]}}),
        "unsupported field spec.x",
    );
    let sources = json!([{"configMap": {"name": "m", "items": [{"key": "a", "path": "a"}]}}, {"secret": {"name": "s"}}, {"downwardAPI": {"items": items}}]);
    check(
        json!({"projected": {"sources": sources, "defaultMode": 288}}),
        "memory|a 440 1|cpu 400 2|k 440 hunter|name 440 p",
    );
    check(
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
        "memory|token 644 token for 3600 s",
    );
    check(
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}),
        "no token of the service account for audience \"vault\"",
    );
}

#[test]
fn what_volumes_refer_to_is_listed() {
    let pod: Pod = serde_json::from_value(json!({"spec": {"volumes": [
        {"name": "a", "configMap": {"name": "m"}}, {"name": "b", "secret": {"secretName": "s"}},
        {"name": "d", "rbd": {"monitors": ["h"], "image": "i", "secretRef": {"name": "key"}}},
        {"name": "c", "projected": {"sources": [{"secret": {"name": "t"}}, {"configMap": {"name": "n"}}]}}]}}))
    .unwrap();
    let found = references(&pod);
    assert_eq!(Vec::from_iter(found.config_maps), ["m", "n"]);
    assert_eq!(Vec::from_iter(found.secrets), ["key", "s", "t"]);
}
