use objects::kind;

use super::*;

#[track_caller]
fn check(kind: &Kind, mut object: Value, expected: Value) {
    set_defaults(kind, &mut object);
    assert_eq!(object, expected);
    let before = object.clone();
    set_defaults(kind, &mut object);
    assert_eq!(object, before, "defaults of defaults differ");
}

#[test]
fn every_row_names_a_field_of_the_schema() {
    for (name, field, _) in TABLE {
        let full = format!("io.k8s.api.{name}");
        let shape = builtin().types().iter().find(|one| one.name == full || one.name == *name);
        assert!(shape.is_some_and(|shape| shape.field(field).is_some()), "{name}.{field}");
    }
}

#[test]
fn a_pod_gets_upstreams_defaults() {
    check(
        &kind::POD,
        json!({"spec": {
            "containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "w", "configMap": {"name": "m"}}]}}),
        json!({"spec": {
            "containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "m", "defaultMode": 420}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true}}),
    );
}

#[test]
fn a_deployment_gets_upstreams_defaults() {
    check(
        &kind::DEPLOYMENT,
        json!({"spec": {"selector": {}, "strategy": {"type": "Recreate"}}}),
        json!({"spec": {"selector": {}, "strategy": {"type": "Recreate"}, "replicas": 1,
            "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}}),
    );
    check(
        &kind::DEPLOYMENT,
        json!({"spec": {"replicas": 0}}),
        json!({"spec": {"replicas": 0, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}}}),
    );
}

#[test]
fn a_service_gets_upstreams_defaults() {
    check(
        &kind::SERVICE,
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster"}}),
    );
}

#[test]
fn secrets_take_plain_text() {
    check(
        &kind::SECRET,
        json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}}),
        json!({"type": "Opaque", "data": {"a": "Yg==", "c": "ZA=="}}),
    );
}

#[test]
fn images_without_a_fixed_tag_are_pulled_each_time() {
    for (image, policy) in [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("host:5000/a", "Always"),
        ("host:5000/a:1", "IfNotPresent"),
        ("a@sha256:00", "IfNotPresent"),
    ] {
        let mut container = Map::from_iter([("image".to_owned(), json!(image))]);
        pull_policy(&mut container);
        assert_eq!(container["imagePullPolicy"], policy, "{image}");
    }
}

#[test]
fn the_class_follows_requests_and_limits() {
    let class = |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(
        class(json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}})),
        "Burstable"
    );
}
