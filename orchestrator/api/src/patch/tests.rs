use objects::kind;
use serde_json::json;

use super::*;

/// `old + patch = expected` for a strategic merge patch of a kind.
#[track_caller]
fn check(kind: &Kind, old: Value, patch: Value, expected: Value) {
    let new = strategic(kind, kind.group, kind.version, &old, &patch).unwrap();
    assert_eq!(new, expected);
}

fn pod(spec: Value) -> Value {
    json!({"spec": spec})
}

#[test]
fn lists_with_keys_are_merged() {
    check(
        &kind::POD,
        pod(json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]})),
        pod(json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}]})),
        pod(
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]}),
        ),
    );
    check(
        &kind::POD,
        pod(json!({"containers": [{"name": "a"}, {"name": "b"}]})),
        pod(json!({"containers": [{"name": "a", "$patch": "delete"}]})),
        pod(json!({"containers": [{"name": "b"}]})),
    );
    check(
        &kind::SERVICE,
        pod(json!({"ports": [{"port": 80, "name": "x"}, {"port": 81}]})),
        pod(json!({"ports": [{"port": 80, "nodePort": 30000}]})),
        pod(json!({"ports": [{"port": 80, "name": "x", "nodePort": 30000}, {"port": 81}]})),
    );
}

#[test]
fn lists_without_keys_are_replaced() {
    check(
        &kind::POD,
        pod(
            json!({"tolerations": [{"key": "a"}], "containers": [{"name": "a", "args": ["1", "2"]}]}),
        ),
        pod(json!({"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]})),
        pod(json!({"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]})),
    );
    check(
        &kind::POD,
        pod(json!({"containers": [{"name": "a"}]})),
        pod(json!({"containers": [{"$patch": "replace"}, {"name": "z"}]})),
        pod(json!({"containers": [{"name": "z"}]})),
    );
}

#[test]
fn values_in_sets_come_and_go() {
    check(
        &kind::POD,
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
        json!({"metadata": {"finalizers": ["b", "c"]}}),
    );
}

#[test]
fn nulls_and_replacements_remove() {
    check(
        &kind::POD,
        json!({"metadata": {"labels": {"a": "1", "b": "2"}, "annotations": {"x": "y"}}}),
        json!({"metadata": {"labels": {"a": null}, "annotations": {"$patch": "replace", "z": "1"}}}),
        json!({"metadata": {"labels": {"b": "2"}, "annotations": {"z": "1"}}}),
    );
    check(
        &kind::DEPLOYMENT,
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
}

#[test]
fn element_order_is_kept() {
    check(
        &kind::POD,
        pod(json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "mine"}]})),
        pod(json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
            "containers": [{"name": "c"}]})),
        pod(json!({"containers": [{"name": "c"}, {"name": "b"}, {"name": "mine"}, {"name": "a"}]})),
    );
}

#[test]
fn a_missing_merge_key_is_a_mistake() {
    let old = pod(json!({"containers": [{"name": "a"}]}));
    let patch = pod(json!({"containers": [{"image": "x"}]}));
    let status = strategic(&kind::POD, "", "v1", &old, &patch).unwrap_err();
    assert_eq!(status.code, 400);
    assert!(status.message.contains("merge key: name"), "{}", status.message);
}

#[test]
fn plain_patches_follow_their_rfcs() {
    let seen = json!({"a": [1, 2], "b": {"c": 1}});
    let patch = |media: &str, text: &str| {
        apply_plain_patch(&Body { bytes: text.as_bytes(), content_type: media }, &seen)
    };
    let json =
        r#"[{"op":"replace","path":"/a/0","value":9},{"op":"test","path":"/b/c","value":1}]"#;
    assert_eq!(patch("application/json-patch+json", json).unwrap()["a"][0], 9);
    let wrong = r#"[{"op":"test","path":"/b/c","value":2}]"#;
    assert_eq!(patch("application/json-patch+json", wrong).unwrap_err().code, 422);
    // What is not there is null to a test, as upstream has it, where its holder is there.
    for (path, value, code) in [
        ("/b/d", "null", 200),
        ("/b/d~1e", "null", 200),
        ("/b/d", "0", 422),
        ("/b/c", "null", 422),
        ("/d/e", "null", 422),
        ("/a/7", "null", 422),
    ] {
        let text = format!(r#"[{{"op":"test","path":"{path}","value":{value}}}]"#);
        let said = patch("application/json-patch+json", &text);
        assert_eq!(said.map_or_else(|status| status.code, |_| 200), code, "{text}");
    }
    let merge = patch("application/merge-patch+json", r#"{"a":[3],"b":{"c":null}}"#).unwrap();
    assert_eq!(merge, json!({"a": [3], "b": {}}));
    assert_eq!(patch("text/plain", "{}").unwrap_err().code, 415);
}

#[test]
fn any_patch_is_applied_or_refused() {
    let old = pod(json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}));
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        for media in ["application/json-patch+json", "application/merge-patch+json"] {
            drop(apply_plain_patch(&Body { bytes, content_type: media }, &old));
        }
        if let Ok(patch) = serde_json::from_slice::<Value>(bytes) {
            drop(strategic(&kind::POD, "", "v1", &old, &patch));
        }
    });
}
