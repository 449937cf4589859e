use objects::kind;

use super::*;
use crate::defaults::set_defaults;

/// The mistakes of a new object, `field reason` each.
fn mistakes(kind: &Kind, mut object: Value) -> Vec<String> {
    set_defaults(kind, &mut object);
    shown(validate_create(kind, &object))
}

fn shown(causes: Vec<Cause>) -> Vec<String> {
    causes
        .into_iter()
        .map(|cause| format!("{} {}", cause.field, cause.reason.trim_start_matches("FieldValue")))
        .collect()
}

#[track_caller]
fn check(kind: &Kind, object: Value, expected: &[&str]) {
    assert_eq!(mistakes(kind, object), expected);
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": spec})
}

fn deployment(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    change(&mut object);
    object
}

#[test]
fn names_and_labels_are_checked() {
    let map = |meta: Value| json!({"metadata": meta});
    check(&kind::CONFIG_MAP, map(json!({"name": "a.b"})), &[]);
    check(&kind::CONFIG_MAP, map(json!({"name": "A"})), &["metadata.name Invalid"]);
    check(&kind::NAMESPACE, map(json!({"name": "a.b"})), &["metadata.name Invalid"]);
    check(
        &kind::CONFIG_MAP,
        map(json!({"name": "a", "labels": {"a/b/c": "x", "ok": "-"}, "annotations": {"b b": ""},
            "finalizers": [""], "ownerReferences": [{"name": "o", "kind": "K", "uid": "u"}]})),
        &[
            "metadata.labels Invalid",
            "metadata.labels Invalid",
            "metadata.annotations Invalid",
            "metadata.finalizers[0] Invalid",
            "metadata.ownerReferences[0].apiVersion Invalid",
        ],
    );
}

#[test]
fn pods_are_checked() {
    check(&kind::POD, pod(json!({})), &["spec.containers Required"]);
    check(&kind::POD, pod(json!({"containers": [{"name": "c", "image": "i"}]})), &[]);
    check(
        &kind::POD,
        pod(
            json!({"restartPolicy": "Sometimes", "containers": [{"name": "C"}, {"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
        ),
        &[
            "spec.containers[0].name Invalid",
            "spec.containers[0].image Required",
            "spec.containers[2].name Duplicate",
            "spec.restartPolicy NotSupported",
        ],
    );
    check(
        &kind::POD,
        pod(json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}],
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "w", "mountPath": "/a"}],
            "ports": [{"containerPort": 0}, {"containerPort": 70000}],
            "env": [{"name": "a=b"}, {"name": "x", "value": "1", "valueFrom": {"fieldRef": {}}}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}},
            "livenessProbe": {}}]})),
        &[
            "spec.volumes[0].hostPath Forbidden",
            "spec.containers[0].ports[0].containerPort Invalid",
            "spec.containers[0].ports[1].containerPort Invalid",
            "spec.containers[0].env[0].name Invalid",
            "spec.containers[0].env[1].valueFrom Invalid",
            "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath Required",
            "spec.containers[0].volumeMounts[0].name NotFound",
            "spec.containers[0].resources.requests Invalid",
            "spec.containers[0].livenessProbe Required",
        ],
    );
    check(
        &kind::POD,
        pod(json!({"containers": [{"name": "c", "image": "i"}], "tolerations": [
            {"operator": "Equal"}, {"key": "a", "operator": "Exists", "tolerationSeconds": 3}]})),
        &["spec.tolerations[0].operator Invalid", "spec.tolerations[1].effect Invalid"],
    );
}

#[test]
fn workloads_are_checked() {
    check(&kind::DEPLOYMENT, deployment(|_| {}), &[]);
    check(
        &kind::DEPLOYMENT,
        deployment(|d| d["spec"]["selector"]["matchLabels"]["app"] = json!("y")),
        &["spec.template.metadata.labels Invalid"],
    );
    check(
        &kind::DEPLOYMENT,
        deployment(|d| {
            d["spec"]["selector"] = json!({});
            d["spec"]["replicas"] = json!(-1);
            d["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
            d["spec"]["strategy"] =
                json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}});
        }),
        &[
            "spec.replicas Invalid",
            "spec.selector Invalid",
            "spec.template.spec.restartPolicy NotSupported",
            "spec.strategy.rollingUpdate.maxUnavailable Invalid",
        ],
    );
}

#[test]
fn services_are_checked() {
    let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    check(&kind::SERVICE, service(json!({"ports": [{"port": 80}]})), &[]);
    check(&kind::SERVICE, service(json!({})), &["spec.ports Required"]);
    let headless = |all: Value| service(json!({"clusterIP": "None", "clusterIPs": all}));
    check(&kind::SERVICE, headless(json!(["None"])), &[]);
    check(&kind::SERVICE, headless(json!(["None", "10.0.0.1"])), &["spec.clusterIPs Invalid"]);
    check(&kind::SERVICE, headless(json!([])), &["spec.clusterIPs Required"]);
    check(
        &kind::SERVICE,
        service(
            json!({"type": "Wrong", "ports": [{"port": 80}, {"port": 80, "targetPort": "UP"}]}),
        ),
        &[
            "spec.type NotSupported",
            "spec.ports[0].name Required",
            "spec.ports[1].name Required",
            "spec.ports[1].targetPort Invalid",
            "spec.ports[1] Duplicate",
        ],
    );
    let placed = |one: &str, all: Value, families: Value| {
        service(json!({"ports": [{"port": 80}], "clusterIP": one, "clusterIPs": all,
            "ipFamilies": families, "ipFamilyPolicy": "PreferDualStack"}))
    };
    let both = json!(["fd21::1", "10.0.0.1"]);
    for (one, all, families, expected) in [
        ("fd21::1", both.clone(), json!(["IPv6", "IPv4"]), &[] as &[&str]),
        ("fd21::1", both.clone(), json!([]), &[]),
        ("10.0.0.1", both.clone(), json!([]), &["spec.clusterIPs Invalid"]),
        ("", both.clone(), json!([]), &["spec.clusterIPs Invalid"]),
        (
            "fd21::1",
            both,
            json!(["IPv4", "IPv6"]),
            &["spec.clusterIPs[0] Invalid", "spec.clusterIPs[1] Invalid"],
        ),
        ("fd21::1", json!(["fd21::1", "fd21::2"]), json!([]), &["spec.clusterIPs Invalid"]),
        ("fd21::1", json!(["fd21::1", "ten"]), json!([]), &["spec.clusterIPs[1] Invalid"]),
        ("", json!([]), json!(["IPv4", "IPv4"]), &["spec.ipFamilies[1] Duplicate"]),
        ("", json!([]), json!(["IPX"]), &["spec.ipFamilies[0] NotSupported"]),
    ] {
        check(&kind::SERVICE, placed(one, all, families), expected);
    }
    let policy = service(json!({"ports": [{"port": 80}], "ipFamilyPolicy": "TripleStack"}));
    check(&kind::SERVICE, policy, &["spec.ipFamilyPolicy NotSupported"]);
    let elsewhere = service(json!({"type": "ExternalName", "externalName": "a.example.com",
        "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}));
    check(
        &kind::SERVICE,
        elsewhere,
        &[
            "spec.clusterIPs Forbidden",
            "spec.ipFamilies Forbidden",
            "spec.ipFamilyPolicy Forbidden",
        ],
    );
    let mut digit = service(json!({"ports": [{"port": 80}]}));
    digit["metadata"]["name"] = json!("1a");
    check(&kind::SERVICE, digit, &["metadata.name Invalid"]);
}

#[test]
fn machines_are_checked() {
    let machine = |spec: Value| json!({"metadata": {"name": "m"}, "spec": spec});
    check(
        &kind::MACHINE,
        machine(json!({"rack": "a", "role": "worker", "mac": "52:54:00:00:00:01", "boot": "bios"})),
        &[],
    );
    check(
        &kind::MACHINE,
        machine(json!({"rack": "a", "role": "boss", "address": "1.2"})),
        &["spec.mac Required", "spec.role NotSupported", "spec.address Invalid"],
    );
}

#[test]
fn what_is_fixed_cannot_change() {
    let update = |kind: &Kind, mut old: Value, change: &dyn Fn(&mut Value)| {
        set_defaults(kind, &mut old);
        let mut new = old.clone();
        change(&mut new);
        shown(validate_update(kind, "", &old, &new))
    };
    let selector: &dyn Fn(&mut Value) = &|d| {
        d["spec"]["selector"]["matchLabels"]["b"] = json!("c");
        d["spec"]["template"]["metadata"]["labels"]["b"] = json!("c");
    };
    assert_eq!(update(&kind::DEPLOYMENT, deployment(|_| {}), selector), ["spec.selector Invalid"]);
    let one = pod(json!({"containers": [{"name": "c", "image": "i"}]}));
    assert_eq!(
        update(&kind::POD, one.clone(), &|p| p["spec"]["containers"][0]["image"] = json!("j")),
        [""; 0]
    );
    assert_eq!(
        update(&kind::POD, one, &|p| p["spec"]["nodeName"] = json!("n")),
        ["spec Forbidden"]
    );
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1",
        "clusterIPs": ["10.0.0.1", "fd21::1"], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"port": 80}]}});
    let moved = |change: &dyn Fn(&mut Value)| update(&kind::SERVICE, service.clone(), change);
    let first = moved(&|s| {
        s["spec"]["clusterIP"] = json!("10.0.0.2");
        s["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
    });
    assert_eq!(first, ["spec.clusterIPs[0] Invalid"]);
    let second = moved(&|s| s["spec"]["clusterIPs"][1] = json!("fd21::2"));
    assert_eq!(second, ["spec.clusterIPs[1] Invalid"]);
    let turned = moved(&|s| {
        s["spec"]["clusterIP"] = json!("fd21::1");
        s["spec"]["clusterIPs"] = json!(["fd21::1", "10.0.0.1"]);
        s["spec"]["ipFamilies"] = json!(["IPv6"]);
    });
    assert_eq!(
        turned,
        ["spec.clusterIPs[0] Invalid", "spec.clusterIPs[1] Invalid", "spec.ipFamilies[0] Invalid",]
    );
    assert!(moved(&|s| s["spec"]["clusterIPs"] = json!(["10.0.0.1"])).is_empty());
    let map = json!({"metadata": {"name": "c"}, "immutable": true, "data": {"a": "b"}});
    assert_eq!(
        update(&kind::CONFIG_MAP, map, &|c| c["data"]["a"] = json!("c")),
        ["data Forbidden"]
    );
}
